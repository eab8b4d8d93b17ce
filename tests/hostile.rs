//! A party with a valid certificate that does not keep to the protocol, against the real coordinator, server and party
//! as processes. Whoever it attacks ends with an error that names it, does not panic, and stays small.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test panics")]

mod kit;

use kit::link::Bare;
use kit::{DONE, Ended, NETWORK, Numbers, PEER_GONE, PROTOCOL, Process, Stage, all_end};
use nix::sys::resource::{UsageWho, getrusage};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, SendStream, VarInt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use spnn::crypto::SecretRng;
use spnn::party::{Party, PartyOptions, digest_ids};
use spnn::protocol::message::{
    ALPN, CONTROL_BYTES_MAX, Done, EpochEnd, Go, HEADER_BYTES, Header, Hello, Kind, Metrics, Progress, Ready, Report,
    Start, encode_control,
};
use spnn::protocol::transport::{MemoryNetwork, QuicOptions, QuicTransport, Transport, TransportTuning};
use spnn::protocol::{
    Channel, DataShape, Ending, Fingerprint, Identity, IdentityFiles, JoinOptions, Joined, Joining, Phase, Position,
    ProtocolError, Role, SessionConfig, SessionFile, Step, Task, hello,
};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncWrite;

const ROWS: usize = 60;
const BATCH: usize = 16;
const WIDTH: usize = 8;
/// Promise R11 of the reliability plan. Empty processes of this program take about 10 MB.
const RSS_MAX: u64 = 256 << 20;
const ME: &str = "party-1";
const LIMIT: Duration = Duration::from_secs(20);
const FIRST: Step = Step { phase: Phase::Train, epoch: 1, batch: 0 };

fn stage() -> Stage {
    let mut stage = Stage::new(2, ROWS);
    stage.everywhere("join_timeout_s", 4.0);
    stage.everywhere("peer_timeout_s", 2.0);
    stage
}

/// The hostile party, after joining as an honest one would.
struct Hostile {
    session: SessionConfig,
    joined: Joined,
    /// Below the channel to the server.
    connection: Connection,
    /// The same stream that the channel to the server writes to.
    raw: Tap,
    /// Keeps the other connections.
    _transport: Door,
}

impl Hostile {
    async fn join(stage: &Stage) -> Self {
        let session = SessionFile::read(&stage.path("session.toml")).unwrap().config().unwrap();
        let mut transport = Door::new(stage);
        let ids: Vec<String> = (0..ROWS).map(|row| format!("R{row:05}")).collect();
        let options = options(stage);
        let joining = Joining::connect(&mut transport, &session, &options, LIMIT).await.unwrap();
        let mut met = joining.meet(Vec::new()).await.unwrap();
        met.compare_ids(ROWS as u32, &digest_ids(&ids)).await.unwrap();
        let joined = met.ready(Some(DataShape { rows: ROWS as u32, features: 3 })).await.unwrap();
        let (connection, raw) = transport.server.clone().unwrap();
        Self { session, joined, connection, raw, _transport: transport }
    }

    /// Sends a header, and a body that need not fit it.
    async fn frame(&mut self, header: [u8; HEADER_BYTES], body: &[u8]) {
        self.raw.send(&[&header, body].concat()).await;
    }

    fn server(&mut self) -> &mut Channel {
        self.joined.network.channel(Role::Server).unwrap()
    }

    async fn report(&mut self, report: Report) {
        let _ = self.joined.network.send(Role::Coordinator, Step::SETUP, &report).await;
    }

    /// Receives z of the first batch, as the label holder.
    async fn receive_z(&mut self) {
        self.share().await;
        let mut z = ndarray::Array2::zeros((BATCH, 4));
        self.server().recv_tensor(Kind::HiddenOutput, FIRST, z.view_mut()).await.unwrap();
    }

    /// Sends an honest share of zeros. (In `plain`; under masks it would not cancel.)
    async fn share(&mut self) {
        assert_eq!(self.session.first_layer.to_string(), "plain");
        self.server().send_payload(FIRST, 0, &[0; 4 * BATCH * WIDTH]).await.unwrap();
    }
}

