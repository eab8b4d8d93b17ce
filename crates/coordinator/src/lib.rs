//! The coordinator of SPNN: it starts and ends a session and gathers metrics.
//!
//! It learns sizes (rows, features of each party), identities, timing, losses and metrics. It sees no data, no ids, no
//! masks; what parties send each other passes through it under their own TLS.

mod record;

pub use record::{EpochRecord, SessionRecord};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use spnn_protocol::message::{Finish, Go, Progress, Ready, Report, Start};
use spnn_protocol::transport::Transport;
use spnn_protocol::{
    Channel, DataShape, Ending, Incarnation, JoinOptions, Network, ProtocolError, Role, SessionConfig, Step, Task, all,
    greet, hello, within,
};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tracing::info;

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
}

/// Someone who watches a session.
pub trait Observer {
    /// Something happened.
    fn on(&mut self, event: &Event<'_>);
}

/// A role may be ahead of the coordinator by so many starts, if the coordinator has lost its directory. One that could
/// name any number could use all of them up.
const STARTS_AHEAD_MAX: u64 = 1 << 20;
/// Once a role is known to be gone, others have this long to say why.
const ROOT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longer than any epoch; a dead peer is noticed by its connection.
const LONG: Duration = Duration::from_secs(30 * 24 * 3600);

/// Runs one session from the first role that joins to the last that is done.
///
/// # Errors
/// [`ProtocolError`] naming the role that differs, is gone or broke the protocol; the peers are told.
pub async fn run(
    transport: &mut dyn Transport,
    session: &SessionConfig,
    options: &JoinOptions,
    observer: &mut dyn Observer,
) -> Result<SessionRecord, ProtocolError> {
    let mut network = Network::new(Role::Coordinator);
    let result = coordinate(transport, session, options, observer, &mut network).await;
    if let Err(e) = &result {
        network.end(e.ending(Role::Coordinator));
    }
    result
}

async fn coordinate(
    transport: &mut dyn Transport,
    session: &SessionConfig,
    options: &JoinOptions,
    observer: &mut dyn Observer,
    network: &mut Network,
) -> Result<SessionRecord, ProtocolError> {
    let started = Instant::now();
    let kept = Incarnation::in_directory(&options.directory);
    let last = kept.last()?;
    let mut incarnation = last;
    let mut shapes = BTreeMap::new();
    let deadline = Instant::now() + options.join_timeout;
    for role in session.roles().filter(|&r| r != Role::Coordinator) {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut channel = transport.connect(role, left).await?;
        channel.set_timeout(options.join_timeout);
        let ours = hello(session, options.task, incarnation, DataShape::default());
        let theirs = greet(&mut channel, session, &ours).await;
        network.add(channel);
        let theirs = theirs?;
        if theirs.incarnation > last.saturating_add(STARTS_AHEAD_MAX) {
            let expected = format!("at most {STARTS_AHEAD_MAX} above {last}");
            return Err(ProtocolError::Incarnation { peer: role, expected, found: theirs.incarnation });
        }
        incarnation = incarnation.max(theirs.incarnation);
        if let Role::Party(_) = role {
            shapes.insert(role, (theirs.rows, theirs.features));
        }
        observer.on(&Event::Joined(role));
    }
    let rows = common_rows(&shapes)?;
    incarnation += 1;
    kept.begin(incarnation)?;
    info!(incarnation, rows, "all roles have joined");
    let start = Start { incarnation, rows, features: shapes.values().map(|(_, features)| *features).collect() };
    all(network.channels().map(|c| c.send(Step::SETUP, &start))).await?;
    all(network.channels().map(|c| c.recv::<Ready>(Step::SETUP))).await?;
    all(network.channels().map(|c| c.send(Step::SETUP, &Go))).await?;

    let schedule = session.schedule(rows);
    let (train_rows, test_rows) = match options.task {
        Task::Train => (schedule.train_rows(), schedule.test_rows()),
        Task::Evaluate | Task::Predict => (0, rows),
    };
    observer.on(&Event::Started { train_rows, test_rows });
    let mut record = SessionRecord::new(session, options.task, incarnation, train_rows, test_rows, start.features);
    let channels = std::mem::replace(network, Network::new(Role::Coordinator)).into_channels();
    let (channels, heard) = gather(session, channels, &mut record, observer).await;
    channels.into_iter().for_each(|c| network.add(c));
    heard?;
    all(network.channels().map(|c| c.send(Step::SETUP, &Finish))).await?;
    // A role that has heard the end closes its connection; one that goes without a word has everything saved as well.
    for channel in network.channels() {
        channel.set_timeout(Duration::from_secs(2));
        let _ = channel.recv::<Finish>(Step::SETUP).await;
    }
    record.finish(started.elapsed());
    Ok(record)
}

/// All parties have the same rows, or the first that differs is named.
fn common_rows(shapes: &BTreeMap<Role, (u32, u32)>) -> Result<u32, ProtocolError> {
    let Some((&reference, &(expected, _))) = shapes.first_key_value() else { return Ok(0) };
    match shapes.iter().find(|(_, (rows, _))| *rows != expected) {
        None => Ok(expected),
        Some((&peer, &(found, _))) => Err(ProtocolError::RowCount { peer, reference, expected, found }),
    }
}

/// Listens to all roles at once until each is done. Gives the channels back in any case, so that peers can be told.
async fn gather(
    session: &SessionConfig,
    channels: Vec<Channel>,
    record: &mut SessionRecord,
    observer: &mut dyn Observer,
) -> (Vec<Channel>, Result<(), ProtocolError>) {
    let mut listening: FuturesUnordered<_> = channels
        .into_iter()
        .map(|mut channel| {
            channel.set_timeout(LONG);
            listen(channel)
        })
        .collect();
    let mut done = Vec::new();
    let mut failed: Option<ProtocolError> = None;
    loop {
        // When one role goes, others follow within moments and say why; the root is worth a short wait.
        let next = listening.next();
        let next = if failed.is_some() { within(ROOT_TIMEOUT, next).await.flatten() } else { next.await };
        let Some((channel, report)) = next else { break };
        let report = report.and_then(|report| record.check(session, channel.peer(), report));
        match report {
            Ok(Report::Done(d)) => {
                record.done(channel.peer(), d);
                done.push(channel);
                continue;
            }
            Ok(Report::Progress(progress)) => {
                observer.on(&Event::Progress { epoch: record.epoch_under_way(), progress });
            }
            Ok(Report::EpochEnd(end)) => {
                if let Some(epoch) = record.epoch_end(channel.peer(), end) {
                    observer.on(&Event::Epoch(epoch));
                }
            }
            Err(e) => {
                let root = is_root(&e);
                done.push(channel);
                if failed.as_ref().is_none_or(|f| !is_root(f) && root) {
                    failed = Some(e);
                }
                if root || listening.is_empty() {
                    break;
                }
                continue;
            }
        }
        if failed.is_none() {
            listening.push(listen(channel));
        }
    }
    // Channels still listening are dropped with their futures; closing the transport tells those peers.
    drop(listening);
    (done, failed.map_or(Ok(()), Err))
}

/// Whether an error says what happened, not merely that someone else saw something happen.
fn is_root(error: &ProtocolError) -> bool {
    match error {
        ProtocolError::PeerEnded { peer, ending: Ending { culprit, .. }, .. } => peer == culprit,
        _ => true,
    }
}

async fn listen(mut channel: Channel) -> (Channel, Result<Report, ProtocolError>) {
    let report = channel.recv(Step::SETUP).await;
    (channel, report)
}
