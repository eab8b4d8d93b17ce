//! Finished runs on disk: a file for each, named by the digest of all that defines the run.

use super::plan::{ExperimentError, Run};
use crate::pooled::{Pooled, PooledEpoch};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use spnn_coordinator::SessionRecord;
use spnn_protocol::message::Metrics;
use spnn_protocol::write_durable;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One epoch of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MeasuredEpoch {
    /// Wall time without evaluation.
    pub seconds: f64,
    /// Mean over the training rows.
    pub train_loss: Option<f64>,
    /// On the test rows.
    pub test: Option<Metrics>,
    /// Processor time of all roles.
    pub cpu_seconds: f64,
    /// Bytes of messages by kind, all roles together.
    pub bytes_by_kind: BTreeMap<String, u64>,
    /// Bytes of UDP payload, all roles together.
    pub wire_bytes: u64,
}

/// What the property attack reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AttackResult {
    /// AUC from `h1` of the last epoch.
    pub one_epoch: f64,
    /// AUC from `h1` of all epochs side by side.
    pub all_epochs: f64,
}

/// What a run gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Measured {
    /// Rows trained on in an epoch.
    pub train_rows: u32,
    /// Columns of each party.
    pub features: Vec<u32>,
    /// Every epoch.
    pub epochs: Vec<MeasuredEpoch>,
    /// On the test rows at the end.
    pub test: Option<Metrics>,
    /// Largest resident set of each process.
    pub peak_rss_bytes: BTreeMap<String, u64>,
    /// Of the property attack.
    pub attack: Option<AttackResult>,
    /// Digest of the trained weights of all roles.
    pub weights: Option<String>,
}

impl Measured {
    /// Seconds of an epoch: the median of all but the first, in which caches and connections warm up.
    #[must_use]
    pub fn epoch_seconds(&self) -> Option<f64> {
        let first = usize::from(self.epochs.len() > 1);
        let mut seconds: Vec<f64> = self.epochs.iter().skip(first).map(|e| e.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        seconds.get(seconds.len() / 2).copied()
    }

    /// Mean over the epochs.
    #[must_use]
    pub fn per_epoch(&self, value: impl Fn(&MeasuredEpoch) -> f64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a number of epochs")]
        let n = self.epochs.len().max(1) as f64;
        self.epochs.iter().map(value).sum::<f64>() / n
    }
}

impl From<&SessionRecord> for Measured {
    fn from(record: &SessionRecord) -> Self {
        let epoch = |e: &spnn_coordinator::EpochRecord| {
            let mut bytes_by_kind = BTreeMap::<String, u64>::new();
            for (kind, n) in e.bytes_sent_by_kind.values().flatten() {
                let sum = bytes_by_kind.entry(kind.clone()).or_default();
                *sum = sum.saturating_add(*n);
            }
            MeasuredEpoch {
                seconds: e.seconds,
                train_loss: e.train_loss,
                test: e.test,
                cpu_seconds: e.cpu_seconds.values().sum(),
                bytes_by_kind,
                wire_bytes: e.wire_bytes_sent.values().fold(0, |sum, n| sum.saturating_add(*n)),
            }
        };
        Self {
            train_rows: record.rows.train,
            features: record.features.clone(),
            epochs: record.epochs.iter().map(epoch).collect(),
            test: record.test,
            peak_rss_bytes: record.peak_rss_bytes.iter().map(|(role, n)| (role.to_string(), *n)).collect(),
            attack: None,
            weights: None,
        }
    }
}

impl From<Pooled> for Measured {
    fn from(pooled: Pooled) -> Self {
        let epoch = |e: PooledEpoch| MeasuredEpoch {
            seconds: e.seconds,
            cpu_seconds: e.cpu_seconds,
            train_loss: Some(e.train_loss),
            test: e.test,
            ..MeasuredEpoch::default()
        };
        Self {
            train_rows: pooled.train_rows,
            features: vec![pooled.features],
            epochs: pooled.epochs.into_iter().map(epoch).collect(),
            test: pooled.test,
            peak_rss_bytes: [("pooled".to_owned(), pooled.peak_rss_bytes)].into(),
            attack: None,
            weights: None,
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It gave numbers.
    Measured(Measured),
    /// It said why not.
    Failed(String),
}

/// A run that is over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finished {
    /// What was run.
    pub run: Run,
    /// What came out.
    pub outcome: Outcome,
    /// Wall time of all of it, start to end.
    pub seconds: f64,
    /// Which binary: the first digits of its SHA-256.
    pub build: String,
}

impl Finished {
    /// Its numbers, if it has some.
    #[must_use]
    pub fn measured(&self) -> Option<&Measured> {
        match &self.outcome {
            Outcome::Measured(measured) => Some(measured),
            Outcome::Failed(_) => None,
        }
    }
}

/// The directory of finished runs.
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// The store in an output directory.
    #[must_use]
    pub fn new(out: &Path) -> Self {
        Self { directory: out.join("finished") }
    }

    /// Forgets everything.
    ///
    /// # Errors
    /// [`ExperimentError::File`] if the directory cannot be removed.
    pub fn clear(&self) -> Result<(), ExperimentError> {
        match std::fs::remove_dir_all(&self.directory) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(ExperimentError::File { file: self.directory.clone(), source })
            }
            _ => Ok(()),
        }
    }

    fn file(&self, run: &Run) -> PathBuf {
        self.directory.join(format!("{}.json", run.digest()))
    }

    /// What an earlier start measured of this run. One that failed is run again.
    #[must_use]
    pub fn load(&self, run: &Run) -> Option<Finished> {
        let text = std::fs::read_to_string(self.file(run)).ok()?;
        let finished: Finished = serde_json::from_str(&text).ok()?;
        (finished.run == *run && finished.measured().is_some()).then_some(finished)
    }

    /// Keeps a finished run.
    ///
    /// # Errors
    /// [`ExperimentError::File`] if it cannot be written.
    pub fn save(&self, finished: &Finished) -> Result<(), ExperimentError> {
        let file = self.file(&finished.run);
        let failed = |source: std::io::Error| ExperimentError::File { file: file.clone(), source };
        let text = serde_json::to_vec(finished).map_err(|e| failed(e.into()))?;
        write_durable(&file, &text).map_err(|e| failed(std::io::Error::other(e.to_string())))
    }
}

/// The first digits of the SHA-256 of some bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(6).map(|b| format!("{b:02x}")).collect()
}
