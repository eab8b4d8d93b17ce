//! What a role has on disk of a training that is under way, so that it can go on after a crash with the same bits.
//!
//! A checkpoint is one file, whole or absent: temporary file, fsync, rename, fsync of the directory. It holds
//!
//! | bytes | field |
//! | --- | --- |
//! | 8 | `spnnckp1` |
//! | n | postcard of role, session digest and position, then of the role's state |
//! | 8 | length of the whole file, little-endian |
//! | 32 | SHA-256 of everything before |
//!
//! A file with one byte changed is no checkpoint, and the one before it is used.
//!
//! All roles make checkpoints at the same positions ([`TrainSpec::checkpoint_every`](crate::TrainSpec)). Writing goes on
//! in the background while the next batches are trained, so a role may be behind with its disk; but it takes part in the
//! last batch before a checkpoint only when the one before that is durable ([`Checkpoints::settle`]). Hence whoever
//! holds the checkpoint of one position knows that everyone holds that of the position before. A role that is
//! interrupted makes one more, where it is. Three generations are kept: that one, and two that were agreed.

use crate::durable::write_private;
use crate::{Position, ProtocolError, Role, SessionConfig};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use spnn_nn::Parameter;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

/// The checkpoints of one role in one session.
pub struct Checkpoints {
    directory: PathBuf,
    label: Label,
    /// The last one begun or loaded.
    last: Option<Position>,
    writing: Option<JoinHandle<Result<(), ProtocolError>>>,
}

/// Whose checkpoint a file is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Label {
    role: Role,
    session: [u8; 32],
}

const MAGIC: &[u8; 8] = b"spnnckp1";
const FOOTER: usize = 8 + 32;
/// One where the role was interrupted, and two agreed ones.
const GENERATIONS: usize = 3;

impl Checkpoints {
    /// The checkpoints kept in `directory/checkpoints`.
    #[must_use]
    pub fn in_directory(directory: &Path, role: Role, session: &SessionConfig) -> Self {
        let directory = directory.join("checkpoints");
        Self { directory, label: Label { role, session: session.digest() }, last: None, writing: None }
    }

    /// The positions of all whole checkpoints, in ascending order. What is damaged is named in the log and left out.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] if the directory cannot be read.
    pub fn positions(&mut self) -> Result<Vec<Position>, ProtocolError> {
        self.settle()?;
        let mut whole = Vec::new();
        for (position, file) in self.files()? {
            match read(&file, &self.label, position) {
                Ok(_) => whole.push(position),
                Err(reason) => warn!("{}: {reason}; an earlier checkpoint is used", file.display()),
            }
        }
        Ok(whole)
    }

    /// The state at `position`. Later checkpoints are removed: from here on they are of another future.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] naming the file and what is wrong with it.
    pub fn resume<S: DeserializeOwned>(&mut self, position: Position) -> Result<S, ProtocolError> {
        self.settle()?;
        let file = self.file(position);
        let state = read(&file, &self.label, position)
            .and_then(|body| postcard::from_bytes(&body).map_err(|e| format!("does not decode: {e}")))
            .map_err(|reason| storage(&file, io::Error::other(reason)))?;
        for (later, file) in self.files()?.into_iter().filter(|(p, _)| *p > position) {
            debug!(%later, "rolled back");
            std::fs::remove_file(&file).map_err(|e| storage(&file, e))?;
        }
        self.last = Some(position);
        Ok(state)
    }

    /// Begins to write the state at `position`, unless it is there; waits for the one before.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] of the one before.
    pub fn begin<S: Serialize>(&mut self, position: Position, state: &S) -> Result<(), ProtocolError> {
        self.settle()?;
        if self.last == Some(position) {
            return Ok(());
        }
        let file = self.file(position);
        let mut bytes = Zeroizing::new(MAGIC.to_vec());
        postcard::to_io(&((&self.label, position), state), &mut *bytes)
            .map_err(|e| storage(&file, io::Error::other(e)))?;
        self.last = Some(position);
        let mut old: Vec<PathBuf> =
            self.files()?.into_iter().filter(|(p, _)| *p != position).map(|(_, file)| file).collect();
        old.truncate(old.len().saturating_sub(GENERATIONS - 1));
        self.writing = Some(std::thread::spawn(move || {
            let length = (bytes.len() + FOOTER) as u64;
            let digest: [u8; 32] =
                Sha256::new_with_prefix(&*bytes).chain_update(length.to_le_bytes()).finalize().into();
            write_private(&file, &[&*bytes, &length.to_le_bytes(), &digest])?;
            old.iter().try_for_each(|old| std::fs::remove_file(old).map_err(|e| storage(old, e)))
        }));
        Ok(())
    }

