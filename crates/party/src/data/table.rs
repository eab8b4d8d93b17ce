//! The plain form that every reader produces.

use std::fmt;

use ndarray::Array2;

use super::Ids;

/// A party's rows: ids, features and, at the label holder, labels, all in the order of the file.
#[derive(Clone, PartialEq)]
pub struct Table {
    /// One id per row, each once. The parts of an id made of several columns are joined by
    /// [`ID_SEPARATOR`](super::ID_SEPARATOR).
    pub ids: Ids,
    /// One name per feature column.
    pub feature_names: Vec<String>,
    /// `[n, d]`, row-major, every value finite.
    pub features: Array2<f32>,
    /// One finite label per row, if the source names a label column.
    pub labels: Option<Vec<f32>>,
}

impl fmt::Debug for Table {
    /// Shapes only: the values are what this party protects.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("rows", &self.ids.len())
            .field("features", &self.features.dim())
            .field("labels", &self.labels.as_ref().map(Vec::len))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_shapes_and_no_values() {
        let table = Table {
            ids: ["alice"].into_iter().collect(),
            feature_names: vec!["income".into(), "age".into()],
            features: ndarray::array![[4242.0, 77.0]],
            labels: Some(vec![1.0]),
        };
        assert_eq!(format!("{table:?}"), "Table { rows: 1, features: (1, 2), labels: Some(1), .. }");
    }
}
