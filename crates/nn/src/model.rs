//! What the server asks of a model.

use std::borrow::Cow;

use ndarray::ArrayView2;

use crate::errors::ModelError;

/// What a forward pass is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Keep what the backward pass needs; dropout drops.
    Train,
    /// Predict.
    Evaluate,
}

/// A trained array and the gradient that the last backward pass left for it.
///
/// Both slices are in row-major order of `shape`. Names and shapes are PyTorch's: a dense layer's `1.weight` is
/// `[outputs, inputs]`, a convolution's `[channels_out, channels_in, kernel, kernel]`.
#[derive(Debug)]
pub struct Parameter<'a> {
    /// Unique in its model.
    pub name: Cow<'a, str>,
    /// Extent of each axis.
    pub shape: Vec<usize>,
    /// What an optimizer changes.
    pub value: &'a mut [f32],
    /// With respect to `value`; zeros before the first backward pass.
    pub gradient: &'a [f32],
}

/// The server's part of the network, between the opened first layer and the label holder.
///
/// The views that `forward` and `backward` return live in buffers of the model and last until its next call.
pub trait Model: Send {
    /// Width `k` of the output.
    fn output_width(&self) -> usize;

    /// The output for a batch: `h1: [n, h]` to `z: [n, k]`. In [`Mode::Train`] keeps what `backward` needs.
    ///
    /// # Errors
    /// [`ModelError::Shape`] if `h1` is not `[n, h]`.
    fn forward(&mut self, h1: ArrayView2<'_, f32>, mode: Mode) -> Result<ArrayView2<'_, f32>, ModelError>;

    /// The gradient that belongs to the last forward pass: `grad_z: [n, k]` to `grad_h1: [n, h]`. Keeps the gradients
    /// of the parameters until the next backward pass.
    ///
    /// # Errors
    /// [`ModelError::NoForward`] unless a forward pass in [`Mode::Train`] came just before;
    /// [`ModelError::Shape`] if `grad_z` is not `[n, k]`.
    fn backward(&mut self, grad_z: ArrayView2<'_, f32>) -> Result<ArrayView2<'_, f32>, ModelError>;

    /// All parameters, always in the same order.
    fn parameters(&mut self) -> Vec<Parameter<'_>>;

    /// Where the model's random streams (dropout) are, for a checkpoint. Empty if it has none.
    fn random_positions(&self) -> Vec<u128> {
        Vec::new()
    }

    /// Continues the random streams where [`Model::random_positions`] said.
    ///
    /// # Errors
    /// [`ModelError::State`] if the model has another number of streams.
    fn set_random_positions(&mut self, positions: &[u128]) -> Result<(), ModelError> {
        expect_positions(0, positions)
    }
}

pub(crate) fn expect_positions(expected: usize, positions: &[u128]) -> Result<(), ModelError> {
    if positions.len() == expected {
        return Ok(());
    }
    Err(ModelError::State {
        expected: format!("{expected} positions of random streams"),
        found: positions.len().to_string(),
    })
}
