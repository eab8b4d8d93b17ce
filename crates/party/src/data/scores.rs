//! Predictions beside their ids, as a file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use ndarray::ArrayView2;

use super::DataError;
use super::message::{score_columns, shown};

/// Writes one line per row: its id and its scores, `[n, k]`.
///
/// The header is `id,score`, or `id,score_0,score_1,…` for several scores. Each score is written in the shortest form
/// that parses back to the same bits. The parts of an id made of several columns are joined by `+`. The file appears
/// under its name only when it is complete; one that was there before is replaced.
///
/// # Errors
/// [`DataError::Write`] if the file cannot be written.
///
/// # Panics
/// If there is not one id per row of `scores`.
pub fn write_scores(
    path: &Path,
    ids: impl ExactSizeIterator<Item = impl AsRef<str>>,
    scores: ArrayView2<'_, f32>,
) -> Result<(), DataError> {
    assert_eq!(ids.len(), scores.nrows(), "one id per row of scores");
    let partial = partial_path(path);
    let written = write_whole(&partial, ids, scores).and_then(|()| fs::rename(&partial, path));
    written.map_err(|source| {
        // What is left is of no use; if it cannot be removed either, the first error is the one to tell.
        let _ = fs::remove_file(&partial);
        DataError::Write { file: path.to_path_buf(), source }
    })
}

/// In the same folder, because a rename does not cross file systems.
fn partial_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.partial", std::process::id()))
}

fn write_whole(path: &Path, ids: impl Iterator<Item = impl AsRef<str>>, scores: ArrayView2<'_, f32>) -> io::Result<()> {
    let mut output = BufWriter::new(create(path)?);
    write_rows(&mut output, ids, scores)?;
    output.into_inner()?.sync_all()
}

/// Opens a file that was not there, so that nothing is written through someone's link.
fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    OpenOptions::new().write(true).create_new(true).open(path)
}

fn write_rows(
    output: &mut impl Write,
    ids: impl Iterator<Item = impl AsRef<str>>,
    scores: ArrayView2<'_, f32>,
) -> io::Result<()> {
    let mut writer = ::csv::Writer::from_writer(output);
    writer.write_field("id")?;
    for name in score_columns(scores.ncols()) {
        writer.write_field(name)?;
    }
    writer.write_record(None::<&[u8]>)?;
    for (id, row) in ids.zip(scores.rows()) {
        writer.write_field(shown(id.as_ref()))?;
        for score in row {
            writer.write_field(score.to_string())?;
        }
        writer.write_record(None::<&[u8]>)?;
    }
    writer.flush()
}
