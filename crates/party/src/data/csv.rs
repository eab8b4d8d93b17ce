//! Comma-separated text, plain or under gzip.
//!
//! The `csv` crate splits the records. What it leaves open is settled here: line numbers that are right under CRLF and
//! after blank lines, a limit on the length of a row, and quotes that are never closed.

use std::fs::File;
use std::io::{self, BufReader, Cursor, ErrorKind, Read};
use std::path::Path;

use ::csv::{ByteRecord, Reader, ReaderBuilder, Terminator};
use flate2::read::MultiGzDecoder;

use super::columns::Header;
use super::intake::Intake;
use super::value::{Place, Value, Wrong};
use super::{DataError, Packing};

/// No real row comes near it (a million columns of 16 characters do); a file without line ends, or with a quote that is
/// never closed, would otherwise be read into memory whole.
const ROW_BYTES_MAX: usize = 16 << 20;

/// After so many rows, the file's length says about how many there are.
const ROWS_OF_ESTIMATE: u64 = 10_000;

/// Large enough that system calls do not show in the time, small enough for the processor's cache.
const BUFFER_BYTES: usize = 64 << 10;

/// Reads the file into `intake`. `length`, if it is known, is that of all files that are read, together.
pub(super) fn read(
    file: &Path,
    packing: Packing,
    length: Option<u64>,
    intake: &mut impl Intake,
) -> Result<(), DataError> {
    read_from(file, packing, open(file, packing)?, length, intake)
}

pub(super) fn read_columns(file: &Path, packing: Packing) -> Result<Header, DataError> {
    let input = open(file, packing)?;
    Records::new(file, packing, input)?.header()
}

fn open(file: &Path, packing: Packing) -> Result<Box<dyn Read>, DataError> {
    let input = File::open(file).map_err(|source| DataError::Open { file: file.to_path_buf(), source })?;
    Ok(match packing {
        Packing::Plain => Box::new(input),
        Packing::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(BUFFER_BYTES, input))),
    })
}

/// [`read`] from any bytes.
pub(super) fn read_from(
    file: &Path,
    packing: Packing,
    input: impl Read,
    length: Option<u64>,
    intake: &mut impl Intake,
) -> Result<(), DataError> {
    let mut records = Records::new(file, packing, input)?;
    let header = records.header()?;
    let columns = intake.begin(&header)?;
    while records.advance()? {
        records.check_width(&header)?;
        for (place, &column) in columns.iter().enumerate() {
            records.give(place, column, &header, intake)?;
        }
        intake.end(1, Some(records.line()))?;
        if let (ROWS_OF_ESTIMATE, Some(length)) = (records.row, length) {
            let times = length / records.reader.position().byte().max(1);
            intake.expect(times.saturating_add(1).saturating_mul(ROWS_OF_ESTIMATE))?;
        }
    }
    Ok(())
}

/// A file's records, one at a time.
struct Records<'a, R> {
    file: &'a Path,
    packing: Packing,
    reader: Reader<Guarded<io::Chain<Cursor<Vec<u8>>, R>>>,
    record: ByteRecord,
    /// The data row in `record`, from 1; 0 for the header.
    row: u64,
}

impl<'a, R: Read> Records<'a, R> {
    fn new(file: &'a Path, packing: Packing, input: R) -> Result<Self, DataError> {
        let input = without_byte_order_mark(input).map_err(|source| failed(file, packing, 1, source))?;
        let reader = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            // The carriage return of CRLF is then part of the last value, and trimmed with its spaces.
            .terminator(Terminator::Any(b'\n'))
            .buffer_capacity(BUFFER_BYTES)
            .from_reader(Guarded::new(input));
        Ok(Self { file, packing, reader, record: ByteRecord::new(), row: 0 })
    }

