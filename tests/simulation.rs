//! All roles in one thread, on a virtual clock, over a network with seeded faults: processes die at any message and
//! start again, links break, messages are late. Whatever happens, the weights are those of a run without faults, to the
//! bit, and no mask is used twice.
//!
//! A failing seed is printed; `SPNN_SEED=<seed> cargo test --release --test simulation` runs it alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test panics")]

mod kit;

use kit::{Numbers, table};
use sha2::{Digest, Sha256};
use spnn::coordinator::{self, Event, Observer, SessionRecord};
use spnn::crypto::SecretRng;
use spnn::party::data::{Columns, DataSource};
use spnn::party::{Party, PartyOptions};
use spnn::protocol::message::{HEADER_BYTES, Header, Kind};
use spnn::protocol::transport::{MemoryNetwork, MemoryTransport, Transport};
use spnn::protocol::{
    Channel, Ending, FirstLayerKind, JoinOptions, Phase, ProtocolError, Reader, Role, SessionConfig, SessionFile, Stop,
    Task, Writer,
};

use spnn::server::Server;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Sleep;

/// What goes wrong with one role.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The process dies at this read or write, counted over all its lives, and starts again some time later.
    Kill { at: u64, back_after: Duration },
    /// The link that is used at this read or write breaks.
    Cut { at: u64 },
}

/// The faults of one run.
#[derive(Clone, Debug, Default)]
struct Plan {
    faults: Vec<(Role, Fault)>,
    /// Messages are up to so late.
    delay: Duration,
    checkpoint_every: Duration,
    seed: u64,
}

impl Plan {
    /// One to four faults, somewhere in a run of `events` reads and writes a role.
    fn of_seed(seed: u64, roles: &[Role], events: &BTreeMap<Role, u64>) -> Self {
        let mut numbers = Numbers(seed);
        let faults = (0..1 + numbers.next() % 4)
            .map(|_| {
                let role = roles[(numbers.next() % roles.len() as u64) as usize];
                // A little beyond the end as well: later lives count on.
                let at = numbers.next() % (events[&role] * 5 / 4);
                let back_after = Duration::from_millis(numbers.next() % 3000);
                let fault =
                    if numbers.next().is_multiple_of(4) { Fault::Cut { at } } else { Fault::Kill { at, back_after } };
                (role, fault)
            })
            .collect();
        let delay = Duration::from_millis(numbers.next() % 100);
        let checkpoint_every = Duration::from_millis(numbers.next() % 400);
        Self { faults, delay, checkpoint_every, seed }
    }
}

/// A role's life so far: how much it has read and written, and what is to happen to it.
struct Fate {
    role: Role,
    directory: PathBuf,
    faults: Mutex<Vec<Fault>>,
    events: Mutex<u64>,
    death: Notify,
    back_after: Mutex<Duration>,
    delays: Mutex<Numbers>,
    delay: Duration,
    /// Incarnation, receiver and header of every first-layer message sent, over all lives: each is covered by masks that
    /// no other may be covered by.
    masked: Mutex<BTreeSet<(u64, Role, [u8; HEADER_BYTES])>>,
    /// Receiver and digest of every first-layer payload sent, over all lives, where payloads are under masks.
    payloads: Option<Payloads>,
}

type Payloads = Mutex<BTreeSet<(Role, [u8; 32])>>;

/// What is to happen at a read or write.
enum Now {
    Nothing,
    Die,
    Break,
}

impl Fate {
    fn new(role: Role, directory: PathBuf, plan: &Plan, index: u64, protected: bool) -> Arc<Self> {
        let faults = plan.faults.iter().filter(|(r, _)| *r == role).map(|(_, f)| *f).collect();
        Arc::new(Self {
            role,
            directory,
            faults: Mutex::new(faults),
            events: Mutex::new(0),
            death: Notify::new(),
            back_after: Mutex::default(),
            delays: Mutex::new(Numbers(plan.seed ^ (index << 32))),
            delay: plan.delay,
            masked: Mutex::default(),
            payloads: protected.then(Mutex::default),
        })
    }

    fn event(&self) -> Now {
        let mut events = self.events.lock().unwrap();
        *events += 1;
        let mut faults = self.faults.lock().unwrap();
        let due = |f: &Fault| matches!(f, Fault::Kill { at, .. } | Fault::Cut { at } if *at <= *events);
        match faults.iter().position(due).map(|i| faults.remove(i)) {
            None => Now::Nothing,
            Some(Fault::Cut { .. }) => Now::Break,
            Some(Fault::Kill { back_after, .. }) => {
                *self.back_after.lock().unwrap() = back_after;
                self.death.notify_one();
                Now::Die
            }
        }
    }

