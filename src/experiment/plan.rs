//! Experiment files, and the runs that they stand for.

use super::Line;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// What is wrong with an experiment.
#[derive(Debug, Error)]
pub enum ExperimentError {
    /// A file cannot be read or written.
    #[error("{}: {source}", file.display())]
    File {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {message}", file.display())]
    Parse {
        /// Which file.
        file: PathBuf,
        /// What was found, where, and what was expected.
        message: String,
    },
}

/// Which question an experiment asks; picks analysis and plots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// What the trained network is worth, beside the baselines.
    Accuracy,
    /// Time and bytes of an epoch.
    Cost,
    /// Time and bytes as one thing grows, with fitted exponents.
    Scaling,
    /// Time over lines of some rate or delay.
    Network,
    /// As `scaling`, and memory.
    Growth,
    /// What the server can tell about one column.
    PropertyAttack,
}

/// An experiment file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExperimentFile {
    /// A heading.
    pub title: String,
    /// What is asked, in plain words.
    pub question: String,
    /// What is expected, said before it is measured.
    #[serde(default)]
    pub expected: String,
    /// Which analysis.
    pub kind: Kind,
    /// Session files, relative to this file.
    pub sessions: Vec<PathBuf>,
    /// pooled, alone, plain, sharing, sharing-32, beaver, paillier; for property-attack, attack.
    pub methods: Vec<String>,
    /// Public seeds: initial weights, split and batches, the same for every method.
    pub seeds: Vec<u64>,
    /// Where the data sets are, relative to this file; `--data` replaces it.
    #[serde(default = "data_default")]
    pub data: PathBuf,
    /// Where to get what is missing there.
    #[serde(default)]
    pub data_from: Option<String>,
    /// Instead of the sessions'.
    pub epochs: Option<u32>,
    /// Instead of the sessions'.
    pub batch_size: Option<u32>,
    /// Instead of the sessions'.
    pub optimizer: Option<toml::Table>,
    /// Key settings of `paillier`, instead of the sessions'.
    pub paillier: Option<toml::Table>,
    /// Split the columns of the sessions' one file over so many parties.
    pub parties: Option<u16>,
    /// Rows made up for each run, instead of the sessions' files.
    pub synthetic: Option<Synthetic>,
    /// Lines of the parties; with it, packets are as small as on the internet.
    pub network: Option<Line>,
    /// The one thing that changes from run to run, with its values.
    pub vary: Option<Vary>,
    /// accuracy: largest difference of a mean AUC to that of `pooled`.
    pub bound: Option<f64>,
    /// property-attack: the column whose values above the median are guessed.
    pub property: Option<String>,
    /// Of a run, until one has been timed.
    #[serde(default = "expected_seconds_default")]
    pub expected_seconds: f64,
}

fn data_default() -> PathBuf {
    PathBuf::from("../../../shared/data")
}

fn expected_seconds_default() -> f64 {
    3.0
}

/// Rows that are made up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Synthetic {
    /// Rows.
    pub rows: u64,
    /// Columns of all parties together.
    pub features: u32,
    /// Parties, each with a file of its own.
    pub parties: u16,
}

/// What changes from run to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vary {
    /// Number of parties.
    Parties(Vec<u16>),
    /// Rows of a mini-batch.
    BatchSize(Vec<u32>),
    /// Share of the training rows that are trained on; test rows stay the same.
    RowsShare(Vec<f64>),
    /// Rate of each party's line.
    RateBitS(Vec<f64>),
    /// Round trip of each party's line.
    RoundTripMs(Vec<f64>),
    /// Rows made up.
    SyntheticRows(Vec<u64>),
    /// Columns made up.
    SyntheticFeatures(Vec<u32>),
    /// Optimizers, as in a session file.
    Optimizer(Vec<toml::Table>),
}

/// Where on its axis a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct At {
    /// What varies, with its unit.
    pub what: String,
    /// The value; a position where it is no number.
    pub value: f64,
    /// For people.
    pub label: String,
}

/// What must be made before a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preparation {
    /// The session's files as they are.
    #[default]
    Files,
    /// Columns of the one file split over so many parties.
    Parties(u16),
    /// Only this share of the training rows.
    RowsShare(f64),
    /// Rows made up.
    Synthetic(Synthetic),
}

