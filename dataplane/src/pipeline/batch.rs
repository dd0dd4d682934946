//! Collects datagrams into UDP sends. Datagrams for one peer join as long as they are of one length, the last possibly
//! shorter, whatever inner flow or super-packet they come from; the order of datagrams for one peer is kept.
//!
//! A worker that is faster than its senders would find few packets in each turn and make many small sends of them. So a
//! batch that has begun to fill is held over the turn, as long as each turn adds to it.

use crate::io::{Io, SendOp};
use crate::limits::OPEN_BATCHES_MAX;
use crate::stats::{WorkerStats, bucket};
use crate::sys::msg::Name;
use weft_fib::PeerId;

/// Where a batch goes.
#[derive(Clone, Copy, Debug)]
pub struct Destination {
    /// Peer, for the counters.
    pub peer: PeerId,
    /// Its address in the kernel's form.
    pub name: Name,
    /// Length of that.
    pub name_len: libc::socklen_t,
}

/// The batches that may still grow, one per peer, oldest first.
#[derive(Debug)]
pub struct Batcher {
    /// With the datagrams that each had when it was held over.
    open: Vec<(u16, usize)>,
    /// Datagrams may share a send (UDP GSO).
    pub gso: bool,
}

impl Batcher {
    /// Nothing open.
    pub fn new(gso: bool) -> Batcher {
        Batcher { open: Vec::with_capacity(OPEN_BATCHES_MAX), gso }
    }

    /// The send that the next datagram of `len` bytes for `to` belongs to; `None` when all sends are in use: flush, let the
    /// engine turn, try again.
    #[inline]
    pub fn slot(&mut self, io: &mut Io, stats: &WorkerStats, to: &Destination, len: usize) -> Option<u16> {
        if let Some(position) = self.open.iter().position(|(slot, _)| io.sends[*slot].peer == to.peer) {
            let (slot, _) = self.open[position];
            if self.gso && io.sends[slot].fits(len) {
                return Some(slot);
            }
            self.open.remove(position);
            queue(io, stats, slot);
        }
        if self.open.len() == OPEN_BATCHES_MAX {
            let (oldest, _) = self.open.remove(0);
            queue(io, stats, oldest);
        }
        let slot = io.sends.take()?;
        io.sends[slot].open(to.peer, to.name, to.name_len, len);
        self.open.push((slot, 1));
        Some(slot)
    }

    /// How many datagrams of `len` bytes may join the send that [`Self::slot`] gave for the first of them; at least that one.
    #[inline]
    pub fn fitting(&self, io: &Io, slot: u16, len: usize) -> usize {
        if self.gso { io.sends[slot].fitting(len) } else { 1 }
    }

    /// Whether a batch is held over.
    #[inline]
    pub fn holds(&self) -> bool {
        !self.open.is_empty()
    }

    /// Queues what is open; with `hold`, all but the batches of several datagrams that grew since they were last held.
    #[inline]
    pub fn flush(&mut self, io: &mut Io, stats: &WorkerStats, hold: bool) {
        self.open.retain_mut(|(slot, count)| {
            let op = &io.sends[*slot];
            let held = hold && op.count() > *count && op.fits(op.segment_len);
            if held {
                *count = op.count();
            } else {
                queue(io, stats, *slot);
            }
            held
        });
    }
}

#[inline]
fn queue(io: &mut Io, stats: &WorkerStats, slot: u16) {
    let op = &mut io.sends[slot];
    op.close(&io.pool);
    count(stats, op);
    io.sends.queue(slot);
}

fn count(stats: &WorkerStats, op: &SendOp) {
    stats.counters.encap_batches.add(1);
    stats.counters.encap_packets.add(op.count() as u64);
    stats.counters.encap_bytes.add(op.bytes as u64);
    stats.send_segments[bucket(op.count())].add(1);
    let peer = stats.peer(op.peer);
    peer.tx_packets.add(op.count() as u64);
    peer.tx_bytes.add(op.bytes as u64);
}
