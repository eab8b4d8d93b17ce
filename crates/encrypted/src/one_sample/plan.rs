//! How one sample goes through the layers: rotations, levels, scales, and what is left of precision.

use super::layout::{InputLayout, Layout, by_pixels};
use crate::plan::{ERROR_SHARE_MAX, FRESH_VARIANCE, HEADROOM_BITS, OUTPUT_LEVEL_MAX, ROUNDING_VARIANCE};
use crate::{Layer, Linear, Network, PlanError};
use spnn_ckks::Context;
use std::collections::BTreeSet;

/// How a network is evaluated on one sample.
#[derive(Clone, Debug, PartialEq)]
pub struct OneSamplePlan {
    /// What inputs are multiplied by.
    pub scale: f64,
    /// What the client's keys have to rotate by, in ascending order.
    pub rotations: Vec<usize>,
    /// Level of the outputs.
    pub output_level: usize,
    /// Estimated standard deviation of an output's error, as if all values were of the largest size there is.
    pub error: f64,
    pub(super) input: InputLayout,
    /// One for each layer.
    pub(super) steps: Vec<Step>,
}

/// How a layer is evaluated.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) work: Work,
    pub(super) scales: Scales,
}

/// Levels and scales of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scales {
    /// Level at which it begins.
    pub(super) level: usize,
    /// What weights are multiplied by before they are rounded.
    pub(super) weight: f64,
    /// How often products are rescaled. Biases come after that.
    pub(super) rescalings: usize,
    /// What outputs are multiplied by.
    pub(super) output: f64,
}

/// Rotations that are added one after the other: slots become the sums of all those that are a multiple of the first one apart.
pub(super) type Folds = Vec<usize>;

/// By powers of two, from one to below another.
fn folds(first: usize, end: usize) -> Folds {
    std::iter::successors(Some(first), |fold| Some(2 * fold)).take_while(|fold| *fold < end).collect()
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Work {
    /// The convolution that comes first: a sum of products of the client's ciphertexts, and of what is a period apart.
    Windows(InputLayout, Folds),
    /// A linear layer from inputs in this layout.
    Dense(Layout, Dense),
    Square,
}

/// A linear layer as a sum of products with diagonals of its matrix.
///
/// Slot s of the result is output s mod `block`. Of what it sums, slot s + t·`block`, t = 0, 1, …, has in the product with
/// diagonal r what lies r slots further; there are so many diagonals that all inputs are met. Diagonal r = g·baby + b: the inputs
/// are rotated by b < baby once, and each sum of `baby` products by g·baby (baby steps, giant steps: Halevi, Shoup).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Dense {
    pub(super) block: usize,
    pub(super) diagonals: usize,
    pub(super) baby: usize,
    /// They sum what is `block` apart.
    pub(super) folds: Folds,
    /// After so many slots it begins again.
    pub(super) period: usize,
}

impl Dense {
    fn new(layout: &Layout, outputs: usize) -> Self {
        let block = outputs.next_power_of_two();
        let period = layout.period().max(block);
        let covers = |diagonals: &usize| {
            // By which output a value was met last.
            let mut met = vec![outputs; layout.values()];
            (0..outputs).all(|output| {
                let mut count = 0;
                for slot in (output..period).step_by(block).flat_map(|slot| slot..slot + diagonals) {
                    if let Some(value) = layout.value_at(slot)
                        && std::mem::replace(&mut met[value], output) != output
                    {
                        count += 1;
                    }
                }
                count == layout.values()
            })
        };
        // With as many diagonals as slots until it begins again, every slot meets every input.
        let powers = std::iter::successors(Some(1), |diagonals| Some(2 * diagonals));
        let diagonals = powers.take_while(|diagonals| *diagonals < period).find(covers).unwrap_or(period);
        // A baby step costs half of a giant step, since all of them share their digits.
        let baby = (1..).map(|log| 1 << log).find(|baby: &usize| baby * baby >= 2 * diagonals).unwrap_or(1);
        Self { block, diagonals, baby: baby.min(diagonals), folds: folds(block, period), period }
    }

    /// What it rotates by.
    fn rotations(&self) -> impl Iterator<Item = usize> {
        let giant = (self.baby < self.diagonals).then_some(self.baby);
        (1..self.baby).chain(giant).chain(self.folds.iter().copied())
    }

    /// The slots of every diagonal's plaintext, up to where it begins again.
    pub(super) fn weights(&self, layout: &Layout, linear: &Linear) -> Vec<Vec<f64>> {
        let unit = (-f64::from(linear.fraction_bits)).exp2();
        let mut diagonals = vec![vec![0.0; self.period]; self.diagonals];
        // What the layer makes of an input; each is taken where it is met first.
        let mut row = vec![None; linear.inputs];
        for group in &linear.groups {
            for (output, weights) in group.outputs.iter().zip(group.weights.chunks(group.inputs.len().max(1))) {
                for (input, weight) in group.inputs.iter().zip(weights) {
                    row[*input as usize] = Some(unit * f64::from(*weight));
                }
                for slot in (*output as usize..self.period).step_by(self.block) {
                    for (diagonal, products) in diagonals.iter_mut().enumerate() {
                        let giant = diagonal / self.baby * self.baby;
                        let weight = layout.value_at(slot + diagonal).and_then(|value| row[value].take());
                        products[(slot + giant) % self.period] = weight.unwrap_or(0.0);
                    }
                }
                row.fill(None);
            }
        }
        diagonals
    }
}

