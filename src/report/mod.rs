//! The report of a session: what was trained, what it cost, and what it gave away.
//!
//! `report.json` is the record as it is. `report.html` is one file that loads nothing and runs nothing: style and plots
//! are inside it, and a policy in its head forbids the rest, because names in a record come from other organisations.

pub(crate) mod chart;
pub(crate) mod number;

use chart::{Bar, Chart, GREY, Point, Scale, Series, bar_figure, left_out, section, table};
use number::{absent, bytes, bytes_or_absent, count, count_real, escape, evenly, loss, mean, plural, real, seconds};
use spnn_coordinator::{EpochRecord, SessionRecord};
use spnn_protocol::message::{HEADER_BYTES, Kind};
use spnn_protocol::{FirstLayerKind, ProtocolError, Role, Task, write_durable};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const STYLE: &str = include_str!("style.css");

/// Rows of a table beyond which a person would only scroll; the rest is in `report.json`.
const ROWS_SHOWN_MAX: usize = 50;

/// Writes `report.json` (what tools read) and `report.html` (what people read) into `directory`.
///
/// # Errors
/// [`ProtocolError::Storage`] naming the file that could not be written.
pub fn write(record: &SessionRecord, directory: &Path) -> Result<(), ProtocolError> {
    let file = directory.join("report.json");
    let json = serde_json::to_vec_pretty(record)
        .map_err(|source| ProtocolError::Storage { file: file.clone(), source: source.into() })?;
    write_durable(&file, &json)?;
    write_durable(&directory.join("report.html"), html(record).as_bytes())
}

/// The report as a page of HTML.
///
/// It shows what the record holds and nothing else: sizes, timing, losses and metrics.
#[must_use]
pub fn html(record: &SessionRecord) -> String {
    let name = escape(&record.name);
    let sections = [
        tiles(record),
        curves(record),
        costs(record),
        who_learned_what(record),
        epoch_table(record),
        role_tables(record),
        formula_check(record),
    ]
    .concat();
    let body = format!(
        r#"<h1><bdi>{name}</bdi></h1>
<p class="result">{result}</p>
{sections}<footer class="note">SPNN {version} · session <code>{session}</code> · start number {incarnation}</footer>
"#,
        result = result(record),
        version = escape(&record.spnn),
        session = escape(&record.session),
        incarnation = record.incarnation,
    );
    document(&format!("{name} – SPNN report"), "session", &body)
}

/// A page that loads and runs nothing. `title` and `body` are HTML; `kind` is a class of the style sheet.
pub(crate) fn document(title: &str, kind: &str, body: &str) -> String {
    format!(
        r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{STYLE}</style>
</head>
<body class="{kind}">
{body}</body>
</html>
"#
    )
}

/// One sentence: what was done, to what, and what came out.
fn result(record: &SessionRecord) -> String {
    let done = match record.task {
        Task::Train => "Trained on",
        Task::Evaluate => "Evaluated on",
        Task::Predict => "Predicted",
        Task::Align => "Aligned",
        Task::Serve => "Served",
    };
    let parties = format!("{} {}", count(record.parties.into()), plural(record.parties.into(), "party", "parties"));
    let rows = format!("{} {}", count(rows(record)), plural(rows(record), "row", "rows"));
    let how = match is_blind(record) {
        true => "on ciphertexts".to_owned(),
        false => format!("under <code>{}</code>", record.first_layer),
    };
    format!("{done} {rows} of {parties} {how}; {}.", outcome(record))
}

fn outcome(record: &SessionRecord) -> String {
    match (record.task, record.test) {
        (Task::Predict | Task::Serve, _) => "the scores are with the label holder".to_owned(),
        (Task::Align, _) => "which rows these are, each party knows".to_owned(),
        (_, Some(test)) => match (test.auc, test.accuracy) {
            (Some(auc), _) => format!("test AUC {auc:.3}"),
            (None, Some(accuracy)) => format!("test accuracy {accuracy:.3}"),
            (None, None) => format!("test loss {}", loss(test.loss)),
        },
        (_, None) if record.rows.test == 0 => "no rows were kept for testing".to_owned(),
        (_, None) => "no test metrics were reported".to_owned(),
    }
}

/// Whether the server saw ciphertexts only.
fn is_blind(record: &SessionRecord) -> bool {
    record.inference.is_blind(record.task)
}

