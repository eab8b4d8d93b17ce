#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

//! One table in several formats, in several files, in memory and on disk: the same bits.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::basic::Compression;
use ::parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DoubleType, FixedLenByteArray, FixedLenByteArrayType, FloatType, Int32Type,
    Int64Type, Int96, Int96Type,
};
use ::parquet::file::properties::{EnabledStatistics, WriterProperties};
use ::parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use ::parquet::schema::parser::parse_message_type;
use ndarray::Array2;
use proptest::prelude::*;
use spnn_protocol::PreparationSpec;
use tempfile::TempDir;

use super::value::Value;
use super::*;
use crate::Prepared;

/// A column in a Parquet file: its line in the schema, and its values.
enum Written {
    Booleans(Vec<Option<bool>>),
    Ints(Vec<Option<i32>>),
    Longs(Vec<Option<i64>>),
    Floats(Vec<Option<f32>>),
    Doubles(Vec<Option<f64>>),
    Texts(Vec<Option<String>>),
    Fixed(Vec<Option<Vec<u8>>>),
    Int96(Vec<Option<[u32; 3]>>),
}

/// The values that are there, and the level of each row.
fn split<T, U>(values: &[Option<T>], convert: impl Fn(&T) -> U) -> (Vec<U>, Vec<i16>) {
    let levels = values.iter().map(|value| i16::from(value.is_some())).collect();
    (values.iter().flatten().map(convert).collect(), levels)
}

impl Written {
    fn rows(&self) -> usize {
        match self {
            Self::Booleans(values) => values.len(),
            Self::Ints(values) => values.len(),
            Self::Longs(values) => values.len(),
            Self::Floats(values) => values.len(),
            Self::Doubles(values) => values.len(),
            Self::Texts(values) => values.len(),
            Self::Fixed(values) => values.len(),
            Self::Int96(values) => values.len(),
        }
    }

    fn write(&self, writer: &mut SerializedColumnWriter<'_>, rows: std::ops::Range<usize>) {
        macro_rules! write {
            ($kind:ty, $values:expr, $convert:expr) => {{
                let (values, levels) = split(&$values[rows], $convert);
                writer.typed::<$kind>().write_batch(&values, Some(&levels), None).unwrap();
            }};
        }
        match self {
            Self::Booleans(values) => write!(BoolType, values, |x| *x),
            Self::Ints(values) => write!(Int32Type, values, |x| *x),
            Self::Longs(values) => write!(Int64Type, values, |x| *x),
            Self::Floats(values) => write!(FloatType, values, |x| *x),
            Self::Doubles(values) => write!(DoubleType, values, |x| *x),
            Self::Texts(values) => write!(ByteArrayType, values, |x| ByteArray::from(x.as_bytes().to_vec())),
            Self::Fixed(values) => {
                write!(FixedLenByteArrayType, values, |x| FixedLenByteArray::from(x.clone()))
            }
            Self::Int96(values) => write!(Int96Type, values, |[a, b, c]| {
                let mut value = Int96::new();
                value.set_data(*a, *b, *c);
                value
            }),
        }
    }
}

/// Writes columns, each with its line of the schema, in row groups of so many rows.
fn write_parquet(file: &Path, columns: &[(&str, Written)], group: usize, compression: Compression) {
    let lines: Vec<_> = columns.iter().map(|(line, _)| format!("{line};")).collect();
    let schema = Arc::new(parse_message_type(&format!("message table {{ {} }}", lines.join(" "))).unwrap());
    // Pages of few values, so that a block of rows has several.
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_data_page_row_count_limit(7)
        .set_write_batch_size(5)
        .build();
    let mut writer = SerializedFileWriter::new(File::create(file).unwrap(), schema, Arc::new(properties)).unwrap();
    let rows = columns[0].1.rows();
    for start in (0..rows).step_by(group.max(1)) {
        let mut row_group = writer.next_row_group().unwrap();
        for (_, column) in columns {
            let mut open = row_group.next_column().unwrap().unwrap();
            column.write(&mut open, start..(start + group.max(1)).min(rows));
            open.close().unwrap();
        }
        row_group.close().unwrap();
    }
    writer.close().unwrap();
}

pub(crate) struct Folder(pub(crate) TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }
}

