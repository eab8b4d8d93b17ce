//! Finished runs → an answer in one sentence, plots, tables. One function for each kind of experiment.

use super::plan::{Experiment, Kind, Run};
use super::store::{Finished, Measured};
use crate::report::chart::{Bar, Chart, Dots, Point, Scale, Series, bar_figure, dot_figure};
use crate::report::number::{bytes, count, mean, real, seconds};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A table of text.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// Names of the columns.
    pub header: Vec<String>,
    /// Cells.
    pub rows: Vec<Vec<String>>,
}

/// What an experiment found.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// One sentence or two, made of what was measured.
    pub answer: String,
    /// Whether what the experiment file demands is so.
    pub passed: Option<bool>,
    /// Tables.
    pub tables: Vec<Table>,
    /// Plots, as HTML.
    #[serde(skip)]
    pub figures: String,
}

/// What the finished runs of an experiment say.
#[must_use]
pub fn analyse(experiment: &Experiment, finished: &[&Finished]) -> Findings {
    let groups = Groups::new(experiment, finished);
    if groups.cells.is_empty() {
        let answer = "No run of this experiment has given numbers yet.".to_owned();
        return Findings { answer, passed: None, tables: Vec::new(), figures: String::new() };
    }
    let mut findings = match experiment.file.kind {
        Kind::Accuracy => accuracy(experiment, &groups, finished),
        Kind::Cost => cost(&groups),
        Kind::Scaling => curves(&groups, Scale::Log, true, false),
        Kind::Growth => curves(&groups, Scale::Log, true, true),
        Kind::Network => {
            let from_zero = groups.points().iter().any(|&x| x <= 0.0);
            curves(&groups, if from_zero { Scale::Linear } else { Scale::Log }, false, false)
        }
        Kind::PropertyAttack => property_attack(&groups),
    };
    let measured = finished.iter().filter(|f| f.measured().is_some()).count();
    let planned = experiment.runs.len();
    if measured < planned || !experiment.skipped.is_empty() {
        // What was not measured can neither pass nor fail.
        findings.passed = findings.passed.filter(|passed| !passed);
        let skipped = experiment.skipped.len();
        findings.answer += &format!(
            " Incomplete: {measured} of {planned} runs gave numbers, {skipped} sessions were skipped for want of data."
        );
    }
    findings
}

/// Runs that differ in their seed only.
struct Cell<'a> {
    session: &'a str,
    method: &'a str,
    x: f64,
    label: &'a str,
    runs: Vec<&'a Measured>,
}

struct Groups<'a> {
    cells: Vec<Cell<'a>>,
    /// What varies.
    what: String,
}

impl<'a> Groups<'a> {
    /// In the order of the experiment file.
    fn new(experiment: &'a Experiment, finished: &[&'a Finished]) -> Self {
        let mut cells: Vec<Cell<'a>> = Vec::new();
        for f in finished {
            let Some(measured) = f.measured() else { continue };
            let (session, method, x) = (f.run.session.as_str(), f.run.method.as_str(), f.run.x());
            #[expect(clippy::float_cmp, reason = "both are copies of one number in the file")]
            let same = cells.iter_mut().find(|c| c.session == session && c.method == method && c.x == x);
            match same {
                Some(cell) => cell.runs.push(measured),
                None => {
                    let label = f.run.at.as_ref().map_or("", |at| at.label.as_str());
                    cells.push(Cell { session, method, x, label, runs: vec![measured] });
                }
            }
        }
        let what = experiment.runs.iter().find_map(|r| r.at.as_ref()).map_or(String::new(), |at| at.what.clone());
        Self { cells, what }
    }

    fn sessions(&self) -> Vec<&'a str> {
        let mut seen = BTreeSet::new();
        self.cells.iter().map(|c| c.session).filter(|s| seen.insert(*s)).collect()
    }

    fn methods(&self) -> Vec<&'a str> {
        let mut seen = BTreeSet::new();
        self.cells.iter().map(|c| c.method).filter(|m| seen.insert(*m)).collect()
    }

    fn points(&self) -> Vec<f64> {
        let mut points: Vec<f64> = self.cells.iter().map(|c| c.x).collect();
        points.sort_by(f64::total_cmp);
        points.dedup();
        points
    }

    fn of(&self, session: &str, method: &str) -> impl Iterator<Item = &Cell<'a>> {
        self.cells.iter().filter(move |c| c.session == session && c.method == method)
    }

    fn color(&self, method: &str) -> usize {
        match method {
            "sharing" => 0,
            "plain" => 1,
            "pooled" => 2,
            "beaver" => 3,
            "paillier" => 5,
            "sharing-32" => 4,
            _ => 7,
        }
    }

    /// One series for each method: the mean over the seeds, and how far they spread.
    fn series(&self, session: &str, value: impl Fn(&Measured) -> Option<f64>, fitted: bool) -> Vec<Series> {
        let series = |method: &&str| {
            let points: Vec<Point> =
                self.of(session, method).filter_map(|c| point(c.x, c.runs.iter().filter_map(|m| value(m)))).collect();
            let fit = if fitted { fit(&points) } else { None };
            let name = fit.map_or((*method).to_owned(), |f| format!("{method} ∝ x^{:.2}", f.exponent));
            Series { color: self.color(method), name, points, joined: true }
        };
        self.methods().iter().map(series).collect()
    }
}

