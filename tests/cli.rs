//! The roles as processes with real certificates: what is refused, by whom, in which words, and with which exit code.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics")]

mod kit;

use kit::{
    CONFIGURATION, DATA, DONE, Ended, NETWORK, PEER_GONE, PROTOCOL, Process, Stage, all_end, arg, repository, spnn,
    spnn_ok, table,
};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

const ROWS: usize = 60;

/// A stage on which nobody waits long for a role that does not come.
fn stage() -> Stage {
    let mut stage = Stage::new(2, ROWS);
    stage.everywhere("join_timeout_s", 2.0);
    stage
}

/// Runs all roles to their ends.
fn run(stage: &Stage) -> BTreeMap<String, Ended> {
    all_end(stage.start_all())
}

/// Every role but `but` ended because someone else was gone.
fn others_are_left(ended: &BTreeMap<String, Ended>, but: &[&str]) {
    for e in ended.values().filter(|e| !but.contains(&e.role.as_str())) {
        e.expect(PEER_GONE, &[]);
    }
}

#[test]
fn an_honest_session_ends_well() {
    let stage = stage();
    let ended = run(&stage);
    ended.values().for_each(|e| e.expect(DONE, &[]));
    assert!(stage.path("party-0/predictions.csv").exists());
    assert!(!stage.path("party-1/predictions.csv").exists());
    let again = run(&stage);
    again.values().for_each(|e| e.expect(DONE, &[]));
    assert_eq!(fs::read_to_string(stage.path("server/incarnation")).unwrap().trim(), "2");
}

#[test]
fn a_party_of_another_authority_is_refused() {
    // Under another name, and under the same one.
    for (name, reason) in [("Another", "unknown authority"), ("SPNN authority", "signature does not verify")] {
        let stage = stage();
        spnn_ok(&["pki", "init", "--dir", arg(&stage.path("other-pki")), "--name", name]);
        stage.reissue("other-pki", "party-1", "party-1", 10);
        let ended = run(&stage);
        ended["party-1"].expect(NETWORK, &["coordinator", "certificate", reason]);
        ended["coordinator"].expect(PEER_GONE, &["party-1 did not join"]);
        others_are_left(&ended, &["party-1"]);
    }
}

#[test]
fn an_authority_of_their_own_is_no_use_to_impostors() {
    // The party trusts the impostor's authority, but the coordinator it reaches is the true one.
    let mut stage = stage();
    spnn_ok(&["pki", "init", "--dir", arg(&stage.path("other-pki"))]);
    stage.reissue("other-pki", "party-1", "party-1", 10);
    stage.config("party-1").insert("authority".into(), "../other-pki/ca.pem".into());
    let ended = run(&stage);
    ended["party-1"].expect(NETWORK, &["cannot connect to coordinator", "certificate"]);
    others_are_left(&ended, &["party-1"]);
}

#[test]
fn a_role_whose_certificate_has_expired_says_at_its_start_what_to_do() {
    for role in ["party-1", "server", "coordinator"] {
        let stage = stage();
        stage.reissue("pki", role, role, 0);
        let said = stage.start(role).end();
        said.expect(CONFIGURATION, &[&format!("{role}.pem"), "expired on", "spnn pki renew", "spnn pki issue"]);
    }
    // A renewed one is welcome, and the fingerprints that others have pinned are still right.
    let stage = stage();
    stage.reissue("pki", "party-1", "party-1", 0);
    let pin = stage.fingerprint("party-1");
    stage.renew("party-1", 10);
    assert_eq!(stage.fingerprint("party-1"), pin);
    let said = stage.start("party-1").end();
    said.expect(NETWORK, &["coordinator"]);
    assert!(said.said.contains("expires on"), "no warning of the end that is near:\n{}", said.said);
}

