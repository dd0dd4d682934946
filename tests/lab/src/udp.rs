//! UDP between nodes: numbered datagrams, with every byte checked on arrival.
//!
//! ```text
//!   0        8                              payload_len
//!   | number | bytes derived from the number |
//! ```

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use crate::{Node, TIMEOUT, eventually, sys};

/// Bytes of a datagram's number, the shortest payload.
pub const NUMBER_LEN: usize = 8;
/// The longest UDP payload over IPv4 (RFC 768, RFC 791): 65535 - 20 - 8.
pub const PAYLOAD_LEN_MAX: usize = 65_507;
/// Segments that one send may carry (`UDP_MAX_SEGMENTS`, include/linux/udp.h, Linux 6.18).
const SEGMENT_COUNT_MAX: usize = 128;
/// Bytes that may wait for the receiver, so that it is not the test that loses datagrams.
const RECEIVE_BUFFER_LEN: usize = 64 << 20;
/// What has not arrived when nothing has for so long is lost. Spent only where something is.
const TAIL: Duration = Duration::from_secs(3);
/// How often a receiver without datagrams looks whether there will be more.
const LOOK: Duration = Duration::from_millis(20);
/// How often a sender without room looks whether there is some.
const PACE: Duration = Duration::from_micros(200);

/// A stream of datagrams.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    /// Address of the receiver, on the node that receives.
    pub to: IpAddr,
    /// Datagrams to send; with [`during`], at least so many.
    pub count: u64,
    /// Bytes of each, from 8 to 65,507; more than the MTU makes IP fragments.
    pub payload_len: usize,
    /// Pause between sends; zero: as fast as the socket takes them.
    pub interval: Duration,
    /// Datagrams per send: more than 1 makes super-packets with `UDP_SEGMENT` (Linux 4.18), 128 at most and 65,507 bytes.
    pub segments: usize,
    /// Datagrams that may be under way at once; those that come next wait until some have arrived or are lost. However long a
    /// busy machine keeps a thread waiting that empties a queue, that queue does not overflow.
    pub window: u64,
}

impl Stream {
    /// `count` datagrams of `payload_len` bytes, one per send, 50 us apart, 400 under way: a TUN's own queue holds 500
    /// packets (drivers/net/tun.c `TUN_READQ_SIZE`, Linux 6.18).
    pub fn new(to: IpAddr, count: u64, payload_len: usize) -> Self {
        Self { to, count, payload_len, interval: Duration::from_micros(50), segments: 1, window: 400 }
    }
}

/// What arrived of a [`Stream`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Datagrams sent.
    pub sent: u64,
    /// Different datagrams that arrived intact.
    pub received: u64,
    /// Datagrams that did not arrive intact.
    pub lost: u64,
    /// Datagrams that arrived after a later one.
    pub reordered: u64,
    /// Datagrams that arrived again.
    pub duplicated: u64,
    /// Datagrams with a wrong length or byte.
    pub corrupt: u64,
}

impl Arrived {
    /// Success if every datagram arrived once, intact and in order.
    ///
    /// # Errors
    /// If not, with the counts.
    pub fn perfect(self) -> Result<Self> {
        let Self { sent, received, reordered, duplicated, corrupt, .. } = self;
        ensure!(received == sent && reordered + duplicated + corrupt == 0, "not every datagram arrived well: {self:?}");
        Ok(self)
    }
}

/// Sends a stream from one node to another and counts what arrives.
///
/// # Errors
/// If the stream is impossible, or a socket fails. Loss is not an error; see [`Arrived::perfect`].
pub fn stream(from: &Node, to: &Node, stream: &Stream) -> Result<Arrived> {
    let progress = Progress { is_enough: true.into(), ..Progress::default() };
    Ok(run(from, to, stream, &progress, || Ok(()))?.0)
}

/// Does `work` while a stream runs from one node to another: from its first arrival on, and until the work is done, however
/// long that takes.
///
/// # Errors
/// As [`stream`], those of `work`, or if nothing arrives.
pub fn during<T>(from: &Node, to: &Node, stream: &Stream, work: impl FnOnce() -> Result<T>) -> Result<(Arrived, T)> {
    let progress = Progress::default();
    run(from, to, stream, &progress, || {
        eventually(TIMEOUT, || {
            ensure!(progress.received.load(Ordering::Acquire) > 0, "no datagram has arrived at {}", to.name());
            Ok(())
        })?;
        work()
    })
}

