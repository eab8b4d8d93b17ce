//! Channels between parties that both only dial out.
//!
//! The coordinator joins two streams and copies bytes. Inside runs TLS 1.3 between the two parties with their own
//! certificates, pinned by fingerprint on both sides: the relay can neither read nor alter, drop, repeat or reorder
//! anything without the receiving party noticing, and it can only refuse to forward.

use crate::channel::Link;
use crate::error::Ending;
use crate::identity::{Fingerprint, Identity, role_and_fingerprint};
use crate::{PartyId, ProtocolError, Role};
use futures_util::future::BoxFuture;
use quinn::{RecvStream, SendStream};
use rustls::pki_types::ServerName;
use spnn_crypto::PairKey;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use zeroize::Zeroizing;

const PARTY_ALPN: &[u8] = b"spnn-party/1";

/// The coordinator's side: streams that wait for their other half.
#[derive(Default)]
pub(super) struct Relay {
    waiting: Mutex<BTreeMap<(PartyId, PartyId), (SendStream, RecvStream)>>,
}

impl Relay {
    /// Joins the stream of `from` to `to` with the stream of `to` to `from`, as soon as both are there.
    pub(super) fn join(&self, from: PartyId, to: PartyId, streams: (SendStream, RecvStream)) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((send, recv)) = waiting.remove(&(to, from)) else {
            // A party that asks again replaces its own earlier stream, so at most one waits for each pair.
            waiting.insert((from, to), streams);
            return;
        };
        tokio::spawn(async move {
            let mut one = tokio::io::join(recv, send);
            let mut other = tokio::io::join(streams.1, streams.0);
            // When either side ends, both see the end of their stream; their TLS tells whether it was meant.
            let _ = tokio::io::copy_bidirectional(&mut one, &mut other).await;
        });
    }
}

/// A party's side: TLS with the other party over the joined stream. The lower number takes the client's side.
pub(super) async fn meet<S: AsyncRead + AsyncWrite + Unpin>(
    identity: &Identity,
    peer: Role,
    stream: S,
) -> Result<(TlsStream<S>, Fingerprint, PairKey), String> {
    let mut stream = if identity.role() < peer {
        let config = identity.client_config(&[PARTY_ALPN]).map_err(|e| e.to_string())?;
        let name = ServerName::try_from(peer.certificate_name()).map_err(|e| e.to_string())?;
        let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        TlsStream::from(connected.map_err(|e| format!("TLS between the parties failed: {e}"))?)
    } else {
        let config = identity.server_config(&[PARTY_ALPN]).map_err(|e| e.to_string())?;
        let accepted = TlsAcceptor::from(Arc::new(config)).accept(stream).await;
        TlsStream::from(accepted.map_err(|e| format!("TLS between the parties failed: {e}"))?)
    };
    stream.flush().await.map_err(|e| e.to_string())?;
    let (_, connection) = stream.get_ref();
    let leaf = connection.peer_certificates().and_then(|c| c.first()).ok_or("it showed no certificate")?;
    let (role, fingerprint) = role_and_fingerprint(leaf)?;
    if role != peer {
        return Err(format!("its certificate is that of {role}"));
    }
    let mut key = Zeroizing::new([0; 32]);
    let label = b"EXPORTER-spnn-party-link";
    match &stream {
        TlsStream::Client(s) => s.get_ref().1.export_keying_material(key.as_mut(), label, None),
        TlsStream::Server(s) => s.get_ref().1.export_keying_material(key.as_mut(), label, None),
    }
    .map_err(|e| e.to_string())?;
    Ok((stream, fingerprint, PairKey::new(*key)))
}

/// The link below a relayed channel.
pub(super) struct RelayLink {
    /// The connection to the coordinator that carries the relayed stream.
    carrier: Arc<dyn Link>,
    key: PairKey,
}

impl RelayLink {
    pub(super) fn new(carrier: Arc<dyn Link>, key: PairKey) -> Self {
        Self { carrier, key }
    }
}

impl Link for RelayLink {
    fn end(&self, _ending: Ending) {
        // The carrier is closed by its own channel; the coordinator tells the other party.
    }

    fn peer_ending(&self) -> Option<Ending> {
        self.carrier.peer_ending()
    }

    fn down(&self) -> BoxFuture<'_, ()> {
        self.carrier.down()
    }

    fn down_reason(&self) -> Option<String> {
        self.carrier.down_reason()
    }

    fn wire_bytes_sent(&self) -> u64 {
        0
    }

    fn pair_key(&self, label: &'static str) -> Result<PairKey, ProtocolError> {
        Ok(PairKey::new(self.key.digest(label, &[])))
    }
}
