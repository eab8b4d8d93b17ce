//! What a party has on disk of an alignment that is under way, and its result.
//!
//! A key with its seeds (`run`), the lists of blinded ids that end here (`list-N`), and the result (`rows`), all for the
//! owner's eyes only. Key and lists are removed when all parties have the result.

use super::count_of;
use crate::durable::write_private;
use crate::message::AlignmentOffer;
use crate::{PartyId, ProtocolError, Role, SessionConfig};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use spnn_crypto::{BLINDED_BYTES, BlindedId, BlindingKey, SecretRng};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tracing::info;
use zeroize::{Zeroize, Zeroizing};

/// An alignment's secrets, and where its lists are.
pub(super) struct Run {
    directory: PathBuf,
    pub(super) id: [u8; 32],
    pub(super) key: BlindingKey,
    /// Of the order in which this party sends its own ids.
    pub(super) own_seed: [u8; 32],
    /// Of party 1's shuffle of list 0.
    pub(super) shuffle_seed: [u8; 32],
}

impl Drop for Run {
    fn drop(&mut self) {
        self.own_seed.zeroize();
        self.shuffle_seed.zeroize();
    }
}

/// A run as it lies on disk, for the owner's eyes only.
#[derive(Serialize, Deserialize, Zeroize)]
#[zeroize(drop)]
struct StoredRun {
    id: [u8; 32],
    session: [u8; 32],
    ids: [u8; 32],
    key: [u8; 32],
    own_seed: [u8; 32],
    shuffle_seed: [u8; 32],
}

const RUN: &str = "run";
const ROWS: &str = "rows";

impl Run {
    pub(super) fn begin(
        directory: &Path,
        session: &SessionConfig,
        ids: &[u8; 32],
        offers: &[AlignmentOffer],
        rng: &mut SecretRng,
    ) -> Result<Self, ProtocolError> {
        let mut id = Sha256::new_with_prefix(b"spnn alignment v1\0");
        id.update(session.digest());
        offers.iter().for_each(|o| id.update(o.nonce));
        let run = Self {
            directory: directory.to_owned(),
            id: id.finalize().into(),
            key: BlindingKey::new(rng),
            own_seed: rng.bytes32(),
            shuffle_seed: rng.bytes32(),
        };
        // Lists under an earlier key are of no use with this one.
        Self::clear(directory, offers.len());
        let stored = StoredRun {
            id: run.id,
            session: session.digest(),
            ids: *ids,
            key: *run.key.to_bytes(),
            own_seed: run.own_seed,
            shuffle_seed: run.shuffle_seed,
        };
        store(&directory.join(RUN), &stored)?;
        Ok(run)
    }

    /// Removes what only an alignment under way needs. What cannot be removed is overwritten by the next one.
    pub(super) fn clear(directory: &Path, parties: usize) {
        let _ = fs::remove_file(directory.join(RUN));
        for list in 0..parties {
            let _ = fs::remove_file(directory.join(list_name(count_of(list) as u16)));
        }
    }

    /// A list that comes here, of which `held` ids are there already.
    pub(super) fn open_list(&self, list: u16, held: u32) -> Result<ListFile, ProtocolError> {
        let file = self.directory.join(list_name(list));
        let open = || {
            let mut options = OpenOptions::new();
            options.create(true).truncate(false).write(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let mut out = options.open(&file)?;
            out.set_len(u64::from(held) * BLINDED_BYTES as u64)?;
            out.seek(SeekFrom::End(0))?;
            Ok(out)
        };
        match open() {
            Ok(out) => Ok(ListFile { out, file }),
            Err(source) => Err(ProtocolError::Storage { file, source }),
        }
    }

    pub(super) fn read_list(&self, list: u16, ids: usize) -> Result<Vec<BlindedId>, ProtocolError> {
        let file = self.directory.join(list_name(list));
        let mut blinded = vec![[0; BLINDED_BYTES]; ids];
        let read = File::open(&file).and_then(|f| BufReader::new(f).read_exact(blinded.as_flattened_mut()));
        read.map(|()| blinded).map_err(|source| ProtocolError::Storage { file, source })
    }
}

fn list_name(list: u16) -> String {
    format!("list-{list}")
}

/// A list that is being received.
pub(super) struct ListFile {
    out: File,
    file: PathBuf,
}

impl ListFile {
    /// Durable on return: what is held after a crash must be what was received.
    pub(super) fn append(&mut self, block: &[BlindedId]) -> Result<(), ProtocolError> {
        let written = self.out.write_all(block.as_flattened()).and_then(|()| self.out.sync_data());
        written.map_err(|source| ProtocolError::Storage { file: self.file.clone(), source })
    }
}

/// The result as it is stored.
#[derive(Serialize)]
pub(super) struct Finished<'a> {
    pub(super) id: [u8; 32],
    pub(super) session: [u8; 32],
    pub(super) ids: [u8; 32],
    pub(super) rows: &'a [u32],
}

