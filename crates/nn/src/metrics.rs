//! How good predictions are.

use ndarray::ArrayView2;

use crate::spec::Loss;

/// The area under the ROC curve: how often a row of label 1 scores above a row of label 0, ties counting half.
///
/// A label above 0.5 is a 1. None if there is no such pair, if a score is NaN, or if the lengths differ.
pub fn auc(scores: &[f32], labels: &[f32]) -> Option<f64> {
    if scores.len() != labels.len() || scores.iter().any(|score| score.is_nan()) {
        return None;
    }
    let mut rows: Vec<(f32, bool)> = scores.iter().zip(labels).map(|(&score, &label)| (score, label > 0.5)).collect();
    rows.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));

    // The Mann–Whitney U of the positives, twice, in whole numbers: u64 holds 2³¹ rows of each class.
    let (mut negatives, mut positives, mut twice_wins) = (0_u64, 0_u64, 0_u64);
    // `==` and not the order's equality: -0 and 0 tie.
    for tied in rows.chunk_by(|a, b| a.0 == b.0) {
        let tied_positives = tied.iter().map(|row| u64::from(row.1)).sum::<u64>();
        let tied_negatives = tied.iter().map(|row| u64::from(!row.1)).sum::<u64>();
        twice_wins += tied_positives * (2 * negatives + tied_negatives);
        positives += tied_positives;
        negatives += tied_negatives;
    }
    let pairs = positives * negatives;
    (pairs > 0).then(|| twice_wins as f64 / (2.0 * pairs as f64))
}

/// The share of rows predicted right, from `scores: [n, outputs]` of [`crate::LabelHead::scores`]: a probability of at
/// least one half means label 1, the most probable class is the prediction.
///
/// None for squared error, for no rows, or if there is not one label per row.
pub fn accuracy(scores: ArrayView2<'_, f32>, labels: &[f32], loss: Loss) -> Option<f64> {
    if scores.nrows() != labels.len() || scores.is_empty() {
        return None;
    }
    let rows = scores.rows().into_iter().zip(labels);
    let right = match loss {
        Loss::BinaryCrossEntropy => rows.filter(|(row, label)| (row[0] >= 0.5) == (**label > 0.5)).count(),
        Loss::SoftmaxCrossEntropy => rows
            .filter(|(row, label)| {
                let classes = row.iter().enumerate();
                let best = classes.fold(
                    (0, f32::NEG_INFINITY),
                    |best, (class, &score)| {
                        if score > best.1 { (class, score) } else { best }
                    },
                );
                best.0 as f32 == **label
            })
            .count(),
        Loss::SquaredError => return None,
    };
    Some(right as f64 / labels.len() as f64)
}

#[cfg(test)]
mod tests {
    use ndarray::array;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn auc_of_small_cases() {
        let labels = [0.0, 0.0, 1.0, 1.0];
        assert_eq!(auc(&[0.1, 0.4, 0.35, 0.8], &labels), Some(0.75));
        assert_eq!(auc(&[0.1, 0.2, 0.3, 0.4], &labels), Some(1.0));
        assert_eq!(auc(&[0.4, 0.3, 0.2, 0.1], &labels), Some(0.0));
        assert_eq!(auc(&[0.5; 4], &labels), Some(0.5));
        assert_eq!(auc(&[0.0, -0.0, -0.0, 0.0], &labels), Some(0.5));
    }

    #[test]
    fn no_auc_without_a_pair() {
        assert_eq!(auc(&[], &[]), None);
        assert_eq!(auc(&[0.1, 0.2], &[1.0, 1.0]), None);
        assert_eq!(auc(&[0.1, 0.2], &[0.0, 0.0]), None);
        assert_eq!(auc(&[0.1, f32::NAN], &[0.0, 1.0]), None);
        assert_eq!(auc(&[0.1], &[0.0, 1.0]), None);
    }

    #[test]
    fn accuracy_counts_rows() {
        let binary = array![[0.5], [0.49], [0.9], [0.1]];
        let labels = [1.0, 0.0, 0.0, 0.0];
        let loss = Loss::BinaryCrossEntropy;
        assert_eq!(accuracy(binary.view(), &labels, loss), Some(0.75));
        assert_eq!(accuracy(binary.view(), &labels, Loss::SquaredError), None);
        assert_eq!(accuracy(binary.view(), &labels[..2], loss), None);
        assert_eq!(accuracy(ArrayView2::from_shape((0, 1), &[]).unwrap(), &[], loss), None);
        let classes = array![[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]];
        let loss = Loss::SoftmaxCrossEntropy;
        assert_eq!(accuracy(classes.view(), &[1.0, 2.0], loss), Some(0.5));
    }

    proptest! {
        #[test]
        fn auc_is_its_definition(rows in prop::collection::vec((-4_i8..4, any::<bool>()), 0..60)) {
            let scores: Vec<f32> = rows.iter().map(|row| f32::from(row.0) / 4.0).collect();
            let labels: Vec<f32> = rows.iter().map(|row| f32::from(u8::from(row.1))).collect();
            let (mut wins, mut pairs) = (0.0, 0.0);
            for positive in rows.iter().filter(|row| row.1) {
                for negative in rows.iter().filter(|row| !row.1) {
                    pairs += 1.0;
                    wins += match positive.0.cmp(&negative.0) {
                        std::cmp::Ordering::Greater => 1.0,
                        std::cmp::Ordering::Equal => 0.5,
                        std::cmp::Ordering::Less => 0.0,
                    };
                }
            }
            prop_assert_eq!(auc(&scores, &labels), (pairs > 0.0).then(|| wins / pairs));
        }
    }
}
