//! Contracts between roles as processes: who takes part under which, and what is refused in which words.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics")]

mod kit;

use kit::{CONFIGURATION, DONE, Ended, PEER_GONE, Stage, all_end, arg, repository, spnn, spnn_ok, table};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

const ROWS: usize = 60;

/// A stage whose session is a contract that every role requires.
fn stage() -> Stage {
    let mut stage = Stage::new(2, ROWS);
    stage.everywhere("join_timeout_s", 3.0);
    stage.everywhere("require_contract", true);
    let signatories: Vec<Value> = stage.roles().iter().map(|role| signatory(&stage, role)).collect();
    let mut contract = table(
        r#"
        purpose = "Tests"
        expires = "2999-12-31"
        outputs = ["label-holder"]
        accepted_leaks = ["server-learns-labels", "parties-learn-labels", "server-can-rebuild-features",
            "server-can-follow-records", "coordinator-learns-metrics", "collusion-of-server-and-all-other-parties"]
        label = "y"
        columns = { party-0 = ["a", "b", "c"], party-1 = ["a", "b", "c"] }
        "#,
    );
    contract.insert("signatories".into(), signatories.into());
    stage.session.insert("contract".into(), contract.into());
    stage
}

fn signatory(stage: &Stage, role: &str) -> Value {
    let shown = spnn_ok(&["pki", "show", arg(&stage.path(role).join(format!("{role}.pem")))]);
    let key = shown.out.split_whitespace().last().unwrap();
    table(&format!("role = \"{role}\"\norganisation = \"House of {role}\"\nkey = \"{key}\"")).into()
}

/// Writes a contract and has every role sign it.
fn sign(stage: &Stage, session: &Table, file: &Path) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, toml::to_string(session).unwrap()).unwrap();
    for role in stage.roles() {
        sign_as(stage, &role, file);
    }
}

fn sign_as(stage: &Stage, role: &str, file: &Path) {
    let of = |extension: &str| stage.path(role).join(format!("{role}.{extension}"));
    let (certificate, key, authority) = (of("pem"), of("key"), stage.path("pki/ca.pem"));
    let files = ["--certificate", arg(&certificate), "--key", arg(&key), "--authority", arg(&authority)];
    spnn_ok(&[&["contract", "sign", arg(file)][..], &files].concat());
}

fn signed(stage: &Stage) {
    sign(stage, &stage.session, &stage.path("session.toml"));
}

fn run(stage: &Stage) -> BTreeMap<String, Ended> {
    all_end(stage.start_all())
}

fn term<'a>(stage: &'a mut Stage, name: &str) -> &'a mut Value {
    &mut stage.session["contract"].as_table_mut().unwrap()[name]
}

