//! Predictions over HTTP between roles as processes: which scores, for whom, and what happens when a role is gone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics")]

mod kit;

use kit::{CONFIGURATION, DONE, PATIENCE, Process, Stage, all_end, arg, repository, spnn_ok, table};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const ROWS: usize = 120;

/// A trained session whose label holder has scored all rows.
fn trained(first_layer: &str) -> Stage {
    let mut stage = Stage::new(3, ROWS);
    stage.session.insert("first_layer".into(), first_layer.into());
    stage.session.insert("paillier".into(), table("key_bits = 2048\nallow_112_bit = true").into());
    stage.config("party-0").insert("service".into(), table("listen = \"127.0.0.1:0\"").into());
    stage.everywhere("allow_unprotected", true);
    stage.everywhere("transport", table("idle_timeout_s = 1.0"));
    train_and_predict(&stage);
    stage.everywhere("rejoin_timeout_s", 25.0);
    stage
}

fn train_and_predict(stage: &Stage) {
    all_end(stage.start_all()).values().for_each(|e| e.expect(DONE, &[]));
    let predict: Vec<Process> = stage.roles().iter().map(|r| stage.start_with(r, &["--task", "predict"])).collect();
    all_end(predict).values().for_each(|e| e.expect(DONE, &[]));
}

/// What the label holder wrote, id and score.
fn predictions(stage: &Stage) -> Vec<(String, String)> {
    let text = fs::read_to_string(stage.path("party-0/predictions.csv")).unwrap();
    let pair = |line: &str| line.split_once(',').map(|(id, score)| (id.to_owned(), score.to_owned())).unwrap();
    text.lines().skip(1).map(pair).collect()
}

fn serving(stage: &Stage) -> BTreeMap<String, Process> {
    let _ = fs::remove_file(stage.path("party-0/service"));
    let serve = |role: &String| (role.clone(), stage.start_with(role, &["--task", "serve"]));
    let roles: BTreeMap<String, Process> = stage.roles().iter().map(serve).collect();
    let since = Instant::now();
    while fs::read_to_string(stage.path("party-0/service")).is_err() || health(stage).0 != 200 {
        assert!(since.elapsed() < PATIENCE, "{}", roles.values().map(Process::said).collect::<String>());
        std::thread::sleep(Duration::from_millis(20));
    }
    roles
}

/// Status and body.
fn request(stage: &Stage, head: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let address = fs::read_to_string(stage.path("party-0/service")).unwrap();
    let Ok(mut stream) = TcpStream::connect(address) else { return (0, Vec::new()) };
    let length = body.len();
    write!(stream, "{head}Host: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n").unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let status = String::from_utf8_lossy(&answer[9..12]).parse().unwrap();
    (status, answer.split_off(end + 4))
}

fn health(stage: &Stage) -> (u16, Vec<u8>) {
    request(stage, "GET /healthz HTTP/1.1\r\n", b"")
}

fn post(stage: &Stage, types: &str, body: &[u8]) -> (u16, Vec<u8>) {
    request(stage, &format!("POST /v1/scores HTTP/1.1\r\n{types}"), body)
}

fn ask(stage: &Stage, ids: &[&str]) -> (u16, Value) {
    let body = json!({ "ids": ids }).to_string();
    let (status, answer) = post(stage, "Content-Type: application/json\r\n", body.as_bytes());
    (status, serde_json::from_slice(&answer).unwrap_or_default())
}

/// The scores of an answer as they are in a file.
fn scored(answer: &Value) -> Vec<(String, String)> {
    let line = |line: &Value| {
        let score = line.get("score").map_or_else(|| line["status"].as_str().unwrap().to_owned(), |s| s.to_string());
        (line["id"].as_str().unwrap().to_owned(), score)
    };
    answer["scores"].as_array().unwrap().iter().map(line).collect()
}

/// Asked to stop, all roles end well.
fn stop(roles: BTreeMap<String, Process>) {
    roles.values().for_each(|role| role.signal(Signal::SIGTERM));
    all_end(roles.into_values().collect()).values().for_each(|e| assert_eq!(e.code, DONE, "{}", e.all_said));
}

