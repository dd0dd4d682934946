//! What the requests act on: the table in force, the workers' counters, the events that go to subscribers.

use super::ServeError;
use super::table::{PeerIds, PeerTotals, Table};
use super::watch::WorkerEnd;
use crate::shared::{Command, Offloads, Shared};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use weft_packet::DropReason;
use weft_proto::limits::{DRAIN_TIMEOUT, PROTOCOL_VERSION};
use weft_proto::{
    CAPABILITIES, CounterReport, Delta, Direction, DropReport, Event, Hello, Installed, LogLevel, OffloadReport,
    PeerReport, Refusal, RefusalCode, RouteAnswer, RouteMatch, RouteSet, StatsTotals, StatusReport, WorkerReport,
};

/// Changes the process's log level; the error is for a person.
pub type SetLogLevel<'a> = &'a mut dyn FnMut(LogLevel) -> Result<(), String>;

/// State behind all connections.
pub struct Core<'a> {
    shared: Arc<Shared>,
    set_log_level: SetLogLevel<'a>,
    started: Instant,
    table: Arc<Table>,
    ids: PeerIds,
    /// Offloads as they were when serving began, and as subscribers last heard.
    offloads: Vec<(OffloadReport, OffloadReport)>,
    running: Vec<bool>,
    drain: Option<Drain>,
    failure: Option<WorkerEnd>,
    events: Vec<Event>,
}

/// A drain under way.
struct Drain {
    deadline: Instant,
}

