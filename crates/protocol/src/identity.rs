//! Who a role is: its certificate, its key, and the authority it trusts.

use crate::authority::Authority;
use crate::key_file::{KeyFile, PassphraseSource, pem_problem, problem};
use crate::verifier::Naming;
use crate::{ProtocolError, Role};
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

/// SHA-256 of a certificate's public key: what parties pin of each other. It survives renewal with the same key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Fingerprint([u8; 32]);

/// Where a role's identity is kept: PEM files.
#[derive(Clone, Debug)]
pub struct IdentityFiles {
    /// The certificate, and what it takes to lead from it to the authority.
    pub certificate: PathBuf,
    /// Its private key, perhaps encrypted.
    pub key: PathBuf,
    /// The authority's certificate.
    pub authority: PathBuf,
    /// The authority's revocation list: peers whose certificates are on it are refused.
    pub revoked: Option<PathBuf>,
    /// Where the passphrase of an encrypted key comes from.
    pub passphrase: PassphraseSource,
}

impl IdentityFiles {
    /// A key in the clear, and no revocation list.
    #[must_use]
    pub fn new(certificate: &Path, key: &Path, authority: &Path) -> Self {
        Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            authority: authority.to_owned(),
            revoked: None,
            passphrase: PassphraseSource::Nowhere,
        }
    }
}

/// The certificate, key and authority of one role.
#[derive(Clone)]
pub struct Identity {
    role: Role,
    fingerprint: Fingerprint,
    validity: Validity,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<Zeroizing<PrivateKeyDer<'static>>>,
    authority: Authority,
    files: IdentityFiles,
    /// Of what the files held.
    digests: Digests,
}

/// SHA-256 of what was read, to notice that it has changed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Digests {
    key: [u8; 32],
    rest: [u8; 32],
}

/// Seconds since 1970 between which a certificate is good.
#[derive(Clone, Copy)]
struct Validity {
    from: i64,
    to: i64,
}

/// A certificate that expires within so many days is worth a warning.
const WARN_DAYS: i64 = 30;
const DAY_S: i64 = 24 * 3600;
/// Far more than certificates take, and room for long revocation lists.
const FILE_BYTES_MAX: u64 = 4 << 20;

impl Identity {
    /// Reads certificate chain, private key and authority, and the revocation list if there is one. The role follows
    /// from the certificate.
    ///
    /// # Errors
    /// [`ProtocolError::Identity`] naming the file: unreadable, malformed, a key file that others can read, a wrong
    /// passphrase, a key that is not the certificate's, a certificate that names no role or has expired.
    pub fn load(files: IdentityFiles) -> Result<Self, ProtocolError> {
        let identity = Self::read(files, None)?;
        identity.check_validity(now())?;
        Ok(identity)
    }

    /// What the files hold now, or nothing if that is what they held before.
    ///
    /// # Errors
    /// As [`load`](Self::load); a certificate of another role.
    pub(crate) fn reread(&self) -> Result<Option<Self>, ProtocolError> {
        let identity = Self::read(self.files.clone(), Some(self))?;
        if identity.digests == self.digests {
            return Ok(None);
        }
        if identity.role != self.role {
            let reason = format!("this certificate is that of {}; expected one of {}", identity.role, self.role);
            return Err(problem(&self.files.certificate, &reason));
        }
        identity.check_validity(now())?;
        Ok(Some(identity))
    }

