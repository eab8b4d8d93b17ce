//! `spnn experiment`: runs what experiment files stand for, one after the other, and writes the report.

use super::launch::{Launch, launch, watch_signals};
use super::simulate::{make_certificates, say, write};
use super::{CliError, RunExperiment};
use spnn::coordinator::SessionRecord;
use spnn::experiment::plan::{self, Changes};
use spnn::experiment::store::digest;
use spnn::experiment::{Experiment, Finished, Measured, Outcome, Run, Store, attack, data, page};
use spnn::pooled::Pooled;
use spnn::protocol::{Role, SessionFile, Task};
use spnn::sources::sources;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often a child is looked at.
const POLL: Duration = Duration::from_millis(10);

pub(crate) fn run(args: &RunExperiment) -> Result<(), CliError> {
    let changes = Changes { data: args.data.clone(), seeds: args.seeds, only: args.only.clone() };
    let experiments = plan::read(&args.paths, &changes)?;
    if experiments.is_empty() {
        return Err(CliError::Usage("no experiment file was found under these paths and names".into()));
    }
    if args.list {
        for e in &experiments {
            say(&format!("{:<14} {:>4} runs  {}", e.name, e.runs.len(), e.file.title));
        }
        return Ok(());
    }
    let out =
        args.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(format!("experiment-{}", name(&args.paths))));
    let store = Store::new(&out);
    if args.fresh {
        store.clear()?;
    }
    let stop = watch_signals()?;
    let mut runner = Runner { store, work: out.join("work"), stop, build: build(), finished: Vec::new() };
    runner.run_all(&experiments)?;
    // What was made for runs is gone with them, but the directory itself.
    let _ = fs::remove_dir_all(&runner.work);
    let command = std::env::args().collect::<Vec<_>>().join(" ");
    page::write(&out, &experiments, &runner.finished, &command)?;
    say(&format!("report: {}", out.join("report.html").display()));
    for skipped in experiments.iter().flat_map(|e| &e.skipped) {
        say(&format!("SKIPPED {}: {} is missing; {}", skipped.session, skipped.file.display(), skipped.from));
    }
    let failed = runner.finished.iter().filter(|f| f.measured().is_none()).count();
    if failed > 0 {
        let of = runner.finished.len();
        return Err(CliError::Usage(format!("{failed} of {of} runs failed; the report names each with its error")));
    }
    Ok(())
}

/// Of the output directory: the last part of the first path.
fn name(paths: &[PathBuf]) -> String {
    paths.first().and_then(|p| p.file_stem()).map_or("none".into(), |n| n.to_string_lossy().into_owned())
}

/// The first digits of this program's SHA-256, so that a report says when its runs are of different builds.
fn build() -> String {
    let program = std::env::current_exe().and_then(fs::read).unwrap_or_default();
    spnn::experiment::store::digest(&program)
}

struct Runner {
    store: Store,
    work: PathBuf,
    stop: Arc<AtomicBool>,
    build: String,
    finished: Vec<Finished>,
}

impl Runner {
    /// All runs that are not finished; ends early when this process is asked to stop.
    fn run_all(&mut self, experiments: &[Experiment]) -> Result<(), CliError> {
        let runs: Vec<(&Run, f64)> =
            experiments.iter().flat_map(|e| e.runs.iter().map(|r| (r, e.file.expected_seconds))).collect();
        let mut estimate = Estimate::default();
        let mut due = Vec::new();
        for (run, expected) in runs {
            match self.store.load(run) {
                Some(finished) => {
                    estimate.learn(run, finished.seconds);
                    self.finished.push(finished);
                }
                None => due.push((run, expected)),
            }
        }
        if !self.finished.is_empty() {
            say(&format!("{} finished runs are taken over; --fresh repeats them", self.finished.len()));
        }
        let all = due.len();
        for (i, (run, _)) in due.iter().enumerate() {
            let started = Instant::now();
            let outcome = self.one(run);
            if self.stop.load(Ordering::Relaxed) {
                say("asked to stop; the same command goes on from here");
                break;
            }
            let outcome = outcome.map_or_else(|e| Outcome::Failed(e.to_string()), Outcome::Measured);
            let seconds = started.elapsed().as_secs_f64();
            let finished = Finished { run: (*run).clone(), outcome, seconds, build: self.build.clone() };
            self.store.save(&finished)?;
            if finished.measured().is_some() {
                estimate.learn(run, seconds);
            }
            let left: f64 =
                due[i + 1..].iter().map(|(run, expected)| estimate.of(run, *expected)).sum::<f64>().max(0.0);
            let result = match &finished.outcome {
                Outcome::Measured(m) => result(m),
                Outcome::Failed(error) => format!("FAILED: {}", error.lines().last().unwrap_or_default()),
            };
            say(&format!("[{}/{all}] {}  {result}  {seconds:.1} s, {} left", i + 1, run.label(), minutes(left)));
            self.finished.push(finished);
        }
        Ok(())
    }

