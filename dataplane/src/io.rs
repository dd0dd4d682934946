//! What passes between a worker and its engine: received frames one way, queued sends and writes the other.
//!
//! Operations live in fixed slots. A slot is free, being filled by the worker, queued, or with the engine; the engine gives
//! it back by [`Io::sent`] / [`Io::written`], or as failed for the worker to deal with. All pointers in a slot lead into
//! frames that the slot holds (see [`crate::pool`]) or into the slot's own boxed arenas, so they stay valid until it is freed.

use crate::limits::*;
use crate::pool::{FrameId, Pool};
use crate::sys::msg::{self, Control, Gather, Name};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use weft_fib::PeerId;
use weft_packet::vnet::VNET_LEN;

/// One read from TUN: `data` holds the virtio-net header, if the queue has one, and the packet.
#[derive(Clone, Debug)]
pub struct TunRx {
    /// Where.
    pub frame: FrameId,
    /// Which bytes of the frame.
    pub data: Range<usize>,
}

/// One receive from the UDP socket: one datagram, or several of `stride` bytes behind each other.
#[derive(Clone, Debug)]
pub struct UdpRx {
    /// Where.
    pub frame: FrameId,
    /// Which bytes of the frame.
    pub data: Range<usize>,
    /// Length of every datagram but the last.
    pub stride: usize,
    /// Outer source; `None` if the kernel gave no IP address.
    pub source: Option<SocketAddr>,
    /// The datagram did not fit into the frame.
    pub truncated: bool,
}

impl UdpRx {
    /// What was received into `frame` from [`HEADROOM`] on.
    #[inline]
    pub fn new(frame: FrameId, received: &msg::Received) -> UdpRx {
        UdpRx {
            frame,
            data: HEADROOM..HEADROOM + received.len,
            stride: received.stride.unwrap_or(received.len),
            source: received.source,
            truncated: received.truncated,
        }
    }
}

/// How much was received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Packets; a super-packet from TUN is one, each datagram of a receive is one.
    pub packets: usize,
    /// Their bytes.
    pub bytes: usize,
    /// How many of the packets are from TUN and at most [`SMALL_LEN_MAX`] bytes long.
    pub small_from_tun: usize,
}

/// One UDP send: datagrams of equal length (the last may be shorter) to one peer, behind each other in the slot's frame.
#[derive(Debug)]
pub struct SendOp {
    /// To whom, for the counters.
    pub peer: PeerId,
    /// Destination in the kernel's form.
    pub name: Name,
    /// Its length.
    pub name_len: libc::socklen_t,
    /// Length of every datagram but the last.
    pub segment_len: usize,
    /// All bytes.
    pub bytes: usize,
    /// Where they lie.
    pub frame: FrameId,
    /// The same for the kernel, one entry; filled when the batch is closed.
    pub gather: Gather,
    /// UDP_SEGMENT message, see [`Self::segments`].
    pub control: Control,
    count: usize,
}

impl SendOp {
    fn new(slot: u16) -> SendOp {
        SendOp {
            peer: PeerId(0),
            name: Name::empty(),
            name_len: 0,
            segment_len: 0,
            bytes: 0,
            frame: Pool::of_send(slot),
            gather: Gather::with_capacity(1),
            control: Control::empty(),
            count: 0,
        }
    }

    /// Datagrams in the batch.
    #[inline]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The UDP_SEGMENT message, if there is more than one datagram.
    #[inline]
    pub fn segments(&self) -> Option<&Control> {
        (self.count > 1).then_some(&self.control)
    }

    /// Bytes of datagram `index` in the frame.
    pub fn datagram(&self, index: usize) -> Range<usize> {
        assert!(index < self.count, "datagram {index} of {}", self.count);
        let start = index * self.segment_len;
        start..self.bytes.min(start + self.segment_len)
    }

