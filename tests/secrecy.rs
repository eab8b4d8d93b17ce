//! What stays where it belongs: nothing secret in logs, nothing but masked shares at the server, ids and scores at their
//! owners only.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test panics")]

mod kit;

use kit::{Numbers, arg, spnn_ok, table};
use sha2::{Digest, Sha256};
use spnn::coordinator::{Event, Observer};
use spnn::crypto::SecretRng;
use spnn::nn::{first_layer_weights, matmul};
use spnn::party::data::{Columns, DataSource};
use spnn::party::{Party, PartyOptions};
use spnn::protocol::message::Kind;
use spnn::protocol::transport::MemoryNetwork;
use spnn::protocol::{JoinOptions, Joined, Joining, Phase, Role, SessionConfig, SessionFile, Step, Task};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Values that occur nowhere else.
const PLANTED: f64 = 31337.1234567;
const ROWS: usize = 64;

/// Two files with planted ids, column names and values, and their session.
fn plant(directory: &Path) -> PathBuf {
    let mut numbers = Numbers(1);
    let mut files =
        ["SECRETKEYCOLUMN,secretlabel,secretincome,secretage\n".to_owned(), "SECRETKEYCOLUMN,secretdebt\n".to_owned()];
    for row in 0..ROWS {
        let id = format!("SECRETID-{row:03}");
        let label = numbers.next() & 1;
        let (income, age, debt) = (PLANTED + row as f64, 77.7717 + numbers.real(), 8123.4567 + row as f64);
        files[0] += &format!("{id},{label},{income:.7},{age:.4}\n");
        files[1] += &format!("{id},{debt:.4}\n");
    }
    for (name, text) in ["a.csv", "b.csv"].iter().zip(files) {
        fs::write(directory.join(name), text).unwrap();
    }
    let session = r#"
        name = "planted"
        first_layer = "sharing"
        seed = 7
        [data]
        id = "SECRETKEYCOLUMN"
        label = "secretlabel"
        test_fraction = 0.25
        standardize = true
        parties = [{ file = "a.csv", label_holder = true }, { file = "b.csv" }]
        [model]
        hidden_width = 4
        server = [{ activation = "sigmoid" }]
        head = { linear = 1, loss = "binary-cross-entropy" }
        [train]
        epochs = 2
        batch_size = 16
        optimizer = { kind = "sgd", learning_rate = 0.1 }
    "#;
    let file = directory.join("session.toml");
    fs::write(&file, session).unwrap();
    file
}

/// Every file below, with its bytes.
fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let bytes = fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found
}

