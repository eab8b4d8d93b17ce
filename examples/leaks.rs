//! What SPNN leaks, measured: three simple attackers on what each role sees while a network is trained as published.
//!
//! `cargo run --release --example leaks [SESSION.toml …]`; without a file, on the example that ships with the project.
//!
//! The network is trained in one process, which gives the server and the parties exactly the values they would receive
//! in a session: `h1` and `grad_z` at the server, `grad_h1` at every party. The attackers are simple, so what is left
//! after some defence against them would be a lower bound on the leak.
//!
//! 1. The server guesses every label from `grad_z` of the last epoch: every row is a multiple of one vector, and the
//!    sign of the multiple is the label.
//! 2. A party without labels does the same with `grad_h1`, projected on its first principal direction.
//! 3. The server, given 200 leaked records, rebuilds the standardised features of all others by ridge regression from
//!    the `h1` it saw in the second half of the epochs.

use ndarray::{Array2, ArrayView2, Axis, concatenate, s};
use spnn::nn::auc;
use spnn::protocol::{Phase, SessionFile};
use spnn::{pooled, sources};
use std::error::Error;
use std::path::{Path, PathBuf};

/// Records whose features the attacker already has.
const KNOWN: usize = 200;

fn main() -> Result<(), Box<dyn Error>> {
    let mut files: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if files.is_empty() {
        files.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/breast_cancer/session.toml"));
    }
    eprintln!("| session | server: labels (AUC) | party without labels: labels (AUC) | server: features (R²) |");
    eprintln!("| --- | --- | --- | --- |");
    for file in &files {
        let seen = train(file)?;
        let server = separation(&projection(seen.grad_z.view()), &seen.labels);
        let party = separation(&projection(seen.grad_h1.view()), &seen.labels);
        let rebuilt = rebuild(&seen);
        eprintln!("| {} | {server:.3} | {party:.3} | {rebuilt:.3} |", seen.name);
        assert!(server > 0.99, "the published protocol gives the server the labels; if not, this example is wrong");
    }
    Ok(())
}

/// What the roles saw, row by row.
struct Seen {
    name: String,
    /// Standardised features: the truth that the third attacker is measured against.
    x: Array2<f32>,
    labels: Vec<f32>,
    /// Server, last epoch.
    grad_z: Array2<f32>,
    /// Parties, last epoch.
    grad_h1: Array2<f32>,
    /// Server, every epoch side by side.
    h1: Array2<f32>,
}

fn train(file: &Path) -> Result<Seen, Box<dyn Error>> {
    let parsed = SessionFile::read(file)?;
    let session = parsed.config()?;
    let sources = sources::sources(&parsed.data, file.parent().unwrap_or(Path::new(".")))?;
    let (x, labels) = pooled::pool(&session, &sources, None)?;
    let (h, outputs, epochs) =
        (session.model.hidden_width as usize, session.server_output_width()?, session.train.epochs);
    let train_rows = session.schedule(u32::try_from(x.nrows())?).order(Phase::Train, 1);
    let mut place = vec![usize::MAX; x.nrows()];
    train_rows.iter().enumerate().for_each(|(i, &row)| place[row as usize] = i);
    let m = train_rows.len();
    let mut seen = Seen {
        name: session.name.clone(),
        x: x.select(Axis(0), &train_rows.iter().map(|&r| r as usize).collect::<Vec<_>>()),
        labels: train_rows.iter().map(|&r| labels[r as usize]).collect(),
        grad_z: Array2::zeros((m, outputs)),
        grad_h1: Array2::zeros((m, h)),
        h1: Array2::zeros((m, h * epochs as usize)),
    };
    pooled::train_watched(&session, x.view(), &labels, &mut |batch| {
        let at = h * (batch.epoch as usize - 1);
        for (i, &row) in batch.rows.iter().enumerate() {
            let place = place[row as usize];
            seen.h1.slice_mut(s![place, at..at + h]).assign(&batch.h1.row(i));
            seen.grad_z.row_mut(place).assign(&batch.grad_z.row(i));
            seen.grad_h1.row_mut(place).assign(&batch.grad_h1.row(i));
        }
    })?;
    Ok(seen)
}

