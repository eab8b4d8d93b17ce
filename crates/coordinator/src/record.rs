//! What a session was, in numbers: the content of `report.json`.

use crate::deal::Dealt;
use serde::{Deserialize, Serialize};
use spnn_protocol::first_layer::{set_up_bytes, step_bytes};
use spnn_protocol::message::{Done, EpochEnd, Kind, Metrics, Progress, Report};
use spnn_protocol::{FirstLayerKind, InferenceKind, Position, ProtocolError, Role, SessionConfig, Task};
use std::collections::BTreeMap;
use std::time::Duration;

/// Numbers of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows {
    /// Trained on in each epoch.
    pub train: u32,
    /// Evaluated or predicted.
    pub test: u32,
}

/// One epoch, over all roles.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// From 1.
    pub epoch: u32,
    /// Wall time from the first batch's start to the last update, without start-up and evaluation.
    pub seconds: f64,
    /// Mean loss over the training rows.
    pub train_loss: Option<f64>,
    /// Metrics on the test rows after the epoch.
    pub test: Option<Metrics>,
    /// Application bytes sent, by role, headers included.
    pub bytes_sent: BTreeMap<Role, u64>,
    /// The same by role and message kind.
    pub bytes_sent_by_kind: BTreeMap<Role, BTreeMap<String, u64>>,
    /// Bytes of UDP payload sent, by role: QUIC headers, TLS tags, acknowledgements and retransmissions included.
    pub wire_bytes_sent: BTreeMap<Role, u64>,
    /// Processor time, by role, in seconds.
    pub cpu_seconds: BTreeMap<Role, f64>,
}

/// A whole session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Version of the software.
    pub spnn: String,
    /// Digest of the session.
    pub session: String,
    /// Name of the session.
    pub name: String,
    /// Train, evaluate or predict.
    pub task: Task,
    /// Number of this start.
    pub incarnation: u64,
    /// Where this start went on from, if an earlier one was interrupted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_from: Option<Position>,
    /// First-layer protocol.
    pub first_layer: FirstLayerKind,
    /// Ring of `sharing`.
    pub ring_bits: u32,
    /// What the server sees of rows that are scored.
    #[serde(default, skip_serializing_if = "InferenceKind::is_open")]
    pub inference: InferenceKind,
    /// Bytes of first-layer messages that each party sends for a row, headers included, as the protocol says; 0 where rows were
    /// scored encrypted.
    pub first_layer_bytes_per_row: f64,
    /// Bytes of first-layer messages that each party sends to others before the first batch, as the protocol says.
    pub first_layer_set_up_bytes: u64,
    /// Number of parties.
    pub parties: u16,
    /// Feature columns of each party.
    pub features: Vec<u32>,
    /// Width of H1.
    pub hidden_width: u32,
    /// Rows of a mini-batch.
    pub batch_size: u32,
    /// Rows.
    pub rows: Rows,
    /// Every epoch.
    pub epochs: Vec<EpochRecord>,
    /// Metrics on the test rows at the end.
    pub test: Option<Metrics>,
    /// From the coordinator's start to its end.
    pub wall_seconds: f64,
    /// Processor time of each process.
    pub cpu_seconds: BTreeMap<Role, f64>,
    /// Largest resident set of each process.
    pub peak_rss_bytes: BTreeMap<Role, u64>,
    /// Application bytes sent since the last start, set-up and evaluations included, by role and message kind.
    pub bytes_sent_by_kind: BTreeMap<Role, BTreeMap<String, u64>>,
    #[serde(skip)]
    ended: BTreeMap<Role, u32>,
    /// Epochs that were over before this start; roles report them once more.
    #[serde(skip)]
    before: u32,
}

impl SessionRecord {
    pub(crate) fn new(
        session: &SessionConfig,
        task: Task,
        incarnation: u64,
        train: u32,
        test: u32,
        features: Vec<u32>,
        resumed: Position,
    ) -> Self {
        let total = features.iter().copied().map(u64::from).sum();
        let scored = if train > 0 { train } else { test };
        let (per_row, set_up) = match session.is_blind(task) {
            true => (0.0, 0),
            false => (
                expected_bytes_per_row(session, total, scored),
                set_up_bytes(session, total, u64::from(train) + u64::from(test)),
            ),
        };
        Self {
            spnn: env!("CARGO_PKG_VERSION").to_owned(),
            session: session.digest_text(),
            name: session.name.clone(),
            task,
            incarnation,
            resumed_from: (resumed > Position::START).then_some(resumed),
            first_layer: session.first_layer,
            ring_bits: session.sharing.ring_bits,
            inference: session.inference,
            first_layer_bytes_per_row: per_row,
            first_layer_set_up_bytes: set_up,
            parties: session.parties,
            features,
            hidden_width: session.model.hidden_width,
            batch_size: session.train.batch_size,
            rows: Rows { train, test },
            epochs: Vec::new(),
            test: None,
            wall_seconds: 0.0,
            cpu_seconds: BTreeMap::new(),
            peak_rss_bytes: BTreeMap::new(),
            bytes_sent_by_kind: BTreeMap::new(),
            before: resumed.epoch.saturating_sub(1),
            ended: session.roles().filter(|&r| r != Role::Coordinator).map(|r| (r, 0)).collect(),
        }
    }

