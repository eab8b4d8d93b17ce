//! `spnn experiment` end to end: resumes, skips, fails, and shows all of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics")]

mod kit;

use kit::{CONFIGURATION, DONE, arg, repository, spnn};
use serde_json::Value;
use std::fs;
use std::path::Path;

const FILE: &str = r#"
title = "Small"
question = "Does it run?"
kind = "accuracy"
sessions = ["SESSION"]
methods = ["pooled", "alone", "plain", "sharing"]
seeds = [1]
epochs = 3
bound = 0.005
"#;

fn experiment(directory: &Path, change: impl Fn(String) -> String) -> std::path::PathBuf {
    let file = directory.join("small.toml");
    let text = FILE.replace("SESSION", arg(&repository("examples/breast_cancer/session.toml")));
    fs::write(&file, change(text)).unwrap();
    file
}

fn results(out: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(out.join("results.json")).unwrap()).unwrap()
}

#[test]
fn finished_runs_are_taken_over_and_the_page_shows_the_results() {
    let directory = tempfile::tempdir().unwrap();
    let (file, out) = (experiment(directory.path(), |t| t), directory.path().join("out"));
    let first = spnn(&["experiment", arg(&file), "--out", arg(&out)]);
    assert_eq!(first.code, DONE, "{}{}", first.out, first.err);
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    let findings = results(&out)["experiments"][0]["findings"].clone();
    assert_eq!(findings["passed"], true, "{findings}");
    assert!(page.contains(findings["answer"].as_str().unwrap()));
    for row in findings["tables"][0]["rows"].as_array().unwrap() {
        assert!(page.contains(&format!("<td>{}</td>", row[3].as_str().unwrap())), "{row}");
    }
    for word in ["<script", "<link", "<img", "url(", "http:", "https:"] {
        assert!(!page.contains(word), "{word}");
    }
    assert!(page.contains("<svg") && !page.contains("NaN"));
    let again = spnn(&["experiment", arg(&file), "--out", arg(&out)]);
    assert_eq!(again.code, DONE, "{}{}", again.out, again.err);
    assert!(again.out.contains("5 finished runs are taken over") && !again.out.contains("[1/"), "{}", again.out);
    assert_eq!(results(&out)["experiments"][0]["finished"].as_array().unwrap().len(), 5);
    // Another number of epochs is another run.
    experiment(directory.path(), |t| t.replace("epochs = 3", "epochs = 2"));
    let other = spnn(&["experiment", arg(&file), "--out", arg(&out)]);
    assert!(other.out.contains("[5/5]"), "{}", other.out);
}

#[test]
fn a_method_that_fails_is_shown_and_stops_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let change = |t: String| t.replace(r#""alone", "plain","#, r#""telepathy","#);
    let (file, out) = (experiment(directory.path(), change), directory.path().join("out"));
    let said = spnn(&["experiment", arg(&file), "--out", arg(&out)]);
    assert_eq!(said.code, CONFIGURATION, "{}{}", said.out, said.err);
    assert!(said.err.contains("1 of 3 runs failed"), "{}", said.err);
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("FAILED") && page.contains("telepathy") && page.contains("Incomplete"));
    assert_eq!(results(&out)["experiments"][0]["findings"]["passed"], Value::Null);
}

#[test]
fn missing_data_are_skipped_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let session = fs::read_to_string(repository("examples/breast_cancer/session.toml")).unwrap();
    fs::write(directory.path().join("elsewhere.toml"), session.replace("clinic.csv", "data/lost.csv")).unwrap();
    let change = |t: String| t.replace("sessions = [", "data_from = \"the attic\"\nsessions = [\"elsewhere.toml\", ");
    let (file, out) = (experiment(directory.path(), change), directory.path().join("out"));
    let said = spnn(&["experiment", arg(&file), "--out", arg(&out)]);
    assert_eq!(said.code, DONE, "{}{}", said.out, said.err);
    assert!(said.out.contains("SKIPPED") && said.out.contains("lost.csv"), "{}", said.out);
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("SKIPPED") && page.contains("lost.csv") && page.contains("the attic"));
}

#[test]
fn shares_of_rows_and_lines_and_made_up_rows_run() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    for (vary, kind) in [
        ("vary = { rows_share = [0.5, 1.0] }", "accuracy"),
        ("vary = { round_trip_ms = [0, 4] }\nsynthetic = { rows = 300, features = 6, parties = 3 }", "network"),
        ("vary = { synthetic_rows = [200, 400] }", "growth"),
    ] {
        let change = |t: String| {
            let t = t.replace(r#""pooled", "alone", "plain", "sharing""#, r#""pooled", "sharing""#);
            t.replace("\"accuracy\"", &format!("\"{kind}\"")) + vary + "\n"
        };
        let file = experiment(directory.path(), change);
        let said = spnn(&["experiment", arg(&file), "--out", arg(&out)]);
        assert_eq!(said.code, DONE, "{vary}: {}{}", said.out, said.err);
        let answer = results(&out)["experiments"][0]["findings"]["answer"].as_str().unwrap().to_owned();
        assert!(!answer.contains("NaN"), "{answer}");
    }
}
