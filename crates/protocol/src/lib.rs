//! How the roles of SPNN talk: sessions, messages, channels and first-layer protocols.
//!
//! A role makes a [`Transport`](transport::Transport), reaches the coordinator ([`Joining`]), joins its peers
//! ([`Joined`]) and then walks the session's [`Schedule`] with its [`Network`], asking for each message when it is due.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod alignment;
pub mod audit;
mod authority;
pub mod blind;
mod channel;
mod checkpoint;
pub mod contract;
mod durable;
mod error;
pub mod first_layer;
mod identity;
mod incarnation;
pub mod inference;
mod join;
mod key_file;
pub mod message;
mod meter;
mod monitor;
mod network;
mod rejoin;
mod role;
mod saved_model;
mod schedule;
mod session;
mod signing;
mod step;
mod stop;
mod text;
mod training;
pub mod transport;
pub mod usage;
mod verifier;

pub use alignment::{AlignmentSpec, ID_SEPARATOR, IdList};
pub use audit::Audit;
pub use authority::Authority;
pub use blind::InferenceKind;
pub use channel::{Channel, Link, Reader, Receiving, Sending, Writer, all, within};
pub use checkpoint::{Checkpoints, parameter_values, restore_parameters};
pub use durable::write_durable;
pub use error::{Cause, Ending, ProtocolError};
pub use first_layer::FirstLayerKind;
pub use identity::{Fingerprint, Identity, IdentityFiles, inspect_certificate};
pub use incarnation::Incarnation;
pub use join::{DataShape, JoinOptions, Joined, Joining, Met, greet, hello};
pub use key_file::{KeyFile, Passphrase, PassphraseSource, encrypt_key, replace_key};
pub use message::Task;
pub use meter::Meter;
pub use monitor::{Activity, Monitor, Snapshot};
pub use network::Network;
pub use rejoin::Attempts;
pub use role::{PartyId, Role, RoleError};
pub use saved_model::{SavedModel, Tensor};
pub use schedule::{Batch, Schedule};
pub use session::{
    DataSection, Difference, ModelSpec, PartySection, PreparationSpec, SessionConfig, SessionError, SessionFile,
    SessionOverrides, TrainSpec,
};
pub use step::{Phase, Position, Step};
pub use stop::Stop;
pub use text::read_text;
pub use training::{Training, all_done};
