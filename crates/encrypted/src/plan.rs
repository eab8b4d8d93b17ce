//! How a network goes through an encryption: scales, levels, what is left of precision.

use crate::{Layer, Network};
use spnn_ckks::{Context, Preset};
use std::ops::Range;
use thiserror::Error;

/// How a network is evaluated with a sample in every slot.
///
/// The first linear layer works on fresh ciphertexts, each square doubles the scale's bits, and every linear layer between two
/// squares is followed by a rescaling: of its outputs, because they are the fewest. Nothing is relinearised: p parts become
/// 2p − 1 with each square.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What inputs are multiplied by.
    pub scale: f64,
    /// Layers between rescalings.
    pub segments: Vec<Range<usize>>,
    /// Level of the outputs.
    pub output_level: usize,
    /// Parts of the outputs.
    pub output_parts: usize,
    /// Estimated standard deviation of an output's error, from encryption and rescaling.
    pub error: f64,
}

/// Why a network does not fit an encryption.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum PlanError {
    /// Too many squares.
    #[error("{found} squares in a row; {preset} holds at most {most}: take a square and a linear layer out")]
    Depth {
        /// Its name.
        preset: &'static str,
        /// What it holds.
        most: usize,
        /// What there are.
        found: usize,
    },
    /// A weight that sums cannot hold exactly.
    #[error(
        "layer {layer} has a weight of {found}/2^{fraction_bits}; at most {largest}/2^{fraction_bits} is exact: use fewer fraction bits"
    )]
    Weight {
        /// Its position, from 0, squares included.
        layer: usize,
        /// The weight.
        found: i32,
        /// The largest there may be.
        largest: i32,
        /// Of the layer.
        fraction_bits: u32,
    },
    /// A layer that is wider than a ciphertext.
    #[error("layer {layer} has {found} numbers going in or coming out; a ciphertext of {preset} holds {most}")]
    Width {
        /// Its name.
        preset: &'static str,
        /// Its position, from 0, squares included.
        layer: usize,
        /// Slots.
        most: usize,
        /// The wider of the layer's sides.
        found: usize,
    },
    /// No scales with which the values fit.
    #[error("{preset} has no room for {squares} squares of values of this size: take a square and a linear layer out")]
    Room {
        /// Its name.
        preset: &'static str,
        /// How many there are.
        squares: usize,
    },
    /// What is left is too little.
    #[error(
        "{preset} leaves an error of {error:.2e} on outputs of up to {output_max:.2e}: use fewer fraction bits, or fewer layers"
    )]
    Precision {
        /// Its name.
        preset: &'static str,
        /// Standard deviation.
        error: f64,
        /// The largest output seen in training.
        output_max: f64,
    },
}

/// Weights whose sums are exact.
const WEIGHT_MAX: i32 = 1 << 16;
/// Values may be so much larger than on the training rows, in bits, before they wrap.
pub(crate) const HEADROOM_BITS: f64 = 1.0;
/// Outputs whose error is more than this share of the largest one say little.
pub(crate) const ERROR_SHARE_MAX: f64 = 1.0 / 32.0;
/// Variance of a fresh error's coefficient, and of a rounding.
pub(crate) const FRESH_VARIANCE: f64 = 10.5;
pub(crate) const ROUNDING_VARIANCE: f64 = 1.0 / 12.0;

impl Plan {
    /// The plan with the largest scale that fits.
    ///
    /// # Errors
    /// [`PlanError`] if there is none that leaves enough.
    pub fn new(network: &Network, context: &Context) -> Result<Self, PlanError> {
        let preset = context.preset();
        let segments = segments(&network.layers);
        let most = preset.level_max();
        if segments.len() > most {
            return Err(PlanError::Depth { preset: preset.name(), most, found: segments.len() });
        }
        for (layer, linear) in network.layers.iter().enumerate() {
            let Layer::Linear(linear) = linear else { continue };
            let weights = linear.groups.iter().flat_map(|g| &g.weights);
            if let Some(found) = weights.copied().find(|w| w.abs() > WEIGHT_MAX) {
                let fraction_bits = linear.fraction_bits;
                return Err(PlanError::Weight { layer, found, largest: WEIGHT_MAX, fraction_bits });
            }
        }
        let scale = largest_scale(network, context, &segments);
        let error = error(network, context, &segments, scale);
        let output_max = network.linear_layers().last().map_or(1.0, |l| l.output_max);
        let squares = network.layers.iter().filter(|l| **l == Layer::Square).count();
        if error > output_max * ERROR_SHARE_MAX {
            return Err(PlanError::Precision { preset: preset.name(), error, output_max });
        }
        let output_level = (preset.level_max() + 1 - segments.len()).min(OUTPUT_LEVEL_MAX);
        Ok(Self { scale, segments, output_level, output_parts: (1 << squares) + 1, error })
    }
}

