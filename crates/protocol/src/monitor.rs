//! What a role is doing, for whoever watches its process: a state, counters and sizes. No data, ids or keys.
//!
//! A role writes to it as it goes; a health check or a collector of metrics reads it at any time, from any thread, without
//! ever making the role wait.

use crate::message::{Kind, Metrics};
use crate::{Position, ProtocolError, Role};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One role's state and counters; copies share them.
#[derive(Clone, Default)]
pub struct Monitor(Arc<Shared>);

/// What a role is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activity {
    /// It waits for all roles to come together for the first time.
    #[default]
    Joining,
    /// All are there, and it works.
    Running,
    /// A peer is gone, and it waits for all to come together again.
    Interrupted,
    /// It has done everything.
    Done,
}

/// Bytes to and from one peer.
pub(crate) struct Traffic {
    began: Instant,
    /// By kind, in the order of [`Kind::ALL`], headers included.
    sent: Vec<AtomicU64>,
    received: AtomicU64,
    /// Milliseconds after `began` at which the last message came.
    heard_ms: AtomicU64,
}

/// What is known of a monitor's role at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What it is doing.
    pub activity: Activity,
    /// Why it was interrupted.
    pub reason: Option<String>,
    /// Number of this start of the session; 0 before the first.
    pub incarnation: u64,
    /// Epoch, from 1; 0 before the first.
    pub epoch: u32,
    /// Mini-batch within the epoch, from 0.
    pub batch: u32,
    /// Rows of all mini-batches that this process has done, repeated ones included.
    pub rows: u64,
    /// How often the session was interrupted since the process started.
    pub interruptions: u64,
    /// Checkpoints begun since the process started.
    pub checkpoints: u64,
    /// Application bytes sent since the process started, by peer and kind, headers included.
    pub sent: Vec<(Role, Kind, u64)>,
    /// Application bytes received since the process started, by peer.
    pub received: Vec<(Role, u64)>,
    /// Since the last message of any peer.
    pub silent: Option<Duration>,
    /// Mean loss of the epoch so far; coordinator only.
    pub train_loss: Option<f64>,
    /// Metrics of the test rows after the last epoch; coordinator only.
    pub test: Option<Metrics>,
}

struct Shared {
    began: Instant,
    activity: Mutex<(Activity, Option<String>)>,
    incarnation: AtomicU64,
    epoch: AtomicU32,
    batch: AtomicU32,
    rows: AtomicU64,
    interruptions: AtomicU64,
    checkpoints: AtomicU64,
    traffic: Mutex<BTreeMap<Role, Arc<Traffic>>>,
    results: Mutex<(Option<f64>, Option<Metrics>)>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            activity: Mutex::default(),
            incarnation: AtomicU64::default(),
            epoch: AtomicU32::default(),
            batch: AtomicU32::default(),
            rows: AtomicU64::default(),
            interruptions: AtomicU64::default(),
            checkpoints: AtomicU64::default(),
            traffic: Mutex::default(),
            results: Mutex::default(),
        }
    }
}

impl Activity {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Joining, Self::Running, Self::Interrupted, Self::Done];

    /// Name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Running => "running",
            Self::Interrupted => "interrupted",
            Self::Done => "done",
        }
    }

    /// Whether nobody has to be waited for.
    #[must_use]
    pub fn is_healthy(self) -> bool {
        match self {
            Self::Running | Self::Done => true,
            Self::Joining | Self::Interrupted => false,
        }
    }
}

impl Monitor {
    /// All roles are there.
    pub fn running(&self, incarnation: u64) {
        self.0.incarnation.store(incarnation, Relaxed);
        *lock(&self.0.activity) = (Activity::Running, None);
    }

    /// A peer is gone.
    pub fn interrupted(&self, error: &ProtocolError) {
        let mut activity = lock(&self.0.activity);
        // What follows from the first error says less than that one.
        if activity.0 != Activity::Interrupted {
            *activity = (Activity::Interrupted, Some(error.to_string()));
            self.0.interruptions.fetch_add(1, Relaxed);
        }
    }

    /// Nothing is left to do.
    pub fn done(&self) {
        *lock(&self.0.activity) = (Activity::Done, None);
    }

    /// Where training is.
    pub fn at(&self, position: Position) {
        self.0.epoch.store(position.epoch, Relaxed);
        self.0.batch.store(position.batch, Relaxed);
    }

    /// A mini-batch of so many rows is done.
    pub fn rows_done(&self, rows: usize) {
        self.0.rows.fetch_add(rows as u64, Relaxed);
    }

    /// A checkpoint was begun.
    pub fn checkpoint(&self) {
        self.0.checkpoints.fetch_add(1, Relaxed);
    }

