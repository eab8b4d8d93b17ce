//! A role's signature under a contract: a text file beside it.
//!
//! Signed is `"spnn contract v1\0"`, the SHA-256 of the session's canonical text with all terms, and the time of signing
//! as text, then what every [`Seal`] adds: a zero byte and the SHA-256 of the signer's certificates. The key is that of the role's certificate, whose fingerprint the contract names: whoever signs, signs for
//! exactly the keys that will take part.

use super::{ContractError, ContractTerms};
use crate::authority::Authority;
use crate::durable::write_durable;
use crate::identity::Identity;
use crate::signing::{Seal, Signer};
use crate::text::read_text;
use crate::{ProtocolError, Role, SessionConfig};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A signature as it stands in its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContractSignature {
    /// Who signed.
    role: Role,
    /// SHA-256 of the canonical text.
    contract: String,
    /// When, to the second, by the signer's clock.
    signed_at: Timestamp,
    /// Its value and certificate.
    seal: Seal,
}

/// A signature that is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// Who.
    pub role: Role,
    /// For whom.
    pub organisation: String,
    /// When, by the signer's clock, RFC 3339.
    pub signed_at: String,
}

/// What is signed cannot be anything else that these keys sign: TLS 1.3 signs 64 spaces first, certificates DER.
const DOMAIN: &[u8] = b"spnn contract v1\0";
/// More than any chain of certificates needs.
const BYTES_MAX: u64 = 64 << 10;
/// A signer's clock may be so far ahead of ours.
const CLOCK_AHEAD_MAX: SignedDuration = SignedDuration::from_hours(1);

impl ContractSignature {
    /// Signs the session's contract as `identity`'s role. The same key must be that role's in the contract, its
    /// certificate the authority's, and the contract in force.
    ///
    /// # Errors
    /// [`ContractError`] naming the term.
    pub fn sign(
        session: &SessionConfig,
        terms: &ContractTerms,
        identity: &Identity,
        now: SystemTime,
    ) -> Result<Self, ContractError> {
        terms.check_in_force(now)?;
        check_own_key(terms, identity)?;
        let refused = |reason: String| ContractError::Key { file: identity.file().to_owned(), reason };
        identity.authority().check(identity.chain(), now).map_err(refused)?;
        let signed_at = Timestamp::try_from(now)
            .and_then(|now| Timestamp::from_second(now.as_second()))
            .map_err(|e| refused(format!("the time of this machine cannot be written: {e}")))?;
        let seal = Seal::make(identity, &message(session, signed_at)).map_err(refused)?;
        Ok(Self { role: identity.role(), contract: digest_text(session), signed_at, seal })
    }

    /// Parses the text of a signature file.
    ///
    /// # Errors
    /// Line and column, and what is wrong there.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())
    }

    /// Writes the signature's file.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] naming the file.
    pub fn write(&self, file: &Path) -> Result<(), ProtocolError> {
        write_durable(file, self.to_string().as_bytes())
    }

    /// Who signed, if it is a signature under this contract, by the role's key of the contract, with a certificate of
    /// the authority that was in force then and is not revoked now.
    ///
    /// # Errors
    /// What is wrong with it; ours and theirs.
    pub fn verify(
        &self,
        session: &SessionConfig,
        terms: &ContractTerms,
        authority: &Authority,
        now: SystemTime,
    ) -> Result<Signed, String> {
        let ours = digest_text(session);
        if self.contract != ours {
            return Err(format!("it is for another text: it signs {}, this contract is {ours}", self.contract));
        }
        let signatory = terms.signatory(self.role).ok_or_else(|| format!("{} is no signatory", self.role))?;
        let Signer { role, key, chain } = self.seal.check(&message(session, self.signed_at))?;
        if role != self.role {
            return Err(format!("its certificate is that of {role}"));
        }
        if key != signatory.key {
            return Err(format!("it is by key {key}, the contract names {}", signatory.key));
        }
        let ahead = Timestamp::try_from(now).and_then(|now| now.checked_add(CLOCK_AHEAD_MAX));
        if ahead.is_ok_and(|latest| self.signed_at > latest) {
            return Err(format!("it is of {}, which is in the future", self.signed_at));
        }
        authority.check(&chain, self.signed_at.into()).map_err(|e| format!("its certificate: {e}"))?;
        Ok(Signed { role, organisation: signatory.organisation.clone(), signed_at: self.signed_at.to_string() })
    }
}

impl fmt::Display for ContractSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# {} has signed this contract. To check: spnn contract verify", self.role)?;
        f.write_str(&toml::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// The directory with the signatures of a contract, unless a role's configuration names another.
#[must_use]
pub fn signatures_beside(contract: &Path) -> PathBuf {
    contract.parent().unwrap_or(Path::new(".")).join("signatures")
}

/// The file of a role's signature.
#[must_use]
pub fn signature_file(directory: &Path, role: Role) -> PathBuf {
    directory.join(format!("{role}.sig"))
}

/// Checks the signature of every signatory, in the order of the contract.
#[must_use]
pub fn check_signed(
    session: &SessionConfig,
    terms: &ContractTerms,
    signatures: &Path,
    authority: &Authority,
    now: SystemTime,
) -> Vec<Result<Signed, ContractError>> {
    let check = |(role, organisation): (Role, &String)| {
        let file = signature_file(signatures, role);
        let text = match read_text(&file, BYTES_MAX) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(ContractError::NotSigned { role, organisation: organisation.clone(), file });
            }
            Err(source) => return Err(ContractError::File { file, source }),
        };
        ContractSignature::parse(&text)
            .and_then(|signature| match signature.role {
                found if found != role => Err(format!("it is that of {found}")),
                _ => signature.verify(session, terms, authority, now),
            })
            .map_err(|reason| ContractError::Signature { file, role, reason })
    };
    terms.signatories.iter().map(|s| check((s.role, &s.organisation))).collect()
}

/// Refuses to take part with another key than the contract names for this role.
///
/// # Errors
/// [`ContractError::OwnKey`]; [`ContractError::Key`] if the role is no signatory.
pub fn check_own_key(terms: &ContractTerms, identity: &Identity) -> Result<(), ContractError> {
    let (role, ours) = (identity.role(), identity.fingerprint());
    match terms.signatory(role) {
        None => {
            let reason = format!("{role} is no signatory of this contract");
            Err(ContractError::Key { file: identity.file().to_owned(), reason })
        }
        Some(signatory) if signatory.key != ours => Err(ContractError::OwnKey { role, ours, theirs: signatory.key }),
        Some(_) => Ok(()),
    }
}

fn message(session: &SessionConfig, signed_at: Timestamp) -> Vec<u8> {
    [DOMAIN, &session.digest(), signed_at.to_string().as_bytes()].concat()
}

fn digest_text(session: &SessionConfig) -> String {
    format!("sha256:{}", session.digest_text())
}
