//! The layers a [`crate::Sequential`] is made of.

mod conv;
mod dense;
mod dropout;
mod element;
mod norm;
mod pool;

pub(crate) use conv::{Conv2d, Geometry};
pub(crate) use dense::{Bias, Linear};
pub(crate) use dropout::Dropout;
pub(crate) use element::Activation;
pub(crate) use norm::LayerNorm;
pub(crate) use pool::{AvgPool2d, MaxPool2d};

use rand_chacha::ChaCha8Rng;

use crate::init::uniform_parameter;
use crate::model::{Mode, Parameter};

/// One layer: whole rows in, whole rows out, in buffers that the caller keeps.
pub(crate) trait Layer: Send {
    /// Sets all of `output`, `[n, out]`, from `input`, `[n, in]`.
    fn forward(&mut self, input: &[f32], output: &mut [f32], mode: Mode);

    /// Sets all of `grad_input`, and the gradients of the parameters, for the last forward pass, whose `input` and
    /// `output` these are.
    fn backward(&mut self, pass: Backward<'_>);

    fn parameters(&mut self) -> Vec<Parameter<'_>> {
        Vec::new()
    }

    /// The random stream of a layer that has one.
    fn rng(&self) -> Option<&ChaCha8Rng> {
        None
    }

    fn rng_mut(&mut self) -> Option<&mut ChaCha8Rng> {
        None
    }
}

/// What a layer's backward pass reads and writes, all row-major.
pub(crate) struct Backward<'a> {
    pub(crate) input: &'a [f32],
    pub(crate) output: &'a [f32],
    pub(crate) grad_output: &'a [f32],
    pub(crate) grad_input: &'a mut [f32],
}

/// A trained array of a layer.
pub(crate) struct Weight {
    name: String,
    shape: Vec<usize>,
    pub(crate) value: Vec<f32>,
    pub(crate) gradient: Vec<f32>,
}

impl Weight {
    /// Uniform in `±1/√fan_in`.
    pub(crate) fn uniform(seed: u64, name: String, shape: &[usize], fan_in: usize) -> Self {
        let value = uniform_parameter(seed, &name, shape.iter().product(), fan_in);
        Self::new(name, shape, value)
    }

    pub(crate) fn constant(name: String, shape: &[usize], value: f32) -> Self {
        Self::new(name, shape, vec![value; shape.iter().product()])
    }

    pub(crate) fn parameter(&mut self) -> Parameter<'_> {
        Parameter {
            name: self.name.as_str().into(),
            shape: self.shape.clone(),
            value: &mut self.value,
            gradient: &self.gradient,
        }
    }

    fn new(name: String, shape: &[usize], value: Vec<f32>) -> Self {
        Self { name, shape: shape.to_vec(), gradient: vec![0.0; value.len()], value }
    }
}