fn point(x: f64, values: impl Iterator<Item = f64>) -> Option<Point> {
    let values: Vec<f64> = values.collect();
    let y = mean(values.iter().copied())?;
    let (low, high) = values.iter().fold((y, y), |(low, high), &v| (low.min(v), high.max(v)));
    Some(Point { x, y, spread: (values.len() > 1).then_some((low, high)) })
}

fn deviation(values: &[f64]) -> f64 {
    let Some(middle) = mean(values.iter().copied()) else { return 0.0 };
    let squares: f64 = values.iter().map(|v| (v - middle).powi(2)).sum();
    (squares / real(values.len().saturating_sub(1).max(1) as u64)).sqrt()
}

/// `y = factor · x^exponent`, least squares in logarithms.
#[derive(Clone, Copy, Debug)]
struct Fit {
    exponent: f64,
    low: f64,
    high: f64,
}

fn fit(points: &[Point]) -> Option<Fit> {
    let logs: Vec<(f64, f64)> =
        points.iter().filter(|p| p.x > 0.0 && p.y > 0.0).map(|p| (p.x.ln(), p.y.ln())).collect();
    let (mx, my) = (mean(logs.iter().map(|l| l.0))?, mean(logs.iter().map(|l| l.1))?);
    let (xx, xy) = logs.iter().fold((0.0, 0.0), |(xx, xy), (x, y)| (xx + (x - mx).powi(2), xy + (x - mx) * (y - my)));
    let ends = logs.iter().fold((f64::MAX, f64::MIN), |(low, high), (x, _)| (low.min(*x), high.max(*x)));
    (logs.len() > 1 && xx > 0.0).then(|| Fit { exponent: xy / xx, low: ends.0.exp(), high: ends.1.exp() })
}

fn auc(m: &Measured) -> Option<f64> {
    m.test?.auc
}

/// A count that went through a logarithm.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and far below 2^64")]
fn whole(v: f64) -> String {
    count(v.round() as u64)
}

fn four(v: f64) -> String {
    format!("{v:.4}")
}

fn sent(m: &Measured) -> f64 {
    m.per_epoch(|e| real(e.bytes_by_kind.values().fold(0, |sum: u64, n| sum.saturating_add(*n))))
}