/// One training, by one method, from one seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Name of the experiment.
    pub experiment: String,
    /// Name of the session.
    pub session: String,
    /// pooled, alone-0, plain, sharing, …
    pub method: String,
    /// Public seed.
    pub seed: u64,
    /// What varies.
    pub at: Option<At>,
    /// The session file of this run, with all that the experiment changes.
    pub text: String,
    /// Data.
    pub preparation: Preparation,
    /// Lines of the parties.
    pub line: Option<Line>,
    /// Column of the property attack.
    pub property: Option<String>,
}

impl Run {
    /// A key of everything that defines the run: the same for the same run of the same version.
    #[must_use]
    pub fn digest(&self) -> String {
        let text = serde_json::to_string(&(env!("CARGO_PKG_VERSION"), self)).unwrap_or_default();
        let digest = Sha256::digest(text);
        digest.iter().take(12).map(|b| format!("{b:02x}")).collect()
    }

    /// For people.
    #[must_use]
    pub fn label(&self) -> String {
        let at = self.at.as_ref().map_or(String::new(), |at| format!(", {} {}", at.what, at.label));
        format!("{}: {} {}{at}, seed {}", self.experiment, self.session, self.method, self.seed)
    }

    /// Where the varied thing is.
    #[must_use]
    pub fn x(&self) -> f64 {
        self.at.as_ref().map_or(0.0, |at| at.value)
    }
}

/// Data that are not there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Skipped {
    /// The session that needs them.
    pub session: String,
    /// The missing file.
    pub file: PathBuf,
    /// Where to get it.
    pub from: String,
}

/// One experiment file and the runs it stands for.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// Stem of the file.
    pub name: String,
    /// Where it was read.
    pub path: PathBuf,
    /// What it says.
    pub file: ExperimentFile,
    /// Its runs, in order.
    pub runs: Vec<Run>,
    /// Sessions whose data are missing.
    pub skipped: Vec<Skipped>,
}

/// What the command line changes.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Where the data sets are.
    pub data: Option<PathBuf>,
    /// At most so many seeds.
    pub seeds: Option<usize>,
    /// Only experiments of this name.
    pub only: Option<String>,
}

/// Reads experiment files, and those in directories, in the order of their names.
///
/// # Errors
/// [`ExperimentError`] naming the file, and what in it does not make sense.
pub fn read(paths: &[PathBuf], changes: &Changes) -> Result<Vec<Experiment>, ExperimentError> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(at(path))?;
            let entries = entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(at(path))?;
            let mut found: Vec<PathBuf> =
                entries.into_iter().filter(|f| f.extension().is_some_and(|e| e == "toml")).collect();
            found.sort();
            files.extend(found);
        } else {
            files.push(path.clone());
        }
    }
    let experiments = files.iter().map(|f| Experiment::read(f, changes)).collect::<Result<Vec<_>, _>>()?;
    Ok(experiments.into_iter().filter(|e| changes.only.as_ref().is_none_or(|o| *o == e.name)).collect())
}

fn at(file: &Path) -> impl FnOnce(std::io::Error) -> ExperimentError {
    let file = file.to_owned();
    move |source| ExperimentError::File { file, source }
}

/// A session file as a table, before anything is checked, so that a method of another version is that run's error.
struct Base {
    table: toml::Table,
    name: String,
    directory: PathBuf,
}

impl Base {
    fn read(path: &Path) -> Result<Self, ExperimentError> {
        let text = std::fs::read_to_string(path).map_err(at(path))?;
        let parse = |message: String| ExperimentError::Parse { file: path.to_owned(), message };
        let table: toml::Table = toml::from_str(&text).map_err(|e| parse(e.to_string().trim_end().to_owned()))?;
        let name = table.get("name").and_then(|n| n.as_str()).ok_or_else(|| parse("no name".into()))?.to_owned();
        let directory = path.parent().unwrap_or(Path::new(".")).to_owned();
        Ok(Self { table, name, directory })
    }

    fn parties(&self) -> Vec<toml::Table> {
        let parties = self.table.get("data").and_then(|d| d.get("parties")).and_then(|p| p.as_array());
        parties.into_iter().flatten().filter_map(|p| p.as_table().cloned()).collect()
    }
}

