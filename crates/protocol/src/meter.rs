//! What an epoch cost a role.

use crate::message::{EpochEnd, Kind};
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
        let before = |kind: &Kind| self.sent.get(kind).copied().unwrap_or(0);
        let sent = network.sent();
        EpochEnd {
            seconds: self.started.elapsed().as_secs_f64(),
            cpu_seconds: usage::cpu_seconds() - self.cpu_seconds,
            bytes_sent: sent
                .iter()
                .map(|(k, &n)| (k.name().to_owned(), n - before(k)))
                .filter(|(_, n)| *n > 0)
                .collect(),
            wire_bytes_sent: network.wire_bytes_sent().saturating_sub(self.wire_bytes),
            train_loss: None,
            test: None,
        }
    }
}
