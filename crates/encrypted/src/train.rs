//! Training in the clear, in one process.

use std::borrow::Cow;
use std::time::Instant;

use ndarray::{Array2, ArrayView2, s};
use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use spnn_nn::{LabelHead, Loss, Mode, Model, Optimizer, OptimizerSpec, Parameter, Sequential, init_rng};

use crate::data::Rows;
use crate::network::{Input, Network};
use crate::quantize::{quantize, trained};
use crate::recipe::{Decay, Recipe, RecipeError, TrainRecipe, field, inputs_of, labels_of};

/// Rows per forward pass where nothing is learned.
const EVALUATION_ROWS: usize = 1000;

/// The bias that [`Sequential`] adds to its input. It stays zero: a convolution pads with zeros after it, so it could not
/// become part of the convolution's own bias.
const INPUT_BIAS: &str = "0.bias";

/// Where a training is, at the end of an epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Epochs that are over.
    pub epoch: usize,
    /// All there will be.
    pub epochs: usize,
    /// The mean loss over the epoch's steps.
    pub loss: f64,
    /// On the test rows, if there are any.
    pub test: Option<Score>,
    /// What the remaining epochs will take, as the last ones did.
    pub seconds_left: f64,
}

/// How good predictions are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Score {
    /// The part of the rows whose class is right.
    Accuracy(f64),
    /// The root of the mean squared error.
    RootMeanSquaredError(f64),
}

/// What a training makes.
#[derive(Clone, Debug)]
pub struct Trained {
    /// With weights in fixed point.
    pub network: Network,
    /// Of the network with the weights as they were trained, on the test rows, if there are any.
    pub before_quantization: Option<Score>,
}

/// Trains the recipe's network on `training`, measures it on `test` after each epoch, and quantises it.
///
/// Labels of squared error are taken as they are: numbers far from 1 want to be scaled first. The same recipe and rows give the same network on the same kind of processor. Single-threaded.
///
/// # Errors
/// [`RecipeError`]: a recipe or rows that do not fit together, or [`RecipeError::Diverged`].
pub fn train(
    recipe: &Recipe,
    training: &Rows,
    test: Option<&Rows>,
    on_epoch: &mut dyn FnMut(&Progress),
) -> Result<Trained, RecipeError> {
    let how = recipe.train.as_ref().ok_or_else(|| field("[train]", "there", "nothing"))?;
    let input = recipe.fit_input(training)?;
    let (classes, labels) = recipe.fit_labels(training)?;
    let plan = recipe.plan(&input)?;
    let inputs = inputs_of(&input, training)?;
    let test = match test {
        None => None,
        Some(rows) => Some((inputs_of(&input, rows)?, labels_of(rows, &classes, recipe.network.head.loss)?)),
    };
    let mut learner = Learner::new(recipe, how, &input, training.len())?;

    let started = Instant::now();
    let mut score = None;
    for epoch in 0..how.epochs {
        let loss = learner.epoch(epoch, &inputs, &labels)?;
        score = test.as_ref().map(|(inputs, labels)| learner.score(inputs, labels)).transpose()?;
        let (epoch, epochs) = (epoch + 1, how.epochs);
        let seconds_left = started.elapsed().as_secs_f64() / epoch as f64 * (epochs - epoch) as f64;
        on_epoch(&Progress { epoch, epochs, loss, test: score, seconds_left });
    }
    drop(inputs);
    let layers = trained(plan, &learner.parameters());
    let network = quantize(recipe, input, classes, &layers, training.features.view())?;
    Ok(Trained { network, before_quantization: score })
}

/// How good the quantised network is on labelled rows, computed in the clear.
///
/// # Errors
/// [`RecipeError::Label`] for a label that the network does not know, [`RecipeError::Network`] for rows of another width.
pub fn score(network: &Network, rows: &Rows) -> Result<Score, RecipeError> {
    let outputs = network.predict_rows(rows.features.view())?;
    score_outputs(&network.classes, network.loss, outputs.view(), rows)
}

/// How good `outputs: [n, outputs]` of a network with these classes are for labelled rows.
///
/// # Errors
/// [`RecipeError::Label`] for a label that is none of the classes.
pub fn score_outputs(
    classes: &[String],
    loss: Loss,
    outputs: ArrayView2<'_, f64>,
    rows: &Rows,
) -> Result<Score, RecipeError> {
    Ok(score_of(loss, outputs, &labels_of(rows, classes, loss)?))
}