fn accuracy(experiment: &Experiment, groups: &Groups<'_>, finished: &[&Finished]) -> Findings {
    let mut figures = String::new();
    let mut rows = Vec::new();
    let (mut compared, mut worst, mut where_worst) = (0, 0.0_f64, String::new());
    let mut joined = Vec::new();
    let varied = groups.points().len() > 1;
    for session in groups.sessions() {
        let mut dots = Vec::new();
        for method in groups.methods() {
            for cell in groups.of(session, method) {
                let values: Vec<f64> = cell.runs.iter().filter_map(|m| auc(m)).collect();
                let Some(middle) = mean(values.iter().copied()) else { continue };
                #[expect(clippy::float_cmp, reason = "both are copies of one number in the file")]
                let pooled = groups.of(session, "pooled").find(|c| c.x == cell.x);
                let pooled =
                    pooled.and_then(|c| mean(c.runs.iter().filter_map(|m| auc(m)).collect::<Vec<_>>().into_iter()));
                let difference = pooled.map(|p| middle - p);
                if let Some(d) = difference.filter(|_| method != "pooled") {
                    if method.starts_with("alone") {
                        joined.push(-d);
                    } else {
                        compared += 1;
                        if d.abs() >= worst {
                            (worst, where_worst) = (d.abs(), format!("{method} on {session}"));
                        }
                    }
                }
                let mut row = vec![session.to_owned(), method.to_owned()];
                if varied {
                    row.push(cell.label.to_owned());
                }
                row.extend([
                    values.len().to_string(),
                    four(middle),
                    four(deviation(&values)),
                    difference.map_or("–".into(), |d| format!("{d:+.5}")),
                ]);
                rows.push(row);
                dots.push(Dots { name: method.to_owned(), color: groups.color(method), values });
            }
        }
        if varied {
            figures += &Chart {
                title: session,
                unit: "test AUC, mean and spread over the seeds",
                x: Scale::Linear,
                y: Scale::Linear,
                x_label: &groups.what,
                shapes: true,
                say: four,
                series: groups.series(session, auc, false),
            }
            .figure();
            continue;
        }
        figures += &dot_figure(session, "test AUC; each seed a mark, the mean a bar", four, &dots);
        type OfEpoch = fn(&super::store::MeasuredEpoch) -> Option<f64>;
        let is_curve = groups.cells.iter().flat_map(|c| &c.runs).any(|m| m.epochs.len() > 1);
        if !is_curve {
            continue;
        }
        let curves: [(&str, OfEpoch); 2] =
            [("train loss", |e| e.train_loss), ("test AUC", |e| e.test.and_then(|t| t.auc))];
        for (what, value) in curves {
            let series = |method: &&str| {
                let cell = groups.of(session, method).next();
                let epochs = cell.map_or(0, |c| c.runs.iter().map(|m| m.epochs.len()).max().unwrap_or(0));
                let points = (0..epochs).filter_map(|i| {
                    let of_seeds = cell.into_iter().flat_map(|c| &c.runs).filter_map(|m| value(m.epochs.get(i)?));
                    point(real(i as u64 + 1), of_seeds)
                });
                Series {
                    color: groups.color(method),
                    name: (*method).to_owned(),
                    points: points.collect(),
                    joined: true,
                }
            };
            let methods = groups.methods();
            figures += &Chart {
                title: session,
                unit: &format!("{what}, mean and spread over the seeds"),
                x: Scale::Count,
                y: Scale::Linear,
                x_label: "epoch",
                shapes: true,
                say: four,
                series: methods.iter().filter(|m| !m.starts_with("alone")).map(series).collect(),
            }
            .figure();
        }
    }
    let mut answer = String::new();
    let mut passed = None;
    if compared > 0 {
        answer += &format!(
            "The mean test AUC of training on split columns differs from that on pooled columns by at most {worst:.5} \
             ({where_worst}; {compared} comparisons)"
        );
        if let Some(bound) = experiment.file.bound {
            passed = Some(worst <= bound);
            let word = if worst <= bound { "within" } else { "beyond" };
            answer += &format!(", {word} the bound of {bound}");
        }
        answer += ".";
    }
    if let Some(gain) = mean(joined.iter().copied()) {
        answer += &format!(" A party alone reaches {gain:.3} less than all together, in the mean.");
    }
    for (method, (same, all)) in as_sharing(finished) {
        answer += &format!(" {method} came to the weights of sharing, bit for bit, in {same} of {all} runs.");
    }
    let mut header = vec!["Session", "Method"];
    if varied {
        header.push(&groups.what);
    }
    header.extend(["Seeds", "AUC, mean", "± sd", "To pooled"]);
    Findings { answer, passed, tables: vec![table(&header, rows)], figures }
}

