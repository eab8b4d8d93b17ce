//! Who a refused connection claims to be.
//!
//! Where a listener refuses a certificate, TLS ends before there is a peer with a role. The operator still has to know
//! whose certificate it was.

use crate::identity::role_and_fingerprint;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use std::sync::Arc;
use tracing::warn;

/// Refuses what the verifier within refuses, and says in the log whose certificate it was.
#[derive(Debug)]
pub(crate) struct Naming(pub(crate) Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Naming {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0.verify_client_cert(end_entity, intermediates, now).inspect_err(|e| {
            // Only a claim: whoever made the certificate wrote the name.
            if let Ok((claimed, _)) = role_and_fingerprint(end_entity) {
                warn!(%claimed, "a connection that claims to be {claimed} is refused: {e}");
            }
        })
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
