//! The README's commands, word for word: four terminals (its set-up block, then its four lines at once), and encrypted queries.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod kit;

use kit::{repository, shell};

/// The shell blocks of the README's section on four terminals.
fn blocks() -> Vec<String> {
    let readme = include_str!("../README.md");
    let section = readme.split("\n## Four terminals\n").nth(1).unwrap().split("\n## ").next().unwrap();
    section.split("```sh\n").skip(1).map(|b| b.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn four_terminals() {
    let directory = tempfile::tempdir().unwrap();
    let [set_up, terminals] = &blocks()[..] else { panic!("two blocks expected") };
    assert!(shell(set_up, directory.path()).status().unwrap().success());
    // The README's ports may be taken on the machine that runs the tests.
    let sockets = [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    let ports = sockets.each_ref().map(|s| s.local_addr().unwrap().port().to_string());
    drop(sockets);
    for config in ["operator/coordinator.toml", "operator/server.toml", "clinic/party.toml", "laboratory/party.toml"] {
        let file = directory.path().join(config);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("7000", &ports[0]).replace("7001", &ports[1])).unwrap();
    }
    let run = |extra: &str| {
        let lines: Vec<&str> = terminals.lines().filter(|l| !l.is_empty()).collect();
        assert_eq!(lines.len(), 4);
        let running: Vec<_> =
            lines.iter().map(|line| shell(&format!("{line} {extra}"), directory.path()).spawn().unwrap()).collect();
        for (line, mut child) in lines.iter().zip(running) {
            assert!(child.wait().unwrap().success(), "{line} {extra}");
        }
    };
    run("");
    let trained = std::fs::read_to_string(directory.path().join("clinic/party-0/predictions.csv")).unwrap();
    let report = std::fs::read_to_string(directory.path().join("operator/coordinator/report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert!(report["test"]["auc"].as_f64().unwrap() >= 0.98, "{}", report["test"]);
    run("--task predict");
    let predicted = std::fs::read_to_string(directory.path().join("clinic/party-0/predictions.csv")).unwrap();
    let lines: std::collections::HashSet<&str> = predicted.lines().collect();
    assert_eq!(lines.len(), 570);
    assert!(trained.lines().all(|l| lines.contains(l)), "scores before and after reload differ");
}

#[test]
fn encrypted_queries() {
    let readme = include_str!("../README.md");
    let block = readme.split("```sh\n").find(|block| block.starts_with("spnn encrypted train")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(repository("examples"), directory.path().join("examples")).unwrap();
    let said = shell(block.split("```").next().unwrap(), directory.path()).output().unwrap();
    let out = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success(), "{out}{}", String::from_utf8_lossy(&said.stderr));
    assert!(out.contains("397 samples") && out.contains("accuracy 9"), "{out}");
}
