//! The client's side: samples in, ciphertexts out, and back.

use crate::NetworkError;
use crate::evaluate::Description;
use crate::plan::SAMPLES;
use ndarray::{Array2, ArrayView2};
use spnn_ckks::{Ciphertext, CkksError, Context, FreshCiphertext, Plaintext, SecretKey, WireError};
use spnn_crypto::{SecretRng, SystemRandomnessError, for_each};
use spnn_protocol::message::{InferenceTerms, Packing};
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;

/// A client with a fresh key, for what a server offers with a sample in every slot. Nothing leaves it but ciphertexts; the key
/// is gone when it is dropped.
pub struct SamplesClient {
    context: Arc<Context>,
    description: Description,
    scale: f64,
    secret: SecretKey,
}

/// Why a client cannot ask, or cannot read the answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// The server offers what this client does not know or does not accept.
    #[error("the server's terms: {what} is {found}; expected {expected}")]
    Terms {
        /// Of what.
        what: &'static str,
        /// What would be right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The server's description of its network is not one.
    #[error("the server's description of its network: {0}")]
    Description(String),
    /// A row does not fit the network.
    #[error(transparent)]
    Row(#[from] NetworkError),
    /// The arithmetic refused it.
    #[error(transparent)]
    Ckks(#[from] CkksError),
    /// An answer is no ciphertext.
    #[error("output {number} of the server's answer: {source}")]
    Answer {
        /// Which, from 0.
        number: usize,
        /// What is wrong with it.
        source: WireError,
    },
    /// The system has no randomness.
    #[error(transparent)]
    Randomness(#[from] SystemRandomnessError),
}

/// One of the terms is what it has to be.
pub(crate) fn is<T: PartialEq + ToString>(what: &'static str, expected: T, found: T) -> Result<(), AskError> {
    if expected == found {
        return Ok(());
    }
    Err(AskError::Terms { what, expected: expected.to_string(), found: found.to_string() })
}

/// One of the terms is not too large.
pub(crate) fn at_most(what: &'static str, most: usize, found: usize) -> Result<(), AskError> {
    if found <= most {
        return Ok(());
    }
    Err(AskError::Terms { what, expected: format!("at most {most}"), found: found.to_string() })
}

/// A scale that can be encoded at.
pub(crate) fn has_scale(terms: &InferenceTerms) -> Result<(), AskError> {
    if terms.scale >= 1.0 && terms.scale.log2() < 60.0 {
        return Ok(());
    }
    Err(AskError::Terms { what: "the scale", expected: "1 to 2^60".into(), found: terms.scale.to_string() })
}

/// Keeps the first error of several threads.
pub(crate) fn note<E>(first: &Mutex<Option<E>>, error: E) {
    first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
}

/// Ciphertexts that are made before they are handed on: enough for all threads, little memory.
const CHUNK: usize = 32;
/// Most parts of an answer: what two squares leave.
const PARTS_MAX: usize = 5;

impl SamplesClient {
    /// A client for these terms, if they are what such a network's have to be.
    ///
    /// # Errors
    /// [`AskError::Terms`], [`AskError::Description`]; [`AskError::Randomness`].
    pub fn new(terms: &InferenceTerms) -> Result<Self, AskError> {
        is("the packing", format!("{:?}", Packing::SamplePerSlot), format!("{:?}", terms.packing))?;
        is("the preset", SAMPLES.name(), terms.preset.as_str())?;
        let context = Context::new(SAMPLES)?;
        let description: Description =
            serde_json::from_str(&terms.description).map_err(|e| AskError::Description(e.to_string()))?;
        description.input.check()?;
        is("the number of ciphertexts", description.input.width, terms.inputs as usize)?;
        is("the number of outputs", description.classes.len(), terms.outputs as usize)?;
        is("samples of a batch", SAMPLES.slots(), terms.samples_max as usize)?;
        let input_bytes = FreshCiphertext::byte_length(&context, SAMPLES.level_max());
        is("the length of a ciphertext", input_bytes, terms.input_bytes as usize)?;
        is("the number of keys", 0, terms.keys_bytes.len())?;
        let largest = Ciphertext::byte_length(&context, SAMPLES.level_max(), PARTS_MAX);
        at_most("the length of an output", largest, terms.output_bytes as usize)?;
        has_scale(terms)?;
        let secret = SecretKey::generate(&context, &mut SecretRng::from_system()?);
        Ok(Self { context, description, scale: terms.scale, secret })
    }

    /// What the network takes and gives.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Most samples of a batch.
    #[must_use]
    pub fn samples_max(&self) -> usize {
        SAMPLES.slots()
    }

    /// Encrypts `rows: [n, width]` of raw numbers, n at most [`samples_max`](Self::samples_max), on up to `threads` threads.
    /// `send` gets the ciphertexts in order, and ends it early by `false`.
    ///
    /// # Errors
    /// [`AskError::Row`] if a row does not fit; [`AskError::Ckks`].
    pub fn encrypt(
        &self,
        rows: ArrayView2<'_, f32>,
        threads: usize,
        mut send: impl FnMut(Vec<u8>) -> bool,
    ) -> Result<(), AskError> {
        let mut inputs = Array2::zeros((rows.nrows(), self.description.input.width));
        for (row, mut input) in rows.rows().into_iter().zip(inputs.rows_mut()) {
            let raw: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            input.iter_mut().zip(self.description.input.apply(&raw)?).for_each(|(to, from)| *to = from);
        }
        // One ciphertext is one column.
        let columns = inputs.t().as_standard_layout().into_owned();
        let level = self.context.preset().level_max();
        for start in (0..columns.nrows()).step_by(CHUNK) {
            let count = CHUNK.min(columns.nrows() - start);
            let mut chunk: Vec<Option<Vec<u8>>> = vec![None; count];
            let failed: Mutex<Option<AskError>> = Mutex::new(None);
            let one = |rng: &mut Result<SecretRng, SystemRandomnessError>, at: usize| {
                let rng = rng.as_mut().map_err(|e| e.clone())?;
                let column = columns.row(start + at);
                let plain = Plaintext::encode(&self.context, &column.to_vec(), self.scale, level)?;
                Ok::<_, AskError>(self.secret.encrypt(&plain, rng)?.to_bytes())
            };
            for_each(threads, chunk.iter_mut().enumerate(), SecretRng::from_system, |rng, (at, bytes)| {
                match one(rng, at) {
                    Ok(made) => *bytes = Some(made),
                    Err(e) => note(&failed, e),
                }
            });
            if let Some(e) = failed.into_inner().ok().flatten() {
                return Err(e);
            }
            if !chunk.into_iter().flatten().all(&mut send) {
                break;
            }
        }
        Ok(())
    }

    /// Opens an answer, for this client's own eyes: `[samples, outputs]`. What it holds beyond the outputs' precision depends on
    /// the key; round before passing it on.
    ///
    /// # Errors
    /// [`AskError::Answer`].
    pub fn open(&self, answer: &[Vec<u8>], samples: usize) -> Result<Array2<f64>, AskError> {
        let mut outputs = Array2::zeros((samples, self.description.classes.len()));
        for (number, (bytes, mut column)) in answer.iter().zip(outputs.columns_mut()).enumerate() {
            let ciphertext =
                Ciphertext::from_bytes(&self.context, bytes).map_err(|source| AskError::Answer { number, source })?;
            let slots = self.secret.decrypt(&ciphertext)?.decode();
            column.iter_mut().zip(slots).for_each(|(to, from)| *to = from);
        }
        Ok(outputs)
    }
}