impl OneSamplePlan {
    /// The plan with the smallest error.
    ///
    /// # Errors
    /// [`PlanError`] if there is none, or none that leaves enough.
    pub fn new(network: &Network, context: &Context) -> Result<Self, PlanError> {
        let preset = context.preset();
        let (input, work) = work(network, context)?;
        let stages: Vec<Stage> = network.layers.iter().zip(&work).map(|(layer, work)| Stage::of(layer, work)).collect();
        let tried = Choice::all().filter_map(|choice| walk(choice, &stages, network.input.max, context));
        let best = tried.min_by(|a, b| a.error.total_cmp(&b.error));
        let squares = work.iter().filter(|work| **work == Work::Square).count();
        let Walk { scale, scales, output_level, error } =
            best.ok_or(PlanError::Room { preset: preset.name(), squares })?;
        let output_max = network.linear_layers().last().map_or(1.0, |l| l.output_max);
        if error > output_max * ERROR_SHARE_MAX {
            return Err(PlanError::Precision { preset: preset.name(), error, output_max });
        }
        let mut rotations = BTreeSet::new();
        for work in &work {
            match work {
                Work::Windows(_, folds) => rotations.extend(folds),
                Work::Dense(_, dense) => rotations.extend(dense.rotations()),
                Work::Square => {}
            }
        }
        let steps = work.into_iter().zip(scales).map(|(work, scales)| Step { work, scales }).collect();
        Ok(Self { scale, rotations: rotations.into_iter().collect(), output_level, error, input, steps })
    }
}

/// The pixels under so many weights, or more, share a ciphertext, each in its part of the slots. More of them are fewer bytes and less work for the
/// client; but it leaves fewer copies to the dense layer behind, which then needs more diagonals, twice as many each time. For
/// CryptoNets' network on one core, with 1, 2 and 4: 4.4, 2.3 and 1.2 MB, client 23, 12 and 9 ms, server 29, 33 and 40 ms.
const PIXELS_TOGETHER: usize = 2;

/// Layouts and rotations: what the shapes of the layers determine.
fn work(network: &Network, context: &Context) -> Result<(InputLayout, Vec<Work>), PlanError> {
    let (preset, slots) = (context.preset(), context.preset().slots());
    let mut linear = network.linear_layers();
    let Some(first) = linear.next() else {
        return Err(PlanError::Room { preset: preset.name(), squares: 0 });
    };
    let convolution = by_pixels(first);
    let second = linear.next();
    for (layer, linear) in network.layers.iter().enumerate() {
        let Layer::Linear(linear) = linear else { continue };
        // The pixels of a convolution that comes first lie in ciphertexts of their own.
        let inputs = if layer == 0 && convolution.is_some() { 0 } else { linear.inputs };
        let found = inputs.max(linear.outputs);
        if found > slots {
            return Err(PlanError::Width { preset: preset.name(), layer, most: slots, found });
        }
    }
    let mut layout = match (convolution, second) {
        (None, _) => Layout::before_dense(first.inputs, first.outputs, slots),
        (Some(_), Some(second)) => {
            let least = first.outputs.max(second.outputs).next_power_of_two();
            Layout::before_dense(first.outputs, second.outputs, least.max(slots / PIXELS_TOGETHER))
        }
        (Some(_), None) => Layout::repeated(first.outputs, first.outputs.next_power_of_two()),
    };
    let input = InputLayout { convolution, layout };
    let mut work = Vec::new();
    for (number, layer) in network.layers.iter().enumerate() {
        work.push(match layer {
            Layer::Square => Work::Square,
            Layer::Linear(_) if number == 0 && convolution.is_some() => {
                Work::Windows(input, folds(layout.period(), slots))
            }
            Layer::Linear(linear) => {
                let dense = Dense::new(&layout, linear.outputs);
                let inputs = std::mem::replace(&mut layout, Layout::repeated(linear.outputs, dense.block));
                Work::Dense(inputs, dense)
            }
        });
    }
    Ok((input, work))
}

/// What a layer does to values and errors.
enum Stage {
    Linear {
        /// Of the longest row of weights.
        norm: f64,
        /// Weights that are summed for an output, zeros included: each is rounded.
        products: f64,
        /// Variance of the errors of rotations behind the products, those of one as unit.
        switches: f64,
        /// Whether inputs are rotated.
        is_rotated: bool,
        output_max: f64,
        bias_max: f64,
    },
    Square,
}

