//! A network of squares, and what it answers in the clear.

mod convolution;
mod digest;
mod file;

use std::io;
use std::path::PathBuf;

use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};
use spnn_nn::Loss;
use thiserror::Error;

pub use convolution::Convolution;

/// The most layers, squares included. Each square doubles the bits of what went before; no encryption holds more.
pub const LAYERS_MAX: usize = 15;

/// The most features between two layers.
pub const WIDTH_MAX: usize = 1 << 16;

/// The largest weight, as an integer.
pub const WEIGHT_MAX: i32 = 1 << 20;

/// The most fraction bits of a weight.
pub const FRACTION_BITS_MAX: u32 = 24;

/// The most products of one layer. A layer of CryptoNets has 84,500.
const PRODUCTS_MAX: usize = 1 << 24;

/// The longest name of a network, a class or a column, in bytes.
const NAME_MAX: usize = 256;

/// A network whose only activation is the square, with weights in fixed point.
///
/// Linear layers and squares take turns; the first and the last are linear. Besides weights it holds means, deviations and
/// the largest outputs of the rows that it was trained on: whoever gets the file learns these.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// For people.
    pub name: String,
    /// What raw rows go through first.
    pub input: Input,
    /// First to last.
    pub layers: Vec<Layer>,
    /// One name per output: of each class, or of the one value that is predicted.
    pub classes: Vec<String>,
    /// What the network was trained for, which says what its outputs are: logits of classes, the logit of label 1, or a
    /// value.
    pub loss: Loss,
}

/// How a row of raw numbers becomes inputs: `(x - offset[i])·factor[i]`, clipped to `±max`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Numbers in a row.
    pub width: usize,
    /// Channels, height, width, if a row is an image; the last varies fastest.
    pub image: Option<[usize; 3]>,
    /// The names of the columns; none if the rows came without, as those of image files do.
    pub columns: Vec<String>,
    /// One per number of the row.
    pub offset: Vec<f64>,
    /// One per number of the row.
    pub factor: Vec<f64>,
    /// The largest input there can be. A square has no bound, so its input must have one.
    pub max: f64,
}

/// A layer.
#[derive(Clone, Debug, PartialEq)]
pub enum Layer {
    /// Sums of products.
    Linear(Linear),
    /// `x²` of each number.
    Square,
}

/// `out = (Σ weight·in) / 2^fraction_bits + bias`, made by [`Linear::dense`] or [`Linear::conv`].
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// Numbers that go in.
    pub inputs: usize,
    /// Numbers that come out.
    pub outputs: usize,
    /// By how many bits the weights are larger than what they stand for.
    pub fraction_bits: u32,
    /// Which outputs are made of which inputs, and how. Every output is in one group.
    pub groups: Vec<Group>,
    /// One per output.
    pub bias: Vec<f64>,
    /// Dense, or a convolution.
    pub shape: Shape,
    /// The largest absolute value of any output on the training rows: encrypted evaluation plans its scales for it.
    pub output_max: f64,
    /// The weights as the file has them: `[outputs, inputs]`, or `[channels, channels_in, kernel, kernel]`.
    kernel: Vec<i32>,
}

/// Outputs that share their inputs: a dense layer is one group, a convolution has one per window.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Positions in the layer's input.
    pub inputs: Vec<u32>,
    /// Positions in the layer's output.
    pub outputs: Vec<u32>,
    /// `[outputs, inputs]`, row by row.
    pub weights: Vec<i32>,
}

/// How a linear layer is stored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shape {
    /// Every output is made of every input.
    Dense,
    /// A convolution.
    Conv(Convolution),
}