#[test]
fn under_a_contract_that_all_have_signed_a_session_runs_and_needs_no_other_pins() {
    let mut stage = stage();
    for party in ["party-0", "party-1"] {
        stage.config(party).remove("peers");
    }
    signed(&stage);
    run(&stage).values().for_each(|e| e.expect(DONE, &[]));
    assert!(stage.path("party-0/predictions.csv").exists());
    let verified = spnn_ok(&verify(&stage, &[]).iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(verified.out.matches("good: ").count(), 4, "{}", verified.out);
}

#[test]
fn what_the_roles_of_a_contract_write_down_agrees_and_holds_no_data() {
    let stage = stage();
    signed(&stage);
    run(&stage).values().for_each(|e| e.expect(DONE, &[]));
    // A second session in the same directories goes on in the same logs.
    let mut predict = stage.start_all_but(&stage.roles().iter().map(String::as_str).collect::<Vec<_>>());
    predict.extend(stage.roles().iter().map(|role| stage.start_with(role, &["--task", "predict"])));
    all_end(predict).values().for_each(|e| e.expect(DONE, &[]));
    let logs: Vec<PathBuf> = stage.roles().iter().map(|role| stage.path(role).join("audit.jsonl")).collect();
    let authority = stage.path("pki/ca.pem");
    let mut words = vec!["audit", "verify", "--authority", arg(&authority)];
    words.extend(logs.iter().map(|log| arg(log)));
    let said = spnn_ok(&words);
    assert_eq!(said.out.matches("all signed").count(), 4, "{}", said.out);
    assert!(said.out.contains("is what they say they received"), "{}", said.out);

    let text = fs::read_to_string(stage.path("party-0/audit.jsonl")).unwrap();
    assert_eq!(text.matches("\"kind\":\"start\"").count(), 2);
    // Two epochs, each with the heads of the server and the other party; prediction has none.
    assert_eq!(text.matches("\"kind\":\"peer-head\"").count(), 4, "{text}");
    let coordinators = fs::read_to_string(stage.path("coordinator/audit.jsonl")).unwrap();
    assert_eq!(coordinators.matches("\"kind\":\"peer-head\"").count(), 6, "{coordinators}");
    for value in fs::read_to_string(stage.path("party-0/data.csv")).unwrap().lines().skip(1).flat_map(|l| l.split(','))
    {
        assert!(value.len() < 6 || !text.contains(value), "{value} is in the log");
    }
    let shown = spnn_ok(&["audit", "show", arg(&stage.path("server/audit.jsonl"))]).out;
    for words in ["opened h1: train 2, 3 times, 48 rows of 8", "start 2 is done", "party-1      first-layer-gradient"] {
        assert!(shown.contains(words), "'{words}' is not in\n{shown}");
    }
    let shown = spnn_ok(&["audit", "show", arg(&stage.path("party-0/audit.jsonl"))]).out;
    assert!(shown.contains("released predictions of 60 records, each at most 1 times"), "{shown}");
    let rows = spnn_ok(&["audit", "export", arg(&logs[0]), "--csv"]).out;
    let columns = rows.lines().next().unwrap().split(',').count();
    assert!(rows.lines().count() > 10 && rows.lines().all(|l| l.split(',').count() == columns), "{rows}");

    // One digit of what the server says it sent.
    let server = stage.path("server/audit.jsonl");
    let altered = fs::read_to_string(&server).unwrap().replacen("\"frames\":3", "\"frames\":2", 1);
    let line = altered.lines().position(|l| l.contains("\"frames\":2")).unwrap() + 1;
    fs::write(&server, altered).unwrap();
    let said = spnn(&words);
    assert_eq!(said.code, CONFIGURATION);
    assert!(said.out.contains(&format!("audit.jsonl, line {line}: was altered")), "{}", said.out);
}

#[test]
fn under_a_contract_nobody_goes_without_a_log() {
    let mut stage = stage();
    signed(&stage);
    stage.config("server").insert("audit".into(), false.into());
    run(&stage)["server"].expect(CONFIGURATION, &["audit = false", "every role keeps an audit log"]);
}

fn verify(stage: &Stage, more: &[&str]) -> Vec<String> {
    let (contract, authority) = (stage.path("session.toml"), stage.path("pki/ca.pem"));
    let words = ["contract", "verify", arg(&contract), "--authority", arg(&authority)];
    words.iter().chain(more).map(|word| (*word).to_owned()).collect()
}

#[test]
fn without_every_signature_nobody_takes_part() {
    let stage = stage();
    signed(&stage);
    fs::remove_file(stage.path("signatures/party-1.sig")).unwrap();
    for e in run(&stage).values() {
        e.expect(CONFIGURATION, &["party-1 (House of party-1) has not signed", "signatures/party-1.sig"]);
    }
    let said = spnn(&verify(&stage, &[]).iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(said.code, CONFIGURATION);
    assert!(said.out.contains("wrong: party-1 (House of party-1) has not signed"), "{}", said.out);
    assert_eq!(said.out.matches("good: ").count(), 3, "{}", said.out);
}

#[test]
fn a_value_that_was_changed_after_signing_is_found() {
    let mut stage = stage();
    signed(&stage);
    stage.session["train"]["epochs"] = 3.into();
    for e in run(&stage).values() {
        e.expect(CONFIGURATION, &["the signature of coordinator is refused", "it is for another text"]);
    }
}

#[test]
fn contracts_that_differ_in_one_value_are_named_with_both_values() {
    let mut stage = stage();
    signed(&stage);
    let mut other = stage.session.clone();
    other["contract"]["purpose"] = "Other tests".into();
    sign(&stage, &other, &stage.path("party-1/contract/session.toml"));
    stage.config("party-1").insert("session".into(), "contract/session.toml".into());
    let ended = run(&stage);
    let field = "contract.purpose is";
    ended["party-1"].expect(CONFIGURATION, &["coordinator", field, "\"Other tests\" here", "\"Tests\" there"]);
    ended["coordinator"].expect(CONFIGURATION, &["party-1", field, "\"Tests\" here", "\"Other tests\" there"]);
}

#[test]
fn a_contract_that_is_over_is_refused() {
    let mut stage = stage();
    signed(&stage);
    *term(&mut stage, "expires") = "2020-01-31".into();
    for e in run(&stage).values() {
        e.expect(CONFIGURATION, &["contract.expires = 2020-01-31", "the contract is over"]);
    }
}

#[test]
fn a_leak_that_was_not_accepted_is_named() {
    let mut stage = stage();
    term(&mut stage, "accepted_leaks").as_array_mut().unwrap().remove(1);
    for e in run(&stage).values() {
        e.expect(CONFIGURATION, &["contract.accepted_leaks", "parties-learn-labels"]);
    }
}

#[test]
fn a_party_computes_on_the_columns_it_has_signed_for() {
    let mut stage = stage();
    signed(&stage);
    stage.config("party-1")["data"].as_table_mut().unwrap().insert("columns".into(), vec!["a", "b"].into());
    let ended = run(&stage);
    ended["party-1"].expect(CONFIGURATION, &["contract.columns.party-1", "lacks columns that the contract names: c"]);
    for role in ["coordinator", "server", "party-0"] {
        ended[role].expect(CONFIGURATION, &["party-1"]);
    }
    stage.config("party-1")["data"].as_table_mut().unwrap().remove("columns");
    let file = stage.path("party-1/data.csv");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen("id,a,b,c", "id,a,b,income", 1)).unwrap();
    let ended = run(&stage);
    ended["party-1"].expect(CONFIGURATION, &["columns that the contract does not name: income", "names: c"]);
    assert!(!ended["coordinator"].said.contains("income"), "{}", ended["coordinator"].said);
}

#[test]
fn the_label_column_is_that_of_the_contract() {
    let mut stage = stage();
    *term(&mut stage, "label") = "diagnosis".into();
    signed(&stage);
    run(&stage)["party-0"].expect(CONFIGURATION, &["contract.label = \"diagnosis\"", "has \"y\""]);
}

#[test]
fn another_key_of_the_same_role_is_refused_at_its_owner_and_by_the_others() {
    let mut stage = stage();
    signed(&stage);
    let agreed = stage.session.clone();
    let before = stage.session["contract"]["signatories"][1]["key"].as_str().unwrap().to_owned();
    let other = stage.reissue("pki", "server", "server", 10);
    let ended = run(&stage);
    ended["server"].expect(CONFIGURATION, &["the key of server", &before, &other]);
    // With a contract of its own making, which names its new key: everybody else has pinned the key of theirs.
    let mut forged = agreed;
    forged["contract"]["signatories"].as_array_mut().unwrap()[1]["key"] = other.as_str().into();
    sign(&stage, &forged, &stage.path("server/contract/session.toml"));
    stage.config("server").insert("session".into(), "contract/session.toml".into());
    let ended = run(&stage);
    assert_ne!(ended["server"].code, DONE);
    ended["coordinator"].expect(PEER_GONE, &["server did not join"]);
    let said = &ended["coordinator"].said;
    assert!(said.contains(&format!("server has key {other}, which is not the pinned one")), "{said}");
}

#[test]
fn what_a_configuration_says_of_a_contract_must_hold() {
    let mut stage = stage();
    signed(&stage);
    // A pin that is configured as well, and differs.
    let wrong = format!("sha256:{}", "0".repeat(64));
    stage.config("party-0")["peers"].as_table_mut().unwrap().insert("party-1".into(), wrong.as_str().into());
    // A session that is no contract, where one is required.
    let mut plain = stage.session.clone();
    plain.remove("contract");
    fs::write(stage.path("party-1/session.toml"), toml::to_string(&plain).unwrap()).unwrap();
    stage.config("party-1").insert("session".into(), "session.toml".into());
    let ended = run(&stage);
    ended["party-0"].expect(CONFIGURATION, &["peers.party-1", &wrong, "in the contract"]);
    ended["party-1"].expect(CONFIGURATION, &["has no [contract]", "require_contract = true"]);
}

#[test]
fn a_contract_is_made_filled_in_shown_and_signed() {
    let stage = stage();
    let session = repository("examples/breast_cancer/session.toml");
    let out = stage.path("new/contract.toml");
    fs::create_dir(stage.path("new")).unwrap();
    let certificates: Vec<PathBuf> =
        stage.roles().iter().map(|role| stage.path(role).join(format!("{role}.pem"))).collect();
    let mut words = vec!["contract", "new", arg(&session), "--out", arg(&out), "--purpose", "Triage of \"lumps\""];
    words.extend(["--expires", "2999-12-31", "--columns", "party-0=a,b,c", "--columns", "party-1=a, b, c"]);
    words.extend(["--label", "y", "--accept", "server-learns-labels"]);
    let names = ["coordinator=Operator", "server=Operator", "party-0=Clinic", "party-1=Laboratory"];
    words.extend(names.iter().flat_map(|name| ["--organisation", name]));
    words.extend(certificates.iter().flat_map(|file| ["--certificate", arg(file)]));
    // What was not accepted by name is in the file, as a comment, and the file is no contract yet.
    let said = spnn_ok(&words);
    assert!(said.out.contains("not complete yet") && said.out.contains("parties-learn-labels"), "{}", said.out);
    assert_eq!(spnn(&["contract", "show", arg(&out)]).code, CONFIGURATION);
    let text = fs::read_to_string(&out).unwrap();
    assert!(text.contains("  \"server-learns-labels\",") && text.contains("  # \"parties-learn-labels\","), "{text}");
    assert!(text.starts_with(&fs::read_to_string(&session).unwrap()[..200]), "{text}");
    fs::write(&out, text.replace("# \"", "\"")).unwrap();

    let shown = spnn_ok(&["contract", "show", arg(&out)]).out;
    for words in
        ["Triage of \"lumps\"", "2999-12-31", "party-0 (Clinic): a, b, c, and the label y", "any number of times"]
    {
        assert!(shown.contains(words), "'{words}' is not in\n{shown}");
    }
    for role in stage.roles() {
        sign_as(&stage, &role, &out);
    }
    let authority = stage.path("pki/ca.pem");
    let verified = spnn_ok(&["contract", "verify", arg(&out), "--authority", arg(&authority)]).out;
    assert!(verified.contains("is signed by all"), "{verified}");
    // A contract is never written over.
    assert_ne!(spnn(&words).code, DONE);
    assert_eq!(fs::read_to_string(&out).unwrap(), text.replace("# \"", "\""));
    // An unknown leak, and one that this first layer does not have.
    for (leak, why) in [("nothing", "no such leak"), ("server-learns-each-product", "does not have the leak")] {
        let said = spnn(&["contract", "new", arg(&session), "--out", "never.toml", "--accept", leak]);
        assert_eq!(said.code, CONFIGURATION, "{}", said.err);
        assert!(said.err.contains(why), "{}", said.err);
    }
}

#[test]
fn a_party_signs_only_for_the_columns_it_selects() {
    let mut stage = stage();
    fs::write(stage.path("session.toml"), toml::to_string(&stage.session).unwrap()).unwrap();
    stage.config("party-1")["data"].as_table_mut().unwrap().insert("columns".into(), vec!["a"].into());
    let config = stage.path("party-1/config.toml");
    fs::write(&config, toml::to_string(&stage.configs["party-1"]).unwrap()).unwrap();
    let said = spnn(&["contract", "sign", "--config", arg(&config)]);
    assert_eq!(said.code, CONFIGURATION, "{}", said.err);
    assert!(said.err.contains("lacks columns that the contract names: b, c"), "{}", said.err);
    assert!(!stage.path("signatures/party-1.sig").exists());
    stage.config("party-1")["data"].as_table_mut().unwrap().remove("columns");
    fs::write(&config, toml::to_string(&stage.configs["party-1"]).unwrap()).unwrap();
    spnn_ok(&["contract", "sign", "--config", arg(&config)]);
    assert!(stage.path("signatures/party-1.sig").exists());
}

#[test]
fn a_record_is_scored_as_often_as_the_contract_lets_it_be() {
    let mut stage = stage();
    stage.session["contract"].as_table_mut().unwrap().insert("predictions_per_record_max".into(), 2.into());
    signed(&stage);
    run(&stage).values().for_each(|e| e.expect(DONE, &[]));
    let predict = || all_end(stage.roles().iter().map(|r| stage.start_with(r, &["--task", "predict"])).collect());
    for _ in 0..2 {
        predict().values().for_each(|e| e.expect(DONE, &[]));
    }
    // All parties count, and what they counted outlasts their processes.
    let third = predict();
    let refused = ["contract.predictions_per_record_max = 2", "has been scored 2 times"];
    third["party-0"].expect(CONFIGURATION, &refused);
    for party in ["party-0", "party-1"] {
        let released: Vec<_> = fs::read_dir(stage.path(party)).unwrap().map(|e| e.unwrap().path()).collect();
        let file = released.iter().find(|p| p.file_name().unwrap().to_str().unwrap().starts_with("released-")).unwrap();
        assert_eq!(fs::metadata(file).unwrap().len() as usize, 2 * 16 * ROWS, "{party}");
    }
    // Another party does not rely on the label holder's count.
    let released = fs::read_dir(stage.path("party-0")).unwrap().map(|e| e.unwrap().path());
    released.filter(|p| p.to_str().unwrap().contains("released-")).for_each(|p| fs::remove_file(p).unwrap());
    predict()["party-1"].expect(CONFIGURATION, &refused);
}

#[test]
fn what_an_alignment_sends_is_in_the_logs_and_they_agree() {
    let mut stage = stage();
    stage.session.insert("alignment".into(), table("trim = true").into());
    let leaks = term(&mut stage, "accepted_leaks").as_array_mut().unwrap();
    leaks.push("parties-learn-common-rows".into());
    signed(&stage);
    run(&stage).values().for_each(|e| e.expect(DONE, &[]));
    let logs: Vec<PathBuf> = stage.roles().iter().map(|role| stage.path(role).join("audit.jsonl")).collect();
    let authority = stage.path("pki/ca.pem");
    let mut words = vec!["audit", "verify", "--authority", arg(&authority)];
    words.extend(logs.iter().map(|log| arg(log)));
    spnn_ok(&words);
    let text = fs::read_to_string(stage.path("party-1/audit.jsonl")).unwrap();
    for kind in ["alignment-offer", "blinded-ids", "common-ids", "alignment-result"] {
        for direction in ["sent", "received"] {
            let flow = text.lines().find(|l| l.contains(&format!("\"{kind}\"")) && l.contains(direction));
            assert!(flow.is_some(), "no {kind} {direction} in\n{text}");
        }
    }
}
