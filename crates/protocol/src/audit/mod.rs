//! What a role sent, received, opened and released: an append-only log whose lines are chained by their digests.
//!
//! A line is a JSON object with a number, a time, the SHA-256 of the line before (`previous`) and an [`Entry`]. At the end
//! of each epoch, and of the session, the role signs the head of its chain with its certificate's key. Under a contract,
//! roles exchange signed heads with their peers after each epoch and write down what they got, so that none can
//! rewrite its log later without contradicting those of the others.
//!
//! The log holds sizes, counts and digests; no data, ids, masks or keys.

mod traffic;
mod verify;

#[cfg(test)]
mod tests;

pub use crate::signing::Seal;
pub use traffic::{Direction, Flow};
pub use verify::{AuditError, Row, Verified, compare, verify};

use crate::error::Ending;
use crate::message::{AuditHead, Header};
use crate::{FirstLayerKind, Identity, Phase, ProtocolError, Role, SessionConfig, Step, Task};
use base16ct::lower::encode_string as hex;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use traffic::{Traffic, phase_name};

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Position in the file, from 0.
    pub sequence: u64,
    /// When it was written, by this role's clock.
    pub time: Timestamp,
    /// SHA-256 of the line before, without its line end; zeros in the first line.
    pub previous: String,
    /// What happened.
    pub entry: Entry,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Entry {
    /// The role has met its peers.
    Start {
        /// Whose log this is.
        role: Role,
        /// Version of the software.
        version: String,
        /// SHA-256 of the session's canonical text: the contract's digest if it is one.
        session: String,
        /// Whether the session is a contract.
        contract: bool,
        /// Train, evaluate or predict.
        task: Task,
        /// Number of this start.
        incarnation: u64,
        /// Everyone it talks to, with the key of its certificate where there is one.
        peers: BTreeMap<Role, Option<String>>,
    },
    /// A process died while it wrote the last line; its bytes were removed.
    Torn {
        /// How many.
        bytes: u64,
        /// SHA-256 of them.
        digest: String,
    },
    /// Messages of one kind, one way, in one epoch.
    Traffic {
        /// Whose, how many, how large, and their digest.
        flow: Flow,
    },
    /// Something protected was made plain to this role.
    Opened {
        /// The start of the session.
        incarnation: u64,
        /// First-layer protocol.
        first_layer: FirstLayerKind,
        /// Set-up, training, evaluation or prediction.
        phase: String,
        /// The epoch.
        epoch: u32,
        /// What: `h1`, or `e` and `f` of `beaver`.
        what: String,
        /// How often.
        times: u64,
        /// Rows of all of them together.
        rows: u64,
        /// Columns of each.
        width: u64,
        /// To whom: this role.
        to: Role,
    },
    /// Predictions were written where people can read them.
    Released {
        /// The start of the session.
        incarnation: u64,
        /// Number of records.
        records: u64,
        /// Values for each record.
        outputs: u64,
        /// The most that one record was scored in this pass.
        per_record_max: u64,
    },
    /// The signed head of the chain: everything above this line.
    Head {
        /// By this role's certificate.
        seal: Seal,
    },
    /// The signed head of a peer's chain.
    PeerHead {
        /// Whose.
        peer: Role,
        /// What it sent.
        head: AuditHead,
    },
    /// This start of the session was interrupted. Its last flows may be longer at the sender than at the receiver.
    Interrupted {
        /// The start of the session.
        incarnation: u64,
        /// Exit code of the cause.
        cause: u8,
        /// Whose doing it was.
        culprit: Role,
    },
    /// This start of the session came to its end.
    End {
        /// The start of the session.
        incarnation: u64,
        /// Bytes sent in it, by peer and kind of message, headers included.
        sent: BTreeMap<Role, BTreeMap<String, u64>>,
    },
}

/// A role's log, shared by its channels.
#[derive(Clone)]
pub struct Audit(Arc<Mutex<Log>>);

struct Log {
    file: PathBuf,
    out: File,
    sequence: u64,
    previous: [u8; 32],
    signer: Option<Identity>,
    clock: fn() -> SystemTime,
    /// What it is about, once the role has joined.
    running: Option<Running>,
}

