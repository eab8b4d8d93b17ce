//! Layer normalisation.

use super::{Backward, Layer, Weight};
use crate::model::{Mode, Parameter};

/// PyTorch's default; keeps the division finite for a row of equal features.
const EPSILON: f32 = 1e-5;

/// `(x - mean) / √(variance + ε)` over each row, then a learned scale and offset per feature if affine.
///
/// Source: Ba, Kiros and Hinton, arXiv:1607.06450.
pub(crate) struct LayerNorm {
    width: usize,
    affine: Option<Affine>,
    /// The mean and `1/√(variance + ε)` of each row of the last forward pass.
    moments: Vec<[f32; 2]>,
    /// `grad_output` times the scale, and the normalised row.
    scratch: [Vec<f32>; 2],
}

struct Affine {
    weight: Weight,
    bias: Weight,
}

impl LayerNorm {
    /// `prefix` is the name before `.weight` and `.bias`.
    pub(crate) fn new(prefix: &str, width: usize, affine: bool) -> Self {
        Self {
            width,
            affine: affine.then(|| Affine {
                weight: Weight::constant(format!("{prefix}.weight"), &[width], 1.0),
                bias: Weight::constant(format!("{prefix}.bias"), &[width], 0.0),
            }),
            moments: Vec::new(),
            scratch: [vec![0.0; width], vec![0.0; width]],
        }
    }
}

impl Layer for LayerNorm {
    fn forward(&mut self, input: &[f32], output: &mut [f32], _mode: Mode) {
        self.moments.clear();
        let rows = input.chunks_exact(self.width);
        for (input, output) in rows.zip(output.chunks_exact_mut(self.width)) {
            let mean = mean(input, |x| x);
            let variance = self::mean(input, |x| (x - mean) * (x - mean));
            let scale = 1.0 / (variance + EPSILON).sqrt();
            self.moments.push([mean, scale]);
            for (output, &x) in output.iter_mut().zip(input) {
                *output = (x - mean) * scale;
            }
            if let Some(Affine { weight, bias }) = &self.affine {
                let learned = weight.value.iter().zip(&bias.value);
                for (output, (&weight, &bias)) in output.iter_mut().zip(learned) {
                    *output = *output * weight + bias;
                }
            }
        }
    }

    fn backward(&mut self, pass: Backward<'_>) {
        if let Some(Affine { weight, bias }) = &mut self.affine {
            weight.gradient.fill(0.0);
            bias.gradient.fill(0.0);
        }
        let [grad, normal] = &mut self.scratch;
        let inputs = pass.input.chunks_exact(self.width);
        let grads_output = pass.grad_output.chunks_exact(self.width);
        let grads_input = pass.grad_input.chunks_exact_mut(self.width);
        let rows = inputs.zip(grads_output).zip(grads_input);
        for (((input, grad_output), grad_input), &[mean, scale]) in rows.zip(&self.moments) {
            for (normal, &x) in normal.iter_mut().zip(input) {
                *normal = (x - mean) * scale;
            }
            grad.copy_from_slice(grad_output);
            if let Some(Affine { weight, bias }) = &mut self.affine {
                add_product(&mut weight.gradient, grad_output, normal);
                for (sum, &g) in bias.gradient.iter_mut().zip(grad_output) {
                    *sum += g;
                }
                for (grad, &weight) in grad.iter_mut().zip(&weight.value) {
                    *grad *= weight;
                }
            }
            let grad_mean = self::mean(grad, |g| g);
            for ((out, &g), &x) in grad_input.iter_mut().zip(&*grad).zip(&*normal) {
                *out = g * x;
            }
            let slope = self::mean(grad_input, |product| product);
            for ((out, &g), &x) in grad_input.iter_mut().zip(&*grad).zip(&*normal) {
                *out = scale * (g - grad_mean - x * slope);
            }
        }
    }

    fn parameters(&mut self) -> Vec<Parameter<'_>> {
        match &mut self.affine {
            None => Vec::new(),
            Some(Affine { weight, bias }) => vec![weight.parameter(), bias.parameter()],
        }
    }
}

fn add_product(sums: &mut [f32], a: &[f32], b: &[f32]) {
    for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
        *sum += a * b;
    }
}

/// In lanes, because the compiler may not reorder a sum of floats itself.
#[inline(always)]
fn mean(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; 16];
    for chunk in values.chunks(16) {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += term(value);
        }
    }
    lanes.iter().sum::<f32>() / values.len() as f32
}
