//! Counters: one writer (the worker), any reader. Relaxed atomics on the worker's own cache lines; the reader sums.

use crate::limits::PEERS_MAX;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use weft_fib::PeerId;
use weft_packet::DropReason;

macro_rules! counters {
    ($($name:ident: $help:literal,)*) => {
        /// One worker's counters. Add with [`Counter::add`].
        #[derive(Debug, Default)]
        pub struct Counters { $(#[doc = $help] pub $name: Counter,)* }

        impl Counters {
            /// (name, help, value) of each, in declaration order.
            pub fn read(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), $help, self.$name.get()),)*].into_iter()
            }
        }
    };
}

counters! {
    tun_read_packets: "super-packets and packets read from TUN",
    tun_read_bytes: "inner bytes read from TUN",
    encap_packets: "inner packets sent as datagrams (after splitting)",
    encap_bytes: "inner bytes sent as datagrams",
    encap_batches: "UDP sends: one GSO batch or one datagram each",
    udp_read_batches: "UDP receives: one GRO buffer or one datagram each",
    udp_read_bytes: "UDP payload bytes received",
    decap_packets: "inner packets accepted from datagrams",
    decap_bytes: "inner bytes accepted from datagrams",
    tun_write_packets: "super-packets and packets written to TUN",
    tun_write_bytes: "inner bytes written to TUN (replies included)",
    icmp_sent: "ICMP errors written to TUN",
    icmp_limited: "ICMP errors withheld by the rate limit, or because every operation slot was in use",
    fragments_sent: "inner fragments made for a smaller path MTU",
    batch_resent: "UDP GSO batches sent again singly after the kernel refused them",
    write_resent: "coalesced TUN writes written again singly after the kernel refused them",
    peer_check_logged: "packets that the strict peer check would have dropped (mode log)",
    rx_overflow: "turns in which nothing could be read from one side because all frames were in use (packets wait in the kernel's queues)",
    turns: "engine turns",
    sleeps: "turns that were free to sleep",
    syscalls: "system calls made by the packet path",
}

/// One counter: written by one thread, read by any.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds without a locked instruction: only the owning worker writes.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }
    /// Takes back what was added before.
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }
    /// Sets a value that is counted elsewhere.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }
    /// Current value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Traffic with one peer, as one worker saw it.
#[derive(Debug, Default)]
pub struct PeerCounters {
    /// Inner packets sent to the peer.
    pub tx_packets: Counter,
    /// Inner bytes sent to the peer.
    pub tx_bytes: Counter,
    /// Inner packets accepted from the peer.
    pub rx_packets: Counter,
    /// Inner bytes accepted from the peer.
    pub rx_bytes: Counter,
    /// Smallest path MTU learnt, as the largest inner packet that fits; 0: none learnt.
    pub path_mtu: AtomicU64,
    /// Monotonic milliseconds of the last accepted datagram; 0: never.
    pub last_rx_ms: AtomicU64,
}

/// Everything one worker counts.
#[derive(Debug)]
pub struct WorkerStats {
    /// Plain counters.
    pub counters: Counters,
    /// Encap drops by [`DropReason::index`].
    pub encap_drops: [Counter; DropReason::COUNT],
    /// Decap drops by [`DropReason::index`].
    pub decap_drops: [Counter; DropReason::COUNT],
    /// Histogram of segments per UDP send: bucket i counts 2^i..2^(i+1) segments, 0..=7.
    pub send_segments: [Counter; 8],
    /// Histogram of packets per TUN write, as above.
    pub write_segments: [Counter; 8],
    peers: Box<[PeerCounters]>,
}

impl Default for WorkerStats {
    fn default() -> Self {
        WorkerStats {
            counters: Counters::default(),
            encap_drops: Default::default(),
            decap_drops: Default::default(),
            send_segments: Default::default(),
            write_segments: Default::default(),
            peers: std::iter::repeat_with(PeerCounters::default).take(PEERS_MAX).collect(),
        }
    }
}

impl WorkerStats {
    /// Counters of one peer. Indexed by the stable peer id.
    #[inline]
    pub fn peer(&self, id: PeerId) -> &PeerCounters {
        &self.peers[usize::from(id.0)]
    }
}

/// Bucket of a power-of-two histogram with 8 buckets.
#[inline]
pub fn bucket(count: usize) -> usize {
    (count.max(1).ilog2() as usize).min(7)
}
