//! What a command ends with.

use spnn::encrypted::{AskError, NetworkError, RecipeError, ServeError};
use spnn::experiment::ExperimentError;
use spnn::party::PartyError;
use spnn::party::data::DataError;
use spnn::pki::PkiError;
use spnn::pooled::PooledError;
use spnn::protocol::{Cause, ProtocolError, Role, SessionError};
use spnn::sources::SourcesError;
use std::path::PathBuf;
use thiserror::Error;

#[derive(Debug, Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Sources(#[from] SourcesError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Pooled(#[from] PooledError),
    #[error(transparent)]
    Experiment(#[from] ExperimentError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Samples(#[from] spnn::encrypted::DataError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("{source}")]
    Protocol { me: Role, source: ProtocolError },
    #[error("{source}")]
    Party { me: Role, source: PartyError },
    #[error("{}: {reason}", file.display())]
    Config { file: PathBuf, reason: String },
    #[error("{}: {source}", file.display())]
    File { file: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Usage(String),
    /// What a role says that does not work, or why it says nothing.
    #[error("{0}")]
    Unhealthy(String),
    /// Roles of a simulation failed; what they said has been printed.
    #[error("{message}")]
    Roles { code: u8, message: String },
}

impl CliError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Session(_) | Self::Config { .. } | Self::Usage(_) => Cause::Configuration.code(),
            Self::Pki(PkiError::File { .. }) | Self::File { .. } => Cause::Storage.code(),
            Self::Experiment(ExperimentError::File { .. }) => Cause::Storage.code(),
            Self::Experiment(ExperimentError::Parse { .. }) => Cause::Configuration.code(),
            Self::Pki(_) => Cause::Configuration.code(),
            Self::Sources(SourcesError::Session(_)) => Cause::Configuration.code(),
            Self::Sources(SourcesError::Data(e)) => data_code(e),
            Self::Pooled(PooledError::Party(e)) => e.exit_code(Role::party(0)),
            Self::Pooled(PooledError::Storage(e)) => e.exit_code(Role::party(0)),
            Self::Pooled(_) => Cause::Data.code(),
            Self::Network(_) | Self::Recipe(_) | Self::Serve(_) => Cause::Configuration.code(),
            Self::Samples(_) | Self::Ask(AskError::Row(_)) => Cause::Data.code(),
            // The system's randomness and arithmetic are this process's own; the rest is what the server sent.
            Self::Ask(AskError::Randomness(_) | AskError::Ckks(_)) => Cause::Configuration.code(),
            Self::Ask(_) => Cause::Protocol.code(),
            Self::Protocol { me, source } => source.exit_code(*me),
            Self::Party { me, source } => source.exit_code(*me),
            Self::Roles { code, .. } => *code,
            // What whoever asks for health expects; the role itself would end with one of the codes above.
            Self::Unhealthy(_) => 1,
        }
    }

    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Protocol { source, .. } => source.hint(),
            Self::Party { source, .. } => source.hint(),
            Self::Roles { code, .. } if [Cause::PeerGone.code(), Cause::Storage.code()].contains(code) => Some(
                "nothing is lost: spnn simulate --resume with this run directory goes on from the last checkpoints",
            ),
            Self::Config { .. } => Some("a commented example is in the README under 'Four terminals'"),
            _ => None,
        }
    }
}

fn data_code(error: &DataError) -> u8 {
    match error {
        DataError::Write { .. } | DataError::Scratch { .. } => Cause::Storage.code(),
        _ => Cause::Data.code(),
    }
}
