//! One sample over the slots of a few ciphertexts: one answer soon, where [`SamplesServer`](crate::SamplesServer) has many late.
//!
//! Source: LoLa (Brutzkus, Elisha, Gilad-Bachrach, "Low latency privacy preserving inference", ICML 2019), with GAZELLE's hybrid
//! of diagonals and rotations for dense layers (Juvekar, Vaikuntanathan, Chandrakasan, USENIX Security 2018, section 4). The
//! client sends its sample as the first layer wants it ([`layout`]): once for a dense layer; for a convolution, once for each weight
//! of the kernel, the pixels under that weight in every window, of two weights or more in a ciphertext. The server holds its weights as encoded
//! slots and the client's keys for products and for a few rotations.

mod client;
mod layout;
mod plan;
mod server;

pub use client::OneSampleClient;
pub use plan::OneSamplePlan;
pub use server::{OneSampleKeys, OneSampleServer};

use crate::evaluate::Description;
use layout::InputLayout;
use serde::{Deserialize, Serialize};
use spnn_ckks::Preset;

/// Three rescalings by 2^40 and key switching, at the smallest dimension that has both.
const ONE_SAMPLE: &Preset = &Preset::N8192;

/// What the terms' description holds.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    network: Description,
    input: InputLayout,
    /// What the client's keys have to rotate by, in ascending order.
    rotations: Vec<usize>,
}

#[cfg(test)]
mod tests;
