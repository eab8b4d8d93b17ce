//! Parquet, by the columns of one row group at a time.
//!
//! The `parquet` crate finds, unpacks and decodes the pages. Here values get the meaning that the schema gives them, and
//! rows are put together again, a block at a time, so that a row group of any size needs no more memory than a page of
//! each column.

use std::collections::BTreeMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ::parquet::basic::{ConvertedType, IntType, LogicalType, Repetition, TimeUnit, Type};
use ::parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use ::parquet::data_type::{DataType, Int96};
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};
use ::parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};

use super::DataError;
use super::columns::Header;
use super::intake::Intake;
use super::value::{Place, Value, Wrong};

/// Rows put together at a time: their cells fit the processor's cache.
const BLOCK_ROWS: usize = 4096;

/// 1970-01-01 in the count of days that 96-bit timestamps use.
const EPOCH_IN_JULIAN_DAYS: i128 = 2_440_588;

const NANOSECONDS_PER_DAY: i128 = 86_400_000_000_000;

/// Reads the file into `intake`; `rows`, if it is known, is how many all files have together.
pub(super) fn read(file: &Path, rows: Option<u64>, intake: &mut impl Intake) -> Result<(), DataError> {
    let input = File::open(file).map_err(|source| DataError::Open { file: file.to_path_buf(), source })?;
    read_from(file, input, rows, intake)
}

/// [`read`] from any bytes.
pub(super) fn read_from<R: ChunkReader + 'static>(
    file: &Path,
    input: R,
    rows: Option<u64>,
    intake: &mut impl Intake,
) -> Result<(), DataError> {
    let reader = reader_of(file, input)?;
    let schema = Schema::of(file, &reader)?;
    let chosen = intake.begin(&schema.header)?;
    if let Some(rows) = rows {
        intake.expect(rows)?;
    }
    let damaged = |e| damaged(file, e);
    let mut before = 0;
    for group in 0..reader.num_row_groups() {
        let group = guarded(|| reader.get_row_group(group)).map_err(damaged)?;
        let mut left = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
        let mut columns = Vec::new();
        for &position in &chosen {
            let (leaf, meaning) = schema.leaf(file, position)?;
            columns.push(Column {
                name: &schema.header.names()[position],
                reader: guarded(|| group.get_column_reader(leaf)).map_err(damaged)?,
                level: group.metadata().column(leaf).column_descr().max_def_level(),
                levels: Vec::new(),
                meaning,
            });
        }
        while left > 0 {
            // Without a column that can be read there is nothing that ends if the number of rows is not true.
            let rows = if columns.is_empty() { left } else { left.min(BLOCK_ROWS) };
            for (place, column) in columns.iter_mut().enumerate() {
                let name = column.name;
                let taken = column.read(rows, |row, value| {
                    value.and_then(|value| intake.take(place, row, value)).map_err(|wrong| {
                        let here = Place { file, line: None, row: before + row as u64 + 1 };
                        here.error(wrong, name, value.unwrap_or(Value::Missing))
                    })
                });
                taken.map_err(damaged)??;
            }
            intake.end(rows, None)?;
            before += rows as u64;
            left -= rows;
        }
    }
    Ok(())
}

pub(super) fn read_columns(file: &Path) -> Result<Header, DataError> {
    Ok(Schema::of(file, &open(file)?)?.header)
}

/// How many rows the file says it has.
pub(super) fn count_rows(file: &Path) -> Result<u64, DataError> {
    Ok(u64::try_from(open(file)?.metadata().file_metadata().num_rows()).unwrap_or(0))
}

fn open(file: &Path) -> Result<SerializedFileReader<File>, DataError> {
    let input = File::open(file).map_err(|source| DataError::Open { file: file.to_path_buf(), source })?;
    reader_of(file, input)
}

fn reader_of<R: ChunkReader + 'static>(file: &Path, input: R) -> Result<SerializedFileReader<R>, DataError> {
    guarded(|| SerializedFileReader::new(input)).map_err(|e| damaged(file, e))
}

/// Calls into the crate: it asserts what a damaged file breaks, such as that nothing has a negative length. What panics
/// has come from outside, so it is an error here.
fn guarded<T>(call: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    let asserted = |_| Err(ParquetError::General("its parts do not fit together".to_owned()));
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(asserted)
}

fn damaged(file: &Path, error: ParquetError) -> DataError {
    DataError::DamagedParquet { file: file.to_path_buf(), problem: error.to_string() }
}

/// A file's columns. A list or a structure is one column here, which cannot be read.
struct Schema {
    header: Header,
    /// Of each column that can be read, which of the file's columns of values it is.
    leaves: BTreeMap<usize, (usize, Meaning)>,
}

