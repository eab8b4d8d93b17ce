//! Where a session is: phase, epoch, mini-batch.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What the rows of a step are used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Before the first step: joining.
    Setup,
    /// Weights are updated.
    Train,
    /// Loss and metrics on test rows; nothing is updated.
    Evaluate,
    /// Scores of new rows for the label holder.
    Predict,
}

impl Phase {
    /// Byte on the wire and in mask derivation.
    #[must_use]
    pub fn tag(self) -> u8 {
        match self {
            Self::Setup => 0,
            Self::Train => 1,
            Self::Evaluate => 2,
            Self::Predict => 3,
        }
    }

    /// The phase of a byte.
    #[must_use]
    pub fn from_tag(tag: u8) -> Option<Self> {
        [Self::Setup, Self::Train, Self::Evaluate, Self::Predict].into_iter().find(|p| p.tag() == tag)
    }
}

/// One mini-batch of a session. Every message of the batch carries it and is checked against what is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step {
    /// What the rows are used for.
    pub phase: Phase,
    /// Epoch, from 1; in `Evaluate` the epoch after which it happens.
    pub epoch: u32,
    /// Mini-batch within the epoch, from 0.
    pub batch: u32,
}

impl Step {
    /// The step of all messages before the first batch and after the last.
    pub const SETUP: Self = Self { phase: Phase::Setup, epoch: 0, batch: 0 };

    /// Queries of an epoch of a service.
    pub const QUERIES_PER_EPOCH: u32 = 1024;

    /// The step of the query of that number, from 0, since all roles of a service came together.
    #[must_use]
    pub fn of_query(number: u64) -> Self {
        let per_epoch = u64::from(Self::QUERIES_PER_EPOCH);
        let epoch = u32::try_from(number / per_epoch + 1).unwrap_or(u32::MAX);
        Self { phase: Phase::Predict, epoch, batch: (number % per_epoch) as u32 }
    }

    /// Whether an epoch of a service ends with this query.
    #[must_use]
    pub fn ends_epoch_of_service(self) -> bool {
        self.batch + 1 == Self::QUERIES_PER_EPOCH
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.phase {
            Phase::Setup => f.write_str("set-up"),
            Phase::Train => write!(f, "epoch {} batch {}", self.epoch, self.batch),
            Phase::Evaluate => write!(f, "evaluation after epoch {} batch {}", self.epoch, self.batch),
            Phase::Predict => write!(f, "prediction batch {}", self.batch),
        }
    }
}

/// Between two mini-batches of training: where a checkpoint was made and where training goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Epoch of the next mini-batch, from 1; one above the session's epochs when all are done.
    pub epoch: u32,
    /// The next mini-batch of the epoch, from 0. The number of batches if only the epoch's evaluation is left.
    pub batch: u32,
}

impl Position {
    /// Before the first mini-batch.
    pub const START: Self = Self { epoch: 1, batch: 0 };

    /// How far a service has come that all roles began for the `incarnation`th time. It has no end to come near; that it
    /// ran at all is what counts when it is interrupted again.
    #[must_use]
    pub fn of_service(incarnation: u64) -> Self {
        Self { epoch: u32::try_from(incarnation).unwrap_or(u32::MAX), batch: 0 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {} batch {}", self.epoch, self.batch)
    }
}
