//! UDP datagrams per second.
//!
//! ```text
//!   0        8        16                          payload_len
//!   | number | mixed  | the same filler every time |
//! ```

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};
use std::io::IoSlice;

use super::pattern::Pattern;
use super::{Path, Run, Throughput, join};
use crate::sys;
use crate::udp::connect;

/// Bytes before the filler: the number, and the number times [`MIX`].
pub(super) const HEADER_LEN: usize = 16;
/// Any odd number makes the product differ for each number.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
/// Datagrams per `sendmmsg` and `recvmmsg`.
pub(super) const BATCH_LEN: usize = 64;
/// Merged datagrams per `recvmmsg` with `UDP_GRO`: as many bytes as a core's cache holds.
const MERGED_BATCH_LEN: usize = 8;
/// The longest that `UDP_GRO` merges: what a length field of 16 bits tells.
const MERGED_LEN_MAX: usize = 65_535;
/// Bytes that may wait for the receiver: a burst, not a reservoir.
pub(super) const RECEIVE_BUFFER_LEN: usize = 4 << 20;
/// How long a receiver without datagrams sleeps before it looks whether the measurement is over.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// Segments that one send may carry (`UDP_MAX_SEGMENTS`, include/linux/udp.h, Linux 4.18 had 64).
const SEGMENT_COUNT_MAX: usize = 64;
/// The longest UDP payload over IPv4 (RFC 768, RFC 791): 65535 - 20 - 8.
const PAYLOAD_LEN_MAX: usize = 65_507;

/// How often a paced sender looks whether something is due.
const PACE: Duration = Duration::from_micros(200);
/// What a paced sender catches up after the kernel kept it waiting: no more than so much time's worth.
const DEBT_MAX: Duration = Duration::from_millis(20);

/// A sender of datagrams.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Blast {
    /// Payload bytes of each datagram, 16 at least.
    pub payload_len: usize,
    /// Datagrams per super-packet (`UDP_SEGMENT`, and `UDP_GRO` at the receiver), 64 at most. 1: single datagrams, 64 per
    /// system call at either end.
    pub segments: usize,
    /// Datagrams per second; `None`: as many as the kernel takes.
    pub rate: Option<f64>,
}

impl Blast {
    /// As many datagrams of `payload_len` bytes as the kernel takes, sent singly.
    pub const fn singly(payload_len: usize) -> Self {
        Self { payload_len, segments: 1, rate: None }
    }

    /// As many datagrams of 1400 bytes as the kernel takes, 44 to a send: as many as fit into one, and 1400 bytes fit every
    /// tunnel over Ethernet.
    pub const fn segmented() -> Self {
        Self { payload_len: 1400, segments: 44, rate: None }
    }
}

/// What came of a [`Blast`].
#[derive(Debug, Clone)]
pub struct Blasted {
    /// Datagrams that the sender's kernel took within the window.
    pub sent: u64,
    /// Datagrams that arrived intact within it. Loss is the rule: nothing holds the sender back but the path itself.
    pub received: u64,
    /// Their payload.
    pub throughput: Throughput,
}

impl Blasted {
    /// Datagrams that arrived per second.
    pub fn packets_per_second(&self) -> f64 {
        self.received as f64 / self.throughput.elapsed.as_secs_f64()
    }

    /// Datagrams that the sender's kernel took per second.
    pub fn offered_per_second(&self) -> f64 {
        self.sent as f64 / self.throughput.elapsed.as_secs_f64()
    }

    /// The part that did not arrive, from 0 to 1. A backlog from before the window may arrive within it.
    pub fn loss(&self) -> f64 {
        1.0 - (self.received as f64 / self.sent.max(1) as f64).min(1.0)
    }
}

