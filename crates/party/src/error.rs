//! What can go wrong at a party.

use crate::data::DataError;
use spnn_protocol::{Cause, Ending, ProtocolError, Role};
use thiserror::Error;

/// What went wrong at a party.
#[derive(Debug, Error)]
pub enum PartyError {
    /// Its own data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Its labels do not fit the loss.
    #[error("labels: {0}")]
    Labels(spnn_nn::ModelError),
    /// What the data must be for this task.
    #[error("{0}")]
    Unfit(String),
    /// The session.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

impl PartyError {
    /// What to tell peers, as role `me`. Nothing of the data.
    #[must_use]
    pub fn ending(&self, me: Role) -> Ending {
        match self {
            Self::Data(DataError::Write { .. } | DataError::Scratch { .. }) => {
                Ending { cause: Cause::Storage, culprit: me }
            }
            Self::Data(_) | Self::Labels(_) | Self::Unfit(_) => Ending { cause: Cause::Data, culprit: me },
            Self::Protocol(e) => e.ending(me),
        }
    }

    /// The exit code of a process that ends with this error.
    #[must_use]
    pub fn exit_code(&self, me: Role) -> u8 {
        match self {
            Self::Protocol(e) => e.exit_code(me),
            other => other.ending(me).cause.code(),
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Protocol(e) => e.hint(),
            Self::Data(_) => Some("nothing of this file was sent to anyone; mend it and start again"),
            Self::Labels(_) | Self::Unfit(_) => None,
        }
    }
}
