//! What weftd tells about itself. The JSON forms of these types are what `--json` prints: fields may be added, never renamed.

use crate::digest::Digest;
use crate::table::PeerSpec;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// weftd's side of the hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol version that weftd speaks.
    pub protocol: u16,
    /// Version of weftd.
    pub weftd_version: String,
    /// weftd's process id.
    pub pid: u32,
    /// TUN device name.
    pub tun_name: String,
    /// Local UDP address.
    pub bind: SocketAddr,
    /// Engine in use: "uring" or "epoll".
    pub engine: String,
    /// Requests that this weftd answers, by name.
    pub capabilities: Vec<String>,
    /// Whether this connection may change anything (SO_PEERCRED).
    pub may_change: bool,
}

/// Answer to [`crate::Request::Get`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteAnswer {
    /// The address asked for.
    pub address: IpAddr,
    /// The longest prefix that covers it, and where it leads; `None`: no route.
    pub route: Option<RouteMatch>,
    /// Generation of the table that answered.
    pub generation: u64,
}

/// A route that covers an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteMatch {
    /// The covering prefix.
    pub prefix: IpNet,
    /// The peer it leads to.
    pub peer: PeerSpec,
}

/// One peer with its counters, summed over workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Stable number while the peer is in the table.
    pub id: u16,
    /// Name, address and aliases.
    #[serde(flatten)]
    pub peer: PeerSpec,
    /// Routes that lead to it.
    pub routes: u32,
    /// Inner packets sent to it.
    pub tx_packets: u64,
    /// Inner bytes sent to it.
    pub tx_bytes: u64,
    /// Inner packets accepted from it.
    pub rx_packets: u64,
    /// Inner bytes accepted from it.
    pub rx_bytes: u64,
    /// Largest inner packet that fits the path, where a smaller path MTU was learnt.
    pub path_mtu: Option<u32>,
    /// Milliseconds since the last accepted datagram; `None`: none yet.
    pub last_rx_ago_ms: Option<u64>,
}

/// Which way a packet was going.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// TUN to UDP.
    Encap,
    /// UDP to TUN.
    Decap,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Direction::Encap => "encap",
            Direction::Decap => "decap",
        })
    }
}

/// One counter summed over workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterReport {
    /// Stable name.
    pub name: String,
    /// What it counts.
    pub help: String,
    /// Sum over workers since weftd started.
    pub value: u64,
}

/// Drops for one reason in one direction, summed over workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropReport {
    /// Which way the packets were going.
    pub direction: Direction,
    /// Stable name of the reason.
    pub reason: String,
    /// What happened and, where there is one, the remedy.
    pub help: String,
    /// Packets since weftd started.
    pub packets: u64,
}

/// Offloads in use on one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffloadReport {
    /// TUN packets carry a virtio-net header.
    pub tun_vnet: bool,
    /// TCP super-packets to and from TUN.
    pub tun_tso: bool,
    /// UDP super-packets to and from TUN.
    pub tun_uso: bool,
    /// One send, many datagrams.
    pub udp_gso: bool,
    /// One receive, many datagrams.
    pub udp_gro: bool,
    /// Senders on this host wait when they are faster than weftd.
    #[serde(default)]
    pub backpressure: bool,
    /// A worker of its own for sparse flows, beside the others; of one worker: whether it is that one.
    #[serde(default)]
    pub sparse_lane: bool,
}

impl OffloadReport {
    /// (name, in use) of each.
    pub fn each(&self) -> [(&'static str, bool); 7] {
        [
            ("tun_vnet", self.tun_vnet),
            ("tun_tso", self.tun_tso),
            ("tun_uso", self.tun_uso),
            ("udp_gso", self.udp_gso),
            ("udp_gro", self.udp_gro),
            ("backpressure", self.backpressure),
            ("sparse_lane", self.sparse_lane),
        ]
    }
}

/// Totals over all workers: the first part of [`StatsReport`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsTotals {
    /// Engine in use.
    pub engine: String,
    /// Milliseconds since weftd started.
    pub uptime_ms: u64,
    /// Every counter.
    pub counters: Vec<CounterReport>,
    /// Every drop reason in both directions, zero or not.
    pub drops: Vec<DropReport>,
    /// Segments per UDP send: entry i counts sends of 2^i to 2^(i+1)-1 segments, the last one everything above.
    pub send_segments: Vec<u64>,
    /// Packets per TUN write, as above.
    pub write_segments: Vec<u64>,
}

/// One worker's share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Number of the worker.
    pub index: u16,
    /// Still running.
    pub running: bool,
    /// Counters by name.
    pub counters: BTreeMap<String, u64>,
    /// Encap drops by reason, without zeros.
    pub encap_drops: BTreeMap<String, u64>,
    /// Decap drops by reason, without zeros.
    pub decap_drops: BTreeMap<String, u64>,
    /// As [`StatsTotals::send_segments`].
    pub send_segments: Vec<u64>,
    /// As [`StatsTotals::write_segments`].
    pub write_segments: Vec<u64>,
    /// Offloads in use.
    pub offloads: OffloadReport,
}

