//! A party's table as it is read, before anything is fitted to it.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::cells::{Cells, CellsError, CellsWriter, MISSING};
use super::columns::{Header, Selection};
use super::error::Earlier;
use super::growing::Growing;
use super::ids::JoinedIds;
use super::intake::Intake;
use super::value::{Value, Wrong};
use super::{ColumnType, Columns, DataError, DataSource, Excerpt, ID_SEPARATOR, Ids, Missing};

/// A party's rows: ids, features and, at the label holder, labels, all in the order of the files.
///
/// A feature is four bytes until it is encoded: of a number, a date or a boolean the `f32`, of a category a code, of a
/// hashed value its bucket.
pub struct Table {
    ids: Ids,
    columns: Vec<FeatureColumn>,
    cells: Cells,
    labels: Option<Vec<f32>>,
    missing: Missing,
}

/// A column of features.
pub(crate) struct FeatureColumn {
    pub(crate) name: String,
    pub(crate) kind: ColumnType,
    /// Which text each code of a category stands for.
    pub(crate) categories: Vec<String>,
}

impl Table {
    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.cells.rows()
    }

    /// One id per row, each once. The parts of an id made of several columns are joined by [`ID_SEPARATOR`].
    #[must_use]
    pub fn ids(&self) -> &Ids {
        &self.ids
    }

    /// One finite label per row, if the source names a label column.
    #[must_use]
    pub fn labels(&self) -> Option<&[f32]> {
        self.labels.as_deref()
    }

    /// The names of the feature columns, in order.
    pub fn column_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.columns.iter().map(|column| column.name.as_str())
    }

    pub(crate) fn columns(&self) -> &[FeatureColumn] {
        &self.columns
    }

    pub(crate) fn missing(&self) -> Missing {
        self.missing
    }

    pub(crate) fn labels_mut(&mut self) -> Option<&mut Vec<f32>> {
        self.labels.as_mut()
    }

    /// Shows the cells of each of `rows`, in that order.
    pub(crate) fn visit(&self, rows: impl IntoIterator<Item = u32>, see: impl FnMut(&[u32])) -> Result<(), CellsError> {
        self.cells.visit(rows, see)
    }
}

impl fmt::Debug for Table {
    /// Shapes only: the values are what this party protects.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("rows", &self.rows())
            .field("columns", &self.columns.len())
            .field("labels", &self.labels.as_ref().map(Vec::len))
            .finish_non_exhaustive()
    }
}

/// A table that is being read.
pub(super) struct TableReader<'a> {
    source: &'a DataSource,
    directory: &'a Path,
    /// Of the first file.
    chosen: Option<(Header, Selection)>,
    columns: Vec<Intaken>,
    /// Cells of the block, `[rows, columns]`.
    block: Vec<u32>,
    cells: Option<CellsWriter>,
    has_label: bool,
    labels: Growing<f32>,
    ids: JoinedIds,
    origins: Origins,
}

impl<'a> TableReader<'a> {
    /// A reader of what `source` names, which keeps a large table in `directory`.
    pub(super) fn new(source: &'a DataSource, directory: &'a Path) -> Self {
        Self {
            source,
            directory,
            chosen: None,
            columns: Vec::new(),
            block: Vec::new(),
            cells: None,
            has_label: source.label.is_some(),
            labels: Growing::default(),
            ids: JoinedIds::new(source.id.as_ref().map_or(0, |id| id.names().len())),
            origins: Origins::default(),
        }
    }

    pub(super) fn finish(self) -> Result<Table, DataError> {
        let (Some(cells), Some((header, _))) = (self.cells, self.chosen) else {
            return Err(DataError::NoFiles { file: self.source.file.paths().first().cloned().unwrap_or_default() });
        };
        let ids = self.ids.into_ids();
        if ids.is_empty() {
            return Err(DataError::NoRows { file: header.file().to_path_buf(), line: header.line() });
        }
        if let (Some(columns), Some((row, first))) = (&self.source.id, ids.first_duplicate()) {
            return Err(self.origins.duplicate(row, first, columns, &ids.get(row)));
        }
        Ok(Table {
            ids,
            columns: self.columns.into_iter().map(|column| column.column).collect(),
            cells: cells.finish()?,
            labels: self.has_label.then(|| self.labels.into_vec()),
            missing: self.source.missing,
        })
    }
}

