//! Tables in memory: ids that come with a question, and scores that go back.

use std::path::Path;
use std::sync::Arc;

use ::parquet::basic::Compression;
use ::parquet::data_type::{ByteArray, ByteArrayType, FloatType};
use ::parquet::errors::ParquetError;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use bytes::Bytes;

use super::columns::Header;
use super::ids::{Ids, JoinedIds};
use super::intake::Intake;
use super::value::{Value, Wrong};
use super::{Columns, DataError, DataSource, ID_SEPARATOR, Packing, csv, parquet};
use crate::serve::{Scores, Status};

/// How a table is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFormat {
    /// Comma-separated text with a header.
    Csv,
    /// Parquet.
    Parquet,
}

impl Status {
    /// As in answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scored => "scored",
            Self::Unknown => "unknown",
            Self::Spent => "spent",
        }
    }
}

/// The columns that ids are in: those of the party's own file, or `id` where its rows are numbered.
#[must_use]
pub fn id_columns(source: &DataSource) -> Columns {
    source.id.clone().unwrap_or_else(|| Columns::One("id".to_owned()))
}

/// Reads the ids of a table that has the columns `id`; other columns may hold anything.
///
/// # Errors
/// As [`read`](super::read), for a file called `request`; [`DataError::TooManyRows`] if there are more than `rows_max`.
pub fn read_ids(table: Bytes, format: TableFormat, id: &Columns, rows_max: usize) -> Result<Ids, DataError> {
    let name = Path::new("request");
    let mut intake = IdReader { id, ids: JoinedIds::new(id.names().len()), rows_max };
    match format {
        TableFormat::Csv => csv::read_from(name, Packing::Plain, &table[..], None, &mut intake)?,
        TableFormat::Parquet => parquet::read_from(name, table, None, &mut intake)?,
    }
    Ok(intake.ids.into_ids())
}

struct IdReader<'a> {
    id: &'a Columns,
    ids: JoinedIds,
    rows_max: usize,
}

impl Intake for IdReader<'_> {
    fn begin(&mut self, header: &Header) -> Result<Vec<usize>, DataError> {
        header.find_named(self.id.names())
    }

    fn expect(&mut self, _rows: u64) -> Result<(), DataError> {
        Ok(())
    }

    fn take(&mut self, column: usize, _row: usize, value: Value<'_>) -> Result<(), Wrong> {
        self.ids.push(column, &value.id()?);
        Ok(())
    }

    fn end(&mut self, rows: usize, _line: Option<u64>) -> Result<(), DataError> {
        self.ids.end(rows);
        if self.ids.len() > self.rows_max {
            return Err(DataError::TooManyRows { file: "request".into(), max: self.rows_max });
        }
        Ok(())
    }
}

/// A table of ids, scores and status, in that order: `id`, `score` (or `score_0`, `score_1`, … for several), `status`.
/// Where there is no score, there is no value. The parts of an id made of several columns are joined by `+`.
///
/// # Errors
/// What the format's own writer says.
///
/// # Panics
/// If there is not one id for each score.
pub fn write_answer(format: TableFormat, ids: &[String], scores: &Scores) -> Result<Vec<u8>, String> {
    assert!(ids.len() == scores.status.len() && ids.len() == scores.values.nrows(), "one id for each score");
    match format {
        TableFormat::Csv => as_csv(ids, scores).map_err(|e| e.to_string()),
        TableFormat::Parquet => as_parquet(ids, scores).map_err(|e| e.to_string()),
    }
}

/// The names of the columns that hold scores.
pub(super) fn score_columns(outputs: usize) -> Vec<String> {
    match outputs {
        1 => vec!["score".to_owned()],
        several => (0..several).map(|output| format!("score_{output}")).collect(),
    }
}

/// An id as people read it.
pub(super) fn shown(id: &str) -> String {
    id.replace(ID_SEPARATOR, "+")
}

fn as_csv(ids: &[String], scores: &Scores) -> Result<Vec<u8>, ::csv::Error> {
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    writer.write_field("id")?;
    for name in score_columns(scores.values.ncols()) {
        writer.write_field(name)?;
    }
    writer.write_record(["status"])?;
    for ((id, row), status) in ids.iter().zip(scores.values.rows()).zip(&scores.status) {
        writer.write_field(shown(id))?;
        for score in row {
            let text = if *status == Status::Scored { score.to_string() } else { String::new() };
            writer.write_field(text)?;
        }
        writer.write_record([status.name()])?;
    }
    writer.into_inner().map_err(|e| e.into_error().into())
}

