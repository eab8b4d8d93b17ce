//! Features as numbers: what was fitted to the training rows, and the making of a batch from it.

use std::collections::BTreeSet;
use std::fmt;
use std::iter::zip;

use ndarray::ArrayViewMut2;
use serde::{Deserialize, Serialize};
use spnn_protocol::PreparationSpec;

use super::cells::MISSING;
use super::table::Table;
use super::{CellsError, ColumnType, DataError, Missing};

/// How each column becomes features, by statistics of the training rows.
///
/// A party fits it on its own rows and keeps it beside its weights: a prediction must see features on the scale of
/// training. What it holds are statistics and values of private data, so `Debug` shows their count only.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored")]
pub struct Encoding {
    columns: Vec<Column>,
    /// The largest magnitude of a number or date, if there is a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    clip: Option<f64>,
    missing: Missing,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Column {
    name: String,
    encoding: ColumnEncoding,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum ColumnEncoding {
    Numeric(Scaling),
    Date(Scaling),
    Boolean,
    /// The values that training rows have, in order, no value among them; another feature is for all others.
    Categorical(Vec<Option<String>>),
    Hashed(u32),
}

/// `(x − mean) / scale`; `fill` is there first where no value is.
#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scaling {
    mean: f64,
    scale: f64,
    fill: f64,
}

impl ColumnEncoding {
    fn kind(&self) -> ColumnType {
        match self {
            Self::Numeric(_) => ColumnType::Numeric,
            Self::Date(_) => ColumnType::Date,
            Self::Boolean => ColumnType::Boolean,
            Self::Categorical(_) => ColumnType::Categorical,
            Self::Hashed(buckets) => ColumnType::Hashed(*buckets),
        }
    }
}

impl Encoding {
    /// Fits to `rows` of a table only: a test row must not leave its mark on training.
    ///
    /// Mean and standard deviation (population, as scikit-learn's `StandardScaler`) are computed in `f64` in two passes,
    /// so that a large mean does not swallow a small variance. A column that is constant over `rows` gets scale 1, so it
    /// becomes 0 there. `clip` limits what comes out: fixed-point numbers have little room for the far tails of raw data
    /// (5 is usual).
    ///
    /// # Errors
    /// [`DataError::NoValues`] if a number or date is needed and no row has one; [`DataError::Scratch`].
    ///
    /// # Panics
    /// If `rows` is empty or names a row that is not there.
    pub fn fit(table: &Table, rows: &[u32], spec: &PreparationSpec) -> Result<Self, DataError> {
        assert!(!rows.is_empty(), "an encoding is fitted to rows");
        let scalings = Scaling::fit(table, rows, spec.standardize)?;
        let mut categories = categories(table, rows)?.into_iter();
        let mut scalings = scalings.into_iter();
        let columns = table.columns().iter().map(|column| {
            let lacking = || DataError::NoValues { column: column.name.clone() };
            let encoding = match column.kind {
                ColumnType::Numeric => ColumnEncoding::Numeric(scalings.next().flatten().ok_or_else(lacking)?),
                ColumnType::Date => ColumnEncoding::Date(scalings.next().flatten().ok_or_else(lacking)?),
                ColumnType::Boolean => ColumnEncoding::Boolean,
                ColumnType::Categorical => ColumnEncoding::Categorical(categories.next().unwrap_or_default()),
                ColumnType::Hashed(buckets) => ColumnEncoding::Hashed(buckets),
            };
            Ok(Column { name: column.name.clone(), encoding })
        });
        let columns = columns.collect::<Result<_, DataError>>()?;
        Ok(Self { columns, clip: spec.clip, missing: table.missing() })
    }

    /// What makes features of a table's rows, if this was made for such a table.
    ///
    /// # Errors
    /// [`DataError::ColumnMismatch`], [`DataError::TypeMismatch`] or [`DataError::MissingMismatch`] at the first
    /// difference.
    pub(crate) fn encoder(&self, table: &Table) -> Result<Encoder, DataError> {
        for at in 0..self.columns.len().max(table.columns().len()) {
            let (expected, found) = (self.columns.get(at), table.columns().get(at));
            let names = (expected.map(|column| &column.name), found.map(|column| &column.name));
            if names.0 != names.1 {
                let or_none = |name: Option<&String>| name.map_or("(none)", |name| name).to_owned();
                let (expected, found) = (or_none(names.0), or_none(names.1));
                return Err(DataError::ColumnMismatch { position: at + 1, expected, found });
            }
            if let (Some(expected), Some(found)) = (expected, found)
                && expected.encoding.kind() != found.kind
            {
                let (expected, found) = (expected.encoding.kind(), found.kind);
                return Err(DataError::TypeMismatch { column: self.columns[at].name.clone(), expected, found });
            }
        }
        if self.missing != table.missing() {
            return Err(DataError::MissingMismatch { expected: self.missing, found: table.missing() });
        }
        Ok(Encoder::new(self, table))
    }
}

impl fmt::Debug for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoding")
            .field("columns", &self.columns.len())
            .field("clip", &self.clip)
            .field("missing", &self.missing)
            .finish_non_exhaustive()
    }
}

