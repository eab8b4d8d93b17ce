//! What is in a file, and how it could be read.
//!
//! One pass over the rows, with as much memory as the columns need: how many different values there are is counted up to
//! a few thousand and estimated beyond.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::Serialize;

use super::columns::Header;
use super::date::text_of_day;
use super::intake::Intake;
use super::value::{Value, Wrong};
use super::{ColumnType, Columns, DataError, DataSource, Files, Missing, read_files};

/// What is in a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// Number of rows.
    pub rows: u64,
    /// All columns, in order.
    pub columns: Vec<Profile>,
}

/// What is in a column.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// What all its values are.
    pub content: Content,
    /// How many rows have no value.
    pub missing: u64,
    /// How many different values there are.
    pub distinct: u64,
    /// Whether that is counted; an estimate is off by 2 % or so.
    pub distinct_is_exact: bool,
    /// Smallest number or first date.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<Scalar>,
    /// Largest number or last date.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Scalar>,
    /// Mean of the numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<f64>,
}

/// What the values of a column are, the most special of what all of them could be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// There are none.
    Nothing,
    /// Whole numbers.
    Integers,
    /// Numbers.
    Numbers,
    /// Words for yes and no.
    Booleans,
    /// Dates, perhaps with times.
    Dates,
    /// Anything else.
    Text,
    /// More than plain values: lists, say, which cannot be read.
    Unreadable,
}

/// A number, or a date as ISO 8601 writes it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Scalar {
    /// A number.
    Number(f64),
    /// A date.
    Date(String),
}

/// Looks at all rows of some files.
///
/// # Errors
/// [`DataError`] naming the file and, as far as they apply, line, row and column.
pub fn inspect(files: &Files) -> Result<Inspection, DataError> {
    let mut inspector = Inspector::default();
    read_files(files, &mut inspector)?;
    let Some(header) = inspector.header else {
        return Err(DataError::NoFiles { file: files.paths().first().cloned().unwrap_or_default() });
    };
    let rows = inspector.rows;
    let mut watched = inspector.columns.into_iter();
    let columns = header.names().iter().enumerate().map(|(at, name)| {
        let watched = if header.unreadable().contains_key(&at) { None } else { watched.next() };
        watched.map_or_else(|| Profile::unreadable(name), |watched| watched.profile(name))
    });
    Ok(Inspection { rows, columns: columns.collect() })
}

impl Inspection {
    /// How a party could read it: a guess that trains, for a person to mend. Reasons for columns that are left out come
    /// with it.
    ///
    /// - The id is a column without missing or repeated values, of integers or text: one whose name speaks of an id
    ///   first, then the first column, then text. Where there is none, rows are numbered.
    /// - Integers of at most 20 values, other than 0 and 1, are categorical; 0 and 1 stay numbers. So is text of at most
    ///   100 values; text of more is hashed, and text that nearly every row has another of is left out.
    /// - Words for yes and no are boolean, ISO dates are dates.
    /// - Columns of one value or none, and what cannot be read, are left out.
    #[must_use]
    pub fn suggest(&self, files: &Files, label: Option<&str>) -> (DataSource, BTreeMap<String, &'static str>) {
        let id = self.id(label);
        let mut source = DataSource {
            id: id.map(|id| Columns::One(id.to_owned())),
            row_numbers_as_ids: id.is_none(),
            label: label.map(str::to_owned),
            ..DataSource::new(files.clone())
        };
        let mut reasons = BTreeMap::new();
        for column in &self.columns {
            let name = column.name.clone();
            if id == Some(&name) {
                continue;
            }
            if label == Some(&name) {
                if column.content == Content::Booleans {
                    source.types.insert(name, ColumnType::Boolean);
                }
                continue;
            }
            match column.guess(self.rows) {
                Guess::Leave(reason) => {
                    source.ignore.push(name.clone());
                    reasons.insert(name, reason);
                }
                Guess::Read(kind) => {
                    if kind != ColumnType::Numeric {
                        source.types.insert(name, kind);
                    }
                    if column.missing > 0 {
                        source.missing = Missing::Mean;
                    }
                }
            }
        }
        (source, reasons)
    }

