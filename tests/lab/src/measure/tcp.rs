//! TCP throughput and TCP request/response latency.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;

use super::pattern::Pattern;
use super::{Path, Stop, Throughput, Window, join};

/// Bytes of one read or write, as iperf3 does by default.
const CHUNK_LEN: usize = 128 * 1024;
/// One read in this many is compared in full, the others at their edges.
const FULL_CHECK_PERIOD: u64 = 16;
/// Bytes of a latency request, and of its response.
pub const REQUEST_LEN: usize = 64;
/// How long a connection may take to be made, and a response to come.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest round-trip time that the histogram tells apart, in nanoseconds.
const RTT_NS_MAX: u64 = 10_000_000_000;
/// Significant decimal digits of the histogram.
const RTT_DIGITS: u8 = 3;

/// One TCP connection, both ends of it.
#[derive(Debug)]
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(path: &Path<'_>) -> Result<Self> {
        let listener = path
            .to
            .run(|| TcpListener::bind((path.address, 0)))
            .with_context(|| format!("listening on {} of {}", path.address, path.to.name()))?;
        let address = listener.local_addr()?;
        let client = path
            .from
            .run(|| TcpStream::connect_timeout(&address, ANSWER_TIMEOUT))
            .with_context(|| format!("connecting from {} to {address}", path.from.name()))?;
        // The connection is in the queue of the listener by now.
        let (server, _) = listener.accept()?;
        Ok(Self { client, server })
    }

    /// Wakes whoever reads or writes at either end.
    fn shut_down(&self) {
        for end in [&self.client, &self.server] {
            // Fails if the other end was faster, which is as good.
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

/// Sends through `flows` connections at once, as fast as they take it.
///
/// Every read is compared with what was sent at its position: one in sixteen in full, the others at their first and last
/// 64 bytes.
///
/// # Errors
/// If a connection fails, a byte is wrong, nothing arrives, or [`super::Stopped`].
pub fn tcp_throughput(path: &Path<'_>, window: Window, flows: usize, stop: &Stop) -> Result<Throughput> {
    let connections = (0..flows).map(|_| Connection::open(path)).collect::<Result<Vec<_>>>()?;
    let pattern = Pattern::new(CHUNK_LEN);
    let (received, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let observed = thread::scope(|scope| {
        let threads: Vec<_> = connections
            .iter()
            .map(|connection| {
                let sending = scope.spawn(|| unless_over(&over, send(&connection.client, &pattern, &over)));
                let receiving = scope.spawn(|| {
                    let outcome = receive(&connection.server, &pattern, &received, &over);
                    if outcome.is_err() {
                        connection.shut_down();
                    }
                    outcome
                });
                (sending, receiving)
            })
            .collect();
        let observed = window.observe(stop, || [received.load(Ordering::Relaxed)]);
        over.store(true, Ordering::Relaxed);
        connections.iter().for_each(Connection::shut_down);
        let mut outcome = Ok(());
        for (sending, receiving) in threads {
            // What the receiver found wrong is the cause of what the sender says then.
            outcome = outcome.and(join(receiving, "receiving")).and(join(sending, "sending"));
        }
        outcome.and(observed)
    })
    .with_context(|| format!("{flows} TCP flows from {} to {}", path.from.name(), path.address))?;
    observed.throughput(observed.counts[0])
}

/// A socket that fails because the measurement is over has not failed.
fn unless_over(over: &AtomicBool, outcome: Result<()>) -> Result<()> {
    if over.load(Ordering::Relaxed) { Ok(()) } else { outcome }
}

fn send(mut stream: &TcpStream, pattern: &Pattern, over: &AtomicBool) -> Result<()> {
    let mut position = 0;
    while !over.load(Ordering::Relaxed) {
        position += stream.write(pattern.at(position, CHUNK_LEN))? as u64;
    }
    Ok(())
}

fn receive(mut stream: &TcpStream, pattern: &Pattern, received: &AtomicU64, over: &AtomicBool) -> Result<()> {
    let mut buffer = vec![0; CHUNK_LEN];
    let (mut position, mut reads) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        let len = match stream.read(&mut buffer) {
            Ok(0) | Err(_) if over.load(Ordering::Relaxed) => break,
            Ok(0) => bail!("the connection ended after {position} bytes"),
            Ok(len) => len,
            Err(error) => return Err(error).with_context(|| format!("after {position} bytes")),
        };
        let bytes = &buffer[..len];
        let intact = match reads % FULL_CHECK_PERIOD {
            0 => pattern.matches(position, bytes),
            _ => pattern.matches_at_edges(position, bytes),
        };
        ensure!(intact, "WRONG PAYLOAD: bytes {position} to {} are not those that were sent", position + len as u64);
        position += len as u64;
        reads += 1;
        received.fetch_add(len as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Sends a request of 64 bytes, waits for a response of 64 bytes that depends on it, and so on, on one connection without
/// Nagle's delay. Returns the round-trip times of the window in nanoseconds.
///
/// # Errors
/// If the connection fails, a response takes more than 5 s or is wrong, or [`super::Stopped`].
pub fn tcp_latency(path: &Path<'_>, window: Window, stop: &Stop) -> Result<Histogram<u64>> {
    let connection = Connection::open(path)?;
    for end in [&connection.client, &connection.server] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let serving = scope.spawn(|| unless_over(&over, respond(&connection.server)));
        let times = request(&connection.client, window, stop);
        over.store(true, Ordering::Relaxed);
        connection.shut_down();
        join(serving, "responding").and(times)
    })
    .with_context(|| format!("TCP requests from {} to {}", path.from.name(), path.address))
}

fn respond(mut stream: &TcpStream) -> Result<()> {
    let mut buffer = [0; REQUEST_LEN];
    loop {
        stream.read_exact(&mut buffer)?;
        stream.write_all(&response_to(&buffer))?;
    }
}

fn request(mut stream: &TcpStream, window: Window, stop: &Stop) -> Result<Histogram<u64>> {
    let pattern = Pattern::new(REQUEST_LEN);
    let mut times = Histogram::new_with_bounds(1, RTT_NS_MAX, RTT_DIGITS).expect("the bounds are constants");
    let mut buffer = [0; REQUEST_LEN];
    let counting = Instant::now() + window.warm_up;
    let end = counting + window.length;
    for number in 0.. {
        stop.check()?;
        let request: [u8; REQUEST_LEN] = pattern
            .at(number * REQUEST_LEN as u64, REQUEST_LEN)
            .try_into()
            .expect("a pattern gives what it is asked for");
        let sent = Instant::now();
        if sent >= end {
            break;
        }
        stream.write_all(&request)?;
        stream.read_exact(&mut buffer).with_context(|| format!("waiting for response {number}"))?;
        let rtt = sent.elapsed();
        ensure!(buffer == response_to(&request), "WRONG PAYLOAD: response {number} does not fit its request");
        if sent >= counting {
            times.saturating_record(u64::try_from(rtt.as_nanos()).unwrap_or(RTT_NS_MAX));
        }
    }
    ensure!(!times.is_empty(), "no response within {:?}", window.length);
    Ok(times)
}

/// The response to a request: every bit inverted, so that a reflected request is not taken for it.
fn response_to(request: &[u8; REQUEST_LEN]) -> [u8; REQUEST_LEN] {
    request.map(|byte| !byte)
}
