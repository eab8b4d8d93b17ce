//! What can be wrong with a party's data, said so that the person who owns the data can put it right.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::cells::CellsError;
use super::{ColumnType, Missing};

/// Why a table could not be read, matched or written.
///
/// `line` counts the file's lines from 1, the header included; a Parquet file has none. `row` counts data rows from 1. A
/// row may span several lines when a quoted value does; `line` is then its first.
///
/// The message may quote a value, for the console of the organisation whose data it is. `Debug` never does: see
/// [`Excerpt`].
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each field says what its message shows")]
pub enum DataError {
    /// Nothing says which row is which.
    #[error(
        "{file}: nothing identifies a row: set `id` to the column (or columns) that all parties share, or, only if all \
         parties read the same file, set `row_numbers_as_ids = true`"
    )]
    NoIds { file: PathBuf },

    /// Both an id column and row numbers.
    #[error("{file}: `id` and `row_numbers_as_ids` are both set: remove one of them")]
    TwoKindsOfIds { file: PathBuf },

    /// No reader for this kind of file.
    #[error("{file}: no reader for files ending in `.{extension}`: give a `.csv`, `.csv.gz` or `.parquet` file")]
    UnsupportedFormat { file: PathBuf, extension: String },

    /// A directory without a table, or an empty list.
    #[error("{file}: no file to read: name a `.csv`, `.csv.gz` or `.parquet` file, or a directory of such files")]
    NoFiles { file: PathBuf },

    /// A directory whose files are no one table.
    #[error(
        "{file}: not of the same format as {other}: keep files of one format in a directory that is read as a table"
    )]
    MixedFormats { file: PathBuf, other: PathBuf },

    /// Files of one table have other columns.
    #[error("{file}: column `{column}` is missing, which {other} has: all files of one table need the same columns")]
    ColumnMissingInFile { file: PathBuf, other: PathBuf, column: String },

    /// Files of one table have other columns.
    #[error("{file}: column `{column}` is not in {other}: all files of one table need the same columns")]
    ColumnOnlyInFile { file: PathBuf, other: PathBuf, column: String },

    /// The file cannot be opened.
    #[error("{file}: cannot be opened: check the path and the permissions")]
    Open { file: PathBuf, source: io::Error },

    /// Reading stopped half-way.
    #[error("{file}: reading failed at or after line {line}")]
    Read { file: PathBuf, line: u64, source: io::Error },

    /// The gzip stream is cut off or altered.
    #[error(
        "{file}: the gzip stream is damaged at or after line {line}: `gzip -t` should say the same; fetch or compress \
         the file again"
    )]
    DamagedGzip { file: PathBuf, line: u64, source: io::Error },

    /// Not a Parquet file, or not a whole one.
    #[error("{file}: not a sound Parquet file ({problem}): fetch or write the file again")]
    DamagedParquet { file: PathBuf, problem: String },

    /// A column that is no list of plain values.
    #[error(
        "{file}: column `{column}` holds {kind}, which cannot be read: write it as numbers, text, booleans or dates, or \
         add the column to `ignore`"
    )]
    UnsupportedColumn { file: PathBuf, column: String, kind: String },

    /// One row is larger than any real one.
    #[error(
        "{file}: line {line}: a row that starts here, or after blank lines here, is longer than {limit} bytes: look for a \
         quote that is never closed, or for missing line ends"
    )]
    RowTooLong { file: PathBuf, line: u64, limit: usize },

    /// A quoted value runs to the end of the file and hides every row after it.
    #[error("{file}: line {line}: a quote that opens in the row starting here is never closed: close or remove it")]
    UnclosedQuote { file: PathBuf, line: u64 },

    /// The file is empty, or its first line holds only numbers.
    #[error("{file}: line 1: no header: the first line must name the columns")]
    NoHeader { file: PathBuf },

    /// A column name is not text.
    #[error(
        "{file}: line {line}: the name of column {position} is not UTF-8: save the file as UTF-8 (or, if it is \
         compressed, name it `.csv.gz`)"
    )]
    HeaderNotUtf8 { file: PathBuf, line: u64, position: usize },

    /// Two columns share a name.
    #[error(
        "{file}: {}columns {first} and {second} are both named `{column}`: rename or remove one of them",
        on_line(*line)
    )]
    DuplicateColumn { file: PathBuf, line: Option<u64>, column: Excerpt, first: usize, second: usize },

    /// A feature column without a name, most often a row index that some tool wrote.
    #[error("{file}: {}column {position} has no name: name it, or add \"\" to `ignore` if it is no feature", on_line(*line))]
    UnnamedColumn { file: PathBuf, line: Option<u64>, position: usize },

    /// A column that was asked for is not in the file.
    #[error("{file}: {}no column `{column}`; the file has {}: correct the name", on_line(*line), listed(available, *columns))]
    MissingColumn {
        file: PathBuf,
        line: Option<u64>,
        column: String,
        /// The first few names in the file.
        available: Vec<Excerpt>,
        /// How many columns the file has.
        columns: usize,
    },

    /// A range of columns that ends before it starts.
    #[error("{file}: {}in `{range}` the second column comes before the first: swap them", on_line(*line))]
    BackwardRange { file: PathBuf, line: Option<u64>, range: String },

    /// A column stands in two places of the configuration.
    #[error("{file}: {}column `{column}` is named in `{first}` and again in `{second}`: name it once", on_line(*line))]
    ColumnUsedTwice { file: PathBuf, line: Option<u64>, column: String, first: &'static str, second: &'static str },

    /// Nothing is left to learn from.
    #[error("{file}: {}no feature column is left: check `columns` and `ignore`", on_line(*line))]
    NoFeatures { file: PathBuf, line: Option<u64> },

    /// The file ends after its header.
    #[error("{file}: {}a header and no rows after it: add rows, each on a line of its own", on_line(*line))]
    NoRows { file: PathBuf, line: Option<u64> },

    /// A table has more rows than are taken at a time.
    #[error("{file}: at most {max} rows are taken at a time: send it in parts")]
    TooManyRows { file: PathBuf, max: usize },

    /// A row has more or fewer values than the header has names.
    #[error(
        "{file}: line {line} (row {row}): {found} values where the header names {expected} columns: look for a missing \
         or extra comma or quote"
    )]
    Ragged { file: PathBuf, line: u64, row: u64, expected: usize, found: usize },

    /// An id, label or feature is not text.
    #[error("{file}: {}, column `{column}`: not UTF-8: save the file as UTF-8", at(*line, *row))]
    NotUtf8 { file: PathBuf, line: Option<u64>, row: u64, column: String },

    /// A label or feature is empty or a usual word for it.
    #[error(
        "{file}: {}, column `{column}`: no value: fill it in, remove the row, or, for a feature, set `missing = \"mean\"`",
        at(*line, *row)
    )]
    MissingValue { file: PathBuf, line: Option<u64>, row: u64, column: String },

    /// A label or feature is text.
    #[error(
        "{file}: {}, column `{column}`: `{value}` is not a number: write it as 12.5 or 1.25e1, give the column \
         a type in `types`, or add it to `ignore`",
        at(*line, *row)
    )]
    NotANumber { file: PathBuf, line: Option<u64>, row: u64, column: String, value: Excerpt },

    /// A label or feature is NaN, infinite, or beyond 3.4e38.
    #[error(
        "{file}: {}, column `{column}`: `{value}` is not a finite 32-bit number: correct it or remove the row",
        at(*line, *row)
    )]
    NotFinite { file: PathBuf, line: Option<u64>, row: u64, column: String, value: Excerpt },

    /// A value of a boolean column is neither yes nor no.
    #[error(
        "{file}: {}, column `{column}`: `{value}` is neither yes nor no: write true or false, yes or no, t or f, 1 or 0",
        at(*line, *row)
    )]
    NotABoolean { file: PathBuf, line: Option<u64>, row: u64, column: String, value: Excerpt },

    /// A value of a date column is not one.
    #[error(
        "{file}: {}, column `{column}`: `{value}` is not a date: write it as 2024-01-31 or 2024-01-31T18:30:00",
        at(*line, *row)
    )]
    NotADate { file: PathBuf, line: Option<u64>, row: u64, column: String, value: Excerpt },

    /// A categorical column with more values than make sense.
    #[error(
        "{file}: {}, column `{column}`: more than {limit} different values: give it the type `{{ hashed = 256 }}` instead of \
         `categorical`, or raise `categories_max`",
        at(*line, *row)
    )]
    TooManyCategories { file: PathBuf, line: Option<u64>, row: u64, column: String, limit: u32 },

    /// An id that many texts stand for.
    #[error(
        "{file}: {}, column `{column}`: an id cannot be a floating-point number or a boolean: write it as an integer or \
         as text",
        at(*line, *row)
    )]
    NotAnId { file: PathBuf, line: Option<u64>, row: u64, column: String },

    /// A row without an id, or without a part of it.
    #[error("{file}: {}, column `{column}`: the id is empty: fill it in or remove the row", at(*line, *row))]
    EmptyId { file: PathBuf, line: Option<u64>, row: u64, column: String },

    /// An id that could be read as two ids joined.
    #[error(
        "{file}: {}, column `{column}`: the id contains the control character U+001F, which joins the parts of an \
         id: remove it",
        at(*line, *row)
    )]
    SeparatorInId { file: PathBuf, line: Option<u64>, row: u64, column: String },

    /// Two rows share an id.
    #[error(
        "{file}: {}, column `{column}`: the id `{id}` was already {}: remove one of the rows, or add columns to `id` until it \
         is unique",
        at(*line, *row),
        first.seen_from(file)
    )]
    DuplicateId {
        file: PathBuf,
        line: Option<u64>,
        row: u64,
        /// The id column; several joined by `+`.
        column: String,
        first: Box<Earlier>,
        id: Excerpt,
    },

    /// A type for a column that is not there.
    #[error(
        "{file}: `types` names a column `{column}`; the file has {}: correct the name",
        listed(available, *columns)
    )]
    TypeOfNoColumn {
        file: PathBuf,
        column: String,
        /// The first few names in the file.
        available: Vec<Excerpt>,
        /// How many columns the file has.
        columns: usize,
    },

    /// A number of buckets that makes no sense.
    #[error("{file}: column `{column}` has the type {{ hashed = {found} }}: give 2 to 1048576 buckets")]
    Buckets { file: PathBuf, column: String, found: u32 },

    /// A label that is neither a number nor yes or no.
    #[error("{file}: the label column `{column}` has the type {found}: a label is numeric or boolean")]
    LabelType { file: PathBuf, column: String, found: ColumnType },

    /// No training row has a value.
    #[error("column `{column}` has no value in any training row: add it to `ignore`")]
    NoValues { column: String },

    /// A table's features are not those a model was trained on.
    #[error(
        "feature column {position} is `{found}` where `{expected}` is expected: give `columns` the same names in the same \
         order as in training"
    )]
    ColumnMismatch { position: usize, expected: String, found: String },

    /// A column has another type than a model was trained on.
    #[error(
        "column `{column}` has the type {found}, and had the type {expected} in training: give `types` as in training"
    )]
    TypeMismatch { column: String, expected: ColumnType, found: ColumnType },

    /// Missing values are treated otherwise than in training.
    #[error("`missing` is \"{found}\", and was \"{expected}\" in training: set it as in training")]
    MissingMismatch { expected: Missing, found: Missing },

    /// A stored encoding that cannot be one.
    #[error("the encoding of the columns is not valid: {problem}: use the file that training wrote")]
    InvalidEncoding { problem: &'static str },

    /// A table that is too large for memory, and for the disk as well.
    #[error(
        "{file}: cannot be kept on disk: check that the folder may be written to and has space left, or raise \
         `memory_max_mib` to keep the table in memory"
    )]
    Scratch { file: PathBuf, source: io::Error },

    /// The result cannot be written.
    #[error("{file}: cannot be written: check that the folder exists, may be written to and has space left")]
    Write { file: PathBuf, source: io::Error },
}

