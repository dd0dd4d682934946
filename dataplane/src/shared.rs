//! What workers and the control server share: all of it lock-free on the worker's side.

use crate::lane::Workers;
use crate::stats::WorkerStats;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8};
use weft_fib::FibCell;

/// What a worker should do; written by the server, read once per turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    /// Forward.
    Run = 0,
    /// Stop reading, finish what was read, then end.
    Drain = 1,
}

/// How strictly an outer source is held against the inner source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum PeerCheck {
    /// Unknown outer source: dropped. Inner source not routed to that peer: dropped.
    #[default]
    Strict = 0,
    /// Both are counted under their drop reason's name in `peer_check_logged`, and delivered.
    Log = 1,
    /// Not checked (stock flannel's behaviour).
    Off = 2,
}

/// Offloads in use on one worker; switched off, never on, at run time. Relaxed: readers are people.
#[derive(Debug, Default)]
pub struct Offloads {
    /// TUN packets carry a virtio-net header.
    pub tun_vnet: AtomicBool,
    /// TCP super-packets to and from TUN.
    pub tun_tso: AtomicBool,
    /// UDP super-packets to and from TUN (Linux 6.2).
    pub tun_uso: AtomicBool,
    /// Senders wait when they are faster than this worker.
    pub backpressure: AtomicBool,
    /// This worker is the lane of sparse flows.
    pub sparse_lane: AtomicBool,
    /// One send, many datagrams (UDP_SEGMENT).
    pub udp_gso: AtomicBool,
    /// One receive, many datagrams (UDP_GRO).
    pub udp_gro: AtomicBool,
}

/// One worker as others see it.
#[derive(Debug, Default)]
pub struct WorkerView {
    /// Its counters.
    pub stats: WorkerStats,
    /// Its offloads.
    pub offloads: Offloads,
}

/// Facts fixed at start, for `status`.
#[derive(Clone, Debug)]
pub struct Facts {
    /// TUN device name.
    pub tun_name: String,
    /// Interface index of the TUN.
    pub tun_ifindex: u32,
    /// Local UDP address.
    pub bind: SocketAddr,
    /// Engine that really runs: "uring" or "epoll".
    pub engine: &'static str,
    /// Why the engine is not the one asked for or the default; shown by status.
    pub engine_note: Option<String>,
    /// The engine was not chosen but fell back to, because the kernel refused the better one.
    pub engine_fallback: bool,
    /// TUN opener: "native" or "simple".
    pub opener: &'static str,
    /// MTU of the TUN at start.
    pub mtu: u16,
    /// Peer check.
    pub peer_check: PeerCheck,
    /// Spin time before sleeping, microseconds.
    pub spin_us: u32,
    /// UDP ports that datagrams are sent from: one, or one for each worker.
    pub source_ports: Vec<u16>,
}

/// The shared state of a running weftd.
pub struct Shared {
    /// The table in force.
    pub fib: Arc<FibCell>,
    /// One per worker.
    pub workers: Vec<Arc<WorkerView>>,
    /// Which of them share the flows that are not the lane's; `None`: there is no lane, and all do.
    pub lane: Option<Arc<Workers>>,
    /// [`Command`] as u8.
    pub command: Arc<AtomicU8>,
    /// Fixed facts.
    pub facts: Facts,
    /// Wakes all workers from sleep (eventfd writes), so that a command is seen at once.
    pub wake: Box<dyn Fn() + Send + Sync>,
}
