//! The coordinator of SPNN: it starts and ends a session and gathers metrics.
//!
//! It learns sizes (rows, features of each party), identities, timing, losses and metrics. It sees no data, no ids, no
//! masks; what parties send each other passes through it under their own TLS.

mod deal;
mod record;

pub use record::{EpochRecord, SessionRecord};

use deal::Deal;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use spnn_protocol::message::{EpochEnd, Finish, Go, Hello, Progress, Ready, Report, Start};
use spnn_protocol::transport::Transport;
use spnn_protocol::{
    Attempts, Audit, Cause, Ending, Incarnation, JoinOptions, Network, Position, ProtocolError, Receiving, Role,
    SessionConfig, Step, Task, all, greet, hello, within, write_durable,
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{info, warn};

/// What happens in a session, for whoever watches.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A role has come.
    Joined(Role),
    /// All are there.
    Started {
        /// Rows of a pass over the training rows.
        train_rows: u32,
        /// Rows kept for testing.
        test_rows: u32,
        /// Where training begins or goes on.
        from: Position,
    },
    /// Where training is.
    Progress {
        /// Epoch, from 1.
        epoch: u32,
        /// Rows and loss.
        progress: Progress,
    },
    /// An epoch is over, at all roles.
    Epoch(&'a EpochRecord),
    /// A role is gone; the session goes on when all are there again.
    Interrupted(&'a ProtocolError),
}

/// Someone who watches a session.
pub trait Observer {
    /// Something happened.
    fn on(&mut self, event: &Event<'_>);

    /// Every role has saved what it has. This is the last moment to keep the record: once the roles are told, none of
    /// them can report again.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] if it cannot be kept; the roles then wait for the coordinator to come back.
    fn finished(&mut self, _record: &SessionRecord) -> Result<(), ProtocolError> {
        Ok(())
    }
}

/// More checkpoints than any role keeps.
const CHECKPOINTS_MAX: usize = 16;
/// Once a role is known to be gone, others have this long to say why.
const ROOT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long each of several roles is waited for in turn.
const TURN: Duration = Duration::from_millis(200);
/// A role that has heard the end has so long to say so.
const FAREWELL: Duration = Duration::from_secs(2);
/// Longer than any epoch; a dead peer is noticed by its connection.
const LONG: Duration = Duration::from_secs(30 * 24 * 3600);

/// Runs one session from the first role that joins to the last that is done. When a role is gone, it waits for all to
/// join again, for as long as its options say. `None` if it had ended before and only had to be told to roles that had
/// not heard.
///
/// # Errors
/// [`ProtocolError`] naming the role that differs, is gone or broke the protocol; the peers have been told.
pub async fn run(
    transport: &mut dyn Transport,
    session: &SessionConfig,
    options: &JoinOptions,
    observer: &mut dyn Observer,
) -> Result<Option<SessionRecord>, ProtocolError> {
    let started = Instant::now();
    let mut attempts = Attempts::new(options);
    loop {
        let mut start = Running { session, options, started, network: Network::new(Role::Coordinator), reached: None };
        let attempt = async {
            if Finished::of(session, options).is_known() && start.tell(transport, attempts.patience()).await? {
                return Ok(None);
            }
            let record = start.join(transport, attempts.patience(), observer).await?;
            let record = start.follow(record, observer).await?;
            start.network.end_audit()?;
            start.tell(transport, options.rejoin_timeout).await?;
            Ok(Some(record))
        };
        let done = tokio::select! {
            biased;
            () = options.stop.wait() => Err(ProtocolError::Stopped),
            done = attempt => done,
        };
        if let Err(e) = &done {
            options.interrupt_audit(e.ending(Role::Coordinator));
        }
        let Err(e) = done else {
            transport.leave(Ending { cause: Cause::Done, culprit: Role::Coordinator });
            options.monitor.done();
            return done;
        };
        transport.leave(e.ending(Role::Coordinator));
        if e.is_interruption() && !options.rejoin_timeout.is_zero() {
            observer.on(&Event::Interrupted(&e));
        }
        attempts.again(e, start.reached).await?;
    }
}

/// One start of the session.
struct Running<'a> {
    session: &'a SessionConfig,
    options: &'a JoinOptions,
    started: Instant,
    network: Network,
    reached: Option<Position>,
}

impl Running<'_> {
    /// Tells roles that have not heard it that everything is done, when they join again. True if there was nothing else
    /// to do; false if one of them begins anew.
    async fn tell(&mut self, transport: &mut dyn Transport, patience: Duration) -> Result<bool, ProtocolError> {
        let Self { session, options, .. } = self;
        let finished = Finished::of(session, options);
        let deadline = Instant::now() + patience;
        let mut left = finished.not_told();
        while !left.is_empty() && Instant::now() < deadline {
            let role = left[0];
            left.rotate_left(1);
            let Ok(mut channel) = transport.connect(role, TURN).await else { continue };
            channel.set_timeout(FAREWELL);
            let ours = hello(session, options.task, 0);
            let Ok(theirs) = greet(&mut channel, session, &ours).await else { continue };
            if !is_final(session, &theirs) {
                channel.link().end(Ending { cause: Cause::PeerGone, culprit: Role::Coordinator });
                finished.forget()?;
                return Ok(false);
            }
            info!("{role} is told that everything is done");
            channel.link().end(Ending { cause: Cause::Done, culprit: Role::Coordinator });
            left.retain(|r| *r != role);
            finished.remember(&left)?;
        }
        Ok(true)
    }

    /// Brings all roles together.
    async fn join(
        &mut self,
        transport: &mut dyn Transport,
        patience: Duration,
        observer: &mut dyn Observer,
    ) -> Result<SessionRecord, ProtocolError> {
        let Self { session, options, network, .. } = self;
        options.check_in_force(session)?;
        let kept = Incarnation::in_directory(&options.directory);
        let last = kept.last()?;
        let mut incarnation = last;
        let mut offers = BTreeMap::new();
        let deadline = Instant::now() + patience;
        for role in session.roles().filter(|&r| r != Role::Coordinator) {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut channel = match transport.connect(role, left).await {
                Err(ProtocolError::NotJoined { peer, .. }) => {
                    return Err(ProtocolError::NotJoined { peer, waited: patience });
                }
                channel => channel?,
            };
            channel.set_timeout(patience);
            let ours = hello(session, options.task, incarnation);
            let theirs = greet(&mut channel, session, &ours).await;
            network.add(channel);
            let theirs = theirs?;
            if theirs.incarnation > last.saturating_add(Incarnation::AHEAD_MAX) {
                let expected = format!("at most {} above {last}", Incarnation::AHEAD_MAX);
                return Err(ProtocolError::Incarnation { peer: role, expected, found: theirs.incarnation });
            }
            if theirs.checkpoints.len() > CHECKPOINTS_MAX {
                let expected = format!("at most {CHECKPOINTS_MAX} checkpoints");
                return Err(ProtocolError::Unexpected {
                    peer: role,
                    expected,
                    found: theirs.checkpoints.len().to_string(),
                });
            }
            incarnation = incarnation.max(theirs.incarnation);
            offers.insert(role, theirs.checkpoints);
            observer.on(&Event::Joined(role));
        }
        let resume = common_position(&offers)?;
        incarnation += 1;
        kept.begin(incarnation)?;
        info!(incarnation, %resume, "all roles have joined");
        network.channels().for_each(|c| c.set_timeout(patience));
        let start = Start { incarnation, resume };
        all(network.channels().map(|c| c.send(Step::SETUP, &start))).await?;
        if session.alignment.is_some() {
            // Parties may take their time to align their rows; a dead one is noticed by its connection.
            network.channels().for_each(|c| c.set_timeout(LONG));
        }
        let ready = network.channels().map(async |c| Ok((c.peer(), c.recv::<Ready>(Step::SETUP).await?)));
        let shapes = all(ready).await?.into_iter().filter(|(role, _)| matches!(role, Role::Party(_))).collect();
        let rows = common_rows(&shapes)?;
        let features: Vec<u32> = shapes.values().map(|shape| shape.features).collect();
        info!(rows, ?features, "all roles are ready");
        network.channels().for_each(|c| c.set_timeout(patience));
        let go = Go { rows, features };
        all(network.channels().map(|c| c.send(Step::SETUP, &go))).await?;
        network.channels().for_each(|c| c.watch(&options.monitor));
        options.monitor.running(incarnation);
        options.monitor.at(resume);

        if let Some(audit) = &options.audit {
            network.begin_audit(audit, session, options.task, incarnation, None)?;
        }
        let schedule = session.schedule(rows);
        let (train_rows, test_rows) = match options.task {
            Task::Train => (schedule.train_rows(), schedule.test_rows()),
            Task::Evaluate | Task::Predict | Task::Align | Task::Serve => (0, rows),
        };
        if options.task == Task::Serve {
            self.reached = Some(Position::of_service(incarnation));
        }
        observer.on(&Event::Started { train_rows, test_rows, from: resume });
        Ok(SessionRecord::new(session, options.task, incarnation, train_rows, test_rows, go.features, resume))
    }

    /// Follows a session that runs, to its end.
    async fn follow(
        &mut self,
        mut record: SessionRecord,
        observer: &mut dyn Observer,
    ) -> Result<SessionRecord, ProtocolError> {
        let Self { session, options, started, network, reached } = self;
        gather(session, options, network, &mut record, observer, reached).await?;
        record.finish(started.elapsed());
        observer.finished(&record)?;
        let finished = Finished::of(session, options);
        let mut left: Vec<Role> = network.channels().map(|c| c.peer()).collect();
        finished.remember(&left)?;
        all(network.channels().map(|c| c.send(Step::SETUP, &Finish))).await?;
        // A role that has heard the end closes its connection.
        for channel in network.channels() {
            channel.set_timeout(FAREWELL);
            match channel.recv::<Finish>(Step::SETUP).await {
                Err(ProtocolError::PeerEnded { peer, ending: Ending { cause: Cause::Done, .. }, .. }) => {
                    left.retain(|r| *r != peer);
                }
                _ => warn!("{} did not confirm the end; it is told again when it comes back", channel.peer()),
            }
        }
        finished.remember(&left)?;
        Ok(record)
    }
}

/// The memory that a session is over, until every role has heard it.
struct Finished {
    file: PathBuf,
    session: String,
}

impl Finished {
    fn of(session: &SessionConfig, options: &JoinOptions) -> Self {
        let session = session.digest_text();
        Self { file: options.directory.join("finished"), session }
    }

    fn is_known(&self) -> bool {
        !self.not_told().is_empty()
    }

    /// Roles that may not have heard it.
    fn not_told(&self) -> Vec<Role> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let mut lines = text.lines();
        match lines.next() {
            Some(session) if session == self.session => lines.filter_map(|role| role.parse().ok()).collect(),
            _ => Vec::new(),
        }
    }

    fn remember(&self, not_told: &[Role]) -> Result<(), ProtocolError> {
        if not_told.is_empty() {
            return self.forget();
        }
        let roles = not_told.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        write_durable(&self.file, format!("{}\n{roles}\n", self.session).as_bytes())
    }

    fn forget(&self) -> Result<(), ProtocolError> {
        match std::fs::remove_file(&self.file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(ProtocolError::Storage { file: self.file.clone(), source: e })
            }
            _ => Ok(()),
        }
    }
}

