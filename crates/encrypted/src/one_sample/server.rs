//! The server's side: rotations and products on one sample that it cannot open.

use super::layout::{InputLayout, Layout};
use super::plan::{Dense, Folds, OneSamplePlan, Step, Work};
use super::{Asked, ONE_SAMPLE};
use crate::evaluate::{count, described};
use crate::{Description, Layer, Linear, Network, ServeError, Shape};
use spnn_ckks::{Ciphertext, CkksError, Context, FreshCiphertext, Plaintext, RelinearizationKey, RotationKeys};
use spnn_protocol::inference::Evaluator;
use spnn_protocol::message::{InferenceTerms, Packing};
use std::sync::Arc;

/// A network on one sample at a time, for an answer soon (LoLa).
///
/// Private input: the weights. The server learns nothing of the sample: what it has of the client are ciphertexts and keys that
/// open nothing. The answer is one ciphertext, in whose slots the outputs repeat: slot s holds output s mod m, where m is the power
/// of two that holds all outputs, or 0 where there is no such output. (After a convolution alone, which is all layers, the same.)
/// Errors of slots depend on what they went through; see [`spnn_protocol::inference`] for what that may tell the client.
pub struct OneSampleServer {
    context: Arc<Context>,
    plan: OneSamplePlan,
    layers: Vec<Prepared>,
    terms: InferenceTerms,
}

/// A client's keys to evaluate with. They open nothing.
pub struct OneSampleKeys {
    products: RelinearizationKey,
    rotations: RotationKeys,
}

/// A layer with its weights as encoded slots.
enum Prepared {
    Windows {
        /// One for each ciphertext.
        weights: Vec<Plaintext>,
        folds: Folds,
        bias: Plaintext,
    },
    Dense {
        dense: Dense,
        /// One for each diagonal that is not 0.
        weights: Vec<Option<Plaintext>>,
        bias: Plaintext,
    },
    Square,
}

impl OneSampleServer {
    /// Prepares a network.
    ///
    /// # Errors
    /// [`ServeError`] with the reason why it cannot be served.
    pub fn new(network: &Network) -> Result<Self, ServeError> {
        let context = Context::new(ONE_SAMPLE)?;
        let plan = OneSamplePlan::new(network, &context)?;
        let layers = network.layers.iter().zip(&plan.steps);
        let layers = layers.map(|(layer, step)| Prepared::new(&context, layer, step)).collect::<Result<_, _>>()?;
        let rotations = plan.rotations.clone();
        let keys_bytes =
            [RelinearizationKey::byte_length(&context), RotationKeys::byte_length(&context, rotations.len())];
        let description = Asked { network: Description::of(network), input: plan.input, rotations };
        let terms = InferenceTerms {
            network: network.digest(),
            name: network.name.clone(),
            preset: ONE_SAMPLE.name().to_owned(),
            packing: Packing::OneSample,
            description: described(&description)?,
            scale: plan.scale,
            samples_max: 1,
            inputs: count(plan.input.ciphertexts(ONE_SAMPLE.slots())),
            input_bytes: count(FreshCiphertext::byte_length(&context, ONE_SAMPLE.level_max())),
            outputs: 1,
            output_bytes: count(Ciphertext::byte_length(&context, plan.output_level, 2)),
            keys_bytes: keys_bytes.map(count).into(),
        };
        Ok(Self { context, plan, layers, terms })
    }

    /// How it is evaluated.
    #[must_use]
    pub fn plan(&self) -> &OneSamplePlan {
        &self.plan
    }

    fn run(&self, keys: &OneSampleKeys, inputs: Vec<FreshCiphertext>) -> Result<Ciphertext, CkksError> {
        let mut values: Vec<Ciphertext> = inputs.into_iter().map(FreshCiphertext::into_ciphertext).collect();
        for (layer, step) in self.layers.iter().zip(&self.plan.steps) {
            let mut value = layer.evaluate(keys, &values)?;
            for _ in 0..step.scales.rescalings {
                value = value.rescale()?;
            }
            if let Some(bias) = layer.bias() {
                value = value.add_plain(bias)?;
            }
            values = vec![value];
        }
        only(&values)?.at_level(self.plan.output_level)
    }
}

