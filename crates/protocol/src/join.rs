//! How a role comes into a session: the same code over QUIC and in memory.
//!
//! 1. It connects to the coordinator and exchanges [`Hello`]: both compare the whole session text.
//! 2. When all are there, [`Start`] gives the incarnation and the position from which all go on: the last one of which
//!    every role has a checkpoint.
//! 3. The role makes the incarnation durable.
//! 4. It connects to its peers (server: all parties; party: the server and all other parties) and exchanges [`Hello`].
//! 5. Parties agree on their rows, in pairs, over their own channels: where the session aligns them, by private set
//!    intersection ([`alignment`](crate::alignment)), else by comparing keyed digests of their ordered ids.
//! 6. [`Ready`] to the coordinator with the number of aligned rows and of own features, [`Go`] back with those of all.
//!
//! The coordinator learns sizes, identities and timing.

use crate::alignment::{Alignment, AlignmentSpec, IdList};
use crate::audit::Audit;
use crate::channel::{Channel, LAST_WORDS};
use crate::incarnation::Incarnation;
use crate::message::{Go, Hello, IdDigest, Ready, Start, Task};
use crate::transport::Transport;
use crate::{
    Ending, FirstLayerKind, Monitor, Network, Position, ProtocolError, Role, Schedule, SessionConfig, SessionError,
    Step, Stop,
};
use spnn_crypto::SecretRng;
use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tracing::{error, info};

/// What is this role's own business, not the session's.
#[derive(Clone, Debug)]
pub struct JoinOptions {
    /// Train, evaluate, predict, align or serve.
    pub task: Task,
    /// Where this role keeps its incarnation and its model part.
    pub directory: PathBuf,
    /// How long all roles may take to come together.
    pub join_timeout: Duration,
    /// How long a peer may take to answer once the session runs.
    pub peer_timeout: Duration,
    /// How long all roles may take to come together again after the session was interrupted; zero to end at once.
    pub rejoin_timeout: Duration,
    /// Server: everyone makes a checkpoint when the last one is so old; zero for one after every second batch.
    pub checkpoint_every: Duration,
    /// Asks the role to stop.
    pub stop: Stop,
    /// What the role says of itself to whoever watches the process.
    pub monitor: Monitor,
    /// Whether a first layer that protects nothing may be run.
    pub allow_unprotected: bool,
    /// The time of day, by which contracts end.
    pub clock: fn() -> SystemTime,
    /// Where this role writes down what it does, if anywhere. Under a contract all roles must.
    pub audit: Option<Audit>,
}

impl JoinOptions {
    /// A minute for everyone to come together and to answer, and no second attempt.
    #[must_use]
    pub fn new(task: Task, directory: PathBuf) -> Self {
        Self {
            task,
            directory,
            join_timeout: Duration::from_secs(60),
            peer_timeout: Duration::from_secs(60),
            rejoin_timeout: Duration::ZERO,
            checkpoint_every: Duration::from_secs(10),
            stop: Stop::default(),
            monitor: Monitor::default(),
            allow_unprotected: false,
            clock: SystemTime::now,
            audit: None,
        }
    }

    /// This start of the session was interrupted, perhaps before it began: what the audit log lacks is written. That this
    /// cannot be done is logged, and no reason to hide what interrupted the session.
    pub fn interrupt_audit(&self, ending: Ending) {
        if let Some(Err(e)) = self.audit.as_ref().map(|audit| audit.end(Some(ending))) {
            error!("the audit log lacks what was done last: {e}");
        }
    }

    /// Refuses a session whose contract is over; on every start and every way back.
    ///
    /// # Errors
    /// [`ProtocolError::Contract`].
    pub fn check_in_force(&self, session: &SessionConfig) -> Result<(), ProtocolError> {
        Ok(session.contract.as_ref().map_or(Ok(()), |terms| terms.check_in_force((self.clock)()))?)
    }
}

/// The size of a party's data, once they are aligned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataShape {
    /// Number of rows.
    pub rows: u32,
    /// Number of features.
    pub features: u32,
}