fn contains(bytes: &[u8], needle: &str) -> bool {
    bytes.windows(needle.len()).any(|w| w.eq_ignore_ascii_case(needle.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes of a PEM body.
fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for digit in text.bytes().filter_map(|c| DIGITS.iter().position(|d| *d == c)) {
        bits = bits << 6 | u32::try_from(digit).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

#[test]
fn logs_hold_no_secret() {
    let directory = tempfile::tempdir().unwrap();
    let session = plant(directory.path());
    let run = directory.path().join("run");
    let said = spnn_ok(&["simulate", arg(&session), "--run-dir", arg(&run), "--log", "trace"]);
    spnn_ok(&["predict", arg(&run), "--log", "trace"]);

    // Planted texts; numbers by their digits, as written and as f32 and after any rounding to five or more digits.
    let mut secrets: Vec<String> =
        ["SECRETID-", "SECRETKEYCOLUMN", "secretlabel", "secretincome", "secretage", "secretdebt"]
            .map(str::to_owned)
            .into();
    secrets.extend(["31337.", "31338.", "77.77", "8123.4", "8124.4"].map(str::to_owned));
    // Private keys: lines of their files, and their bytes in hexadecimal.
    let mut keys = 0;
    for (path, bytes) in files(&run).into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "key")) {
        keys += 1;
        let text = String::from_utf8(bytes).unwrap();
        let body: Vec<&str> = text.lines().filter(|l| !l.starts_with("---")).collect();
        assert!(!body.is_empty(), "{}", path.display());
        secrets.extend(body.iter().map(|l| (*l).to_owned()));
        let der = base64(&body.concat());
        // PKCS #8 for P-256: the private number is 32 bytes after the tag 04 20 (RFC 5915).
        let at = der.windows(2).position(|w| w == [0x04, 0x20]).unwrap() + 2;
        let number = &der[at..at + 32];
        secrets.extend([hex(&der), hex(number), format!("{number:?}"), hex(&Sha256::digest(number))]);
    }
    assert_eq!(keys, 5);
    // What is derived from data: digests of the ids, scaling, weights, shares of scores.
    let ids: Vec<String> = (0..ROWS).map(|row| format!("SECRETID-{row:03}")).collect();
    let digest = spnn::party::digest_ids(&ids);
    secrets.extend([hex(&digest), format!("{digest:?}")]);
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(run.join("party-0/model.json")).unwrap()).unwrap();
    let scaling = manifest["extra"]["encoding"]["columns"].as_array().unwrap();
    let scalings = scaling.iter().filter_map(|column| column["encoding"]["numeric"].as_object());
    let numbers = scalings.flat_map(|scaling| scaling.values()).filter_map(serde_json::Value::as_f64);
    let numbers: Vec<String> =
        numbers.filter(|n| n.fract() != 0.0).map(|n| n.to_string().chars().take(8).collect()).collect();
    assert!(numbers.len() >= 4, "{scaling:?}");
    secrets.extend(numbers);
    let predictions = fs::read_to_string(run.join("party-0/predictions.csv")).unwrap();
    secrets.extend(predictions.lines().skip(1).map(|l| l.split_once(',').unwrap().1.to_owned()));

    let mut logs = 0;
    let mut bytes = 0;
    for (path, log) in files(&run).into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "log")) {
        logs += 1;
        bytes += log.len();
        for secret in &secrets {
            assert!(!contains(&log, secret), "{} holds {secret}", path.display());
        }
    }
    for secret in &secrets {
        assert!(!contains(said.out.as_bytes(), secret) && !contains(said.err.as_bytes(), secret), "{secret}");
    }
    // The search finds what is there, and there was something to search.
    assert_eq!(logs, 8);
    assert!(bytes > 10_000, "{bytes} bytes of trace");
    let predictions = fs::read(run.join("party-0/predictions.csv")).unwrap();
    assert!(contains(&predictions, "SECRETID-"));
    println!("{} secrets not found in {logs} logs of {bytes} bytes", secrets.len());
}

#[test]
fn directories_hold_what_their_owners_may_see() {
    let directory = tempfile::tempdir().unwrap();
    let session = plant(directory.path());
    let run = directory.path().join("run");
    spnn_ok(&["simulate", arg(&session), "--run-dir", arg(&run)]);
    let data = ["SECRETID-", "secretincome", "secretdebt", "31337.", "8123.4"];
    for role in ["coordinator", "server", "party-1"] {
        for (path, bytes) in files(&run.join(role)) {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            assert!(!name.contains("predictions"), "{}", path.display());
            // A party's own file and model name its own columns.
            let own = role == "party-1" && ["config.toml", "model.json"].contains(&name.as_str());
            for word in data.iter().filter(|w| !(own && **w == "secretdebt")) {
                assert!(!contains(&bytes, word), "{} holds {word}", path.display());
            }
        }
    }
    for name in ["report.json", "report.html"] {
        let bytes = fs::read(run.join(name)).unwrap();
        assert!(data.iter().all(|word| !contains(&bytes, word)), "{name}");
    }
    assert!(run.join("party-0/predictions.csv").exists());
    // The server's model knows H1's width and not how many columns there are.
    let model = fs::read_to_string(run.join("server/model.json")).unwrap();
    assert!(!model.contains("features"), "{model}");
}

struct Silent;

