//! A role's way through the training of its session: where it is, what it has to report, when it makes a checkpoint.
//! The same for the server and for parties.

use crate::checkpoint::Checkpoints;
use crate::message::{EpochEnd, Report};
use crate::{
    Batch, Cause, Ending, Meter, Monitor, Network, Phase, Position, ProtocolError, Role, Schedule, SessionConfig, Step,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::Instant;

/// Where a role is in the training of its session.
pub struct Training {
    position: Position,
    /// What was reported, or would have been if the coordinator had been there, of every epoch that is over.
    ended: Vec<EpochEnd>,
    /// What the epoch under way took before this start of the session.
    before: EpochEnd,
    meter: Option<Meter>,
    checkpoints: Checkpoints,
    /// When the last checkpoint was made, and batches since then.
    kept: Instant,
    since: u32,
    epochs: u32,
    monitor: Monitor,
}

/// What a role that has trained everything reported last, if `error` says that the coordinator knows all roles to be done:
/// the word of it was lost, and nothing is left to do. Its checkpoints are removed.
///
/// # Errors
/// [`ProtocolError::Storage`] naming the file that cannot be read or removed.
pub fn all_done(
    error: &ProtocolError,
    mut checkpoints: Checkpoints,
    session: &SessionConfig,
) -> Result<Option<EpochEnd>, ProtocolError> {
    let ProtocolError::PeerEnded { peer: Role::Coordinator, ending: Ending { cause: Cause::Done, .. }, .. } = error
    else {
        return Ok(None);
    };
    let Some(last) = checkpoints.positions()?.last().copied().filter(|p| p.epoch > session.train.epochs) else {
        return Ok(None);
    };
    let Checkpoint { ended, .. } = checkpoints.resume::<Checkpoint<()>>(last)?;
    checkpoints.clear()?;
    Ok(Some(ended.last().cloned().unwrap_or_default()))
}

/// A whole checkpoint: the way so far, and, last, the role's own state `S` (weights, optimizer).
#[derive(Serialize, Deserialize)]
struct Checkpoint<S> {
    ended: Vec<EpochEnd>,
    under_way: EpochEnd,
    state: S,
}

impl Training {
    /// Continues at `position`, from its checkpoint if the role has `begun`, that is, if [`Checkpoints::positions`] told
    /// of any. Returns the state saved there.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] naming the file.
    pub fn resume<S: for<'de> Deserialize<'de>>(
        mut checkpoints: Checkpoints,
        position: Position,
        begun: bool,
        session: &SessionConfig,
        monitor: &Monitor,
    ) -> Result<(Self, Option<S>), ProtocolError> {
        let epochs = session.train.epochs;
        let monitor = monitor.clone();
        monitor.at(position);
        let saved = if begun { Some(checkpoints.resume::<Checkpoint<S>>(position)?) } else { None };
        let (ended, before, state) = match saved {
            Some(Checkpoint { ended, under_way, state }) => (ended, under_way, Some(state)),
            None => (Vec::new(), EpochEnd::default(), None),
        };
        let kept = Instant::now();
        Ok((Self { position, ended, before, meter: None, checkpoints, kept, since: 0, epochs, monitor }, state))
    }

    /// Where training is.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// The epoch to train, unless all are done.
    #[must_use]
    pub fn epoch(&self) -> Option<u32> {
        (self.position.epoch <= self.epochs).then_some(self.position.epoch)
    }

    /// Whether the epoch under way is the last.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.position.epoch == self.epochs
    }

    /// What the last epoch came to; the label holder's has metrics.
    #[must_use]
    pub fn last_end(&self) -> Option<&EpochEnd> {
        self.ended.last()
    }

    /// Tells the coordinator of every epoch that is over, as it may not have heard or may have forgotten.
    ///
    /// # Errors
    /// As [`Network::send`].
    pub async fn report_ended(&self, network: &mut Network) -> Result<(), ProtocolError> {
        for end in &self.ended {
            network.send(Role::Coordinator, Step::SETUP, &Report::EpochEnd(end.clone())).await?;
        }
        Ok(())
    }

    /// Begins or continues the epoch: its batches that are left.
    pub fn begin_epoch(&mut self, schedule: &Schedule, network: &Network) -> impl Iterator<Item = Batch> + use<> {
        self.meter = Some(Meter::start(network));
        schedule.batches(Phase::Train, self.position.epoch).skip(self.position.batch as usize)
    }

    /// To be called before this role sends anything for its next batch. No checkpoint is made until everyone has taken
    /// part in two batches after the last; and nobody takes part in the second before the last one is durable. So
    /// whoever makes a checkpoint may rely on everyone's having the one before.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] if it cannot be made durable.
    pub fn before_batch(&mut self) -> Result<(), ProtocolError> {
        if self.since > 0 { self.checkpoints.settle() } else { Ok(()) }
    }

    /// Whether everyone is to make a checkpoint after the batch under way, because the last one is `every` old. The
    /// server decides.
    #[must_use]
    pub fn wants_checkpoint(&self, every: Duration) -> bool {
        self.since > 0 && self.kept.elapsed() >= every
    }

    /// The batch of so many rows is done: this role's weights and its position belong together again.
    pub fn batch_done(&mut self, rows: usize) {
        self.position.batch += 1;
        self.since += 1;
        self.monitor.at(self.position);
        self.monitor.rows_done(rows);
    }

    /// All batches of the epoch are done: what they took, over all starts of the session.
    pub fn batches_done(&mut self, network: &Network) {
        self.before = self.under_way(network);
        self.meter = None;
    }

    /// The epoch is evaluated: on to the next one. `with` adds the label holder's metrics to what is reported.
    pub fn end_epoch(&mut self, with: impl FnOnce(&mut EpochEnd)) -> EpochEnd {
        let mut end = std::mem::take(&mut self.before);
        with(&mut end);
        self.ended.push(end.clone());
        self.position = Position { epoch: self.position.epoch + 1, batch: 0 };
        self.monitor.at(self.position);
        end
    }

    /// Begins to write a checkpoint; waits for the one before.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] naming the file that could not be written.
    pub fn checkpoint<S: Serialize>(&mut self, network: &Network, state: S) -> Result<(), ProtocolError> {
        let (ended, under_way) = (self.ended.clone(), self.under_way(network));
        (self.kept, self.since) = (Instant::now(), 0);
        self.monitor.checkpoint();
        self.checkpoints.begin(self.position, &Checkpoint { ended, under_way, state })
    }

    /// A checkpoint where training is, durable on return: the role is about to go, or to wait for others.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint).
    pub fn keep<S: Serialize>(&mut self, network: &Network, state: S) -> Result<(), ProtocolError> {
        self.checkpoint(network, state)?;
        self.checkpoints.settle()
    }

    /// The session is over: nothing is left to resume.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] naming the file that could not be removed.
    pub fn finish(&mut self) -> Result<(), ProtocolError> {
        self.checkpoints.clear()
    }

    /// Waits until the checkpoint begun last is durable.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] naming the file that could not be written.
    pub fn settle(&mut self) -> Result<(), ProtocolError> {
        self.checkpoints.settle()
    }

    fn under_way(&self, network: &Network) -> EpochEnd {
        match &self.meter {
            Some(meter) => meter.stop(network).after(&self.before),
            None => self.before.clone(),
        }
    }
}
