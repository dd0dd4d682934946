//! Measuring a path between two nodes: throughput, packets per second, latency, CPU time.
//!
//! - [`tcp_throughput`]: bytes per second through one or more TCP flows, in one direction or both.
//! - [`udp_blast`]: datagrams per second that arrive, small or in super-packets, at the highest rate or at a given one.
//! - [`udp_spread`]: the same to many addresses, in many small flows.
//! - [`tcp_latency`]: round-trip times of a small request and its response, one at a time, on an idle path or beside
//!   bulk TCP; [`udp_latency`]: the same with datagrams.
//! - [`tcp_flows`]: over TCP on many connections at once.
//! - [`tcp_connects`]: connections per second.
//! - [`core_to_core`]: how far the cores are from each other, on which all of these depend.
//!
//! Payload is checked on arrival in each of them: a wrong byte is an error, not a number. Every measurement counts at the
//! receiver, within a [`Window`] that opens after a warm-up, and ends early with [`Stopped`] when told by [`Stop`]. A
//! [`Watch`] may read further counters at both ends of the window.
//!
//! Sender, receiver and the network between them share the machine's cores, so one figure says little. Measure two
//! subjects alternately in one run and compare.

mod connect;
mod cpu;
mod distance;
mod latency;
mod pattern;
mod peers;
mod socket;
mod stop;
mod tcp;
mod tcp_many;
mod udp;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

pub use connect::{Connects, tcp_connects};
pub use cpu::{CpuTime, process_cpu_time};
pub use distance::{Distances, core_to_core, is_elsewhere, usual};
pub use hdrhistogram::Histogram;
pub use latency::{Latency, REQUEST_LEN, tcp_latency, udp_latency};
pub use peers::{Spread, Spreaded, udp_spread};
pub use socket::congestion_control;
pub use stop::{Stop, Stopped};
pub use tcp::tcp_throughput;
pub use tcp_many::tcp_flows;
pub use udp::{Blast, Blasted, udp_blast};

use crate::{Node, TIMEOUT};

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

/// Looks on: it is told when a window opens and closes, and may read counters then. What it takes to do so is outside the
/// window.
pub trait Watch {
    /// The window is about to open; traffic flows.
    ///
    /// # Errors
    /// Whatever ends the measurement.
    fn open(&mut self) -> Result<()>;

    /// The window has just closed; traffic flows.
    ///
    /// # Errors
    /// Whatever makes the measurement void.
    fn close(&mut self) -> Result<()>;
}

impl Watch for () {
    fn open(&mut self) -> Result<()> {
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

/// One measurement: when it counts, what ends it early, who looks on, what its TCP sockets use.
pub struct Run<'a> {
    /// When to count.
    pub window: Window,
    /// Ends it early.
    pub stop: &'a Stop,
    /// Looks on.
    pub watch: &'a mut dyn Watch,
    /// The congestion control of TCP, which every connection is checked for; `None`: the system's.
    pub congestion_control: Option<&'a str>,
}

/// The width of the slices of [`Throughput::over_time`].
pub const SLICE: Duration = Duration::from_millis(100);

/// What was counted within a [`Window`].
#[derive(Debug, Clone)]
pub struct Throughput {
    /// Payload bytes that arrived.
    pub bytes: u64,
    /// The true length of the window.
    pub elapsed: Duration,
    /// CPU time of the whole machine within it: both ends, the kernel, and whatever else ran.
    pub cpu: Duration,
    /// Payload bytes that arrived in each whole [`SLICE`] of the window.
    pub over_time: Vec<u64>,
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

impl Run<'_> {
    /// Waits for the warm-up, then reads `count` at both ends of the window, and its first number in between. A window in
    /// which nothing was counted stays open for a while: on a busy machine it may take longer than that until one end runs.
    fn observe<const N: usize>(&mut self, count: impl Fn() -> [u64; N]) -> Result<Observed<N>> {
        self.stop.sleep(self.window.warm_up)?;
        self.watch.open()?;
        let (cpu, started, before) = (CpuTime::now()?, Instant::now(), count());
        let mut over_time = Vec::new();
        let mut last = before[0];
        loop {
            let next = (SLICE * (over_time.len() as u32 + 1)).min(self.window.length);
            self.stop.sleep(next.saturating_sub(started.elapsed()))?;
            if next < SLICE * (over_time.len() as u32 + 1) {
                break;
            }
            let first = count()[0];
            over_time.push(first - last);
            last = first;
        }
        while count()[0] == before[0] && started.elapsed() < self.window.length + TIMEOUT {
            self.stop.sleep(SLICE)?;
        }
        let (after, elapsed, cpu) = (count(), started.elapsed(), CpuTime::now()?.since(cpu));
        self.watch.close()?;
        Ok(Observed { counts: std::array::from_fn(|index| after[index] - before[index]), elapsed, cpu, over_time })
    }
}

/// Differences between both ends of a window.
struct Observed<const N: usize> {
    counts: [u64; N],
    elapsed: Duration,
    cpu: Duration,
    /// Of the first count.
    over_time: Vec<u64>,
}

impl<const N: usize> Observed<N> {
    /// As throughput, if anything arrived; the first count is in units of `unit` bytes.
    fn throughput(self, unit: usize) -> Result<Throughput> {
        ensure!(self.counts[0] > 0, "nothing arrived within {:?}", self.elapsed);
        let unit = unit as u64;
        let over_time = self.over_time.into_iter().map(|count| count * unit).collect();
        Ok(Throughput { bytes: self.counts[0] * unit, elapsed: self.elapsed, cpu: self.cpu, over_time })
    }
}

/// Joins a measuring thread. A panic in it is a bug of this module and is reported as an error, so that the caller can
/// clean up.
fn join<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>, what: &'static str) -> Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("the {what} thread panicked"))?.context(what)
}

/// A socket that fails because the measurement is over has not failed.
fn unless_over(over: &AtomicBool, outcome: Result<()>) -> Result<()> {
    if over.load(Ordering::Relaxed) { Ok(()) } else { outcome }
}

/// The middle value; of an even number of values, the mean of the middle two; `None` without any.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
