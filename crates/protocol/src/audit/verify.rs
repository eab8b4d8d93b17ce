//! Checking logs: each for itself, and several roles' against each other.

use super::{Direction, Entry, Flow, Line, head_message};
use crate::message::AuditHead;
use crate::signing::Seal;
use crate::{Authority, Role};
use base16ct::lower::encode_string as hex;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Longer lines are not read.
pub(super) const LINE_MAX: u64 = 256 << 10;

/// Why a log is not what its role wrote.
#[derive(Debug, Error)]
pub enum AuditError {
    /// The file cannot be read.
    #[error("{}: {source}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line was altered, removed or put in.
    #[error("{}, line {line}: {reason}", file.display())]
    Line {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
}

/// What a log says, all of which is chained and, up to `signed`, signed.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Whose log it is.
    pub role: Role,
    /// All lines.
    pub lines: Vec<Line>,
    /// So many lines are covered by the last signed head, itself included; nothing vouches for what follows.
    pub signed: u64,
    /// Bytes of an unfinished last line: the role runs, or died writing it.
    pub torn: u64,
}

impl Verified {
    /// All flows.
    pub fn flows(&self) -> impl Iterator<Item = &Flow> {
        self.lines.iter().filter_map(|line| match &line.entry {
            Entry::Traffic { flow } => Some(flow),
            _ => None,
        })
    }

    /// Starts of the session that came to their end.
    fn ended(&self) -> BTreeSet<u64> {
        let ended = self.lines.iter().filter_map(|line| match &line.entry {
            Entry::End { incarnation, .. } => Some(*incarnation),
            _ => None,
        });
        ended.collect()
    }

    /// Bytes sent, by peer and kind of message, over all starts.
    #[must_use]
    pub fn egress(&self) -> BTreeMap<(Role, String), u64> {
        let mut sent = BTreeMap::new();
        for flow in self.flows().filter(|flow| flow.direction == Direction::Sent) {
            *sent.entry((flow.peer, flow.message.clone())).or_default() += flow.bytes;
        }
        sent
    }
}

/// Reads a log and checks that every line is as it was written, in its place, and that its heads are signed by its role;
/// with an `authority`, by certificates of it that were in force then.
///
/// # Errors
/// [`AuditError`] naming the line.
pub fn verify(file: &Path, authority: Option<&Authority>) -> Result<Verified, AuditError> {
    let failed = |source| AuditError::File { file: file.to_owned(), source };
    let wrong = |line: u64, reason: String| AuditError::Line { file: file.to_owned(), line, reason };
    let mut input = BufReader::new(File::open(file).map_err(failed)?);
    let mut role = None;
    let mut lines: Vec<Line> = Vec::new();
    let mut pins: BTreeMap<Role, Option<String>> = BTreeMap::new();
    let (mut signed, mut torn) = (0, 0);
    let mut previous = hex(&[0; 32]);
    let mut next = read_line(&mut input).map_err(failed)?;
    while let Some(text) = next.take() {
        let number = lines.len() as u64 + 1;
        let Some(text) = text.strip_suffix(b"\n") else {
            torn = text.len() as u64;
            break;
        };
        next = read_line(&mut input).map_err(failed)?;
        let line = parse(text).map_err(|reason| wrong(number, reason))?;
        let digest = hex(&Sha256::digest(text));
        if line.previous != previous {
            // Either the line before was altered, or what this one says of it. The next one knows.
            let this = match (&line.entry, &next) {
                (_, Some(next)) => {
                    next.strip_suffix(b"\n").and_then(|n| parse(n).ok()).is_some_and(|n| n.previous != digest)
                }
                (Entry::Head { seal }, None) => role.is_none_or(|role| check_head(role, &line, seal, None).is_err()),
                (_, None) => false,
            };
            let altered = if this || number == 1 { number } else { number - 1 };
            return Err(wrong(altered, "was altered: its digest is not what the log says of it".into()));
        }
        if line.sequence + 1 != number {
            return Err(wrong(
                number,
                format!("has number {}; {} is due: lines are missing", line.sequence, number - 1),
            ));
        }
        match &line.entry {
            Entry::Start { role: whose, peers, .. } => {
                if *role.get_or_insert(*whose) != *whose {
                    return Err(wrong(number, format!("is of {whose}, in the log of another role")));
                }
                pins.clone_from(peers);
            }
            Entry::Head { seal } => {
                let role = role.ok_or_else(|| wrong(number, "a signed head before the first start".into()))?;
                check_head(role, &line, seal, authority).map_err(|reason| wrong(number, reason))?;
                signed = number;
            }
            Entry::PeerHead { peer, head } => {
                let pin = pins.get(peer).and_then(Option::as_deref);
                check_peer(*peer, head, pin, authority).map_err(|reason| wrong(number, reason))?;
            }
            Entry::Torn { .. }
            | Entry::Traffic { .. }
            | Entry::Opened { .. }
            | Entry::Released { .. }
            | Entry::Interrupted { .. }
            | Entry::End { .. } => {}
        }
        previous = digest;
        lines.push(line);
    }
    let role = role.ok_or_else(|| wrong(1, "no start of a session: this is no audit log".into()))?;
    Ok(Verified { role, lines, signed, torn })
}