impl Finished<'_> {
    pub(super) fn store(&self, directory: &Path) -> Result<(), ProtocolError> {
        store(&directory.join(ROWS), self)
    }
}

/// The result as it is read back.
#[derive(Deserialize)]
struct StoredRows {
    id: [u8; 32],
    session: [u8; 32],
    ids: [u8; 32],
    rows: Vec<u32>,
}

/// What an earlier start left of an alignment of the same ids in the same session.
pub(super) struct Kept {
    directory: PathBuf,
    run: Option<StoredRun>,
    rows: Option<StoredRows>,
}

impl Kept {
    pub(super) fn find(directory: &Path, session: &[u8; 32], ids: &[u8; 32]) -> Result<Self, ProtocolError> {
        let run: Option<StoredRun> =
            read(&directory.join(RUN))?.filter(|r: &StoredRun| r.session == *session && r.ids == *ids);
        let rows: Option<StoredRows> =
            read(&directory.join(ROWS))?.filter(|r: &StoredRows| r.session == *session && r.ids == *ids);
        // A result goes with the run that made it; with another one's under way, that one counts.
        let rows = rows.filter(|rows| run.as_ref().is_none_or(|run| run.id == rows.id));
        Ok(Self { directory: directory.to_owned(), run, rows })
    }

    pub(super) fn offer(&self, ids: u32, me: Role, parties: usize, nonce: [u8; 32]) -> AlignmentOffer {
        let kept = self.rows.as_ref().map(|r| r.id).or(self.run.as_ref().map(|r| r.id));
        let lists = match me {
            Role::Party(PartyId(0)) => parties,
            Role::Party(PartyId(1)) => 1,
            Role::Party(_) | Role::Coordinator | Role::Server => 0,
        };
        let held = |list: usize| {
            let file = self.directory.join(list_name(count_of(list) as u16));
            let bytes = fs::metadata(file).map_or(0, |m| m.len());
            u32::try_from(bytes / BLINDED_BYTES as u64).unwrap_or(0)
        };
        AlignmentOffer { ids, nonce, kept, held: (0..lists).map(held).collect(), finished: self.rows.is_some() }
    }

    pub(super) fn result(self) -> Result<Vec<u32>, ProtocolError> {
        match self.rows {
            Some(stored) => Ok(stored.rows),
            None => Err(lost(&self.directory, "result")),
        }
    }

    pub(super) fn resume(self) -> Result<Run, ProtocolError> {
        let Some(run) = &self.run else { return Err(lost(&self.directory, "key")) };
        let key = BlindingKey::from_bytes(&Zeroizing::new(run.key));
        let key = key.ok_or_else(|| lost(&self.directory, "key"))?;
        info!("an interrupted alignment goes on");
        let (own_seed, shuffle_seed) = (run.own_seed, run.shuffle_seed);
        Ok(Run { directory: self.directory.clone(), id: run.id, key, own_seed, shuffle_seed })
    }
}

fn lost(directory: &Path, what: &str) -> ProtocolError {
    let reason = format!("the {what} of an earlier alignment is gone; remove this directory at every party");
    ProtocolError::Storage { file: directory.to_owned(), source: io::Error::other(reason) }
}

fn store(file: &Path, value: &impl Serialize) -> Result<(), ProtocolError> {
    let failed = |e| ProtocolError::Storage { file: file.to_owned(), source: io::Error::other(e) };
    write_private(file, &[&Zeroizing::new(postcard::to_stdvec(value).map_err(failed)?)])
}

/// A file that is there and whole, or nothing.
fn read<T: serde::de::DeserializeOwned>(file: &Path) -> Result<Option<T>, ProtocolError> {
    match fs::read(file) {
        Ok(bytes) => {
            let bytes = Zeroizing::new(bytes);
            let parsed = postcard::from_bytes(&bytes).map_err(|e| {
                io::Error::other(format!("is damaged ({e}): remove its directory at every party, to align anew"))
            });
            parsed.map(Some).map_err(|source| ProtocolError::Storage { file: file.to_owned(), source })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ProtocolError::Storage { file: file.to_owned(), source }),
    }
}