/// A role that has reached the coordinator.
pub struct Joining<'a> {
    transport: &'a mut dyn Transport,
    session: &'a SessionConfig,
    options: &'a JoinOptions,
    patience: Duration,
    coordinator: Channel,
}

/// A role that has met all its peers.
pub struct Met<'a> {
    session: &'a SessionConfig,
    options: &'a JoinOptions,
    patience: Duration,
    coordinator: Channel,
    network: Network,
    incarnation: u64,
    resume: Position,
}

/// A role that has joined a session.
pub struct Joined {
    /// Its channels.
    pub network: Network,
    /// Number of this start of the session.
    pub incarnation: u64,
    /// Number of features of each party.
    pub features: Vec<usize>,
    /// Which of them are this party's; empty for the server.
    pub columns: Range<usize>,
    /// Which rows are in which batch.
    pub schedule: Schedule,
    /// Where training goes on.
    pub resume: Position,
}

impl<'a> Joining<'a> {
    /// Connects to the coordinator. All roles may take `patience` to come together.
    ///
    /// # Errors
    /// [`ProtocolError`] if it cannot be reached, or the session asks for what this role refuses.
    pub async fn connect(
        transport: &'a mut dyn Transport,
        session: &'a SessionConfig,
        options: &'a JoinOptions,
        patience: Duration,
    ) -> Result<Self, ProtocolError> {
        if session.first_layer == FirstLayerKind::Plain && !options.allow_unprotected {
            return Err(ProtocolError::Unprotected { kind: session.first_layer });
        }
        if options.task == Task::Serve && session.first_layer == FirstLayerKind::Beaver {
            return Err(ProtocolError::from(SessionError::Value {
                field: "first_layer",
                expected: "sharing, paillier or plain where predictions are served".into(),
                found: "beaver: its triples are dealt for passes whose batches are known".into(),
            }));
        }
        options.check_in_force(session)?;
        let mut coordinator = transport.connect(Role::Coordinator, patience).await?;
        coordinator.set_timeout(patience);
        Ok(Self { transport, session, options, patience, coordinator })
    }

    /// Meets everyone. `checkpoints` are where this role could go on from; one that has not begun yet can go on from the
    /// start.
    ///
    /// # Errors
    /// [`ProtocolError`] naming the peer that differs, is gone, or did not come.
    pub async fn meet(self, mut checkpoints: Vec<Position>) -> Result<Met<'a>, ProtocolError> {
        let Self { transport, session, options, patience, mut coordinator } = self;
        let kept = Incarnation::in_directory(&options.directory);
        let last = kept.last()?;
        if checkpoints.is_empty() {
            checkpoints.push(Position::START);
        }
        let ours = Hello { checkpoints, ..hello(session, options.task, last) };
        greet(&mut coordinator, session, &ours).await?;

        let Start { incarnation, resume } = coordinator.recv(Step::SETUP).await?;
        if incarnation <= last || incarnation > last.saturating_add(Incarnation::AHEAD_MAX) {
            return Err(ProtocolError::Incarnation {
                peer: Role::Coordinator,
                expected: format!("above {last}, by at most {}", Incarnation::AHEAD_MAX),
                found: incarnation,
            });
        }
        if !ours.checkpoints.contains(&resume) {
            let expected = ours.checkpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
            let expected = format!("to go on from {expected}");
            let found = format!("to go on from {resume}");
            return Err(ProtocolError::Unexpected { peer: Role::Coordinator, expected, found });
        }
        kept.begin(incarnation)?;

        let ours = hello(session, options.task, incarnation);
        let peers = connect_peers(transport, session, patience, &ours);
        let mut network = unless_told(&coordinator, peers).await?;
        if let Some(audit) = &options.audit {
            network.begin_audit(audit, session, options.task, incarnation, Some(&coordinator))?;
        }
        Ok(Met { session, options, patience, coordinator, network, incarnation, resume })
    }
}