#[test]
fn a_revoked_certificate_is_refused() {
    let mut stage = stage();
    let revoke = |stage: &Stage, role: &str| {
        let file = stage.path(role).join(format!("{role}.pem"));
        spnn_ok(&["pki", "revoke", "--dir", arg(&stage.path("pki")), arg(&file)]);
    };
    // A list that names others harms nobody.
    let other = stage.path("former");
    spnn_ok(&["pki", "issue", "--role", "party-9", "--dir", arg(&stage.path("pki")), "--out", arg(&other)]);
    spnn_ok(&["pki", "revoke", "--dir", arg(&stage.path("pki")), arg(&other.join("party-9.pem"))]);
    stage.everywhere("revoked", "../pki/crl.pem");
    run(&stage).values().for_each(|e| e.expect(DONE, &[]));
    revoke(&stage, "party-1");
    let ended = run(&stage);
    ended["party-1"].expect(NETWORK, &["coordinator", "revoked"]);
    assert!(ended["coordinator"].said.contains("Revoked"), "{}", ended["coordinator"].said);
    others_are_left(&ended, &["party-1"]);
    // The other way round: a party refuses a server whose certificate is revoked; the first list is still in force.
    revoke(&stage, "server");
    stage.config("coordinator").remove("revoked");
    let ended = run(&stage);
    // Both dial it at once: the first to be told ends the session, and may be ahead of the other.
    let refuses = |role: &&str| ended[*role].code == NETWORK;
    let refusing: Vec<&str> = ["party-0", "party-1"].into_iter().filter(refuses).collect();
    assert!(!refusing.is_empty(), "{}", ended["server"].all_said);
    for &role in &refusing {
        ended[role].expect(NETWORK, &["server", "Revoked"]);
    }
    others_are_left(&ended, &refusing);
}

#[test]
fn a_certificate_of_another_role_is_refused_at_its_owner() {
    let mut stage = stage();
    let party = stage.config("party-1");
    party.insert("certificate".into(), "../server/server.pem".into());
    party.insert("key".into(), "../server/server.key".into());
    let ended = run(&stage);
    ended["party-1"].expect(CONFIGURATION, &["server.pem", "this certificate is that of server"]);
    others_are_left(&ended, &["party-1"]);
}

#[test]
fn a_second_process_with_the_same_certificate_is_turned_away_and_harms_nobody() {
    let mut stage = stage();
    stage.everywhere("join_timeout_s", 20.0);
    let mut processes = stage.start_all_but(&["party-1"]);
    processes[0].until(|said| said.contains("party-0 has joined"));
    // As a process of party 1 would be that was given party 0's certificate.
    stage.configs.insert("party-0-copy".into(), stage.configs["party-0"].clone());
    fs::create_dir(stage.path("party-0-copy")).unwrap();
    for file in ["party-0.pem", "party-0.key", "data.csv"] {
        fs::copy(stage.path("party-0").join(file), stage.path("party-0-copy").join(file)).unwrap();
    }
    let copy = stage.start("party-0-copy").end();
    copy.expect(NETWORK, &["coordinator", "connected already"]);
    assert!(processes[0].said().contains("party-0 is connected already"), "{}", processes[0].said());
    processes.push(stage.start("party-1"));
    all_end(processes).values().for_each(|e| e.expect(DONE, &[]));
}

#[test]
fn a_role_that_does_not_take_part_is_turned_away() {
    let mut stage = stage();
    stage.everywhere("join_timeout_s", 20.0);
    let mut processes = stage.start_all_but(&["party-1"]);
    let outsider = stage.path("party-2");
    fs::create_dir(&outsider).unwrap();
    stage.reissue("pki", "party-2", "party-2", 10);
    // It believes in a session of three.
    let mut session = stage.session.clone();
    session["data"]["parties"].as_array_mut().unwrap().push(table("label_holder = false").into());
    fs::write(outsider.join("session.toml"), toml::to_string(&session).unwrap()).unwrap();
    fs::copy(stage.path("party-1/data.csv"), outsider.join("data.csv")).unwrap();
    let mut config = stage.configs["party-1"].clone();
    config.insert("certificate".into(), "party-2.pem".into());
    config.insert("key".into(), "party-2.key".into());
    config.insert("session".into(), "session.toml".into());
    let pin = config["peers"]["party-0"].clone();
    config["peers"].as_table_mut().unwrap().insert("party-1".into(), pin);
    stage.configs.insert("party-2".into(), config);
    stage.start("party-2").end().expect(NETWORK, &["coordinator", "turned away"]);
    processes[0].until(|said| said.contains("party-2 does not take part here"));
    processes.push(stage.start("party-1"));
    all_end(processes).values().for_each(|e| e.expect(DONE, &[]));
}

