//! A private key in a file, as it is or under a passphrase.
//!
//! An encrypted key is an `ENCRYPTED PRIVATE KEY` of PKCS #8 (RFC 5958) with PBES2 (RFC 8018), which `openssl pkcs8` reads
//! and writes. Ours use scrypt and AES-256-CBC.

use crate::ProtocolError;
use crate::durable::write_private;
use pkcs8::pkcs5;
use pkcs8::pkcs5::pbes2::{Kdf, Parameters, Pbkdf2Params, ScryptParams};
use pkcs8::{EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef, SecretDocument};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use spnn_crypto::SecretRng;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// A private key as a file holds it.
pub enum KeyFile {
    /// In the clear.
    Plain(Zeroizing<PrivateKeyDer<'static>>),
    /// Under a passphrase: an `EncryptedPrivateKeyInfo`.
    Encrypted(SecretDocument),
}

/// What a private key is encrypted under. Cleared on drop, without a printable form.
#[derive(PartialEq, Eq)]
pub struct Passphrase(Zeroizing<Vec<u8>>);

/// Where the passphrase of a role's key comes from. It is looked for only if the key is encrypted.
#[derive(Clone, Default)]
pub enum PassphraseSource {
    /// There is none.
    #[default]
    Nowhere,
    /// The first line of a file that only its owner can read.
    File(PathBuf),
    /// Someone gave it when the process started.
    Given(Arc<Passphrase>),
}

const LABEL: &str = "ENCRYPTED PRIVATE KEY";
/// No private key is as long.
const FILE_BYTES_MAX: usize = 64 << 10;
/// scrypt for keys that are made here: N = 2^15, as much work as the 2^17 with r = 8 and p = 1 that OWASP asks for. OpenSSL
/// reads no key that takes 32 MiB or more; with the usual r = 8 this one would take 2 KiB too much.
const SCRYPT_LOG_N: u8 = 15;
const SCRYPT_R: u32 = 7;
const SCRYPT_P: u32 = 4;
/// A key from elsewhere may take so much: N·r of 128 bytes each, which is 1 GiB,
const SCRYPT_BLOCKS_MAX: u64 = 1 << 23;
/// and so many in all, which is sixteen times as long as ours take.
const SCRYPT_WORK_MAX: u64 = 1 << 24;
/// A few seconds. OpenSSL writes 2,048.
const PBKDF2_ITERATIONS_MAX: u32 = 10_000_000;

impl KeyFile {
    /// Reads a key in PEM.
    ///
    /// # Errors
    /// [`ProtocolError::Identity`] naming the file: unreadable, open to others on this machine, malformed, or encrypted in
    /// another way.
    pub fn read(file: &Path) -> Result<Self, ProtocolError> {
        Self::parse(file, &Self::read_pem(file)?)
    }

    /// The content of the file.
    pub(crate) fn read_pem(file: &Path) -> Result<Zeroizing<Vec<u8>>, ProtocolError> {
        read_secret(file, "private key", FILE_BYTES_MAX)
    }

    /// The key in the content of `file`.
    pub(crate) fn parse(file: &Path, pem: &[u8]) -> Result<Self, ProtocolError> {
        let text = std::str::from_utf8(pem).map_err(|_| problem(file, &"holds no PEM"))?;
        if text.contains("BEGIN ENCRYPTED PRIVATE KEY") {
            let (_, document) = SecretDocument::from_pem(text).map_err(|e| problem(file, &e))?;
            return Ok(Self::Encrypted(document));
        }
        if text.contains("Proc-Type: 4,ENCRYPTED") {
            let reason = "encrypted as OpenSSL did before PKCS #8; convert it: openssl pkcs8 -topk8 -scrypt";
            return Err(problem(file, &reason));
        }
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|e| pem_problem(file, &e))?;
        Ok(Self::Plain(Zeroizing::new(key)))
    }

