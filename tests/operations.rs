//! docs/operations.md from nothing to the first prediction, word for word.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod kit;

use kit::shell;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::Path;

/// The shell blocks of the first section, each with the word after `sh`.
fn blocks() -> Vec<(String, String)> {
    let text = include_str!("../docs/operations.md");
    let section =
        text.split("\n## From nothing to the first prediction\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let block = |block: &str| {
        let (kind, rest) = block.split_once('\n').unwrap();
        (kind.trim().to_owned(), rest.split("```").next().unwrap().to_owned())
    };
    section.split("```sh").skip(1).map(block).collect()
}

/// The documented ports may be taken on the machine that runs the tests.
fn with_free_ports(script: &str) -> String {
    let udp = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    let tcp = [(); 6].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let documented = ["7000", "7001", "9100", "9101", "9102", "9103", "9104", "8080"];
    let free = udp.iter().map(|s| s.local_addr()).chain(tcp.iter().map(|s| s.local_addr()));
    documented.iter().zip(free).fold(script.to_owned(), |script, (port, address)| {
        script.replace(&format!("127.0.0.1:{port}"), &address.unwrap().to_string())
    })
}

/// Runs all lines at once; each must end well, after `meanwhile` when it is asked to.
fn together(lines: &str, directory: &Path, meanwhile: Option<&str>) {
    let lines: Vec<&str> = lines.lines().filter(|l| !l.is_empty()).collect();
    assert_eq!(lines.len(), 5);
    // In groups of their own: a signal is for the role, not for its shell alone.
    let start = |line: &&str| shell(line, directory).process_group(0).spawn().unwrap();
    let running: Vec<_> = lines.iter().map(start).collect();
    let asked = meanwhile.map(|script| shell(script, directory).status().unwrap().success());
    for child in running.iter().filter(|_| asked.is_some()) {
        signal::killpg(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    }
    for (line, mut child) in lines.iter().zip(running) {
        // The shell is ended by the signal; what the role says of its end is in other tests.
        assert!(child.wait().unwrap().success() || asked.is_some(), "{line}");
    }
    assert_ne!(asked, Some(false), "{meanwhile:?}");
}

#[test]
fn from_nothing_to_the_first_prediction() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let blocks = blocks();
    let all = with_free_ports(&blocks.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\u{0}"));
    let texts: Vec<&str> = all.split('\u{0}').collect();
    for (at, ((kind, _), text)) in blocks.iter().zip(&texts).enumerate() {
        match kind.as_str() {
            "" => assert!(shell(text, root).status().unwrap().success(), "{text}"),
            "run" => {
                together(text, root, None);
                let report = fs::read_to_string(root.join("operator/coordinator/report.json")).unwrap();
                let report: serde_json::Value = serde_json::from_str(&report).unwrap();
                assert!(report["test"]["auc"].as_f64().unwrap() >= 0.97, "{}", report["test"]);
            }
            "predict" => together(text, root, None),
            "serve" => together(text, root, Some(texts[at + 1])),
            // Run while the block before it is.
            "ask" => assert_eq!(blocks[at - 1].0, "serve"),
            other => panic!("a block of sort '{other}'"),
        }
    }
    let scores = fs::read_to_string(root.join("clinic/scores.csv")).unwrap();
    assert_eq!(scores.lines().count(), 21, "{scores}");
    let served = fs::read_to_string(root.join("clinic/served.csv")).unwrap();
    let lines = scores.lines().skip(1).map(|line| format!("{line},scored"));
    assert!(served.lines().skip(1).eq(lines), "{served}\n{scores}");
    let logs = ["operator/coordinator", "operator/server", "clinic/state", "laboratory/state", "registry/state"];
    let logs = logs.map(|directory| format!("{directory}/audit.jsonl")).join(" ");
    assert!(shell(&format!("spnn audit verify {logs} --authority clinic/ca.pem"), root).status().unwrap().success());
    for elsewhere in ["operator", "laboratory", "registry"] {
        assert!(!root.join(elsewhere).join("scores.csv").exists());
    }
    // What was carried left every key where it was made, and encrypted.
    for (directory, key) in [("clinic", "party-0"), ("laboratory", "party-1"), ("registry", "party-2")] {
        let key = format!("{key}.key");
        let text = fs::read_to_string(root.join(directory).join(&key)).unwrap();
        assert!(text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
        for elsewhere in ["operator", "operator/requests", "clinic", "laboratory", "registry"] {
            assert!(elsewhere == directory || !root.join(elsewhere).join(&key).exists(), "{key} at {elsewhere}");
        }
    }
}
