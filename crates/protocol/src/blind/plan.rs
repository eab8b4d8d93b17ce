//! Scales, levels and noise of a blind evaluation.
//!
//! Every value has a scale; squares square it, weights multiply it, and each rescaling divides it by a prime of about 2^36.
//! Residues are exact modulo what is left, so values may exceed the modulus on the way: only outputs have to fit. What errors can
//! come to is bounded layer by layer, for every |h1| up to a bound, because the noise that hides them must be 2^40 times as
//! large; more limbs make room for larger scales and so for smaller errors.
//!
//! What the noise leaves of an error: a coefficient e under uniform noise of ±A is at a statistical distance of |e|/(2A) from the
//! noise alone. Let r be the root mean square of the error over the slots; that over the coefficients is r/√n, and A is 2^40·8·r or
//! more. The n coefficients together are at most n·(r/√n)/(2A) = √n/2^44 = 2^-37 away.

use super::layers::{Layer, Layers};
use super::{OUTPUT_LEVEL, PRESET};
use spnn_ckks::{Context, FLOODING_BITS};
use std::ops::RangeInclusive;

/// How the layers are evaluated.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// Level of what parties encrypt.
    pub(super) level: usize,
    /// Its scale.
    pub(super) scale: f64,
    /// Levels that are left after each linear layer.
    pub(super) levels: Vec<usize>,
    /// log2 of the error, in units of the output's scale, that flooding hides.
    pub(super) error_log2: u32,
    /// log2 of what no |z| exceeds as long as no |h1| exceeds its bound.
    pub(super) output_log2: u32,
    /// Standard deviation of what z is off by in the end.
    pub(super) error: f64,
}

/// Standard deviation of an error's coefficient.
const SIGMA: f64 = 3.24;
/// So many standard deviations of a Gaussian sum are exceeded in one slot of 10^14.
const TAIL: f64 = 8.0;
/// An error below this is as good as none beside what training leaves open.
const ERROR_WANTED: f64 = 1.0 / 4096.0;
/// What is accepted where there is no more room, relative to the largest z there can be.
const ERROR_SHARE_MAX: f64 = 1.0 / 4096.0;
/// log2 of scales that are tried, for H1, and as what no rescaling on the way goes below.
const SCALES: RangeInclusive<u32> = 30..=110;
/// Flooding noise is drawn as 64-bit numbers: 2^(20 + 40).
const ERROR_LOG2_MAX: f64 = 20.0;

/// Evaluation on its way through the layers. Values are the largest in any slot; errors are root mean squares over all slots,
/// which no coefficient exceeds by itself, times [`TAIL`].
struct Course<'a> {
    context: &'a Context,
    level: usize,
    scale: f64,
    parts: u32,
    /// Largest value.
    value: f64,
    error: f64,
}

impl Course<'_> {
    fn n(&self) -> f64 {
        self.context.n() as f64
    }

    /// The mean of |s|^(2p) over all slots, which are about complex Gaussians of variance 2n/3. Part p is multiplied by s^p.
    fn secret(&self, p: u32) -> f64 {
        (1..=p).map(|k| f64::from(k) * 2.0 / 3.0 * self.n()).product()
    }

    /// Of a fresh encryption under the public key, or what re-randomising adds in the last part.
    fn public_noise(&self) -> f64 {
        TAIL * SIGMA * self.n() * (4.0_f64 / 3.0).sqrt()
    }

    fn rounding(&self) -> f64 {
        let variance: f64 = (0..self.parts).map(|p| self.secret(p)).sum();
        (self.n() / 12.0 * variance).sqrt()
    }

    fn rescale(&mut self) {
        self.scale /= self.context.limbs()[self.level].value() as f64;
        self.level -= 1;
        self.error += TAIL * self.rounding() / self.scale;
    }

    /// What a segment of layers refuses.
    fn fits(&self) -> bool {
        self.scale.is_finite() && self.scale.log2() < self.context.log2_modulus(self.level) - 1.0
    }
}

