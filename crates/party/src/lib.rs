//! A data holder of SPNN. With a label head it is the label holder too.
//!
//! A party reads its own columns ([`data`]), joins a session, and trains its block of the first layer; the label holder
//! also trains the last layer. It saves its own part of the model and needs all other roles again to predict.
//!
//! Who learns what is said at [`spnn_protocol::first_layer`], and of the gradients in `train.rs`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod data;
mod error;
pub mod party;
mod predict;
mod prepare;
mod releases;
pub mod serve;
mod train;

pub use error::PartyError;
pub use party::{Outcome, Party, PartyOptions, check_columns};
pub use prepare::{Prepared, digest_ids};
