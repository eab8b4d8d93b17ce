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
use quinn::{Connection, RecvStream, SendStream};
use rustls::pki_types::ServerName;
use spnn_crypto::PairKey;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tracing::info;
use zeroize::Zeroizing;

const PARTY_ALPN: &[u8] = b"spnn-party/1";

/// The coordinator's side: streams that wait for their other half.
#[derive(Default)]
pub(super) struct Relay {
    waiting: Mutex<BTreeMap<(PartyId, PartyId), Half>>,
}

/// A party's stream to another one, and the connection it belongs to.
pub(super) struct Half {
    pub(super) connection: Connection,
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
}

impl Relay {
    /// Joins the stream of `from` to `to` with the stream of `to` to `from`, as soon as both are there.
    pub(super) fn join(&self, from: PartyId, to: PartyId, half: Half) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // One whose party has gone meanwhile is as good as none.
        let other = waiting.remove(&(to, from)).filter(|h| h.connection.close_reason().is_none());
        let Some(other) = other else {
            // A party that asks again replaces its own earlier stream, so at most one waits for each pair.
            waiting.insert((from, to), half);
            return;
        };
        info!(%from, %to, "relaying");
        tokio::spawn(async move {
            let mut one = tokio::io::join(other.recv, other.send);
            let mut other = tokio::io::join(half.recv, half.send);
            // When either side ends, both see the end of their stream; their TLS tells whether it was meant.
            let _ = tokio::io::copy_bidirectional(&mut one, &mut other).await;
        });
    }
}

/// Why two parties did not meet.
#[derive(Debug)]
pub(super) enum NotMet {
    /// The stream broke off; they may meet another time.
    Gone(String),
    /// One does not accept the other.
    Refused(String),
}

impl From<std::io::Error> for NotMet {
    fn from(e: std::io::Error) -> Self {
        // Verdicts of TLS come as invalid data.
        match e.kind() {
            std::io::ErrorKind::InvalidData => Self::Refused(format!("TLS between the parties failed: {e}")),
            _ => Self::Gone(format!("TLS between the parties broke off: {e}")),
        }
    }
}

/// A party's side: TLS with the other party over the joined stream. The lower number takes the client's side.
pub(super) async fn meet<S: AsyncRead + AsyncWrite + Unpin>(
    identity: &Identity,
    peer: Role,
    stream: S,
) -> Result<(TlsStream<S>, Fingerprint, PairKey), NotMet> {
    let refused = |e: &dyn std::fmt::Display| NotMet::Refused(e.to_string());
    let mut stream = if identity.role() < peer {
        let config = identity.client_config(&[PARTY_ALPN]).map_err(|e| refused(&e))?;
        let name = ServerName::try_from(peer.certificate_name()).map_err(|e| refused(&e))?;
        TlsStream::from(TlsConnector::from(Arc::new(config)).connect(name, stream).await?)
    } else {
        let config = identity.server_config(&[PARTY_ALPN]).map_err(|e| refused(&e))?;
        TlsStream::from(TlsAcceptor::from(Arc::new(config)).accept(stream).await?)
    };
    stream.flush().await?;
    let (_, connection) = stream.get_ref();
    let leaf = connection.peer_certificates().and_then(|c| c.first());
    let leaf = leaf.ok_or_else(|| refused(&"it showed no certificate"))?;
    let (role, fingerprint) = role_and_fingerprint(leaf).map_err(|e| refused(&e))?;
    if role != peer {
        return Err(refused(&format!("its certificate is that of {role}")));
    }
    let mut key = Zeroizing::new([0; 32]);
    let label = b"EXPORTER-spnn-party-link";
    match &stream {
        TlsStream::Client(s) => s.get_ref().1.export_keying_material(key.as_mut(), label, None),
        TlsStream::Server(s) => s.get_ref().1.export_keying_material(key.as_mut(), label, None),
    }
    .map_err(|e| refused(&e))?;
    Ok((stream, fingerprint, PairKey::new(*key)))
}

/// The link below a relayed channel.
pub(super) struct RelayLink {
    /// The connection to the coordinator that carries the relayed stream.
    carrier: Arc<dyn Link>,
    key: PairKey,
    fingerprint: Fingerprint,
}

impl RelayLink {
    pub(super) fn new(carrier: Arc<dyn Link>, key: PairKey, fingerprint: Fingerprint) -> Self {
        Self { carrier, key, fingerprint }
    }
}

