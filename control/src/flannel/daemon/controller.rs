//! The event loop: one owner of state, everything else sends it events.
//!
//! ```text
//!  registry: leases ------------.
//!  netlink: links, routes, ... -+--> Controller --> Backend::reconcile(all peers)
//!  weftd's end (pidfd) ---------|         ^
//!  SIGTERM, SIGINT -------------'         '-- tasks that fall due (debounce, back-off, periods)
//! ```
//!
//! Events only make tasks due; the tasks do the work, in one order. A lease makes its task due at once, so that a peer that
//! moved is followed without delay; several that came together make one task.

use super::DaemonError;
use super::config::ConfigNews;
use super::health::Ready;
use super::peers::Peers;
use super::rules::TrafficRules;
use super::signals::Signals;
use super::{describe_external, describe_own, underlay_families};
use crate::agenda::{
    Agenda, RECONCILE_DEBOUNCE, RECONCILE_PERIOD_MIN, RESTART_HEALTHY, RETRY_PAUSE_MAX, RETRY_PAUSE_MIN,
};
use crate::causes;
use crate::daemon::ProcessHandle;
use crate::flannel::external::{self, Families, InterfaceOptions};
use crate::flannel::flags::Flags;
use crate::flannel::{Backend, ExternalInterface, LeaseEvent, NetConf, OwnLease, Reconciled, SubnetEnv};
use crate::netlink::{Event as NetlinkEvent, Events as NetlinkEvents, Group, Netlink};
use crate::source::etcd::{Acquired, Registry, Watch};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// Between two looks at everything, whether or not an event came.
const RECONCILE_PERIOD_MAX: Duration = Duration::from_secs(10);
/// From a change of links or addresses to choosing the underlay anew: a link that comes back has its addresses a little
/// later.
const UNDERLAY_DEBOUNCE: Duration = Duration::from_millis(300);

const SIGNALS: Token = Token(0);
const NETLINK: Token = Token(1);
const PROCESS: Token = Token(2);
const LEASES: Token = Token(3);

/// What may fall due; done in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    /// Choose the underlay anew, and follow it if it changed.
    Underlay,
    /// End, if our subnet is still outside of the network.
    End,
    /// Let go of peers that have left.
    Forget,
    /// Make all peers true.
    Reconcile,
    /// Look at the rules, and write the subnet file if that failed before.
    Rules,
}

/// The daemon at work.
pub struct Controller {
    own: OwnLease,
    backend: Box<dyn Backend>,
    backend_name: String,
    external: ExternalInterface,
    interface: InterfaceOptions,
    /// What the underlay is chosen by.
    underlay_families: Vec<Families>,
    rules: Option<TrafficRules>,
    resync: Duration,
    subnet_file: PathBuf,
    ip_masq: bool,
    /// What the subnet file says, once it was written.
    written: Option<SubnetEnv>,
    ready: Ready,
    peers: Peers,
    config: ConfigNews,
    watch: Option<Watch>,

    agenda: Agenda<Task>,
    last_reconcile: Instant,
    /// No reconciliation before: a process that ended is not started again sooner.
    hold: Instant,
    pause: Duration,
    process_started: Instant,
    /// What was said last, so that it is said once.
    failure: Option<String>,
    underlay_failure: Option<String>,
    subnet_file_failure: Option<String>,
    notes: BTreeSet<String>,

    netlink: Netlink,
    netlink_events: NetlinkEvents,
    signals: Signals,
    process: Option<ProcessHandle>,
    waker: Arc<Waker>,
    poll: Poll,
}

