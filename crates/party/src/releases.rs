//! How often each record has been scored, where the contract limits it.
//!
//! Every party counts for itself, before it contributes to a score, in an append-only file that outlasts the process: 16
//! bytes a score. What was contributed counts, whether or not the label holder came to use it.

use sha2::{Digest, Sha256};
use spnn_protocol::contract::ContractError;
use spnn_protocol::{ProtocolError, SessionConfig};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// Counts of one contract's records.
pub(crate) struct Releases {
    max: u32,
    contract: [u8; 32],
    file: PathBuf,
    out: File,
    counts: HashMap<Record, u32>,
}

/// A record: the first bytes of SHA-256(contract, id).
type Record = [u8; 16];

impl Releases {
    /// The counts that are kept in `directory`; nothing where there is no limit.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] naming the file.
    pub(crate) fn open(session: &SessionConfig, directory: &Path) -> Result<Option<Self>, ProtocolError> {
        let Some(max) = session.contract.as_ref().and_then(|terms| terms.predictions_per_record_max) else {
            return Ok(None);
        };
        let digest = session.digest_text();
        let file = directory.join(format!("released-{}", &digest[..8]));
        let storage = |source| ProtocolError::Storage { file: file.clone(), source };
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let out = options.open(&file).map_err(storage)?;
        let (counts, whole) = read(&out).map_err(storage)?;
        // A process that died while it wrote had not contributed yet.
        out.set_len(whole).map_err(storage)?;
        Ok(Some(Self { max, contract: session.digest(), file, out, counts }))
    }

    fn record(&self, id: &str) -> Record {
        let digest: [u8; 32] = Sha256::new().chain_update(self.contract).chain_update(id).finalize().into();
        let mut record = Record::default();
        record.copy_from_slice(&digest[..16]);
        record
    }

    /// Whether a record may be scored once more.
    pub(crate) fn allow(&self, id: &str) -> bool {
        self.counts.get(&self.record(id)).is_none_or(|count| *count < self.max)
    }

    /// Makes sure that each of some records may be scored once more.
    ///
    /// # Errors
    /// [`ContractError::Released`] if one may not.
    pub(crate) fn check(&self, ids: &[String]) -> Result<(), ProtocolError> {
        self.with(ids).map(drop)
    }

    /// The records, and how often each is among them.
    fn with(&self, ids: &[String]) -> Result<(Vec<Record>, HashMap<Record, u32>), ProtocolError> {
        let records: Vec<Record> = ids.iter().map(|id| self.record(id)).collect();
        let mut new: HashMap<Record, u32> = HashMap::new();
        for record in &records {
            let released = self.counts.get(record).copied().unwrap_or(0) + new.get(record).copied().unwrap_or(0);
            if released >= self.max {
                return Err(ContractError::Released { max: self.max, released }.into());
            }
            *new.entry(*record).or_default() += 1;
        }
        Ok((records, new))
    }

    /// Counts each of some records once more; on disk when this returns.
    ///
    /// # Errors
    /// As [`check`](Self::check), and then none is counted; [`ProtocolError::Storage`] naming the file.
    pub(crate) fn count(&mut self, ids: &[String]) -> Result<(), ProtocolError> {
        let (records, new) = self.with(ids)?;
        let storage = |source| ProtocolError::Storage { file: self.file.clone(), source };
        self.out.write_all(records.as_flattened()).and_then(|()| self.out.sync_data()).map_err(storage)?;
        for (record, more) in new {
            *self.counts.entry(record).or_default() += more;
        }
        Ok(())
    }
}

/// The counts of a file, and its length up to its last whole record.
fn read(file: &File) -> io::Result<(HashMap<Record, u32>, u64)> {
    let (mut counts, mut whole) = (HashMap::new(), 0);
    let mut reader = BufReader::new(file);
    let mut record = Record::default();
    loop {
        match reader.read_exact(&mut record) {
            Ok(()) => {
                *counts.entry(record).or_default() += 1;
                whole += record.len() as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok((counts, whole)),
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn releases(file: &Path) -> Releases {
        let out = OpenOptions::new().read(true).append(true).create(true).open(file).unwrap();
        let (counts, whole) = read(&out).unwrap();
        out.set_len(whole).unwrap();
        Releases { max: 2, contract: [7; 32], file: file.to_owned(), out, counts }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_was_counted_outlasts_the_process_and_a_torn_record() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("released");
        releases(&file).count(&names(&["a", "b"])).unwrap();
        OpenOptions::new().append(true).open(&file).unwrap().write_all(&[1; 5]).unwrap();
        let mut again = releases(&file);
        again.count(&names(&["a", "c"])).unwrap();
        let again = releases(&file);
        assert!(!again.allow("a") && again.allow("b") && again.allow("c") && again.allow("d"));
    }

    #[test]
    fn one_record_too_many_and_none_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("released");
        let mut releases = releases(&file);
        releases.count(&names(&["a", "a"])).unwrap();
        for refused in [&["b", "a"][..], &["b", "b", "b"]] {
            let error = releases.count(&names(refused)).unwrap_err().to_string();
            assert!(error.contains("has been scored 2 times"), "{error}");
            assert!(releases.check(&names(refused)).is_err());
        }
        releases.check(&names(&["b", "b"])).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().len(), 32);
    }
}