impl Prepared {
    fn new(context: &Arc<Context>, layer: &Layer, step: &Step) -> Result<Self, CkksError> {
        let Layer::Linear(linear) = layer else { return Ok(Self::Square) };
        let (slots, scales) = (context.preset().slots(), step.scales);
        let encode = |values: &[f64]| Plaintext::encode(context, values, scales.weight, scales.level);
        let bias = |layout: &Layout| {
            let bias = (0..slots).map(|slot| layout.value_at(slot).map_or(0.0, |output| linear.bias[output]));
            Plaintext::encode(context, &bias.collect::<Vec<_>>(), scales.output, scales.level - scales.rescalings)
        };
        match &step.work {
            Work::Square => Ok(Self::Square),
            Work::Windows(input, folds) => {
                let weights = window_weights(linear, input, slots);
                let weights = weights.iter().map(|weights| encode(weights)).collect::<Result<_, _>>()?;
                Ok(Self::Windows { weights, folds: folds.clone(), bias: bias(&input.layout)? })
            }
            Work::Dense(layout, dense) => {
                // The first one stays, so that there is a product even if all weights are 0.
                let diagonal = |(number, weights): (usize, Vec<f64>)| {
                    if number > 0 && weights.iter().all(|w| *w == 0.0) {
                        return Ok(None);
                    }
                    let repeated: Vec<f64> = weights.iter().copied().cycle().take(slots).collect();
                    encode(&repeated).map(Some)
                };
                let weights = dense.weights(layout, linear).into_iter().enumerate();
                let weights = weights.map(diagonal).collect::<Result<_, _>>()?;
                let bias = bias(&Layout::repeated(linear.outputs, dense.block))?;
                Ok(Self::Dense { dense: dense.clone(), weights, bias })
            }
        }
    }

    /// What is added after the rescalings.
    fn bias(&self) -> Option<&Plaintext> {
        match self {
            Self::Windows { bias, .. } | Self::Dense { bias, .. } => Some(bias),
            Self::Square => None,
        }
    }

    /// Up to the rescalings.
    fn evaluate(&self, keys: &OneSampleKeys, values: &[Ciphertext]) -> Result<Ciphertext, CkksError> {
        match self {
            Self::Square => {
                let value = only(values)?;
                value.mul(value)?.relinearize(&keys.products)
            }
            Self::Windows { weights, folds, .. } => {
                let pairs: Vec<_> = values.iter().zip(weights).collect();
                folded(Ciphertext::sum_of_products(&pairs)?, folds, &keys.rotations)
            }
            Self::Dense { dense, weights, .. } => {
                let steps: Vec<usize> = (0..dense.baby).collect();
                let turned = only(values)?.rotate_each(&steps, &keys.rotations)?;
                // Σ_g (sum g rotated by g·baby), from the last one on, so that one key does for all.
                let mut sum: Option<Ciphertext> = None;
                for weights in weights.chunks(dense.baby).rev() {
                    let later = sum.map(|later| later.rotate(dense.baby, &keys.rotations)).transpose()?;
                    let pairs = turned.iter().zip(weights).filter_map(|(x, w)| Some((x, w.as_ref()?)));
                    let pairs: Vec<_> = pairs.collect();
                    sum = match (later, &pairs[..]) {
                        (later, []) => later,
                        (None, pairs) => Some(Ciphertext::sum_of_products(pairs)?),
                        (Some(later), pairs) => Some(Ciphertext::sum_of_products(pairs)?.add(&later)?),
                    };
                }
                let Some(sum) = sum else {
                    return Err(CkksError::Shape { what: "diagonals", expected: 1, found: 0 });
                };
                folded(sum, &dense.folds, &keys.rotations)
            }
        }
    }
}

