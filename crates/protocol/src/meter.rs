//! What an epoch cost a role.

use crate::message::{Done, EpochEnd, Kind};
use crate::{Network, usage};
use std::collections::BTreeMap;
use std::time::Instant;

/// Counts from the first batch's start to the last update.
pub struct Meter {
    started: Instant,
    cpu_seconds: f64,
    sent: BTreeMap<Kind, u64>,
    wire_bytes: u64,
}

impl Meter {
    /// Begins to count.
    #[must_use]
    pub fn start(network: &Network) -> Self {
        Self {
            started: Instant::now(),
            cpu_seconds: usage::cpu_seconds(),
            sent: network.sent(),
            wire_bytes: network.wire_bytes_sent(),
        }
    }

    /// What was used since the start.
    #[must_use]
    pub fn stop(&self, network: &Network) -> EpochEnd {
        EpochEnd {
            seconds: self.started.elapsed().as_secs_f64(),
            cpu_seconds: usage::cpu_seconds() - self.cpu_seconds,
            bytes_sent: by_name(&network.sent(), &self.sent),
            wire_bytes_sent: network.wire_bytes_sent().saturating_sub(self.wire_bytes),
            train_loss: None,
            test: None,
            head: None,
        }
    }
}

impl Done {
    /// What the whole process used, and what this role sent over `network`.
    #[must_use]
    pub fn of(network: &Network) -> Self {
        Self {
            cpu_seconds: usage::cpu_seconds(),
            peak_rss_bytes: usage::peak_rss_bytes(),
            bytes_sent: by_name(&network.sent(), &BTreeMap::new()),
        }
    }
}

/// Bytes by name of their kind, without those sent `before`.
fn by_name(sent: &BTreeMap<Kind, u64>, before: &BTreeMap<Kind, u64>) -> Vec<(String, u64)> {
    let since = sent.iter().map(|(kind, bytes)| (kind, bytes - before.get(kind).unwrap_or(&0)));
    since.filter(|(_, bytes)| *bytes > 0).map(|(kind, bytes)| (kind.name().to_owned(), bytes)).collect()
}