/// What is wrong with a network, its file, or a row given to it.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// A file could not be read or written.
    #[error("{}: {source}", file.display())]
    Storage {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file whose network does not fit.
    #[error("{}: {source}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong in it.
        source: Box<NetworkError>,
    },
    /// Bytes that are not a network at all.
    #[error("not a network: {reason}")]
    Format {
        /// Why not.
        reason: String,
    },
    /// A layer that does not fit.
    #[error("layer {layer}: {what} must be {expected}, found {found}")]
    Layer {
        /// Its position, from 0, squares included.
        layer: usize,
        /// What does not fit.
        what: &'static str,
        /// What would.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Something else of the network that does not fit.
    #[error("{what} must be {expected}, found {found}")]
    Network {
        /// What does not fit.
        what: &'static str,
        /// What would.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A row of another width than the network's input.
    #[error("a row must have {expected} numbers, found {found}")]
    Width {
        /// The input's width.
        expected: usize,
        /// The row's.
        found: usize,
    },
    /// A number of a row that is none.
    #[error("number {position} of a row must be finite, found {found}")]
    Number {
        /// Its position, from 0.
        position: usize,
        /// What is there.
        found: f64,
    },
}

impl Network {
    /// A network, if its parts fit together.
    ///
    /// # Errors
    /// [`NetworkError::Network`] or [`NetworkError::Layer`] names the first part that does not.
    pub fn new(
        name: String,
        input: Input,
        layers: Vec<Layer>,
        classes: Vec<String>,
        loss: Loss,
    ) -> Result<Self, NetworkError> {
        let network = Self { name, input, layers, classes, loss };
        network.check()?;
        Ok(network)
    }

    /// The outputs for a row of raw numbers, by the arithmetic of the integer weights: what encrypted evaluation
    /// approximates.
    ///
    /// # Errors
    /// [`NetworkError::Width`], [`NetworkError::Number`].
    pub fn predict(&self, raw: &[f64]) -> Result<Vec<f64>, NetworkError> {
        Ok(self.forward(self.inputs_of(raw)?))
    }

    /// [`Network::predict`] for each row of `[n, width]`: `[n, outputs]`.
    ///
    /// # Errors
    /// [`NetworkError::Width`], [`NetworkError::Number`].
    pub fn predict_rows(&self, raw: ArrayView2<'_, f32>) -> Result<Array2<f64>, NetworkError> {
        let mut outputs = Array2::zeros((raw.nrows(), self.classes.len()));
        for (row, mut output) in raw.rows().into_iter().zip(outputs.rows_mut()) {
            let row: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
            for (output, value) in output.iter_mut().zip(self.predict(&row)?) {
                *output = value;
            }
        }
        Ok(outputs)
    }

    /// A row of raw numbers as the first layer takes it: scaled and clipped.
    ///
    /// # Errors
    /// [`NetworkError::Width`], [`NetworkError::Number`].
    pub fn inputs_of(&self, raw: &[f64]) -> Result<Vec<f64>, NetworkError> {
        self.input.apply(raw)
    }

    /// The outputs for inputs as [`Network::inputs_of`] gives them.
    ///
    /// # Panics
    /// If there are not as many inputs as the network has, which is a bug of the caller.
    #[must_use]
    pub fn forward(&self, inputs: Vec<f64>) -> Vec<f64> {
        self.forward_each(inputs, |_, _| {})
    }

    /// [`Network::forward`], showing each layer's position and output on the way.
    pub(crate) fn forward_each(&self, inputs: Vec<f64>, mut show: impl FnMut(usize, &[f64])) -> Vec<f64> {
        assert_eq!(inputs.len(), self.input.width, "inputs of this network");
        self.layers.iter().enumerate().fold(inputs, |values, (position, layer)| {
            let output = match layer {
                Layer::Linear(linear) => linear.forward(&values),
                Layer::Square => values.into_iter().map(|x| x * x).collect(),
            };
            show(position, &output);
            output
        })
    }

    /// The linear layers, first to last.
    pub fn linear_layers(&self) -> impl Iterator<Item = &Linear> {
        self.layers.iter().filter_map(|layer| match layer {
            Layer::Linear(linear) => Some(linear),
            Layer::Square => None,
        })
    }

    fn check(&self) -> Result<(), NetworkError> {
        check_name("the network's name", &self.name)?;
        self.input.check()?;
        if !(1..=LAYERS_MAX).contains(&self.layers.len()) {
            return Err(misfit("the number of layers", format!("1 to {LAYERS_MAX}"), self.layers.len()));
        }
        let mut width = self.input.width;
        let mut image = self.input.image;
        let mut linear_is_next = true;
        for (position, layer) in self.layers.iter().enumerate() {
            match layer {
                Layer::Linear(linear) if linear_is_next => {
                    linear.check(position, width, image)?;
                    width = linear.outputs;
                    image = linear.output_image();
                }
                Layer::Linear(_) => {
                    let expected = "a square: two linear layers in a row are one, which is cheaper";
                    return Err(in_layer(position, "the layer after a linear one", expected, "another linear one"));
                }
                Layer::Square if linear_is_next => {
                    let expected = "linear: the first layer is, and squares do not follow each other";
                    return Err(in_layer(position, "the layer", expected, "a square"));
                }
                Layer::Square => {}
            }
            linear_is_next = !linear_is_next;
        }
        if linear_is_next {
            return Err(in_layer(self.layers.len() - 1, "the last layer", "linear", "a square"));
        }
        let one_output = matches!(self.loss, Loss::BinaryCrossEntropy | Loss::SquaredError);
        if one_output && width != 1 {
            return Err(misfit("the number of outputs for this loss", "1", width));
        }
        if self.classes.len() != width {
            return Err(misfit("the number of class names", format!("{width}, one per output"), self.classes.len()));
        }
        self.classes.iter().try_for_each(|name| check_name("the name of a class", name))
    }
}

impl Input {
    pub(crate) fn apply(&self, raw: &[f64]) -> Result<Vec<f64>, NetworkError> {
        if raw.len() != self.width {
            return Err(NetworkError::Width { expected: self.width, found: raw.len() });
        }
        let scales = self.offset.iter().zip(&self.factor);
        raw.iter()
            .zip(scales)
            .enumerate()
            .map(|(position, (&x, (offset, factor)))| {
                if !x.is_finite() {
                    return Err(NetworkError::Number { position, found: x });
                }
                let input = (x - offset) * factor;
                // A number so large that the product of an infinite difference and 0 is none stands for nothing.
                Ok(if input.is_nan() { 0.0 } else { input.clamp(-self.max, self.max) })
            })
            .collect()
    }

    pub(crate) fn check(&self) -> Result<(), NetworkError> {
        if !(1..=WIDTH_MAX).contains(&self.width) {
            return Err(misfit("the input's width", format!("1 to {WIDTH_MAX}"), self.width));
        }
        if let Some(image) = self.image
            && product(&image) != Some(self.width)
        {
            return Err(misfit(
                "channels, height and width of the image",
                format!("{} numbers", self.width),
                format!("{image:?}"),
            ));
        }
        if !self.columns.is_empty() && self.columns.len() != self.width {
            return Err(misfit("the number of columns", format!("0 or {}", self.width), self.columns.len()));
        }
        self.columns.iter().try_for_each(|name| check_name("the name of a column", name))?;
        for (what, values) in [("the input's offsets", &self.offset), ("the input's factors", &self.factor)] {
            if values.len() != self.width {
                return Err(misfit(what, format!("{}, one per number of a row", self.width), values.len()));
            }
            if let Some(found) = values.iter().find(|x| !x.is_finite()) {
                return Err(misfit(what, "finite", found));
            }
        }
        if !(self.max > 0.0 && self.max.is_finite()) {
            return Err(misfit("the largest input", "positive and finite", self.max));
        }
        Ok(())
    }
}

impl Linear {
    /// A dense layer: weights `[outputs, inputs]`, one bias per output.
    ///
    /// # Errors
    /// [`NetworkError::Network`] if a number or a length is out of bounds.
    pub fn dense(
        inputs: usize,
        fraction_bits: u32,
        weights: Vec<i32>,
        bias: Vec<f64>,
        output_max: f64,
    ) -> Result<Self, NetworkError> {
        let outputs = bias.len();
        check_width("the inputs of a dense layer", inputs)?;
        check_width("the outputs of a dense layer", outputs)?;
        check_numbers(fraction_bits, &weights, &bias, output_max)?;
        let expected = inputs.checked_mul(outputs).filter(|&n| n <= PRODUCTS_MAX);
        if expected != Some(weights.len()) {
            let expected = format!("{outputs}·{inputs}, and at most {PRODUCTS_MAX}");
            return Err(misfit("the number of weights", expected, weights.len()));
        }
        let group = Group { inputs: positions(0..inputs), outputs: positions(0..outputs), weights: weights.clone() };
        let (groups, shape, kernel) = (vec![group], Shape::Dense, weights);
        Ok(Self { inputs, outputs, fraction_bits, groups, bias, shape, output_max, kernel })
    }

    /// A convolution: weights `[channels, channels_in, kernel, kernel]`, one bias per channel.
    ///
    /// # Errors
    /// [`NetworkError::Network`] if a number or a length is out of bounds.
    pub fn conv(
        conv: Convolution,
        fraction_bits: u32,
        weights: Vec<i32>,
        bias: &[f64],
        output_max: f64,
    ) -> Result<Self, NetworkError> {
        let [height, width] = conv.check()?;
        check_numbers(fraction_bits, &weights, bias, output_max)?;
        if weights.len() != conv.channels * conv.weights_per_channel() {
            let expected = format!("{}·{}", conv.channels, conv.weights_per_channel());
            return Err(misfit("the number of weights", expected, weights.len()));
        }
        if bias.len() != conv.channels {
            return Err(misfit("the number of biases", conv.channels, bias.len()));
        }
        let windows = height * width;
        let groups = (0..windows).map(|at| conv.group([at / width, at % width], windows, at, &weights)).collect();
        Ok(Self {
            inputs: conv.image.iter().product(),
            outputs: conv.channels * windows,
            fraction_bits,
            groups,
            bias: bias.iter().flat_map(|&bias| std::iter::repeat_n(bias, windows)).collect(),
            shape: Shape::Conv(conv),
            output_max,
            kernel: weights,
        })
    }

    /// The weights as a file has them: `[outputs, inputs]`, or `[channels, channels_in, kernel, kernel]`.
    #[must_use]
    pub fn kernel(&self) -> &[i32] {
        &self.kernel
    }

    /// `[outputs]` from `[inputs]`.
    fn forward(&self, values: &[f64]) -> Vec<f64> {
        let mut outputs = self.bias.clone();
        let unit = (-f64::from(self.fraction_bits)).exp2();
        let mut gathered = Vec::new();
        for group in &self.groups {
            gathered.clear();
            gathered.extend(group.inputs.iter().map(|&at| values[at as usize]));
            for (&output, weights) in group.outputs.iter().zip(group.weights.chunks_exact(group.inputs.len())) {
                outputs[output as usize] += unit * dot(weights, &gathered);
            }
        }
        outputs
    }

    /// The bias as a file has it: one per output, or per channel.
    fn stored_bias(&self) -> Vec<f64> {
        match self.shape {
            Shape::Dense => self.bias.clone(),
            Shape::Conv(conv) => self.bias.iter().step_by(self.outputs / conv.channels).copied().collect(),
        }
    }

    fn output_image(&self) -> Option<[usize; 3]> {
        match self.shape {
            Shape::Dense => None,
            Shape::Conv(conv) => conv.output(),
        }
    }

    /// Fits what arrives. That it fits itself is what its constructors see to; as its fields can be changed, what must
    /// hold for `forward` is looked at again.
    fn check(&self, layer: usize, width: usize, image: Option<[usize; 3]>) -> Result<(), NetworkError> {
        if self.inputs != width {
            return Err(in_layer(layer, "the number of inputs", width.to_string(), self.inputs));
        }
        if let Shape::Conv(conv) = self.shape
            && image != Some(conv.image)
        {
            let expected = image.map_or("none: no image arrives here".to_owned(), |image| format!("{image:?}"));
            return Err(in_layer(layer, "the image of the convolution", expected, format!("{:?}", conv.image)));
        }
        let made = match self.shape {
            Shape::Dense => {
                Self::dense(self.inputs, self.fraction_bits, self.kernel.clone(), self.bias.clone(), self.output_max)
            }
            Shape::Conv(conv) => {
                Self::conv(conv, self.fraction_bits, self.kernel.clone(), &self.stored_bias(), self.output_max)
            }
        };
        match made {
            Ok(made) if made == *self => Ok(()),
            Ok(_) => Err(in_layer(layer, "the layer", "what its weights make", "something else")),
            Err(NetworkError::Network { what, expected, found }) => {
                Err(NetworkError::Layer { layer, what, expected, found })
            }
            Err(other) => Err(other),
        }
    }
}

/// In lanes, because the compiler may not reorder a sum of floats itself.
fn dot(weights: &[i32], values: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0.0; LANES];
    let (weights, values) = (weights.chunks(LANES), values.chunks(LANES));
    for (weights, values) in weights.zip(values) {
        for ((lane, &weight), value) in lanes.iter_mut().zip(weights).zip(values) {
            *lane += f64::from(weight) * value;
        }
    }
    lanes.iter().sum()
}