/// Ends a segment after every linear layer that has squares before and behind it.
fn segments(layers: &[Layer]) -> Vec<Range<usize>> {
    let mut segments = Vec::new();
    let mut start = 0;
    for (at, layer) in layers.iter().enumerate() {
        let is_inner = at > 0 && at + 1 < layers.len() && matches!(layer, Layer::Linear(_));
        if is_inner || at + 1 == layers.len() {
            segments.push(start..at + 1);
            start = at + 1;
        }
    }
    segments
}

/// log2 of the modulus of a level.
fn log2_modulus(context: &Context, level: usize) -> f64 {
    context.limbs()[..=level].iter().map(|q| (q.value() as f64).log2()).sum()
}

/// The scale of every value is scale^power·2^bits for some power and bits: each has to leave room for the value.
fn largest_scale(network: &Network, context: &Context, segments: &[Range<usize>]) -> f64 {
    let mut largest = f64::MAX;
    let (mut power, mut bits, mut value_max) = (1.0, 0.0, network.input.max);
    for (number, segment) in segments.iter().enumerate() {
        let level = context.preset().level_max() - number;
        for layer in &network.layers[segment.clone()] {
            match layer {
                Layer::Linear(linear) => {
                    bits += f64::from(linear.fraction_bits);
                    value_max = linear.output_max;
                }
                Layer::Square => {
                    (power, bits) = (2.0 * power, 2.0 * bits);
                    value_max *= value_max;
                }
            }
            // Half of the modulus for either sign. Outputs are sent at a level whose modulus can be decoded.
            let is_last = number + 1 == segments.len();
            let level = if is_last { level.min(OUTPUT_LEVEL_MAX) } else { level };
            let room = log2_modulus(context, level) - 1.0 - HEADROOM_BITS - value_max.max(1.0).log2();
            largest = f64::min(largest, (room - bits) / power);
        }
        bits -= (context.limbs()[level].value() as f64).log2();
    }
    largest.min(SCALE_LOG2_MAX).exp2()
}

/// Decoding reads two limbs.
pub(crate) const OUTPUT_LEVEL_MAX: usize = 1;
/// A shallow network leaves room for more than doubles hold.
const SCALE_LOG2_MAX: f64 = 40.0;

/// Standard deviations, as if errors of different ciphertexts were independent, with the largest values and weights.
fn error(network: &Network, context: &Context, segments: &[Range<usize>], scale: f64) -> f64 {
    let n = context.n() as f64;
    let mut error = (n * (FRESH_VARIANCE + ROUNDING_VARIANCE)).sqrt() / scale;
    let (mut scale, mut value_max, mut parts) = (scale, network.input.max, 2);
    for (number, segment) in segments.iter().enumerate() {
        for layer in &network.layers[segment.clone()] {
            match layer {
                Layer::Linear(linear) => {
                    let unit = f64::from(linear.fraction_bits).exp2();
                    let norm = |row: &[i32]| row.iter().map(|w| (f64::from(*w) / unit).powi(2)).sum::<f64>();
                    let rows = linear.groups.iter().flat_map(|g| g.weights.chunks(g.inputs.len().max(1)));
                    error *= rows.map(norm).fold(0.0, f64::max).sqrt();
                    scale *= unit;
                    value_max = linear.output_max;
                }
                Layer::Square => {
                    error = (2.0 * value_max + error) * error;
                    scale *= scale;
                    value_max *= value_max;
                    parts = 2 * parts - 1;
                }
            }
        }
        if number + 1 < segments.len() {
            scale /= context.limbs()[context.preset().level_max() - number].value() as f64;
            // Each part is rounded, and multiplied by a power of the ternary secret when it is decrypted.
            let secret = 2.0 / 3.0 * n;
            let variance: f64 = (0..parts).map(|p| secret.powi(p)).sum();
            error = error.hypot((n * ROUNDING_VARIANCE * variance).sqrt() / scale);
        }
    }
    error
}

/// The preset for samples in slots: shallow, small, without key switching.
pub(crate) const SAMPLES: &Preset = &Preset::N4096;