struct Learner<'a> {
    how: &'a TrainRecipe,
    model: Sequential,
    head: LabelHead,
    loss: Loss,
    optimizer: Optimizer,
    /// Of images that are shifted.
    image: Option<[usize; 3]>,
    steps: usize,
    steps_total: usize,
}

impl<'a> Learner<'a> {
    fn new(recipe: &Recipe, how: &'a TrainRecipe, input: &Input, rows: usize) -> Result<Self, RecipeError> {
        let image = input.image;
        check(how, image)?;
        let model = Sequential::new(input.width, &recipe.hidden(input), how.seed)?;
        let head = LabelHead::new(model.output_width(), &recipe.network.head, how.seed)?;
        // Nobody must be kept from drawing this noise again.
        let optimizer = Optimizer::new(&how.optimizer, [0; 32]);
        let steps_total = how.epochs.saturating_mul(rows.div_ceil(how.batch_size));
        let loss = recipe.network.head.loss;
        Ok(Self { how, model, head, loss, optimizer, image, steps: 0, steps_total })
    }

    /// One pass over the rows in a new order: the mean loss.
    fn epoch(&mut self, epoch: usize, inputs: &Array2<f32>, labels: &[f32]) -> Result<f64, RecipeError> {
        let mut rng = init_rng(self.how.seed, &format!("epoch.{epoch}"));
        let mut order: Vec<usize> = (0..inputs.nrows()).collect();
        order.shuffle(&mut rng);
        let mut sum = 0.0;
        for rows in order.chunks(self.how.batch_size) {
            let batch = self.batch(inputs, rows, &mut rng);
            let labels: Vec<f32> = rows.iter().map(|&row| labels[row]).collect();
            let z = self.model.forward(batch.view(), Mode::Train)?;
            let (loss, grad_z) = self.head.step(z, &labels)?;
            if !loss.is_finite() {
                return Err(RecipeError::Diverged { epoch: epoch + 1 });
            }
            self.model.backward(grad_z)?;
            self.step();
            sum += f64::from(loss) * rows.len() as f64;
        }
        Ok(sum / inputs.nrows() as f64)
    }

    /// The rows, images moved by a random number of pixels.
    fn batch(&self, inputs: &Array2<f32>, rows: &[usize], rng: &mut ChaCha8Rng) -> Array2<f32> {
        let mut batch = Array2::zeros((rows.len(), inputs.ncols()));
        for (&row, mut to) in rows.iter().zip(batch.rows_mut()) {
            let from = inputs.row(row);
            match (self.image, self.how.shift) {
                (Some(image), 1..) => {
                    let moved = |rng: &mut ChaCha8Rng| rng.random_range(0..=2 * self.how.shift) as isize;
                    let shift = self.how.shift as isize;
                    let by = [moved(rng) - shift, moved(rng) - shift];
                    for (to, value) in to.iter_mut().zip(shifted(image, by, |at| from[at])) {
                        *to = value;
                    }
                }
                _ => to.assign(&from),
            }
        }
        batch
    }

    fn step(&mut self) {
        let rate = self.how.optimizer.learning_rate() * self.how.decay.factor(self.steps, self.steps_total);
        self.steps += 1;
        self.optimizer.set_learning_rate(rate);
        let keep = (1.0 - rate * self.how.weight_decay) as f32;
        let mut parameters = trained_parameters(&mut self.model, &mut self.head);
        if self.how.weight_decay > 0.0 {
            let weights = parameters.iter_mut().filter(|parameter| parameter.shape.len() > 1);
            weights.for_each(|weight| weight.value.iter_mut().for_each(|x| *x *= keep));
        }
        let norm = self.how.clip_norm.map_or(0.0, |_| norm(&parameters));
        match self.how.clip_norm {
            Some(max) if norm > max => {
                let scale = (max / norm) as f32;
                let clipped: Vec<Vec<f32>> =
                    parameters.iter().map(|p| p.gradient.iter().map(|g| g * scale).collect()).collect();
                let mut parameters: Vec<Parameter<'_>> = parameters
                    .into_iter()
                    .zip(&clipped)
                    .map(|(p, gradient)| Parameter { name: p.name, shape: p.shape, value: p.value, gradient })
                    .collect();
                self.optimizer.step(&mut parameters);
            }
            _ => self.optimizer.step(&mut parameters),
        }
    }

