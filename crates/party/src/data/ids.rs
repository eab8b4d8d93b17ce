//! The ids of a table, without an allocation for each.

use spnn_protocol::IdList;
use std::borrow::Cow;

/// One id per row, in order.
#[derive(Clone, PartialEq, Eq)]
pub struct Ids(Kind);

#[derive(Clone, PartialEq, Eq)]
enum Kind {
    /// The number of each of so many rows, from 1: nothing to keep.
    RowNumbers(usize),
    /// Texts one after the other, and where each ends.
    Texts { text: String, ends: Vec<usize> },
}

impl Ids {
    /// The numbers of `rows` rows, from 1.
    #[must_use]
    pub fn row_numbers(rows: usize) -> Self {
        Self(Kind::RowNumbers(rows))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Kind::RowNumbers(rows) => *rows,
            Kind::Texts { ends, .. } => ends.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The id of a row.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn get(&self, row: usize) -> Cow<'_, str> {
        assert!(row < self.len(), "row {row} of {}", self.len());
        match &self.0 {
            Kind::RowNumbers(_) => Cow::Owned((row + 1).to_string()),
            Kind::Texts { text, ends } => {
                let start = if row == 0 { 0 } else { ends[row - 1] };
                Cow::Borrowed(&text[start..ends[row]])
            }
        }
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Cow<'_, str>> {
        (0..self.len()).map(|row| self.get(row))
    }
}

impl<S: AsRef<str>> FromIterator<S> for Ids {
    fn from_iter<I: IntoIterator<Item = S>>(ids: I) -> Self {
        let (mut text, mut ends) = (String::new(), Vec::new());
        for id in ids {
            text.push_str(id.as_ref());
            ends.push(text.len());
        }
        Self(Kind::Texts { text, ends })
    }
}

impl Ids {
    /// Adds a part of the id under way; row numbers have none.
    pub(super) fn add(&mut self, part: &str) {
        if let Kind::Texts { text, .. } = &mut self.0 {
            text.push_str(part);
        }
    }

    /// Ends an id.
    pub(super) fn end(&mut self) {
        match &mut self.0 {
            Kind::RowNumbers(rows) => *rows += 1,
            Kind::Texts { text, ends } => ends.push(text.len()),
        }
    }
}

impl IdList for Ids {
    fn rows(&self) -> usize {
        self.len()
    }

    fn id(&self, row: usize) -> Cow<'_, str> {
        self.get(row)
    }
}