#[test]
fn a_session_that_differs_is_named_with_both_values() {
    let mut stage = stage();
    let mut session = stage.session.clone();
    session["train"]["optimizer"]["learning_rate"] = 0.25.into();
    fs::write(stage.path("party-1/session.toml"), toml::to_string(&session).unwrap()).unwrap();
    stage.config("party-1").insert("session".into(), "session.toml".into());
    let ended = run(&stage);
    let difference = "train.optimizer.learning_rate is";
    ended["party-1"].expect(CONFIGURATION, &["coordinator", difference, "0.25 here", "0.1 there"]);
    ended["coordinator"].expect(CONFIGURATION, &["party-1", difference, "0.1 here", "0.25 there"]);
    for role in ["server", "party-0"] {
        ended[role].expect(CONFIGURATION, &["configurations differ at party-1"]);
    }
}

#[test]
fn another_task_is_refused() {
    let stage = stage();
    run(&stage).values().for_each(|e| e.expect(DONE, &[]));
    let mut processes = stage.start_all_but(&["party-1"]);
    processes.push(stage.start_with("party-1", &["--task", "predict"]));
    let ended = all_end(processes);
    ended["party-1"].expect(CONFIGURATION, &["coordinator is here to train, this role to predict"]);
    ended["coordinator"].expect(CONFIGURATION, &["party-1 is here to predict, this role to train"]);
}

#[test]
fn rows_in_another_order_are_refused() {
    let stage = stage();
    let file = stage.path("party-1/data.csv");
    let text = fs::read_to_string(&file).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.swap(7, 8);
    fs::write(&file, lines.join("\n") + "\n").unwrap();
    let ended = run(&stage);
    for (role, peer) in [("party-0", "party-1"), ("party-1", "party-0")] {
        ended[role].expect(DATA, &["the ids of", peer, "align"]);
    }
    others_are_left(&ended, &["party-0", "party-1"]);
    for e in ended.values() {
        assert!(!e.said.contains("R0000"), "{} shows an id:\n{}", e.role, e.said);
    }
}

#[test]
fn another_number_of_rows_is_refused() {
    let stage = stage();
    let file = stage.path("party-1/data.csv");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.lines().take(ROWS).collect::<Vec<_>>().join("\n")).unwrap();
    let ended = run(&stage);
    ended["party-0"].expect(DATA, &["party-1 has 59 rows, party-0 has 60"]);
    ended["party-1"].expect(DATA, &["party-0 has 60 rows, party-1 has 59"]);
    others_are_left(&ended, &["party-0", "party-1"]);
}

#[test]
fn a_bad_value_is_named_to_its_owner_only() {
    let stage = stage();
    let file = stage.path("party-1/data.csv");
    let text = fs::read_to_string(&file).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines[0] = "id,a,income_secret,c".into();
    lines[41] = "R00040,0.5,NaN,0.5".into();
    fs::write(&file, lines.join("\n") + "\n").unwrap();
    let ended = run(&stage);
    ended["party-1"].expect(DATA, &["data.csv", "line 42", "income_secret"]);
    others_are_left(&ended, &["party-1"]);
    ended["coordinator"].expect(PEER_GONE, &["its data were refused at party-1"]);
    for e in ended.values().filter(|e| e.role != "party-1") {
        for secret in ["NaN", "income_secret", "R00040", "line 42"] {
            assert!(!e.said.contains(secret), "{} shows {secret}:\n{}", e.role, e.said);
        }
    }
}

