//! A role's way through the training of its session: where it is, what it has to report, when it makes a checkpoint.
//! The same for the server and for parties.

use crate::checkpoint::Checkpoints;
use crate::message::{EpochEnd, Report};
use crate::{
    Batch, Cause, Ending, Meter, Network, Phase, Position, ProtocolError, Role, Schedule, SessionConfig, Step, Task,
};
use serde::{Deserialize, Serialize};

/// Where a role is in the training of its session.
pub struct Training {
    position: Position,
    /// What was reported, or would have been if the coordinator had been there, of every epoch that is over.
    ended: Vec<EpochEnd>,
    /// What the epoch under way took before this start of the session.
    before: EpochEnd,
    meter: Option<Meter>,
    checkpoints: Checkpoints,
    every: u32,
    /// Batches of an epoch.
    batches: u32,
    epochs: u32,
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
    /// Continues at `position`, of which [`Checkpoints::positions`] told. Returns the state saved there; none for a role
    /// that has not begun yet, or has nothing to train.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] naming the file.
    pub fn resume<S: for<'de> Deserialize<'de>>(
        mut checkpoints: Checkpoints,
        position: Position,
        session: &SessionConfig,
        task: Task,
        schedule: &Schedule,
    ) -> Result<(Self, Option<S>), ProtocolError> {
        let (every, epochs) = (session.train.checkpoint_every, session.train.epochs);
        let batches = u32::try_from(schedule.batches(Phase::Train, 1).count()).unwrap_or(u32::MAX);
        let begun = task == Task::Train && !checkpoints.positions()?.is_empty();
        let saved = if begun { Some(checkpoints.resume::<Checkpoint<S>>(position)?) } else { None };
        let (ended, before, state) = match saved {
            Some(Checkpoint { ended, under_way, state }) => (ended, under_way, Some(state)),
            None => (Vec::new(), EpochEnd::default(), None),
        };
        Ok((Self { position, ended, before, meter: None, checkpoints, every, batches, epochs }, state))
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
    pub fn begin_epoch(&mut self, schedule: &Schedule, network: &Network) -> Vec<Batch> {
        self.meter = Some(Meter::start(network));
        schedule.batches(Phase::Train, self.position.epoch).skip(self.position.batch as usize).collect()
    }

    /// To be called before this role sends anything for its next batch. Whoever completes an interval between two
    /// checkpoints may rely on everyone's having made the first one durable.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] if that failed.
    pub fn before_batch(&mut self) -> Result<(), ProtocolError> {
        if self.is_due(self.position.batch + 1) || self.position.batch + 1 == self.batches {
            self.checkpoints.settle()?;
        }
        Ok(())
    }

    /// The batch is done: this role's weights and its position belong together again. True if a checkpoint is due.
    pub fn batch_done(&mut self) -> bool {
        self.position.batch += 1;
        self.is_due(self.position.batch)
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
        end
    }

    /// Begins to write a checkpoint; waits for the one before.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] naming the file that could not be written.
    pub fn checkpoint<S: Serialize>(&mut self, network: &Network, state: S) -> Result<(), ProtocolError> {
        let (ended, under_way) = (self.ended.clone(), self.under_way(network));
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

    fn is_due(&self, batch: u32) -> bool {
        self.every > 0 && batch.is_multiple_of(self.every) && batch < self.batches
    }

    fn under_way(&self, network: &Network) -> EpochEnd {
        match &self.meter {
            Some(meter) => meter.stop(network).after(&self.before),
            None => self.before.clone(),
        }
    }
}
