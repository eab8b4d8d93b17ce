//! Which column of a file is what: id, label, feature or nothing.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::{ColumnType, Columns, DataError, DataSource, Excerpt};

/// More names than this do not help to find a misspelt one.
const AVAILABLE_SHOWN: usize = 8;

/// A file's column names: each once.
#[derive(Clone)]
pub(super) struct Header {
    file: PathBuf,
    /// Where the format has lines.
    line: Option<u64>,
    names: Vec<String>,
    positions: HashMap<String, usize>,
    /// Columns that hold more than plain values, and what.
    unreadable: BTreeMap<usize, String>,
}

/// The columns to read, as positions in the file.
#[derive(Clone)]
pub(super) struct Selection {
    /// In the order in which they make up the id; none when row numbers are the ids.
    pub(super) ids: Vec<usize>,
    pub(super) label: Option<usize>,
    /// In the order of the table's features; at least one.
    pub(super) features: Vec<usize>,
}

impl Header {
    pub(super) fn new(file: &Path, line: Option<u64>, names: Vec<String>) -> Result<Self, DataError> {
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
        Ok(Self { file: file.to_path_buf(), line, names, positions, unreadable: BTreeMap::new() })
    }

    /// The same, where some columns cannot be read: they hold what is said with each.
    pub(super) fn with_unreadable(self, unreadable: BTreeMap<usize, String>) -> Self {
        Self { unreadable, ..self }
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    pub(super) fn line(&self) -> Option<u64> {
        self.line
    }

    pub(super) fn unreadable(&self) -> &BTreeMap<usize, String> {
        &self.unreadable
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
            return Err(DataError::NoFeatures { file: self.file.clone(), line: self.line });
        }
        if let Some(unnamed) = features.iter().find(|&&at| self.names[at].is_empty()) {
            return Err(DataError::UnnamedColumn { file: self.file.clone(), line: self.line, position: unnamed + 1 });
        }
        let selection = Selection { ids, label, features };
        for positions in [&selection.ids[..], selection.label.as_slice(), &selection.features] {
            self.check_readable(positions)?;
        }
        self.check_types(source)?;
        Ok(selection)
    }

    /// Types may name columns that are not read, as one list may serve several selections, but no others.
    fn check_types(&self, source: &DataSource) -> Result<(), DataError> {
        for (column, &found) in &source.types {
            let (file, name) = (self.file.clone(), column.clone());
            if !self.positions.contains_key(column) {
                let (available, columns) = self.available();
                return Err(DataError::TypeOfNoColumn { file, column: name, available, columns });
            }
            match found {
                ColumnType::Hashed(buckets) if !ColumnType::BUCKETS.contains(&buckets) => {
                    return Err(DataError::Buckets { file, column: name, found: buckets });
                }
                ColumnType::Numeric | ColumnType::Boolean => {}
                ColumnType::Categorical | ColumnType::Hashed(_) | ColumnType::Date => {
                    if source.label.as_ref() == Some(column) {
                        return Err(DataError::LabelType { file, column: name, found });
                    }
                }
            }
        }
        Ok(())
    }

    /// Where the columns of these names are.
    pub(super) fn find_named(&self, names: &[String]) -> Result<Vec<usize>, DataError> {
        let found = names.iter().map(|name| self.position(name)).collect::<Result<Vec<_>, _>>()?;
        self.check_readable(&found)?;
        Ok(found)
    }

    /// The same selection as in `first`, in a file that must have the same columns, perhaps in another order.
    pub(super) fn find(&self, selection: &Selection, first: &Self) -> Result<Selection, DataError> {
        Ok(Selection {
            ids: self.find_all(&selection.ids, first)?,
            label: self.find_all(selection.label.as_slice(), first)?.pop(),
            features: self.find_all(&selection.features, first)?,
        })
    }

    /// Where the columns are that have these positions in `first`.
    pub(super) fn find_all(&self, positions: &[usize], first: &Self) -> Result<Vec<usize>, DataError> {
        let other = || first.file.clone();
        if let Some(missing) = first.names.iter().find(|name| !self.positions.contains_key(*name)) {
            let (file, column) = (self.file.clone(), missing.clone());
            return Err(DataError::ColumnMissingInFile { file, other: other(), column });
        }
        if let Some(surplus) = self.names.iter().find(|name| !first.positions.contains_key(*name)) {
            let (file, column) = (self.file.clone(), surplus.clone());
            return Err(DataError::ColumnOnlyInFile { file, other: other(), column });
        }
        let found = positions.iter().map(|&at| self.position(&first.names[at])).collect::<Result<Vec<_>, _>>()?;
        self.check_readable(&found)?;
        Ok(found)
    }

    fn check_readable(&self, positions: &[usize]) -> Result<(), DataError> {
        let unreadable = positions.iter().find_map(|at| Some((at, self.unreadable.get(at)?)));
        let Some((&at, kind)) = unreadable else { return Ok(()) };
        let (column, kind) = (self.names[at].clone(), kind.clone());
        Err(DataError::UnsupportedColumn { file: self.file.clone(), column, kind })
    }

    fn available(&self) -> (Vec<Excerpt>, usize) {
        (self.names.iter().take(AVAILABLE_SHOWN).map(|name| Excerpt::new(name)).collect(), self.names.len())
    }

    fn position(&self, name: &str) -> Result<usize, DataError> {
        self.positions.get(name).copied().ok_or_else(|| {
            let (available, columns) = self.available();
            let (file, line) = (self.file.clone(), self.line);
            DataError::MissingColumn { file, line, column: name.to_owned(), available, columns }
        })
    }
}

/// The parts given so far.
struct Parts<'a> {
    header: &'a Header,
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
                file: self.header.file.clone(),
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
                file: self.header.file.clone(),
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
