//! Dropout.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::{Backward, Layer};
use crate::init::init_rng;
use crate::model::Mode;

/// Sets features to zero with probability `p` while training, and scales the others by `1/(1 - p)`.
///
/// One word of the layer's own stream per feature, so the masks follow from the seed and the steps before.
pub(crate) struct Dropout {
    /// A word below this drops; it has 32 bits.
    threshold: u64,
    scale: f32,
    rng: ChaCha8Rng,
    mask: Vec<f32>,
}

impl Dropout {
    pub(crate) fn new(seed: u64, name: &str, probability: f32) -> Self {
        Self {
            threshold: (f64::from(probability) * 2_f64.powi(32)) as u64,
            scale: 1.0 / (1.0 - probability),
            rng: init_rng(seed, name),
            mask: Vec::new(),
        }
    }
}

impl Layer for Dropout {
    fn forward(&mut self, input: &[f32], output: &mut [f32], mode: Mode) {
        match mode {
            Mode::Evaluate => output.copy_from_slice(input),
            Mode::Train => {
                let (rng, threshold, scale) = (&mut self.rng, self.threshold, self.scale);
                self.mask.clear();
                self.mask.extend(input.iter().map(|_| if u64::from(rng.next_u32()) < threshold { 0.0 } else { scale }));
                multiply(input, &self.mask, output);
            }
        }
    }

    fn backward(&mut self, pass: Backward<'_>) {
        multiply(pass.grad_output, &self.mask, pass.grad_input);
    }

    fn rng(&self) -> Option<&ChaCha8Rng> {
        Some(&self.rng)
    }

    fn rng_mut(&mut self) -> Option<&mut ChaCha8Rng> {
        Some(&mut self.rng)
    }
}

fn multiply(a: &[f32], b: &[f32], out: &mut [f32]) {
    for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
        *out = a * b;
    }
}
