//! The control socket: one thread, one event loop, beside the workers. Workers never wait for it.
//!
//! ```text
//!  listener --accept--> Connection (socket, frames, deadlines)
//!                          |  Session (requests and replies of one client)
//!  signals  --drain---->   v
//!  workers  --ended---> Core (table in force, counters, events) --build Fib, publish--> FibCell
//! ```
//! The loop sleeps without a limit while nobody has anything begun, so that an idle weftd uses no CPU.

mod connection;
mod core;
mod listener;
mod session;
mod table;
mod watch;

pub use self::core::SetLogLevel;
pub use listener::{ListenError, Listener};
pub use watch::{WorkerEnd, WorkerGuard, WorkerReporter, WorkerWatch, watch};

use self::connection::{Connection, Turn};
use self::core::{Core, refusal};
use crate::shared::Shared;
use mio::net::{UnixListener, UnixStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::net::sockopt::socket_peercred;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};
use weft_proto::limits::{CLIENTS_MAX, READERS_MAX};
use weft_proto::{RefusalCode, Reply};

const LISTENER: Token = Token(0);
const SIGNALS: Token = Token(1);
const WORKERS: Token = Token(2);
const FIRST_CLIENT: usize = 3;

/// How often the offload flags are compared while somebody is subscribed.
const OFFLOAD_POLL: Duration = Duration::from_millis(250);

/// Pause after `accept` failed (out of descriptors): the waiting client stays in the backlog.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// Why serving ended other than by a finished drain.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The event loop could not be set up or failed.
    #[error("control socket: {step}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A worker ended without an order to; the others were drained.
    #[error("worker {worker} ended: {reason}")]
    Worker {
        /// Which one.
        worker: u16,
        /// What it reported.
        reason: String,
    },
    /// Workers did not finish within [`weft_proto::limits::DRAIN_TIMEOUT`] of the drain, or a second signal cut it short.
    #[error("{workers} workers had not finished when the drain was given up")]
    DrainTimeout {
        /// How many.
        workers: usize,
    },
}

/// Serves until weftd is drained by a client, SIGTERM or SIGINT, or a worker fails.
///
/// Starts with the empty table in force as generation 0. `workers` tells of workers that end: one guard per entry of
/// `shared.workers`. `set_log_level` is called on this thread. Returns `Ok` once every worker has ended as ordered; the
/// listener's file is gone by then.
pub fn run(
    shared: Arc<Shared>,
    listener: Listener,
    workers: WorkerWatch,
    set_log_level: SetLogLevel<'_>,
) -> Result<(), ServeError> {
    let failed = |step| move |source| ServeError::Io { step, source };
    let poll = Poll::new().map_err(failed("make the event loop"))?;
    let mut socket =
        listener.socket.try_clone().map(UnixListener::from_std).map_err(failed("take over the listener"))?;
    let registry = poll.registry();
    registry.register(&mut socket, LISTENER, Interest::READABLE).map_err(failed("watch the listener"))?;
    registry
        .register(&mut SourceFd(&workers.raw_fd()), WORKERS, Interest::READABLE)
        .map_err(failed("watch the workers"))?;
    let mut signals = Signals::register().map_err(failed("catch signals"))?;
    registry.register(&mut signals.read, SIGNALS, Interest::READABLE).map_err(failed("watch signals"))?;
    let server = Server {
        poll,
        socket,
        accept_at: Some(Instant::now()),
        signals,
        workers,
        clients: std::iter::repeat_with(|| None).take(CLIENTS_MAX).collect(),
        own_uid: rustix::process::geteuid().as_raw(),
        core: Core::new(shared, set_log_level),
        offloads_at: None,
    };
    let result = server.serve();
    drop(listener);
    result
}

struct Server<'a> {
    poll: Poll,
    socket: UnixListener,
    /// When to call `accept`; `None`: when the listener is readable.
    accept_at: Option<Instant>,
    signals: Signals,
    workers: WorkerWatch,
    clients: Vec<Option<Connection>>,
    own_uid: u32,
    core: Core<'a>,
    /// When to compare offload flags next; `None`: nobody is subscribed.
    offloads_at: Option<Instant>,
}

