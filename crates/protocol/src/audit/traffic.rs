//! What went over a role's channels, by peer, direction, kind and epoch: counts, sizes and digests, never contents.

use crate::message::{HEADER_BYTES, Header, Kind};
use crate::{Phase, Role};
use base16ct::lower::encode_string as hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To the peer.
    Sent,
    /// From the peer.
    Received,
}

/// All messages of one kind, one way between two roles, in one phase of one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// The start of the session.
    pub incarnation: u64,
    /// Who is at the other end.
    pub peer: Role,
    /// Which way.
    pub direction: Direction,
    /// Kind of the messages.
    pub message: String,
    /// Set-up, training, evaluation or prediction.
    pub phase: String,
    /// The epoch, from 1; 0 in set-up and prediction.
    pub epoch: u32,
    /// Number of messages.
    pub frames: u64,
    /// Their bytes, headers included.
    pub bytes: u64,
    /// Fewest and most rows of a tensor, or numbers of the part of a first-layer message.
    pub rows: [u32; 2],
    /// Fewest and most columns of a tensor.
    pub columns: [u32; 2],
    /// SHA-256 over all of them in order, headers included: the same at both ends.
    pub digest: String,
}

/// Flows that are not written down yet.
#[derive(Default)]
pub(super) struct Traffic {
    flows: BTreeMap<Key, Tally>,
}

type Key = (Phase, u32, Role, Direction, Kind);

struct Tally {
    frames: u64,
    bytes: u64,
    rows: [u32; 2],
    columns: [u32; 2],
    digest: Sha256,
}

impl Traffic {
    pub(super) fn add(&mut self, peer: Role, direction: Direction, header: &Header, body: &[u8]) {
        let key = (header.step.phase, header.step.epoch, peer, direction, header.kind);
        let [rows, columns] = header.shape;
        let tally = self.flows.entry(key).or_insert_with(|| Tally {
            frames: 0,
            bytes: 0,
            rows: [rows, rows],
            columns: [columns, columns],
            digest: Sha256::new(),
        });
        tally.frames += 1;
        tally.bytes += (HEADER_BYTES + body.len()) as u64;
        tally.rows = [tally.rows[0].min(rows), tally.rows[1].max(rows)];
        tally.columns = [tally.columns[0].min(columns), tally.columns[1].max(columns)];
        tally.digest.update(header.encode());
        tally.digest.update(body);
    }

    /// Takes the flows of training and evaluation up to `epoch`, to which nothing is added any more; all flows without
    /// an epoch.
    pub(super) fn take(&mut self, incarnation: u64, epoch: Option<u32>) -> Vec<Flow> {
        let over = |key: &Key| epoch.is_none_or(|last| key.0 != Phase::Setup && key.1 <= last);
        let (taken, left) = std::mem::take(&mut self.flows).into_iter().partition(|(key, _)| over(key));
        self.flows = left;
        let taken: BTreeMap<Key, Tally> = taken;
        let flow = |((phase, epoch, peer, direction, kind), tally): (Key, Tally)| Flow {
            incarnation,
            peer,
            direction,
            message: kind.name().into(),
            phase: phase_name(phase).into(),
            epoch,
            frames: tally.frames,
            bytes: tally.bytes,
            rows: tally.rows,
            columns: tally.columns,
            digest: hex(&tally.digest.finalize()),
        };
        taken.into_iter().map(flow).collect()
    }
}

pub(super) fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Setup => "set-up",
        Phase::Train => "train",
        Phase::Evaluate => "evaluate",
        Phase::Predict => "predict",
    }
}