fn options(stage: &Stage) -> JoinOptions {
    JoinOptions {
        join_timeout: LIMIT,
        peer_timeout: LIMIT,
        allow_unprotected: true,
        ..JoinOptions::new(Task::Train, stage.path("hostile"))
    }
}

fn header(kind: Kind, step: Step, shape: [u32; 2], body_bytes: u32) -> [u8; HEADER_BYTES] {
    Header { kind, step, checkpoint: false, shape, body_bytes }.encode()
}

/// Dials as an honest party does, but keeps a second handle on its stream to the server.
struct Door {
    quic: QuicTransport,
    stage: (SocketAddr, rustls::ClientConfig),
    server: Option<(Connection, Tap)>,
}

impl Door {
    fn new(stage: &Stage) -> Self {
        let path = |name: &str| stage.path(ME).join(name);
        let (certificate, key) = (path("party-1.pem"), path("party-1.key"));
        let files = IdentityFiles::new(&certificate, &key, &stage.path("pki/ca.pem"));
        let identity = Identity::load(files).unwrap();
        let pins = stage.configs[ME]["peers"].as_table().unwrap();
        let pin = |(role, pin): (&String, &toml::Value)| {
            (role.parse::<Role>().unwrap(), pin.as_str().unwrap().parse::<Fingerprint>().unwrap())
        };
        let options = QuicOptions {
            listen: None,
            dial: BTreeMap::from([(Role::Coordinator, stage.address("coordinator"))]),
            expect: Vec::new(),
            pins: pins.iter().map(pin).collect(),
            peer_timeout: LIMIT,
            tuning: TransportTuning::default(),
        };
        let quic = QuicTransport::new(identity, options).unwrap();
        let server = stage.address("server").parse().unwrap();
        Self { quic, stage: (server, tls(stage, Some(ME))), server: None }
    }
}

#[async_trait::async_trait]
impl Transport for Door {
    fn me(&self) -> Role {
        Role::party(1)
    }

    async fn connect(&mut self, peer: Role, deadline: Duration) -> Result<Channel, ProtocolError> {
        if peer != Role::Server {
            return self.quic.connect(peer, deadline).await;
        }
        let connection = dial(self.stage.0, "server", self.stage.1.clone(), None).await.unwrap();
        let (send, recv) = open_session(&connection).await;
        let tap = Tap(Arc::new(Mutex::new(send)));
        self.server = Some((connection.clone(), tap.clone()));
        Ok(Channel::new(peer, Arc::new(Bare), Box::new(recv), Box::new(tap), LIMIT))
    }

    fn leave(&mut self, ending: Ending) {
        self.quic.leave(ending);
    }
}

/// TLS with a certificate of the stage, or with none.
fn tls(stage: &Stage, certificate: Option<&str>) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(stage.path("pki/ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some(role) => {
            let file = |extension: &str| stage.path(role).join(format!("{role}.{extension}"));
            let chain = vec![CertificateDer::from_pem_file(file("pem")).unwrap()];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(file("key")).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}

/// A QUIC connection by hand. `window` is how much the other side may send on a stream.
async fn dial(
    to: SocketAddr,
    role: &str,
    tls: rustls::ClientConfig,
    window: Option<u32>,
) -> Result<Connection, quinn::ConnectionError> {
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_millis(500)));
    if let Some(window) = window {
        transport.stream_receive_window(VarInt::from(window));
    }
    config.transport_config(Arc::new(transport));
    let mut endpoint = Endpoint::client((std::net::Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    endpoint.set_default_client_config(config);
    endpoint.connect(to, &format!("{role}.spnn")).unwrap().await
}

/// A stream that was accepted as the session's.
async fn open_session(connection: &Connection) -> (SendStream, quinn::RecvStream) {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&[1, 0, 0, 0]).await.unwrap();
    let mut answer = [0];
    recv.read_exact(&mut answer).await.unwrap();
    (send, recv)
}

/// A writer that several can write to.
#[derive(Clone)]
struct Tap(Arc<Mutex<SendStream>>);