/// Sends datagrams, and counts what arrives.
///
/// # Errors
/// If the blast is impossible, a socket fails, a datagram is wrong, nothing arrives, or [`super::Stopped`].
pub fn udp_blast(path: &Path<'_>, blast: Blast, run: &mut Run<'_>) -> Result<Blasted> {
    let Blast { payload_len, segments, rate } = blast;
    ensure!(
        payload_len >= HEADER_LEN
            && (1..=SEGMENT_COUNT_MAX).contains(&segments)
            && segments * payload_len <= PAYLOAD_LEN_MAX
            && rate.is_none_or(|rate| rate >= 1.0),
        "{segments} segments of {payload_len} bytes in one send, {rate:?} datagrams per second"
    );
    let receiver = path.to.run(|| UdpSocket::bind((path.address, 0)))?;
    set_socket_recv_buffer_size_force(&receiver, RECEIVE_BUFFER_LEN)?;
    receiver.set_read_timeout(Some(LOOK))?;
    if segments > 1 {
        // Who sends like this receives like this (QUIC): the kernel need not split what arrives whole.
        sys::set_option(receiver.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1).context("UDP_GRO")?;
    }
    let address = receiver.local_addr()?;
    let sender = path.from.run(|| connect(address))?;
    sender.set_write_timeout(Some(LOOK))?;
    let template = Template::new(payload_len);
    let (sent, received, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let observed = thread::scope(|scope| {
        let receiving = scope.spawn(|| match segments {
            // One byte more than is due, so that a longer datagram shows.
            1 => receive::<BATCH_LEN>(&receiver, payload_len + 1, &template, &received, &over),
            _ => receive::<MERGED_BATCH_LEN>(&receiver, MERGED_LEN_MAX, &template, &received, &over),
        });
        let pace = Pace::new(rate);
        let sending = scope.spawn(|| match segments {
            1 => send_singly(&sender, &template, pace, &sent, &over),
            _ => send_segmented(&sender, &template, segments, pace, &sent, &over),
        });
        let observed = run.observe(|| [received.load(Ordering::Relaxed), sent.load(Ordering::Relaxed)]);
        over.store(true, Ordering::Relaxed);
        join(receiving, "receiving").and(join(sending, "sending")).and(observed)
    })
    .with_context(|| format!("UDP datagrams from {} to {}", path.from.name(), path.address))?;
    let [received, sent] = observed.counts;
    Ok(Blasted { sent, received, throughput: observed.throughput(payload_len)? })
}

/// What every datagram looks like.
#[derive(Debug)]
pub(super) struct Template {
    bytes: Vec<u8>,
}

impl Template {
    pub(super) fn new(payload_len: usize) -> Self {
        Self { bytes: Pattern::new(payload_len).at(0, payload_len).to_vec() }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// `count` datagrams, to be numbered by [`Template::number`].
    pub(super) fn batch(&self, count: usize) -> Vec<u8> {
        self.bytes.repeat(count)
    }

    pub(super) fn number(&self, batch: &mut [u8], first: u64) {
        for (number, datagram) in (first..).zip(batch.chunks_exact_mut(self.len())) {
            datagram[..8].copy_from_slice(&number.to_be_bytes());
            datagram[8..HEADER_LEN].copy_from_slice(&number.wrapping_mul(MIX).to_be_bytes());
        }
    }

    /// The number of datagrams in a piece, if each of them is right. Where the kernel merged unequal ones, the borders are
    /// not where they are looked for, and what is there does not match.
    fn count(&self, piece: &[u8]) -> Option<u64> {
        let datagrams = piece.chunks(self.len());
        let count = datagrams.len() as u64;
        datagrams.into_iter().all(|datagram| self.read(datagram).is_some()).then_some(count).filter(|count| *count > 0)
    }

    /// The number of a datagram, if all of it is right.
    pub(super) fn read(&self, datagram: &[u8]) -> Option<u64> {
        let (header, filler) = datagram.split_at_checked(HEADER_LEN)?;
        let (number, mixed) = header.split_at(8);
        let number = u64::from_be_bytes(number.try_into().expect("eight bytes"));
        let is_right = mixed == number.wrapping_mul(MIX).to_be_bytes() && filler == &self.bytes[HEADER_LEN..];
        is_right.then_some(number)
    }
}

/// How many datagrams are due.
struct Pace {
    rate: Option<f64>,
    /// Nothing was due then.
    since: Instant,
    sent: u64,
}

impl Pace {
    fn new(rate: Option<f64>) -> Self {
        Self { rate, since: Instant::now(), sent: 0 }
    }

    /// How many of `count` datagrams are due; 0, after a short sleep, if there are fewer than `least`.
    fn due(&mut self, least: usize, count: usize) -> usize {
        let due = self.due_at(Instant::now(), least, count);
        if due == 0 {
            thread::sleep(PACE);
        }
        due
    }

    fn due_at(&mut self, now: Instant, least: usize, count: usize) -> usize {
        let Some(rate) = self.rate else { return count };
        let mut due = (now - self.since).as_secs_f64() * rate - self.sent as f64;
        let debt_max = (rate * DEBT_MAX.as_secs_f64()).max(count as f64);
        if due > debt_max {
            (self.since, self.sent, due) = (now, 0, 0.0);
        }
        if due < least as f64 { 0 } else { (due as usize).min(count) }
    }

    fn sent(&mut self, count: u64) {
        self.sent += count;
    }
}

fn send_singly(
    socket: &UdpSocket,
    template: &Template,
    mut pace: Pace,
    sent: &AtomicU64,
    over: &AtomicBool,
) -> Result<()> {
    let mut batch = template.batch(BATCH_LEN);
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        let due = pace.due(1, BATCH_LEN);
        if due == 0 {
            continue;
        }
        let batch = &mut batch[..due * template.len()];
        template.number(batch, number);
        let slices: Vec<_> = batch.chunks_exact(template.len()).map(|datagram| [IoSlice::new(datagram)]).collect();
        let mut controls: Vec<_> = (0..due).map(|_| SendAncillaryBuffer::default()).collect();
        let messages = slices.iter().zip(&mut controls).map(|(slice, control)| MMsgHdr::new(slice, control));
        let mut messages: Vec<_> = messages.collect();
        let count = taken(sendmmsg(socket, &mut messages, SendFlags::empty()).map_err(io::Error::from))? as u64;
        number += count;
        pace.sent(count);
        sent.fetch_add(count, Ordering::Relaxed);
    }
    Ok(())
}

fn send_segmented(
    socket: &UdpSocket,
    template: &Template,
    segments: usize,
    mut pace: Pace,
    sent: &AtomicU64,
    over: &AtomicBool,
) -> Result<()> {
    sys::set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, i32::try_from(template.len())?)
        .context("UDP_SEGMENT")?;
    let mut batch = template.batch(segments);
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        if pace.due(segments, segments) == 0 {
            continue;
        }
        template.number(&mut batch, number);
        let count = (taken(socket.send(&batch))? / template.len()) as u64;
        number += count;
        pace.sent(count);
        sent.fetch_add(count, Ordering::Relaxed);
    }
    Ok(())
}

