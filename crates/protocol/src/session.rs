//! The session: what all roles must agree on.

use crate::alignment::{self, AlignmentSpec};
use crate::contract::{self, ContractTerms, Leak};
use crate::first_layer::beaver::BeaverSpec;
use crate::first_layer::paillier::PaillierSpec;
use crate::first_layer::sharing::SharingSpec;
use crate::first_layer::{self, FirstLayerKind};
use crate::text::read_text;
use crate::{InferenceKind, PartyId, Role, Schedule, Task, blind};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use spnn_crypto::FixedPointError;
use spnn_nn::{HeadSpec, LabelHead, LayerSpec, Model, OptimizerSpec, Sequential, SpecError};
use std::fmt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The network: `private-feature` (first layer, at the parties) → `server` → `private-label` (head).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Width of H1, which the parties compute together.
    pub hidden_width: u32,
    /// The server's layers, after it added a bias to H1.
    pub server: Vec<LayerSpec>,
    /// The label holder's layer and loss.
    pub head: HeadSpec,
}

/// How the network is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSpec {
    /// Passes over the training rows.
    pub epochs: u32,
    /// Rows of a mini-batch.
    pub batch_size: u32,
    /// Used by every role for its own weights.
    pub optimizer: OptimizerSpec,
}

/// How parties prepare their columns, each by statistics of its own training rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreparationSpec {
    /// Share of rows kept from training, `0 ≤ f < 1`.
    pub test_fraction: f64,
    /// Subtract the mean and divide by the standard deviation.
    pub standardize: bool,
    /// Then limit to `±clip`.
    pub clip: Option<f64>,
}

/// Everything that all roles must agree on. Its digest is compared in every handshake and enters every mask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionConfig {
    /// A name for people.
    pub name: String,
    /// Number of parties.
    pub parties: u16,
    /// The party with the labels.
    pub label_holder: PartyId,
    /// First-layer protocol.
    pub first_layer: FirstLayerKind,
    /// Ring and fixed point of `sharing`.
    pub sharing: SharingSpec,
    /// Fixed point of `beaver`.
    pub beaver: BeaverSpec,
    /// Key and packing of `paillier`.
    pub paillier: PaillierSpec,
    /// What the server sees of rows that are scored, not trained on.
    #[serde(default, skip_serializing_if = "InferenceKind::is_open")]
    pub inference: InferenceKind,
    /// Public seed of schedule and initial weights.
    pub seed: u64,
    /// Split, scaling.
    pub preparation: PreparationSpec,
    /// How parties find their common rows; without it, their files have the same rows in the same order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alignment: Option<AlignmentSpec>,
    /// The graph.
    pub model: ModelSpec,
    /// Epochs, batches, optimiser.
    pub train: TrainSpec,
    /// What the organisations sign, if this is a contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contract: Option<ContractTerms>,
}

/// A session file as written: the agreed part, and for simulations where each party's data are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionFile {
    name: String,
    first_layer: FirstLayerKind,
    #[serde(default)]
    sharing: SharingSpec,
    #[serde(default)]
    beaver: BeaverSpec,
    #[serde(default)]
    paillier: PaillierSpec,
    #[serde(default, skip_serializing_if = "InferenceKind::is_open")]
    inference: InferenceKind,
    seed: u64,
    /// What the parties have.
    pub data: DataSection,
    /// How they find their common rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alignment: Option<AlignmentSpec>,
    model: ModelSpec,
    train: TrainSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    contract: Option<ContractTerms>,
}

