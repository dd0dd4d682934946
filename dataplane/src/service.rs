//! weftd from flags to forwarding: open everything, start the workers, serve the control socket until the end.
//!
//! Nothing that another process could see is changed before everything that can be refused was asked for.

use crate::backpressure::{Backpressure, Grants};
use crate::config::{Config, EngineChoice, SourcePorts};
use crate::engine::epoll::Epoll;
use crate::engine::uring::{self, Uring};
use crate::engine::{Descriptors, Engine};
use crate::holder;
use crate::lane;
use crate::limits::{FRAME_LEN, SHORT_SLICE};
use crate::scale::{Load, Scale};
use crate::server::{self, ListenError, Listener, ServeError, SetLogLevel, WorkerGuard, watch};
use crate::shared::{Command, Facts, Offloads, Shared, WorkerView};
use crate::sys::bpf::Program;
use crate::sys::{dev, sched};
use crate::tun::{self, Opener, TunCaps, TunDevice, TunError, Wanted};
use crate::underlay::{self, UdpCaps, UdpSocket, UnderlayError};
use crate::worker::{Settings, Worker};
use crossbeam::channel::{Receiver, Sender, bounded};
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;
use tracing::{info, warn};
use weft_fib::{Fib, FibCell};

/// Room above the MTU for a datagram received without UDP GRO: a peer's MTU may differ a little.
const RECEIVE_SLACK: usize = 576;