/// Where a row is.
fn at(line: Option<u64>, row: u64) -> String {
    line.map_or_else(|| format!("row {row}"), |line| format!("line {line} (row {row})"))
}

/// What stands before a message about a header.
fn on_line(line: Option<u64>) -> String {
    line.map_or_else(String::new, |line| format!("line {line}: "))
}

/// An earlier row, perhaps of another file.
#[derive(Debug, PartialEq, Eq)]
pub struct Earlier {
    /// Of which file.
    pub file: PathBuf,
    /// The line on which it begins, where the format has lines.
    pub line: Option<u64>,
    /// The data row, from 1.
    pub row: u64,
}

impl Earlier {
    fn seen_from(&self, file: &Path) -> String {
        let place = self.line.map_or_else(|| format!("in row {}", self.row), |line| format!("on line {line}"));
        if self.file == file { place } else { format!("{place} of {}", self.file.display()) }
    }
}

fn listed(names: &[Excerpt], count: usize) -> String {
    let mut text = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if count > names.len() {
        text.push_str(&format!(" and {} more", count - names.len()));
    }
    text
}

impl From<CellsError> for DataError {
    fn from(error: CellsError) -> Self {
        let CellsError { file, source } = error;
        Self::Scratch { file, source }
    }
}

/// The beginning of a text from a party's file, for a message on that party's own console.
///
/// `Display` shows at most 32 characters, control characters replaced. `Debug`, which ends up in logs, shows none.
#[derive(Clone, PartialEq, Eq)]
pub struct Excerpt(String);