    fn score(&mut self, inputs: &Array2<f32>, labels: &[f32]) -> Result<Score, RecipeError> {
        let mut scores = Array2::zeros((inputs.nrows(), self.head.output_width()));
        for start in (0..inputs.nrows()).step_by(EVALUATION_ROWS) {
            let part = s![start..inputs.nrows().min(start + EVALUATION_ROWS), ..];
            let z = self.model.forward(inputs.slice(part), Mode::Evaluate)?;
            let mut found = self.head.scores(z)?.mapv(f64::from);
            if self.loss == Loss::BinaryCrossEntropy {
                // From probabilities to something with the sign of the logits.
                found -= 0.5;
            }
            scores.slice_mut(part).assign(&found);
        }
        Ok(score_of(self.loss, scores.view(), labels))
    }

    fn parameters(&mut self) -> Vec<Parameter<'_>> {
        trained_parameters(&mut self.model, &mut self.head)
    }
}

impl Decay {
    /// What the learning rate is multiplied by in a step, counted from 0. Never 0, which is no learning rate.
    fn factor(self, step: usize, steps: usize) -> f64 {
        // Half a cosine over the part of the way that is left after `start`.
        let cosine = |at: f64, start: f64| {
            let part = ((at - start) / (1.0 - start)).clamp(0.0, 1.0);
            0.5 * (1.0 + (std::f64::consts::PI * part).cos())
        };
        let at = (step as f64 + 0.5) / steps.max(1) as f64;
        let factor = match self {
            Self::Constant => 1.0,
            Self::Cosine => cosine(at, 0.0),
            Self::OneCycle if at < 0.2 => 0.1 + 0.9 * at / 0.2,
            Self::OneCycle => cosine(at, 0.2),
        };
        factor.max(1e-9)
    }
}

fn check(how: &TrainRecipe, image: Option<[usize; 3]>) -> Result<(), RecipeError> {
    how.optimizer.validate()?;
    if matches!(how.optimizer, OptimizerSpec::Sgld { .. }) {
        return Err(field("optimizer", "sgd, momentum or adam", "sgld"));
    }
    if how.epochs == 0 {
        return Err(field("epochs", "at least 1", 0));
    }
    if how.batch_size == 0 {
        return Err(field("batch_size", "at least 1", 0));
    }
    let shift_max = image.map_or(0, |[_, height, width]| height.min(width) - 1);
    if how.shift > shift_max {
        return Err(field("shift", format!("at most {shift_max}"), how.shift));
    }
    if let Some(found) = how.clip_norm.filter(|norm| !(*norm > 0.0 && norm.is_finite())) {
        return Err(field("clip_norm", "positive", found));
    }
    if !(how.weight_decay >= 0.0 && how.weight_decay * how.optimizer.learning_rate() < 1.0) {
        return Err(field("weight_decay", "at least 0, and less than 1/learning_rate", how.weight_decay));
    }
    Ok(())
}

/// All parameters but the bias over the input.
fn trained_parameters<'a>(model: &'a mut Sequential, head: &'a mut LabelHead) -> Vec<Parameter<'a>> {
    let hidden = model.parameters().into_iter().filter(|p| p.name != Cow::Borrowed(INPUT_BIAS));
    hidden.chain(head.parameters()).collect()
}

