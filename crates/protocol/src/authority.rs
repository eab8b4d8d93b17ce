//! The authority that certificates come from.

use crate::ProtocolError;
use crate::identity::{certificates, provider, read_public};
use crate::key_file::{pem_problem, problem};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// Certificates to trust, and those to refuse all the same.
#[derive(Clone)]
pub struct Authority {
    pub(crate) roots: Arc<RootCertStore>,
    /// What the authority has revoked, if it says so.
    pub(crate) revoked: Vec<CertificateRevocationListDer<'static>>,
}

impl Authority {
    /// Reads the authority's certificates from a PEM file.
    ///
    /// # Errors
    /// [`ProtocolError::Identity`] naming the file.
    pub fn load(file: &Path) -> Result<Self, ProtocolError> {
        Self::parse(file, &read_public(file)?)
    }

    /// As [`load`](Self::load), from what the file holds.
    pub(crate) fn parse(file: &Path, pem: &[u8]) -> Result<Self, ProtocolError> {
        let mut roots = RootCertStore::empty();
        for root in certificates(file, pem)? {
            roots.add(root).map_err(|e| problem(file, &e))?;
        }
        if roots.is_empty() {
            return Err(problem(file, &"holds no certificate"));
        }
        Ok(Self { roots: Arc::new(roots), revoked: Vec::new() })
    }

    /// The same, refusing certificates that are on the authority's revocation list, a PEM file.
    ///
    /// # Errors
    /// [`ProtocolError::Identity`] naming the file if it cannot be read or holds no list.
    pub fn refusing(self, revoked: &Path) -> Result<Self, ProtocolError> {
        self.refusing_listed(revoked, &read_public(revoked)?)
    }

    /// As [`refusing`](Self::refusing), from what the file holds.
    pub(crate) fn refusing_listed(mut self, revoked: &Path, pem: &[u8]) -> Result<Self, ProtocolError> {
        let lists = CertificateRevocationListDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        self.revoked = lists.map_err(|e| pem_problem(revoked, &e))?;
        if self.revoked.is_empty() {
            return Err(problem(revoked, &"holds no revocation list"));
        }
        Ok(self)
    }

    /// Checks that a certificate comes from this authority, was in force at `at`, and is not revoked; what TLS checks of
    /// a peer that dials. Its own certificate is the first of the chain.
    pub(crate) fn check(&self, chain: &[CertificateDer<'_>], at: SystemTime) -> Result<(), String> {
        let [leaf, intermediates @ ..] = chain else { return Err("it holds no certificate".into()) };
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
            .with_crls(self.revoked.clone())
            .only_check_end_entity_revocation()
            .build()
            .map_err(|e| e.to_string())?;
        let since = at.duration_since(SystemTime::UNIX_EPOCH).map_err(|e| e.to_string())?;
        let at = UnixTime::since_unix_epoch(since);
        verifier.verify_client_cert(leaf, intermediates, at).map(drop).map_err(|e| e.to_string())
    }
}