/// A start of a session.
struct Running {
    role: Role,
    incarnation: u64,
    first_layer: FirstLayerKind,
    /// Heads are exchanged.
    contract: bool,
    traffic: Traffic,
    opened: BTreeMap<(Phase, u32, &'static str), Opened>,
    sent: BTreeMap<Role, BTreeMap<String, u64>>,
}

#[derive(Default)]
struct Opened {
    times: u64,
    rows: u64,
    width: u64,
}

/// The file of a role's log in its directory.
#[must_use]
pub fn audit_file(directory: &Path) -> PathBuf {
    directory.join("audit.jsonl")
}

impl Audit {
    /// Opens the log of a role, or begins one. Heads are signed by `signer`; without one, the log is only chained.
    /// A last line that a crash left unfinished is removed, and what it was is written down.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] naming the file: it cannot be read or written, or its last line is not a line of a log.
    /// The lines before it are checked by [`verify`], not here.
    pub fn open(file: &Path, signer: Option<Identity>, clock: fn() -> SystemTime) -> Result<Self, ProtocolError> {
        let storage = |source| ProtocolError::Storage { file: file.to_owned(), source };
        if let Some(directory) = file.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory).map_err(storage)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut out = options.open(file).map_err(storage)?;
        // A second writer would break the chain.
        out.try_lock().map_err(|_| storage(io::Error::other("another process writes this log")))?;
        let end = tail(&mut out).map_err(storage)?;
        let (sequence, previous) = match &end.last {
            None => (0, [0; 32]),
            Some(last) => {
                let not_a_line =
                    |e| storage(io::Error::other(format!("its last line is no line of an audit log: {e}")));
                let line: Line = serde_json::from_slice(last).map_err(not_a_line)?;
                (line.sequence + 1, Sha256::digest(last).into())
            }
        };
        let mut log = Log { file: file.to_owned(), out, sequence, previous, signer, clock, running: None };
        if !end.torn.is_empty() {
            log.out.set_len(end.whole).map_err(storage)?;
            let digest = hex(&Sha256::digest(&end.torn));
            log.write(Entry::Torn { bytes: end.torn.len() as u64, digest })?;
        }
        Ok(Self(Arc::new(Mutex::new(log))))
    }

    /// Begins to write about a start of a session.
    pub(crate) fn start(
        &self,
        role: Role,
        session: &SessionConfig,
        task: Task,
        incarnation: u64,
        peers: BTreeMap<Role, Option<String>>,
    ) -> Result<(), ProtocolError> {
        let mut log = self.log();
        let contract = session.contract.is_some();
        log.running = Some(Running {
            role,
            incarnation,
            first_layer: session.first_layer,
            contract,
            traffic: Traffic::default(),
            opened: BTreeMap::new(),
            sent: BTreeMap::new(),
        });
        let (version, session) = (env!("CARGO_PKG_VERSION").to_owned(), session.digest_text());
        log.write(Entry::Start { role, version, session, contract, task, incarnation, peers })?;
        log.sync()
    }

    /// A message went over a channel.
    pub(crate) fn message(&self, peer: Role, direction: Direction, header: &Header, body: &[u8]) {
        if let Some(running) = &mut self.log().running {
            running.traffic.add(peer, direction, header, body);
        }
    }

    /// Something protected, `[rows, width]`, was made plain to this role.
    pub(crate) fn opened(&self, step: Step, what: &'static str, rows: usize, width: usize) {
        if let Some(running) = &mut self.log().running {
            let opened = running.opened.entry((step.phase, step.epoch, what)).or_default();
            opened.times += 1;
            opened.rows += rows as u64;
            opened.width = width as u64;
        }
    }

    /// Predictions of `records` records, each scored at most `per_record_max` times in this pass, were written.
    pub(crate) fn released(&self, records: usize, outputs: usize, per_record_max: usize) -> Result<(), ProtocolError> {
        let mut log = self.log();
        let Some(Running { incarnation, .. }) = log.running else { return Ok(()) };
        let [records, outputs, per_record_max] = [records, outputs, per_record_max].map(|n| n as u64);
        log.write(Entry::Released { incarnation, records, outputs, per_record_max })?;
        log.sync()
    }

    /// Writes what happened up to the end of `epoch`. The signed head, if peers are to have it.
    pub(crate) fn epoch_end(&self, epoch: u32) -> Result<Option<AuditHead>, ProtocolError> {
        let mut log = self.log();
        log.flush(Some(epoch))?;
        let head = log.head()?;
        log.sync()?;
        Ok(head.filter(|_| log.running.as_ref().is_some_and(|r| r.contract)))
    }

    /// Writes down the head of a peer, which must be signed by a certificate of its role.
    ///
    /// # Errors
    /// [`ProtocolError::Unexpected`] if it is not; [`ProtocolError::Storage`] naming the file.
    pub fn peer_head(&self, peer: Role, head: AuditHead) -> Result<(), ProtocolError> {
        let found = match head.signer() {
            Ok(signer) if signer.role == peer => return self.log().write(Entry::PeerHead { peer, head }),
            Ok(signer) => format!("one of {}", signer.role),
            Err(e) => format!("one that is not good: {e}"),
        };
        Err(ProtocolError::Unexpected { peer, expected: "the signed head of its audit log".into(), found })
    }