#[test]
fn a_missing_file_is_named() {
    let stage = stage();
    fs::remove_file(stage.path("party-1/data.csv")).unwrap();
    let ended = run(&stage);
    ended["party-1"].expect(DATA, &["data.csv"]);
    others_are_left(&ended, &["party-1"]);
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let stage = stage();
    let key = stage.path("party-1/party-1.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let ended = run(&stage);
    ended["party-1"].expect(CONFIGURATION, &["party-1.key", "mode 644", "chmod 600"]);
    others_are_left(&ended, &["party-1"]);
}

#[test]
fn plain_is_refused_unless_asked_for() {
    let mut stage = stage();
    stage.session.insert("first_layer".into(), "plain".into());
    stage.everywhere("allow_unprotected", true);
    stage.config("party-1").remove("allow_unprotected");
    let ended = run(&stage);
    ended["party-1"].expect(CONFIGURATION, &["plain", "protects nothing", "allow_unprotected"]);
    others_are_left(&ended, &["party-1"]);
    stage.config("party-1").insert("allow_unprotected".into(), true.into());
    run(&stage).values().for_each(|e| e.expect(DONE, &[]));
}

#[test]
fn a_key_that_is_not_the_pinned_one_is_refused() {
    let mut stage = stage();
    // The authority itself could make a second certificate for party 1; the pin is what stops it.
    let pin = stage.configs["party-0"]["peers"]["party-1"].clone();
    let other = stage.reissue("pki", "party-1", "party-1", 10);
    assert_ne!(pin.as_str(), Some(other.as_str()));
    let ended = run(&stage);
    ended["party-0"].expect(PROTOCOL, &["party-1", &other, pin.as_str().unwrap()]);
    others_are_left(&ended, &["party-0"]);
    // With the right pin the same certificate is welcome.
    stage.config("party-0")["peers"].as_table_mut().unwrap().insert("party-1".into(), other.into());
    run(&stage).values().for_each(|e| e.expect(DONE, &[]));
}

#[test]
fn a_party_without_a_pin_for_another_one_does_not_start() {
    let mut stage = stage();
    stage.config("party-0").insert("peers".into(), table("").into());
    let ended = run(&stage);
    ended["party-0"].expect(CONFIGURATION, &["config.toml", "peers.party-1"]);
    others_are_left(&ended, &["party-0"]);
}

/// A stage that would train for hours.
fn long_stage() -> Stage {
    let mut stage = stage();
    stage.session["train"]["epochs"] = 1_000_000.into();
    stage.everywhere("join_timeout_s", 20.0);
    stage.everywhere("transport", table("idle_timeout_s = 2.0"));
    stage
}

/// Starts all roles and waits until they train.
fn start_training(stage: &Stage) -> Vec<Process> {
    let mut processes = stage.start_all();
    processes[0].until(|said| said.contains("epoch 2/"));
    processes
}

#[test]
fn a_party_that_dies_is_named() {
    let stage = long_stage();
    let mut processes = start_training(&stage);
    processes.pop().unwrap().kill();
    let ended = all_end(processes);
    for role in ["coordinator", "server", "party-0"] {
        ended[role].expect(PEER_GONE, &["party-1"]);
    }
}

#[test]
fn a_server_that_dies_is_named() {
    let stage = long_stage();
    let mut processes = start_training(&stage);
    processes.remove(1).kill();
    let ended = all_end(processes);
    for role in ["coordinator", "party-0", "party-1"] {
        ended[role].expect(PEER_GONE, &["server"]);
    }
}

#[test]
fn a_coordinator_that_dies_is_named() {
    let stage = long_stage();
    let mut processes = start_training(&stage);
    processes.remove(0).kill();
    let ended = all_end(processes);
    for role in ["server", "party-0", "party-1"] {
        ended[role].expect(PEER_GONE, &["coordinator"]);
    }
}

#[test]
fn every_help_ends_with_an_example() {
    let commands: [&[&str]; 32] = [
        &[],
        &["simulate"],
        &["pooled"],
        &["coordinator"],
        &["server"],
        &["party"],
        &["health"],
        &["pki", "init"],
        &["pki", "request"],
        &["pki", "renew"],
        &["pki", "passphrase"],
        &["pki", "issue"],
        &["pki", "revoke"],
        &["pki", "show"],
        &["audit", "verify"],
        &["audit", "show"],
        &["audit", "export"],
        &["contract", "new"],
        &["contract", "sign"],
        &["contract", "verify"],
        &["contract", "show"],
        &["evaluate"],
        &["experiment"],
        &["inspect"],
        &["predict"],
        &["align"],
        &["serve"],
        &["encrypted", "train"],
        &["encrypted", "show"],
        &["encrypted", "serve"],
        &["encrypted", "query"],
        &["encrypted", "simulate"],
    ];
    for command in commands {
        let said = spnn_ok(&[command, &["--help"]].concat());
        let example = said.out.rfind("Example").unwrap_or_else(|| panic!("{command:?}:\n{}", said.out));
        let tail = &said.out[example..];
        assert!(tail.contains(&format!("spnn {}", command.join(" "))), "{command:?}:\n{tail}");
        assert!(!tail.contains("--help"), "options after the example of {command:?}:\n{tail}");
    }
    assert!(spnn_ok(&["--version"]).out.starts_with("spnn "));
    // No subcommand of the list of `spnn --help` is missing above.
    let listed = spnn_ok(&["--help"]).out;
    let listed = listed.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = listed.lines().filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    for name in names.filter_map(|l| l.split_whitespace().next()).filter(|n| *n != "help") {
        assert!(commands.iter().any(|c| c.first() == Some(&name)), "{name}");
    }
}

#[test]
fn files_that_are_wrong_are_named_with_line_and_column() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("session.toml");
    let shipped = fs::read_to_string(repository("examples/breast_cancer/session.toml")).unwrap();
    fs::write(&file, shipped.replace("seed = 7", "sede = 7")).unwrap();
    let said = spnn(&["simulate", arg(&file), "--run-dir", arg(&directory.path().join("run"))]);
    assert_eq!(said.code, CONFIGURATION, "{}", said.err);
    let line = 1 + shipped.lines().position(|l| l.starts_with("seed = 7")).unwrap();
    for word in ["session.toml", "sede", &format!("line {line}, column 1")] {
        assert!(said.err.contains(word), "{word}: {}", said.err);
    }
    fs::write(&file, shipped.replace("batch_size = 32", "batch_size = 0")).unwrap();
    let said = spnn(&["simulate", arg(&file), "--run-dir", arg(&directory.path().join("run"))]);
    assert_eq!(said.code, CONFIGURATION, "{}", said.err);
    assert!(said.err.contains("train.batch_size = 0"), "{}", said.err);

    let mut stage = stage();
    stage.config("party-0").insert("jion_timeout_s".into(), 3.0.into());
    let e = stage.start("party-0").end();
    e.expect(CONFIGURATION, &["config.toml", "jion_timeout_s", "line "]);
    let said = spnn(&["server", "--config", "/nonexistent/server.toml"]);
    assert_eq!(said.code, CONFIGURATION, "{}", said.err);
    assert!(said.err.contains("/nonexistent/server.toml"), "{}", said.err);
}

