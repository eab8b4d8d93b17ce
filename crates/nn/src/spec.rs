//! The model as a session file writes it.
//!
//! ```toml
//! server = [{ activation = "sigmoid" }, { linear = 8 }, { dropout = 0.1 }, { layer-norm = true },
//!           { image = [1, 28, 28] }, { conv2d = { channels = 8, kernel = 5 } }, { max-pool2d = { size = 2 } }]
//! head = { linear = 1, loss = "binary-cross-entropy" }
//! optimizer = { kind = "adam", learning_rate = 0.01 }
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::errors::SpecError;

/// One layer of the server.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum LayerSpec {
    /// An element-wise function.
    Activation(ActivationKind),
    /// A dense layer with bias; the number is its output width.
    Linear(usize),
    /// Sets each feature to zero with this probability while training, and scales the others up to keep the mean.
    Dropout(f32),
    /// Normalises each row to mean 0 and variance 1; `true` adds a learned scale and offset per feature.
    LayerNorm(bool),
    /// Says that the features are an image: channels, height, width, the last varying fastest. Computes nothing.
    Image([usize; 3]),
    /// A convolution with bias over an image.
    Conv2d(ConvSpec),
    /// The largest value of each window of an image.
    MaxPool2d(PoolSpec),
    /// The mean of each window of an image.
    AvgPool2d(PoolSpec),
}

/// An element-wise function.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationKind {
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `tanh(x)`
    Tanh,
    /// `max(x, 0)`
    Relu,
    /// `x` for positive `x`, else `x / 100`
    LeakyRelu,
    /// `x·Φ(x)` in its tanh form
    Gelu,
    /// `x / (1 + exp(-x))`
    Silu,
    /// `x²`. Unbounded, and so is its slope: a network of squares wants small steps and small first weights.
    Square,
}

/// A square convolution kernel.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ConvSpec {
    /// Channels of the output.
    pub channels: usize,
    /// Side of the kernel, in pixels.
    pub kernel: usize,
    /// Pixels from one window to the next.
    #[serde(default = "one")]
    pub stride: usize,
    /// Pixels of zeros around the image.
    #[serde(default)]
    pub padding: usize,
}

/// A square pooling window, without padding.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSpec {
    /// Side of the window, in pixels.
    pub size: usize,
    /// Pixels from one window to the next; the window's side if it is left out.
    #[serde(default)]
    pub stride: Option<usize>,
}

/// What is minimised.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Of one logit; labels are 0 or 1.
    BinaryCrossEntropy,
    /// Of one logit per class; labels are class numbers from 0.
    SoftmaxCrossEntropy,
    /// `(prediction - label)²`; labels are finite numbers.
    SquaredError,
}

/// The last layer and the loss, at the label holder.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HeadSpec {
    /// Outputs: 1, or the number of classes for `softmax-cross-entropy`.
    pub linear: usize,
    /// The loss.
    pub loss: Loss,
}

/// How parameters follow their gradients. Each role steps the parameters that it holds.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum OptimizerSpec {
    /// `θ ← θ - learning_rate·g`
    Sgd {
        /// Step size.
        learning_rate: f64,
    },
    /// `v ← momentum·v + g; θ ← θ - learning_rate·v`
    Momentum {
        /// Step size.
        learning_rate: f64,
        /// How much of the velocity stays.
        #[serde(default = "default_momentum")]
        momentum: f64,
    },
    /// Adam, Kingma and Ba, arXiv:1412.6980, Algorithm 1.
    Adam {
        /// Step size.
        learning_rate: f64,
        /// How much of the mean gradient stays.
        #[serde(default = "default_beta1")]
        beta1: f64,
        /// How much of the mean squared gradient stays.
        #[serde(default = "default_beta2")]
        beta2: f64,
        /// Keeps the division finite.
        #[serde(default = "default_epsilon")]
        epsilon: f64,
    },
    /// Stochastic gradient Langevin dynamics, Welling and Teh, ICML 2011: `θ ← θ - (a/2·g + η)`, `η ~ N(0, a·t)`, with
    /// `a` the learning rate and `t` the temperature.
    ///
    /// `g` is the gradient of the mean loss. Theirs is that of the sum over all N rows, which is this with `a` N times
    /// theirs and `t = 1/N`: the weights then are a sample of the posterior under a flat prior. With `t = 1` the noise
    /// soon is all there is.
    Sgld {
        /// Step size.
        learning_rate: f64,
        /// Variance of the noise as a multiple of the step size.
        #[serde(default = "default_temperature")]
        temperature: f64,
    },
}

impl PoolSpec {
    /// Pixels from one window to the next.
    pub fn stride(&self) -> usize {
        self.stride.unwrap_or(self.size)
    }
}

impl OptimizerSpec {
    /// The step size.
    pub fn learning_rate(&self) -> f64 {
        match *self {
            Self::Sgd { learning_rate }
            | Self::Momentum { learning_rate, .. }
            | Self::Adam { learning_rate, .. }
            | Self::Sgld { learning_rate, .. } => learning_rate,
        }
    }

    /// Checks that every hyper-parameter makes sense.
    ///
    /// # Errors
    /// [`SpecError::Optimizer`] names the first that does not.
    pub fn validate(&self) -> Result<(), SpecError> {
        positive("learning_rate", self.learning_rate())?;
        match *self {
            Self::Sgd { .. } => Ok(()),
            Self::Sgld { temperature, .. } => positive("temperature", temperature),
            Self::Momentum { momentum, .. } => decay("momentum", momentum),
            Self::Adam { beta1, beta2, epsilon, .. } => {
                decay("beta1", beta1)?;
                decay("beta2", beta2)?;
                positive("epsilon", epsilon)
            }
        }
    }
}

