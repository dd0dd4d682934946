//! What the registry's two threads and its handle have in common.

use super::gateway::Opening;
use super::peers::{Change, Peers};
use crate::flannel::{LeaseAttrs, LeaseEvent};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard};
use tracing::warn;

/// Clones are the same.
#[derive(Clone)]
pub struct Shared {
    inner: Arc<Inner>,
}

struct Inner {
    peers: Mutex<Peers>,
    events: Mutex<Sender<LeaseEvent>>,
    wake: Box<dyn Fn() + Send + Sync>,
    /// The stream that is open or being opened.
    stream: Mutex<Option<Opening>>,
    is_stopping: AtomicBool,
    list_ordered: AtomicBool,
}

impl Shared {
    pub fn new(peers: Peers, events: Sender<LeaseEvent>, wake: impl Fn() + Send + Sync + 'static) -> Shared {
        let inner = Inner {
            peers: Mutex::new(peers),
            events: Mutex::new(events),
            wake: Box::new(wake),
            stream: Mutex::new(None),
            is_stopping: AtomicBool::new(false),
            list_ordered: AtomicBool::new(false),
        };
        Shared { inner: Arc::new(inner) }
    }

    /// Sends an event.
    pub fn tell(&self, event: LeaseEvent) {
        // Nobody listens once the handle is dropped.
        let _ = lock(&self.inner.events).send(event);
        (self.inner.wake)();
    }

    /// Changes what is known of the peers, and tells and logs what follows from that, in order.
    pub fn change(&self, work: impl FnOnce(&mut Peers) -> Change) {
        let mut peers = lock(&self.inner.peers);
        let change = work(&mut peers);
        for complaint in change.complaints {
            warn!("{complaint}");
        }
        for event in change.events {
            self.tell(event);
        }
    }

    /// Our record says something else from here on.
    pub fn own_changed(&self, attrs: LeaseAttrs) {
        self.change(|peers| peers.own_changed(attrs));
    }

    /// Lets [`Shared::interrupt_stream`] end a stream. False if none is to be opened any more.
    pub fn register(&self, opening: &Opening) -> bool {
        let mut open = lock(&self.inner.stream);
        *open = Some(opening.clone());
        !self.is_stopping() && !self.inner.list_ordered.load(Ordering::SeqCst)
    }

    /// The stream has ended.
    pub fn unregister(&self) {
        *lock(&self.inner.stream) = None;
    }

    /// Ends the open stream, whatever it waits for.
    pub fn interrupt_stream(&self) {
        if let Some(open) = lock(&self.inner.stream).take() {
            open.agent.shutdown();
        }
    }

    /// Ends the open stream unless it comes from `endpoint`.
    pub fn keep_streams_of(&self, endpoint: usize) {
        let is_other = lock(&self.inner.stream).as_ref().is_some_and(|open| open.endpoint != endpoint);
        if is_other {
            self.interrupt_stream();
        }
    }

    /// Has the watcher list anew.
    pub fn list_again(&self) {
        self.inner.list_ordered.store(true, Ordering::SeqCst);
        self.interrupt_stream();
    }

    /// Whether it has to, asked by the watcher, once.
    pub fn takes_list_order(&self) -> bool {
        self.inner.list_ordered.swap(false, Ordering::SeqCst)
    }

    /// Says that all is to end, and ends the stream.
    pub fn stop(&self) {
        self.inner.is_stopping.store(true, Ordering::SeqCst);
        self.interrupt_stream();
    }

    /// Whether all is to end.
    pub fn is_stopping(&self) -> bool {
        self.inner.is_stopping.load(Ordering::SeqCst)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock can panic")
}