#[test]
fn whoever_asks_gets_the_scores_that_a_prediction_writes() {
    for first_layer in ["sharing", "plain"] {
        let stage = trained(first_layer);
        let expected = predictions(&stage);
        assert_eq!(expected.len(), ROWS);
        let roles = serving(&stage);
        let ids: Vec<&str> = expected.iter().rev().map(|(id, _)| id.as_str()).collect();
        let (status, answer) = ask(&stage, &ids);
        assert_eq!(status, 200, "{answer}");
        assert!(scored(&answer).iter().eq(expected.iter().rev()), "{first_layer}: {answer}");
        // One at a time, twice the same, and one that nobody has.
        let (first, last) = (&expected[0], &expected[ROWS - 1]);
        let (_, answer) = ask(&stage, &[&last.0, "nobody", &first.0, &last.0]);
        let nobody = ("nobody".to_owned(), "unknown".to_owned());
        assert_eq!(scored(&answer), [last.clone(), nobody, first.clone(), last.clone()]);
        let (_, answer) = ask(&stage, &["nobody"]);
        assert_eq!(answer["scores"], json!([{ "id": "nobody", "status": "unknown" }]));

        // Another table of the same ids, with another column before them.
        let table: String = expected.iter().map(|(id, _)| format!("x,{id}\n")).collect();
        let (status, text) = post(&stage, "Content-Type: text/csv\r\n", format!("note,id\n{table}").as_bytes());
        let wanted: String = expected.iter().map(|(id, score)| format!("{id},{score},scored\n")).collect();
        assert_eq!((status, String::from_utf8(text).unwrap()), (200, format!("id,score,status\n{wanted}")));
        let types = "Content-Type: text/csv\r\nAccept: application/vnd.apache.parquet\r\n";
        let (status, parquet) = post(&stage, types, format!("note,id\n{table}").as_bytes());
        assert_eq!((status, &parquet[..4]), (200, &b"PAR1"[..]));
        let types = "Content-Type: application/vnd.apache.parquet\r\nAccept: application/json\r\n";
        let (status, answer) = post(&stage, types, &parquet);
        assert_eq!(status, 200);
        assert_eq!(scored(&serde_json::from_slice(&answer).unwrap()), expected);

        let (status, description) = request(&stage, "GET /v1/openapi.json HTTP/1.1\r\n", b"");
        assert_eq!(
            (status, &serde_json::from_slice::<Value>(&description).unwrap()["openapi"]),
            (200, &json!("3.1.0"))
        );
        let (_, metrics) = request(&stage, "GET /metrics HTTP/1.1\r\n", b"");
        let metrics = String::from_utf8(metrics).unwrap();
        for line in ["spnn_requests_total{status=\"200\"} 6", "spnn_waiting_ids 0", "spnn_request_seconds_count 6"] {
            assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
        }
        stop(roles);
    }
}

