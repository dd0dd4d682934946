//! TCP connections per second.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::net::sockopt::{Timeout, set_socket_linger, set_socket_timeout};

use super::socket::{check, connected, listening};
use super::tcp::ANSWER_TIMEOUT;
use super::{Path, Run, join, unless_over};

/// How long a server waits for what may never come: a connection, since the measurement may be over, and the end of one.
const LOOK: Duration = Duration::from_millis(50);
/// What the client sends, and the server inverts and sends back.
const QUESTION: u8 = 0xa5;

/// So many resets, and one more in a thousand connections, are the kernel's (VXLAN had one in ten thousand); more are a defect.
const RESETS_MAX: u64 = 3;

/// What came of [`tcp_connects`].
#[derive(Debug, Clone, Copy)]
pub struct Connects {
    /// Connections made, used and closed within the window.
    pub count: u64,
    /// Connections that the server's kernel reset before it answered.
    pub resets: u64,
    /// The true length of the window.
    pub elapsed: Duration,
    /// CPU time of the whole machine within it.
    pub cpu: Duration,
}

impl Connects {
    /// Connections per second.
    pub fn per_second(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64()
    }
}

/// Connects, sends a byte, waits for a byte that depends on it, and closes; `clients` of them at once, each one connection
/// after the other. Clients close with a reset, so that they do not run out of ports (`TIME_WAIT`, RFC 9293 section 3.6).
///
/// Linux 6.18 resets a new connection now and then, whatever carries it: right after it has acknowledged the question, and then
/// the answer follows. Probably it takes the request out of its table before the connection is in it (`inet_ehash_insert`), and
/// a segment that another core looks up in between finds neither. Those are counted by themselves.
///
/// # Errors
/// If a connection fails, an answer is wrong, none is made, or [`super::Stopped`].
pub fn tcp_connects(path: &Path<'_>, clients: usize, run: &mut Run<'_>) -> Result<Connects> {
    let congestion_control = run.congestion_control;
    let listener = path
        .to
        .run(|| listening(path.address, congestion_control))
        .with_context(|| format!("listening on {} of {}", path.address, path.to.name()))?;
    set_socket_timeout(&listener, Timeout::Recv, Some(LOOK))?;
    let address = listener.local_addr()?;
    let (count, resets) = (AtomicU64::new(0), AtomicU64::new(0));
    let (over, unserved) = (AtomicBool::new(false), AtomicBool::new(false));
    let observed = thread::scope(|scope| {
        let serving: Vec<_> =
            (0..clients).map(|_| scope.spawn(|| serve(&listener, congestion_control, &unserved))).collect();
        let connecting: Vec<_> = (0..clients)
            .map(|_| {
                scope.spawn(|| {
                    path.from.enter();
                    unless_over(&over, connect(address, congestion_control, [&count, &resets], &over))
                })
            })
            .collect();
        let observed = run.observe(|| [count.load(Ordering::Relaxed), resets.load(Ordering::Relaxed)]);
        over.store(true, Ordering::Relaxed);
        let clients = connecting.into_iter().try_for_each(|thread| join(thread, "connecting"));
        // A client whose server leaves first would wait for an answer that never comes.
        unserved.store(true, Ordering::Relaxed);
        let servers = serving.into_iter().try_for_each(|thread| join(thread, "serving"));
        // A server that failed is why a client did.
        servers.and(clients).and(observed)
    })
    .with_context(|| format!("TCP connections from {} to {address}", path.from.name()))?;
    let [count, resets] = observed.counts;
    ensure!(resets <= RESETS_MAX + count / 1000, "{resets} of {} connections were reset", count + resets);
    ensure!(count > 0, "no connection was made within {:?}", observed.elapsed);
    Ok(Connects { count, resets, elapsed: observed.elapsed, cpu: observed.cpu })
}

fn connect(
    address: SocketAddr,
    congestion_control: Option<&str>,
    [count, resets]: [&AtomicU64; 2],
    over: &AtomicBool,
) -> Result<()> {
    while !over.load(Ordering::Relaxed) {
        let mut stream = connected(address, congestion_control)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        set_socket_linger(&stream, Some(Duration::ZERO))?;
        let mut answer = [0];
        match stream.write_all(&[QUESTION]).and_then(|()| stream.read_exact(&mut answer)) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                resets.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            result => result.context("waiting for the answer")?,
        }
        ensure!(answer == [!QUESTION], "WRONG PAYLOAD: the answer to {QUESTION:#x} is {:#x}", answer[0]);
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn serve(listener: &TcpListener, congestion_control: Option<&str>, over: &AtomicBool) -> Result<()> {
    while !over.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                check(&stream, congestion_control)?;
                answer(stream)?;
            }
            // A client that is gone before it is accepted was ended by the end of the measurement.
            Err(error) if is_ended(&error) => continue,
            Err(error) => bail!(error),
        }
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut question = [0];
    let outcome = stream.read_exact(&mut question).and_then(|()| stream.write_all(&[!question[0]]));
    // The client hangs up when it has its answer; that it is gone by the time it is looked for is as good. A reset may be
    // lost, so there is no use in waiting for it.
    stream.set_read_timeout(Some(LOOK))?;
    let ended = outcome.and_then(|()| stream.read(&mut question));
    match ended {
        Ok(_) => Ok(()),
        Err(error) if is_ended(&error) || error.kind() == ErrorKind::UnexpectedEof => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn is_ended(error: &io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, Interrupted, WouldBlock};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | Interrupted | WouldBlock)
}