/// What sender and receiver of a stream know of each other.
#[derive(Default)]
struct Progress {
    sent: AtomicU64,
    received: AtomicU64,
    /// The work that the stream accompanies is done.
    is_enough: AtomicBool,
    /// Nothing more is sent.
    is_over: AtomicBool,
}

/// Raises a flag when dropped, be it by a panic.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn run<T>(
    from: &Node,
    to: &Node,
    stream: &Stream,
    progress: &Progress,
    work: impl FnOnce() -> Result<T>,
) -> Result<(Arrived, T)> {
    let Stream { payload_len, segments, .. } = *stream;
    ensure!((NUMBER_LEN..=PAYLOAD_LEN_MAX).contains(&payload_len), "a payload of {payload_len} bytes");
    ensure!(
        (1..=SEGMENT_COUNT_MAX).contains(&segments) && segments * payload_len <= PAYLOAD_LEN_MAX,
        "{segments} segments of {payload_len} bytes in one send"
    );
    let receiver = to.run(|| UdpSocket::bind((stream.to, 0))).with_context(|| format!("binding {}", stream.to))?;
    set_socket_recv_buffer_size_force(&receiver, RECEIVE_BUFFER_LEN)?;
    let address = receiver.local_addr()?;
    thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&receiver, stream, progress));
        let sending = scope.spawn(|| {
            let _over = Raise(&progress.is_over);
            from.enter();
            send(address, stream, progress).with_context(|| format!("sending from {}", from.name()))
        });
        let enough = Raise(&progress.is_enough);
        let value = work();
        drop(enough);
        let sent = sending.join().map_err(|_| anyhow!("the sending thread panicked"))?;
        let arrived = receiving.join().map_err(|_| anyhow!("the receiving thread panicked"))?;
        let value = value?;
        sent?;
        Ok((arrived?, value))
    })
}

/// Sends `count` datagrams of `payload_len` bytes one after the other and waits for the echo of each; returns the
/// round-trip times.
///
/// # Errors
/// If an echo takes more than [`TIMEOUT`] or differs.
pub fn echo(from: &Node, to: &Node, address: IpAddr, count: u64, payload_len: usize) -> Result<Vec<Duration>> {
    let server = to.run(|| UdpSocket::bind((address, 0))).with_context(|| format!("binding {address}"))?;
    let address = server.local_addr()?;
    server.set_read_timeout(Some(TIMEOUT))?;
    let client = from.run(|| connect(address))?;
    client.set_read_timeout(Some(TIMEOUT))?;
    thread::scope(|scope| {
        let serving = scope.spawn(|| -> io::Result<()> {
            let mut buffer = vec![0; 1 << 16];
            for _ in 0..count {
                let (len, peer) = server.recv_from(&mut buffer)?;
                server.send_to(&buffer[..len], peer)?;
            }
            Ok(())
        });
        let mut buffer = vec![0; 1 << 16];
        let mut times = Vec::new();
        for number in 0..count {
            let request = datagram(number, payload_len);
            let sent = Instant::now();
            client.send(&request)?;
            let len = client.recv(&mut buffer).with_context(|| format!("no echo of datagram {number} of {count}"))?;
            times.push(sent.elapsed());
            if buffer[..len] != request {
                bail!("the echo of datagram {number} differs from it");
            }
        }
        serving.join().map_err(|_| anyhow!("the echoing thread panicked"))??;
        Ok(times)
    })
}

/// A socket of the calling thread's namespace that sends to one address.
pub fn connect(address: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(address)?;
    Ok(socket)
}