/// Whether a role has trained everything.
fn is_final(session: &SessionConfig, hello: &Hello) -> bool {
    hello.task == Task::Train && hello.checkpoints.iter().any(|p| p.epoch > session.train.epochs)
}

/// The last position of which every role has a checkpoint.
fn common_position(offers: &BTreeMap<Role, Vec<Position>>) -> Result<Position, ProtocolError> {
    let common = |p: &&Position| offers.values().all(|held| held.contains(p));
    let last = offers.values().next().and_then(|first| first.iter().filter(common).max());
    last.copied().ok_or_else(|| {
        let held = |(role, held): (&Role, &Vec<Position>)| {
            let held = held.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            format!("{role} has {held}")
        };
        ProtocolError::NoCommonCheckpoint { offers: offers.iter().map(held).collect::<Vec<_>>().join("; ") }
    })
}

/// All parties have the same rows, or the first that differs is named.
fn common_rows(shapes: &BTreeMap<Role, Ready>) -> Result<u32, ProtocolError> {
    let Some((&reference, &Ready { rows: expected, .. })) = shapes.first_key_value() else { return Ok(0) };
    match shapes.iter().find(|(_, shape)| shape.rows != expected) {
        None => Ok(expected),
        Some((&peer, &Ready { rows: found, .. })) => Err(ProtocolError::RowCount { peer, reference, expected, found }),
    }
}

