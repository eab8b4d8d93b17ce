//! Paillier encryption of fixed-point tensors: many values per ciphertext, sums without decryption.
//!
//! One party holds the [`SecretKey`]; the others check its [`PublicKey`] and [`KeyProof`], then per tensor:
//!
//! 1. [`Packing::encode`] puts values into plaintexts, 31 of 64 bits into one of 2048;
//! 2. [`Plaintexts::mask`] adds the pairwise masks, uniform in Z_n, that cancel in the sum;
//! 3. [`Ciphertexts::encrypt`] with [`Randomizers`] that a [`RandomizerTable`] made ahead, at best while waiting;
//! 4. [`Ciphertexts::from_bytes`] checks what a neighbour sent, [`Ciphertexts::add_assign`] adds one's own;
//! 5. [`SecretKey::decrypt`] and [`Packing::decode`] open the sum, and only the sum.
//!
//! Everything works on chunks: a chunk is some whole number of ciphertexts, its values start at a multiple of
//! [`Packing::slots`], and only the mask asks for its place in the tensor. Calls take milliseconds to seconds of all the
//! threads they are given: from async code, call them where blocking is allowed.
//!
//! ```
//! use spnn_crypto::SecretRng;
//! use spnn_crypto::paillier::{Ciphertexts, Exponent, KeyBits, Lookup, Packing, RandomizerTable, SecretKey};
//!
//! let mut rng = SecretRng::from_system()?;
//! let secret = SecretKey::generate(KeyBits::InsecureTest512, &mut rng)?;
//! let key = secret.public();
//! let packing = Packing::new(key.bits(), 48, 2)?;
//! let table = RandomizerTable::new(key, Lookup::default(), Exponent::default(), &mut rng);
//!
//! let mut encrypt = |values: &[i64]| {
//!     let plaintexts = packing.encode(key, values)?;
//!     let randomizers = table.draw(plaintexts.len(), &mut rng, 2);
//!     Ciphertexts::encrypt(&plaintexts, randomizers, 2)
//! };
//! let sent = encrypt(&[1, -2, 3])?.to_bytes();
//! let mut sum = Ciphertexts::from_bytes(key, packing.plaintexts_for(3), &sent)?;
//! sum.add_assign(&encrypt(&[10, 20, -30])?, 2)?;
//! assert_eq!(packing.decode(&secret.decrypt(&sum, 2)?, 3, 2)?, [11, 18, -27]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is where
//!
//! `lanes` lays eight numbers side by side in limbs of 52 bits; `ifma` (AVX-512, the one module with `unsafe`) and
//! `portable` multiply them, bit for bit alike; `modulus` chooses between them at run time and builds powers on them.
//!
//! # Why not paillier-common alone
//!
//! The scheme is that of `paillier-common` 0.2, and tests check that each decrypts the other's ciphertexts. The crate
//! itself is a dependency of the tests and the benchmark only: its key generation leaves n a bit short in two of five
//! keys and does not check gcd(p − 1, q − 1); its types print, clone and serialise the primes and do not wipe them;
//! it decrypts 0 and multiples of p without a word; its arithmetic is not constant-time, at a hundredth or less of this
//! module's speed; and it would bring a second generation of `rand` into the binary.
//!
//! # What is constant-time and what is not
//!
//! Encryption, masks, randomizers with [`Lookup::ConstantTime`], decryption, and the proof's secret powers are: fixed
//! sequences of products, windows read in full, no secret decides a branch or an address. Not so: key generation, the
//! set-up of a key from its primes and the proof's Chinese remainder (crypto-bigint's divisions are constant-time, its
//! prime search is not), [`Lookup::DirectOnOwnMachine`], and the position at which encoding or decoding stops with an
//! error. Checks of what peers send take variable time over public data.
//! Secrets are wiped on drop; what crypto-primes and crypto-bigint keep in passing while a key is made is not.

mod ciphertexts;
#[cfg(target_arch = "x86_64")]
mod ifma;
mod key;
mod lanes;
mod modulus;
mod packing;
mod portable;
mod proof;
mod randomizers;
mod size_proof;

pub use ciphertexts::Ciphertexts;
pub use key::{KeyBits, KeyError, PublicKey, SecretKey};
pub use modulus::Arithmetic;
pub use packing::{Packing, PackingError, Plaintexts};
pub use proof::{KeyProof, ProofError};
pub use randomizers::{Exponent, Lookup, RandomizerTable, Randomizers};

use thiserror::Error;

/// What went wrong with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PaillierError {
    /// A value does not fit its slot.
    #[error("value at position {position} does not fit the agreed number of bits")]
    Value {
        /// Index into the values.
        position: usize,
    },
    /// Values, plaintexts, ciphertexts or randomizers of different keys.
    #[error("these belong to different Paillier keys")]
    OtherKey,
    /// Not one randomizer per plaintext.
    #[error("{needed} randomizers are needed, {left} are there")]
    Randomizers {
        /// As many as plaintexts.
        needed: usize,
        /// As many as there are.
        left: usize,
    },
    /// Batches of different length.
    #[error("{found} ciphertexts instead of {expected}")]
    Count {
        /// Agreed.
        expected: usize,
        /// Found.
        found: usize,
    },
    /// A peer's bytes are not as long as agreed.
    #[error("{count} ciphertexts take {expected} bytes, {found} came")]
    Length {
        /// Ciphertexts agreed.
        count: usize,
        /// Bytes they take.
        expected: usize,
        /// Bytes received.
        found: usize,
    },
    /// A peer's ciphertext is 0 or not below n².
    #[error("ciphertext {index} is not a number between 0 and n²")]
    Ciphertext {
        /// Index into the batch.
        index: usize,
    },
    /// A ciphertext among a peer's shares a factor with n.
    #[error("the batch holds a ciphertext that is not a unit modulo n²")]
    Batch,
    /// A sum of no or of too many addends.
    #[error("the packing holds sums of 1 to {addends_max} addends, not of {found}")]
    Addends {
        /// What was asked for.
        found: u32,
        /// What there is room for.
        addends_max: u32,
    },
    /// A decrypted slot holds what no sum of that many addends gives.
    #[error("decrypted sum at position {position} is out of range")]
    Sum {
        /// Index into the values.
        position: usize,
    },
    /// A decrypted plaintext has bits set where nothing was packed.
    #[error("decrypted ciphertext {ciphertext} has bits beyond its last value")]
    Unused {
        /// Index into the batch.
        ciphertext: usize,
    },
}

#[cfg(test)]
mod tests;