/// The `[data]` section of a session file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// Label column. Simulations only.
    pub label: Option<String>,
    /// Id column or columns. Simulations only.
    pub id: Option<toml::Value>,
    /// Take the position of a row as its id. Simulations only.
    #[serde(default)]
    pub row_numbers_as_ids: bool,
    #[serde(default)]
    test_fraction: f64,
    #[serde(default)]
    standardize: bool,
    clip: Option<f64>,
    /// Columns that are no features, of parties that do not list theirs. Simulations only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
    /// What is done where a feature has no value. Simulations only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<toml::Value>,
    /// Most values of a categorical column. Simulations only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub categories_max: Option<u32>,
    /// Memory of a party's features; a larger table is kept on disk. Simulations only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_max_mib: Option<u64>,
    /// Types of columns, whichever party has them. Simulations only.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub types: toml::Table,
    /// The parties, in order.
    pub parties: Vec<PartySection>,
}

/// One party in the `[data]` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartySection {
    /// Its file, or a directory of files, relative to the session file. Simulations only.
    pub file: Option<PathBuf>,
    /// Its feature columns; all that are neither id nor label if absent. Simulations only.
    pub columns: Option<Vec<String>>,
    /// Whether it has the labels. Exactly one party does.
    #[serde(default)]
    pub label_holder: bool,
}