impl Tap {
    async fn send(&mut self, bytes: &[u8]) {
        use tokio::io::AsyncWriteExt;
        // Refused in the middle is as good as refused at the end.
        let _ = self.write_all(bytes).await;
    }
}

impl AsyncWrite for Tap {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut *self.0.lock().unwrap()), cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut *self.0.lock().unwrap()), cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(&mut *self.0.lock().unwrap()), cx)
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Starts coordinator, server and party 0; lets the hostile party join and attack; and waits for the honest ones.
fn attack(name: &str, stage: &Stage, attack: impl AsyncFnOnce(&mut Hostile)) -> BTreeMap<String, Ended> {
    let processes = stage.start_all_but(&[ME]);
    runtime().block_on(async {
        let mut hostile = Hostile::join(stage).await;
        attack(&mut hostile).await;
        // It stays connected and silent: the others must not need it to end.
        let ended = tokio::task::spawn_blocking(|| all_end(processes)).await.unwrap();
        drop(hostile);
        print_and_check_sizes(name, &ended);
        ended
    })
}

fn print_and_check_sizes(name: &str, ended: &BTreeMap<String, Ended>) {
    let sizes: Vec<String> = ended.values().map(|e| format!("{} {} KiB", e.role, e.peak_rss >> 10)).collect();
    println!("{name}: peak resident set {}", sizes.join(", "));
    for e in ended.values() {
        assert!(e.peak_rss < RSS_MAX, "{}: {}", e.role, e.peak_rss);
    }
    // Samples can miss a peak just before the end; the system's maximum over all processes so far cannot.
    let all = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss() * 1024;
    println!("{name}: largest of all processes so far {} KiB", all >> 10);
    assert!(u64::try_from(all).unwrap() < RSS_MAX, "{all}");
}

/// The server is the victim: it names the hostile party; the others hear of it.
fn server_refuses(name: &str, stage: &Stage, how: impl AsyncFnOnce(&mut Hostile), words: &[&str]) {
    let ended = attack(name, stage, how);
    ended["server"].expect(PROTOCOL, &[&[ME], words].concat());
    ended["coordinator"].expect(PEER_GONE, &[ME]);
    ended["party-0"].expect(PEER_GONE, &[ME]);
}

const SHARE: u32 = (8 * BATCH * WIDTH) as u32;

#[test]
fn frames_that_are_not_due() {
    let share = |step: Step, shape: [u32; 2], length: u32| header(Kind::FirstLayer, step, shape, length);
    let with = |at: usize, byte: u8| {
        let mut header = share(FIRST, [0, 0], SHARE);
        header[at] = byte;
        header
    };
    let later = Step { batch: 1, ..FIRST };
    let other = Step { phase: Phase::Predict, ..FIRST };
    let due = "where first-layer of epoch 1 batch 0 was due";
    let gradient = header(Kind::HiddenGradient, FIRST, [16, 4], 256);
    let cases: [(_, _, u32, [&str; 2]); 13] = [
        ("4 GiB", share(FIRST, [0, 0], u32::MAX), 1 << 20, ["first-layer of 4294967295 bytes", "expected 1024"]),
        ("empty", share(FIRST, [0, 0], 0), 0, ["first-layer of 0 bytes", "expected 1024"]),
        ("too short", share(FIRST, [0, 0], SHARE - 8), SHARE - 8, ["first-layer of 1016 bytes", "expected 1024"]),
        ("a byte short", share(FIRST, [0, 0], SHARE - 1), SHARE - 1, ["first-layer of 1023 bytes", "expected 1024"]),
        ("too long", share(FIRST, [0, 0], SHARE + 8), SHARE + 8, ["first-layer of 1032 bytes", "expected 1024"]),
        ("a shape", share(FIRST, [u32::MAX; 2], SHARE), SHARE, ["first-layer", ""]),
        ("a later batch", share(later, [0, 0], SHARE), SHARE, ["first-layer of epoch 1 batch 1", due]),
        ("another phase", share(other, [0, 0], SHARE), SHARE, ["first-layer of prediction batch 0", due]),
        ("another kind", gradient, 256, ["hidden-gradient of epoch 1 batch 0", due]),
        ("kind 200", with(0, 200), SHARE, ["unknown message kind 200", ""]),
        ("phase 9", with(1, 9), SHARE, ["unknown phase 9", ""]),
        ("reserved byte", with(2, 1), SHARE, ["reserved header bytes", ""]),
        ("other reserved byte", with(3, 128), SHARE, ["reserved header bytes", ""]),
    ];
    side_by_side(cases.into_iter().map(|(name, header, body, words)| {
        move || {
            let attack = async |hostile: &mut Hostile| hostile.frame(header, &vec![0; body as usize]).await;
            server_refuses(name, &stage(), attack, &words);
        }
    }));
}