    /// Whether a datagram of `len` bytes may join.
    #[inline]
    pub fn fits(&self, len: usize) -> bool {
        let closed = self.bytes != self.segment_len * self.count;
        let fits_segment = len <= self.segment_len && !closed;
        fits_segment && self.count < SEGMENTS_MAX && self.bytes + len <= UDP_PAYLOAD_MAX
    }

    /// How many datagrams of `len` bytes may join.
    #[inline]
    pub fn fitting(&self, len: usize) -> usize {
        if !self.fits(len) {
            return 0;
        }
        if len < self.segment_len {
            return 1; // It ends the batch.
        }
        (SEGMENTS_MAX - self.count).min((UDP_PAYLOAD_MAX - self.bytes) / len.max(1))
    }

    /// Starts the batch.
    #[inline]
    pub fn open(&mut self, peer: PeerId, name: Name, name_len: libc::socklen_t, segment_len: usize) {
        debug_assert!(self.count == 0 && self.bytes == 0);
        self.peer = peer;
        self.name = name;
        self.name_len = name_len;
        self.segment_len = segment_len;
    }

    /// Room for the next `count` datagrams of `len` bytes: where to write them, behind each other.
    #[inline]
    pub fn room(&mut self, count: usize, len: usize) -> (FrameId, Range<usize>) {
        let start = self.bytes;
        self.bytes += count * len;
        self.count += count;
        (self.frame, start..self.bytes)
    }

    /// Ends the batch: the kernel may read it.
    #[inline]
    pub fn close(&mut self, pool: &Pool) {
        self.gather.push(pool.bytes(self.frame, 0..self.bytes));
        if self.count > 1 {
            self.control = Control::udp_segment(self.segment_len as u16);
        }
    }
}

/// One TUN write: a packet, or a chain of coalesced ones.
#[derive(Debug)]
pub struct WriteOp {
    /// The gather list: virtio-net header, head packet, further payloads.
    pub gather: Gather,
    /// All inner bytes, without the virtio-net header.
    pub bytes: usize,
    /// The packets behind the chain as received: frame and bytes; empty for a packet of our own making.
    pub packets: Vec<(FrameId, Range<u32>)>,
    /// The head's header as received, for writing the packets again singly.
    pub head: [u8; weft_packet::gro::HEADER_LEN_MAX],
    /// Bytes of `head` in use; 0: the head was not rewritten.
    pub head_len: usize,
    /// The virtio-net header. Boxed: the gather list points to it.
    pub vnet: Box<[u8; VNET_LEN]>,
    /// A packet of our own making. Boxed: the gather list points to it.
    pub scratch: Box<[u8; SCRATCH_LEN]>,
}

impl WriteOp {
    fn new() -> WriteOp {
        WriteOp {
            gather: Gather::with_capacity(WRITE_PACKETS_MAX + 1),
            bytes: 0,
            packets: Vec::with_capacity(WRITE_PACKETS_MAX),
            head: [0; weft_packet::gro::HEADER_LEN_MAX],
            head_len: 0,
            vnet: Box::new([0; VNET_LEN]),
            scratch: Box::new([0; SCRATCH_LEN]),
        }
    }
}

/// Slots of one kind of operation.
#[derive(Debug)]
pub struct Slots<T> {
    slots: Vec<T>,
    free: Vec<u16>,
    queued: VecDeque<u16>,
}

impl<T> Slots<T> {
    fn new(count: usize, new: impl FnMut(u16) -> T) -> Slots<T> {
        Slots {
            slots: (0..count as u16).map(new).collect(),
            free: (0..count as u16).rev().collect(),
            queued: VecDeque::with_capacity(count),
        }
    }
    /// A free slot to fill.
    #[inline]
    pub fn take(&mut self) -> Option<u16> {
        self.free.pop()
    }
    /// Free slots.
    #[inline]
    pub fn free(&self) -> usize {
        self.free.len()
    }
    /// Slots that are not free: being filled, queued or with the engine.
    pub fn busy(&self) -> usize {
        self.slots.len() - self.free.len()
    }
    /// Hands a filled slot to the engine, behind all others.
    #[inline]
    pub fn queue(&mut self, slot: u16) {
        self.queued.push_back(slot);
    }
    /// Puts a slot that the kernel did not take back at the front.
    pub fn requeue(&mut self, slot: u16) {
        self.queued.push_front(slot);
    }
    /// The next queued slot, for the engine.
    #[inline]
    pub fn pop_queued(&mut self) -> Option<u16> {
        self.queued.pop_front()
    }
    /// Whether nothing is queued.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.queued.is_empty()
    }
    /// Queued slots.
    pub fn queued(&self) -> usize {
        self.queued.len()
    }
    /// The first `count` queued slots, in order.
    pub fn peek(&self, count: usize) -> impl Iterator<Item = u16> {
        self.queued.iter().take(count).copied()
    }
}

