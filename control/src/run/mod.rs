//! `weft run`: keeps a tunnel true to its file for as long as it lives.
//!
//! One owner of state, the `Controller`; everything else sends it events, through one mio loop:
//!
//! ```text
//!  SIGHUP, SIGTERM, SIGINT --.
//!  inotify on the file ------|
//!  netlink: links, routes ---+--> Controller --> Live: weftd's table, device, routes
//!  weftd's end (pidfd) ------|         ^
//!  resolver's answers -------'         '-- tasks that fall due (debounce, back-off, periods)
//! ```
//!
//! Events only make tasks due; the tasks do the work, in one order. So a burst of events costs one task, and a change that
//! fails is tried again by the same code.

mod obtain;

use self::obtain::obtain;
use crate::agenda::{
    Agenda, RECONCILE_DEBOUNCE, RECONCILE_PERIOD_MIN, RESTART_HEALTHY, RETRY_PAUSE_MAX, RETRY_PAUSE_MIN,
};
use crate::backend::udp_tunnel::Push;
use crate::causes;
use crate::config::{self, LoadError, Tunnel};
use crate::daemon::ProcessHandle;
use crate::netlink::{self, Event as NetlinkEvent, Events as NetlinkEvents, Group};
use crate::source::file::FileWatch;
use crate::source::resolve::{self, Answer, Names, Unresolved};
use crate::tunnel::{self, Applied, Live, TunnelError};
use mio::net::UnixStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// From the first sign of a changed file to reading it: editors and ConfigMaps make several changes at once.
const FILE_DEBOUNCE: Duration = Duration::from_millis(100);
/// Between two looks at everything, whether or not an event came.
const RECONCILE_PERIOD_MAX: Duration = Duration::from_secs(60);
/// Between two questions to the resolver when all names are known, and when one is not.
const RESOLVE_PERIOD: Duration = Duration::from_secs(30);
const RESOLVE_PERIOD_UNKNOWN: Duration = Duration::from_secs(5);
/// Longest wait for the resolver before the tunnel comes up without the names that did not answer.
pub const RESOLVE_FIRST_TIMEOUT: Duration = Duration::from_secs(5);

const SIGNALS: Token = Token(0);
const FILE: Token = Token(1);
const NETLINK: Token = Token(2);
const WEFTD: Token = Token(3);
const RESOLVER: Token = Token(4);

/// What may fall due; done in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// Read the file, and go over to what it wants if it has changed.
    ReadFile,
    /// Start weftd in the place of a dead one.
    RestartWeftd,
    /// Ask the resolver for every name.
    Resolve,
    /// Look at table, device and routes, and mend them.
    Reconcile,
}

/// What `weft run` was asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The tunnel file.
    pub config: PathBuf,
    /// Where the tunnel's files go.
    pub run_dir: PathBuf,
    /// Leave the tunnel up at the end.
    pub keep: bool,
}

/// Why `weft run` gave up.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The file cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The tunnel did not come up, or could not be taken down.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// The event loop could not be made or waited for.
    #[error("event loop: {0}")]
    Loop(#[from] io::Error),
}

impl From<netlink::NetlinkError> for RunError {
    fn from(error: netlink::NetlinkError) -> Self {
        RunError::Tunnel(error.into())
    }
}

/// Keeps the tunnel of a file true until SIGTERM or SIGINT.
pub fn run(options: &Options) -> Result<(), RunError> {
    let mut controller = Controller::start(options)?;
    let result = controller.serve();
    let live = controller.live;
    if options.keep {
        info!("leaving tunnel {:?} up; `weft run` adopts it, `weft down {0}` removes it", live.state().name);
        return result;
    }
    let taken = live.take_down()?;
    info!("tunnel taken down{}", taken.weftd.map(|how| format!(": weftd {how}")).unwrap_or_default());
    result
}

struct Controller {
    path: PathBuf,
    /// The file as it was read last, right or wrong.
    text: Option<String>,
    /// What the last right file wants; its name is the one that the tunnel was started with.
    tunnel: Tunnel,
    names: Names,
    live: Live,
    unresolved: Vec<Unresolved>,
    notes: Vec<String>,
    /// What the latest failed attempt to apply said, so that it is said once.
    failure: Option<String>,

    agenda: Agenda<Task>,
    last_reconcile: Instant,
    restart_pause: Duration,
    weftd_started: Instant,

