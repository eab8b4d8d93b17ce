//! The server's side: a network on ciphertexts that it cannot open.

use crate::ask::note;
use crate::plan::SAMPLES;
use crate::{Input, Layer, Network, Plan, PlanError};
use serde::{Deserialize, Serialize};
use spnn_ckks::{Ciphertext, CkksError, Context, FreshBatch, FreshCiphertext, Inputs, LinearMap, Segment, Workspace};
use spnn_crypto::for_each;
use spnn_nn::Loss;
use spnn_protocol::inference::Evaluator;
use spnn_protocol::message::{CONTROL_BYTES_MAX, InferenceTerms, Packing};
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;

/// A network with a sample in every slot, for thousands of samples at once (CryptoNets).
///
/// The server learns nothing of the samples; it has no key at all. See [`spnn_protocol::inference`] for who learns what.
pub struct SamplesServer {
    context: Arc<Context>,
    plan: Plan,
    segments: Vec<Segment>,
    terms: InferenceTerms,
    threads: usize,
    /// Of batches that were evaluated: memory for the next ones, and for one evaluation at a time.
    spare: Mutex<Vec<FreshBatch>>,
    workspace: Mutex<Workspace>,
}

/// Batches whose memory is kept: as many as one client can have here.
const SPARE_MAX: usize = 2;

/// What a client is told of the network: how to make inputs, and what the outputs are.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// From raw numbers to inputs.
    pub input: Input,
    /// Names of the outputs.
    pub classes: Vec<String>,
    /// What they are.
    pub loss: Loss,
}

/// Why a network cannot be served.
#[derive(Debug, Error)]
pub enum ServeError {
    /// It does not fit the encryption.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Its input is too wide for what clients are told.
    #[error("the network's inputs and outputs take {found} bytes to describe; clients are told at most {most}")]
    Description {
        /// Bytes there may be.
        most: usize,
        /// Bytes there are.
        found: usize,
    },
    /// The arithmetic refused it.
    #[error(transparent)]
    Ckks(#[from] CkksError),
}

impl Description {
    pub(crate) fn of(network: &Network) -> Self {
        Self { input: network.input.clone(), classes: network.classes.clone(), loss: network.loss }
    }
}

/// As the terms have it.
///
/// # Errors
/// [`ServeError::Description`] if it does not fit into them.
pub(crate) fn described(description: &impl Serialize) -> Result<String, ServeError> {
    let description = serde_json::to_string(description).unwrap_or_default();
    // The rest of the message are names and a few numbers.
    let (most, found) = (CONTROL_BYTES_MAX - 2048, description.len());
    if found > most { Err(ServeError::Description { most, found }) } else { Ok(description) }
}

/// A number of the terms.
pub(crate) fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl SamplesServer {
    /// Prepares a network, to be evaluated on up to `threads` threads.
    ///
    /// # Errors
    /// [`ServeError`] with the reason why it cannot be served.
    pub fn new(network: &Network, threads: usize) -> Result<Self, ServeError> {
        let context = Context::new(SAMPLES)?;
        let plan = Plan::new(network, &context)?;
        let segment = |range: &std::ops::Range<usize>| {
            let layers = network.layers[range.clone()].iter().map(layer).collect::<Result<_, CkksError>>()?;
            Segment::new(layers)
        };
        let segments = plan.segments.iter().map(segment).collect::<Result<_, _>>()?;
        let description = described(&Description::of(network))?;
        let terms = InferenceTerms {
            network: network.digest(),
            name: network.name.clone(),
            preset: SAMPLES.name().to_owned(),
            packing: Packing::SamplePerSlot,
            description,
            scale: plan.scale,
            samples_max: count(SAMPLES.slots()),
            inputs: count(network.input.width),
            input_bytes: count(FreshCiphertext::byte_length(&context, SAMPLES.level_max())),
            outputs: count(network.classes.len()),
            output_bytes: count(Ciphertext::byte_length(&context, plan.output_level, plan.output_parts)),
            keys_bytes: Vec::new(),
        };
        let (spare, workspace) = (Mutex::default(), Mutex::default());
        Ok(Self { context, plan, segments, terms, threads, spare, workspace })
    }

    /// How it is evaluated.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    fn run(&self, inputs: &FreshBatch) -> Result<Vec<Ciphertext>, CkksError> {
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let mut values: Vec<Ciphertext> = Vec::new();
        for (number, segment) in self.segments.iter().enumerate() {
            let inputs = if number == 0 { Inputs::Fresh(inputs) } else { Inputs::Whole(&values) };
            let mut outputs = segment.evaluate(&self.context, inputs, &mut workspace, self.threads)?;
            if number + 1 < self.segments.len() {
                let failed = Mutex::new(None);
                for_each(
                    self.threads,
                    outputs.iter_mut(),
                    || (),
                    |(), value| match value.rescale() {
                        Ok(rescaled) => *value = rescaled,
                        Err(e) => note(&failed, e),
                    },
                );
                if let Some(e) = failed.into_inner().ok().flatten() {
                    return Err(e);
                }
            }
            values = outputs;
        }
        Ok(values)
    }
}

fn layer(layer: &Layer) -> Result<spnn_ckks::Layer, CkksError> {
    let Layer::Linear(linear) = layer else { return Ok(spnn_ckks::Layer::Square) };
    let mut map = LinearMap::new(linear.inputs, linear.outputs);
    for group in &linear.groups {
        map = map.group(group.inputs.clone(), group.outputs.clone(), &group.weights)?;
    }
    let weight_scale = f64::from(linear.fraction_bits).exp2();
    Ok(spnn_ckks::Layer::Linear { map, weight_scale, bias: linear.bias.clone() })
}

impl Evaluator for SamplesServer {
    type Client = ();
    type Batch = FreshBatch;

    fn terms(&self) -> &InferenceTerms {
        &self.terms
    }

    fn client(&self, _: &[Vec<u8>]) -> Result<(), String> {
        Ok(())
    }

    fn batch(&self, _: u32) -> FreshBatch {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (level, count) = (self.context.preset().level_max(), self.terms.inputs as usize);
        #[expect(clippy::expect_used, reason = "a preset has its highest level")]
        spare.unwrap_or_else(|| {
            FreshBatch::with_room(&self.context, level, self.plan.scale, count).expect("the highest level")
        })
    }

    fn take(&self, batch: &mut FreshBatch, ciphertext: &[u8]) -> Result<(), String> {
        batch.push(ciphertext).map_err(|e| e.to_string())
    }

    fn evaluate(&self, (): &(), mut batch: FreshBatch) -> Result<Vec<Vec<u8>>, String> {
        let outputs = self.run(&batch).map_err(|e| e.to_string())?;
        batch.clear();
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_MAX {
            spare.push(batch);
        }
        drop(spare);
        let bytes = |output: &Ciphertext| output.at_level(self.plan.output_level).map(|o| o.to_bytes());
        outputs.iter().map(bytes).collect::<Result<_, _>>().map_err(|e: CkksError| e.to_string())
    }
}
