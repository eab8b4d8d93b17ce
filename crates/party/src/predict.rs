//! Using the network without changing it: evaluation on test rows, and scores of new rows.
//!
//! Steps 1 to 4 of a mini-batch; no loss leaves the label holder but as a metric, and scores stay there.

use crate::PartyError;
use crate::party::{Outcome, Party};
use ndarray::{Array2, s};
use spnn_nn::{Loss, accuracy, auc};
use spnn_protocol::first_layer::PartySide;
use spnn_protocol::message::{EpochEnd, Metrics, Report};
use spnn_protocol::{Meter, Phase, ProtocolError, Role, Step};

/// What the label holder has after a pass.
struct Scored {
    /// Row positions in the order of the pass.
    rows: Vec<u32>,
    /// `[rows, outputs]`.
    scores: Array2<f32>,
    /// Summed over the rows, where labels are known.
    loss: f64,
}

impl Party<'_> {
    /// Metrics of the test rows after `epoch`; only the label holder has any. After the last epoch it keeps the scores.
    pub(crate) async fn evaluate(
        &mut self,
        first_layer: &mut dyn PartySide,
        epoch: u32,
        last: bool,
    ) -> Result<Option<Metrics>, PartyError> {
        let Some(scored) = self.pass(first_layer, Phase::Evaluate, epoch).await? else { return Ok(None) };
        if last {
            self.write_scores(&scored.rows, &scored.scores)?;
        }
        Ok(self.metrics(&scored))
    }

    /// Metrics and scores of all rows of the file.
    pub(crate) async fn evaluate_all(&mut self, first_layer: &mut dyn PartySide) -> Result<Outcome, PartyError> {
        let meter = Meter::start(&self.network);
        let scored = self.pass(first_layer, Phase::Predict, 0).await?;
        let mut end = meter.stop(&self.network);
        if let Some(scored) = scored {
            self.write_scores(&scored.rows, &scored.scores)?;
            end.test = self.metrics(&scored);
        }
        let test = end.test;
        self.report(end).await?;
        Ok(Outcome { test })
    }

    /// Scores of all rows of the file.
    pub(crate) async fn predict(&mut self, first_layer: &mut dyn PartySide) -> Result<Outcome, PartyError> {
        let meter = Meter::start(&self.network);
        let scored = self.pass(first_layer, Phase::Predict, 0).await?;
        if let Some(scored) = scored {
            self.write_scores(&scored.rows, &scored.scores)?;
        }
        self.report(meter.stop(&self.network)).await?;
        Ok(Outcome::default())
    }

    async fn report(&mut self, end: EpochEnd) -> Result<(), ProtocolError> {
        self.network.send(Role::Coordinator, Step::SETUP, &Report::EpochEnd(end)).await
    }

    /// Sends this party's part of every batch; the label holder receives z and scores it.
    async fn pass(
        &mut self,
        first_layer: &mut dyn PartySide,
        phase: Phase,
        epoch: u32,
    ) -> Result<Option<Scored>, ProtocolError> {
        let rows = self.schedule.order(phase, epoch);
        if phase == Phase::Predict {
            self.check_releases(&rows)?;
        }
        let outputs = self.head.as_ref().map_or(0, |h| h.layer.output_width());
        let mut scored = Scored { scores: Array2::zeros((rows.len(), outputs)), loss: 0.0, rows };
        for batch in self.schedule.batches(phase, epoch) {
            self.make_ready(first_layer, batch, &scored.rows)?;
            let (step, n) = (batch.step, batch.rows);
            if phase == Phase::Predict {
                self.count_releases(&scored.rows[batch.start..batch.start + n])?;
            }
            let model = |source| ProtocolError::Model { step, source };
            let Self { network, gathered, weights, .. } = self;
            first_layer.forward(network, step, gathered.rows(), gathered.x(n), weights.view()).await?;
            self.options.join.monitor.rows_done(n);
            let Some(head) = &mut self.head else { continue };
            head.receive(&mut self.network, step, n).await?;
            let z = head.z.slice(s![..n, ..]);
            if !self.gathered.labels().is_empty() {
                scored.loss += head.layer.loss(z, self.gathered.labels()).map_err(model)?;
                if !scored.loss.is_finite() {
                    return Err(ProtocolError::Diverged { step, what: "the loss" });
                }
            }
            let scores = head.layer.scores(z).map_err(model)?;
            scored.scores.slice_mut(s![batch.start..batch.start + n, ..]).assign(&scores);
        }
        Ok(self.head.is_some().then_some(scored))
    }

    fn metrics(&self, scored: &Scored) -> Option<Metrics> {
        let (head, labels) = (self.head.as_ref()?, self.data.labels()?);
        let labels: Vec<f32> = scored.rows.iter().map(|&r| labels[r as usize]).collect();
        let kind = head.layer.loss_kind();
        let binary = kind == Loss::BinaryCrossEntropy;
        #[expect(clippy::cast_precision_loss, reason = "fewer than 2^32 rows")]
        let loss = scored.loss / scored.rows.len().max(1) as f64;
        Some(Metrics {
            loss,
            auc: if binary { scored.scores.as_slice().and_then(|s| auc(s, &labels)) } else { None },
            accuracy: accuracy(scored.scores.view(), &labels, kind),
        })
    }
}
