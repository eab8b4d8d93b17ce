//! The file, the files or the directory that hold a party's table.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{DataError, Format};

/// One path or several. A path may be a directory: then it stands for its files, sorted by name, all of one format.
/// Names that begin with `.` or `_` are passed over, as other programs put their marks there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Files {
    /// A file or a directory.
    One(PathBuf),
    /// Files whose rows follow each other in this order.
    Many(Vec<PathBuf>),
}

impl Files {
    /// The paths as they are written.
    #[must_use]
    pub fn paths(&self) -> &[PathBuf] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Many(paths) => paths,
        }
    }

    /// Replaces each path by what `change` makes of it.
    ///
    /// # Errors
    /// The first that `change` has.
    pub fn try_map<E>(&mut self, change: impl Fn(&Path) -> Result<PathBuf, E>) -> Result<(), E> {
        let paths = match self {
            Self::One(path) => std::slice::from_mut(path),
            Self::Many(paths) => paths,
        };
        paths.iter_mut().try_for_each(|path| {
            *path = change(path)?;
            Ok(())
        })
    }

    /// Puts `base` before each path that is relative.
    pub fn put_below(&mut self, base: &Path) {
        let Ok(()) = self.try_map(|path| Ok::<_, std::convert::Infallible>(base.join(path)));
    }

    /// All files, in the order of their rows; at least one.
    pub(super) fn list(&self) -> Result<Vec<PathBuf>, DataError> {
        let mut files = Vec::new();
        for path in self.paths() {
            if path.is_dir() {
                files.extend(in_directory(path)?);
            } else {
                files.push(path.clone());
            }
        }
        if files.is_empty() {
            return Err(DataError::NoFiles { file: self.paths().first().cloned().unwrap_or_default() });
        }
        Ok(files)
    }
}

fn in_directory(directory: &Path) -> Result<Vec<PathBuf>, DataError> {
    let open = |source| DataError::Open { file: directory.to_path_buf(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(open)? {
        let name = entry.map_err(open)?.file_name();
        if !name.to_string_lossy().starts_with(['.', '_']) {
            files.push(directory.join(name));
        }
    }
    files.sort();
    let mut first: Option<(Format, &PathBuf)> = None;
    for file in &files {
        let format = Format::of(file)?;
        let (expected, of) = first.get_or_insert((format, file));
        if *expected != format {
            return Err(DataError::MixedFormats { file: file.clone(), other: of.clone() });
        }
    }
    if files.is_empty() {
        return Err(DataError::NoFiles { file: directory.to_path_buf() });
    }
    Ok(files)
}

impl<P: Into<PathBuf>> From<P> for Files {
    fn from(path: P) -> Self {
        Self::One(path.into())
    }
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.paths() {
            [] => f.write_str("(no file)"),
            [one] => write!(f, "{}", one.display()),
            [first, others @ ..] => write!(f, "{} and {} more", first.display(), others.len()),
        }
    }
}
