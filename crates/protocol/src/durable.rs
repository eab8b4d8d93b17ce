//! Files that are whole or absent.

use crate::ProtocolError;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Writes `bytes` to `file` so that after a crash at any moment the file holds either its old or its new content:
/// temporary file, fsync, rename, fsync of the directory. Missing directories are made.
///
/// # Errors
/// [`ProtocolError::Storage`] naming the file; what was begun is removed.
pub fn write_durable(file: &Path, bytes: &[u8]) -> Result<(), ProtocolError> {
    write_pieces(file, 0o666, &[bytes])
}

/// As [`write_durable`], the pieces one after the other, for the owner's eyes only.
///
/// # Errors
/// As [`write_durable`].
pub(crate) fn write_private(file: &Path, pieces: &[&[u8]]) -> Result<(), ProtocolError> {
    write_pieces(file, 0o600, pieces)
}

fn write_pieces(file: &Path, mode: u32, pieces: &[&[u8]]) -> Result<(), ProtocolError> {
    let storage = |source| ProtocolError::Storage { file: file.to_owned(), source };
    let part = part_of(file).map_err(storage)?;
    write(file, &part, mode, pieces).map_err(|e| {
        // On a full disk even a part of a file is in the way.
        let _ = fs::remove_file(&part);
        storage(e)
    })
}

fn part_of(file: &Path) -> io::Result<PathBuf> {
    let mut name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".part");
    Ok(directory_of(file).join(name))
}

fn directory_of(file: &Path) -> &Path {
    file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write(file: &Path, part: &Path, mode: u32, pieces: &[&[u8]]) -> io::Result<()> {
    let directory = directory_of(file);
    fs::create_dir_all(directory)?;
    // A part that a crash left behind may have another mode.
    let _ = fs::remove_file(part);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    let mut out = options.open(part)?;
    for piece in pieces {
        out.write_all(piece)?;
    }
    out.sync_all()?;
    fs::rename(part, file)?;
    File::open(directory)?.sync_all()
}
