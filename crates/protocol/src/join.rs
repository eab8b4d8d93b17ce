//! How a role comes into a session: the same code over QUIC and in memory.
//!
//! 1. It connects to the coordinator and exchanges [`Hello`]: both compare the whole session text.
//! 2. When all are there, [`Start`] gives the incarnation, the number of rows, each party's number of features, and the
//!    position from which all go on: the last one of which every role has a checkpoint.
//! 3. The role makes the incarnation durable.
//! 4. It connects to its peers (server: all parties; party: the server and all other parties) and exchanges [`Hello`].
//! 5. Parties compare keyed digests of their ordered ids, in pairs, over their own channels.
//! 6. [`Ready`] to the coordinator, [`Go`] back.
//!
//! The coordinator learns sizes, identities and timing.

use crate::audit::Audit;
use crate::channel::{Channel, LAST_WORDS};
use crate::incarnation::Incarnation;
use crate::message::{Go, Hello, IdDigest, Ready, Start, Task};
use crate::transport::Transport;
use crate::{FirstLayerKind, Network, Position, ProtocolError, Role, Schedule, SessionConfig, Step, Stop};
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tracing::info;

/// What is this role's own business, not the session's.
#[derive(Clone, Debug)]
pub struct JoinOptions {
    /// Train, evaluate or predict.
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
            allow_unprotected: false,
            clock: SystemTime::now,
            audit: None,
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

/// A party's rows as far as others may know of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct DataShape {
    /// Number of rows.
    pub rows: u32,
    /// Number of feature columns.
    pub features: u32,
    /// SHA-256 over the ordered ids; compared with other parties under a key of the pair, never sent as it is.
    pub ids: [u8; 32],
}

/// A role that has reached the coordinator.
pub struct Joining<'a> {
    transport: &'a mut dyn Transport,
    session: &'a SessionConfig,
    options: &'a JoinOptions,
    patience: Duration,
    coordinator: Channel,
}

/// A role that has joined all its peers.
pub struct Joined {
    /// Its channels.
    pub network: Network,
    /// Number of this start of the session.
    pub incarnation: u64,
    /// Number of feature columns of each party.
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
        options.check_in_force(session)?;
        let mut coordinator = transport.connect(Role::Coordinator, patience).await?;
        coordinator.set_timeout(patience);
        Ok(Self { transport, session, options, patience, coordinator })
    }

    /// Joins everyone. `data` is the party's; the server has none. `checkpoints` are where this role could go on from;
    /// one that has not begun yet can go on from the start.
    ///
    /// # Errors
    /// [`ProtocolError`] naming the peer that differs, is gone, or did not come.
    pub async fn join(self, data: Option<DataShape>, mut checkpoints: Vec<Position>) -> Result<Joined, ProtocolError> {
        let Self { transport, session, options, patience, mut coordinator } = self;
        let me = transport.me();
        let kept = Incarnation::in_directory(&options.directory);
        let last = kept.last()?;
        let shape = data.unwrap_or_default();
        let hello = |incarnation| hello(session, options.task, incarnation, shape);
        if checkpoints.is_empty() {
            checkpoints.push(Position::START);
        }
        let ours = Hello { checkpoints, ..hello(last) };
        greet(&mut coordinator, session, &ours).await?;

        let start: Start = coordinator.recv(Step::SETUP).await?;
        let incarnation = start.incarnation;
        if incarnation <= last || incarnation > last.saturating_add(Incarnation::AHEAD_MAX) {
            return Err(ProtocolError::Incarnation {
                peer: Role::Coordinator,
                expected: format!("above {last}, by at most {}", Incarnation::AHEAD_MAX),
                found: incarnation,
            });
        }
        if !ours.checkpoints.contains(&start.resume) {
            let expected = ours.checkpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
            let expected = format!("to go on from {expected}");
            let found = format!("to go on from {}", start.resume);
            return Err(ProtocolError::Unexpected { peer: Role::Coordinator, expected, found });
        }
        kept.begin(incarnation)?;
        let (features, columns) = columns(session, me, &start)?;
        if data.is_some_and(|ours| (ours.rows, ours.features as usize) != (start.rows, columns.len())) {
            return Err(ProtocolError::Unexpected {
                peer: Role::Coordinator,
                expected: format!("{} rows and {} features of this party", shape.rows, shape.features),
                found: format!("{} and {}", start.rows, columns.len()),
            });
        }
        info!(incarnation, rows = start.rows, ?features, resume = %start.resume, "session starts");

        let link = std::sync::Arc::clone(coordinator.link());
        let ours = hello(incarnation);
        let peers = connect_peers(transport, session, patience, &ours, data);
        // Where someone goes before all have met, the coordinator knows and tells.
        let mut network = tokio::select! {
            biased;
            network = peers => network?,
            () = link.down() => return Err(coordinator.lost(Step::SETUP).await),
        };
        coordinator.send(Step::SETUP, &Ready).await?;
        let Go = coordinator.recv(Step::SETUP).await?;
        network.add(coordinator);
        for channel in network.channels() {
            // The server waits for parties and parties for the server: it gets a moment more, to say who is gone.
            let more = if channel.peer() == Role::Server { 2 * LAST_WORDS } else { Duration::ZERO };
            channel.set_timeout(options.peer_timeout + more);
        }
        if let Some(audit) = &options.audit {
            network.begin_audit(audit, session, options.task, incarnation)?;
        }
        let schedule = session.schedule(start.rows);
        Ok(Joined { network, incarnation, features, columns, schedule, resume: start.resume })
    }
}

/// Connects to everyone but the coordinator, and compares session, incarnation and, between parties, ids.
async fn connect_peers(
    transport: &mut dyn Transport,
    session: &SessionConfig,
    patience: Duration,
    ours: &Hello,
    data: Option<DataShape>,
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
        if let (Some(shape), Role::Party(_)) = (&data, peer) {
            compare_ids(&mut channel, shape).await?;
        }
        network.add(channel);
    }
    Ok(network)
}

/// The first message of a role.
#[must_use]
pub fn hello(session: &SessionConfig, task: Task, incarnation: u64, shape: DataShape) -> Hello {
    Hello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        session: session.canonical(),
        task,
        incarnation,
        rows: shape.rows,
        features: shape.features,
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
fn columns(session: &SessionConfig, me: Role, start: &Start) -> Result<(Vec<usize>, Range<usize>), ProtocolError> {
    let wrong =
        |expected: String, found: String| ProtocolError::Unexpected { peer: Role::Coordinator, expected, found };
    if start.features.len() != usize::from(session.parties) {
        let expected = format!("features of {} parties", session.parties);
        return Err(wrong(expected, format!("features of {}", start.features.len())));
    }
    let counts: Vec<usize> = start.features.iter().map(|&f| f as usize).collect();
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

/// Both parties send an HMAC of the digest of their ordered ids under a key that only they know, so that the other one
/// learns whether the ids agree and nothing else.
async fn compare_ids(channel: &mut Channel, shape: &DataShape) -> Result<(), ProtocolError> {
    let key = channel.link().pair_key("EXPORTER-spnn-id-digest")?;
    let ours = IdDigest(key.digest("ordered ids", &shape.ids));
    let theirs = channel.exchange(Step::SETUP, &ours).await?;
    if theirs != ours {
        channel.linger().await;
        return Err(ProtocolError::Misaligned { peer: channel.peer() });
    }
    Ok(())
}
