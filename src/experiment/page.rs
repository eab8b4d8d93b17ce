//! `report.html`, one page for all experiments, and `results.json`, the data behind it.

use super::analysis::{Findings, analyse};
use super::plan::{Experiment, ExperimentError};
use super::store::{Finished, Outcome};
use crate::report::chart::table;
use crate::report::document;
use crate::report::number::escape;
use serde::Serialize;
use spnn_protocol::write_durable;
use std::collections::BTreeSet;
use std::path::Path;

#[derive(Serialize)]
struct Results<'a> {
    spnn: &'a str,
    command: &'a str,
    machine: String,
    experiments: Vec<Section<'a>>,
}

#[derive(Serialize)]
struct Section<'a> {
    name: &'a str,
    #[serde(flatten)]
    file: &'a super::plan::ExperimentFile,
    findings: Findings,
    planned: usize,
    finished: Vec<&'a Finished>,
    skipped: &'a [super::plan::Skipped],
}

/// Writes both files into `out`.
///
/// # Errors
/// [`ExperimentError::File`] naming the file that could not be written.
pub fn write(
    out: &Path,
    experiments: &[Experiment],
    finished: &[Finished],
    command: &str,
) -> Result<(), ExperimentError> {
    let section = |e: &'_ Experiment| -> Vec<usize> {
        (0..finished.len()).filter(|&i| finished[i].run.experiment == e.name).collect()
    };
    let sections = experiments.iter().map(|e| {
        let of: Vec<&Finished> = section(e).into_iter().map(|i| &finished[i]).collect();
        let findings = analyse(e, &of);
        Section { name: &e.name, file: &e.file, findings, planned: e.runs.len(), finished: of, skipped: &e.skipped }
    });
    let results =
        Results { spnn: env!("CARGO_PKG_VERSION"), command, machine: machine(), experiments: sections.collect() };
    let file = |name: &str| out.join(name);
    let failed = |name: &str, source: std::io::Error| ExperimentError::File { file: file(name), source };
    let json = serde_json::to_vec_pretty(&results).map_err(|e| failed("results.json", e.into()))?;
    for (name, bytes) in [("results.json", json), ("report.html", html(&results).into_bytes())] {
        write_durable(&file(name), &bytes).map_err(|e| failed(name, std::io::Error::other(e.to_string())))?;
    }
    Ok(())
}

/// Cores and processor, as the system names them.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")).map(|m| m.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!("{}, {cores} cores, {}", model.unwrap_or("unknown processor"), std::env::consts::OS)
}

/// The page.
fn html(results: &Results<'_>) -> String {
    let sections: String = results.experiments.iter().map(section).collect();
    let contents: String = results
        .experiments
        .iter()
        .map(|s| {
            let verdict = match s.findings.passed {
                Some(true) => " <b>passed</b>",
                Some(false) => " <b>NOT PASSED</b>",
                None => "",
            };
            format!("<li><b>{}</b>.{verdict} {}</li>\n", escape(&s.file.title), escape(&s.findings.answer))
        })
        .collect();
    let builds: BTreeSet<&str> =
        results.experiments.iter().flat_map(|s| &s.finished).map(|f| f.build.as_str()).collect();
    let mixed = match builds.len() {
        0 | 1 => String::new(),
        n => format!("<p class=\"leaks\">These runs are of {n} builds; --fresh repeats all with one.</p>\n"),
    };
    let body = format!(
        r#"<h1>SPNN experiments</h1>
<p class="note">{machine}; every role a process of its own on it, over QUIC. Made by <code>{command}</code>: {runs} runs,
{minutes:.0} minutes.</p>
{mixed}<ul class="answers">
{contents}</ul>
{sections}{seen}<footer class="note">SPNN {version} · build {builds}</footer>
"#,
        machine = escape(&results.machine),
        command = escape(results.command),
        seen = who_saw_what(results),
        runs = results.experiments.iter().map(|s| s.finished.len()).sum::<usize>(),
        minutes = results.experiments.iter().flat_map(|s| &s.finished).map(|f| f.seconds).sum::<f64>() / 60.0,
        version = escape(results.spnn),
        builds = escape(builds.into_iter().collect::<Vec<_>>().join(", ")),
    );
    document("SPNN experiments", "experiments", &body)
}