/// Listens to all roles at once until each is done, and deals them what their first layer needs.
async fn gather(
    session: &SessionConfig,
    options: &JoinOptions,
    network: &mut Network,
    record: &mut SessionRecord,
    observer: &mut dyn Observer,
    reached: &mut Option<Position>,
) -> Result<(), ProtocolError> {
    network.channels().for_each(|c| c.set_timeout(LONG));
    let (mut sending, receiving): (Vec<_>, Vec<_>) = network.channels().map(|c| c.split()).unzip();
    sending.retain(|s| matches!(s.peer(), Role::Party(_)));
    let mut listening: FuturesUnordered<_> = receiving.into_iter().map(listen).collect();
    let deal = Deal::of(record);
    let mut dealt = BTreeMap::new();
    let mut failed: Vec<(Role, ProtocolError)> = Vec::new();
    {
        let mut dealing = std::pin::pin!(deal.run(session, &mut sending, &mut dealt));
        let mut deals = true;
        loop {
            // When one role goes, others follow within moments and say why; the root is worth a short wait.
            let waits = !failed.is_empty();
            let next = listening.next();
            let next = async { if waits { within(ROOT_TIMEOUT, next).await.flatten() } else { next.await } };
            let next = tokio::select! {
                biased;
                next = next => next,
                done = &mut dealing, if deals => {
                    deals = false;
                    // Whoever is gone, for whatever reason, is heard of where this role listens.
                    match done {
                        Err(e) if e.ending(Role::Coordinator).culprit == Role::Coordinator => return Err(e),
                        _ => continue,
                    }
                }
            };
            let Some((from, report)) = next else { break };
            let peer = from.peer();
            let report = report.and_then(|report| record.check(session, peer, report));
            match report.and_then(|report| keep_head(options.audit.as_ref(), peer, report)) {
                Ok(Report::Done(done)) => {
                    record.done(peer, done);
                    continue;
                }
                Ok(Report::Progress(progress)) => {
                    let position = record.position(&progress);
                    *reached = Some(position).max(*reached);
                    options.monitor.at(position);
                    options.monitor.results(Some(progress.loss), None);
                    observer.on(&Event::Progress { epoch: record.epoch_under_way(), progress });
                }
                Ok(Report::EpochEnd(end)) => {
                    if let Some(epoch) = record.epoch_end(peer, end) {
                        let position = Position { epoch: epoch.epoch + 1, batch: 0 };
                        *reached = Some(position).max(*reached);
                        options.monitor.at(position);
                        options.monitor.results(epoch.train_loss, epoch.test);
                        observer.on(&Event::Epoch(epoch));
                    }
                }
                Err(e) => {
                    let root = is_root(&e);
                    failed.push((peer, e));
                    if root || listening.is_empty() {
                        break;
                    }
                    continue;
                }
            }
            if failed.is_empty() {
                listening.push(listen(from));
            }
        }
    }
    record.dealt(&dealt);
    root_of(failed).map_or(Ok(()), Err)
}

