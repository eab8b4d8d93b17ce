//! The same network in one process, on the columns of all parties or of one: what a split session is compared with.
//!
//! Nothing here is shared with the roles but the layers: no messages, no first-layer protocol, one matrix of weights. As
//! it computes what the roles would receive, attacks are measured on it, too ([`train_watched`]).

use ndarray::{Array2, ArrayView2, Axis, concatenate, s};
use serde::{Deserialize, Serialize};
use spnn_crypto::SecretRng;
use spnn_nn::{
    LabelHead, Loss, Mode, Model, ModelError, Optimizer, Sequential, SpecError, accuracy, auc, first_layer_weights,
    matmul,
};
use spnn_party::data::DataSource;
use spnn_party::{PartyError, Prepared, digest_ids};
use spnn_protocol::message::Metrics;
use spnn_protocol::{Phase, ProtocolError, SessionConfig, usage};
use std::time::Instant;
use thiserror::Error;

/// What can go wrong.
#[derive(Debug, Error)]
pub enum PooledError {
    /// A party's data.
    #[error(transparent)]
    Party(#[from] PartyError),
    /// What of it is kept on disk.
    #[error(transparent)]
    Storage(#[from] ProtocolError),
    /// The layers do not fit.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The layers fail.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// No randomness for SGLD.
    #[error(transparent)]
    Randomness(#[from] spnn_crypto::SystemRandomnessError),
    /// The files do not belong together.
    #[error("{0}")]
    Unfit(String),
}

/// One epoch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PooledEpoch {
    /// From 1.
    pub epoch: u32,
    /// Wall time without evaluation.
    pub seconds: f64,
    /// Processor time without evaluation.
    pub cpu_seconds: f64,
    /// Mean training loss.
    pub train_loss: f64,
    /// Metrics on the test rows after the epoch.
    pub test: Option<Metrics>,
}

/// A trained network and its record.
#[derive(Serialize, Deserialize)]
pub struct Pooled {
    /// Features used.
    pub features: u32,
    /// Every epoch.
    pub epochs: Vec<PooledEpoch>,
    /// Metrics on the test rows at the end.
    pub test: Option<Metrics>,
    /// Rows trained on in each epoch.
    pub train_rows: u32,
    /// Largest resident set of this process so far.
    pub peak_rss_bytes: u64,
    /// First-layer weights, `[d, h]`.
    #[serde(skip)]
    pub first_layer: Array2<f32>,
    /// The server's parameters, flattened in order.
    #[serde(skip)]
    pub server: Vec<f32>,
    /// The head's parameters, flattened in order.
    #[serde(skip)]
    pub head: Vec<f32>,
}

/// Trains the session's network on the columns of the given parties, by the session's own schedule and initial weights.
///
/// # Errors
/// [`PooledError`] naming the file that cannot be read or does not fit the others.
pub fn train(session: &SessionConfig, sources: &[DataSource], only: Option<u16>) -> Result<Pooled, PooledError> {
    let (x, labels) = pool(session, sources, only)?;
    train_watched(session, x.view(), &labels, &mut |_| ())
}

/// What server and parties would see of a mini-batch.
pub struct Seen<'a> {
    /// From 1.
    pub epoch: u32,
    /// Rows of the batch.
    pub rows: &'a [u32],
    /// At the server, `[n, h]`.
    pub h1: ArrayView2<'a, f32>,
    /// At the server, `[n, k]`.
    pub grad_z: ArrayView2<'a, f32>,
    /// At every party, `[n, h]`.
    pub grad_h1: ArrayView2<'a, f32>,
}

/// Trains the session's network on scaled columns, `[rows, d]`, and tells `watch` what would be seen of each mini-batch.
///
/// # Errors
/// [`PooledError`] if layers or labels do not fit.
pub fn train_watched(
    session: &SessionConfig,
    x: ArrayView2<'_, f32>,
    labels: &[f32],
    watch: &mut dyn FnMut(&Seen<'_>),
) -> Result<Pooled, PooledError> {
    let rows = u32::try_from(x.nrows()).map_err(|_| PooledError::Unfit("too many rows".into()))?;
    let schedule = session.schedule(rows);
    let (d, h) = (x.ncols(), session.model.hidden_width as usize);
    let mut first_layer = first_layer_weights(session.seed, d, h, 0..d);
    let mut server = Sequential::new(h, &session.model.server, session.seed)?;
    let mut head = LabelHead::new(server.output_width(), &session.model.head, session.seed)?;
    head.check_labels(labels)?;
    let mut rng = SecretRng::from_system()?;
    let mut optimizers = [(); 3].map(|()| Optimizer::new(&session.train.optimizer, rng.bytes32()));
    let mut gradient = Array2::zeros((d, h));
    let batch = session.train.batch_size as usize;
    let (mut xb, mut h1) = (Array2::zeros((batch, d)), Array2::zeros((batch, h)));
    let mut yb = Vec::new();
    let gather = |rows: &[u32], xb: &mut Array2<f32>, yb: &mut Vec<f32>| {
        yb.clear();
        for (mut to, &row) in xb.outer_iter_mut().zip(rows) {
            to.assign(&x.row(row as usize));
            yb.push(labels[row as usize]);
        }
    };
    let mut epochs = Vec::new();
    let mut test = None;
    for epoch in 1..=session.train.epochs {
        let (started, cpu) = (Instant::now(), usage::cpu_seconds());
        let order = schedule.order(Phase::Train, epoch);
        let mut loss_sum = 0.0;
        for b in schedule.batches(Phase::Train, epoch) {
            let n = b.rows;
            let rows = &order[b.start..b.start + n];
            gather(rows, &mut xb, &mut yb);
            matmul(xb.slice(s![..n, ..]), first_layer.view(), h1.slice_mut(s![..n, ..]), false);
            let z = server.forward(h1.slice(s![..n, ..]), Mode::Train)?;
            let (loss, grad_z) = head.step(z, &yb)?;
            #[expect(clippy::cast_precision_loss, reason = "a batch has at most 2^24 rows")]
            {
                loss_sum += f64::from(loss) * n as f64;
            }
            let grad_h1 = server.backward(grad_z)?;
            watch(&Seen { epoch, rows, h1: h1.slice(s![..n, ..]), grad_z, grad_h1 });
            matmul(xb.slice(s![..n, ..]).t(), grad_h1, gradient.view_mut(), false);
            if let (Some(w), Some(g)) = (first_layer.as_slice_mut(), gradient.as_slice()) {
                optimizers[0].step_one(w, g);
            }
            optimizers[1].step(&mut server.parameters());
            optimizers[2].step(&mut head.parameters());
        }
        let (seconds, cpu_seconds) = (started.elapsed().as_secs_f64(), usage::cpu_seconds() - cpu);
        let order = schedule.order(Phase::Evaluate, epoch);
        let mut scores = Array2::zeros((order.len(), head.output_width()));
        let mut loss = 0.0;
        for b in schedule.batches(Phase::Evaluate, epoch) {
            let n = b.rows;
            gather(&order[b.start..b.start + n], &mut xb, &mut yb);
            matmul(xb.slice(s![..n, ..]), first_layer.view(), h1.slice_mut(s![..n, ..]), false);
            let z = server.forward(h1.slice(s![..n, ..]), Mode::Evaluate)?;
            loss += head.loss(z, &yb)?;
            scores.slice_mut(s![b.start..b.start + n, ..]).assign(&head.scores(z)?);
        }
        let truth: Vec<f32> = order.iter().map(|&r| labels[r as usize]).collect();
        let binary = head.loss_kind() == Loss::BinaryCrossEntropy;
        test = (!order.is_empty()).then(|| Metrics {
            loss: loss / f64::from(schedule.test_rows()),
            auc: if binary { scores.as_slice().and_then(|s| auc(s, &truth)) } else { None },
            accuracy: accuracy(scores.view(), &truth, head.loss_kind()),
        });
        let train_loss = loss_sum / f64::from(schedule.train_rows().max(1));
        epochs.push(PooledEpoch { epoch, seconds, cpu_seconds, train_loss, test });
    }
    let flat = |parameters: Vec<spnn_nn::Parameter<'_>>| parameters.iter().flat_map(|p| p.value.to_vec()).collect();
    Ok(Pooled {
        features: u32::try_from(d).map_err(|_| PooledError::Unfit("too many columns".into()))?,
        epochs,
        test,
        train_rows: schedule.train_rows(),
        peak_rss_bytes: usage::peak_rss_bytes(),
        first_layer,
        server: flat(server.parameters()),
        head: flat(head.parameters()),
    })
}

/// The scaled columns of the given parties side by side, `[rows, d]`, and the label holder's labels.
///
/// # Errors
/// [`PooledError`] naming the file that cannot be read or does not fit the others.
pub fn pool(
    session: &SessionConfig,
    sources: &[DataSource],
    only: Option<u16>,
) -> Result<(Array2<f32>, Vec<f32>), PooledError> {
    let mut blocks = Vec::new();
    let mut labels = None;
    let mut ids = None;
    for (i, source) in sources.iter().enumerate() {
        let is_holder = i == usize::from(session.label_holder.0);
        let mut data = Prepared::read_as(source, is_holder, true, &std::env::temp_dir())?;
        let (rows, own) = (data.rows()?, digest_ids(data.ids().iter()));
        if *ids.get_or_insert(own) != own {
            return Err(PooledError::Unfit(format!(
                "the ids of {} are not those of the first file in the same order",
                source.file
            )));
        }
        if is_holder {
            labels = data.labels().map(<[f32]>::to_vec);
        }
        if only.is_none_or(|o| usize::from(o) == i) {
            data.fit(&session.preparation, &session.schedule(rows).order(Phase::Train, 1))?;
            blocks.push(all_features(&data)?);
        }
    }
    let labels = labels.ok_or_else(|| PooledError::Unfit("the label holder's file has no labels".into()))?;
    let views: Vec<_> = blocks.iter().map(|b| b.view()).collect();
    let x = concatenate(Axis(1), &views).map_err(|e| PooledError::Unfit(e.to_string()))?;
    Ok((x, labels))
}

/// The encoded features of all rows, `[rows, d]`.
///
/// # Errors
/// [`PooledError`] if what is on disk cannot be read.
pub(crate) fn all_features(data: &Prepared) -> Result<Array2<f32>, PooledError> {
    let rows: Vec<u32> = (0..data.rows()?).collect();
    let mut x = Array2::zeros((rows.len(), data.features()));
    data.gather(&rows, x.view_mut())?;
    Ok(x)
}
