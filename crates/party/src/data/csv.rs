//! Comma-separated text, plain or under gzip.
//!
//! The `csv` crate splits the records. What it leaves open is settled here: line numbers that are right under CRLF and
//! after blank lines, a limit on the length of a row, and quotes that are never closed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Cursor, ErrorKind, Read};
use std::path::Path;

use ::csv::{ByteRecord, Reader, ReaderBuilder, Terminator};
use flate2::read::MultiGzDecoder;
use ndarray::Array2;

use super::columns::{Header, Selection};
use super::{DataError, DataSource, Excerpt, ID_SEPARATOR, ID_SEPARATOR_TEXT, Ids, Packing, Table};

/// No real row comes near it (a million columns of 16 characters do); a file without line ends, or with a quote that is
/// never closed, would otherwise be read into memory whole.
const ROW_BYTES_MAX: usize = 16 << 20;

/// After so many rows, the file's length says about how many there are.
const ROWS_OF_ESTIMATE: usize = 10_000;

/// Large enough that system calls do not show in the time, small enough for the processor's cache.
const BUFFER_BYTES: usize = 64 << 10;

pub(super) fn read(source: &DataSource, packing: Packing) -> Result<Table, DataError> {
    let input = open(&source.file, packing)?;
    // How long a packed file is says nothing; nor does a pipe's length.
    let length = match packing {
        Packing::Plain => std::fs::metadata(&source.file).map(|m| m.len()).ok().filter(|length| *length > 0),
        Packing::Gzip => None,
    };
    read_from(source, packing, input, length)
}

pub(super) fn read_columns(file: &Path, packing: Packing) -> Result<Vec<String>, DataError> {
    let input = open(file, packing)?;
    Ok(Records::new(file, packing, input)?.header()?.into_names())
}

fn open(file: &Path, packing: Packing) -> Result<Box<dyn Read>, DataError> {
    let input = File::open(file).map_err(|source| DataError::Open { file: file.to_path_buf(), source })?;
    Ok(match packing {
        Packing::Plain => Box::new(input),
        Packing::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(BUFFER_BYTES, input))),
    })
}

/// [`read`] from any bytes, of which there are `length`, if that is known.
pub(super) fn read_from(
    source: &DataSource,
    packing: Packing,
    input: impl Read,
    length: Option<u64>,
) -> Result<Table, DataError> {
    let mut records = Records::new(&source.file, packing, input)?;
    let header = records.header()?;
    let selection = header.select(source)?;

    let ids = if selection.ids.is_empty() { Ids::row_numbers(0) } else { Ids::from_iter([""; 0]) };
    let mut rows = Rows { count: 0, ids, lines: Vec::new(), features: Growing::default(), labels: Growing::default() };
    while records.advance()? {
        records.check_width(&header)?;
        rows.push(&records, &header, &selection)?;
        if let (ROWS_OF_ESTIMATE, Some(length)) = (rows.count, length) {
            rows.reserve(length / records.reader.position().byte().max(1));
        }
    }
    if rows.count == 0 {
        return Err(DataError::NoRows { file: source.file.clone(), line: header.line() });
    }
    rows.check_ids(source)?;
    Ok(rows.into_table(&header, &selection))
}

/// The columns of a table, growing.
struct Rows {
    count: usize,
    ids: Ids,
    /// On which line each row begins, where ids are texts that may come twice.
    lines: Vec<u64>,
    features: Growing,
    labels: Growing,
}

/// Values of which nobody knows for certain how many will come. One growing list would be copied again and again, and for
/// a moment be there twice: where the number can be estimated there is one list with room for all of them and a few more,
/// which take no memory until they are there; where it cannot, there are segments.
#[derive(Default)]
struct Growing {
    full: Vec<Vec<f32>>,
    last: Vec<f32>,
    is_whole: bool,
}

impl Growing {
    /// Values of a segment: 16 MB; few in tests, where tables are small.
    const SEGMENT: usize = if cfg!(test) { 64 } else { 4 << 20 };

    /// Makes room for `times` as many values as there are now, unless there is no room.
    fn reserve(&mut self, times: usize) {
        let all = self.last.len().saturating_mul(times.saturating_add(1));
        self.is_whole = self.full.is_empty() && self.last.try_reserve_exact(all).is_ok();
    }

    fn push(&mut self, value: f32) {
        if self.last.len() == Self::SEGMENT && !self.is_whole {
            self.full.push(std::mem::take(&mut self.last));
            self.last.reserve_exact(Self::SEGMENT);
        }
        self.last.push(value);
    }

    /// All values; each segment is given back as soon as it is copied.
    fn into_vec(self) -> Vec<f32> {
        let Self { full, last, .. } = self;
        if full.is_empty() {
            return last;
        }
        let mut all = Vec::with_capacity(full.len() * Self::SEGMENT + last.len());
        full.into_iter().chain([last]).for_each(|segment| all.extend_from_slice(&segment));
        all
    }
}