/// Key figures.
fn tiles(record: &SessionRecord) -> String {
    let mut tiles = String::new();
    let mut tile = |name: &str, value: String, of: &str| {
        tiles += &format!("<div><dt>{name}</dt><dd>{value}</dd><dd class=\"of\">{of}</dd></div>\n");
    };
    if let Some(test) = record.test {
        let of = format!("on {} rows", count(record.rows.test.into()));
        if let Some(auc) = test.auc {
            tile("Test AUC", format!("{auc:.3}"), &of);
        }
        if let Some(accuracy) = test.accuracy {
            tile("Test accuracy", format!("{accuracy:.3}"), &of);
        }
        tile("Test loss", loss(test.loss), &of);
    }
    if let Some(last) = record.epochs.iter().rev().find_map(|e| e.train_loss) {
        tile("Train loss", loss(last), "last epoch");
    }
    if record.task == Task::Train {
        tile(
            "Epochs",
            count(record.epochs.len() as u64),
            &format!("mini-batches of {}", count(record.batch_size.into())),
        );
    }
    tile("Wall time", seconds(record.wall_seconds), "from start to end");
    if let Some(epoch_seconds) = mean(record.epochs.iter().map(|e| e.seconds)) {
        if epoch_seconds > 0.0 {
            let speed = count_real(real(rows(record)) / epoch_seconds);
            tile("Rows per second", speed, &each_pass(record, "mean of"));
        }
        let sent = mean(record.epochs.iter().map(|e| real(sent(e)))).unwrap_or_default();
        let row_parties = real(rows(record)) * f64::from(record.parties);
        if row_parties > 0.0 {
            let of = format!("all messages, {}", each_pass(record, "per"));
            tile("Sent per row and party", bytes(sent / row_parties), &of);
        }
    }
    format!("<dl class=\"tiles\">\n{tiles}</dl>\n")
}

/// Curves over the epochs; a session that trains nothing has none.
fn curves(record: &SessionRecord) -> String {
    if record.task != Task::Train {
        return String::new();
    }
    let curve = |color, name: &str, value: fn(&EpochRecord) -> Option<f64>| Series {
        color,
        name: name.to_owned(),
        points: record.epochs.iter().filter_map(|e| Some(Point::new(e.epoch.into(), value(e)?))).collect(),
        joined: true,
    };
    let chart = |title, unit, series| {
        Chart { title, unit, x: Scale::Count, y: Scale::Linear, x_label: "epoch", shapes: false, say: loss, series }
            .figure()
    };
    let figures = [
        chart(
            "Loss",
            "mean per row",
            vec![curve(0, "train", |e| e.train_loss), curve(1, "test", |e| Some(e.test?.loss))],
        ),
        chart("Test AUC", "area under the ROC curve", vec![curve(1, "test", |e| e.test?.auc)]),
        chart("Test accuracy", "share of rows", vec![curve(1, "test", |e| e.test?.accuracy)]),
    ]
    .concat();
    section("Learning", &figures)
}

/// Bars: bytes by role and kind, processor time and memory by role.
fn costs(record: &SessionRecord) -> String {
    let kinds = kinds(record);
    let per_epoch = 1.0 / real(record.epochs.len().max(1) as u64);
    let sent: Vec<_> = totals(record)
        .into_iter()
        .map(|(role, total)| {
            let parts = kinds.iter().map(|kind| real(total.by_kind.get(*kind).copied().unwrap_or(0)) * per_epoch);
            Bar { name: role.to_string(), parts: parts.collect() }
        })
        .collect();
    let sent_parts: Vec<_> = kinds.iter().map(|&kind| (rank(kind), kind)).collect();
    let single = |values: &BTreeMap<Role, f64>| -> Vec<Bar> {
        values.iter().map(|(role, &value)| Bar { name: role.to_string(), parts: vec![value] }).collect()
    };
    let rss = record.peak_rss_bytes.iter().map(|(&role, &n)| (role, real(n))).collect();
    let figures = [
        bar_figure(&format!("Sent, {}", each_pass(record, "per")), &sent_parts, bytes, &sent),
        bar_figure("Processor time, whole process", &[(GREY, "CPU")], seconds, &single(&record.cpu_seconds)),
        bar_figure("Memory, largest resident set", &[(GREY, "RSS")], bytes, &single(&rss)),
    ]
    .concat();
    section("Cost", &figures)
}

