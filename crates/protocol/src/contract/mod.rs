//! What the organisations of a session have signed.
//!
//! A contract is a session file with a section `[contract]`: the terms are part of [`SessionConfig`], so every handshake
//! compares them with everything else, and a term that differs is named. Each role signs the digest of the whole with
//! the key of its certificate ([`ContractSignature`]), and takes part only when all signatures are there
//! ([`check_signed`]), the contract is in force, and a party's columns are those that it names.

mod expiry;
mod leak;
mod signature;

#[cfg(test)]
pub(crate) mod tests;

pub use expiry::Expiry;
pub use leak::Leak;
pub(crate) use leak::OF_EVERY_SESSION;
pub use signature::{ContractSignature, Signed, check_own_key, check_signed, signature_file, signatures_beside};

use crate::{Fingerprint, Role, SessionConfig, SessionError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;
use thiserror::Error;

/// The terms of a contract, the section `[contract]` of a session file. What the session says already (epochs, first
/// layer, model) is not repeated here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContractTerms {
    /// What the model is for, in words.
    pub purpose: String,
    /// Until when roles take part.
    pub expires: Expiry,
    /// Who gets predictions.
    pub outputs: Vec<Recipient>,
    /// How often a record may be scored; any number of times if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predictions_per_record_max: Option<u32>,
    /// Everything that the session's first layer does not prevent, by name.
    pub accepted_leaks: Vec<Leak>,
    /// The label column, at the label holder.
    pub label: String,
    /// The feature columns of each party.
    pub columns: BTreeMap<Role, Vec<String>>,
    /// Who signs: every role of the session once.
    pub signatories: Vec<Signatory>,
}

/// Who gets predictions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recipient {
    /// The party with the labels.
    LabelHolder,
}

/// A role, the organisation behind it, and the key that it signs with and takes part with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signatory {
    /// Which role.
    pub role: Role,
    /// Its organisation, for people.
    pub organisation: String,
    /// The key of its certificate.
    pub key: Fingerprint,
}

/// Why a role does not take part under a contract, or refuses a signature.
#[derive(Debug, Error)]
pub enum ContractError {
    /// It is over.
    #[error("contract.expires = {expires}: the contract is over; this clock says {now}")]
    Expired {
        /// The term.
        expires: Expiry,
        /// Time here.
        now: String,
    },
    /// This role's key is not the one that is to sign.
    #[error("contract.signatories: the key of {role} is {theirs} in the contract, but this certificate has {ours}")]
    OwnKey {
        /// Which role.
        role: Role,
        /// Fingerprint of our certificate's key.
        ours: Fingerprint,
        /// Fingerprint in the contract.
        theirs: Fingerprint,
    },
    /// A role that is to sign has not.
    #[error("{role} ({organisation}) has not signed: there is no {}", file.display())]
    NotSigned {
        /// Which role.
        role: Role,
        /// Whose.
        organisation: String,
        /// Where its signature would be.
        file: PathBuf,
    },
    /// A signature is not good.
    #[error("{}: the signature of {role} is refused: {reason}", file.display())]
    Signature {
        /// Which file.
        file: PathBuf,
        /// Whose it should be.
        role: Role,
        /// What is wrong with it.
        reason: String,
    },
    /// A party's feature columns are not those of the contract.
    #[error("contract.columns.{role}: {difference}")]
    Columns {
        /// Which party.
        role: Role,
        /// Columns that are here and not there, or there and not here.
        difference: String,
    },
    /// The label column is not that of the contract.
    #[error("contract.label = \"{theirs}\", but [data] of this label holder has {ours}")]
    Label {
        /// What is configured here.
        ours: String,
        /// The term.
        theirs: String,
    },
    /// A record has been scored as often as may be.
    #[error("contract.predictions_per_record_max = {max}: a record has been scored {released} times")]
    Released {
        /// The term.
        max: u32,
        /// How often.
        released: u32,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// This role's key cannot sign.
    #[error("{}: {reason}", file.display())]
    Key {
        /// The certificate's file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
}

impl ContractError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Expired { .. } => {
                "agree on a new contract and have every role sign it; is the clock of this machine right?"
            }
            Self::OwnKey { .. } => "a certificate renewed with the same key is fine; another key needs a new contract",
            Self::NotSigned { .. } => {
                "that organisation runs: spnn contract sign, and sends its file from 'signatures'"
            }
            Self::Signature { .. } => "that organisation compares its copy of the contract and signs again",
            Self::Columns { .. } | Self::Label { .. } => {
                "nothing of the data was sent to anyone; select the columns that were agreed on, or agree on a new contract"
            }
            Self::Released { .. } | Self::File { .. } | Self::Key { .. } => return None,
        })
    }
}

