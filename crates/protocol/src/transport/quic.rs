//! Channels over QUIC with mutual TLS 1.3.
//!
//! Listeners (coordinator, server) accept the roles they expect; parties only dial out, unless two of them agree that one
//! listens for the other. Each channel is one
//! bidirectional stream that begins with four bytes from the dialing side ([`Opening`]) and one byte back.

use super::Transport;
use super::relay::{Half, NotMet, Relay, RelayLink, meet};
use crate::channel::{Channel, LAST_WORDS, Link, within};
use crate::error::{Cause, Ending};
use crate::identity::{Fingerprint, Identity, role_and_fingerprint};
use crate::message::ALPN;
use crate::{PartyId, ProtocolError, Role};
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, ConnectionError, Endpoint, EndpointConfig, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use spnn_crypto::PairKey;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

/// Congestion controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Congestion {
    /// The default of quinn: best on links without random loss.
    #[default]
    Cubic,
    /// Holds its rate under random loss, at the price of overflowing short queues.
    Bbr,
}

/// How a role uses its network. Nothing here changes results.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransportTuning {
    /// Congestion controller.
    pub congestion: Congestion,
    /// Largest UDP payload to try, in bytes. The path is probed, so a value above what it carries costs a few probes
    /// only. The internet carries 1,452, networks with jumbo frames 8,900, loopback 60,000. Larger packets take less
    /// processor time for the same bytes.
    pub mtu_max: u16,
    /// Bandwidth-delay product to allow for, in bytes: the windows are never below it. The default covers 100 Mbit/s at
    /// 100 ms and 1 Gbit/s at 10 ms.
    pub window: u32,
    /// Congestion window at the start, in bytes. It hardly grows later: messages end before it is full. What is sent at
    /// once over a long way is paced by it; `docs/wan.md` shows what it is worth.
    pub initial_window: u32,
    /// A peer that is silent for so long is gone. Keep-alives are sent four times as often, and once a second at least.
    pub idle_timeout_s: f32,
}

impl Default for TransportTuning {
    fn default() -> Self {
        Self {
            congestion: Congestion::Cubic,
            mtu_max: 1452,
            window: 1 << 21,
            initial_window: 512 << 10,
            idle_timeout_s: 20.0,
        }
    }
}

impl TransportTuning {
    fn idle_timeout(&self) -> Duration {
        Duration::from_secs_f32(self.idle_timeout_s.clamp(0.5, 600.0))
    }

    fn keep_alive(&self) -> Duration {
        (self.idle_timeout() / 4).min(KEEP_ALIVE_MAX)
    }
}

/// What a role needs to take part in a QUIC network.
#[derive(Clone, Debug)]
pub struct QuicOptions {
    /// Address to accept peers on; parties have none.
    pub listen: Option<SocketAddr>,
    /// Peers to dial, as `host:port`.
    pub dial: BTreeMap<Role, String>,
    /// Peers that may dial in.
    pub expect: Vec<Role>,
    /// Keys that peers must have. A party talks to no other party without one.
    pub pins: BTreeMap<Role, Fingerprint>,
    /// How long a peer may take to answer.
    pub peer_timeout: Duration,
    /// Use of the network.
    pub tuning: TransportTuning,
}

/// A role's end of a QUIC network.
pub struct QuicTransport {
    identity: Identity,
    options: QuicOptions,
    endpoint: Endpoint,
    /// Connections this role dialed.
    dialed: BTreeMap<Role, (Connection, Arc<dyn Link>)>,
    arrivals: Arc<Arrivals>,
    /// Connections of the channels that were given out.
    in_use: Vec<Connection>,
}

/// Who came in at the door and was not asked for yet: the last connection of each role.
#[derive(Default)]
struct Arrivals {
    waiting: Mutex<BTreeMap<Role, Arrival>>,
    changed: Notify,
}

struct Arrival {
    connection: Connection,
    streams: (SendStream, RecvStream),
    violation: Violation,
}

