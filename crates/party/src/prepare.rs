//! A party's table made ready: encoded features, checked labels, digest of the ids.

use crate::PartyError;
use crate::data::{CellsError, DataSource, Encoder, Encoding, Ids, Table, read, read_columns};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};
use sha2::{Digest, Sha256};
use spnn_protocol::{DataShape, PreparationSpec, ProtocolError, Schedule, Step};
use std::borrow::Cow;
use std::path::Path;
use std::sync::OnceLock;

/// A party's own data.
///
/// It is read, brought into the order that the parties agreed on, and then encoded: by an [`Encoding`] fitted to its
/// training rows, or by that of the model. Only then it has features.
pub struct Prepared {
    table: Table,
    /// Which row of the file each row is; none where it is the same one.
    order: Option<Vec<u32>>,
    encoding: Option<(Encoding, Encoder)>,
    digest: OnceLock<[u8; 32]>,
}

impl Prepared {
    /// Reads the party's files. Labels are read where they are used (by the label holder, and `required` unless new
    /// rows are only to be predicted), and are never a feature. A table larger than its source says is kept on disk, in
    /// `directory`.
    ///
    /// # Errors
    /// [`PartyError::Data`] naming file, line and column.
    pub fn read_as(
        source: &DataSource,
        is_label_holder: bool,
        required: bool,
        directory: &Path,
    ) -> Result<Self, PartyError> {
        let mut source = source.clone();
        if is_label_holder && required && source.label.is_none() {
            return Err(PartyError::Unfit("this is the label holder, but [data] names no label column".into()));
        }
        if let Some(label) = source.label.clone() {
            let present = read_columns(&source)?.contains(&label);
            if !(is_label_holder && (required || present)) {
                source.label = None;
                source.types.remove(&label);
                source.ignore.extend(present.then_some(label));
            }
        }
        let table = read(&source, directory)?;
        Ok(Self { table, order: None, encoding: None, digest: OnceLock::new() })
    }

    /// The ids, in the order of the file.
    #[must_use]
    pub fn ids(&self) -> &Ids {
        self.table.ids()
    }

    /// Makes row i what row `order[i]` of the file is, and forgets the other rows; before anything is fitted.
    ///
    /// # Panics
    /// If a row is not there, or rows have been arranged before.
    pub fn arrange(&mut self, order: Vec<u32>) {
        assert!(self.order.is_none(), "rows are arranged once");
        assert!(order.iter().all(|&row| (row as usize) < self.table.rows()), "a row of {}", self.table.rows());
        if let Some(labels) = self.table.labels_mut() {
            *labels = order.iter().map(|&row| labels[row as usize]).collect();
        }
        self.order = Some(order);
    }

    /// Which row of the file each row is, where [`arrange`](Self::arrange) said.
    #[must_use]
    pub fn order(&self) -> Option<&[u32]> {
        self.order.as_deref()
    }

    /// How many rows there are.
    ///
    /// # Errors
    /// [`PartyError::Unfit`] if there are more than a session can have.
    pub fn rows(&self) -> Result<u32, PartyError> {
        count(self.order.as_ref().map_or(self.table.rows(), Vec::len), "rows")
    }

    /// What others may know of it, once it is encoded.
    ///
    /// # Errors
    /// [`PartyError::Unfit`] if there are more rows or features than a session can have.
    pub fn shape(&self) -> Result<DataShape, PartyError> {
        Ok(DataShape { rows: self.rows()?, features: count(self.features(), "features")? })
    }