impl Intake for TableReader<'_> {
    fn begin(&mut self, header: &Header) -> Result<Vec<usize>, DataError> {
        let selection = match &self.chosen {
            Some((first, selection)) => header.find(selection, first)?,
            None => {
                let selection = header.select(self.source)?;
                self.columns =
                    (selection.features.iter()).map(|&at| Intaken::new(&header.names()[at], self.source)).collect();
                let memory_max = self.source.memory_max_mib.saturating_mul(1 << 20);
                self.cells = Some(CellsWriter::new(self.columns.len(), memory_max, self.directory));
                self.chosen = Some((header.clone(), selection.clone()));
                selection
            }
        };
        self.origins.begin(header, self.ids.len());
        Ok([selection.features, selection.label.into_iter().collect(), selection.ids].concat())
    }

    fn expect(&mut self, rows: u64) -> Result<(), DataError> {
        if let Some(cells) = &mut self.cells {
            cells.expect(rows)?;
        }
        if self.has_label {
            self.labels.reserve(usize::try_from(rows).unwrap_or(usize::MAX));
        }
        Ok(())
    }

    fn take(&mut self, column: usize, row: usize, value: Value<'_>) -> Result<(), Wrong> {
        let features = self.columns.len();
        if let Some(of) = self.columns.get_mut(column) {
            let at = row * features + column;
            if at >= self.block.len() {
                self.block.resize((row + 1) * features, MISSING);
            }
            self.block[at] = of.cell(value)?;
            return Ok(());
        }
        if self.has_label && column == features {
            self.labels.push(label(value, self.source)?);
            return Ok(());
        }
        self.ids.push(column - features - usize::from(self.has_label), &value.id()?);
        Ok(())
    }

    fn end(&mut self, rows: usize, line: Option<u64>) -> Result<(), DataError> {
        if let Some(cells) = &mut self.cells {
            cells.extend(&self.block)?;
        }
        self.block.clear();
        self.ids.end(rows);
        if self.source.id.is_some() {
            self.origins.note(rows, line);
        }
        Ok(())
    }
}

fn label(value: Value<'_>, source: &DataSource) -> Result<f32, Wrong> {
    let label = source.label.as_ref().and_then(|label| source.types.get(label));
    match label {
        Some(ColumnType::Boolean) => value.boolean()?.map(|yes| f32::from(u8::from(yes))).ok_or(Wrong::Missing),
        _ => finite(value.number()?.ok_or(Wrong::Missing)?),
    }
}

/// Rounds once more, from `f64`: that is what a decimal is in every format.
fn finite(number: f64) -> Result<f32, Wrong> {
    let number = number as f32;
    if number.is_finite() { Ok(number) } else { Err(Wrong::NotFinite) }
}

/// A column of features that is being read.
struct Intaken {
    column: FeatureColumn,
    allows_missing: bool,
    categories_max: u32,
    codes: HashMap<String, u32>,
    hash: Sha256,
}

impl Intaken {
    fn new(name: &str, source: &DataSource) -> Self {
        let kind = source.types.get(name).copied().unwrap_or_default();
        Self {
            column: FeatureColumn { name: name.to_owned(), kind, categories: Vec::new() },
            allows_missing: source.missing == Missing::Mean,
            categories_max: source.categories_max,
            codes: HashMap::new(),
            hash: hash_of_column(name),
        }
    }

