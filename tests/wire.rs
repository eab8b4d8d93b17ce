//! Whatever a peer sends or a file holds: a value or an error, never a panic, never much memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test panics")]

mod kit;

use kit::allocations::{Counting, largest};
use kit::link::Bare;
use kit::table;
use ndarray::Array2;
use proptest::collection::vec;
use proptest::prelude::*;
use spnn::pki::{self, Authority, Validity};
use spnn::protocol::message::{
    AlignmentOffer, AlignmentResult, CONTROL_BYTES_MAX, Control, Done, EpochEnd, Go, HEADER_BYTES, Header, Hello,
    IdDigest, Kind, Metrics, Progress, Ready, Report, Start, decode_control, encode_control,
};
use spnn::protocol::{
    Channel, Phase, Position, ProtocolError, Role, SavedModel, SessionConfig, SessionFile, Step, Task, Tensor, hello,
    inspect_certificate,
};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A control body, and as much again for what it decodes to and for buffers.
const SMALL: usize = 2 * CONTROL_BYTES_MAX;
const STEP: Step = Step { phase: Phase::Train, epoch: 1, batch: 0 };
const PEER: Role = Role::Server;

/// A channel on which these bytes arrive and then nothing.
fn channel(bytes: &[u8]) -> Channel {
    let reader = std::io::Cursor::new(bytes.to_vec());
    Channel::new(PEER, Arc::new(Bare), Box::new(reader), Box::new(tokio::io::sink()), Duration::from_secs(5))
}

thread_local! {
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.with(|r| r.block_on(future))
}

/// Receives everything that a role can be waiting for. Each error names the peer.
fn receive_all(bytes: &[u8]) {
    fn named<T>(result: Result<T, ProtocolError>) {
        if let Err(e) = result {
            assert!(e.to_string().starts_with("server"), "{e}");
            assert!(e.to_string().len() < 400, "{e}");
        }
    }
    for step in [Step::SETUP, STEP] {
        block_on(async {
            named(channel(bytes).recv::<Hello>(step).await);
            named(channel(bytes).recv::<Start>(step).await);
            named(channel(bytes).recv::<Report>(step).await);
            named(channel(bytes).recv::<IdDigest>(step).await);
            named(channel(bytes).recv::<Ready>(step).await);
            named(channel(bytes).recv::<Go>(step).await);
            let mut tensor = Array2::zeros((3, 2));
            for kind in [Kind::HiddenOutput, Kind::HiddenGradient, Kind::FirstLayerGradient] {
                let received = channel(bytes).recv_tensor(kind, step, tensor.view_mut()).await;
                assert!(received.is_err() || tensor.iter().all(|v| v.is_finite()));
                named(received);
            }
            named(channel(bytes).recv_payload(step, 0, &mut [0; 24]).await);
            named(channel(bytes).recv::<AlignmentOffer>(step).await);
            named(channel(bytes).recv::<AlignmentResult>(step).await);
            named(channel(bytes).recv_block(Kind::BlindedIds, Step::SETUP, [1, 0], &mut [0; 24]).await);
        });
    }
}

fn frame(header: Header, body: &[u8]) -> Vec<u8> {
    [&header.encode()[..], body].concat()
}

fn control<C: Control>(message: &C) -> Vec<u8> {
    let body = encode_control(message);
    let (kind, body_bytes) = (C::KIND, u32::try_from(body.len()).unwrap());
    frame(Header { kind, step: Step::SETUP, checkpoint: false, shape: [0, 0], body_bytes }, &body)
}

