//! Protocols for the first layer: the parties compute `H1 = X_1·W_1 + … + X_k·W_k`, `[n, h]`, and open it to the server.
//!
//! | protocol | the server learns | a party learns of another |
//! | --- | --- | --- |
//! | [`plain`] | every party's product `X_i·W_i` | nothing |
//! | [`sharing`] | the sum `H1` | nothing |
//! | [`beaver`] | the sum `H1` | nothing, unless it is in league with the dealer: then everything |
//! | [`paillier`] | the sum `H1` | nothing |
//!
//! A protocol is one file with a side for each role. To add one: write the file, add its kind to
//! [`FirstLayerKind`] and an arm to the functions below; the conformance suite then runs on it.

pub mod beaver;
pub mod paillier;
pub mod plain;
pub mod sharing;

#[cfg(test)]
pub(crate) mod conformance;

use crate::contract::Leak;
use crate::{Network, Phase, ProtocolError, Sending, SessionConfig, SessionError, Step};
use async_trait::async_trait;
use ndarray::{ArrayView2, ArrayViewMut2};
use serde::{Deserialize, Serialize};
use spnn_crypto::{MaskContext, PairKey, RingElement, Sign};
use std::collections::BTreeMap;
use std::fmt;

/// How the first layer is computed together. The table above says who learns what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirstLayerKind {
    /// In the clear: the reference for tests and baselines. The server sees each party's product.
    Plain,
    /// Pairwise-masked additive shares: the server sees the sum only.
    Sharing,
    /// Shares of features and weights multiplied by a dealer's triples: the server sees the sum only.
    Beaver,
    /// Aggregation under the server's Paillier key, party by party: the server sees the sum only.
    Paillier,
}

impl fmt::Display for FirstLayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Sharing => "sharing",
            Self::Beaver => "beaver",
            Self::Paillier => "paillier",
        })
    }
}

/// A party's side.
#[async_trait]
pub trait PartySide: Send {
    /// Does what can be done for `step` over the given rows before its weights are known, while the party waits for the
    /// network anyway.
    fn prepare(&mut self, step: Step, rows: &[u32]);

    /// Contributes `x·w`, with `x: [n, d_i]` and `w: [d_i, h]`, to the sum of `step`. `rows` says which rows of the
    /// aligned data `x` holds.
    async fn forward(
        &mut self,
        network: &mut Network,
        step: Step,
        rows: &[u32],
        x: ArrayView2<'_, f32>,
        w: ArrayView2<'_, f32>,
    ) -> Result<(), ProtocolError>;
}

/// The server's side.
#[async_trait]
pub trait ServerSide: Send {
    /// Opens `H1: [rows, h]` of `step` to the server.
    async fn open(
        &mut self,
        network: &mut Network,
        step: Step,
        rows: usize,
    ) -> Result<ArrayView2<'_, f32>, ProtocolError>;
}

/// A party's own features of all rows, which need not be in memory together.
pub struct OwnFeatures<'a> {
    /// How many rows there are.
    pub rows: u32,
    /// Makes the features of some of them, `[rows, d_i]`.
    pub gather: &'a mut Gather<'a>,
}

/// Makes a party's features of the given rows, `[rows, d_i]`.
pub type Gather<'a> = dyn FnMut(&[u32], ArrayViewMut2<'_, f32>) -> Result<(), ProtocolError> + 'a;

/// This party's side of the session's protocol, with the number of features of every party and its own features.
///
/// # Errors
/// [`ProtocolError`] if the session's numbers cannot work, a key to another party cannot be had, or `own` fails.
pub async fn party_side(
    session: &SessionConfig,
    incarnation: u64,
    network: &mut Network,
    features: &[usize],
    own: OwnFeatures<'_>,
) -> Result<Box<dyn PartySide>, ProtocolError> {
    Ok(match session.first_layer {
        FirstLayerKind::Plain => Box::new(plain::Party::new(session)),
        FirstLayerKind::Beaver => Box::new(beaver::Party::set_up(session, incarnation, network, features, own).await?),
        FirstLayerKind::Paillier => Box::new(paillier::Party::set_up(session, incarnation, network).await?),
        FirstLayerKind::Sharing => match session.sharing.ring_bits {
            32 => sharing_party::<u32>(session, incarnation, network)?,
            _ => sharing_party::<u64>(session, incarnation, network)?,
        },
    })
}

/// The server's side of the session's protocol.
///
/// # Errors
/// [`ProtocolError`] if the session's numbers cannot work, or a party is gone.
pub async fn server_side(
    session: &SessionConfig,
    incarnation: u64,
    network: &mut Network,
) -> Result<Box<dyn ServerSide>, ProtocolError> {
    Ok(match session.first_layer {
        FirstLayerKind::Plain => Box::new(plain::Server::new(session)),
        FirstLayerKind::Beaver => Box::new(beaver::server(session)?),
        FirstLayerKind::Paillier => Box::new(paillier::Server::set_up(session, incarnation, network).await?),
        FirstLayerKind::Sharing => match session.sharing.ring_bits {
            32 => Box::new(sharing::Server::<u32>::new(session)?),
            _ => Box::new(sharing::Server::<u64>::new(session)?),
        },
    })
}

