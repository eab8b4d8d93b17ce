#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use flate2::Compression;
use flate2::write::GzEncoder;
use ndarray::{Array2, array};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A folder with one file in it, gone when dropped.
struct Fixture {
    folder: TempDir,
    file: PathBuf,
}

impl Fixture {
    fn new(name: &str, content: impl AsRef<[u8]>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(name);
        std::fs::write(&file, content).unwrap();
        Self { folder, file }
    }

    fn csv(content: impl AsRef<[u8]>) -> Self {
        Self::new("table.csv", content)
    }

    fn source(&self) -> DataSource {
        source(&self.file)
    }

    fn read(&self) -> Result<Plain, DataError> {
        read(&self.source())
    }

    fn read_labelled(&self) -> Result<Plain, DataError> {
        read(&DataSource { label: Some("y".into()), ..self.source() })
    }
}

fn source(file: impl Into<PathBuf>) -> DataSource {
    DataSource { id: Some(Columns::One("id".into())), ..DataSource::new(file.into()) }
}

/// All that is in a table, in memory.
#[derive(Debug, PartialEq)]
struct Plain {
    ids: Vec<String>,
    feature_names: Vec<String>,
    features: Array2<f32>,
    labels: Option<Vec<f32>>,
}

impl From<Table> for Plain {
    fn from(table: Table) -> Self {
        let mut cells = Vec::new();
        table.visit(0..table.rows() as u32, |row| cells.extend(row.iter().map(|&cell| f32::from_bits(cell)))).unwrap();
        Self {
            ids: table.ids().iter().map(Into::into).collect(),
            feature_names: table.column_names().map(Into::into).collect(),
            features: Array2::from_shape_vec((table.rows(), table.columns().len()), cells).unwrap(),
            labels: table.labels().map(Into::into),
        }
    }
}

fn read(source: &DataSource) -> Result<Plain, DataError> {
    super::read(source, &std::env::temp_dir()).map(Into::into)
}