impl Rows {
    fn push<R: Read>(
        &mut self,
        records: &Records<'_, R>,
        header: &Header<'_>,
        selection: &Selection,
    ) -> Result<(), DataError> {
        for &column in &selection.features {
            self.features.push(records.number(header, column)?);
        }
        if let Some(column) = selection.label {
            self.labels.push(records.number(header, column)?);
        }
        for (i, &column) in selection.ids.iter().enumerate() {
            self.ids.add(if i > 0 { ID_SEPARATOR_TEXT } else { "" });
            self.ids.add(records.id_part(header, column)?);
        }
        self.ids.end();
        if !selection.ids.is_empty() {
            self.lines.push(records.line());
        }
        self.count += 1;
        Ok(())
    }

    /// Makes room for `times` as many rows as there are now.
    fn reserve(&mut self, times: u64) {
        let times = usize::try_from(times).unwrap_or(usize::MAX);
        self.features.reserve(times);
        self.labels.reserve(times);
    }

    fn check_ids(&self, source: &DataSource) -> Result<(), DataError> {
        let Some(columns) = &source.id else {
            return Ok(());
        };
        let mut first_rows = HashMap::with_capacity(self.ids.len());
        for (row, id) in self.ids.iter().enumerate() {
            if let Some(first) = first_rows.insert(id.clone(), row) {
                return Err(DataError::DuplicateId {
                    file: source.file.clone(),
                    line: self.lines[row],
                    row: row as u64 + 1,
                    column: columns.names().join("+"),
                    first_line: self.lines[first],
                    id: Excerpt::new(&id.replace(ID_SEPARATOR, "+")),
                });
            }
        }
        Ok(())
    }

    fn into_table(self, header: &Header<'_>, selection: &Selection) -> Table {
        let shape = (self.count, selection.features.len());
        #[expect(clippy::expect_used, reason = "`push` adds one value per feature and row")]
        let features = Array2::from_shape_vec(shape, self.features.into_vec()).expect("n·d values");
        Table {
            ids: self.ids,
            feature_names: selection.features.iter().map(|&column| header.names()[column].clone()).collect(),
            features,
            labels: selection.label.map(|_| self.labels.into_vec()),
        }
    }
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

    fn header(&mut self) -> Result<Header<'a>, DataError> {
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
            .collect::<Result<_, _>>()?;
        Header::new(self.file, self.line(), names)
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

    fn check_width(&self, header: &Header<'_>) -> Result<(), DataError> {
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

    fn number(&self, header: &Header<'_>, column: usize) -> Result<f32, DataError> {
        let field = &self.record[column];
        number(field).map_err(|wrong| self.wrong_number(wrong, &header.names()[column], field))
    }

    fn id_part(&self, header: &Header<'_>, column: usize) -> Result<&str, DataError> {
        id_part(&self.record[column]).map_err(|wrong| self.wrong_id(wrong, &header.names()[column]))
    }

    fn wrong_number(&self, wrong: WrongNumber, column: &str, field: &[u8]) -> DataError {
        let (file, line, row) = (self.file.to_path_buf(), self.line(), self.row);
        let column = column.to_owned();
        let value = Excerpt::new(text(field).unwrap_or_default());
        match wrong {
            WrongNumber::NotUtf8 => DataError::NotUtf8 { file, line, row, column },
            WrongNumber::Missing => DataError::MissingValue { file, line, row, column },
            WrongNumber::NotANumber => DataError::NotANumber { file, line, row, column, value },
            WrongNumber::NotFinite => DataError::NotFinite { file, line, row, column, value },
        }
    }

    fn wrong_id(&self, wrong: WrongId, column: &str) -> DataError {
        let (file, line, row) = (self.file.to_path_buf(), self.line(), self.row);
        let column = column.to_owned();
        match wrong {
            WrongId::NotUtf8 => DataError::NotUtf8 { file, line, row, column },
            WrongId::Empty => DataError::EmptyId { file, line, row, column },
            WrongId::HoldsSeparator => DataError::SeparatorInId { file, line, row, column },
        }
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

/// Why a value is not a number to learn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WrongNumber {
    NotUtf8,
    Missing,
    NotANumber,
    NotFinite,
}

/// Parses straight to `f32`. Through `f64` it would round twice, and 7.038531e-26, the shortest form of one `f32`, would
/// come back as its neighbour.
fn number(field: &[u8]) -> Result<f32, WrongNumber> {
    let text = text(field).ok_or(WrongNumber::NotUtf8)?;
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(_) => Err(WrongNumber::NotFinite),
        Err(_) if is_missing(text) => Err(WrongNumber::Missing),
        Err(_) => Err(WrongNumber::NotANumber),
    }
}

fn is_missing(text: &str) -> bool {
    ["", "NA", "null", "?"].iter().any(|word| text.eq_ignore_ascii_case(word))
}

/// Why a text cannot be an id, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WrongId {
    NotUtf8,
    Empty,
    HoldsSeparator,
}

fn id_part(field: &[u8]) -> Result<&str, WrongId> {
    match text(field) {
        None => Err(WrongId::NotUtf8),
        Some("") => Err(WrongId::Empty),
        Some(part) if part.contains(ID_SEPARATOR) => Err(WrongId::HoldsSeparator),
        Some(part) => Ok(part),
    }
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
