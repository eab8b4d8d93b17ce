//! Sessions with `inference = "encrypted"`: the scores are those of the same network in the clear, and the server has seen
//! nothing but ciphertexts of the rows that were scored.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test panics")]

mod kit;

use kit::{CONFIGURATION, DONE, PATIENCE, Process, Stage, all_end, arg, spnn_ok, table};
use nix::sys::signal::Signal;
use serde_json::Value;
use spnn::coordinator::{Event, Observer};
use spnn::crypto::SecretRng;
use spnn::party::data::{Columns, DataSource};
use spnn::party::{Party, PartyOptions};
use spnn::protocol::message::{HEADER_BYTES, Header, Kind};
use spnn::protocol::transport::{MemoryNetwork, MemoryTransport, Transport};
use spnn::protocol::{
    Channel, Ending, JoinOptions, Phase, ProtocolError, Reader, Role, SessionConfig, SessionFile, Task,
};
use spnn::server::Server;
use spnn_ckks::{Ciphertext, Context, Preset, SecretKey};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, ReadBuf};

const ROWS: usize = 90;
const PARTIES: u16 = 3;
/// What z may be off by is 2^-12 as a standard deviation; a score moves by a quarter of it at most, times the head's weights.
const NEAR: f64 = 1e-3;

/// A trained session whose layers are squares.
fn trained(inference: &str) -> Stage {
    let mut stage = Stage::new(PARTIES, ROWS);
    stage.session.insert("inference".into(), inference.into());
    let model = stage.session["model"].as_table_mut().unwrap();
    let layers = table("layers = [{ activation = \"square\" }, { linear = 4 }, { activation = \"square\" }]");
    model.insert("server".into(), layers["layers"].clone());
    stage.session["train"].as_table_mut().unwrap()["epochs"] = 6.into();
    stage.session["train"].as_table_mut().unwrap()["optimizer"] = table("kind = \"adam\"\nlearning_rate = 0.01").into();
    stage.config("party-0").insert("service".into(), table("listen = \"127.0.0.1:0\"").into());
    all_end(stage.start_all()).values().for_each(|e| e.expect(DONE, &[]));
    stage
}

fn run(stage: &Stage, task: &str) -> BTreeMap<String, kit::Ended> {
    all_end(stage.roles().iter().map(|r| stage.start_with(r, &["--task", task])).collect())
}

/// Ids and scores.
fn predictions(stage: &Stage) -> BTreeMap<String, f64> {
    let text = fs::read_to_string(stage.path("party-0/predictions.csv")).unwrap();
    let pair = |line: &str| line.split_once(',').map(|(id, score)| (id.to_owned(), score.parse().unwrap())).unwrap();
    text.lines().skip(1).map(pair).collect()
}

fn assert_near(found: &BTreeMap<String, f64>, expected: &BTreeMap<String, f64>) {
    assert!(found.keys().eq(expected.keys()));
    let differences = found.iter().map(|(id, score)| (score - expected[id]).abs());
    let largest = differences.fold(0.0, f64::max);
    println!("the largest difference of a score is {largest:e}");
    assert!(largest < NEAR, "{largest}");
}