/// One valid frame of each sort that can be received.
static FRAMES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let end = EpochEnd {
        seconds: 1.0,
        cpu_seconds: 0.5,
        bytes_sent: vec![("first-layer".into(), 7), ("hidden-output".into(), 8)],
        wire_bytes_sent: 9,
        train_loss: Some(0.5),
        test: Some(Metrics { loss: 0.5, auc: None, accuracy: Some(1.0) }),
        head: None,
    };
    let tensor = [0.5_f32; 6].map(f32::to_le_bytes).concat();
    vec![
        control(&hello(&SESSION, Task::Train, 3)),
        control(&Start { incarnation: 1, resume: Position::START }),
        control(&Report::Progress(Progress { rows: 1, loss: 0.5 })),
        control(&Report::EpochEnd(end)),
        control(&Report::Done(Done { cpu_seconds: 0.5, peak_rss_bytes: 1, bytes_sent: Vec::new() })),
        control(&IdDigest { rows: 5, digest: [7; 32] }),
        control(&Ready { rows: 5, features: 6 }),
        control(&Go { rows: 2, features: vec![3, 4] }),
        control(&AlignmentOffer { ids: 5, nonce: [7; 32], kept: None, held: vec![1, 2], finished: false }),
        control(&AlignmentResult { rows: 5 }),
        frame(
            Header { kind: Kind::BlindedIds, step: Step::SETUP, checkpoint: false, shape: [1, 0], body_bytes: 24 },
            &tensor,
        ),
        frame(
            Header { kind: Kind::HiddenOutput, step: STEP, checkpoint: false, shape: [3, 2], body_bytes: 24 },
            &tensor,
        ),
        frame(
            Header { kind: Kind::HiddenGradient, step: STEP, checkpoint: false, shape: [3, 2], body_bytes: 24 },
            &tensor,
        ),
        frame(Header { kind: Kind::FirstLayer, step: STEP, checkpoint: false, shape: [0, 0], body_bytes: 24 }, &tensor),
    ]
});

static SESSION: LazyLock<SessionConfig> = LazyLock::new(|| {
    let text = fs::read_to_string(kit::repository("examples/breast_cancer/session.toml")).unwrap();
    SessionFile::parse(&text, Path::new("example")).unwrap().config().unwrap()
});

