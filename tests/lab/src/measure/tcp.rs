//! TCP throughput.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::pattern::Pattern;
use super::socket::{check, connected, listening};
use super::{Path, Run, Throughput, join, unless_over};
use crate::TIMEOUT;

/// Bytes of one read or write, as iperf3 does by default.
const CHUNK_LEN: usize = 128 * 1024;
/// One read in this many is compared in full, the others at their edges.
const FULL_CHECK_PERIOD: u64 = 16;
/// How long a connection may take to be made, and a response to come.
pub(super) const ANSWER_TIMEOUT: Duration = TIMEOUT;

/// One TCP connection, both ends of it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
}

impl Connection {
    pub(super) fn open(path: &Path<'_>, congestion_control: Option<&str>) -> Result<Self> {
        let listener = path
            .to
            .run(|| listening(path.address, congestion_control))
            .with_context(|| format!("listening on {} of {}", path.address, path.to.name()))?;
        let address = listener.local_addr()?;
        let client = path
            .from
            .run(|| connected(address, congestion_control))
            .with_context(|| format!("connecting from {} to {address}", path.from.name()))?;
        // The connection is in the queue of the listener by now.
        let (server, _) = listener.accept()?;
        check(&server, congestion_control)?;
        Ok(Self { client, server })
    }

    /// Wakes whoever reads or writes at either end.
    pub(super) fn shut_down(&self) {
        for end in [&self.client, &self.server] {
            // Fails if the other end was faster, which is as good.
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

/// Sends through `flows` connections at once on each of the paths, as fast as they take it. Two paths, there and back,
/// make traffic in both directions; bytes are those of all paths together.
///
/// Every read is compared with what was sent at its position: one in sixteen in full, the others at their first and last
/// 64 bytes.
///
/// # Errors
/// If a connection fails, a byte is wrong, nothing arrives, or [`super::Stopped`].
pub fn tcp_throughput(paths: &[Path<'_>], flows: usize, run: &mut Run<'_>) -> Result<Throughput> {
    let congestion_control = run.congestion_control;
    let observed =
        beside_bulk(paths, flows, congestion_control, |received| run.observe(|| [received.load(Ordering::Relaxed)]))?;
    observed.throughput(1)
}

/// Does `work` while bulk TCP flows as in [`tcp_throughput`]; `work` is shown the number of bytes that have arrived.
pub(super) fn beside_bulk<T>(
    paths: &[Path<'_>],
    flows: usize,
    congestion_control: Option<&str>,
    work: impl FnOnce(&AtomicU64) -> Result<T>,
) -> Result<T> {
    let paths = paths.iter().flat_map(|path| std::iter::repeat_n(path, flows));
    let connections =
        paths.map(|path| Ok((path, Connection::open(path, congestion_control)?))).collect::<Result<Vec<_>>>()?;
    let pattern = Pattern::new(CHUNK_LEN);
    let (received, over) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let threads: Vec<_> = connections
            .iter()
            .map(|(path, connection)| {
                let sending = scope.spawn(|| unless_over(&over, send(&connection.client, &pattern, &over)));
                let receiving = scope.spawn(|| {
                    let outcome = receive(&connection.server, &pattern, &received, &over);
                    if outcome.is_err() {
                        connection.shut_down();
                    }
                    outcome
                });
                (path, sending, receiving)
            })
            .collect();
        let done = work(&received);
        over.store(true, Ordering::Relaxed);
        connections.iter().for_each(|(_, connection)| connection.shut_down());
        let mut outcome = Ok(());
        for (path, sending, receiving) in threads {
            // What the receiver found wrong is the cause of what the sender says then.
            let both = join(receiving, "receiving").and(join(sending, "sending"));
            let both = both.with_context(|| format!("bulk TCP from {} to {}", path.from.name(), path.address));
            outcome = outcome.and(both);
        }
        outcome.and(done)
    })
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn receive_what(bytes: &[u8]) -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        client.write_all(bytes)?;
        drop(client);
        receive(&server, &Pattern::new(CHUNK_LEN), &AtomicU64::new(0), &AtomicBool::new(false))
    }

    #[test]
    fn a_wrong_byte_is_an_error_and_so_is_an_early_end() {
        let mut bytes = Pattern::new(CHUNK_LEN).at(0, 4096).to_vec();
        let end = receive_what(&bytes).unwrap_err().to_string();
        assert_eq!(end, "the connection ended after 4096 bytes");
        bytes[2000] ^= 0x10;
        assert!(receive_what(&bytes).unwrap_err().to_string().contains("WRONG PAYLOAD"));
    }
}
