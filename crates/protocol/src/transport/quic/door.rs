//! What the listening side does with who arrives.

use super::credentials::Credentials;
use super::{close, peer_identity};
use crate::error::{Cause, Ending};
use crate::identity::Fingerprint;
use crate::transport::relay::{Half, Relay};
use crate::{PartyId, ProtocolError, Role};
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

/// A listener's door: who may come in, and where they are led.
pub(super) struct Door {
    pub(super) me: Role,
    pub(super) expect: Vec<Role>,
    pub(super) pins: BTreeMap<Role, Fingerprint>,
    pub(super) keep_alive: Duration,
    pub(super) present: Mutex<BTreeMap<Role, Connection>>,
    pub(super) relay: Option<Relay>,
    pub(super) arrivals: Arc<Arrivals>,
    pub(super) credentials: Arc<Credentials>,
}

/// Who came in at the door and was not asked for yet: the last connection of each role.
#[derive(Default)]
pub(super) struct Arrivals {
    waiting: Mutex<BTreeMap<Role, Arrival>>,
    pub(super) changed: Notify,
}

pub(super) struct Arrival {
    pub(super) connection: Connection,
    pub(super) streams: (SendStream, RecvStream),
    pub(super) violation: Violation,
}

/// What a peer did that made the door close its connection.
pub(super) type Violation = Arc<OnceLock<String>>;

/// What a stream is for: its first four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// The channel between the two ends of this connection.
    Session,
    /// To be joined with the stream of that party to this one.
    Relay(PartyId),
}

const ACCEPTED: u8 = 1;
/// A peer has this long to say what its stream is for.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn accept(endpoint: Endpoint, door: Arc<Door>) {
    while let Some(incoming) = endpoint.accept().await {
        let door = Arc::clone(&door);
        tokio::spawn(async move {
            let address = incoming.remote_address();
            door.credentials.refresh();
            let connection = match incoming.accept_with(door.credentials.server_config()) {
                Ok(connecting) => connecting.await,
                Err(e) => Err(e),
            };
            let connection = match connection {
                Ok(connection) => connection,
                Err(e) => return warn!(%address, "refused a connection: {e}"),
            };
            match door.receive(&connection).await {
                Ok(()) => {}
                Err(Refusal::TurnedAway(reason)) => {
                    warn!(%address, "turned away: {reason}");
                    close(&connection, Ending { cause: Cause::TurnedAway, culprit: door.me });
                }
                Err(Refusal::Violation(peer, reason)) => {
                    warn!(%address, "closed: {peer} sent {reason}");
                    close(&connection, Ending { cause: Cause::Protocol, culprit: peer });
                }
            }
        });
    }
}

/// Why the door closes a connection.
enum Refusal {
    /// This peer has no business here.
    TurnedAway(String),
    /// It has, and misbehaves.
    Violation(Role, String),
}

impl Door {
    /// Serves one connection: its session stream, and at the coordinator its relayed streams.
    async fn receive(&self, connection: &Connection) -> Result<(), Refusal> {
        let (peer, presented) = peer_identity(connection).map_err(Refusal::TurnedAway)?;
        if !self.expect.contains(&peer) {
            return Err(Refusal::TurnedAway(format!("{peer} does not take part here")));
        }
        if self.pins.get(&peer).is_some_and(|pin| *pin != presented) {
            let reason = format!("{peer} has key {presented}, which is not the pinned one");
            return Err(Refusal::TurnedAway(reason));
        }
        let earlier = self.present.lock().unwrap_or_else(PoisonError::into_inner).get(&peer).cloned();
        if let Some(earlier) = earlier
            && is_alive(&earlier, self.keep_alive).await
        {
            let reason = format!("{peer} is connected already: a second process with its certificate");
            return Err(Refusal::TurnedAway(reason));
        }
        let earlier = self.present.lock().unwrap_or_else(PoisonError::into_inner).insert(peer, connection.clone());
        // Its process died without a word, or its network changed: this one is its successor.
        if let Some(earlier) = earlier.filter(|c| c.close_reason().is_none()) {
            close(&earlier, Ending { cause: Cause::PeerGone, culprit: peer });
        }
        info!(%peer, "connected");
        let violation = Violation::default();
        self.serve(peer, connection, &violation).await.map_err(|reason| {
            // Told before the connection closes, so that whoever waits on it finds the reason.
            Refusal::Violation(peer, violation.get_or_init(|| reason).clone())
        })
    }

