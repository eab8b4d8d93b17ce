//! The features of a table before they are encoded: four bytes each, in memory or on disk.
//!
//! On disk they lie in a file without a name in the party's own directory: it is gone when the process ends, however it
//! ends. Rows are read from it at their positions, not mapped, so that what is resident stays what a batch needs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::growing::Growing;

/// A cell without a value: no code of a category, and as an `f32` not a number.
pub(super) const MISSING: u32 = u32::MAX;

/// Bytes read from disk at a time: a few batches.
const READ_BYTES: usize = 1 << 20;

/// Bytes gathered before they are written to disk.
const WRITE_BYTES: usize = 1 << 20;

/// Why cells could not be kept or found again.
#[derive(Debug)]
pub(crate) struct CellsError {
    pub(crate) file: PathBuf,
    pub(crate) source: io::Error,
}

/// `[rows, columns]` cells.
pub(super) struct Cells {
    columns: usize,
    rows: usize,
    place: Place,
}

enum Place {
    Memory(Vec<u32>),
    Disk(Scratch),
}

impl Cells {
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    #[cfg(test)]
    pub(super) fn is_on_disk(&self) -> bool {
        matches!(self.place, Place::Disk(_))
    }

    /// Shows each of `rows`, in that order.
    ///
    /// # Panics
    /// If there is no such row.
    pub(super) fn visit(
        &self,
        rows: impl IntoIterator<Item = u32>,
        mut see: impl FnMut(&[u32]),
    ) -> Result<(), CellsError> {
        let columns = self.columns;
        let scratch = match &self.place {
            Place::Memory(cells) => {
                rows.into_iter().for_each(|row| see(&cells[row as usize * columns..][..columns]));
                return Ok(());
            }
            Place::Disk(scratch) => scratch,
        };
        let at_once = (READ_BYTES / (4 * columns)).max(1);
        let mut wanted = Vec::with_capacity(at_once);
        let mut buffer = Vec::new();
        let mut rows = rows.into_iter().peekable();
        while rows.peek().is_some() {
            wanted.clear();
            wanted.extend(rows.by_ref().take(at_once));
            buffer.resize(wanted.len() * columns, 0);
            let mut left = &mut buffer[..];
            for run in wanted.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
                assert!(run.iter().all(|&row| (row as usize) < self.rows), "a row of {}", self.rows);
                let (cells, others) = left.split_at_mut(run.len() * columns);
                scratch.read(u64::from(run[0]) * columns as u64, cells)?;
                left = others;
            }
            buffer.chunks_exact(columns).for_each(&mut see);
        }
        Ok(())
    }
}

/// Cells that are being read from a file of the party.
pub(super) struct CellsWriter {
    columns: usize,
    rows: usize,
    memory_max: u64,
    directory: PathBuf,
    memory: Growing<u32>,
    disk: Option<BufWriter<Scratch>>,
}

impl CellsWriter {
    /// Cells of rows of `columns`, at least one. They are kept on disk, in `directory`, if they are more than `memory_max`
    /// bytes.
    pub(super) fn new(columns: usize, memory_max: u64, directory: &Path) -> Self {
        Self {
            columns,
            rows: 0,
            memory_max,
            directory: directory.to_path_buf(),
            memory: Growing::default(),
            disk: None,
        }
    }

    /// Makes room for about so many rows in all.
    pub(super) fn expect(&mut self, rows: u64) -> Result<(), CellsError> {
        if rows.saturating_mul(4 * self.columns as u64) > self.memory_max {
            return self.move_to_disk();
        }
        self.memory.reserve(usize::try_from(rows).unwrap_or(usize::MAX).saturating_mul(self.columns));
        Ok(())
    }

    /// Adds whole rows.
    pub(super) fn extend(&mut self, cells: &[u32]) -> Result<(), CellsError> {
        self.rows += cells.len() / self.columns;
        if self.disk.is_none() && 4 * self.columns as u64 * self.rows as u64 > self.memory_max {
            self.move_to_disk()?;
        }
        match &mut self.disk {
            None => self.memory.extend(cells),
            Some(disk) => write(disk, cells)?,
        }
        Ok(())
    }