    /// This start of the session is over: everything that was not written yet, and the signed head.
    pub(crate) fn end(&self, interrupted: Option<Ending>) -> Result<(), ProtocolError> {
        let mut log = self.log();
        if log.running.is_none() {
            return Ok(());
        }
        log.flush(None)?;
        let Some(Running { incarnation, sent, .. }) = log.running.take() else { return Ok(()) };
        log.write(match interrupted {
            None => Entry::End { incarnation, sent },
            Some(Ending { cause, culprit }) => Entry::Interrupted { incarnation, cause: cause.code(), culprit },
        })?;
        log.head()?;
        log.sync()
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Audit({})", self.log().file.display())
    }
}

impl Log {
    /// What was written is on disk when this returns.
    fn sync(&mut self) -> Result<(), ProtocolError> {
        self.out.sync_data().map_err(|source| ProtocolError::Storage { file: self.file.clone(), source })
    }

    fn write(&mut self, entry: Entry) -> Result<(), ProtocolError> {
        let time = self.now();
        self.write_at(time, entry)
    }

    fn write_at(&mut self, time: Timestamp, entry: Entry) -> Result<(), ProtocolError> {
        let storage = |source| ProtocolError::Storage { file: self.file.clone(), source };
        let line = Line { sequence: self.sequence, time, previous: hex(&self.previous), entry };
        let mut text = serde_json::to_string(&line).map_err(|e| storage(e.into()))?;
        self.previous = Sha256::digest(&text).into();
        self.sequence += 1;
        text.push('\n');
        self.out.write_all(text.as_bytes()).map_err(storage)
    }

    fn flush(&mut self, epoch: Option<u32>) -> Result<(), ProtocolError> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let Running { incarnation, first_layer, role, .. } = *running;
        let flows = running.traffic.take(incarnation, epoch);
        for flow in flows.iter().filter(|flow| flow.direction == Direction::Sent) {
            let sent = running.sent.entry(flow.peer).or_default();
            *sent.entry(flow.message.clone()).or_default() += flow.bytes;
        }
        let opened = std::mem::take(&mut running.opened);
        for flow in flows {
            self.write(Entry::Traffic { flow })?;
        }
        for ((phase, epoch, what), Opened { times, rows, width }) in opened {
            let (phase, what) = (phase_name(phase).into(), what.into());
            self.write(Entry::Opened { incarnation, first_layer, phase, epoch, what, times, rows, width, to: role })?;
        }
        Ok(())
    }

    /// Signs the chain as it is and writes the signature down.
    fn head(&mut self) -> Result<Option<AuditHead>, ProtocolError> {
        let time = self.now();
        let Some(signer) = &self.signer else { return Ok(None) };
        let message = head_message(signer.role(), self.sequence, time, &hex(&self.previous));
        let failed = |reason| ProtocolError::Identity { file: signer.file().to_owned(), reason };
        let seal = Seal::make(signer, &message).map_err(failed)?;
        let role = signer.role();
        let head =
            AuditHead { role, sequence: self.sequence, time: time.to_string(), previous: hex(&self.previous), seal };
        self.write_at(time, Entry::Head { seal: head.seal.clone() })?;
        Ok(Some(head))
    }

    /// To the second: a log needs no more, and says less.
    fn now(&self) -> Timestamp {
        let now = Timestamp::try_from((self.clock)()).unwrap_or(Timestamp::UNIX_EPOCH);
        Timestamp::from_second(now.as_second()).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// What is signed of a chain: the number of the line that will hold the signature, its time, and the digest of the line
/// before it.
pub(crate) fn head_message(role: Role, sequence: u64, time: Timestamp, previous: &str) -> Vec<u8> {
    format!("spnn audit head v1\0{role}\0{sequence}\0{time}\0{previous}").into_bytes()
}

/// The end of a log: its last whole line, without its end; how long the file is up to there; and what follows.
struct Tail {
    last: Option<Vec<u8>>,
    whole: u64,
    torn: Vec<u8>,
}

/// Reads backwards as far as the last whole line goes.
fn tail(file: &mut File) -> io::Result<Tail> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut size = 64 << 10;
    loop {
        let from = length.saturating_sub(size);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        Read::by_ref(file).take(size).read_to_end(&mut bytes)?;
        let end = bytes.iter().rposition(|&b| b == b'\n');
        let begin = end.and_then(|end| bytes[..end].iter().rposition(|&b| b == b'\n').map(|at| at + 1));
        let begin = begin.or((from == 0).then_some(0));
        match (begin, end) {
            (Some(begin), Some(end)) => {
                let torn = bytes.split_off(end + 1);
                bytes.truncate(end);
                return Ok(Tail { last: Some(bytes.split_off(begin)), whole: from + end as u64 + 1, torn });
            }
            (_, None) if from == 0 => return Ok(Tail { last: None, whole: 0, torn: bytes }),
            _ if size > verify::LINE_MAX * 2 => {
                return Err(io::Error::other("its last line is longer than any of an audit log"));
            }
            _ => size *= 4,
        }
    }
}
