//! Protocols for the first layer: the parties compute `H1 = X_1·W_1 + … + X_k·W_k`, `[n, h]`, and open it to the server.
//!
//! | protocol | the server learns | a party learns of another |
//! | --- | --- | --- |
//! | [`plain`] | every party's product `X_i·W_i` | nothing |
//! | [`sharing`] | the sum `H1` | nothing |
//!
//! A protocol is one file with a side for each role. To add one: write the file, add its kind to
//! [`FirstLayerKind`](crate::FirstLayerKind) and an arm to the two functions below; the conformance suite then runs on
//! it.

pub mod plain;
pub mod sharing;

#[cfg(test)]
mod conformance;

use crate::{FirstLayerKind, Network, ProtocolError, Role, SessionConfig, Step};
use async_trait::async_trait;
use ndarray::ArrayView2;
use spnn_crypto::RingElement;

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
pub fn party_side(
    session: &SessionConfig,
    incarnation: u64,
    network: &mut Network,
) -> Result<Box<dyn PartySide>, ProtocolError> {
    Ok(match session.first_layer {
        FirstLayerKind::Plain => Box::new(plain::Party::new(session)),
        FirstLayerKind::Sharing => match session.sharing.ring_bits {
            32 => sharing_party::<u32>(session, incarnation, network)?,
            _ => sharing_party::<u64>(session, incarnation, network)?,
        },
    })
}

/// The server's side of the session's protocol.
///
/// # Errors
/// [`ProtocolError`] if the session's numbers cannot work.
pub fn server_side(session: &SessionConfig) -> Result<Box<dyn ServerSide>, ProtocolError> {
    Ok(match session.first_layer {
        FirstLayerKind::Plain => Box::new(plain::Server::new(session)),
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
    let me = network.me();
    let others: Vec<Role> = session.party_roles().filter(|&r| r != me).collect();
    let keys =
        others.into_iter().map(|peer| Ok((peer, network.pair_key(peer)?))).collect::<Result<_, ProtocolError>>()?;
    Ok(Box::new(sharing::Party::<R>::new(session, incarnation, me, keys)?))
}
