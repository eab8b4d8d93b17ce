//! The client's side: one sample in, ciphertexts out, and back.

use super::layout::InputLayout;
use super::{Asked, ONE_SAMPLE};
use crate::ask::{at_most, has_scale, is};
use crate::plan::OUTPUT_LEVEL_MAX;
use crate::{AskError, Description};
use spnn_ckks::{Ciphertext, Context, FreshCiphertext, Plaintext, RelinearizationKey, RotationKeys, SecretKey};
use spnn_crypto::SecretRng;
use spnn_protocol::message::{InferenceTerms, Packing};
use std::sync::Arc;

/// A client with a fresh key, for what a server offers with one sample over the slots of a few ciphertexts. Nothing leaves it but
/// ciphertexts and keys that open nothing; its own key is gone when it is dropped.
pub struct OneSampleClient {
    context: Arc<Context>,
    description: Description,
    input: InputLayout,
    rotations: Vec<usize>,
    scale: f64,
    secret: SecretKey,
}

/// More rotations than any network needs: up to 128 baby steps, a giant step, and powers of two.
const ROTATIONS_MAX: usize = 256;

impl OneSampleClient {
    /// A client for these terms, if they are what such a network's have to be.
    ///
    /// # Errors
    /// [`AskError::Terms`], [`AskError::Description`]; [`AskError::Randomness`].
    pub fn new(terms: &InferenceTerms) -> Result<Self, AskError> {
        is("the packing", format!("{:?}", Packing::OneSample), format!("{:?}", terms.packing))?;
        is("the preset", ONE_SAMPLE.name(), terms.preset.as_str())?;
        let context = Context::new(ONE_SAMPLE)?;
        let Asked { network, input, rotations } =
            serde_json::from_str(&terms.description).map_err(|e| AskError::Description(e.to_string()))?;
        network.input.check()?;
        let slots = ONE_SAMPLE.slots();
        if !input.is_sound(network.input.width, slots) {
            return Err(AskError::Description("the layout of inputs is none of this network".into()));
        }
        let ascend = rotations.iter().zip(rotations.iter().skip(1)).all(|(a, b)| a < b);
        if !(ascend && rotations.iter().all(|steps| (1..slots).contains(steps))) {
            return Err(AskError::Description("rotations are not in ascending order, between 0 and all slots".into()));
        }
        at_most("the number of rotations", ROTATIONS_MAX, rotations.len())?;
        at_most("the number of outputs", slots, network.classes.len())?;
        is("the number of ciphertexts", input.ciphertexts(slots), terms.inputs as usize)?;
        is("the number of answers", 1, terms.outputs)?;
        is("samples of a batch", 1, terms.samples_max)?;
        let input_bytes = FreshCiphertext::byte_length(&context, ONE_SAMPLE.level_max());
        is("the length of a ciphertext", input_bytes, terms.input_bytes as usize)?;
        is("the number of keys", 2, terms.keys_bytes.len())?;
        let keys = [RelinearizationKey::byte_length(&context), RotationKeys::byte_length(&context, rotations.len())];
        for (expected, found) in keys.into_iter().zip(&terms.keys_bytes) {
            is("the length of a key", expected, *found as usize)?;
        }
        let largest = Ciphertext::byte_length(&context, OUTPUT_LEVEL_MAX, 2);
        at_most("the length of the answer", largest, terms.output_bytes as usize)?;
        has_scale(terms)?;
        let secret = SecretKey::generate(&context, &mut SecretRng::from_system()?);
        Ok(Self { context, description: network, input, rotations, scale: terms.scale, secret })
    }

    /// What the network takes and gives.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// What the server needs before the first sample: a key for products, and one for each rotation. They open nothing.
    ///
    /// # Errors
    /// [`AskError::Ckks`]; [`AskError::Randomness`].
    pub fn keys(&self) -> Result<Vec<Vec<u8>>, AskError> {
        let mut rng = SecretRng::from_system()?;
        let products = self.secret.relinearization_key(&mut rng)?.to_bytes();
        let rotations = self.secret.rotation_keys(&self.rotations, &mut rng)?.to_bytes();
        Ok(vec![products, rotations])
    }

    /// Encrypts a row of raw numbers: all ciphertexts of a batch, in order.
    ///
    /// # Errors
    /// [`AskError::Row`] if it does not fit; [`AskError::Ckks`]; [`AskError::Randomness`].
    pub fn encrypt(&self, row: &[f64]) -> Result<Vec<Vec<u8>>, AskError> {
        let inputs = self.description.input.apply(row)?;
        let mut rng = SecretRng::from_system()?;
        let (slots, level) = (ONE_SAMPLE.slots(), ONE_SAMPLE.level_max());
        let mut one = |ciphertext: usize| {
            let at = self.input.inputs_at(ciphertext, slots);
            let values: Vec<f64> = at.map(|input| input.map_or(0.0, |input| inputs[input])).collect();
            let plain = Plaintext::encode(&self.context, &values, self.scale, level)?;
            Ok(self.secret.encrypt(&plain, &mut rng)?.to_bytes())
        };
        (0..self.input.ciphertexts(slots)).map(&mut one).collect()
    }

    /// Opens an answer, for this client's own eyes: the outputs. What they hold beyond their precision depends on the key; round
    /// before passing them on.
    ///
    /// # Errors
    /// [`AskError::Answer`]; [`AskError::Terms`] if there is more or less than one ciphertext.
    pub fn open(&self, answer: &[Vec<u8>]) -> Result<Vec<f64>, AskError> {
        let [bytes] = answer else {
            is("the number of answers", 1, answer.len())?;
            return Ok(Vec::new());
        };
        let ciphertext =
            Ciphertext::from_bytes(&self.context, bytes).map_err(|source| AskError::Answer { number: 0, source })?;
        let mut slots = self.secret.decrypt(&ciphertext)?.decode();
        slots.truncate(self.description.classes.len());
        Ok(slots)
    }

    /// All slots of a ciphertext.
    #[cfg(test)]
    pub(super) fn slots_of(&self, bytes: &[u8]) -> Vec<f64> {
        self.secret.decrypt(&Ciphertext::from_bytes(&self.context, bytes).unwrap()).unwrap().decode()
    }
}
