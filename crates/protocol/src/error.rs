//! What can go wrong between roles.

use crate::contract::ContractError;
use crate::message::{CodecError, Kind};
use crate::{Difference, Role, Step, Task};
use spnn_ckks::CkksError;
use spnn_crypto::paillier::{KeyError, PaillierError, ProofError};
use spnn_crypto::{DecodeError, EncodeError, FixedPointError, NotAPoint, SystemRandomnessError};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use thiserror::Error;

/// Why a session ended, in one word: the exit code of a process, and what it tells its peers when it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Everything was done.
    Done,
    /// Configurations do not fit each other.
    Configuration,
    /// Data are missing, malformed or not aligned.
    Data,
    /// A peer could not be reached or was refused.
    Network,
    /// A peer broke the protocol.
    Protocol,
    /// Something could not be written.
    Storage,
    /// A peer is gone; the run can be resumed.
    PeerGone,
    /// It was asked to stop, and goes on when it is started again.
    Stopped,
    /// A listener did not let this role in: it does not take part, or is connected already.
    TurnedAway,
}

impl Cause {
    const ALL: [Self; 9] = [
        Self::Done,
        Self::Configuration,
        Self::Data,
        Self::Network,
        Self::Protocol,
        Self::Storage,
        Self::PeerGone,
        Self::Stopped,
        Self::TurnedAway,
    ];

    /// Close code of connections, and exit code of the process that is at fault.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Configuration => 2,
            Self::Data => 3,
            Self::Network => 4,
            Self::Protocol => 5,
            Self::Storage => 74,
            Self::PeerGone => 75,
            Self::TurnedAway => 80,
            Self::Stopped => 81,
        }
    }

    /// The cause of a code.
    #[must_use]
    pub fn from_code(code: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|c| u64::from(c.code()) == code)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "it is done",
            Self::Configuration => "configurations differ",
            Self::Data => "its data were refused",
            Self::Network => "a peer could not be reached",
            Self::Protocol => "a peer broke the protocol",
            Self::Storage => "it could not write its files",
            Self::PeerGone => "a peer is gone",
            Self::Stopped => "it was stopped, and goes on when it is started again",
            Self::TurnedAway => "turned away: not expected here, or connected already with the same certificate",
        })
    }
}

/// What a role tells its peers when it goes: why, and whose doing it was. Never what was in the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub cause: Cause,
    /// The role at the root of it.
    pub culprit: Role,
}

impl Ending {
    /// Reads what a peer sent; anything malformed is a protocol error of that peer.
    #[must_use]
    pub fn parse(code: u64, culprit: &[u8], from: Role) -> Self {
        let named = std::str::from_utf8(culprit).ok().and_then(|c| Role::from_str(c).ok());
        match (Cause::from_code(code), named) {
            (Some(cause), Some(culprit)) => Self { cause, culprit },
            _ => Self { cause: Cause::Protocol, culprit: from },
        }
    }
}