impl Server<'_> {
    fn serve(mut self) -> Result<(), ServeError> {
        let mut events = Events::with_capacity(CLIENTS_MAX + FIRST_CLIENT);
        let mut busy = false;
        loop {
            let timeout = if busy { Some(Duration::ZERO) } else { self.sleep() };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(ServeError::Io { step: "wait for events", source: error });
                }
                _ => {}
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept_at = Some(Instant::now()),
                    SIGNALS => {
                        if self.signals.caught() {
                            self.core.signalled();
                        }
                    }
                    WORKERS => self.workers.take().for_each(|end| self.core.worker_ended(end)),
                    Token(token) => {
                        if let Some(Some(client)) = self.clients.get_mut(token - FIRST_CLIENT) {
                            client.ready(event.is_readable(), event.is_writable());
                        }
                    }
                }
            }
            self.accept();
            busy = self.turns();
            self.tell_subscribers();
            if self.core.drained() {
                self.clients.iter_mut().flatten().for_each(Connection::drained);
                return self.core.outcome();
            }
        }
    }

    /// How long nothing needs to be done unless the kernel says so.
    fn sleep(&self) -> Option<Duration> {
        let clients = self.clients.iter().flatten().filter_map(Connection::deadline);
        let own = [self.accept_at, self.offloads_at, self.core.drain_deadline()].into_iter().flatten();
        clients.chain(own).min().map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Gives every client its turn, and ends those whose deadline has passed without their being busy. Returns whether
    /// any has more to do.
    fn turns(&mut self) -> bool {
        let mut busy = false;
        for slot in &mut self.clients {
            let Some(client) = slot else { continue };
            let mut turn = client.turn(&mut self.core);
            if turn == Turn::Idle && client.deadline().is_some_and(|at| at <= Instant::now()) {
                turn = client.expire();
            }
            match turn {
                Turn::Idle => {}
                Turn::Busy => busy = true,
                Turn::Over => *slot = None,
            }
        }
        busy
    }

    fn tell_subscribers(&mut self) {
        let subscribed = self.clients.iter().flatten().any(Connection::subscribed);
        let now = Instant::now();
        match self.offloads_at {
            _ if !subscribed => self.offloads_at = None,
            Some(at) if at > now => {}
            _ => {
                self.core.poll_offloads();
                self.offloads_at = Some(now + OFFLOAD_POLL);
            }
        }
        for event in self.core.take_events() {
            for slot in &mut self.clients {
                if slot.as_mut().is_some_and(|client| client.subscribed() && !client.event(&event)) {
                    tracing::warn!("a subscriber that does not read its events was disconnected");
                    *slot = None;
                }
            }
        }
    }

    /// Accepts whoever waits.
    fn accept(&mut self) {
        if self.accept_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.accept_at = loop {
            match self.socket.accept() {
                Ok((socket, _)) => self.admit(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, "control socket: accept failed, trying again in {ACCEPT_RETRY:?}");
                    break Some(Instant::now() + ACCEPT_RETRY);
                }
            }
        };
    }

    /// Gives a new client a slot, or tells it that there is none.
    fn admit(&mut self, mut socket: UnixStream) {
        let may_change = match socket_peercred(&socket) {
            Ok(cred) => cred.uid.is_root() || cred.uid.as_raw() == self.own_uid,
            Err(error) => {
                tracing::warn!(%error, "control socket: the kernel does not say who connected; the client may only read");
                false
            }
        };
        let readers = self.clients.iter().flatten().filter(|client| !client.may_change).count();
        let free = self.clients.iter().position(Option::is_none).filter(|_| may_change || readers < READERS_MAX);
        let Some(index) = free else {
            let text =
                format!("all {CLIENTS_MAX} control connections are in use: close one (`weft monitor` keeps one each)");
            let mut bytes = bytes::BytesMut::new();
            Reply::Refused(refusal(RefusalCode::Busy, text)).encode(&mut bytes);
            // An empty socket buffer takes this at once; a client that is gone needs no answer.
            let _ = socket.write(&bytes);
            return;
        };
        let mut client = Connection::new(socket, may_change);
        let interest = Interest::READABLE | Interest::WRITABLE;
        match self.poll.registry().register(client.socket(), Token(FIRST_CLIENT + index), interest) {
            Ok(()) => self.clients[index] = Some(client),
            Err(error) => tracing::warn!(%error, "control socket: a client could not be watched"),
        }
    }
}

/// SIGTERM and SIGINT as a readable socket.
struct Signals {
    read: UnixStream,
    ids: Vec<signal_hook::SigId>,
}

impl Signals {
    fn register() -> io::Result<Signals> {
        let (read, write) = std::os::unix::net::UnixStream::pair()?;
        read.set_nonblocking(true)?;
        let ids = [SIGTERM, SIGINT]
            .into_iter()
            .map(|signal| signal_hook::low_level::pipe::register(signal, write.try_clone()?))
            .collect::<io::Result<_>>()?;
        Ok(Signals { read: UnixStream::from_std(read), ids })
    }

    /// Whether a signal came since the last call.
    fn caught(&mut self) -> bool {
        let mut any = false;
        while self.read.read(&mut [0; 64]).is_ok_and(|len| len > 0) {
            any = true;
        }
        any
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}

#[cfg(test)]
mod tests;
