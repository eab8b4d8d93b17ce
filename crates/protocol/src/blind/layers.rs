//! The server's layers as ciphertexts want them: squares, and linear maps of whole numbers.

use super::{H1_MAX, SQUARES_MAX, WIDTH_MAX};
use crate::{ModelSpec, ProtocolError, SessionError};
use spnn_nn::{ActivationKind, LayerSpec, Parameter};

/// One layer of a network that can be evaluated blind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Square,
    /// A dense layer: its number in the session's list, counted from 1, and its outputs.
    Linear {
        number: usize,
        outputs: usize,
    },
}

/// What of a session's layers matters here.
pub(super) struct Shape {
    /// Width of H1.
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) stages: Vec<Stage>,
}

impl Shape {
    /// # Errors
    /// [`SessionError::Value`] naming the layer that cannot be evaluated on ciphertexts.
    pub(super) fn of(model: &ModelSpec) -> Result<Self, SessionError> {
        let refused = |field, expected: &str, found: String| {
            Err(SessionError::Value { field, expected: format!("inference = \"encrypted\" takes {expected}"), found })
        };
        let inputs = model.hidden_width as usize;
        let streams = model.server.iter().any(|layer| matches!(layer, LayerSpec::Linear(_)));
        let most = if streams { H1_MAX } else { WIDTH_MAX };
        if inputs > most {
            let expected = format!("up to {H1_MAX} where a linear layer follows, else {WIDTH_MAX}");
            return refused("model.hidden_width", &expected, inputs.to_string());
        }
        let (mut outputs, mut stages) = (inputs, Vec::new());
        for (number, layer) in (1..).zip(&model.server) {
            match layer {
                LayerSpec::Activation(ActivationKind::Square) => stages.push(Stage::Square),
                LayerSpec::Linear(width) if *width <= WIDTH_MAX => {
                    outputs = *width;
                    stages.push(Stage::Linear { number, outputs });
                }
                LayerSpec::Linear(width) => {
                    return refused("model.server", &format!("linear layers of up to {WIDTH_MAX}"), width.to_string());
                }
                // Nothing, but in training.
                LayerSpec::Dropout(_) => {}
                other => {
                    let expected = "linear layers, dropout and the activation \"square\" only";
                    let text = serde_json::to_string(other).unwrap_or_default();
                    return refused("model.server", expected, format!("layer {number}, {text}"));
                }
            }
        }
        let squares = stages.iter().filter(|s| **s == Stage::Square).count();
        if squares > SQUARES_MAX {
            return refused("model.server", &format!("up to {SQUARES_MAX} squares"), squares.to_string());
        }
        Ok(Self { inputs, outputs, stages })
    }

    /// Parts of what comes out.
    pub(super) fn output_parts(&self) -> usize {
        (1 << self.stages.iter().filter(|s| **s == Stage::Square).count()) + 1
    }
}

/// A layer with its weights.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Layer {
    Square,
    Linear(Linear),
}

/// out = Σ weight·in / 2^fraction_bits + bias.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Linear {
    pub(super) inputs: usize,
    /// `[outputs, inputs]`.
    pub(super) weights: Vec<i32>,
    pub(super) fraction_bits: u32,
    pub(super) bias: Vec<f64>,
    /// Of each output, the sum of |weight| over its inputs.
    gains: Vec<f64>,
}

/// The server's weights: the bias that it adds to H1, then its layers.
pub(super) struct Layers {
    pub(super) bias: Vec<f64>,
    pub(super) layers: Vec<Layer>,
}

/// The largest weight becomes a whole number of so many bits: far more digits than matter beside training's own noise.
const WEIGHT_BITS: i32 = 16;
/// Weights so small that they would need more are as good as nothing.
const FRACTION_BITS_MAX: i32 = 40;

impl Layers {
    /// Takes the weights of `shape` from a model's parameters, named as [`spnn_nn::Sequential`] names them.
    ///
    /// # Errors
    /// [`ProtocolError::Blind`] if the model has other parameters than the session's layers, or weights that are no numbers.
    pub(super) fn of(shape: &Shape, parameters: &[Parameter<'_>]) -> Result<Self, ProtocolError> {
        let take = |name: String, count: usize| {
            let found = parameters.iter().find(|p| p.name == name.as_str());
            let values = found.filter(|p| p.value.len() == count).map(|p| &*p.value);
            match values {
                Some(values) if values.iter().all(|v| v.is_finite()) => Ok(values),
                Some(_) => Err(ProtocolError::Blind { reason: format!("{name} of the server's model is not finite") }),
                None => {
                    let reason =
                        format!("the server's model has no {name} of {count} numbers, as the session's layers have");
                    Err(ProtocolError::Blind { reason })
                }
            }
        };
        let floats = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
        let mut inputs = shape.inputs;
        let bias = floats(take("0.bias".to_owned(), inputs)?);
        let mut layers = Vec::new();
        for stage in &shape.stages {
            layers.push(match *stage {
                Stage::Square => Layer::Square,
                Stage::Linear { number, outputs } => {
                    let weights = take(format!("{number}.weight"), inputs * outputs)?;
                    let bias = floats(take(format!("{number}.bias"), outputs)?);
                    Layer::Linear(quantize(std::mem::replace(&mut inputs, outputs), weights, bias)?)
                }
            });
        }
        Ok(Self { bias, layers })
    }
}

fn quantize(inputs: usize, weights: &[f32], bias: Vec<f64>) -> Result<Linear, ProtocolError> {
    let largest = weights.iter().fold(0.0_f64, |largest, w| largest.max(f64::from(*w).abs()));
    #[expect(clippy::cast_possible_truncation, reason = "an exponent of an f32")]
    let exponent = if largest > 0.0 { largest.log2().floor() as i32 + 1 } else { 0 };
    let Ok(fraction_bits) = u32::try_from((WEIGHT_BITS - exponent).min(FRACTION_BITS_MAX)) else {
        let reason = format!("a weight of {largest} is too large: lower the learning rate");
        return Err(ProtocolError::Blind { reason });
    };
    let unit = f64::from(fraction_bits).exp2();
    #[expect(clippy::cast_possible_truncation, reason = "at most 2^16")]
    let weights: Vec<i32> = weights.iter().map(|w| (f64::from(*w) * unit).round() as i32).collect();
    let gain = |row: &[i32]| row.iter().map(|w| f64::from(w.unsigned_abs())).sum::<f64>() / unit;
    let gains = weights.chunks_exact(inputs.max(1)).map(gain).collect();
    Ok(Linear { inputs, weights, fraction_bits, bias, gains })
}

impl Linear {
    pub(super) fn unit(&self) -> f64 {
        f64::from(self.fraction_bits).exp2()
    }

    /// What no output exceeds for inputs of up to `value`.
    pub(super) fn bound(&self, value: f64) -> f64 {
        self.gains.iter().zip(&self.bias).map(|(gain, bias)| gain * value + bias.abs()).fold(0.0, f64::max)
    }

    /// What an error of the inputs grows to.
    pub(super) fn error_bound(&self, error: f64) -> f64 {
        self.gains.iter().fold(0.0, |largest, gain| f64::max(largest, gain * error))
    }
}
