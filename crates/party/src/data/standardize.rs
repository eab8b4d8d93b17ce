//! Features on a common scale: mean 0 and standard deviation 1 over the training rows.

use std::fmt;

use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use super::DataError;

/// Centres and scales each feature by what it was over the training rows, then clips.
///
/// A party fits it on its own rows and keeps it beside its weights: a prediction must see features on the scale of
/// training. Its numbers are statistics of private data, so `Debug` shows their count only.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored")]
pub struct Standardizer {
    feature_names: Vec<String>,
    mean: Vec<f64>,
    scale: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clip: Option<f64>,
}

impl Standardizer {
    /// Takes mean and standard deviation (population, as scikit-learn's `StandardScaler`) of each column of `features`,
    /// `[n, d]`, over `rows` only: a test row must not leave its mark on training.
    ///
    /// A column that is constant over `rows` gets scale 1, so it becomes 0 there. `clip` is the largest magnitude that
    /// [`apply`](Self::apply) lets through: fixed-point numbers have little room for the far tails of raw data (5 is
    /// usual). Computed in `f64` in two passes, so that a large mean does not swallow a small variance.
    ///
    /// # Panics
    /// If `rows` is empty or names a row that is not there, if there is not one name per column, or if `clip` is not a
    /// positive finite number.
    pub fn fit(features: ArrayView2<'_, f32>, rows: &[u32], feature_names: &[String], clip: Option<f64>) -> Self {
        assert!(!rows.is_empty(), "standardising needs a training row");
        assert_eq!(feature_names.len(), features.ncols(), "one name per column");
        assert!(clip.is_none_or(is_positive), "clip must be positive");

        let count = rows.len() as f64;
        let mut mean = vec![0.0; features.ncols()];
        for &row in rows {
            for (sum, &x) in mean.iter_mut().zip(features.row(row as usize)) {
                *sum += f64::from(x);
            }
        }
        for mean in &mut mean {
            *mean /= count;
        }

        let mut scale = vec![0.0; features.ncols()];
        for &row in rows {
            for ((sum, &x), mean) in scale.iter_mut().zip(features.row(row as usize)).zip(&mean) {
                *sum += (f64::from(x) - mean).powi(2);
            }
        }
        for scale in &mut scale {
            let deviation = (*scale / count).sqrt();
            // Exactly 0 for a constant column: up to 2^29 equal `f32` sum up in `f64` without rounding.
            *scale = if deviation > 0.0 { deviation } else { 1.0 };
        }

        Self { feature_names: feature_names.to_vec(), mean, scale, clip }
    }

    /// Standardises `features`, `[n, d]`, in place; the columns are those of [`fit`](Self::fit), which
    /// [`check_names`](Self::check_names) makes sure of. Finite values stay finite, with or without a clip.
    ///
    /// # Panics
    /// If `features` has not the number of columns of `fit`.
    pub fn apply(&self, features: &mut Array2<f32>) {
        assert_eq!(features.ncols(), self.mean.len(), "the columns of the training table");
        let limit = self.clip.unwrap_or(f64::INFINITY).min(f64::from(f32::MAX));
        for mut row in features.rows_mut() {
            for ((x, mean), scale) in row.iter_mut().zip(&self.mean).zip(&self.scale) {
                *x = ((f64::from(*x) - mean) / scale).clamp(-limit, limit) as f32;
            }
        }
    }

    /// Checks that a table's features are those this was fitted on, in the same order.
    ///
    /// # Errors
    /// [`DataError::ColumnMismatch`] at the first difference.
    pub fn check_names(&self, names: &[String]) -> Result<(), DataError> {
        for at in 0..self.feature_names.len().max(names.len()) {
            let (expected, found) = (self.feature_names.get(at), names.get(at));
            if expected != found {
                let or_none = |name: Option<&String>| name.map_or("(none)", |name| name).to_owned();
                return Err(DataError::ColumnMismatch {
                    position: at + 1,
                    expected: or_none(expected),
                    found: or_none(found),
                });
            }
        }
        Ok(())
    }

    /// The features it was fitted on, in order.
    pub fn feature_names(&self) -> &[String] {
        &self.feature_names
    }

    /// What is subtracted from each feature.
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// What each feature is then divided by.
    pub fn scale(&self) -> &[f64] {
        &self.scale
    }

    /// The largest magnitude after scaling, if there is a limit.
    pub fn clip(&self) -> Option<f64> {
        self.clip
    }
}

fn is_positive(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

impl fmt::Debug for Standardizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Standardizer")
            .field("features", &self.mean.len())
            .field("clip", &self.clip)
            .finish_non_exhaustive()
    }
}

/// A [`Standardizer`] as it lies in a file, not yet known to be one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    feature_names: Vec<String>,
    mean: Vec<f64>,
    scale: Vec<f64>,
    clip: Option<f64>,
}

impl TryFrom<Stored> for Standardizer {
    type Error = DataError;