    /// What the label holder said; coordinator only.
    pub fn results(&self, train_loss: Option<f64>, test: Option<Metrics>) {
        let mut results = lock(&self.0.results);
        *results = (train_loss.or(results.0), test.or(results.1));
    }

    /// The counters of one peer.
    pub(crate) fn traffic(&self, peer: Role) -> Arc<Traffic> {
        let new = || Arc::new(Traffic::new(self.0.began));
        Arc::clone(lock(&self.0.traffic).entry(peer).or_insert_with(new))
    }

    /// Everything, at this moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let shared = &self.0;
        let (activity, reason) = lock(&shared.activity).clone();
        let (train_loss, test) = *lock(&shared.results);
        let traffic: Vec<_> = lock(&shared.traffic).iter().map(|(role, t)| (*role, Arc::clone(t))).collect();
        let sent = traffic.iter().flat_map(|(role, t)| {
            let counts = Kind::ALL.iter().zip(&t.sent).map(|(kind, bytes)| (*kind, bytes.load(Relaxed)));
            counts.filter(|(_, bytes)| *bytes > 0).map(|(kind, bytes)| (*role, kind, bytes))
        });
        let heard = traffic.iter().map(|(_, t)| t.heard_ms.load(Relaxed)).max().filter(|ms| *ms > 0);
        Snapshot {
            activity,
            reason,
            incarnation: shared.incarnation.load(Relaxed),
            epoch: shared.epoch.load(Relaxed),
            batch: shared.batch.load(Relaxed),
            rows: shared.rows.load(Relaxed),
            interruptions: shared.interruptions.load(Relaxed),
            checkpoints: shared.checkpoints.load(Relaxed),
            sent: sent.collect(),
            received: traffic.iter().map(|(role, t)| (*role, t.received.load(Relaxed))).collect(),
            silent: heard.map(|ms| shared.began.elapsed().saturating_sub(Duration::from_millis(ms))),
            train_loss,
            test,
        }
    }
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Monitor({})", lock(&self.0.activity).0.name())
    }
}

impl Traffic {
    fn new(began: Instant) -> Self {
        let sent = Kind::ALL.iter().map(|_| AtomicU64::default()).collect();
        Self { began, sent, received: AtomicU64::default(), heard_ms: AtomicU64::default() }
    }

    /// So many bytes were sent.
    pub(crate) fn sent(&self, kind: Kind, bytes: u64) {
        if let Some(at) = Kind::ALL.iter().position(|k| *k == kind) {
            self.sent[at].fetch_add(bytes, Relaxed);
        }
    }

    /// A message of so many bytes came.
    pub(crate) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        // 0 stands for never.
        self.heard_ms.fetch_max(ms.max(1), Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_holds_what_the_role_said() {
        let monitor = Monitor::default();
        let new = monitor.snapshot();
        assert_eq!((new.activity, new.silent, new.incarnation), (Activity::Joining, None, 0));
        assert!(!new.activity.is_healthy());
        monitor.running(3);
        monitor.at(Position { epoch: 2, batch: 5 });
        monitor.rows_done(32);
        monitor.rows_done(10);
        monitor.checkpoint();
        let traffic = monitor.clone().traffic(Role::Server);
        traffic.sent(Kind::FirstLayer, 100);
        traffic.sent(Kind::Report, 24);
        traffic.received(7);
        monitor.traffic(Role::Server).sent(Kind::FirstLayer, 1);
        let now = monitor.snapshot();
        assert!(now.activity.is_healthy() && now.silent.is_some());
        assert_eq!((now.incarnation, now.epoch, now.batch, now.rows, now.checkpoints), (3, 2, 5, 42, 1));
        assert_eq!(now.sent, [(Role::Server, Kind::Report, 24), (Role::Server, Kind::FirstLayer, 101)]);
        assert_eq!(now.received, [(Role::Server, 7)]);
    }

    #[test]
    fn an_interruption_is_counted_once_and_keeps_its_first_reason() {
        let monitor = Monitor::default();
        monitor.running(1);
        let gone = |peer| ProtocolError::PeerGone { peer, step: crate::Step::SETUP, reason: "no sign of life".into() };
        monitor.interrupted(&gone(Role::party(1)));
        monitor.interrupted(&gone(Role::Server));
        let now = monitor.snapshot();
        assert_eq!((now.activity, now.interruptions), (Activity::Interrupted, 1));
        assert!(now.reason.unwrap().contains("party-1"));
        monitor.running(2);
        assert_eq!(monitor.snapshot().reason, None);
        monitor.interrupted(&gone(Role::Server));
        assert_eq!(monitor.snapshot().interruptions, 2);
    }
}