impl Link for RelayLink {
    fn fingerprint(&self) -> Option<Fingerprint> {
        Some(self.fingerprint)
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IdentityFiles;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
    use std::path::Path;
    use tokio::io::{AsyncReadExt, DuplexStream};

    fn identities(directory: &Path) -> [Identity; 2] {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let authority = directory.join("ca.pem");
        std::fs::write(&authority, ca.pem()).unwrap();
        [0, 1].map(|i| {
            let role = Role::party(i);
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new([role.certificate_name()]).unwrap();
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
            let certificate = params.signed_by(&key, &ca).unwrap();
            let (pem, private) = (directory.join(format!("{role}.pem")), directory.join(format!("{role}.key")));
            std::fs::write(&pem, certificate.pem()).unwrap();
            std::fs::write(&private, key.serialize_pem()).unwrap();
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o600)).unwrap();
            }
            Identity::load(IdentityFiles::new(&pem, &private, &authority)).unwrap()
        })
    }

    /// What a relay does to one TLS record of party 0.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Deed {
        Nothing,
        FlipABit,
        Drop,
        Repeat,
        SwapWithNext,
    }

    /// Forwards TLS records from one side to the other, and does `deed` to the record that is `at` records after the
    /// first of application data.
    async fn forward(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, deed: Deed, at: usize) {
        let mut application = 0;
        let mut held: Option<Vec<u8>> = None;
        loop {
            let mut record = vec![0; 5];
            if from.read_exact(&mut record).await.is_err() {
                let _ = to.shutdown().await;
                return;
            }
            let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
            record.resize(5 + length, 0);
            if from.read_exact(&mut record[5..]).await.is_err() {
                return;
            }
            // Content type 23 once keys are in use; the last handshake messages of the client come first.
            let chosen = record[0] == 23 && {
                application += 1;
                application == at
            };
            let mut out = Vec::new();
            match (chosen, deed) {
                (true, Deed::FlipABit) => {
                    record[5 + length / 2] ^= 1;
                    out.push(record);
                }
                (true, Deed::Drop) => {}
                (true, Deed::Repeat) => out.extend([record.clone(), record]),
                (true, Deed::SwapWithNext) => held = Some(record),
                _ => out.extend([Some(record), held.take()].into_iter().flatten()),
            }
            for record in out {
                if to.write_all(&record).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Party 0 sends three messages to party 1 through a relay; what party 1 receives before the first error.
    async fn through(deed: Deed, at: usize, identities: &[Identity; 2]) -> Result<Vec<u8>, String> {
        let (zero, relay_zero): (DuplexStream, DuplexStream) = tokio::io::duplex(1 << 16);
        let (one, relay_one) = tokio::io::duplex(1 << 16);
        let (zero_read, zero_write) = tokio::io::split(relay_zero);
        let (one_read, one_write) = tokio::io::split(relay_one);
        let relay = tokio::spawn(forward(zero_read, one_write, deed, at));
        let back = tokio::spawn(forward(one_read, zero_write, Deed::Nothing, 0));
        let sending = async {
            let met = meet(&identities[0], Role::party(1), zero).await;
            let (mut stream, _, _) = met.map_err(|e| format!("{e:?}"))?;
            for message in [[1_u8; 100], [2; 100], [3; 100]] {
                stream.write_all(&message).await.map_err(|e| e.to_string())?;
                stream.flush().await.map_err(|e| e.to_string())?;
            }
            stream.shutdown().await.map_err(|e| e.to_string())
        };
        let receiving = async {
            let met = meet(&identities[1], Role::party(0), one).await;
            let (mut stream, _, _) = met.map_err(|e| format!("{e:?}"))?;
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await.map_err(|e| e.to_string())?;
            Ok(got)
        };
        let (_, got) = tokio::join!(sending, receiving);
        relay.abort();
        back.abort();
        got
    }

    #[test]
    fn the_receiving_party_notices_whatever_a_relay_does() {
        let directory = tempfile::tempdir().unwrap();
        let identities = identities(directory.path());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let run = |deed, at| {
            runtime.block_on(async {
                let limit = std::time::Duration::from_secs(1);
                let got = tokio::time::timeout(limit, through(deed, at, &identities)).await;
                got.unwrap_or_else(|_| Err("nothing more came".into()))
            })
        };
        let whole = run(Deed::Nothing, 0).unwrap();
        assert_eq!(whole.len(), 300);
        // The client's certificate and finish are the first record, its three messages the next; the fifth only closes.
        for deed in [Deed::FlipABit, Deed::Drop, Deed::Repeat, Deed::SwapWithNext] {
            for at in 1..=4 {
                let got = run(deed, at);
                assert!(got.is_err(), "{deed:?} of record {at} went unnoticed: {got:?}");
            }
        }
    }

    #[test]
    fn both_parties_derive_the_same_key_and_see_the_same_fingerprints() {
        let directory = tempfile::tempdir().unwrap();
        let identities = identities(directory.path());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (a, b) = tokio::io::duplex(1 << 16);
        let (one, two) = runtime.block_on(async {
            tokio::join!(meet(&identities[0], Role::party(1), a), meet(&identities[1], Role::party(0), b))
        });
        let ((_, seen_by_zero, key_zero), (_, seen_by_one, key_one)) = (one.unwrap(), two.unwrap());
        assert_eq!(seen_by_zero, identities[1].fingerprint());
        assert_eq!(seen_by_one, identities[0].fingerprint());
        assert_eq!(key_zero.digest("test", b""), key_one.digest("test", b""));
    }
}
