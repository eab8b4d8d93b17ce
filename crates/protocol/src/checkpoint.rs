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
//! All roles make checkpoints after the same batches: the server decides, and says so with the last message of a batch.
//! Writing goes on in the background while the next batches are trained, so a role may be behind with its disk; but it
//! takes part in the second batch after a checkpoint only when that one is durable
//! ([`Training::before_batch`](crate::Training::before_batch)), and none is made before the second. Hence whoever holds
//! a checkpoint knows that everyone holds the one before. A role that is interrupted makes one more, where it is. Three
//! generations are kept: that one, and two that were agreed.

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
        let mut old: Vec<PathBuf> =
            self.files()?.into_iter().filter(|(p, _)| *p != position).map(|(_, file)| file).collect();
        old.truncate(old.len().saturating_sub(GENERATIONS - 1));
        self.last = Some(position);
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
        format!("{}-", base16ct::lower::encode_string(&self.label.session[..4]))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SessionFile;
    use std::fs;

    const FILE: &str = include_str!("../../../examples/breast_cancer/session.toml");
    const STATES: [&str; 3] = ["zero", "one", "two"];

    fn session() -> SessionConfig {
        SessionFile::parse(FILE, Path::new("test.toml")).unwrap().config().unwrap()
    }

    fn at(batch: u32) -> Position {
        Position { epoch: 1, batch }
    }

    fn checkpoints(directory: &Path) -> Checkpoints {
        Checkpoints::in_directory(directory, Role::Server, &session())
    }

    /// Three generations in a directory.
    fn written() -> (tempfile::TempDir, Checkpoints) {
        let directory = tempfile::tempdir().unwrap();
        let mut kept = checkpoints(directory.path());
        for (batch, state) in (0..).zip(STATES) {
            kept.begin(at(batch), &state.to_owned()).unwrap();
        }
        kept.settle().unwrap();
        (directory, kept)
    }

    #[test]
    fn three_generations_are_kept_and_later_ones_go_on_resuming() {
        let (directory, mut kept) = written();
        assert_eq!(kept.positions().unwrap(), [at(0), at(1), at(2)]);
        kept.begin(at(3), &"three".to_owned()).unwrap();
        assert_eq!(kept.positions().unwrap(), [at(1), at(2), at(3)]);
        assert_eq!(kept.resume::<String>(at(2)).unwrap(), "two");
        assert_eq!(kept.positions().unwrap(), [at(1), at(2)]);
        // Another session in the same directory is another matter.
        let other =
            SessionFile::parse(&FILE.replace("seed = 7", "seed = 8"), Path::new("t")).unwrap().config().unwrap();
        let mut others = Checkpoints::in_directory(directory.path(), Role::Server, &other);
        assert_eq!(others.positions().unwrap(), []);
        others.begin(at(0), &"other".to_owned()).unwrap();
        others.clear().unwrap();
        assert_eq!(kept.positions().unwrap(), [at(1), at(2)]);
        kept.clear().unwrap();
        assert!(!directory.path().join("checkpoints").exists());
    }

    #[test]
    fn only_the_owner_can_read_them() {
        use std::os::unix::fs::PermissionsExt;
        let (_directory, kept) = written();
        assert_eq!(fs::metadata(kept.file(at(2))).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn one_flipped_byte_and_the_one_before_is_used() {
        let (_directory, mut kept) = written();
        let file = kept.file(at(2));
        let whole = fs::read(&file).unwrap();
        for i in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[i] ^= 1 << (i % 8);
            fs::write(&file, &damaged).unwrap();
            assert_eq!(kept.positions().unwrap(), [at(0), at(1)], "byte {i}");
            assert!(kept.resume::<String>(at(2)).is_err(), "byte {i}");
        }
        fs::write(&file, &whole).unwrap();
        assert_eq!(kept.resume::<String>(at(2)).unwrap(), "two");
    }

    /// What a crash can leave at each moment of a write: a part of any length, a whole part, the file.
    #[test]
    fn a_crash_inside_a_write_leaves_the_old_or_the_new() {
        let (_directory, mut kept) = written();
        let file = kept.file(at(2));
        let whole = fs::read(&file).unwrap();
        let part = file.with_extension("checkpoint.part");
        fs::remove_file(&file).unwrap();
        for length in 0..=whole.len() {
            fs::write(&part, &whole[..length]).unwrap();
            assert_eq!(kept.positions().unwrap(), [at(0), at(1)], "{length} bytes");
            // A file system that lost power may also have the name before the bytes.
            if length < whole.len() {
                fs::write(&file, &whole[..length]).unwrap();
                assert_eq!(kept.positions().unwrap(), [at(0), at(1)], "{length} bytes");
                fs::remove_file(&file).unwrap();
            }
        }
        // The next life writes over what was left.
        let mut next = checkpoints(kept.directory.parent().unwrap());
        next.begin(at(2), &"two".to_owned()).unwrap();
        assert_eq!(next.positions().unwrap(), [at(0), at(1), at(2)]);
        assert!(!part.exists());
    }

    #[test]
    fn those_of_another_role_or_place_are_refused() {
        let (directory, mut kept) = written();
        fs::copy(kept.file(at(1)), kept.file(at(7))).unwrap();
        assert_eq!(kept.positions().unwrap(), [at(0), at(1), at(2)]);
        let mut party = Checkpoints::in_directory(directory.path(), Role::party(0), &session());
        assert_eq!(party.positions().unwrap(), []);
    }

    #[test]
    fn a_write_that_fails_is_an_error_and_can_be_tried_again() {
        let (directory, mut kept) = written();
        let place = directory.path().join("checkpoints");
        let aside = directory.path().join("aside");
        fs::rename(&place, &aside).unwrap();
        fs::write(&place, "in the way").unwrap();
        let failed = kept.begin(at(3), &"three".to_owned()).and_then(|()| kept.settle());
        assert!(matches!(failed, Err(ProtocolError::Storage { .. })), "{failed:?}");
        fs::remove_file(&place).unwrap();
        fs::rename(&aside, &place).unwrap();
        kept.begin(at(3), &"three".to_owned()).unwrap();
        assert_eq!(kept.positions().unwrap(), [at(1), at(2), at(3)]);
    }
}