impl ContractTerms {
    const TEXT_MAX: usize = 4000;
    const NAME_MAX: usize = 256;

    /// The signatory of a role.
    #[must_use]
    pub fn signatory(&self, role: Role) -> Option<&Signatory> {
        self.signatories.iter().find(|s| s.role == role)
    }

    /// The keys of everyone but `me`, to pin.
    #[must_use]
    pub fn pins(&self, me: Role) -> BTreeMap<Role, Fingerprint> {
        self.signatories.iter().filter(|s| s.role != me).map(|s| (s.role, s.key)).collect()
    }

    /// Refuses a contract that is over.
    ///
    /// # Errors
    /// [`ContractError::Expired`].
    pub fn check_in_force(&self, now: SystemTime) -> Result<(), ContractError> {
        if !self.expires.is_over(now) {
            return Ok(());
        }
        let now = jiff::Timestamp::try_from(now).map_or_else(|e| e.to_string(), |now| format!("{now:.0}"));
        Err(ContractError::Expired { expires: self.expires, now })
    }

    /// Refuses feature columns of party `me` that are not exactly those of the contract, in any order.
    ///
    /// # Errors
    /// [`ContractError::Columns`] naming the columns.
    pub fn check_columns(&self, me: Role, columns: &[String]) -> Result<(), ContractError> {
        let ours: BTreeSet<&String> = columns.iter().collect();
        let agreed: BTreeSet<&String> = self.columns.get(&me).into_iter().flatten().collect();
        let mut parts = Vec::new();
        for (from, without, says) in [
            (&ours, &agreed, "[data] of this party selects columns that the contract does not name"),
            (&agreed, &ours, "[data] of this party lacks columns that the contract names"),
        ] {
            let names: Vec<&str> = from.difference(without).map(|name| name.as_str()).collect();
            if !names.is_empty() {
                parts.push(format!("{says}: {}", some_of(&names)));
            }
        }
        if parts.is_empty() {
            return Ok(());
        }
        Err(ContractError::Columns { role: me, difference: parts.join("; ") })
    }

    /// Refuses another label column than that of the contract.
    ///
    /// # Errors
    /// [`ContractError::Label`].
    pub fn check_label(&self, label: Option<&str>) -> Result<(), ContractError> {
        if label == Some(&self.label) {
            return Ok(());
        }
        let ours = label.map_or_else(|| "none".into(), |label| format!("\"{label}\""));
        Err(ContractError::Label { ours, theirs: self.label.clone() })
    }

    /// Refuses to score a record once more that has been scored `released` times.
    ///
    /// # Errors
    /// [`ContractError::Released`].
    pub fn check_release(&self, released: u32) -> Result<(), ContractError> {
        match self.predictions_per_record_max {
            Some(max) if released >= max => Err(ContractError::Released { max, released }),
            _ => Ok(()),
        }
    }

