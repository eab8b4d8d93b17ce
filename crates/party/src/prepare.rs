//! A party's table made ready: scaled features, checked labels, digest of the ids.

use crate::PartyError;
use crate::data::{DataSource, Ids, Standardizer, Table, read, read_columns};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use sha2::{Digest, Sha256};
use spnn_protocol::{DataShape, PreparationSpec, ProtocolError, Schedule, Step};
use std::borrow::Cow;
use std::sync::OnceLock;

/// A party's own data.
pub struct Prepared {
    /// Ids in the order of the file; features and labels as `order` says.
    table: Table,
    /// Rows of the file in the order that all parties have; all rows in the order of the file if there is none.
    order: Option<Vec<u32>>,
    standardizer: Option<Standardizer>,
    scaled: bool,
    digest: OnceLock<[u8; 32]>,
}

impl Prepared {
    /// Reads the party's file. Labels are read where they are used (by the label holder, and `required` unless new
    /// rows are only to be predicted), and are never a feature.
    ///
    /// # Errors
    /// [`PartyError::Data`] naming file, line and column.
    pub fn read_as(source: &DataSource, is_label_holder: bool, required: bool) -> Result<Self, PartyError> {
        let mut source = source.clone();
        if is_label_holder && required && source.label.is_none() {
            return Err(PartyError::Unfit("this is the label holder, but [data] names no label column".into()));
        }
        if let Some(label) = source.label.clone() {
            let present = read_columns(&source)?.contains(&label);
            if !(is_label_holder && (required || present)) {
                source.label = None;
                source.ignore.extend(present.then_some(label));
            }
        }
        Ok(Self { table: read(&source)?, order: None, standardizer: None, scaled: false, digest: OnceLock::new() })
    }

    /// Ids of all rows of the file.
    #[must_use]
    pub fn ids(&self) -> &Ids {
        &self.table.ids
    }

    /// Takes the rows that all parties have, in the order that they agreed on: row `i` is row `order[i]` of the file.
    ///
    /// # Panics
    /// If `order` names a row that is not there.
    pub fn arrange(&mut self, order: Vec<u32>) {
        let rows: Vec<usize> = order.iter().map(|&row| row as usize).collect();
        self.table.features = self.table.features.select(Axis(0), &rows);
        if let Some(labels) = &mut self.table.labels {
            *labels = rows.iter().map(|&row| labels[row]).collect();
        }
        self.order = Some(order);
    }

    /// The rows of the file that are used, if [`arrange`](Self::arrange) said.
    #[must_use]
    pub fn order(&self) -> Option<&[u32]> {
        self.order.as_deref()
    }

    /// What others may know of it.
    ///
    /// # Errors
    /// [`PartyError::Unfit`] if there are more rows or columns than a session can have.
    pub fn shape(&self) -> Result<DataShape, PartyError> {
        let count = |n: usize, what| {
            u32::try_from(n).map_err(|_| PartyError::Unfit(format!("{n} {what}: a session can have 2^32 − 1")))
        };
        Ok(DataShape {
            rows: count(self.table.features.nrows(), "rows")?,
            features: count(self.table.features.ncols(), "columns")?,
        })
    }

    /// Fits the scaling on the training rows.
    ///
    /// # Errors
    /// [`PartyError::Unfit`] if there is no training row.
    pub fn fit(&self, spec: &PreparationSpec, training_rows: &[u32]) -> Result<Option<Standardizer>, PartyError> {
        if training_rows.is_empty() {
            return Err(PartyError::Unfit("no row is left to train on: lower data.test_fraction".into()));
        }
        if !spec.standardize {
            return Ok(None);
        }
        let Table { features, feature_names, .. } = &self.table;
        Ok(Some(Standardizer::fit(features.view(), training_rows, feature_names, spec.clip)))
    }