impl Stage {
    fn of(layer: &Layer, work: &Work) -> Self {
        let Layer::Linear(linear) = layer else { return Self::Square };
        let unit = f64::from(linear.fraction_bits).exp2();
        let norm = |row: &[i32]| row.iter().map(|w| (f64::from(*w) / unit).powi(2)).sum::<f64>();
        let rows = linear.groups.iter().flat_map(|g| g.weights.chunks(g.inputs.len().max(1)));
        let norm = rows.map(norm).fold(0.0, f64::max).sqrt();
        // Each fold adds up what was there, and its own.
        let folded = |folds: &Folds, variance| folds.iter().fold(variance, |variance, _| 2.0 * variance + 1.0);
        let (products, switches, is_rotated) = match work {
            Work::Dense(_, Dense { block, diagonals, baby, folds, period }) => {
                ((period / block * diagonals) as f64, folded(folds, (diagonals / baby - 1) as f64), *baby > 1)
            }
            Work::Windows(_, folds) => {
                let taps = linear.groups.iter().map(|g| g.inputs.len()).max().unwrap_or(0);
                (taps as f64, folded(folds, 0.0), false)
            }
            Work::Square => (0.0, 0.0, false),
        };
        let bias_max = linear.bias.iter().fold(0.0, |max: f64, bias| max.max(bias.abs()));
        Self::Linear { norm, products, switches, is_rotated, output_max: linear.output_max, bias_max }
    }
}

/// What determines all scales.
#[derive(Clone, Copy)]
struct Choice {
    /// Of inputs.
    input: f64,
    /// Of all weights.
    weight: f64,
    /// Values are rescaled as long as their scale does not fall below this one (Dathathri and others, "EVA", PLDI 2020).
    least: f64,
}

/// log2 of scales worth a try: below, errors are larger than anything; above, there is no room for two products.
const SCALES_LOG2: std::ops::Range<u32> = 12..46;

impl Choice {
    fn all() -> impl Iterator<Item = Self> {
        let of = |log2: u32| f64::from(log2).exp2();
        SCALES_LOG2.flat_map(move |input| {
            SCALES_LOG2.flat_map(move |weight| {
                SCALES_LOG2.map(move |least| Self { input: of(input), weight: of(weight), least: of(least) })
            })
        })
    }
}

/// Encoding rounds to integers of 62 bits.
const BIAS_LOG2_MAX: f64 = 61.0;

/// What comes of a choice.
struct Walk {
    scale: f64,
    scales: Vec<Scales>,
    output_level: usize,
    error: f64,
}

/// `None` if values do not fit. Errors are standard deviations, as if those of different slots were independent.
fn walk(choice: Choice, stages: &[Stage], input_max: f64, context: &Context) -> Option<Walk> {
    let n = context.n() as f64;
    let prime = |level: usize| context.limbs()[level].value() as f64;
    let fits = |scale: f64, value_max: f64, level: usize| {
        scale.log2() + value_max.max(1.0).log2() + 1.0 + HEADROOM_BITS <= context.log2_modulus(level)
    };
    // Half of a unit in each coefficient of both parts, one of them times a ternary secret.
    let rounding = (n * ROUNDING_VARIANCE * (1.0 + 2.0 / 3.0 * n)).sqrt();
    // For each digit n products of a fresh error and a digit, which is up to four times what it is divided by.
    let switch = |level: usize| {
        let digits = (level + 1) as f64;
        (n * n * digits * ROUNDING_VARIANCE * 16.0 * FRESH_VARIANCE).sqrt().hypot(rounding)
    };
    let (mut scale, mut level, mut value_max) = (choice.input, context.preset().level_max(), input_max);
    let mut error = (n * (FRESH_VARIANCE + ROUNDING_VARIANCE)).sqrt() / scale;
    let mut scales = Vec::new();
    for stage in stages {
        let begins_at = level;
        match *stage {
            Stage::Linear { norm, products, switches, is_rotated, output_max, bias_max: _ } => {
                if is_rotated {
                    error = error.hypot(switch(level) / scale);
                }
                let encoding = (n * ROUNDING_VARIANCE).sqrt() / choice.weight;
                error = (norm * error).hypot(encoding * products.sqrt() * value_max);
                scale *= choice.weight;
                error = error.hypot(switches.sqrt() * switch(level) / scale);
                value_max = output_max;
            }
            Stage::Square => {
                scale *= scale;
                error = ((2.0 * value_max + error) * error).hypot(switch(level) / scale);
                value_max *= value_max;
            }
        }
        if !fits(scale, value_max, level) {
            return None;
        }
        while level > 0 && scale / prime(level) >= choice.least {
            scale /= prime(level);
            level -= 1;
            error = error.hypot(rounding / scale);
        }
        if let Stage::Linear { bias_max, .. } = *stage
            && scale.log2() + bias_max.max(1.0).log2() > BIAS_LOG2_MAX
        {
            return None;
        }
        scales.push(Scales { level: begins_at, weight: choice.weight, rescalings: begins_at - level, output: scale });
    }
    let output_level = (0..=level.min(OUTPUT_LEVEL_MAX)).find(|level| fits(scale, value_max, *level))?;
    Some(Walk { scale: choice.input, scales, output_level, error })
}
