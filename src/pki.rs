//! Certificates: one private authority, and one certificate for each role.
//!
//! A key never has to leave the organisation that uses it: [`request`] makes key and request there, [`sign`] answers
//! with a certificate only. Whoever holds the authority's key can make certificates for any role; parties therefore pin
//! each other's keys, and the authority cannot come between them.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PublicKeyData, RevokedCertParams, SerialNumber,
};
use spnn_crypto::{SecretRng, SystemRandomnessError};
use spnn_protocol::{
    Fingerprint, KeyFile, Passphrase, ProtocolError, Role, encrypt_key, inspect_certificate, replace_key,
};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use thiserror::Error;
use x509_parser::{parse_x509_crl, pem::parse_x509_pem};
use zeroize::Zeroizing;

/// What can go wrong with certificates.
#[derive(Debug, Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("{}: {source}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file would be overwritten.
    #[error("{} exists already; a key is never overwritten", file.display())]
    Exists {
        /// Which.
        file: PathBuf,
    },
    /// A certificate, key or request is malformed.
    #[error("{}: {reason}", file.display())]
    Malformed {
        /// Which.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// The request is for another role.
    #[error("{} asks for a certificate of {found}, not of {expected}", file.display())]
    OtherRole {
        /// Which.
        file: PathBuf,
        /// Role on the command line.
        expected: Role,
        /// Name in the request.
        found: String,
    },
    /// A key cannot be read or replaced, or a finished certificate does not read back.
    #[error(transparent)]
    Certificate(#[from] ProtocolError),
    /// The system has no randomness.
    #[error(transparent)]
    Randomness(#[from] SystemRandomnessError),
}

/// Days a certificate is valid.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    /// First day, counted from today; negative for the past.
    pub from_days: i64,
    /// Last day, counted from today.
    pub to_days: i64,
}

impl Validity {
    /// From yesterday, for clocks that are a little behind, for `days`.
    #[must_use]
    pub fn days(days: i64) -> Self {
        Self { from_days: -1, to_days: days }
    }
}

/// An authority, and what its key is encrypted under, if it is.
#[derive(Debug)]
pub struct Authority {
    /// Where its files are.
    pub directory: PathBuf,
    /// Of `ca.key`.
    pub passphrase: Option<Passphrase>,
}

impl Authority {
    /// One whose key is in the clear.
    #[must_use]
    pub fn in_directory(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), passphrase: None }
    }

    /// Its private key.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.directory.join(CA_KEY)
    }
}

const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const REVOKED: &str = "crl.pem";

/// Makes an authority: `ca.pem` to hand out, `ca.key` to keep (0600), encrypted if there is a passphrase.
///
/// # Errors
/// [`PkiError`] naming the file; an existing key is not overwritten.
pub fn init(authority: &Authority, name: &str, validity: Validity) -> Result<PathBuf, PkiError> {
    let key = new_key(&authority.key(), authority.passphrase.as_ref())?;
    let mut params = params(validity);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let file = authority.directory.join(CA_CERTIFICATE);
    let certificate = params.self_signed(&key).map_err(|e| malformed(&file, &e))?;
    write(&file, certificate.pem().as_bytes(), false)?;
    Ok(file)
}

/// Makes a key and a request for `role` in `directory`: `<role>.key` to keep (0600), encrypted if there is a passphrase,
/// and `<role>.csr` to send.
///
/// # Errors
/// [`PkiError`] naming the file; an existing key is not overwritten.
pub fn request(
    directory: &Path,
    role: Role,
    organisation: &str,
    passphrase: Option<&Passphrase>,
) -> Result<PathBuf, PkiError> {
    let key = new_key(&directory.join(format!("{role}.key")), passphrase)?;
    ask(&directory.join(format!("{role}.csr")), role, organisation, &key)
}

/// Makes a request for a certificate to follow `certificate`, of the same role, organisation and key, so that the
/// fingerprint that others have pinned stays. `<role>.csr` is written beside the certificate.
///
/// # Errors
/// [`PkiError`] naming the file; a key that is not the certificate's.
pub fn renew(certificate: &Path, key: &Path, passphrase: Option<&Passphrase>) -> Result<PathBuf, PkiError> {
    let (role, fingerprint) = inspect_certificate(certificate)?;
    let pair = read_key(key, passphrase)?;
    let text = read(certificate)?;
    let (_, pem) = parse_x509_pem(text.as_bytes()).map_err(|e| malformed(certificate, &e))?;
    let parsed = pem.parse_x509().map_err(|e| malformed(certificate, &e))?;
    if Fingerprint::of_public_key(&pair.subject_public_key_info()) != fingerprint {
        return Err(malformed(key, &format!("is not the key of {}", certificate.display())));
    }
    let organisation = parsed.subject().iter_organization().next().and_then(|o| o.as_str().ok()).unwrap_or_default();
    ask(&certificate.with_file_name(format!("{role}.csr")), role, organisation, &pair)
}

