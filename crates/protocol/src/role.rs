//! Who takes part.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A party (data holder) by its number; parties of a session are `0..k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartyId(pub u16);

/// A role in a session. What a role may do follows from its certificate, never from what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Role {
    /// Starts and ends the session, relays between parties; sees no data.
    Coordinator,
    /// Trains the hidden layers on the opened sum.
    Server,
    /// Holds features, and the labels if it is the label holder.
    Party(PartyId),
}

impl Role {
    /// Party `i`.
    #[must_use]
    pub fn party(i: u16) -> Self {
        Self::Party(PartyId(i))
    }

    /// The DNS name that stands for this role in its certificate, for example `party-0.spnn`.
    #[must_use]
    pub fn certificate_name(self) -> String {
        format!("{self}.spnn")
    }

    /// The role that a certificate's DNS name stands for.
    #[must_use]
    pub fn from_certificate_name(name: &str) -> Option<Self> {
        name.strip_suffix(".spnn")?.parse().ok()
    }
}

impl fmt::Display for PartyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "party-{}", self.0)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator => f.write_str("coordinator"),
            Self::Server => f.write_str("server"),
            Self::Party(id) => id.fmt(f),
        }
    }
}

/// Text that names no role.
#[derive(Debug, Error)]
#[error("'{0}' is no role: expected coordinator, server or party-N")]
pub struct RoleError(String);

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        let role = match text {
            "coordinator" => Some(Self::Coordinator),
            "server" => Some(Self::Server),
            _ => text.strip_prefix("party-").and_then(|n| n.parse().ok()).map(Self::party),
        };
        // `party-007` and `party-+7` parse as numbers but are not how a role is written.
        role.filter(|r| r.to_string() == text).ok_or_else(|| RoleError(text.chars().take(40).collect()))
    }
}

impl From<Role> for String {
    fn from(role: Role) -> Self {
        role.to_string()
    }
}

impl TryFrom<String> for Role {
    type Error = RoleError;

    fn try_from(text: String) -> Result<Self, RoleError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for role in [Role::Coordinator, Role::Server, Role::party(0), Role::party(65_535)] {
            assert_eq!(role.to_string().parse::<Role>().unwrap(), role);
            assert_eq!(Role::from_certificate_name(&role.certificate_name()), Some(role));
        }
        for bad in ["", "party", "party-", "party-007", "party-+7", "party-65536", "Server", "dealer"] {
            assert!(bad.parse::<Role>().is_err(), "{bad}");
        }
    }
}
