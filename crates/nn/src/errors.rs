//! What can be wrong with a description of a model, and with a call to one.

use thiserror::Error;

use crate::spec::Loss;

/// A session file describes a model that cannot be built.
///
/// `layer` counts as parameter names do: 1 is the first of the server's list, and the bias over H1 is 0.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum SpecError {
    /// A size that must be at least one is zero.
    #[error("server layer {layer}: {field} must be at least 1, found 0")]
    Zero {
        /// Position of the layer.
        layer: usize,
        /// The word in the session file.
        field: &'static str,
    },
    /// A layer that would need more memory than any model here should.
    #[error("server layer {layer}: {what} must be at most {max}")]
    TooLarge {
        /// Position of the layer.
        layer: usize,
        /// What is too large.
        what: &'static str,
        /// The largest value accepted.
        max: usize,
    },
    /// A dropout probability outside `[0, 1)`.
    #[error("server layer {layer}: dropout must be at least 0 and less than 1, found {found}")]
    Dropout {
        /// Position of the layer.
        layer: usize,
        /// The value in the session file.
        found: f32,
    },
    /// `image` describes another number of features than arrive.
    #[error(
        "server layer {layer}: image = {image:?} (channels, height, width) is {expected} features, but {found} arrive here"
    )]
    Image {
        /// Position of the layer.
        layer: usize,
        /// Channels, height, width.
        image: [usize; 3],
        /// `channels · height · width`.
        expected: usize,
        /// The width of the layer before.
        found: usize,
    },
    /// A convolution or pooling whose input is not known to be an image.
    #[error(
        "server layer {layer}: {kind} needs an image, but {found} plain features arrive here; put image = [channels, height, width] before it"
    )]
    NoImage {
        /// Position of the layer.
        layer: usize,
        /// The word in the session file.
        kind: &'static str,
        /// The width of the layer before.
        found: usize,
    },
    /// A kernel or pooling window larger than the image under it.
    #[error(
        "server layer {layer}: {field} must be at most {max} (the smaller side of the image, padding included), found {found}"
    )]
    Window {
        /// Position of the layer.
        layer: usize,
        /// The word in the session file.
        field: &'static str,
        /// The smaller side of the image with its padding.
        max: usize,
        /// The value in the session file.
        found: usize,
    },
    /// A loss that is not defined for this many outputs.
    #[error("head: loss {loss} needs linear {expected}, found {found}")]
    Head {
        /// The loss.
        loss: Loss,
        /// The widths it accepts, in words.
        expected: &'static str,
        /// The value in the session file.
        found: usize,
    },
    /// The head has no input.
    #[error("head: its input must be 1 to {max} wide, found {found}")]
    HeadInput {
        /// The largest width accepted.
        max: usize,
        /// The width of the server's output.
        found: usize,
    },
    /// A hyper-parameter out of range.
    #[error("optimizer: {field} must be {expected}, found {found}")]
    Optimizer {
        /// The word in the session file.
        field: &'static str,
        /// The accepted range, in words.
        expected: &'static str,
        /// The value in the session file.
        found: f64,
    },
}

/// A model was called with something it cannot compute on.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum ModelError {
    /// A matrix of another shape than the model's.
    #[error("{what} must be {expected:?} (rows, columns), found {found:?}")]
    Shape {
        /// The name of the matrix.
        what: &'static str,
        /// Rows and columns.
        expected: [usize; 2],
        /// Rows and columns.
        found: [usize; 2],
    },
    /// `backward` without a `forward` in training mode before it; one forward serves one backward.
    #[error("backward needs a forward in training mode before it")]
    NoForward,
    /// A mean over no rows.
    #[error("a batch must have at least one row")]
    EmptyBatch,
    /// Another number of labels than rows.
    #[error("{expected} rows need as many labels, found {found}")]
    LabelCount {
        /// Rows of `z`.
        expected: usize,
        /// Labels.
        found: usize,
    },
    /// A label that the loss does not know.
    #[error("the label of row {row} must be {expected}, found {found}")]
    Label {
        /// Position in the labels given.
        row: usize,
        /// What the loss accepts, in words.
        expected: String,
        /// The label.
        found: f32,
    },
    /// A saved state that belongs to another model or optimizer.
    #[error("a saved state must hold {expected}, found {found}")]
    State {
        /// What this model or optimizer saves, in words.
        expected: String,
        /// What was given, in words.
        found: String,
    },
}