impl Observer for Silent {
    fn on(&mut self, _event: &Event<'_>) {}
}

const WIDE: usize = 64;
const MANY: usize = 1024;

/// What a server sees of party 0 and party 1 in the first batch, written down by one that follows the protocol so far.
fn shares(ring_bits: u32, directory: &Path) -> (SessionConfig, [Vec<u8>; 2]) {
    let mut numbers = Numbers(3);
    for (name, label) in [("a.csv", true), ("b.csv", false)] {
        let mut text = String::from(if label { "id,y,a,b\n" } else { "id,a,b\n" });
        for row in 0..MANY {
            let label = if label { format!("{},", numbers.next() & 1) } else { String::new() };
            text += &format!("{row},{label}{:.4},{:.4}\n", numbers.real(), numbers.real());
        }
        fs::write(directory.join(name), text).unwrap();
    }
    let file = table(&format!(
        r#"
        name = "shares"
        first_layer = "sharing"
        sharing = {{ ring_bits = {ring_bits} }}
        seed = 7
        data = {{ parties = [{{ label_holder = true }}, {{}}] }}
        model = {{ hidden_width = {WIDE}, server = [], head = {{ linear = 1, loss = "binary-cross-entropy" }} }}
        train = {{ epochs = 1, batch_size = {MANY}, optimizer = {{ kind = "sgd", learning_rate = 0.1 }} }}
        "#
    ));
    let session = SessionFile::parse(&toml::to_string(&file).unwrap(), Path::new("test")).unwrap().config().unwrap();
    let join = |role: Role| JoinOptions::new(Task::Train, directory.join(role.to_string()));
    let network = MemoryNetwork::new(4096, Duration::from_secs(30), &mut SecretRng::from_system().unwrap());
    let roles = [Role::Coordinator, Role::Server, Role::party(0), Role::party(1)];
    let [mut coordinator, mut server, mut first, mut second] = roles.map(|role| network.transport(role));
    let party = |i: u16, file: &str| PartyOptions {
        join: join(Role::party(i)),
        data: DataSource {
            id: Some(Columns::One("id".into())),
            label: (i == 0).then(|| "y".into()),
            ..DataSource::new(directory.join(file))
        },
        scores: None,
        questions: None,
    };
    let (one, two) = (party(0, "a.csv"), party(1, "b.csv"));
    let (coordinating, serving) = (join(Role::Coordinator), join(Role::Server));
    let recording = async {
        let joining = Joining::connect(&mut server, &session, &serving, Duration::from_secs(30)).await.unwrap();
        let Joined { mut network, .. } = joining.meet(Vec::new()).await.unwrap().ready(None).await.unwrap();
        let step = Step { phase: Phase::Train, epoch: 1, batch: 0 };
        let mut seen = [(); 2].map(|()| vec![0_u8; MANY * WIDE * ring_bits as usize / 8]);
        for (party, seen) in (0..).zip(&mut seen) {
            network.channel(Role::party(party)).unwrap().recv_payload(step, 0, seen).await.unwrap();
        }
        // Everything a party has sent so far: the greeting and the share.
        assert_eq!(Kind::FirstLayer.tag(), 16);
        drop(network);
        drop(server);
        seen
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let seen = runtime.block_on(async {
        let mut observer = Silent;
        let others = async {
            let one = async { drop(Party::run(&mut first, &session, &one).await) };
            let two = async { drop(Party::run(&mut second, &session, &two).await) };
            let coordinating =
                async { drop(spnn::coordinator::run(&mut coordinator, &session, &coordinating, &mut observer).await) };
            tokio::join!(one, two, coordinating)
        };
        // The others end with errors when the server has seen enough, or are dropped.
        tokio::select! {
            biased;
            seen = recording => seen,
            _ = others => panic!("ended before the server saw their shares"),
        }
    });
    (session, seen)
}

/// Chi-square of byte values: mean 255, standard deviation √510 ≈ 22.6 if they are uniform.
fn chi_square(bytes: impl ExactSizeIterator<Item = u8>) -> f64 {
    let expected = bytes.len() as f64 / 256.0;
    let mut counts = [0_f64; 256];
    bytes.for_each(|b| counts[usize::from(b)] += 1.0);
    counts.iter().map(|c| (c - expected).powi(2) / expected).sum()
}

/// Six standard deviations: once in a billion runs for each of the dozen uses.
const UNIFORM_MAX: f64 = 255.0 + 6.0 * 22.6;

#[test]
fn the_server_sees_masked_shares() {
    for ring_bits in [64_u32, 32] {
        let directory = tempfile::tempdir().unwrap();
        let (session, shares) = shares(ring_bits, directory.path());
        let format = session.sharing.fixed_point(2).unwrap();
        // What each party's share would be without masks.
        let order = session.schedule(MANY as u32).order(Phase::Train, 1);
        let products = ["a.csv", "b.csv"].map(|name| product(&session, directory.path(), name, &order));
        let element = ring_bits as usize / 8;
        for (share, product) in shares.iter().zip(&products) {
            let encoded = encode(&format, ring_bits, product);
            assert_eq!(share.len(), encoded.len());
            // Byte by byte of the elements: the highest byte of an unmasked one is always 0 or 255.
            let mut found = Vec::new();
            for byte in 0..element {
                let of = |bytes: &[u8]| bytes.iter().copied().skip(byte).step_by(element).collect::<Vec<u8>>();
                let masked = chi_square(of(share).into_iter());
                assert!(masked < UNIFORM_MAX, "byte {byte} of {element}: {masked}");
                found.push(format!("{masked:.0}"));
                if byte == element - 1 {
                    assert!(chi_square(of(&encoded).into_iter()) > 10.0 * UNIFORM_MAX, "the test would see no masks");
                }
            }
            println!("{ring_bits} bits: chi-square of each byte {}", found.join(" "));
            let same = share.chunks(element).zip(encoded.chunks(element)).filter(|(a, b)| a == b).count();
            assert!(same < 4, "{same} of {} elements are not masked", MANY * WIDE);
        }
        // Together they are the sum, so these were the shares and this is the product.
        let shares = shares.each_ref().map(|s| numbers(ring_bits, s));
        let encoded = products.each_ref().map(|p| numbers(ring_bits, &encode(&format, ring_bits, p)));
        let mask = if ring_bits == 64 { u64::MAX } else { u64::from(u32::MAX) };
        for i in 0..MANY * WIDE {
            let sum = |values: &[Vec<u64>; 2]| values[0][i].wrapping_add(values[1][i]) & mask;
            assert_eq!(sum(&shares), sum(&encoded), "element {i}");
        }
    }
}

/// `x·w` of one party in the first batch.
fn product(session: &SessionConfig, directory: &Path, name: &str, order: &[u32]) -> Vec<f32> {
    let text = fs::read_to_string(directory.join(name)).unwrap();
    let skip = if name == "a.csv" { 2 } else { 1 };
    let rows: Vec<Vec<f32>> =
        text.lines().skip(1).map(|l| l.split(',').skip(skip).map(|v| v.parse().unwrap()).collect()).collect();
    let x = ndarray::Array2::from_shape_fn((MANY, 2), |(i, j)| rows[order[i] as usize][j]);
    let columns = if name == "a.csv" { 0..2 } else { 2..4 };
    let w = first_layer_weights(session.seed, 4, WIDE, columns);
    let mut product = ndarray::Array2::zeros((MANY, WIDE));
    matmul(x.view(), w.view(), product.view_mut(), false);
    product.into_raw_vec_and_offset().0
}

fn encode(format: &spnn::crypto::FixedPoint, ring_bits: u32, values: &[f32]) -> Vec<u8> {
    if ring_bits == 64 {
        let mut out = vec![0_u64; values.len()];
        format.encode_onto(values, &mut out).unwrap();
        return bytemuck::cast_slice(&out).to_vec();
    }
    let mut out = vec![0_u32; values.len()];
    format.encode_onto(values, &mut out).unwrap();
    bytemuck::cast_slice(&out).to_vec()
}

fn numbers(ring_bits: u32, bytes: &[u8]) -> Vec<u64> {
    let element = ring_bits as usize / 8;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |n, b| n << 8 | u64::from(*b));
    bytes.chunks(element).map(number).collect()
}

#[test]
fn a_second_start_masks_anew() {
    // The same data and seeds twice: everything but the masks is the same.
    let directory = tempfile::tempdir().unwrap();
    let (_, before) = shares(64, directory.path());
    let (_, after) = shares(64, directory.path());
    assert_eq!(fs::read_to_string(directory.path().join("party-0/incarnation")).unwrap().trim(), "2");
    for (before, after) in before.iter().zip(&after) {
        let same = before.chunks(8).zip(after.chunks(8)).filter(|(a, b)| a == b).count();
        assert!(same < 4, "{same} elements are the same");
        // Nor is the difference of the two recognisable.
        let difference = before.chunks(8).zip(after.chunks(8)).flat_map(|(a, b)| {
            let number = |b: &[u8]| u64::from_le_bytes(b.try_into().unwrap());
            number(a).wrapping_sub(number(b)).to_le_bytes()
        });
        let difference: Vec<u8> = difference.collect();
        assert!(chi_square(difference.into_iter()) < UNIFORM_MAX);
    }
}
