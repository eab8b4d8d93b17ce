//! Where each party's columns are in a simulation: from the `[data]` section of a session file.

use serde::Deserialize;
use spnn_party::data::{Columns, DataError, DataSource, read_columns};
use spnn_protocol::{DataSection, PartySection, SessionFile};
use std::path::Path;
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
    let id = section
        .id
        .clone()
        .map(|value| Columns::deserialize(value).map_err(|e| SourcesError::Session(format!("data.id: {e}"))))
        .transpose()?;
    let source = |(i, party): (usize, &PartySection)| {
        let file = party
            .file
            .as_ref()
            .ok_or_else(|| SourcesError::Session(format!("data.parties.{i} has no file, which a simulation needs")))?;
        Ok(DataSource {
            file: directory.join(file),
            id: id.clone(),
            row_numbers_as_ids: section.row_numbers_as_ids,
            label: section.label.clone(),
            columns: party.columns.clone(),
            ignore: Vec::new(),
        })
    };
    section.parties.iter().enumerate().map(source).collect()
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