/// A line of at most [`LINE_MAX`] bytes, with its end.
fn read_line(input: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    input.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)?;
    if line.len() as u64 == LINE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is longer than any of an audit log"));
    }
    Ok((!line.is_empty()).then_some(line))
}

/// A line that is written exactly as this program writes it: nothing can hide between its fields.
fn parse(text: &[u8]) -> Result<Line, String> {
    let line: Line = serde_json::from_slice(text).map_err(|e| format!("was altered: it is no line of a log: {e}"))?;
    match serde_json::to_vec(&line) {
        Ok(again) if again == text => Ok(line),
        _ => Err("was altered: it is not written as this program writes it".into()),
    }
}

fn check_head(role: Role, line: &Line, seal: &Seal, authority: Option<&Authority>) -> Result<(), String> {
    let message = head_message(role, line.sequence, line.time, &line.previous);
    let signer = seal.check(&message).map_err(|e| format!("its signature is refused: {e}"))?;
    if signer.role != role {
        return Err(format!("its signature is that of {}", signer.role));
    }
    authority.map_or(Ok(()), |authority| authority.check(&signer.chain, line.time.into()))
}

fn check_peer(peer: Role, head: &AuditHead, pin: Option<&str>, authority: Option<&Authority>) -> Result<(), String> {
    let signer = head.signer().map_err(|e| format!("the signature of {peer} is refused: {e}"))?;
    if signer.role != peer {
        return Err(format!("the head of {peer} is signed by {}", signer.role));
    }
    let key = signer.key.to_string();
    if pin.is_some_and(|pin| pin != key) {
        return Err(format!("the head of {peer} is signed by key {key}, which is not the one it took part with"));
    }
    let time = head.time.parse::<jiff::Timestamp>().map_err(|e| e.to_string())?;
    authority.map_or(Ok(()), |authority| authority.check(&signer.chain, time.into()))
}

/// What logs of several roles of a session say against each other, in words; nothing if they agree. Flows of starts that
/// were interrupted are not compared: what was under way was sent and not received.
#[must_use]
pub fn compare(logs: &[Verified]) -> Vec<String> {
    let mut found = Vec::new();
    for ours in logs {
        for theirs in logs.iter().filter(|theirs| theirs.role != ours.role) {
            compare_flows(ours, theirs, &mut found);
            compare_heads(ours, theirs, &mut found);
        }
    }
    found
}

/// What `from` sent to `to`.
fn compare_flows(from: &Verified, to: &Verified, found: &mut Vec<String>) {
    let ended: BTreeSet<u64> = from.ended().intersection(&to.ended()).copied().collect();
    let key = |flow: &Flow| (flow.incarnation, flow.phase.clone(), flow.epoch, flow.message.clone());
    let between = |log: &Verified, peer: Role, direction: Direction| -> BTreeMap<_, Vec<Flow>> {
        let mut flows: BTreeMap<_, Vec<Flow>> = BTreeMap::new();
        for flow in log.flows().filter(|f| f.peer == peer && f.direction == direction && ended.contains(&f.incarnation))
        {
            flows.entry(key(flow)).or_default().push(flow.clone());
        }
        flows
    };
    let sent = between(from, to.role, Direction::Sent);
    let received = between(to, from.role, Direction::Received);
    let said = |flows: Option<&Vec<Flow>>| -> Vec<(u64, u64, String)> {
        flows.into_iter().flatten().map(|f| (f.frames, f.bytes, f.digest.clone())).collect()
    };
    let keys: BTreeSet<_> = sent.keys().chain(received.keys()).collect();
    for key in keys {
        let (ours, theirs) = (said(sent.get(key)), said(received.get(key)));
        if ours != theirs {
            let (incarnation, phase, epoch, message) = key;
            found.push(format!(
                "{message} of {phase} {epoch} in start {incarnation}: {} says it sent {}, {} says it received {}",
                from.role,
                in_words(&ours),
                to.role,
                in_words(&theirs),
            ));
        }
    }
}