impl<'a> Core<'a> {
    /// Generation 0 in force, all workers running.
    pub fn new(shared: Arc<Shared>, set_log_level: SetLogLevel<'a>) -> Core<'a> {
        let offloads =
            shared.workers.iter().map(|worker| read_offloads(&worker.offloads)).map(|now| (now, now)).collect();
        let running = vec![true; shared.workers.len()];
        Core {
            shared,
            set_log_level,
            started: Instant::now(),
            table: Arc::new(Table::empty()),
            ids: PeerIds::default(),
            offloads,
            running,
            drain: None,
            failure: None,
            events: Vec::new(),
        }
    }

    /// The table in force.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Refuses unless `expect` is in force.
    pub fn check_generation(&self, expect: Option<u64>) -> Result<(), Refusal> {
        let generation = self.table.installed.generation;
        match expect {
            Some(expected) if expected != generation => Err(Refusal {
                code: RefusalCode::Stale,
                text: format!(
                    "stale: generation {generation} is in force, the request expected {expected}; read the table again"
                ),
                generation: Some(generation),
            }),
            _ => Ok(()),
        }
    }

    /// Refuses while draining.
    pub fn check_serving(&self) -> Result<(), Refusal> {
        match self.drain {
            None => Ok(()),
            Some(_) => Err(refusal(RefusalCode::Draining, "weftd is draining and takes no more changes")),
        }
    }

    /// Puts a whole table in force.
    pub fn swap(&mut self, set: RouteSet) -> Result<Installed, Refusal> {
        set.check(self.shared.facts.bind).map_err(invalid)?;
        self.install(set.canonical(), "swap")
    }

    /// Applies a change.
    pub fn apply(&mut self, delta: &Delta) -> Result<Installed, Refusal> {
        delta.check(self.shared.facts.bind).map_err(invalid)?;
        let set = self.table.with(delta);
        set.check(self.shared.facts.bind).map_err(invalid)?;
        self.install(set, "delta")
    }

    /// Builds beside the packet path, publishes, and only then remembers.
    fn install(&mut self, set: RouteSet, by: &str) -> Result<Installed, Refusal> {
        let mut ids = self.ids.clone();
        let assigned = ids.assign(&set.peers, |id| self.totals(id));
        let table = Table::new(self.table.installed.generation + 1, set, assigned);
        let fib = table
            .build()
            .map_err(|error| refusal(RefusalCode::Internal, format!("the forwarding table was refused: {error:?}")))?;
        self.shared.fib.publish(fib);
        self.ids = ids;
        self.table = Arc::new(table);
        let Installed { generation, digest, routes, peers } = self.table.installed;
        tracing::info!(generation, %digest, routes, peers, by, "table installed");
        self.events.push(Event::TableInstalled { generation, digest, routes, peers, by: by.into() });
        Ok(self.table.installed)
    }

    /// Changes the log level.
    pub fn set_log_level(&mut self, level: LogLevel) -> Result<(), Refusal> {
        (self.set_log_level)(level)
            .map_err(|error| refusal(RefusalCode::Internal, format!("log level {level}: {error}")))?;
        self.events.push(Event::LogLevel { level });
        Ok(())
    }

    /// Orders the workers to finish; idempotent.
    pub fn drain(&mut self, by: &str) {
        if self.drain.is_some() {
            return;
        }
        tracing::info!(by, "draining");
        self.drain = Some(Drain { deadline: Instant::now() + DRAIN_TIMEOUT });
        self.shared.command.store(Command::Drain as u8, std::sync::atomic::Ordering::Release);
        (self.shared.wake)();
        self.events.push(Event::Draining { by: by.into() });
    }

    /// A signal: drains, or stops waiting for a drain under way.
    pub fn signalled(&mut self) {
        match &mut self.drain {
            None => self.drain("signal"),
            Some(drain) => drain.deadline = Instant::now(),
        }
    }

    /// Notes that a worker ended. Without an order to drain it is a failure, and the others are drained: the kernel goes on
    /// handing packets to the queue that nobody reads.
    pub fn worker_ended(&mut self, end: WorkerEnd) {
        if let Some(running) = self.running.get_mut(usize::from(end.worker)) {
            *running = false;
        }
        let ordered = self.drain.is_some();
        let error = match (&end.result, ordered) {
            (Ok(()), true) => None,
            (Ok(()), false) => Some("it ended without an order to".to_owned()),
            (Err(error), _) => Some(error.clone()),
        };
        self.events.push(Event::WorkerEnded { worker: end.worker, error: error.clone() });
        if let Some(error) = error {
            tracing::error!(worker = end.worker, error, "a worker ended");
            self.failure.get_or_insert(WorkerEnd { worker: end.worker, result: Err(error) });
            self.drain("worker failure");
        }
    }

    /// When the wait for the workers of a drain ends.
    pub fn drain_deadline(&self) -> Option<Instant> {
        self.drain.as_ref().map(|drain| drain.deadline)
    }

    /// Whether a drain is over: every worker ended, or the wait for them did.
    pub fn drained(&self) -> bool {
        let ended = || !self.running.contains(&true);
        self.drain.as_ref().is_some_and(|drain| ended() || Instant::now() >= drain.deadline)
    }

    /// How serving ended.
    pub fn outcome(self) -> Result<(), ServeError> {
        match self.failure {
            Some(WorkerEnd { worker, result: Err(reason) }) => Err(ServeError::Worker { worker, reason }),
            _ if self.running.contains(&true) => {
                let workers = self.running.iter().filter(|running| **running).count();
                Err(ServeError::DrainTimeout { workers })
            }
            _ => Ok(()),
        }
    }

    /// Notes offloads that went off since the last call, for subscribers.
    pub fn poll_offloads(&mut self) {
        for (index, (worker, (_, told))) in (0..).zip(self.shared.workers.iter().zip(&mut self.offloads)) {
            let now = read_offloads(&worker.offloads);
            for ((name, before), (_, after)) in told.each().into_iter().zip(now.each()) {
                if before && !after {
                    self.events.push(Event::OffloadOff { worker: index, offload: name.into() });
                }
            }
            *told = now;
        }
    }

    /// Events since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// weftd's side of the hello.
    pub fn hello(&self, may_change: bool) -> Hello {
        let facts = &self.shared.facts;
        Hello {
            protocol: PROTOCOL_VERSION,
            weftd_version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            tun_name: facts.tun_name.clone(),
            bind: facts.bind,
            engine: facts.engine.into(),
            capabilities: CAPABILITIES.iter().map(|name| (*name).to_owned()).collect(),
            may_change,
        }
    }

    /// Which route covers an address.
    pub fn route(&self, address: std::net::IpAddr) -> RouteAnswer {
        let route = self.table.lookup(address).map(|(prefix, peer)| RouteMatch { prefix, peer: peer.clone() });
        RouteAnswer { address, route, generation: self.table.installed.generation }
    }

    /// State.
    pub fn status(&self) -> StatusReport {
        let facts = &self.shared.facts;
        let Installed { generation, digest, routes, peers } = self.table.installed;
        let now: Vec<OffloadReport> =
            self.shared.workers.iter().map(|worker| read_offloads(&worker.offloads)).collect();
        let every = |get: fn(&OffloadReport) -> bool| !now.is_empty() && now.iter().all(get);
        let mut lost: Vec<String> = Vec::new();
        for ((start, _), now) in self.offloads.iter().zip(&now) {
            for ((name, before), (_, after)) in start.each().into_iter().zip(now.each()) {
                if before && !after && !lost.iter().any(|known| known == name) {
                    lost.push(name.into());
                }
            }
        }
        let drops = |direction| self.drops(direction).map(|(_, packets)| packets).sum();
        let workers = now.iter().filter(|offloads| !offloads.sparse_lane).count() as u16;
        StatusReport {
            weftd_version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_ms: self.uptime_ms(),
            tun_name: facts.tun_name.clone(),
            tun_ifindex: facts.tun_ifindex,
            opener: facts.opener.into(),
            mtu: facts.mtu,
            bind: facts.bind,
            engine: facts.engine.into(),
            engine_note: facts.engine_note.clone(),
            engine_fallback: facts.engine_fallback,
            peer_check: format!("{:?}", facts.peer_check).to_lowercase(),
            spin_us: facts.spin_us,
            source_ports: facts.source_ports.clone(),
            workers,
            workers_in_use: self.shared.lane.as_ref().map_or(workers, |lane| lane.in_use() as u16),
            workers_running: now.iter().zip(&self.running).filter(|(o, running)| !o.sparse_lane && **running).count()
                as u16,
            draining: self.drain.is_some(),
            generation,
            digest,
            routes,
            peers,
            offloads: OffloadReport {
                tun_vnet: every(|offloads| offloads.tun_vnet),
                tun_tso: every(|offloads| offloads.tun_tso),
                tun_uso: every(|offloads| offloads.tun_uso),
                udp_gso: every(|offloads| offloads.udp_gso),
                udp_gro: every(|offloads| offloads.udp_gro),
                backpressure: now.iter().any(|offloads| offloads.backpressure),
                sparse_lane: now.iter().any(|offloads| offloads.sparse_lane),
            },
            offloads_lost: lost,
            encap_drops: drops(Direction::Encap),
            decap_drops: drops(Direction::Decap),
        }
    }

    /// One peer of `table`, by its position there.
    pub fn peer(&self, table: &Table, position: usize) -> PeerReport {
        let id = table.ids[position];
        let totals = self.totals(id).since(self.ids.baseline(id));
        PeerReport {
            id: id.0,
            peer: table.set.peers[position].clone(),
            routes: table.routes_of[position],
            tx_packets: totals.tx.0,
            tx_bytes: totals.tx.1,
            rx_packets: totals.rx.0,
            rx_bytes: totals.rx.1,
            path_mtu: u32::try_from(totals.path_mtu).ok().filter(|mtu| *mtu != 0),
            last_rx_ago_ms: (totals.last_rx_ms != 0).then(|| monotonic_ms().saturating_sub(totals.last_rx_ms)),
        }
    }

    /// Counters summed over workers.
    pub fn stats(&self) -> StatsTotals {
        let workers = || self.shared.workers.iter().map(|worker| &worker.stats);
        let mut counters: Vec<CounterReport> = Vec::new();
        for stats in workers() {
            for (position, (name, help, value)) in stats.counters.read().enumerate() {
                match counters.get_mut(position) {
                    Some(counter) => counter.value += value,
                    None => counters.push(CounterReport { name: name.into(), help: help.into(), value }),
                }
            }
        }
        let drops = [Direction::Encap, Direction::Decap].into_iter().flat_map(|direction| {
            self.drops(direction).map(move |(reason, packets)| DropReport {
                direction,
                reason: reason.name().into(),
                help: reason.help().into(),
                packets,
            })
        });
        StatsTotals {
            engine: self.shared.facts.engine.into(),
            uptime_ms: self.uptime_ms(),
            counters,
            drops: drops.collect(),
            send_segments: (0..8).map(|i| workers().map(|stats| stats.send_segments[i].get()).sum()).collect(),
            write_segments: (0..8).map(|i| workers().map(|stats| stats.write_segments[i].get()).sum()).collect(),
        }
    }

    /// One worker's share; `None` beyond the last.
    pub fn worker(&self, index: usize) -> Option<WorkerReport> {
        let worker = self.shared.workers.get(index)?;
        let drops = |counters: &[crate::stats::Counter]| {
            let counted = DropReason::ALL.iter().zip(counters).map(|(reason, counter)| (reason, counter.get()));
            counted.filter(|(_, count)| *count != 0).map(|(reason, count)| (reason.name().to_owned(), count)).collect()
        };
        let stats = &worker.stats;
        Some(WorkerReport {
            index: index as u16,
            running: self.running[index],
            counters: stats.counters.read().map(|(name, _, value)| (name.to_owned(), value)).collect(),
            encap_drops: drops(&stats.encap_drops),
            decap_drops: drops(&stats.decap_drops),
            send_segments: stats.send_segments.iter().map(crate::stats::Counter::get).collect(),
            write_segments: stats.write_segments.iter().map(crate::stats::Counter::get).collect(),
            offloads: read_offloads(&worker.offloads),
        })
    }

    fn drops(&self, direction: Direction) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.iter().map(move |reason| {
            let counters = self.shared.workers.iter().map(|worker| match direction {
                Direction::Encap => &worker.stats.encap_drops,
                Direction::Decap => &worker.stats.decap_drops,
            });
            (*reason, counters.map(|counters| counters[reason.index()].get()).sum())
        })
    }

    fn totals(&self, id: weft_fib::PeerId) -> PeerTotals {
        PeerTotals::sum(self.shared.workers.iter().map(|worker| &worker.stats), id)
    }

    fn uptime_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

/// A refusal with a text and no generation.
pub fn refusal(code: RefusalCode, text: impl Into<String>) -> Refusal {
    Refusal { code, text: text.into(), generation: None }
}

fn invalid(error: weft_proto::TableError) -> Refusal {
    refusal(RefusalCode::Invalid, error.to_string())
}

fn read_offloads(offloads: &Offloads) -> OffloadReport {
    OffloadReport {
        tun_vnet: offloads.tun_vnet.load(Relaxed),
        tun_tso: offloads.tun_tso.load(Relaxed),
        tun_uso: offloads.tun_uso.load(Relaxed),
        udp_gso: offloads.udp_gso.load(Relaxed),
        udp_gro: offloads.udp_gro.load(Relaxed),
        backpressure: offloads.backpressure.load(Relaxed),
        sparse_lane: offloads.sparse_lane.load(Relaxed),
    }
}

/// CLOCK_MONOTONIC, the clock of [`crate::stats::PeerCounters::last_rx_ms`].
fn monotonic_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32).as_millis() as u64
}
