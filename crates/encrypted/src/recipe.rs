//! A recipe: data, network and training as a TOML file says them.
//!
//! ```toml
//! [data]
//! train = ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]   # or a CSV file: "train.csv"
//! test = ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
//!
//! [input]
//! divide = 255                    # or leave it out: every column is standardised on the training rows
//!
//! [network]
//! name = "digits"
//! layers = [{ conv2d = { channels = 5, kernel = 5, stride = 2, padding = 1 } }, { activation = "square" }]
//! head = { linear = 10, loss = "softmax-cross-entropy" }
//!
//! [train]
//! epochs = 20
//! optimizer = { kind = "adam", learning_rate = 0.001 }
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ndarray::Array2;
use serde::Deserialize;
use spnn_nn::{ActivationKind, HeadSpec, LayerSpec, Loss, ModelError, OptimizerSpec, SpecError};
use thiserror::Error;

use crate::data::{CsvLayout, DataError, Rows, read_csv, read_idx};
use crate::network::{Convolution, Input, LAYERS_MAX, NetworkError, Shape, WIDTH_MAX};

/// Inputs of standardised columns are clipped to this many standard deviations: an outlier would be squared twice.
const DEVIATIONS_MAX: f64 = 4.0;

/// What to train, on what, and how.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The files.
    pub data: DataRecipe,
    /// From raw numbers to inputs.
    #[serde(default)]
    pub input: InputRecipe,
    /// The layers.
    pub network: NetworkRecipe,
    /// The training; not needed to import weights from elsewhere.
    #[serde(default)]
    pub train: Option<TrainRecipe>,
    /// From weights to integers.
    #[serde(default)]
    pub quantize: QuantizeRecipe,
}

/// Where the rows are.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// Where the files are; the recipe's own directory if it is left out. A relative one is relative to that.
    #[serde(default)]
    pub directory: PathBuf,
    /// Rows to train on.
    pub train: Files,
    /// Rows to measure the result on.
    pub test: Option<Files>,
    /// The column of ids of a CSV file.
    pub id: Option<String>,
    /// The column of labels of a CSV file.
    pub label: Option<String>,
}

/// A table.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum Files {
    /// A CSV file, perhaps under gzip.
    Csv(PathBuf),
    /// Images and their labels in the IDX format, perhaps under gzip.
    Idx([PathBuf; 2]),
}

/// How raw numbers become inputs. Without `offset` and `divide`, each column gets mean 0 and deviation 1.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct InputRecipe {
    /// Channels, height, width of a row of a CSV file; IDX files say it themselves.
    pub image: Option<[usize; 3]>,
    /// Subtracted from every number.
    pub offset: Option<f64>,
    /// Then divides every number.
    pub divide: Option<f64>,
    /// Larger inputs are clipped: by default four deviations, or, with `divide`, the largest of the training rows.
    pub max: Option<f64>,
}

/// The network.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct NetworkRecipe {
    /// Its name, for people.
    pub name: String,
    /// The layers before the last one: `linear` or `conv2d`, each followed by `{ activation = "square" }`.
    pub layers: Vec<LayerSpec>,
    /// The last layer and the loss.
    pub head: HeadSpec,
    /// A name per output; by default the labels of the training rows, or the name of the label's column.
    pub classes: Option<Vec<String>>,
}

/// The training.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct TrainRecipe {
    /// Passes over the training rows.
    pub epochs: usize,
    /// Rows per step.
    #[serde(default = "default_batch_size")]
    pub batch_size: usize,
    /// Of initial weights, the order of rows, and shifts.
    #[serde(default)]
    pub seed: u64,
    /// Its learning rate is the largest there is.
    pub optimizer: OptimizerSpec,
    /// How the learning rate changes.
    #[serde(default)]
    pub decay: Decay,
    /// Images are moved by up to so many pixels in each direction, anew in every epoch.
    #[serde(default)]
    pub shift: usize,
    /// Gradients are scaled down to this norm, all parameters together. Squares make rare, huge ones.
    pub clip_norm: Option<f64>,
    /// What each step takes away of every weight, as a multiple of the learning rate.
    #[serde(default)]
    pub weight_decay: f64,
}

