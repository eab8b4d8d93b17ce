//! RNS-CKKS: approximate arithmetic on encrypted vectors of real numbers.
//!
//! A plaintext holds n/2 real numbers ("slots") as a polynomial of Z\[X\]/(X^n + 1), scaled by a factor Δ and rounded. A ciphertext
//! is two polynomials (c0, c1) modulo Q = q_0⋯q_l with c0 + c1·s = Δ·m + e for the secret s and a small error e. Sums and
//! products of ciphertexts are sums and products of slots; after a product, [`Ciphertext::rescale`] divides by the last prime, which brings the
//! scale back and costs a level. Sources: Cheon, Kim, Kim, Song (ASIACRYPT 2017); Cheon, Han, Kim, Kim, Song (SAC 2018)
//! for the residue number system.
//!
//! Whoever holds the [`SecretKey`] learns everything; the ciphertexts, the [`PublicKey`], [`RelinearizationKey`] and
//! [`RotationKeys`] say nothing about the slots (ring-LWE). **Decryptions are not for others as they are**: what CKKS decrypts to
//! holds e, and from several such values a stranger who knows the ciphertexts can compute the key (Li, Micciancio,
//! EUROCRYPT 2021). [`SecretKey::decrypt`] is for the holder's own eyes; [`SecretKey::decrypt_for_release`] hides e first.
//!
//! Parameters come from [`Preset`]s only. Sampling and decryption take the same steps whatever the secrets are; secrets are
//! cleared on drop and have no printable form.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod ciphertext;
mod context;
mod conversion;
mod double;
mod encoding;
mod kernel;
mod keys;
mod modulus;
mod ntt;
mod plaintext;
mod preset;
mod sampling;
mod segment;
mod wire;

#[cfg(test)]
mod tests;

pub use ciphertext::{Ciphertext, FreshCiphertext};
pub use context::Context;
pub use keys::{FLOODING_BITS, PublicKey, RelinearizationKey, RotationKeys, SecretKey};
pub use modulus::Modulus;
pub use plaintext::Plaintext;
pub use preset::Preset;
pub use segment::{Inputs, Layer, LinearMap, Segment, Workspace};
pub use wire::{FreshBatch, WireError};

use thiserror::Error;

/// Why something cannot be computed.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum CkksError {
    /// A preset above the security table.
    #[error("{preset} is below 128-bit security")]
    Insecure {
        /// Its name.
        preset: &'static str,
    },
    /// More values than slots.
    #[error("{found} values; a plaintext has {slots} slots")]
    Slots {
        /// How many there are.
        slots: usize,
        /// How many were given.
        found: usize,
    },
    /// A value that is not finite, or too large for its scale.
    #[error("slot {slot}: the value is not finite, or too large for a scale of 2^{scale_log2:.1} at level {level}")]
    Value {
        /// Which, or one of those that together are too large.
        slot: usize,
        /// log2 of the scale.
        scale_log2: f64,
        /// The level.
        level: usize,
    },
    /// Two operands of different scales.
    #[error("scales of 2^{left:.6} and 2^{right:.6} cannot be added")]
    Scales {
        /// log2 of one.
        left: f64,
        /// log2 of the other.
        right: f64,
    },
    /// Two operands of different levels.
    #[error("a ciphertext of level {found} where one of level {expected} is due")]
    Level {
        /// What is due.
        expected: usize,
        /// What is there.
        found: usize,
    },
    /// No level is left.
    #[error("no level is left to rescale by")]
    Depth,
    /// The scale outgrows what the level holds.
    #[error("a scale of 2^{scale_log2:.1} does not fit level {level}")]
    Scale {
        /// log2 of the scale.
        scale_log2: f64,
        /// The level.
        level: usize,
    },
    /// An operation that a ciphertext's number of parts does not allow.
    #[error("a ciphertext of {found} parts where {expected} are due")]
    Parts {
        /// What is due.
        expected: &'static str,
        /// What is there.
        found: usize,
    },
    /// The preset has no primes for key switching.
    #[error("{preset} has no key switching")]
    NoKeySwitching {
        /// Its name.
        preset: &'static str,
    },
    /// No key for this rotation.
    #[error("no key to rotate by {steps}")]
    NoRotation {
        /// By how many slots.
        steps: usize,
    },
    /// Operands of different presets.
    #[error("operands of different presets")]
    Contexts,
    /// More or fewer than there have to be, or an index beyond them.
    #[error("{what}: {found} where {expected} are due")]
    Shape {
        /// Of what.
        what: &'static str,
        /// What is due.
        expected: usize,
        /// What is there.
        found: usize,
    },
    /// A weight that is too large for exact sums.
    #[error("a weight of {found}; the largest is {largest}")]
    Weight {
        /// The weight.
        found: i64,
        /// The limit.
        largest: u64,
    },
}
