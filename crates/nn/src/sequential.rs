//! The server's model as a list of layers.

use ndarray::ArrayView2;

use crate::errors::{ModelError, SpecError};
use crate::layer::{
    Activation, AvgPool2d, Backward, Bias, Conv2d, Dropout, Geometry, Layer, LayerNorm, Linear, MaxPool2d,
};
use crate::matrix::view;
use crate::model::{Mode, Model, Parameter, expect_positions};
use crate::spec::{LayerSpec, PoolSpec};

/// The widest layer. A row of it is 64 MB; anything wider is a slip of the pen in a session file.
pub(crate) const WIDTH_MAX: usize = 1 << 24;

/// The most numbers in one weight, and in one unfolded image: 1 GiB.
const WEIGHT_LEN_MAX: usize = 1 << 28;

/// A list of layers after a bias over `h1`, which arrives as the bare sum `Σ X_i·W_i`.
///
/// Parameters are named as PyTorch's `nn.Sequential` names them if the bias is its layer 0: `0.bias` (zeros at first),
/// then `{i}.weight` and `{i}.bias` for the i-th layer of the list, counted from 1. Dense weights are
/// `[outputs, inputs]`, convolutions `[channels_out, channels_in, kernel, kernel]`; both start uniform in `±1/√fan_in`,
/// each from its own stream [`crate::init_rng`]`(seed, name)`. Dropout draws from `dropout.{i}`, in the order of the
/// training steps.
///
/// Buffers are kept from batch to batch and grow to the largest.
pub struct Sequential {
    input_width: usize,
    output_width: usize,
    /// Never empty: the first is the bias.
    stages: Vec<Stage>,
    /// `h1` as it arrived, if a backward pass may follow its rows.
    input: Vec<f32>,
    /// The gradients of a layer's output and input, in turns.
    grads: [Vec<f32>; 2],
    /// Rows of the forward pass that `backward` may follow.
    taped_rows: Option<usize>,
}

/// A layer and the buffer of its output.
struct Stage {
    layer: Box<dyn Layer>,
    width: usize,
    output: Vec<f32>,
}

impl Sequential {
    /// Builds the layers over an `h1` of `input_width` features; the same seed gives the same weights.
    ///
    /// # Errors
    /// [`SpecError`] names the first layer that cannot be built.
    pub fn new(input_width: usize, layers: &[LayerSpec], seed: u64) -> Result<Self, SpecError> {
        nonzero(0, "hidden_width", input_width)?;
        let mut at = Features::plain(checked_width(0, Some(input_width))?);
        let bias = Bias::new("0.bias".to_owned(), input_width);
        let mut stages = vec![Stage::new(Box::new(bias), input_width)];
        for (index, spec) in layers.iter().enumerate() {
            let (built, after) = build(index + 1, spec, at, seed)?;
            at = after;
            stages.extend(built.map(|layer| Stage::new(layer, at.width)));
        }
        Ok(Self {
            input_width,
            output_width: at.width,
            stages,
            input: Vec::new(),
            grads: [Vec::new(), Vec::new()],
            taped_rows: None,
        })
    }
}

impl Model for Sequential {
    fn output_width(&self) -> usize {
        self.output_width
    }