    fn lateness(&self) -> Duration {
        let mut numbers = self.delays.lock().unwrap();
        // Most messages are on time, or the virtual hours would take real ones.
        if numbers.next().is_multiple_of(4) { self.delay.mul_f64((numbers.real() + 1.0) / 2.0) } else { Duration::ZERO }
    }

    /// What a first layer sends is under masks that were never used before, in this start or an earlier one: nothing is
    /// ever sent twice, whatever was going to be computed again.
    fn fresh(&self, to: Role, payload: [u8; 32]) {
        if let Some(payloads) = &self.payloads {
            assert!(payloads.lock().unwrap().insert((to, payload)), "{} sent {to} the same payload twice", self.role);
        }
    }

    /// Masks are made under an incarnation that is on disk, for one message only.
    fn masked(&self, to: Role, header: [u8; HEADER_BYTES]) {
        let decoded = Header::decode(&header).unwrap();
        if decoded.kind != Kind::FirstLayer || decoded.step.phase == Phase::Setup {
            return;
        }
        let file = self.directory.join("incarnation");
        let incarnation =
            fs::read_to_string(&file).expect("an incarnation before the first mask").trim().parse().unwrap();
        let new = self.masked.lock().unwrap().insert((incarnation, to, header));
        assert!(new, "{} used the masks of {} twice in incarnation {incarnation}", self.role, decoded.step);
    }
}

/// A role's transport whose channels suffer its fate.
struct Faulty {
    inner: MemoryTransport,
    fate: Arc<Fate>,
}

#[async_trait::async_trait]
impl Transport for Faulty {
    fn me(&self) -> Role {
        self.inner.me()
    }

    async fn connect(&mut self, peer: Role, deadline: Duration) -> Result<Channel, ProtocolError> {
        let channel = self.inner.connect(peer, deadline).await?;
        let broken = Arc::new(Mutex::new(false));
        let fate = Arc::clone(&self.fate);
        Ok(channel.wrap(move |reader, writer| {
            let late =
                Late { fate: Arc::clone(&fate), broken: Arc::clone(&broken), inner: reader, sleep: None, paid: false };
            let watched = Watched { fate, broken, peer, inner: writer, frame: Vec::new(), body: 0, payload: None };
            (Box::new(late), Box::new(watched))
        }))
    }

    fn leave(&mut self, ending: Ending) {
        self.inner.leave(ending);
    }
}

/// The reading half: late, or broken.
struct Late {
    fate: Arc<Fate>,
    broken: Arc<Mutex<bool>>,
    inner: Reader,
    sleep: Option<Pin<Box<Sleep>>>,
    paid: bool,
}