    /// One run in a directory of its own, which is removed.
    fn one(&self, run: &Run) -> Result<Measured, CliError> {
        let directory = std::path::absolute(self.work.join(run.digest()))
            .map_err(|source| CliError::File { file: self.work.clone(), source })?;
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).map_err(|source| CliError::File { file: directory.clone(), source })?;
        let measured = self.measure(run, &directory);
        let _ = fs::remove_dir_all(&directory);
        measured
    }

    fn measure(&self, run: &Run, directory: &Path) -> Result<Measured, CliError> {
        let file = data::prepare(run, directory)?;
        let text = toml::to_string(&file).map_err(|e| CliError::Usage(e.to_string()))?;
        write(&directory.join("session.toml"), &text)?;
        match (run.method.as_str(), &run.property) {
            (_, Some(property)) => Ok(attack::measure(&file.config()?, &sources(&file.data, directory)?, property)?),
            ("pooled", None) => self.pooled(directory, None),
            (method, None) => match method.strip_prefix("alone-") {
                Some(party) => self.pooled(directory, Some(party)),
                None => self.session(run, &file, directory),
            },
        }
    }

    fn session(&self, run: &Run, file: &SessionFile, directory: &Path) -> Result<Measured, CliError> {
        let session = file.config()?;
        make_certificates(directory, session.roles())?;
        launch(&Launch {
            run_dir: directory,
            session: &session,
            sources: &sources(&file.data, directory)?,
            task: Task::Train,
            report: directory,
            scores: None,
            service: None,
            log: "warn",
            // Longer than any run: checkpoints are measured elsewhere.
            checkpoint_every: Duration::from_secs(1_000_000),
            line: run.line,
            quiet: true,
            stop: Arc::clone(&self.stop),
        })?;
        let report = directory.join("report.json");
        let text = fs::read_to_string(&report).map_err(|source| CliError::File { file: report.clone(), source })?;
        let record: SessionRecord =
            serde_json::from_str(&text).map_err(|e| CliError::Config { file: report, reason: e.to_string() })?;
        let mut weights = Vec::new();
        for role in session.roles().filter(|r| *r != Role::Coordinator) {
            let model = directory.join(role.to_string()).join("model.safetensors");
            weights.extend(fs::read(&model).map_err(|source| CliError::File { file: model, source })?);
        }
        Ok(Measured { weights: Some(digest(&weights)), ..Measured::from(&record) })
    }

    /// In a process of its own, so that time and memory are its own.
    fn pooled(&self, directory: &Path, party: Option<&str>) -> Result<Measured, CliError> {
        let program = std::env::current_exe().map_err(|source| CliError::File { file: "spnn".into(), source })?;
        let failed = |source| CliError::File { file: program.clone(), source };
        let mut command = Command::new(&program);
        command.args(["pooled", "--json"]).arg(directory.join("session.toml"));
        if let Some(party) = party {
            command.args(["--party", party]);
        }
        let output = directory.join("pooled.json");
        let log = directory.join("pooled.log");
        let file = |f: &Path| fs::File::create(f).map_err(|source| CliError::File { file: f.to_owned(), source });
        command.stdin(Stdio::null()).stdout(file(&output)?).stderr(file(&log)?);
        let mut child = command.spawn().map_err(failed)?;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                break status;
            }
            if self.stop.load(Ordering::Relaxed) {
                let _ = child.kill();
            }
            std::thread::sleep(POLL);
        };
        let read = |f: &Path| fs::read_to_string(f).unwrap_or_default();
        if !status.success() {
            return Err(CliError::Usage(format!("spnn pooled: {}", read(&log).trim())));
        }
        let trained: Pooled = serde_json::from_str(&read(&output))
            .map_err(|e| CliError::Config { file: output, reason: e.to_string() })?;
        Ok(trained.into())
    }
}

fn result(m: &Measured) -> String {
    let auc = m.test.and_then(|t| t.auc).map_or(String::new(), |a| format!("AUC {a:.4}, "));
    let epoch = m.epoch_seconds().map_or(String::new(), |s| format!("{s:.3} s an epoch,"));
    format!("{auc}{epoch}")
}

/// How long runs take, from those that are over.
#[derive(Default)]
struct Estimate {
    /// Sum and number, by what is most alike first.
    seen: HashMap<String, (f64, f64)>,
}

impl Estimate {
    fn keys(run: &Run) -> [String; 3] {
        let at = run.at.as_ref().map_or("", |at| &at.label);
        let Run { experiment, session, method, .. } = run;
        [
            format!("{experiment}/{session}/{method}/{at}"),
            format!("{experiment}/{session}/{method}"),
            format!("{experiment}/{method}"),
        ]
    }

    fn learn(&mut self, run: &Run, seconds: f64) {
        for key in Self::keys(run) {
            let sum = self.seen.entry(key).or_default();
            *sum = (sum.0 + seconds, sum.1 + 1.0);
        }
    }

    fn of(&self, run: &Run, expected: f64) -> f64 {
        Self::keys(run).iter().find_map(|k| self.seen.get(k)).map_or(expected, |(sum, n)| sum / n)
    }
}

fn minutes(seconds: f64) -> String {
    if seconds < 60.0 { format!("{seconds:.0} s") } else { format!("{:.0} min", seconds / 60.0) }
}