    fn try_from(stored: Stored) -> Result<Self, DataError> {
        let Stored { feature_names, mean, scale, clip } = stored;
        let invalid = |problem| Err(DataError::InvalidStandardizer { problem });
        if mean.len() != feature_names.len() || scale.len() != feature_names.len() {
            return invalid("`feature_names`, `mean` and `scale` differ in length");
        }
        if !mean.iter().all(|mean| mean.is_finite()) {
            return invalid("a mean is not finite");
        }
        if !scale.iter().copied().all(is_positive) {
            return invalid("a scale is not a positive number");
        }
        if !clip.is_none_or(is_positive) {
            return invalid("`clip` is not a positive number");
        }
        Ok(Self { feature_names, mean, scale, clip })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use ndarray::array;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// ```python
    /// >>> from sklearn.preprocessing import StandardScaler
    /// >>> s = StandardScaler().fit([[1, 10], [2, 20], [3, 60]]); s.mean_, s.scale_
    /// (array([ 2., 30.]), array([ 0.81649658, 21.60246899]))
    /// ```
    #[test]
    fn known_numbers() {
        let mut features = array![[1.0, 10.0], [2.0, 20.0], [3.0, 60.0]];
        let standardizer = Standardizer::fit(features.view(), &[0, 1, 2], &names(&["a", "b"]), None);
        assert_eq!(standardizer.mean(), [2.0, 30.0]);
        assert!((standardizer.scale()[0] - 0.816_496_58).abs() < 1e-8);
        assert!((standardizer.scale()[1] - 21.602_468_99).abs() < 1e-8);

        standardizer.apply(&mut features);
        let expected = array![[-1.224_744_9, -0.925_820_1], [0.0, -0.462_910_05], [1.224_744_9, 1.388_730_2]];
        assert!((&features - &expected).iter().all(|x| x.abs() < 1e-6), "{features}");
    }

    #[test]
    fn only_training_rows_count() {
        let all = array![[1.0], [1e6], [3.0], [-1e6]];
        let training = array![[1.0], [3.0]];
        let names = names(&["a"]);
        let on_some = Standardizer::fit(all.view(), &[0, 2], &names, None);
        let on_training = Standardizer::fit(training.view(), &[0, 1], &names, None);
        assert!(on_some == on_training);
        assert_eq!(on_some.mean(), [2.0]);
        assert_eq!(on_some.scale(), [1.0]);

        let mut applied = all;
        on_some.apply(&mut applied);
        assert_eq!(applied, array![[-1.0], [999_998.0], [1.0], [-1_000_002.0]]);
    }

    #[test]
    fn a_constant_column_becomes_zero() {
        let mut features = Array2::from_elem((100_003, 1), 0.1_f32);
        let rows: Vec<_> = (0..100_003).collect();
        let standardizer = Standardizer::fit(features.view(), &rows, &names(&["a"]), None);
        assert_eq!(standardizer.scale(), [1.0]);
        standardizer.apply(&mut features);
        assert!(features.iter().all(|&x| x == 0.0));
    }

    #[test]
    fn a_large_mean_does_not_swallow_the_variance() {
        let features = array![[16_000_000.0], [16_000_001.0]];
        let standardizer = Standardizer::fit(features.view(), &[0, 1], &names(&["a"]), None);
        assert_eq!(standardizer.mean(), [16_000_000.5]);
        assert_eq!(standardizer.scale(), [0.5]);
    }

    #[test]
    fn clips_after_scaling() {
        let mut features = array![[0.0], [2.0], [100.0], [-100.0], [3.0]];
        let standardizer = Standardizer::fit(features.view(), &[0, 1], &names(&["a"]), Some(5.0));
        standardizer.apply(&mut features);
        assert_eq!(features, array![[-1.0], [1.0], [5.0], [-5.0], [2.0]]);
    }

    #[test]
    fn finite_stays_finite_without_a_clip() {
        let mut features = array![[0.0], [1e-44], [f32::MAX]];
        let standardizer = Standardizer::fit(features.view(), &[0, 1], &names(&["a"]), None);
        standardizer.apply(&mut features);
        assert!(features.iter().all(|x| x.is_finite()), "{features}");
    }

    #[test]
    fn other_columns_are_refused() {
        let standardizer = Standardizer::fit(array![[0.0, 1.0]].view(), &[0], &names(&["age", "income"]), None);
        standardizer.check_names(&names(&["age", "income"])).unwrap();

        let text = |found: &[&str]| standardizer.check_names(&names(found)).unwrap_err().to_string();
        assert!(text(&["income", "age"]).starts_with("feature 1 is `income` where `age` is expected"));
        assert!(text(&["age"]).starts_with("feature 2 is `(none)` where `income` is expected"));
        assert!(text(&["age", "income", "x"]).starts_with("feature 3 is `x` where `(none)` is expected"));
    }

    #[test]
    fn survives_storage_and_refuses_what_cannot_be_one() {
        let standardizer =
            Standardizer::fit(array![[0.25, 1.0], [0.5, 7.0]].view(), &[0, 1], &names(&["a", "b"]), Some(5.0));
        let stored = serde_json::to_string(&standardizer).unwrap();
        assert!(serde_json::from_str::<Standardizer>(&stored).unwrap() == standardizer);

        for (json, problem) in [
            (r#"{"feature_names":["a"],"mean":[],"scale":[1],"clip":null}"#, "length"),
            (r#"{"feature_names":["a"],"mean":[0],"scale":[0],"clip":null}"#, "scale"),
            (r#"{"feature_names":["a"],"mean":[0],"scale":[1],"clip":-1}"#, "clip"),
            (r#"{"feature_names":["a"],"mean":[0],"scale":[1],"surplus":1}"#, "surplus"),
        ] {
            let error = serde_json::from_str::<Standardizer>(json).unwrap_err();
            assert!(error.to_string().contains(problem), "{error}");
        }
    }

    #[test]
    fn debug_shows_no_statistics() {
        let standardizer = Standardizer::fit(array![[42.0]].view(), &[0], &names(&["a"]), None);
        assert_eq!(format!("{standardizer:?}"), "Standardizer { features: 1, clip: None, .. }");
    }
}
