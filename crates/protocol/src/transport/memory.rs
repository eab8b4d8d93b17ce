//! All roles in one process.

use super::Transport;
use crate::channel::{Channel, Link};
use crate::error::Ending;
use crate::{ProtocolError, Role};
use async_trait::async_trait;
use spnn_crypto::{PairKey, SecretRng};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// One role's end of an in-memory network.
pub struct MemoryTransport {
    me: Role,
    channels: BTreeMap<Role, Channel>,
}

/// An in-memory network of `roles`, every two of them joined by a pipe of `buffer` bytes each way.
///
/// Tests use 64 bytes, so that two peers that both send before they receive hang at once instead of on a customer's
/// larger batch.
#[must_use]
pub fn memory_network(roles: &[Role], buffer: usize, timeout: Duration, rng: &mut SecretRng) -> Vec<MemoryTransport> {
    let mut ends: Vec<_> = roles.iter().map(|&me| MemoryTransport { me, channels: BTreeMap::new() }).collect();
    for i in 0..roles.len() {
        for j in i + 1..roles.len() {
            let (a, b) = tokio::io::duplex(buffer);
            let key = PairKey::new(rng.bytes32());
            let endings = [Arc::new(Mutex::new(None)), Arc::new(Mutex::new(None))];
            for (me, peer, stream, ours, theirs) in [(i, j, a, 0, 1), (j, i, b, 1, 0)] {
                let link = MemoryLink {
                    key: key.clone(),
                    ours: Arc::clone(&endings[ours]),
                    theirs: Arc::clone(&endings[theirs]),
                };
                let (reader, writer) = tokio::io::split(stream);
                let channel = Channel::new(roles[peer], Arc::new(link), Box::new(reader), Box::new(writer), timeout);
                ends[me].channels.insert(roles[peer], channel);
            }
        }
    }
    ends
}

#[async_trait]
impl Transport for MemoryTransport {
    fn me(&self) -> Role {
        self.me
    }

    async fn connect(&mut self, peer: Role, deadline: Duration) -> Result<Channel, ProtocolError> {
        self.channels.remove(&peer).ok_or(ProtocolError::NotJoined { peer, waited: deadline })
    }
}

struct MemoryLink {
    key: PairKey,
    ours: Arc<Mutex<Option<Ending>>>,
    theirs: Arc<Mutex<Option<Ending>>>,
}

impl Link for MemoryLink {
    fn end(&self, ending: Ending) {
        self.ours.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(ending);
    }

    fn peer_ending(&self) -> Option<Ending> {
        *self.theirs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn down_reason(&self) -> Option<String> {
        None
    }

    fn wire_bytes_sent(&self) -> u64 {
        0
    }

    fn pair_key(&self, label: &'static str) -> Result<PairKey, ProtocolError> {
        Ok(PairKey::new(self.key.digest(label, &[])))
    }
}
