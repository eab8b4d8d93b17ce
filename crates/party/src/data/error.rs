//! What can be wrong with a party's data, said so that the person who owns the data can put it right.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a table could not be read, matched or written.
///
/// `line` counts the file's lines from 1, the header included. `row` counts data rows from 1. A row may span several
/// lines when a quoted value does; `line` is then its first.
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
    #[error("{file}: no reader for files ending in `.{extension}`: give a `.csv` or `.csv.gz` file")]
    UnsupportedFormat { file: PathBuf, extension: String },

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
        "{file}: line {line}: columns {first} and {second} are both named `{column}`: rename or remove one of them"
    )]
    DuplicateColumn { file: PathBuf, line: u64, column: Excerpt, first: usize, second: usize },

    /// A feature column without a name, most often a row index that some tool wrote.
    #[error("{file}: line {line}: column {position} has no name: name it, or add \"\" to `ignore` if it is no feature")]
    UnnamedColumn { file: PathBuf, line: u64, position: usize },

    /// A column that was asked for is not in the file.
    #[error("{file}: line {line}: no column `{column}`; the file has {}: correct the name", listed(available, *columns))]
    MissingColumn {
        file: PathBuf,
        line: u64,
        column: String,
        /// The first few names in the file.
        available: Vec<Excerpt>,
        /// How many columns the file has.
        columns: usize,
    },

    /// A range of columns that ends before it starts.
    #[error("{file}: line {line}: in `{range}` the second column comes before the first: swap them")]
    BackwardRange { file: PathBuf, line: u64, range: String },

    /// A column stands in two places of the configuration.
    #[error("{file}: line {line}: column `{column}` is named in `{first}` and again in `{second}`: name it once")]
    ColumnUsedTwice { file: PathBuf, line: u64, column: String, first: &'static str, second: &'static str },

    /// Nothing is left to learn from.
    #[error("{file}: line {line}: no feature column is left: check `columns` and `ignore`")]
    NoFeatures { file: PathBuf, line: u64 },

    /// The file ends after its header.
    #[error("{file}: line {line}: a header and no rows after it: add rows, each on a line of its own")]
    NoRows { file: PathBuf, line: u64 },

    /// A row has more or fewer values than the header has names.
    #[error(
        "{file}: line {line} (row {row}): {found} values where the header names {expected} columns: look for a missing \
         or extra comma or quote"
    )]
    Ragged { file: PathBuf, line: u64, row: u64, expected: usize, found: usize },

    /// An id, label or feature is not text.
    #[error("{file}: line {line} (row {row}), column `{column}`: not UTF-8: save the file as UTF-8")]
    NotUtf8 { file: PathBuf, line: u64, row: u64, column: String },

    /// A label or feature is empty or a usual word for it.
    #[error("{file}: line {line} (row {row}), column `{column}`: no value: fill it in or remove the row")]
    MissingValue { file: PathBuf, line: u64, row: u64, column: String },

    /// A label or feature is text.
    #[error(
        "{file}: line {line} (row {row}), column `{column}`: `{value}` is not a number: write it as 12.5 or 1.25e1, or \
         add the column to `ignore`"
    )]
    NotANumber { file: PathBuf, line: u64, row: u64, column: String, value: Excerpt },

    /// A label or feature is NaN, infinite, or beyond 3.4e38.
    #[error(
        "{file}: line {line} (row {row}), column `{column}`: `{value}` is not a finite 32-bit number: correct it or \
         remove the row"
    )]
    NotFinite { file: PathBuf, line: u64, row: u64, column: String, value: Excerpt },

    /// A row without an id, or without a part of it.
    #[error("{file}: line {line} (row {row}), column `{column}`: the id is empty: fill it in or remove the row")]
    EmptyId { file: PathBuf, line: u64, row: u64, column: String },

    /// An id that could be read as two ids joined.
    #[error(
        "{file}: line {line} (row {row}), column `{column}`: the id contains the control character U+001F, which joins \
         the parts of an id: remove it"
    )]
    SeparatorInId { file: PathBuf, line: u64, row: u64, column: String },

    /// Two rows share an id.
    #[error(
        "{file}: line {line} (row {row}), column `{column}`: the id `{id}` was already on line {first_line}: remove one \
         of the rows, or add columns to `id` until it is unique"
    )]
    DuplicateId {
        file: PathBuf,
        line: u64,
        row: u64,
        /// The id column; several joined by `+`.
        column: String,
        first_line: u64,
        id: Excerpt,
    },

    /// A table's features are not those a model or a standardisation was made for.
    #[error(
        "feature {position} is `{found}` where `{expected}` is expected: give `columns` the same names in the same order \
         as in training"
    )]
    ColumnMismatch { position: usize, expected: String, found: String },

    /// A stored standardisation that cannot be one.
    #[error("the standardisation is not valid: {problem}: use the file that training wrote")]
    InvalidStandardizer { problem: &'static str },

    /// The result cannot be written.
    #[error("{file}: cannot be written: check that the folder exists, may be written to and has space left")]
    Write { file: PathBuf, source: io::Error },
}

fn listed(names: &[Excerpt], count: usize) -> String {
    let mut text = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if count > names.len() {
        text.push_str(&format!(" and {} more", count - names.len()));
    }
    text
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
            line: 3,
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