/// Who saw what in the clear under the protocol that ran, and what follows from it.
fn who_learned_what(record: &SessionRecord) -> String {
    let training = record.task == Task::Train;
    let label_holder = match label_holder(record) {
        Some(role) => format!("Label holder ({role})"),
        None => "Label holder".to_owned(),
    };
    let (server, server_not) = match record.first_layer {
        _ if is_blind(record) => (
            "nothing; that rows were scored, and how many",
            "H1, anything between its layers, scores; labels and ids as such",
        ),
        FirstLayerKind::Plain => ("each party's product X<sub>i</sub>·W<sub>i</sub>", "labels and ids as such"),
        FirstLayerKind::Sharing | FirstLayerKind::Beaver | FirstLayerKind::Paillier => (
            "only the sum H1 = Σ X<sub>i</sub>·W<sub>i</sub>",
            "a single party's product, as long as at least two parties do not work with it; labels and ids as such",
        ),
    };
    let (coordinator, coordinator_not) = match record.first_layer {
        FirstLayerKind::Plain | FirstLayerKind::Sharing | FirstLayerKind::Paillier => {
            ("sizes, identities, timing, losses and metrics", "any data, any mask")
        }
        FirstLayerKind::Beaver => (
            "sizes, identities, timing, losses and metrics; as the dealer, the triples",
            "any data, anything that is opened",
        ),
    };
    let grad_z = if training { ", and the gradient of the last hidden output" } else { "" };
    let party = if training {
        "its own rows and its own block of weights; grad_h1, the gradient of H1"
    } else {
        "its own rows and its own block of weights"
    };
    let head = match record.task {
        Task::Train => "the labels, the last hidden output, predictions and loss",
        Task::Evaluate => "the labels, the last hidden output, predictions and metrics",
        Task::Predict | Task::Serve => "the last hidden output and predictions",
        Task::Align => "nothing more",
    };
    let rows: String = [
        ("Server".to_owned(), format!("{server}{grad_z}"), server_not),
        (label_holder, format!("besides what a party sees: {head}"), "other parties' features, the server's weights"),
        ("Every party".to_owned(), party.to_owned(), "other parties' data and weights; H1"),
        ("Coordinator".to_owned(), coordinator.to_owned(), coordinator_not),
    ]
    .iter()
    .map(|(role, saw, not)| {
        format!("<tr><th scope=\"row\">{role}</th><td data-is=\"Saw\">{saw}</td><td data-is=\"Did not see\">{not}</td></tr>\n")
    })
    .collect();
    format!(
        "<h2>Who learned what</h2>\n<table class=\"learned\"><thead><tr><th>Role</th><th>Saw in the clear</th>\
         <th>Did not see</th></tr></thead><tbody>\n{rows}</tbody></table>\n{}",
        leaks(record)
    )
}

/// What the roles can work out from what they saw. Said with every result, because no result is had without it.
fn leaks(record: &SessionRecord) -> String {
    let training = record.task == Task::Train;
    let mut leaks = Vec::new();
    let blind = is_blind(record);
    if record.first_layer == FirstLayerKind::Plain && !blind {
        leaks.push("<code>plain</code> protects nothing: the server saw every party's product. It is for tests and comparison only.");
    }
    if training {
        leaks.push(
            "The server can learn every label: the sign of the gradient that the label holder sends it gives the label away.",
        );
        leaks.push("Parties without labels can learn labels from grad_h1, the gradient that every party receives.");
    }
    leaks.push(match blind {
        true => "Server and label holder together can open H1, from which features can be rebuilt.",
        false => {
            "H1 is linear in the features: a server that knows some of the records can rebuild features of the others from it."
        }
    });
    if record.first_layer == FirstLayerKind::Beaver && !blind {
        leaks.push(
            "The coordinator deals the triples: together with any one party it can open all features and weights.",
        );
    }
    match record.first_layer {
        FirstLayerKind::Plain if !blind => {}
        _ if record.parties == 2 => {
            leaks.push("Server and one party together can open the other party's product.");
        }
        _ => {
            leaks.push("Server and all parties but one together can open the last party's product.");
        }
    }
    if training {
        leaks.push("Noise in the training (SGLD) does not prevent any of this.");
    } else {
        leaks.push("Training the model that was used here gave away more; the report of that session says what.");
    }
    let leaks: String = leaks.iter().map(|leak| format!("<li>{leak}</li>\n")).collect();
    format!("<div class=\"leaks\"><h3>What this leaks</h3>\n<ul>\n{leaks}</ul></div>\n")
}

/// The party that sent gradients of the hidden output, if one did.
fn label_holder(record: &SessionRecord) -> Option<Role> {
    totals(record).into_iter().find(|(_, t)| t.by_kind.contains_key(Kind::HiddenGradient.name())).map(|(role, _)| role)
}

