//! The report of a session: what was trained, what it cost, and what it gave away.
//!
//! `report.json` is the record as it is. `report.html` is one file that loads nothing and runs nothing: style and plots
//! are inside it, and a policy in its head forbids the rest, because names in a record come from other organisations.

use plotters::prelude::*;
use spnn_coordinator::{EpochRecord, SessionRecord};
use spnn_protocol::message::{HEADER_BYTES, Kind};
use spnn_protocol::{FirstLayerKind, ProtocolError, Role, Task, write_durable};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::Path;

const STYLE: &str = include_str!("report/style.css");

/// Rows of a table, and bars of a figure, beyond which a person would only scroll; the rest is in `report.json`.
const ROWS_SHOWN_MAX: usize = 50;
const BARS_SHOWN_MAX: usize = 24;

/// Epochs up to which each one is a visible point on its curve; with more the points run together.
const POINTS_MAX: usize = 60;

/// Epochs on a curve: more than one per two pixels of a wide screen cannot be seen and only makes the file longer.
const CURVE_POINTS_MAX: usize = 1000;

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
    format!(
        r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{name} – SPNN report</title>
<style>
{STYLE}</style>
</head>
<body>
<h1><bdi>{name}</bdi></h1>
<p class="result">{result}</p>
{sections}<footer class="note">SPNN {version} · session <code>{session}</code> · start number {incarnation}</footer>
</body>
</html>
"#,
        result = result(record),
        version = escape(&record.spnn),
        session = escape(&record.session),
        incarnation = record.incarnation,
    )
}

/// One sentence: what was done, to what, and what came out.
fn result(record: &SessionRecord) -> String {
    let done = match record.task {
        Task::Train => "Trained on",
        Task::Evaluate => "Evaluated on",
        Task::Predict => "Predicted",
    };
    let parties = format!("{} {}", count(record.parties.into()), plural(record.parties.into(), "party", "parties"));
    let rows = format!("{} {}", count(rows(record)), plural(rows(record), "row", "rows"));
    let protocol = record.first_layer;
    format!("{done} {rows} of {parties} under <code>{protocol}</code>; {}.", outcome(record))
}

fn outcome(record: &SessionRecord) -> String {
    match (record.task, record.test) {
        (Task::Predict, _) => "the scores are with the label holder".to_owned(),
        (_, Some(test)) => match (test.auc, test.accuracy) {
            (Some(auc), _) => format!("test AUC {auc:.3}"),
            (None, Some(accuracy)) => format!("test accuracy {accuracy:.3}"),
            (None, None) => format!("test loss {}", loss(test.loss)),
        },
        (_, None) if record.rows.test == 0 => "no rows were kept for testing".to_owned(),
        (_, None) => "no test metrics were reported".to_owned(),
    }
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
            tile(
                "Speed",
                format!("{} rows/s", count_real(real(rows(record)) / epoch_seconds)),
                &each_pass(record, "mean of"),
            );
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
    let curve = |name: &'static str, value: fn(&EpochRecord) -> Option<f64>| Curve {
        name,
        points: record.epochs.iter().filter_map(|e| Some((e.epoch, value(e).filter(|v| v.is_finite())?))).collect(),
    };
    let losses = [curve("train", |e| e.train_loss), curve("test", |e| Some(e.test?.loss))];
    let auc = [curve("test", |e| e.test?.auc)];
    let accuracy = [curve("test", |e| e.test?.accuracy)];
    let figures = [
        curve_figure("Loss", "mean loss per row", &losses),
        curve_figure("Test AUC", "area under the ROC curve", &auc),
        curve_figure("Test accuracy", "share of rows", &accuracy),
    ]
    .concat();
    if figures.is_empty() { figures } else { format!("<h2>Learning</h2>\n<div class=\"figures\">\n{figures}</div>\n") }
}

/// One line of a plot.
struct Curve {
    name: &'static str,
    points: Vec<(u32, f64)>,
}

