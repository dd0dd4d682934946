//! Request/response latency, over TCP and UDP.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

use super::pattern::Pattern;
use super::tcp::{ANSWER_TIMEOUT, Connection, beside_bulk};
use super::udp::LOOK;
use super::{CpuTime, Path, Run, join, unless_over};
use crate::udp::connect;

/// Bytes of a request, and of its response.
pub const REQUEST_LEN: usize = 64;
/// Where datagrams are answered: a tunnel may know questions to a name server by it.
const DNS_PORT: u16 = 53;
/// How long a datagram's response is waited for before the next request.
const LOST_AFTER: Duration = Duration::from_secs(1);
/// The longest round-trip time that the histogram tells apart, in nanoseconds.
const RTT_NS_MAX: u64 = 10_000_000_000;
/// Significant decimal digits of the histogram.
const RTT_DIGITS: u8 = 3;

/// What came of [`tcp_latency`], [`udp_latency`] or [`super::tcp_flows`].
#[derive(Debug, Clone)]
pub struct Latency {
    /// Round-trip times within the window, in nanoseconds; of a request without response, how long it was waited for.
    pub times: Histogram<u64>,
    /// Requests without response.
    pub lost: u64,
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
        (self.times.len() - self.lost) as f64 / self.elapsed.as_secs_f64()
    }

    /// The part of the requests that had no response, from 0 to 1.
    pub fn loss(&self) -> f64 {
        self.lost as f64 / self.times.len() as f64
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
            let mut stream = &connection.client;
            let latency = measure(run, |request| {
                let mut response = [0; REQUEST_LEN];
                stream.write_all(request)?;
                stream.read_exact(&mut response)?;
                Ok(Some(response))
            });
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

/// The same with datagrams, to port 53. A request whose response does not come within a second is lost, and the next one is sent.
///
/// # Errors
/// If a socket fails, a response is wrong, or [`super::Stopped`].
pub fn udp_latency(path: &Path<'_>, bulk_flows: usize, run: &mut Run<'_>) -> Result<Latency> {
    let server = path.to.run(|| UdpSocket::bind((path.address, DNS_PORT)))?;
    let address = server.local_addr()?;
    let client = path.from.run(|| connect(address))?;
    client.set_read_timeout(Some(LOST_AFTER))?;
    server.set_read_timeout(Some(LOOK))?;
    beside_bulk(std::slice::from_ref(path), bulk_flows, run.congestion_control, |_| {
        let over = AtomicBool::new(false);
        let mut given_up = Vec::new();
        thread::scope(|scope| {
            let serving = scope.spawn(|| respond_to_datagrams(&server, &over));
            let latency = measure(run, |request| {
                let response = ask(&client, request, &given_up)?;
                if response.is_none() {
                    given_up.push(response_to(request));
                }
                Ok(response)
            });
            over.store(true, Ordering::Relaxed);
            join(serving, "responding").and(latency)
        })
        .with_context(|| format!("UDP requests from {} to {}", path.from.name(), path.address))
    })
}

/// Sends a request; the response, unless it is lost. Responses that come after they were `given_up` are none.
fn ask(
    client: &UdpSocket,
    request: &[u8; REQUEST_LEN],
    given_up: &[[u8; REQUEST_LEN]],
) -> Result<Option<[u8; REQUEST_LEN]>> {
    // One byte more than is due, so that a longer datagram shows.
    let mut buffer = [0; REQUEST_LEN + 1];
    client.send(request)?;
    loop {
        match client.recv(&mut buffer) {
            Ok(len) => {
                let response = buffer[..len].try_into().ok();
                let response = response.with_context(|| format!("WRONG PAYLOAD: a response of {len} bytes"))?;
                if !given_up.contains(&response) {
                    return Ok(Some(response));
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

fn respond_to_datagrams(server: &UdpSocket, over: &AtomicBool) -> Result<()> {
    let mut request = [0; REQUEST_LEN];
    while !over.load(Ordering::Relaxed) {
        match server.recv_from(&mut request) {
            Ok((_, client)) => {
                server.send_to(&response_to(&request), client)?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The warm-up, then the window: one request at a time, by `exchange`, which gives its response unless that was lost.
fn measure(
    run: &mut Run<'_>,
    mut exchange: impl FnMut(&[u8; REQUEST_LEN]) -> Result<Option<[u8; REQUEST_LEN]>>,
) -> Result<Latency> {
    let pattern = Pattern::new(REQUEST_LEN);
    let mut number: u64 = 0;
    let mut next = || -> Result<(Duration, bool)> {
        let request = pattern.at(number * REQUEST_LEN as u64, REQUEST_LEN);
        let request: [u8; REQUEST_LEN] = request.try_into().expect("a pattern gives what it is asked for");
        let sent = Instant::now();
        let response = exchange(&request).with_context(|| format!("waiting for response {number}"))?;
        let rtt = sent.elapsed();
        let fits = response.is_none_or(|response| response == response_to(&request));
        ensure!(fits, "WRONG PAYLOAD: response {number} does not fit its request");
        number += 1;
        Ok((rtt, response.is_some()))
    };
    let mut times = new_histogram();
    let mut lost = 0;
    let started = Instant::now();
    while started.elapsed() < run.window.warm_up {
        run.stop.check()?;
        next()?;
    }
    run.watch.open()?;
    let (cpu, started) = (CpuTime::now()?, Instant::now());
    while started.elapsed() < run.window.length || times.is_empty() {
        run.stop.check()?;
        let (rtt, is_answered) = next()?;
        record(&mut times, rtt);
        lost += u64::from(!is_answered);
    }
    let (elapsed, cpu) = (started.elapsed(), CpuTime::now()?.since(cpu));
    run.watch.close()?;
    Ok(Latency { times, lost, elapsed, cpu })
}

pub(super) fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, RTT_NS_MAX, RTT_DIGITS).expect("the bounds are constants")
}

pub(super) fn record(times: &mut Histogram<u64>, rtt: Duration) {
    times.saturating_record(u64::try_from(rtt.as_nanos()).unwrap_or(RTT_NS_MAX));
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
