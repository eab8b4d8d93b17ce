//! A link below a channel whose bytes a test makes by hand.

use futures_util::future::BoxFuture;
use spnn::crypto::PairKey;
use spnn::protocol::{Ending, Link, ProtocolError};

/// It knows nothing of its peer.
pub(crate) struct Bare;

impl Link for Bare {
    fn end(&self, _ending: Ending) {}
    fn peer_ending(&self) -> Option<Ending> {
        None
    }
    fn down(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
    fn down_reason(&self) -> Option<String> {
        None
    }
    fn wire_bytes_sent(&self) -> u64 {
        0
    }
    fn pair_key(&self, _label: &'static str) -> Result<PairKey, ProtocolError> {
        Ok(PairKey::new([0; 32]))
    }
}
