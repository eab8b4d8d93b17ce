//! From trained weights to integers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ndarray::ArrayView2;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use spnn_nn::Parameter;

use crate::data::Rows;
use crate::network::{FRACTION_BITS_MAX, Input, Layer, Linear, Network, NetworkError, Shape, WEIGHT_MAX};
use crate::recipe::{Planned, QuantizeRecipe, Recipe, RecipeError, field};

/// Fraction bits of the first layer, of those between, and of the last. Measured on MNIST: with fewer, accuracy falls;
/// with more, only the weights grow.
const FRACTION_BITS: [u32; 3] = [7, 9, 6];

/// Weights that all would be smaller than this get more fraction bits.
const WEIGHT_MAX_LEAST: f64 = 32.0;

/// A trained linear layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FloatLinear {
    pub(crate) planned: Planned,
    /// In the order of the planned weight's extents.
    pub(crate) weights: Vec<f64>,
    /// One per output, or per channel.
    pub(crate) bias: Vec<f64>,
}

/// Makes a network of weights trained elsewhere: a PyTorch `state_dict` of a `Sequential`, saved as safetensors, of F32 or
/// F64. Its weights and biases belong to the recipe's linear layers, the head last, in the order of the numbers before
/// `.weight`.
///
/// The recipe's `[input]` must scale as the training did. `training` is where scales are fitted and the largest outputs
/// measured; the recipe's `[train]` is not needed.
///
/// # Errors
/// [`RecipeError::Tensor`] names the file, the tensor, what was expected and what is there; what is wrong with the recipe.
pub fn import(recipe: &Recipe, file: &Path, training: &Rows) -> Result<Network, RecipeError> {
    let bytes = fs::read(file).map_err(|source| RecipeError::Read { file: file.to_path_buf(), source })?;
    let input = recipe.fit_input(training)?;
    let (classes, _) = recipe.fit_labels(training)?;
    let layers = state_dict(file, &bytes, recipe.plan(&input)?)?;
    quantize(recipe, input, classes, &layers, training.features.view())
}