/// A plot of the curves that have points, or nothing if none has.
fn curve_figure(title: &str, unit: &str, curves: &[Curve]) -> String {
    let Some(svg) = plot(unit, curves) else { return String::new() };
    let shown = curves.iter().enumerate().filter(|(_, c)| !c.points.is_empty());
    let legend = legend(shown.map(|(color, c)| (color, c.name)));
    format!("<figure class=\"plot\"><h3>{title}</h3>{legend}{svg}</figure>\n")
}

/// Size of a plot in its own units. On a phone a unit is a little less than a pixel, so `FONT` stays readable there.
const PLOT_SIZE: (u32, u32) = (440, 270);
const FONT: (&str, i32) = ("sans-serif", 14);

/// The colours of the light page. The style sheet finds lines and points by them and gives them those of the dark one.
const LINE: RGBColor = RGBColor(0xD5, 0xDA, 0xE0);
const CURVES: [RGBColor; 2] = [RGBColor(0x21, 0x66, 0xAC), RGBColor(0xC2, 0x57, 0x0C)];

fn plot(unit: &str, curves: &[Curve]) -> Option<String> {
    let mut svg = String::new();
    draw(&mut svg, unit, curves).ok()??;
    Some(svg)
}

type Drawn<T> = Result<T, DrawingAreaErrorKind<std::io::Error>>;

fn draw(svg: &mut String, unit: &str, curves: &[Curve]) -> Drawn<Option<()>> {
    let epochs = || curves.iter().flat_map(|c| c.points.iter().map(|p| p.0));
    let (Some(first), Some(last)) = (epochs().min(), epochs().max()) else { return Ok(None) };
    // One epoch stands in the middle of an axis that has a width.
    let x = if first == last { first.saturating_sub(1)..last.saturating_add(1) } else { first..last };
    let (low, high) = padded(curves.iter().flat_map(|c| c.points.iter().map(|p| p.1)));
    let decimals = decimals(high - low);

    let area = SVGBackend::with_string(svg, PLOT_SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .margin_top(8)
        .margin_right(14)
        .x_label_area_size(46)
        .y_label_area_size(68)
        .build_cartesian_2d(x, low..high)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(8)
        .y_labels(6)
        .x_label_formatter(&|&x| if (first..=last).contains(&x) { count(x.into()) } else { String::new() })
        .y_label_formatter(&|y| {
            if decimals.is_some_and(|_| y.abs() < 1e5) {
                format!("{y:.*}", decimals.unwrap_or(0))
            } else {
                format!("{y:.2e}")
            }
        })
        .x_desc("epoch")
        .y_desc(unit)
        .axis_style(LINE)
        .bold_line_style(LINE)
        .label_style(FONT)
        .draw()?;
    for (curve, color) in curves.iter().zip(CURVES) {
        let points: Vec<_> = evenly(&curve.points, CURVE_POINTS_MAX).copied().collect();
        if points.len() <= POINTS_MAX {
            chart.draw_series(points.iter().map(|&p| Circle::new(p, 3, color.filled())))?;
        }
        chart.draw_series(LineSeries::new(points, color.stroke_width(2)))?;
    }
    area.present()?;
    Ok(Some(()))
}

/// Ends of an axis that holds the values with some air.
fn padded(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    let air = if high > low { (high - low) * 0.06 } else { (low.abs() * 0.1).max(0.01) };
    (low - air, high + air)
}

/// Decimals that tell apart the labels of an axis of this length; none if no usual number of them does.
fn decimals(length: f64) -> Option<usize> {
    (0..=6).find(|&d: &i32| length >= 10f64.powi(1 - d)).and_then(|d| usize::try_from(d).ok())
}

/// Bars: bytes by role and kind, processor time and memory by role.
fn costs(record: &SessionRecord) -> String {
    let kinds = kinds(record);
    let per_epoch = 1.0 / real(record.epochs.len().max(1) as u64);
    let sent = totals(record).into_iter().map(|(role, total)| {
        let parts = kinds.iter().map(|kind| real(total.by_kind.get(*kind).copied().unwrap_or(0)) * per_epoch);
        Bar { role, parts: parts.collect() }
    });
    let single = |values: &BTreeMap<Role, f64>| -> Vec<Bar> {
        values.iter().map(|(&role, &value)| Bar { role, parts: vec![value] }).collect()
    };
    let rss = record.peak_rss_bytes.iter().map(|(&role, &n)| (role, real(n))).collect();
    let figures = [
        bar_figure(&format!("Sent, {}", each_pass(record, "per")), &kinds, bytes, &sent.collect::<Vec<_>>()),
        bar_figure("Processor time, whole process", &["CPU"], seconds, &single(&record.cpu_seconds)),
        bar_figure("Memory, largest resident set", &["RSS"], bytes, &single(&rss)),
    ]
    .concat();
    if figures.is_empty() { figures } else { format!("<h2>Cost</h2>\n<div class=\"figures\">\n{figures}</div>\n") }
}

/// One role's bar, in parts.
struct Bar {
    role: Role,
    parts: Vec<f64>,
}

/// Bars with their values beside them; a legend only where a bar has parts.
///
/// Not plotted: as a grid of text and stretched rectangles they keep their letters' size at any width of the screen.
fn bar_figure(title: &str, parts: &[&str], unit: fn(f64) -> String, bars: &[Bar]) -> String {
    let largest = bars.iter().map(|b| b.parts.iter().sum()).fold(0.0, f64::max);
    if !(largest > 0.0 && largest.is_finite()) {
        return String::new();
    }
    let mut rows = String::new();
    for Bar { role, parts: values } in bars.iter().take(BARS_SHOWN_MAX) {
        let mut x = 0.0;
        let mut rectangles = String::new();
        for (color, (part, value)) in parts.iter().zip(values).enumerate().filter(|(_, (_, v))| **v > 0.0) {
            let width = value / largest * 100.0;
            let (class, title) = (class(color), format!("{}: {}", escape(part), unit(*value)));
            rectangles += &format!(
                r#"<rect class="{class}" x="{x:.2}" width="{width:.2}" height="1"><title>{title}</title></rect>"#
            );
            x += width;
        }
        let total = unit(values.iter().sum());
        rows += &format!(
            "<span>{role}</span><svg viewBox=\"0 0 100 1\" preserveAspectRatio=\"none\">{rectangles}</svg><b>{total}</b>\n"
        );
    }
    let legend = if parts.len() > 1 { legend(parts.iter().copied().enumerate()) } else { String::new() };
    let left_out = left_out(bars.len(), BARS_SHOWN_MAX, "roles");
    format!("<figure><h3>{title}</h3>{legend}<div class=\"bars\">\n{rows}</div>{left_out}</figure>\n")
}

fn legend<'a>(entries: impl Iterator<Item = (usize, &'a str)>) -> String {
    let items: String =
        entries.map(|(color, name)| format!("<li><i class=\"{}\"></i>{}</li>", class(color), escape(name))).collect();
    format!("<ul class=\"legend\">{items}</ul>")
}