#[test]
fn scores_are_those_of_the_network_in_the_clear_and_the_server_opened_nothing() {
    let open = trained("open");
    run(&open, "predict").values().for_each(|e| e.expect(DONE, &[]));
    let expected = predictions(&open);
    assert_eq!(expected.len(), ROWS);
    let spread =
        expected.values().fold(0.0, |a, b| f64::max(a, *b)) - expected.values().fold(1.0, |a, b| f64::min(a, *b));
    assert!(spread > 0.1, "a network that says the same of everyone would show nothing: {spread}");

    let mut stage = trained("encrypted");
    // Trained alike: the first layer's masks cancel exactly.
    let weights = |stage: &Stage, role: &str| fs::read(stage.path(role).join("model.safetensors")).unwrap();
    for role in ["server", "party-0", "party-1", "party-2"] {
        assert!(weights(&open, role) == weights(&stage, role), "{role}");
    }
    stage.everywhere("audit", true);
    run(&stage, "predict").values().for_each(|e| e.expect(DONE, &[]));
    assert_near(&predictions(&stage), &expected);

    // What went over the server's channels in the prediction, by its own audit log, and by what others wrote down.
    let lines = |role: &str| -> Vec<Value> {
        let text = fs::read_to_string(stage.path(role).join("audit.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let text = |role: &str| lines(role).iter().map(Value::to_string).collect::<String>();
    assert!(!text("server").contains("\"opened\""), "{}", text("server"));
    assert!(!text("server").contains("first-layer") && text("server").contains("encrypted-input"));
    assert!(text("party-0").contains("\"opened\"") && text("party-0").contains("\"z\""), "{}", text("party-0"));

    // Served, to whoever asks over HTTP.
    let roles: Vec<Process> = stage.roles().iter().map(|r| stage.start_with(r, &["--task", "serve"])).collect();
    let since = Instant::now();
    let served = loop {
        let ids: Vec<&String> = expected.keys().collect();
        if let Some(answer) = ask(&stage, &serde_json::json!({ "ids": ids }).to_string()) {
            break answer;
        }
        assert!(since.elapsed() < PATIENCE, "{}", roles.iter().map(Process::said).collect::<String>());
        std::thread::sleep(Duration::from_millis(50));
    };
    let score = |s: &Value| (s["id"].as_str().unwrap().to_owned(), s["score"].as_f64().unwrap());
    assert_near(&served["scores"].as_array().unwrap().iter().map(score).collect(), &expected);
    roles.iter().for_each(|role| role.signal(Signal::SIGTERM));
    all_end(roles).values().for_each(|e| assert_eq!(e.code, DONE, "{}", e.all_said));
}

/// The answer to a question, once there is one.
fn ask(stage: &Stage, body: &str) -> Option<Value> {
    let address = fs::read_to_string(stage.path("party-0/service")).ok()?;
    let mut stream = TcpStream::connect(address).ok()?;
    let length = body.len();
    let head = "POST /v1/scores HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n";
    write!(stream, "{head}Content-Length: {length}\r\n\r\n{body}").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.contains(" 200 ").then(|| serde_json::from_str(body).unwrap())
}

#[test]
fn layers_that_cannot_be_encrypted_are_refused_before_anything_starts() {
    let mut stage = Stage::new(2, 20);
    stage.session.insert("inference".into(), "encrypted".into());
    stage.start("server").end().expect(CONFIGURATION, &["layer 1", "sigmoid", "square", "inference = \"encrypted\""]);
}

#[test]
fn a_session_file_says_so_and_a_simulation_of_it_evaluates() {
    let directory = tempfile::tempdir().unwrap();
    let example = kit::repository("examples/breast_cancer");
    let mut session = table(&fs::read_to_string(example.join("session.toml")).unwrap());
    session.insert("inference".into(), "encrypted".into());
    let layers = table("layers = [{ activation = \"square\" }, { linear = 4 }]");
    session["model"].as_table_mut().unwrap()["server"] = layers["layers"].clone();
    for party in session["data"]["parties"].as_array_mut().unwrap() {
        let file = example.join(party["file"].as_str().unwrap());
        party.as_table_mut().unwrap()["file"] = arg(&file).into();
    }
    let (file, run) = (directory.path().join("session.toml"), directory.path().join("run"));
    fs::write(&file, toml::to_string(&session).unwrap()).unwrap();
    spnn_ok(&["simulate", arg(&file), "--run-dir", arg(&run)]);
    let encrypted = spnn_ok(&["evaluate", arg(&run)]).out;
    let auc = |said: &str| -> f64 {
        let at = said.find("AUC ").unwrap_or_else(|| panic!("{said}")) + 4;
        said[at..at + 6].parse().unwrap()
    };
    // The same network in the clear: its rows come from the files, so only the session's word for it differs.
    session.remove("inference");
    fs::write(&file, toml::to_string(&session).unwrap()).unwrap();
    let open_run = directory.path().join("open");
    spnn_ok(&["simulate", arg(&file), "--run-dir", arg(&open_run)]);
    let open = spnn_ok(&["evaluate", arg(&open_run)]).out;
    assert!((auc(&encrypted) - auc(&open)).abs() <= 0.001, "{encrypted}\n{open}");
    assert!(auc(&open) > 0.95, "{open}");
}

struct Silent;

impl Observer for Silent {
    fn on(&mut self, _event: &Event<'_>) {}
}

/// Everything that a role reads, by sender.
type View = Arc<Mutex<BTreeMap<Role, Vec<u8>>>>;

/// A transport that writes down what its role reads.
struct Recorded {
    inner: MemoryTransport,
    view: View,
}

#[async_trait::async_trait]
impl Transport for Recorded {
    fn me(&self) -> Role {
        self.inner.me()
    }

    async fn connect(&mut self, peer: Role, deadline: Duration) -> Result<Channel, ProtocolError> {
        let view = Arc::clone(&self.view);
        let channel = self.inner.connect(peer, deadline).await?;
        Ok(channel.wrap(move |reader, writer| (Box::new(Recording { inner: reader, peer, view }), writer)))
    }

    fn leave(&mut self, ending: Ending) {
        self.inner.leave(ending);
    }
}

struct Recording {
    inner: Reader,
    peer: Role,
    view: View,
}

impl AsyncRead for Recording {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = out.filled().len();
        std::task::ready!(Pin::new(&mut self.inner).poll_read(context, out))?;
        let read = &out.filled()[before..];
        self.view.lock().unwrap().entry(self.peer).or_default().extend(read);
        Poll::Ready(Ok(()))
    }
}

/// The messages of a recording.
fn frames(mut bytes: &[u8]) -> Vec<(Header, &[u8])> {
    let mut frames = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() {
        let header = Header::decode(header).unwrap();
        let (body, rest) = rest.split_at(header.body_bytes as usize);
        frames.push((header, body));
        bytes = rest;
    }
    frames
}

/// A session over memory, in which everyone is as ever and the server's reading is recorded.
fn recorded(task: Task, number: u32, session: &SessionConfig, directory: &Path) -> BTreeMap<Role, Vec<u8>> {
    let join = |role: Role| JoinOptions::new(task, directory.join(role.to_string()));
    let network = MemoryNetwork::new(1 << 16, Duration::from_secs(30), &mut SecretRng::from_system().unwrap());
    let [mut coordinator, mut first, mut second] =
        [Role::Coordinator, Role::party(0), Role::party(1)].map(|role| network.transport(role));
    let view = View::default();
    let mut server_transport = Recorded { inner: network.transport(Role::Server), view: Arc::clone(&view) };
    let party = |i: u16, file: &str| {
        let data = DataSource {
            id: Some(Columns::One("id".into())),
            label: (i == 0).then(|| "y".into()),
            ..DataSource::new(directory.join(file))
        };
        PartyOptions::new(join(Role::party(i)), data)
    };
    let (one, two) = (party(0, "a.csv"), party(1, "b.csv"));
    // A coordinator of its own for each task: one that is not sure whether all know that the last is done asks them first.
    let coordinating = JoinOptions::new(task, directory.join(format!("coordinator-{task}-{number}")));
    let serving = join(Role::Server);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut observer = Silent;
        let server = async {
            let server = Server::of_session(session, &serving).unwrap();
            server.run(&mut server_transport).await.map_err(|e| format!("server: {e}"))
        };
        let coordinator = async {
            let ended = spnn::coordinator::run(&mut coordinator, session, &coordinating, &mut observer).await;
            ended.map_err(|e| format!("coordinator: {e}"))
        };
        let one = async { Party::run(&mut first, session, &one).await.map_err(|e| format!("party-0: {e}")) };
        let two = async { Party::run(&mut second, session, &two).await.map_err(|e| format!("party-1: {e}")) };
        // The first error ends all: the others would wait for whoever had it.
        tokio::try_join!(one, two, server, coordinator).unwrap();
    });
    std::mem::take(&mut *view.lock().unwrap())
}

#[test]
fn the_server_reads_ciphertexts_only() {
    let directory = tempfile::tempdir().unwrap();
    for (party, name) in ["a.csv", "b.csv"].iter().enumerate() {
        let label = |row: usize| if party == 0 { format!(",{}", row % 2) } else { String::new() };
        let line = |row: usize| format!("{row}{},{:.3}\n", label(row), ((row * 7 + party) as f64).sin());
        let header = if party == 0 { "id,y,a\n" } else { "id,b\n" };
        let text: String = header.to_owned() + &(0..60).map(line).collect::<String>();
        fs::write(directory.path().join(name), text).unwrap();
    }
    let file = table(
        r#"
        name = "recorded"
        first_layer = "sharing"
        inference = "encrypted"
        seed = 7
        data = { parties = [{ label_holder = true }, {}] }
        model = { hidden_width = 3, server = [{ activation = "square" }, { linear = 2 }], head = { linear = 1, loss = "binary-cross-entropy" } }
        train = { epochs = 1, batch_size = 16, optimizer = { kind = "sgd", learning_rate = 0.1 } }
        "#,
    );
    let session = SessionFile::parse(&toml::to_string(&file).unwrap(), Path::new("test")).unwrap().config().unwrap();
    let kinds = |view: &BTreeMap<Role, Vec<u8>>| {
        let of = |(role, bytes): (&Role, &Vec<u8>)| {
            let kinds = frames(bytes).iter().map(|(h, _)| (h.kind, h.step.phase)).collect::<Vec<_>>();
            (*role, kinds)
        };
        view.iter().map(of).collect::<BTreeMap<Role, Vec<(Kind, Phase)>>>()
    };
    // Training opens H1: the recording would show it.
    let training = kinds(&recorded(Task::Train, 0, &session, directory.path()));
    assert!(training[&Role::party(1)].contains(&(Kind::FirstLayer, Phase::Train)));

    let view = recorded(Task::Predict, 0, &session, directory.path());
    let input = (Kind::EncryptedInput, Phase::Predict);
    let (hello, key) = ((Kind::Hello, Phase::Setup), (Kind::InferenceKey, Phase::Setup));
    let seen = kinds(&view);
    assert_eq!(seen[&Role::party(0)], [hello, key, input, input, input]);
    assert_eq!(seen[&Role::party(1)], [hello, input, input, input]);
    let of_coordinator = [Kind::Hello, Kind::Start, Kind::Go, Kind::Finish].map(|kind| (kind, Phase::Setup));
    assert_eq!(seen[&Role::Coordinator], of_coordinator);
    assert_eq!(seen.len(), 3);

    // Ciphertexts, all different, of which no key but one makes anything: least of all none.
    let context = Context::new(&Preset::N16384_PARTS).unwrap();
    let mut rng = SecretRng::from_system().unwrap();
    let other = SecretKey::generate(&context, &mut rng);
    let again = recorded(Task::Predict, 1, &session, directory.path());
    for role in [Role::party(0), Role::party(1)] {
        let bodies = |view: &BTreeMap<Role, Vec<u8>>| -> Vec<Vec<u8>> {
            let frames = frames(&view[&role]);
            frames.iter().filter(|(h, _)| h.kind == Kind::EncryptedInput).map(|(_, body)| body.to_vec()).collect()
        };
        for (body, again) in bodies(&view).iter().zip(bodies(&again)) {
            let mut ciphertext = Ciphertext::from_bytes(&context, body).unwrap();
            // Its scale may be beyond what is decoded.
            ciphertext.rescale_to(ciphertext.level() - 2).unwrap();
            let values = other.decrypt(&ciphertext).unwrap().decode();
            let sensible = values.iter().filter(|v| v.abs() < 1e3).count();
            assert!(sensible < values.len() / 100, "{role}: {sensible} of {} values make sense", values.len());
            // The header is the same; of the rest, one byte in 256 is by chance.
            let same = body.iter().zip(&again).skip(13).filter(|(a, b)| a == b).count();
            let (expected, deviation) = (body.len() as f64 / 256.0, (body.len() as f64 / 256.0).sqrt());
            assert!((same as f64 - expected).abs() < 8.0 * deviation, "{role}: {same} of {} bytes", body.len());
        }
    }
}