fn check_numbers(fraction_bits: u32, weights: &[i32], bias: &[f64], output_max: f64) -> Result<(), NetworkError> {
    if fraction_bits > FRACTION_BITS_MAX {
        return Err(misfit("the fraction bits", format!("at most {FRACTION_BITS_MAX}"), fraction_bits));
    }
    if let Some(found) = weights.iter().find(|weight| weight.unsigned_abs() > WEIGHT_MAX.unsigned_abs()) {
        return Err(misfit("a weight", format!("at most {WEIGHT_MAX} in size"), found));
    }
    if let Some(found) = bias.iter().find(|bias| !bias.is_finite()) {
        return Err(misfit("a bias", "finite", found));
    }
    if !(output_max >= 0.0 && output_max.is_finite()) {
        return Err(misfit("the largest output", "finite and not negative", output_max));
    }
    Ok(())
}

fn check_width(what: &'static str, width: usize) -> Result<(), NetworkError> {
    if (1..=WIDTH_MAX).contains(&width) {
        return Ok(());
    }
    Err(misfit(what, format!("1 to {WIDTH_MAX}"), width))
}

/// Short, and fit to be printed.
fn check_name(what: &'static str, name: &str) -> Result<(), NetworkError> {
    if name.len() > NAME_MAX {
        return Err(misfit(what, format!("at most {NAME_MAX} bytes"), name.len()));
    }
    if name.chars().any(char::is_control) {
        return Err(misfit(what, "free of control characters", format!("{name:?}")));
    }
    Ok(())
}

fn misfit(what: &'static str, expected: impl ToString, found: impl ToString) -> NetworkError {
    NetworkError::Network { what, expected: expected.to_string(), found: found.to_string() }
}

fn in_layer(layer: usize, what: &'static str, expected: impl ToString, found: impl ToString) -> NetworkError {
    NetworkError::Layer { layer, what, expected: expected.to_string(), found: found.to_string() }
}

fn product(factors: &[usize]) -> Option<usize> {
    factors.iter().try_fold(1, |product: usize, &factor| product.checked_mul(factor))
}

fn positions(range: std::ops::Range<usize>) -> Vec<u32> {
    range.map(position).collect()
}

/// Widths are checked before, and far below 2³².
fn position(at: usize) -> u32 {
    at as u32
}

#[cfg(test)]
mod tests;
