//! `beaver` between real processes: what it sends is what its formula says, and the features are opened once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics")]

mod kit;

use kit::{DONE, Stage, all_end};
use serde_json::Value;
use std::fs;

const ROWS: u64 = 40;
const HEADER: u64 = 24;

fn number(report: &Value, path: &str) -> u64 {
    report.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} in {report:#}"))
}

#[test]
fn bytes_are_those_of_the_formula_with_any_number_of_parties() {
    for parties in [2, 3, 5] {
        let mut stage = Stage::new(parties, usize::try_from(ROWS).unwrap());
        stage.session.insert("first_layer".into(), "beaver".into());
        all_end(stage.start_all()).values().for_each(|e| e.expect(DONE, &[]));
        let text = fs::read_to_string(stage.path("coordinator/report.json")).unwrap();
        let report: Value = serde_json::from_str(&text).unwrap();

        let d: u64 = report["features"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).sum();
        let (h, size) = (number(&report, "/hidden_width"), number(&report, "/batch_size"));
        let (train, test) = (number(&report, "/rows/train"), number(&report, "/rows/test"));
        assert_eq!(train + test, ROWS);
        let (others, epochs) = (u64::from(parties) - 1, report["epochs"].as_array().unwrap().len() as u64);
        // To the server a share of H1, to every other party one of F = W − V.
        let pass = |rows: u64| {
            let batches = rows.div_ceil(size);
            batches * HEADER + 8 * rows * h + others * batches * (HEADER + 8 * d * h)
        };
        // Once for the whole run, to every other party a share of E = X − U; these few rows are one message.
        let opening = others * (HEADER + 8 * ROWS * d);
        assert_eq!(number(&report, "/first_layer_set_up_bytes"), opening);
        for party in 0..parties {
            let sent = number(&report, &format!("/bytes_sent_by_kind/party-{party}/first-layer"));
            assert_eq!(sent, opening + epochs * (pass(train) + pass(test)), "party {party} of {parties}");
            for epoch in 0..epochs {
                let sent = number(&report, &format!("/epochs/{epoch}/bytes_sent_by_kind/party-{party}/first-layer"));
                assert_eq!(sent, pass(train), "party {party} of {parties}, epoch {epoch}");
            }
        }
        // The dealer corrects one share of each product.
        for epoch in 0..epochs {
            let dealt = number(&report, &format!("/epochs/{epoch}/bytes_sent_by_kind/coordinator/first-layer"));
            assert_eq!(dealt, train.div_ceil(size) * HEADER + 8 * train * h, "{parties} parties, epoch {epoch}");
        }
    }
}