impl Met<'_> {
    /// Compares this party's ordered ids with those of all other parties. `ids` is their SHA-256, which is sent under a
    /// key of the pair only: the other one learns how many there are and whether they agree.
    ///
    /// # Errors
    /// [`ProtocolError::RowCount`] or [`ProtocolError::Misaligned`] naming a party with other ids.
    pub async fn compare_ids(&mut self, rows: u32, ids: &[u8; 32]) -> Result<(), ProtocolError> {
        let Self { coordinator, network, .. } = self;
        let me = network.me();
        let comparing = async {
            for channel in network.channels().filter(|c| matches!(c.peer(), Role::Party(_))) {
                compare_ids(channel, me, rows, ids).await?;
            }
            Ok(())
        };
        unless_told(coordinator, comparing).await
    }

    /// Aligns this party's rows with those of all others: for each row that all have, in an order common to all, where
    /// it is among `ids`. See [`alignment`](crate::alignment) for what each party learns.
    ///
    /// # Errors
    /// As [`Alignment::run`].
    pub async fn align(
        &mut self,
        spec: &AlignmentSpec,
        ids: &dyn IdList,
        rng: &mut SecretRng,
    ) -> Result<Vec<u32>, ProtocolError> {
        let Self { session, options, coordinator, network, .. } = self;
        // The others may take their time; a dead one is noticed by its connection.
        network.channels().for_each(|c| c.set_timeout(LONG));
        let alignment = Alignment::new(session, spec, ids, &options.directory, options.task);
        let rows = unless_told(coordinator, alignment.run(network, rng)).await?;
        network.channels().for_each(|c| c.set_timeout(self.patience));
        Ok(rows)
    }

    /// Waits until all are ready. `data` is the size of a party's data; the server has none.
    ///
    /// # Errors
    /// [`ProtocolError`] naming the peer that differs or is gone.
    pub async fn ready(self, data: Option<DataShape>) -> Result<Joined, ProtocolError> {
        let Self { session, options, patience, mut coordinator, mut network, incarnation, resume } = self;
        let me = network.me();
        let shape = data.unwrap_or_default();
        // Parties may take their time to align their rows, and to read them once more.
        coordinator.set_timeout(if session.alignment.is_some() { LONG } else { patience });
        coordinator.send(Step::SETUP, &Ready { rows: shape.rows, features: shape.features }).await?;
        let go: Go = coordinator.recv(Step::SETUP).await?;
        let (features, columns) = columns(session, me, &go)?;
        if data.is_some_and(|ours| (ours.rows, ours.features as usize) != (go.rows, columns.len())) {
            return Err(ProtocolError::Unexpected {
                peer: Role::Coordinator,
                expected: format!("{} rows and {} features of this party", shape.rows, shape.features),
                found: format!("{} and {}", go.rows, columns.len()),
            });
        }
        info!(incarnation, rows = go.rows, ?features, %resume, "session starts");
        network.add_counted(coordinator);
        for channel in network.channels() {
            // The server waits for parties and parties for the server: it gets a moment more, to say who is gone.
            let more = if channel.peer() == Role::Server { 2 * LAST_WORDS } else { Duration::ZERO };
            channel.set_timeout(options.peer_timeout + more);
            channel.watch(&options.monitor);
        }
        let schedule = session.schedule(go.rows);
        options.monitor.running(incarnation);
        Ok(Joined { network, incarnation, features, columns, schedule, resume })
    }
}

/// Longer than any alignment; a dead peer is noticed by its connection.
const LONG: Duration = Duration::from_secs(30 * 24 * 3600);

/// Where someone goes before all are ready, the coordinator knows and tells.
async fn unless_told<T>(
    coordinator: &Channel,
    work: impl Future<Output = Result<T, ProtocolError>>,
) -> Result<T, ProtocolError> {
    let link = std::sync::Arc::clone(coordinator.link());
    tokio::select! {
        biased;
        done = work => done,
        () = link.down() => Err(coordinator.lost(Step::SETUP).await),
    }
}