#[test]
fn half_a_message_and_then_silence() {
    let ended = attack("half", &stage(), async |hostile| {
        hostile.frame(header(Kind::FirstLayer, FIRST, [0, 0], SHARE), &[0; 100]).await;
    });
    ended["server"].expect(PEER_GONE, &[ME, "first-layer of epoch 1 batch 0", "within 2 s"]);
}

fn plain_stage() -> Stage {
    let mut stage = stage();
    stage.session.insert("first_layer".into(), "plain".into());
    stage.everywhere("allow_unprotected", true);
    stage
}

#[test]
fn nan_in_a_plain_product() {
    side_by_side([(f32::NAN, 0), (f32::INFINITY, 37), (f32::NEG_INFINITY, 127)].into_iter().map(|(bad, at)| {
        move || {
            let attack = async |hostile: &mut Hostile| {
                let mut product = [0.0_f32; BATCH * WIDTH];
                product[at] = bad;
                hostile.server().send_payload(FIRST, 0, bytemuck::cast_slice(&product)).await.unwrap();
            };
            let place = format!("row {}, column {}", at / WIDTH, at % WIDTH);
            server_refuses("NaN product", &plain_stage(), attack, &["NaN or infinity in its first-layer", &place]);
        }
    }));
}

/// The hostile party is the label holder.
fn label_stage() -> Stage {
    let mut stage = plain_stage();
    stage.labels_at(1, ROWS);
    stage
}

#[test]
fn nan_in_the_gradient_of_the_label_holder() {
    server_refuses(
        "NaN gradient",
        &label_stage(),
        async |hostile| {
            hostile.receive_z().await;
            let mut gradient = ndarray::Array2::<f32>::zeros((BATCH, 4));
            gradient[[5, 2]] = f32::NAN;
            hostile.server().send_tensor(Kind::HiddenGradient, FIRST, gradient.view()).await.unwrap();
        },
        &["NaN or infinity in its hidden-gradient", "row 5, column 2"],
    );
}

#[test]
fn shapes_of_the_label_holder() {
    let cases: [([u32; 2], u32, [&str; 2]); 6] = [
        ([u32::MAX, u32::MAX], u32::MAX, ["shape [4294967295, 4294967295]", "expected [16, 4]"]),
        ([0, 4], 0, ["shape [0, 4]", "expected [16, 4]"]),
        ([0, 0], 256, ["shape [0, 0]", "expected [16, 4]"]),
        ([4, 16], 256, ["shape [4, 16]", "expected [16, 4]"]),
        ([17, 4], 272, ["shape [17, 4]", "expected [16, 4]"]),
        ([16, 4], u32::MAX, ["hidden-gradient of 4294967295 bytes", "expected 256"]),
    ];
    side_by_side(cases.into_iter().map(|(shape, bytes, words)| {
        move || {
            let attack = async |hostile: &mut Hostile| {
                hostile.receive_z().await;
                hostile.frame(header(Kind::HiddenGradient, FIRST, shape, bytes), &[0; 1024]).await;
            };
            server_refuses("gradient shape", &label_stage(), attack, &words);
        }
    }));
}

#[test]
fn ten_thousand_streams() {
    server_refuses(
        "10,000 streams",
        &stage(),
        async |hostile| {
            for _ in 0..10_000 {
                let opening = tokio::time::timeout(Duration::from_millis(200), hostile.connection.open_bi()).await;
                // The server closes the connection, or gives no more streams.
                let Ok(Ok((mut send, _))) = opening else { break };
                let _ = send.reset(VarInt::from(0_u32));
            }
        },
        &["a stream"],
    );
}