/// What every epoch took and gave, all roles together.
fn epoch_table(record: &SessionRecord) -> String {
    if record.task != Task::Train || record.epochs.is_empty() {
        return String::new();
    }
    let tested = record.epochs.iter().any(|e| e.test.is_some());
    let mut header = vec!["Epoch", "Time", "Rows/s", "Train loss"];
    if tested {
        header.extend(["Test loss", "Test AUC", "Test accuracy"]);
    }
    header.extend(["Sent", "UDP", "CPU"]);
    let rows = evenly(&record.epochs, ROWS_SHOWN_MAX).map(|e| {
        let speed = if e.seconds > 0.0 { count_real(real(rows(record)) / e.seconds) } else { absent() };
        let mut cells = vec![count(e.epoch.into()), seconds(e.seconds), speed, e.train_loss.map_or_else(absent, loss)];
        if tested {
            cells.push(e.test.map_or_else(absent, |t| loss(t.loss)));
            cells.push(e.test.and_then(|t| t.auc).map_or_else(absent, |v| format!("{v:.4}")));
            cells.push(e.test.and_then(|t| t.accuracy).map_or_else(absent, |v| format!("{v:.4}")));
        }
        cells.push(bytes(real(sent(e))));
        cells.push(bytes_or_absent(sum(e.wire_bytes_sent.values())));
        cells.push(seconds(e.cpu_seconds.values().sum()));
        cells
    });
    let shown = if record.epochs.len() > ROWS_SHOWN_MAX {
        format!(
            " {ROWS_SHOWN_MAX} of {} epochs, evenly chosen; <code>report.json</code> has all.",
            count(record.epochs.len() as u64)
        )
    } else {
        String::new()
    };
    format!(
        "<h2>Epochs</h2>\n<p class=\"note\">Sent, UDP and CPU are sums over all roles, for the training part of the \
         epoch.{shown}</p>\n{}",
        table(&header, rows)
    )
}

/// What every role sent and used.
fn role_tables(record: &SessionRecord) -> String {
    let totals = totals(record);
    let kinds = kinds(record);
    let header: Vec<_> = ["Role"].into_iter().chain(kinds.iter().copied()).chain(["All", "UDP", "Overhead"]).collect();
    let rows = totals.iter().take(ROWS_SHOWN_MAX).map(|(role, total)| {
        let mut cells = vec![role.to_string()];
        cells.extend(kinds.iter().map(|kind| bytes_or_absent(total.by_kind.get(*kind).copied().unwrap_or(0))));
        cells.push(bytes(real(total.sent)));
        cells.push(bytes_or_absent(total.wire));
        cells.push(overhead(total));
        cells
    });
    let sent = table(&header, rows);
    let sent_left_out = left_out(totals.len(), ROWS_SHOWN_MAX, "roles");

    let roles: BTreeSet<Role> =
        totals.keys().chain(record.cpu_seconds.keys()).chain(record.peak_rss_bytes.keys()).copied().collect();
    let rows = roles.iter().take(ROWS_SHOWN_MAX).map(|role| {
        let in_epochs = totals.get(role).map_or_else(absent, |t| seconds(t.cpu_seconds));
        let whole = record.cpu_seconds.get(role).map_or_else(absent, |&s| seconds(s));
        let rss = record.peak_rss_bytes.get(role).map_or_else(absent, |&n| bytes(real(n)));
        vec![role.to_string(), in_epochs, whole, rss]
    });
    let in_epochs = if record.task == Task::Train { "CPU, all epochs" } else { "CPU, the pass" };
    let used = table(&["Role", in_epochs, "CPU, whole process", "Peak RSS"], rows);
    let used_left_out = left_out(roles.len(), ROWS_SHOWN_MAX, "roles");
    let when = if record.task == Task::Train { "training, all epochs" } else { "the pass" };
    let no_wire = if totals.values().all(|t| t.wire == 0) { " Nothing went over UDP." } else { "" };
    format!(
        "<h2>Roles</h2>\n<p class=\"note\">Bytes sent in {when}, by kind of message. UDP adds the headers and tags of \
         QUIC, acknowledgements and anything sent twice.{no_wire}</p>\n{sent}{sent_left_out}{used}{used_left_out}"
    )
}