impl Experiment {
    fn read(path: &Path, changes: &Changes) -> Result<Self, ExperimentError> {
        let text = std::fs::read_to_string(path).map_err(at(path))?;
        let parse = |message: String| ExperimentError::Parse { file: path.to_owned(), message };
        let mut file: ExperimentFile = toml::from_str(&text).map_err(|e| parse(e.to_string().trim_end().to_owned()))?;
        file.seeds.truncate(changes.seeds.unwrap_or(usize::MAX));
        if file.seeds.is_empty() || file.methods.is_empty() || file.sessions.is_empty() {
            return Err(parse("sessions, methods and seeds: one of each at least, found none".into()));
        }
        if (file.kind == Kind::PropertyAttack) != file.property.is_some() {
            return Err(parse("property: expected with kind = \"property-attack\", and only there".into()));
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut experiment = Self { name, path: path.to_owned(), file, runs: Vec::new(), skipped: Vec::new() };
        let home = path.parent().unwrap_or(Path::new("."));
        for session in experiment.file.sessions.clone() {
            let mut base = Base::read(&home.join(session))?;
            if let Some(skipped) = experiment.locate(&mut base, home, changes)? {
                experiment.skipped.push(skipped);
                continue;
            }
            experiment.add_runs(&base);
        }
        Ok(experiment)
    }

    /// Makes the session's files absolute, where they are now. Returns the first that is missing.
    fn locate(&self, base: &mut Base, home: &Path, changes: &Changes) -> Result<Option<Skipped>, ExperimentError> {
        let varied = matches!(self.file.vary, Some(Vary::SyntheticRows(_) | Vary::SyntheticFeatures(_)));
        if self.file.synthetic.is_some() || varied {
            return Ok(None);
        }
        let data = clean(&home.join(&self.file.data));
        let mut parties = base.parties();
        let mut missing = None;
        for party in &mut parties {
            let Some(file) = party.get("file").and_then(|f| f.as_str()) else { continue };
            let mut file = clean(&base.directory.join(file));
            if let (Some(moved), Ok(rest)) = (&changes.data, file.strip_prefix(&data)) {
                file = clean(&moved.join(rest));
            }
            if !file.exists() {
                let from = self.file.data_from.clone().unwrap_or_else(|| "see the comments of the session file".into());
                missing.get_or_insert(Skipped { session: base.name.clone(), file: file.clone(), from });
            }
            party.insert("file".into(), file.to_string_lossy().into_owned().into());
        }
        if let Some(section) = base.table.get_mut("data").and_then(|d| d.as_table_mut()) {
            section.insert("parties".into(), parties.into_iter().map(toml::Value::Table).collect::<Vec<_>>().into());
        }
        Ok(missing)
    }

    fn add_runs(&mut self, base: &Base) {
        let points = self.points();
        // Methods beside each other, so that what the machine does meanwhile falls on all of them.
        for &seed in &self.file.seeds {
            for point in &points {
                for method in &self.file.methods {
                    let alone: Vec<String> = (0..base.parties().len()).map(|i| format!("alone-{i}")).collect();
                    let methods = if method == "alone" { alone } else { vec![method.clone()] };
                    for method in methods {
                        let run = self.run(base, &method, seed, point.as_ref());
                        self.runs.push(run);
                    }
                }
            }
        }
    }

    /// One for each value of what varies.
    fn points(&self) -> Vec<Option<(At, usize)>> {
        fn each<T: Copy>(
            what: &str,
            values: &[T],
            real: impl Fn(T) -> f64,
            label: impl Fn(T) -> String,
        ) -> Vec<Option<(At, usize)>> {
            let at = |(i, &v): (usize, &T)| Some((At { what: what.into(), value: real(v), label: label(v) }, i));
            values.iter().enumerate().map(at).collect()
        }
        #[expect(clippy::cast_precision_loss, reason = "for an axis")]
        match &self.file.vary {
            None => vec![None],
            Some(Vary::Parties(v)) => each("parties", v, f64::from, |v| v.to_string()),
            Some(Vary::BatchSize(v)) => each("batch size, rows", v, f64::from, |v| v.to_string()),
            Some(Vary::RowsShare(v)) => {
                each("training rows used, %", v, |v| v * 100.0, |v| format!("{:.0} %", v * 100.0))
            }
            Some(Vary::RateBitS(v)) => each("line, Mbit/s", v, |v| v / 1e6, |v| format!("{}", v / 1e6)),
            Some(Vary::RoundTripMs(v)) => each("round trip, ms", v, |v| v, |v| v.to_string()),
            Some(Vary::SyntheticRows(v)) => each("rows", v, |v| v as f64, |v| v.to_string()),
            Some(Vary::SyntheticFeatures(v)) => each("columns", v, f64::from, |v| v.to_string()),
            Some(Vary::Optimizer(v)) => {
                let label = |t: &toml::Table| {
                    let kind = t.get("kind").and_then(|k| k.as_str()).unwrap_or("?");
                    let rate = t.get("learning_rate").map_or(String::new(), |rate| format!(" {rate}"));
                    let temperature = t.get("temperature").map_or(String::new(), |t| format!(", T {t}"));
                    format!("{kind}{rate}{temperature}")
                };
                let at = |(i, t): (usize, &toml::Table)| {
                    Some((At { what: "optimizer".into(), value: i as f64, label: label(t) }, i))
                };
                v.iter().enumerate().map(at).collect()
            }
        }
    }

    fn run(&self, base: &Base, method: &str, seed: u64, point: Option<&(At, usize)>) -> Run {
        let file = &self.file;
        let mut table = base.table.clone();
        let mut preparation = Preparation::Files;
        let mut line = file.network;
        let mut optimizer = file.optimizer.clone();
        let mut batch_size = file.batch_size;
        let mut synthetic = file.synthetic;
        if let Some(parties) = file.parties {
            preparation = Preparation::Parties(parties);
        }
        let shape = Synthetic { rows: 10_000, features: 28, parties: 2 };
        let i = point.map_or(0, |p| p.1);
        match &file.vary {
            None => {}
            Some(Vary::Parties(v)) => match &mut synthetic {
                Some(synthetic) => synthetic.parties = v[i],
                None => preparation = Preparation::Parties(v[i]),
            },
            Some(Vary::BatchSize(v)) => batch_size = Some(v[i]),
            Some(Vary::RowsShare(v)) => preparation = Preparation::RowsShare(v[i]),
            Some(Vary::RateBitS(v)) => line = Some(Line { rate_bit_s: Some(v[i]), ..line.unwrap_or_default() }),
            Some(Vary::RoundTripMs(v)) => line = Some(Line { round_trip_ms: v[i], ..line.unwrap_or_default() }),
            Some(Vary::SyntheticRows(v)) => synthetic = Some(Synthetic { rows: v[i], ..synthetic.unwrap_or(shape) }),
            Some(Vary::SyntheticFeatures(v)) => {
                synthetic = Some(Synthetic { features: v[i], ..synthetic.unwrap_or(shape) });
            }
            Some(Vary::Optimizer(v)) => optimizer = Some(v[i].clone()),
        }
        if let Some(synthetic) = synthetic {
            preparation = Preparation::Synthetic(synthetic);
        }
        let split = !(method == "pooled" || method.starts_with("alone-") || method == "attack");
        if split {
            let (kind, ring) = method.strip_suffix("-32").map_or((method, None), |kind| (kind, Some(32)));
            table.insert("first_layer".into(), kind.into());
            if let Some(ring) = ring {
                section(&mut table, "sharing").insert("ring_bits".into(), ring.into());
            }
        }
        // Seeds of a session file are whole numbers of 63 bits, as all of TOML.
        table.insert("seed".into(), i64::try_from(seed).unwrap_or(i64::MAX).into());
        if let Some(paillier) = &file.paillier {
            section(&mut table, "paillier").extend(paillier.clone());
        }
        let train = section(&mut table, "train");
        if let Some(epochs) = file.epochs {
            train.insert("epochs".into(), i64::from(epochs).into());
        }
        if let Some(size) = batch_size {
            train.insert("batch_size".into(), i64::from(size).into());
        }
        if let Some(optimizer) = optimizer {
            train.insert("optimizer".into(), optimizer.into());
        }
        Run {
            experiment: self.name.clone(),
            session: base.name.clone(),
            method: method.to_owned(),
            seed,
            at: point.map(|p| p.0.clone()),
            text: table.to_string(),
            preparation,
            line,
            property: file.property.clone(),
        }
    }
}

/// A table inside a table, made where there is none.
fn section<'a>(table: &'a mut toml::Table, name: &str) -> &'a mut toml::Table {
    if !table.get(name).is_some_and(toml::Value::is_table) {
        table.insert(name.to_owned(), toml::Table::new().into());
    }
    match table.get_mut(name) {
        Some(toml::Value::Table(section)) => section,
        _ => unreachable!("it was put there above"),
    }
}

/// An absolute path without `..`, so that paths of the same file are equal whether or not it exists.
fn clean(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut clean = PathBuf::new();
    for part in absolute.components() {
        match part {
            std::path::Component::ParentDir => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    clean
}
