//! All roles in one process.

use super::Transport;
use crate::channel::{Channel, Link};
use crate::error::Ending;
use crate::{ProtocolError, Role};
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use spnn_crypto::{PairKey, SecretRng};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// A network in memory: every two roles that ask for each other are joined by a pipe.
pub struct MemoryNetwork {
    shared: Arc<Shared>,
}

struct Shared {
    buffer: usize,
    timeout: Duration,
    secret: PairKey,
    /// What a role has left for another one that has not come yet, by who left it and for whom.
    waiting: Mutex<BTreeMap<(Role, Role), Left>>,
}

/// The other end of a pipe, and how to say that it was taken.
type Left = (Channel, oneshot::Sender<()>);

/// One role's end of an in-memory network.
pub struct MemoryTransport {
    me: Role,
    shared: Arc<Shared>,
    links: Vec<Weak<dyn Link>>,
}

impl MemoryNetwork {
    /// A network whose pipes hold `buffer` bytes each way, and whose channels wait `timeout` for a message unless told
    /// otherwise.
    ///
    /// Tests use 64 bytes, so that two peers that both send before they receive hang at once instead of on a customer's
    /// larger batch.
    #[must_use]
    pub fn new(buffer: usize, timeout: Duration, rng: &mut SecretRng) -> Self {
        let secret = PairKey::new(rng.bytes32());
        Self { shared: Arc::new(Shared { buffer, timeout, secret, waiting: Mutex::default() }) }
    }

    /// The end of `me`.
    #[must_use]
    pub fn transport(&self, me: Role) -> MemoryTransport {
        MemoryTransport { me, shared: Arc::clone(&self.shared), links: Vec::new() }
    }
}

impl Shared {
    /// The two ends of a pipe between `a` and `b`, first that of `a`.
    fn pipe(&self, a: Role, b: Role) -> [Channel; 2] {
        let (first, second) = (a.min(b), a.max(b));
        let key = PairKey::new(self.secret.digest(&format!("{first} {second}"), &[]));
        let (one, other) = tokio::io::duplex(self.buffer);
        let (one_says, one_hears) = watch::channel(None);
        let (other_says, other_hears) = watch::channel(None);
        [(b, one, one_says, other_hears), (a, other, other_says, one_hears)].map(|(peer, stream, ours, theirs)| {
            let link = Arc::new(MemoryLink { key: key.clone(), ours, theirs });
            let (reader, writer) = tokio::io::split(stream);
            Channel::new(peer, link, Box::new(reader), Box::new(writer), self.timeout)
        })
    }
}

#[async_trait]
impl Transport for MemoryTransport {
    fn me(&self) -> Role {
        self.me
    }

    async fn connect(&mut self, peer: Role, deadline: Duration) -> Result<Channel, ProtocolError> {
        let (channel, taken) = {
            let mut waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            // One whose owner has gone meanwhile is as good as none.
            let left = waiting.remove(&(peer, self.me));
            match left.and_then(|(channel, taken)| taken.send(()).is_ok().then_some(channel)) {
                Some(channel) => (channel, None),
                None => {
                    let [ours, theirs] = self.shared.pipe(self.me, peer);
                    let (taken, is_taken) = oneshot::channel();
                    waiting.insert((self.me, peer), (theirs, taken));
                    (ours, Some(is_taken))
                }
            }
        };
        if let Some(is_taken) = taken
            && !matches!(tokio::time::timeout(deadline, is_taken).await, Ok(Ok(())))
        {
            return Err(ProtocolError::NotJoined { peer, waited: deadline });
        }
        self.links.push(Arc::downgrade(channel.link()));
        Ok(channel)
    }

    fn leave(&mut self, ending: Ending) {
        self.links.drain(..).filter_map(|link| link.upgrade()).for_each(|link| link.end(ending));
    }
}

struct MemoryLink {
    key: PairKey,
    ours: watch::Sender<Option<Ending>>,
    theirs: watch::Receiver<Option<Ending>>,
}

impl Link for MemoryLink {
    fn end(&self, ending: Ending) {
        self.ours.send_if_modified(|said| said.is_none().then(|| *said = Some(ending)).is_some());
    }

    fn peer_ending(&self) -> Option<Ending> {
        *self.theirs.borrow()
    }

    fn down(&self) -> BoxFuture<'_, ()> {
        let mut theirs = self.theirs.clone();
        // It ends as well when the other end is dropped.
        Box::pin(async move { drop(theirs.wait_for(Option::is_some).await) })
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
