//! Encrypted queries: a client sends ciphertexts, a server evaluates its network on them and sends ciphertexts back.
//!
//! Private inputs: of the client, its samples and its key; of the server, its weights. Output, to the client only: what the
//! network says of each sample. The server learns how many batches and samples there are, their timing, and nothing of their
//! contents: it has no key that opens anything. The client learns the outputs, the network's shape, and, because the error of a
//! ciphertext depends on what it went through, possibly more of the weights than the outputs say.
//!
//! The ciphertexts are opaque here; an [`Evaluator`] knows what they are. Source of the layouts: CryptoNets (ICML 2016), LoLa
//! (ICML 2019).
//!
//! 1. Server → client: [`InferenceTerms`].
//! 2. Client → server: its keys, if the terms ask for any ([`Kind::InferenceKey`]).
//! 3. For batch b = 0, 1, …: client → server [`InferenceBatch`](crate::message::InferenceBatch), then every ciphertext of it ([`Kind::EncryptedInput`]); server
//!    → client: every output ([`Kind::EncryptedOutput`]). The client may send a batch while the one before is evaluated.
//! 4. Client → server: an [`InferenceBatch`](crate::message::InferenceBatch) of no samples. It is done.
//!
//! Each message carries b as its step and its number within the batch, so that nothing can be repeated, left out or swapped. How
//! long each ciphertext is follows from the terms; anything else is refused before it is read. The server holds two batches of a
//! client at most, one of them under evaluation; a client that sends faster waits for room in the connection.

mod client;
mod server;

pub use client::{Answer, Upload, ask, greet};
pub use server::{Answered, Gate, answer};

use crate::message::{InferenceTerms, Kind};

/// What a server knows of the ciphertexts: how to read, evaluate and write them.
pub trait Evaluator: Send + Sync + 'static {
    /// What it keeps of a client.
    type Client: Send + Sync + 'static;
    /// The ciphertexts of a batch that have come.
    type Batch: Send + 'static;

    /// What clients are told.
    fn terms(&self) -> &InferenceTerms;

    /// Reads a client's keys, of the lengths that the terms say.
    ///
    /// # Errors
    /// What is wrong with which.
    fn client(&self, keys: &[Vec<u8>]) -> Result<Self::Client, String>;

    /// A batch of so many samples, before its first ciphertext.
    fn batch(&self, samples: u32) -> Self::Batch;

    /// Reads the next ciphertext of a batch.
    ///
    /// # Errors
    /// What is wrong with it.
    fn take(&self, batch: &mut Self::Batch, ciphertext: &[u8]) -> Result<(), String>;

    /// Evaluates the network on a batch that is complete. Takes a while.
    ///
    /// # Errors
    /// Why it cannot be evaluated.
    fn evaluate(&self, client: &Self::Client, batch: Self::Batch) -> Result<Vec<Vec<u8>>, String>;
}

/// Place of a ciphertext in its batch.
fn place(number: usize) -> [u32; 2] {
    [u32::try_from(number).unwrap_or(u32::MAX), 0]
}

#[cfg(test)]
mod tests;
