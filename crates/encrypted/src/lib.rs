//! Networks that answer encrypted queries (CryptoNets: Gilad-Bachrach et al., ICML 2016).
//!
//! A [`Network`] has linear layers with weights in fixed point and the square as its only activation, so that everything it
//! computes is sums and products. It is one file ([`Network::load`]), made from a [`Recipe`] by [`train`] in the clear or
//! by [`import`] of weights trained elsewhere.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking"))]

mod data;
mod network;
mod quantize;
mod recipe;
mod train;

pub use data::{CsvLayout, DataError, Rows, read_csv, read_idx};
pub use network::{
    Convolution, FRACTION_BITS_MAX, Group, Input, LAYERS_MAX, Layer, Linear, Network, NetworkError, Shape, WEIGHT_MAX,
    WIDTH_MAX,
};
pub use quantize::import;
pub use recipe::{
    DataRecipe, Decay, Files, InputRecipe, NetworkRecipe, QuantizeRecipe, Recipe, RecipeError, TrainRecipe,
};
pub use train::{Progress, Score, Trained, score, train};
