//! Training at the server, beside `party/src/train.rs`.
//!
//! | | step of the mini-batch | to |
//! | --- | --- | --- |
//! | 4 | `h1 = first_layer.open()`, `z = model.forward(h1)` | label holder |
//! | 6 | `grad_h1 = model.backward(grad_z)`, then `model` follows its own gradients | parties |

use crate::{LONG, Running, Scoring};
use ndarray::{Array2, s};
use spnn_nn::{Mode, ModelError};
use spnn_protocol::first_layer::ServerSide;
use spnn_protocol::message::{EpochEnd, Kind, Query, QuerySize, Report};
use spnn_protocol::{Batch, Meter, Phase, ProtocolError, Role, Step};

impl Running<'_> {
    /// Trains for all epochs that are left; after each, the test rows are evaluated.
    pub(crate) async fn train(&mut self, first_layer: &mut dyn ServerSide) -> Result<(), ProtocolError> {
        self.training.report_ended(&mut self.network).await?;
        let mut grad_z = Array2::zeros((0, self.model.output_width()));
        while let Some(epoch) = self.training.epoch() {
            for batch in self.training.begin_epoch(&self.schedule, &self.network) {
                let checkpoint = self.train_batch(first_layer, batch, &mut grad_z).await?;
                self.training.batch_done(batch.rows);
                if checkpoint {
                    self.checkpoint()?;
                }
            }
            self.training.batches_done(&self.network);
            self.pass(&mut Scoring::Open(&mut *first_layer), Phase::Evaluate, epoch).await?;
            let mut end = self.training.end_epoch(|_| {});
            if self.training.epoch().is_none() {
                self.checkpoint()?;
            }
            end.head = self.network.audit_epoch(Step { phase: Phase::Train, epoch, batch: 0 }).await?;
            self.report(end).await?;
        }
        Ok(())
    }

    /// True if a checkpoint is due after the batch.
    async fn train_batch(
        &mut self,
        first_layer: &mut dyn ServerSide,
        batch: Batch,
        grad_z: &mut Array2<f32>,
    ) -> Result<bool, ProtocolError> {
        let Batch { step, rows, .. } = batch;
        let model = |source: ModelError| ProtocolError::Model { step, source };
        let label_holder = self.session.label_role();
        self.training.before_batch()?;
        let network = &mut self.network;

        let h1 = first_layer.open(network, step, rows).await?;
        network.opened(step, "h1", rows, h1.ncols());
        let so_far = if batch.start == 0 { 0.0 } else { self.h1_max };
        self.h1_max = h1.iter().fold(so_far, |largest, h| largest.max(h.abs()));
        if self.options.stop.requested() {
            // All shares of this batch are here, so everyone is done with the one before.
            return Err(ProtocolError::Stopped);
        }
        let z = self.model.forward(h1, Mode::Train).map_err(model)?;
        network.send_tensor(label_holder, Kind::HiddenOutput, step, z).await?;

        if grad_z.nrows() < rows {
            *grad_z = Array2::zeros((rows, grad_z.ncols()));
        }
        let mut grad_z = grad_z.slice_mut(s![..rows, ..]);
        network.recv_tensor(label_holder, Kind::HiddenGradient, step, grad_z.view_mut()).await?;
        let grad_h1 = self.model.backward(grad_z.view()).map_err(model)?;
        let checkpoint = self.training.wants_checkpoint(self.options.checkpoint_every);
        network.send_gradient_to_parties(step, grad_h1, checkpoint).await?;
        // The parties work on their weights meanwhile.
        self.optimizer.step(&mut self.model.parameters());
        self.random_positions = self.model.random_positions();
        Ok(checkpoint)
    }

    /// Scores all rows of a session that trains nothing.
    pub(crate) async fn predict(&mut self, scoring: &mut Scoring<'_>) -> Result<(), ProtocolError> {
        let meter = Meter::start(&self.network);
        self.pass(scoring, Phase::Predict, 0).await?;
        self.report(meter.stop(&self.network)).await
    }

    /// Steps 1 to 4 for every batch of a pass.
    async fn pass(&mut self, scoring: &mut Scoring<'_>, phase: Phase, epoch: u32) -> Result<(), ProtocolError> {
        for Batch { step, rows, .. } in self.schedule.batches(phase, epoch) {
            self.score(scoring, step, rows).await?;
        }
        Ok(())
    }

    async fn score(&mut self, scoring: &mut Scoring<'_>, step: Step, rows: usize) -> Result<(), ProtocolError> {
        match scoring {
            Scoring::Blind(server) => server.score(&mut self.network, step).await?,
            Scoring::Open(first_layer) => {
                let h1 = first_layer.open(&mut self.network, step, rows).await?;
                self.network.opened(step, "h1", rows, h1.ncols());
                let z = self.model.forward(h1, Mode::Evaluate);
                let z = z.map_err(|source| ProtocolError::Model { step, source })?;
                self.network.send_tensor(self.session.label_role(), Kind::HiddenOutput, step, z).await?;
            }
        }
        self.options.monitor.rows_done(rows);
        Ok(())
    }

    /// Scores as many rows as the label holder says, again and again, until this role is asked to stop or a peer is
    /// gone: it ends with an error.
    pub(crate) async fn serve(&mut self, scoring: &mut Scoring<'_>) -> Result<(), ProtocolError> {
        let holder = self.session.label_role();
        // Queries come when they come; a label holder that is gone is noticed by its connection.
        self.network.channel(holder)?.set_timeout(LONG);
        let first_lost = self.network.first_lost();
        let answering = async {
            for number in 0.. {
                let step = Step::of_query(number);
                let QuerySize { rows } = tokio::select! {
                    biased;
                    () = self.options.stop.wait() => return Err(ProtocolError::Stopped),
                    size = self.network.recv(holder, step) => size?,
                };
                let rows = rows as usize;
                if !(1..=Query::ROWS_MAX).contains(&rows) {
                    let expected = format!("a query of 1 to {} rows", Query::ROWS_MAX);
                    return Err(ProtocolError::Unexpected { peer: holder, expected, found: format!("{rows} rows") });
                }
                self.score(scoring, step, rows).await?;
                if step.ends_epoch_of_service() {
                    self.network.audit_epoch(step).await?;
                }
            }
            Ok(())
        };
        let gone = tokio::select! {
            biased;
            ended = answering => return ended,
            gone = first_lost => gone,
        };
        Err(self.network.lost(gone, Step::SETUP).await)
    }

    async fn report(&mut self, end: EpochEnd) -> Result<(), ProtocolError> {
        self.network.send(Role::Coordinator, Step::SETUP, &Report::EpochEnd(end)).await
    }
}