/// By method, in how many runs it came to the very weights of `sharing` from the same seed, and of how many; without
/// those that never do.
fn as_sharing<'a>(finished: &[&'a Finished]) -> BTreeMap<&'a str, (u32, u32)> {
    let mut found: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    let weights = |f: &Finished| f.measured().and_then(|m| m.weights.clone());
    for f in finished.iter().filter(|f| f.run.method != "sharing" && weights(f).is_some()) {
        let key = |r: &Run| (r.session.clone(), r.at.clone(), r.seed);
        let sharing = finished.iter().find(|s| s.run.method == "sharing" && key(&s.run) == key(&f.run));
        if let Some(sharing) = sharing {
            let (same, all) = found.entry(&f.run.method).or_default();
            *same += u32::from(weights(sharing) == weights(f));
            *all += 1;
        }
    }
    found.retain(|_, (same, _)| *same > 0);
    found
}

fn table(header: &[&str], rows: Vec<Vec<String>>) -> Table {
    Table { header: header.iter().map(|h| (*h).to_owned()).collect(), rows }
}

fn cost(groups: &Groups<'_>) -> Findings {
    let mut figures = String::new();
    let mut rows = Vec::new();
    let mut answers = Vec::new();
    for session in groups.sessions() {
        let cells: Vec<&Cell<'_>> = groups.cells.iter().filter(|c| c.session == session).collect();
        let of = |c: &Cell<'_>, value: &dyn Fn(&Measured) -> Option<f64>| {
            mean(c.runs.iter().filter_map(|m| value(m)).collect::<Vec<_>>().into_iter())
        };
        let time = |c: &Cell<'_>| of(c, &Measured::epoch_seconds).unwrap_or_default();
        let kinds: BTreeSet<&str> = cells
            .iter()
            .flat_map(|c| &c.runs)
            .flat_map(|m| &m.epochs)
            .flat_map(|e| e.bytes_by_kind.keys().map(String::as_str))
            .collect();
        let parts: Vec<(usize, &str)> = kinds.iter().copied().enumerate().collect();
        let by_kind = |c: &Cell<'_>, kind: &str| {
            of(c, &|m| Some(m.per_epoch(|e| real(e.bytes_by_kind.get(kind).copied().unwrap_or(0))))).unwrap_or_default()
        };
        let times: Vec<Bar> = cells.iter().map(|c| Bar { name: c.method.into(), parts: vec![time(c)] }).collect();
        figures += &bar_figure(&format!("{session}: wall time of an epoch"), &[(0, "time")], seconds, &times);
        let volumes: Vec<Bar> = cells
            .iter()
            .map(|c| Bar { name: c.method.into(), parts: kinds.iter().map(|k| by_kind(c, k)).collect() })
            .collect();
        figures += &bar_figure(&format!("{session}: messages of an epoch"), &parts, bytes, &volumes);
        for c in &cells {
            let cpu = of(c, &|m| Some(m.per_epoch(|e| e.cpu_seconds))).unwrap_or_default();
            let wire = of(c, &|m| Some(m.per_epoch(|e| real(e.wire_bytes)))).unwrap_or_default();
            let rss = of(c, &|m| m.peak_rss_bytes.values().max().map(|&n| real(n))).unwrap_or_default();
            let messages = of(c, &|m| Some(sent(m))).unwrap_or_default();
            rows.push(vec![
                session.to_owned(),
                c.method.to_owned(),
                c.runs.len().to_string(),
                seconds(time(c)),
                seconds(cpu),
                bytes(messages),
                bytes(wire),
                bytes(rss),
            ]);
        }
        let find = |method: &str| cells.iter().find(|c| c.method == method).map(|c| time(c));
        if let Some(base) = find("plain").filter(|t| *t > 0.0) {
            let times: Vec<String> = cells
                .iter()
                .filter(|c| !matches!(c.method, "plain" | "pooled") && !c.method.starts_with("alone"))
                .map(|c| format!("{} {:.1} times", c.method, time(c) / base))
                .collect();
            answers
                .push(format!("On {session}, an epoch takes, of the time without protection: {}.", times.join(", ")));
        }
    }
    let header =
        ["Session", "Method", "Seeds", "Time/epoch", "CPU/epoch", "Messages/epoch", "UDP/epoch", "Largest process"];
    Findings { answer: answers.join(" "), passed: None, tables: vec![table(&header, rows)], figures }
}

