//! The arithmetic that hides a party's numbers: rings, fixed-point numbers and pairwise masks.
//!
//! Everything here is pure: no I/O, no clock, no async, and no randomness but what is passed in.
//!
//! - [`RingElement`]: Z_2^32 and Z_2^64, the groups in which shares are added.
//! - [`FixedPoint`]: real numbers as ring elements, with the guards that keep a sum from wrapping.
//! - [`RingPanels`]: matrix products over Z_2^64.
//! - [`PairKey`], [`MaskContext`]: masks that two roles derive alike.
//! - [`BlindingKey`]: ids blinded by several parties, for private set intersection.
//! - [`paillier`]: additively homomorphic encryption of many values per ciphertext.
//! - [`for_each`]: work spread over threads.
//! - [`SecretRng`]: secret randomness, from the operating system.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod blind;
mod fixed_point;
mod mask;
pub mod paillier;
mod parallel;
mod ring;
mod ring_matrix;
mod secret_rng;

pub use blind::{BLINDED_BYTES, BlindedId, BlindingKey, NotAPoint};
pub use fixed_point::{DecodeError, EncodeError, FixedPoint, FixedPointError};
pub use mask::{MaskContext, PairKey, Sign};
pub use parallel::for_each;
pub use ring::RingElement;
pub use ring_matrix::RingPanels;
pub use secret_rng::{SecretRng, SystemRandomnessError};
