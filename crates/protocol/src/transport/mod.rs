//! How channels come about: over QUIC, or in memory for tests and debugging.

mod memory;
mod quic;
mod relay;

pub use memory::{MemoryNetwork, MemoryTransport};
pub use quic::{Congestion, OwnCertificate, QuicOptions, QuicTransport, TransportTuning};

use crate::{Channel, Ending, ProtocolError, Role};
use async_trait::async_trait;
use std::time::Duration;

/// Makes one role's channels. Who dials, waits or goes through a relay is the transport's matter.
#[async_trait]
pub trait Transport: Send {
    /// The role this transport speaks for.
    fn me(&self) -> Role;

    /// The channel to `peer`, whose role is certain.
    ///
    /// # Errors
    /// [`ProtocolError`] if it cannot be had within `deadline`.
    async fn connect(&mut self, peer: Role, deadline: Duration) -> Result<Channel, ProtocolError>;

    /// Closes all channels that [`connect`](Self::connect) gave, and tells every peer why. Peers can be connected to
    /// again.
    fn leave(&mut self, ending: Ending);
}