/// Positive also as the `f32` that the update computes with.
fn positive(field: &'static str, found: f64) -> Result<(), SpecError> {
    let single = found as f32;
    if single > 0.0 && single.is_finite() {
        return Ok(());
    }
    Err(SpecError::Optimizer { field, expected: "positive", found })
}

/// Less than one also as an `f32`.
fn decay(field: &'static str, found: f64) -> Result<(), SpecError> {
    if found >= 0.0 && (found as f32) < 1.0 {
        return Ok(());
    }
    Err(SpecError::Optimizer { field, expected: "at least 0 and less than 1", found })
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BinaryCrossEntropy => "binary-cross-entropy",
            Self::SoftmaxCrossEntropy => "softmax-cross-entropy",
            Self::SquaredError => "squared-error",
        })
    }
}

fn one() -> usize {
    1
}

fn default_momentum() -> f64 {
    0.9
}

fn default_temperature() -> f64 {
    1.0
}

fn default_beta1() -> f64 {
    0.9
}

fn default_beta2() -> f64 {
    0.999
}

fn default_epsilon() -> f64 {
    1e-8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq, Serialize)]
    struct File {
        server: Vec<LayerSpec>,
        head: HeadSpec,
        optimizer: OptimizerSpec,
    }

    const FILE: &str = r#"
        server = [{ activation = "leaky-relu" }, { linear = 8 }, { dropout = 0.1 }, { layer-norm = true },
                  { image = [1, 28, 28] }, { conv2d = { channels = 8, kernel = 5 } }, { max-pool2d = { size = 2 } },
                  { avg-pool2d = { size = 3, stride = 1 } }]
        head = { linear = 1, loss = "binary-cross-entropy" }
        optimizer = { kind = "adam", learning_rate = 0.01 }
    "#;

    #[test]
    fn reads_a_session_file() {
        let file: File = toml::from_str(FILE).unwrap();
        let conv = ConvSpec { channels: 8, kernel: 5, stride: 1, padding: 0 };
        let pools = [(2, None), (3, Some(1))].map(|(size, stride)| PoolSpec { size, stride });
        assert_eq!(pools.clone().map(|pool| pool.stride()), [2, 1]);
        let [max_pool, avg_pool] = pools;
        let expected = File {
            server: vec![
                LayerSpec::Activation(ActivationKind::LeakyRelu),
                LayerSpec::Linear(8),
                LayerSpec::Dropout(0.1),
                LayerSpec::LayerNorm(true),
                LayerSpec::Image([1, 28, 28]),
                LayerSpec::Conv2d(conv),
                LayerSpec::MaxPool2d(max_pool),
                LayerSpec::AvgPool2d(avg_pool),
            ],
            head: HeadSpec { linear: 1, loss: Loss::BinaryCrossEntropy },
            optimizer: OptimizerSpec::Adam { learning_rate: 0.01, beta1: 0.9, beta2: 0.999, epsilon: 1e-8 },
        };
        assert_eq!(file, expected);
        assert_eq!(toml::from_str::<File>(&toml::to_string(&file).unwrap()).unwrap(), file);
    }

    #[test]
    fn refuses_unknown_words() {
        for (known, unknown) in [
            ("linear = 8", "lineal = 8"),
            ("size = 2", "size = 2, sides = 3"),
            ("kernel = 5", "kernel = 5, dilation = 2"),
            ("learning_rate = 0.01", "learning_rate = 0.01, decay = 1"),
            (r#"loss = "b"#, r#"bias = false, loss = "b"#),
            (r#"kind = "adam""#, r#"kind = "adan""#),
        ] {
            assert!(FILE.contains(known), "{known}");
            assert!(toml::from_str::<File>(&FILE.replacen(known, unknown, 1)).is_err(), "{unknown}");
        }
    }

    #[test]
    fn names_the_hyper_parameter_that_is_wrong() {
        let adam = |learning_rate, beta1, beta2, epsilon| OptimizerSpec::Adam { learning_rate, beta1, beta2, epsilon };
        adam(0.01, 0.9, 0.999, 1e-8).validate().unwrap();
        OptimizerSpec::Momentum { learning_rate: 0.1, momentum: 0.0 }.validate().unwrap();
        for (spec, wrong) in [
            (OptimizerSpec::Sgd { learning_rate: 0.0 }, "learning_rate"),
            (OptimizerSpec::Sgld { learning_rate: f64::NAN, temperature: 1.0 }, "learning_rate"),
            (OptimizerSpec::Sgld { learning_rate: 0.1, temperature: 0.0 }, "temperature"),
            (OptimizerSpec::Momentum { learning_rate: 0.1, momentum: 1.0 }, "momentum"),
            (adam(1e-60, 0.9, 0.9, 1e-8), "learning_rate"),
            (adam(0.1, -0.1, 0.9, 1e-8), "beta1"),
            (adam(0.1, 0.9, 1.0 - 1e-12, 1e-8), "beta2"),
            (adam(0.1, 0.9, 0.9, -1.0), "epsilon"),
        ] {
            let SpecError::Optimizer { field, .. } = spec.validate().unwrap_err() else {
                panic!("another error");
            };
            assert_eq!(field, wrong);
        }
    }
}