    /// A report as it may come from `role`; anything else is refused, so that no role can fill this one's memory, end
    /// before its work is done, or speak for the label holder.
    pub(crate) fn check(&self, session: &SessionConfig, role: Role, report: Report) -> Result<Report, ProtocolError> {
        let passes = match self.task {
            Task::Train => session.train.epochs,
            Task::Evaluate | Task::Predict => 1,
            Task::Align | Task::Serve => 0,
        };
        let ended = self.ended.get(&role).copied().unwrap_or(0);
        let is_holder = role == session.label_role();
        let finite = |values: &[f64]| values.iter().all(|v| v.is_finite());
        let (fits, expected) = match &report {
            Report::Progress(p) => (
                is_holder && ended < passes && p.rows <= self.rows.train.into() && p.loss.is_finite(),
                "progress of the label holder within an epoch",
            ),
            Report::EpochEnd(end) => {
                let labels = end.test.map(|m| [Some(m.loss), m.auc, m.accuracy]).unwrap_or_default();
                let labels: Vec<f64> = labels.into_iter().chain([end.train_loss]).flatten().collect();
                (
                    ended < passes
                        && are_kinds(&end.bytes_sent)
                        && finite(&[end.seconds, end.cpu_seconds])
                        && finite(&labels)
                        && (is_holder || labels.is_empty()),
                    "the end of an epoch, with metrics from the label holder only",
                )
            }
            Report::Done(done) => (
                ended == passes && finite(&[done.cpu_seconds]) && are_kinds(&done.bytes_sent),
                "the end after the last epoch",
            ),
        };
        if fits {
            return Ok(report);
        }
        let found = match report {
            Report::Progress(_) => "progress",
            Report::EpochEnd(_) => "the end of an epoch",
            Report::Done(_) => "the end",
        };
        let expected = format!("a report of {expected}");
        Err(ProtocolError::Unexpected { peer: role, expected, found: format!("a report of {found} that is none") })
    }

    /// The epoch whose end not all roles have reported, from 1.
    pub(crate) fn epoch_under_way(&self) -> u32 {
        self.ended.values().min().map_or(1, |n| n + 1)
    }

    /// Where training is, from what the label holder says.
    pub(crate) fn position(&self, progress: &Progress) -> Position {
        let batch = u32::try_from(progress.rows / u64::from(self.batch_size.max(1))).unwrap_or(u32::MAX);
        Position { epoch: self.epoch_under_way(), batch }
    }

    /// Adds what `role` reports of its next epoch. Returns the epoch if all roles have now reported it, and it is not one
    /// of those that were over before this start.
    pub(crate) fn epoch_end(&mut self, role: Role, end: EpochEnd) -> Option<&EpochRecord> {
        let before = self.epoch_under_way();
        let count = self.ended.entry(role).or_default();
        *count += 1;
        let epoch = *count;
        let index = epoch as usize - 1;
        while self.epochs.len() <= index {
            let epoch = u32::try_from(self.epochs.len() + 1).unwrap_or(u32::MAX);
            self.epochs.push(EpochRecord { epoch, ..EpochRecord::default() });
        }
        let record = &mut self.epochs[index];
        record.seconds = record.seconds.max(end.seconds);
        record.train_loss = record.train_loss.or(end.train_loss);
        record.test = record.test.or(end.test);
        let total = end.bytes_sent.iter().fold(0_u64, |total, (_, n)| total.saturating_add(*n));
        record.bytes_sent.insert(role, total);
        record.bytes_sent_by_kind.insert(role, end.bytes_sent.into_iter().collect());
        record.wire_bytes_sent.insert(role, end.wire_bytes_sent);
        record.cpu_seconds.insert(role, end.cpu_seconds);
        self.test = self.epochs.iter().rev().find_map(|e| e.test);
        (self.epoch_under_way() > before && before > self.before).then(|| &self.epochs[before as usize - 1])
    }

    /// Adds what was dealt in each epoch, all of it to first layers.
    pub(crate) fn dealt(&mut self, dealt: &BTreeMap<u32, Dealt>) {
        for record in &mut self.epochs {
            let Some(&Dealt { bytes, cpu_seconds }) = dealt.get(&record.epoch) else { continue };
            record.cpu_seconds.insert(Role::Coordinator, cpu_seconds);
            record.bytes_sent.insert(Role::Coordinator, bytes);
            let kinds = record.bytes_sent_by_kind.entry(Role::Coordinator).or_default();
            kinds.insert(Kind::FirstLayer.name().to_owned(), bytes);
        }
    }

    pub(crate) fn done(&mut self, role: Role, done: Done) {
        self.cpu_seconds.insert(role, done.cpu_seconds);
        self.peak_rss_bytes.insert(role, done.peak_rss_bytes);
        self.bytes_sent_by_kind.insert(role, done.bytes_sent.into_iter().collect());
    }

    pub(crate) fn finish(&mut self, wall: Duration) {
        self.wall_seconds = wall.as_secs_f64();
        self.cpu_seconds.insert(Role::Coordinator, spnn_protocol::usage::cpu_seconds());
        self.peak_rss_bytes.insert(Role::Coordinator, spnn_protocol::usage::peak_rss_bytes());
    }
}

/// Whether each is a message kind, and named once.
fn are_kinds(bytes: &[(String, u64)]) -> bool {
    let mut kinds: Vec<&str> = bytes.iter().map(|(kind, _)| kind.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds.len() == bytes.len() && kinds.iter().all(|kind| Kind::ALL.iter().any(|k| k.name() == *kind))
}

/// Over one pass of `rows` rows.
fn expected_bytes_per_row(session: &SessionConfig, features: u64, rows: u32) -> f64 {
    let size = session.train.batch_size;
    let whole = u64::from(rows / size) * step_bytes(session, features, size.into());
    let last = match rows % size {
        0 => 0,
        short => step_bytes(session, features, short.into()),
    };
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
    let bytes = whole.saturating_add(last) as f64;
    bytes / f64::from(rows.max(1))
}