    fn cell(&mut self, value: Value<'_>) -> Result<u32, Wrong> {
        let cell = match self.column.kind {
            ColumnType::Numeric => value.number()?.map(finite).transpose()?.map(f32::to_bits),
            ColumnType::Date => value.days()?.map(finite).transpose()?.map(f32::to_bits),
            ColumnType::Boolean => value.boolean()?.map(|yes| f32::from(u8::from(yes)).to_bits()),
            ColumnType::Categorical => value.category().map(|text| self.code(&text)).transpose()?,
            ColumnType::Hashed(buckets) => match value.category() {
                // No text is empty: no value has a bucket of its own, as far as buckets are of anyone's own.
                None if self.allows_missing => Some(bucket(&self.hash, "", buckets)),
                text => text.map(|text| bucket(&self.hash, &text, buckets)),
            },
        };
        match cell {
            Some(cell) => Ok(cell),
            None if self.allows_missing => Ok(MISSING),
            None => Err(Wrong::Missing),
        }
    }

    /// The code of a category: how many others came before it.
    fn code(&mut self, text: &str) -> Result<u32, Wrong> {
        if let Some(&code) = self.codes.get(text) {
            return Ok(code);
        }
        let code = u32::try_from(self.codes.len()).unwrap_or(MISSING);
        if code >= self.categories_max {
            return Err(Wrong::TooManyCategories(self.categories_max));
        }
        self.codes.insert(text.to_owned(), code);
        self.column.categories.push(text.to_owned());
        Ok(code)
    }
}

/// SHA-256 of the column's name, its length first, to which a value is added.
fn hash_of_column(name: &str) -> Sha256 {
    Sha256::new().chain_update((name.len() as u64).to_le_bytes()).chain_update(name)
}

/// The first eight bytes of the hash, little-endian, modulo the number of buckets.
fn bucket(column: &Sha256, text: &str, buckets: u32) -> u32 {
    let digest: [u8; 32] = column.clone().chain_update(text).finalize().into();
    let [a, b, c, d, e, f, g, h, ..] = digest;
    (u64::from_le_bytes([a, b, c, d, e, f, g, h]) % u64::from(buckets)) as u32
}

/// Where each row came from, to say so of ids that come twice.
#[derive(Default)]
struct Origins(Vec<Origin>);

struct Origin {
    file: PathBuf,
    /// The first row of the file in the table.
    first_row: usize,
    rows: usize,
    /// Rows of the file that do not begin on the line after the row before, from 0, and where they do begin.
    jumps: Vec<(usize, u64)>,
    line: u64,
}

impl Origins {
    fn begin(&mut self, header: &Header, first_row: usize) {
        let file = header.file().to_path_buf();
        self.0.push(Origin { file, first_row, rows: 0, jumps: Vec::new(), line: 0 });
    }

    fn note(&mut self, rows: usize, line: Option<u64>) {
        let Some(origin) = self.0.last_mut() else { return };
        if let Some(line) = line {
            if line != origin.line + 1 || origin.jumps.is_empty() {
                origin.jumps.push((origin.rows, line));
            }
            origin.line = line;
        }
        origin.rows += rows;
    }

    fn find(&self, row: usize) -> Earlier {
        let Some(origin) = self.0.iter().rfind(|origin| origin.first_row <= row) else {
            return Earlier { file: PathBuf::new(), line: None, row: row as u64 + 1 };
        };
        let row = row - origin.first_row;
        let after = origin.jumps.partition_point(|(at, _)| *at <= row);
        let jump = after.checked_sub(1).map(|at| origin.jumps[at]);
        let line = jump.map(|(at, line)| line + (row - at) as u64);
        Earlier { file: origin.file.clone(), line, row: row as u64 + 1 }
    }

    fn duplicate(&self, row: usize, first: usize, columns: &Columns, id: &str) -> DataError {
        let Earlier { file, line, row } = self.find(row);
        let (first, id) = (Box::new(self.find(first)), Excerpt::new(&id.replace(ID_SEPARATOR, "+")));
        DataError::DuplicateId { file, line, row, column: columns.names().join("+"), first, id }
    }
}
