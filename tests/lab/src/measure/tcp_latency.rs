//! TCP request/response latency.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

use super::pattern::Pattern;
use super::tcp::{ANSWER_TIMEOUT, Connection, beside_bulk};
use super::{CpuTime, Path, Run, join, unless_over};

/// Bytes of a request, and of its response.
pub const REQUEST_LEN: usize = 64;
/// The longest round-trip time that the histogram tells apart, in nanoseconds.
const RTT_NS_MAX: u64 = 10_000_000_000;
/// Significant decimal digits of the histogram.
const RTT_DIGITS: u8 = 3;

/// What came of [`tcp_latency`] or [`super::tcp_flows`].
#[derive(Debug, Clone)]
pub struct Latency {
    /// Round-trip times within the window, in nanoseconds.
    pub times: Histogram<u64>,
    /// The true length of the window.
    pub elapsed: Duration,
    /// CPU time of the whole machine within it.
    pub cpu: Duration,
}

impl Latency {
    /// The time that so many of the responses took at most, in microseconds; `quantile` is from 0 to 1.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        self.times.value_at_quantile(quantile) as f64 / 1e3
    }

    /// Responses per second.
    pub fn per_second(&self) -> f64 {
        self.times.len() as f64 / self.elapsed.as_secs_f64()
    }
}

/// Sends a request of 64 bytes, waits for a response of 64 bytes that depends on it, and so on, on one connection without
/// Nagle's delay; beside them, `bulk_flows` TCP connections send as fast as they can the same way.
///
/// # Errors
/// If a connection fails, a response takes more than 20 s or is wrong, or [`super::Stopped`].
pub fn tcp_latency(path: &Path<'_>, bulk_flows: usize, run: &mut Run<'_>) -> Result<Latency> {
    let congestion_control = run.congestion_control;
    let connection = Connection::open(path, congestion_control)?;
    for end in [&connection.client, &connection.server] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    }
    beside_bulk(std::slice::from_ref(path), bulk_flows, congestion_control, |_| {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let serving = scope.spawn(|| unless_over(&over, respond(&connection.server)));
            let latency = measure(&connection.client, run);
            over.store(true, Ordering::Relaxed);
            connection.shut_down();
            join(serving, "responding").and(latency)
        })
        .with_context(|| format!("TCP requests from {} to {}", path.from.name(), path.address))
    })
}

fn respond(mut stream: &TcpStream) -> Result<()> {
    let mut buffer = [0; REQUEST_LEN];
    loop {
        stream.read_exact(&mut buffer)?;
        stream.write_all(&response_to(&buffer))?;
    }
}

/// The warm-up, then the window.
fn measure(stream: &TcpStream, run: &mut Run<'_>) -> Result<Latency> {
    let mut requests = Requests { stream, pattern: Pattern::new(REQUEST_LEN), number: 0 };
    let mut times = new_histogram();
    let started = Instant::now();
    while started.elapsed() < run.window.warm_up {
        run.stop.check()?;
        requests.ask()?;
    }
    run.watch.open()?;
    let (cpu, started) = (CpuTime::now()?, Instant::now());
    while started.elapsed() < run.window.length || times.is_empty() {
        run.stop.check()?;
        record(&mut times, requests.ask()?);
    }
    let (elapsed, cpu) = (started.elapsed(), CpuTime::now()?.since(cpu));
    run.watch.close()?;
    Ok(Latency { times, elapsed, cpu })
}

pub(super) fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, RTT_NS_MAX, RTT_DIGITS).expect("the bounds are constants")
}

pub(super) fn record(times: &mut Histogram<u64>, rtt: Duration) {
    times.saturating_record(u64::try_from(rtt.as_nanos()).unwrap_or(RTT_NS_MAX));
}

struct Requests<'a> {
    stream: &'a TcpStream,
    pattern: Pattern,
    number: u64,
}

impl Requests<'_> {
    /// One request and its response.
    fn ask(&mut self) -> Result<Duration> {
        let number = self.number;
        self.number += 1;
        let position = number * REQUEST_LEN as u64;
        let request = self.pattern.at(position, REQUEST_LEN);
        let request: [u8; REQUEST_LEN] = request.try_into().expect("a pattern gives what it is asked for");
        let mut buffer = [0; REQUEST_LEN];
        let sent = Instant::now();
        self.stream.write_all(&request)?;
        self.stream.read_exact(&mut buffer).with_context(|| format!("waiting for response {number}"))?;
        let rtt = sent.elapsed();
        ensure!(buffer == response_to(&request), "WRONG PAYLOAD: response {number} does not fit its request");
        Ok(rtt)
    }
}

/// The response to a request: every bit inverted, so that a reflected request is not taken for it.
pub(super) fn response_to(request: &[u8; REQUEST_LEN]) -> [u8; REQUEST_LEN] {
    request.map(|byte| !byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reflected_request_is_no_response() {
        let request = [0x5a; REQUEST_LEN];
        assert_ne!(response_to(&request), request);
        assert_eq!(response_to(&response_to(&request)), request);
    }
}