impl Schema {
    fn of(file: &Path, reader: &impl FileReader) -> Result<Self, DataError> {
        let schema = reader.metadata().file_metadata().schema_descr();
        let fields = schema.root_schema().get_fields();
        let mut leaves: BTreeMap<usize, (usize, Meaning)> = BTreeMap::new();
        let mut unreadable = BTreeMap::new();
        for (leaf, column) in schema.columns().iter().enumerate() {
            let position = schema.get_column_root_idx(leaf);
            match meaning_in(schema, leaf, column) {
                Ok(meaning) => drop(leaves.insert(position, (leaf, meaning))),
                Err(kind) => drop(unreadable.insert(position, kind)),
            }
        }
        // A structure without anything in it has no values at all.
        for position in 0..fields.len() {
            if !leaves.contains_key(&position) {
                unreadable.entry(position).or_insert_with(|| "nothing".to_owned());
            }
        }
        let names = fields.iter().map(|field| field.name().trim().to_owned()).collect();
        let header = Header::new(file, None, names)?.with_unreadable(unreadable);
        Ok(Self { header, leaves })
    }

    fn leaf(&self, file: &Path, position: usize) -> Result<(usize, Meaning), DataError> {
        self.leaves.get(&position).copied().ok_or_else(|| DataError::UnsupportedColumn {
            file: file.to_path_buf(),
            column: self.header.names()[position].clone(),
            kind: "other than plain values".to_owned(),
        })
    }
}

/// What the values of a column mean beyond what they are.
#[derive(Clone, Copy)]
enum Meaning {
    Plain,
    Unsigned,
    /// Digits after the point.
    Decimal(u32),
    Day,
    /// Nanoseconds of a unit.
    Moment(i128),
}

/// Or what the column holds that cannot be read.
fn meaning_in(schema: &SchemaDescriptor, leaf: usize, column: &ColumnDescriptor) -> Result<Meaning, String> {
    let root = schema.get_column_root(leaf);
    if !root.is_primitive() || root.get_basic_info().repetition() == Repetition::REPEATED {
        return Err("lists or structures".to_owned());
    }
    meaning(column).ok_or_else(|| match column.logical_type_ref() {
        Some(logical) => format!("{logical:?} as {}", column.physical_type()),
        None => format!("{} as {}", column.converted_type(), column.physical_type()),
    })
}

fn meaning(column: &ColumnDescriptor) -> Option<Meaning> {
    // Precision 38 is what 128 bits hold.
    let decimal = || {
        let scale = u32::try_from(column.type_scale()).ok().filter(|_| column.type_precision() <= 38);
        scale.map(Meaning::Decimal)
    };
    let unit = |unit: &TimeUnit| {
        Meaning::Moment(match unit {
            TimeUnit::MILLIS => 1_000_000,
            TimeUnit::MICROS => 1000,
            TimeUnit::NANOS => 1,
        })
    };
    use ConvertedType as Old;
    match (column.physical_type(), column.logical_type_ref(), column.converted_type()) {
        (Type::BOOLEAN | Type::FLOAT | Type::DOUBLE, _, _) => Some(Meaning::Plain),
        (Type::INT96, _, _) => Some(Meaning::Moment(1)),
        (
            Type::INT32 | Type::INT64 | Type::BYTE_ARRAY | Type::FIXED_LEN_BYTE_ARRAY,
            Some(LogicalType::Decimal(_)),
            _,
        ) => decimal(),
        (Type::INT32 | Type::INT64 | Type::BYTE_ARRAY | Type::FIXED_LEN_BYTE_ARRAY, None, Old::DECIMAL) => decimal(),
        (Type::INT32, Some(LogicalType::Date), _) | (Type::INT32, None, Old::DATE) => Some(Meaning::Day),
        (Type::INT64, Some(LogicalType::Timestamp(of)), _) => Some(unit(&of.unit)),
        (Type::INT64, None, Old::TIMESTAMP_MILLIS) => Some(unit(&TimeUnit::MILLIS)),
        (Type::INT64, None, Old::TIMESTAMP_MICROS) => Some(unit(&TimeUnit::MICROS)),
        (Type::INT32 | Type::INT64, Some(LogicalType::Integer(IntType { is_signed: false, .. })), _)
        | (Type::INT32 | Type::INT64, None, Old::UINT_8 | Old::UINT_16 | Old::UINT_32 | Old::UINT_64) => {
            Some(Meaning::Unsigned)
        }
        (Type::INT32 | Type::INT64, Some(LogicalType::Integer(_) | LogicalType::Unknown), _)
        | (Type::INT32 | Type::INT64, None, Old::NONE | Old::INT_8 | Old::INT_16 | Old::INT_32 | Old::INT_64) => {
            Some(Meaning::Plain)
        }
        (Type::BYTE_ARRAY, Some(LogicalType::String | LogicalType::Enum | LogicalType::Json), _)
        | (Type::BYTE_ARRAY, None, Old::NONE | Old::UTF8 | Old::ENUM | Old::JSON) => Some(Meaning::Plain),
        _ => None,
    }
}