/// Connects to everyone but the coordinator, and compares session and incarnation.
async fn connect_peers(
    transport: &mut dyn Transport,
    session: &SessionConfig,
    patience: Duration,
    ours: &Hello,
) -> Result<Network, ProtocolError> {
    let me = transport.me();
    let mut network = Network::new(me);
    for peer in peers(session, me) {
        let mut channel = transport.connect(peer, patience).await?;
        channel.set_timeout(patience);
        let theirs = greet(&mut channel, session, ours).await?;
        if theirs.incarnation != ours.incarnation {
            let expected = ours.incarnation.to_string();
            return Err(ProtocolError::Incarnation { peer, expected, found: theirs.incarnation });
        }
        network.add(channel);
    }
    Ok(network)
}

/// The first message of a role.
#[must_use]
pub fn hello(session: &SessionConfig, task: Task, incarnation: u64) -> Hello {
    Hello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        session: session.canonical(),
        task,
        incarnation,
        checkpoints: Vec::new(),
    }
}

/// Exchanges [`Hello`] with a peer and compares session and task. The peer compares as well: if they differ, this waits
/// until it has read ours, so that both can name the difference.
///
/// # Errors
/// [`ProtocolError::SessionMismatch`] naming the first field that differs, or [`ProtocolError::TaskMismatch`]; what
/// [`Channel::exchange`] finds.
pub async fn greet(channel: &mut Channel, session: &SessionConfig, ours: &Hello) -> Result<Hello, ProtocolError> {
    let theirs = channel.exchange(Step::SETUP, ours).await?;
    let compared = compare(session, ours.task, channel.peer(), &theirs);
    if compared.is_err() {
        channel.linger().await;
    }
    compared.map(|()| theirs)
}

fn compare(session: &SessionConfig, task: Task, peer: Role, theirs: &Hello) -> Result<(), ProtocolError> {
    if let Some(difference) = session.difference(&theirs.session) {
        return Err(ProtocolError::SessionMismatch { peer, difference });
    }
    if theirs.task != task {
        return Err(ProtocolError::TaskMismatch { peer, ours: task, theirs: theirs.task });
    }
    Ok(())
}

/// Everyone a role talks to besides the coordinator, in an order in which no two pairs wait for each other.
fn peers(session: &SessionConfig, me: Role) -> Vec<Role> {
    let parties = session.party_roles().filter(|&p| p != me);
    match me {
        Role::Coordinator => Vec::new(),
        Role::Server => parties.collect(),
        Role::Party(_) => [Role::Server].into_iter().chain(parties).collect(),
    }
}

/// The columns of `me` among all features, from what the coordinator announced.
fn columns(session: &SessionConfig, me: Role, go: &Go) -> Result<(Vec<usize>, Range<usize>), ProtocolError> {
    let wrong =
        |expected: String, found: String| ProtocolError::Unexpected { peer: Role::Coordinator, expected, found };
    if go.features.len() != usize::from(session.parties) {
        let expected = format!("features of {} parties", session.parties);
        return Err(wrong(expected, format!("features of {}", go.features.len())));
    }
    let counts: Vec<usize> = go.features.iter().map(|&f| f as usize).collect();
    let total: usize = counts.iter().sum();
    if total > SessionConfig::WIDTH_MAX as usize {
        return Err(wrong(format!("at most {} features", SessionConfig::WIDTH_MAX), total.to_string()));
    }
    Ok(match me {
        Role::Party(id) => {
            let first: usize = counts[..usize::from(id.0)].iter().sum();
            let own = first..first + counts[usize::from(id.0)];
            (counts, own)
        }
        Role::Coordinator | Role::Server => (counts, 0..0),
    })
}

/// Both parties send an HMAC of the digest of their ordered ids under a key that only they know.
async fn compare_ids(channel: &mut Channel, me: Role, rows: u32, ids: &[u8; 32]) -> Result<(), ProtocolError> {
    let key = channel.link().pair_key("EXPORTER-spnn-id-digest")?;
    let ours = IdDigest { rows, digest: key.digest("ordered ids", ids) };
    let theirs = channel.exchange(Step::SETUP, &ours).await?;
    if theirs == ours {
        return Ok(());
    }
    channel.linger().await;
    let peer = channel.peer();
    if theirs.rows == rows {
        return Err(ProtocolError::Misaligned { peer });
    }
    Err(ProtocolError::RowCount { peer, reference: me, expected: rows, found: theirs.rows })
}
