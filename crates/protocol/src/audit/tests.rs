use super::*;
use crate::contract::tests::Desk;
use crate::message::Kind;
use crate::{Authority, SessionFile};
use proptest::prelude::*;
use std::fs;

fn noon() -> SystemTime {
    "2029-01-01T12:00:00Z".parse::<Timestamp>().unwrap().into()
}

fn session() -> SessionConfig {
    let text = include_str!("../../../../examples/breast_cancer/session.toml");
    SessionFile::parse(text, Path::new("session.toml")).unwrap().config().unwrap()
}

fn header(epoch: u32, batch: u32, body: &[u8]) -> Header {
    let step = Step { phase: Phase::Train, epoch, batch };
    let body_bytes = u32::try_from(body.len()).unwrap();
    Header { kind: Kind::HiddenOutput, step, checkpoint: false, shape: [2, 3], body_bytes }
}

/// The server and party 0, each with a log of its own, in a session that both have to its end.
fn logs(desk: &Desk, body: &[u8]) -> [PathBuf; 2] {
    let roles = [Role::Server, Role::party(0)];
    let files = roles.map(|role| desk.path(&format!("{role}.jsonl")));
    let logs = [0, 1].map(|i| {
        let audit = Audit::open(&files[i], Some(desk.identity(&roles[i].to_string())), noon).unwrap();
        let peer = roles[1 - i];
        let key = desk.identity(&peer.to_string()).fingerprint().to_string();
        audit.start(roles[i], &session(), Task::Train, 1, BTreeMap::from([(peer, Some(key))])).unwrap();
        audit
    });
    for epoch in 1..3 {
        for batch in 0..4 {
            logs[0].message(roles[1], Direction::Sent, &header(epoch, batch, body), body);
            logs[1].message(roles[0], Direction::Received, &header(epoch, batch, body), body);
        }
        logs[0].opened(Step { phase: Phase::Train, epoch, batch: 0 }, "h1", 2, 8);
        let heads = [0, 1].map(|i| {
            logs[i].epoch_end(epoch).unwrap();
            logs[i].log().head().unwrap().unwrap()
        });
        let [server, party] = heads;
        logs[0].peer_head(roles[1], party).unwrap();
        logs[1].peer_head(roles[0], server).unwrap();
    }
    logs[1].released(2, 1, 1).unwrap();
    logs.iter().for_each(|log| log.end(None).unwrap());
    files
}

#[test]
fn two_logs_of_a_session_are_whole_signed_and_agree() {
    let desk = Desk::new();
    let files = logs(&desk, b"a secret value");
    let authority = Authority::load(&desk.path("ca.pem")).unwrap();
    let verified = files.each_ref().map(|file| verify(file, Some(&authority)).unwrap());
    assert_eq!(compare(&verified), Vec::<String>::new());
    for (log, role) in verified.iter().zip([Role::Server, Role::party(0)]) {
        assert_eq!((log.role, log.signed, log.torn), (role, log.lines.len() as u64, 0));
    }
    let flow = verified[0].flows().next().unwrap();
    assert_eq!((flow.frames, flow.bytes, flow.rows, flow.columns), (4, 4 * (24 + 14), [2, 2], [3, 3]));
    assert_eq!(verified[0].egress().values().sum::<u64>(), 8 * (24 + 14));
    assert_eq!(verified[1].egress().len(), 0);
    // Sizes and digests, and nothing of what was sent.
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        assert!(!text.contains("secret") && !text.contains(&hex(b"secret")), "{text}");
    }
}

#[test]
fn logs_that_do_not_agree_are_told_apart() {
    let desk = Desk::new();
    let [server, given] = logs(&desk, b"what the server says it sent");
    let kept = fs::read(&server).unwrap();
    let other = Desk::new();
    let [_, party] = logs(&other, b"what the party has received.");
    let verified = [&server, &party].map(|file| verify(file, None).unwrap());
    let found = compare(&verified);
    assert!(
        found.iter().any(|f| f.contains("hidden-output of train 1") && f.contains("server says it sent")),
        "{found:?}"
    );
    // The whole log written again, with the same key: the party holds the heads of the one before.
    fs::remove_file(&server).unwrap();
    let audit = Audit::open(&server, Some(desk.identity("server")), noon).unwrap();
    audit.start(Role::Server, &session(), Task::Train, 1, BTreeMap::new()).unwrap();
    audit.end(None).unwrap();
    let found = compare(&[verify(&server, None).unwrap(), verify(&given, None).unwrap()]);
    assert!(found.iter().any(|f| f.contains("server signed another log")), "{found:?}");
    assert_ne!(fs::read(&server).unwrap(), kept);
}

