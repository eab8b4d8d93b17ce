//! SPNN: train one neural network over data that several organisations may not show each other.
//!
//! Parties compute the first layer together under additive secret sharing; only the sum is opened, and only to the
//! server, which trains the hidden layers; the label holder trains the last layer. Source: arXiv 2012.09364.
//!
//! The roles are in their own crates, re-exported here; the binary `spnn` runs them as processes.
//!
//! | module | what |
//! | --- | --- |
//! | [`protocol`] | sessions, messages, channels, first-layer protocols |
//! | [`party`], [`server`], [`coordinator`] | the roles |
//! | [`nn`], [`crypto`] | the arithmetic |
//! | [`encrypted`] | networks that answer encrypted queries |
//! | [`pki`] | certificates |
//! | [`pooled`] | the same network on pooled columns, for comparison |
//! | [`in_memory`] | all roles in one process |
//! | [`monitor`] | health and metrics of a role over HTTP |
//! | [`service`] | predictions over HTTP, at the label holder |
//! | [`experiment`] | many sessions and baselines, and what they say together |
//! | [`report`] | `report.json` and `report.html` |

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub use spnn_coordinator as coordinator;
pub use spnn_crypto as crypto;
pub use spnn_encrypted as encrypted;
pub use spnn_nn as nn;
pub use spnn_party as party;
pub use spnn_protocol as protocol;
pub use spnn_server as server;

pub mod experiment;
mod http;
pub mod in_memory;
pub mod monitor;
pub mod pki;
pub mod pooled;
pub mod report;
pub mod service;
pub mod sources;
