//! TCP transfers between nodes, with every byte checked on arrival.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use sha2::{Digest, Sha256};

use crate::{Node, TIMEOUT, eventually};

const CHUNK_LEN: usize = 64 * 1024;

/// A finished transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transferred {
    /// Payload bytes in each direction.
    pub bytes: u64,
    /// From connecting to the last byte checked.
    pub elapsed: Duration,
}

/// Connects from one node to `address` of another and sends `bytes` bytes in both directions at once. Each direction
/// carries another pseudo-random stream; the receiver compares its hash. No segment is under way any more at the end.
///
/// # Errors
/// If there is no connection, it stands still for [`TIMEOUT`], ends early, or a byte differs.
pub fn transfer(from: &Node, to: &Node, address: IpAddr, bytes: u64) -> Result<Transferred> {
    let listener = to.run(|| TcpListener::bind((address, 0))).with_context(|| format!("listening on {address}"))?;
    let address = listener.local_addr()?;
    let started = Instant::now();
    let client = from
        .run(|| TcpStream::connect_timeout(&address, TIMEOUT))
        .with_context(|| format!("connecting from {} to {address}", from.name()))?;
    // The connection is in the queue of the listener by now.
    let (server, _) = listener.accept()?;
    thread::scope(|scope| {
        let serving = scope.spawn(|| exchange(&server, bytes, Seed(2), Seed(1)));
        let outcome = exchange(&client, bytes, Seed(1), Seed(2)).with_context(|| format!("at {}", from.name()));
        let served = serving.join().map_err(|_| anyhow!("the serving thread panicked"))?;
        outcome.and(served.with_context(|| format!("at {}", to.name())))
    })
    .with_context(|| format!("moving {bytes} bytes between {} and {address}", from.name()))?;
    let elapsed = started.elapsed();
    drop((client, server, listener));
    [from, to].into_iter().try_for_each(|node| closed(node, address.port()))?;
    Ok(Transferred { bytes, elapsed })
}

/// Waits until the kernel of one end is done with a connection: it has the FIN of the other, and the acknowledgement of its
/// own. When both ends are, no segment is under way any more, and counters of packets stand still.
fn closed(node: &Node, port: u16) -> Result<()> {
    // include/net/tcp_states.h, Linux 6.18.
    const TIME_WAIT: &str = "06";
    let port = format!(":{port:04X}");
    eventually(TIMEOUT, || {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
        let table = node.run(|| Ok::<_, std::io::Error>(read("tcp")? + &read("tcp6")?))?;
        // Of each socket: number, local and remote address, state.
        let mut sockets = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let open = sockets.find(|socket| {
            matches!(socket[..], [_, local, remote, state, ..]
                if (local.ends_with(&port) || remote.ends_with(&port)) && state != TIME_WAIT)
        });
        ensure!(open.is_none(), "a connection of {} is not closed: {open:?}", node.name());
        Ok(())
    })
}

/// A listener that echoes what each connection sends, for tests that open and close connections themselves. It ends with
/// the test; connections end with their peers.
///
/// # Errors
/// If the address cannot be bound.
pub fn echo_server(node: &Node, address: IpAddr) -> Result<SocketAddr> {
    let listener = node.run(|| TcpListener::bind((address, 0))).with_context(|| format!("listening on {address}"))?;
    let address = listener.local_addr()?;
    thread::Builder::new().name(format!("tcp echo {address}")).spawn(move || {
        for connection in listener.incoming().map_while(|connection| connection.ok()) {
            thread::spawn(move || {
                // A failing connection is the client's to report.
                let _ = std::io::copy(&mut &connection, &mut &connection);
            });
        }
    })?;
    Ok(address)
}

fn exchange(stream: &TcpStream, bytes: u64, sent: Seed, expected: Seed) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(stream, bytes, sent));
        let received = receive(stream, bytes, expected);
        let outcome = sending.join().map_err(|_| anyhow!("the sending thread panicked"))?;
        outcome.and(received)
    })
}

fn send(mut stream: &TcpStream, bytes: u64, seed: Seed) -> Result<()> {
    for chunk in seed.chunks(bytes) {
        stream.write_all(&chunk).context("sending")?;
    }
    Ok(stream.shutdown(Shutdown::Write)?)
}

fn receive(mut stream: &TcpStream, bytes: u64, seed: Seed) -> Result<()> {
    let (mut found, mut count) = (Sha256::new(), 0);
    let mut buffer = vec![0; CHUNK_LEN];
    loop {
        let len = stream.read(&mut buffer).with_context(|| format!("receiving after {count} of {bytes} bytes"))?;
        if len == 0 {
            break;
        }
        found.update(&buffer[..len]);
        count += len as u64;
    }
    if count != bytes {
        bail!("the connection ended after {count} of {bytes} bytes");
    }
    let mut expected = Sha256::new();
    seed.chunks(bytes).for_each(|chunk| expected.update(&chunk));
    if found.finalize() != expected.finalize() {
        bail!("the {bytes} bytes that arrived are not those that were sent");
    }
    Ok(())
}

/// The start of a pseudo-random stream.
#[derive(Debug, Clone, Copy)]
struct Seed(u64);

impl Seed {
    fn chunks(self, bytes: u64) -> impl Iterator<Item = Vec<u8>> {
        let mut state = self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut left = bytes;
        std::iter::from_fn(move || {
            let len = left.min(CHUNK_LEN as u64) as usize;
            left -= len as u64;
            let mut chunk = Vec::with_capacity(len + 8);
            while chunk.len() < len {
                // xorshift64 (Marsaglia 2003).
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                chunk.extend_from_slice(&state.to_le_bytes());
            }
            chunk.truncate(len);
            (len > 0).then_some(chunk)
        })
    }
}