fn as_parquet(ids: &[String], scores: &Scores) -> Result<Vec<u8>, ParquetError> {
    let names = score_columns(scores.values.ncols());
    let columns: String = names.iter().map(|name| format!("optional float {name}; ")).collect();
    let schema = format!("message answer {{ required binary id (UTF8); {columns}required binary status (UTF8); }}");
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut bytes = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut bytes, Arc::new(parse_message_type(&schema)?), Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    let none = || ParquetError::General("a column is missing".to_owned());
    let texts = |texts: &mut dyn Iterator<Item = String>| -> Vec<ByteArray> {
        texts.map(|text| ByteArray::from(text.into_bytes())).collect()
    };
    let mut column = group.next_column()?.ok_or_else(none)?;
    column.typed::<ByteArrayType>().write_batch(&texts(&mut ids.iter().map(|id| shown(id))), None, None)?;
    column.close()?;
    let levels: Vec<i16> = scores.status.iter().map(|status| i16::from(*status == Status::Scored)).collect();
    for of in scores.values.columns() {
        let scored = of.iter().zip(&scores.status).filter(|(_, status)| **status == Status::Scored);
        let values: Vec<f32> = scored.map(|(value, _)| *value).collect();
        let mut column = group.next_column()?.ok_or_else(none)?;
        column.typed::<FloatType>().write_batch(&values, Some(&levels), None)?;
        column.close()?;
    }
    let mut column = group.next_column()?.ok_or_else(none)?;
    let mut names = scores.status.iter().map(|status| status.name().to_owned());
    column.typed::<ByteArrayType>().write_batch(&texts(&mut names), None, None)?;
    column.close()?;
    group.close()?;
    writer.close()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::read;
    use ndarray::array;

    fn scores() -> Scores {
        let status = vec![Status::Scored, Status::Unknown, Status::Scored, Status::Spent];
        Scores { status, values: array![[0.25, 0.75], [0.0, 0.0], [0.1, 0.9], [0.0, 0.0]] }
    }

    fn ids() -> Vec<String> {
        ["7", "x", "a,b", "q"].map(str::to_owned).to_vec()
    }

    #[test]
    fn an_answer_as_text() {
        let text = String::from_utf8(write_answer(TableFormat::Csv, &ids(), &scores()).unwrap()).unwrap();
        assert_eq!(
            text,
            "id,score_0,score_1,status\n7,0.25,0.75,scored\nx,,,unknown\n\"a,b\",0.1,0.9,scored\nq,,,spent\n"
        );
    }

    #[test]
    fn an_answer_as_parquet_is_the_same_table() {
        let directory = tempfile::tempdir().unwrap();
        let tables = [(TableFormat::Csv, "a.csv"), (TableFormat::Parquet, "a.parquet")].map(|(format, name)| {
            let file = directory.path().join(name);
            std::fs::write(&file, write_answer(format, &ids(), &scores()).unwrap()).unwrap();
            let types = [("status".to_owned(), crate::data::ColumnType::Categorical)].into();
            let id = Some(Columns::One("id".to_owned()));
            let source = DataSource { id, missing: crate::data::Missing::Mean, types, ..DataSource::new(file) };
            let table = read(&source, directory.path()).unwrap();
            let mut cells = Vec::new();
            table.visit(0..4, |row| cells.push(row.to_vec())).unwrap();
            (table.ids().iter().map(|id| id.into_owned()).collect::<Vec<_>>(), cells)
        });
        assert_eq!(tables[0], tables[1]);
        assert_eq!(tables[0].0, ids());
    }

    #[test]
    fn ids_of_a_request_are_read_as_those_of_a_file() {
        let columns = Columns::Many(vec!["company".to_owned(), "year".to_owned()]);
        let text = "year,note,company\r\n2020, ,\" a \"\r\n2021,,b\r\n";
        let ids = read_ids(Bytes::from_static(text.as_bytes()), TableFormat::Csv, &columns, 2).unwrap();
        assert_eq!(ids.iter().collect::<Vec<_>>(), ["a\u{1f}2020", "b\u{1f}2021"]);
        let written = write_answer(TableFormat::Parquet, &super::tests::ids(), &scores()).unwrap();
        let one = Columns::One("id".to_owned());
        let ids = read_ids(Bytes::from(written), TableFormat::Parquet, &one, 4).unwrap();
        assert_eq!(ids.iter().collect::<Vec<_>>(), super::tests::ids());
    }

    #[test]
    fn requests_that_make_no_sense_are_named() {
        let one = Columns::One("id".to_owned());
        let cases: [(&[u8], TableFormat, &str); 5] = [
            (b"name\nx\n", TableFormat::Csv, "no column `id`"),
            (b"id\nx\n\n,\n", TableFormat::Csv, "request:"),
            (b"id\n1\n2\n3\n", TableFormat::Csv, "at most 2 rows"),
            (b"id\n1\n2\n3\n", TableFormat::Parquet, "request"),
            (b"", TableFormat::Csv, "request"),
        ];
        for (table, format, named) in cases {
            let error = read_ids(Bytes::copy_from_slice(table), format, &one, 2).err().unwrap().to_string();
            assert!(error.contains(named), "{named}: {error}");
        }
    }
}
