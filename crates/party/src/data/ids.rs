//! The ids of a table, without an allocation for each.

use spnn_protocol::{ID_SEPARATOR, IdList};
use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};

/// One id per row, in order.
#[derive(Clone, PartialEq, Eq)]
pub struct Ids(Kind);

#[derive(Clone, PartialEq, Eq)]
enum Kind {
    /// The number of each of so many rows, from 1: nothing to keep.
    RowNumbers(usize),
    /// Texts that are whole numbers as one writes them.
    Integers(Vec<i64>),
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
            Kind::Integers(integers) => integers.len(),
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
            Kind::Integers(integers) => Cow::Owned(integers[row].to_string()),
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
        let mut all = Self(Kind::Integers(Vec::new()));
        ids.into_iter().for_each(|id| all.push(id.as_ref()));
        all
    }
}

impl Ids {
    /// Adds an id; row numbers only count it.
    pub(super) fn push(&mut self, id: &str) {
        if let Kind::Integers(integers) = &mut self.0 {
            match canonical_integer(id) {
                Some(integer) => return integers.push(integer),
                None => *self = self.as_texts(),
            }
        }
        match &mut self.0 {
            Kind::RowNumbers(rows) => *rows += 1,
            Kind::Integers(_) => {}
            Kind::Texts { text, ends } => {
                text.push_str(id);
                ends.push(text.len());
            }
        }
    }

    fn as_texts(&self) -> Self {
        let (mut text, mut ends) = (String::new(), Vec::with_capacity(self.len()));
        for id in self.iter() {
            text.push_str(&id);
            ends.push(text.len());
        }
        Self(Kind::Texts { text, ends })
    }

    /// The first row whose id an earlier one has, and the first such row.
    pub(super) fn first_duplicate(&self) -> Option<(usize, usize)> {
        if let Kind::RowNumbers(_) = self.0 {
            return None;
        }
        // A hash and a row take a third of what a map from ids to rows does, and there are millions.
        let state = RandomState::new();
        let mut rows: Vec<(u64, usize)> =
            self.iter().enumerate().map(|(row, id)| (state.hash_one(id.as_ref()), row)).collect();
        rows.sort_unstable();
        let of_one_hash = rows.chunk_by(|a, b| a.0 == b.0).filter(|same| same.len() > 1);
        let doubled = of_one_hash.flat_map(|same| {
            let earlier = |at: usize, id: &str| same[..at].iter().map(|s| s.1).find(|&row| self.get(row) == id);
            (1..same.len()).filter_map(move |at| earlier(at, &self.get(same[at].1)).map(|first| (same[at].1, first)))
        });
        doubled.min()
    }
}

/// The number whose decimal text this is, if it is the one text of a number.
fn canonical_integer(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_canonical = match digits.as_bytes() {
        [b'0'] => text.len() == 1,
        [b'1'..=b'9', ..] => true,
        _ => false,
    };
    if is_canonical { text.parse().ok() } else { None }
}

/// Ids whose parts come block by block, column after column.
pub(super) struct JoinedIds {
    /// Texts of the block, for each part of the id.
    parts: Vec<Texts>,
    ids: Ids,
    joined: String,
}

impl JoinedIds {
    /// Ids of so many parts; the numbers of the rows if there are none.
    pub(super) fn new(parts: usize) -> Self {
        let ids = if parts == 0 { Ids::row_numbers(0) } else { Ids::from_iter([""; 0]) };
        Self { parts: (0..parts).map(|_| Texts::default()).collect(), ids, joined: String::new() }
    }

    /// How many are whole.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Adds a part of the next id that lacks it.
    pub(super) fn push(&mut self, part: usize, text: &str) {
        self.parts[part].push(text);
    }

    /// Ends a block of so many rows.
    pub(super) fn end(&mut self, rows: usize) {
        for row in 0..rows {
            match &self.parts[..] {
                [] => self.ids.push(""),
                [one] => self.ids.push(one.get(row)),
                several => {
                    self.joined.clear();
                    for (i, part) in several.iter().enumerate() {
                        self.joined.extend((i > 0).then_some(ID_SEPARATOR));
                        self.joined.push_str(part.get(row));
                    }
                    self.ids.push(&self.joined);
                }
            }
        }
        self.parts.iter_mut().for_each(Texts::clear);
    }

    pub(super) fn into_ids(self) -> Ids {
        self.ids
    }
}

/// Texts one after the other.
#[derive(Default)]
struct Texts {
    text: String,
    ends: Vec<usize>,
}

impl Texts {
    fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    fn get(&self, at: usize) -> &str {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.text[start..self.ends[at]]
    }

    fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn integers_are_kept_as_such_until_a_text_comes() {
        let integers: Ids = ["-5", "0", "9223372036854775807"].into_iter().collect();
        assert!(matches!(integers.0, Kind::Integers(_)));
        for other in ["007", "-0", "+1", "", "a", "9223372036854775808", "1 ", "-"] {
            let ids = ["12", "-3", other, "4"];
            let mixed: Ids = ids.into_iter().collect();
            assert!(matches!(mixed.0, Kind::Texts { .. }), "{other}");
            assert_eq!(mixed.iter().collect::<Vec<_>>(), ids);
        }
    }

    proptest! {
        #[test]
        fn the_first_duplicate_is_the_first(ids in proptest::collection::vec("[0-9a]{1,2}", 0..40)) {
            let mut first_rows = HashMap::new();
            let mut expected = None;
            for (row, id) in ids.iter().enumerate() {
                match first_rows.get(id) {
                    Some(first) => { expected.get_or_insert((row, *first)); }
                    None => { first_rows.insert(id, row); }
                }
            }
            let all: Ids = ids.iter().collect();
            prop_assert_eq!(all.first_duplicate(), expected);
            prop_assert_eq!(all.iter().collect::<Vec<_>>(), ids);
        }
    }
}
