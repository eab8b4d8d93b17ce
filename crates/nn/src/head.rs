//! The last layer and the loss, at the label holder.

use multiversion::multiversion;
use ndarray::{Array2, ArrayView2};

use crate::activation::sigmoid;
use crate::elementary;
use crate::errors::{ModelError, SpecError};
use crate::layer::{Backward, Layer, Linear};
use crate::matrix::view;
use crate::model::{Mode, Parameter};
use crate::sequential::{WIDTH_MAX, copy_rows, expect_shape};
use crate::spec::{HeadSpec, Loss};

/// A dense layer over `z` and a loss. Its parameters are `head.weight`, `[outputs, k]`, and `head.bias`.
///
/// Labels are one number per row: 0 or 1, a class number, or any finite number, as the [`Loss`] says. Buffers are kept
/// from batch to batch.
pub struct LabelHead {
    input_width: usize,
    outputs: usize,
    loss: Loss,
    linear: Linear,
    z: Vec<f32>,
    logits: Vec<f32>,
    grad_logits: Vec<f32>,
    grad_z: Vec<f32>,
    row_losses: Vec<f32>,
}

impl LabelHead {
    /// Builds the head over a `z` of `input_width` features; the same seed gives the same weights.
    ///
    /// # Errors
    /// [`SpecError::Head`] if the loss is not defined for this many outputs; [`SpecError::HeadInput`].
    pub fn new(input_width: usize, spec: &HeadSpec, seed: u64) -> Result<Self, SpecError> {
        if !(1..=WIDTH_MAX).contains(&input_width) {
            return Err(SpecError::HeadInput { max: WIDTH_MAX, found: input_width });
        }
        let (fits, expected) = match spec.loss {
            Loss::BinaryCrossEntropy | Loss::SquaredError => (spec.linear == 1, "1"),
            // Class numbers are `f32`, which counts exactly to 2²⁴; far fewer fit a head.
            Loss::SoftmaxCrossEntropy => ((2..=65_536).contains(&spec.linear), "2 to 65536, one per class"),
        };
        if !fits {
            return Err(SpecError::Head { loss: spec.loss, expected, found: spec.linear });
        }
        Ok(Self {
            input_width,
            outputs: spec.linear,
            loss: spec.loss,
            linear: Linear::new(seed, "head", input_width, spec.linear),
            z: Vec::new(),
            logits: Vec::new(),
            grad_logits: Vec::new(),
            grad_z: Vec::new(),
            row_losses: Vec::new(),
        })
    }

    /// Width of the scores: 1, or the number of classes.
    pub fn output_width(&self) -> usize {
        self.outputs
    }

    /// The loss that it was built for.
    pub fn loss_kind(&self) -> Loss {
        self.loss
    }

    /// The mean loss over the batch and its gradient: `z: [n, k]`, one label per row, to `grad_z: [n, k]`. Keeps the
    /// gradients of the parameters until the next step.
    ///
    /// # Errors
    /// [`ModelError::Shape`] if `z` is not `[n, k]`, [`ModelError::EmptyBatch`] if `n` is 0, and what
    /// [`LabelHead::check_labels`] finds.
    pub fn step(&mut self, z: ArrayView2<'_, f32>, labels: &[f32]) -> Result<(f32, ArrayView2<'_, f32>), ModelError> {
        if z.nrows() == 0 {
            return Err(ModelError::EmptyBatch);
        }
        let sum = self.forward_loss(z, labels)?;
        let rows = labels.len() as f32;
        self.grad_logits.iter_mut().for_each(|grad| *grad /= rows);
        self.grad_z.resize(self.z.len(), 0.0);
        self.linear.backward(Backward {
            input: &self.z,
            output: &self.logits,
            grad_output: &self.grad_logits,
            grad_input: &mut self.grad_z,
        });
        let mean = (sum / labels.len() as f64) as f32;
        Ok((mean, view(&self.grad_z, self.input_width)))
    }

    /// The predictions, `[n, outputs]`: probabilities (of label 1, or of each class), or the value for squared error.
    ///
    /// # Errors
    /// [`ModelError::Shape`] if `z` is not `[n, k]`.
    pub fn scores(&mut self, z: ArrayView2<'_, f32>) -> Result<Array2<f32>, ModelError> {
        self.forward(z, Mode::Evaluate)?;
        match self.loss {
            Loss::BinaryCrossEntropy => sigmoid(&mut self.logits),
            Loss::SoftmaxCrossEntropy => softmax(&mut self.logits, self.outputs),
            Loss::SquaredError => {}
        }
        Ok(view(&self.logits, self.outputs).to_owned())
    }