/// Bytes of the two large messages, beside what the protocol says they are.
fn formula_check(record: &SessionRecord) -> String {
    let passes = real(rows(record)) * real(record.epochs.len() as u64) * f64::from(record.parties);
    if passes == 0.0 || is_blind(record) {
        return String::new();
    }
    let totals = totals(record);
    let row = |what: &str, kind: Kind, expected: f64| {
        // What the coordinator deals is not a party's.
        let roles = totals.iter().filter(|(role, _)| **role != Role::Coordinator);
        let measured = sum(roles.filter_map(|(_, t)| t.by_kind.get(kind.name())));
        format!(
            "<li>{what}, <code>{}</code>: expected <b>{expected:.2} B</b>, measured <b>{:.2} B</b></li>\n",
            kind.name(),
            real(measured) / passes
        )
    };
    let batches = rows(record).div_ceil(u64::from(record.batch_size.max(1)));
    let headers = real(batches) * real(HEADER_BYTES as u64) / real(rows(record));
    let mut lines = row("Up, from each party", Kind::FirstLayer, record.first_layer_bytes_per_row);
    if record.task == Task::Train {
        lines +=
            &row("Down, server to party", Kind::FirstLayerGradient, 4.0 * f64::from(record.hidden_width) + headers);
    }
    let up = match record.first_layer {
        FirstLayerKind::Plain => "4 bytes of each of the h columns of H1 up",
        FirstLayerKind::Sharing => "8 bytes of each of the h columns of H1 up, 4 in the small ring",
        FirstLayerKind::Beaver => "8 bytes of each of the h columns of H1 up, and of each weight to every other party",
        FirstLayerKind::Paillier => "one ciphertext of twice the key's length for as many values as its slots up",
    };
    let down = if record.task == Task::Train { "; 4 bytes of each column down" } else { "" };
    format!(
        "<h2>Bytes per row and party</h2>\n<p class=\"note\">Expected of <code>{}</code>: {up}{down}; and a header \
         of {HEADER_BYTES} bytes for each message, spread over its rows.</p>\n<ul class=\"check\">\n{lines}</ul>\n",
        record.first_layer,
    )
}

/// What a role sent and used over all epochs.
#[derive(Default)]
struct Total<'a> {
    by_kind: BTreeMap<&'a str, u64>,
    sent: u64,
    wire: u64,
    cpu_seconds: f64,
}

fn totals(record: &SessionRecord) -> BTreeMap<Role, Total<'_>> {
    let mut totals = BTreeMap::<Role, Total<'_>>::new();
    for epoch in &record.epochs {
        for (&role, kinds) in &epoch.bytes_sent_by_kind {
            let total = totals.entry(role).or_default();
            for (kind, n) in kinds {
                add(total.by_kind.entry(kind).or_default(), *n);
            }
        }
        for (&role, n) in &epoch.bytes_sent {
            add(&mut totals.entry(role).or_default().sent, *n);
        }
        for (&role, n) in &epoch.wire_bytes_sent {
            add(&mut totals.entry(role).or_default().wire, *n);
        }
        for (&role, s) in &epoch.cpu_seconds {
            totals.entry(role).or_default().cpu_seconds += s;
        }
    }
    totals
}

/// Other organisations' roles count for themselves; a sum of what they claim must not be the end of the report.
fn add(sum: &mut u64, n: u64) {
    *sum = sum.saturating_add(n);
}

fn sum<'a>(values: impl Iterator<Item = &'a u64>) -> u64 {
    values.fold(0, |sum, n| sum.saturating_add(*n))
}

/// All kinds of message that were sent, by rank.
fn kinds(record: &SessionRecord) -> Vec<&str> {
    let kinds: BTreeSet<&str> = totals(record).into_values().flat_map(|t| t.by_kind.into_keys()).collect();
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|kind| rank(kind));
    kinds
}

/// The messages of a mini-batch in their order, then the rest. Also their colours, the same in every report.
fn rank(kind: &str) -> usize {
    let all = Kind::ALL.len();
    let first = Kind::ALL.iter().position(|&k| k == Kind::FirstLayer).unwrap_or(0);
    Kind::ALL.iter().position(|k| k.name() == kind).map_or(all, |i| (i + all - first) % all)
}

/// Application bytes of all roles.
fn sent(epoch: &EpochRecord) -> u64 {
    sum(epoch.bytes_sent.values())
}

/// Rows of one pass.
fn rows(record: &SessionRecord) -> u64 {
    match record.task {
        Task::Train => record.rows.train.into(),
        Task::Evaluate | Task::Predict | Task::Align | Task::Serve => record.rows.test.into(),
    }
}

/// "per epoch" where there are epochs.
fn each_pass(record: &SessionRecord, before: &str) -> String {
    match record.task {
        Task::Train if before == "per" => "per epoch".to_owned(),
        Task::Train => format!("{before} all epochs"),
        Task::Evaluate | Task::Predict | Task::Align | Task::Serve => "in the pass".to_owned(),
    }
}

/// What UDP carried beyond the messages.
fn overhead(total: &Total<'_>) -> String {
    if total.wire == 0 || total.sent == 0 {
        return absent();
    }
    format!("{:+.1} %", (real(total.wire) / real(total.sent) - 1.0) * 100.0)
}
#[cfg(test)]
pub(crate) mod tests;
