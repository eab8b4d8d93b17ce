use super::chart::Axis;
use super::*;
use serde_json::{Value, json};

/// A session with two parties whose byte counts are those of `first_layer`, in a ring of 64 bits.
fn sample(task: Task, epochs: u32, train: u32, test: u32) -> Value {
    let (rows, batches) = if train > 0 { (train, train.div_ceil(512)) } else { (test, test.div_ceil(512)) };
    let message = |row_bytes: u32| rows * row_bytes + batches * 24;
    let epoch = |epoch: u32| {
        let trains = task == Task::Train;
        let loss = 0.4 + 0.3 / f64::from(epoch);
        let metrics = json!({"loss": loss + 0.01, "auc": 0.8 - 0.1 / f64::from(epoch), "accuracy": 0.81});
        let party = json!({"first-layer": message(64)});
        let server = json!({"hidden-output": message(32), "first-layer-gradient": 2 * message(32)});
        json!({
            "epoch": epoch,
            "seconds": 0.15,
            "train_loss": trains.then_some(loss),
            "test": (test > 0 && task != Task::Predict).then_some(metrics),
            "bytes_sent": {"party-0": message(64), "party-1": message(64), "server": 3 * message(32)},
            "bytes_sent_by_kind": {"party-0": party, "party-1": party, "server": server},
            "wire_bytes_sent": {"party-0": message(65), "party-1": message(65), "server": 3 * message(33)},
            "cpu_seconds": {"party-0": 0.05, "party-1": 0.06, "server": 0.04},
        })
    };
    let epochs: Vec<_> = (1..=epochs).map(epoch).collect();
    json!({
        "spnn": "0.1.0",
        "session": "00ff",
        "name": "credit",
        "task": task,
        "incarnation": 1,
        "first_layer": "sharing",
        "ring_bits": 64,
        "first_layer_bytes_per_row": 64.046_875,
        "first_layer_set_up_bytes": 0,
        "bytes_sent_by_kind": { "party-0": { "first-layer": 1_540_000 } },
        "parties": 2,
        "features": [13, 10],
        "hidden_width": 8,
        "batch_size": 512,
        "rows": {"train": train, "test": test},
        "test": epochs.last().map_or(Value::Null, |e| e["test"].clone()),
        "epochs": epochs,
        "wall_seconds": 6.4,
        "cpu_seconds": {"coordinator": 0.1, "party-0": 1.9, "party-1": 2.0, "server": 2.3},
        "peak_rss_bytes": {"coordinator": 9_300_000, "party-0": 31_000_000, "party-1": 29_000_000, "server": 14_000_000},
    })
}

fn page(record: Value) -> String {
    html(&serde_json::from_value(record).unwrap())
}