impl Arrivals {
    fn put(&self, peer: Role, arrival: Arrival) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(peer, arrival);
        // The role waits for one peer at a time.
        self.changed.notify_one();
    }

    fn take(&self, peer: Role) -> Option<Arrival> {
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

/// What a peer did that made the door close its connection.
type Violation = Arc<OnceLock<String>>;

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
/// Pause after the first attempt to reach a peer that is not up yet; it doubles.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// The system takes at most 64 KiB at a time, and quinn makes up to ten packets of them. Larger packets go one by one.
const SEGMENTED_MTU_MAX: u16 = 6500;
/// How long a peer may wait with an acknowledgement.
const MAX_ACK_DELAY: Duration = Duration::from_millis(2);
/// Whether a peer that comes a second time is still there the first time is known after two of these.
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(1);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

impl Opening {
    pub(super) fn encode(self) -> [u8; 4] {
        match self {
            Self::Session => [1, 0, 0, 0],
            Self::Relay(PartyId(to)) => {
                let [low, high] = to.to_le_bytes();
                [2, 0, low, high]
            }
        }
    }

    pub(super) fn decode(bytes: [u8; 4]) -> Option<Self> {
        match bytes {
            [1, 0, 0, 0] => Some(Self::Session),
            [2, 0, low, high] => Some(Self::Relay(PartyId(u16::from_le_bytes([low, high])))),
            _ => None,
        }
    }
}

impl QuicTransport {
    /// Opens the role's UDP socket, and begins to accept peers if it listens.
    ///
    /// # Errors
    /// [`ProtocolError::Listen`] or [`ProtocolError::Identity`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(identity: Identity, options: QuicOptions) -> Result<Self, ProtocolError> {
        let address = options.listen.unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
        let listen =
            |e: &dyn std::fmt::Display| ProtocolError::Listen { address: address.to_string(), reason: e.to_string() };
        let socket = UdpSocket::bind(address).map_err(|e| listen(&e))?;
        enlarge_buffers(&socket);
        let mut endpoint_config = EndpointConfig::default();
        endpoint_config.max_udp_payload_size(options.tuning.mtu_max.max(1452)).map_err(|e| listen(&e))?;
        let server_config = match options.listen {
            Some(_) => Some(server_config(&identity, &options)?),
            None => None,
        };
        let runtime = Arc::new(quinn::TokioRuntime);
        let mut endpoint = Endpoint::new(endpoint_config, server_config, socket, runtime).map_err(|e| listen(&e))?;
        endpoint.set_default_client_config(client_config(&identity, &options)?);
        let arrivals = Arc::new(Arrivals::default());
        if options.listen.is_some() {
            let door = Door {
                me: identity.role(),
                expect: options.expect.clone(),
                keep_alive: options.tuning.keep_alive(),
                present: Mutex::default(),
                pins: options.pins.clone(),
                relay: (identity.role() == Role::Coordinator).then(Relay::default),
                arrivals: Arc::clone(&arrivals),
            };
            tokio::spawn(accept(endpoint.clone(), Arc::new(door)));
        }
        Ok(Self { identity, options, endpoint, dialed: BTreeMap::new(), arrivals, in_use: Vec::new() })
    }

    /// The address that peers reach this role at.
    ///
    /// # Errors
    /// [`ProtocolError::Listen`] if the system does not say.
    pub fn local_address(&self) -> Result<SocketAddr, ProtocolError> {
        self.endpoint
            .local_addr()
            .map_err(|e| ProtocolError::Listen { address: "the local address".into(), reason: e.to_string() })
    }

    /// Tells every peer why this role goes, and closes.
    pub fn end(&self, ending: Ending) {
        self.endpoint.close(VarInt::from(u32::from(ending.cause.code())), ending.culprit.to_string().as_bytes());
    }

    /// Waits until peers have been told that the connections are closed, for at most `limit`.
    pub async fn wait_closed(self, limit: Duration) {
        // Peers must hear why we go; a peer that is gone itself must not hold us.
        let _ = tokio::time::timeout(limit, self.endpoint.wait_idle()).await;
    }

    async fn dial(&mut self, peer: Role, address: &str, deadline: Instant) -> Result<Channel, ProtocolError> {
        let mut last = None;
        let mut pause = RETRY_MIN;
        while Instant::now() < deadline {
            match self.attempt(peer, address, deadline).await {
                Ok(channel) => return Ok(channel),
                Err(Attempt::Final(reason)) => return Err(connect_error(peer, address, reason)),
                Err(Attempt::WrongKey { expected, found }) => return Err(wrong_key(peer, expected, found)),
                Err(Attempt::Ended(ending)) => {
                    return Err(ProtocolError::PeerEnded { peer, step: crate::Step::SETUP, ending });
                }
                Err(Attempt::Again(reason)) => {
                    debug!(%peer, address, reason, "not reached yet");
                    last = Some(reason);
                    tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
        Err(connect_error(peer, address, last.unwrap_or_else(|| "no answer in time".into())))
    }

    async fn attempt(&mut self, peer: Role, address: &str, deadline: Instant) -> Result<Channel, Attempt> {
        let again = |e: &dyn std::fmt::Display| Attempt::Again(e.to_string());
        let deadline = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
        let mut found = tokio::net::lookup_host(address).await.map_err(|e| again(&e))?;
        let found = found.next().ok_or_else(|| again(&"the name has no address"))?;
        let name = peer.certificate_name();
        let connecting = self.endpoint.connect(found, &name).map_err(|e| Attempt::Final(e.to_string()))?;
        let connection =
            timeout_at(deadline, connecting).await.map_err(|_| again(&"no answer"))?.map_err(|e| refused(peer, &e))?;
        if let Some(pin) = self.options.pins.get(&peer) {
            let (_, presented) = peer_identity(&connection).map_err(Attempt::Final)?;
            if *pin != presented {
                return Err(Attempt::WrongKey { expected: *pin, found: presented });
            }
        }
        let opened = open(&connection, Opening::Session);
        let (send, recv) = match timeout_at(deadline, opened).await {
            Err(_) => return Err(again(&"no answer to the opening")),
            Ok(Ok(streams)) => streams,
            // The refusal of our certificate arrives only now: in TLS 1.3 the client is done before the server has
            // looked at it.
            Ok(Err(e)) => return Err(connection.close_reason().map_or_else(|| again(&e), |r| refused(peer, &r))),
        };
        let violation = Violation::default();
        let link: Arc<dyn Link> = Arc::new(QuicLink { peer, connection: connection.clone(), violation });
        self.in_use.push(connection.clone());
        self.dialed.insert(peer, (connection, Arc::clone(&link)));
        Ok(Channel::new(peer, link, Box::new(recv), Box::new(send), self.options.peer_timeout))
    }

    async fn arrival(&mut self, peer: Role, waited: Duration, deadline: Instant) -> Result<Channel, ProtocolError> {
        let arrivals = Arc::clone(&self.arrivals);
        loop {
            let changed = arrivals.changed.notified();
            if let Some(Arrival { connection, streams: (send, recv), violation }) = arrivals.take(peer) {
                self.in_use.push(connection.clone());
                let link = Arc::new(QuicLink { peer, connection, violation });
                return Ok(Channel::new(peer, link, Box::new(recv), Box::new(send), self.options.peer_timeout));
            }
            if timeout_at(deadline, changed).await.is_err() {
                return Err(ProtocolError::NotJoined { peer, waited });
            }
        }
    }

    async fn through_relay(&mut self, peer: PartyId, deadline: Instant) -> Result<Channel, ProtocolError> {
        let role = Role::Party(peer);
        let address = "the coordinator's relay";
        let pin = self.options.pins.get(&role).copied().ok_or_else(|| {
            let reason = "this party's configuration has no fingerprint for it under [peers]";
            connect_error(role, address, reason.into())
        })?;
        let (connection, link) = self
            .dialed
            .get(&Role::Coordinator)
            .cloned()
            .ok_or_else(|| connect_error(role, address, "not connected to the coordinator".into()))?;
        let meeting = async {
            let (send, recv) =
                open(&connection, Opening::Relay(peer)).await.map_err(|e| NotMet::Gone(e.to_string()))?;
            meet(&self.identity, role, tokio::io::join(recv, send)).await
        };
        let met = timeout_at(deadline, meeting).await.unwrap_or_else(|_| Err(NotMet::Gone("no answer in time".into())));
        let (stream, presented, key) = match met {
            Ok(met) => met,
            Err(not_met) => {
                // The other party may have gone, and the coordinator is about to say why.
                let _ = within(LAST_WORDS, link.down()).await;
                let step = crate::Step::SETUP;
                return Err(match (link.peer_ending(), not_met) {
                    (Some(ending), _) => ProtocolError::PeerEnded { peer: Role::Coordinator, step, ending },
                    (None, NotMet::Refused(reason)) => connect_error(role, address, reason),
                    (None, NotMet::Gone(reason)) => ProtocolError::PeerGone { peer: role, step, reason },
                });
            }
        };
        if presented != pin {
            return Err(wrong_key(role, pin, presented));
        }
        let (reader, writer) = tokio::io::split(stream);
        let link = Arc::new(RelayLink::new(link, key, presented));
        Ok(Channel::new(role, link, Box::new(reader), Box::new(writer), self.options.peer_timeout))
    }
}

#[async_trait]
impl Transport for QuicTransport {
    fn me(&self) -> Role {
        self.identity.role()
    }

    async fn connect(&mut self, peer: Role, waited: Duration) -> Result<Channel, ProtocolError> {
        let deadline = Instant::now() + waited;
        match (peer, self.options.dial.get(&peer).cloned()) {
            (_, Some(address)) => self.dial(peer, &address, deadline).await,
            (_, None) if self.options.expect.contains(&peer) => self.arrival(peer, waited, deadline).await,
            (Role::Party(id), None) if matches!(self.me(), Role::Party(_)) => self.through_relay(id, deadline).await,
            (_, None) => self.arrival(peer, waited, deadline).await,
        }
    }

    fn leave(&mut self, ending: Ending) {
        self.in_use.drain(..).for_each(|connection| close(&connection, ending));
        self.dialed.clear();
    }
}

/// Asks for room for a few batches' worth of packets. With the usual 208 KiB a burst from several parties overflows the
/// socket even on loopback, and the tail of a message then waits for a retransmission timer.
fn enlarge_buffers(socket: &UdpSocket) {
    use nix::sys::socket::{setsockopt, sockopt};
    const WANTED: usize = 4 << 20;
    let receive = setsockopt(socket, sockopt::RcvBuf, &WANTED);
    let send = setsockopt(socket, sockopt::SndBuf, &WANTED);
    // The system caps what it grants without an error; nothing but speed depends on it.
    if let Err(e) = receive.and(send) {
        debug!("UDP buffers stay as they are: {e}");
    }
}

/// Why one attempt to connect failed.
enum Attempt {
    /// The peer may not be up yet.
    Again(String),
    /// Trying again will not help.
    Final(String),
    /// The peer said why.
    Ended(Ending),
    /// The peer has another key than the pinned one.
    WrongKey { expected: Fingerprint, found: Fingerprint },
}

fn refused(peer: Role, error: &ConnectionError) -> Attempt {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            Attempt::Ended(Ending::parse(close.error_code.into_inner(), &close.reason, peer))
        }
        // The peer's alert about our certificate.
        ConnectionError::ConnectionClosed(close) => match alert(u64::from(close.error_code)) {
            Some(alert) => Attempt::Final(format!("{peer} refused this role's certificate or version: {alert}")),
            None => Attempt::Again(error.to_string()),
        },
        // Our own verdict on the peer's certificate.
        ConnectionError::TransportError(e) if alert(u64::from(e.code)).is_some() => {
            Attempt::Final(format!("its certificate was refused: {}", e.reason))
        }
        _ => Attempt::Again(error.to_string()),
    }
}

/// What a TLS alert inside a QUIC error code (RFC 9001, section 4.8) means.
fn alert(code: u64) -> Option<String> {
    let alert = code.checked_sub(0x100).filter(|a| *a < 0x100)?;
    let meaning = match alert {
        40 => "handshake failure",
        42 => "bad certificate",
        44 => "certificate revoked",
        45 => "certificate expired",
        46 => "certificate unknown",
        48 => "unknown authority (another CA signed it)",
        51 => "its signature does not verify (another CA of the same name signed it)",
        116 => "a certificate is required",
        120 => {
            let ours = String::from_utf8_lossy(ALPN);
            return Some(format!("it speaks another version of the protocol; this one is {ours}: use the same spnn"));
        }
        _ => "TLS alert",
    };
    Some(format!("{meaning} (TLS alert {alert})"))
}

fn wrong_key(peer: Role, expected: Fingerprint, found: Fingerprint) -> ProtocolError {
    ProtocolError::WrongKey { peer, expected: expected.to_string(), found: found.to_string() }
}

fn connect_error(peer: Role, address: &str, reason: String) -> ProtocolError {
    ProtocolError::Connect { peer, address: address.to_owned(), reason }
}

/// Opens a stream, says what it is for and waits until the peer agrees.
async fn open(connection: &Connection, opening: Opening) -> std::io::Result<(SendStream, RecvStream)> {
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(&opening.encode()).await?;
    let mut answer = [0];
    recv.read_exact(&mut answer).await.map_err(std::io::Error::other)?;
    if answer != [ACCEPTED] {
        return Err(std::io::Error::other("the peer refused the stream"));
    }
    Ok((send, recv))
}

/// A listener's door: who may come in, and where they are led.
struct Door {
    me: Role,
    expect: Vec<Role>,
    pins: BTreeMap<Role, Fingerprint>,
    keep_alive: Duration,
    present: Mutex<BTreeMap<Role, Connection>>,
    relay: Option<Relay>,
    arrivals: Arc<Arrivals>,
}

async fn accept(endpoint: Endpoint, door: Arc<Door>) {
    while let Some(incoming) = endpoint.accept().await {
        let door = Arc::clone(&door);
        tokio::spawn(async move {
            let address = incoming.remote_address();
            let connection = match incoming.await {
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

fn peer_identity(connection: &Connection) -> Result<(Role, Fingerprint), String> {
    let identity = connection.peer_identity().ok_or("no certificate")?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| "no X.509 certificate")?;
    let leaf = chain.first().ok_or("no certificate")?;
    role_and_fingerprint(leaf)
}

fn close(connection: &Connection, ending: Ending) {
    connection.close(VarInt::from(u32::from(ending.cause.code())), ending.culprit.to_string().as_bytes());
}

struct QuicLink {
    peer: Role,
    connection: Connection,
    violation: Violation,
}

impl Link for QuicLink {
    fn end(&self, ending: Ending) {
        close(&self.connection, ending);
    }

    fn peer_ending(&self) -> Option<Ending> {
        match self.connection.close_reason()? {
            ConnectionError::ApplicationClosed(close) => {
                Some(Ending::parse(close.error_code.into_inner(), &close.reason, self.peer))
            }
            _ => None,
        }
    }

    fn violation(&self) -> Option<String> {
        self.violation.get().cloned()
    }

    fn down(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { drop(self.connection.closed().await) })
    }

    fn down_reason(&self) -> Option<String> {
        self.connection.close_reason().map(|r| r.to_string())
    }

    fn wire_bytes_sent(&self) -> u64 {
        self.connection.stats().udp_tx.bytes
    }

    fn fingerprint(&self) -> Option<Fingerprint> {
        peer_identity(&self.connection).ok().map(|(_, fingerprint)| fingerprint)
    }

    fn pair_key(&self, label: &'static str) -> Result<PairKey, ProtocolError> {
        let mut bytes = Zeroizing::new([0; 32]);
        self.connection
            .export_keying_material(bytes.as_mut(), label.as_bytes(), &[])
            .map_err(|_| connect_error(self.peer, "an open connection", "TLS gave no exporter key".into()))?;
        Ok(PairKey::new(*bytes))
    }
}

fn client_config(identity: &Identity, options: &QuicOptions) -> Result<quinn::ClientConfig, ProtocolError> {
    let tls = QuicClientConfig::try_from(identity.client_config(&[ALPN])?).map_err(|e| no_initial_suite(&e))?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport_config(options)));
    Ok(config)
}

fn server_config(identity: &Identity, options: &QuicOptions) -> Result<quinn::ServerConfig, ProtocolError> {
    let tls = QuicServerConfig::try_from(identity.server_config(&[ALPN])?).map_err(|e| no_initial_suite(&e))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::new(transport_config(options)));
    // Peers are few and known; unauthenticated handshakes beyond this are dropped, not queued.
    config.max_incoming(64);
    Ok(config)
}

fn no_initial_suite(e: &dyn std::fmt::Display) -> ProtocolError {
    ProtocolError::Listen { address: "QUIC".into(), reason: e.to_string() }
}

fn transport_config(options: &QuicOptions) -> quinn::TransportConfig {
    let tuning = options.tuning;
    let mut config = quinn::TransportConfig::default();
    // At most 600 s, so this is exact.
    let idle_ms = u32::try_from(tuning.idle_timeout().as_millis()).unwrap_or(u32::MAX);
    // One session stream and one relayed stream for each other party.
    let streams = u32::try_from(options.expect.len().max(options.pins.len()) + 1).unwrap_or(u32::MAX);
    config
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(VarInt::from(0_u32))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(VarInt::from(idle_ms).into()))
        .enable_segmentation_offload(tuning.mtu_max <= SEGMENTED_MTU_MAX)
        .keep_alive_interval(Some(tuning.keep_alive()))
        .stream_receive_window(tuning.window.max(1_250_000).into())
        .send_window(u64::from(tuning.window.max(1_250_000)) * 8)
        .ack_frequency_config(Some({
            // Messages end and then both sides wait: a lost tail is noticed only after the peer's longest delay of an
            // acknowledgement, which is 25 ms unless agreed otherwise.
            let mut acks = quinn::AckFrequencyConfig::default();
            acks.max_ack_delay(Some(MAX_ACK_DELAY));
            acks
        }))
        .mtu_discovery_config(Some({
            let mut discovery = quinn::MtuDiscoveryConfig::default();
            discovery.upper_bound(tuning.mtu_max.max(1200));
            discovery
        }));
    match tuning.congestion {
        Congestion::Cubic => {
            let mut cubic = quinn::congestion::CubicConfig::default();
            cubic.initial_window(tuning.initial_window.into());
            config.congestion_controller_factory(Arc::new(cubic));
        }
        Congestion::Bbr => {
            let mut bbr = quinn::congestion::BbrConfig::default();
            bbr.initial_window(tuning.initial_window.into());
            config.congestion_controller_factory(Arc::new(bbr));
        }
    }
    config
}
