//! Encrypted queries as processes over QUIC: right answers for who asks rightly, and nothing for anyone else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics")]

mod kit;

use kit::{CONFIGURATION, DATA, DONE, NETWORK, Process, arg, repository, spnn, spnn_ok};
use nix::sys::signal::Signal;
use spnn::encrypted::{Network, Recipe, SamplesClient, score};
use spnn::protocol::inference::greet;
use spnn::protocol::message::{InferenceBatch, InferenceTerms, Kind};
use spnn::protocol::transport::{QuicOptions, QuicTransport, Transport, TransportTuning};
use spnn::protocol::{Channel, Identity, IdentityFiles, ProtocolError, Role, Step};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(20);
const FIRST: fn() -> Step = || Step::of_query(0);

/// A server of the digits' network with certificates for it and three clients, of which it knows two.
struct Setup {
    directory: tempfile::TempDir,
    server: Process,
}

impl Setup {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let pki = root.join("pki");
        spnn_ok(&["pki", "init", "--dir", arg(&pki)]);
        for role in ["server", "party-0", "party-1", "party-2"] {
            spnn_ok(&["pki", "issue", "--dir", arg(&pki), "--role", role, "--out", arg(&root.join(role))]);
        }
        let network = repository("examples/digits/network.safetensors");
        let config = format!(
            "{}listen = \"127.0.0.1:0\"\nnetwork = \"{}\"\nclients = [\"party-0\", \"party-1\"]\npeer_timeout_s = 8.0\n",
            identity("server"),
            network.display()
        );
        let server = root.join("server");
        fs::write(server.join("config.toml"), config).unwrap();
        let file = server.join("config.toml");
        let args = ["encrypted", "serve", "--config", arg(&file)];
        let mut process = Process::run("server", &server, &args, None);
        process.until(|_| server.join("address").exists());
        Self { directory, server: process }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    fn address(&self) -> String {
        fs::read_to_string(self.path("server/address")).unwrap()
    }

    /// Configuration of a client.
    fn config(&self, client: &str) -> PathBuf {
        let file = self.path(client).join("config.toml");
        fs::write(&file, format!("{}server = \"{}\"\n", identity(client), self.address())).unwrap();
        file
    }

    /// What an honest client gets for the digits' test rows.
    fn query(&self, client: &str, more: &[&str]) -> kit::Said {
        let (config, data) = (self.config(client), repository("examples/digits/test.csv"));
        let args = ["encrypted", "query", "--config", arg(&config), "--data", arg(&data), "--id", "id"];
        spnn(&[&args, more].concat())
    }

    /// A channel to the server as a client that does what it likes.
    async fn channel(&self, client: &str) -> (QuicTransport, Channel) {
        let at = self.path(client);
        let files = IdentityFiles::new(
            &at.join(format!("{client}.pem")),
            &at.join(format!("{client}.key")),
            &self.path("pki/ca.pem"),
        );
        let options = QuicOptions {
            listen: None,
            dial: BTreeMap::from([(Role::Server, self.address())]),
            expect: Vec::new(),
            pins: BTreeMap::new(),
            peer_timeout: WAIT,
            tuning: TransportTuning::default(),
        };
        let mut transport = QuicTransport::new(Identity::load(files).unwrap(), options).unwrap();
        let channel = transport.connect(Role::Server, WAIT).await.unwrap();
        (transport, channel)
    }
}

fn identity(role: &str) -> String {
    format!("certificate = \"{role}.pem\"\nkey = \"{role}.key\"\nauthority = \"../pki/ca.pem\"\n")
}

#[test]
fn the_shipped_network_answers_as_in_the_clear() {
    let directory = tempfile::tempdir().unwrap();
    let run_dir = directory.path().join("run");
    let said = spnn_ok(&["encrypted", "simulate", "--run-dir", arg(&run_dir)]).out;
    assert!(said.contains("397 samples"), "{said}");
    assert!(said.contains("0 predictions differ"), "{said}");
    let table = fs::read_to_string(run_dir.join("party-0/scores.csv")).unwrap();
    let mut lines = table.lines();
    assert_eq!(lines.next(), Some("id,predicted,0,1,2,3,4,5,6,7,8,9"));
    assert_eq!(lines.count(), 397);
    // What the network reaches in the clear, by the recipe's own reader: the encrypted answers are as good.
    let recipe = Recipe::read(&repository("examples/digits/train.toml")).unwrap();
    let test = recipe.test_rows(&recipe.training_rows().unwrap()).unwrap().unwrap();
    let network = Network::load(&repository("examples/digits/network.safetensors")).unwrap();
    let clear = score(&network, &test).unwrap().to_string();
    assert!(said.contains(&clear), "{said}\nin the clear: {clear}");
    for process in ["server", "party-0"] {
        let report = fs::read_to_string(run_dir.join(process).join("report.json")).unwrap();
        assert!(report.contains("\"samples\": 397"), "{report}");
    }
    let again = spnn(&["encrypted", "simulate", "--run-dir", arg(&run_dir)]);
    assert!(again.code == CONFIGURATION && again.err.contains("holds a run already"), "{}", again.err);
}

