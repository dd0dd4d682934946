//! Many small TCP flows at once.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::latency::{Latency, REQUEST_LEN, new_histogram, record, response_to};
use super::pattern::Pattern;
use super::tcp::{ANSWER_TIMEOUT, Connection};
use super::{CpuTime, Path, Run, join, unless_over};

/// How long to wait for any flow before looking whether the measurement is over.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Keeps one request of 64 bytes under way on each of `flows` connections. Returns the round-trip times of all of them,
/// which include the wait for the other flows' turns.
///
/// # Errors
/// If a connection fails, a response is wrong, none comes for 20 s, or [`super::Stopped`].
pub fn tcp_flows(path: &Path<'_>, flows: usize, run: &mut Run<'_>) -> Result<Latency> {
    let open = |_| Connection::open(path, run.congestion_control);
    let connections = (0..flows).map(open).collect::<Result<Vec<_>>>()?;
    for end in connections.iter().flat_map(|connection| [&connection.client, &connection.server]) {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let serving = scope.spawn(|| {
            let servers: Vec<_> = connections.iter().map(|connection| &connection.server).collect();
            unless_over(&over, serve(&servers, &over))
        });
        let clients = connections.iter().map(|connection| &connection.client);
        let latency = Clients::new(clients).measure(run);
        over.store(true, Ordering::Relaxed);
        connections.iter().for_each(Connection::shut_down);
        join(serving, "responding").and(latency)
    })
    .with_context(|| format!("{flows} TCP flows from {} to {}", path.from.name(), path.address))
}

/// Waits until some of the streams have something to read, and says which.
fn readable(streams: &[&TcpStream]) -> Result<Vec<usize>> {
    let mut waits: Vec<_> =
        streams.iter().map(|stream| PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)).collect();
    poll(&mut waits, Some(&LOOK))?;
    let ready = waits.iter().enumerate().filter(|(_, wait)| !wait.revents().is_empty());
    Ok(ready.map(|(index, _)| index).collect())
}

fn serve(streams: &[&TcpStream], over: &AtomicBool) -> Result<()> {
    let mut buffer = [0; REQUEST_LEN];
    while !over.load(Ordering::Relaxed) {
        for index in readable(streams)? {
            let mut stream = streams[index];
            stream.read_exact(&mut buffer)?;
            stream.write_all(&response_to(&buffer))?;
        }
    }
    Ok(())
}

struct Clients<'a> {
    streams: Vec<&'a TcpStream>,
    /// What each is waiting for an answer to, and since when.
    waiting: Vec<([u8; REQUEST_LEN], Instant)>,
    pattern: Pattern,
    number: u64,
}

impl<'a> Clients<'a> {
    fn new(streams: impl Iterator<Item = &'a TcpStream>) -> Self {
        Self { streams: streams.collect(), waiting: Vec::new(), pattern: Pattern::new(REQUEST_LEN), number: 0 }
    }

    /// The warm-up, then the window.
    fn measure(mut self, run: &mut Run<'_>) -> Result<Latency> {
        for index in 0..self.streams.len() {
            let request = self.ask(index)?;
            self.waiting.push(request);
        }
        self.exchange(run.window.warm_up, run, |_| ())?;
        run.watch.open()?;
        let mut times = new_histogram();
        let (cpu, started) = (CpuTime::now()?, Instant::now());
        self.exchange(run.window.length, run, |rtt| record(&mut times, rtt))?;
        let (elapsed, cpu) = (started.elapsed(), CpuTime::now()?.since(cpu));
        run.watch.close()?;
        Ok(Latency { times, lost: 0, elapsed, cpu })
    }

    fn exchange(&mut self, length: Duration, run: &Run<'_>, mut answered: impl FnMut(Duration)) -> Result<()> {
        let started = Instant::now();
        let (mut last, mut is_answered) = (started, false);
        while started.elapsed() < length || !is_answered {
            run.stop.check()?;
            let ready = readable(&self.streams)?;
            if !ready.is_empty() {
                (last, is_answered) = (Instant::now(), true);
            }
            ensure!(last.elapsed() < ANSWER_TIMEOUT, "no response on any flow for {ANSWER_TIMEOUT:?}");
            for index in ready {
                let mut response = [0; REQUEST_LEN];
                self.streams[index].read_exact(&mut response)?;
                let (request, sent) = self.waiting[index];
                answered(sent.elapsed());
                ensure!(
                    response == response_to(&request),
                    "WRONG PAYLOAD: a response on flow {index} does not fit its request"
                );
                self.waiting[index] = self.ask(index)?;
            }
        }
        Ok(())
    }

    fn ask(&mut self, index: usize) -> Result<([u8; REQUEST_LEN], Instant)> {
        let request = self.pattern.at(self.number * REQUEST_LEN as u64, REQUEST_LEN);
        let request: [u8; REQUEST_LEN] = request.try_into().expect("a pattern gives what it is asked for");
        self.number += 1;
        let sent = Instant::now();
        self.streams[index].write_all(&request)?;
        Ok((request, sent))
    }
}
