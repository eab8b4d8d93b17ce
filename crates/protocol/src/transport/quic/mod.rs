//! Channels over QUIC with mutual TLS 1.3.
//!
//! Listeners (coordinator, server) accept the roles they expect; parties only dial out, unless two of them agree that one
//! listens for the other. Each channel is one
//! bidirectional stream that begins with four bytes from the dialing side ([`Opening`]) and one byte back.

mod credentials;
mod door;
mod tuning;

pub use tuning::{Congestion, TransportTuning};

use super::Transport;
use super::relay::{NotMet, Relay, RelayLink, meet};
use crate::channel::{Channel, LAST_WORDS, Link, within};
use crate::error::Ending;
use crate::identity::{Fingerprint, Identity, role_and_fingerprint};
use crate::message::ALPN;
use crate::{PartyId, ProtocolError, Role};
use async_trait::async_trait;
use credentials::Credentials;
use door::{Arrival, Arrivals, Door, Opening, Violation, accept, open};
use futures_util::future::BoxFuture;
use quinn::{Connection, ConnectionError, Endpoint, EndpointConfig, VarInt};
use rustls::pki_types::CertificateDer;
use spnn_crypto::PairKey;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tracing::debug;
use tuning::enlarge_buffers;
use zeroize::Zeroizing;

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
    credentials: Arc<Credentials>,
    options: QuicOptions,
    endpoint: Endpoint,
    /// Connections this role dialed.
    dialed: BTreeMap<Role, (Connection, Arc<dyn Link>)>,
    arrivals: Arc<Arrivals>,
    /// Connections of the channels that were given out.
    in_use: Vec<Connection>,
}

/// The certificate that a transport shows to peers; from anywhere.
#[derive(Clone)]
pub struct OwnCertificate(Arc<Credentials>);

impl OwnCertificate {
    /// Reads certificate, key, authority and revocation list anew. If they do not hold together, all stays as it was and
    /// the log says why. New connections have what was read; those that exist live on.
    pub fn reload(&self) {
        self.0.reload();
    }

    /// When it expires, in seconds since 1970.
    #[must_use]
    pub fn expires(&self) -> i64 {
        self.0.identity().expires()
    }
}

/// Pause after the first attempt to reach a peer that is not up yet; it doubles.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

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
        let credentials = Arc::new(Credentials::new(identity, &options)?);
        let server_config = options.listen.map(|_| credentials.server_config().as_ref().clone());
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(endpoint_config, server_config, socket, runtime).map_err(|e| listen(&e))?;
        let arrivals = Arc::new(Arrivals::default());
        if options.listen.is_some() {
            let door = Door {
                me: credentials.role(),
                expect: options.expect.clone(),
                keep_alive: options.tuning.keep_alive(),
                present: Mutex::default(),
                pins: options.pins.clone(),
                relay: (credentials.role() == Role::Coordinator).then(Relay::default),
                arrivals: Arc::clone(&arrivals),
                credentials: Arc::clone(&credentials),
            };
            tokio::spawn(accept(endpoint.clone(), Arc::new(door)));
        }
        Ok(Self { credentials, options, endpoint, dialed: BTreeMap::new(), arrivals, in_use: Vec::new() })
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

    /// The certificate this role shows. Its files are read anew before a connection is opened or accepted.
    #[must_use]
    pub fn certificate(&self) -> OwnCertificate {
        OwnCertificate(Arc::clone(&self.credentials))
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
        self.credentials.refresh();
        let config = self.credentials.client_config();
        let connecting = self.endpoint.connect_with(config, found, &name).map_err(|e| Attempt::Final(e.to_string()))?;
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
            if let Some(arrival) = arrivals.take(peer) {
                return Ok(self.channel(peer, arrival));
            }
            if timeout_at(deadline, changed).await.is_err() {
                return Err(ProtocolError::NotJoined { peer, waited });
            }
        }
    }

    /// The channel of whichever expected peer comes next. For a listener that serves peers by themselves.
    pub async fn next_arrival(&mut self) -> (Role, Channel) {
        let arrivals = Arc::clone(&self.arrivals);
        loop {
            let changed = arrivals.changed.notified();
            if let Some((peer, arrival)) = arrivals.take_any() {
                // Those of peers that have gone are of no use to anyone.
                self.in_use.retain(|connection| connection.close_reason().is_none());
                return (peer, self.channel(peer, arrival));
            }
            changed.await;
        }
    }

    fn channel(&mut self, peer: Role, arrival: Arrival) -> Channel {
        let Arrival { connection, streams: (send, recv), violation } = arrival;
        self.in_use.push(connection.clone());
        let link = Arc::new(QuicLink { peer, connection, violation });
        Channel::new(peer, link, Box::new(recv), Box::new(send), self.options.peer_timeout)
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
            meet(&self.credentials.identity(), role, tokio::io::join(recv, send)).await
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
        self.credentials.role()
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

#[cfg(test)]
mod tests;
