//! Tables of every type through whole sessions: inspected, trained on, predicted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics")]

mod kit;

use kit::{CONFIGURATION, DATA, DONE, arg, repository, spnn, spnn_ok};
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Customers of a shop: a column of every type, some values missing, and a label that depends on them.
fn customers(rows: usize) -> String {
    let mut text = String::from("customer,left,age,city,since,active,shop,name\n");
    for row in 0..rows {
        let (age, city) = (20 + row * 7 % 50, ["north", "south", "east"][row % 3]);
        let left = if age > 45 || row % 3 == 0 { "yes" } else { "no" };
        let age = if row % 11 == 0 { String::new() } else { age.to_string() };
        let active = if row % 2 == 0 { "true" } else { "false" };
        writeln!(text, "C{row},{left},{age},{city},2024-0{}-15,{active},shop {},P{row}", row % 9 + 1, row % 40)
            .unwrap();
    }
    text
}

fn session(file: &Path, data: &str) -> String {
    let file = arg(file);
    format!(
        r#"
        name = "typed"
        first_layer = "sharing"
        seed = 5
        [data]
        id = "customer"
        label = "left"
        test_fraction = 0.2
        standardize = true
        {data}
        parties = [
          {{ file = "{file}", columns = ["age", "city"], label_holder = true }},
          {{ file = "{file}", columns = ["since", "active", "shop"] }},
        ]
        [model]
        hidden_width = 8
        server = [{{ activation = "tanh" }}, {{ linear = 4 }}, {{ activation = "tanh" }}]
        head = {{ linear = 1, loss = "binary-cross-entropy" }}
        [train]
        epochs = 8
        batch_size = 16
        optimizer = {{ kind = "adam", learning_rate = 0.05 }}
        "#
    )
}

const TYPED: &str = r#"missing = "mean"
        types = { left = "boolean", city = "categorical", since = "date", active = "boolean", shop = { hashed = 8 } }"#;

#[test]
fn typed_columns_are_trained_on_and_predicted_in_memory_and_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("customers.csv"), customers(400)).unwrap();
    for (name, data) in [("memory", TYPED.to_owned()), ("disk", format!("memory_max_mib = 0\n{TYPED}"))] {
        fs::write(path(&format!("{name}.toml")), session(&path("customers.csv"), &data)).unwrap();
        spnn_ok(&["simulate", arg(&path(&format!("{name}.toml"))), "--run-dir", arg(&path(name))]);
    }
    for file in
        ["server/model.safetensors", "party-0/model.safetensors", "party-1/model.json", "party-0/predictions.csv"]
    {
        let [memory, disk] = ["memory", "disk"].map(|name| fs::read(path(name).join(file)).unwrap());
        assert!(memory == disk, "{file} differs");
    }
    // The first layer has a row for each feature: age; three cities and any other. Those of the second party: since;
    // active, and whether that is known; eight buckets.
    let report: serde_json::Value = serde_json::from_slice(&fs::read(path("memory/report.json")).unwrap()).unwrap();
    assert!(report["test"]["auc"].as_f64().unwrap() > 0.8, "{}", report["test"]);
    let kept = fs::read_to_string(path("memory/party-0/model.json")).unwrap();
    assert!(["east", "north", "south"].iter().all(|city| kept.contains(city)), "{kept}");

    // New rows, without labels, with a city that nobody has seen, as a directory of two files.
    fs::create_dir(path("new")).unwrap();
    let header = "customer,age,city,since,active,shop\n";
    fs::write(path("new/a.csv"), format!("{header}N1,30,west,2024-03-01,true,shop 1\n")).unwrap();
    fs::write(path("new/b.csv"), format!("{header}N2,,north,2024-03-02,false,shop 99\n")).unwrap();
    let predict = |file: &str| {
        spnn(&["predict", arg(&path("memory")), "--data", arg(&path(file)), "--scores", arg(&path("s.csv"))])
    };
    fs::write(path("labelled.csv"), fs::read_to_string(path("customers.csv")).unwrap()).unwrap();
    assert_eq!(predict("labelled.csv").code, 0);
    assert_eq!(fs::read_to_string(path("s.csv")).unwrap().lines().count(), 401);
    let said = predict("new");
    assert_eq!(said.code, DONE, "{}", said.err);
    let scores = fs::read_to_string(path("s.csv")).unwrap();
    assert!(scores.starts_with("id,score\nN1,0.") && scores.lines().count() == 3, "{scores}");
    // A column of another type is not what was trained on.
    fs::write(path("other.csv"), format!("{header}N1,30,west,2024-03-01,maybe,shop 1\n")).unwrap();
    let said = predict("other.csv");
    assert_eq!(said.code, DATA, "{}", said.err);
    assert!(said.err.contains("column `active`: `maybe` is neither yes nor no"), "{}", said.err);
}

