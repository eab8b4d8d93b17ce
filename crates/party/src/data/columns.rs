//! Which column of a file is what: id, label, feature or nothing.

use std::collections::HashMap;
use std::path::Path;

use super::{Columns, DataError, DataSource, Excerpt};

/// More names than this do not help to find a misspelt one.
const AVAILABLE_SHOWN: usize = 8;

/// A file's column names: each once, at least one of them not a number.
pub(super) struct Header<'a> {
    file: &'a Path,
    line: u64,
    names: Vec<String>,
    positions: HashMap<String, usize>,
}

/// The columns to read, as positions in the file.
pub(super) struct Selection {
    /// In the order in which they make up the id; none when row numbers are the ids.
    pub(super) ids: Vec<usize>,
    pub(super) label: Option<usize>,
    /// In the order of the table's features; at least one.
    pub(super) features: Vec<usize>,
}

impl<'a> Header<'a> {
    pub(super) fn new(file: &'a Path, line: u64, names: Vec<String>) -> Result<Self, DataError> {
        // A file without a header would lose its first row to the column names.
        if names.iter().all(|name| name.parse::<f64>().is_ok()) {
            return Err(DataError::NoHeader { file: file.to_path_buf() });
        }
        let mut positions = HashMap::with_capacity(names.len());
        for (position, name) in names.iter().enumerate() {
            if let Some(first) = positions.insert(name.clone(), position) {
                return Err(DataError::DuplicateColumn {
                    file: file.to_path_buf(),
                    line,
                    column: Excerpt::new(name),
                    first: first + 1,
                    second: position + 1,
                });
            }
        }
        Ok(Self { file, line, names, positions })
    }

    pub(super) fn line(&self) -> u64 {
        self.line
    }

    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    pub(super) fn into_names(self) -> Vec<String> {
        self.names
    }

    /// Gives each column that `source` names its part, and refuses to give one column two parts: a label among the
    /// features would teach the model its own answer.
    pub(super) fn select(&self, source: &DataSource) -> Result<Selection, DataError> {
        let mut parts = Parts { header: self, part_of: vec![None; self.names.len()] };
        let id_names = source.id.as_ref().map_or(&[][..], Columns::names);
        let ids = parts.assign_each(id_names, "id")?;
        let label = source.label.as_ref().map(|name| parts.assign(name, "label")).transpose()?;
        parts.assign_ranges(&source.ignore, "ignore")?;
        let features = match &source.columns {
            Some(entries) => parts.assign_ranges(entries, "columns")?,
            None => parts.rest(),
        };

        if features.is_empty() {
            return Err(DataError::NoFeatures { file: self.file.to_path_buf(), line: self.line });
        }
        if let Some(unnamed) = features.iter().find(|&&at| self.names[at].is_empty()) {
            return Err(DataError::UnnamedColumn {
                file: self.file.to_path_buf(),
                line: self.line,
                position: unnamed + 1,
            });
        }
        Ok(Selection { ids, label, features })
    }

    fn position(&self, name: &str) -> Result<usize, DataError> {
        self.positions.get(name).copied().ok_or_else(|| DataError::MissingColumn {
            file: self.file.to_path_buf(),
            line: self.line,
            column: name.to_owned(),
            available: self.names.iter().take(AVAILABLE_SHOWN).map(|name| Excerpt::new(name)).collect(),
            columns: self.names.len(),
        })
    }
}

/// The parts given so far.
struct Parts<'a> {
    header: &'a Header<'a>,
    part_of: Vec<Option<&'static str>>,
}

impl Parts<'_> {
    fn assign(&mut self, name: &str, part: &'static str) -> Result<usize, DataError> {
        let position = self.header.position(name)?;
        self.assign_at(position, part)
    }

    fn assign_at(&mut self, position: usize, part: &'static str) -> Result<usize, DataError> {
        match self.part_of[position].replace(part) {
            None => Ok(position),
            Some(first) => Err(DataError::ColumnUsedTwice {
                file: self.header.file.to_path_buf(),
                line: self.header.line,
                column: self.header.names[position].clone(),
                first,
                second: part,
            }),
        }
    }

    fn assign_each(&mut self, names: &[String], part: &'static str) -> Result<Vec<usize>, DataError> {
        names.iter().map(|name| self.assign(name, part)).collect()
    }

    /// As [`Parts::assign_each`], where `a..b` stands for the columns from a to b that have no other part yet.
    fn assign_ranges(&mut self, entries: &[String], part: &'static str) -> Result<Vec<usize>, DataError> {
        let mut assigned = Vec::new();
        for entry in entries {
            let Some((from, to)) = self.range(entry)? else {
                assigned.push(self.assign(entry, part)?);
                continue;
            };
            for position in from..=to {
                if self.part_of[position].is_none_or(|other| other == part) {
                    assigned.push(self.assign_at(position, part)?);
                }
            }
        }
        Ok(assigned)
    }

    fn range(&self, entry: &str) -> Result<Option<(usize, usize)>, DataError> {
        if self.header.positions.contains_key(entry) {
            return Ok(None);
        }
        let Some((from, to)) = entry.split_once("..") else {
            return Ok(None);
        };
        let from = self.header.position(from.trim())?;
        let to = self.header.position(to.trim())?;
        if to < from {
            return Err(DataError::BackwardRange {
                file: self.header.file.to_path_buf(),
                line: self.header.line,
                range: entry.to_owned(),
            });
        }
        Ok(Some((from, to)))
    }

    fn rest(&self) -> Vec<usize> {
        (0..self.part_of.len()).filter(|&position| self.part_of[position].is_none()).collect()
    }
}