/// Only the label holder's process writes scores, and only into the answer.
#[test]
fn a_role_that_is_gone_is_missed_and_one_that_comes_back_is_welcome() {
    let mut stage = trained("sharing");
    let expected = predictions(&stage);
    fs::remove_file(stage.path("party-0/predictions.csv")).unwrap();
    let mut roles = serving(&stage);
    stage.keep_ports();
    let ids: Vec<&str> = expected.iter().map(|(id, _)| id.as_str()).collect();
    for gone in ["party-1", "server", "coordinator", "party-2"] {
        roles.get_mut(gone).unwrap().kill();
        let since = Instant::now();
        let mut refused = Vec::new();
        while refused.is_empty() {
            let (status, answer) = ask(&stage, &ids);
            match status {
                200 => assert_eq!(scored(&answer), expected),
                _ => refused.push((status, answer["error"].to_string())),
            }
            assert!(since.elapsed() < PATIENCE);
        }
        assert!(refused[0].0 == 503 && refused[0].1.contains("gone"), "{gone}: {refused:?}");
        roles.insert(gone.to_owned(), stage.start_with(gone, &["--task", "serve"]));
        loop {
            let (status, answer) = ask(&stage, &ids);
            if status == 200 {
                assert_eq!(scored(&answer), expected);
                break;
            }
            assert!(status == 503 || status == 504, "{status} {answer}");
            assert!(since.elapsed() < PATIENCE, "{}", roles["party-0"].said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    for role in stage.roles() {
        assert!(!stage.path(&role).join("predictions.csv").exists());
    }
    stop(roles);
}

#[test]
fn ids_are_compared_as_they_were_aligned() {
    let mut stage = Stage::new(2, ROWS);
    stage.config("party-0").insert("service".into(), table("listen = \"127.0.0.1:0\"").into());
    stage.session.insert("alignment".into(), table("ignore_case = true").into());
    for (party, prefix, kept) in [("party-0", "Customer ", 0..ROWS - 10), ("party-1", "customer ", 10..ROWS)] {
        let file = stage.path(party).join("data.csv");
        let text = fs::read_to_string(&file).unwrap();
        let mut lines = text.lines();
        let header = lines.next().unwrap().to_owned();
        let mut lines: Vec<String> =
            lines.enumerate().filter(|(i, _)| kept.contains(i)).map(|(_, line)| format!("{prefix}{line}")).collect();
        if party == "party-1" {
            lines.reverse();
        }
        fs::write(file, format!("{header}\n{}\n", lines.join("\n"))).unwrap();
    }
    train_and_predict(&stage);
    stage.everywhere("rejoin_timeout_s", 25.0);
    let expected = predictions(&stage);
    assert_eq!(expected.len(), ROWS - 20);
    let roles = serving(&stage);
    let shouted: Vec<String> = expected.iter().map(|(id, _)| id.to_uppercase()).collect();
    let (_, answer) = ask(&stage, &shouted.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(scored(&answer).iter().map(|(_, score)| score).eq(expected.iter().map(|(_, score)| score)), "{answer}");
    stop(roles);
}

#[test]
fn a_service_that_cannot_be_is_refused() {
    let mut stage = trained("sharing");
    stage.everywhere("rejoin_timeout_s", 0.0);
    stage.config("party-0").insert("service".into(), table("listen = \"0.0.0.0:0\"").into());
    let ended = stage.start_with("party-0", &["--task", "serve"]).end();
    ended.expect(CONFIGURATION, &["0.0.0.0:0", "needs a service.token_file"]);
    stage.config("party-0").remove("service");
    let ended = stage.start_with("party-0", &["--task", "serve"]).end();
    ended.expect(CONFIGURATION, &["the label holder needs a [service] section"]);
    stage.session.insert("first_layer".into(), "beaver".into());
    let ended = stage.start_with("server", &["--task", "serve"]).end();
    ended.expect(CONFIGURATION, &["beaver"]);
}

/// The example, as a person would try it.
#[test]
fn a_simulation_can_be_asked() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    spnn_ok(&["simulate", "--epochs", "2", "--run-dir", arg(&run), "--log", "warn"]);
    let mut service = std::process::Command::new(kit::SPNN)
        .args(["serve", arg(&run), "--listen", "127.0.0.1:0"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut out = std::io::BufReader::new(service.stdout.take().unwrap());
    while !said.contains("/v1/openapi.json") {
        assert!(std::io::BufRead::read_line(&mut out, &mut said).unwrap() > 0, "{said}");
    }
    let url = said.split("POST http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let clinic = fs::read_to_string(repository("examples/breast_cancer/clinic.csv")).unwrap();
    let id = clinic.lines().nth(1).unwrap().split(',').next().unwrap();
    let body = format!("id\n{id}\n");
    let since = Instant::now();
    loop {
        let mut stream = TcpStream::connect(&url).unwrap();
        write!(
            stream,
            "POST /v1/scores HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: text/csv\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        if answer.starts_with("HTTP/1.1 200") {
            assert!(answer.contains(&format!("{id},0.")) && answer.contains(",scored"), "{answer}");
            break;
        }
        assert!(answer.starts_with("HTTP/1.1 503") && since.elapsed() < PATIENCE, "{answer}");
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(service.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(service.wait().unwrap().success());
}
