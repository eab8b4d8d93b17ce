//! Work spread over threads.

use std::sync::{Mutex, PoisonError};

/// Runs `work` on every item, on up to `threads` threads counting this one; `state` makes what a thread keeps.
///
/// Threads take the next item when they are done with one, so a core that others use as well just does fewer. They
/// live for this call: tens of microseconds against the milliseconds of a batch, and no pool of threads to configure.
pub fn for_each<T: Send, S>(
    threads: usize,
    items: impl ExactSizeIterator<Item = T> + Send,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) + Sync,
) {
    let helpers = threads.min(items.len()).saturating_sub(1);
    let items = Mutex::new(items);
    let run = || {
        let mut state = state();
        loop {
            let next = items.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(item) = next else { break };
            work(&mut state, item);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..helpers {
            scope.spawn(run);
        }
        run();
    });
}