/// Writes a request for a certificate of `key`.
fn ask(file: &Path, role: Role, organisation: &str, key: &KeyPair) -> Result<PathBuf, PkiError> {
    let request = role_params(role, organisation, Validity::days(0))
        .map_err(|e| malformed(file, &e))?
        .serialize_request(key)
        .and_then(|r| r.pem())
        .map_err(|e| malformed(file, &e))?;
    write(file, request.as_bytes(), false)?;
    Ok(file.to_owned())
}

/// Encrypts the private key in `file` anew, or for the first time; without a `new` passphrase the key is in the clear
/// afterwards. The file is replaced wholly or not at all.
///
/// # Errors
/// [`PkiError`] naming the file; the wrong passphrase.
pub fn set_passphrase(file: &Path, old: Option<&Passphrase>, new: Option<&Passphrase>) -> Result<(), PkiError> {
    let pem = key_pem(file, &read_key(file, old)?, new)?;
    replace_key(file, &pem)?;
    Ok(())
}

/// Signs a request for `role`; writes the certificate beside the request.
///
/// Only name and key are taken from the request; usages and validity are the authority's.
///
/// # Errors
/// [`PkiError`] naming the file; a request that names another role is refused.
pub fn sign(authority: &Authority, request: &Path, role: Role, validity: Validity) -> Result<PathBuf, PkiError> {
    let text = read(request)?;
    let asked = CertificateSigningRequestParams::from_pem(&text).map_err(|e| malformed(request, &e))?;
    let names: Vec<String> = asked
        .params
        .subject_alt_names
        .iter()
        .map(|n| if let rcgen::SanType::DnsName(name) = n { name.to_string() } else { format!("{n:?}") })
        .collect();
    if names != [role.certificate_name()] {
        return Err(PkiError::OtherRole { file: request.to_owned(), expected: role, found: names.join(", ") });
    }
    let organisation = asked.params.distinguished_name.get(&DnType::OrganizationName).map(|v| match v {
        rcgen::DnValue::Utf8String(text) => text.clone(),
        other => format!("{other:?}"),
    });
    let params = role_params(role, &organisation.unwrap_or_default(), validity).map_err(|e| malformed(request, &e))?;
    let (ca, ca_file) = issuer(authority)?;
    let certificate = params.signed_by(&asked.public_key, &ca).map_err(|e| malformed(&ca_file, &e))?;
    let file = request.with_extension("pem");
    write(&file, certificate.pem().as_bytes(), false)?;
    inspect_certificate(&file)?;
    Ok(file)
}

/// Key and certificate for `role` in one go, where authority and role are the same person's: `<role>.key` and
/// `<role>.pem` in `directory`, the key encrypted if there is a passphrase.
///
/// # Errors
/// [`PkiError`] naming the file.
pub fn issue(
    authority: &Authority,
    directory: &Path,
    role: Role,
    organisation: &str,
    validity: Validity,
    passphrase: Option<&Passphrase>,
) -> Result<PathBuf, PkiError> {
    let request = request(directory, role, organisation, passphrase)?;
    let certificate = sign(authority, &request, role, validity)?;
    fs::remove_file(&request).map_err(|source| PkiError::File { file: request, source })?;
    Ok(certificate)
}

/// Puts a certificate on the revocation list of the authority, `crl.pem`, which roles read (`revoked` in their
/// configuration). The number of a certificate follows from its key, so that one renewed with the same key is revoked
/// as well.
///
/// # Errors
/// [`PkiError`] naming the file.
pub fn revoke(authority: &Authority, certificate: &Path) -> Result<PathBuf, PkiError> {
    let file = authority.directory.join(REVOKED);
    let (ca, ca_file) = issuer(authority)?;
    let now = params(Validity { from_days: 0, to_days: 3650 });
    let mut revoked = if file.exists() { read_revoked(&file)? } else { Vec::new() };
    let serial = serial_of(certificate)?;
    if !revoked.contains(&serial) {
        revoked.push(serial);
    }
    let entry = |serial: &Vec<u8>| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: now.not_before,
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: now.not_before,
        next_update: now.not_after,
        crl_number: SerialNumber::from(revoked.len() as u64),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(entry).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let pem = list.signed_by(&ca).and_then(|l| l.pem()).map_err(|e| malformed(&ca_file, &e))?;
    write(&file, pem.as_bytes(), false)?;
    Ok(file)
}