impl Scaling {
    /// One for each number or date of a table; none where no row has a value.
    fn fit(table: &Table, rows: &[u32], standardize: bool) -> Result<Vec<Option<Self>>, CellsError> {
        let cells: Vec<usize> = (table.columns().iter().enumerate())
            .filter(|(_, column)| matches!(column.kind, ColumnType::Numeric | ColumnType::Date))
            .map(|(at, _)| at)
            .collect();
        let needs_mean = standardize || table.missing() == Missing::Mean;
        if cells.is_empty() || !needs_mean {
            return Ok(vec![Some(Self { mean: 0.0, scale: 1.0, fill: 0.0 }); cells.len()]);
        }
        let each = |row: &[u32], see: &mut dyn FnMut(usize, f64)| {
            for (at, &cell) in cells.iter().enumerate() {
                if row[cell] != MISSING {
                    see(at, f32::from_bits(row[cell]).into());
                }
            }
        };
        let (mut mean, mut count) = (vec![0.0; cells.len()], vec![0.0; cells.len()]);
        table.visit(rows.iter().copied(), |row| {
            each(row, &mut |at, x| {
                mean[at] += x;
                count[at] += 1.0;
            });
        })?;
        zip(&mut mean, &count).for_each(|(mean, count)| *mean /= count);

        let mut scale = vec![0.0; cells.len()];
        if standardize {
            table.visit(rows.iter().copied(), |row| each(row, &mut |at, x| scale[at] += (x - mean[at]).powi(2)))?;
        }
        let fitted = zip(zip(mean, scale), count).map(|((mean, scale), count)| {
            let deviation = (scale / count).sqrt();
            // Exactly 0 for a constant column: up to 2^29 equal `f32` sum up in `f64` without rounding.
            let scale = if deviation > 0.0 { deviation } else { 1.0 };
            let mean_of_features = if standardize { mean } else { 0.0 };
            (count > 0.0).then_some(Self { mean: mean_of_features, scale, fill: mean })
        });
        Ok(fitted.collect())
    }
}

/// The values of each categorical column of a table in some rows.
fn categories(table: &Table, rows: &[u32]) -> Result<Vec<Vec<Option<String>>>, CellsError> {
    let mut columns: Vec<_> = (table.columns().iter().enumerate())
        .filter(|(_, column)| column.kind == ColumnType::Categorical)
        .map(|(at, column)| (at, column, vec![false; column.categories.len()], false))
        .collect();
    if !columns.is_empty() {
        table.visit(rows.iter().copied(), |row| {
            for (at, _, seen, none) in &mut columns {
                match row[*at] {
                    MISSING => *none = true,
                    code => seen[code as usize] = true,
                }
            }
        })?;
    }
    let of = columns.into_iter().map(|(_, column, seen, none)| {
        let values = zip(&column.categories, seen).filter(|(_, seen)| *seen).map(|(value, _)| Some(value.clone()));
        // In order, so that it does not matter in which the file has them.
        values.chain(none.then_some(None)).collect::<BTreeSet<_>>().into_iter().collect()
    });
    Ok(of.collect())
}

/// Makes features of cells.
pub(crate) struct Encoder {
    segments: Vec<Segment>,
    features: usize,
    limit: f64,
}

/// Neighbouring columns of one kind, or one column: its first cell and its first feature.
struct Segment {
    cell: usize,
    feature: usize,
    features: usize,
    kind: SegmentKind,
}

enum SegmentKind {
    Scaled(Scalings),
    /// Perhaps with a feature for no value.
    Boolean,
    /// The feature of each code, and that of no value.
    Categorical(Vec<u32>, u32),
    Hashed,
}

/// Those of neighbouring columns, each number in a list of its own, which the compiler makes wide instructions of.
#[derive(Default)]
struct Scalings {
    mean: Vec<f64>,
    scale: Vec<f64>,
    fill: Vec<f64>,
}

impl Scalings {
    fn push(&mut self, scaling: Scaling) {
        let Scaling { mean, scale, fill } = scaling;
        self.mean.push(mean);
        self.scale.push(scale);
        self.fill.push(fill);
    }

    fn apply(&self, cells: &[u32], limit: f64, to: &mut [f32]) {
        let numbers = zip(zip(&self.mean, &self.scale), &self.fill);
        for ((to, &cell), ((mean, scale), &fill)) in zip(zip(to, cells), numbers) {
            let x = if cell == MISSING { fill } else { f32::from_bits(cell).into() };
            *to = ((x - mean) / scale).clamp(-limit, limit) as f32;
        }
    }
}