fn in_words(flows: &[(u64, u64, String)]) -> String {
    if flows.is_empty() {
        return "nothing".into();
    }
    let flow = |(frames, bytes, digest): &(u64, u64, String)| {
        format!("{frames} messages, {bytes} bytes, digest {}…", digest.chars().take(12).collect::<String>())
    };
    flows.iter().map(flow).collect::<Vec<_>>().join(" and ")
}

/// Heads of `theirs` that `ours` wrote down must be in the log of `theirs` as it is now.
fn compare_heads(ours: &Verified, theirs: &Verified, found: &mut Vec<String>) {
    for line in &ours.lines {
        let Entry::PeerHead { peer, head } = &line.entry else { continue };
        if *peer != theirs.role {
            continue;
        }
        let now = usize::try_from(head.sequence).ok().and_then(|at| theirs.lines.get(at));
        if now.is_none_or(|now| now.previous != head.previous) {
            found.push(format!(
                "{peer} signed another log than it has now: line {} is not what {} was given (line {} there)",
                head.sequence + 1,
                ours.role,
                line.sequence + 1,
            ));
        }
    }
}

/// A flow, an opening or a release as a row of a table.
#[derive(Clone, Debug, Serialize)]
pub struct Row<'a> {
    /// When it was written down.
    pub time: String,
    /// Whose log it is.
    pub role: Role,
    /// Start of the session.
    pub incarnation: u64,
    /// `sent`, `received`, `opened` or `released`.
    pub what: &'static str,
    /// The other end; the role itself of an opening.
    pub peer: Role,
    /// Kind of message, or what was opened.
    pub kind: &'a str,
    /// Phase of the session.
    pub phase: &'a str,
    /// Epoch.
    pub epoch: u32,
    /// Messages or openings.
    pub count: u64,
    /// Bytes of messages.
    pub bytes: Option<u64>,
    /// Most rows of a message, or rows in all.
    pub rows: u64,
    /// Most columns.
    pub columns: u64,
    /// SHA-256 over the messages.
    pub digest: Option<&'a str>,
}

impl Verified {
    /// What was sent, received, opened and released, line by line.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.lines.iter().filter_map(|line| {
            let (time, role) = (line.time.to_string(), self.role);
            Some(match &line.entry {
                Entry::Traffic { flow } => Row {
                    time,
                    role,
                    incarnation: flow.incarnation,
                    what: match flow.direction {
                        Direction::Sent => "sent",
                        Direction::Received => "received",
                    },
                    peer: flow.peer,
                    kind: &flow.message,
                    phase: &flow.phase,
                    epoch: flow.epoch,
                    count: flow.frames,
                    bytes: Some(flow.bytes),
                    rows: flow.rows[1].into(),
                    columns: flow.columns[1].into(),
                    digest: Some(&flow.digest),
                },
                Entry::Opened { incarnation, phase, epoch, what, times, rows, width, to, .. } => Row {
                    time,
                    role,
                    incarnation: *incarnation,
                    what: "opened",
                    peer: *to,
                    kind: what,
                    phase,
                    epoch: *epoch,
                    count: *times,
                    bytes: None,
                    rows: *rows,
                    columns: *width,
                    digest: None,
                },
                Entry::Released { incarnation, records, outputs, .. } => Row {
                    time,
                    role,
                    incarnation: *incarnation,
                    what: "released",
                    peer: role,
                    kind: "predictions",
                    phase: "",
                    epoch: 0,
                    count: 1,
                    bytes: None,
                    rows: *records,
                    columns: *outputs,
                    digest: None,
                },
                Entry::Start { .. }
                | Entry::Torn { .. }
                | Entry::Head { .. }
                | Entry::PeerHead { .. }
                | Entry::Interrupted { .. }
                | Entry::End { .. } => return None,
            })
        })
    }
}