/// The organisation that a certificate names for people; nothing is decided by it.
///
/// # Errors
/// [`PkiError`] naming the file.
pub fn organisation(certificate: &Path) -> Result<Option<String>, PkiError> {
    let text = read(certificate)?;
    let (_, pem) = parse_x509_pem(text.as_bytes()).map_err(|e| malformed(certificate, &e))?;
    let parsed = pem.parse_x509().map_err(|e| malformed(certificate, &e))?;
    let name = parsed.subject().iter_organization().next().and_then(|name| name.as_str().ok());
    Ok(name.filter(|name| !name.is_empty()).map(str::to_owned))
}

fn serial_of(certificate: &Path) -> Result<Vec<u8>, PkiError> {
    let text = read(certificate)?;
    let (_, pem) = parse_x509_pem(text.as_bytes()).map_err(|e| malformed(certificate, &e))?;
    let parsed = pem.parse_x509().map_err(|e| malformed(certificate, &e))?;
    Ok(parsed.raw_serial().to_vec())
}

fn read_revoked(file: &Path) -> Result<Vec<Vec<u8>>, PkiError> {
    let text = read(file)?;
    let (_, pem) = parse_x509_pem(text.as_bytes()).map_err(|e| malformed(file, &e))?;
    let (_, list) = parse_x509_crl(&pem.contents).map_err(|e| malformed(file, &e))?;
    Ok(list.iter_revoked_certificates().map(|c| c.raw_serial().to_vec()).collect())
}

fn issuer(authority: &Authority) -> Result<(Issuer<'static, KeyPair>, PathBuf), PkiError> {
    let pair = read_key(&authority.key(), authority.passphrase.as_ref())?;
    let certificate = authority.directory.join(CA_CERTIFICATE);
    let issuer = Issuer::from_ca_cert_pem(&read(&certificate)?, pair).map_err(|e| malformed(&certificate, &e))?;
    Ok((issuer, certificate))
}

fn role_params(role: Role, organisation: &str, validity: Validity) -> Result<CertificateParams, rcgen::Error> {
    let mut params = params(validity);
    params.distinguished_name.push(DnType::CommonName, role.to_string());
    params.distinguished_name.push(DnType::OrganizationName, organisation);
    params.subject_alt_names = vec![rcgen::SanType::DnsName(role.certificate_name().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Parties take either side of TLS when they talk to each other.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn params(validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let today = jiff::Timestamp::now();
    let day = |offset: i64| {
        let then = today.checked_add(jiff::SignedDuration::from_hours(24 * offset)).unwrap_or(today);
        let date = then.to_zoned(jiff::tz::TimeZone::UTC).date();
        rcgen::date_time_ymd(date.year().into(), date.month().cast_unsigned(), date.day().cast_unsigned())
    };
    params.not_before = day(validity.from_days);
    params.not_after = day(validity.to_days);
    params
}

fn new_key(file: &Path, passphrase: Option<&Passphrase>) -> Result<KeyPair, PkiError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|e| malformed(file, &e))?;
    write(file, key_pem(file, &key, passphrase)?.as_bytes(), true)?;
    Ok(key)
}

fn read_key(file: &Path, passphrase: Option<&Passphrase>) -> Result<KeyPair, PkiError> {
    let key = KeyFile::read(file)?.decrypt(file, passphrase)?;
    KeyPair::try_from(&*key).map_err(|e| malformed(file, &e))
}

fn key_pem(file: &Path, key: &KeyPair, passphrase: Option<&Passphrase>) -> Result<Zeroizing<String>, PkiError> {
    let Some(passphrase) = passphrase else { return Ok(Zeroizing::new(key.serialize_pem())) };
    let der = Zeroizing::new(key.serialize_der());
    encrypt_key(&der, passphrase, &mut SecretRng::from_system()?).map_err(|e| malformed(file, &e))
}

fn read(file: &Path) -> Result<String, PkiError> {
    fs::read_to_string(file).map_err(|source| PkiError::File { file: file.to_owned(), source })
}

/// Writes a file; a secret one only if it does not exist, readable by its owner only.
fn write(file: &Path, bytes: &[u8], secret: bool) -> Result<(), PkiError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AlreadyExists => PkiError::Exists { file: file.to_owned() },
        _ => PkiError::File { file: file.to_owned(), source },
    };
    if let Some(directory) = file.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    let mut options = fs::OpenOptions::new();
    options.write(true);
    if secret {
        options.create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    } else {
        options.create(true).truncate(true);
    }
    options.open(file).and_then(|mut f| f.write_all(bytes)).map_err(failed)
}

