//! Publication: one writer swaps whole tables, any number of readers pin one per batch.
//!
//! ```text
//!   control thread                                    worker
//!   publish: current -> new table                     pin:   epoch announced, then `current` read
//!            old table retired, epoch asked to        ...    lookups of one batch
//!            release it, retired tables that the      unpin: epoch withdrawn
//!            epoch has released are freed here
//! ```
//!
//! Epochs (crossbeam) decide *when* nobody can see an old table any more; the publisher decides *where* it is freed.
//! Handing the table itself to the collector would let a worker free tens of mebibytes in the middle of a batch,
//! because crossbeam runs deferred work in whichever thread collects. So the collector gets only one of two counted
//! references, and the last one is always dropped by [`FibCell::publish`], [`FibCell::reclaim`] or the cell's own end.

use crate::Fib;
use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use sync::{AtomicPtr, Collector, Guard, LocalHandle, Mutex, Ordering, TableArc};

/// The few primitives that the loom model (`tests/loom.rs`) replaces.
mod sync {
    #[cfg(not(crossbeam_loom))]
    pub(super) use {
        crossbeam::epoch::{Collector, Guard, LocalHandle},
        std::sync::atomic::{AtomicPtr, Ordering},
        std::sync::{Arc as TableArc, Mutex},
    };

    #[cfg(crossbeam_loom)]
    pub(super) use {
        crossbeam_epoch::{Collector, Guard, LocalHandle},
        loom::sync::atomic::{AtomicPtr, Ordering},
        loom::sync::{Arc as TableArc, Mutex},
    };
}

/// Rounds without fruit before the rest is left to a later call. The epoch must advance twice after a table was retired
/// before the table is released; each round advances it once unless a reader has been pinned since before the last.
const ROUNDS: usize = 3;

/// Retired tables that may be left to a later call: each takes as much memory as the table in force.
const RETIRED_MAX: usize = 4;

/// Further fruitless rounds, with a sleep before each, that a publisher goes through while more than [`RETIRED_MAX`] tables are held: about
/// a millisecond, several batches long. A reader that has lost its CPU while pinned is not waited for any longer.
const PATIENT_ROUNDS: usize = 10;
const PATIENCE: Duration = Duration::from_micros(100);

/// The place where the table in force hangs. `T` is [`Fib`] everywhere but in models and tests of publication itself.
pub struct FibCell<T: Send + Sync + 'static = Fib> {
    /// Points into `tables.current`.
    current: AtomicPtr<T>,
    collector: Collector,
    tables: Mutex<Tables<T>>,
}

/// What keeps tables alive. Every retired one is also held by the collector until no reader can see it.
struct Tables<T> {
    current: TableArc<T>,
    retired: Vec<TableArc<T>>,
}

impl<T: Send + Sync + 'static> FibCell<T> {
    /// Starts with `fib` in force.
    pub fn new(fib: T) -> Arc<FibCell<T>> {
        let table = TableArc::new(fib);
        Arc::new(FibCell {
            current: AtomicPtr::new(address(&table)),
            collector: Collector::new(),
            tables: Mutex::new(Tables { current: table, retired: Vec::new() }),
        })
    }

    /// Puts `fib` in force: every [`FibReader::pin`] that begins after this call returns sees it. The old table is freed once its last reader leaves.
    ///
    /// Frees the old table itself, unless a reader is in a batch just then: what is still held is freed by the next call or by
    /// [`FibCell::reclaim`], which the publishing thread should call when it is idle. While more than four tables are held,
    /// a call takes up to about a millisecond longer, so that they do not pile up.
    pub fn publish(&self, fib: T) {
        let new = TableArc::new(fib);
        let mut tables = self.lock();
        let handle = self.collector.register();
        // Release, so that a reader that sees the pointer sees the table behind it.
        self.current.store(address(&new), Ordering::Release);
        let old = mem::replace(&mut tables.current, new);
        {
            let guard = handle.pin();
            let held_for_readers = old.clone();
            guard.defer(move || drop(held_for_readers));
        }
        tables.retired.push(old);
        free_unseen(&mut tables.retired, &handle);
    }

    /// Frees what earlier calls of [`FibCell::publish`] had to leave behind, and returns how many tables readers still hold.
    pub fn reclaim(&self) -> usize {
        let mut tables = self.lock();
        free_unseen(&mut tables.retired, &self.collector.register());
        tables.retired.len()
    }

    /// A reader for one thread: the thread that uses it has to make it, because it cannot be sent to another one.
    pub fn reader(self: &Arc<Self>) -> FibReader<T> {
        FibReader { handle: self.collector.register(), cell: Arc::clone(self) }
    }

    fn lock(&self) -> impl std::ops::DerefMut<Target = Tables<T>> {
        // Freeing a table is the last thing done under the lock, so a panic in it leaves the fields whole.
        self.tables.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn address<T>(table: &TableArc<T>) -> *mut T {
    (&raw const **table).cast_mut()
}

/// Advances the epoch until every retired table is released, or the readers are not worth waiting for.
fn free_unseen<T>(retired: &mut Vec<TableArc<T>>, handle: &LocalHandle) {
    let mut fruitless = 0;
    while !retired.is_empty() && fruitless < ROUNDS + PATIENT_ROUNDS {
        if fruitless >= ROUNDS {
            if retired.len() <= RETIRED_MAX {
                return;
            }
            thread::sleep(PATIENCE);
        }
        handle.pin().flush();
        let before = retired.len();
        // A count of one: the collector has dropped its reference, so no reader is left that could see the table.
        retired.retain(|table| TableArc::strong_count(table) > 1);
        fruitless = if retired.len() < before { 0 } else { fruitless + 1 };
    }
}

impl<T: Send + Sync + 'static> fmt::Debug for FibCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FibCell").finish_non_exhaustive()
    }
}

/// One thread's access. Not to be kept pinned while the thread sleeps: reclamation of every old table waits for it.
pub struct FibReader<T: Send + Sync + 'static = Fib> {
    handle: LocalHandle,
    cell: Arc<FibCell<T>>,
}

impl<T: Send + Sync + 'static> FibReader<T> {
    /// Pins the table in force for one batch. Takes no lock and writes nothing that another reader reads.
    #[inline]
    pub fn pin(&self) -> FibPin<'_, T> {
        let guard = self.handle.pin();
        let table = NonNull::new(self.cell.current.load(Ordering::Acquire)).expect("a table is always in force");
        FibPin { table, _guard: guard, _reader: PhantomData }
    }
}

impl<T: Send + Sync + 'static> fmt::Debug for FibReader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FibReader").finish_non_exhaustive()
    }
}

/// A pinned table.
pub struct FibPin<'a, T = Fib> {
    table: NonNull<T>,
    _guard: Guard,
    _reader: PhantomData<&'a T>,
}

impl<T> Deref for FibPin<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: `table` was read from `FibCell::current` after `_guard` had pinned the epoch, so it was in force then
        // or later. `publish` replaces the pointer before it defers the drop of one counted reference to the table, and
        // the collector runs that drop only after every guard pinned at the time has gone; `free_unseen` drops the other
        // reference only after that. The cell itself, which owns the table in force, is kept alive by the `FibReader`
        // that this pin borrows. Tables are never written after `publish`.
        unsafe { self.table.as_ref() }
    }
}

impl<T: fmt::Debug> fmt::Debug for FibPin<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FibPin").field(&**self).finish()
    }
}
