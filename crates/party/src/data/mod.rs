//! What a party reads: its own columns of a table, as ids, features and, for the label holder, labels.
//!
//! [`read`] turns a [`DataSource`] into a [`Table`]; [`Standardizer`] brings its features to a common scale;
//! [`write_scores`] writes predictions beside their ids. Features and labels are numbers, ids are text.
//!
//! A new format is a file here that turns a [`DataSource`] into a [`Table`], and an arm in `Format`.

mod columns;
mod csv;
mod error;
mod ids;
mod scores;
mod standardize;
mod table;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use error::{DataError, Excerpt};
pub use ids::Ids;
pub use scores::write_scores;
pub use spnn_protocol::ID_SEPARATOR;
pub use standardize::Standardizer;
pub use table::Table;

const ID_SEPARATOR_TEXT: &str = "\u{1f}";

/// What a party reads from its own file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub struct DataSource {
    /// The file: `.csv`, or `.csv.gz` for the same under gzip.
    pub file: PathBuf,
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

/// Reads the columns that `source` names from its file.
///
/// Every value of an id, label or feature column is checked; other columns may hold anything. A UTF-8 byte order mark,
/// CRLF line ends, quoted values, blank lines and spaces around values are accepted.
///
/// # Errors
/// A [`DataError`] that names the file and, as far as they apply, line, row and column.
pub fn read(source: &DataSource) -> Result<Table, DataError> {
    check_ids_are_chosen(source)?;
    match Format::of(&source.file)? {
        Format::Csv(packing) => csv::read(source, packing),
    }
}

/// Reads only the header of the file: the names of all its columns, in file order.
///
/// # Errors
/// As [`read`], as far as the header is concerned.
pub fn read_columns(source: &DataSource) -> Result<Vec<String>, DataError> {
    match Format::of(&source.file)? {
        Format::Csv(packing) => csv::read_columns(&source.file, packing),
    }
}

fn check_ids_are_chosen(source: &DataSource) -> Result<(), DataError> {
    let file = || source.file.clone();
    match (&source.id, source.row_numbers_as_ids) {
        (Some(_), true) => Err(DataError::TwoKindsOfIds { file: file() }),
        (None, true) => Ok(()),
        (Some(id), false) if !id.names().is_empty() => Ok(()),
        (Some(_) | None, false) => Err(DataError::NoIds { file: file() }),
    }
}

/// How a file is written, by the end of its name.
enum Format {
    Csv(Packing),
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
    let header = columns::Header::new(&source.file, 1, read_columns(source)?)?;
    let selection = header.select(source)?;
    Ok(selection.features.into_iter().map(|at| header.names()[at].clone()).collect())
}

#[cfg(test)]
mod tests;