/// What is wrong with a session.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The file cannot be read.
    #[error("cannot read session file {}: {source}", file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a session file.
    #[error("{}: {message}", file.display())]
    Parse {
        /// Which file.
        file: PathBuf,
        /// Line, column and what is wrong.
        message: String,
    },
    /// A value does not make sense.
    #[error("session: {field} = {found}: {expected}")]
    Value {
        /// Path of the value in the file.
        field: &'static str,
        /// What must hold.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A layer, head or optimiser does not make sense.
    #[error("session: {0}")]
    Model(#[from] SpecError),
    /// The fixed-point format does not work.
    #[error("session: fixed point: {0}")]
    FixedPoint(#[from] FixedPointError),
}

impl SessionFile {
    /// Longer files are not read.
    pub const BYTES_MAX: u64 = 1 << 20;

    /// Reads and parses a session file.
    ///
    /// # Errors
    /// [`SessionError`] naming the file, and line and column where it does not parse.
    pub fn read(file: &Path) -> Result<Self, SessionError> {
        let text =
            read_text(file, Self::BYTES_MAX).map_err(|source| SessionError::Read { file: file.to_owned(), source })?;
        Self::parse(&text, file)
    }

    /// Parses the text of a session file; `file` is for error messages.
    ///
    /// # Errors
    /// [`SessionError::Parse`] with line and column.
    pub fn parse(text: &str, file: &Path) -> Result<Self, SessionError> {
        toml::from_str(text)
            .map_err(|e| SessionError::Parse { file: file.to_owned(), message: e.to_string().trim_end().to_owned() })
    }

    /// The part all must agree on, checked.
    ///
    /// # Errors
    /// [`SessionError`] naming the field that does not make sense.
    pub fn config(&self) -> Result<SessionConfig, SessionError> {
        let holders: Vec<usize> =
            self.data.parties.iter().enumerate().filter(|(_, p)| p.label_holder).map(|(i, _)| i).collect();
        let [holder] = holders[..] else {
            return Err(SessionError::Value {
                field: "data.parties",
                expected: "exactly one party must have label_holder = true".into(),
                found: format!("{} label holders", holders.len()),
            });
        };
        let count = |n: usize| {
            u16::try_from(n).map_err(|_| SessionError::Value {
                field: "data.parties",
                expected: format!("at most {} parties", SessionConfig::PARTIES_MAX),
                found: n.to_string(),
            })
        };
        let config = SessionConfig {
            name: self.name.clone(),
            parties: count(self.data.parties.len())?,
            label_holder: PartyId(count(holder)?),
            first_layer: self.first_layer,
            sharing: self.sharing,
            beaver: self.beaver,
            paillier: self.paillier,
            inference: self.inference,
            seed: self.seed,
            preparation: PreparationSpec {
                test_fraction: self.data.test_fraction,
                standardize: self.data.standardize,
                clip: self.data.clip,
            },
            alignment: self.alignment,
            model: self.model.clone(),
            train: self.train.clone(),
            contract: self.contract.clone(),
        };
        config.validate()?;
        Ok(config)
    }

    /// The session's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes the contract away, for a simulation: its certificates are not those that the contract names.
    pub fn take_contract(&mut self) -> Option<ContractTerms> {
        self.contract.take()
    }

    /// Replaces what the command line overrides.
    pub fn override_with(&mut self, overrides: &SessionOverrides) {
        if let Some(kind) = overrides.first_layer {
            self.first_layer = kind;
        }
        if let Some(bits) = overrides.ring_bits {
            self.sharing.ring_bits = bits;
        }
        if let Some(epochs) = overrides.epochs {
            self.train.epochs = epochs;
        }
        if let Some(seed) = overrides.seed {
            self.seed = seed;
        }
    }
}

/// What a command line may change in a session file.
#[derive(Clone, Debug, Default)]
pub struct SessionOverrides {
    /// First-layer protocol.
    pub first_layer: Option<FirstLayerKind>,
    /// Ring of `sharing`.
    pub ring_bits: Option<u32>,
    /// Number of epochs.
    pub epochs: Option<u32>,
    /// Public seed.
    pub seed: Option<u64>,
}

impl SessionConfig {
    /// More parties than this are refused: every pair keeps a channel and derives masks.
    pub const PARTIES_MAX: u16 = 64;
    /// Wider layers than this are refused, so that no shape a peer can make us compute overflows.
    pub const WIDTH_MAX: u32 = 1 << 20;
    /// Longer canonical texts of a contract are refused: with what else is in a `Hello`, it must fit a control message.
    pub const TEXT_MAX: usize = 60 << 10;

    /// Checks every value.
    ///
    /// # Errors
    /// [`SessionError`] naming the field.
    pub fn validate(&self) -> Result<(), SessionError> {
        let check = |ok: bool, field, expected: &str, found: &dyn fmt::Display| {
            if ok {
                return Ok(());
            }
            Err(SessionError::Value { field, expected: expected.to_owned(), found: found.to_string() })
        };
        let name_ok = !self.name.is_empty()
            && self.name.len() <= 64
            && self.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        check(name_ok, "name", "1 to 64 letters, digits, '-', '_' or '.'", &self.name)?;
        let fewest = if self.first_layer == FirstLayerKind::Plain { 1 } else { 2 };
        check(
            (fewest..=Self::PARTIES_MAX).contains(&self.parties),
            "data.parties",
            "2 to 64 parties (with one, its product is the sum and nothing is protected)",
            &self.parties,
        )?;
        check(self.label_holder.0 < self.parties, "label_holder", "must be one of the parties", &self.label_holder)?;
        let rings = [32, 64].contains(&self.sharing.ring_bits);
        check(rings, "sharing.ring_bits", "must be 32 or 64", &self.sharing.ring_bits)?;
        // Also of the protocol that is not used: the canonical text has no word for NaN and would not read back.
        let bound = self.sharing.h1_bound.unwrap_or(1.0);
        check(bound.is_finite(), "sharing.h1_bound", "must be a finite number", &bound)?;
        let bound = self.paillier.h1_bound;
        check(bound.is_finite(), "paillier.h1_bound", "must be a finite number", &bound)?;
        let bound = self.beaver.h1_bound;
        check(bound.is_finite(), "beaver.h1_bound", "must be a finite number", &bound)?;
        first_layer::validate(self)?;
        blind::validate(self)?;
        let p = &self.preparation;
        check((0.0..1.0).contains(&p.test_fraction), "data.test_fraction", "must be 0 ≤ f < 1", &p.test_fraction)?;
        if let Some(clip) = p.clip {
            check(clip > 0.0 && clip.is_finite(), "data.clip", "must be positive", &clip)?;
        }
        let h = self.model.hidden_width;
        check((1..=Self::WIDTH_MAX).contains(&h), "model.hidden_width", "must be 1 to 2^20", &h)?;
        check(self.train.epochs <= 1_000_000, "train.epochs", "must be at most 1,000,000", &self.train.epochs)?;
        let b = self.train.batch_size;
        check((1..=1 << 24).contains(&b), "train.batch_size", "must be 1 to 2^24", &b)?;
        self.train.optimizer.validate()?;
        // Building the layers is the one place that knows what fits together.
        let outputs = self.server_output_width()?;
        LabelHead::new(outputs, &self.model.head, self.seed)?;
        let widest = u64::from(h).max(outputs as u64);
        let body = widest.saturating_mul(8).saturating_mul(u64::from(b));
        check(body <= u64::from(u32::MAX), "train.batch_size", "batch × width × 8 bytes must fit a 4 GiB message", &b)?;
        self.contract.as_ref().map_or(Ok(()), |terms| terms.validate(self))
    }

    /// The canonical text of the session, the same for equal sessions.
    #[must_use]
    pub fn canonical(&self) -> String {
        #[expect(clippy::expect_used, reason = "plain structs of numbers, strings and lists always serialise")]
        serde_json::to_string(self).expect("a session serialises")
    }

    /// SHA-256 of the canonical text.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.canonical()).into()
    }

    /// [`digest`](Self::digest) as people and files have it: hexadecimal digits.
    #[must_use]
    pub fn digest_text(&self) -> String {
        base16ct::lower::encode_string(&self.digest())
    }

    /// The first field in which another session's canonical text differs, for the error message.
    #[must_use]
    pub fn difference(&self, theirs: &str) -> Option<Difference> {
        // From text on both sides: a value that is an `f32` here would widen to other digits than its text has.
        let ours: serde_json::Value = serde_json::from_str(&self.canonical()).unwrap_or_default();
        let theirs: serde_json::Value = serde_json::from_str(theirs).unwrap_or_default();
        first_difference("", &ours, &theirs)
    }

    /// What this session does not prevent, all of which its contract must accept.
    #[must_use]
    pub fn leaks(&self) -> Vec<Leak> {
        let aligned = self.alignment.is_some().then_some(alignment::LEAK);
        let blind = if self.inference.is_open() { &[] } else { blind::LEAKS };
        let mut leaks = [contract::OF_EVERY_SESSION, first_layer::leaks(self.first_layer)].concat();
        leaks.extend(blind.iter().copied().filter(|leak| !first_layer::leaks(self.first_layer).contains(leak)));
        leaks.into_iter().chain(aligned).collect()
    }

    /// Whether the server sees ciphertexts only in this task.
    #[must_use]
    pub fn is_blind(&self, task: Task) -> bool {
        self.inference.is_blind(task)
    }

    /// All parties, in order.
    pub fn party_roles(&self) -> impl Iterator<Item = Role> + use<> {
        (0..self.parties).map(Role::party)
    }

    /// All roles.
    pub fn roles(&self) -> impl Iterator<Item = Role> + use<> {
        [Role::Coordinator, Role::Server].into_iter().chain(self.party_roles())
    }

    /// The label holder's role.
    #[must_use]
    pub fn label_role(&self) -> Role {
        Role::Party(self.label_holder)
    }

    /// Width `k` of the server's output, which the label holder receives.
    ///
    /// # Errors
    /// [`SessionError::Model`] if the layers do not fit together.
    pub fn server_output_width(&self) -> Result<usize, SessionError> {
        Ok(Sequential::new(self.model.hidden_width as usize, &self.model.server, self.seed)?.output_width())
    }

    /// The schedule over `rows` aligned rows.
    #[must_use]
    pub fn schedule(&self, rows: u32) -> Schedule {
        let schedule = Schedule::new(self.seed, rows, self.preparation.test_fraction, self.train.batch_size);
        if self.inference.is_open() { schedule } else { schedule.with_predict_batch_size(blind::ROWS) }
    }
}

/// One value in which two sessions differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Path of the value, for example `train.optimizer.learning_rate`.
    pub field: String,
    /// Our value.
    pub ours: String,
    /// The peer's value.
    pub theirs: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {} here and {} there", self.field, self.ours, self.theirs)
    }
}