/// A column of a row group.
struct Column<'a> {
    name: &'a str,
    reader: ColumnReader,
    /// The definition level of a value; 0 where each row has one.
    level: i16,
    levels: Vec<i16>,
    meaning: Meaning,
}

impl Column<'_> {
    /// Reads the next `rows` values.
    fn read(
        &mut self,
        rows: usize,
        take: impl FnMut(usize, Result<Value<'_>, Wrong>) -> Result<(), DataError>,
    ) -> Result<Result<(), DataError>, ParquetError> {
        let Self { reader, level, levels, meaning, .. } = self;
        let (level, meaning) = (*level, *meaning);
        let mut pass = Pass { rows, level, levels, take };
        match reader {
            ColumnReader::BoolColumnReader(reader) => pass.read(reader, |value| Ok(Value::Boolean(*value))),
            ColumnReader::Int32ColumnReader(reader) => pass.read(reader, |&value| {
                Ok(match meaning {
                    Meaning::Day => Value::Day(value),
                    Meaning::Unsigned => Value::Unsigned(value.cast_unsigned().into()),
                    Meaning::Decimal(scale) => Value::Decimal { unscaled: value.into(), scale },
                    Meaning::Moment(_) | Meaning::Plain => Value::Integer(value.into()),
                })
            }),
            ColumnReader::Int64ColumnReader(reader) => pass.read(reader, |&value| {
                Ok(match meaning {
                    Meaning::Moment(unit) => Value::Moment(i128::from(value) * unit),
                    Meaning::Unsigned => Value::Unsigned(value.cast_unsigned()),
                    Meaning::Decimal(scale) => Value::Decimal { unscaled: value.into(), scale },
                    Meaning::Day | Meaning::Plain => Value::Integer(value),
                })
            }),
            ColumnReader::Int96ColumnReader(reader) => pass.read(reader, |value| Ok(Value::Moment(moment(value)))),
            ColumnReader::FloatColumnReader(reader) => pass.read(reader, |value| Ok(Value::Single(*value))),
            ColumnReader::DoubleColumnReader(reader) => pass.read(reader, |value| Ok(Value::Double(*value))),
            ColumnReader::ByteArrayColumnReader(reader) => pass.read(reader, |value| bytes(value.data(), meaning)),
            ColumnReader::FixedLenByteArrayColumnReader(reader) => {
                pass.read(reader, |value| bytes(value.data(), meaning))
            }
        }
    }
}

fn moment(value: &Int96) -> i128 {
    let [low, high, day] = *value.data() else { return 0 };
    let nanoseconds = u64::from(high) << 32 | u64::from(low);
    (i128::from(day) - EPOCH_IN_JULIAN_DAYS) * NANOSECONDS_PER_DAY + i128::from(nanoseconds)
}

fn bytes(bytes: &[u8], meaning: Meaning) -> Result<Value<'_>, Wrong> {
    let Meaning::Decimal(scale) = meaning else {
        return std::str::from_utf8(bytes).map(|text| Value::Text(text.trim())).map_err(|_| Wrong::NotUtf8);
    };
    // Big-endian, in two's complement.
    let sign: u8 = if bytes.first().is_some_and(|first| first >> 7 == 1) { 0xff } else { 0 };
    let mut number = [sign; 16];
    let start = number.len().checked_sub(bytes.len()).ok_or(Wrong::NotFinite)?;
    number[start..].copy_from_slice(bytes);
    Ok(Value::Decimal { unscaled: i128::from_be_bytes(number), scale })
}

/// One reading of some rows of a column.
struct Pass<'a, F> {
    rows: usize,
    level: i16,
    levels: &'a mut Vec<i16>,
    take: F,
}

impl<F: FnMut(usize, Result<Value<'_>, Wrong>) -> Result<(), DataError>> Pass<'_, F> {
    fn read<T: DataType>(
        &mut self,
        reader: &mut ColumnReaderImpl<T>,
        mean: impl for<'v> Fn(&'v T::T) -> Result<Value<'v>, Wrong>,
    ) -> Result<Result<(), DataError>, ParquetError> {
        let mut values = Vec::with_capacity(self.rows);
        self.levels.clear();
        let (rows, levels) = (self.rows, &mut *self.levels);
        let (records, _, _) = guarded(|| reader.read_records(rows, Some(levels), None, &mut values))?;
        let lacking = || ParquetError::EOF("a column has fewer values than the file has rows".to_owned());
        if records != self.rows {
            return Err(lacking());
        }
        let mut values = values.iter();
        for row in 0..self.rows {
            let is_there = self.level == 0 || self.levels.get(row) == Some(&self.level);
            let value = if is_there { mean(values.next().ok_or_else(lacking)?) } else { Ok(Value::Missing) };
            if let Err(wrong) = (self.take)(row, value) {
                return Ok(Err(wrong));
            }
        }
        Ok(Ok(()))
    }
}