impl AsyncRead for Late {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if *self.broken.lock().unwrap() {
            return Poll::Ready(Ok(()));
        }
        if !self.paid {
            if self.sleep.is_none() {
                let lateness = self.fate.lateness();
                self.sleep = (!lateness.is_zero()).then(|| Box::pin(tokio::time::sleep(lateness)));
            }
            if let Some(sleep) = &mut self.sleep {
                std::task::ready!(sleep.as_mut().poll(context));
                self.sleep = None;
            }
            self.paid = true;
        }
        let before = out.filled().len();
        std::task::ready!(Pin::new(&mut self.inner).poll_read(context, out))?;
        self.paid = false;
        if out.filled().len() > before {
            match self.fate.event() {
                Now::Nothing => {}
                Now::Die => return Poll::Pending,
                Now::Break => {
                    *self.broken.lock().unwrap() = true;
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The writing half: every first-layer message is noted before it goes.
struct Watched {
    fate: Arc<Fate>,
    broken: Arc<Mutex<bool>>,
    peer: Role,
    inner: Writer,
    frame: Vec<u8>,
    /// Bytes of a body that are still to come.
    body: usize,
    /// Digest of a first-layer payload so far.
    payload: Option<Sha256>,
}

impl Watched {
    fn note(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.body > 0 {
                let n = self.body.min(bytes.len());
                self.body -= n;
                if let Some(payload) = &mut self.payload {
                    payload.update(&bytes[..n]);
                }
                if let Some(payload) = self.payload.take_if(|_| self.body == 0) {
                    self.fate.fresh(self.peer, payload.finalize().into());
                }
                bytes = &bytes[n..];
                continue;
            }
            let n = (HEADER_BYTES - self.frame.len()).min(bytes.len());
            self.frame.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if let Ok(header) = <[u8; HEADER_BYTES]>::try_from(&self.frame[..]) {
                self.frame.clear();
                let decoded = Header::decode(&header).unwrap();
                self.body = decoded.body_bytes as usize;
                self.payload = (decoded.kind == Kind::FirstLayer).then(Sha256::new);
                self.fate.masked(self.peer, header);
            }
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if *self.broken.lock().unwrap() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let n = std::task::ready!(Pin::new(&mut self.inner).poll_write(context, bytes))?;
        self.note(&bytes[..n]);
        match self.fate.event() {
            Now::Nothing => Poll::Ready(Ok(n)),
            Now::Die => Poll::Pending,
            Now::Break => {
                *self.broken.lock().unwrap() = true;
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// Keeps the record as a coordinator's process would.
#[derive(Default)]
struct Keeper {
    kept: Option<SessionRecord>,
}

impl Observer for Keeper {
    fn on(&mut self, _event: &Event<'_>) {}

    fn finished(&mut self, record: &SessionRecord) -> Result<(), ProtocolError> {
        self.kept = Some(record.clone());
        Ok(())
    }
}

/// What a run leaves.
struct Left {
    /// Model files of every role.
    models: BTreeMap<Role, Vec<u8>>,
    /// Losses and metrics of every epoch.
    epochs: Vec<String>,
    events: BTreeMap<Role, u64>,
    /// Messages under masks, and starts of the session.
    masked: usize,
    starts: u64,
}

/// A memory file system where there is one: thousands of checkpoints are made durable here.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn session(first_layer: &str, optimizer: &str) -> SessionConfig {
    let text = format!(
        r#"
        name = "simulation"
        first_layer = "{first_layer}"
        paillier = {{ key_bits = 2048, allow_112_bit = true }}
        seed = 7
        data = {{ test_fraction = 0.2, standardize = true, parties = [{{ label_holder = true }}, {{}}] }}
        [model]
        hidden_width = 3
        server = [{{ activation = "sigmoid" }}, {{ dropout = 0.2 }}, {{ linear = 2 }}, {{ activation = "sigmoid" }}]
        head = {{ linear = 1, loss = "binary-cross-entropy" }}
        [train]
        epochs = 3
        batch_size = 8
        optimizer = {optimizer}
        "#
    );
    SessionFile::parse(&toml::to_string(&table(&text)).unwrap(), Path::new("simulation")).unwrap().config().unwrap()
}

const ADAM: &str = r#"{ kind = "adam", learning_rate = 0.05 }"#;
const ROWS: usize = 40;

/// Runs a session to its end, whatever the plan does to it.
fn run(session: &SessionConfig, plan: &Plan) -> Left {
    let scratch = scratch();
    run_in(scratch.path(), session, plan, None).expect("a whole run")
}

/// The same in a directory that may hold checkpoints. Nothing is left if all roles are asked to stop, after `stop_after`.
fn run_in(root: &Path, session: &SessionConfig, plan: &Plan, stop_after: Option<Duration>) -> Option<Left> {
    let stop = Stop::default();
    for party in 0..2 {
        fs::write(root.join(format!("{party}.csv")), kit::csv(party, ROWS)).unwrap();
    }
    let join = |role: Role| JoinOptions {
        join_timeout: Duration::from_secs(600),
        peer_timeout: Duration::from_secs(60),
        rejoin_timeout: Duration::from_secs(600),
        checkpoint_every: plan.checkpoint_every,
        stop: stop.clone(),
        allow_unprotected: true,
        ..JoinOptions::new(Task::Train, root.join(role.to_string()))
    };
    let protected = session.first_layer != FirstLayerKind::Plain;
    let fates: BTreeMap<Role, Arc<Fate>> =
        (0..).zip(session.roles()).map(|(i, r)| (r, Fate::new(r, join(r).directory, plan, i, protected))).collect();
    let network = MemoryNetwork::new(256, Duration::from_secs(60), &mut SecretRng::from_system().unwrap());
    let mut keeper = Keeper::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let end = |role: Role| Faulty { inner: network.transport(role), fate: Arc::clone(&fates[&role]) };
        let options = join(Role::Coordinator);
        let coordinating = live(&fates[&Role::Coordinator], async || {
            coordinator::run(&mut end(Role::Coordinator), session, &options, &mut keeper).await.map(drop)
        });
        let options = join(Role::Server);
        let serving = live(&fates[&Role::Server], async || {
            Server::of_session(session, &options).unwrap().run(&mut end(Role::Server)).await
        });
        let parties = session.party_roles().enumerate().map(|(i, role)| {
            let data = DataSource {
                id: Some(Columns::One("id".into())),
                label: (i == 0).then(|| "y".into()),
                ..DataSource::new(root.join(format!("{i}.csv")))
            };
            let options = PartyOptions::new(join(role), data);
            let (fate, end) = (&fates[&role], &end);
            async move { live(fate, async || Party::run(&mut end(role), session, &options).await.map(drop)).await }
        });
        let parties = futures_util::future::join_all(parties);
        let stopping = async {
            if let Some(after) = stop_after {
                tokio::time::sleep(after).await;
                stop.request();
            }
        };
        // Virtual time: a day without an end is a hang.
        let all = tokio::time::timeout(
            Duration::from_secs(86_400),
            futures_util::future::join4(coordinating, serving, parties, stopping),
        );
        all.await.expect("a session that does not end");
    });
    let record = match keeper.kept {
        None if stop_after.is_some() => return None,
        record => record.expect("a record"),
    };
    let epoch = |e: &coordinator::EpochRecord| format!("{} {:?} {:?}", e.epoch, e.train_loss, e.test);
    let model = |role: Role| (role, fs::read(join(role).directory.join("model.safetensors")).unwrap());
    for role in session.roles() {
        assert!(!join(role).directory.join("checkpoints").exists(), "{role} has not cleaned up");
    }
    Some(Left {
        models: session.roles().filter(|&r| r != Role::Coordinator).map(model).collect(),
        epochs: record.epochs.iter().map(epoch).collect(),
        events: fates.iter().map(|(role, fate)| (*role, *fate.events.lock().unwrap())).collect(),
        masked: fates.values().map(|f| f.masked.lock().unwrap().len()).sum(),
        starts: record.incarnation,
    })
}

/// A role that is started again whenever it dies.
async fn live<E: std::fmt::Display>(fate: &Fate, mut life: impl AsyncFnMut() -> Result<(), E>) {
    loop {
        let end = tokio::select! {
            biased;
            () = fate.death.notified() => None,
            end = life() => Some(end),
        };
        match end {
            Some(Ok(())) => return,
            Some(Err(e)) if e.to_string() == ProtocolError::Stopped.to_string() => return,
            Some(Err(e)) => panic!("{} ended: {e}", fate.role),
            None => {
                let pause = *fate.back_after.lock().unwrap();
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Runs `seeds`, each of which must come to what the undisturbed run comes to.
fn survive(session: &SessionConfig, seeds: impl Iterator<Item = u64>) {
    let undisturbed = run(session, &Plan::default());
    let roles: Vec<Role> = session.roles().collect();
    let (mut runs, mut starts, mut masked) = (0, 0, 0);
    for seed in seeds {
        let plan = Plan::of_seed(seed, &roles, &undisturbed.events);
        let left = std::panic::catch_unwind(|| run(session, &plan));
        let again = format!("SPNN_SEED={seed} cargo test --release --test simulation runs it alone; {plan:?}");
        let left = left.unwrap_or_else(|_| panic!("seed {seed} failed: {again}"));
        assert_eq!(left.models, undisturbed.models, "seed {seed} came to other weights: {again}");
        assert_eq!(left.epochs, undisturbed.epochs, "seed {seed} came to other metrics: {again}");
        runs += 1;
        starts += left.starts;
        masked += left.masked;
    }
    println!("{runs} seeds, {starts} starts of a session, {masked} messages under masks");
}

/// One seed if the environment names it, otherwise `count` from `first`.
fn seeds(first: u64, count: u64) -> Box<dyn Iterator<Item = u64>> {
    match std::env::var("SPNN_SEED") {
        Ok(seed) => Box::new(std::iter::once(seed.parse().expect("SPNN_SEED is a number"))),
        Err(_) => Box::new(first..first + count),
    }
}

#[test]
fn a_thousand_seeds_of_sharing() {
    survive(&session("sharing", ADAM), seeds(0, 1000));
}

/// Triples too are used once: what is opened of features and weights never comes twice either.
#[test]
fn seeds_of_beaver() {
    survive(&session("beaver", ADAM), seeds(20_000, 300));
}

#[test]
fn plain() {
    survive(&session("plain", ADAM), seeds(10_000, 100));
}

/// SGLD's noise is secret and other in every run; but whoever goes on from the same checkpoints gets the same.
#[test]
fn noise_goes_on_where_it_was() {
    let session = session("sharing", r#"{ kind = "sgld", learning_rate = 0.0001 }"#);
    let late = Plan { delay: Duration::from_secs(1), seed: 1, ..Plan::default() };
    let whole = run(&session, &late);
    let roles: Vec<Role> = session.roles().collect();
    let begun = scratch();
    assert!(run_in(begun.path(), &session, &late, Some(Duration::from_secs(15))).is_none(), "it came to its end");
    for role in roles.iter().filter(|&&r| r != Role::Coordinator) {
        let held = fs::read_dir(begun.path().join(role.to_string()).join("checkpoints")).unwrap().count();
        assert!(held > 1, "{role} had not begun");
    }
    let mut resumed = Vec::new();
    for plan in [late.clone(), Plan::of_seed(3, &roles, &whole.events)] {
        let copy = scratch();
        copy_all(begun.path(), copy.path());
        let left = run_in(copy.path(), &session, &plan, None).unwrap();
        assert!(left.starts > 1, "nothing was resumed");
        resumed.push(left.models);
    }
    assert_eq!(resumed[0], resumed[1]);
    assert_ne!(resumed[0], whole.models, "the same noise in two runs");
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