    async fn serve(&self, peer: Role, connection: &Connection, violation: &Violation) -> Result<(), String> {
        let mut has_channel = false;
        loop {
            let (mut send, mut recv) = match connection.accept_bi().await {
                Ok(streams) => streams,
                Err(_) => return Ok(()),
            };
            let mut bytes = [0; 4];
            match tokio::time::timeout(OPENING_TIMEOUT, recv.read_exact(&mut bytes)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) if connection.close_reason().is_some() => return Ok(()),
                Ok(Err(_)) => return Err("a stream that ends before it says what it is for".into()),
                Err(_) => return Err("a stream that does not say what it is for".into()),
            }
            match (Opening::decode(bytes), &self.relay, peer) {
                (Some(Opening::Session), _, _) if !has_channel => {
                    has_channel = true;
                    accepted(&mut send).await;
                    let violation = Arc::clone(violation);
                    let arrival = Arrival { connection: connection.clone(), streams: (send, recv), violation };
                    self.arrivals.put(peer, arrival);
                }
                (Some(Opening::Relay(to)), Some(relay), Role::Party(from))
                    if self.expect.contains(&Role::Party(to)) =>
                {
                    accepted(&mut send).await;
                    relay.join(from, to, Half { connection: connection.clone(), send, recv });
                }
                _ => return Err("a stream that this role does not serve".into()),
            }
        }
    }
}

/// Whether the peer still speaks on a connection: it does so four times in every idle timeout.
async fn is_alive(connection: &Connection, keep_alive: Duration) -> bool {
    let heard = connection.stats().udp_rx.datagrams;
    let deadline = Instant::now() + keep_alive * 5 / 2;
    while Instant::now() < deadline {
        if connection.close_reason().is_some() {
            return false;
        }
        if connection.stats().udp_rx.datagrams > heard {
            return true;
        }
        tokio::time::sleep(keep_alive / 20).await;
    }
    false
}

async fn accepted(send: &mut SendStream) {
    // If the peer is gone the next read or write says so.
    let _ = send.write_all(&[ACCEPTED]).await;
}

impl Arrivals {
    fn put(&self, peer: Role, arrival: Arrival) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(peer, arrival);
        // The role waits for one peer at a time.
        self.changed.notify_one();
    }

    /// Whoever waits and is still there.
    pub(super) fn take_any(&self) -> Option<(Role, Arrival)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, arrival| arrival.connection.close_reason().is_none());
        waiting.pop_first()
    }

    pub(super) fn take(&self, peer: Role) -> Option<Arrival> {
        let arrival = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer)?;
        // One that has gone again while nobody waited for it may come once more, unless it said why it does not.
        let step = crate::Step::SETUP;
        let Some(reason) = arrival.connection.close_reason() else { return Some(arrival) };
        let comes_again = match reason {
            ConnectionError::ApplicationClosed(close) => {
                let ending = Ending::parse(close.error_code.into_inner(), &close.reason, peer);
                ProtocolError::PeerEnded { peer, step, ending }.is_interruption()
            }
            _ => true,
        };
        (!comes_again).then_some(arrival)
    }
}

impl Opening {
    fn encode(self) -> [u8; 4] {
        match self {
            Self::Session => [1, 0, 0, 0],
            Self::Relay(PartyId(to)) => {
                let [low, high] = to.to_le_bytes();
                [2, 0, low, high]
            }
        }
    }

    fn decode(bytes: [u8; 4]) -> Option<Self> {
        match bytes {
            [1, 0, 0, 0] => Some(Self::Session),
            [2, 0, low, high] => Some(Self::Relay(PartyId(u16::from_le_bytes([low, high])))),
            _ => None,
        }
    }
}

/// Opens a stream, says what it is for and waits until the peer agrees.
pub(super) async fn open(connection: &Connection, opening: Opening) -> std::io::Result<(SendStream, RecvStream)> {
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(&opening.encode()).await?;
    let mut answer = [0];
    recv.read_exact(&mut answer).await.map_err(std::io::Error::other)?;
    if answer != [ACCEPTED] {
        return Err(std::io::Error::other("the peer refused the stream"));
    }
    Ok((send, recv))
}