fn read_csv(
    source: &DataSource,
    packing: Packing,
    input: impl std::io::Read,
    length: Option<u64>,
) -> Result<Plain, DataError> {
    let directory = std::env::temp_dir();
    let mut table = TableReader::new(source, &directory);
    csv::read_from(&source.file.paths()[0], packing, input, length, &mut table)?;
    table.finish().map(Into::into)
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// The error that reading `content` gives, and its message, which must name the file.
fn error_in(content: impl AsRef<[u8]>) -> (DataError, String) {
    error_of(&Fixture::csv(content), |_| {})
}

fn error_of(fixture: &Fixture, change: impl FnOnce(&mut DataSource)) -> (DataError, String) {
    let mut source = fixture.source();
    change(&mut source);
    let error = read(&source).unwrap_err();
    let message = error.to_string();
    assert!(message.starts_with(&fixture.file.display().to_string()), "{message}");
    (error, message)
}

macro_rules! assert_error {
    ($error:expr, $pattern:pat $(if $guard:expr)?, $($part:literal),+) => {{
        let (error, message) = $error;
        assert!(matches!(&error, $pattern $(if $guard)?), "{error:?}");
        $(assert!(message.contains($part), "{message}");)+
    }};
}

const SMALL: &str = "id,y,age,income\na,1,30,1.5\nb,0,41,-2e3\n";

fn small() -> Plain {
    Plain {
        ids: vec!["a".into(), "b".into()],
        feature_names: vec!["age".into(), "income".into()],
        features: array![[30.0, 1.5], [41.0, -2000.0]],
        labels: Some(vec![1.0, 0.0]),
    }
}

// What is accepted.

#[test]
fn reads_ids_features_and_labels() {
    assert_eq!(Fixture::csv(SMALL).read_labelled().unwrap(), small());
}

#[test]
fn gzip_equals_plain() {
    for name in ["table.csv.gz", "TABLE.CSV.GZ"] {
        let table = Fixture::new(name, gzip(SMALL.as_bytes())).read_labelled().unwrap();
        assert_eq!(table, small());
    }
    // gzip files one after the other are one gzip file; the first here is too short to show a byte order mark whole.
    let bytes = format!("\u{feff}{SMALL}").into_bytes();
    let members = [gzip(&bytes[..1]), gzip(&bytes[1..])].concat();
    let table = Fixture::new("table.csv.gz", members).read_labelled().unwrap();
    assert_eq!(table, small());
}

#[test]
fn accepts_what_other_programs_write() {
    for content in [
        SMALL.replace('\n', "\r\n"),
        format!("\u{feff}{SMALL}"),
        format!("\u{feff}{}", SMALL.replace("id", "\"id\"")),
        SMALL.trim_end().to_owned(),
        SMALL.replace('\n', "\n\n"),
        SMALL.replace('\n', "\r\n  \r\n"),
        format!("\n\r\n{SMALL}\n\n"),
        SMALL.replace(',', " ,\t "),
        "\"id\",\"y\",\"age\",\"income\"\r\n\"a\",\"1\",\"30\",\"1.5\"\r\n\"b\",\"0\",\"41\",\"-2000\"\r\n".into(),
    ] {
        assert_eq!(Fixture::csv(&content).read_labelled().unwrap(), small(), "{content:?}");
    }
}

#[test]
fn an_id_stays_text() {
    let table = Fixture::csv("id,x\n 007 ,1\n7,2\n\"a,\"\"b\"\"\n c\",3\nNA,4\n").read().unwrap();
    assert_eq!(table.ids.iter().collect::<Vec<_>>(), ["007", "7", "a,\"b\"\n c", "NA"]);
}

#[test]
fn several_columns_make_an_id() {
    let fixture = Fixture::csv("Time,Company,x\n1,11,0.5\n11,1,0.25\n");
    let table =
        read(&DataSource { id: Some(Columns::Many(vec!["Company".into(), "Time".into()])), ..fixture.source() })
            .unwrap();
    assert_eq!(table.ids.iter().collect::<Vec<_>>(), ["11\u{1f}1", "1\u{1f}11"]);
    assert_eq!(table.feature_names, ["x"]);
}

#[test]
fn row_numbers_count_from_one() {
    let fixture = Fixture::csv("x\n0.5\n\n0.25\n");
    let table = read(&DataSource { id: None, row_numbers_as_ids: true, ..fixture.source() }).unwrap();
    assert_eq!(table.ids.iter().collect::<Vec<_>>(), ["1", "2"]);
}

#[test]
fn columns_are_chosen_by_name_range_and_absence() {
    let fixture = Fixture::csv("V1,id,V2,y,V3,note,V4\n1,a,2,0,3,hello,4\n");
    let names_of = |change: fn(&mut DataSource)| {
        let mut source = fixture.source();
        change(&mut source);
        read(&source).unwrap().feature_names
    };
    assert_eq!(names_of(|s| s.ignore = vec!["note".into(), "y".into()]), ["V1", "V2", "V3", "V4"]);
    assert_eq!(names_of(|s| s.columns = Some(vec!["V4".into(), "V1".into()])), ["V4", "V1"]);
    assert_eq!(
        names_of(|s| {
            s.label = Some("y".into());
            s.ignore = vec!["note".into()];
            s.columns = Some(vec!["V2..V4".into(), "V1".into()]);
        }),
        ["V2", "V3", "V4", "V1"]
    );
    assert_eq!(names_of(|s| s.columns = Some(vec!["V3..V3".into()])), ["V3"]);
    assert_eq!(names_of(|s| s.ignore = vec!["y..note".into()]), ["V1", "V2", "V4"]);

    let features =
        read(&DataSource { columns: Some(vec!["V4".into(), "V1..V2".into()]), ..fixture.source() }).unwrap().features;
    assert_eq!(features, array![[4.0, 1.0, 2.0]]);

    let dotted = Fixture::csv("id,a..b,a,b\n1,2,3,4\n");
    let table = read(&DataSource { columns: Some(vec!["a..b".into()]), ..dotted.source() }).unwrap();
    assert_eq!(table.feature_names, ["a..b"]);
}

#[test]
fn an_ignored_column_may_hold_anything() {
    let fixture = Fixture::csv(b"id,x,note\na,1,\xff\xfe\nb,2,\n");
    let source = DataSource { ignore: vec!["note".into()], ..fixture.source() };
    assert_eq!(read(&source).unwrap().features, array![[1.0], [2.0]]);
}

#[test]
fn the_header_alone() {
    let fixture = Fixture::csv("id,\" age \",y\nnot,a,number\n");
    assert_eq!(read_columns(&fixture.source()).unwrap(), ["id", "age", "y"]);
}

#[test]
fn numbers_round_through_f64_as_in_other_formats() {
    // Straight to f32 this one would become its neighbour, 0x15ae43fd.
    let text = "7.038531e-26";
    let table = Fixture::csv(format!("id,x,y\na,{text},+.5\nb,1e-60,5.\nc,-0,3.4028235e38\n")).read().unwrap();
    let expected: [f32; 6] = [f32::from_bits(0x15ae_43fe), 0.5, 0.0, 5.0, -0.0, f32::MAX];
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(table.features.as_slice().unwrap()), bits(&expected));
}