/// The style sheet has eight colours.
fn class(color: usize) -> String {
    format!("c{}", color % 8)
}

/// Who saw what in the clear under the protocol that ran, and what follows from it.
fn who_learned_what(record: &SessionRecord) -> String {
    let training = record.task == Task::Train;
    let label_holder = match label_holder(record) {
        Some(role) => format!("Label holder ({role})"),
        None => "Label holder".to_owned(),
    };
    let (server, server_not) = match record.first_layer {
        FirstLayerKind::Plain => ("each party's product X<sub>i</sub>·W<sub>i</sub>", "labels and ids as such"),
        FirstLayerKind::Sharing => (
            "only the sum H1 = Σ X<sub>i</sub>·W<sub>i</sub>",
            "a single party's product, as long as at least two parties do not work with it; labels and ids as such",
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
        Task::Predict => "the last hidden output and predictions",
    };
    let rows: String = [
        ("Server".to_owned(), format!("{server}{grad_z}"), server_not),
        (label_holder, format!("besides what a party sees: {head}"), "other parties' features, the server's weights"),
        ("Every party".to_owned(), party.to_owned(), "other parties' data and weights; H1"),
        ("Coordinator".to_owned(), "sizes, identities, timing, losses and metrics".to_owned(), "any data, any mask"),
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
    if record.first_layer == FirstLayerKind::Plain {
        leaks.push("<code>plain</code> protects nothing: the server saw every party's product. It is for tests and comparison only.");
    }
    if training {
        leaks.push(
            "The server can learn every label: the sign of the gradient that the label holder sends it gives the label away.",
        );
        leaks.push("Parties without labels can learn labels from grad_h1, the gradient that every party receives.");
    }
    leaks.push(
        "H1 is linear in the features: a server that knows some of the records can rebuild features of the others from it.",
    );
    match record.first_layer {
        FirstLayerKind::Plain => {}
        FirstLayerKind::Sharing if record.parties == 2 => {
            leaks.push("Server and one party together can open the other party's product.");
        }
        FirstLayerKind::Sharing => {
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
        cells.push(bytes_or_absent(e.wire_bytes_sent.values().sum()));
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
         QUIC, acknowledgements and anything sent twice.{no_wire}</p>\n{sent}{sent_left_out}\n<p></p>\n{used}{used_left_out}"
    )
}

/// Bytes of the two large messages, beside what the protocol says they are.
fn formula_check(record: &SessionRecord) -> String {
    let passes = real(rows(record)) * real(record.epochs.len() as u64) * f64::from(record.parties);
    if passes == 0.0 {
        return String::new();
    }
    let h = record.hidden_width;
    let (element, element_text) = match record.first_layer {
        FirstLayerKind::Plain => (4, "4".to_owned()),
        FirstLayerKind::Sharing => (record.ring_bits / 8, format!("{}/8", record.ring_bits)),
    };
    let batches = rows(record).div_ceil(u64::from(record.batch_size.max(1)));
    let headers = real(batches) * real(HEADER_BYTES as u64) / real(rows(record));
    let row = |what: &str, kind: Kind, element: u32, element_text: &str| {
        let measured = totals(record).values().filter_map(|t| t.by_kind.get(kind.name())).sum();
        let formula = f64::from(element) * f64::from(h) + headers;
        vec![
            format!("{what} (<code>{}</code>)", kind.name()),
            format!("{element_text}·{h} + {headers:.2} = {formula:.2} B"),
            format!("{:.2} B", real(measured) / passes),
        ]
    };
    let mut lines = vec![row("Up, party to server", Kind::FirstLayer, element, &element_text)];
    if record.task == Task::Train {
        lines.push(row("Down, server to party", Kind::FirstLayerGradient, 4, "4"));
    }
    let ring = match record.first_layer {
        FirstLayerKind::Plain => "4 bytes of each of the h columns of H1 up",
        FirstLayerKind::Sharing => "r/8 bytes of each of the h columns of H1 up, r being the bits of the ring",
    };
    let down = if record.task == Task::Train { "; 4 bytes of each down" } else { "" };
    format!(
        "<h2>Bytes per row and party</h2>\n<p class=\"note\">Expected of <code>{}</code>: {ring}{down}; and the header \
         of {HEADER_BYTES} bytes of each mini-batch, spread over its rows.</p>\n{}",
        record.first_layer,
        table(&["Message", "Formula", "Measured"], lines.into_iter())
    )
}

/// A table of numbers. Cells are HTML.
fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let header: String = header.iter().map(|h| format!("<th scope=\"col\">{}</th>", escape(h))).collect();
    let rows: String = rows
        .map(|cells| {
            let mut cells = cells.into_iter();
            let first = cells.next().map(|c| format!("<th scope=\"row\">{c}</th>")).unwrap_or_default();
            let rest: String = cells.map(|c| format!("<td>{c}</td>")).collect();
            format!("<tr>{first}{rest}</tr>\n")
        })
        .collect();
    format!(
        "<div class=\"scroll\"><table class=\"numbers\"><thead><tr>{header}</tr></thead><tbody>\n{rows}</tbody></table></div>\n"
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
                *total.by_kind.entry(kind).or_default() += n;
            }
        }
        for (&role, n) in &epoch.bytes_sent {
            totals.entry(role).or_default().sent += n;
        }
        for (&role, n) in &epoch.wire_bytes_sent {
            totals.entry(role).or_default().wire += n;
        }
        for (&role, s) in &epoch.cpu_seconds {
            totals.entry(role).or_default().cpu_seconds += s;
        }
    }
    totals
}