/// Writes down the signed head of a role's audit log that comes with the end of an epoch.
fn keep_head(audit: Option<&Audit>, peer: Role, report: Report) -> Result<Report, ProtocolError> {
    if let (Some(audit), Report::EpochEnd(EpochEnd { head: Some(head), .. })) = (audit, &report) {
        audit.peer_head(peer, head.clone())?;
    }
    Ok(report)
}

/// Of what several roles said when they went, what is nearest to the root: what happened itself, or the word of a role
/// that blames one that blames nobody.
fn root_of(mut failed: Vec<(Role, ProtocolError)>) -> Option<ProtocolError> {
    let went: Vec<Role> = failed.iter().map(|(role, _)| *role).collect();
    let culprit = |e: &ProtocolError| e.ending(Role::Coordinator).culprit;
    let root = failed.iter().position(|(_, e)| is_root(e));
    let root = root.or_else(|| failed.iter().position(|(_, e)| !went.contains(&culprit(e))));
    (!failed.is_empty()).then(|| failed.swap_remove(root.unwrap_or(0)).1)
}

/// Whether an error says what happened, not merely that someone else saw something happen.
fn is_root(error: &ProtocolError) -> bool {
    match error {
        ProtocolError::PeerEnded { peer, ending: Ending { culprit, .. }, .. } => peer == culprit,
        _ => true,
    }
}

async fn listen(mut from: Receiving<'_>) -> (Receiving<'_>, Result<Report, ProtocolError>) {
    let report = from.recv(Step::SETUP).await;
    (from, report)
}