fn norm(parameters: &[Parameter<'_>]) -> f64 {
    let gradients = parameters.iter().flat_map(|parameter| parameter.gradient);
    gradients.map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt()
}

/// The pixels of an image moved down and right `by` so many pixels, zeros where nothing comes from.
fn shifted(
    [channels, height, width]: [usize; 3],
    [down, right]: [isize; 2],
    pixel: impl Fn(usize) -> f32,
) -> impl Iterator<Item = f32> {
    (0..channels * height * width).map(move |at| {
        let (y, x) = (at / width % height, at % width);
        let from_y = y.checked_add_signed(-down).filter(|&y| y < height);
        let from_x = x.checked_add_signed(-right).filter(|&x| x < width);
        match (from_y, from_x) {
            (Some(from_y), Some(from_x)) => pixel((at / width / height * height + from_y) * width + from_x),
            _ => 0.0,
        }
    })
}

/// From logits or values, `[n, outputs]`.
fn score_of(loss: Loss, outputs: ArrayView2<'_, f64>, labels: &[f32]) -> Score {
    let rows = outputs.rows().into_iter().zip(labels);
    let count = labels.len() as f64;
    match loss {
        Loss::SquaredError => {
            let sum: f64 = rows.map(|(row, &label)| (row[0] - f64::from(label)).powi(2)).sum();
            Score::RootMeanSquaredError((sum / count).sqrt())
        }
        Loss::BinaryCrossEntropy => {
            let right = rows.filter(|(row, label)| (row[0] > 0.0) == (**label == 1.0)).count();
            Score::Accuracy(right as f64 / count)
        }
        Loss::SoftmaxCrossEntropy => {
            let right = rows.filter(|(row, label)| largest(row.iter().copied()) == **label as usize).count();
            Score::Accuracy(right as f64 / count)
        }
    }
}

/// The position of the largest value, the first of equals.
fn largest(values: impl Iterator<Item = f64>) -> usize {
    let first = (0, f64::NEG_INFINITY);
    values.enumerate().fold(first, |best, next| if next.1 > best.1 { next } else { best }).0
}

impl std::fmt::Display for Score {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Accuracy(part) => write!(f, "accuracy {:.2} %", 100.0 * part),
            Self::RootMeanSquaredError(error) => write!(f, "root mean squared error {error:.6}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rand::SeedableRng;

    use super::*;

    fn examples(file: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(file)
    }

    fn recipe(hidden: usize, loss: &str, train: &str) -> Recipe {
        toml::from_str(&format!(
            r#"
            data = {{ train = "unread.csv", label = "y" }}
            [network]
            name = "t"
            layers = [{{ linear = {hidden} }}, {{ activation = "square" }}]
            head = {{ linear = 1, loss = "{loss}" }}
            [train]
            {train}
            "#
        ))
        .unwrap()
    }

    /// Points of the plane, labelled by `label`.
    fn points(seed: u64, count: usize, label: impl Fn(f32, f32) -> f32) -> Rows {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let features = Array2::from_shape_simple_fn((count, 2), || rng.random_range(-3.0..5.0));
        let labels = features.rows().into_iter().map(|row| label(row[0], row[1]).to_string()).collect();
        let ids = (0..count).map(|row| row.to_string()).collect();
        Rows { ids, columns: vec!["x".to_owned(), "y".to_owned()], image: None, features, labels: Some(labels) }
    }

    const ADAM: &str = "epochs = 60\ndecay = \"one-cycle\"\noptimizer = { kind = \"adam\", learning_rate = 0.03 }";

    #[test]
    fn learns_a_circle_and_a_product() {
        let circle = |x: f32, y: f32| f32::from(u8::from((x - 1.0).powi(2) + (y - 1.0).powi(2) < 6.0));
        let (training, test) = (points(1, 600, circle), points(2, 400, circle));
        let mut epochs = Vec::new();
        let trained = train(&recipe(4, "binary-cross-entropy", ADAM), &training, Some(&test), &mut |at| {
            assert!(at.seconds_left >= 0.0 && at.test.is_some() && at.epochs == 60);
            epochs.push(at.loss);
        })
        .unwrap();
        assert!(epochs.len() == 60 && epochs[59] < 0.5 * epochs[0], "{epochs:?}");
        for found in [trained.before_quantization.unwrap(), score(&trained.network, &test).unwrap()] {
            assert!(matches!(found, Score::Accuracy(part) if part > 0.97), "{found}");
        }
        assert_eq!(trained.network.classes, ["y"]);
        assert_eq!(trained.network.input.columns, ["x", "y"]);

        // x·y is ((x + y)² - (x - y)²)/4.
        let product = |x: f32, y: f32| x * y;
        let (training, test) = (points(3, 600, product), points(4, 400, product));
        let trained = train(&recipe(4, "squared-error", ADAM), &training, Some(&test), &mut |_| {}).unwrap();
        for found in [trained.before_quantization.unwrap(), score(&trained.network, &test).unwrap()] {
            // The products' deviation is 5.7.
            assert!(matches!(found, Score::RootMeanSquaredError(error) if error < 0.2), "{found}");
        }
    }

    #[test]
    fn the_shipped_digits_are_what_their_recipe_makes() {
        let recipe = Recipe::read(&examples("digits/train.toml")).unwrap();
        let training = recipe.training_rows().unwrap();
        let test = recipe.test_rows(&training).unwrap().unwrap();
        assert_eq!((training.len(), test.len()), (1400, 397));
        let shipped = Network::load(&examples("digits/network.safetensors")).unwrap();
        let trained = train(&recipe, &training, Some(&test), &mut |_| {}).unwrap().network;
        for network in [&shipped, &trained] {
            let found = score(network, &test).unwrap();
            assert!(matches!(found, Score::Accuracy(part) if part >= 0.96), "{found}");
        }
        // Rounding differs from processor to processor, everything else is the same.
        assert_eq!((&shipped.input, &shipped.classes), (&trained.input, &trained.classes));
        let again = train(&recipe, &training, None, &mut |_| {}).unwrap();
        assert_eq!(again.network.digest(), trained.digest());
        assert_eq!(again.before_quantization, None);
    }

    #[test]
    fn the_shipped_network_of_cryptonets_has_its_layers() {
        let network = Network::load(&examples("mnist/network.safetensors")).unwrap();
        let widths: Vec<_> = network.linear_layers().map(|layer| (layer.inputs, layer.outputs)).collect();
        assert_eq!(widths, [(784, 845), (845, 100), (100, 10)]);
        let recipe = Recipe::read(&examples("mnist/train.toml")).unwrap();
        let found = recipe.plan(&network.input).unwrap();
        for (planned, linear) in found.iter().zip(network.linear_layers()) {
            assert_eq!(planned.shape, linear.shape);
        }
    }

    #[test]
    fn what_cannot_be_trained_is_named() {
        let rows = points(1, 50, |x, _| x);
        let fail = |train_section: &str| {
            train(&recipe(2, "squared-error", train_section), &rows, None, &mut |_| {}).unwrap_err().to_string()
        };
        let sgd = "optimizer = { kind = \"sgd\", learning_rate = 0.1 }";
        for (train_section, expected) in [
            (format!("epochs = 0\n{sgd}"), "epochs must be at least 1, found 0"),
            (format!("epochs = 1\nbatch_size = 0\n{sgd}"), "batch_size must be at least 1, found 0"),
            (format!("epochs = 1\nshift = 1\n{sgd}"), "shift must be at most 0, found 1"),
            (format!("epochs = 1\nclip_norm = 0\n{sgd}"), "clip_norm must be positive, found 0"),
            (format!("epochs = 1\nweight_decay = 10\n{sgd}"), "weight_decay must be at least 0, and less than"),
            (format!("epochs = 1\n{}", sgd.replace("0.1", "-1")), "optimizer: learning_rate must be positive"),
            (format!("epochs = 1\n{}", sgd.replace("sgd", "sgld")), "optimizer must be sgd, momentum or adam"),
            (format!("epochs = 9\n{}", sgd.replace("0.1", "1e9")), "training diverged in epoch"),
        ] {
            let found = fail(&train_section);
            assert!(found.starts_with(expected), "{found}");
        }
        // Clipped gradients keep the same recipe from it.
        let clipped = "epochs = 9\nclip_norm = 0.5\noptimizer = { kind = \"sgd\", learning_rate = 0.3 }";
        train(&recipe(2, "squared-error", clipped), &rows, None, &mut |_| {}).unwrap();
        let mut unlabelled = recipe(2, "squared-error", ADAM);
        unlabelled.train = None;
        let error = train(&unlabelled, &rows, None, &mut |_| {}).unwrap_err();
        assert_eq!(error.to_string(), "[train] must be there, found nothing");
    }

    #[test]
    fn shifts_move_pixels() {
        let pixels: Vec<f32> = (1..=12).map(|x| x as f32).collect();
        let moved = |by| shifted([2, 2, 3], by, |at| pixels[at]).collect::<Vec<_>>();
        assert_eq!(moved([0, 0]), pixels);
        assert_eq!(moved([1, 0]), [0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 7.0, 8.0, 9.0]);
        assert_eq!(moved([0, -2]), [3.0, 0.0, 0.0, 6.0, 0.0, 0.0, 9.0, 0.0, 0.0, 12.0, 0.0, 0.0]);
    }

    #[test]
    fn learning_rates_end_near_zero() {
        for decay in [Decay::Cosine, Decay::OneCycle] {
            let factors: Vec<f64> = (0..100).map(|step| decay.factor(step, 100)).collect();
            assert!(factors[99] < 1e-3 && factors.iter().all(|&factor| factor > 0.0 && factor <= 1.0));
            let peak = if decay == Decay::Cosine { 0 } else { 20 };
            assert!(factors[peak] > 0.99 && factors.windows(2).skip(peak).all(|pair| pair[1] < pair[0]));
        }
        assert!((0..100).all(|step| Decay::Constant.factor(step, 100) == 1.0));
    }
}