/// What is done to valid bytes: overwrite, cut, insert, repeat.
fn mutate(mut bytes: Vec<u8>, changes: &[(u16, u8, u8)]) -> Vec<u8> {
    for &(at, how, byte) in changes {
        let at = usize::from(at) % bytes.len().max(1);
        match how % 5 {
            _ if bytes.is_empty() => bytes.push(byte),
            0 => bytes[at] = byte,
            1 => bytes[at] ^= 1 << (byte % 8),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, byte),
            _ => bytes.extend_from_within(at..),
        }
    }
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(u16, u8, u8)>> {
    vec((any::<u16>(), any::<u8>(), any::<u8>()), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_received_or_refused(bytes in vec(any::<u8>(), 0..300)) {
        let most = largest(|| receive_all(&bytes));
        prop_assert!(most <= SMALL, "{} bytes allocated", most);
    }

    #[test]
    fn any_body_under_a_header_that_fits_is_received_or_refused(
        kind in 0..Kind::ALL.len(), train in any::<bool>(), shape in any::<[u32; 2]>(), zero in any::<bool>(),
        length in prop_oneof![Just(u32::MAX), Just(24), 0..70_000_u32, any::<u32>()], body in vec(any::<u8>(), 0..300),
    ) {
        let step = if train { STEP } else { Step::SETUP };
        let shape = if zero { [0, 0] } else { shape };
        let bytes = frame(Header { kind: Kind::ALL[kind], step, checkpoint: false, shape, body_bytes: length }, &body);
        let most = largest(|| receive_all(&bytes));
        prop_assert!(most <= SMALL, "{} bytes allocated", most);
    }

    #[test]
    fn changed_frames_are_received_or_refused(which in any::<usize>(), changes in changes()) {
        let frame = &FRAMES[which % FRAMES.len()];
        let bytes = mutate(frame.clone(), &changes);
        let most = largest(|| receive_all(&bytes));
        prop_assert!(most <= SMALL, "{} bytes allocated", most);
    }

    #[test]
    fn changed_control_bodies_decode_or_are_refused(which in any::<usize>(), changes in changes()) {
        let body = mutate(FRAMES[which % 7][HEADER_BYTES..].to_vec(), &changes);
        let most = largest(|| {
            // What decodes can be sent on as it is.
            if let Ok(m) = decode_control::<Hello>(&body) { assert_eq!(decode_control::<Hello>(&encode_control(&m)), Ok(m)); }
            if let Ok(m) = decode_control::<Start>(&body) { assert_eq!(decode_control::<Start>(&encode_control(&m)), Ok(m)); }
            if let Ok(m) = decode_control::<IdDigest>(&body) { assert_eq!(decode_control::<IdDigest>(&encode_control(&m)), Ok(m)); }
            // Compared as bytes: a NaN is not itself.
            if let Ok(m) = decode_control::<Report>(&body) {
                let bytes = encode_control(&m);
                assert_eq!(encode_control(&decode_control::<Report>(&bytes).unwrap()), bytes);
            }
        });
        prop_assert!(most <= SMALL, "{} bytes allocated", most);
    }

    #[test]
    fn any_session_text_is_compared(text in ".{0,300}", changes in changes()) {
        compare(&text);
        let changed = mutate(SESSION.canonical().into_bytes(), &changes);
        compare(&String::from_utf8_lossy(&changed));
    }
}

/// A peer's session text: equal, or a difference that is short and printable.
fn compare(text: &str) {
    match SESSION.difference(text) {
        None => assert_eq!(serde_json::from_str::<SessionConfig>(text).unwrap(), *SESSION),
        Some(difference) => {
            let shown = difference.to_string();
            assert!(shown.chars().count() < 300, "{shown}");
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
        }
    }
}

#[test]
fn session_texts_of_an_enemy_are_compared() {
    assert_eq!(SESSION.difference(&SESSION.canonical()), None);
    let long = "x".repeat(60_000);
    let canonical = SESSION.canonical();
    let evil = [
        "[".repeat(60_000),
        "{\"a\":".repeat(10_000),
        format!("\"{long}\""),
        canonical.replacen("{", &format!("{{\"{long}\":1,"), 1),
        canonical.replacen("{", "{\"\\u001b[2J\\u009b31m\\n\":1,", 1),
        canonical.replace("\"breast-cancer\"", "\"\\u009b2J\""),
        canonical.replace("\"seed\":7", "\"seed\":1e999"),
        canonical.replace("\"seed\":7", "\"seed\":7.0"),
        canonical.replace("\"seed\":7", "\"seed\":-7"),
    ];
    for text in &evil {
        assert!(SESSION.difference(text).is_some(), "{}", &text[..60.min(text.len())]);
        compare(text);
    }
}

#[test]
fn announced_lengths_allocate_nothing() {
    // Sequences and texts that claim to be longer than the body, in bodies of the largest size.
    for claim in [1_u64 << 16, 1 << 32, u64::MAX] {
        let mut varint = Vec::new();
        let mut rest = claim;
        while rest >= 128 {
            varint.push(rest as u8 | 128);
            rest >>= 7;
        }
        varint.push(rest as u8);
        for fill in [0, 1, 255] {
            let mut start = [&[1, 2], &varint[..]].concat();
            start.resize(CONTROL_BYTES_MAX, fill);
            let mut report = [&[1], &[0; 16][..], &varint[..]].concat();
            report.resize(CONTROL_BYTES_MAX, fill);
            let mut hello = varint.clone();
            hello.resize(CONTROL_BYTES_MAX, fill);
            // Empty texts take two bytes on the wire and 32 in memory; what a claim alone can cost shows where nothing
            // after it decodes.
            let limit = if fill == 255 { SMALL } else { 16 * CONTROL_BYTES_MAX };
            let most = largest(|| {
                let _ = decode_control::<Start>(&start);
                let _ = decode_control::<Report>(&report);
                let _ = decode_control::<Hello>(&hello);
            });
            assert!(most <= limit, "{most} bytes allocated for a claim of {claim}");
        }
    }
}

#[test]
fn certificates_of_an_enemy_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::in_directory(directory.path());
    pki::init(&authority, "test", Validity::days(10)).unwrap();
    let file = pki::issue(&authority, directory.path(), Role::Server, "org", Validity::days(10), None).unwrap();
    let valid = fs::read(&file).unwrap();
    let (role, print) = inspect_certificate(&file).unwrap();
    assert_eq!(role, Role::Server);
    let mut numbers = kit::Numbers(2);
    let (mut refused, mut read) = (0, 0);
    let changed = directory.path().join("changed.pem");
    for case in 0..10_000 {
        let bytes = if case % 4 == 0 {
            let length = numbers.next() % 600;
            let mut bytes = b"-----BEGIN CERTIFICATE-----\n".to_vec();
            if case % 8 == 0 {
                bytes.clear();
            }
            bytes.extend((0..length).map(|_| numbers.next() as u8));
            bytes
        } else {
            let changes: Vec<(u16, u8, u8)> = (0..=numbers.next() % 3)
                .map(|_| {
                    (numbers.next() as u16, numbers.next() as u8, b"ABCabc019+/=\n-"[(numbers.next() % 14) as usize])
                })
                .collect();
            mutate(valid.clone(), &changes)
        };
        fs::write(&changed, &bytes).unwrap();
        match inspect_certificate(&changed) {
            // Signatures are TLS's business; whatever is read names one role.
            Ok(_) => read += 1,
            Err(e) => {
                assert!(e.to_string().contains("changed.pem") && e.to_string().len() < 600, "{e}");
                refused += 1;
            }
        }
    }
    println!("{refused} refused, {read} read");
    assert!(refused > 1000 && read > 100, "{refused} refused, {read} read");
    assert_eq!(inspect_certificate(&file).unwrap().1, print);
}

