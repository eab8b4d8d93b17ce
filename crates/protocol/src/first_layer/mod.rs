//! Protocols for the first layer: the parties compute `H1 = X_1·W_1 + … + X_k·W_k`, `[n, h]`, and open it to the server.
//!
//! | protocol | the server learns | a party learns of another |
//! | --- | --- | --- |
//! | [`plain`] | every party's product `X_i·W_i` | nothing |
//! | [`sharing`] | the sum `H1` | nothing |
//! | [`paillier`] | the sum `H1` | nothing |
//!
//! A protocol is one file with a side for each role. To add one: write the file, add its kind to
//! [`FirstLayerKind`] and an arm to the two functions below; the conformance suite then runs on
//! it.

pub mod paillier;
pub mod plain;
pub mod sharing;

#[cfg(test)]
pub(crate) mod conformance;

use crate::{FirstLayerKind, Network, Phase, ProtocolError, SessionConfig, Step};
use async_trait::async_trait;
use ndarray::ArrayView2;
use spnn_crypto::{MaskContext, PairKey, RingElement, Sign};
use std::collections::BTreeMap;

/// A party's side.
#[async_trait]
pub trait PartySide: Send {
    /// Does what can be done for `step` before its inputs are known, while the party waits for the network anyway.
    fn prepare(&mut self, step: Step, rows: usize);

    /// Contributes `x·w`, with `x: [n, d_i]` and `w: [d_i, h]`, to the sum of `step`.
    async fn forward(
        &mut self,
        network: &mut Network,
        step: Step,
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

/// This party's side of the session's protocol.
///
/// # Errors
/// [`ProtocolError`] if the session's numbers cannot work, or a key to another party cannot be had.
pub async fn party_side(
    session: &SessionConfig,
    incarnation: u64,
    network: &mut Network,
) -> Result<Box<dyn PartySide>, ProtocolError> {
    Ok(match session.first_layer {
        FirstLayerKind::Plain => Box::new(plain::Party::new(session)),
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
        FirstLayerKind::Paillier => Box::new(paillier::Server::set_up(session, incarnation, network).await?),
        FirstLayerKind::Sharing => match session.sharing.ring_bits {
            32 => Box::new(sharing::Server::<u32>::new(session)?),
            _ => Box::new(sharing::Server::<u64>::new(session)?),
        },
    })
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
fn pair_keys(session: &SessionConfig, network: &mut Network) -> Result<Vec<(Sign, PairKey)>, ProtocolError> {
    let me = network.me();
    let sign = |peer| if me < peer { Sign::Plus } else { Sign::Minus };
    session.party_roles().filter(|&peer| peer != me).map(|peer| Ok((sign(peer), network.pair_key(peer)?))).collect()
}

/// Where a session's masks come from, and the promise that the masks of a step cover one value: going back to a step in
/// the same incarnation would open the difference of two.
struct MaskSteps {
    session: [u8; 32],
    incarnation: u64,
    /// Last step of each phase whose masks were used.
    used: BTreeMap<Phase, Step>,
}

impl MaskSteps {
    fn new(session: &SessionConfig, incarnation: u64) -> Self {
        Self { session: session.digest(), incarnation, used: BTreeMap::new() }
    }

    /// What the masks of `step` are derived under. A step has one masked tensor, number 0.
    fn context(&self, step: Step) -> MaskContext {
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
    fn use_once(&mut self, step: Step) -> Result<(), ProtocolError> {
        if self.used.get(&step.phase).is_some_and(|last| *last >= step) {
            return Err(ProtocolError::MaskReuse { step });
        }
        self.used.insert(step.phase, step);
        Ok(())
    }
}
