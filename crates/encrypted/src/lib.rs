//! Networks that answer encrypted queries (CryptoNets: Gilad-Bachrach et al., ICML 2016).
//!
//! A [`Network`] has linear layers with weights in fixed point and the square as its only activation, so that everything it
//! computes is sums and products. It is a file, made by quantising trained weights.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking"))]

mod ask;
mod evaluate;
mod network;
mod plan;

pub use ask::{AskError, SamplesClient};
pub use evaluate::{Description, SamplesServer, ServeError};
pub use network::{
    Convolution, FRACTION_BITS_MAX, Group, Input, LAYERS_MAX, Layer, Linear, Network, NetworkError, Shape, WEIGHT_MAX,
    WIDTH_MAX,
};
pub use plan::{Plan, PlanError};

#[cfg(test)]
mod tests;
