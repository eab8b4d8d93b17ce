//! The identity that new connections are made with, which follows the files it was read from.
//!
//! Connections that exist live on: a certificate is looked at when a connection begins.

use super::QuicOptions;
use super::tuning::transport_config;
use crate::identity::Identity;
use crate::message::ALPN;
use crate::{ProtocolError, Role};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, ServerConfig, TransportConfig};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tracing::{error, info, warn};

/// A role's identity as it is on disk, or as it was when it last held together.
pub(super) struct Credentials {
    role: Role,
    transport: Arc<TransportConfig>,
    now: Mutex<Now>,
}

struct Now {
    identity: Identity,
    client: ClientConfig,
    server: Arc<ServerConfig>,
    looked: Instant,
    /// Why the files could not be taken over, if it was said already.
    refused: Option<String>,
}

/// Peers that come often do not make this role read its files more often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Credentials {
    pub(super) fn new(identity: Identity, options: &QuicOptions) -> Result<Self, ProtocolError> {
        let (role, transport) = (identity.role(), Arc::new(transport_config(options)));
        identity.warn_if_expiring();
        let (client, server) = (client_config(&identity, &transport)?, server_config(&identity, &transport)?);
        let now = Mutex::new(Now { identity, client, server, looked: Instant::now(), refused: None });
        Ok(Self { role, transport, now })
    }

    pub(super) fn role(&self) -> Role {
        self.role
    }

    /// For TLS inside a stream.
    pub(super) fn identity(&self) -> Identity {
        self.now().identity.clone()
    }

    /// For a connection that this role dials.
    pub(super) fn client_config(&self) -> ClientConfig {
        self.now().client.clone()
    }

    /// For a connection that a peer dials.
    pub(super) fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.now().server)
    }

    /// As [`reload`](Self::reload), unless that was just done.
    pub(super) fn refresh(&self) {
        if self.now().looked.elapsed() >= LOOK_EVERY {
            self.reload();
        }
    }

    /// Takes over what the files hold now. If they cannot be read or do not fit together, all stays as it was, and the log
    /// says why.
    pub(super) fn reload(&self) {
        let mut now = self.now();
        now.looked = Instant::now();
        match self.read(&now) {
            Ok(Some(newer)) => {
                let (before, after) = (now.identity.fingerprint(), newer.identity.fingerprint());
                if before == after {
                    info!(fingerprint = %after, "read certificate, key, authority or revocation list anew");
                } else {
                    warn!(%before, %after, "this role has another key: the parties that pin the one before refuse it");
                }
                newer.identity.warn_if_expiring();
                *now = newer;
            }
            Ok(None) => now.refused = None,
            Err(e) => {
                let reason = e.to_string();
                if now.refused.as_ref() != Some(&reason) {
                    error!("{reason}; this role goes on with the certificate and key it had");
                    now.refused = Some(reason);
                }
            }
        }
    }

    fn read(&self, now: &Now) -> Result<Option<Now>, ProtocolError> {
        let Some(identity) = now.identity.reread()? else { return Ok(None) };
        let client = client_config(&identity, &self.transport)?;
        let server = server_config(&identity, &self.transport)?;
        Ok(Some(Now { identity, client, server, looked: now.looked, refused: None }))
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn client_config(identity: &Identity, transport: &Arc<TransportConfig>) -> Result<ClientConfig, ProtocolError> {
    let tls = QuicClientConfig::try_from(identity.client_config(&[ALPN])?).map_err(|e| no_initial_suite(&e))?;
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::clone(transport));
    Ok(config)
}

fn server_config(identity: &Identity, transport: &Arc<TransportConfig>) -> Result<Arc<ServerConfig>, ProtocolError> {
    let tls = QuicServerConfig::try_from(identity.server_config(&[ALPN])?).map_err(|e| no_initial_suite(&e))?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::clone(transport));
    // Peers are few and known; unauthenticated handshakes beyond this are dropped, not queued.
    config.max_incoming(64);
    Ok(Arc::new(config))
}

fn no_initial_suite(e: &dyn std::fmt::Display) -> ProtocolError {
    ProtocolError::Listen { address: "QUIC".into(), reason: e.to_string() }
}
