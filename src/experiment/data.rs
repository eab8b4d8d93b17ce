//! What a run trains on: files as they are, a share of their rows, or rows that are made up.

use super::plan::{ExperimentError, Preparation, Run, Synthetic};
use crate::sources::split_columns;
use flate2::read::MultiGzDecoder;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spnn_protocol::{Phase, Schedule, SessionFile};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// Makes a run's data in `directory`, which is the run's own, and its session file with absolute paths.
///
/// # Errors
/// [`ExperimentError`] naming the file and what does not fit.
pub fn prepare(run: &Run, directory: &Path) -> Result<SessionFile, ExperimentError> {
    let file = directory.join("session.toml");
    let parse = |message: String| ExperimentError::Parse { file: file.clone(), message };
    let mut table: toml::Table = toml::from_str(&run.text).map_err(|e| parse(e.to_string()))?;
    match run.preparation {
        Preparation::Files | Preparation::Parties(_) => {}
        Preparation::RowsShare(share) => keep_share(&mut table, run.seed, share, directory)?,
        Preparation::Synthetic(shape) => make_up(&mut table, run.seed, shape, directory)?,
    }
    let mut session = SessionFile::parse(&table.to_string(), &file)
        .map_err(|e| parse(e.to_string().replace(&format!("{}: ", file.display()), "")))?;
    session.take_contract();
    if let Preparation::Parties(parties) = run.preparation {
        split_columns(&mut session, directory, parties).map_err(|e| parse(e.to_string()))?;
    }
    Ok(session)
}

fn io(file: &Path) -> impl FnOnce(std::io::Error) -> ExperimentError {
    let file = file.to_owned();
    move |source| ExperimentError::File { file, source }
}