fn section(s: &Section<'_>) -> String {
    let expected = if s.file.expected.is_empty() {
        String::new()
    } else {
        format!("<p class=\"note\">Expected: {}</p>\n", escape(&s.file.expected))
    };
    let verdict = match s.findings.passed {
        Some(true) => "<b>Passed.</b> ",
        Some(false) => "<b>NOT PASSED.</b> ",
        None => "",
    };
    let tables: String = s
        .findings
        .tables
        .iter()
        .map(|t| {
            let header: Vec<&str> = t.header.iter().map(String::as_str).collect();
            table(&header, t.rows.iter().map(|row| row.iter().map(escape).collect()))
        })
        .collect();
    let skipped: String = s
        .skipped
        .iter()
        .map(|k| {
            let (session, file, from) = (escape(&k.session), escape(k.file.display()), escape(&k.from));
            format!("<li>SKIPPED <b>{session}</b>: <code>{file}</code> is missing. {from}</li>\n")
        })
        .collect();
    let failed: String = s
        .finished
        .iter()
        .filter_map(|f| match &f.outcome {
            Outcome::Failed(error) => {
                Some(format!("<li>FAILED <b>{}</b>: {}</li>\n", escape(f.run.label()), escape(error)))
            }
            Outcome::Measured(_) => None,
        })
        .collect();
    let missing = match s.planned.saturating_sub(s.finished.len()) {
        0 => String::new(),
        n => format!("<li>{n} of {} runs have not been made; the same command goes on with them.</li>\n", s.planned),
    };
    let problems = [skipped, failed, missing].concat();
    let problems =
        if problems.is_empty() { problems } else { format!("<div class=\"leaks\"><ul>\n{problems}</ul></div>\n") };
    let example = s.finished.first().map_or(String::new(), |f| {
        format!(
            "<details><summary>How it was run</summary><p class=\"note\">{} runs; seeds {}; the first one's session:</p>\
             <pre>{}</pre></details>\n",
            s.finished.len(),
            s.file.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
            escape(shown(&f.run.text))
        )
    });
    format!(
        "<section>\n<h2 id=\"{name}\">{title}</h2>\n<p>{question}</p>\n{expected}<p class=\"result\">{verdict}{answer}</p>\n\
         {problems}<div class=\"figures\">\n{figures}</div>\n{tables}{example}</section>\n",
        name = escape(s.name),
        title = escape(&s.file.title),
        question = escape(&s.file.question),
        answer = escape(&s.findings.answer),
        figures = s.findings.figures,
    )
}

/// A session file as it is shown: where this machine keeps its data is nobody's business.
fn shown(text: &str) -> String {
    let line = |line: &str| match line.strip_prefix("file = \"").and_then(|rest| rest.strip_suffix('"')) {
        Some(file) => {
            let name = Path::new(file).file_name().unwrap_or_default();
            format!("file = \"{}\"", name.to_string_lossy())
        }
        None => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// For every method that ran: what each role sees.
fn who_saw_what(results: &Results<'_>) -> String {
    let methods: BTreeSet<&str> = results
        .experiments
        .iter()
        .flat_map(|s| &s.finished)
        .filter(|f| f.measured().is_some())
        .map(|f| f.run.method.split_once('-').map_or(f.run.method.as_str(), |(kind, _)| kind))
        .collect();
    let sum = "the sum H1, the gradient of its output (which gives labels away)";
    let party = "its own rows and products; grad_h1 (which gives labels away)";
    let holder = "as a party; labels, last hidden output, predictions";
    let nothing = "sizes, identities, timing, metrics";
    let rows: String = methods
        .into_iter()
        .map(|method| {
            let [server, parties, label_holder, others] = match method {
                "pooled" => ["everything: all columns in one place", "–", "–", "–"],
                "alone" => ["–", "its own rows only", "its own rows and labels", "–"],
                "attack" => ["as in sharing; this experiment is the server guessing from it", party, holder, nothing],
                "plain" => ["every party's product: nothing is protected", party, holder, nothing],
                "sharing" => [sum, party, holder, nothing],
                "paillier" => [sum, "as in sharing; ciphertexts it cannot read", holder, nothing],
                "beaver" => [
                    sum,
                    "its own rows; grad_h1 (which gives labels away); shares and masked values of the others, uniform to it",
                    holder,
                    "sizes, identities, timing, metrics; the triples, with which it and any party could open all data",
                ],
                _ => ["–"; 4],
            };
            let cells = [
                ("Server", server),
                ("Party", parties),
                ("Label holder", label_holder),
                ("Coordinator, dealer", others),
            ]
            .map(|(is, saw)| format!("<td data-is=\"{is}\">{saw}</td>"))
            .concat();
            format!("<tr><th scope=\"row\">{}</th>{cells}</tr>\n", escape(method))
        })
        .collect();
    format!(
        "<section><h2>Who saw what</h2>\n<table class=\"learned\"><thead><tr><th>Method</th><th>Server</th><th>Party</th>\
         <th>Label holder</th><th>Coordinator, dealer</th></tr></thead><tbody>\n{rows}</tbody></table></section>\n"
    )
}