/// Why weftd could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The TUN device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The UDP sockets.
    #[error(transparent)]
    Underlay(#[from] UnderlayError),
    /// The control socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The requested engine.
    #[error("--engine uring: {0}; use --engine auto or epoll")]
    Engine(String),
    /// A resource of the process.
    #[error("cannot {what}: {error}")]
    Resource {
        /// What was needed.
        what: &'static str,
        /// Kernel's answer.
        error: io::Error,
    },
    /// The control server, or a worker that broke.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

fn resource(what: &'static str) -> impl Fn(io::Error) -> ServiceError {
    move |error| ServiceError::Resource { what, error }
}

/// One worker's descriptors.
struct QueuePair {
    tun: OwnedFd,
    udp: UdpSocket,
    wake: Arc<OwnedFd>,
}

/// Runs until drained. Ready to be told routes, and forwarding, once the control socket answers.
pub fn run(config: &Config, set_log_level: SetLogLevel<'_>) -> Result<(), ServiceError> {
    let (wanted_engine, note) = choose_engine(config.engine)?;
    let (device, lane) = open_tun(config)?;
    let count = device.queues.len();
    let has_lane = lane.is_some();
    let worker_count = count - usize::from(has_lane);
    let wanted = UdpCaps { gso: !config.no_udp_gso, gro: !config.no_udp_gro };
    let mut sockets = underlay::open(config.bind, count, wanted)?;
    let workers_sockets = &mut sockets[..worker_count];
    if config.source_ports == SourcePorts::Spread {
        if workers_sockets.len() == 1 {
            warn!("--source-ports spread: one worker sends from one port, so nothing is spread; see --workers");
        }
        underlay::spread(workers_sockets)?;
    }
    let mut source_ports: Vec<u16> = workers_sockets.iter().map(UdpSocket::source_port).collect();
    source_ports.dedup();
    if let Some(workers) = &lane {
        underlay::give_lane(&sockets, workers)?;
    }
    // Who names a number gets that.
    let scale = lane.clone().filter(|_| config.workers.is_none()).map(|workers| Arc::new(Scale::new(workers)));
    let listener = Listener::bind(&config.socket)?;
    if let Some(mtu) = config.mtu {
        dev::set_mtu(&device.name, mtu.into()).map_err(resource("set the TUN's MTU"))?;
    }
    if config.persist {
        device.set_persist(true)?;
    }
    let mtu = dev::mtu(&device.name).map_err(resource("read the TUN's MTU"))? as u16;
    accept_own_address(&device.name);
    // A new device is not up yet. Of one that is, what waits in the discipline that goes is lost.
    let mut backpressure = hold_senders(config, &device, worker_count);

    let fib = FibCell::new(Fib::empty());
    let command = Arc::new(AtomicU8::new(Command::Run as u8));
    let settings = Settings {
        tun_name: device.name.clone(),
        icmp_limits: Arc::default(),
        last_bulk: Arc::default(),
        peer_check: config.peer_check,
        spin: Duration::from_micros(config.spin_us.into()),
    };
    let (reporter, ends) = watch().map_err(resource("make an eventfd"))?;
    let bind = sockets[0].local;
    let udp_caps = sockets[0].caps;
    let (report, reports) = bounded(count);
    let mut decisions = Vec::with_capacity(count);
    let mut workers = Vec::with_capacity(count);
    let mut wakes = Vec::with_capacity(count);
    for (index, (tun, udp)) in device.queues.into_iter().zip(sockets).enumerate() {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = Arc::new(eventfd(0, flags).map_err(|e| resource("make an eventfd")(e.into()))?);
        let is_lane = has_lane && index == count - 1;
        let offloads = offloads(device.caps, udp.caps, is_lane, backpressure.is_some());
        let view = Arc::new(WorkerView { offloads, ..WorkerView::default() });
        wakes.push(wake.clone());
        workers.push(view.clone());
        let thread = WorkerThread {
            pair: QueuePair { tun, udp, wake },
            view,
            command: command.clone(),
            settings: settings.clone(),
            index,
            grants: backpressure.as_ref().filter(|_| !is_lane).map(|held| held.grants().clone()),
            scale: scale.clone().filter(|_| !is_lane),
            fib: fib.clone(),
            receive_len_max: usize::from(mtu) + RECEIVE_SLACK,
        };
        let guard = reporter.guard(index as u16);
        let (decision, decided) = bounded(1);
        decisions.push(decision);
        let meeting = Meeting { report: report.clone(), decided };
        thread::Builder::new()
            .name(if is_lane { "weft-lane".to_owned() } else { format!("weft-worker-{index}") })
            .spawn(move || thread.run(wanted_engine, &meeting, guard))
            .map_err(resource("start a worker thread"))?;
    }
    drop(report);
    if let Some(backpressure) = &mut backpressure {
        backpressure.start(workers.clone()).map_err(resource("start a thread"))?;
    }
    let (engine, note) = settle_engine(config.engine, wanted_engine, note, reports.iter().take(count))?;
    for decision in decisions {
        // A worker that is gone has told its guard why; serving ends with that.
        let _ = decision.send(engine);
    }
    let facts = Facts {
        tun_name: device.name.clone(),
        tun_ifindex: device.index,
        bind,
        engine: engine.name(),
        engine_note: note,
        engine_fallback: config.engine == EngineChoice::Auto && engine == EngineKind::Epoll,
        opener: config.opener.name(),
        mtu,
        peer_check: config.peer_check,
        spin_us: config.spin_us,
        source_ports,
    };
    log_start(&facts, worker_count, device.caps, udp_caps, backpressure.is_some(), has_lane);

    let wake = move || {
        for wake in &wakes {
            // A full eventfd counter (EAGAIN) wakes as well.
            let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
        }
    };
    let shared = Shared { fib, workers, lane, command, facts, wake: Box::new(wake) };
    server::run(Arc::new(shared), listener, ends, set_log_level)?;
    Ok(())
}

/// The engine that really runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EngineKind {
    Uring,
    Epoll,
}

impl EngineKind {
    fn name(self) -> &'static str {
        match self {
            EngineKind::Uring => "uring",
            EngineKind::Epoll => "epoll",
        }
    }
}

/// The engine to run, and why it is not the default.
fn choose_engine(choice: EngineChoice) -> Result<(EngineKind, Option<String>), ServiceError> {
    if choice == EngineChoice::Epoll {
        return Ok((EngineKind::Epoll, Some("asked for with --engine epoll".to_owned())));
    }
    // On a thread of its own: a ring belongs to the thread that made it.
    let probe = thread::spawn(uring::probe).join().unwrap_or_else(|_| Err("the probe failed".to_owned()));
    match probe {
        Ok(()) => Ok((EngineKind::Uring, None)),
        Err(reason) if choice == EngineChoice::Uring => Err(ServiceError::Engine(reason)),
        Err(reason) => {
            warn!("the epoll engine takes over: {reason}");
            Ok((EngineKind::Epoll, Some(reason)))
        }
    }
}

