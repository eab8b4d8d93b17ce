//! Rows from files: CSV, and the IDX files that MNIST comes in; either may be under gzip.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use ndarray::Array2;
use thiserror::Error;

/// The most numbers of one table: 1 GiB in memory.
const NUMBERS_MAX: usize = 1 << 28;

/// The most bytes of one CSV file, unpacked: 16 characters per number.
const CSV_BYTES_MAX: u64 = 16 * NUMBERS_MAX as u64;

/// Rows of raw numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// One per row; its position from 0 where the file has none.
    pub ids: Vec<String>,
    /// The names of the features; none from an image file.
    pub columns: Vec<String>,
    /// Channels, height, width, if the file says that rows are images.
    pub image: Option<[usize; 3]>,
    /// `[n, d]`, all finite.
    pub features: Array2<f32>,
    /// One per row as the file writes it, if labels were asked for.
    pub labels: Option<Vec<String>>,
}

/// Which columns of a CSV file are what.
#[derive(Clone, Copy, Debug, Default)]
pub struct CsvLayout<'a> {
    /// The column of ids, if there is one.
    pub id: Option<&'a str>,
    /// The column of labels, if they are wanted.
    pub label: Option<&'a str>,
    /// The features, in this order; if empty, all other columns. Others are left unread.
    pub features: &'a [String],
}

/// Why rows could not be read.
#[derive(Debug, Error)]
pub enum DataError {
    /// The file cannot be opened or read.
    #[error("{}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that is not what it should be.
    #[error("{}: {what} must be {expected}, found {found}", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        what: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A line that cannot be split into values.
    #[error("{}, line {line}: {reason}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// From 1, the header included.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// A value that is not what its column holds.
    #[error("{}, line {line}, column {column}: expected {expected}, found {found:?}", file.display())]
    Value {
        /// The file.
        file: PathBuf,
        /// From 1, the header included.
        line: u64,
        /// Its name.
        column: String,
        /// What the column holds.
        expected: &'static str,
        /// The value, cut after 40 characters.
        found: String,
    },
    /// A column that is asked for and not there.
    #[error("{}: no column {column:?}; there are {columns}", file.display())]
    Column {
        /// The file.
        file: PathBuf,
        /// Its name.
        column: String,
        /// The first columns of the file.
        columns: String,
    },
}

/// Reads a CSV file with a header, plain or under gzip.
///
/// # Errors
/// [`DataError`] names the file, and the line and column of a value.
pub fn read_csv(file: &Path, layout: CsvLayout<'_>) -> Result<Rows, DataError> {
    let input = open(file)?;
    read_csv_from(file, input, layout)
}

/// Reads a file of images and, if it is given, the file of their labels, in the IDX format of MNIST: unsigned bytes behind
/// a header of a magic number and the extent of each axis, big-endian. Plain or under gzip.
///
/// # Errors
/// [`DataError`] names the file.
pub fn read_idx(images: &Path, labels: Option<&Path>) -> Result<Rows, DataError> {
    let ([count, height, width], pixels) = read_idx_bytes(images, open(images)?)?;
    let labels = match labels {
        None => None,
        Some(file) => {
            let ([found], labels) = read_idx_bytes(file, open(file)?)?;
            if found != count {
                let expected = format!("{count}, as there are images");
                return Err(misfit(file, "the number of labels", expected, found));
            }
            Some(labels.iter().map(u8::to_string).collect())
        }
    };
    let features = pixels.into_iter().map(f32::from).collect();
    let features = Array2::from_shape_vec((count, height * width), features)
        .map_err(|error| misfit(images, "the images", "of one size", error))?;
    Ok(Rows {
        ids: (0..count).map(|row| row.to_string()).collect(),
        columns: Vec::new(),
        image: Some([1, height, width]),
        features,
        labels,
    })
}