/// A key that one of them lacks is a difference, even where the other has `null`.
fn first_difference<'a>(
    path: &str,
    ours: impl Into<Option<&'a serde_json::Value>>,
    theirs: impl Into<Option<&'a serde_json::Value>>,
) -> Option<Difference> {
    use serde_json::Value::{Array, Object};
    let below = |key: &dyn fmt::Display| cut(if path.is_empty() { key.to_string() } else { format!("{path}.{key}") });
    match (ours.into(), theirs.into()) {
        (Some(Object(a)), Some(Object(b))) => a
            .keys()
            .chain(b.keys().filter(|k| !a.contains_key(*k)))
            .find_map(|k| first_difference(&below(k), a.get(k), b.get(k))),
        (Some(Array(a)), Some(Array(b))) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (a, b))| first_difference(&below(&i), a, b))
        }
        (a, b) if a == b => None,
        (a, b) => Some(Difference { field: path.to_owned(), ours: short(a), theirs: short(b) }),
    }
}

fn short(value: Option<&serde_json::Value>) -> String {
    value.map_or_else(|| "absent".into(), |v| cut(v.to_string()))
}

/// What comes from a peer may be long, or meant for the terminal: it is cut and made printable before it is shown.
fn cut(text: String) -> String {
    let mut chars = text.chars();
    let mut cut: String = chars.by_ref().take(80).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if chars.next().is_some() {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = include_str!("../../../examples/breast_cancer/session.toml");

    fn config(text: &str) -> SessionConfig {
        SessionFile::parse(text, Path::new("test.toml")).unwrap().config().unwrap()
    }

    #[test]
    fn a_session_does_not_differ_from_its_own_text() {
        let layers = "server = [{ dropout = 0.1 }, { layer-norm = true }, { linear = 3 }]";
        let at = FILE.find("server = [{").unwrap();
        let end = at + FILE[at..].find('\n').unwrap();
        let config = config(&[&FILE[..at], layers, &FILE[end..]].concat());
        assert_eq!(config.difference(&config.canonical()), None);
    }

    #[test]
    fn one_changed_value_is_named_with_both_values() {
        let changed = config(&FILE.replace("learning_rate = 0.01", "learning_rate = 0.02"));
        let difference = config(FILE).difference(&changed.canonical()).unwrap();
        assert_eq!(difference.field, "train.optimizer.learning_rate");
        assert_eq!((difference.ours.as_str(), difference.theirs.as_str()), ("0.01", "0.02"));
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        for (from, to, field) in [
            ("test_fraction = 0.2", "test_fraction = 1.0", "data.test_fraction"),
            ("clip = 5.0", "clip = -1.0", "data.clip"),
            ("batch_size = 32", "batch_size = 0", "train.batch_size"),
            ("hidden_width = 8 ", "hidden_width = 0 ", "model.hidden_width"),
            ("label_holder = true", "label_holder = false", "label holders"),
            ("learning_rate = 0.01", "learning_rate = -1.0", "learning_rate"),
            ("name = \"breast-cancer\"", "name = \"a/b\"", "name"),
        ] {
            let text = FILE.replace(from, to);
            assert_ne!(text, FILE, "{from}");
            let error = SessionFile::parse(&text, Path::new("t.toml")).unwrap().config().unwrap_err().to_string();
            assert!(error.contains(field), "{to}: {error}");
        }
        let error = SessionFile::parse(&FILE.replace("seed =", "sede ="), Path::new("t.toml")).unwrap_err().to_string();
        assert!(error.contains("sede") && error.contains("t.toml"), "{error}");
    }
}