/// `fitted` where a power is expected; over a line, time is a sum of parts instead.
fn curves(groups: &Groups<'_>, x: Scale, fitted: bool, memory: bool) -> Findings {
    let mut figures = String::new();
    let mut rows = Vec::new();
    let mut answers = Vec::new();
    for session in groups.sessions() {
        let mut chart = |unit: &str, say: fn(f64) -> String, value: &dyn Fn(&Measured) -> Option<f64>| {
            let series = groups.series(session, value, fitted);
            let y = if x == Scale::Log { Scale::Log } else { Scale::Linear };
            let title = session;
            figures += &Chart { title, unit, x, y, x_label: &groups.what, shapes: true, say, series }.figure();
        };
        chart("seconds an epoch", seconds, &Measured::epoch_seconds);
        chart("bytes of messages an epoch", bytes, &|m| Some(sent(m)).filter(|b| *b > 0.0));
        if memory {
            chart("largest resident set of a party, bytes", bytes, &party_rss);
            chart("largest resident set of a party, times its own data", four, &|m| Some(party_rss(m)? / own_data(m)?));
        }
        for method in groups.methods() {
            let points = |value: &dyn Fn(&Measured) -> Option<f64>| -> Vec<Point> {
                let cells = groups.of(session, method);
                cells.filter_map(|c| point(c.x, c.runs.iter().filter_map(|m| value(m)))).collect()
            };
            let exponent = |what: &str, value: &dyn Fn(&Measured) -> Option<f64>| {
                fit(&points(value)).map(|f| format!("{what} as {}^{:.2}", groups.what, f.exponent))
            };
            let memory_exponent = if memory { exponent("memory", &party_rss) } else { None };
            let points = points(&Measured::epoch_seconds);
            if let (true, Some(f)) = (fitted, fit(&points)) {
                let grow = [
                    exponent("time grows", &Measured::epoch_seconds),
                    exponent("bytes", &|m| Some(sent(m)).filter(|b| *b > 0.0)),
                    memory_exponent,
                ];
                let grow: Vec<String> = grow.into_iter().flatten().collect();
                let ends = [f.low, f.high].map(whole);
                answers.push(format!("{method}: {} (fitted from {} to {})", grow.join(", "), ends[0], ends[1]));
            } else if let (Some(first), Some(last)) = (points.first(), points.last()) {
                let (a, b) = (seconds(first.y), seconds(last.y));
                answers.push(format!("{method}: {a} an epoch at {} {}, {b} at {}", groups.what, first.x, last.x));
            }
            for cell in groups.of(session, method) {
                let of = |value: &dyn Fn(&Measured) -> Option<f64>| {
                    mean(cell.runs.iter().filter_map(|m| value(m)).collect::<Vec<_>>().into_iter())
                };
                let mut row = vec![
                    session.to_owned(),
                    method.to_owned(),
                    cell.label.to_owned(),
                    cell.runs.len().to_string(),
                    of(&Measured::epoch_seconds).map_or("–".into(), seconds),
                    of(&|m| Some(m.per_epoch(|e| e.cpu_seconds))).map_or("–".into(), seconds),
                    of(&|m| Some(sent(m))).map_or("–".into(), bytes),
                ];
                if memory {
                    row.push(of(&party_rss).map_or("–".into(), bytes));
                    row.push(of(&|m| Some(party_rss(m)? / own_data(m)?)).map_or("–".into(), |r| format!("{r:.2}")));
                }
                rows.push(row);
            }
        }
    }
    let mut header =
        vec!["Session", "Method", groups.what.as_str(), "Seeds", "Time/epoch", "CPU/epoch", "Messages/epoch"];
    if memory {
        header.extend(["Party, peak RSS", "× its data"]);
    }
    Findings { answer: answers.join("; ") + ".", passed: None, tables: vec![table(&header, rows)], figures }
}

