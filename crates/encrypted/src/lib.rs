//! Networks that answer encrypted queries (CryptoNets: Gilad-Bachrach et al., ICML 2016).
//!
//! A [`Network`] has linear layers with weights in fixed point and the square as its only activation, so that everything it
//! computes is sums and products. It is one file ([`Network::load`]), made from a [`Recipe`] by [`train`] in the clear or
//! by [`import`] of weights trained elsewhere. A [`SamplesServer`] evaluates it on ciphertexts that it cannot open, which a
//! [`SamplesClient`] makes and opens, for many samples at once; [`OneSampleServer`] and [`OneSampleClient`] do so for one
//! sample soon. [`spnn_protocol::inference`] brings ciphertexts from one to the other and says who learns what.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking"))]

mod ask;
mod client;
mod data;
mod evaluate;
mod network;
mod one_sample;
mod plan;
mod quantize;
mod recipe;
mod train;

pub use ask::{AskError, SamplesClient};
pub use client::Client;
pub use data::{CsvLayout, DataError, Rows, read_csv, read_idx};
pub use evaluate::{Description, SamplesServer, ServeError};
pub use network::{
    Convolution, FRACTION_BITS_MAX, Group, Input, LAYERS_MAX, Layer, Linear, Network, NetworkError, Shape, WEIGHT_MAX,
    WIDTH_MAX,
};
pub use one_sample::{OneSampleClient, OneSampleKeys, OneSamplePlan, OneSampleServer};
pub use plan::{Plan, PlanError};
pub use quantize::import;
pub use recipe::{
    DataRecipe, Decay, Files, InputRecipe, NetworkRecipe, QuantizeRecipe, Recipe, RecipeError, TrainRecipe,
};
pub use train::{Progress, Score, Trained, score, score_outputs, train};

#[cfg(test)]
mod tests;