    /// Whether a passphrase is needed.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        matches!(self, Self::Encrypted(_))
    }

    /// The key in the clear. `file` is what errors name.
    ///
    /// # Errors
    /// [`ProtocolError::Identity`]: no passphrase, or the wrong one; a cost of its derivation that is meant to stop this
    /// process.
    pub fn decrypt(
        self,
        file: &Path,
        passphrase: Option<&Passphrase>,
    ) -> Result<Zeroizing<PrivateKeyDer<'static>>, ProtocolError> {
        let document = match self {
            Self::Plain(key) => return Ok(key),
            Self::Encrypted(document) => document,
        };
        let Some(passphrase) = passphrase else {
            return Err(problem(
                file,
                &"this private key is encrypted and no passphrase was given: name a passphrase_file in the \
                  configuration, set SPNN_PASSPHRASE, or start at a terminal",
            ));
        };
        let encrypted = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes()).map_err(|e| problem(file, &e))?;
        let parameters = encrypted.encryption_algorithm.pbes2();
        let parameters = parameters.ok_or_else(|| problem(file, &"encrypted with PBES1; expected PBES2"))?;
        check_cost(&parameters.kdf).map_err(|e| problem(file, &e))?;
        let wrong = |e| match e {
            pkcs8::Error::EncryptedPrivateKey(
                e @ (pkcs5::Error::UnsupportedAlgorithm { .. } | pkcs5::Error::AlgorithmParametersInvalid { .. }),
            ) => problem(file, &format!("encrypted in a way that is not read here: {e}")),
            _ => problem(file, &"the passphrase is not that of this private key"),
        };
        let key = encrypted.decrypt(&passphrase.0).map_err(wrong)?;
        // A wrong passphrase gets by the padding once in 256 times.
        PrivateKeyInfoRef::try_from(key.as_bytes()).map_err(wrong)?;
        Ok(Zeroizing::new(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into()))
    }
}

/// A private key, PKCS #8 in DER, as PEM under a passphrase.
///
/// # Errors
/// What is wrong with the key.
pub fn encrypt_key(key: &[u8], passphrase: &Passphrase, rng: &mut SecretRng) -> Result<Zeroizing<String>, String> {
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    rng.fill_bytes(&mut salt);
    rng.fill_bytes(&mut iv);
    let scrypt = scrypt::Params::new(SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P).map_err(|e| e.to_string())?;
    let parameters = Parameters::generate_scrypt_aes256cbc(scrypt, &salt, iv).map_err(|e| e.to_string())?;
    let key = PrivateKeyInfoRef::try_from(key).map_err(|e| e.to_string())?;
    let encrypted = key.encrypt_with_params(parameters, &passphrase.0).map_err(|e| e.to_string())?;
    encrypted.to_pem(LABEL, LineEnding::LF).map_err(|e| e.to_string())
}

/// Puts another private key, in PEM, in the place of one: wholly or not at all, readable by its owner only.
///
/// # Errors
/// [`ProtocolError::Storage`] naming the file.
pub fn replace_key(file: &Path, pem: &str) -> Result<(), ProtocolError> {
    write_private(file, &[pem.as_bytes()])
}

/// Whoever can write a key file must not be able to use up this process's memory or time.
fn check_cost(kdf: &Kdf) -> Result<(), String> {
    match kdf {
        Kdf::Scrypt(ScryptParams { cost_parameter, block_size, parallelization, .. }) => {
            let (n, r, p) = (u128::from(*cost_parameter), u128::from(*block_size), u128::from(*parallelization));
            if !n.is_power_of_two() || n < 2 || r == 0 || p == 0 {
                return Err(format!("scrypt with N = {n}, r = {r}, p = {p} does not exist"));
            }
            if n * r > SCRYPT_BLOCKS_MAX.into() || n * r * p > SCRYPT_WORK_MAX.into() {
                return Err(format!("scrypt with N = {n}, r = {r}, p = {p} costs too much; expected at most 1 GiB"));
            }
            Ok(())
        }
        Kdf::Pbkdf2(Pbkdf2Params { iteration_count, .. }) if *iteration_count > PBKDF2_ITERATIONS_MAX => {
            Err(format!("PBKDF2 with {iteration_count} iterations; expected at most {PBKDF2_ITERATIONS_MAX}"))
        }
        Kdf::Pbkdf2(_) => Ok(()),
        _ => Err("another key derivation than scrypt and PBKDF2".into()),
    }
}