    poll: Poll,
    signals: SignalDelivery<UnixStream, SignalOnly>,
    interrupted: Arc<AtomicBool>,
    watch: FileWatch,
    netlink_events: NetlinkEvents,
    weftd: Option<ProcessHandle>,
    answers: Option<Receiver<Answer>>,
    waker: Arc<Waker>,
}

impl Controller {
    fn start(options: &Options) -> Result<Controller, RunError> {
        let path = tunnel::absolute(&options.config);
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), RESOLVER)?);
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
        }
        let (signal_reader, signal_writer) = UnixStream::pair()?;
        let mut signals = SignalDelivery::with_pipe(
            signal_reader,
            std::os::fd::OwnedFd::from(signal_writer),
            SignalOnly,
            [SIGHUP, SIGTERM, SIGINT],
        )?;
        poll.registry().register(signals.get_read_mut(), SIGNALS, Interest::READABLE)?;
        // Watches come before the first look, so that nothing slips between.
        let watch = FileWatch::new(&path)?;
        poll.registry().register(&mut SourceFd(&watch.as_raw_fd()), FILE, Interest::READABLE)?;
        let netlink_events = NetlinkEvents::open(&[Group::Link, Group::Address, Group::Route])?;
        let netlink_fd = netlink_events.as_fd().as_raw_fd();
        poll.registry().register(&mut SourceFd(&netlink_fd), NETLINK, Interest::READABLE)?;

        let loaded = config::load(&options.config)?;
        for problem in &loaded.report.problems {
            warn!("{}:{}:{}: {}: {}", loaded.report.file, problem.line, problem.column, problem.key, problem.message);
        }
        let is_interrupted = || interrupted.load(Ordering::Relaxed);
        let (live, names, applied) = obtain(options, &path, &loaded.tunnel, &is_interrupted)?;
        let now = Instant::now();
        let mut controller = Controller {
            path,
            text: Some(loaded.report.text().to_owned()),
            tunnel: loaded.tunnel,
            names,
            live,
            unresolved: Vec::new(),
            notes: Vec::new(),
            failure: None,
            agenda: Agenda::default(),
            last_reconcile: now,
            restart_pause: RETRY_PAUSE_MIN,
            weftd_started: now,
            poll,
            signals,
            interrupted,
            watch,
            netlink_events,
            weftd: None,
            answers: None,
            waker,
        };
        controller.report(applied);
        controller.watch_weftd()?;
        controller.agenda.add(Task::ReadFile, now);
        controller.agenda.add(Task::Resolve, now + controller.resolve_period());
        controller.agenda.add(Task::Reconcile, now + RECONCILE_PERIOD_MAX);
        Ok(controller)
    }

    fn serve(&mut self) -> Result<(), RunError> {
        let mut events = Events::with_capacity(16);
        loop {
            match self.poll.poll(&mut events, self.agenda.idle(Instant::now())) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                match event.token() {
                    SIGNALS => self.on_signals(),
                    FILE => self.on_file()?,
                    NETLINK => self.on_netlink(),
                    WEFTD => self.on_weftd_end()?,
                    _ => self.on_answers(),
                }
            }
            while !self.is_interrupted()
                && let Some(task) = self.agenda.take(Instant::now())
            {
                match task {
                    Task::ReadFile => self.read_file(),
                    Task::RestartWeftd => self.restart_weftd()?,
                    Task::Resolve => self.resolve(),
                    Task::Reconcile => self.reconcile(),
                }
            }
            if self.is_interrupted() {
                return Ok(());
            }
        }
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    // Events.

    fn on_signals(&mut self) {
        if self.signals.pending().any(|signal| signal == SIGHUP) {
            info!("SIGHUP: reading {} and resolving names again", self.path.display());
            self.text = None;
            self.agenda.add(Task::ReadFile, Instant::now());
            self.agenda.add(Task::Resolve, Instant::now());
        }
    }

    fn on_file(&mut self) -> io::Result<()> {
        if self.watch.drain()? {
            self.agenda.add(Task::ReadFile, Instant::now() + FILE_DEBOUNCE);
        }
        Ok(())
    }

    fn on_netlink(&mut self) {
        let ifindex = self.live.tun().ifindex;
        let plan = &self.live.state().plan;
        let concerns_us = |event: &NetlinkEvent| match event {
            NetlinkEvent::AddressGone(address) => address.link == ifindex,
            NetlinkEvent::RouteGone(route) => plan.routes.contains(&route.dst) || plan.safety.contains(&route.dst),
            // The device itself, or an underlay link whose MTU may have changed.
            NetlinkEvent::Link(_) | NetlinkEvent::Overrun => true,
            _ => false,
        };
        let mut any = false;
        for event in self.netlink_events.drain() {
            match event {
                Ok(event) => any |= concerns_us(&event),
                Err(error) => {
                    warn!("{error}");
                    any = true;
                }
            }
        }
        if any {
            let now = Instant::now();
            let due = (now + RECONCILE_DEBOUNCE).max(self.last_reconcile + RECONCILE_PERIOD_MIN);
            self.agenda.add(Task::Reconcile, due);
        }
    }

    fn on_weftd_end(&mut self) -> io::Result<()> {
        let Some(handle) = self.weftd.take() else { return Ok(()) };
        self.poll.registry().deregister(&mut SourceFd(&handle.fd().as_raw_fd()))?;
        self.live.reap();
        if self.weftd_started.elapsed() >= RESTART_HEALTHY {
            self.restart_pause = RETRY_PAUSE_MIN;
        }
        let (pid, pause, said) = (self.live.state().weftd.pid, self.restart_pause, self.live.last_words());
        warn!("weftd, process {pid}, has ended; starting it again in {pause:?}{said}");
        self.plan_restart();
        Ok(())
    }

    fn on_answers(&mut self) {
        let Some(answers) = &self.answers else { return };
        let mut news = false;
        let ended = loop {
            match answers.try_recv() {
                Ok(answer) => {
                    if let Some(said) = self.names.learn(answer) {
                        info!("{said}");
                        news = true;
                    }
                }
                Err(TryRecvError::Empty) => break false,
                Err(TryRecvError::Disconnected) => break true,
            }
        };
        if news {
            self.agenda.add(Task::Reconcile, Instant::now());
        }
        if ended {
            self.answers = None;
        }
    }

    // Tasks.

    fn read_file(&mut self) {
        if let Err(error) = self.watch.rearm() {
            warn!("{}: changes will not be noticed, send SIGHUP: {error}", self.path.display());
        }
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) => {
                if self.text.take().is_some() {
                    warn!("{}: {error}; the tunnel stays as it is", self.path.display());
                }
                return;
            }
        };
        if self.text.as_ref() == Some(&text) {
            return;
        }
        let file = self.path.display().to_string();
        let parsed = config::parse(&file, &self.tunnel.name, &text, &config::is_local_address);
        self.text = Some(text);
        let wanted = match parsed {
            Ok(loaded) => {
                if !loaded.report.problems.is_empty() {
                    warn!("{file} can be used, but see:\n{}", loaded.report);
                }
                loaded.tunnel
            }
            Err(error) => {
                error!("{file} cannot be used; the tunnel stays as it is\n{error}");
                return;
            }
        };
        self.change(wanted);
    }

    /// Goes over to what a changed file wants.
    fn change(&mut self, mut wanted: Tunnel) {
        if wanted.name != self.tunnel.name {
            warn!("`name` changes only when the tunnel is taken down and up: it stays {:?}", self.tunnel.name);
            let tun_follows_name = wanted.tun == wanted.name;
            wanted.name.clone_from(&self.tunnel.name);
            if tun_follows_name {
                wanted.tun.clone_from(&self.tunnel.name);
            }
        }
        if wanted == self.tunnel {
            return;
        }
        let differences = self.live.needs_restart(&wanted);
        if !differences.is_empty() {
            warn!(
                "{}: only a new weftd takes that up, so not yet; everything else is applied. When a short interruption \
                 suits, stop this process (kill {}) and start `weft run --config {}` again",
                differences.join(", "),
                std::process::id(),
                self.path.display()
            );
        }
        if !resolve::names_of(&wanted).is_subset(&resolve::names_of(&self.tunnel)) {
            self.agenda.add(Task::Resolve, Instant::now());
        }
        let before = std::mem::replace(&mut self.tunnel, wanted);
        match self.apply() {
            Ok(()) => {}
            Err(TunnelError::Netlink(error)) => {
                error!("the change cannot be applied; the tunnel goes back to what it was: {}", causes::text(&error));
                self.tunnel = before;
                self.agenda.add(Task::Reconcile, Instant::now());
            }
            Err(_) => self.agenda.add(Task::Reconcile, Instant::now() + RECONCILE_PERIOD_MIN),
        }
    }

    fn restart_weftd(&mut self) -> io::Result<()> {
        let interrupted = Arc::clone(&self.interrupted);
        let started = self.live.restart_weftd(&self.tunnel, &self.names, &|| interrupted.load(Ordering::Relaxed));
        self.weftd_started = Instant::now();
        match started {
            Ok(()) => {
                info!("started weftd again, process {}", self.live.state().weftd.pid);
                self.watch_weftd()?;
                if self.apply().is_err() {
                    self.agenda.add(Task::Reconcile, Instant::now() + RECONCILE_PERIOD_MIN);
                }
            }
            Err(error) => {
                let (said, pause) = (causes::text(&error), self.restart_pause);
                error!("weftd cannot be started again: {said}; next attempt in {pause:?}");
                self.plan_restart();
            }
        }
        Ok(())
    }

    fn plan_restart(&mut self) {
        self.agenda.add(Task::RestartWeftd, Instant::now() + self.restart_pause);
        self.restart_pause = (self.restart_pause * 2).min(RETRY_PAUSE_MAX);
    }

    fn resolve(&mut self) {
        // The end of the last round may have come without a call. A round that is still under way is not joined by
        // another: a dead DNS server would collect threads.
        self.on_answers();
        if self.answers.is_none() {
            let names = resolve::names_of(&self.tunnel);
            if !names.is_empty() {
                let waker = Arc::clone(&self.waker);
                self.answers = Some(resolve::ask(names, move || drop(waker.wake())));
            }
        }
        self.agenda.add(Task::Resolve, Instant::now() + self.resolve_period());
    }

    fn resolve_period(&self) -> Duration {
        if self.unresolved.is_empty() { RESOLVE_PERIOD } else { RESOLVE_PERIOD_UNKNOWN }
    }

    fn reconcile(&mut self) {
        self.last_reconcile = Instant::now();
        self.agenda.add(Task::Reconcile, self.last_reconcile + RECONCILE_PERIOD_MAX);
        let is_running = self.weftd.is_some() && !self.agenda.holds(Task::RestartWeftd);
        if is_running && self.apply().is_err() {
            self.agenda.add(Task::Reconcile, self.last_reconcile + RECONCILE_PERIOD_MIN);
        }
    }

    // Deeds.

    /// Makes the wish true; says what changed, and a failure once.
    fn apply(&mut self) -> Result<(), TunnelError> {
        match self.live.apply(&self.tunnel, &self.names) {
            Ok(applied) => {
                if self.failure.take().is_some() {
                    info!("applying the configuration succeeded");
                }
                self.report(applied);
                Ok(())
            }
            Err(error) => {
                let said = causes::text(&error);
                if self.failure.as_ref() != Some(&said) {
                    error!("{said}");
                }
                self.failure = Some(said);
                Err(error)
            }
        }
    }

    fn report(&mut self, applied: Applied) {
        if !matches!(applied.push, Push::Unchanged(_)) {
            info!("table: {}", applied.push);
        }
        if !applied.link.is_empty() {
            info!("{}: {}", self.live.tun().name, applied.link.join(", "));
        }
        for Unresolved { peer, why } in applied.unresolved.iter().filter(|one| !self.unresolved.contains(one)) {
            warn!(
                "peer {peer:?} cannot be reached: {why}; it is tried again every {} s",
                RESOLVE_PERIOD_UNKNOWN.as_secs()
            );
        }
        for note in applied.notes.iter().filter(|note| !self.notes.contains(note)) {
            warn!("{note}");
        }
        self.unresolved = applied.unresolved;
        self.notes = applied.notes;
    }

    fn watch_weftd(&mut self) -> io::Result<()> {
        match self.live.weftd() {
            Some(handle) => {
                let fd = handle.fd().as_raw_fd();
                self.poll.registry().register(&mut SourceFd(&fd), WEFTD, Interest::READABLE)?;
                self.weftd = Some(handle);
            }
            None => self.plan_restart(),
        }
        Ok(())
    }
}