impl Excerpt {
    /// More would flood the line; fewer would cut 19-digit numbers.
    const CHARS_MAX: usize = 32;

    pub(super) fn new(text: &str) -> Self {
        let mut chars = text.chars();
        let mut excerpt: String = chars
            .by_ref()
            .take(Self::CHARS_MAX)
            .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
            .collect();
        if chars.next().is_some() {
            excerpt.push('…');
        }
        Self(excerpt)
    }

    /// The shortened text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} characters>", self.0.chars().count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_short_and_printable() {
        assert_eq!(Excerpt::new("12.5").as_str(), "12.5");
        assert_eq!(Excerpt::new(&"é".repeat(33)).as_str(), format!("{}…", "é".repeat(32)));
        assert_eq!(Excerpt::new(&"x".repeat(32)).as_str(), "x".repeat(32));
        assert_eq!(Excerpt::new("\u{1b}[2Ja\n").as_str(), "\u{fffd}[2Ja\u{fffd}");
    }

    #[test]
    fn debug_shows_no_value() {
        let error = DataError::NotANumber {
            file: "a.csv".into(),
            line: Some(3),
            row: 2,
            column: "income".into(),
            value: Excerpt::new("secret"),
        };
        assert!(error.to_string().contains("secret"));
        let debug = format!("{error:?}");
        assert!(!debug.contains("secret"), "{debug}");
        assert!(debug.contains("<6 characters>"), "{debug}");
    }
}
