//! What becomes of a file's values: the seam between formats and what is done with them.

use super::DataError;
use super::columns::Header;
use super::value::{Value, Wrong};

/// Takes in the values of one file after the other.
///
/// A reader calls [`begin`](Self::begin) once a file, then for each block of rows [`take`](Self::take) once for every
/// chosen column and row, the rows of a column in their order, and [`end`](Self::end).
pub(super) trait Intake {
    /// Chooses columns of a file, as positions. Elsewhere they are known by their place in this list.
    fn begin(&mut self, header: &Header) -> Result<Vec<usize>, DataError>;

    /// About so many rows come in all.
    fn expect(&mut self, rows: u64) -> Result<(), DataError>;

    /// Takes the value of a chosen column in a row of the block, counted from 0.
    fn take(&mut self, column: usize, row: usize, value: Value<'_>) -> Result<(), Wrong>;

    /// Ends a block of so many rows; in a format with lines a block is one row, which begins on `line`.
    fn end(&mut self, rows: usize, line: Option<u64>) -> Result<(), DataError>;
}