fn send(address: SocketAddr, stream: &Stream, progress: &Progress) -> Result<()> {
    let socket = connect(address)?;
    if stream.segments > 1 {
        let segment_len = i32::try_from(stream.payload_len)?;
        sys::set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, segment_len).context("UDP_SEGMENT")?;
    }
    let (mut number, mut lost, mut next) = (0, 0, Instant::now());
    while number < stream.count || !progress.is_enough.load(Ordering::Acquire) {
        make_room(stream.window, number, &mut lost, progress);
        let end = number + stream.segments as u64;
        let end = if number < stream.count { end.min(stream.count) } else { end };
        // Before it is, so that no more arrive than are known of.
        progress.sent.store(end, Ordering::Release);
        let bytes: Vec<u8> = (number..end).flat_map(|number| datagram(number, stream.payload_len)).collect();
        socket.send(&bytes).with_context(|| format!("datagram {number} of {}", stream.count))?;
        number = end;
        next += stream.interval;
        while Instant::now() < next {
            match next.saturating_duration_since(Instant::now()) {
                long if long > Duration::from_millis(1) => thread::sleep(long),
                _ => thread::yield_now(),
            }
        }
    }
    Ok(())
}

/// Waits until fewer than `window` of the `sent` datagrams are under way. Those that have not arrived when nothing has for
/// [`TAIL`] are `lost`.
fn make_room(window: u64, sent: u64, lost: &mut u64, progress: &Progress) {
    let (mut before, mut since) = (0, Instant::now());
    loop {
        let received = progress.received.load(Ordering::Acquire);
        let missing = sent.saturating_sub(received);
        if missing.saturating_sub(*lost) < window {
            return;
        }
        if received > before {
            (before, since) = (received, Instant::now());
        } else if since.elapsed() > TAIL {
            *lost = missing;
        } else {
            thread::sleep(PACE);
        }
    }
}

fn receive(socket: &UdpSocket, stream: &Stream, progress: &Progress) -> Result<Arrived> {
    let mut arrived = Arrived::default();
    let mut seen = Vec::new();
    let mut highest = None;
    let mut buffer = vec![0; 1 << 16];
    let mut last = Instant::now();
    socket.set_read_timeout(Some(LOOK))?;
    loop {
        let is_over = progress.is_over.load(Ordering::Acquire);
        let sent = progress.sent.load(Ordering::Acquire);
        if is_over && arrived.received == sent {
            break;
        }
        // Asked before reading: what is in the socket by then is read.
        let is_late = is_over && last.elapsed() > TAIL;
        let len = match socket.recv(&mut buffer) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && is_late => break,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                if !is_over {
                    last = Instant::now();
                }
                continue;
            }
            Err(error) => return Err(error).context("receiving"),
        };
        last = Instant::now();
        let number = read_number(&buffer[..len], stream);
        seen.resize(progress.sent.load(Ordering::Acquire) as usize, false);
        let Some(slot) = number.and_then(|number| seen.get_mut(number as usize)) else {
            arrived.corrupt += 1;
            continue;
        };
        if std::mem::replace(slot, true) {
            arrived.duplicated += 1;
            continue;
        }
        arrived.received += 1;
        progress.received.store(arrived.received, Ordering::Release);
        arrived.reordered += u64::from(highest > number);
        highest = highest.max(number);
    }
    arrived.duplicated += rest(socket)?;
    arrived.sent = progress.sent.load(Ordering::Acquire);
    arrived.lost = arrived.sent - arrived.received;
    Ok(arrived)
}

/// Counts what arrives after the stream is complete: only copies can.
fn rest(socket: &UdpSocket) -> Result<u64> {
    socket.set_nonblocking(true)?;
    let mut count = 0;
    while socket.recv(&mut [0; NUMBER_LEN]).is_ok() {
        count += 1;
    }
    Ok(count)
}

fn datagram(number: u64, payload_len: usize) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.extend((NUMBER_LEN..payload_len).map(|index| filler(number, index)));
    bytes
}

/// The number of a datagram, if it is intact.
fn read_number(bytes: &[u8], stream: &Stream) -> Option<u64> {
    let number = u64::from_be_bytes(bytes.get(..NUMBER_LEN)?.try_into().ok()?);
    let intact = bytes.len() == stream.payload_len
        && bytes.iter().enumerate().skip(NUMBER_LEN).all(|(index, byte)| *byte == filler(number, index));
    intact.then_some(number)
}

fn filler(number: u64, index: usize) -> u8 {
    (number as usize).wrapping_mul(7).wrapping_add(index.wrapping_mul(13)) as u8
}