    fn header(&mut self) -> Result<Header, DataError> {
        if !self.next_record()? {
            return Err(DataError::NoHeader { file: self.file.to_path_buf() });
        }
        let names = self
            .record
            .iter()
            .enumerate()
            .map(|(at, name)| match text(name) {
                Some(name) => Ok(name.to_owned()),
                None => {
                    Err(DataError::HeaderNotUtf8 { file: self.file.to_path_buf(), line: self.line(), position: at + 1 })
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        // A file without a header would lose its first row to the column names.
        if names.iter().all(|name| name.parse::<f64>().is_ok()) {
            return Err(DataError::NoHeader { file: self.file.to_path_buf() });
        }
        Header::new(self.file, Some(self.line()), names)
    }

    /// Moves to the next data row; false after the last.
    fn advance(&mut self) -> Result<bool, DataError> {
        self.row += 1;
        self.next_record()
    }

    fn next_record(&mut self) -> Result<bool, DataError> {
        loop {
            self.reader.get_mut().start_row();
            match self.reader.read_byte_record(&mut self.record) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) => return Err(self.failed(error)),
            }
            if self.has_unclosed_quote() {
                return Err(DataError::UnclosedQuote {
                    file: self.file.to_path_buf(),
                    line: self.reader.position().line() - self.line_ends_inside(),
                });
            }
            // The reader skips empty lines; this skips those of spaces or a carriage return.
            let is_blank = self.record.len() == 1 && self.record[0].trim_ascii().is_empty();
            if !is_blank {
                return Ok(true);
            }
        }
    }

    fn check_width(&self, header: &Header) -> Result<(), DataError> {
        if self.record.len() == header.names().len() {
            return Ok(());
        }
        Err(DataError::Ragged {
            file: self.file.to_path_buf(),
            line: self.line(),
            row: self.row,
            expected: header.names().len(),
            found: self.record.len(),
        })
    }

    /// The line on which the current record starts. (The crate's own position of a record is that of the blank lines
    /// before it.)
    fn line(&self) -> u64 {
        self.reader.position().line() - 1 - self.line_ends_inside()
    }

    fn line_ends_inside(&self) -> u64 {
        self.record.as_slice().iter().map(|&byte| u64::from(byte == b'\n')).sum()
    }

    /// Only a quoted value swallows the last of the line ends that [`Guarded`] adds.
    fn has_unclosed_quote(&self) -> bool {
        let input = self.reader.get_ref();
        input.ends_added == Guarded::<R>::ENDS && self.reader.position().byte() == input.bytes
    }

    /// Gives the value of a column, chosen as the `place`th, to `intake`.
    fn give(&self, place: usize, column: usize, header: &Header, intake: &mut impl Intake) -> Result<(), DataError> {
        let value = text(&self.record[column]).map(Value::Text).ok_or(Wrong::NotUtf8);
        let taken = value.and_then(|value| intake.take(place, 0, value));
        taken.map_err(|wrong| {
            let here = Place { file: self.file, line: Some(self.line()), row: self.row };
            here.error(wrong, &header.names()[column], value.unwrap_or(Value::Missing))
        })
    }

    fn failed(&self, error: ::csv::Error) -> DataError {
        let line = self.reader.position().line();
        if self.reader.get_ref().row_is_too_long() {
            return DataError::RowTooLong {
                file: self.file.to_path_buf(),
                line: self.record.position().map_or(line, ::csv::Position::line),
                limit: ROW_BYTES_MAX,
            };
        }
        let source = match error.into_kind() {
            ::csv::ErrorKind::Io(source) => source,
            other => io::Error::other(format!("{other:?}")),
        };
        failed(self.file, self.packing, line, source)
    }
}

fn failed(file: &Path, packing: Packing, line: u64, source: io::Error) -> DataError {
    let file = file.to_path_buf();
    // What flate2 reports for a stream that is not gzip, does not match its checksum, or ends early.
    let is_damage =
        matches!(source.kind(), ErrorKind::InvalidInput | ErrorKind::InvalidData | ErrorKind::UnexpectedEof);
    match packing {
        Packing::Gzip if is_damage => DataError::DamagedGzip { file, line, source },
        Packing::Gzip | Packing::Plain => DataError::Read { file, line, source },
    }
}

fn text(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field).ok().map(str::trim)
}

fn without_byte_order_mark<R: Read>(mut input: R) -> io::Result<io::Chain<Cursor<Vec<u8>>, R>> {
    let mut start = Vec::new();
    input.by_ref().take(3).read_to_end(&mut start)?;
    if start == b"\xef\xbb\xbf" {
        start.clear();
    }
    Ok(Cursor::new(start).chain(input))
}

/// Input that ends in line ends, and that refuses to go on inside an endless row.
struct Guarded<R> {
    input: R,
    /// Handed out so far.
    bytes: u64,
    /// Handed out since the row began.
    row_bytes: usize,
    ends_added: usize,
}

impl<R: Read> Guarded<R> {
    /// One ends the last line, if nothing else does; the other stays unread, unless a quote is open.
    const ENDS: usize = 2;

    fn new(input: R) -> Self {
        Self { input, bytes: 0, row_bytes: 0, ends_added: 0 }
    }

    fn start_row(&mut self) {
        self.row_bytes = 0;
    }

    fn row_is_too_long(&self) -> bool {
        self.row_bytes > ROW_BYTES_MAX
    }
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.row_is_too_long() {
            return Err(ErrorKind::FileTooLarge.into());
        }
        let mut count = loop {
            match self.input.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        if count == 0 && self.ends_added < Self::ENDS {
            buffer[0] = b'\n';
            self.ends_added += 1;
            count = 1;
        }
        self.bytes += count as u64;
        self.row_bytes += count;
        Ok(count)
    }
}