pub(crate) const SPEC: PreparationSpec = PreparationSpec { test_fraction: 0.0, standardize: true, clip: Some(5.0) };

/// Features, ids and labels.
pub(crate) type Bits = (Vec<u32>, Vec<String>, Vec<u32>);

/// The bits of all features once encoded, fitted to every second row, with ids and labels.
pub(crate) fn bits(source: &DataSource, holder: bool) -> Result<Bits, crate::PartyError> {
    let scratch = tempfile::tempdir().unwrap();
    let mut data = Prepared::read_as(source, holder, holder, scratch.path())?;
    let rows: Vec<u32> = (0..data.rows()?).collect();
    data.fit(&SPEC, &rows.iter().copied().step_by(2).collect::<Vec<_>>())?;
    let mut x = Array2::zeros((rows.len(), data.features()));
    data.gather(&rows, x.view_mut())?;
    Ok((
        x.iter().map(|x: &f32| x.to_bits()).collect(),
        data.ids_of(&rows).map(|id| id.into_owned()).collect(),
        data.labels().unwrap_or_default().iter().map(|x| x.to_bits()).collect(),
    ))
}

pub(crate) fn types(types: &[(&str, ColumnType)]) -> BTreeMap<String, ColumnType> {
    types.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect()
}

const KINDS: [(&str, ColumnType); 6] = [
    ("flag", ColumnType::Boolean),
    ("colour", ColumnType::Categorical),
    ("code", ColumnType::Categorical),
    ("shop", ColumnType::Hashed(5)),
    ("day", ColumnType::Date),
    ("moment", ColumnType::Date),
];

/// A row of a table with a column of every type; what it lacks is missing.
#[derive(Clone, Debug)]
struct Row {
    amount: Option<f64>,
    single: Option<f32>,
    count: Option<i64>,
    price: Option<i32>,
    flag: Option<bool>,
    colour: Option<String>,
    code: Option<i32>,
    shop: Option<String>,
    day: Option<i32>,
    moment: Option<i64>,
    label: bool,
}

fn row() -> impl Strategy<Value = Row> {
    // Decimals as people write them, and any that are finite as `f32`.
    let amount = prop_oneof![
        (-1_000_000_i64..1_000_000, 0_u32..7).prop_map(|(n, scale)| n as f64 / 10_f64.powi(scale as i32)),
        any::<f64>().prop_filter("finite", |x| (*x as f32).is_finite()),
    ];
    let single = (-1e6_f32..1e6).prop_map(|x| (x * 64.0).round() / 64.0);
    let word = || {
        prop_oneof![Just("red".to_owned()), Just("green".to_owned()), "[a-z]{1,2}".prop_map(|s| s)]
            .prop_filter("a word for nothing", |word| !value::is_missing(word))
    };
    (
        (
            proptest::option::weighted(0.9, amount),
            proptest::option::weighted(0.9, single),
            proptest::option::weighted(0.9, any::<i64>()),
            proptest::option::weighted(0.9, any::<i32>()),
            proptest::option::weighted(0.9, any::<bool>()),
        ),
        (
            proptest::option::weighted(0.9, word()),
            proptest::option::weighted(0.9, -3_i32..10),
            proptest::option::weighted(0.9, word()),
            proptest::option::weighted(0.9, -40_000_i32..40_000),
            proptest::option::weighted(0.9, -4_000_000_000_000_000_i64..4_000_000_000_000_000),
        ),
        any::<bool>(),
    )
        .prop_map(|((amount, single, count, price, flag), (colour, code, shop, day, moment), label)| Row {
            amount,
            single,
            count,
            price,
            flag,
            colour,
            code,
            shop,
            day,
            moment,
            label,
        })
}