#[test]
fn a_second_session_stream() {
    server_refuses(
        "second stream",
        &stage(),
        async |hostile| {
            let (mut send, _) = hostile.connection.open_bi().await.unwrap();
            send.write_all(&[1, 0, 0, 0]).await.unwrap();
            std::mem::forget(send);
        },
        &["a stream that this role does not serve"],
    );
}

/// The coordinator is the victim. The hostile party reports what no honest one would.
fn coordinator_refuses(name: &str, report: &Report, times: usize) {
    let ended = attack(name, &stage(), async |hostile| {
        for _ in 0..times {
            hostile.report(report.clone()).await;
        }
    });
    ended["coordinator"].expect(PROTOCOL, &[ME, "report"]);
    // They may first notice that the hostile party does nothing else.
    ended["server"].expect(PEER_GONE, &[]);
    ended["party-0"].expect(PEER_GONE, &[]);
}

#[test]
fn reports_that_no_honest_role_would_make() {
    let bytes = |kinds: &[(&str, u64)]| kinds.iter().map(|(kind, n)| ((*kind).to_owned(), *n)).collect::<Vec<_>>();
    let metrics = Metrics { loss: 0.1, auc: Some(1.0), accuracy: Some(1.0) };
    let many = (0..5_000).map(|i| (format!("<{i}>"), 1)).collect();
    let done = Report::Done(Done { peak_rss_bytes: u64::MAX, ..Done::default() });
    let cases = [
        ("the end before the end", done),
        ("a sum that overflows", epoch_end(EpochEnd { bytes_sent: bytes(&[("go", u64::MAX), ("go", 1)]), ..end() })),
        ("an unknown kind", epoch_end(EpochEnd { bytes_sent: bytes(&[("<script>", 1)]), ..end() })),
        ("many unknown kinds", epoch_end(EpochEnd { bytes_sent: many, ..end() })),
        ("metrics", epoch_end(EpochEnd { test: Some(metrics), ..end() })),
        ("a loss", epoch_end(EpochEnd { train_loss: Some(0.1), ..end() })),
        ("progress", Report::Progress(Progress { rows: 1, loss: 0.5 })),
        ("NaN", epoch_end(EpochEnd { seconds: f64::NAN, ..end() })),
    ];
    side_by_side(cases.into_iter().map(|(name, report)| move || coordinator_refuses(name, &report, 1)));
    coordinator_refuses("a hundred epochs of two", &epoch_end(end()), 100);
}

#[test]
fn progress_beyond_all_rows() {
    // From the label holder, so that nothing but the number is wrong.
    side_by_side([(u64::MAX, 0.5), (49, 0.5), (1, f64::NAN)].into_iter().map(|(rows, loss)| {
        move || {
            let ended = attack("progress", &label_stage(), async |hostile| {
                hostile.report(Report::Progress(Progress { rows, loss })).await;
            });
            ended["coordinator"].expect(PROTOCOL, &[ME, "progress"]);
        }
    }));
}

fn epoch_end(end: EpochEnd) -> Report {
    Report::EpochEnd(end)
}

fn end() -> EpochEnd {
    EpochEnd { seconds: 1.0, cpu_seconds: 1.0, ..EpochEnd::default() }
}

/// Runs cases that mostly wait, seven at a time.
fn side_by_side<F: FnOnce() + Send>(cases: impl Iterator<Item = F>) {
    let mut cases: Vec<F> = cases.collect();
    while !cases.is_empty() {
        let some = cases.split_off(cases.len().saturating_sub(7));
        std::thread::scope(|scope| some.into_iter().for_each(|case| drop(scope.spawn(case))));
    }
}