    fn id(&self, label: Option<&str>) -> Option<&str> {
        let candidates = || {
            self.columns.iter().enumerate().filter(|(_, column)| {
                label != Some(&column.name)
                    && !column.name.is_empty()
                    && column.is_unique(self.rows)
                    && matches!(column.content, Content::Integers | Content::Text)
            })
        };
        let speaks = |name: &str| {
            let lower = name.to_lowercase();
            ["id", "key", "uuid", "guid"].contains(&lower.as_str())
                || ["_id", "id_", "-id", " id", "_key"].iter().any(|part| lower.contains(part))
                || name.ends_with("Id")
                || name.ends_with("ID")
        };
        let named = candidates().find(|(_, column)| speaks(&column.name));
        let first = || candidates().find(|(at, _)| *at == 0);
        let text = || candidates().find(|(_, column)| column.content == Content::Text);
        named.or_else(first).or_else(text).map(|(_, column)| column.name.as_str())
    }
}

enum Guess {
    Read(ColumnType),
    Leave(&'static str),
}

impl Profile {
    fn unreadable(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            content: Content::Unreadable,
            missing: 0,
            distinct: 0,
            distinct_is_exact: false,
            min: None,
            max: None,
            mean: None,
        }
    }

    fn is_unique(&self, rows: u64) -> bool {
        let near = self.distinct as f64 >= 0.95 * rows as f64;
        self.missing == 0 && rows > 1 && if self.distinct_is_exact { self.distinct == rows } else { near }
    }

    fn guess(&self, rows: u64) -> Guess {
        const CATEGORIES_OF_INTEGERS: u64 = 20;
        const CATEGORIES_OF_TEXT: u64 = 100;
        const BUCKETS: std::ops::RangeInclusive<u64> = 64..=1024;
        match self.content {
            _ if self.name.is_empty() => Guess::Leave("no name"),
            Content::Nothing => Guess::Leave("no values"),
            Content::Unreadable => Guess::Leave("not plain values"),
            _ if self.distinct == 1 && self.missing == 0 => Guess::Leave("the same in every row"),
            Content::Integers => {
                let is_flag = self.min >= Some(Scalar::Number(0.0)) && self.max <= Some(Scalar::Number(1.0));
                // Of a few rows, a few values are all there are.
                let few = self.distinct <= CATEGORIES_OF_INTEGERS && self.distinct * 10 <= rows;
                Guess::Read(if few && !is_flag { ColumnType::Categorical } else { ColumnType::Numeric })
            }
            Content::Numbers => Guess::Read(ColumnType::Numeric),
            Content::Booleans => Guess::Read(ColumnType::Boolean),
            Content::Dates => Guess::Read(ColumnType::Date),
            Content::Text if self.distinct > (rows / 2).max(1) => Guess::Leave("text, another one in nearly every row"),
            Content::Text if self.distinct <= CATEGORIES_OF_TEXT => Guess::Read(ColumnType::Categorical),
            Content::Text => {
                let buckets = self.distinct.next_power_of_two().clamp(*BUCKETS.start(), *BUCKETS.end());
                Guess::Read(ColumnType::Hashed(buckets as u32))
            }
        }
    }
}

impl PartialOrd for Scalar {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        match (self, other) {
            (Self::Number(a), Self::Number(b)) => a.partial_cmp(b),
            (Self::Date(a), Self::Date(b)) => a.partial_cmp(b),
            (Self::Number(_), Self::Date(_)) | (Self::Date(_), Self::Number(_)) => None,
        }
    }
}

#[derive(Default)]
struct Inspector {
    /// Of the first file.
    header: Option<Header>,
    columns: Vec<Watched>,
    rows: u64,
}

impl Intake for Inspector {
    fn begin(&mut self, header: &Header) -> Result<Vec<usize>, DataError> {
        let readable = |header: &Header| -> Vec<usize> {
            (0..header.names().len()).filter(|at| !header.unreadable().contains_key(at)).collect()
        };
        if let Some(first) = &self.header {
            let all = readable(first);
            return header.find_all(&all, first);
        }
        let all = readable(header);
        self.columns = all.iter().map(|_| Watched::default()).collect();
        self.header = Some(header.clone());
        Ok(all)
    }

