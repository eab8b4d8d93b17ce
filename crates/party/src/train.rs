//! Training at a party, beside `server/src/train.rs`.
//!
//! | | step of the mini-batch | to |
//! | --- | --- | --- |
//! | 3 | `first_layer.forward(x, w)` | server |
//! | 5 | label holder: `(loss, grad_z) = head.step(z, y)` | server |
//! | 7 | `w` follows `xᵀ·grad_h1` | – |
//!
//! A party learns `grad_h1`, `[n, h]`, of every batch: from it, a party without labels can learn the labels. The server
//! learns `grad_z`, `[n, k]`, from the label holder: its signs give the labels away. Nothing here prevents that; see
//! `docs/security.md`.

use crate::PartyError;
use crate::party::{Head, Outcome, Party};
use crate::prepare::check_finite;
use ndarray::{Array2, s};
use spnn_nn::matmul;
use spnn_protocol::message::{EpochEnd, Kind, Progress, Report};
use spnn_protocol::{Batch, Meter, Network, Phase, ProtocolError, Role, Step};
use std::time::{Duration, Instant};

/// How often the label holder says where it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

impl Party<'_> {
    /// Trains for all epochs of the session; after each, the test rows are evaluated.
    pub(crate) async fn train(&mut self) -> Result<Outcome, PartyError> {
        let mut outcome = Outcome::default();
        for epoch in 1..=self.session.train.epochs {
            let mut end = self.train_epoch(epoch).await?;
            if self.schedule.test_rows() > 0 {
                let last = epoch == self.session.train.epochs;
                end.test = self.evaluate(epoch, last).await?;
                outcome.test = end.test;
            }
            self.network.send(Role::Coordinator, Step::SETUP, &Report::EpochEnd(end)).await?;
        }
        Ok(outcome)
    }

    async fn train_epoch(&mut self, epoch: u32) -> Result<EpochEnd, PartyError> {
        let order = self.schedule.order(Phase::Train, epoch);
        let meter = Meter::start(&self.network);
        let mut losses = Losses::new();
        let mut batches = self.schedule.batches(Phase::Train, epoch).peekable();
        if let Some(first) = batches.peek() {
            self.make_ready(*first, &order);
        }
        while let Some(batch) = batches.next() {
            let loss = self.train_batch(batch, batches.peek().copied(), &order).await?;
            if let Some(loss) = loss {
                losses.add(loss, batch.rows);
                if losses.due() {
                    let progress = Report::Progress(losses.progress());
                    self.network.send(Role::Coordinator, Step::SETUP, &progress).await?;
                }
            }
        }
        let train_loss = losses.mean();
        Ok(EpochEnd { train_loss, ..meter.stop(&self.network) })
    }

    async fn train_batch(
        &mut self,
        batch: Batch,
        next: Option<Batch>,
        order: &[u32],
    ) -> Result<Option<f32>, ProtocolError> {
        let Batch { step, rows, .. } = batch;
        let Self { network, first_layer, weights, gradient, grad_h1, optimizer, head, gathered, .. } = self;
        first_layer.forward(network, step, gathered.x(rows), weights.view()).await?;
        let loss = match head {
            Some(head) => Some(head.step(network, step, gathered.labels()).await?),
            None => None,
        };
        if grad_h1.nrows() < rows {
            *grad_h1 = Array2::zeros((rows, weights.ncols()));
        }
        let mut grad_h1 = grad_h1.slice_mut(s![..rows, ..]);
        network.recv_tensor(Role::Server, Kind::FirstLayerGradient, step, grad_h1.view_mut()).await?;
        matmul(gathered.x(rows).t(), grad_h1.view(), gradient.view_mut(), false);
        if let (Some(weights), Some(gradient)) = (weights.as_slice_mut(), gradient.as_slice()) {
            optimizer.step_one(weights, gradient);
        }
        if let Some(next) = next {
            self.make_ready(next, order);
        }
        Ok(loss)
    }

    /// Gathers the rows of a batch and its masks, which need neither weights nor peers.
    pub(crate) fn make_ready(&mut self, batch: Batch, order: &[u32]) {
        self.gathered.gather(&self.data, &order[batch.start..batch.start + batch.rows]);
        self.first_layer.prepare(batch.step, batch.rows);
    }
}

impl Head {
    /// Step 5: receives z, sends grad_z, follows its own gradient. Returns the mean loss.
    async fn step(&mut self, network: &mut Network, step: Step, labels: &[f32]) -> Result<f32, ProtocolError> {
        let model = |source| ProtocolError::Model { step, source };
        let rows = labels.len();
        self.receive(network, step, rows).await?;
        let (loss, grad_z) = self.layer.step(self.z.slice(s![..rows, ..]), labels).map_err(model)?;
        check_finite(&[loss], "the loss", step)?;
        network.send_tensor(Role::Server, Kind::HiddenGradient, step, grad_z).await?;
        self.optimizer.step(&mut self.layer.parameters());
        Ok(loss)
    }

    /// Receives z, `[rows, k]`.
    pub(crate) async fn receive(
        &mut self,
        network: &mut Network,
        step: Step,
        rows: usize,
    ) -> Result<(), ProtocolError> {
        if self.z.nrows() < rows {
            self.z = Array2::zeros((rows, self.z.ncols()));
        }
        network.recv_tensor(Role::Server, Kind::HiddenOutput, step, self.z.slice_mut(s![..rows, ..])).await
    }
}

/// Mean loss of an epoch so far, and when it was last told.
struct Losses {
    sum: f64,
    rows: u64,
    told: Instant,
}

impl Losses {
    fn new() -> Self {
        Self { sum: 0.0, rows: 0, told: Instant::now() }
    }

    fn add(&mut self, mean: f32, rows: usize) {
        let rows = rows as u64;
        #[expect(clippy::cast_precision_loss, reason = "a batch has at most 2^24 rows")]
        {
            self.sum += f64::from(mean) * rows as f64;
        }
        self.rows += rows;
    }

    fn due(&mut self) -> bool {
        let due = self.told.elapsed() >= PROGRESS_EVERY;
        if due {
            self.told = Instant::now();
        }
        due
    }

    fn progress(&self) -> Progress {
        Progress { rows: self.rows, loss: self.mean().unwrap_or_default() }
    }

    #[expect(clippy::cast_precision_loss, reason = "an epoch has at most 2^32 rows")]
    fn mean(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.sum / self.rows as f64)
    }
}