impl Controller {
    /// For a backend that was started with `own`.
    #[expect(clippy::too_many_arguments, reason = "each is what one step of the start gave")]
    pub fn new(
        flags: &Flags,
        conf: &NetConf,
        own: OwnLease,
        backend: Box<dyn Backend>,
        external: ExternalInterface,
        interface: InterfaceOptions,
        netlink: Netlink,
        mut signals: Signals,
    ) -> Result<Controller, DaemonError> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), LEASES)?);
        signals.register(poll.registry(), SIGNALS)?;
        let groups = [Group::Link, Group::Address, Group::Route, Group::Neighbour];
        let netlink_events = NetlinkEvents::open(&groups)?;
        poll.registry().register(&mut SourceFd(&netlink_events.as_fd().as_raw_fd()), NETLINK, Interest::READABLE)?;
        let now = Instant::now();
        let mut agenda = Agenda::default();
        // What happened between the choice of the underlay and the subscription was not told.
        agenda.add(Task::Underlay, now);
        agenda.add(Task::Rules, now + flags.resync);
        let mut controller = Controller {
            config: ConfigNews::new(conf.clone(), own.subnets, flags.network_grace),
            own,
            backend,
            backend_name: conf.backend.name().to_owned(),
            external,
            interface,
            underlay_families: underlay_families(conf),
            rules: None,
            resync: flags.resync,
            subnet_file: flags.subnet_file.clone(),
            ip_masq: flags.ip_masq,
            written: None,
            ready: Ready::default(),
            peers: Peers::default(),
            watch: None,
            agenda,
            last_reconcile: now,
            hold: now,
            pause: RETRY_PAUSE_MIN,
            process_started: now,
            failure: None,
            underlay_failure: None,
            subnet_file_failure: None,
            notes: BTreeSet::new(),
            netlink,
            netlink_events,
            signals,
            process: None,
            waker,
            poll,
        };
        controller.watch_process()?;
        Ok(controller)
    }

    /// Takes over the node's rules and makes them true.
    pub fn rules(&mut self, mut rules: TrafficRules) {
        rules.keep(&self.own, &mut self.netlink);
        self.rules = Some(rules);
    }

    /// Writes the subnet file, and says that the node is ready once that is done.
    pub fn settle(&mut self, ready: Ready) {
        self.ready = ready;
        self.write_subnet_file();
    }

    /// Has the registry tell about leases from now on.
    pub fn watch(&mut self, registry: Registry, conf: &NetConf, acquired: Acquired) {
        let waker = Arc::clone(&self.waker);
        // A wake that fails is one that is still to be taken up.
        self.watch = Some(registry.watch(conf, acquired, move || drop(waker.wake())));
    }

    /// Works until the end is asked for, or cannot be avoided.
    pub fn serve(&mut self) -> Result<(), DaemonError> {
        self.tell_supervisor();
        let mut events = Events::with_capacity(16);
        loop {
            match self.poll.poll(&mut events, self.agenda.idle(Instant::now())) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                match event.token() {
                    SIGNALS => self.signals.drain(),
                    NETLINK => self.on_netlink(),
                    PROCESS => self.on_process_end()?,
                    _ => self.on_leases()?,
                }
            }
            while !self.signals.is_interrupted()
                && let Some(task) = self.agenda.take(Instant::now())
            {
                match task {
                    Task::Underlay => self.follow_underlay(),
                    Task::End => self.end_outside_the_network()?,
                    Task::Forget => self.forget(),
                    Task::Reconcile => self.reconcile()?,
                    Task::Rules => self.keep_rules(),
                }
            }
            if self.signals.is_interrupted() {
                return Ok(());
            }
        }
    }

    // Events.

    fn on_leases(&mut self) -> Result<(), DaemonError> {
        let Some(watch) = &self.watch else { return Ok(()) };
        let mut news = false;
        while let Ok(event) = watch.events().try_recv() {
            match event {
                LeaseEvent::OwnLost { why } => return Err(DaemonError::LeaseLost(why)),
                LeaseEvent::OwnRenewed(_) => info!("our lease was renewed"),
                LeaseEvent::Config(seen) => {
                    self.config.learn(seen, Instant::now());
                    self.tell_supervisor();
                    // A task that comes too early looks again.
                    self.config.end().into_iter().for_each(|at| self.agenda.add(Task::End, at));
                }
                event => news |= self.peers.learn(event, Instant::now()),
            }
        }
        if news {
            self.agenda.add(Task::Reconcile, Instant::now().max(self.hold));
        }
        if let Some(until) = self.peers.next() {
            self.agenda.add(Task::Forget, until);
        }
        Ok(())
    }

    fn on_netlink(&mut self) {
        let (mut ours, mut underlay) = (false, false);
        for event in self.netlink_events.drain() {
            match event {
                Ok(event) => {
                    ours |= self.backend.concerns(&event);
                    underlay |= may_move_underlay(&event);
                }
                Err(error) => {
                    warn!("{error}");
                    (ours, underlay) = (true, true);
                }
            }
        }
        let now = Instant::now();
        if ours {
            let due = (now + RECONCILE_DEBOUNCE).max(self.last_reconcile + RECONCILE_PERIOD_MIN).max(self.hold);
            self.agenda.add(Task::Reconcile, due);
        }
        if underlay {
            self.agenda.add(Task::Underlay, now + UNDERLAY_DEBOUNCE);
        }
    }

    fn on_process_end(&mut self) -> io::Result<()> {
        let Some(handle) = self.process.take() else { return Ok(()) };
        self.poll.registry().deregister(&mut SourceFd(&handle.fd().as_raw_fd()))?;
        if self.process_started.elapsed() >= RESTART_HEALTHY {
            self.pause = RETRY_PAUSE_MIN;
        }
        warn!("weftd, process {}, has ended; starting it again in {:?}", handle.pid(), self.pause);
        self.hold_back();
        Ok(())
    }

    // Tasks.

    fn end_outside_the_network(&mut self) -> Result<(), DaemonError> {
        if let Some(why) = self.config.ended(Instant::now()) {
            return Err(DaemonError::OutsideNetwork(why.to_owned()));
        }
        self.config.end().into_iter().for_each(|at| self.agenda.add(Task::End, at));
        Ok(())
    }

    fn forget(&mut self) {
        let now = Instant::now();
        if self.peers.forget(now) {
            self.agenda.add(Task::Reconcile, now.max(self.hold));
        }
        if let Some(until) = self.peers.next() {
            self.agenda.add(Task::Forget, until);
        }
    }

    /// Makes all peers true; says what changed, and a failure once.
    fn reconcile(&mut self) -> Result<(), DaemonError> {
        let now = Instant::now();
        if now < self.hold {
            self.agenda.add(Task::Reconcile, self.hold);
            return Ok(());
        }
        self.last_reconcile = now;
        self.agenda.add(Task::Reconcile, now + RECONCILE_PERIOD_MAX);
        let Some(peers) = self.peers.all() else { return Ok(()) };
        match self.backend.reconcile(&peers) {
            Ok(reconciled) => {
                if self.failure.take().is_some() {
                    info!("backend {}: all is well again", self.backend_name);
                }
                self.report(reconciled);
                if self.process.is_some() && self.process_started.elapsed() >= RESTART_HEALTHY {
                    self.pause = RETRY_PAUSE_MIN;
                }
            }
            Err(error) => {
                let said = causes::text(&error);
                if self.failure.as_ref() != Some(&said) {
                    error!("backend {}: {said}; trying again", self.backend_name);
                }
                self.failure = Some(said);
                self.hold_back();
            }
        }
        Ok(self.watch_process()?)
    }

    fn follow_underlay(&mut self) {
        let (wanted, in_use) = (&self.underlay_families, Some(&self.external));
        let selected = match external::discover(&mut self.netlink, &self.interface, wanted, in_use) {
            Ok(selected) => selected,
            Err(error) => {
                let said = causes::text(&error);
                if self.underlay_failure.as_ref() != Some(&said) {
                    warn!("{said}; {} stays the underlay until there is one", self.external.name);
                }
                self.underlay_failure = Some(said);
                return;
            }
        };
        self.underlay_failure = None;
        if selected.external == self.external {
            return;
        }
        match self.backend.follow(&selected.external) {
            Ok(attrs) => {
                info!("the underlay has changed: {}", describe_external(&selected.external));
                self.external = selected.external;
                if let Some(watch) = &self.watch {
                    watch.publish(attrs);
                }
                self.write_subnet_file();
                self.agenda.add(Task::Reconcile, Instant::now().max(self.hold));
            }
            Err(error) => warn!("the underlay has changed and cannot be followed: {}", causes::text(&error)),
        }
    }

    fn keep_rules(&mut self) {
        self.agenda.add(Task::Rules, Instant::now() + self.resync);
        if let Some(rules) = &mut self.rules {
            rules.keep(&self.own, &mut self.netlink);
        }
        self.write_subnet_file();
    }

    // Deeds.

    /// Gives systemd the line that `systemctl status` shows.
    fn tell_supervisor(&self) {
        let state = match self.config.note() {
            "" => format!("subnet {}, backend {}", describe_own(&self.own), self.backend_name),
            note => note.to_owned(),
        };
        // Not being started by systemd is no error.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Status(&state)]);
    }

    fn hold_back(&mut self) {
        self.hold = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(RETRY_PAUSE_MAX);
        self.agenda.add(Task::Reconcile, self.hold);
    }

    fn report(&mut self, reconciled: Reconciled) {
        if !reconciled.changes.is_empty() {
            info!("backend {}: {}", self.backend_name, reconciled.changes.join("; "));
        }
        let notes: BTreeSet<String> = reconciled.notes.into_iter().collect();
        notes.difference(&self.notes).for_each(|note| warn!("{note}"));
        self.notes = notes;
    }

    /// Writes the subnet file if it does not say yet what there is to say.
    fn write_subnet_file(&mut self) {
        let wanted = SubnetEnv::new(&self.own, self.backend.mtu(), self.ip_masq);
        if self.written.as_ref() == Some(&wanted) {
            return;
        }
        match wanted.write(&self.subnet_file) {
            Ok(()) => {
                info!("{} written: {}", self.subnet_file.display(), wanted.text().trim_end().replace('\n', " "));
                self.written = Some(wanted);
                self.subnet_file_failure = None;
                self.ready.set(true);
            }
            Err(error) => {
                let said = error.to_string();
                if self.subnet_file_failure.as_ref() != Some(&said) {
                    warn!(
                        "{} cannot be written, and until then this node is not ready: {said}",
                        self.subnet_file.display()
                    );
                }
                self.subnet_file_failure = Some(said);
            }
        }
    }

    fn watch_process(&mut self) -> io::Result<()> {
        if let Some(handle) = self.backend.process() {
            if let Some(before) = self.process.take() {
                self.poll.registry().deregister(&mut SourceFd(&before.fd().as_raw_fd()))?;
            }
            self.poll.registry().register(&mut SourceFd(&handle.fd().as_raw_fd()), PROCESS, Interest::READABLE)?;
            self.process = Some(handle);
            self.process_started = Instant::now();
        }
        Ok(())
    }
}

/// Whether the choice of the underlay may come out otherwise after this.
fn may_move_underlay(event: &NetlinkEvent) -> bool {
    match event {
        NetlinkEvent::Link(_) | NetlinkEvent::LinkGone(_) => true,
        NetlinkEvent::Address(_) | NetlinkEvent::AddressGone(_) => true,
        NetlinkEvent::Route(route) | NetlinkEvent::RouteGone(route) => route.dst.prefix_len() == 0,
        NetlinkEvent::Overrun => true,
        _ => false,
    }
}