    /// The sum of the loss over the rows, which adds up over batches. Keeps no gradient.
    ///
    /// # Errors
    /// [`ModelError::Shape`] if `z` is not `[n, k]`, and what [`LabelHead::check_labels`] finds.
    pub fn loss(&mut self, z: ArrayView2<'_, f32>, labels: &[f32]) -> Result<f64, ModelError> {
        self.forward_loss(z, labels)
    }

    /// Checks that the loss knows every label.
    ///
    /// # Errors
    /// [`ModelError::Label`] names the first row whose label is out of range.
    pub fn check_labels(&self, labels: &[f32]) -> Result<(), ModelError> {
        let outputs = self.outputs as f32;
        let wrong = match self.loss {
            Loss::BinaryCrossEntropy => labels.iter().position(|&y| y != 0.0 && y != 1.0),
            Loss::SoftmaxCrossEntropy => {
                labels.iter().position(|&y| !((0.0..outputs).contains(&y) && y.fract() == 0.0))
            }
            Loss::SquaredError => labels.iter().position(|y| !y.is_finite()),
        };
        let Some(row) = wrong else {
            return Ok(());
        };
        Err(ModelError::Label {
            row,
            expected: match self.loss {
                Loss::BinaryCrossEntropy => "0 or 1".to_owned(),
                Loss::SoftmaxCrossEntropy => {
                    format!("a class number from 0 to {}", self.outputs - 1)
                }
                Loss::SquaredError => "a finite number".to_owned(),
            },
            found: labels[row],
        })
    }

    /// `head.weight`, then `head.bias`.
    pub fn parameters(&mut self) -> Vec<Parameter<'_>> {
        self.linear.parameters()
    }

    /// Sets the logits.
    fn forward(&mut self, z: ArrayView2<'_, f32>, mode: Mode) -> Result<(), ModelError> {
        expect_shape("z", [z.nrows(), self.input_width], z)?;
        copy_rows(z, &mut self.z);
        self.logits.resize(z.nrows() * self.outputs, 0.0);
        self.linear.forward(&self.z, &mut self.logits, mode);
        Ok(())
    }

    /// The sum of the loss; sets the logits and their gradients of that sum.
    fn forward_loss(&mut self, z: ArrayView2<'_, f32>, labels: &[f32]) -> Result<f64, ModelError> {
        if labels.len() != z.nrows() {
            return Err(ModelError::LabelCount { expected: z.nrows(), found: labels.len() });
        }
        self.check_labels(labels)?;
        self.forward(z, Mode::Train)?;
        self.grad_logits.clear();
        self.grad_logits.extend_from_slice(&self.logits);
        self.row_losses.resize(labels.len(), 0.0);
        let (grads, losses) = (&mut self.grad_logits, &mut self.row_losses);
        match self.loss {
            Loss::BinaryCrossEntropy => binary_cross_entropy(grads, labels, losses),
            Loss::SoftmaxCrossEntropy => softmax_cross_entropy(grads, self.outputs, labels, losses),
            Loss::SquaredError => squared_error(grads, labels, losses),
        }
        Ok(sum(&self.row_losses))
    }
}

/// From logits to their gradients, in place, with `loss = ln(1 + exp(x)) - x·y` in the form that never overflows.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512cd+avx512dq+avx512vl", "x86_64+avx2"))]
fn binary_cross_entropy(logits: &mut [f32], labels: &[f32], losses: &mut [f32]) {
    for ((logit, &label), loss) in logits.iter_mut().zip(labels).zip(losses) {
        let x = *logit;
        let e = elementary::exp(-x.abs());
        let inverse = 1.0 / (1.0 + e);
        let probability = if x >= 0.0 { inverse } else { e * inverse };
        let positive = if x <= 0.0 { 0.0 } else { x };
        *loss = positive - x * label + elementary::ln_1p(e);
        *logit = probability - label;
    }
}

fn squared_error(values: &mut [f32], labels: &[f32], losses: &mut [f32]) {
    for ((value, &label), loss) in values.iter_mut().zip(labels).zip(losses) {
        let difference = *value - label;
        *loss = difference * difference;
        *value = 2.0 * difference;
    }
}

/// From logits to their gradients, in place. Labels are checked class numbers.
fn softmax_cross_entropy(logits: &mut [f32], classes: usize, labels: &[f32], losses: &mut [f32]) {
    subtract_row_maximum(logits, classes);
    let rows = logits.chunks_exact(classes).zip(labels);
    for ((row, &label), loss) in rows.zip(&mut *losses) {
        *loss = -row[label as usize];
    }
    exp_in_place(logits);
    let rows = logits.chunks_exact_mut(classes).zip(labels);
    for ((row, &label), loss) in rows.zip(losses) {
        *loss += normalize(row).ln();
        row[label as usize] -= 1.0;
    }
}

