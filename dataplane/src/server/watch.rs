//! How the server learns that a worker ended: a queue and an eventfd that wakes the server's loop.

use crossbeam::channel::{Receiver, Sender, unbounded};
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// One worker's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerEnd {
    /// Position in [`crate::shared::Shared::workers`].
    pub worker: u16,
    /// `Ok`: it drained as ordered. `Err`: why it stopped.
    pub result: Result<(), String>,
}

/// The workers' side; clone one guard per worker out of it.
#[derive(Clone, Debug)]
pub struct WorkerReporter {
    ends: Sender<WorkerEnd>,
    wake: Arc<OwnedFd>,
}

/// The server's side, for [`super::run`].
#[derive(Debug)]
pub struct WorkerWatch {
    ends: Receiver<WorkerEnd>,
    wake: Arc<OwnedFd>,
}

/// Makes both sides. Fails where the kernel refuses an eventfd (out of descriptors).
pub fn watch() -> io::Result<(WorkerReporter, WorkerWatch)> {
    let (sender, receiver) = unbounded();
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    Ok((WorkerReporter { ends: sender, wake: wake.clone() }, WorkerWatch { ends: receiver, wake }))
}

impl WorkerReporter {
    /// The guard that worker `worker` holds while it runs: no way out of the thread, a panic included, goes unnoticed.
    pub fn guard(&self, worker: u16) -> WorkerGuard {
        WorkerGuard { worker, reporter: self.clone(), reported: false }
    }

    fn report(&self, end: WorkerEnd) {
        // A server that has left needs no report, and an eventfd that is full wakes as well.
        let _ = self.ends.send(end);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// Reports the end of one worker when dropped; "panicked" unless [`WorkerGuard::ended`] said otherwise.
#[derive(Debug)]
pub struct WorkerGuard {
    worker: u16,
    reporter: WorkerReporter,
    reported: bool,
}

impl WorkerGuard {
    /// Reports how the worker ended.
    pub fn ended(mut self, result: Result<(), String>) {
        self.reported = true;
        self.reporter.report(WorkerEnd { worker: self.worker, result });
    }
}

impl Drop for WorkerGuard {
    fn drop(&mut self) {
        if !self.reported {
            self.reporter.report(WorkerEnd { worker: self.worker, result: Err("the worker thread panicked".into()) });
        }
    }
}

impl WorkerWatch {
    /// Descriptor that becomes readable when a worker has ended.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// Ends reported since the last call.
    pub(super) fn take(&self) -> impl Iterator<Item = WorkerEnd> {
        // Reading resets the eventfd; an error means that nobody has written since.
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
        self.ends.try_iter()
    }
}
