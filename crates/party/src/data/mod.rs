//! What a party reads: its own columns of a table, as ids, features and, for the label holder, labels.
//!
//! [`read`] turns a [`DataSource`] into a [`Table`]; an [`Encoding`], fitted to its training rows, turns its features into
//! numbers on a common scale; [`write_scores`] writes predictions beside their ids. [`inspect`] says what is in a file.
//!
//! A new format is a file here that gives its values to an `Intake`, and an arm in `Format`.

mod cells;
mod column_type;
mod columns;
mod csv;
mod date;
mod encoding;
mod error;
mod files;
mod growing;
mod ids;
pub mod inspect;
mod intake;
mod message;
mod parquet;
mod scores;
mod table;
mod value;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use column_type::{ColumnType, Missing};
pub use encoding::Encoding;
pub use error::{DataError, Earlier, Excerpt};
pub use files::Files;
pub use ids::Ids;
pub use message::{TableFormat, id_columns, read_ids, write_answer};
pub use scores::write_scores;
pub use spnn_protocol::ID_SEPARATOR;
pub use table::Table;

pub(crate) use cells::CellsError;
pub(crate) use encoding::Encoder;

use columns::Header;
use intake::Intake;
use table::TableReader;

/// What a party reads from its own file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub struct DataSource {
    /// The file, the files or the directory: `.csv`, `.csv.gz` for the same under gzip, or `.parquet`.
    pub file: Files,
    /// The column or columns that identify a row. In TOML `id = "id"` or `id = ["Company", "Time"]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Columns>,
    /// Instead of `id`: a row's position in the file, counted from 1, is its id. Only sound when all parties read the
    /// same file, because nothing else says that row 7 here and row 7 there are about the same thing.
    #[serde(default)]
    pub row_numbers_as_ids: bool,
    /// The label column; the label holder's only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The feature columns, in this order. Without it: every column that is not id, label or ignored, in file order.
    ///
    /// `"V1..V14"` means the columns from V1 to V14 inclusive, in file order, less those that are id, label or
    /// ignored. A column whose own name is `V1..V14` comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<String>>,
    /// Columns that are not features. Ranges as in `columns`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
    /// What is done where a feature has no value.
    #[serde(default)]
    pub missing: Missing,
    /// A categorical column may have so many different values.
    #[serde(default = "categories_max_default")]
    pub categories_max: u32,
    /// A table whose features take more memory than this is kept on disk, in the party's directory.
    #[serde(default = "memory_max_mib_default")]
    pub memory_max_mib: u64,
    /// Types of columns; numeric where none is given. In TOML `types = { sex = "categorical", shop = { hashed = 32 } }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub types: BTreeMap<String, ColumnType>,
}

impl DataSource {
    /// All columns of a file, as numbers. It still lacks an `id`.
    pub fn new(file: impl Into<Files>) -> Self {
        Self {
            file: file.into(),
            id: None,
            row_numbers_as_ids: false,
            label: None,
            columns: None,
            ignore: Vec::new(),
            missing: Missing::Refuse,
            categories_max: categories_max_default(),
            memory_max_mib: memory_max_mib_default(),
            types: BTreeMap::new(),
        }
    }
}

/// A column of more values is seldom what one-hot features are for.
fn categories_max_default() -> u32 {
    1000
}

/// Of the smaller machines that train on tables of this size, half.
fn memory_max_mib_default() -> u64 {
    8192
}

/// One column name or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Columns {
    /// A single column.
    One(String),
    /// Columns that count together, in this order.
    Many(Vec<String>),
}

impl Columns {
    /// The names, in order.
    pub fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Many(names) => names,
        }
    }
}