    /// Reads the files. A key that has not changed since `earlier` is not decrypted again.
    pub(crate) fn read(files: IdentityFiles, earlier: Option<&Self>) -> Result<Self, ProtocolError> {
        let IdentityFiles { certificate, key, authority, revoked, passphrase } = &files;
        let certificate_pem = read_public(certificate)?;
        let key_pem = KeyFile::read_pem(key)?;
        let authority_pem = read_public(authority)?;
        let revoked_pem = revoked.as_deref().map(read_public).transpose()?;

        let mut rest = Sha256::new();
        for part in [Some(&certificate_pem), Some(&authority_pem), revoked_pem.as_ref()].into_iter().flatten() {
            rest.update((part.len() as u64).to_le_bytes());
            rest.update(part.as_slice());
        }
        let digests = Digests { key: Sha256::digest(&key_pem).into(), rest: rest.finalize().into() };
        if let Some(earlier) = earlier.filter(|e| e.digests == digests) {
            return Ok(earlier.clone());
        }

        let chain = certificates(certificate, &certificate_pem)?;
        let private = match earlier.filter(|e| e.digests.key == digests.key) {
            Some(earlier) => Arc::clone(&earlier.key),
            None => {
                let parsed = KeyFile::parse(key, &key_pem)?;
                let passphrase = if parsed.is_encrypted() { passphrase.passphrase()? } else { None };
                Arc::new(parsed.decrypt(key, passphrase.as_deref())?)
            }
        };
        let mut authority = Authority::parse(authority, &authority_pem)?;
        if let (Some(file), Some(pem)) = (revoked, &revoked_pem) {
            authority = authority.refusing_listed(file, pem)?;
        }
        let leaf = chain.first().ok_or_else(|| problem(certificate, &"holds no certificate"))?;
        let (role, fingerprint) = role_and_fingerprint(leaf).map_err(|e| problem(certificate, &e))?;
        let validity = validity(leaf).map_err(|e| problem(certificate, &e))?;
        let identity = Self { role, fingerprint, validity, chain, key: private, authority, files, digests };
        identity.client_config(&[])?;
        Ok(identity)
    }

    /// Refuses a certificate that no peer would accept.
    fn check_validity(&self, now: i64) -> Result<(), ProtocolError> {
        let (role, Validity { from, to }) = (self.role, self.validity);
        let reason = if now > to {
            format!(
                "this certificate expired on {}; make a request for a new one with the same key (spnn pki renew), let the \
                 authority sign it (spnn pki issue --role {role} --request {role}.csr), and put the new one in this place",
                date(to)
            )
        } else if now < from {
            format!("this certificate is good from {} only; is the clock of this machine right?", date(from))
        } else {
            return Ok(());
        };
        Err(problem(&self.files.certificate, &reason))
    }

    /// Says so in the log if the certificate expires soon.
    pub(crate) fn warn_if_expiring(&self) {
        let days = (self.validity.to - now()) / DAY_S;
        if days <= WARN_DAYS {
            let (role, file) = (self.role, self.files.certificate.display());
            tracing::warn!(%role, %file, days, "the certificate expires on {}; renew it", date(self.validity.to));
        }
    }

    /// When the certificate expires, in seconds since 1970.
    #[must_use]
    pub fn expires(&self) -> i64 {
        self.validity.to
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
        &self.files.certificate
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
            .map_err(|e| problem(&self.files.certificate, &e))?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| problem(&self.files.certificate, &e))?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|e| problem(&self.files.certificate, &e))?;
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
            .map_err(|e| problem(&self.files.certificate, &e))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| problem(&self.files.certificate, &e))?
            .with_client_cert_verifier(Arc::new(Naming(verifier)))
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|e| problem(&self.files.certificate, &e))?;
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
    let chain = certificates(file, &read_public(file)?)?;
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
    Ok((role, Fingerprint::of_public_key(parsed.public_key().raw)))
}

/// Ring's algorithms, AES-128-GCM first: 128-bit security is the level of everything here, and it is the fastest.
pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.sort_by_key(|s| s.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

pub(crate) fn read_public(file: &Path) -> Result<Vec<u8>, ProtocolError> {
    let mut bytes = Vec::new();
    let limited = File::open(file).map(|f| f.take(FILE_BYTES_MAX + 1));
    limited.and_then(|mut f| f.read_to_end(&mut bytes)).map_err(|e| problem(file, &e))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(problem(file, &format!("longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

pub(crate) fn certificates(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ProtocolError> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    certificates.map_err(|e| pem_problem(file, &e))
}

fn validity(certificate: &CertificateDer<'_>) -> Result<Validity, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| format!("malformed certificate: {e}"))?;
    let validity = parsed.validity();
    Ok(Validity { from: validity.not_before.timestamp(), to: validity.not_after.timestamp() })
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A time as people read it.
fn date(seconds: i64) -> String {
    ASN1Time::from_timestamp(seconds).map_or_else(|_| format!("second {seconds} since 1970"), |t| t.to_string())
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

impl Fingerprint {
    /// Of a public key: `SubjectPublicKeyInfo` in DER.
    #[must_use]
    pub fn of_public_key(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
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