    /// Checks every term against the session that it is part of.
    pub(crate) fn validate(&self, session: &SessionConfig) -> Result<(), SessionError> {
        let check = |ok: bool, field, expected: &str, found: &dyn fmt::Display| {
            if ok {
                return Ok(());
            }
            Err(SessionError::Value { field, expected: expected.to_owned(), found: found.to_string() })
        };
        let purpose = !self.purpose.trim().is_empty() && self.purpose.len() <= Self::TEXT_MAX;
        let printable = !self.purpose.chars().any(|c| c.is_control() && c != '\n');
        check(purpose && printable, "contract.purpose", "1 to 4,000 printable characters", &shown(&self.purpose))?;
        let only = self.outputs == [Recipient::LabelHolder];
        check(only, "contract.outputs", "must be [\"label-holder\"]", &format!("{} recipients", self.outputs.len()))?;
        check(
            self.predictions_per_record_max != Some(0),
            "contract.predictions_per_record_max",
            "must be at least 1; without it there is no limit",
            &0,
        )?;
        self.validate_leaks(session)?;
        check(is_name(&self.label), "contract.label", "1 to 256 printable characters", &shown(&self.label))?;
        let mut with_columns = self.columns.keys();
        let named = session.party_roles().all(|party| with_columns.next() == Some(&party));
        let found: Vec<String> = self.columns.keys().map(ToString::to_string).collect();
        check(
            named && with_columns.next().is_none(),
            "contract.columns",
            &format!("columns of each of the {} parties, party-0 and so on", session.parties),
            &some_of(&found),
        )?;
        for column in self.columns.values().flatten() {
            check(is_name(column), "contract.columns", "names of 1 to 256 printable characters", &shown(column))?;
        }
        for (role, columns) in &self.columns {
            let expected = format!("each column of {role} once");
            check(is_set(columns), "contract.columns", &expected, &some_of(columns))?;
        }
        let signed: Vec<Role> = self.signatories.iter().map(|s| s.role).collect();
        let everyone = session.roles().all(|role| signed.contains(&role));
        check(
            everyone && signed.len() == session.roles().count(),
            "contract.signatories",
            "every role of the session once: coordinator, server, party-0 and so on",
            &some_of(&signed),
        )?;
        let keys: Vec<String> = self.signatories.iter().map(|s| s.key.to_string()).collect();
        check(is_set(&keys), "contract.signatories", "a key of its own for each role", &"a key twice")?;
        for Signatory { organisation, .. } in &self.signatories {
            let expected = "organisations of 1 to 256 printable characters";
            check(is_name(organisation), "contract.signatories", expected, &shown(organisation))?;
        }
        let bytes = session.canonical().len();
        let expected = format!("a session with its contract has at most {} bytes", SessionConfig::TEXT_MAX);
        check(bytes <= SessionConfig::TEXT_MAX, "contract", &expected, &format!("{bytes} bytes"))
    }

    fn validate_leaks(&self, session: &SessionConfig) -> Result<(), SessionError> {
        let wrong = |expected: String| SessionError::Value {
            field: "contract.accepted_leaks",
            expected,
            found: format!("[{}]", some_of(&self.accepted_leaks)),
        };
        let leaks = session.leaks();
        if let Some(missing) = leaks.iter().find(|leak| !self.accepted_leaks.contains(leak)) {
            return Err(wrong(format!(
                "a session with first_layer = \"{}\" needs \"{missing}\" accepted: {}",
                session.first_layer,
                missing.says()
            )));
        }
        if let Some(more) = self.accepted_leaks.iter().find(|leak| !leaks.contains(leak)) {
            return Err(wrong(format!("this session does not have \"{more}\"; remove it")));
        }
        if !is_set(&self.accepted_leaks) {
            return Err(wrong("each name once".into()));
        }
        Ok(())
    }
}

fn is_set<T: Ord>(items: &[T]) -> bool {
    items.iter().collect::<BTreeSet<_>>().len() == items.len()
}

fn is_name(text: &str) -> bool {
    !text.trim().is_empty() && text.len() <= ContractTerms::NAME_MAX && !text.chars().any(char::is_control)
}

/// The beginning of a text that may be long, or meant for the terminal.
fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(60).collect::<String>())
}

/// The first of many, for an error message.
fn some_of(items: &[impl fmt::Display]) -> String {
    const SHOWN: usize = 12;
    let mut text = items.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if items.len() > SHOWN {
        text += &format!(" and {} more", items.len() - SHOWN);
    }
    text
}