/// Of the party that has the largest.
fn party_rss(m: &Measured) -> Option<f64> {
    m.peak_rss_bytes.iter().filter(|(role, _)| role.starts_with("party")).map(|(_, &n)| n).max().map(real)
}

/// Features of the party with the most columns, as `f32`.
fn own_data(m: &Measured) -> Option<f64> {
    let columns = m.features.iter().max()?;
    Some(f64::from(m.train_rows) * f64::from(*columns) * 4.0).filter(|b| *b > 0.0)
}

fn property_attack(groups: &Groups<'_>) -> Findings {
    let mut figures = String::new();
    let mut rows = Vec::new();
    let mut answer = String::new();
    for session in groups.sessions() {
        let mut means: BTreeMap<String, [f64; 3]> = BTreeMap::new();
        type OfRun = fn(&Measured) -> Option<f64>;
        let values: [(&str, OfRun); 3] = [
            ("attack, h1 of the last epoch", |m| Some(m.attack?.one_epoch)),
            ("attack, h1 of all epochs", |m| Some(m.attack?.all_epochs)),
            ("task", auc),
        ];
        for (i, (what, value)) in values.iter().enumerate() {
            let dots: Vec<Dots> = groups
                .cells
                .iter()
                .filter(|c| c.session == session)
                .enumerate()
                .map(|(color, c)| {
                    let values: Vec<f64> = c.runs.iter().filter_map(|m| value(m)).collect();
                    let middle = mean(values.iter().copied()).unwrap_or(f64::NAN);
                    means.entry(c.label.to_owned()).or_insert([f64::NAN; 3])[i] = middle;
                    rows.push(vec![
                        session.to_owned(),
                        c.label.to_owned(),
                        (*what).to_owned(),
                        values.len().to_string(),
                        four(middle),
                        four(deviation(&values)),
                    ]);
                    Dots { name: c.label.to_owned(), color, values }
                })
                .collect();
            figures += &dot_figure(&format!("{session}: {what}"), "AUC, each seed a mark", four, &dots);
        }
        let plain = means.iter().find(|(label, _)| !label.starts_with("sgld")).map(|(_, v)| *v);
        for (label, noisy) in means.iter().filter(|(label, _)| label.starts_with("sgld")) {
            let Some(plain) = plain else { continue };
            let moved = |name: &str, i: usize| {
                let word = if noisy[i] < plain[i] - 0.005 {
                    "falls"
                } else if noisy[i] > plain[i] + 0.005 {
                    "rises"
                } else {
                    "stays"
                };
                format!("{name} {word} ({:.3} → {:.3})", plain[i], noisy[i])
            };
            answer += &format!(
                "With {label}, on {session}: from one epoch, the attack {}; from all epochs side by side it {}; the task {}. ",
                moved("", 0).trim(),
                moved("", 1).trim(),
                moved("", 2).trim(),
            );
            answer += if noisy[1] > 0.6 && noisy[1] > plain[1] - 0.05 {
                "A server that keeps what it sees is not hindered: this noise is no protection. "
            } else if noisy[0] < plain[0] - 0.05 && noisy[1] < plain[1] - 0.05 {
                "Both attacks are weaker; what is left is a lower bound on the leak. "
            } else {
                ""
            };
        }
    }
    let header = ["Session", "Optimizer", "AUC of", "Seeds", "Mean", "± sd"];
    Findings { answer: answer.trim_end().to_owned(), passed: None, tables: vec![table(&header, rows)], figures }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_law_is_found() {
        let points: Vec<Point> = [1.0, 10.0, 100.0].map(|x: f64| Point::new(x, 3.0 * x.powf(1.5))).into();
        let fit = fit(&points).unwrap();
        assert!((fit.exponent - 1.5).abs() < 1e-9, "{}", fit.exponent);
        assert!((fit.low - 1.0).abs() < 1e-9 && (fit.high - 100.0).abs() < 1e-9);
        assert!(super::fit(&points[..1]).is_none());
    }
}