fn malformed(file: &Path, reason: &dyn std::fmt::Display) -> PkiError {
    PkiError::Malformed { file: file.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spnn_protocol::{Identity, IdentityFiles, PassphraseSource};
    use std::sync::Arc;

    fn load(certificate: &Path, key: &Path, ca: &Path) -> Result<Identity, String> {
        Identity::load(IdentityFiles::new(certificate, key, ca)).map_err(|e| e.to_string())
    }

    #[test]
    fn keys_stay_where_they_are_made() {
        let directory = tempfile::tempdir().unwrap();
        let (operator, party) = (directory.path().join("operator"), directory.path().join("bank"));
        let authority = Authority::in_directory(&operator);
        let ca = init(&authority, "test", Validity::days(10)).unwrap();
        let csr = request(&party, Role::party(0), "Bank & Söhne", None).unwrap();
        assert!(matches!(sign(&authority, &csr, Role::Server, Validity::days(10)), Err(PkiError::OtherRole { .. })));
        let certificate = sign(&authority, &csr, Role::party(0), Validity::days(10)).unwrap();
        let identity = load(&certificate, &party.join("party-0.key"), &ca).unwrap();
        assert_eq!(identity.role(), Role::party(0));
        assert!(matches!(request(&party, Role::party(0), "again", None), Err(PkiError::Exists { .. })));
        let issued = issue(&authority, &operator, Role::Server, "op", Validity::days(10), None).unwrap();
        assert_eq!(inspect_certificate(&issued).unwrap().0, Role::Server);
        // A key that is not the certificate's.
        let error = load(&certificate, &operator.join("server.key"), &ca).unwrap_err();
        assert!(error.contains("party-0.pem"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn an_open_key_file_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::in_directory(directory.path());
        let ca = init(&authority, "test", Validity::days(1)).unwrap();
        let certificate = issue(&authority, directory.path(), Role::Server, "op", Validity::days(1), None).unwrap();
        let key = directory.path().join("server.key");
        load(&certificate, &key, &ca).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let error = load(&certificate, &key, &ca).unwrap_err();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_renewed_certificate_has_role_organisation_and_fingerprint_of_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::in_directory(directory.path());
        let ca = init(&authority, "test", Validity::days(1)).unwrap();
        let before = issue(&authority, directory.path(), Role::party(1), "Bank", Validity::days(0), None).unwrap();
        let key = directory.path().join("party-1.key");
        let error = load(&before, &key, &ca).unwrap_err();
        assert!(error.contains("expired on") && error.contains("spnn pki renew"), "{error}");
        let (_, fingerprint) = inspect_certificate(&before).unwrap();
        let csr = renew(&before, &key, None).unwrap();
        let after = sign(&authority, &csr, Role::party(1), Validity::days(5)).unwrap();
        assert_eq!(load(&after, &key, &ca).unwrap().fingerprint(), fingerprint);
        let (_, pem) = parse_x509_pem(&fs::read(&after).unwrap()).unwrap();
        let subject = pem.parse_x509().unwrap().subject().to_string();
        assert!(subject.contains("Bank"), "{subject}");
        issue(&authority, directory.path(), Role::Server, "op", Validity::days(1), None).unwrap();
        let error = renew(&after, &directory.path().join("server.key"), None).unwrap_err().to_string();
        assert!(error.contains("is not the key of"), "{error}");
    }

    #[test]
    fn an_authority_and_a_role_may_encrypt_their_keys() {
        let passphrase = |text: &str| Passphrase::new(Zeroizing::new(text.into())).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let authority = Authority { directory: path.clone(), passphrase: Some(passphrase("of the authority")) };
        let ca = init(&authority, "test", Validity::days(1)).unwrap();
        let own = passphrase("of the server");
        let certificate = issue(&authority, &path, Role::Server, "op", Validity::days(1), Some(&own)).unwrap();
        let key = path.join("server.key");
        assert!(KeyFile::read(&key).unwrap().is_encrypted() && KeyFile::read(&authority.key()).unwrap().is_encrypted());
        let without = issue(&Authority::in_directory(&path), &path, Role::Coordinator, "op", Validity::days(1), None);
        assert!(without.unwrap_err().to_string().contains("no passphrase was given"));

        let given = PassphraseSource::Given(Arc::new(own));
        let files = IdentityFiles { passphrase: given, ..IdentityFiles::new(&certificate, &key, &ca) };
        let fingerprint = Identity::load(files).unwrap().fingerprint();
        let error = set_passphrase(&key, Some(&passphrase("a guess")), None).unwrap_err().to_string();
        assert!(error.contains("server.key") && error.contains("passphrase is not that"), "{error}");
        set_passphrase(&key, Some(&passphrase("of the server")), None).unwrap();
        assert_eq!(load(&certificate, &key, &ca).unwrap().fingerprint(), fingerprint);
    }
}