#[test]
fn a_torn_last_line_is_written_down_and_no_other_damage_is_taken_for_one() {
    let desk = Desk::new();
    let [server, _] = logs(&desk, b"x");
    let whole = fs::read(&server).unwrap();
    let lines = verify(&server, None).unwrap().lines.len();
    let last = whole[..whole.len() - 1].iter().rposition(|&b| b == b'\n').unwrap() + 1;
    for cut in [last + 1, last + 40, whole.len() - 1] {
        fs::write(&server, &whole[..cut]).unwrap();
        let torn = verify(&server, None).unwrap();
        assert_eq!((torn.torn, torn.lines.len()), ((cut - last) as u64, lines - 1));
        let audit = Audit::open(&server, Some(desk.identity("server")), noon).unwrap();
        audit.start(Role::Server, &session(), Task::Train, 2, BTreeMap::new()).unwrap();
        audit.end(None).unwrap();
        drop(audit);
        let after = verify(&server, None).unwrap();
        assert_eq!(after.torn, 0);
        assert!(matches!(after.lines[lines - 1].entry, Entry::Torn { bytes, .. } if bytes == (cut - last) as u64));
    }
    // A line without its end in the middle, or a file that is no log.
    fs::write(&server, [&whole[..last - 1], &whole[last..]].concat()).unwrap();
    assert!(matches!(verify(&server, None), Err(AuditError::Line { .. })));
    fs::write(&server, "no log\n").unwrap();
    assert!(Audit::open(&server, None, noon).unwrap_err().to_string().contains("no line of an audit log"));
}

#[test]
fn a_log_has_one_writer() {
    let desk = Desk::new();
    let file = desk.path("server.jsonl");
    let first = Audit::open(&file, None, noon).unwrap();
    let second = Audit::open(&file, None, noon).unwrap_err().to_string();
    assert!(second.contains("server.jsonl") && second.contains("another process"), "{second}");
    drop(first);
    Audit::open(&file, None, noon).unwrap();
}

#[test]
fn a_head_that_is_not_the_peers_is_refused() {
    let desk = Desk::new();
    logs(&desk, b"x");
    let audit = Audit::open(&desk.path("other.jsonl"), Some(desk.identity("server")), noon).unwrap();
    audit.start(Role::Server, &session(), Task::Train, 1, BTreeMap::new()).unwrap();
    let head = audit.log().head().unwrap().unwrap();
    let wrong = audit.peer_head(Role::party(0), head.clone()).unwrap_err().to_string();
    assert!(wrong.contains("one of server"), "{wrong}");
    let changed = AuditHead { sequence: head.sequence + 1, ..head };
    let wrong = audit.peer_head(Role::Server, changed).unwrap_err().to_string();
    assert!(wrong.contains("not good"), "{wrong}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any one byte of a log that came to its end: found, and the line is the one that was altered.
    #[test]
    fn an_altered_byte_is_found_and_its_line_named(at in any::<prop::sample::Index>(), flip in 1_u8..) {
        static LOG: std::sync::LazyLock<(tempfile::TempDir, Vec<u8>)> = std::sync::LazyLock::new(|| {
            let desk = Desk::new();
            let [server, _] = logs(&desk, b"x");
            (tempfile::tempdir().unwrap(), fs::read(server).unwrap())
        });
        let (directory, bytes) = &*LOG;
        let mut bytes = bytes.clone();
        let at = at.index(bytes.len());
        let line = bytes[..at].iter().filter(|&&b| b == b'\n').count() as u64 + 1;
        bytes[at] ^= flip;
        let file = directory.path().join(format!("{at}-{flip}.jsonl"));
        fs::write(&file, &bytes).unwrap();
        let found = verify(&file, None);
        fs::remove_file(&file).unwrap();
        match found {
            Err(AuditError::Line { line: named, .. }) => prop_assert_eq!(named, line, "byte {}", at),
            // Without its end, the last line is an unfinished one.
            Ok(log) => prop_assert!(at == bytes.len() - 1 && log.torn > 0, "byte {} was not found", at),
            Err(e) => prop_assert!(false, "{}", e),
        }
    }
}
