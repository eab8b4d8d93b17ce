//! Parties whose files have different rows in different orders: aligned between real processes, then trained on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics")]

mod kit;

use kit::{DATA, DONE, Ended, Numbers, Stage, all_end, table};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

const ROWS: usize = 120;

/// Of each party's file every fifth row is gone, another one at each; the others are shuffled.
fn unaligned(parties: u16) -> Stage {
    let mut stage = Stage::new(parties, ROWS);
    stage.session.insert("alignment".into(), table("ignore_case = true").into());
    for (party, name) in stage.parties().into_iter().enumerate() {
        let file = stage.path(&name).join("data.csv");
        let text = fs::read_to_string(&file).unwrap();
        let (header, rows) = text.split_once('\n').unwrap();
        let mut rows: Vec<&str> = rows.lines().enumerate().filter(|(i, _)| i % 5 != party).map(|(_, r)| r).collect();
        let mut numbers = Numbers(party as u64);
        rows.sort_by_cached_key(|_| numbers.next());
        let rows = rows.join("\n");
        let rows = if party == 0 { rows } else { rows.replace('R', " r") };
        fs::write(&file, format!("{header}\n{rows}\n")).unwrap();
    }
    stage
}

fn ids(file: std::path::PathBuf) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    text.lines().skip(1).map(|l| l.split(',').next().unwrap().to_uppercase()).collect()
}

fn expected(parties: usize) -> BTreeSet<String> {
    (0..ROWS).filter(|i| i % 5 >= parties).map(|i| format!("R{i:05}")).collect()
}

fn done(ended: BTreeMap<String, Ended>) {
    ended.values().for_each(|e| e.expect(DONE, &[]));
}

#[test]
fn unaligned_files_are_trained_on_as_they_are() {
    for parties in [2, 3] {
        let stage = unaligned(parties);
        let started = stage.roles().iter().map(|r| stage.start_with(r, &["--task", "align"])).collect();
        done(all_end(started));
        let expected = expected(parties.into());
        let orders: Vec<Vec<String>> =
            stage.parties().iter().map(|p| ids(stage.path(p).join("common_ids.csv"))).collect();
        assert!(orders.windows(2).all(|pair| pair[0] == pair[1]), "the parties have different orders");
        assert_eq!(orders[0].iter().cloned().collect::<BTreeSet<_>>(), expected);

        let ended = all_end(stage.start_all());
        let said = &ended["party-0"].said;
        assert!(said.contains("the rows were aligned before"), "{said}");
        done(ended);
        let report = fs::read_to_string(stage.path("coordinator/report.json")).unwrap();
        let report: Value = serde_json::from_str(&report).unwrap();
        let rows = report["rows"]["train"].as_u64().unwrap() + report["rows"]["test"].as_u64().unwrap();
        assert_eq!(rows, expected.len() as u64);
        let scored = ids(stage.path("party-0/predictions.csv"));
        assert!(!scored.is_empty() && scored.iter().all(|id| expected.contains(id)));
        // Neither coordinator nor server has anything of it.
        for role in ["coordinator", "server"] {
            assert!(!stage.path(role).join("alignment").exists());
        }
    }
}

#[test]
fn a_party_with_an_id_twice_names_file_and_rows() {
    let stage = unaligned(2);
    let file = stage.path("party-1").join("data.csv");
    let text = fs::read_to_string(&file).unwrap();
    let again = text.lines().nth(3).unwrap().to_uppercase();
    fs::write(&file, format!("{text}{again}\n")).unwrap();
    let ended = all_end(stage.start_all());
    ended["party-1"].expect(DATA, &["data.csv", "rows 3 and 97 have the same id"]);
}

#[test]
fn nothing_in_common_is_said_at_every_party() {
    let stage = unaligned(2);
    let file = stage.path("party-1").join("data.csv");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace(" r", "customer ")).unwrap();
    let ended = all_end(stage.start_all());
    for party in stage.parties() {
        ended[&party].expect(DATA, &["no id is common to all parties", "[alignment]"]);
    }
}