impl Rows {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.features.nrows()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What is in the file, unpacked if its first bytes are gzip's.
fn open(file: &Path) -> Result<Box<dyn Read>, DataError> {
    let failed = |source| DataError::Read { file: file.to_path_buf(), source };
    let mut input = BufReader::with_capacity(1 << 16, File::open(file).map_err(failed)?);
    let is_gzip = input.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]);
    Ok(if is_gzip { Box::new(MultiGzDecoder::new(input)) } else { Box::new(input) })
}

/// The extents and elements of an IDX file of unsigned bytes with `AXES` axes.
fn read_idx_bytes<const AXES: usize>(file: &Path, mut input: impl Read) -> Result<([usize; AXES], Vec<u8>), DataError> {
    let failed = |source| DataError::Read { file: file.to_path_buf(), source };
    let mut word = || {
        let mut word = [0; 4];
        input.read_exact(&mut word).map(|()| u32::from_be_bytes(word)).map_err(failed)
    };
    // Two zeros, 8 for unsigned bytes, the number of axes.
    let (magic, expected) = (word()?, 0x0800 + AXES as u32);
    if magic != expected {
        return Err(misfit(file, "the magic number", format!("{expected:#010x}"), format!("{magic:#010x}")));
    }
    let mut extents = [0; AXES];
    for extent in &mut extents {
        *extent = word()? as usize;
    }
    let len = extents.iter().try_fold(1, |len: usize, &extent| len.checked_mul(extent));
    let Some(len) = len.filter(|len| (1..=NUMBERS_MAX).contains(len)) else {
        let expected = format!("1 to {NUMBERS_MAX} bytes in all");
        return Err(misfit(file, "the extents", expected, format!("{extents:?}")));
    };
    let mut bytes = Vec::new();
    // One more, to notice that there is one.
    input.take(len as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() != len {
        let found = if bytes.len() < len { bytes.len().to_string() } else { "more".to_owned() };
        return Err(misfit(file, "the number of bytes after the header", len, found));
    }
    Ok((extents, bytes))
}

/// Where the wanted columns of a CSV file are.
struct Places {
    id: Option<usize>,
    label: Option<usize>,
    features: Vec<usize>,
}

fn read_csv_from(file: &Path, input: impl Read, layout: CsvLayout<'_>) -> Result<Rows, DataError> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(input.take(CSV_BYTES_MAX));
    let header = reader.headers().map_err(|error| line_error(file, error))?.clone();
    // As spreadsheets write it.
    let names: Vec<String> = header.iter().map(|name| name.trim_start_matches('\u{feff}').to_owned()).collect();
    let places = find_columns(file, &names, layout)?;
    let mut ids = Vec::new();
    let mut labels = Vec::new();
    let mut numbers = Vec::new();
    let mut record = csv::StringRecord::new();
    while reader.read_record(&mut record).map_err(|error| line_error(file, error))? {
        let line = record.position().map_or(0, csv::Position::line);
        let wrong = |at: usize, expected| DataError::Value {
            file: file.to_path_buf(),
            line,
            column: names[at].clone(),
            expected,
            found: record[at].chars().take(40).collect(),
        };
        let text = |at: usize, expected| match &record[at] {
            "" => Err(wrong(at, expected)),
            text => Ok(text.to_owned()),
        };
        ids.push(match places.id {
            None => ids.len().to_string(),
            Some(at) => text(at, "an id")?,
        });
        if let Some(at) = places.label {
            labels.push(text(at, "a label")?);
        }
        for &at in &places.features {
            let number = record[at].parse::<f32>().ok().filter(|number| number.is_finite());
            numbers.push(number.ok_or_else(|| wrong(at, "a finite number"))?);
        }
        if numbers.len() > NUMBERS_MAX {
            return Err(misfit(file, "the table", format!("at most {NUMBERS_MAX} numbers"), "more"));
        }
    }
    if reader.into_inner().limit() == 0 {
        return Err(misfit(file, "the file", format!("smaller than {CSV_BYTES_MAX} bytes, unpacked"), "more"));
    }
    if ids.is_empty() {
        return Err(misfit(file, "the number of rows", "at least 1", 0));
    }
    let features = Array2::from_shape_vec((ids.len(), places.features.len()), numbers)
        .map_err(|error| misfit(file, "the rows", "of one width", error))?;
    let columns = places.features.iter().map(|&at| names[at].clone()).collect();
    Ok(Rows { ids, columns, image: None, features, labels: places.label.map(|_| labels) })
}

fn find_columns(file: &Path, names: &[String], layout: CsvLayout<'_>) -> Result<Places, DataError> {
    let mut sorted: Vec<&String> = names.iter().collect();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(misfit(file, "the names of the columns", "distinct", format!("{:?} twice", pair[0])));
    }
    let find = |column: &str| {
        let at = names.iter().position(|name| name == column);
        at.ok_or_else(|| DataError::Column {
            file: file.to_path_buf(),
            column: column.to_owned(),
            columns: names.iter().take(10).map(String::as_str).collect::<Vec<_>>().join(", "),
        })
    };
    let id = layout.id.map(find).transpose()?;
    let label = layout.label.map(find).transpose()?;
    let features = match layout.features {
        [] => (0..names.len()).filter(|&at| Some(at) != id && Some(at) != label).collect(),
        features => features.iter().map(|name| find(name)).collect::<Result<Vec<_>, _>>()?,
    };
    if features.is_empty() {
        return Err(misfit(file, "the number of features", "at least 1", 0));
    }
    Ok(Places { id, label, features })
}