impl Encoder {
    fn new(encoding: &Encoding, table: &Table) -> Self {
        let mut encoder = Self {
            segments: Vec::new(),
            features: 0,
            limit: encoding.clip.unwrap_or(f64::INFINITY).min(f32::MAX.into()),
        };
        for (cell, (column, read)) in zip(&encoding.columns, table.columns()).enumerate() {
            match &column.encoding {
                ColumnEncoding::Numeric(scaling) | ColumnEncoding::Date(scaling) => encoder.scale(cell, *scaling),
                ColumnEncoding::Boolean => {
                    let features = if encoding.missing == Missing::Mean { 2 } else { 1 };
                    encoder.add(cell, features, SegmentKind::Boolean);
                }
                ColumnEncoding::Categorical(values) => {
                    let other = values.len();
                    let place = |value: Option<&String>| {
                        values.binary_search_by(|v| v.as_ref().cmp(&value)).unwrap_or(other) as u32
                    };
                    let places = read.categories.iter().map(|value| place(Some(value))).collect();
                    encoder.add(cell, other + 1, SegmentKind::Categorical(places, place(None)));
                }
                ColumnEncoding::Hashed(buckets) => encoder.add(cell, *buckets as usize, SegmentKind::Hashed),
            }
        }
        encoder
    }

    fn add(&mut self, cell: usize, features: usize, kind: SegmentKind) {
        self.segments.push(Segment { cell, feature: self.features, features, kind });
        self.features += features;
    }

    fn scale(&mut self, cell: usize, scaling: Scaling) {
        if let Some(Segment { features, kind: SegmentKind::Scaled(scalings), .. }) = self.segments.last_mut() {
            scalings.push(scaling);
            *features += 1;
            self.features += 1;
        } else {
            let mut scalings = Scalings::default();
            scalings.push(scaling);
            self.add(cell, 1, SegmentKind::Scaled(scalings));
        }
    }

    /// The number of features of a row.
    pub(crate) fn features(&self) -> usize {
        self.features
    }

    /// Makes features of some rows of the table, `[rows, features]`. All are finite.
    ///
    /// # Panics
    /// If `out` has another shape, or a row is not there.
    pub(crate) fn encode(
        &self,
        table: &Table,
        rows: impl ExactSizeIterator<Item = u32>,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), CellsError> {
        assert_eq!(out.dim(), (rows.len(), self.features), "a row of features for each row");
        let mut to = out.outer_iter_mut();
        let mut row_buffer = Vec::new();
        table.visit(rows, |cells| {
            let Some(mut row) = to.next() else { return };
            match row.as_slice_mut() {
                Some(row) => self.encode_row(cells, row),
                None => {
                    row_buffer.resize(self.features, 0.0);
                    self.encode_row(cells, &mut row_buffer);
                    row.iter_mut().zip(&row_buffer).for_each(|(to, x)| *to = *x);
                }
            }
        })
    }

    fn encode_row(&self, cells: &[u32], row: &mut [f32]) {
        for segment in &self.segments {
            let to = &mut row[segment.feature..][..segment.features];
            let cell = cells[segment.cell];
            match &segment.kind {
                SegmentKind::Scaled(scalings) => scalings.apply(&cells[segment.cell..], self.limit, to),
                SegmentKind::Boolean => {
                    let is_missing = cell == MISSING;
                    to[0] = if is_missing { 0.0 } else { f32::from_bits(cell) };
                    if let Some(to) = to.get_mut(1) {
                        *to = f32::from(u8::from(is_missing));
                    }
                }
                SegmentKind::Categorical(places, missing) => {
                    to.fill(0.0);
                    to[if cell == MISSING { *missing } else { places[cell as usize] } as usize] = 1.0;
                }
                SegmentKind::Hashed => {
                    to.fill(0.0);
                    to[cell as usize] = 1.0;
                }
            }
        }
    }
}

/// An [`Encoding`] as it lies in a file, not yet known to be one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    columns: Vec<Column>,
    clip: Option<f64>,
    missing: Missing,
}

impl TryFrom<Stored> for Encoding {
    type Error = DataError;

    fn try_from(stored: Stored) -> Result<Self, DataError> {
        let Stored { columns, clip, missing } = stored;
        let check = |ok, problem| if ok { Ok(()) } else { Err(DataError::InvalidEncoding { problem }) };
        let is_positive = |value: f64| value.is_finite() && value > 0.0;
        check(clip.is_none_or(is_positive), "`clip` is not a positive number")?;
        for column in &columns {
            match &column.encoding {
                ColumnEncoding::Numeric(scaling) | ColumnEncoding::Date(scaling) => {
                    check(scaling.mean.is_finite(), "a mean is not finite")?;
                    check(scaling.fill.is_finite(), "a value to fill in is not finite")?;
                    check(is_positive(scaling.scale), "a scale is not a positive number")?;
                }
                ColumnEncoding::Categorical(values) => {
                    check(values.is_sorted_by(|a, b| a < b), "categories are not in order")?;
                }
                ColumnEncoding::Hashed(buckets) => {
                    check(ColumnType::BUCKETS.contains(buckets), "a number of buckets is not from 2 to 1048576")?;
                }
                ColumnEncoding::Boolean => {}
            }
        }
        Ok(Self { columns, clip, missing })
    }
}

#[cfg(test)]
mod tests;