#[test]
fn types_and_files_that_do_not_fit_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("customers.csv"), customers(60)).unwrap();
    for (data, code, words) in [
        ("types = { ctiy = \"categorical\" }", CONFIGURATION, "data.types: no party has a column named ctiy"),
        ("types = { city = \"categoric\" }", CONFIGURATION, "data.types.city"),
        ("ignore = [\"ctiy\"]", CONFIGURATION, "data.ignore: no party has a column named ctiy"),
        ("missing = \"median\"", CONFIGURATION, "data.missing"),
        ("types = { left = \"boolean\" }", DATA, "line 2 (row 1), column `age`: no value"),
        ("types = { left = \"boolean\" }\nmissing = \"mean\"", DATA, "column `city`: `north` is not a number"),
    ] {
        fs::write(path("session.toml"), session(&path("customers.csv"), data)).unwrap();
        let said = spnn(&["pooled", arg(&path("session.toml"))]);
        assert_eq!(said.code, code, "{}", said.err);
        assert!(said.err.contains(words), "{words}: {}", said.err);
    }
}

/// What is suggested can be read back as a party's section, and trains.
#[test]
fn what_inspect_suggests_trains() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("customers.csv"), customers(400)).unwrap();
    let clinic = repository("examples/breast_cancer/clinic.csv");
    for (file, label, id, types, ignored) in
        [(path("customers.csv"), "left", "customer", 5, Some("name")), (clinic, "malignant", "id", 0, None)]
    {
        let said = spnn_ok(&["inspect", arg(&file), "--label", label]);
        let suggested: toml::Table = toml::from_str(&said.out).unwrap();
        let data = suggested["data"].as_table().unwrap();
        assert_eq!(data["id"].as_str(), Some(id));
        assert_eq!(data["label"].as_str(), Some(label));
        assert_eq!(data.get("types").map_or(0, |types| types.as_table().unwrap().len()), types, "{}", said.out);

        assert_eq!(data.get("ignore").map(|ignored| ignored[0].as_str().unwrap()), ignored);

        let example = fs::read_to_string(repository("examples/breast_cancer/session.toml")).unwrap();
        let mut session: toml::Table = toml::from_str(&example).unwrap();
        session["train"]["epochs"] = 2.into();
        let section = session["data"].as_table_mut().unwrap();
        section.extend(data.iter().filter(|(key, _)| *key != "file").map(|(k, v)| (k.clone(), v.clone())));
        let holder = [("file", arg(&file).into()), ("label_holder", true.into())];
        let holder = toml::Table::from_iter(holder.map(|(key, value): (&str, toml::Value)| (key.to_owned(), value)));
        section.insert("parties".into(), vec![toml::Value::Table(holder)].into());
        let name = path("session.toml");
        fs::write(&name, toml::to_string(&session).unwrap()).unwrap();
        spnn_ok(&["pooled", arg(&name), "--parties", "2"]);

        let json = spnn_ok(&["inspect", arg(&file), "--json"]);
        let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
        assert_eq!(json["columns"][0]["missing"], 0);
        assert_eq!(json["data"]["id"], id);
    }
    let said = spnn(&["inspect", arg(&path("customers.csv")), "--label", "absent"]);
    assert_eq!(said.code, CONFIGURATION);
    assert!(said.err.contains("absent"), "{}", said.err);
    let said = spnn(&["inspect", arg(&path("absent.csv"))]);
    assert_eq!(said.code, DATA);
}