/// Reads the columns that `source` names from its files. A table larger than its `memory_max_mib` is kept on disk in
/// `directory`, for as long as it is there.
///
/// Every value of an id, label or feature column is checked; other columns may hold anything. In CSV, a UTF-8 byte order
/// mark, CRLF line ends, quoted values, blank lines and spaces around values are accepted.
///
/// # Errors
/// A [`DataError`] that names the file and, as far as they apply, line, row and column.
pub fn read(source: &DataSource, directory: &Path) -> Result<Table, DataError> {
    check_ids_are_chosen(source)?;
    let mut table = TableReader::new(source, directory);
    read_files(&source.file, &mut table)?;
    table.finish()
}

fn read_files(files: &Files, intake: &mut impl Intake) -> Result<(), DataError> {
    let files = files.list()?;
    let formats = files.iter().map(|file| Format::of(file)).collect::<Result<Vec<_>, _>>()?;
    let mut length = None;
    if formats.iter().all(|format| *format == Format::Csv(Packing::Plain)) {
        // How long a packed file is says nothing; nor does a pipe's length.
        let lengths = files.iter().map(|file| std::fs::metadata(file).ok().map(|m| m.len()).filter(|n| *n > 0));
        length = lengths.sum::<Option<u64>>();
    }
    let mut rows = None;
    if formats.iter().all(|format| *format == Format::Parquet) {
        let counts = files.iter().map(|file| parquet::count_rows(file)).collect::<Result<Vec<_>, _>>()?;
        rows = Some(counts.into_iter().fold(0, u64::saturating_add));
    }
    for (at, (file, format)) in files.iter().zip(&formats).enumerate() {
        // What is expected is known, or estimated, once.
        let is_first = at == 0;
        match format {
            Format::Csv(packing) => csv::read(file, *packing, length.filter(|_| is_first), intake)?,
            Format::Parquet => parquet::read(file, rows.filter(|_| is_first), intake)?,
        }
    }
    Ok(())
}

/// Reads only what names the columns of the first file: all of them, in its order.
///
/// # Errors
/// As [`read`], as far as the header is concerned.
pub fn read_columns(source: &DataSource) -> Result<Vec<String>, DataError> {
    Ok(read_header(source)?.into_names())
}

fn read_header(source: &DataSource) -> Result<Header, DataError> {
    let files = source.file.list()?;
    let Some(file) = files.first() else {
        return Err(DataError::NoFiles { file: PathBuf::new() });
    };
    match Format::of(file)? {
        Format::Csv(packing) => csv::read_columns(file, packing),
        Format::Parquet => parquet::read_columns(file),
    }
}

fn check_ids_are_chosen(source: &DataSource) -> Result<(), DataError> {
    let file = || source.file.paths().first().cloned().unwrap_or_default();
    match (&source.id, source.row_numbers_as_ids) {
        (Some(_), true) => Err(DataError::TwoKindsOfIds { file: file() }),
        (None, true) => Ok(()),
        (Some(id), false) if !id.names().is_empty() => Ok(()),
        (Some(_) | None, false) => Err(DataError::NoIds { file: file() }),
    }
}

/// How a file is written, by the end of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Csv(Packing),
    Parquet,
}

/// What a file is wrapped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
}

impl Format {
    fn of(file: &Path) -> Result<Self, DataError> {
        let name = file.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        if name.ends_with(".csv") {
            return Ok(Self::Csv(Packing::Plain));
        }
        if name.ends_with(".csv.gz") {
            return Ok(Self::Csv(Packing::Gzip));
        }
        if name.ends_with(".parquet") {
            return Ok(Self::Parquet);
        }
        Err(DataError::UnsupportedFormat {
            file: file.to_path_buf(),
            extension: file.extension().unwrap_or_default().to_string_lossy().into_owned(),
        })
    }
}

/// The names of the feature columns that `source` selects, in order. Reads the header only.
///
/// # Errors
/// [`DataError`] if the header cannot be read or lacks a column.
pub fn feature_columns(source: &DataSource) -> Result<Vec<String>, DataError> {
    let header = read_header(source)?;
    let selection = header.select(source)?;
    Ok(selection.features.into_iter().map(|at| header.names()[at].clone()).collect())
}

#[cfg(test)]
pub(crate) mod formats_tests;
#[cfg(test)]
mod tests;