/// Every element that is opened is closed, in order.
pub(crate) fn assert_well_formed(page: &str) {
    let mut open = Vec::new();
    for tag in page.split('<').skip(2).map(|t| t.split_once('>').unwrap().0) {
        let name = tag.split_whitespace().next().unwrap();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "</{name}>"),
            None if tag.ends_with('/') || name == "meta" => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn says_what_was_learned_and_what_it_cost() {
    let page = page(sample(Task::Train, 30, 24_000, 6_000));
    assert_well_formed(&page);
    assert!(page.contains("Trained on 24,000 rows of 2 parties under <code>sharing</code>; test AUC 0.797."));
    assert_eq!(page.matches("<figure").count(), 6);
    assert_eq!(page.matches("<circle").count(), 30 * 4);
    assert!(page.contains("only the sum H1"));
    assert!(page.contains("the sign of the gradient"));
    assert!(page.contains("Server and one party together can open the other party's product."));
    assert!(page.contains("expected <b>64.05 B</b>, measured <b>64.05 B</b>"));
    assert!(page.contains("expected <b>32.05 B</b>, measured <b>32.05 B</b>"));
}

#[test]
fn loads_and_runs_nothing() {
    let page = page(sample(Task::Train, 3, 24_000, 6_000));
    for word in ["<script", "<link", "<img", "<a ", "@import", "url(", "http:", "https:"] {
        assert!(!page.contains(word), "{word}");
    }
}

#[test]
fn text_from_the_record_is_escaped() {
    let evil = r#"</title><script>alert('1')</script>&"x""#;
    let mut record = sample(Task::Train, 1, 100, 0);
    record["name"] = evil.into();
    record["session"] = evil.into();
    record["spnn"] = evil.into();
    record["epochs"][0]["bytes_sent_by_kind"]["server"][evil] = 7.into();
    let page = page(record);
    assert_well_formed(&page);
    assert!(!page.contains("<script"));
    assert_eq!(escape(evil), "&lt;/title&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&quot;x&quot;");
}

#[test]
fn one_epoch_is_one_point() {
    let page = page(sample(Task::Train, 1, 24_000, 6_000));
    assert_well_formed(&page);
    assert_eq!(page.matches("<circle").count(), 4);
    assert_eq!(page.matches("cx=\"197.0\"").count(), 4, "in the middle");
    assert!(!page.contains("NaN") && !page.contains("inf"));
}

#[test]
fn without_a_test_set_nothing_is_said_of_one() {
    let page = page(sample(Task::Train, 5, 24_000, 0));
    assert_well_formed(&page);
    assert!(page.contains("no rows were kept for testing"));
    assert!(!page.contains("Test AUC") && !page.contains("Test loss"));
    assert_eq!(page.matches("<circle").count(), 5);
}

#[test]
fn prediction_has_costs_and_no_curves() {
    let page = page(sample(Task::Predict, 1, 0, 6_000));
    assert_well_formed(&page);
    assert!(page.contains("Predicted 6,000 rows of 2 parties"));
    assert!(page.contains("the scores are with the label holder"));
    assert!(!page.contains("<polyline") && !page.contains("Epochs") && !page.contains("per epoch"));
    assert!(!page.contains("grad_h1") && page.contains("H1 is linear in the features"));
}

#[test]
fn what_was_scored_on_ciphertexts_is_not_said_to_be_open() {
    let mut record = sample(Task::Predict, 1, 0, 6_000);
    record["inference"] = "encrypted".into();
    let page = page(record);
    assert_well_formed(&page);
    assert!(page.contains("Predicted 6,000 rows of 2 parties on ciphertexts; "));
    assert!(page.contains("nothing; that rows were scored") && !page.contains("only the sum H1"));
    assert!(page.contains("Server and label holder together can open H1"));
    assert!(!page.contains("Bytes per row and party"));

    // The same session in training opens H1 as any other.
    let mut record = sample(Task::Train, 1, 100, 0);
    record["inference"] = "encrypted".into();
    let page = html(&serde_json::from_value(record).unwrap());
    assert!(page.contains("only the sum H1") && page.contains("H1 is linear in the features"));
}

#[test]
fn evaluation_has_metrics_and_no_curves() {
    let page = page(sample(Task::Evaluate, 1, 0, 6_000));
    assert_well_formed(&page);
    assert!(page.contains("Evaluated on 6,000 rows of 2 parties under <code>sharing</code>; test AUC 0.700."));
    assert!(!page.contains("<polyline"));
}

#[test]
fn plain_is_said_to_protect_nothing() {
    let mut record = sample(Task::Train, 2, 24_000, 6_000);
    record["first_layer"] = "plain".into();
    let page = page(record);
    assert!(page.contains("protects nothing: the server saw every party's product"));
    assert!(page.contains("each party's product X"));
}

#[test]
fn many_epochs_stay_a_small_page() {
    let page = page(sample(Task::Train, 1000, 24_000, 6_000));
    assert_well_formed(&page);
    assert!(page.len() < 400_000, "{} bytes", page.len());
    assert!(page.contains("50 of 1,000 epochs, evenly chosen"));
    assert!(page.contains("<th scope=\"row\">1</th>") && page.contains("<th scope=\"row\">1,000</th>"));
    assert!(!page.contains("<circle"));
}

#[test]
fn any_numbers_make_a_page() {
    let numbers = [0.0, -1.0, f64::MIN_POSITIVE, f64::EPSILON, 1e-30, 0.3, 1.0 + f64::EPSILON, 1e38, 1e300, f64::MAX];
    for a in numbers {
        for b in numbers {
            let mut record = sample(Task::Train, 3, 1, 1);
            record["epochs"][0]["train_loss"] = a.into();
            record["epochs"][1]["train_loss"] = b.into();
            record["epochs"][1]["seconds"] = a.into();
            record["epochs"][2]["bytes_sent"]["server"] = u64::MAX.into();
            record["epochs"][2]["wire_bytes_sent"]["server"] = u64::MAX.into();
            record["cpu_seconds"]["server"] = b.into();
            assert_well_formed(&page(record));
        }
    }
    let mut record = sample(Task::Train, 0, 0, 0);
    assert_well_formed(&page(record.clone()));
    record["batch_size"] = 0.into();
    record["parties"] = 0.into();
    assert_well_formed(&page(record));
}

#[test]
fn tools_find_their_keys() {
    let directory = tempfile::tempdir().unwrap();
    let record: SessionRecord = serde_json::from_value(sample(Task::Train, 2, 24_000, 6_000)).unwrap();
    write(&record, directory.path()).unwrap();
    let html_file = std::fs::read_to_string(directory.path().join("report.html")).unwrap();
    assert_eq!(html_file, html(&record));

    let text = std::fs::read_to_string(directory.path().join("report.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    for key in ["/spnn", "/session", "/first_layer"] {
        assert!(json.pointer(key).unwrap().is_string(), "{key}");
    }
    for key in ["/parties", "/rows/train", "/rows/test", "/epochs/0/epoch", "/epochs/1/bytes_sent/party-0"] {
        assert!(json.pointer(key).unwrap().is_u64(), "{key}");
    }
    for key in ["/epochs/0/seconds", "/epochs/0/train_loss", "/test/loss", "/test/auc", "/test/accuracy"] {
        assert!(json.pointer(key).unwrap().is_f64(), "{key}");
    }
    assert!(json["wall_seconds"].is_f64() && json["cpu_seconds"]["server"].is_f64());
    assert!(json["peak_rss_bytes"]["party-1"].is_u64());
    let again: SessionRecord = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_value(&again).unwrap(), serde_json::to_value(&record).unwrap());
}

#[test]
fn numbers_are_for_people() {
    assert_eq!([0, 999, 1000, 24_000, 1_234_567].map(count), ["0", "999", "1,000", "24,000", "1,234,567"]);
    assert_eq!([0.0, 64.05, 999.0, 1540.0, 2.5e6].map(bytes), ["0 B", "64.0 B", "999 B", "1.54 kB", "2.50 MB"]);
    assert_eq!([0.0123, 0.142, 6.41, 200.0].map(seconds), ["12.3 ms", "142 ms", "6.41 s", "3 min 20 s"]);
    assert_eq!(seconds(7500.0), "2 h 5 min");
    assert_eq!([0.43251, 0.0, 1e-5].map(loss), ["0.4325", "0.0000", "1.000e-5"]);
}

#[test]
fn ticks_are_one_two_or_five_of_a_power_of_ten() {
    let labels = |axis: &Axis| axis.ticks().into_iter().map(|t| axis.label(t)).collect::<Vec<_>>();
    let axis = Axis::of(Scale::Linear, [0.43, 0.63].into_iter(), 5.0).unwrap();
    assert_eq!(labels(&axis), ["0.45", "0.50", "0.55", "0.60"]);
    let axis = Axis::of(Scale::Linear, [-0.2, 0.2].into_iter(), 5.0).unwrap();
    assert_eq!(labels(&axis), ["-0.2", "-0.1", "0.0", "0.1", "0.2"]);
    let axis = Axis::of(Scale::Count, [1.0, 1000.0].into_iter(), 6.0).unwrap();
    assert_eq!(labels(&axis), ["200", "400", "600", "800", "1,000"]);
    let axis = Axis::of(Scale::Count, [1.0].into_iter(), 6.0).unwrap();
    assert_eq!(labels(&axis), ["1"]);
}

#[test]
fn chosen_evenly_means_the_first_and_the_last_too() {
    let items: Vec<u32> = (1..=7).collect();
    assert_eq!(evenly(&items, 3).collect::<Vec<_>>(), [&1, &4, &7]);
    assert_eq!(evenly(&items, 9).count(), 7);
    assert_eq!(evenly(&items, 1).collect::<Vec<_>>(), [&1]);
    assert_eq!(evenly::<u32>(&[], 3).count(), 0);
}
