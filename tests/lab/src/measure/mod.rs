//! Measuring a path between two nodes: throughput, packets per second, latency, CPU time.
//!
//! - [`tcp_throughput`]: bytes per second through one or more TCP flows.
//! - [`udp_blast`]: datagrams per second that arrive when the sender does not hold back, small or in super-packets.
//! - [`tcp_latency`]: round-trip times of a small request and its response, one at a time.
//!
//! Payload is checked on arrival in each of them: a wrong byte is an error, not a number. Every measurement counts at the
//! receiver, within a [`Window`] that opens after a warm-up, and ends early with [`Stopped`] when told by [`Stop`].
//!
//! Sender, receiver and the network between them share the machine's cores, so one figure says little. Measure two
//! subjects alternately in one run and compare.

mod cpu;
mod pattern;
mod stop;
mod tcp;
mod udp;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

pub use cpu::CpuTime;
pub use hdrhistogram::Histogram;
pub use stop::{Stop, Stopped};
pub use tcp::{REQUEST_LEN, tcp_latency, tcp_throughput};
pub use udp::{Blast, Blasted, udp_blast};

use crate::Node;

/// What is measured: the way from one node to an address of another.
#[derive(Debug, Clone, Copy)]
pub struct Path<'a> {
    /// Where senders and clients run.
    pub from: &'a Node,
    /// Where receivers and servers run.
    pub to: &'a Node,
    /// The address that they listen on. It decides which way the packets go.
    pub address: IpAddr,
}

/// When to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Traffic before counting begins: slow start, cold caches, neighbour lookup.
    pub warm_up: Duration,
    /// How long to count.
    pub length: Duration,
}

/// What was counted within a [`Window`].
#[derive(Debug, Clone, Copy)]
pub struct Throughput {
    /// Payload bytes that arrived.
    pub bytes: u64,
    /// The true length of the window.
    pub elapsed: Duration,
    /// CPU time of the whole machine within it: both ends, the kernel, and whatever else ran.
    pub cpu: Duration,
}

impl Throughput {
    /// Payload bits per second.
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64()
    }

    /// CPU seconds of the whole machine per 10^9 payload bytes.
    pub fn cpu_per_gigabyte(&self) -> f64 {
        self.cpu.as_secs_f64() / (self.bytes as f64 / 1e9)
    }
}

impl Window {
    /// Waits for the warm-up, then reads `count` at both ends of the window.
    fn observe<const N: usize>(&self, stop: &Stop, count: impl Fn() -> [u64; N]) -> Result<Observed<N>> {
        stop.sleep(self.warm_up)?;
        let (cpu, started, before) = (CpuTime::now()?, Instant::now(), count());
        stop.sleep(self.length)?;
        let (after, elapsed, cpu) = (count(), started.elapsed(), CpuTime::now()?.since(cpu));
        Ok(Observed { counts: std::array::from_fn(|index| after[index] - before[index]), elapsed, cpu })
    }
}

/// Differences between both ends of a window.
struct Observed<const N: usize> {
    counts: [u64; N],
    elapsed: Duration,
    cpu: Duration,
}

impl<const N: usize> Observed<N> {
    /// As throughput, if anything arrived.
    fn throughput(&self, bytes: u64) -> Result<Throughput> {
        ensure!(bytes > 0, "nothing arrived within {:?}", self.elapsed);
        Ok(Throughput { bytes, elapsed: self.elapsed, cpu: self.cpu })
    }
}

/// Joins a measuring thread. A panic in it is a bug of this module and is reported as an error, so that the caller can
/// clean up.
fn join<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>, what: &'static str) -> Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("the {what} thread panicked"))?.context(what)
}