#[test]
fn a_saved_model_with_any_byte_changed_is_refused_or_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let session = SessionFile::parse(&toml::to_string(&table(SMALL_SESSION)).unwrap(), Path::new("s")).unwrap();
    let session = session.config().unwrap();
    let role = Role::party(0);
    let model = SavedModel {
        tensors: BTreeMap::from([
            ("w".to_owned(), Tensor { shape: vec![2, 3], values: vec![0.5, -1.0, 2.0, 1e-30, 3.0, 4.0] }),
            ("b".to_owned(), Tensor { shape: vec![2], values: vec![1.0, 2.0] }),
        ]),
        extra: BTreeMap::from([("mean".to_owned(), 0.1_f64), ("deviation".to_owned(), 12.75)]),
    };
    model.save(directory.path(), role, &session).unwrap();
    let load = || SavedModel::<BTreeMap<String, f64>>::load(directory.path(), role, &session);
    assert!(load().is_ok());
    for name in ["model.safetensors", "model.json"] {
        let file = directory.path().join(name);
        let valid = fs::read(&file).unwrap();
        let (mut same, mut refused) = (0, 0);
        for at in 0..valid.len() {
            for flip in [1, 8, 128, 255] {
                let mut bytes = valid.clone();
                bytes[at] ^= flip;
                fs::write(&file, &bytes).unwrap();
                let most = largest(|| match load() {
                    Ok(loaded) => {
                        assert!(loaded.tensors == model.tensors, "byte {at} of {name}");
                        assert_eq!(loaded.extra, model.extra, "byte {at} of {name}");
                        same += 1;
                    }
                    Err(e) => {
                        assert!(e.to_string().contains("model."), "{e}");
                        refused += 1;
                    }
                });
                assert!(most < SMALL, "{most}");
            }
        }
        for length in 0..valid.len() {
            fs::write(&file, &valid[..length]).unwrap();
            assert!(load().is_err(), "{name} cut to {length}");
        }
        fs::write(&file, &valid).unwrap();
        println!("{name}: {refused} refused, {same} the same");
        assert!(load().is_ok() && refused > 10 * same);
        assert!(name != "model.safetensors" || same == 0);
    }
}

const SMALL_SESSION: &str = r#"
    name = "small"
    first_layer = "sharing"
    seed = 7
    data = { parties = [{ label_holder = true }, {}] }
    model = { hidden_width = 2, server = [], head = { linear = 1, loss = "binary-cross-entropy" } }
    train = { epochs = 1, batch_size = 4, optimizer = { kind = "sgd", learning_rate = 0.1 } }
"#;