fn line_error(file: &Path, error: csv::Error) -> DataError {
    let file = file.to_path_buf();
    let line = error.position().map_or(0, csv::Position::line);
    let reason = match error.into_kind() {
        csv::ErrorKind::Io(source) => return DataError::Read { file, source },
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} values under {expected_len} columns")
        }
        csv::ErrorKind::Utf8 { err, .. } => err.to_string(),
        other => format!("{other:?}"),
    };
    DataError::Line { file, line, reason }
}

fn misfit(file: &Path, what: &'static str, expected: impl ToString, found: impl ToString) -> DataError {
    DataError::Format { file: file.to_path_buf(), what, expected: expected.to_string(), found: found.to_string() }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use ndarray::array;
    use proptest::prelude::*;

    use super::*;

    const LAYOUT: CsvLayout<'_> = CsvLayout { id: Some("id"), label: Some("ill"), features: &[] };

    fn csv(text: &str, layout: CsvLayout<'_>) -> Result<Rows, DataError> {
        read_csv_from("t.csv".as_ref(), text.as_bytes(), layout)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    fn idx(extents: &[u32], len: usize) -> Vec<u8> {
        let mut bytes = (0x0800 + extents.len() as u32).to_be_bytes().to_vec();
        bytes.extend(extents.iter().flat_map(|extent| extent.to_be_bytes()));
        bytes.extend((0..len).map(|i| i as u8));
        bytes
    }

    #[test]
    fn reads_csv() {
        let rows = csv("id,age, ill ,dose\nA,1.5, 1,-2\r\nB,3,0,4e1\n", LAYOUT).unwrap();
        assert_eq!(rows.ids, ["A", "B"]);
        assert_eq!(rows.columns, ["age", "dose"]);
        assert_eq!(rows.features, array![[1.5, -2.0], [3.0, 40.0]]);
        assert_eq!(rows.labels.unwrap(), ["1", "0"]);
        let features = ["dose".to_owned()];
        let rows =
            csv("age,dose,note\n1,2,no number\n", CsvLayout { features: &features, ..CsvLayout::default() }).unwrap();
        assert_eq!((rows.features, rows.ids, rows.labels), (array![[2.0]], vec!["0".to_owned()], None));
    }

    #[test]
    fn csv_errors_name_the_place() {
        for (text, expected) in [
            ("", "t.csv: no column \"id\"; there are "),
            ("id,age\nA,1\n", "t.csv: no column \"ill\"; there are id, age"),
            ("id,ill\nA,1\n", "t.csv: the number of features must be at least 1, found 0"),
            ("id,age,ill,age\n", "t.csv: the names of the columns must be distinct, found \"age\" twice"),
            ("id,age,ill\n", "t.csv: the number of rows must be at least 1, found 0"),
            ("id,age,ill\nA,1,1\nB,old,1\n", "t.csv, line 3, column age: expected a finite number, found \"old\""),
            ("id,age,ill\nA,1,1\nB,nan,1\n", "t.csv, line 3, column age: expected a finite number, found \"nan\""),
            ("id,age,ill\nA,1e99,1\n", "t.csv, line 2, column age: expected a finite number, found \"1e99\""),
            ("id,age,ill\nA,,1\n", "t.csv, line 2, column age: expected a finite number, found \"\""),
            ("id,age,ill\nA,1,\n", "t.csv, line 2, column ill: expected a label, found \"\""),
            ("id,age,ill\n,1,1\n", "t.csv, line 2, column id: expected an id, found \"\""),
            ("id,age,ill\nA,1\n", "t.csv, line 2: 2 values under 3 columns"),
        ] {
            assert_eq!(csv(text, LAYOUT).unwrap_err().to_string(), expected);
        }
        assert!(matches!(read_csv("nowhere.csv".as_ref(), LAYOUT), Err(DataError::Read { .. })));
    }

    #[test]
    fn reads_idx_plain_and_packed() {
        let directory = tempfile::tempdir().unwrap();
        let [images, labels] = ["images", "labels.gz"].map(|name| directory.path().join(name));
        std::fs::write(&images, idx(&[2, 2, 3], 12)).unwrap();
        std::fs::write(&labels, gzip(&idx(&[2], 2))).unwrap();
        let rows = read_idx(&images, Some(&labels)).unwrap();
        assert_eq!(rows.image, Some([1, 2, 3]));
        assert_eq!(rows.features.row(1).to_vec(), [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]);
        assert_eq!(rows.labels.unwrap(), ["0", "1"]);
        std::fs::write(&labels, gzip(&idx(&[3], 3))).unwrap();
        let error = read_idx(&images, Some(&labels)).unwrap_err().to_string();
        assert!(error.ends_with("the number of labels must be 2, as there are images, found 3"), "{error}");
    }

    #[test]
    fn idx_errors_name_what_is_wrong() {
        let read = |bytes: &[u8]| read_idx_bytes::<3>("t".as_ref(), bytes).unwrap_err().to_string();
        assert_eq!(read(&idx(&[2], 2)), "t: the magic number must be 0x00000803, found 0x00000801");
        assert_eq!(read(&idx(&[2, 2, 2], 7)), "t: the number of bytes after the header must be 8, found 7");
        assert_eq!(read(&idx(&[2, 2, 2], 9)), "t: the number of bytes after the header must be 8, found more");
        assert!(read(&idx(&[u32::MAX; 3], 0)).starts_with("t: the extents must be 1 to 268435456 bytes in all"));
        assert!(read(&idx(&[2, 0, 2], 0)).starts_with("t: the extents"));
        assert_eq!(read(&[0, 0, 8]), "t: failed to fill whole buffer");
    }

    proptest! {
        #[test]
        fn any_bytes_are_rows_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_csv_from("t".as_ref(), bytes.as_slice(), CsvLayout::default());
            let _ = read_idx_bytes::<3>("t".as_ref(), bytes.as_slice());
            let headed = [idx(&[1, 2, 3], 0), bytes].concat();
            let _ = read_idx_bytes::<3>("t".as_ref(), headed.as_slice());
        }
    }
}