/// Every row's coordinate along the direction in which the rows vary most (power iteration on the second moments).
fn projection(rows: ArrayView2<'_, f32>) -> Vec<f32> {
    let moments = rows.t().dot(&rows);
    let mut direction = ndarray::Array1::from_elem(rows.ncols(), 1.0_f32);
    for i in 0..200 {
        direction[i % rows.ncols()] += f32::EPSILON;
        direction = moments.dot(&direction);
        let norm = direction.dot(&direction).sqrt().max(f32::MIN_POSITIVE);
        direction /= norm;
    }
    rows.dot(&direction).to_vec()
}

/// How well scores separate the classes, whichever way round: the attacker knows which class is the rarer one.
fn separation(scores: &[f32], labels: &[f32]) -> f64 {
    auc(scores, labels).map_or(0.5, |a| a.max(1.0 - a))
}

/// R² over all features of the records that were not leaked. The attacker chooses the strength of its ridge on a
/// quarter of the records it knows.
fn rebuild(seen: &Seen) -> f64 {
    // Weights move least late in training, so that what was seen of different batches fits together best there.
    let late = seen.h1.slice(s![.., seen.h1.ncols() / 2..]);
    let ones = Array2::ones((seen.h1.nrows(), 1));
    let Ok(inputs) = concatenate(Axis(1), &[late, ones.view()]) else { return f64::NAN };
    let inputs = inputs.mapv(f64::from);
    let x = seen.x.mapv(f64::from);
    let known = KNOWN.min(x.nrows() / 2);
    let fitted = known * 3 / 4;
    let part = |from: usize, to: usize| (inputs.slice(s![from..to, ..]), x.slice(s![from..to, ..]));
    let strengths = (-6..=2).map(|e| 10_f64.powi(e));
    let scored = strengths.map(|ridge| (r_squared(part(0, fitted), part(fitted, known), ridge), ridge));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0)).map_or(1.0, |(_, ridge)| ridge);
    r_squared(part(0, known), part(known, x.nrows()), best)
}

/// R² on `test` of a ridge regression fitted on `train`, in its dual form: as many equations as training records.
/// `ridge` is relative to the mean energy of an input record.
fn r_squared(
    (a, b): (ArrayView2<'_, f64>, ArrayView2<'_, f64>),
    (inputs, truth): (ArrayView2<'_, f64>, ArrayView2<'_, f64>),
    ridge: f64,
) -> f64 {
    let mut kernel = a.dot(&a.t());
    let strength = ridge * kernel.diag().mean().unwrap_or(1.0);
    kernel.diag_mut().mapv_inplace(|v| v + strength);
    let weights = a.t().dot(&solve(kernel, b.to_owned()));
    let guess = inputs.dot(&weights);
    let Some(mean) = truth.mean_axis(Axis(0)) else { return f64::NAN };
    let residual: f64 = (&guess - &truth).mapv(|v| v * v).sum();
    let total: f64 = (&truth - &mean).mapv(|v| v * v).sum();
    1.0 - residual / total
}

/// `matrix⁻¹ · right` for a symmetric positive matrix, by elimination without pivoting.
fn solve(mut matrix: Array2<f64>, mut right: Array2<f64>) -> Array2<f64> {
    let n = matrix.nrows();
    for i in 0..n {
        for j in i + 1..n {
            let factor = matrix[[j, i]] / matrix[[i, i]];
            subtract_row(&mut matrix, j, i, factor);
            subtract_row(&mut right, j, i, factor);
        }
    }
    for i in (0..n).rev() {
        for j in i + 1..n {
            let factor = matrix[[i, j]];
            subtract_row(&mut right, i, j, factor);
        }
        let pivot = matrix[[i, i]];
        right.row_mut(i).mapv_inplace(|v| v / pivot);
    }
    right
}

/// `row[to] −= factor · row[from]`.
fn subtract_row(matrix: &mut Array2<f64>, to: usize, from: usize, factor: f64) {
    for column in 0..matrix.ncols() {
        let value = matrix[[from, column]];
        matrix[[to, column]] -= factor * value;
    }
}
