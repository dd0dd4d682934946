//! Publication: one writer swaps whole tables, any number of readers pin one per batch.

use crate::Fib;
use std::ops::Deref;
use std::sync::Arc;

/// The place where the table in force hangs.
#[derive(Debug)]
pub struct FibCell {
    _private: (),
}

impl FibCell {
    /// Starts with `fib` in force.
    pub fn new(fib: Fib) -> Arc<FibCell> {
        let _ = fib;
        todo!()
    }
    /// Puts `fib` in force: every [`FibReader::pin`] that begins after this call returns sees it. The old table is freed once its last reader leaves.
    pub fn publish(&self, fib: Fib) {
        let _ = fib;
        todo!()
    }
    /// A reader for one thread.
    pub fn reader(self: &Arc<Self>) -> FibReader {
        todo!()
    }
}

/// One thread's access. Not to be kept pinned while the thread sleeps: reclamation of every old table waits for it.
#[derive(Debug)]
pub struct FibReader {
    _private: (),
}

impl FibReader {
    /// Pins the table in force for one batch.
    #[inline]
    pub fn pin(&self) -> FibPin<'_> {
        todo!()
    }
}

/// A pinned table.
pub struct FibPin<'a> {
    _private: std::marker::PhantomData<&'a ()>,
}

impl Deref for FibPin<'_> {
    type Target = Fib;
    fn deref(&self) -> &Fib {
        todo!()
    }
}