    fn move_to_disk(&mut self) -> Result<(), CellsError> {
        if self.disk.is_none() {
            let mut disk = BufWriter::with_capacity(WRITE_BYTES, Scratch::create(&self.directory)?);
            std::mem::take(&mut self.memory).segments().try_for_each(|cells| write(&mut disk, cells))?;
            self.disk = Some(disk);
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Cells, CellsError> {
        let place = match self.disk {
            None => Place::Memory(self.memory.into_vec()),
            Some(mut disk) => {
                let flushed = disk.flush();
                flushed.map_err(|source| disk.get_ref().failed(source))?;
                let (scratch, _written) = disk.into_parts();
                Place::Disk(scratch)
            }
        };
        Ok(Cells { columns: self.columns, rows: self.rows, place })
    }
}

fn write(disk: &mut BufWriter<Scratch>, cells: &[u32]) -> Result<(), CellsError> {
    let written = disk.write_all(bytemuck::cast_slice(cells));
    written.map_err(|source| disk.get_ref().failed(source))
}

/// A file that has lost its name.
struct Scratch {
    file: File,
    /// What its name was.
    path: PathBuf,
}

impl Scratch {
    fn create(directory: &Path) -> Result<Self, CellsError> {
        // Parties in one process may share a directory.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!(".rows-{}-{number}", std::process::id()));
        let failed = |source| CellsError { file: path.clone(), source };
        fs::create_dir_all(directory).map_err(failed)?;
        // One of that name is what a process with this number left when it was killed before it took the name away.
        let _ = fs::remove_file(&path);
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        fs::remove_file(&path).map_err(failed)?;
        Ok(Self { file, path })
    }

    fn read(&self, first: u64, cells: &mut [u32]) -> Result<(), CellsError> {
        let read = self.file.read_exact_at(bytemuck::cast_slice_mut(cells), 4 * first);
        read.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> CellsError {
        CellsError { file: self.path.clone(), source }
    }
}

impl Write for Scratch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(cells: &[u32], columns: usize, pieces: usize, memory_max: u64, directory: &Path) -> Cells {
        let mut writer = CellsWriter::new(columns, memory_max, directory);
        cells.chunks(columns * pieces.max(1)).for_each(|piece| writer.extend(piece).unwrap());
        writer.finish().unwrap()
    }

    fn seen(cells: &Cells, rows: &[u32]) -> Vec<u32> {
        let mut all = Vec::new();
        cells.visit(rows.iter().copied(), |row| all.extend_from_slice(row)).unwrap();
        all
    }

    proptest! {
        #[test]
        fn disk_and_memory_hold_the_same(
            cells in proptest::collection::vec(any::<u32>(), 1..600), columns in 1_usize..7, pieces in 1_usize..50,
            chosen in proptest::collection::vec(any::<proptest::sample::Index>(), 0..300), bytes in 0_u64..2400,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let rows = cells.len() / columns;
            prop_assume!(rows > 0);
            let cells = &cells[..rows * columns];
            let [memory, disk] = [u64::MAX, bytes].map(|max| written(cells, columns, pieces, max, directory.path()));
            prop_assert!(!memory.is_on_disk());
            prop_assert_eq!(disk.is_on_disk(), 4 * cells.len() as u64 > bytes);
            let mut chosen: Vec<u32> = chosen.iter().map(|i| i.index(rows) as u32).collect();
            chosen.extend(0..rows as u32);
            prop_assert_eq!(seen(&memory, &chosen), seen(&disk, &chosen));
            prop_assert_eq!(&seen(&disk, &(0..rows as u32).collect::<Vec<_>>()), cells);
            prop_assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_disk_that_cannot_be_written_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = CellsWriter::new(1, 0, file.path());
        let error = writer.extend(&[1]).unwrap_err();
        assert!(error.file.starts_with(file.path()));
    }
}