fn write_csv(file: &Path, rows: &[Row], first: usize) {
    fn text<T: ToString>(value: &Option<T>) -> String {
        value.as_ref().map_or_else(String::new, T::to_string)
    }
    let mut all = String::from("id,amount,single,count,price,flag,colour,code,shop,day,moment,y\n");
    for (at, row) in rows.iter().enumerate() {
        let price =
            row.price.map(|unscaled| Value::Decimal { unscaled: unscaled.into(), scale: 2 }.text().into_owned());
        let day = row.day.map(|day| Value::Day(day).text().into_owned());
        let moment = row.moment.map(|us| Value::Moment(i128::from(us) * 1000).text().into_owned());
        let values = [
            (first + at).to_string(),
            text(&row.amount),
            text(&row.single),
            text(&row.count),
            text(&price),
            text(&row.flag),
            text(&row.colour),
            text(&row.code),
            text(&row.shop),
            text(&day),
            text(&moment),
            u8::from(row.label).to_string(),
        ];
        all += &(values.join(",") + "\n");
    }
    fs::write(file, all).unwrap();
}

fn write_rows(file: &Path, rows: &[Row], first: usize, group: usize, compression: Compression) {
    let ids = (first..).take(rows.len()).map(|id| Some(id as i64)).collect();
    macro_rules! column {
        ($kind:ident, $field:ident) => {
            Written::$kind(rows.iter().map(|row| row.$field.clone()).collect())
        };
    }
    let columns = [
        ("optional int64 id", Written::Longs(ids)),
        ("optional double amount", column!(Doubles, amount)),
        ("optional float single", column!(Floats, single)),
        ("optional int64 count", column!(Longs, count)),
        ("optional int32 price (DECIMAL(9,2))", column!(Ints, price)),
        ("optional boolean flag", column!(Booleans, flag)),
        ("optional binary colour (UTF8)", column!(Texts, colour)),
        ("optional int32 code", column!(Ints, code)),
        ("optional binary shop (UTF8)", column!(Texts, shop)),
        ("optional int32 day (DATE)", column!(Ints, day)),
        ("optional int64 moment (TIMESTAMP(MICROS,true))", column!(Longs, moment)),
        ("optional boolean y", Written::Booleans(rows.iter().map(|row| Some(row.label)).collect())),
    ];
    write_parquet(file, &columns, group, compression);
}

fn source_of(file: impl Into<Files>, label: ColumnType) -> DataSource {
    let mut kinds = types(&KINDS);
    kinds.insert("y".into(), label);
    DataSource {
        id: Some(Columns::One("id".into())),
        label: Some("y".into()),
        types: kinds,
        missing: Missing::Mean,
        ..DataSource::new(file)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn csv_and_parquet_one_file_and_several_memory_and_disk(
        rows in proptest::collection::vec(row(), 1..40), group in 1_usize..40, cut in any::<proptest::sample::Index>(),
        codec in 0_usize..5,
    ) {
        // A column without any value in the rows that are fitted to is refused, whatever the format.
        let mut rows = rows;
        let Row { amount, single, count, price, day, moment, .. } = &mut rows[0];
        (*amount, *single, *count, *price) = (Some(0.1), Some(0.5), Some(1), Some(7));
        (*day, *moment) = (Some(1), Some(1));

        let folder = Folder::new();
        let compression = [
            Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::GZIP(Default::default()),
            Compression::ZSTD(Default::default()), Compression::LZ4_RAW,
        ][codec];
        write_csv(&folder.path("all.csv"), &rows, 0);
        write_rows(&folder.path("all.parquet"), &rows, 0, group, compression);
        let expected = bits(&source_of(folder.path("all.csv"), ColumnType::Numeric), true).unwrap();
        let parquet = source_of(folder.path("all.parquet"), ColumnType::Boolean);
        prop_assert_eq!(&bits(&parquet, true).unwrap(), &expected);
        let on_disk = DataSource { memory_max_mib: 0, ..parquet };
        prop_assert_eq!(&bits(&on_disk, true).unwrap(), &expected);

        // Two files, the second in another format, and a directory of two.
        let cut = cut.index(rows.len());
        let parts = folder.path("parts");
        fs::create_dir(&parts).unwrap();
        if cut > 0 {
            write_csv(&parts.join("a.csv"), &rows[..cut], 0);
            write_rows(&folder.path("b.parquet"), &rows[cut..], cut, group, compression);
            let files = Files::Many(vec![parts.join("a.csv"), folder.path("b.parquet")]);
            let mut both = source_of(files, ColumnType::Boolean);
            both.categories_max = 100;
            prop_assert_eq!(&bits(&both, true).unwrap(), &expected);
        }
        write_csv(&parts.join("b.csv"), &rows[cut..], cut);
        fs::write(parts.join("_SUCCESS"), "").unwrap();
        prop_assert_eq!(&bits(&source_of(parts, ColumnType::Numeric), true).unwrap(), &expected);
    }

    #[test]
    fn no_bytes_make_the_parquet_reader_panic(
        rows in proptest::collection::vec(row(), 1..20), codec in 0_usize..3,
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        cut in proptest::option::weighted(0.3, any::<proptest::sample::Index>()),
    ) {
        let folder = Folder::new();
        let file = folder.path("any.parquet");
        let compression = [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(Default::default())][codec];
        write_rows(&file, &rows, 0, 7, compression);
        let mut bytes = fs::read(&file).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] ^= byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(&file, &bytes).unwrap();
        if let Err(error) = bits(&source_of(&file, ColumnType::Boolean), true) {
            let message = error.to_string();
            prop_assert!(message.contains("any.parquet") || message.contains("column `"), "{}", message);
        }
        let _ = inspect::inspect(&Files::from(&file));
    }

    #[test]
    fn no_garbage_is_parquet(bytes in proptest::collection::vec(any::<u8>(), 0..64), framed in any::<bool>()) {
        let folder = Folder::new();
        let mut content = bytes.clone();
        if framed {
            let length = (bytes.len() as u32).to_le_bytes();
            content = [&b"PAR1"[..], &bytes, &length, b"PAR1"].concat();
        }
        let file = folder.write("any.parquet", content);
        let error = bits(&source_of(&file, ColumnType::Boolean), true).unwrap_err().to_string();
        prop_assert!(error.contains("any.parquet"), "{}", error);
    }
}

