//! Health and metrics of real processes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics")]

mod kit;

use kit::{DONE, Process, Stage, arg, spnn, table};
use nix::sys::signal::Signal;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// What a role says at a path: status and body.
fn get(process: &Process, path: &str) -> (u16, String) {
    let said = process.said();
    let address = said.split("health and metrics are served").nth(1).unwrap().split("address=").nth(1).unwrap();
    let mut stream = TcpStream::connect(address.split_whitespace().next().unwrap()).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: role\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn sample(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// Waits until something holds.
fn eventually(what: &str, holds: impl Fn() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < kit::PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn every_role_says_how_it_is() {
    let mut stage = Stage::new(2, 60);
    stage.session["train"]["epochs"] = 1_000_000.into();
    stage.everywhere("monitor", "127.0.0.1:0");
    stage.everywhere("rejoin_timeout_s", 25.0);
    stage.everywhere("transport", table("idle_timeout_s = 1.0"));
    let mut coordinator = stage.start("coordinator");
    coordinator.until(|said| said.contains("health and metrics are served"));
    let (status, body) = get(&coordinator, "/healthz");
    assert!(status == 503 && body.contains("joining"), "{body}");
    let mut processes = vec![coordinator];
    processes.extend(["server", "party-0", "party-1"].map(|role| stage.start(role)));
    processes[0].until(|said| said.contains("epoch 2/"));
    for process in &processes {
        eventually("a role that works is healthy", || get(process, "/healthz").0 == 200);
        let (_, metrics) = get(process, "/metrics");
        assert!(metrics.contains(&format!("role=\"{}\"", process.role)), "{metrics}");
        assert_eq!(sample(&metrics, "spnn_incarnation"), Some(1.0), "{metrics}");
        assert!(sample(&metrics, "process_resident_memory_bytes").unwrap() > 1e6, "{metrics}");
        let at_coordinator = process.role == "coordinator";
        assert_eq!(sample(&metrics, "spnn_train_loss").is_some(), at_coordinator, "{metrics}");
        assert_eq!(sample(&metrics, "spnn_test_auc").is_some(), at_coordinator, "{metrics}");
        assert!(!metrics.contains("R000"), "an id: {metrics}");
    }
    let (_, metrics) = get(&processes[2], "/metrics");
    let sent =
        |peer: &str, kind: &str| sample(&metrics, &format!("spnn_sent_bytes_total{{peer=\"{peer}\",kind=\"{kind}\"}}"));
    assert!(sent("server", "first-layer") > sent("server", "hidden-gradient"), "{metrics}");
    assert!(sent("server", "hidden-gradient") > Some(0.0) && sent("coordinator", "report") > Some(0.0), "{metrics}");
    assert!(sample(&metrics, "spnn_received_bytes_total{peer=\"server\"}").unwrap() > 0.0, "{metrics}");
    let rows = sample(&metrics, "spnn_rows_total").unwrap();
    eventually("rows are counted", || sample(&get(&processes[2], "/metrics").1, "spnn_rows_total").unwrap() > rows);

    processes[3].kill();
    for process in &processes[..3] {
        eventually("a role whose peer is gone is not healthy", || {
            let (status, body) = get(process, "/healthz");
            status == 503 && body.contains("interrupted") && body.contains("party-1")
        });
    }
    processes[3] = stage.start("party-1");
    for process in &processes {
        eventually("healthy again", || get(process, "/healthz").0 == 200);
    }
    let (_, metrics) = get(&processes[1], "/metrics");
    assert_eq!(sample(&metrics, "spnn_interruptions_total"), Some(1.0), "{metrics}");
    assert!(sample(&metrics, "spnn_checkpoints_total").unwrap() > 0.0, "{metrics}");
    processes.iter().for_each(|p| p.signal(Signal::SIGTERM));
}

#[test]
fn spnn_health_says_it_with_its_exit_code() {
    let mut stage = Stage::new(2, 60);
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    stage.config("server").insert("monitor".into(), address.clone().into());
    let file = stage.path("server/config.toml");
    let ask = || spnn(&["health", "--config", arg(&file)]);
    let mut server = stage.start("server");
    server.until(|said| said.contains("health and metrics are served"));
    let said = ask();
    assert!(said.code == 1 && said.err.contains("waiting for all roles"), "{said:?}");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.end().code, DONE);
    let said = ask();
    assert!(said.code == 1 && said.err.contains(&address) && said.err.contains("does not answer"), "{said:?}");
}