    fn expect(&mut self, _rows: u64) -> Result<(), DataError> {
        Ok(())
    }

    fn take(&mut self, column: usize, _row: usize, value: Value<'_>) -> Result<(), Wrong> {
        self.columns[column].see(value);
        Ok(())
    }

    fn end(&mut self, rows: usize, _line: Option<u64>) -> Result<(), DataError> {
        self.rows += rows as u64;
        Ok(())
    }
}

/// What is known of a column so far.
#[derive(Default)]
struct Watched {
    missing: u64,
    values: u64,
    integers: u64,
    numbers: Range,
    booleans: u64,
    dates: Range,
    different: Different,
}

#[derive(Default)]
struct Range {
    count: u64,
    min: f64,
    max: f64,
    sum: f64,
}

impl Range {
    fn add(&mut self, x: f64) {
        (self.min, self.max) = if self.count == 0 { (x, x) } else { (self.min.min(x), self.max.max(x)) };
        self.count += 1;
        self.sum += x;
    }
}

impl Watched {
    fn see(&mut self, value: Value<'_>) {
        let Some(text) = value.category() else {
            self.missing += 1;
            return;
        };
        self.different.add(&text);
        match value.number() {
            Ok(Some(x)) if x.is_finite() => {
                self.numbers.add(x);
                self.integers += u64::from(x.fract() == 0.0 && x.abs() < 2_f64.powi(53));
            }
            // What all values have been so far is what is tried, so that each is looked at once.
            _ if self.booleans == self.values && value.boolean().is_ok() => self.booleans += 1,
            _ if self.dates.count == self.values => {
                if let Ok(Some(days)) = value.days() {
                    self.dates.add(days);
                }
            }
            _ => {}
        }
        self.values += 1;
    }

    fn profile(self, name: &str) -> Profile {
        let all = self.values;
        let is_all = |count: u64| all > 0 && count == all;
        let content = match () {
            () if all == 0 => Content::Nothing,
            () if is_all(self.integers) => Content::Integers,
            () if is_all(self.numbers.count) => Content::Numbers,
            () if is_all(self.booleans) => Content::Booleans,
            () if is_all(self.dates.count) => Content::Dates,
            () => Content::Text,
        };
        let (range, mean) = match content {
            Content::Integers | Content::Numbers => {
                let Range { min, max, sum, count } = self.numbers;
                (Some((Scalar::Number(min), Scalar::Number(max))), Some(sum / count as f64))
            }
            Content::Dates => {
                let text = |days: f64| Scalar::Date(text_of_day(days.floor() as i32).unwrap_or_default());
                (Some((text(self.dates.min), text(self.dates.max))), None)
            }
            Content::Nothing | Content::Booleans | Content::Text | Content::Unreadable => (None, None),
        };
        let (min, max) = range.unzip();
        let (distinct, distinct_is_exact) = self.different.count();
        let distinct = distinct.min(all);
        Profile { name: name.to_owned(), content, missing: self.missing, distinct, distinct_is_exact, min, max, mean }
    }
}

/// Counts different values by the smallest of their hashes: of k, the k-th smallest says how densely they lie.
///
/// Source: Bar-Yossef et al., RANDOM 2002, algorithm 1.
#[derive(Default)]
struct Different {
    smallest: BTreeSet<u64>,
}

impl Different {
    /// Counts up to as many; beyond, the standard error is 1/√k, 1.6 %. 100 kB for a column.
    const KEPT: usize = 4096;

    fn add(&mut self, text: &str) {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let hash = hasher.finish();
        if self.smallest.len() < Self::KEPT {
            self.smallest.insert(hash);
        } else if self.smallest.last().is_some_and(|largest| hash < *largest) && self.smallest.insert(hash) {
            self.smallest.pop_last();
        }
    }

    /// And whether it is exact.
    fn count(&self) -> (u64, bool) {
        match self.smallest.last() {
            Some(largest) if self.smallest.len() == Self::KEPT => {
                let share = *largest as f64 / u64::MAX as f64;
                (((Self::KEPT - 1) as f64 / share).round() as u64, false)
            }
            _ => (self.smallest.len() as u64, true),
        }
    }
}

#[cfg(test)]
mod tests;