fn folded(sum: Ciphertext, folds: &Folds, keys: &RotationKeys) -> Result<Ciphertext, CkksError> {
    folds.iter().try_fold(sum, |sum, fold| sum.add(&sum.rotate(*fold, keys)?))
}

/// The slots of the plaintext for each ciphertext: what the channel of a slot's output multiplies the slot's pixel by.
fn window_weights(linear: &Linear, input: &InputLayout, slots: usize) -> Vec<Vec<f64>> {
    let Shape::Conv(convolution) = linear.shape else { return Vec::new() };
    let unit = (-f64::from(linear.fraction_bits)).exp2();
    let weights = convolution.weights_per_channel();
    let windows = linear.outputs / convolution.channels;
    let at = |ciphertext: usize, slot: usize| {
        let output = input.layout.value_at(slot)?;
        let weight = input.weight_at(&convolution, ciphertext, slot, slots)?;
        Some(unit * f64::from(linear.kernel()[output / windows * weights + weight]))
    };
    let of = |ciphertext: usize| (0..slots).map(|slot| at(ciphertext, slot).unwrap_or(0.0)).collect();
    (0..input.ciphertexts(slots)).map(of).collect()
}

/// All layers but a convolution that comes first have one ciphertext.
fn only(values: &[Ciphertext]) -> Result<&Ciphertext, CkksError> {
    let [value] = values else {
        return Err(CkksError::Shape { what: "ciphertexts", expected: 1, found: values.len() });
    };
    Ok(value)
}

impl Evaluator for OneSampleServer {
    type Client = OneSampleKeys;
    type Batch = Vec<FreshCiphertext>;

    fn terms(&self) -> &InferenceTerms {
        &self.terms
    }

    fn client(&self, keys: &[Vec<u8>]) -> Result<OneSampleKeys, String> {
        let [products, rotations] = keys else {
            return Err(format!("{} keys; expected one for products and one for rotations", keys.len()));
        };
        let products = RelinearizationKey::from_bytes(&self.context, products)
            .map_err(|e| format!("the key for products: {e}"))?;
        let rotations =
            RotationKeys::from_bytes(&self.context, rotations).map_err(|e| format!("the keys for rotations: {e}"))?;
        let found: Vec<usize> = rotations.steps().collect();
        if found != self.plan.rotations {
            return Err(format!("keys for rotations by {found:?}; expected {:?}", self.plan.rotations));
        }
        Ok(OneSampleKeys { products, rotations })
    }

    fn batch(&self, _: u32) -> Self::Batch {
        Vec::with_capacity(self.terms.inputs as usize)
    }

    fn take(&self, batch: &mut Self::Batch, ciphertext: &[u8]) -> Result<(), String> {
        let read = FreshCiphertext::from_bytes(&self.context, ciphertext).map_err(|e| e.to_string())?;
        let (level, scale) = (ONE_SAMPLE.level_max(), self.plan.scale);
        if read.level() != level || read.scale().to_bits() != scale.to_bits() {
            return Err(format!(
                "level {} and scale 2^{:.3}; expected level {level} and scale 2^{:.3}",
                read.level(),
                read.scale().log2(),
                scale.log2()
            ));
        }
        batch.push(read);
        Ok(())
    }

    fn evaluate(&self, keys: &OneSampleKeys, batch: Self::Batch) -> Result<Vec<Vec<u8>>, String> {
        // The convolution would take as many as there are.
        if batch.len() != self.terms.inputs as usize {
            return Err(format!("{} ciphertexts; expected {}", batch.len(), self.terms.inputs));
        }
        let output = self.run(keys, batch).map_err(|e| e.to_string())?;
        Ok(vec![output.to_bytes()])
    }
}
