//! Layers, losses, optimizers and metrics of SPNN: pure computation on `f32` matrices.
//!
//! The parties compute `h1 = Σ X_i·W_i` under cryptography; this crate is everything around it that is plain:
//!
//! | role | uses |
//! |---|---|
//! | party | [`first_layer_weights`] for its rows of the first layer, [`matmul`], [`Optimizer::step_one`] |
//! | server | [`Sequential`] (or its own [`Model`]): `h1 → z` forward, `grad_z → grad_h1` backward, [`Optimizer::step`] |
//! | label holder | [`LabelHead`]: `z`, labels → loss and `grad_z`; [`auc`] and [`accuracy`] |
//!
//! No async, no I/O, no cryptography, no time. Randomness is drawn from public seeds that every role agrees on (initial
//! weights, dropout masks), except the noise of SGLD, whose seed is passed in.
//!
//! Shapes: `n` rows of the batch, `d` features, `h` width of H1, `k` outputs of the server. Matrices are row-major
//! unless a view says otherwise. A row's result does not depend on how many other rows are in the batch, bit for bit.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking"))]

mod activation;
mod elementary;
mod errors;
mod head;
mod init;
mod layer;
mod matrix;
mod metrics;
mod model;
mod optimizer;
mod rows;
mod sequential;
mod spec;

pub use activation::{gelu, leaky_relu, relu, sigmoid, silu, square, tanh};
pub use errors::{ModelError, SpecError};
pub use head::LabelHead;
pub use init::{first_layer_weights, init_rng};
pub use matrix::matmul;
pub use metrics::{accuracy, auc};
pub use model::{Mode, Model, Parameter};
pub use optimizer::{Optimizer, OptimizerState};
pub use sequential::Sequential;
pub use spec::{ActivationKind, ConvSpec, HeadSpec, LayerSpec, Loss, OptimizerSpec, PoolSpec};