/// The engine for all workers once each has tried to make its ring: the probe's small ring may fit a memory limit that
/// theirs exceed.
fn settle_engine(
    choice: EngineChoice,
    wanted: EngineKind,
    note: Option<String>,
    reports: impl Iterator<Item = Result<(), String>>,
) -> Result<(EngineKind, Option<String>), ServiceError> {
    match reports.filter_map(Result::err).next() {
        None => Ok((wanted, note)),
        Some(reason) if choice == EngineChoice::Uring => Err(ServiceError::Engine(reason)),
        Some(reason) => {
            warn!("the epoll engine takes over: {reason}");
            Ok((EngineKind::Epoll, Some(reason)))
        }
    }
}

/// The TUN with a queue per worker, and one more if there is a lane.
fn open_tun(config: &Config) -> Result<(TunDevice, Option<Arc<lane::Workers>>), ServiceError> {
    // A multi-queue TUN would let a second weftd attach and take a share of the packets.
    if let Some(holder) = holder::of_tun(&config.tun) {
        return Err(TunError::InUse { name: config.tun.clone(), holder: holder.to_string() }.into());
    }
    match config.opener {
        Opener::Native => {
            let wanted = Wanted { tso: !config.no_tun_tso, uso: !config.no_tun_uso };
            let steering = if config.no_sparse_lane { None } else { load_steering(config) };
            let Some((workers, steering)) = steering else {
                let device = tun::open_native(&config.tun, config.worker_count(false), wanted)?;
                // A persistent device may still have the program of the weftd before.
                let _ = device.steer_by(None);
                return Ok((device, None));
            };
            let mut device = tun::open_native(&config.tun, workers.count() + 1, wanted)?;
            if let Err(error) = device.steer_by(Some(&steering)) {
                warn!("no lane for sparse flows: the TUN takes no steering program: {error}; Linux 4.16 does");
                device.queues.truncate(config.worker_count(false));
                return Ok((device, None));
            }
            Ok((device, Some(Arc::new(workers))))
        }
        Opener::Simple if config.workers.is_some_and(|workers| workers > 1) => Err(TunError::OneQueue.into()),
        Opener::Simple => {
            let busy = |error: &TunError| matches!(error, TunError::Attach { error, .. } if error.raw_os_error() == Some(libc::EBUSY));
            Ok((holder::once_released(|| tun::open_simple(&config.tun), busy)?, None))
        }
    }
}

/// Buckets before the queues of the workers, or a line that says why not.
fn hold_senders(config: &Config, device: &TunDevice, workers: usize) -> Option<Backpressure> {
    if config.no_backpressure || config.opener == Opener::Simple {
        if let Err(error) = Backpressure::clear(device.index) {
            warn!("{error}");
        }
        return None;
    }
    let warned = |error| warn!("senders that are too fast lose packets, instead of waiting: {error}");
    Backpressure::install(device, workers).map_err(warned).ok()
}

/// The lane's program, or a line that says why there will be no lane.
fn load_steering(config: &Config) -> Option<(lane::Workers, Program)> {
    let warned = |error: io::Error| {
        let help = match error.raw_os_error() {
            Some(libc::EPERM) => "; give weftd CAP_BPF, or set --no-sparse-lane",
            Some(libc::ENOSYS) => "; the kernel has no bpf(2), or a seccomp profile hides it",
            _ => "",
        };
        warn!("no lane for sparse flows: the kernel refuses its program: {error}{help}");
    };
    let count = config.worker_count(true);
    let in_use = if config.workers.is_some() { count } else { 1 };
    let load = || {
        let workers = lane::Workers::new(count, in_use)?;
        let program = lane::steering(&workers)?;
        Ok((workers, program))
    };
    load().map_err(warned).ok()
}

/// ICMP errors carry the TUN's own address and come in through the TUN; Linux takes those for martians unless told otherwise.
/// The strict peer check keeps peers from using that address.
fn accept_own_address(tun: &str) {
    let path = format!("/proc/sys/net/ipv4/conf/{tun}/accept_local");
    if let Err(error) = std::fs::write(&path, "1") {
        warn!("{path}: {error}; set it to 1, or local senders will not see ICMP errors from the tunnel");
    }
}

fn offloads(tun: TunCaps, udp: UdpCaps, is_lane: bool, holds_senders: bool) -> Offloads {
    let offloads = Offloads::default();
    offloads.backpressure.store(holds_senders && !is_lane, Relaxed);
    offloads.sparse_lane.store(is_lane, Relaxed);
    offloads.tun_vnet.store(tun.vnet, Relaxed);
    offloads.tun_tso.store(tun.tso, Relaxed);
    offloads.tun_uso.store(tun.uso, Relaxed);
    offloads.udp_gso.store(udp.gso, Relaxed);
    offloads.udp_gro.store(udp.gro, Relaxed);
    offloads
}

