//! What the coordinator shows while a session runs: a bar on a terminal, a line an epoch otherwise.

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use spnn::coordinator::{EpochRecord, Event, Observer, SessionRecord};
use spnn::protocol::message::Metrics;
use spnn::protocol::{Position, ProtocolError, SessionConfig, Task};
use spnn::report;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Shows progress on standard output.
pub(crate) struct Console {
    bar: ProgressBar,
    epochs: u32,
    train_rows: u64,
    /// Trained on before this start.
    rows_before: u64,
    started: Instant,
    terminal: bool,
    /// When the last line was written, where there is no terminal.
    told: Instant,
    /// Where the report goes.
    report: PathBuf,
}

/// A line at least this often within a long epoch, where there is no terminal.
const TELL_EVERY: Duration = Duration::from_secs(10);

impl Console {
    pub(crate) fn new(session: &SessionConfig, task: Task, report: &Path) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let target = if terminal { ProgressDrawTarget::stdout() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let epochs = if task == Task::Train { session.train.epochs } else { 0 };
        let now = Instant::now();
        Self {
            bar,
            epochs,
            train_rows: 0,
            rows_before: 0,
            started: now,
            terminal,
            told: now,
            report: report.to_owned(),
        }
    }

    pub(crate) fn finish(&mut self) {
        self.bar.finish_and_clear();
    }

    pub(crate) fn line(&self, text: &str) {
        if self.terminal {
            self.bar.println(text);
        } else {
            // Whoever reads us may be gone; that must not end a session.
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }

    fn left(&self, rows_done: u64) -> String {
        let all = self.train_rows * u64::from(self.epochs);
        let now = rows_done.saturating_sub(self.rows_before);
        if now == 0 {
            return String::new();
        }
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let left = self.started.elapsed().mul_f64((all.saturating_sub(rows_done)) as f64 / now as f64);
        format!(", {} left", HumanDuration(left))
    }
}

impl Observer for Console {
    fn on(&mut self, event: &Event<'_>) {
        match event {
            Event::Joined(role) => self.line(&format!("{role} has joined")),
            Event::Interrupted(error) => {
                self.line(&format!("interrupted: {error}; waiting for all roles to come back"))
            }
            Event::Started { train_rows, test_rows, from } => {
                self.train_rows = u64::from(*train_rows);
                // Batches of the epoch before this start are few beside the rest.
                self.rows_before = u64::from(from.epoch.saturating_sub(1)) * self.train_rows;
                self.started = Instant::now();
                self.line(&match train_rows {
                    0 => format!("all roles are ready: {test_rows} rows"),
                    _ => format!("all roles are ready: {train_rows} rows to train on, {test_rows} to test"),
                });
                if *from > Position::START && from.epoch <= self.epochs {
                    self.line(&format!("going on from the checkpoint at {from}"));
                }
                if *train_rows > 0 {
                    self.bar.set_length(self.train_rows * u64::from(self.epochs));
                    self.bar.reset_elapsed();
                    self.bar.reset_eta();
                    let template = "{wide_bar} {msg}  {per_sec}  {eta} left";
                    if let Ok(style) = ProgressStyle::with_template(template) {
                        let rate = |s: &indicatif::ProgressState, w: &mut dyn std::fmt::Write| {
                            let _ = write!(w, "{:.0} rows/s", s.per_sec());
                        };
                        self.bar.set_style(style.with_key("per_sec", rate));
                    }
                }
            }
            Event::Progress { epoch, progress } => {
                let done = u64::from(epoch.saturating_sub(1)) * self.train_rows + progress.rows;
                self.bar.set_position(done);
                self.bar.set_message(format!("epoch {epoch}/{}  loss {:.4}", self.epochs, progress.loss));
                if !self.terminal && self.told.elapsed() >= TELL_EVERY {
                    self.told = Instant::now();
                    let share = 100 * progress.rows / self.train_rows.max(1);
                    let left = self.left(done);
                    self.line(&format!("epoch {epoch}/{} {share} %  loss {:.5}{left}", self.epochs, progress.loss));
                }
            }
            Event::Epoch(record) if self.train_rows > 0 => {
                let done = u64::from(record.epoch) * self.train_rows;
                self.bar.set_position(done);
                let loss = record.train_loss.unwrap_or_default();
                self.bar.set_message(format!("epoch {}/{}  loss {loss:.4}", record.epoch, self.epochs));
                self.told = Instant::now();
                self.line(&self.epoch(record, done));
            }
            Event::Epoch(_) => {}
        }
    }

    fn finished(&mut self, record: &SessionRecord) -> Result<(), ProtocolError> {
        report::write(record, &self.report)
    }
}

impl Console {
    fn epoch(&self, record: &EpochRecord, done: u64) -> String {
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let rate = self.train_rows as f64 / record.seconds.max(1e-9);
        let loss = record.train_loss.map_or(String::new(), |l| format!("  loss {l:.5}"));
        let test = record.test.as_ref().map_or(String::new(), |m| format!("  test {}", metrics(m)));
        let left = if self.terminal { String::new() } else { self.left(done) };
        format!("epoch {}/{}{loss}{test}  {:.3} s, {rate:.0} rows/s{left}", record.epoch, self.epochs, record.seconds)
    }
}

/// Metrics as people read them.
pub(crate) fn metrics(m: &Metrics) -> String {
    let auc = m.auc.map_or(String::new(), |a| format!("AUC {a:.4}, "));
    let accuracy = m.accuracy.map_or(String::new(), |a| format!("accuracy {a:.4}, "));
    format!("{auc}{accuracy}loss {:.5}", m.loss)
}
