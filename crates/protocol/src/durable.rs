//! Files that are whole or absent.

use crate::ProtocolError;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Writes `bytes` to `file` so that after a crash at any moment the file holds either its old or its new content:
/// temporary file, fsync, rename, fsync of the directory. Missing directories are made.
///
/// # Errors
/// [`ProtocolError::Storage`] naming the file.
pub fn write_durable(file: &Path, bytes: &[u8]) -> Result<(), ProtocolError> {
    write(file, bytes).map_err(|source| ProtocolError::Storage { file: file.to_owned(), source })
}

fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".part");
    let part = directory.join(name);
    let mut out = File::create(&part)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    fs::rename(&part, file)?;
    File::open(directory)?.sync_all()
}
