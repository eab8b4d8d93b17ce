//! Where each party's columns are in a simulation: from the `[data]` section of a session file.

use serde::Deserialize;
use spnn_party::data::{ColumnType, Columns, DataError, DataSource, Files, Missing, read_columns};
use spnn_protocol::{DataSection, PartySection, SessionFile};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// What a session file lacks for a simulation.
#[derive(Debug, Error)]
pub enum SourcesError {
    /// Something is missing or does not fit.
    #[error("session: {0}")]
    Session(String),
    /// A file cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
}

/// One source for each party; files are relative to `directory`.
///
/// # Errors
/// [`SourcesError`] naming what the session file lacks.
pub fn sources(section: &DataSection, directory: &Path) -> Result<Vec<DataSource>, SourcesError> {
    let file = |(i, party): (usize, &PartySection)| {
        let file = party.file.as_ref();
        file.map(|file| directory.join(file))
            .ok_or_else(|| SourcesError::Session(format!("data.parties.{i} has no file, which a simulation needs")))
    };
    let files = section.parties.iter().enumerate().map(file).collect::<Result<Vec<_>, _>>()?;
    sources_in(section, &files)
}

/// As [`sources`], with other files than the session file names: one for each party, or one for all.
///
/// # Errors
/// [`SourcesError`] if they are of another number than the parties, or do not have the columns.
pub fn sources_in(section: &DataSection, files: &[PathBuf]) -> Result<Vec<DataSource>, SourcesError> {
    let parties = section.parties.len();
    if ![1, parties].contains(&files.len()) {
        let message = format!("{} files for {parties} parties; name one for each", files.len());
        return Err(SourcesError::Session(message));
    }
    let wrong = |name: &str, e: toml::de::Error| SourcesError::Session(format!("data.{name}: {}", e.message()));
    let id = section.id.clone().map(|id| Columns::deserialize(id).map_err(|e| wrong("id", e))).transpose()?;
    let missing = section.missing.clone().map(|m| Missing::deserialize(m).map_err(|e| wrong("missing", e)));
    let missing = missing.transpose()?.unwrap_or_default();
    let types = section.types.iter().map(|(column, value)| {
        let kind = ColumnType::deserialize(value.clone()).map_err(|e| wrong(&format!("types.{column}"), e))?;
        Ok((column.clone(), kind))
    });
    let types = types.collect::<Result<BTreeMap<_, _>, SourcesError>>()?;
    let source = |(party, file): (&PartySection, &PathBuf)| {
        let all = DataSource::new(Files::One(file.clone()));
        DataSource {
            id: id.clone(),
            row_numbers_as_ids: section.row_numbers_as_ids,
            label: section.label.clone(),
            columns: party.columns.clone(),
            missing,
            categories_max: section.categories_max.unwrap_or(all.categories_max),
            memory_max_mib: section.memory_max_mib.unwrap_or(all.memory_max_mib),
            ..all
        }
    };
    let sources = section.parties.iter().zip(files.iter().cycle()).map(source).collect();
    share(sources, types, section)
}

/// Gives each party the types, and what is to be ignored, of the columns that its file has.
fn share(
    mut sources: Vec<DataSource>,
    types: BTreeMap<String, ColumnType>,
    section: &DataSection,
) -> Result<Vec<DataSource>, SourcesError> {
    if types.is_empty() && section.ignore.is_empty() {
        return Ok(sources);
    }
    // New rows that are to be predicted have no label.
    let typed = types.keys().filter(|column| Some(*column) != section.label.as_ref()).map(|column| ("types", column));
    let mut absent: BTreeSet<_> = typed.chain(section.ignore.iter().map(|column| ("ignore", column))).collect();
    for source in &mut sources {
        let columns: BTreeSet<String> = read_columns(source)?.into_iter().collect();
        source.types = types.iter().filter(|(c, _)| columns.contains(*c)).map(|(c, t)| (c.clone(), *t)).collect();
        if source.columns.is_none() {
            source.ignore = section.ignore.iter().filter(|column| columns.contains(*column)).cloned().collect();
        }
        absent.retain(|(_, column)| !columns.contains(*column));
    }
    match absent.first() {
        None => Ok(sources),
        Some((list, column)) => {
            Err(SourcesError::Session(format!("data.{list}: no party has a column named {column}")))
        }
    }
}

/// Splits the feature columns of the one file that all parties of the session read over `parties` parties, in file
/// order, as evenly as can be. The first one holds the labels.
///
/// # Errors
/// [`SourcesError`] if the parties have different files or there are fewer columns than parties.
pub fn split_columns(file: &mut SessionFile, directory: &Path, parties: u16) -> Result<(), SourcesError> {
    let all = sources(&file.data, directory)?;
    let [first, others @ ..] = &all[..] else {
        return Err(SourcesError::Session("data.parties is empty".into()));
    };
    if others.iter().any(|o| o.file != first.file) {
        return Err(SourcesError::Session(
            "--parties splits the columns of one file, but the parties of this session have a file each".into(),
        ));
    }
    let listed: Option<Vec<String>> =
        all.iter().map(|s| s.columns.clone()).collect::<Option<Vec<_>>>().map(|c| c.concat());
    let whole = DataSource { columns: listed, ..first.clone() };
    let columns = spnn_party::data::feature_columns(&whole)?;
    let k = usize::from(parties);
    if k == 0 || columns.len() < k {
        return Err(SourcesError::Session(format!("{} columns cannot be split over {parties} parties", columns.len())));
    }
    let path = file.data.parties[0].file.clone();
    file.data.parties = (0..k)
        .map(|i| PartySection {
            file: path.clone(),
            columns: Some(columns[columns.len() * i / k..columns.len() * (i + 1) / k].to_vec()),
            label_holder: i == 0,
        })
        .collect();
    Ok(())
}

/// Whether the header of a party's file has the label column.
///
/// # Errors
/// [`DataError`] naming the file.
pub fn has_label(source: &DataSource) -> Result<bool, DataError> {
    let Some(label) = &source.label else { return Ok(false) };
    Ok(read_columns(source)?.contains(label))
}