fn log_start(facts: &Facts, workers: usize, tun: TunCaps, udp: UdpCaps, holds_senders: bool, has_lane: bool) {
    let on = [
        (tun.tso, "tun-tso"),
        (tun.uso, "tun-uso"),
        (udp.gso, "udp-gso"),
        (udp.gro, "udp-gro"),
        (holds_senders, "backpressure"),
        (has_lane, "sparse-lane"),
    ]
    .into_iter()
    .filter_map(|(on, name)| on.then_some(name))
    .collect::<Vec<_>>();
    let ports: Vec<String> = facts.source_ports.iter().map(u16::to_string).collect();
    let sends_from = if ports.len() > 1 { format!(", sends from ports {}", ports.join(" ")) } else { String::new() };
    info!(
        "{} on udp {}{sends_from}: engine {}, opener {}, {workers} worker(s), mtu {}, offloads {}",
        facts.tun_name,
        facts.bind,
        facts.engine,
        facts.opener,
        facts.mtu,
        if on.is_empty() { "none".to_owned() } else { on.join(" ") },
    );
}

struct WorkerThread {
    pair: QueuePair,
    view: Arc<WorkerView>,
    command: Arc<AtomicU8>,
    settings: Settings,
    /// Its queue and socket among those of all workers.
    index: usize,
    /// Where it asks for packets.
    grants: Option<Arc<Grants>>,
    /// Where it tells how busy it is.
    scale: Option<Arc<Scale>>,
    fib: Arc<FibCell>,
    receive_len_max: usize,
}

/// How workers and the main thread agree on an engine.
struct Meeting {
    /// Whether this worker could make what the wanted engine needs.
    report: Sender<Result<(), String>>,
    /// What all workers run; closed when weftd gives up.
    decided: Receiver<EngineKind>,
}

impl WorkerThread {
    fn run(self, wanted: EngineKind, meeting: &Meeting, guard: WorkerGuard) {
        // Naps are of microseconds; the kernel would round them up by 50. Where it may not be set, they are longer.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        if self.view.offloads.sparse_lane.load(Relaxed)
            && let Err(error) = sched::set_slice(SHORT_SLICE)
        {
            warn!("the lane is scheduled like every thread: {error}");
        }
        let gro = self.pair.udp.caps.gro;
        let descriptors = Descriptors {
            tun: self.pair.tun.as_fd(),
            udp: self.pair.udp.as_fd(),
            send: self.pair.udp.sender(),
            wake: self.pair.wake.as_fd(),
            // A GRO buffer is up to 64 KiB; a single datagram is not much longer than the MTU.
            receive_len_max: if gro { FRAME_LEN } else { self.receive_len_max },
        };
        let ring = match wanted {
            EngineKind::Uring => Uring::new(descriptors).map(Some),
            EngineKind::Epoll => Ok(None),
        };
        let _ = meeting.report.send(ring.as_ref().map(drop).map_err(uring::explain));
        let Ok(engine) = meeting.decided.recv() else { return guard.ended(Ok(())) };
        let result = match (engine, ring) {
            (EngineKind::Uring, Ok(Some(ring))) => self.forward(ring),
            (_, ring) => {
                drop(ring);
                Epoll::new(descriptors).and_then(|engine| self.forward(engine))
            }
        };
        guard.ended(result.map_err(|error| self.explain(&error)));
    }

    fn forward(&self, engine: impl Engine) -> io::Result<()> {
        let QueuePair { tun, udp, .. } = &self.pair;
        let (view, command) = (self.view.clone(), self.command.clone());
        let mut worker = Worker::new(engine, tun.as_fd(), udp, view, command, self.settings.clone())?;
        if let Some(grants) = self.grants.clone() {
            worker.hold_senders(grants, self.index);
        }
        if let Some(scale) = self.scale.clone() {
            worker.measure(Load::new(scale, self.index));
        }
        worker.run(&self.fib.reader())
    }

    fn explain(&self, error: &io::Error) -> String {
        match error.raw_os_error() {
            Some(libc::EBADFD) => format!("TUN {} was deleted", self.settings.tun_name),
            _ => error.to_string(),
        }
    }
}