/// All kinds of message that were sent.
fn kinds(record: &SessionRecord) -> Vec<&str> {
    let kinds: BTreeSet<&str> = totals(record).into_values().flat_map(|t| t.by_kind.into_keys()).collect();
    kinds.into_iter().collect()
}

/// Application bytes of all roles.
fn sent(epoch: &EpochRecord) -> u64 {
    epoch.bytes_sent.values().sum()
}

/// Rows of one pass.
fn rows(record: &SessionRecord) -> u64 {
    match record.task {
        Task::Train => record.rows.train.into(),
        Task::Evaluate | Task::Predict => record.rows.test.into(),
    }
}

/// "per epoch" where there are epochs.
fn each_pass(record: &SessionRecord, before: &str) -> String {
    match record.task {
        Task::Train if before == "per" => "per epoch".to_owned(),
        Task::Train => format!("{before} all epochs"),
        Task::Evaluate | Task::Predict => "in the pass".to_owned(),
    }
}

/// At most `most` of the items, the first and the last among them.
fn evenly<T>(items: &[T], most: usize) -> impl Iterator<Item = &T> {
    let shown = items.len().min(most);
    (0..shown).map(move |i| &items[if shown < 2 { 0 } else { i * (items.len() - 1) / (shown - 1) }])
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> Option<f64> {
    let n = values.len();
    (n > 0).then(|| values.sum::<f64>() / real(n as u64))
}

/// What stands where there is no number.
fn absent() -> String {
    "–".to_owned()
}

fn left_out(of: usize, most: usize, what: &str) -> String {
    if of <= most {
        return String::new();
    }
    format!(
        "<p class=\"note\">The first {most} of {} {what}; <code>report.json</code> has all.</p>\n",
        count(of as u64)
    )
}

fn plural<'a>(n: u64, one: &'a str, many: &'a str) -> &'a str {
    if n == 1 { one } else { many }
}

/// `24,000`.
fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, which is right for display")]
fn count_real(n: f64) -> String {
    count(n.round() as u64)
}

/// `1.54 MB`: three digits, decimal units.
fn bytes(n: f64) -> String {
    let (value, unit) = match n {
        n if n < 999.5 => (n, "B"),
        n if n < 999.5e3 => (n / 1e3, "kB"),
        n if n < 999.5e6 => (n / 1e6, "MB"),
        n if n < 999.5e9 => (n / 1e9, "GB"),
        n => (n / 1e12, "TB"),
    };
    if unit == "B" && n.fract() == 0.0 { format!("{n} B") } else { format!("{} {unit}", three_digits(value)) }
}

fn bytes_or_absent(n: u64) -> String {
    if n == 0 { absent() } else { bytes(real(n)) }
}

/// `142 ms`, `6.41 s`, `3 min 20 s`, `2 h 5 min`.
fn seconds(s: f64) -> String {
    if s < 0.9995 {
        return format!("{} ms", three_digits(s * 1e3));
    }
    if s < 99.95 {
        return format!("{} s", three_digits(s));
    }
    let s = s.round();
    let (hours, minutes) = ((s / 3600.0).floor(), (s / 60.0).floor());
    if hours > 0.0 {
        format!("{hours} h {} min", minutes - hours * 60.0)
    } else {
        format!("{minutes} min {} s", s - minutes * 60.0)
    }
}

fn three_digits(value: f64) -> String {
    let decimals = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.decimals$}")
}

/// Four digits: losses of one session differ in the third or fourth.
fn loss(value: f64) -> String {
    if value != 0.0 && !(1e-3..1e5).contains(&value.abs()) { format!("{value:.3e}") } else { format!("{value:.4}") }
}

/// What UDP carried beyond the messages.
fn overhead(total: &Total<'_>) -> String {
    if total.wire == 0 || total.sent == 0 {
        return absent();
    }
    format!("{:+.1} %", (real(total.wire) / real(total.sent) - 1.0) * 100.0)
}

#[expect(clippy::cast_precision_loss, reason = "for display")]
fn real(n: u64) -> f64 {
    n as f64
}

/// Text that stands for itself in an element and in a quoted attribute.
fn escape(text: impl Display) -> String {
    let mut escaped = String::new();
    for c in text.to_string().chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}