    /// Applies a scaling, after checking that it was made for these columns.
    ///
    /// # Errors
    /// [`PartyError::Data`] naming the column that differs.
    pub fn scale(&mut self, standardizer: Option<Standardizer>, spec: &PreparationSpec) -> Result<(), PartyError> {
        if let Some(standardizer) = &standardizer {
            standardizer.check_names(&self.table.feature_names)?;
            standardizer.apply(&mut self.table.features);
        } else if let Some(clip) = spec.clip {
            #[expect(clippy::cast_possible_truncation, reason = "the network computes in f32")]
            let clip = clip as f32;
            self.table.features.mapv_inplace(|x| x.clamp(-clip, clip));
        }
        self.standardizer = standardizer;
        self.scaled = true;
        Ok(())
    }

    /// Whether [`scale`](Self::scale) was called.
    pub(crate) fn is_scaled(&self) -> bool {
        self.scaled
    }

    /// The scaling that was applied.
    #[must_use]
    pub fn standardizer(&self) -> Option<&Standardizer> {
        self.standardizer.as_ref()
    }

    /// SHA-256 over everything that training uses, once it is scaled: a checkpoint is good for these data only.
    pub(crate) fn digest(&self) -> [u8; 32] {
        *self.digest.get_or_init(|| self.make_digest())
    }

    fn make_digest(&self) -> [u8; 32] {
        let Table { features, labels, feature_names, .. } = &self.table;
        let mut digest = Sha256::new();
        let rows: Vec<u32> = (0..features.nrows()).filter_map(|row| u32::try_from(row).ok()).collect();
        digest.update(digest_ids(self.ids_of(&rows)));
        digest.update(digest_ids(feature_names));
        let mut add = |values: &[f32]| digest.update(bytemuck::cast_slice::<f32, u8>(values));
        features.outer_iter().for_each(|row| add(row.as_slice().unwrap_or_default()));
        add(labels.as_deref().unwrap_or_default());
        digest.finalize().into()
    }

    /// Names of the features.
    #[must_use]
    pub fn feature_names(&self) -> &[String] {
        &self.table.feature_names
    }

    /// Features, `[rows, d_i]`.
    #[must_use]
    pub fn features(&self) -> ArrayView2<'_, f32> {
        self.table.features.view()
    }

    /// Labels, if this party has them.
    #[must_use]
    pub fn labels(&self) -> Option<&[f32]> {
        self.table.labels.as_deref()
    }

    /// Ids of `rows`, in that order.
    #[must_use]
    pub fn ids_of<'a>(&'a self, rows: &'a [u32]) -> impl ExactSizeIterator<Item = Cow<'a, str>> {
        let file_row = |row: u32| self.order.as_ref().map_or(row, |order| order[row as usize]);
        rows.iter().map(move |&row| self.table.ids.get(file_row(row) as usize))
    }
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

    /// Copies the given rows of the party's features, and their labels if there are any.
    pub(crate) fn gather(&mut self, data: &Prepared, rows: &[u32]) {
        let features = data.features();
        let (n, d) = (rows.len(), features.ncols());
        if self.x.nrows() < n || self.x.ncols() != d {
            self.x = Array2::zeros((n, d));
        }
        self.rows.clear();
        self.rows.extend_from_slice(rows);
        copy_rows(features, rows, self.x.slice_mut(s![..n, ..]));
        self.labels.clear();
        if let Some(labels) = data.labels() {
            self.labels.extend(rows.iter().map(|&r| labels[r as usize]));
        }
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

fn copy_rows(from: ArrayView2<'_, f32>, rows: &[u32], mut to: ArrayViewMut2<'_, f32>) {
    let d = from.ncols();
    match (from.as_slice(), to.as_slice_mut()) {
        (Some(from), Some(to)) if d > 0 => {
            for (&row, to) in rows.iter().zip(to.chunks_exact_mut(d)) {
                let start = row as usize * d;
                to.copy_from_slice(&from[start..start + d]);
            }
        }
        _ => to.outer_iter_mut().zip(rows).for_each(|(mut to, &row)| to.assign(&from.row(row as usize))),
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
