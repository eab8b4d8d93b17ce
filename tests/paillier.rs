//! `paillier` between real processes: through the coordinator's relay and over direct links, with the bits of `sharing`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics")]

mod kit;

use kit::{CONFIGURATION, DONE, Stage, all_end, table};
use std::fs;
use std::net::UdpSocket;

/// Models of all roles after a run.
fn models(stage: &Stage) -> Vec<(String, Vec<u8>)> {
    let roles = stage.roles().into_iter().filter(|r| r != "coordinator");
    roles.map(|role| (role.clone(), fs::read(stage.path(&role).join("model.safetensors")).unwrap())).collect()
}

/// Runs the stage's session to its end; the coordinator's log.
fn run(stage: &Stage, first_layer: &str) -> String {
    let processes = stage.start_all();
    let ended = all_end(processes);
    ended.values().for_each(|e| e.expect(DONE, &[]));
    assert!(first_layer == "sharing" || ended["coordinator"].said.contains("all roles are ready"));
    ended["coordinator"].said.clone()
}

/// A stage, and the models of its session under `sharing`.
fn shared(parties: u16) -> (Stage, Vec<(String, Vec<u8>)>) {
    let mut stage = Stage::new(parties, 40);
    let relayed = run(&stage, "sharing");
    assert!(relayed.contains("relaying"));
    let models = models(&stage);
    stage.session.insert("first_layer".into(), "paillier".into());
    stage.session.insert("paillier".into(), table("key_bits = 2048\nallow_112_bit = true").into());
    (stage, models)
}

/// Both open the same integers, so every role ends with the same bits.
#[test]
fn the_same_bits_as_sharing_with_any_number_of_parties() {
    for parties in [2, 3, 5] {
        let (stage, sharing) = shared(parties);
        let relayed = run(&stage, "paillier");
        assert!(relayed.contains("relaying"));
        assert!(models(&stage) == sharing, "{parties} parties: paillier gives other weights than sharing");
    }
}

#[test]
fn the_same_bits_over_direct_links() {
    let (mut stage, sharing) = shared(3);
    // Party 0 listens for the other two, party 1 for party 2: nothing is left to relay.
    let port = || UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (zero, one) = (port(), port());
    stage.config("party-0").insert("listen".into(), zero.as_str().into());
    stage.config("party-0").insert("accept".into(), vec!["party-1", "party-2"].into());
    stage.config("party-1").insert("listen".into(), one.as_str().into());
    stage.config("party-1").insert("accept".into(), vec!["party-2"].into());
    stage.config("party-1").insert("dial".into(), table(&format!("party-0 = \"{zero}\"")).into());
    stage.config("party-2").insert("dial".into(), table(&format!("party-0 = \"{zero}\"\nparty-1 = \"{one}\"")).into());
    let direct = run(&stage, "paillier");
    assert!(!direct.contains("relaying"), "{direct}");
    assert!(models(&stage) == sharing, "paillier over direct links gives other weights than sharing");
}

#[test]
fn a_short_key_needs_to_be_allowed_by_name() {
    let mut stage = Stage::new(2, 20);
    stage.session.insert("first_layer".into(), "paillier".into());
    for (spec, word) in [("key_bits = 2048", "allow_112_bit"), ("key_bits = 1024\nallow_112_bit = true", "3072")] {
        stage.session.insert("paillier".into(), table(spec).into());
        let said = kit::spnn(&["coordinator", "--config", kit::arg(&coordinator(&stage))]);
        assert_eq!(said.code, CONFIGURATION, "{}", said.err);
        assert!(said.err.contains("paillier.key_bits") && said.err.contains(word), "{}", said.err);
    }
}

/// The coordinator's configuration and the session, as files.
fn coordinator(stage: &Stage) -> std::path::PathBuf {
    fs::write(stage.path("session.toml"), toml::to_string(&stage.session).unwrap()).unwrap();
    let file = stage.path("coordinator/config.toml");
    fs::write(&file, toml::to_string(&stage.configs["coordinator"]).unwrap()).unwrap();
    file
}