/// Everything that weftd counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsReport {
    /// Sums.
    #[serde(flatten)]
    pub totals: StatsTotals,
    /// Per worker.
    pub workers: Vec<WorkerReport>,
}

/// One screen of state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Version of weftd.
    pub weftd_version: String,
    /// weftd's process id.
    pub pid: u32,
    /// Milliseconds since weftd started.
    pub uptime_ms: u64,
    /// TUN device name.
    pub tun_name: String,
    /// Its interface index.
    pub tun_ifindex: u32,
    /// How it was opened: "native" or "simple".
    pub opener: String,
    /// Its MTU at start.
    pub mtu: u16,
    /// Local UDP address.
    pub bind: SocketAddr,
    /// Engine in use.
    pub engine: String,
    /// Why the engine is not the one asked for or the default.
    pub engine_note: Option<String>,
    /// The engine was fallen back to, because the kernel refused the better one.
    pub engine_fallback: bool,
    /// Peer check: "strict", "log" or "off".
    pub peer_check: String,
    /// Spin time before sleeping, microseconds.
    pub spin_us: u32,
    /// UDP ports that datagrams are sent from: one, or one for each worker.
    #[serde(default)]
    pub source_ports: Vec<u16>,
    /// Workers started, the lane of sparse flows not counted.
    pub workers: u16,
    /// Those of them that share the flows: as few as carry them, unless their number was asked for. 0: an older weftd, which does not say.
    #[serde(default)]
    pub workers_in_use: u16,
    /// Those of them that still run.
    pub workers_running: u16,
    /// Draining: no new packets are read.
    pub draining: bool,
    /// Table number.
    pub generation: u64,
    /// Digest of the table.
    pub digest: Digest,
    /// Routes in the table.
    pub routes: u32,
    /// Peers in the table.
    pub peers: u32,
    /// An offload counts as in use if every worker uses it, the lane if there is one.
    pub offloads: OffloadReport,
    /// Offloads that the kernel refused at run time: they were on when weftd began to serve, and are off on some worker.
    pub offloads_lost: Vec<String>,
    /// Packets dropped on encap, all reasons.
    pub encap_drops: u64,
    /// Packets dropped on decap, all reasons.
    pub decap_drops: u64,
}

impl StatusReport {
    /// Why this weftd does less than it could, a sentence each; empty: healthy.
    pub fn degraded(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if !self.offloads_lost.is_empty() {
            reasons.push(format!("the kernel refused {} at run time", self.offloads_lost.join(", ")));
        }
        if self.engine_fallback {
            let note = self.engine_note.as_deref().unwrap_or("the kernel refused the default");
            reasons.push(format!("engine {} took over: {note}", self.engine));
        }
        if self.routes == 0 {
            reasons.push("no route is installed: every packet into the tunnel is answered with net-unreachable".into());
        }
        if self.workers_running < self.workers {
            reasons.push(format!("{} of {} workers run", self.workers_running, self.workers));
        }
        if self.draining {
            reasons.push("weftd is draining and will exit".into());
        }
        reasons
    }
}

/// Something that happened, as subscribers see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A table came into force.
    TableInstalled {
        /// Its number.
        generation: u64,
        /// Its digest.
        digest: Digest,
        /// Its routes.
        routes: u32,
        /// Its peers.
        peers: u32,
        /// "swap" or "delta".
        by: String,
    },
    /// The kernel refused an offload on one worker; it stays off.
    OffloadOff {
        /// The worker.
        worker: u16,
        /// Name of the offload.
        offload: String,
    },
    /// A worker ended.
    WorkerEnded {
        /// The worker.
        worker: u16,
        /// Why, if it did not end by order.
        error: Option<String>,
    },
    /// The log level was changed.
    LogLevel {
        /// The level in force.
        level: LogLevel,
    },
    /// weftd stops reading from TUN and will exit.
    Draining {
        /// Who asked: "client" or "signal" or "worker failure".
        by: String,
    },
}

/// How much weftd logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Failures only.
    Error,
    /// And what a person should look at.
    Warn,
    /// And what changed (default).
    Info,
    /// And why.
    Debug,
    /// And everything else.
    Trace,
}

impl LogLevel {
    /// Every level, quiet to loud.
    pub const ALL: [LogLevel; 5] = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];
    /// Name as `tracing` and people write it.
    pub const fn name(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for LogLevel {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        LogLevel::ALL
            .into_iter()
            .find(|level| level.name() == text)
            .ok_or_else(|| format!("\"{text}\" is no log level: error, warn, info, debug or trace"))
    }
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The hello's version is not weftd's.
    Version,
    /// Bytes or a sequence of requests that the protocol does not know.
    Malformed,
    /// A bound was exceeded.
    TooLarge,
    /// The caller may read but not change (SO_PEERCRED).
    NotPermitted,
    /// The table in force is not the generation that the request expected.
    Stale,
    /// The table or delta breaks a rule; the text names the entry.
    Invalid,
    /// A begun frame or transaction was not finished in time.
    Deadline,
    /// Too many connections.
    Busy,
    /// weftd is about to exit.
    Draining,
    /// weftd failed.
    Internal,
}

/// A refused request: nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people: what, where, the remedy.
    pub text: String,
    /// Generation in force, where that is the point (stale requests).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}