/// The hostile party speaks to the coordinator by hand, from the first byte.
fn first_words(name: &str, words: &[&str], say: impl AsyncFnOnce(&SessionConfig, &mut SendStream)) {
    let stage = stage();
    let processes = stage.start_all_but(&[ME]);
    let ended = runtime().block_on(async {
        let session = SessionFile::read(&stage.path("session.toml")).unwrap().config().unwrap();
        let to = stage.address("coordinator").parse().unwrap();
        let connection = dial(to, "coordinator", tls(&stage, Some(ME)), None).await.unwrap();
        let (mut send, _recv) = open_session(&connection).await;
        say(&session, &mut send).await;
        tokio::task::spawn_blocking(|| all_end(processes)).await.unwrap()
    });
    print_and_check_sizes(name, &ended);
    ended["coordinator"].expect(PROTOCOL, &[&[ME], words].concat());
    for role in ["server", "party-0"] {
        ended[role].expect(PEER_GONE, &[ME]);
    }
}

#[test]
fn a_control_message_of_4_gib() {
    for length in [CONTROL_BYTES_MAX as u32 + 1, u32::MAX] {
        first_words("control of 4 GiB", &[&format!("hello of {length} bytes"), "at most 65536"], async |_, send| {
            let body = vec![0; CONTROL_BYTES_MAX + 1];
            send.write_all(&header(Kind::Hello, Step::SETUP, [0, 0], length)).await.unwrap();
            let _ = send.write_all(&body).await;
        });
    }
}

#[test]
fn a_control_message_that_is_cut_off_or_too_long() {
    for (extra, words) in [(-1_i32, "malformed hello"), (1, "hello message has bytes left over")] {
        first_words("cut control", &[words], async |session, send| {
            let mut body = encode_control(&hello(session, Task::Train, 0));
            body.resize(body.len().checked_add_signed(extra as isize).unwrap(), 0);
            let header = header(Kind::Hello, Step::SETUP, [0, 0], body.len() as u32);
            send.write_all(&[&header[..], &body].concat()).await.unwrap();
        });
    }
}

#[test]
fn the_last_number_of_a_start() {
    for incarnation in [u64::MAX, u64::MAX - 1, 1 << 40] {
        first_words("incarnation", &["incarnation"], async |session, send| {
            let body = encode_control(&hello(session, Task::Train, incarnation));
            let header = header(Kind::Hello, Step::SETUP, [0, 0], body.len() as u32);
            send.write_all(&[&header[..], &body].concat()).await.unwrap();
        });
    }
}

#[test]
fn thousands_of_checkpoints() {
    first_words("checkpoints", &["at most 16 checkpoints"], async |session, send| {
        let checkpoints = (0..10_000).map(|batch| Position { epoch: 1, batch }).collect();
        let body = encode_control(&Hello { checkpoints, ..hello(session, Task::Train, 0) });
        let header = header(Kind::Hello, Step::SETUP, [0, 0], body.len() as u32);
        send.write_all(&[&header[..], &body].concat()).await.unwrap();
    });
}

#[test]
fn a_peer_that_never_reads() {
    let stage = stage();
    let processes = stage.start_all_but(&[ME]);
    let ended = runtime().block_on(async {
        let to = stage.address("coordinator").parse().unwrap();
        // One byte of room: the answer to the opening. The coordinator's Hello never fits.
        let connection = dial(to, "coordinator", tls(&stage, Some(ME)), Some(1)).await.unwrap();
        let (send, _recv) = connection.open_bi().await.unwrap();
        let mut send = send;
        send.write_all(&[1, 0, 0, 0]).await.unwrap();
        tokio::task::spawn_blocking(|| all_end(processes)).await.unwrap()
    });
    ended["coordinator"].expect(PEER_GONE, &[ME, "within 4 s"]);
    // Their own patience with the coordinator ends at the same time.
    for role in ["server", "party-0"] {
        ended[role].expect(PEER_GONE, &[]);
    }
}