    /// Waits until what was begun is durable.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] naming the file that could not be written.
    pub fn settle(&mut self) -> Result<(), ProtocolError> {
        let Some(writing) = self.writing.take() else { return Ok(()) };
        let written = writing.join().unwrap_or_else(|_| Err(storage(&self.directory, io::Error::other("no thread"))));
        if written.is_err() {
            // What is on disk is older than this; it is written again when asked for again.
            self.last = None;
        }
        written
    }

    /// Removes all checkpoints of this session: everything is done.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] naming the file.
    pub fn clear(&mut self) -> Result<(), ProtocolError> {
        self.settle()?;
        self.last = None;
        self.files()?
            .into_iter()
            .try_for_each(|(_, file)| std::fs::remove_file(&file).map_err(|e| storage(&file, e)))?;
        // Those of another session may be in there.
        let _ = std::fs::remove_dir(&self.directory);
        Ok(())
    }

    fn file(&self, Position { epoch, batch }: Position) -> PathBuf {
        self.directory.join(format!("{}{epoch}-{batch}.checkpoint", self.prefix()))
    }

    /// A directory may have served another session before; its checkpoints are left alone.
    fn prefix(&self) -> String {
        let digits: String = self.label.session[..4].iter().map(|b| format!("{b:02x}")).collect();
        format!("{digits}-")
    }

    /// Files that are named like checkpoints of this session, in order of position.
    fn files(&self) -> Result<Vec<(Position, PathBuf)>, ProtocolError> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(storage(&self.directory, e)),
        };
        let prefix = self.prefix();
        let mut files = Vec::new();
        for entry in entries {
            let file = entry.map_err(|e| storage(&self.directory, e))?.path();
            let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let Some(name) = name.strip_suffix(".checkpoint") else { continue };
            let Some(position) = name.strip_prefix(&prefix).and_then(parse) else {
                info!("{} is a checkpoint of another session and is left alone", file.display());
                continue;
            };
            files.push((position, file));
        }
        files.sort();
        Ok(files)
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        // Nothing is written after its owner is gone.
        if let Err(e) = self.settle() {
            warn!("{e}");
        }
    }
}

fn parse(name: &str) -> Option<Position> {
    let (epoch, batch) = name.split_once('-')?;
    Some(Position { epoch: epoch.parse().ok()?, batch: batch.parse().ok()? })
}

/// The encoded state in a file, if the file is whole and what its name says.
fn read(file: &Path, label: &Label, position: Position) -> Result<Zeroizing<Vec<u8>>, String> {
    let mut bytes = Zeroizing::new(std::fs::read(file).map_err(|e| e.to_string())?);
    let Some(footer) = bytes.len().checked_sub(FOOTER) else { return Err("is cut off".into()) };
    let digest = footer + 8;
    if bytes[footer..digest] != (bytes.len() as u64).to_le_bytes()
        || bytes[digest..] != Sha256::digest(&bytes[..digest])[..]
    {
        return Err("is damaged: its length or SHA-256 is not the one it ends with".into());
    }
    let body = bytes[..footer].strip_prefix(MAGIC).ok_or("is of another version of spnn")?;
    let ((found, at), state) =
        postcard::take_from_bytes::<(Label, Position)>(body).map_err(|e| format!("does not decode: {e}"))?;
    if found != *label || at != position {
        return Err(format!("is that of {} at {at}: misplaced", found.role));
    }
    let start = footer - state.len();
    bytes.truncate(footer);
    bytes.drain(..start);
    Ok(bytes)
}

fn storage(file: &Path, source: io::Error) -> ProtocolError {
    ProtocolError::Storage { file: file.to_owned(), source }
}

/// The current values of parameters, for a checkpoint.
#[must_use]
pub fn parameter_values(parameters: &[Parameter<'_>]) -> Vec<(String, Vec<f32>)> {
    parameters.iter().map(|p| (p.name.to_string(), p.value.to_vec())).collect()
}

/// Puts values of a checkpoint into parameters. Returns the length of each.
///
/// # Errors
/// [`ProtocolError::Checkpoint`] naming the first that does not fit; what comes before has changed then.
pub fn restore_parameters(
    parameters: &mut [Parameter<'_>],
    values: Vec<(String, Vec<f32>)>,
) -> Result<Vec<usize>, ProtocolError> {
    let unfit = |reason| ProtocolError::Checkpoint { reason };
    if parameters.len() != values.len() {
        return Err(unfit(format!("it has {} tensors, the model has {}", values.len(), parameters.len())));
    }
    let restore = |(parameter, (name, values)): (&mut Parameter<'_>, (String, Vec<f32>))| {
        if parameter.name != name || parameter.value.len() != values.len() {
            let (ours, length) = (&parameter.name, parameter.value.len());
            return Err(unfit(format!("it has {name} of length {}, the model {ours} of {length}", values.len())));
        }
        parameter.value.copy_from_slice(&values);
        Ok(values.len())
    };
    parameters.iter_mut().zip(values).map(restore).collect()
}