fn read_error(source: &DataSource) -> String {
    super::read(source, &std::env::temp_dir()).map(drop).unwrap_err().to_string()
}

#[test]
fn parquet_errors_name_the_row_and_the_column() {
    let folder = Folder::new();
    let file = folder.path("t.parquet");
    let text = |values: &[&str]| Written::Texts(values.iter().map(|v| Some((*v).to_owned())).collect());
    write_parquet(
        &file,
        &[
            ("optional int64 id", Written::Longs(vec![Some(1), Some(2), None])),
            ("optional double x", Written::Doubles(vec![Some(1.0), None, Some(f64::INFINITY)])),
            ("optional binary t (UTF8)", text(&["1.5", "abc", "2"])),
            ("optional binary raw", text(&["1", "2", "3"])),
            ("optional int64 same", Written::Longs(vec![Some(7), Some(8), Some(7)])),
            (
                "optional group list (LIST) { repeated group list { optional int32 element } }",
                Written::Ints(Vec::new()),
            ),
        ][..5],
        2,
        Compression::UNCOMPRESSED,
    );
    let by = |id: &str, column: &str| DataSource {
        id: Some(Columns::One(id.into())),
        columns: Some(vec![column.into()]),
        ..DataSource::new(&file)
    };
    let rows = |column: &str| DataSource { id: None, row_numbers_as_ids: true, ..by("", column) };
    for (source, parts) in [
        (rows("x"), ["t.parquet: row 2, column `x`", "no value"]),
        (DataSource { missing: Missing::Mean, ..rows("x") }, ["t.parquet: row 3, column `x`", "finite"]),
        (rows("t"), ["t.parquet: row 2, column `t`: `abc`", "not a number"]),
        (by("id", "raw"), ["t.parquet: row 3, column `id`", "empty"]),
        (by("x", "raw"), ["t.parquet: row 1, column `x`", "floating-point"]),
        (by("same", "raw"), ["t.parquet: row 3, column `same`: the id `7`", "already in row 1"]),
        (rows("absent"), ["t.parquet: no column `absent`", "`id`, `x`, `t`"]),
    ] {
        let message = read_error(&source);
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    assert_eq!(super::read(&rows("raw"), folder.0.path()).unwrap().rows(), 3);
}

#[test]
fn other_kinds_of_parquet_columns() {
    let folder = Folder::new();
    let file = folder.path("t.parquet");
    // 2005-10-01 18:00 as Impala writes it: nanoseconds of the day, and the Julian day.
    let nanoseconds: u64 = 64_800_000_000_000;
    let impala = [nanoseconds as u32, (nanoseconds >> 32) as u32, 2_440_588 + 13_057];
    write_parquet(
        &file,
        &[
            ("optional int96 old", Written::Int96(vec![Some(impala), None])),
            (
                "optional fixed_len_byte_array(3) money (DECIMAL(6,2))",
                Written::Fixed(vec![Some(vec![0xff, 0xff, 0x38]), None]),
            ),
            ("optional int32 small (INTEGER(8,false))", Written::Ints(vec![Some(200), None])),
            ("optional int64 unsigned (INTEGER(64,false))", Written::Longs(vec![Some(-1), None])),
            ("optional int64 ms (TIMESTAMP(MILLIS,false))", Written::Longs(vec![Some(86_400_000), None])),
            ("optional fixed_len_byte_array(2) opaque", Written::Fixed(vec![Some(vec![1, 2]), None])),
        ],
        10,
        Compression::SNAPPY,
    );
    let source = DataSource {
        row_numbers_as_ids: true,
        ignore: vec!["opaque".into()],
        missing: Missing::Mean,
        types: types(&[("old", ColumnType::Date), ("ms", ColumnType::Date)]),
        ..DataSource::new(&file)
    };
    let table = super::read(&source, folder.0.path()).unwrap();
    let mut cells = Vec::new();
    table.visit([0], |row| cells.extend(row.iter().map(|&cell| f32::from_bits(cell)))).unwrap();
    assert_eq!(cells, [13_057.75, -2.0, 200.0, 18_446_744_073_709_551_615.0, 1.0]);

    let message = read_error(&DataSource { ignore: Vec::new(), ..source });
    assert!(message.contains("t.parquet: column `opaque` holds"), "{message}");
}

#[test]
fn a_list_is_named_and_can_be_ignored() {
    let folder = Folder::new();
    let file = folder.path("t.parquet");
    let schema = "message t { required double x; optional group l (LIST) { repeated group list { optional int32 element; } } \
                  repeated int32 many; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(File::create(&file).unwrap(), schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<DoubleType>().write_batch(&[0.5, 0.25], None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int32Type>().write_batch(&[1, 2], Some(&[3, 3, 0]), Some(&[0, 1, 0])).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int32Type>().write_batch(&[1], Some(&[1, 0]), Some(&[0, 0])).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();

    let source = DataSource { row_numbers_as_ids: true, ..DataSource::new(&file) };
    assert!(read_error(&source).contains("column `l` holds lists or structures"));
    let ignoring = DataSource { ignore: vec!["l".into(), "many".into()], ..source };
    assert_eq!(super::read(&ignoring, folder.0.path()).unwrap().rows(), 2);
    let inspection = inspect::inspect(&Files::from(&file)).unwrap();
    assert_eq!(
        inspection.columns.iter().map(|c| c.content).collect::<Vec<_>>(),
        [inspect::Content::Numbers, inspect::Content::Unreadable, inspect::Content::Unreadable]
    );
}

#[test]
fn files_of_one_table_need_the_same_columns() {
    let folder = Folder::new();
    let first = folder.write("a.csv", "id,x,y\n1,2,3\n");
    let other_order = folder.write("b.csv", "y,id,x\n30,10,20\n");
    let of = |files: &[&PathBuf]| DataSource {
        id: Some(Columns::One("id".into())),
        ..DataSource::new(Files::Many(files.iter().map(|file| (*file).clone()).collect()))
    };
    let table = super::read(&of(&[&first, &other_order]), folder.0.path()).unwrap();
    let mut cells = Vec::new();
    table.visit(0..2, |row| cells.push(row.iter().map(|&cell| f32::from_bits(cell)).collect::<Vec<_>>())).unwrap();
    assert_eq!(cells, [[2.0, 3.0], [20.0, 30.0]]);

    let lacking = folder.write("c.csv", "id,x\n5,6\n");
    let message = read_error(&of(&[&first, &lacking]));
    assert!(message.contains("c.csv: column `y` is missing, which") && message.contains("a.csv has"), "{message}");
    let surplus = folder.write("d.csv", "id,x,y,z\n5,6,7,8\n");
    let message = read_error(&of(&[&first, &surplus]));
    assert!(message.contains("d.csv: column `z` is not in"), "{message}");
    let again = folder.write("e.csv", "id,x,y\n4,5,6\n\n1,2,3\n");
    let message = read_error(&of(&[&first, &again]));
    assert!(message.contains("e.csv: line 4 (row 2), column `id`: the id `1` was already on line 2 of"), "{message}");
    let bad = folder.write("f.csv", "id,x,y\n4,5,6\n7,8,x\n");
    let message = read_error(&of(&[&first, &bad]));
    assert!(message.contains("f.csv: line 3 (row 2), column `y`"), "{message}");
}

#[test]
fn directories() {
    let folder = Folder::new();
    let table = folder.path("table");
    fs::create_dir(&table).unwrap();
    let source = DataSource { row_numbers_as_ids: true, ..DataSource::new(&table) };
    assert!(read_error(&source).contains("no file to read"));
    for (name, content) in [("b.csv", "x\n2\n"), ("a.csv", "x\n1\n"), (".hidden", "?"), ("_SUCCESS", "")] {
        fs::write(table.join(name), content).unwrap();
    }
    let read = super::read(&source, folder.0.path()).unwrap();
    let mut cells = Vec::new();
    read.visit(0..2, |row| cells.push(f32::from_bits(row[0]))).unwrap();
    assert_eq!(cells, [1.0, 2.0]);
    fs::write(table.join("c.csv"), "x\n").unwrap();
    assert_eq!(super::read(&source, folder.0.path()).unwrap().rows(), 2, "a part without rows");
    fs::write(table.join("d.csv.gz"), "").unwrap();
    assert!(read_error(&source).contains("d.csv.gz: not of the same format as"));
    fs::remove_file(table.join("d.csv.gz")).unwrap();
    fs::write(table.join("notes.txt"), "").unwrap();
    assert!(read_error(&source).contains("notes.txt: no reader"));
    let empty = DataSource::new(Files::Many(Vec::new()));
    assert!(read_error(&DataSource { row_numbers_as_ids: true, ..empty }).contains("no file to read"));
}

#[test]
fn types_that_do_not_fit() {
    let folder = Folder::new();
    let file = folder
        .write("t.csv", "id,sex,day,ok,y\n1,m,2020-01-01,yes,no\n2,f,01.02.2020,maybe,yes\n3,d,2020-01-03,no,yes\n");
    let of = |kinds: &[(&str, ColumnType)]| DataSource {
        id: Some(Columns::One("id".into())),
        label: Some("y".into()),
        types: types(kinds),
        ..DataSource::new(&file)
    };
    use ColumnType::{Boolean, Categorical, Date, Hashed};
    let sex = ("sex", Categorical);
    for (source, part) in [
        (of(&[]), "line 2 (row 1), column `sex`: `m` is not a number"),
        (
            of(&[sex, ("day", Date), ("ok", Boolean), ("y", Boolean)]),
            "line 3 (row 2), column `day`: `01.02.2020` is not a date",
        ),
        (
            of(&[sex, ("day", Hashed(2)), ("ok", Boolean), ("y", Boolean)]),
            "line 3 (row 2), column `ok`: `maybe` is neither",
        ),
        (of(&[("sx", Categorical)]), "`types` names a column `sx`; the file has `id`, `sex`"),
        (of(&[("sex", Hashed(1))]), "column `sex` has the type { hashed = 1 }: give 2 to 1048576"),
        (of(&[("y", Categorical)]), "the label column `y` has the type categorical"),
        (
            DataSource { categories_max: 2, ..of(&[sex, ("day", Hashed(2)), ("ok", Hashed(2)), ("y", Boolean)]) },
            "line 4 (row 3), column `sex`: more than 2 different values: give it the type `{ hashed = 256 }`",
        ),
    ] {
        let message = read_error(&source);
        assert!(message.contains(part), "{message}");
    }
    let source = of(&[sex, ("day", Categorical), ("ok", Categorical), ("y", Boolean)]);
    assert_eq!(super::read(&source, folder.0.path()).unwrap().labels(), Some(&[0.0, 1.0, 1.0][..]));
    // A type of a column that is not read does no harm: one list serves several selections.
    let less = DataSource { columns: Some(vec!["sex".into()]), ..source };
    assert_eq!(super::read(&less, folder.0.path()).unwrap().columns().len(), 1);
}