impl<T> std::ops::Index<u16> for Slots<T> {
    type Output = T;
    #[inline]
    fn index(&self, slot: u16) -> &T {
        &self.slots[usize::from(slot)]
    }
}

impl<T> std::ops::IndexMut<u16> for Slots<T> {
    #[inline]
    fn index_mut(&mut self, slot: u16) -> &mut T {
        &mut self.slots[usize::from(slot)]
    }
}

/// Frames, received and queued work of one worker.
#[derive(Debug)]
pub struct Io {
    /// UDP sends.
    pub sends: Slots<SendOp>,
    /// TUN writes.
    pub writes: Slots<WriteOp>,
    /// Reads that the worker has not looked at.
    pub tun_rx: VecDeque<TunRx>,
    /// A read found the TUN queue empty; whoever looks takes it back.
    pub tun_empty: bool,
    /// Receives that the worker has not looked at.
    pub udp_rx: VecDeque<UdpRx>,
    /// Sends that the kernel refused, with the error.
    pub failed_sends: VecDeque<(u16, io::Error)>,
    /// Writes that the kernel refused, with the error.
    pub failed_writes: VecDeque<(u16, io::Error)>,
    /// Packet memory. Declared last: dropped after the slots that point into it.
    pub pool: Pool,
}

impl Io {
    /// Allocates everything.
    pub fn new() -> io::Result<Io> {
        Ok(Io {
            sends: Slots::new(SEND_OPS, SendOp::new),
            writes: Slots::new(WRITE_OPS, |_| WriteOp::new()),
            tun_rx: VecDeque::with_capacity(TUN_FRAMES),
            tun_empty: false,
            udp_rx: VecDeque::with_capacity(UDP_FRAMES),
            failed_sends: VecDeque::with_capacity(SEND_OPS),
            failed_writes: VecDeque::with_capacity(WRITE_OPS),
            pool: Pool::new()?,
        })
    }

    /// A send is over: the slot is free.
    #[inline]
    pub fn sent(&mut self, slot: u16) {
        let op = &mut self.sends[slot];
        op.gather.clear();
        op.count = 0;
        op.bytes = 0;
        self.sends.free.push(slot);
    }

    /// A write is over: its frames lose a holder and the slot is free.
    #[inline]
    pub fn written(&mut self, slot: u16) {
        let op = &mut self.writes[slot];
        op.gather.clear();
        op.bytes = 0;
        op.head_len = 0;
        for (frame, _) in op.packets.drain(..) {
            self.pool.release(frame);
        }
        self.writes.free.push(slot);
    }

    /// What waits to be looked at.
    pub fn received(&self) -> Received {
        let mut received = Received::default();
        for TunRx { data, .. } in &self.tun_rx {
            received.packets += 1;
            received.bytes += data.len();
            received.small_from_tun += usize::from(data.len() <= SMALL_LEN_MAX);
        }
        for UdpRx { data, stride, .. } in &self.udp_rx {
            received.packets += data.len().div_ceil((*stride).max(1)).max(1);
            received.bytes += data.len();
        }
        received
    }

    /// Whether the worker has received work to do.
    pub fn has_received(&self) -> bool {
        !self.tun_rx.is_empty() || !self.udp_rx.is_empty()
    }
}