#[test]
fn one_sample_at_a_time_is_answered_as_in_the_clear() {
    let directory = tempfile::tempdir().unwrap();
    let (data, run_dir) = (directory.path().join("few.csv"), directory.path().join("run"));
    let digits = fs::read_to_string(repository("examples/digits/test.csv")).unwrap();
    fs::write(&data, digits.lines().take(13).collect::<Vec<_>>().join("\n")).unwrap();
    let network = repository("examples/digits/network.safetensors");
    let args =
        ["encrypted", "simulate", arg(&network), "--one-sample", "--data", arg(&data), "--run-dir", arg(&run_dir)];
    let said = spnn_ok(&[&args[..], &["--id", "id", "--label", "digit", "--compare", arg(&network)]].concat()).out;
    assert!(said.contains("12 samples") && said.contains("0 predictions differ"), "{said}");
    let report = fs::read_to_string(run_dir.join("server/report.json")).unwrap();
    assert!(report.contains("\"batches\": 12"), "{report}");
}

#[test]
fn a_recipe_becomes_a_network_that_answers() {
    let directory = tempfile::tempdir().unwrap();
    let (network, run_dir) = (directory.path().join("digits.safetensors"), directory.path().join("run"));
    let recipe = repository("examples/digits/train.toml");
    let trained = spnn_ok(&["encrypted", "train", arg(&recipe), "--out", arg(&network)]).out;
    assert!(trained.contains("epoch 60 of 60") && trained.contains("in fixed point: test accuracy 9"), "{trained}");
    let shown = spnn_ok(&["encrypted", "show", arg(&network)]).out;
    assert!(
        shown.contains("linear: 64 → 32")
            && shown.contains("encrypted with n4096")
            && shown.contains("one sample at a time with n8192"),
        "{shown}"
    );
    let data = repository("examples/digits/test.csv");
    let args = ["encrypted", "simulate", arg(&network), "--data", arg(&data), "--run-dir", arg(&run_dir)];
    let said = spnn_ok(&[&args[..], &["--label", "digit", "--compare", arg(&network)]].concat()).out;
    assert!(said.contains("0 predictions differ"), "{said}");
    // A network too deep for the encryption is refused before anything is written.
    let text = fs::read_to_string(&recipe).unwrap().replace(
        "layers = [{ linear = 32 }, { activation = \"square\" }]",
        "layers = [{ linear = 8 }, { activation = \"square\" }, { linear = 8 }, { activation = \"square\" }, \
         { linear = 8 }, { activation = \"square\" }]",
    );
    let deep = directory.path().join("deep.toml");
    fs::write(&deep, text.replace("epochs = 60", "epochs = 1")).unwrap();
    let (out, data) = (directory.path().join("deep.safetensors"), repository("examples/digits"));
    let args = ["encrypted", "train", arg(&deep), "--data", arg(&data), "--out", arg(&out)];
    let refused = spnn(&args);
    assert_eq!(refused.code, CONFIGURATION, "{}", refused.err);
    assert!(refused.err.contains("n4096") && !out.exists(), "{}", refused.err);
}

#[test]
fn wrong_questions_are_named_to_who_asks() {
    let setup = Setup::new();
    let directory = &setup.directory;
    let bad = directory.path().join("bad.csv");
    let good = fs::read_to_string(repository("examples/digits/test.csv")).unwrap();
    let config = setup.config("party-0");
    let ask = |data: &Path| spnn(&["encrypted", "query", "--config", arg(&config), "--data", arg(data)]);
    for (text, named) in [
        (good.replacen("p63", "p64", 1), "p63"),
        (good.lines().take(2).collect::<Vec<_>>().join("\n") + "\nD9999,x\n", "line 3"),
    ] {
        fs::write(&bad, text).unwrap();
        let said = ask(&bad);
        assert!(said.code == DATA && said.err.contains(named) && said.err.contains("bad.csv"), "{}", said.err);
    }
    // A party that the server does not know, and one that is no server.
    let outsider = setup.query("party-2", &[]);
    assert!(outsider.code == NETWORK || outsider.code == kit::PEER_GONE, "{}: {}", outsider.code, outsider.err);
    let not_a_server = spnn(&["encrypted", "serve", "--config", arg(&config)]);
    assert_eq!(not_a_server.code, CONFIGURATION);
    assert!(not_a_server.err.contains("that of party-0"), "{}", not_a_server.err);
    let honest = setup.query("party-1", &["--label", "digit"]);
    assert!(honest.code == DONE && honest.out.contains("accuracy"), "{}{}", honest.out, honest.err);
}

