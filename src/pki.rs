//! Certificates: one private authority, and one certificate for each role.
//!
//! A key never has to leave the organisation that uses it: [`request`] makes key and request there, [`sign`] answers
//! with a certificate only. Whoever holds the authority's key can make certificates for any role; parties therefore pin
//! each other's keys, and the authority cannot come between them.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber,
};
use spnn_protocol::{ProtocolError, Role, inspect_certificate};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use thiserror::Error;
use x509_parser::{parse_x509_crl, pem::parse_x509_pem};

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
    /// The finished certificate does not read back.
    #[error(transparent)]
    Certificate(#[from] ProtocolError),
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

const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const REVOKED: &str = "crl.pem";

/// Makes an authority in `directory`: `ca.pem` to hand out, `ca.key` to keep (0600).
///
/// # Errors
/// [`PkiError`] naming the file; an existing key is not overwritten.
pub fn init(directory: &Path, name: &str, validity: Validity) -> Result<PathBuf, PkiError> {
    let key = new_key(&directory.join(CA_KEY))?;
    let mut params = params(validity);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let file = directory.join(CA_CERTIFICATE);
    let certificate = params.self_signed(&key).map_err(|e| malformed(&file, &e))?;
    write(&file, certificate.pem().as_bytes(), false)?;
    Ok(file)
}

/// Makes a key and a request for `role` in `directory`: `<role>.key` to keep (0600), `<role>.csr` to send.
///
/// # Errors
/// [`PkiError`] naming the file; an existing key is not overwritten.
pub fn request(directory: &Path, role: Role, organisation: &str) -> Result<PathBuf, PkiError> {
    let key = new_key(&directory.join(format!("{role}.key")))?;
    let file = directory.join(format!("{role}.csr"));
    let request = role_params(role, organisation, Validity::days(0))
        .map_err(|e| malformed(&file, &e))?
        .serialize_request(&key)
        .and_then(|r| r.pem())
        .map_err(|e| malformed(&file, &e))?;
    write(&file, request.as_bytes(), false)?;
    Ok(file)
}

/// Signs a request for `role` with the authority in `authority`; writes the certificate beside the request.
///
/// Only name and key are taken from the request; usages and validity are the authority's.
///
/// # Errors
/// [`PkiError`] naming the file; a request that names another role is refused.
pub fn sign(authority: &Path, request: &Path, role: Role, validity: Validity) -> Result<PathBuf, PkiError> {
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
/// `<role>.pem` in `directory`.
///
/// # Errors
/// [`PkiError`] naming the file.
pub fn issue(
    authority: &Path,
    directory: &Path,
    role: Role,
    organisation: &str,
    validity: Validity,
) -> Result<PathBuf, PkiError> {
    let request = request(directory, role, organisation)?;
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
pub fn revoke(authority: &Path, certificate: &Path) -> Result<PathBuf, PkiError> {
    let file = authority.join(REVOKED);
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

fn issuer(authority: &Path) -> Result<(Issuer<'static, KeyPair>, PathBuf), PkiError> {
    let (certificate, key) = (authority.join(CA_CERTIFICATE), authority.join(CA_KEY));
    let pair = KeyPair::from_pem(&read(&key)?).map_err(|e| malformed(&key, &e))?;
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

fn new_key(file: &Path) -> Result<KeyPair, PkiError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|e| malformed(file, &e))?;
    write(file, key.serialize_pem().as_bytes(), true)?;
    Ok(key)
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
    use spnn_protocol::Identity;

    #[test]
    fn keys_stay_where_they_are_made() {
        let directory = tempfile::tempdir().unwrap();
        let (operator, party) = (directory.path().join("operator"), directory.path().join("bank"));
        let ca = init(&operator, "test", Validity::days(10)).unwrap();
        let csr = request(&party, Role::party(0), "Bank & Söhne").unwrap();
        assert!(matches!(sign(&operator, &csr, Role::Server, Validity::days(10)), Err(PkiError::OtherRole { .. })));
        let certificate = sign(&operator, &csr, Role::party(0), Validity::days(10)).unwrap();
        let identity = Identity::load(&certificate, &party.join("party-0.key"), &ca).unwrap();
        assert_eq!(identity.role(), Role::party(0));
        assert!(matches!(request(&party, Role::party(0), "again"), Err(PkiError::Exists { .. })));
        let issued = issue(&operator, &operator, Role::Server, "op", Validity::days(10)).unwrap();
        assert_eq!(inspect_certificate(&issued).unwrap().0, Role::Server);
        // A key that is not the certificate's.
        let error = Identity::load(&certificate, &operator.join("server.key"), &ca).unwrap_err();
        assert!(error.to_string().contains("party-0.pem"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn an_open_key_file_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let ca = init(directory.path(), "test", Validity::days(1)).unwrap();
        let certificate = issue(directory.path(), directory.path(), Role::Server, "op", Validity::days(1)).unwrap();
        let key = directory.path().join("server.key");
        Identity::load(&certificate, &key, &ca).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Identity::load(&certificate, &key, &ca).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }
}