/// What went wrong, where, with whom; what was expected and what was found.
#[derive(Debug, Error)]
pub enum ProtocolError {
    /// Another kind of message, or another step, than is due.
    #[error("{peer} sent {found} where {expected} was due")]
    Unexpected {
        /// Who.
        peer: Role,
        /// Kind and step due.
        expected: String,
        /// Kind and step received.
        found: String,
    },
    /// A tensor of another shape than is due.
    #[error("{peer} sent a {} of shape {found:?} in {step}; expected {expected:?}", kind.name())]
    Shape {
        /// Who.
        peer: Role,
        /// When.
        step: Step,
        /// What.
        kind: Kind,
        /// Rows and columns due.
        expected: [u32; 2],
        /// Rows and columns received.
        found: [u32; 2],
    },
    /// A body of another length than is due.
    #[error("{peer} announced a {} of {found} bytes in {step}; expected {expected}", kind.name())]
    BodyLength {
        /// Who.
        peer: Role,
        /// When.
        step: Step,
        /// What.
        kind: Kind,
        /// What is due, in bytes.
        expected: String,
        /// Announced length.
        found: u64,
    },
    /// NaN or infinity from a peer.
    #[error("{peer} sent NaN or infinity in its {} of {step}, row {row}, column {column}", kind.name())]
    NotFinite {
        /// Who.
        peer: Role,
        /// When.
        step: Step,
        /// What.
        kind: Kind,
        /// Row of the batch.
        row: usize,
        /// Column.
        column: usize,
    },
    /// Bytes that are no message.
    #[error("{peer} sent bytes that are no message: {source}")]
    Codec {
        /// Who.
        peer: Role,
        /// What is wrong.
        source: CodecError,
    },
    /// The sessions differ.
    #[error("{peer} has another session: {difference}")]
    SessionMismatch {
        /// Who.
        peer: Role,
        /// In what.
        difference: Difference,
    },
    /// The tasks differ.
    #[error("{peer} is here to {theirs}, this role to {ours}")]
    TaskMismatch {
        /// Who.
        peer: Role,
        /// Our task.
        ours: Task,
        /// The peer's task.
        theirs: Task,
    },
    /// The incarnations differ, or one was used before.
    #[error("{peer} proposes incarnation {found}; expected {expected}")]
    Incarnation {
        /// Who.
        peer: Role,
        /// What would be right.
        expected: String,
        /// What was proposed.
        found: u64,
    },
    /// Parties have different numbers of rows.
    #[error("{peer} has {found} rows, {reference} has {expected}: align the files first")]
    RowCount {
        /// Who.
        peer: Role,
        /// Compared with whom.
        reference: Role,
        /// Rows of the reference.
        expected: u32,
        /// Rows of the peer.
        found: u32,
    },
    /// The ordered ids differ.
    #[error("the ids of {peer} are not those of this party in the same order: align the files first")]
    Misaligned {
        /// Who.
        peer: Role,
    },
    /// A party has more ids than the session allows.
    #[error("{who} has {found} ids; the session allows {max} (alignment.ids_max)")]
    TooManyIds {
        /// Who.
        who: Role,
        /// How many.
        found: usize,
        /// How many at most.
        max: u32,
    },
    /// An id of our own has nothing in it.
    #[error("the id of row {row}, or a part of it, is empty once white space is removed")]
    EmptyId {
        /// Row of the data, from 1.
        row: usize,
    },
    /// Two rows of our own have the same id.
    #[error("rows {first} and {second} have the same id, once written as the session's [alignment] says")]
    DuplicateId {
        /// Row of the data, from 1.
        first: usize,
        /// Row of the data, from 1.
        second: usize,
    },
    /// A peer sent what is no blinded id.
    #[error("{peer} sent no valid blinded ids: {source}")]
    BlindedId {
        /// Who.
        peer: Role,
        /// Which and why.
        source: NotAPoint,
    },
    /// No id is common to all parties.
    #[error("no id is common to all parties")]
    NothingInCommon,
    /// The opened sum lies outside the agreed bound.
    #[error(
        "the opened first layer of {step} lies outside ±h1_bound at row {row}, column {column}: a mask did not cancel, a party sent a wrong share, or sharing.h1_bound is too small"
    )]
    OpenedOutOfBound {
        /// When.
        step: Step,
        /// Row of the batch.
        row: usize,
        /// Column of H1.
        column: usize,
    },
    /// A value of our own may not be encoded.
    #[error(
        "this party's first-layer product is NaN, infinite or too large in {step}, row {row}, column {column}: lower the learning rate, or set data.clip"
    )]
    OwnValue {
        /// When.
        step: Step,
        /// Row of the batch.
        row: usize,
        /// Column of H1.
        column: usize,
    },
    /// A feature of our own may not be encoded.
    #[error("feature {column} of this party is NaN, infinite or too large to encode in row {row}: set data.clip")]
    OwnFeature {
        /// Row of the aligned data.
        row: usize,
        /// Column among this party's features.
        column: usize,
    },
    /// A product of our own could wrap in the ring.
    #[error(
        "this party's first-layer product can reach {bound:.3e} in {step}, column {column}, and may reach {limit:.3e} at most: lower the learning rate, set data.clip, or use fewer beaver.fraction_bits"
    )]
    OwnProduct {
        /// When.
        step: Step,
        /// Column of H1.
        column: usize,
        /// Largest feature times the sum of the column's weights, in magnitude.
        bound: f64,
        /// What still fits.
        limit: f64,
    },
    /// A result of our own is NaN or infinite.
    #[error("{what} is NaN or infinite in {step}: lower the learning rate, or set data.clip")]
    Diverged {
        /// When.
        step: Step,
        /// What.
        what: &'static str,
    },
    /// The Paillier key of the session cannot be used.
    #[error("the Paillier key of {peer} is refused: {source}")]
    PaillierKey {
        /// Whose.
        peer: Role,
        /// What is wrong with it.
        source: KeyError,
    },
    /// Its owner did not prove that the key is sound.
    #[error("the Paillier key of {peer} comes without a valid proof: {source}")]
    PaillierProof {
        /// Whose.
        peer: Role,
        /// What is wrong with the proof.
        source: ProofError,
    },
    /// Ciphertexts of a step cannot be used.
    #[error("the ciphertexts of {peer} in {step} are refused: {source}")]
    Paillier {
        /// Whose.
        peer: Role,
        /// When.
        step: Step,
        /// What is wrong with them.
        source: PaillierError,
    },
    /// A ciphertext of an encrypted query, or a key for it, cannot be used.
    #[error("{peer} sent in {step} what is refused as ciphertext or key {number}: {reason}")]
    Ciphertext {
        /// Who.
        peer: Role,
        /// When.
        step: Step,
        /// Which, from 0.
        number: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// What is opened after a blind evaluation cannot be right.
    #[error(
        "the opened z of {step} lies outside ±{bound:.1e} at row {row}, column {column}: features of a row of this batch are far beyond those in training, or a party sent a wrong share; set data.clip"
    )]
    BlindOutOfBound {
        /// When.
        step: Step,
        /// Row of the batch, or one of several that this makes unreadable.
        row: usize,
        /// Column of z.
        column: usize,
        /// What the server expects at most.
        bound: f64,
    },
    /// Layers that cannot be evaluated on ciphertexts.
    #[error("the server's layers cannot be evaluated on ciphertexts: {reason}")]
    Blind {
        /// Why.
        reason: String,
    },
    /// Arithmetic on ciphertexts refused what it was given.
    #[error("computing on ciphertexts failed in {step}: {source}")]
    Encryption {
        /// When.
        step: Step,
        /// Why.
        source: CkksError,
    },
    /// A message of our own does not fit a frame.
    #[error("the {} of {step} would be {bytes} bytes long; a message holds at most 4 GiB: lower train.batch_size", kind.name())]
    OwnMessage {
        /// When.
        step: Step,
        /// What.
        kind: Kind,
        /// How long it would be.
        bytes: usize,
    },
    /// A mask was about to cover a second value. A bug here; nothing was sent.
    #[error("the masks of {step} were used already")]
    MaskReuse {
        /// When.
        step: Step,
    },
    /// A peer went without a word.
    #[error("{peer} is gone (in {step}): {reason}")]
    PeerGone {
        /// Who.
        peer: Role,
        /// When.
        step: Step,
        /// What the connection says.
        reason: String,
    },
    /// A peer ended the session.
    #[error("{peer} ended the session in {step}: {} at {}", ending.cause, ending.culprit)]
    PeerEnded {
        /// Who.
        peer: Role,
        /// When.
        step: Step,
        /// Why.
        ending: Ending,
    },
    /// A peer did not answer in time.
    #[error("{peer} did not send {expected} within {} s (in {step})", seconds(waited))]
    PeerTimeout {
        /// Who.
        peer: Role,
        /// When.
        step: Step,
        /// What was due.
        expected: String,
        /// How long we waited.
        waited: Duration,
    },
    /// A peer did not join in time.
    #[error("{peer} did not join within {} s", seconds(waited))]
    NotJoined {
        /// Who.
        peer: Role,
        /// How long we waited.
        waited: Duration,
    },
    /// A peer cannot be reached, or one side refused the other.
    #[error("cannot connect to {peer} at {address}: {reason}")]
    Connect {
        /// Who.
        peer: Role,
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// The peer's certificate is not the one that this role pinned.
    #[error("the certificate of {peer} has key {found}, but this role pins {expected}")]
    WrongKey {
        /// Who.
        peer: Role,
        /// Pinned fingerprint.
        expected: String,
        /// Fingerprint of the key presented.
        found: String,
    },
    /// Certificates or keys of our own do not work.
    #[error("{}: {reason}", file.display())]
    Identity {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Our address cannot be used.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// A protocol that this role refuses.
    #[error(
        "the session asks for first_layer = \"{kind}\", which protects nothing; this role refuses it unless its own configuration says allow_unprotected = true"
    )]
    Unprotected {
        /// Which.
        kind: crate::FirstLayerKind,
    },
    /// The session itself does not make sense.
    #[error(transparent)]
    Session(#[from] crate::SessionError),
    /// This role does not take part under the session's contract.
    #[error(transparent)]
    Contract(#[from] ContractError),
    /// The fixed-point format does not work.
    #[error(transparent)]
    FixedPoint(#[from] FixedPointError),
    /// The system has no randomness.
    #[error(transparent)]
    Randomness(#[from] SystemRandomnessError),
    /// Something could not be written or read back.
    #[error("{}: {source}", file.display())]
    Storage {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Roles hold no checkpoint of one position.
    #[error("no checkpoint is held by all roles: {offers}")]
    NoCommonCheckpoint {
        /// What each role holds.
        offers: String,
    },
    /// A checkpoint does not fit what is to go on from it.
    #[error("the checkpoint does not fit: {reason}")]
    Checkpoint {
        /// What it has, and what was expected.
        reason: String,
    },
    /// This role was asked to stop.
    #[error("stopped as asked")]
    Stopped,
    /// The layers of this role failed.
    #[error("{step}: {source}")]
    Model {
        /// When.
        step: Step,
        /// Why.
        source: spnn_nn::ModelError,
    },
    /// A saved model does not fit.
    #[error("{}: {reason}", file.display())]
    SavedModel {
        /// Which file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
}

impl ProtocolError {
    /// A checkpoint that does not fit.
    #[must_use]
    pub fn checkpoint(reason: &dyn fmt::Display) -> Self {
        Self::Checkpoint { reason: reason.to_string() }
    }

    /// What to tell peers, as role `me`.
    #[must_use]
    pub fn ending(&self, me: Role) -> Ending {
        let (cause, culprit) = match self {
            Self::Unexpected { peer, .. }
            | Self::Shape { peer, .. }
            | Self::BodyLength { peer, .. }
            | Self::NotFinite { peer, .. }
            | Self::Codec { peer, .. }
            | Self::PaillierKey { peer, .. }
            | Self::PaillierProof { peer, .. }
            | Self::Paillier { peer, .. }
            | Self::Ciphertext { peer, .. }
            | Self::BlindedId { peer, .. }
            | Self::Incarnation { peer, .. } => (Cause::Protocol, *peer),
            Self::WrongKey { peer, .. } => (Cause::Protocol, *peer),
            Self::OpenedOutOfBound { .. } | Self::MaskReuse { .. } => (Cause::Protocol, me),
            Self::SessionMismatch { peer, .. } | Self::TaskMismatch { peer, .. } => (Cause::Configuration, *peer),
            Self::RowCount { peer, .. } | Self::Misaligned { peer } => (Cause::Data, *peer),
            Self::TooManyIds { who, .. } => (Cause::Data, *who),
            Self::Blind { .. } => (Cause::Configuration, me),
            Self::Encryption { .. } => (Cause::Protocol, me),
            Self::OwnValue { .. }
            | Self::BlindOutOfBound { .. }
            | Self::OwnFeature { .. }
            | Self::OwnProduct { .. }
            | Self::EmptyId { .. }
            | Self::DuplicateId { .. }
            | Self::NothingInCommon
            | Self::Diverged { .. } => (Cause::Data, me),
            Self::PeerGone { peer, .. } | Self::PeerTimeout { peer, .. } | Self::NotJoined { peer, .. } => {
                (Cause::PeerGone, *peer)
            }
            Self::PeerEnded { ending, .. } => (ending.cause, ending.culprit),
            Self::Connect { peer, .. } => (Cause::Network, *peer),
            Self::Listen { .. } => (Cause::Network, me),
            Self::Identity { .. }
            | Self::Unprotected { .. }
            | Self::Session(_)
            | Self::Contract(_)
            | Self::FixedPoint(_)
            | Self::OwnMessage { .. }
            | Self::NoCommonCheckpoint { .. }
            | Self::Checkpoint { .. }
            | Self::SavedModel { .. }
            | Self::Model { .. } => (Cause::Configuration, me),
            Self::Randomness(_) | Self::Storage { .. } => (Cause::Storage, me),
            Self::Stopped => (Cause::Stopped, me),
        };
        Ending { cause, culprit }
    }

    /// The exit code of a process that ends with this error. Where a peer ended the session for a reason of its own,
    /// this role did nothing wrong and can take part again: 75.
    #[must_use]
    pub fn exit_code(&self, me: Role) -> u8 {
        match self {
            Self::PeerEnded { ending: Ending { cause: Cause::Configuration, .. }, .. } => Cause::Configuration.code(),
            Self::PeerEnded { ending: Ending { cause: Cause::TurnedAway, .. }, .. } => Cause::Network.code(),
            Self::PeerEnded { .. } => Cause::PeerGone.code(),
            Self::Stopped => Cause::Done.code(),
            other => other.ending(me).cause.code(),
        }
    }

    /// Whether the session can go on once all roles are there again.
    #[must_use]
    pub fn is_interruption(&self) -> bool {
        match self {
            Self::PeerGone { .. } | Self::PeerTimeout { .. } => true,
            Self::PeerEnded { ending: Ending { cause, .. }, .. } => match cause {
                Cause::PeerGone | Cause::Storage | Cause::Network | Cause::Stopped | Cause::Done => true,
                Cause::Configuration | Cause::Data | Cause::Protocol | Cause::TurnedAway => false,
            },
            // One of the two had not heard of the newest start yet.
            Self::Incarnation { peer, .. } => *peer != Role::Coordinator,
            _ => false,
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::SessionMismatch { .. } => "all roles must start from the same session file: compare the copies",
            Self::TaskMismatch { .. } => "start all roles with the same --task",
            Self::RowCount { .. } | Self::Misaligned { .. } => {
                "every party needs the same rows in the same order, by id; let the session align them with an [alignment] section"
            }
            Self::NothingInCommon => {
                "do all parties write ids alike? The session's [alignment] section says how ids are made comparable"
            }
            Self::DuplicateId { .. } => "each id may be there once: keep one row of each",
            Self::PeerGone { .. } | Self::PeerEnded { .. } | Self::PeerTimeout { .. } => {
                "look at that role's own log for the reason, then start it and this role again: they go on from their checkpoints"
            }
            Self::NotJoined { .. } => "start that role, or raise join_timeout_s if it needs longer",
            Self::Connect { .. } => "check address, firewall (UDP) and that both certificates come from the same CA",
            Self::WrongKey { .. } => "ask that organisation for its fingerprint by another way (spnn pki show)",
            Self::Unexpected { .. }
            | Self::Shape { .. }
            | Self::BodyLength { .. }
            | Self::NotFinite { .. }
            | Self::Codec { .. }
            | Self::PaillierKey { .. }
            | Self::PaillierProof { .. }
            | Self::Paillier { .. }
            | Self::Ciphertext { .. }
            | Self::BlindedId { .. }
            | Self::Incarnation { .. } => "that role runs another or a faulty program; nothing it sent was used",
            Self::Storage { .. } => {
                "free space on that disk or mend its permissions, then start this role again: it goes on from its last checkpoint"
            }
            Self::NoCommonCheckpoint { .. } => {
                "bring back the 'checkpoints' directory that is missing; or remove that directory at every role to start from nothing"
            }
            Self::Contract(e) => return e.hint(),
            Self::Listen { .. } => "is another process using the address?",
            _ => return None,
        })
    }
}

/// `kind` in `step`, as error messages name it.
pub(crate) fn kind_in_step(kind: Kind, step: Step) -> String {
    format!("{} of {step}", kind.name())
}

/// Places an encode error of a `[n, width]` tensor.
pub(crate) fn own_value(step: Step, width: usize, error: EncodeError) -> ProtocolError {
    ProtocolError::OwnValue { step, row: error.position / width.max(1), column: error.position % width.max(1) }
}

/// Places an encode error of rows of a party's features, of which the first is row `start`.
pub(crate) fn own_feature(start: usize, features: usize, error: EncodeError) -> ProtocolError {
    let (row, column) = (error.position / features.max(1), error.position % features.max(1));
    ProtocolError::OwnFeature { row: start + row, column }
}

/// Places a decode error of a `[n, width]` tensor.
pub(crate) fn out_of_bound(step: Step, width: usize, error: DecodeError) -> ProtocolError {
    ProtocolError::OpenedOutOfBound { step, row: error.position / width.max(1), column: error.position % width.max(1) }
}

/// A time as people read it: tenths of seconds at most.
fn seconds(time: &Duration) -> String {
    let tenths = (time.as_secs_f64() * 10.0).round() / 10.0;
    tenths.to_string()
}
