//! Text files from elsewhere.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Reads a text file of at most `bytes_max` bytes. A longer one is an error before memory is taken for it.
///
/// # Errors
/// Of the file system; [`io::ErrorKind::InvalidData`] if it is longer, or not UTF-8.
pub fn read_text(file: &Path, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(file)?.take(bytes_max.saturating_add(1)).read_to_string(&mut text)?;
    if read as u64 > bytes_max {
        let reason = format!("longer than {bytes_max} bytes, which is the most that is read of such a file");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("text");
        std::fs::write(&file, "12345").unwrap();
        assert_eq!(read_text(&file, 5).unwrap(), "12345");
        assert!(read_text(&file, 4).unwrap_err().to_string().contains("longer than 4 bytes"));
    }
}