impl Passphrase {
    /// Longer ones are refused.
    pub const BYTES_MAX: usize = 1024;

    /// A passphrase that someone gave.
    ///
    /// # Errors
    /// Why it cannot be one: it is empty or too long.
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Result<Self, &'static str> {
        match bytes.len() {
            0 => Err("the passphrase is empty"),
            n if n > Self::BYTES_MAX => Err("the passphrase is longer than 1024 bytes"),
            _ => Ok(Self(bytes)),
        }
    }

    /// SHA-256 of it, to compare with that of another one.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(&*self.0).into()
    }

    /// The first line of a file that only its owner can read.
    ///
    /// # Errors
    /// [`ProtocolError::Identity`] naming the file.
    pub fn read(file: &Path) -> Result<Self, ProtocolError> {
        let mut bytes = read_secret(file, "passphrase", Self::BYTES_MAX + 2)?;
        let line = bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len());
        bytes.truncate(line);
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        Self::new(bytes).map_err(|e| problem(file, &e))
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

impl PassphraseSource {
    /// The passphrase, if there is one.
    ///
    /// # Errors
    /// [`ProtocolError::Identity`] naming the file it should be in.
    pub(crate) fn passphrase(&self) -> Result<Option<Arc<Passphrase>>, ProtocolError> {
        Ok(match self {
            Self::Nowhere => None,
            Self::File(file) => Some(Arc::new(Passphrase::read(file)?)),
            Self::Given(passphrase) => Some(Arc::clone(passphrase)),
        })
    }
}

impl fmt::Debug for PassphraseSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => f.write_str("Nowhere"),
            Self::File(file) => write!(f, "File({})", file.display()),
            Self::Given(_) => f.write_str("Given(..)"),
        }
    }
}

/// The content of a file that nobody else on this machine may read, of at most `bytes_max` bytes.
fn read_secret(file: &Path, what: &str, bytes_max: usize) -> Result<Zeroizing<Vec<u8>>, ProtocolError> {
    let open = File::open(file).map_err(|e| problem(file, &e))?;
    refuse_open_file(file, &open, what)?;
    // In one piece: a vector that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(bytes_max + 1));
    open.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(|e| problem(file, &e))?;
    if bytes.len() > bytes_max {
        return Err(problem(file, &format!("longer than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// A secret that others on the machine can read is no longer one.
#[cfg(unix)]
fn refuse_open_file(file: &Path, open: &File, what: &str) -> Result<(), ProtocolError> {
    use std::os::unix::fs::PermissionsExt;
    let mode = open.metadata().map_err(|e| problem(file, &e))?.permissions().mode() & 0o777;
    // What a service manager hands over (systemd's LoadCredential=) lies in a directory that only the service can enter,
    // and the entry of its access list that lets the service in shows as a right of the group.
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY");
    let handed_over = directory.is_some_and(|d| file.parent() == Some(Path::new(&d)));
    let others = if handed_over { 0o007 } else { 0o077 };
    if mode & others != 0 {
        let reason = format!("others can read this {what} (mode {mode:03o}); run: chmod 600 {}", file.display());
        return Err(problem(file, &reason));
    }
    Ok(())
}

#[cfg(not(unix))]
fn refuse_open_file(_file: &Path, _open: &File, _what: &str) -> Result<(), ProtocolError> {
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

#[cfg(test)]
mod tests;