/// What a send took; nothing, if the kernel has no room at the moment.
pub(super) fn taken(outcome: io::Result<usize>) -> Result<usize> {
    match outcome {
        Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => Ok(0),
        Err(error) if is_nothing(&error) => Ok(0),
        other => Ok(other?),
    }
}

/// A call that came to nothing, and may be made again.
pub(super) fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Counts what arrives: single datagrams, or several merged ones of equal length in one piece.
fn receive<const N: usize>(
    socket: &UdpSocket,
    piece_len_max: usize,
    template: &Template,
    received: &AtomicU64,
    over: &AtomicBool,
) -> Result<()> {
    let mut batch = sys::DatagramBatch::<N>::new(piece_len_max);
    while !over.load(Ordering::Relaxed) {
        match batch.receive(socket.as_fd()) {
            Ok(()) => {}
            Err(error) if is_nothing(&error) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut count = 0;
        for piece in batch.datagrams() {
            count += template.count(piece).with_context(|| {
                format!("WRONG PAYLOAD: {} bytes that arrived are none of those that were sent", piece.len())
            })?;
        }
        received.fetch_add(count, Ordering::Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paced_sender_sends_what_is_due_and_does_not_make_up_for_a_long_wait() {
        let mut pace = Pace::new(Some(1e6));
        let soon = pace.since + Duration::from_millis(2);
        assert_eq!(pace.due_at(soon, 1, 64), 64);
        pace.sent(1_000_000);
        assert_eq!(pace.due_at(soon, 1, 64), 0);
        let mut late = Pace::new(Some(1e6));
        assert_eq!(late.due_at(late.since + Duration::from_secs(1), 1, 64), 0);
        assert_eq!(Pace::new(None).due(1, 64), 64);
    }

    #[test]
    fn merged_datagrams_are_counted_if_every_one_is_right() {
        let template = Template::new(64);
        let mut batch = template.batch(3);
        template.number(&mut batch, 7);
        assert_eq!((template.count(&batch), template.count(&batch[..64])), (Some(3), Some(1)));
        assert_eq!(
            (template.count(&batch[..100]), template.count(&batch[1..]), template.count(&[])),
            (None, None, None)
        );
        batch[150] ^= 1;
        assert_eq!(template.count(&batch), None);
    }

    #[test]
    fn a_datagram_matches_only_as_it_was_numbered() {
        let template = Template::new(64);
        let mut batch = template.batch(3);
        template.number(&mut batch, 1 << 40);
        let numbers: Vec<_> = batch.chunks_exact(64).map(|datagram| template.read(datagram)).collect();
        assert_eq!(numbers, [0, 1, 2].map(|index| Some((1 << 40) + index)));
        for index in [0, 7, 8, 15, 16, 63] {
            let mut wrong = batch[..64].to_vec();
            wrong[index] ^= 1;
            assert_eq!(template.read(&wrong), None, "byte {index}");
        }
        assert!([&batch[..63], &batch[..65], &[]].iter().all(|wrong| template.read(wrong).is_none()));
    }
}