/// Runs an honest session of all roles while someone else does something to its ports.
fn honest_session_survives(
    name: &str,
    meanwhile: impl AsyncFnOnce(&Stage, [SocketAddr; 2]),
) -> BTreeMap<String, Ended> {
    let mut stage = stage();
    stage.everywhere("join_timeout_s", 20.0);
    stage.session["train"]["epochs"] = 60.into();
    let mut processes: Vec<Process> = stage.start_all_but(&["party-0", ME]);
    let ports = ["coordinator", "server"].map(|role| stage.address(role).parse().unwrap());
    let ended = runtime().block_on(async {
        meanwhile(&stage, ports).await;
        processes.extend(["party-0", ME].map(|role| stage.start(role)));
        let session = tokio::task::spawn_blocking(|| all_end(processes));
        meanwhile_training(ports).await;
        session.await.unwrap()
    });
    print_and_check_sizes(name, &ended);
    ended.values().for_each(|e| e.expect(DONE, &[]));
    ended
}

/// Garbage in single packets: random, and with the beginning of a QUIC packet.
async fn meanwhile_training(ports: [SocketAddr; 2]) {
    tokio::task::spawn_blocking(move || garbage(ports, 4_000)).await.unwrap();
}

fn garbage(ports: [SocketAddr; 2], packets: usize) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut numbers = Numbers(5);
    for i in 0..packets {
        let length = [1, 20, 100, 1200, 1400][(numbers.next() % 5) as usize];
        let mut bytes: Vec<u8> = (0..length).map(|_| numbers.next() as u8).collect();
        // RFC 9000, section 17.2: long header, version 1, two connection ids; and versions that do not exist.
        if i % 2 == 0 && length > 60 {
            bytes[0] = 0xc0 | (bytes[0] & 0x3f);
            let version: u32 = if i % 4 == 0 { 1 } else { 0x1a2a_3a4a };
            bytes[1..5].copy_from_slice(&version.to_be_bytes());
            bytes[5] = 8;
            bytes[14] = 8;
        }
        let _ = socket.send_to(&bytes, ports[i / 4 % 2]);
    }
}

#[test]
fn garbage_changes_nothing() {
    let ended = honest_session_survives("garbage", async |_, ports| garbage(ports, 20_000));
    assert!(ended["coordinator"].said.contains("epoch 60/60"));
}

/// A peer of another version, in either direction: refused by name, before a byte of it is read.
#[test]
fn another_version_is_refused_by_both_sides() {
    let ours = String::from_utf8_lossy(ALPN).into_owned();
    let ended = honest_session_survives("another version", async |stage, ports| {
        for to in ports {
            let mut config = tls(stage, Some("party-1"));
            config.alpn_protocols = vec![b"spnn/0".to_vec()];
            let refused = dial(to, if to == ports[0] { "coordinator" } else { "server" }, config, None).await;
            assert!(refused.unwrap_err().to_string().contains("120"), "not by its version");
        }
    });
    assert!(ended["coordinator"].said.contains("refused a connection"), "{}", ended["coordinator"].said);

    // A coordinator of another version: its certificate is right, its protocol is not.
    let mut stage = Stage::new(2, 40);
    let file = |extension: &str| stage.path("coordinator").join(format!("coordinator.{extension}"));
    let chain = vec![CertificateDer::from_pem_file(file("pem")).unwrap()];
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(file("key")).unwrap())
        .unwrap();
    config.alpn_protocols = vec![b"spnn/0".to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config).unwrap()));
    let runtime = runtime();
    let _inside = runtime.enter();
    let listener = Endpoint::server(config, (std::net::Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move {
        while let Some(incoming) = listener.accept().await {
            let _ = incoming.await;
        }
    });
    stage.config("party-0").insert("coordinator".into(), address.to_string().into());
    stage.start("party-0").end().expect(NETWORK, &["coordinator", "another version", &ours]);
}

#[test]
fn strangers_who_say_nothing_change_nothing() {
    let mut held = Vec::new();
    let ended = honest_session_survives("slow strangers", async |stage, ports| {
        stage.reissue("pki", "party-9", "party-9", 10);
        for (role, to) in ["coordinator", "server"].into_iter().zip(ports) {
            for _ in 0..10 {
                // Without a certificate; with that of an outsider; with that of a role that does not dial here.
                for certificate in [None, Some("party-9"), Some(role)] {
                    if let Ok(connection) = dial(to, role, tls(stage, certificate), None).await {
                        held.push((connection.open_bi().await, connection));
                    }
                }
            }
        }
    });
    assert!(ended["server"].said.contains("party-9 does not take part here"), "{}", ended["server"].said);
    assert!(held.iter().all(|(_, connection)| connection.close_reason().is_some()));
}

