//! How much memory something takes: a global allocator that counts what each thread asks for.

#![allow(dead_code, reason = "one user counts the largest allocation, another one the sum")]
#![allow(unsafe_code, reason = "a global allocator is unsafe to write")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting.
pub(crate) struct Counting;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
    /// Below zero where a thread frees what another one asked for.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// A thread-local number without a destructor allocates nothing; at the end of a thread it may be gone.
fn count(asked: usize, freed: usize) {
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(asked)));
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + asked.cast_signed() - freed.cast_signed());
        PEAK.set(PEAK.get().max(live.get()));
    });
}

// SAFETY: everything is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// The largest single allocation of something on this thread.
pub(crate) fn largest(something: impl FnOnce()) -> usize {
    LARGEST.set(0);
    something();
    LARGEST.get()
}

/// The most memory that something held at a time on this thread, above what was held before.
pub(crate) fn peak(something: impl FnOnce()) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    something();
    (PEAK.get() - before).try_into().unwrap_or(0)
}