/// What a client sends that does not keep to the protocol, and what the server's log says of it.
const WRONGS: [(&str, &str); 7] = [
    ("another preset", "preset is 2; expected 1"),
    ("another level", "level is 9"),
    ("nonsense", "sent in prediction batch 0 what is refused as ciphertext or key 0"),
    ("too few", "sent inference-batch of prediction batch 1 where encrypted-input of prediction batch 0 was due"),
    ("oversize", "announced a encrypted-input"),
    ("a replay", "sent part 0 of the encrypted-input of prediction batch 0 where part 1"),
    ("too many samples", "sent 2049 where at most 2048 samples"),
];

/// Sends one of [`WRONGS`], and waits until the server has closed the connection.
async fn wrong(setup: &Setup, kind: &str) -> ProtocolError {
    let (_transport, mut channel) = setup.channel("party-0").await;
    let terms = greet(&mut channel).await.unwrap();
    let good = ciphertexts(&terms, 2);
    let samples = if kind == "too many samples" { 2049 } else { 1 };
    channel.send(FIRST(), &InferenceBatch { samples }).await.unwrap();
    let mut first = good[0].clone();
    match kind {
        "another preset" => first[1] = 2,
        "another level" => first[3] = 9,
        "nonsense" => first[60..].fill(0xff),
        "oversize" => first.push(0),
        _ => {}
    }
    // The server may close while this is on its way.
    let _ = channel.send_block(Kind::EncryptedInput, FIRST(), [0, 0], &first).await;
    match kind {
        "too few" => drop(channel.send(Step::of_query(1), &InferenceBatch { samples: 1 }).await),
        "a replay" => drop(channel.send_block(Kind::EncryptedInput, FIRST(), [0, 0], &first).await),
        _ => {}
    }
    channel.recv_block(Kind::EncryptedOutput, FIRST(), [0, 0], &mut [0]).await.unwrap_err()
}

/// The first ciphertexts of a batch as an honest client makes them.
fn ciphertexts(terms: &InferenceTerms, count: usize) -> Vec<Vec<u8>> {
    let client = SamplesClient::new(terms).unwrap();
    let rows = ndarray::Array2::zeros((1, terms.inputs as usize));
    let mut made = Vec::new();
    let keep = |bytes| {
        made.push(bytes);
        made.len() < count
    };
    client.encrypt(rows.view(), 1, keep).unwrap();
    made
}

#[test]
fn clients_that_break_the_protocol_are_refused_and_harm_nobody() {
    let mut setup = Setup::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for (kind, named) in WRONGS {
        let error = runtime.block_on(wrong(&setup, kind));
        let ended = matches!(&error, ProtocolError::PeerEnded { ending, .. } if ending.culprit == Role::party(0));
        assert!(ended, "{kind}: {error}");
        setup.server.until(|said| said.contains(named));
        assert!(setup.server.said().contains(named), "{kind}: {}", setup.server.said());
    }
    let honest = setup.query("party-1", &["--label", "digit"]);
    assert_eq!(honest.code, DONE, "{}", honest.err);
    setup.server.signal(Signal::SIGTERM);
    let said = setup.server.end();
    assert!(said.code == DONE && !said.said.contains("panicked"), "{}", said.said);
}

#[test]
fn clients_that_stop_half_way_leave_nothing_behind() {
    let mut setup = Setup::new();
    assert_eq!(setup.query("party-1", &[]).code, DONE);
    let baseline = setup.server.resident();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (rounds, held) = (12, 60);
    for round in 0..rounds {
        runtime.block_on(async {
            let (transport, mut channel) = setup.channel("party-0").await;
            let terms = greet(&mut channel).await.unwrap();
            channel.send(FIRST(), &InferenceBatch { samples: 1 }).await.unwrap();
            for (number, bytes) in (0..).zip(ciphertexts(&terms, held)) {
                channel.send_block(Kind::EncryptedInput, FIRST(), [number, 0], &bytes).await.unwrap();
            }
            if round % 6 > 0 {
                // Gone without a word; the others stay, silent, until the server is tired of them.
                drop((channel, transport));
            } else {
                let error = channel.recv_block(Kind::EncryptedOutput, FIRST(), [0, 0], &mut [0]).await.unwrap_err();
                assert!(matches!(error, ProtocolError::PeerEnded { .. }), "{error}");
            }
        });
        setup.server.until(|said| said.matches("ended: ").count() > round);
    }
    // Each held 60 ciphertexts of 54 kB: all of them would be 39 MB.
    let after = setup.server.resident();
    assert!(after < baseline + (20 << 20), "{after} bytes after, {baseline} before");
    assert_eq!(setup.query("party-1", &[]).code, DONE);
}