    /// Fits the encoding to the training rows, and encodes.
    ///
    /// # Errors
    /// [`PartyError::Unfit`] if there is no training row; [`PartyError::Data`] naming a column that has no value in
    /// any.
    pub fn fit(&mut self, spec: &PreparationSpec, training_rows: &[u32]) -> Result<(), PartyError> {
        if training_rows.is_empty() {
            return Err(PartyError::Unfit("no row is left to train on: lower data.test_fraction".into()));
        }
        let rows: Cow<'_, [u32]> = match &self.order {
            None => Cow::Borrowed(training_rows),
            Some(order) => training_rows.iter().map(|&row| order[row as usize]).collect(),
        };
        let encoding = Encoding::fit(&self.table, &rows, spec)?;
        self.encode(encoding)
    }

    /// Encodes as a model did in training, after checking that it was made for these columns.
    ///
    /// # Errors
    /// [`PartyError::Data`] naming the column that differs.
    pub fn encode(&mut self, encoding: Encoding) -> Result<(), PartyError> {
        let encoder = encoding.encoder(&self.table)?;
        self.encoding = Some((encoding, encoder));
        Ok(())
    }

    /// How the columns are encoded.
    #[must_use]
    pub fn encoding(&self) -> Option<&Encoding> {
        self.encoding.as_ref().map(|(encoding, _)| encoding)
    }

    /// SHA-256 over everything that training uses: a checkpoint is good for these data only.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] if what is on disk cannot be read.
    pub(crate) fn digest(&self) -> Result<[u8; 32], ProtocolError> {
        if let Some(digest) = self.digest.get() {
            return Ok(*digest);
        }
        let digest = self.make_digest()?;
        Ok(*self.digest.get_or_init(|| digest))
    }

    fn make_digest(&self) -> Result<[u8; 32], ProtocolError> {
        let mut digest = Sha256::new();
        digest.update(digest_ids(self.table.ids().iter()));
        for column in self.table.columns() {
            digest.update(digest_ids([&column.name, &column.kind.to_string()]));
            digest.update(digest_ids(&column.categories));
        }
        // An encoding of these data is the same whenever it is made.
        let encoding = serde_json::to_vec(&self.encoding()).map_err(|e| ProtocolError::checkpoint(&e))?;
        digest.update((encoding.len() as u64).to_le_bytes());
        digest.update(encoding);
        let all = 0..count(self.table.rows(), "rows").unwrap_or(u32::MAX);
        self.table.visit(all, |cells| digest.update(bytemuck::cast_slice::<u32, u8>(cells))).map_err(storage)?;
        digest.update(bytemuck::cast_slice::<u32, u8>(self.order.as_deref().unwrap_or_default()));
        digest.update(bytemuck::cast_slice::<f32, u8>(self.labels().unwrap_or_default()));
        Ok(digest.finalize().into())
    }

    /// The number of features of a row; none until it is encoded.
    #[must_use]
    pub fn features(&self) -> usize {
        self.encoding.as_ref().map_or(0, |(_, encoder)| encoder.features())
    }

    /// Makes the features of some rows, `[rows, d_i]`. All are finite.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] if what is on disk cannot be read.
    ///
    /// # Panics
    /// If `out` has another shape, or a row is not there.
    pub fn gather(&self, rows: &[u32], out: ArrayViewMut2<'_, f32>) -> Result<(), ProtocolError> {
        match &self.encoding {
            Some((_, encoder)) => {
                let rows = rows.iter().map(|&row| self.row_of_file(row));
                encoder.encode(&self.table, rows, out).map_err(storage)
            }
            None => {
                assert_eq!(out.dim(), (rows.len(), 0), "no features until the data are encoded");
                Ok(())
            }
        }
    }

    fn row_of_file(&self, row: u32) -> u32 {
        self.order.as_ref().map_or(row, |order| order[row as usize])
    }

    /// Labels, if this party has them.
    #[must_use]
    pub fn labels(&self) -> Option<&[f32]> {
        self.table.labels()
    }

    /// Ids of `rows`, in that order.
    #[must_use]
    pub fn ids_of<'a>(&'a self, rows: &'a [u32]) -> impl ExactSizeIterator<Item = Cow<'a, str>> {
        rows.iter().map(|&row| self.table.ids().get(self.row_of_file(row) as usize))
    }
}

fn count(n: usize, what: &str) -> Result<u32, PartyError> {
    u32::try_from(n).map_err(|_| PartyError::Unfit(format!("{n} {what}: a session can have 2^32 − 1")))
}

fn storage(error: CellsError) -> ProtocolError {
    let CellsError { file, source } = error;
    ProtocolError::Storage { file, source }
}

/// SHA-256 over texts in their order, each with its length.
#[must_use]
pub fn digest_ids(ids: impl IntoIterator<Item = impl AsRef<str>>) -> [u8; 32] {
    let mut digest = Sha256::new();
    for id in ids {
        let id = id.as_ref();
        digest.update((id.len() as u64).to_le_bytes());
        digest.update(id.as_bytes());
    }
    digest.finalize().into()
}

/// The rows of one pass, gathered batch by batch into buffers that are reused.
pub(crate) struct Gathered {
    rows: Vec<u32>,
    x: Array2<f32>,
    labels: Vec<f32>,
}

impl Gathered {
    pub(crate) fn new() -> Self {
        Self { rows: Vec::new(), x: Array2::zeros((0, 0)), labels: Vec::new() }
    }

    /// Makes the features of the given rows, and copies their labels if there are any.
    pub(crate) fn gather(&mut self, data: &Prepared, rows: &[u32]) -> Result<(), ProtocolError> {
        let (n, d) = (rows.len(), data.features());
        if self.x.nrows() < n || self.x.ncols() != d {
            self.x = Array2::zeros((n, d));
        }
        self.rows.clear();
        self.rows.extend_from_slice(rows);
        data.gather(rows, self.x.slice_mut(s![..n, ..]))?;
        self.labels.clear();
        if let Some(labels) = data.labels() {
            self.labels.extend(rows.iter().map(|&r| labels[r as usize]));
        }
        Ok(())
    }

    /// Which rows were gathered last.
    pub(crate) fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// The features gathered last, `[n, d_i]`.
    pub(crate) fn x(&self, rows: usize) -> ArrayView2<'_, f32> {
        self.x.slice(s![..rows, ..])
    }

    /// The labels gathered last.
    pub(crate) fn labels(&self) -> &[f32] {
        &self.labels
    }
}

/// A tensor of our own that is to leave this role must be finite.
pub(crate) fn check_finite(values: &[f32], what: &'static str, step: Step) -> Result<(), ProtocolError> {
    // Peers check what they receive; this names the cause at its source.
    if values.iter().fold(true, |ok, v| ok & v.is_finite()) {
        return Ok(());
    }
    Err(ProtocolError::Diverged { step, what })
}

/// The training rows that a schedule gives, before any epoch shuffles them.
pub(crate) fn training_rows(schedule: &Schedule) -> Vec<u32> {
    schedule.order(spnn_protocol::Phase::Train, 1)
}

#[cfg(test)]
mod tests;