    fn forward(&mut self, h1: ArrayView2<'_, f32>, mode: Mode) -> Result<ArrayView2<'_, f32>, ModelError> {
        let rows = h1.nrows();
        expect_shape("h1", [rows, self.input_width], h1)?;
        self.taped_rows = match mode {
            Mode::Train => Some(rows),
            Mode::Evaluate => None,
        };
        copy_rows(h1, &mut self.input);
        let mut input = &self.input;
        for stage in &mut self.stages {
            stage.output.resize(rows * stage.width, 0.0);
            stage.layer.forward(input, &mut stage.output, mode);
            input = &stage.output;
        }
        Ok(view(input, self.output_width))
    }

    fn backward(&mut self, grad_z: ArrayView2<'_, f32>) -> Result<ArrayView2<'_, f32>, ModelError> {
        let rows = self.taped_rows.ok_or(ModelError::NoForward)?;
        expect_shape("grad_z", [rows, self.output_width], grad_z)?;
        self.taped_rows = None;
        let [grad_output, grad_input] = &mut self.grads;
        copy_rows(grad_z, grad_output);
        let mut rest = self.stages.as_mut_slice();
        while let Some((stage, before)) = rest.split_last_mut() {
            let (input, width) =
                before.last().map_or((&self.input, self.input_width), |stage| (&stage.output, stage.width));
            grad_input.resize(rows * width, 0.0);
            stage.layer.backward(Backward { input, output: &stage.output, grad_output, grad_input });
            std::mem::swap(grad_output, grad_input);
            rest = before;
        }
        Ok(view(grad_output, self.input_width))
    }

    fn parameters(&mut self) -> Vec<Parameter<'_>> {
        let layers = self.stages.iter_mut();
        layers.flat_map(|stage| stage.layer.parameters()).collect()
    }

    fn random_positions(&self) -> Vec<u128> {
        let layers = self.stages.iter();
        layers.filter_map(|stage| stage.layer.rng()).map(|rng| rng.get_word_pos()).collect()
    }

    fn set_random_positions(&mut self, positions: &[u128]) -> Result<(), ModelError> {
        expect_positions(self.random_positions().len(), positions)?;
        let layers = self.stages.iter_mut();
        let streams = layers.filter_map(|stage| stage.layer.rng_mut());
        for (rng, &position) in streams.zip(positions) {
            rng.set_word_pos(position);
        }
        Ok(())
    }
}

impl Stage {
    fn new(layer: Box<dyn Layer>, width: usize) -> Self {
        Self { layer, width, output: Vec::new() }
    }
}

/// What arrives at a layer: how many features, and how they lie if they are an image.
#[derive(Clone, Copy)]
struct Features {
    width: usize,
    /// Channels, height, width.
    image: Option<[usize; 3]>,
}

impl Features {
    fn plain(width: usize) -> Self {
        Self { width, image: None }
    }
}

/// The layer of a specification, none for one that computes nothing, and what it hands on.
fn build(
    layer: usize,
    spec: &LayerSpec,
    input: Features,
    seed: u64,
) -> Result<(Option<Box<dyn Layer>>, Features), SpecError> {
    let prefix = layer.to_string();
    let (built, output): (Box<dyn Layer>, _) = match *spec {
        LayerSpec::Activation(kind) => (Box::new(Activation { kind }), input),
        LayerSpec::Linear(outputs) => {
            nonzero(layer, "linear", outputs)?;
            checked_width(layer, Some(outputs))?;
            checked_weight(layer, input.width.checked_mul(outputs))?;
            let linear = Linear::new(seed, &prefix, input.width, outputs);
            (Box::new(linear), Features::plain(outputs))
        }
        LayerSpec::Dropout(found) => {
            if !(0.0..1.0).contains(&found) {
                return Err(SpecError::Dropout { layer, found });
            }
            let dropout = Dropout::new(seed, &format!("dropout.{layer}"), found);
            (Box::new(dropout), input)
        }
        LayerSpec::LayerNorm(affine) => (Box::new(LayerNorm::new(&prefix, input.width, affine)), input),
        LayerSpec::Image(image) => return Ok((None, image_of(layer, image, input)?)),
        LayerSpec::Conv2d(ref conv) => {
            nonzero(layer, "channels", conv.channels)?;
            nonzero(layer, "kernel", conv.kernel)?;
            let window = Window {
                kind: "conv2d",
                field: "kernel",
                side: conv.kernel,
                stride: conv.stride,
                padding: conv.padding,
            };
            let geometry = window.over(layer, input)?;
            let output = image_after(layer, conv.channels, geometry)?;
            let unfolded_rows = checked_product(&[geometry.channels, conv.kernel, conv.kernel]);
            checked_weight(layer, unfolded_rows.and_then(|n| n.checked_mul(conv.channels)))?;
            let [height, width] = geometry.output();
            let positions = checked_product(&[height, width]).unwrap_or(usize::MAX);
            checked_weight(layer, unfolded_rows.and_then(|n| n.checked_mul(positions)))?;
            let conv = Conv2d::new(seed, &prefix, geometry, conv.channels);
            (Box::new(conv), output)
        }
        LayerSpec::MaxPool2d(ref pool) => {
            let geometry = pool_window("max-pool2d", layer, pool)?.over(layer, input)?;
            let output = image_after(layer, geometry.channels, geometry)?;
            (Box::new(MaxPool2d::new(geometry)), output)
        }
        LayerSpec::AvgPool2d(ref pool) => {
            let geometry = pool_window("avg-pool2d", layer, pool)?.over(layer, input)?;
            let output = image_after(layer, geometry.channels, geometry)?;
            (Box::new(AvgPool2d::new(geometry)), output)
        }
    };
    Ok((Some(built), output))
}

fn image_of(layer: usize, image: [usize; 3], input: Features) -> Result<Features, SpecError> {
    for side in image {
        nonzero(layer, "image", side)?;
    }
    let expected = checked_width(layer, checked_product(&image))?;
    if expected != input.width {
        return Err(SpecError::Image { layer, image, expected, found: input.width });
    }
    Ok(Features { width: expected, image: Some(image) })
}

/// The window of a convolution or pooling as a session file gives it.
struct Window {
    kind: &'static str,
    field: &'static str,
    side: usize,
    stride: usize,
    padding: usize,
}

fn pool_window(kind: &'static str, layer: usize, pool: &PoolSpec) -> Result<Window, SpecError> {
    nonzero(layer, "size", pool.size)?;
    Ok(Window { kind, field: "size", side: pool.size, stride: pool.stride(), padding: 0 })
}

impl Window {
    fn over(&self, layer: usize, input: Features) -> Result<Geometry, SpecError> {
        nonzero(layer, "stride", self.stride)?;
        let [channels, height, width] =
            input.image.ok_or(SpecError::NoImage { layer, kind: self.kind, found: input.width })?;
        let max = WIDTH_MAX;
        if self.padding > max {
            let what = "padding";
            return Err(SpecError::TooLarge { layer, what, max });
        }
        let smaller = height.min(width) + 2 * self.padding;
        if self.side > smaller {
            return Err(SpecError::Window { layer, field: self.field, max: smaller, found: self.side });
        }
        Ok(Geometry { channels, height, width, window: self.side, stride: self.stride, padding: self.padding })
    }
}

fn image_after(layer: usize, channels: usize, geometry: Geometry) -> Result<Features, SpecError> {
    let [height, width] = geometry.output();
    let image = [channels, height, width];
    Ok(Features { width: checked_width(layer, checked_product(&image))?, image: Some(image) })
}

fn nonzero(layer: usize, field: &'static str, found: usize) -> Result<(), SpecError> {
    if found == 0 {
        return Err(SpecError::Zero { layer, field });
    }
    Ok(())
}

fn checked_product(factors: &[usize]) -> Option<usize> {
    let mut factors = factors.iter();
    factors.try_fold(1, |product: usize, &factor| product.checked_mul(factor))
}

fn checked_width(layer: usize, width: Option<usize>) -> Result<usize, SpecError> {
    width.filter(|&width| width <= WIDTH_MAX).ok_or(SpecError::TooLarge { layer, what: "width", max: WIDTH_MAX })
}

fn checked_weight(layer: usize, len: Option<usize>) -> Result<usize, SpecError> {
    len.filter(|&len| len <= WEIGHT_LEN_MAX).ok_or(SpecError::TooLarge {
        layer,
        what: "numbers in the weight",
        max: WEIGHT_LEN_MAX,
    })
}

/// `matrix` is `expected`, or an error that names it.
pub(crate) fn expect_shape(
    what: &'static str,
    expected: [usize; 2],
    matrix: ArrayView2<'_, f32>,
) -> Result<(), ModelError> {
    let found = [matrix.nrows(), matrix.ncols()];
    if found == expected {
        return Ok(());
    }
    Err(ModelError::Shape { what, expected, found })
}

/// Sets `buffer` to the elements of `matrix`, row by row.
pub(crate) fn copy_rows(matrix: ArrayView2<'_, f32>, buffer: &mut Vec<f32>) {
    buffer.clear();
    match matrix.as_slice() {
        Some(slice) => buffer.extend_from_slice(slice),
        None => buffer.extend(matrix.iter()),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, s};

    use super::*;
    use crate::spec::{ActivationKind, ConvSpec};

    const SIGMOID: LayerSpec = LayerSpec::Activation(ActivationKind::Sigmoid);

    fn conv(channels: usize, kernel: usize, stride: usize, padding: usize) -> LayerSpec {
        LayerSpec::Conv2d(ConvSpec { channels, kernel, stride, padding })
    }

    fn pool(size: usize, stride: Option<usize>) -> PoolSpec {
        PoolSpec { size, stride }
    }

    /// Distinct multiples of 1/16 between, so that no step of a difference quotient crosses a kink or ties a maximum.
    fn batch(rows: usize, width: usize) -> Array2<f32> {
        let count = rows * width;
        Array2::from_shape_fn((rows, width), |(i, j)| {
            let shuffled = ((i * width + j) * 37 + 11) % 101;
            (shuffled as f32 - 50.0) / 16.0 / (1.0 + count as f32 / 101.0).floor() + 0.03
        })
    }

    /// Loss `Σ z·r` with fixed `r`, whose `grad_z` is `r`.
    fn direction(rows: usize, width: usize) -> Array2<f32> {
        Array2::from_shape_fn((rows, width), |(i, j)| ((i * 5 + j * 3) % 7) as f32 / 3.0 - 0.9)
    }

    fn loss(model: &mut Sequential, h1: &Array2<f32>, r: &Array2<f32>) -> f64 {
        let z = model.forward(h1.view(), Mode::Train).unwrap();
        let products = z.iter().zip(r);
        products.map(|(&z, &r)| f64::from(z) * f64::from(r)).sum()
    }

    /// Every gradient against the central difference of the loss.
    fn check_gradients(width: usize, layers: &[LayerSpec]) {
        const STEP: f32 = 5e-3;
        let rows = 3;
        let mut model = Sequential::new(width, layers, 21).unwrap();
        let mut h1 = batch(rows, width);
        let r = direction(rows, model.output_width());
        // Dropout must draw the same masks for every point.
        let positions = model.random_positions();
        let at = |model: &mut Sequential, h1: &Array2<f32>| {
            model.set_random_positions(&positions).unwrap();
            loss(model, h1, &r)
        };
        let close = |found: f32, expected: f64, what: &str| {
            let error = (f64::from(found) - expected).abs();
            assert!(error < 2e-3 * expected.abs().max(1.0), "{layers:?} {what}: {found}, not {expected}");
        };

        at(&mut model, &h1);
        let grad_h1 = model.backward(r.view()).unwrap().to_owned();
        let gradients: Vec<(String, Vec<f32>)> =
            model.parameters().iter().map(|p| (p.name.to_string(), p.gradient.to_vec())).collect();

        for ((i, j), &found) in grad_h1.indexed_iter() {
            let value = h1[[i, j]];
            let [low, high] = [value - STEP, value + STEP].map(|moved| {
                h1[[i, j]] = moved;
                (at(&mut model, &h1), f64::from(moved))
            });
            h1[[i, j]] = value;
            close(found, (high.0 - low.0) / (high.1 - low.1), "grad_h1");
        }
        for (p, (name, gradient)) in gradients.iter().enumerate() {
            for (i, &found) in gradient.iter().enumerate() {
                let value = model.parameters()[p].value[i];
                let [low, high] = [value - STEP, value + STEP].map(|moved| {
                    model.parameters()[p].value[i] = moved;
                    (at(&mut model, &h1), f64::from(moved))
                });
                model.parameters()[p].value[i] = value;
                close(found, (high.0 - low.0) / (high.1 - low.1), name);
            }
        }
    }

    #[test]
    fn gradients_of_each_layer_agree_with_finite_differences() {
        check_gradients(5, &[]);
        for kind in [
            ActivationKind::Sigmoid,
            ActivationKind::Tanh,
            ActivationKind::Relu,
            ActivationKind::LeakyRelu,
            ActivationKind::Gelu,
            ActivationKind::Silu,
            ActivationKind::Square,
        ] {
            check_gradients(7, &[LayerSpec::Activation(kind)]);
        }
        check_gradients(5, &[LayerSpec::Linear(4)]);
        check_gradients(5, &[LayerSpec::Linear(12)]);
        check_gradients(9, &[LayerSpec::Dropout(0.4)]);
        check_gradients(6, &[LayerSpec::LayerNorm(false)]);
        check_gradients(20, &[LayerSpec::LayerNorm(true)]);
        let image = LayerSpec::Image([2, 4, 5]);
        for layer in [
            conv(3, 3, 1, 0),
            conv(2, 2, 2, 1),
            LayerSpec::MaxPool2d(pool(2, None)),
            LayerSpec::MaxPool2d(pool(2, Some(1))),
            LayerSpec::AvgPool2d(pool(2, None)),
            LayerSpec::AvgPool2d(pool(3, Some(1))),
        ] {
            check_gradients(40, &[image.clone(), layer]);
        }
    }

    #[test]
    fn gradients_of_compositions_agree_with_finite_differences() {
        check_gradients(
            8,
            &[
                SIGMOID,
                LayerSpec::Linear(6),
                LayerSpec::LayerNorm(true),
                LayerSpec::Activation(ActivationKind::Tanh),
                LayerSpec::Dropout(0.2),
                LayerSpec::Linear(3),
            ],
        );
        check_gradients(
            36,
            &[
                LayerSpec::Image([1, 6, 6]),
                LayerSpec::Activation(ActivationKind::Gelu),
                conv(2, 3, 1, 1),
                LayerSpec::Activation(ActivationKind::Silu),
                LayerSpec::AvgPool2d(pool(2, None)),
                conv(3, 2, 1, 0),
                LayerSpec::Linear(2),
            ],
        );
    }

    #[test]
    fn names_and_shapes_are_pytorchs() {
        let layers =
            [LayerSpec::Image([1, 4, 4]), conv(2, 3, 1, 0), SIGMOID, LayerSpec::LayerNorm(true), LayerSpec::Linear(3)];
        let mut model = Sequential::new(16, &layers, 1).unwrap();
        let found: Vec<_> = model.parameters().into_iter().map(|p| (p.name.into_owned(), p.shape)).collect();
        let expected = [
            ("0.bias", vec![16]),
            ("2.weight", vec![2, 1, 3, 3]),
            ("2.bias", vec![2]),
            ("4.weight", vec![8]),
            ("4.bias", vec![8]),
            ("5.weight", vec![3, 8]),
            ("5.bias", vec![3]),
        ]
        .map(|(name, shape)| (name.to_owned(), shape));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_dense_layer_is_its_definition() {
        let mut model = Sequential::new(2, &[LayerSpec::Linear(3)], 1).unwrap();
        let values: [&[f32]; 3] = [&[0.5, -0.5], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[10.0, 20.0, 30.0]];
        for (parameter, values) in model.parameters().into_iter().zip(values) {
            parameter.value.copy_from_slice(values);
        }
        let h1 = ndarray::array![[0.5, 1.5], [1.5, 0.5]];
        let z = model.forward(h1.view(), Mode::Evaluate).unwrap();
        // h1 + bias is [1, 1] and [2, 0].
        assert_eq!(z, ndarray::array![[13.0, 27.0, 41.0], [12.0, 26.0, 40.0]]);
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_batch() {
        let layers = [
            SIGMOID,
            LayerSpec::Linear(36),
            LayerSpec::LayerNorm(true),
            LayerSpec::Image([1, 6, 6]),
            conv(4, 3, 1, 1),
            LayerSpec::MaxPool2d(pool(2, None)),
            LayerSpec::Linear(3),
        ];
        let mut model = Sequential::new(40, &layers, 5).unwrap();
        let h1 = batch(200, 40);
        let whole = model.forward(h1.view(), Mode::Train).unwrap().to_owned();
        for rows in [1, 2, 3, 7, 64, 199] {
            for start in [0, 200 - rows] {
                let part = s![start..start + rows, ..];
                let z = model.forward(h1.slice(part), Mode::Evaluate).unwrap();
                assert_eq!(z, whole.slice(part), "{rows} rows from {start}");
            }
        }
    }

    #[test]
    fn any_memory_order_gives_the_same() {
        let mut model = Sequential::new(6, &[SIGMOID, LayerSpec::Linear(2)], 5).unwrap();
        let h1 = batch(9, 6);
        let mut columns_first = Array2::zeros((6, 9)).reversed_axes();
        columns_first.assign(&h1);
        let z = model.forward(h1.view(), Mode::Train).unwrap().to_owned();
        assert_eq!(model.forward(columns_first.view(), Mode::Train).unwrap(), z);
    }

    #[test]
    fn dropout_keeps_the_mean_and_evaluates_to_the_identity() {
        let mut model = Sequential::new(50, &[LayerSpec::Dropout(0.3)], 5).unwrap();
        let h1 = Array2::from_elem((400, 50), 2.0);
        let z = model.forward(h1.view(), Mode::Train).unwrap().to_owned();
        let dropped = z.iter().filter(|&&z| z == 0.0).count();
        // 20 000 draws: the standard deviation of the count is 65.
        assert!((5_680..6_320).contains(&dropped), "{dropped}");
        assert!(z.iter().all(|&z| z == 0.0 || z == 2.0 / (1.0 - 0.3)));
        assert!((z.mean().unwrap() - 2.0).abs() < 0.05);
        assert_ne!(model.forward(h1.view(), Mode::Train).unwrap(), z);
        assert_eq!(model.forward(h1.view(), Mode::Evaluate).unwrap(), h1);

        let positions = model.random_positions();
        let next = model.forward(h1.view(), Mode::Train).unwrap().to_owned();
        model.set_random_positions(&positions).unwrap();
        assert_eq!(model.forward(h1.view(), Mode::Train).unwrap(), next);
        assert!(matches!(model.set_random_positions(&[]), Err(ModelError::State { .. })));
    }

    #[test]
    fn calls_out_of_order_are_errors() {
        let mut model = Sequential::new(4, &[LayerSpec::Linear(2)], 5).unwrap();
        let (h1, grad_z) = (batch(3, 4), direction(3, 2));
        let shape = |what, expected, found| ModelError::Shape { what, expected, found };
        assert_eq!(model.backward(grad_z.view()), Err(ModelError::NoForward));
        let narrow = batch(3, 5);
        assert_eq!(model.forward(narrow.view(), Mode::Train), Err(shape("h1", [3, 4], [3, 5])));
        model.forward(h1.view(), Mode::Evaluate).unwrap();
        assert_eq!(model.backward(grad_z.view()), Err(ModelError::NoForward));
        model.forward(h1.view(), Mode::Train).unwrap();
        assert_eq!(model.backward(direction(2, 2).view()), Err(shape("grad_z", [3, 2], [2, 2])));
        // The right gradient is still welcome, once.
        assert_eq!(model.backward(grad_z.view()).unwrap().dim(), (3, 4));
        assert_eq!(model.backward(grad_z.view()), Err(ModelError::NoForward));
        let empty = batch(0, 4);
        let z = model.forward(empty.view(), Mode::Train).unwrap();
        assert_eq!(z.dim(), (0, 2));
        let grad_h1 = model.backward(direction(0, 2).view()).unwrap();
        assert_eq!(grad_h1.dim(), (0, 4));
    }

    #[test]
    fn a_smaller_batch_leaves_nothing_behind() {
        let layers = [SIGMOID, LayerSpec::Dropout(0.0), LayerSpec::LayerNorm(true), LayerSpec::Linear(2)];
        let mut used = Sequential::new(4, &layers, 5).unwrap();
        let mut fresh = Sequential::new(4, &layers, 5).unwrap();
        used.forward(batch(50, 4).view(), Mode::Train).unwrap();
        used.backward(direction(50, 2).view()).unwrap();
        let h1 = batch(7, 4);
        for model in [&mut used, &mut fresh] {
            model.forward(h1.view(), Mode::Train).unwrap();
        }
        let grad_z = direction(7, 2);
        assert_eq!(used.backward(grad_z.view()), fresh.backward(grad_z.view()));
        for (used, fresh) in used.parameters().iter().zip(fresh.parameters()) {
            assert_eq!(used.gradient, fresh.gradient, "{}", used.name);
        }
    }

    #[test]
    fn a_specification_that_cannot_be_built_is_an_error() {
        let image = LayerSpec::Image([1, 4, 6]);
        let error = |layers: &[LayerSpec]| Sequential::new(24, layers, 0).err().unwrap();
        let zero = |layer, field| SpecError::Zero { layer, field };
        let cases = [
            (vec![SIGMOID, LayerSpec::Linear(0)], zero(2, "linear")),
            (vec![LayerSpec::Dropout(1.0)], SpecError::Dropout { layer: 1, found: 1.0 }),
            (vec![LayerSpec::Dropout(-0.1)], SpecError::Dropout { layer: 1, found: -0.1 }),
            (vec![conv(1, 3, 1, 0)], SpecError::NoImage { layer: 1, kind: "conv2d", found: 24 }),
            (
                // A dense layer mixes the pixels.
                vec![image.clone(), LayerSpec::Linear(24), LayerSpec::AvgPool2d(pool(2, None))],
                SpecError::NoImage { layer: 3, kind: "avg-pool2d", found: 24 },
            ),
            (
                vec![LayerSpec::Image([1, 5, 5])],
                SpecError::Image { layer: 1, image: [1, 5, 5], expected: 25, found: 24 },
            ),
            (vec![LayerSpec::Image([1, 0, 5])], zero(1, "image")),
            (vec![image.clone(), conv(1, 7, 1, 1)], SpecError::Window { layer: 2, field: "kernel", max: 6, found: 7 }),
            (
                vec![image.clone(), SIGMOID, LayerSpec::MaxPool2d(pool(5, None))],
                SpecError::Window { layer: 3, field: "size", max: 4, found: 5 },
            ),
            (vec![image.clone(), conv(0, 3, 1, 0)], zero(2, "channels")),
            (vec![image.clone(), conv(1, 0, 1, 0)], zero(2, "kernel")),
            (vec![image.clone(), conv(1, 3, 0, 0)], zero(2, "stride")),
            (vec![image.clone(), LayerSpec::MaxPool2d(pool(0, None))], zero(2, "size")),
            (vec![image.clone(), LayerSpec::AvgPool2d(pool(2, Some(0)))], zero(2, "stride")),
        ];
        for (layers, expected) in cases {
            assert_eq!(error(&layers), expected);
        }
        for layers in [
            vec![LayerSpec::Linear(usize::MAX)],
            vec![LayerSpec::Linear(WIDTH_MAX)],
            vec![LayerSpec::Image([usize::MAX, 2, 2])],
            vec![image.clone(), conv(1, 1, 1, usize::MAX)],
            vec![image.clone(), conv(usize::MAX, 1, 1, 0)],
            vec![image, conv(WIDTH_MAX, 6, 5, 1)],
        ] {
            assert!(matches!(error(&layers), SpecError::TooLarge { .. }), "{layers:?}");
        }
        assert_eq!(Sequential::new(0, &[], 0).err(), Some(zero(0, "hidden_width")));
        assert_eq!(
            error(&[LayerSpec::Dropout(2.0)]).to_string(),
            "server layer 1: dropout must be at least 0 and less than 1, found 2"
        );
    }
}
