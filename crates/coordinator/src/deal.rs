//! The dealer rides with the coordinator: it sends the parties what their first-layer protocol needs of someone who sees
//! neither data nor what is opened.

use crate::SessionRecord;
use spnn_protocol::first_layer::dealer_side;
use spnn_protocol::{Phase, Position, ProtocolError, Sending, SessionConfig, Task, usage};
use std::collections::BTreeMap;

/// What is dealt in one start of a session.
pub(crate) struct Deal {
    task: Task,
    incarnation: u64,
    rows: u32,
    features: usize,
    resume: Position,
}

/// What dealing for one epoch took.
#[derive(Clone, Copy, Default)]
pub(crate) struct Dealt {
    pub(crate) bytes: u64,
    /// Of the whole process meanwhile; it does little else.
    pub(crate) cpu_seconds: f64,
}

impl Deal {
    pub(crate) fn of(record: &SessionRecord) -> Self {
        Self {
            task: record.task,
            incarnation: record.incarnation,
            rows: record.rows.train + record.rows.test,
            features: record.features.iter().map(|&f| f as usize).sum(),
            resume: record.resumed_from.unwrap_or(Position::START),
        }
    }

    /// Deals for every batch that is left, as far ahead as the connections have room. Notes what
    /// each epoch of training took.
    ///
    /// # Errors
    /// [`ProtocolError`] if a party is gone, or the system has no randomness.
    pub(crate) async fn run(
        &self,
        session: &SessionConfig,
        parties: &mut [Sending<'_>],
        dealt: &mut BTreeMap<u32, Dealt>,
    ) -> Result<(), ProtocolError> {
        if session.is_blind(self.task) {
            return Ok(());
        }
        let Some(mut dealer) = dealer_side(session, self.incarnation, self.features, parties).await? else {
            return Ok(());
        };
        let schedule = session.schedule(self.rows);
        let passes: Box<dyn Iterator<Item = (Phase, u32, usize)> + Send> = match self.task {
            Task::Train => Box::new(schedule.passes_of_training(session.train.epochs, self.resume)),
            Task::Evaluate | Task::Predict => Box::new([(Phase::Predict, 0, 0)].into_iter()),
            Task::Align | Task::Serve => Box::new(std::iter::empty()),
        };
        for (phase, epoch, over) in passes {
            let order = schedule.order(phase, epoch);
            let (mut of_pass, before) = (Dealt::default(), usage::cpu_seconds());
            for batch in schedule.batches(phase, epoch).skip(over) {
                let rows = &order[batch.start..batch.start + batch.rows];
                of_pass.bytes += dealer.deal(parties, batch.step, rows).await?;
            }
            if phase == Phase::Train {
                of_pass.cpu_seconds = usage::cpu_seconds() - before;
                dealt.insert(epoch, of_pass);
            }
        }
        Ok(())
    }
}