impl Plan {
    /// The plan with the fewest limbs whose error is small, or the one with the smallest error.
    ///
    /// # Errors
    /// Why there is none: what is too large.
    pub(super) fn new(context: &Context, layers: &Layers, parties: u16, h1_max: f64) -> Result<Self, String> {
        let mut best: Option<Self> = None;
        for level in OUTPUT_LEVEL..=PRESET.level_max() {
            let exponents = SCALES.flat_map(|scale| SCALES.step_by(4).map(move |floor| [scale, floor]));
            let plans = exponents.filter_map(|exponents| {
                let [scale, floor] = exponents.map(|log2| f64::from(log2).exp2());
                Self::at(context, layers, parties, h1_max, [scale, floor], level)
            });
            let Some(plan) = plans.min_by(|a, b| a.error.total_cmp(&b.error)) else { continue };
            if plan.error <= ERROR_WANTED {
                return Ok(plan);
            }
            if best.as_ref().is_none_or(|best| plan.error < best.error) {
                best = Some(plan);
            }
        }
        let too_large =
            "weights and values are too large for the encryption: fewer squares, smaller weights, or data.clip";
        match best {
            Some(plan) if plan.error <= f64::from(plan.output_log2).exp2() * ERROR_SHARE_MAX => Ok(plan),
            Some(plan) => {
                Err(format!("{too_large} (z of up to 2^{} would be off by {:.1e})", plan.output_log2, plan.error))
            }
            None => Err(format!("{too_large} (|h1| of up to {h1_max:.1e})")),
        }
    }

    /// The plan that begins at that level and scale and rescales down to `floor`, if it works.
    fn at(
        context: &Context,
        layers: &Layers,
        parties: u16,
        h1_max: f64,
        [scale, floor]: [f64; 2],
        level: usize,
    ) -> Option<Self> {
        let mut at = Course { context, level, scale, parts: 2, value: h1_max, error: 0.0 };
        at.error = f64::from(parties) * at.public_noise() / scale;
        at.value += layers.bias.iter().fold(0.0, |largest, b| f64::max(largest, b.abs()));
        let mut levels = Vec::new();
        let mut fits = at.fits();
        for (number, layer) in layers.layers.iter().enumerate() {
            match layer {
                Layer::Square => {
                    at.error = (2.0 * at.value + at.error) * at.error;
                    at.value *= at.value;
                    at.scale *= at.scale;
                    at.parts = 2 * at.parts - 1;
                    fits &= at.fits();
                }
                Layer::Linear(linear) => {
                    at.error = linear.error_bound(at.error);
                    at.value = linear.bound(at.value);
                    at.scale *= linear.unit();
                    fits &= at.fits();
                    // After the last layer the results are hidden first.
                    let is_last = number + 1 == layers.layers.len();
                    while !is_last && at.level > OUTPUT_LEVEL && next_scale(&at) >= floor {
                        at.rescale();
                    }
                    levels.push(at.level);
                }
            }
        }
        // Re-randomised, then rescaled: what that rounds depends on parts that are as good as random.
        at.error += at.public_noise() * (0..=at.parts - 2).map(|k| at.secret(k)).sum::<f64>().sqrt() / at.scale;
        let hidden = at.error;
        while at.level > OUTPUT_LEVEL {
            at.rescale();
        }
        let error_log2 = (hidden * at.scale + 2.0).log2().ceil();
        let room = context.log2_modulus(OUTPUT_LEVEL) - 2.0;
        let output_log2 = (at.value + 1.0).log2().ceil();
        fits &= error_log2 <= ERROR_LOG2_MAX && at.scale >= 1.0 && output_log2 + at.scale.log2() <= room;
        if !fits || !at.value.is_finite() {
            return None;
        }
        let flooded = at.n().sqrt() * (error_log2 + f64::from(FLOODING_BITS)).exp2() / 3_f64.sqrt();
        let error = flooded.hypot(at.rounding() * 1.5) / at.scale;
        let (error_log2, output_log2) = (error_log2 as u32, output_log2 as u32);
        Some(Self { level, scale, levels, error_log2, output_log2, error })
    }
}

fn next_scale(at: &Course<'_>) -> f64 {
    at.scale / at.context.limbs()[at.level].value() as f64
}
