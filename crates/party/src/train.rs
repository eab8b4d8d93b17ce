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
use crate::party::{Head, Party};
use crate::prepare::check_finite;
use ndarray::{Array2, s};
use serde::{Deserialize, Serialize};
use spnn_nn::matmul;
use spnn_protocol::first_layer::PartySide;
use spnn_protocol::message::{Kind, Progress, Report};
use spnn_protocol::{Batch, Network, Phase, ProtocolError, Role, Step};
use std::time::Duration;
use tokio::time::Instant;

/// How often the label holder says where it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

impl Party<'_> {
    /// Trains for all epochs that are left; after each, the test rows are evaluated.
    pub(crate) async fn train(&mut self, first_layer: &mut dyn PartySide) -> Result<(), PartyError> {
        self.training.report_ended(&mut self.network).await?;
        while let Some(epoch) = self.training.epoch() {
            self.train_epoch(first_layer, epoch).await?;
            let mut test = None;
            if self.schedule.test_rows() > 0 {
                test = self.evaluate(first_layer, epoch, self.training.is_last()).await?;
            }
            let train_loss = std::mem::take(&mut self.losses).mean();
            let mut end = self.training.end_epoch(|end| (end.train_loss, end.test) = (train_loss, test));
            if self.training.epoch().is_none() {
                self.checkpoint()?;
            }
            end.head = self.network.audit_epoch(Step { phase: Phase::Train, epoch, batch: 0 }).await?;
            self.network.send(Role::Coordinator, Step::SETUP, &Report::EpochEnd(end)).await?;
        }
        Ok(())
    }

    async fn train_epoch(&mut self, first_layer: &mut dyn PartySide, epoch: u32) -> Result<(), PartyError> {
        let order = self.schedule.order(Phase::Train, epoch);
        let mut told = Instant::now();
        let mut batches = self.training.begin_epoch(&self.schedule, &self.network).peekable();
        if let Some(first) = batches.peek() {
            self.make_ready(first_layer, *first, &order)?;
        }
        while let Some(batch) = batches.next() {
            let checkpoint = self.train_batch(first_layer, batch).await?;
            self.training.batch_done(batch.rows);
            if checkpoint {
                self.checkpoint()?;
            }
            if self.options.join.stop.requested() {
                // The server has used all that this party sent.
                return Err(ProtocolError::Stopped.into());
            }
            if let Some(next) = batches.peek() {
                self.make_ready(first_layer, *next, &order)?;
            }
            if self.head.is_some() && told.elapsed() >= PROGRESS_EVERY {
                told = Instant::now();
                let progress = Report::Progress(self.losses.progress());
                self.network.send(Role::Coordinator, Step::SETUP, &progress).await?;
            }
        }
        self.training.batches_done(&self.network);
        Ok(())
    }

    /// True if a checkpoint is due after the batch.
    async fn train_batch(&mut self, first_layer: &mut dyn PartySide, batch: Batch) -> Result<bool, ProtocolError> {
        let Batch { step, rows, .. } = batch;
        self.training.before_batch()?;
        let Self { network, weights, gradient, grad_h1, optimizer, head, gathered, losses, .. } = self;
        first_layer.forward(network, step, gathered.rows(), gathered.x(rows), weights.view()).await?;
        let loss = match head {
            Some(head) => Some(head.answer(network, step, gathered.labels()).await?),
            None => None,
        };
        if grad_h1.nrows() < rows {
            *grad_h1 = Array2::zeros((rows, weights.ncols()));
        }
        let mut grad_h1 = grad_h1.slice_mut(s![..rows, ..]);
        let checkpoint = network.channel(Role::Server)?.recv_gradient(step, grad_h1.view_mut()).await?;
        // From here to the end of the batch nothing waits: a checkpoint has all of it or nothing.
        matmul(gathered.x(rows).t(), grad_h1.view(), gradient.view_mut(), false);
        if let (Some(weights), Some(gradient)) = (weights.as_slice_mut(), gradient.as_slice()) {
            optimizer.step_one(weights, gradient);
        }
        if let (Some(head), Some(loss)) = (head, loss) {
            head.optimizer.step(&mut head.layer.parameters());
            losses.add(loss, rows);
        }
        Ok(checkpoint)
    }

    /// Gathers the rows of a batch and its masks, which need neither weights nor peers.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] if what is on disk cannot be read.
    pub(crate) fn make_ready(
        &mut self,
        first_layer: &mut dyn PartySide,
        batch: Batch,
        order: &[u32],
    ) -> Result<(), ProtocolError> {
        let rows = &order[batch.start..batch.start + batch.rows];
        self.gathered.gather(self.data, rows)?;
        first_layer.prepare(batch.step, rows);
        Ok(())
    }
}

impl Head {
    /// Step 5: receives z, sends grad_z. Returns the mean loss; the head's own gradient is kept for the end of the batch.
    async fn answer(&mut self, network: &mut Network, step: Step, labels: &[f32]) -> Result<f32, ProtocolError> {
        let model = |source| ProtocolError::Model { step, source };
        let rows = labels.len();
        self.receive(network, step, rows).await?;
        let (loss, grad_z) = self.layer.step(self.z.slice(s![..rows, ..]), labels).map_err(model)?;
        check_finite(&[loss], "the loss", step)?;
        network.send_tensor(Role::Server, Kind::HiddenGradient, step, grad_z).await?;
        Ok(loss)
    }

    /// Receives z, `[rows, k]`, and opens it if it comes encrypted.
    pub(crate) async fn receive(
        &mut self,
        network: &mut Network,
        step: Step,
        rows: usize,
    ) -> Result<(), ProtocolError> {
        if self.z.nrows() < rows {
            self.z = Array2::zeros((rows, self.z.ncols()));
        }
        let z = self.z.slice_mut(s![..rows, ..]);
        match &self.blind {
            None => network.recv_tensor(Role::Server, Kind::HiddenOutput, step, z).await,
            Some(holder) => holder.open(network, step, z).await,
        }
    }
}

/// Mean loss of an epoch so far.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Losses {
    sum: f64,
    rows: u64,
}

impl Losses {
    fn add(&mut self, mean: f32, rows: usize) {
        let rows = rows as u64;
        #[expect(clippy::cast_precision_loss, reason = "a batch has at most 2^24 rows")]
        {
            self.sum += f64::from(mean) * rows as f64;
        }
        self.rows += rows;
    }

    fn progress(&self) -> Progress {
        Progress { rows: self.rows, loss: self.mean().unwrap_or_default() }
    }

    #[expect(clippy::cast_precision_loss, reason = "an epoch has at most 2^32 rows")]
    fn mean(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.sum / self.rows as f64)
    }
}