/// The dealer's side, if the session's protocol has one: its set-up with `parties`, in order, which have `features`
/// features together.
///
/// # Errors
/// [`ProtocolError`] if a party is gone.
pub async fn dealer_side(
    session: &SessionConfig,
    incarnation: u64,
    features: usize,
    parties: &mut [Sending<'_>],
) -> Result<Option<beaver::Dealer>, ProtocolError> {
    match session.first_layer {
        FirstLayerKind::Plain | FirstLayerKind::Sharing | FirstLayerKind::Paillier => Ok(None),
        FirstLayerKind::Beaver => beaver::Dealer::set_up(session, incarnation, features, parties).await.map(Some),
    }
}

/// Bytes of first-layer messages that each party sends in a step of `rows` rows, headers included, where all have
/// `features` features together.
#[must_use]
pub fn step_bytes(session: &SessionConfig, features: u64, rows: u64) -> u64 {
    match session.first_layer {
        FirstLayerKind::Plain => plain::step_bytes(session, rows),
        FirstLayerKind::Sharing => sharing::step_bytes(session, rows),
        FirstLayerKind::Beaver => beaver::step_bytes(session, features, rows),
        FirstLayerKind::Paillier => paillier::step_bytes(session, rows),
    }
}

/// Bytes of first-layer messages that each party sends to other parties before the first step, over `rows` rows.
#[must_use]
pub fn set_up_bytes(session: &SessionConfig, features: u64, rows: u64) -> u64 {
    match session.first_layer {
        FirstLayerKind::Plain | FirstLayerKind::Sharing | FirstLayerKind::Paillier => 0,
        FirstLayerKind::Beaver => beaver::set_up_bytes(session, features, rows),
    }
}

/// What a session with this protocol does not prevent; each protocol's file has its list.
pub(crate) fn leaks(kind: FirstLayerKind) -> &'static [Leak] {
    match kind {
        FirstLayerKind::Plain => plain::LEAKS,
        FirstLayerKind::Sharing => sharing::LEAKS,
        FirstLayerKind::Beaver => beaver::LEAKS,
        FirstLayerKind::Paillier => paillier::LEAKS,
    }
}

/// Checks the protocol's own part of a session.
pub(crate) fn validate(session: &SessionConfig) -> Result<(), SessionError> {
    match session.first_layer {
        FirstLayerKind::Plain => {}
        FirstLayerKind::Sharing => session.sharing.fixed_point(session.parties).map(|_| ())?,
        FirstLayerKind::Beaver => session.beaver.fixed_points(session.parties).map(|_| ())?,
        FirstLayerKind::Paillier => {
            session.paillier.packing(session.parties)?;
            session.paillier.fixed_point(session.parties).map(|_| ())?;
        }
    }
    Ok(())
}

fn sharing_party<R: RingElement>(
    session: &SessionConfig,
    incarnation: u64,
    network: &mut Network,
) -> Result<Box<dyn PartySide>, ProtocolError> {
    let keys = pair_keys(session, network)?;
    Ok(Box::new(sharing::Party::<R>::new(session, incarnation, keys)?))
}

/// The keys that this party has in common with each other one, and whether it adds or subtracts their masks.
pub(crate) fn pair_keys(session: &SessionConfig, network: &mut Network) -> Result<Vec<(Sign, PairKey)>, ProtocolError> {
    let me = network.me();
    let sign = |peer| if me < peer { Sign::Plus } else { Sign::Minus };
    session.party_roles().filter(|&peer| peer != me).map(|peer| Ok((sign(peer), network.pair_key(peer)?))).collect()
}

/// Where a session's masks come from, and the promise that the masks of a step cover one value: going back to a step in
/// the same incarnation would open the difference of two.
pub(crate) struct MaskSteps {
    session: [u8; 32],
    incarnation: u64,
    /// Last step of each phase whose masks were used.
    used: BTreeMap<Phase, Step>,
}

impl MaskSteps {
    pub(crate) fn new(session: &SessionConfig, incarnation: u64) -> Self {
        Self { session: session.digest(), incarnation, used: BTreeMap::new() }
    }

    /// What the masks of `step` are derived under. A step has one masked tensor, number 0.
    pub(crate) fn context(&self, step: Step) -> MaskContext {
        MaskContext {
            session: self.session,
            incarnation: self.incarnation,
            phase: step.phase.tag(),
            epoch: step.epoch,
            batch: step.batch,
            tensor: 0,
        }
    }

    /// Marks the masks of `step` as used.
    pub(crate) fn use_once(&mut self, step: Step) -> Result<(), ProtocolError> {
        if self.used.get(&step.phase).is_some_and(|last| *last >= step) {
            return Err(ProtocolError::MaskReuse { step });
        }
        self.used.insert(step.phase, step);
        Ok(())
    }
}