/// From logits to probabilities, in place.
fn softmax(logits: &mut [f32], classes: usize) {
    subtract_row_maximum(logits, classes);
    exp_in_place(logits);
    for row in logits.chunks_exact_mut(classes) {
        normalize(row);
    }
}

/// Scales a row to sum 1; the sum it had.
fn normalize(row: &mut [f32]) -> f32 {
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= sum);
    sum
}

/// So that the exponentials cannot overflow; neither the loss nor the probabilities change.
fn subtract_row_maximum(logits: &mut [f32], classes: usize) {
    for row in logits.chunks_exact_mut(classes) {
        let maximum = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|x| *x -= maximum);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512cd+avx512dq+avx512vl", "x86_64+avx2"))]
fn exp_in_place(values: &mut [f32]) {
    for value in values {
        *value = elementary::exp(*value);
    }
}

/// In lanes, because the compiler may not reorder a sum of floats itself.
fn sum(values: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; 16];
    for chunk in values.chunks(16) {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value);
        }
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    fn head(loss: Loss, linear: usize) -> LabelHead {
        LabelHead::new(3, &HeadSpec { linear, loss }, 11).unwrap()
    }

    fn batch(rows: usize) -> Array2<f32> {
        Array2::from_shape_fn((rows, 3), |(i, j)| ((i * 31 + j * 17) % 13) as f32 / 3.0 - 2.0)
    }

    fn labels(loss: Loss, rows: usize) -> Vec<f32> {
        (0..rows)
            .map(|i| match loss {
                Loss::BinaryCrossEntropy => (i % 2) as f32,
                Loss::SoftmaxCrossEntropy => (i % 4) as f32,
                Loss::SquaredError => i as f32 * 0.3 - 1.0,
            })
            .collect()
    }

    const ALL: [(Loss, usize); 3] =
        [(Loss::BinaryCrossEntropy, 1), (Loss::SoftmaxCrossEntropy, 4), (Loss::SquaredError, 1)];

    /// The loss of one row, in `f64`, from the definition.
    fn definition(head: &mut LabelHead, z: &[f32], label: f32) -> f64 {
        let outputs = head.outputs;
        let [weight, bias] = <[Parameter<'_>; 2]>::try_from(head.parameters()).unwrap();
        let logits: Vec<f64> = (0..outputs)
            .map(|o| {
                let products = z.iter().zip(&weight.value[o * z.len()..]);
                products.fold(f64::from(bias.value[o]), |sum, (&z, &w)| sum + f64::from(z) * f64::from(w))
            })
            .collect();
        match head.loss {
            Loss::BinaryCrossEntropy => {
                let p = 1.0 / (1.0 + (-logits[0]).exp());
                -(if label == 1.0 { p } else { 1.0 - p }).ln()
            }
            Loss::SoftmaxCrossEntropy => {
                let sum: f64 = logits.iter().map(|x| x.exp()).sum();
                sum.ln() - logits[label as usize]
            }
            Loss::SquaredError => (logits[0] - f64::from(label)).powi(2),
        }
    }

    fn mean(head: &mut LabelHead, z: &Array2<f32>, labels: &[f32]) -> f64 {
        let rows = z.rows().into_iter().zip(labels);
        let sum: f64 = rows.map(|(z, &label)| definition(head, z.as_slice().unwrap(), label)).sum();
        sum / labels.len() as f64
    }

    #[test]
    fn the_loss_is_its_definition() {
        for (loss, linear) in ALL {
            let mut head = head(loss, linear);
            let (z, labels) = (batch(37), labels(loss, 37));
            let expected = mean(&mut head, &z, &labels);
            let (found, _) = head.step(z.view(), &labels).unwrap();
            assert!((f64::from(found) - expected).abs() < 1e-6 * expected.max(1.0));
            let sum = head.loss(z.view(), &labels).unwrap();
            assert!((sum - 37.0 * expected).abs() < 1e-5 * expected.max(1.0));
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        const STEP: f32 = 1e-3;
        for (loss, linear) in ALL {
            let mut head = head(loss, linear);
            let (mut z, labels) = (batch(9), labels(loss, 9));
            let (_, grad_z) = head.step(z.view(), &labels).unwrap();
            let grad_z = grad_z.to_owned();
            for ((i, j), &found) in grad_z.indexed_iter() {
                let at = z[[i, j]];
                let [low, high] = [at - STEP, at + STEP].map(|moved| {
                    z[[i, j]] = moved;
                    (mean(&mut head, &z, &labels), f64::from(moved))
                });
                z[[i, j]] = at;
                let expected = (high.0 - low.0) / (high.1 - low.1);
                assert!((f64::from(found) - expected).abs() < 1e-5, "{loss} grad_z");
            }
            for p in 0..2 {
                let gradient = head.parameters()[p].gradient.to_vec();
                for (i, &found) in gradient.iter().enumerate() {
                    let at = head.parameters()[p].value[i];
                    let [low, high] = [at - STEP, at + STEP].map(|moved| {
                        head.parameters()[p].value[i] = moved;
                        (mean(&mut head, &z, &labels), f64::from(moved))
                    });
                    head.parameters()[p].value[i] = at;
                    let expected = (high.0 - low.0) / (high.1 - low.1);
                    assert!((f64::from(found) - expected).abs() < 1e-5, "{loss} {p}");
                }
            }
        }
    }

    #[test]
    fn extreme_logits_stay_finite() {
        for (loss, linear) in ALL {
            let mut head = head(loss, linear);
            let z = array![[1e6_f32, -1e6, 1e6], [-1e6, 1e6, -1e6]];
            for labels in [[0.0, 1.0], [1.0, 0.0]] {
                let (mean, grad_z) = head.step(z.view(), &labels).unwrap();
                assert!(mean.is_finite() && grad_z.iter().all(|x| x.is_finite()), "{loss}");
            }
            assert!(head.scores(z.view()).unwrap().iter().all(|x| x.is_finite()));
        }
    }

    #[test]
    fn scores_are_probabilities() {
        let z = batch(20);
        let scores = head(Loss::SoftmaxCrossEntropy, 4).scores(z.view()).unwrap();
        assert_eq!(scores.dim(), (20, 4));
        for row in scores.rows() {
            assert!((row.sum() - 1.0).abs() < 1e-6 && row.iter().all(|&p| p > 0.0));
        }
        let scores = head(Loss::BinaryCrossEntropy, 1).scores(z.view()).unwrap();
        assert!(scores.dim() == (20, 1) && scores.iter().all(|p| (0.0..=1.0).contains(p)));
        let mut head = head(Loss::SquaredError, 1);
        let value = head.scores(z.view()).unwrap()[[3, 0]];
        let expected = definition(&mut head, z.row(3).as_slice().unwrap(), 0.0).sqrt();
        assert!((f64::from(value.abs()) - expected).abs() < 1e-6);
    }

    #[test]
    fn wrong_input_is_an_error() {
        let mut head = head(Loss::SoftmaxCrossEntropy, 4);
        let z = batch(2);
        for (labels, row) in [([4.0, 0.0], 0), ([0.0, -1.0], 1), ([3.0, 1.5], 1), ([f32::NAN, 0.0], 0)] {
            let error = head.step(z.view(), &labels).unwrap_err();
            assert!(matches!(error, ModelError::Label { row: found, .. } if found == row));
            // As text, in which a NaN equals itself.
            let checked = head.check_labels(&labels).unwrap_err();
            assert_eq!(checked.to_string(), error.to_string());
        }
        assert!(matches!(head.step(z.view(), &[0.0]), Err(ModelError::LabelCount { expected: 2, found: 1 })));
        assert!(matches!(head.step(batch(0).view(), &[]), Err(ModelError::EmptyBatch)));
        assert!(matches!(
            head.scores(Array2::zeros((2, 4)).view()),
            Err(ModelError::Shape { what: "z", expected: [2, 3], found: [2, 4] })
        ));
        assert_eq!(head.scores(batch(0).view()).unwrap().dim(), (0, 4));
        let binary = self::head(Loss::BinaryCrossEntropy, 1);
        assert_eq!(
            binary.check_labels(&[1.0, 0.0, 2.0]).unwrap_err().to_string(),
            "the label of row 2 must be 0 or 1, found 2"
        );
        let squared = self::head(Loss::SquaredError, 1);
        squared.check_labels(&[-3.5]).unwrap();
        squared.check_labels(&[f32::INFINITY]).unwrap_err();
    }

    #[test]
    fn a_loss_wants_its_width() {
        for (loss, linear, fits) in [
            (Loss::BinaryCrossEntropy, 1, true),
            (Loss::BinaryCrossEntropy, 2, false),
            (Loss::SquaredError, 0, false),
            (Loss::SoftmaxCrossEntropy, 1, false),
            (Loss::SoftmaxCrossEntropy, 2, true),
        ] {
            let built = LabelHead::new(3, &HeadSpec { linear, loss }, 0);
            assert_eq!(built.is_ok(), fits, "{loss} {linear}");
            if let Err(error) = built {
                assert!(matches!(error, SpecError::Head { found, .. } if found == linear));
            }
        }
        let spec = HeadSpec { linear: 1, loss: Loss::SquaredError };
        assert!(matches!(LabelHead::new(0, &spec, 0), Err(SpecError::HeadInput { found: 0, .. })));
    }
}