/// The weights of a model's layers, and of its head.
pub(crate) fn trained(plan: Vec<Planned>, parameters: &[Parameter<'_>]) -> Vec<FloatLinear> {
    let by_name: BTreeMap<&str, &Parameter<'_>> = parameters.iter().map(|p| (p.name.as_ref(), p)).collect();
    let values = |name: String| {
        let found = by_name.get(name.as_str());
        found.map(|p| p.value.iter().map(|&x| f64::from(x)).collect()).unwrap_or_default()
    };
    let layers = plan.into_iter().map(|planned| {
        let prefix = planned.position.map_or("head".to_owned(), |position| position.to_string());
        let (weights, bias) = (values(format!("{prefix}.weight")), values(format!("{prefix}.bias")));
        FloatLinear { planned, weights, bias }
    });
    layers.collect()
}

/// The network, with its largest outputs measured on raw training rows `[n, d]`.
pub(crate) fn quantize(
    recipe: &Recipe,
    input: Input,
    classes: Vec<String>,
    floats: &[FloatLinear],
    training: ArrayView2<'_, f32>,
) -> Result<Network, RecipeError> {
    let bits = fraction_bits(&recipe.quantize, floats)?;
    let mut layers = Vec::new();
    for (float, bits) in floats.iter().zip(bits) {
        if !layers.is_empty() {
            layers.push(Layer::Square);
        }
        layers.push(Layer::Linear(quantize_layer(layers.len(), float, bits)?));
    }
    let (name, loss) = (recipe.network.name.clone(), recipe.network.head.loss);
    let mut network = Network::new(name, input, layers, classes, loss)?;
    measure_outputs(&mut network, training)?;
    Ok(network)
}

/// Sets the largest output of each linear layer that any of the raw rows `[n, width]` gives.
pub(crate) fn measure_outputs(network: &mut Network, rows: ArrayView2<'_, f32>) -> Result<(), NetworkError> {
    let mut largest = vec![0.0_f64; network.layers.len()];
    for row in rows.rows() {
        let raw: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
        network.forward_each(network.inputs_of(&raw)?, |layer, values| {
            largest[layer] = values.iter().fold(largest[layer], |largest, x| largest.max(x.abs()));
        });
    }
    for (position, (layer, largest)) in network.layers.iter_mut().zip(largest).enumerate() {
        if let Layer::Linear(linear) = layer {
            if !largest.is_finite() {
                let (what, expected) = ("the largest output on the training rows", "finite".to_owned());
                return Err(NetworkError::Layer { layer: position, what, expected, found: largest.to_string() });
            }
            linear.output_max = largest;
        }
    }
    Ok(())
}

fn fraction_bits(recipe: &QuantizeRecipe, floats: &[FloatLinear]) -> Result<Vec<u32>, RecipeError> {
    if let Some(bits) = &recipe.fraction_bits {
        if bits.len() != floats.len() {
            let expected = format!("{} numbers, one per linear layer", floats.len());
            return Err(field("fraction_bits", expected, bits.len()));
        }
        return Ok(bits.clone());
    }
    let last = floats.len().saturating_sub(1);
    let chosen = floats.iter().enumerate().map(|(layer, float)| {
        let [first, middle, end] = FRACTION_BITS;
        let start = if layer == 0 {
            first
        } else if layer == last {
            end
        } else {
            middle
        };
        chosen_bits(start, float, f64::from(recipe.weight_max))
    });
    Ok(chosen.collect())
}

/// `start`, or what keeps the largest weight between [`WEIGHT_MAX_LEAST`] and `weight_max`.
fn chosen_bits(start: u32, float: &FloatLinear, weight_max: f64) -> u32 {
    let largest = float.weights.iter().fold(0.0_f64, |largest, weight| largest.max(weight.abs()));
    let scaled = |bits: u32| (largest * f64::from(bits).exp2()).round();
    let mut bits = start;
    while bits > 0 && scaled(bits) > weight_max {
        bits -= 1;
    }
    while bits < FRACTION_BITS_MAX && scaled(bits) < WEIGHT_MAX_LEAST && scaled(bits + 1) <= weight_max {
        bits += 1;
    }
    bits
}

fn quantize_layer(position: usize, float: &FloatLinear, bits: u32) -> Result<Linear, RecipeError> {
    let weights = float.weights.iter().map(|&weight| {
        let scaled = (weight * f64::from(bits).exp2()).round();
        // Also refuses NaN.
        if scaled.abs() <= f64::from(WEIGHT_MAX) {
            return Ok(scaled as i32);
        }
        let expected = format!("at most {WEIGHT_MAX}/2^{bits} in size");
        Err(NetworkError::Layer { layer: position, what: "a weight", expected, found: weight.to_string() })
    });
    let weights = weights.collect::<Result<Vec<i32>, _>>()?;
    let made = match float.planned.shape {
        Shape::Dense => Linear::dense(float.planned.inputs, bits, weights, float.bias.clone(), 0.0),
        Shape::Conv(conv) => Linear::conv(conv, bits, weights, &float.bias, 0.0),
    };
    Ok(made?)
}

fn state_dict(file: &Path, bytes: &[u8], plan: Vec<Planned>) -> Result<Vec<FloatLinear>, RecipeError> {
    let wrong = |what: String, expected: String, found: String| RecipeError::Tensor {
        file: file.to_path_buf(),
        what,
        expected,
        found,
    };
    let tensors = SafeTensors::deserialize(bytes)
        .map_err(|error| wrong("the file".to_owned(), "safetensors".to_owned(), error.to_string()))?;
    let mut by_name: BTreeMap<String, TensorView<'_>> =
        tensors.iter().map(|(name, view)| (name.to_owned(), view)).collect();
    let names = by_name.keys().filter_map(|name| name.strip_suffix(".weight"));
    let mut prefixes: Vec<String> = names.map(str::to_owned).collect();
    // `10` comes after `9`; names that are no numbers go by alphabet.
    prefixes.sort_by_key(|prefix| (prefix.parse::<u64>().unwrap_or(u64::MAX), prefix.clone()));
    if prefixes.len() != plan.len() {
        let found = format!("{}: {}", prefixes.len(), prefixes.join(", "));
        return Err(wrong("the number of weights".to_owned(), plan.len().to_string(), found));
    }
    let mut take = |name: String, shape: &[usize]| {
        let expected = format!("F32 or F64 of {shape:?}");
        match by_name.remove(&name) {
            None => Err(wrong(name, expected, "no such tensor".to_owned())),
            Some(view) => match numbers(&view) {
                Some(values) if view.shape() == shape => Ok(values),
                _ => Err(wrong(name, expected, format!("{:?} of {:?}", view.dtype(), view.shape()))),
            },
        }
    };
    let mut layers = Vec::new();
    for (planned, prefix) in plan.into_iter().zip(prefixes) {
        let shape = planned.weight_shape();
        let weights = take(format!("{prefix}.weight"), &shape)?;
        let bias = take(format!("{prefix}.bias"), &shape[..1])?;
        layers.push(FloatLinear { planned, weights, bias });
    }
    if let Some(name) = by_name.keys().next() {
        return Err(wrong("every tensor".to_owned(), "a weight or bias of a layer".to_owned(), format!("{name:?}")));
    }
    Ok(layers)
}

fn numbers(view: &TensorView<'_>) -> Option<Vec<f64>> {
    match view.dtype() {
        Dtype::F32 => {
            Some(view.data().as_chunks().0.iter().map(|&chunk| f64::from(f32::from_le_bytes(chunk))).collect())
        }
        Dtype::F64 => Some(view.data().as_chunks().0.iter().map(|&chunk| f64::from_le_bytes(chunk)).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Convolution 1·6·6 → 2·3·3, square, dense → 4, square, dense → 2.
    const RECIPE: &str = r#"
        data = { train = "unread.csv" }
        input = { divide = 2 }
        [network]
        name = "test"
        layers = [{ conv2d = { channels = 2, kernel = 3, stride = 2, padding = 1 } }, { activation = "square" },
                  { linear = 4 }, { activation = "square" }]
        head = { linear = 2, loss = "softmax-cross-entropy" }
    "#;

    fn recipe(more: &str) -> Recipe {
        toml::from_str(&format!("{RECIPE}\n{more}")).unwrap()
    }

    fn rows(seed: u64, count: usize) -> Rows {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Rows {
            ids: (0..count).map(|row| row.to_string()).collect(),
            columns: Vec::new(),
            image: Some([1, 6, 6]),
            features: Array2::from_shape_simple_fn((count, 36), || rng.random_range(-2.0..2.0)),
            labels: Some((0..count).map(|row| (row % 2).to_string()).collect()),
        }
    }

    fn floats(recipe: &Recipe, input: &Input, seed: u64) -> Vec<FloatLinear> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut uniform = |count: usize| (0..count).map(|_| rng.random_range(-0.5..0.5)).collect::<Vec<f64>>();
        let plan = recipe.plan(input).unwrap().into_iter();
        plan.map(|planned| {
            let shape = planned.weight_shape();
            let (weights, bias) = (uniform(shape.iter().product()), uniform(shape[0]));
            FloatLinear { planned, weights, bias }
        })
        .collect()
    }

    /// The outputs of the network of floats, and how far those of its quantised form can be from them.
    fn reference(floats: &[FloatLinear], bits: &[u32], inputs: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (mut values, mut errors) = (inputs.to_vec(), vec![0.0; inputs.len()]);
        for (position, (float, &bits)) in floats.iter().zip(bits).enumerate() {
            if position > 0 {
                for (value, error) in values.iter_mut().zip(&mut errors) {
                    *error = 2.0 * value.abs() * *error + error.powi(2);
                    *value *= *value;
                }
            }
            let half = 0.5 * (-f64::from(bits)).exp2();
            let outputs = float.planned.outputs;
            let (mut next, mut next_errors) = (vec![0.0; outputs], vec![1e-12; outputs]);
            for output in 0..outputs {
                let (bias, terms) = terms(float, output);
                next[output] = bias;
                for (at, weight) in terms {
                    next[output] += weight * values[at];
                    next_errors[output] += half * values[at].abs() + (weight.abs() + half) * errors[at];
                }
            }
            (values, errors) = (next, next_errors);
        }
        (values, errors)
    }

    /// An output's bias, and its inputs' positions and weights, straight from the definition.
    fn terms(float: &FloatLinear, output: usize) -> (f64, Vec<(usize, f64)>) {
        let inputs = float.planned.inputs;
        let Shape::Conv(conv) = float.planned.shape else {
            let weights = &float.weights[output * inputs..][..inputs];
            return (float.bias[output], weights.iter().copied().enumerate().collect());
        };
        let [_, height, width] = conv.output().unwrap();
        let (channel, oy, ox) = (output / (height * width), output / width % height, output % width);
        let mut terms = Vec::new();
        for (at, place) in (0..inputs).map(|at| (at, [at / conv.image[2], at % conv.image[2]])) {
            let k = [
                (place[0] + conv.padding).checked_sub(oy * conv.stride),
                (place[1] + conv.padding).checked_sub(ox * conv.stride),
            ];
            if let [Some(ky), Some(kx)] = k
                && ky < conv.kernel
                && kx < conv.kernel
            {
                terms.push((at, float.weights[(channel * conv.kernel + ky) * conv.kernel + kx]));
            }
        }
        (float.bias[channel], terms)
    }

    proptest! {
        #[test]
        fn a_quantised_network_is_the_float_network_within_its_rounding(seed: u64, bits in proptest::array::uniform3(3_u32..14)) {
            let recipe = recipe(&format!("[quantize]\nfraction_bits = {bits:?}"));
            let rows = rows(seed, 5);
            let input = recipe.fit_input(&rows).unwrap();
            let floats = floats(&recipe, &input, seed ^ 1);
            let classes = vec!["0".to_owned(), "1".to_owned()];
            let network = quantize(&recipe, input, classes, &floats, rows.features.view()).unwrap();
            let found = network.predict_rows(rows.features.view()).unwrap();
            let mut largest = 0.0_f64;
            for (row, found) in rows.features.rows().into_iter().zip(found.rows()) {
                let inputs: Vec<f64> = row.iter().map(|&x| f64::from(x) / 2.0).collect();
                let (expected, errors) = reference(&floats, &bits, &inputs);
                for ((found, expected), error) in found.iter().zip(expected).zip(errors) {
                    prop_assert!((found - expected).abs() <= error, "{found} {expected} {error}");
                    largest = largest.max(found.abs());
                }
            }
            // What encrypted evaluation plans for is what the rows gave.
            prop_assert_eq!(network.linear_layers().last().unwrap().output_max, largest);
        }
    }

    #[test]
    fn fraction_bits_keep_weights_small() {
        let planned = Planned { shape: Shape::Dense, inputs: 1, outputs: 1, position: None };
        let float = |largest: f64| FloatLinear { planned: planned.clone(), weights: vec![0.0, -largest], bias: vec![] };
        for (start, largest, expected) in [
            (7, 1.0, 7),
            (7, 3.99, 7),
            (7, 4.0, 6),
            (9, 1.0, 8),
            (6, 1e9, 0),
            (6, 0.4, 7),
            (6, 1e-3, 15),
            (6, 0.0, FRACTION_BITS_MAX),
        ] {
            assert_eq!(chosen_bits(start, &float(largest), 511.0), expected, "{largest}");
        }
    }

    /// Name, type, extents, values.
    type Named = (&'static str, Dtype, Vec<usize>, Vec<f64>);

    fn state(tensors: &[Named]) -> Vec<u8> {
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, dtype, _, values)| match dtype {
                Dtype::F32 => values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
                _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            })
            .collect();
        let views = tensors.iter().zip(&bytes);
        let views = views
            .map(|((name, dtype, shape, _), bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    #[test]
    fn imports_what_pytorch_saved() {
        let recipe = recipe("");
        let rows = rows(3, 4);
        let input = recipe.fit_input(&rows).unwrap();
        let floats = floats(&recipe, &input, 4);
        // As of Sequential(Conv2d, Square, Flatten, …, Linear), whose modules without weights count as well.
        let names = [("0.weight", "0.bias"), ("3.weight", "3.bias"), ("10.weight", "10.bias")];
        let mut tensors = Vec::new();
        for (float, (weight, bias)) in floats.iter().zip(names) {
            tensors.push((weight, Dtype::F64, float.planned.weight_shape(), float.weights.clone()));
            tensors.push((bias, Dtype::F64, vec![float.bias.len()], float.bias.clone()));
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("state.safetensors");
        std::fs::write(&file, state(&tensors)).unwrap();
        let found = import(&recipe, &file, &rows).unwrap();
        let classes = vec!["0".to_owned(), "1".to_owned()];
        let expected = quantize(&recipe, input, classes, &floats, rows.features.view()).unwrap();
        assert_eq!(found, expected);

        let refused = |change: &dyn Fn(&mut Vec<Named>)| {
            let mut changed = tensors.clone();
            change(&mut changed);
            std::fs::write(&file, state(&changed)).unwrap();
            import(&recipe, &file, &rows).unwrap_err().to_string()
        };
        for (found, expected) in [
            (refused(&|t| t.truncate(4)), "the number of weights must be 3, found 2: 0, 3"),
            (refused(&|t| t[1].0 = "0.scale"), "0.bias must be F32 or F64 of [2], found no such tensor"),
            (
                refused(&|t| t[0].1 = Dtype::I64),
                "0.weight must be F32 or F64 of [2, 1, 3, 3], found I64 of [2, 1, 3, 3]",
            ),
            (refused(&|t| t[2].2 = vec![18, 4]), "3.weight must be F32 or F64 of [4, 18], found F64 of [18, 4]"),
            (
                refused(&|t| t.push(("1.running_mean", Dtype::F32, vec![1], vec![0.0]))),
                "every tensor must be a weight or bias of a layer, found \"1.running_mean\"",
            ),
            (refused(&|t| t[0].3[0] = f64::NAN), "layer 0: a weight must be at most 1048576/2^"),
            (refused(&|t| t[3].3[0] = f64::INFINITY), "a bias must be finite, found inf"),
            (refused(&|t| t[4].3[0] = 1e300), "layer 4: a weight must be at most 1048576/2^0 in size"),
        ] {
            assert!(found.contains(expected), "{found}");
        }
        std::fs::write(&file, b"no safetensors").unwrap();
        assert!(matches!(import(&recipe, &file, &rows), Err(RecipeError::Tensor { .. })));
    }
}