/// Writes the labels and features of each party: normal features, labels by the sign of a fixed linear score with
/// noise. Row by row, so that any number of rows fits into any memory.
fn make_up(table: &mut toml::Table, seed: u64, shape: Synthetic, directory: &Path) -> Result<(), ExperimentError> {
    let Synthetic { rows, features, parties } = shape;
    let file = |i: u16| directory.join(format!("party-{i}.csv"));
    let of = |i: u16| features * u32::from(i) / u32::from(parties)..features * u32::from(i + 1) / u32::from(parties);
    let mut writers = Vec::new();
    for i in 0..parties {
        let mut writer = BufWriter::new(File::create(file(i)).map_err(io(&file(i)))?);
        let mut header: Vec<String> = of(i).map(|c| format!("x{c}")).collect();
        if i == 0 {
            header.insert(0, "y".into());
        }
        writeln!(writer, "{}", header.join(",")).map_err(io(&file(i)))?;
        writers.push(writer);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut line = String::new();
    for _ in 0..rows {
        let mut score = 0.0_f32;
        // A sum of three uniform numbers is near enough to normal, and quick.
        let values: Vec<f32> = (0..features).map(|_| 2.0 * (0..3).map(|_| uniform(&mut rng)).sum::<f32>()).collect();
        for (c, value) in values.iter().enumerate() {
            score += if c % 2 == 0 { *value } else { -*value };
        }
        for (i, writer) in (0..parties).zip(&mut writers) {
            line.clear();
            use std::fmt::Write as _;
            if i == 0 {
                let noise = uniform(&mut rng);
                line += if score + noise > 0.0 { "1," } else { "0," };
            }
            for c in of(i) {
                // Writing to a string cannot fail.
                let _ = write!(line, "{:.3},", values[c as usize]);
            }
            line.pop();
            line.push('\n');
            writer.write_all(line.as_bytes()).map_err(io(&file(i)))?;
        }
    }
    for (i, writer) in (0..parties).zip(&mut writers) {
        writer.flush().map_err(io(&file(i)))?;
    }
    let party = |i: u16| {
        let mut party = toml::Table::new();
        party.insert("file".into(), file(i).to_string_lossy().into_owned().into());
        party.insert("label_holder".into(), (i == 0).into());
        toml::Value::Table(party)
    };
    let mut section = toml::Table::new();
    section.insert("row_numbers_as_ids".into(), true.into());
    section.insert("label".into(), "y".into());
    if let Some(fraction) = table.get("data").and_then(|d| d.get("test_fraction")) {
        section.insert("test_fraction".into(), fraction.clone());
    }
    section.insert("parties".into(), (0..parties).map(party).collect::<Vec<_>>().into());
    table.insert("data".into(), section.into());
    Ok(())
}

/// Writes each file of the session anew with all test rows and the first `share` of the training rows.
///
/// The test rows are the same for every share: the split of the smaller file is computed first, and rows are laid where
/// it will look for them.
fn keep_share(table: &mut toml::Table, seed: u64, share: f64, directory: &Path) -> Result<(), ExperimentError> {
    let session = directory.join("session.toml");
    let parse = |message: &str| ExperimentError::Parse { file: session.clone(), message: message.to_owned() };
    let data = table.get_mut("data").and_then(|d| d.as_table_mut()).ok_or_else(|| parse("no [data]"))?;
    let fraction = data.get("test_fraction").and_then(toml::Value::as_float).unwrap_or(0.0);
    let parties = data.get("parties").and_then(|p| p.as_array()).cloned().unwrap_or_default();
    let files: BTreeSet<PathBuf> =
        parties.iter().filter_map(|p| p.get("file").and_then(|f| f.as_str())).map(PathBuf::from).collect();
    let mut written = BTreeMap::new();
    let mut smaller_fraction = fraction;
    for (i, file) in files.iter().enumerate() {
        let lines = read_lines(file)?;
        let [header, rows @ ..] = &lines[..] else { return Err(parse("a file without a header")) };
        let count = |n: usize| u32::try_from(n).map_err(|_| parse("more rows than a session can have"));
        let whole = Schedule::new(seed, count(rows.len())?, fraction, 1);
        let (test, mut train) = (whole.order(Phase::Evaluate, 1), whole.order(Phase::Train, 1));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 < share ≤ 1")]
        train.truncate(((f64::from(whole.train_rows()) * share).round() as usize).max(1));
        let n = count(test.len() + train.len())?;
        smaller_fraction = f64::from(count(test.len())?) / f64::from(n);
        let places = Schedule::new(seed, n, smaller_fraction, 1);
        let mut order = vec![0_u32; n as usize];
        let put = |order: &mut Vec<u32>, places: Vec<u32>, from: &[u32]| {
            places.into_iter().zip(from).for_each(|(place, &row)| order[place as usize] = row);
        };
        put(&mut order, places.order(Phase::Evaluate, 1), &test);
        put(&mut order, places.order(Phase::Train, 1), &train);
        let to = directory.join(format!("rows-{i}.csv"));
        let mut writer = BufWriter::new(File::create(&to).map_err(io(&to))?);
        writeln!(writer, "{header}").map_err(io(&to))?;
        for row in order {
            writeln!(writer, "{}", rows[row as usize]).map_err(io(&to))?;
        }
        writer.flush().map_err(io(&to))?;
        written.insert(file.clone(), to);
    }
    let moved = parties.into_iter().map(|mut party| {
        let to = party.get("file").and_then(|f| f.as_str()).and_then(|f| written.get(Path::new(f)));
        let to = to.map(|t| t.to_string_lossy().into_owned());
        if let (Some(to), Some(party)) = (to, party.as_table_mut()) {
            party.insert("file".into(), to.into());
        }
        party
    });
    let moved: Vec<toml::Value> = moved.collect();
    data.insert("parties".into(), moved.into());
    data.insert("test_fraction".into(), smaller_fraction.into());
    Ok(())
}

/// Lines of a CSV file, perhaps under gzip. Quoted line breaks are not for these data sets.
fn read_lines(file: &Path) -> Result<Vec<String>, ExperimentError> {
    let opened = File::open(file).map_err(io(file))?;
    let reader: Box<dyn Read> = if file.extension().is_some_and(|e| e == "gz") {
        Box::new(MultiGzDecoder::new(opened))
    } else {
        Box::new(opened)
    };
    let lines: Result<Vec<String>, _> = BufReader::new(reader).lines().collect();
    Ok(lines.map_err(io(file))?.into_iter().filter(|l| !l.is_empty()).collect())
}

/// Between -0.5 and 0.5.
fn uniform(rng: &mut ChaCha8Rng) -> f32 {
    rng.random::<f32>() - 0.5
}