#[test]
fn a_source_is_written_as_in_the_manual() {
    let parse = |json| serde_json::from_str::<DataSource>(json);
    let one = parse(r#"{"file":"a.csv","id":"id"}"#).unwrap();
    assert_eq!(one, source("a.csv"));
    let many = parse(r#"{"file":"a.csv","id":["Company","Time"],"columns":["x1..x42"]}"#).unwrap();
    assert_eq!(many.id.unwrap().names(), ["Company", "Time"]);
    assert!(parse(r#"{"file":"a.csv","ids":"id"}"#).is_err());

    let json = serde_json::to_string(&one).unwrap();
    assert_eq!(parse(&json).unwrap(), one);
}

// What is refused, and how it is said.

#[test]
fn ids_must_be_chosen() {
    let fixture = Fixture::csv(SMALL);
    assert_error!(
        error_of(&fixture, |s| s.id = None),
        DataError::NoIds { .. },
        "set `id`",
        "row_numbers_as_ids = true"
    );
    assert_error!(error_of(&fixture, |s| s.id = Some(Columns::Many(Vec::new()))), DataError::NoIds { .. }, "set `id`");
    assert_error!(error_of(&fixture, |s| s.row_numbers_as_ids = true), DataError::TwoKindsOfIds { .. }, "remove one");
}

#[test]
fn files_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent.csv");
    let error = read(&source(&absent)).unwrap_err();
    assert!(matches!(&error, DataError::Open { file, .. } if *file == absent), "{error:?}");
    assert!(error.to_string().contains("absent.csv"));

    let folder_named_csv = folder.path().join("folder.csv");
    std::fs::create_dir(&folder_named_csv).unwrap();
    let error = read(&source(&folder_named_csv)).unwrap_err();
    assert!(matches!(&error, DataError::NoFiles { file } if *file == folder_named_csv), "{error:?}");

    for (name, expected) in [("table.tsv", "tsv"), ("table", ""), ("table.csv.bz2", "bz2")] {
        let fixture = Fixture::new(name, SMALL);
        assert_error!(
            error_of(&fixture, |_| {}),
            DataError::UnsupportedFormat { extension, .. } if extension == expected,
            ".csv.gz"
        );
    }
}

#[test]
fn damaged_gzip() {
    let rows: String = (0..50_000).map(|i| format!("{i},{}\n", i * 7)).collect();
    let whole = gzip(format!("id,x\n{rows}").as_bytes());

    let cut = Fixture::new("table.csv.gz", &whole[..whole.len() / 2]);
    assert_error!(
        error_of(&cut, |_| {}),
        DataError::DamagedGzip { line, .. } if *line > 1,
        "damaged",
        "gzip -t"
    );

    let mut altered = whole.clone();
    let middle = altered.len() / 2;
    altered[middle] ^= 0x10;
    let altered = Fixture::new("table.csv.gz", altered);
    // Where the damage shows depends on what it does to the numbers; that it shows does not.
    assert!(altered.read().is_err());

    let mut checksum = whole.clone();
    let at = checksum.len() - 8;
    checksum[at] ^= 1;
    assert_error!(error_of(&Fixture::new("table.csv.gz", checksum), |_| {}), DataError::DamagedGzip { .. }, "damaged");

    for content in [&b""[..], &SMALL.as_bytes()[..2], SMALL.as_bytes()] {
        let not_gzip = Fixture::new("table.csv.gz", content);
        assert_error!(error_of(&not_gzip, |_| {}), DataError::DamagedGzip { line: 1, .. }, "line 1");
    }
    assert_error!(
        error_of(&Fixture::csv(&whole), |_| {}),
        DataError::HeaderNotUtf8 { line: 1, position: 1, .. },
        ".csv.gz"
    );
}

#[test]
fn headers() {
    for content in ["", "\n\r\n", "\u{feff}", "1,2.5,-3e4\n4,5,6\n"] {
        assert_error!(error_in(content), DataError::NoHeader { .. }, "line 1", "name the columns");
    }
    assert_error!(
        error_in("id,x, x\na,1,2\n"),
        DataError::DuplicateColumn { line: Some(1), first: 2, second: 3, column, .. } if column.as_str() == "x",
        "line 1",
        "columns 2 and 3",
        "`x`"
    );
    assert_error!(
        error_in(b"id,\xff\na,1\n"),
        DataError::HeaderNotUtf8 { line: 1, position: 2, .. },
        "line 1",
        "column 2",
        "UTF-8"
    );
    assert_error!(
        error_in("id,x,\na,1,7\n"),
        DataError::UnnamedColumn { line: Some(1), position: 3, .. },
        "line 1",
        "column 3",
        "`ignore`"
    );
    assert_error!(error_in("\nid,x\n"), DataError::NoRows { line: Some(2), .. }, "line 2", "no rows");
}

#[test]
fn columns_that_do_not_fit_the_file() {
    let fixture = Fixture::csv("id,V1,V2,V3,V4,V5,V6,V7,V8,V9,y\na,1,2,3,4,5,6,7,8,9,0\n");
    assert_error!(
        error_of(&fixture, |s| s.label = Some("Class".into())),
        DataError::MissingColumn { line: Some(1), column, available, columns: 11, .. }
            if column == "Class" && available.len() == 8 && available[1].as_str() == "V1",
        "line 1",
        "`Class`",
        "`id`, `V1`, `V2`",
        "and 3 more"
    );
    for absent in [
        |s: &mut DataSource| s.id = Some(Columns::One("V0".into())),
        |s: &mut DataSource| s.ignore = vec!["V0".into()],
        |s: &mut DataSource| s.columns = Some(vec!["V1".into(), "V0".into()]),
        |s: &mut DataSource| s.columns = Some(vec!["V0..V3".into()]),
        |s: &mut DataSource| s.columns = Some(vec!["V3..V0".into()]),
    ] {
        assert_error!(
            error_of(&fixture, absent),
            DataError::MissingColumn { column, .. } if column == "V0",
            "`V0`"
        );
    }
    assert_error!(
        error_of(&fixture, |s| s.columns = Some(vec!["V3..V1".into()])),
        DataError::BackwardRange { line: Some(1), range, .. } if range == "V3..V1",
        "`V3..V1`",
        "swap"
    );
    assert_error!(
        error_of(&fixture, |s| {
            s.label = Some("y".into());
            s.columns = Some(vec!["V1".into(), "y".into()]);
        }),
        DataError::ColumnUsedTwice { column, first: "label", second: "columns", .. } if column == "y",
        "`y`",
        "`label`",
        "`columns`"
    );
    assert_error!(
        error_of(&fixture, |s| s.columns = Some(vec!["V1..V3".into(), "V2".into()])),
        DataError::ColumnUsedTwice { first: "columns", second: "columns", .. },
        "`V2`"
    );
    assert_error!(
        error_of(&fixture, |s| s.label = Some("id".into())),
        DataError::ColumnUsedTwice { first: "id", second: "label", .. },
        "`id`"
    );
    for none in
        [|s: &mut DataSource| s.columns = Some(Vec::new()), |s: &mut DataSource| s.ignore = vec!["V1..y".into()]]
    {
        assert_error!(error_of(&fixture, none), DataError::NoFeatures { line: Some(1), .. }, "no feature column");
    }
}

#[test]
fn rows_of_another_width() {
    assert_error!(
        error_in("id,x,y\na,1,2\nb,1\n"),
        DataError::Ragged { line: 3, row: 2, expected: 3, found: 2, .. },
        "line 3 (row 2)",
        "2 values",
        "3 columns"
    );
    assert_error!(
        error_in("id,x\na,1,2\n"),
        DataError::Ragged { line: 2, row: 1, expected: 2, found: 3, .. },
        "line 2 (row 1)"
    );
}

#[test]
fn missing_values() {
    for word in ["", "  ", "NA", "na", "null", "NULL", "?", "\"\"", "NaN", "nan"] {
        assert_error!(
            error_in(format!("id,x,z\na,1,2\nb,3,{word}\n")),
            DataError::MissingValue { line: Some(3), row: 2, column, .. } if column == "z",
            "line 3 (row 2), column `z`",
            "no value"
        );
    }
    let label = Fixture::csv("id,y,x\na,,1\n");
    assert_error!(
        error_of(&label, |s| s.label = Some("y".into())),
        DataError::MissingValue { line: Some(2), row: 1, column, .. } if column == "y",
        "column `y`"
    );
}

#[test]
fn values_that_are_not_numbers() {
    for word in ["abc", "1,5", "0x10", "1 2", "--1", "1e", "N/A"] {
        assert_error!(
            error_in(format!("id,x,z\na,\"{word}\",2\n")),
            DataError::NotANumber { line: Some(2), row: 1, column, value, .. }
                if column == "x" && value.as_str() == word,
            "line 2 (row 1), column `x`",
            "is not a number"
        );
    }
    let long = "z".repeat(1000);
    let shown = format!("`{}…`", &long[..32]);
    let (error, message) = error_in(format!("id,x\na,{long}\n"));
    assert!(message.contains(&shown), "{message}");
    assert!(!format!("{error:?}").contains("zz"));

    assert_error!(
        error_in(b"id,x\na,1\nb,\xe9\n"),
        DataError::NotUtf8 { line: Some(3), row: 2, column, .. } if column == "x",
        "line 3 (row 2), column `x`",
        "UTF-8"
    );
}

#[test]
fn values_that_are_not_finite() {
    for word in ["inf", "-Infinity", "1e999", "3.5e38", "-1e39"] {
        assert_error!(
            error_in(format!("id,x\na,{word}\n")),
            DataError::NotFinite { line: Some(2), row: 1, column, value, .. }
                if column == "x" && value.as_str() == word,
            "line 2 (row 1), column `x`",
            "finite"
        );
        let label = Fixture::csv(format!("id,y,x\na,{word},1\n"));
        assert_error!(
            error_of(&label, |s| s.label = Some("y".into())),
            DataError::NotFinite { line: Some(2), column, .. } if column == "y",
            "column `y`"
        );
    }
}

#[test]
fn ids_that_are_empty_doubled_or_joined() {
    assert_error!(
        error_in("id,x\na,1\n ,2\n"),
        DataError::EmptyId { line: Some(3), row: 2, column, .. } if column == "id",
        "line 3 (row 2), column `id`"
    );
    assert_error!(
        error_in("id,x\na,1\nb,2\n a,3\n"),
        DataError::DuplicateId { line: Some(4), row: 3, first, id, column, .. }
            if first.line == Some(2) && id.as_str() == "a" && column == "id",
        "line 4 (row 3), column `id`",
        "line 2",
        "`a`"
    );
    assert_error!(
        error_in("id,x\na\u{1f}b,1\n"),
        DataError::SeparatorInId { line: Some(2), row: 1, column, .. } if column == "id",
        "line 2 (row 1), column `id`",
        "U+001F"
    );
    assert_error!(
        error_in(b"id,x\n\xff,1\n"),
        DataError::NotUtf8 { line: Some(2), row: 1, column, .. } if column == "id",
        "column `id`"
    );
    let composite = Fixture::csv("c,t,x\na,1,0\na,1,0\nb,,0\n");
    let by_both = |s: &mut DataSource| s.id = Some(Columns::Many(vec!["c".into(), "t".into()]));
    assert_error!(
        error_of(&composite, by_both),
        DataError::EmptyId { line: Some(4), row: 3, column, .. } if column == "t",
        "column `t`"
    );
    let composite = Fixture::csv("c,t,x\na,1,0\na,1,0\n");
    assert_error!(
        error_of(&composite, by_both),
        DataError::DuplicateId { line: Some(3), first, id, .. } if first.line == Some(2) && id.as_str() == "a+1",
        "column `c+t`",
        "`a+1`"
    );
}

#[test]
fn lines_are_counted_as_an_editor_does() {
    for content in ["id,x\na,1\nb,?\n", "id,x\r\na,1\r\nb,?\r\n", "id,x\na,1\nb,?", "\u{feff}id,x\na,1\nb,?"] {
        assert_error!(error_in(content), DataError::MissingValue { line: Some(3), row: 2, .. }, "line 3");
    }
    for content in [
        "id,x\n\n\na,1\n\nb,?\n",
        "id,x\r\n\r\n\r\na,1\r\n\r\nb,?\r\n",
        "id,x\n\"a\n\n\",1\n\nb,?\n",
        "id,x\r\n\"a\r\n\r\n\",1\r\n\r\nb,?",
        "id,x\n\n\na,1\n\n\"b\n\n\",?\n",
    ] {
        assert_error!(error_in(content), DataError::MissingValue { line: Some(6), row: 2, .. }, "line 6");
    }
}

#[test]
fn a_quote_left_open_hides_no_rows() {
    for content in [
        "id,x\na,1\nb,\"2\nc,3\nd,4\n",
        "id,x\na,1\nb,\"2\nc,3\nd,4",
        "id,x\na,1\nb,\"2",
        "id,x\na,1\nb,\"",
        "id,x\r\na,1\r\nb,\"2\r\n",
    ] {
        assert_error!(error_in(content), DataError::UnclosedQuote { line: 3, .. }, "line 3", "never closed");
    }
    assert_error!(error_in("\"id,x\na,1\n"), DataError::UnclosedQuote { line: 1, .. }, "line 1");
    // Closed at the very end is closed.
    let table = Fixture::csv("x,id\n1,\"a\"\n2,\"b\n\"").read().unwrap();
    assert_eq!(table.ids.iter().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn an_endless_row_is_not_read_into_memory() {
    let endless = |start: &'static [u8]| start.chain(std::io::repeat(b'x'));
    use std::io::Read;
    for (start, expected) in [(&b"id,x"[..], 1), (b"id,x\na,1\nb,2", 3), (b"id,x\na,\"1", 2)] {
        let error = read_csv(&source("endless.csv"), Packing::Plain, endless(start), None).unwrap_err();
        assert!(matches!(&error, DataError::RowTooLong { line, .. } if *line == expected), "{error:?}");
        assert!(error.to_string().contains(&format!("endless.csv: line {expected}")), "{error}");
    }
}

#[test]
fn many_long_rows_may_be_longer_together_than_one() {
    let note = "n".repeat(1 << 20);
    let rows: String = (0..20).map(|row| format!("{row},{row},{note}\n")).collect();
    let source = DataSource { ignore: vec!["note".into()], ..source("long.csv") };
    let table = read_csv(&source, Packing::Plain, format!("id,x,note\n{rows}").as_bytes(), None).unwrap();
    assert_eq!(table.features.dim(), (20, 1));
}

#[test]
fn a_long_table_is_whole_whatever_was_expected() {
    // Rows that are shorter, or longer, than those from which their number is estimated.
    for (first, second) in [("1.25", "1"), ("1", "1.000000000000000000000000")] {
        let value = |row: usize| if row < 10_000 { first } else { second };
        let rows: String = (0..25_000).map(|row| format!("{row},{},{row}\n", value(row))).collect();
        let content = format!("id,y,x\n{rows}");
        let fixture = Fixture::csv(&content);
        for length in [None, Some(content.len() as u64), Some(u64::MAX)] {
            let source = DataSource { label: Some("y".into()), ..fixture.source() };
            let table = read_csv(&source, Packing::Plain, content.as_bytes(), length).unwrap();
            assert_eq!(table.features.dim(), (25_000, 1));
            assert!(table.features.column(0).iter().enumerate().all(|(row, &x)| x == row as f32));
            let labels = table.labels.unwrap();
            assert!(labels.iter().enumerate().all(|(row, y)| *y == value(row).parse::<f32>().unwrap()));
            assert_eq!(table.ids[24_999], "24999");
        }
    }
}

// Scores.

#[test]
fn scores_are_written_whole_and_read_back() {
    let fixture = Fixture::csv("what was there before");
    let ids = ["a", "b\u{1f}1", "c,\"d\""];
    write_scores(&fixture.file, ids.iter(), array![[0.5], [-0.0], [1e-45]].view()).unwrap();
    let written = std::fs::read_to_string(&fixture.file).unwrap();
    assert!(written.starts_with("id,score\na,0.5\nb+1,-0\n\"c,\"\"d\"\"\",0.000"), "{written}");
    let table = fixture.read().unwrap();
    assert_eq!(table.ids.iter().collect::<Vec<_>>(), ["a", "b+1", "c,\"d\""]);
    assert_eq!(table.features[[2, 0]].to_bits(), 1);

    write_scores(&fixture.file, ids[..1].iter(), array![[0.25, 0.75]].view()).unwrap();
    assert_eq!(std::fs::read_to_string(&fixture.file).unwrap(), "id,score_0,score_1\na,0.25,0.75\n");
    assert_eq!(std::fs::read_dir(fixture.folder.path()).unwrap().count(), 1, "nothing is left over");
}

#[test]
fn scores_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("absent").join("scores.csv");
    let error = write_scores(&path, ["a"].iter(), array![[0.5]].view()).unwrap_err();
    assert!(matches!(&error, DataError::Write { file, .. } if *file == path), "{error:?}");
    assert!(error.to_string().contains("scores.csv"));

    // Where a folder has the name, the rename fails and the partial file goes.
    let path = folder.path().join("taken.csv");
    std::fs::create_dir(&path).unwrap();
    write_scores(&path, ["a"].iter(), array![[0.5]].view()).unwrap_err();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

// Anything.

/// Bytes that look enough like a table to get past the header.
fn almost_csv() -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..64),
        "[abidxy0-9.,+e\"\n\r -]{0,64}".prop_map(String::into_bytes),
        proptest::collection::vec(
            proptest::sample::select(vec![
                "a", "1", ",", ",", "\n", "\n", "\r\n", "\"", "-2.5e3", "inf", "NA", " ", "id", "y", "\u{1f}", "é"
            ]),
            0..32
        )
        .prop_map(|words| words.concat().into_bytes()),
    ];
    (proptest::sample::select(vec!["", "id,x\n", "\u{feff}id,y,x\r\n", "\"id\",x,"]), body)
        .prop_map(|(start, body)| [start.as_bytes(), &body].concat())
}

fn ids_and_scores() -> impl Strategy<Value = (Vec<String>, Array2<f32>)> {
    let finite = any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |x| x.is_finite());
    let ids = proptest::collection::btree_set("[^\u{1f}]{1,8}", 1..12);
    (ids, 1_usize..4).prop_flat_map(move |(ids, k)| {
        let ids: std::collections::BTreeSet<_> =
            ids.iter().map(|id| id.trim().to_owned()).filter(|id| !id.is_empty()).chain(["one".to_owned()]).collect();
        let ids = Vec::from_iter(ids);
        let n = ids.len();
        proptest::collection::vec(finite.clone(), n * k)
            .prop_map(move |scores| (ids.clone(), Array2::from_shape_vec((n, k), scores).unwrap()))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in almost_csv(), row_numbers in any::<bool>(), label in any::<bool>()) {
        let source = DataSource {
            id: (!row_numbers).then(|| Columns::One("id".into())),
            row_numbers_as_ids: row_numbers,
            label: label.then(|| "y".into()),
            ..source("any.csv")
        };
        match read_csv(&source, Packing::Plain, &bytes[..], None) {
            Ok(table) => {
                prop_assert_eq!(table.features.nrows(), table.ids.len());
                prop_assert_eq!(table.features.ncols(), table.feature_names.len());
                prop_assert_eq!(table.labels.map(|labels| labels.len()), label.then_some(table.ids.len()));
                prop_assert!(table.features.iter().all(|x| x.is_finite()));
            }
            Err(error) => {
                let message = error.to_string();
                prop_assert!(message.starts_with("any.csv: "), "{}", message);
            }
        }
    }

    #[test]
    fn no_bytes_make_the_gzip_reader_panic(bytes in almost_csv(), cut in any::<proptest::sample::Index>()) {
        let mut packed = gzip(&bytes);
        let at = cut.index(packed.len());
        packed[at] ^= bytes.first().copied().unwrap_or(0);
        let input = flate2::read::MultiGzDecoder::new(&packed[..]);
        let _ = read_csv(&source("any.csv.gz"), Packing::Gzip, input, None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn what_is_written_holds_the_bits_and_reads_back((ids, scores) in ids_and_scores()) {
        let fixture = Fixture::csv("");
        write_scores(&fixture.file, ids.iter(), scores.view()).unwrap();
        let table = fixture.read().unwrap();
        prop_assert_eq!(&table.ids, &ids);
        // Through f64, as any decimal that is read: a score's own bits, or, where that rounds twice, a neighbour's.
        let expected: Vec<_> = scores.iter().map(|x| (x.to_string().parse::<f64>().unwrap() as f32).to_bits()).collect();
        prop_assert_eq!(table.features.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), expected);
        let parsed: Vec<_> = scores.iter().map(|x| x.to_string().parse::<f32>().unwrap().to_bits()).collect();
        prop_assert_eq!(parsed, scores.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
    }
}

// Real data, where it is at hand.

/// Reads every table of the shared collection in the folder that `SPNN_SHARED_DATA` names.
#[test]
fn shared_data() {
    let Some(folder) = std::env::var_os("SPNN_SHARED_DATA").map(PathBuf::from) else {
        eprintln!("skipped: SPNN_SHARED_DATA is not set");
        return;
    };
    let numbered = |file: &str, label: Option<&str>| DataSource {
        id: None,
        row_numbers_as_ids: true,
        label: label.map(Into::into),
        ..source(folder.join(file))
    };
    let with_id = |file: &str, id: Columns, label: Option<&str>| DataSource {
        id: Some(id),
        label: label.map(Into::into),
        ..source(folder.join(file))
    };
    let id = || Columns::One("id".into());
    let company_and_time = Columns::Many(vec!["Company".into(), "Time".into()]);
    let fraud_party_a = DataSource {
        columns: Some(vec!["V1..V14".into()]),
        ..numbered("fraud/creditcard_subset_26196.csv.gz", Some("Class"))
    };
    for (source, n, d, positives) in [
        (numbered("fraud/creditcard_subset_26196.csv.gz", Some("Class")), 26_196, 30, Some(492)),
        (fraud_party_a, 26_196, 14, Some(492)),
        (numbered("fraud/creditcard_truncated_113922.csv.gz", Some("Class")), 113_922, 29, Some(179)),
        (
            with_id("distress/financial_distress.csv", company_and_time, Some("Financial Distress")),
            3_672,
            83,
            Some(136),
        ),
        (with_id("fate/breast_hetero_guest.csv", id(), Some("y")), 569, 10, Some(357)),
        (with_id("fate/breast_hetero_host.csv", id(), None), 569, 20, None),
        (with_id("fate/default_credit_hetero_guest.csv", id(), Some("y")), 30_000, 13, Some(6_636)),
        (with_id("fate/default_credit_hetero_host.csv", id(), None), 30_000, 10, None),
        (
            with_id("uci/UCI_Credit_Card.csv", Columns::One("ID".into()), Some("default.payment.next.month")),
            30_000,
            23,
            Some(6_636),
        ),
    ] {
        let start = Instant::now();
        let table = read(&source).unwrap_or_else(|error| panic!("{error}"));
        eprintln!("{}: {:?} in {:?}", source.file, table.features.dim(), start.elapsed());
        assert_eq!(table.features.dim(), (n, d));
        assert_eq!(table.ids.len(), n);
        let found = table.labels.map(|labels| labels.iter().filter(|&&label| label == 1.0).count());
        assert_eq!(found, positives);
    }
}
