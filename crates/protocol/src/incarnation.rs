//! The number of a start of a session: agreed by all, always above every earlier one, durable before any mask is made.
//!
//! Masks are derived under it. Were a mask made twice over different values, the server would learn their difference;
//! after a crash a role may send other values for a step it had already sent. A new incarnation gives new masks.

use crate::ProtocolError;
use crate::durable::write_durable;
use std::path::{Path, PathBuf};

/// The incarnation file of one role.
#[derive(Clone, Debug)]
pub struct Incarnation {
    file: PathBuf,
}

impl Incarnation {
    /// Another role may be ahead by so many starts, if this one has lost its directory. One that could name any number
    /// could use all of them up.
    pub const AHEAD_MAX: u64 = 1 << 20;

    /// The incarnation kept in `directory`.
    #[must_use]
    pub fn in_directory(directory: &Path) -> Self {
        Self { file: directory.join("incarnation") }
    }

    /// The last incarnation this role used; 0 if none.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] if the file exists and cannot be read or holds no number: guessing could repeat masks.
    pub fn last(&self) -> Result<u64, ProtocolError> {
        let storage = |source| ProtocolError::Storage { file: self.file.clone(), source };
        match std::fs::read_to_string(&self.file) {
            Ok(text) => text.trim().parse().map_err(|_| {
                storage(std::io::Error::other("holds no number; restore it from a copy, or start in a new directory"))
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(e) => Err(storage(e)),
        }
    }

    /// Makes `incarnation` durable. Only after this returns may masks be derived under it.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] naming the file.
    pub fn begin(&self, incarnation: u64) -> Result<(), ProtocolError> {
        write_durable(&self.file, format!("{incarnation}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_up_and_refuses_a_damaged_file() {
        let directory = tempfile::tempdir().unwrap();
        let incarnation = Incarnation::in_directory(&directory.path().join("state"));
        assert_eq!(incarnation.last().unwrap(), 0);
        incarnation.begin(7).unwrap();
        assert_eq!(incarnation.last().unwrap(), 7);
        std::fs::write(directory.path().join("state/incarnation"), "7x").unwrap();
        assert!(matches!(incarnation.last(), Err(ProtocolError::Storage { .. })));
    }
}