/// How the learning rate changes from step to step.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// It does not.
    #[default]
    Constant,
    /// Half a cosine, down to nothing.
    Cosine,
    /// Up from a tenth during the first fifth of the steps, then half a cosine, down to nothing.
    OneCycle,
}

/// How weights become integers.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct QuantizeRecipe {
    /// One per linear layer; by default 7 for the first, 9 for those between, 6 for the last, fewer where weights would
    /// become larger than `weight_max`.
    pub fraction_bits: Option<Vec<u32>>,
    /// The largest integer weight where fraction bits are chosen.
    pub weight_max: u32,
}

impl Default for QuantizeRecipe {
    fn default() -> Self {
        // Nine bits and a sign: sums of 256 products with 37-bit residues then are exact in 52 bits.
        Self { fraction_bits: None, weight_max: 511 }
    }
}

/// Why a network cannot be trained or imported.
#[derive(Debug, Error)]
pub enum RecipeError {
    /// The recipe cannot be read.
    #[error("{}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The recipe is not one.
    #[error("{}: {source}", file.display())]
    Parse {
        /// The file.
        file: PathBuf,
        /// Why.
        source: Box<toml::de::Error>,
    },
    /// A field that makes no sense.
    #[error("{field} must be {expected}, found {found}")]
    Field {
        /// The word in the recipe.
        field: &'static str,
        /// What makes sense.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A layer that a network for encrypted queries cannot have there.
    #[error("layer {layer} of the recipe must be {expected}, found {found}")]
    Layer {
        /// Its position in the list, from 1.
        layer: usize,
        /// What could be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A label that the loss does not know.
    #[error("the label of row {id} must be {expected}, found {found:?}")]
    Label {
        /// The row's id.
        id: String,
        /// What the loss accepts.
        expected: String,
        /// The label.
        found: String,
    },
    /// A tensor of imported weights that does not fit.
    #[error("{}: {what} must be {expected}, found {found}", file.display())]
    Tensor {
        /// The file.
        file: PathBuf,
        /// Which tensor.
        what: String,
        /// What would fit.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Weights became infinite. Squares want small steps.
    #[error("training diverged in epoch {epoch}: try a smaller learning rate, decay = \"one-cycle\", or clip_norm")]
    Diverged {
        /// Counted from 1.
        epoch: usize,
    },
    /// The rows.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The layers.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The training.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// A linear layer of a recipe, with its extents.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Planned {
    pub(crate) shape: Shape,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// Its position in the list of layers given to [`spnn_nn::Sequential`], from 1; none for the head.
    pub(crate) position: Option<usize>,
}

impl Recipe {
    /// Reads a recipe; `data.directory` becomes relative to the recipe's own.
    ///
    /// # Errors
    /// [`RecipeError::Read`], [`RecipeError::Parse`].
    pub fn read(file: &Path) -> Result<Self, RecipeError> {
        let text = fs::read_to_string(file).map_err(|source| RecipeError::Read { file: file.to_path_buf(), source })?;
        let mut recipe: Self = toml::from_str(&text)
            .map_err(|source| RecipeError::Parse { file: file.to_path_buf(), source: Box::new(source) })?;
        if let Some(own) = file.parent() {
            recipe.data.directory = own.join(&recipe.data.directory);
        }
        Ok(recipe)
    }

    /// The training rows, with labels.
    ///
    /// # Errors
    /// [`RecipeError::Data`].
    pub fn training_rows(&self) -> Result<Rows, RecipeError> {
        self.rows(&self.data.train, &[])
    }

    /// The test rows, with labels and the same columns as `training`, if the recipe has any.
    ///
    /// # Errors
    /// [`RecipeError::Data`].
    pub fn test_rows(&self, training: &Rows) -> Result<Option<Rows>, RecipeError> {
        self.data.test.as_ref().map(|files| self.rows(files, &training.columns)).transpose()
    }

    fn rows(&self, files: &Files, columns: &[String]) -> Result<Rows, RecipeError> {
        let at = |file: &PathBuf| self.data.directory.join(file);
        let (id, label) = (self.data.id.as_deref(), self.data.label.as_deref());
        let mut rows = match files {
            Files::Idx([images, labels]) => read_idx(&at(images), Some(&at(labels)))?,
            Files::Csv(file) => {
                let label = Some(label.ok_or_else(|| field("label", "the name of a column", "none"))?);
                read_csv(&at(file), CsvLayout { id, label, features: columns })?
            }
        };
        rows.image = self.input.image.or(rows.image);
        Ok(rows)
    }

    /// The input of a network for these rows.
    pub(crate) fn fit_input(&self, rows: &Rows) -> Result<Input, RecipeError> {
        let width = rows.features.ncols();
        let InputRecipe { offset, divide, max, .. } = self.input;
        if rows.is_empty() {
            return Err(field("the number of training rows", "at least 1", 0));
        }
        let (offset, factor) = if offset.is_none() && divide.is_none() {
            rows.features.columns().into_iter().map(|column| standardise(column.iter().copied())).unzip()
        } else {
            let divide = divide.unwrap_or(1.0);
            if !(1.0 / divide).is_finite() || !divide.is_finite() {
                return Err(field("divide", "finite and not 0", divide));
            }
            (vec![offset.unwrap_or(0.0); width], vec![1.0 / divide; width])
        };
        let largest = || {
            let columns = rows.features.columns().into_iter().zip(offset.iter().zip(&factor));
            let values = columns.flat_map(|(column, (offset, factor))| {
                column.into_iter().map(move |&x| ((f64::from(x) - offset) * factor).abs())
            });
            values.fold(f64::MIN_POSITIVE, f64::max)
        };
        let is_standardised = self.input.offset.is_none() && self.input.divide.is_none();
        let max = max.unwrap_or_else(|| if is_standardised { DEVIATIONS_MAX } else { largest() });
        if let Some(image) = rows.image
            && image.iter().try_fold(1, |n: usize, &side| n.checked_mul(side)) != Some(width)
        {
            return Err(field("image", format!("{width} numbers"), format!("{image:?}")));
        }
        Ok(Input { width, image: rows.image, columns: rows.columns.clone(), offset, factor, max })
    }

    /// The names of the outputs, and one number per row as the loss wants labels.
    pub(crate) fn fit_labels(&self, rows: &Rows) -> Result<(Vec<String>, Vec<f32>), RecipeError> {
        let labels = rows.labels.as_deref().unwrap_or_default();
        let classes = match (&self.network.classes, self.network.head.loss) {
            (Some(classes), _) => classes.clone(),
            (None, Loss::SoftmaxCrossEntropy) => classes_of(labels),
            (None, Loss::BinaryCrossEntropy | Loss::SquaredError) => {
                vec![self.data.label.clone().unwrap_or_else(|| "label".to_owned())]
            }
        };
        if classes.len() != self.network.head.linear {
            let expected = format!("{}, as there are classes", classes.len());
            return Err(field("the head's linear", expected, self.network.head.linear));
        }
        let numbers = labels_of(rows, &classes, self.network.head.loss)?;
        Ok((classes, numbers))
    }

    /// The layers before the head for [`spnn_nn::Sequential`]: those of the recipe, after the image that arrives.
    pub(crate) fn hidden(&self, input: &Input) -> Vec<LayerSpec> {
        let image = input.image.map(LayerSpec::Image);
        image.into_iter().chain(self.network.layers.iter().cloned()).collect()
    }

    /// The linear layers, the head last.
    pub(crate) fn plan(&self, input: &Input) -> Result<Vec<Planned>, RecipeError> {
        let mut planned = Vec::new();
        let (mut width, mut image) = (input.width, input.image);
        let mut linear_is_next = true;
        // `hidden` puts the image that arrives before the recipe's layers.
        let shift = usize::from(input.image.is_some());
        for (index, spec) in self.network.layers.iter().enumerate() {
            let layer = index + 1;
            let wrong = |expected| RecipeError::Layer { layer, expected, found: format!("{spec:?}") };
            let (shape, outputs) = match spec {
                LayerSpec::Image(_) => return Err(wrong("anything but an image, which belongs to [input]")),
                LayerSpec::Activation(ActivationKind::Square) if !linear_is_next => {
                    linear_is_next = true;
                    continue;
                }
                LayerSpec::Linear(outputs) if linear_is_next => (Shape::Dense, *outputs),
                LayerSpec::Conv2d(conv) if linear_is_next => {
                    let image = image.ok_or_else(|| wrong("a layer that needs no image; no image arrives here"))?;
                    let conv = Convolution {
                        image,
                        channels: conv.channels,
                        kernel: conv.kernel,
                        stride: conv.stride,
                        padding: conv.padding,
                    };
                    conv.check()?;
                    (Shape::Conv(conv), conv.output().map_or(0, |output| output.iter().product()))
                }
                _ if linear_is_next => return Err(wrong("linear or conv2d")),
                _ => return Err(wrong(r#"{ activation = "square" }, as after every linear layer and convolution"#)),
            };
            planned.push(Planned { shape, inputs: width, outputs, position: Some(layer + shift) });
            image = match shape {
                Shape::Dense => None,
                Shape::Conv(conv) => conv.output(),
            };
            (width, linear_is_next) = (outputs, false);
        }
        if !linear_is_next {
            let (layer, expected) = (self.network.layers.len() + 1, r#"{ activation = "square" }, before the head"#);
            return Err(RecipeError::Layer { layer, expected, found: "nothing".to_owned() });
        }
        planned.push(Planned { shape: Shape::Dense, inputs: width, outputs: self.network.head.linear, position: None });
        if 2 * planned.len() - 1 > LAYERS_MAX {
            return Err(field("the number of linear layers", format!("at most {}", LAYERS_MAX / 2 + 1), planned.len()));
        }
        if let Some(wide) = planned.iter().find(|layer| !(1..=WIDTH_MAX).contains(&layer.outputs)) {
            return Err(field("the width of a layer", format!("1 to {WIDTH_MAX}"), wide.outputs));
        }
        Ok(planned)
    }
}

impl Planned {
    /// The weight's extents, as PyTorch has them.
    pub(crate) fn weight_shape(&self) -> Vec<usize> {
        match self.shape {
            Shape::Dense => vec![self.outputs, self.inputs],
            Shape::Conv(conv) => vec![conv.channels, conv.image[0], conv.kernel, conv.kernel],
        }
    }
}

/// One number per row as the loss wants labels: 0 or 1, the position of a class, or a value.
pub(crate) fn labels_of(rows: &Rows, classes: &[String], loss: Loss) -> Result<Vec<f32>, RecipeError> {
    let labels = rows.labels.as_ref().ok_or_else(|| field("labels", "there", "none"))?;
    let number = |text: &str| text.parse::<f32>().ok().filter(|number| number.is_finite());
    let known = |text: &str| match loss {
        Loss::SoftmaxCrossEntropy => classes.iter().position(|class| class == text).map(|class| class as f32),
        Loss::BinaryCrossEntropy => number(text).filter(|&label| label == 0.0 || label == 1.0),
        Loss::SquaredError => number(text),
    };
    let expected = || match loss {
        Loss::SoftmaxCrossEntropy => format!("one of {} classes", classes.len()),
        Loss::BinaryCrossEntropy => "0 or 1".to_owned(),
        Loss::SquaredError => "a finite number".to_owned(),
    };
    let labelled = labels.iter().zip(&rows.ids);
    labelled
        .map(|(text, id)| {
            known(text).ok_or_else(|| RecipeError::Label { id: id.clone(), expected: expected(), found: text.clone() })
        })
        .collect()
}

/// `[n, d]` of inputs, as the network's [`Input`] makes them.
pub(crate) fn inputs_of(input: &Input, rows: &Rows) -> Result<Array2<f32>, RecipeError> {
    let mut inputs = Array2::zeros(rows.features.dim());
    for (from, mut to) in rows.features.rows().into_iter().zip(inputs.rows_mut()) {
        let raw: Vec<f64> = from.iter().map(|&x| f64::from(x)).collect();
        to.iter_mut().zip(input.apply(&raw)?).for_each(|(to, x)| *to = x as f32);
    }
    Ok(inputs)
}

pub(crate) fn field(field: &'static str, expected: impl ToString, found: impl ToString) -> RecipeError {
    RecipeError::Field { field, expected: expected.to_string(), found: found.to_string() }
}

/// Mean and one over the deviation. A column that never changes says nothing: its factor is 0.
fn standardise(column: impl Iterator<Item = f32> + Clone) -> (f64, f64) {
    let count = column.clone().count() as f64;
    let mean = column.clone().map(f64::from).sum::<f64>() / count;
    let variance = column.map(|x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
    let factor = 1.0 / variance.sqrt();
    // Rounding leaves a constant column a deviation of its own.
    let is_constant = variance.sqrt() <= 1e-9 * mean.abs() || !factor.is_finite();
    (mean, if is_constant { 0.0 } else { factor })
}

/// The distinct labels: numbers by size, before words by alphabet.
fn classes_of(labels: &[String]) -> Vec<String> {
    let mut classes = labels.to_vec();
    let key = |label: &String| (label.parse::<f64>().unwrap_or(f64::INFINITY), label.clone());
    classes.sort_by(|a, b| {
        let (a, b) = (key(a), key(b));
        a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
    });
    classes.dedup();
    classes
}

fn default_batch_size() -> usize {
    64
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    fn recipe(text: &str) -> Recipe {
        toml::from_str(text).unwrap()
    }

    fn with_layers(layers: &str) -> Recipe {
        recipe(&format!(
            r#"
            data = {{ train = "train.csv", label = "ill" }}
            network = {{ name = "t", layers = {layers}, head = {{ linear = 1, loss = "binary-cross-entropy" }} }}
            "#
        ))
    }

    fn rows(features: Array2<f32>, labels: &[&str]) -> Rows {
        Rows {
            ids: (0..features.nrows()).map(|row| format!("R{row}")).collect(),
            columns: (0..features.ncols()).map(|column| format!("c{column}")).collect(),
            image: None,
            features,
            labels: Some(labels.iter().map(|&label| label.to_owned()).collect()),
        }
    }

    #[test]
    fn reads_a_file_and_places_the_data_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("train.toml");
        let text = r#"
            [data]
            directory = "rows"
            train = ["images", "labels"]
            test = "test.csv"
            label = "y"
            [network]
            name = "t"
            layers = []
            head = { linear = 1, loss = "squared-error" }
            [train]
            epochs = 3
            optimizer = { kind = "sgd", learning_rate = 0.1 }
        "#;
        std::fs::write(&file, text).unwrap();
        let found = Recipe::read(&file).unwrap();
        assert_eq!(found.data.directory, directory.path().join("rows"));
        assert_eq!(found.data.train, Files::Idx(["images".into(), "labels".into()]));
        assert_eq!(found.data.test, Some(Files::Csv("test.csv".into())));
        assert_eq!(found.train.unwrap().batch_size, 64);
        assert_eq!(found.quantize, QuantizeRecipe { fraction_bits: None, weight_max: 511 });
        for (from, to) in [("epochs = 3", "epochs = 3\nepoch = 4"), ("name", "nam"), ("squared-error", "cubed-error")] {
            std::fs::write(&file, text.replacen(from, to, 1)).unwrap();
            assert!(matches!(Recipe::read(&file), Err(RecipeError::Parse { .. })), "{to}");
        }
        assert!(matches!(Recipe::read("nowhere.toml".as_ref()), Err(RecipeError::Read { .. })));
    }

    #[test]
    fn columns_are_standardised_and_constant_ones_dropped() {
        let rows = rows(array![[1.0, 5.0, 0.1], [3.0, 5.0, 0.1], [5.0, 5.0, 0.1]], &["0", "1", "0"]);
        let input = with_layers("[]").fit_input(&rows).unwrap();
        assert_eq!(input.offset[..2], [3.0, 5.0]);
        assert!((input.factor[0] - (8.0_f64 / 3.0).sqrt().recip()).abs() < 1e-12);
        assert_eq!(input.factor[1..], [0.0, 0.0]);
        assert_eq!(input.max, DEVIATIONS_MAX);
        let inputs = input.apply(&[-1e30, 1e30, 0.1]).unwrap();
        assert_eq!(inputs, [-4.0, 0.0, 0.0]);

        let mut fixed = with_layers("[]");
        fixed.input = InputRecipe { offset: Some(1.0), divide: Some(2.0), ..InputRecipe::default() };
        let input = fixed.fit_input(&rows).unwrap();
        assert_eq!((input.apply(&[1.0, 5.0, 9.0]).unwrap(), input.max), (vec![0.0, 2.0, 2.0], 2.0));
        fixed.input.divide = Some(0.0);
        assert_eq!(fixed.fit_input(&rows).unwrap_err().to_string(), "divide must be finite and not 0, found 0");
        fixed.input = InputRecipe { image: Some([1, 2, 2]), ..InputRecipe::default() };
        let imaged = Rows { image: fixed.input.image, ..rows };
        assert_eq!(fixed.fit_input(&imaged).unwrap_err().to_string(), "image must be 3 numbers, found [1, 2, 2]");
    }

    #[test]
    fn layers_that_encrypted_queries_cannot_have_are_named() {
        let image = Input {
            width: 16,
            image: Some([1, 4, 4]),
            columns: Vec::new(),
            offset: vec![0.0; 16],
            factor: vec![1.0; 16],
            max: 1.0,
        };
        let plain = Input { image: None, ..image.clone() };
        let (square, conv) = (r#"{ activation = "square" }"#, "{ conv2d = { channels = 2, kernel = 3 } }");
        let plan = with_layers(&format!("[{conv}, {square}, {{ linear = 3 }}, {square}]")).plan(&image).unwrap();
        let found: Vec<_> = plan.iter().map(|layer| (layer.inputs, layer.outputs, layer.position)).collect();
        assert_eq!(found, [(16, 8, Some(2)), (8, 3, Some(4)), (3, 1, None)]);
        for (layers, input, expected) in [
            (
                "[{ linear = 3 }]".to_owned(),
                &plain,
                "layer 2 of the recipe must be { activation = \"square\" }, before the head, found nothing",
            ),
            (format!("[{square}]"), &plain, "layer 1 of the recipe must be linear or conv2d, found Activation(Square)"),
            (format!("[{conv}, {square}]"), &plain, "layer 1 of the recipe must be a layer that needs no image"),
            (
                "[{ linear = 3 }, { linear = 3 }]".to_owned(),
                &plain,
                "layer 2 of the recipe must be { activation = \"square\" }",
            ),
            (
                "[{ linear = 3 }, { activation = \"relu\" }]".to_owned(),
                &plain,
                "layer 2 of the recipe must be { activation = \"square\" }, as after every",
            ),
            ("[{ dropout = 0.1 }]".to_owned(), &plain, "layer 1 of the recipe must be linear or conv2d, found Dropout"),
            ("[{ image = [1, 4, 4] }]".to_owned(), &plain, "layer 1 of the recipe must be anything but an image"),
            (format!("[{{ linear = 0 }}, {square}]"), &plain, "the width of a layer must be 1 to 65536, found 0"),
            (
                format!("[{{ conv2d = {{ channels = 2, kernel = 9 }} }}, {square}]"),
                &image,
                "the kernel's side must be 1 to 4, found 9",
            ),
            (
                format!("[{}]", format!("{{ linear = 2 }}, {square},").repeat(8)),
                &plain,
                "the number of linear layers must be at most 8, found 9",
            ),
        ] {
            let error = with_layers(&layers).plan(input).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn labels_become_what_the_loss_wants() {
        let labelled = |labels: &[&str]| rows(Array2::zeros((labels.len(), 1)), labels);
        let mut recipe = with_layers("[]");
        let (classes, labels) = recipe.fit_labels(&labelled(&["0", "1", "1.0"])).unwrap();
        assert_eq!((classes, labels), (vec!["ill".to_owned()], vec![0.0, 1.0, 1.0]));
        let error = recipe.fit_labels(&labelled(&["0", "yes"])).unwrap_err();
        assert_eq!(error.to_string(), "the label of row R1 must be 0 or 1, found \"yes\"");
        recipe.network.head = HeadSpec { linear: 3, loss: Loss::SoftmaxCrossEntropy };
        let (classes, labels) = recipe.fit_labels(&labelled(&["10", "b", "9", "b"])).unwrap();
        assert_eq!((classes, labels), (["9", "10", "b"].map(str::to_owned).to_vec(), vec![1.0, 2.0, 0.0, 2.0]));
        let error = recipe.fit_labels(&labelled(&["10", "b"])).unwrap_err();
        assert_eq!(error.to_string(), "the head's linear must be 2, as there are classes, found 3");
        let unknown = labels_of(&labelled(&["c"]), &["a".to_owned()], Loss::SoftmaxCrossEntropy).unwrap_err();
        assert_eq!(unknown.to_string(), "the label of row R0 must be one of 1 classes, found \"c\"");
    }
}