#[test]
fn a_party_that_opens_no_stream_is_waited_for_and_named() {
    let stage = stage();
    let processes = stage.start_all_but(&[ME]);
    let (ended, late) = runtime().block_on(async {
        let to = stage.address("coordinator").parse().unwrap();
        let connection = dial(to, "coordinator", tls(&stage, Some(ME)), None).await.unwrap();
        let (_send, _recv) = connection.open_bi().await.unwrap();
        // Whoever comes second with the same certificate is told so.
        let late = stage.start(ME);
        tokio::task::spawn_blocking(|| (all_end(processes), late.end())).await.unwrap()
    });
    late.expect(NETWORK, &["connected already"]);
    ended["coordinator"].expect(PEER_GONE, &["party-1 did not join"]);
}

/// A coordinator that announces other sizes than the party has: its rows would be looked up past their end.
#[test]
fn sizes_that_a_party_does_not_have() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("data.csv"), "id,y,a\n1,0,0.5\n2,1,0.25\n").unwrap();
    let stage = stage();
    let session = SessionFile::parse(&toml::to_string(&stage.session).unwrap(), Path::new("test")).unwrap();
    let session = session.config().unwrap();
    for (rows, features) in [(1000, vec![1, 1]), (1, vec![1, 1]), (2, vec![5, 1]), (2, vec![1]), (2, vec![1, u32::MAX])]
    {
        let start = Start { incarnation: 1, resume: Position::START };
        let go = Go { rows, features };
        let options = PartyOptions {
            join: JoinOptions {
                directory: tempfile::tempdir_in(&directory).unwrap().path().to_owned(),
                ..options(&stage)
            },
            data: toml::from_str(&format!(
                "file = \"{}\"\nid = \"id\"\nlabel = \"y\"",
                directory.path().join("data.csv").display()
            ))
            .unwrap(),
            scores: None,
            questions: None,
        };
        let network = MemoryNetwork::new(1 << 16, LIMIT, &mut SecretRng::from_system().unwrap());
        let (mut coordinator, mut party) = (network.transport(Role::Coordinator), network.transport(Role::party(0)));
        let others = [Role::Server, Role::party(1)].map(|role| {
            let directory = tempfile::tempdir_in(&directory).unwrap();
            let options = JoinOptions { directory: directory.path().to_owned(), ..options.join.clone() };
            (role, network.transport(role), options)
        });
        let found = runtime().block_on(async {
            let lying = async {
                let roles = [Role::Server, Role::party(0), Role::party(1)];
                let mut channels = Vec::new();
                for role in roles {
                    channels.push(coordinator.connect(role, LIMIT).await.unwrap());
                }
                let ours = hello(&session, Task::Train, 0);
                for channel in &mut channels {
                    channel.exchange(Step::SETUP, &ours).await.unwrap();
                    channel.send(Step::SETUP, &start).await.unwrap();
                }
                for channel in &mut channels {
                    let _: Ready = channel.recv(Step::SETUP).await.unwrap();
                }
                for channel in &mut channels {
                    channel.send(Step::SETUP, &go).await.unwrap();
                }
                channels
            };
            let others = others.into_iter().map(async |(role, mut transport, options)| {
                let joining = Joining::connect(&mut transport, &session, &options, LIMIT).await.unwrap();
                let mut met = joining.meet(Vec::new()).await.unwrap();
                if role != Role::Server {
                    met.compare_ids(2, &digest_ids(["1", "2"])).await.unwrap();
                }
                let _ = met.ready((role != Role::Server).then_some(DataShape { rows: 2, features: 1 })).await;
            });
            let party = Party::run(&mut party, &session, &options);
            let (_channels, found, _) = tokio::join!(lying, party, futures_util::future::join_all(others));
            found
        });
        let error = found.err().unwrap();
        assert_eq!(error.exit_code(Role::party(0)), 5, "{error}");
        assert!(error.to_string().starts_with("coordinator sent"), "{error}");
    }
}
