//! Which rows each mini-batch holds. Every role walks the same schedule, so nobody announces the next batch.

use crate::{Phase, Position, Step};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// The order of rows of a session, from its public seed: the same at every role, on every platform.
///
/// Rows are positions in the aligned order. The server uses [`batches`](Self::batches) only, which holds counts.
#[derive(Clone, Debug)]
pub struct Schedule {
    seed: u64,
    rows: u32,
    test_rows: u32,
    batch_size: u32,
    /// Of rows that are scored.
    predict_batch_size: u32,
}

/// One mini-batch: its step, and how many rows it has from which place in the order of its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// When.
    pub step: Step,
    /// Place of its first row in [`Schedule::order`].
    pub start: usize,
    /// Number of rows.
    pub rows: usize,
}

const SPLIT: u64 = 0;

impl Schedule {
    /// A schedule over `rows` aligned rows, `test_fraction` of which are kept from training.
    #[must_use]
    pub fn new(seed: u64, rows: u32, test_fraction: f64, batch_size: u32) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 ≤ fraction < 1, so ≤ rows")]
        let test_rows = (f64::from(rows) * test_fraction).round() as u32;
        Self { seed, rows, test_rows, batch_size, predict_batch_size: batch_size }
    }

    /// The same, with other batches of rows that are scored.
    #[must_use]
    pub fn with_predict_batch_size(self, predict_batch_size: u32) -> Self {
        Self { predict_batch_size, ..self }
    }

    /// Number of aligned rows.
    #[must_use]
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Number of training rows.
    #[must_use]
    pub fn train_rows(&self) -> u32 {
        self.rows - self.test_rows
    }

    /// Number of test rows.
    #[must_use]
    pub fn test_rows(&self) -> u32 {
        self.test_rows
    }

    /// The mini-batches of one pass. Made one by one: the number of rows is what someone else says.
    pub fn batches(&self, phase: Phase, epoch: u32) -> impl Iterator<Item = Batch> + use<> {
        let rows = match phase {
            Phase::Setup => 0,
            Phase::Train => self.train_rows(),
            Phase::Evaluate => self.test_rows,
            Phase::Predict => self.rows,
        };
        let size = if phase == Phase::Predict { self.predict_batch_size } else { self.batch_size };
        (0..rows.div_ceil(size)).map(move |batch| Batch {
            step: Step { phase, epoch, batch },
            start: batch as usize * size as usize,
            rows: size.min(rows - batch * size) as usize,
        })
    }

    /// The passes of training that are left from `resume` on: phase, epoch, and how many batches of it are over.
    pub fn passes_of_training(
        &self,
        epochs: u32,
        resume: Position,
    ) -> impl Iterator<Item = (Phase, u32, usize)> + use<> {
        let evaluates = self.test_rows > 0;
        (resume.epoch..=epochs).flat_map(move |epoch| {
            let over = if epoch == resume.epoch { resume.batch as usize } else { 0 };
            let test = evaluates.then_some((Phase::Evaluate, epoch, 0));
            [(Phase::Train, epoch, over)].into_iter().chain(test)
        })
    }

    /// The rows of one pass in their order: training rows shuffled anew each epoch; test rows as the split drew them;
    /// all rows as they are for prediction.
    #[must_use]
    pub fn order(&self, phase: Phase, epoch: u32) -> Vec<u32> {
        match phase {
            Phase::Setup => Vec::new(),
            Phase::Predict => (0..self.rows).collect(),
            Phase::Evaluate => self.split().split_off(self.train_rows() as usize),
            Phase::Train => {
                let mut rows = self.split();
                rows.truncate(self.train_rows() as usize);
                rows.shuffle(&mut self.rng(u64::from(epoch)));
                rows
            }
        }
    }

    /// All rows, training rows first.
    fn split(&self) -> Vec<u32> {
        let mut rows: Vec<u32> = (0..self.rows).collect();
        if self.test_rows > 0 {
            rows.shuffle(&mut self.rng(SPLIT));
        }
        rows
    }

    fn rng(&self, stream: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(stream);
        rng
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_row_once(seed in any::<u64>(), rows in 2_u32..500, fraction in 0.0..0.9, size in 1_u32..100, epoch in 1_u32..9) {
            let schedule = Schedule::new(seed, rows, fraction, size);
            let train = schedule.order(Phase::Train, epoch);
            let test = schedule.order(Phase::Evaluate, epoch);
            let mut all = [train.clone(), test.clone()].concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..rows).collect::<Vec<_>>());
            for (phase, order) in [(Phase::Train, train), (Phase::Evaluate, test)] {
                let mut next = 0;
                for batch in schedule.batches(phase, epoch) {
                    prop_assert_eq!(batch.start, next);
                    prop_assert!(batch.rows >= 1 && batch.rows <= size as usize);
                    next += batch.rows;
                }
                prop_assert_eq!(next, order.len());
            }
        }
    }

    #[test]
    fn the_order_is_fixed_by_the_seed() {
        // Own output, kept so that a dependency cannot silently change which rows old sessions trained on.
        let schedule = Schedule::new(7, 10, 0.2, 4);
        assert_eq!(schedule.order(Phase::Train, 1), schedule.order(Phase::Train, 1));
        assert_ne!(schedule.order(Phase::Train, 1), schedule.order(Phase::Train, 2));
        assert_eq!(schedule.order(Phase::Evaluate, 1), schedule.order(Phase::Evaluate, 2));
        assert_ne!(schedule.order(Phase::Train, 1), Schedule::new(8, 10, 0.2, 4).order(Phase::Train, 1));
        assert_eq!(schedule.order(Phase::Evaluate, 1), [3, 4]);
    }
}