#[test]
fn the_shipped_example_trains() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let said = spnn_ok(&["simulate", "--run-dir", arg(&run)]);
    assert!(said.out.contains("test: AUC 0.9"), "{}", said.out);
    let text = fs::read_to_string(run.join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["spnn"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["session"].as_str().unwrap().len(), 64);
    assert_eq!(report["first_layer"], "sharing");
    assert_eq!(report["parties"], 2);
    assert_eq!((report["rows"]["train"].as_u64(), report["rows"]["test"].as_u64()), (Some(455), Some(114)));
    let epochs = report["epochs"].as_array().unwrap();
    assert_eq!(epochs.len(), 30);
    for (i, epoch) in epochs.iter().enumerate() {
        assert_eq!(epoch["epoch"], i + 1);
        assert!(epoch["seconds"].as_f64().unwrap() > 0.0);
        assert!(epoch["train_loss"].as_f64().unwrap() > 0.0);
        for role in ["server", "party-0", "party-1"] {
            assert!(epoch["bytes_sent"][role].as_u64().unwrap() > 0, "{role}");
        }
    }
    assert!(epochs[29]["train_loss"].as_f64() < epochs[0]["train_loss"].as_f64());
    assert!(report["test"]["auc"].as_f64().unwrap() >= 0.98, "{}", report["test"]);
    assert!(report["test"]["loss"].as_f64().is_some() && report["test"]["accuracy"].as_f64().is_some());
    assert!(report["wall_seconds"].as_f64().unwrap() > 0.0);
    for role in ["coordinator", "server", "party-0", "party-1"] {
        assert!(report["cpu_seconds"][role].as_f64().unwrap() > 0.0, "{role}");
        assert!(report["peak_rss_bytes"][role].as_u64().unwrap() > 1 << 20, "{role}");
        assert!(!fs::read_to_string(run.join(role).join("train.log")).unwrap().is_empty(), "{role}");
        assert_eq!(run.join(role).join("predictions.csv").exists(), role == "party-0", "{role}");
        assert_eq!(run.join(role).join("model.safetensors").exists(), role != "coordinator", "{role}");
    }
    let predictions = fs::read_to_string(run.join("party-0/predictions.csv")).unwrap();
    assert_eq!(predictions.lines().count(), 115);
    assert!(fs::read_to_string(run.join("report.html")).unwrap().contains("</html>"));

    let again = spnn(&["simulate", "--run-dir", arg(&run)]);
    assert_eq!(again.code, CONFIGURATION, "{}", again.err);
    assert!(again.err.contains("holds a run already"), "{}", again.err);
    assert_eq!(fs::read_to_string(run.join("report.json")).unwrap(), text);
}
