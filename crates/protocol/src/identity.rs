//! Who a role is: its certificate, its key, and the authority it trusts.

use crate::authority::Authority;
use crate::{ProtocolError, Role};
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// SHA-256 of a certificate's public key: what parties pin of each other. It survives renewal with the same key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Fingerprint([u8; 32]);

/// The certificate, key and authority of one role.
#[derive(Clone)]
pub struct Identity {
    role: Role,
    fingerprint: Fingerprint,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    authority: Authority,
    file: PathBuf,
}

impl Identity {
    /// Reads certificate chain, private key and authority from PEM files. The role follows from the certificate.
    ///
    /// # Errors
    /// [`ProtocolError::Identity`] naming the file: unreadable, malformed, a key file that others can read, a key that
    /// is not the certificate's, or a certificate that names no role.
    pub fn load(certificate: &Path, key: &Path, authority: &Path) -> Result<Self, ProtocolError> {
        let chain = read_certificates(certificate)?;
        refuse_open_key_file(key)?;
        let private = PrivateKeyDer::from_pem_file(key).map_err(|e| pem_problem(key, &e))?;
        let authority = Authority::load(authority)?;
        let leaf = chain.first().ok_or_else(|| problem(certificate, &"holds no certificate"))?;
        let (role, fingerprint) = role_and_fingerprint(leaf).map_err(|e| problem(certificate, &e))?;
        let identity =
            Self { role, fingerprint, chain, key: Arc::new(private), authority, file: certificate.to_owned() };
        identity.client_config(&[])?;
        Ok(identity)
    }

    /// The same, refusing peers whose certificates are on the authority's revocation list, a PEM file.
    ///
    /// # Errors
    /// [`ProtocolError::Identity`] naming the file if it cannot be read or holds no list.
    pub fn refusing(mut self, revoked: &Path) -> Result<Self, ProtocolError> {
        self.authority = self.authority.refusing(revoked)?;
        self.file = revoked.to_owned();
        self.client_config(&[])?;
        Ok(self)
    }

    /// The role that the certificate gives.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Fingerprint of the certificate's key.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The authority that it trusts.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The certificate and what leads from it to the authority.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The certificate's file, for error messages.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Signs with the certificate's key, by the first of `offered` that fits it.
    pub(crate) fn sign(
        &self,
        offered: &[SignatureScheme],
        message: &[u8],
    ) -> Result<(SignatureScheme, Vec<u8>), String> {
        let key = provider().key_provider.load_private_key(self.key.clone_key()).map_err(|e| e.to_string())?;
        let signer = key.choose_scheme(offered).ok_or("its key is of a kind that cannot sign here")?;
        Ok((signer.scheme(), signer.sign(message).map_err(|e| e.to_string())?))
    }

    /// TLS 1.3 as the dialing side, presenting this identity and trusting its authority only.
    pub(crate) fn client_config(&self, alpn: &[&[u8]]) -> Result<ClientConfig, ProtocolError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.authority.roots), provider())
            .with_crls(self.authority.revoked.clone())
            .only_check_end_entity_revocation()
            .build()
            .map_err(|e| problem(&self.file, &e))?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| problem(&self.file, &e))?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|e| problem(&self.file, &e))?;
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        // A resumed session would take its identity from an old ticket, and early data can be replayed.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    /// TLS 1.3 as the waiting side; a client without a certificate of the same authority is refused.
    pub(crate) fn server_config(&self, alpn: &[&[u8]]) -> Result<ServerConfig, ProtocolError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.authority.roots), provider())
            .with_crls(self.authority.revoked.clone())
            .only_check_end_entity_revocation()
            .build()
            .map_err(|e| problem(&self.file, &e))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| problem(&self.file, &e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|e| problem(&self.file, &e))?;
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({}, {})", self.role, self.fingerprint)
    }
}

/// Reads role and fingerprint off a certificate file.
///
/// # Errors
/// [`ProtocolError::Identity`] naming the file.
pub fn inspect_certificate(file: &Path) -> Result<(Role, Fingerprint), ProtocolError> {
    let chain = read_certificates(file)?;
    let leaf = chain.first().ok_or_else(|| problem(file, &"holds no certificate"))?;
    role_and_fingerprint(leaf).map_err(|e| problem(file, &e))
}

/// The one role that a certificate names, and the fingerprint of its key.
pub(crate) fn role_and_fingerprint(certificate: &CertificateDer<'_>) -> Result<(Role, Fingerprint), String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| format!("malformed certificate: {e}"))?;
    let names = parsed.subject_alternative_name().map_err(|e| format!("malformed certificate: {e}"))?;
    let dns: Vec<&str> = names
        .iter()
        .flat_map(|n| &n.value.general_names)
        .filter_map(|n| if let GeneralName::DNSName(name) = n { Some(*name) } else { None })
        .collect();
    let [name] = dns[..] else {
        return Err(format!("a certificate must name exactly one role as its DNS name; this one names {}", dns.len()));
    };
    let role = Role::from_certificate_name(name)
        .ok_or_else(|| format!("the certificate's name '{name}' is no role: expected for example party-0.spnn"))?;
    Ok((role, Fingerprint(Sha256::digest(parsed.public_key().raw).into())))
}

/// Ring's algorithms, AES-128-GCM first: 128-bit security is the level of everything here, and it is the fastest.
pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.sort_by_key(|s| s.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

pub(crate) fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, ProtocolError> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| pem_problem(file, &e))
}

/// A private key that others on the machine can read is no longer private.
#[cfg(unix)]
fn refuse_open_key_file(file: &Path) -> Result<(), ProtocolError> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(file).map_err(|e| problem(file, &e))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let reason = format!("others can read this private key (mode {mode:03o}); run: chmod 600 {}", file.display());
        return Err(problem(file, &reason));
    }
    Ok(())
}

#[cfg(not(unix))]
fn refuse_open_key_file(_file: &Path) -> Result<(), ProtocolError> {
    Ok(())
}

/// Without the bytes of the file that the error would show as a list of numbers.
pub(crate) fn pem_problem(file: &Path, error: &pem::Error) -> ProtocolError {
    match error {
        pem::Error::MissingSectionEnd { .. } => problem(file, &"a section that begins has no end"),
        pem::Error::IllegalSectionStart { .. } => problem(file, &"a line that begins a section is malformed"),
        other => problem(file, other),
    }
}

pub(crate) fn problem(file: &Path, reason: &dyn fmt::Display) -> ProtocolError {
    ProtocolError::Identity { file: file.to_owned(), reason: reason.to_string() }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Fingerprint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no fingerprint: expected sha256: and 64 hexadecimal digits");
        let digits = text
            .strip_prefix("sha256:")
            .filter(|d| d.len() == 64 && d.bytes().all(|b| b.is_ascii_hexdigit()))
            .ok_or_else(wrong)?;
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}
