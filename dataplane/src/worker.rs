//! One worker: a thread, a queue pair, an engine, and the loop that carries packets between them.
//!
//! A turn of the loop:
//!  1. the engine executes what the last turn queued and delivers what is ready;
//!  2. the table in force is pinned;
//!  3. every TUN read goes through `pipeline::encap` into the batcher;
//!  4. every UDP receive goes through `pipeline::decap` into the coalescer;
//!  5. open batches and chains are queued;
//!  6. refused operations are dealt with one packet at a time (`worker::refused`);
//!  7. how full it is decides whether it needs help (`crate::scale`), and more packets are let into the TUN queue, if it is time (`worker::credit`);
//!  8. it spins, naps or sleeps, whichever suits the traffic (`worker::tempo`).
//!
//! In steady state a turn takes no lock, allocates nothing, reads the clock once and logs nothing.

mod credit;
mod refused;
pub mod tempo;

use crate::backpressure::Grants;
use crate::engine::{Engine, Wait};
use crate::io::{Io, TunRx, UdpRx};
use crate::limits::{NAP, SCRATCH_LEN};
use crate::path_mtu::PathMtus;
use crate::pipeline::batch::{Batcher, Destination};
use crate::pipeline::coalesce::Coalescer;
use crate::pipeline::decap::{self, Known};
use crate::pipeline::{Refusal, encap};
use crate::replies::{Limits, Replies, Reply};
use crate::scale::Load;
use crate::shared::{Command, PeerCheck, WorkerView};
use crate::underlay::UdpSocket;
use credit::{Credit, Reading};
use std::io as stdio;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tempo::{LastBulk, Pause, Tempo};
use weft_fib::{Fib, FibReader, OwnerId, PeerId};
use weft_packet::gso::Split;
use weft_packet::icmp::IcmpError;
use weft_packet::vnet::{VNET_LEN, VnetHeader};
use weft_packet::{DropReason, Inner};

/// What a worker is told at start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// TUN device name, for its addresses.
    pub tun_name: String,
    /// Rate limits of ICMP errors, which all workers share.
    pub icmp_limits: Arc<Limits>,
    /// When one of the workers last had bulk traffic.
    pub last_bulk: Arc<LastBulk>,
    /// How strictly outer sources are checked.
    pub peer_check: PeerCheck,
    /// How long to look for work before sleeping.
    pub spin: Duration,
}

/// A super-packet that is only partly in batches because the sends ran out.
struct Partial {
    rx: TunRx,
    packet: Range<usize>,
    split: Split,
    to: Destination,
    next: usize,
}

/// One worker. Generic over the engine so that the loop is monomorphic.
pub struct Worker<'a, E> {
    io: Io,
    engine: E,
    tun: BorrowedFd<'a>,
    socket: &'a UdpSocket,
    view: Arc<WorkerView>,
    command: Arc<AtomicU8>,
    settings: Settings,
    batcher: Batcher,
    coalescer: Coalescer,
    path_mtus: PathMtus,
    replies: Replies,
    credit: Option<Credit>,
    load: Option<Load>,
    partial: Option<Partial>,
    vnet_len: usize,
    /// CLOCK_MONOTONIC at the end of the last turn, milliseconds.
    now_ms: u64,
}

impl<'a, E: Engine> Worker<'a, E> {
    /// Joins an engine with the state it works on. Offloads in use are read from `view`.
    pub fn new(
        engine: E,
        tun: BorrowedFd<'a>,
        socket: &'a UdpSocket,
        view: Arc<WorkerView>,
        command: Arc<AtomicU8>,
        settings: Settings,
    ) -> stdio::Result<Worker<'a, E>> {
        let offloads = &view.offloads;
        let vnet = offloads.tun_vnet.load(Relaxed);
        Ok(Worker {
            io: Io::new()?,
            engine,
            tun,
            socket,
            batcher: Batcher::new(offloads.udp_gso.load(Relaxed)),
            coalescer: Coalescer::new(vnet, offloads.tun_tso.load(Relaxed), offloads.tun_uso.load(Relaxed)),
            path_mtus: PathMtus::new(),
            replies: Replies::new(&settings.tun_name, settings.icmp_limits.clone()),
            credit: None,
            load: None,
            partial: None,
            vnet_len: if vnet { VNET_LEN } else { 0 },
            now_ms: monotonic().as_millis() as u64,
            view,
            command,
            settings,
        })
    }

    /// Makes senders wait for this worker, whose TUN queue is the `queue`th.
    pub fn hold_senders(&mut self, grants: Arc<Grants>, queue: usize) {
        self.credit = Some(Credit::new(grants, queue));
    }

    /// Lets this worker's load decide how many workers are in use.
    pub fn measure(&mut self, load: Load) {
        self.load = Some(load);
    }

    /// Carries packets until told to drain, then finishes what was read. An error means that the queue pair broke.
    pub fn run(mut self, fib: &FibReader) -> stdio::Result<()> {
        let result = self.forward(fib).and_then(|()| self.drain(fib));
        if result.is_err() {
            // The kernel may still write to frames of a broken ring: they must never be unmapped.
            std::mem::forget(self.io);
        }
        result
    }

    fn forward(&mut self, fib: &FibReader) -> stdio::Result<()> {
        let mut tempo = Tempo::new(self.settings.spin, self.settings.last_bulk.clone());
        let mut wait = Wait::No;
        while self.command.load(Relaxed) == Command::Run as u8 {
            self.engine.turn(&mut self.io, wait)?;
            // After the turn, which may have slept: what it delivered arrived just now.
            let now = monotonic();
            self.now_ms = now.as_millis() as u64;
            let received = self.io.received();
            tempo.note(now, &received);
            if let Some(load) = &mut self.load {
                load.turn(now, wait == Wait::Spin && received.packets == 0);
            }
            self.carry(fib);
            self.let_in(now);
            self.count_turn(wait);
            let pause = tempo.pause(now, &received, self.has_work());
            wait = tempo.wait(now, pause);
            match pause {
                Pause::None | Pause::Sleep => {}
                // The other end, or the application, may share this core.
                Pause::Yield => rustix::thread::sched_yield(),
                Pause::Nap => std::thread::sleep(NAP),
            }
        }
        Ok(())
    }

    /// Finishes what was read: nothing that left the kernel is lost.
    fn drain(&mut self, fib: &FibReader) -> stdio::Result<()> {
        self.engine.stop_receiving();
        loop {
            self.engine.turn(&mut self.io, Wait::No)?;
            self.carry(fib);
            if !self.has_work() && !self.engine.in_flight() {
                return Ok(());
            }
        }
    }

    fn has_work(&self) -> bool {
        self.io.has_received()
            || self.partial.is_some()
            || self.holds()
            || !self.io.sends.is_idle()
            || !self.io.writes.is_idle()
    }

    /// Whether batches or chains wait for what the next turn may add. It comes at once, and ends them if it adds nothing.
    fn holds(&self) -> bool {
        self.batcher.holds() || self.coalescer.holds()
    }

    /// Lets packets into the TUN queue, as far as they are held back.
    fn let_in(&mut self, now: Duration) {
        let Some(credit) = &mut self.credit else { return };
        let counters = &self.view.stats.counters;
        let reading = Reading {
            packets: counters.tun_read_packets.get(),
            bytes: counters.tun_read_bytes.get(),
            found_empty: std::mem::take(&mut self.io.tun_empty),
        };
        if !credit.turn(now, reading) {
            self.credit = None;
        }
    }

    fn count_turn(&mut self, wait: Wait) {
        let counters = &self.view.stats.counters;
        counters.turns.add(1);
        counters.sleeps.add(u64::from(wait == Wait::Sleep));
        counters.syscalls.set(self.engine.syscalls());
        counters.rx_overflow.add(self.engine.take_overflows());
    }

    /// Works on everything that was received, as far as operation slots last.
    fn carry(&mut self, fib: &FibReader) {
        if !self.io.has_received()
            && self.partial.is_none()
            && self.io.failed_sends.is_empty()
            && self.io.failed_writes.is_empty()
            && !self.holds()
        {
            return;
        }
        let fib = fib.pin();
        if self.path_mtus.follow(&fib) {
            // What a peer's id means may have changed: nothing newer may join a batch of the old table.
            self.batcher.flush(&mut self.io, &self.view.stats, false);
        }
        self.deal_with_refused(&fib);
        if self.partial.is_some() {
            self.finish_partial();
            // It was planned with the table of an earlier turn, in which a peer's id may have meant another address: nothing
            // newer may join its batches.
            self.batcher.flush(&mut self.io, &self.view.stats, false);
        }
        // A packet too long for its path goes out at once and singly: what came before it must not be held over turns.
        let more_tun = !self.io.tun_rx.is_empty() && self.path_mtus.is_empty();
        if self.partial.is_none() {
            while self.io.sends.free() > 0
                && let Some(rx) = self.io.tun_rx.pop_front()
            {
                self.encap(&fib, rx);
                if self.partial.is_some() {
                    break;
                }
            }
        }
        let more_udp = !self.io.udp_rx.is_empty();
        while let Some(rx) = self.io.udp_rx.pop_front() {
            if let Some(rest) = self.decap(&fib, rx) {
                self.io.udp_rx.push_front(rest);
                break;
            }
        }
        let stats = &self.view.stats;
        self.batcher.flush(&mut self.io, stats, more_tun);
        self.coalescer.flush(&mut self.io, stats, more_udp);
    }

    /// TUN -> UDP: one read.
    fn encap(&mut self, fib: &Fib, rx: TunRx) {
        let stats = &self.view.stats;
        let data = self.io.pool.bytes_mut(rx.frame, rx.data.clone());
        stats.counters.tun_read_packets.add(1);
        stats.counters.tun_read_bytes.add(data.len().saturating_sub(self.vnet_len) as u64);
        let packet = rx.data.start + self.vnet_len.min(data.len())..rx.data.end;
        let vnet = if self.vnet_len > 0 { VnetHeader::parse(data) } else { Ok(VnetHeader::PLAIN) };
        let port = self.socket.local.port();
        let plan = vnet
            .map_err(Refusal::from)
            .and_then(|vnet| encap::plan(fib, port, &vnet, &mut data[self.vnet_len.min(rx.data.len())..]));
        match plan {
            Ok(forward) if forward.datagram_len() <= usize::from(self.path_mtus.limit(forward.peer)) => {
                let peer = fib.peer(forward.peer);
                let (name, name_len) = self.socket.name(peer.addr);
                let to = Destination { peer: forward.peer, name, name_len };
                match forward.split {
                    Some(split) => {
                        let packet = packet.start..packet.start + usize::from(forward.inner.total_len);
                        self.partial = Some(Partial { rx, packet, split, to, next: 0 });
                        self.finish_partial();
                        return; // It releases the frame when all segments are in batches.
                    }
                    None => {
                        let len = usize::from(forward.inner.total_len);
                        let slot = self.batcher.slot(&mut self.io, stats, &to, len);
                        let slot = slot.expect("a send is free: the caller looked");
                        let room = self.io.sends[slot].room(1, len);
                        let packet = (rx.frame, packet.start..packet.start + len);
                        let (packet, room) = self.io.pool.pair(packet, room);
                        room.copy_from_slice(packet);
                    }
                }
            }
            Ok(forward) => self.encap_oversized(fib, &rx, packet, &forward),
            Err(refusal) => {
                stats.encap_drops[refusal.reason.index()].add(1);
                if let Some((kind, inner)) = refusal.reply {
                    self.reply_to_tun(kind, &rx, packet, &inner);
                }
            }
        }
        self.io.pool.release(rx.frame);
    }

    /// Puts segments of a super-packet into batches until it is done or the sends ran out.
    fn finish_partial(&mut self) {
        let Some(mut partial) = self.partial.take() else { return };
        let last = partial.split.count() - 1;
        while partial.next <= last {
            let len = partial.split.len_of(partial.next);
            let Some(slot) = self.batcher.slot(&mut self.io, &self.view.stats, &partial.to, len) else {
                self.partial = Some(partial);
                return;
            };
            // All but the last are of one length.
            let equal = (last - partial.next).max(1);
            let end = partial.next + equal.min(self.batcher.fitting(&self.io, slot, len));
            let room = self.io.sends[slot].room(end - partial.next, len);
            let (packet, room) = self.io.pool.pair((partial.rx.frame, partial.packet.clone()), room);
            partial.split.segments(partial.next..end, packet, room);
            partial.next = end;
        }
        self.io.pool.release(partial.rx.frame);
    }

    /// UDP -> TUN: one receive. Gives back what is left of it when writes ran out.
    fn decap(&mut self, fib: &Fib, rx: UdpRx) -> Option<UdpRx> {
        let stats = &self.view.stats;
        let datagrams = rx.data.len().div_ceil(rx.stride.max(1)).max(1) as u64;
        if rx.truncated {
            stats.decap_drops[DropReason::Truncated.index()].add(datagrams);
            return self.received(&rx);
        }
        let owner = rx.source.and_then(|source| fib.owner_of(source.ip()));
        if owner.is_none() && self.settings.peer_check == PeerCheck::Strict {
            stats.decap_drops[DropReason::PeerUnknown.index()].add(datagrams);
            return self.received(&rx);
        }
        let mut known = Known::default();
        let mut at = rx.data.start;
        // At least once: an empty datagram is one, too.
        loop {
            let end = rx.data.end.min(at + rx.stride.max(1));
            if !self.decap_datagram(fib, owner, &mut known, &rx, at..end) {
                self.view.stats.counters.udp_read_bytes.add((at - rx.data.start) as u64);
                return Some(UdpRx { data: at..rx.data.end, ..rx });
            }
            at = end;
            if at >= rx.data.end {
                return self.received(&rx);
            }
        }
    }

    /// Counts a receive whose end was reached and lets its frame go.
    fn received(&mut self, rx: &UdpRx) -> Option<UdpRx> {
        let counters = &self.view.stats.counters;
        counters.udp_read_batches.add(1);
        counters.udp_read_bytes.add(rx.data.len() as u64);
        self.io.pool.release(rx.frame);
        None
    }

    /// One datagram; false when writes ran out and nothing was done.
    #[inline]
    fn decap_datagram(
        &mut self,
        fib: &Fib,
        owner: Option<OwnerId>,
        known: &mut Known,
        rx: &UdpRx,
        range: Range<usize>,
    ) -> bool {
        if self.io.writes.free() == 0 {
            return false;
        }
        let stats = &self.view.stats;
        let packet = self.io.pool.bytes_mut(rx.frame, range.clone());
        match decap::admit(fib, self.settings.peer_check, owner, known, packet) {
            Ok(admitted) => {
                let len = usize::from(admitted.inner.total_len);
                stats.counters.decap_packets.add(1);
                stats.counters.decap_bytes.add(len as u64);
                stats.counters.peer_check_logged.add(u64::from(admitted.suspicious));
                if let Some(peer) = admitted.peer {
                    let peer = stats.peer(peer);
                    peer.rx_packets.add(1);
                    peer.rx_bytes.add(len as u64);
                    peer.last_rx_ms.store(self.now_ms, Relaxed);
                }
                let taken =
                    self.coalescer.push(&mut self.io, rx.frame, range.start..range.start + len, &admitted.inner);
                assert!(taken, "a write is free: looked at above");
            }
            Err(refusal) => {
                stats.decap_drops[refusal.reason.index()].add(1);
                if let Some((kind, inner)) = refusal.reply {
                    self.reply_to_peer(fib, kind, rx, range, &inner);
                }
            }
        }
        true
    }

    /// Writes an ICMP error about a packet from TUN back to TUN.
    fn reply_to_tun(&mut self, kind: IcmpError, rx: &TunRx, packet: Range<usize>, inner: &Inner) {
        let mut out = [0; SCRATCH_LEN];
        let vnet = self.io.pool.bytes(rx.frame, rx.data.start..packet.start);
        let packet = self.io.pool.bytes(rx.frame, packet);
        let vnet = VnetHeader::parse(vnet).unwrap_or(VnetHeader::PLAIN);
        let mut first = [0; SCRATCH_LEN];
        let (packet, inner) = first_segment(&vnet, inner, packet, &mut first);
        let reply = self.replies.build(kind, packet, &inner, self.now_ms, &mut out);
        self.write_reply(reply, &out);
    }

    fn write_reply(&mut self, reply: Reply, out: &[u8; SCRATCH_LEN]) {
        let counters = &self.view.stats.counters;
        let slot = match reply {
            Reply::NotDue => return,
            Reply::Limited => None,
            Reply::Built(_) => self.io.writes.take(),
        };
        let (Reply::Built(len), Some(slot)) = (reply, slot) else {
            counters.icmp_limited.add(1);
            return;
        };
        let op = &mut self.io.writes[slot];
        op.scratch[..len].copy_from_slice(&out[..len]);
        if self.vnet_len > 0 {
            *op.vnet = VnetHeader::PLAIN.emit();
            op.gather.push(&op.vnet[..]);
        }
        op.gather.push(&op.scratch[..len]);
        op.bytes = len;
        counters.icmp_sent.add(1);
        counters.tun_write_packets.add(1);
        counters.tun_write_bytes.add(len as u64);
        self.io.writes.queue(slot);
    }

    /// Sends an ICMP error about a packet from a peer to the peer that its source is routed to. Written to TUN it would be a
    /// packet from our own address coming in from outside, on its way out again.
    fn reply_to_peer(&mut self, fib: &Fib, kind: IcmpError, rx: &UdpRx, packet: Range<usize>, inner: &Inner) {
        let mut out = [0; SCRATCH_LEN];
        let packet = self.io.pool.bytes(rx.frame, packet);
        let next_hop: Option<PeerId> = match inner.version {
            weft_packet::Version::V4 => fib.lookup4(inner.src4(packet)),
            weft_packet::Version::V6 => fib.lookup6(inner.src6(packet)),
        };
        let Some(id) = next_hop else { return };
        let counters = &self.view.stats.counters;
        match self.replies.build(kind, packet, inner, self.now_ms, &mut out) {
            Reply::NotDue => {}
            Reply::Limited => counters.icmp_limited.add(1),
            Reply::Built(len) => {
                let (name, name_len) = self.socket.name(fib.peer(id).addr);
                let to = Destination { peer: id, name, name_len };
                let Some(slot) = self.batcher.slot(&mut self.io, &self.view.stats, &to, len) else {
                    counters.icmp_limited.add(1);
                    return;
                };
                let (frame, room) = self.io.sends[slot].room(1, len);
                self.io.pool.bytes_mut(frame, room).copy_from_slice(&out[..len]);
                counters.icmp_sent.add(1);
            }
        }
    }
}

/// CLOCK_MONOTONIC.
fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// What an error about a packet quotes: the packet, or the start of a super-packet's first segment, whose lengths are those
/// of a packet that the sender knows.
fn first_segment<'p>(
    vnet: &VnetHeader,
    inner: &Inner,
    packet: &'p [u8],
    first: &'p mut [u8; SCRATCH_LEN],
) -> (&'p [u8], Inner) {
    let Ok(split) = Split::new(vnet, inner, packet) else { return (packet, *inner) };
    let header_len = split.header_len();
    if header_len > first.len() {
        return (packet, *inner);
    }
    let payload = split.header(0, packet, &mut first[..header_len]);
    let len = first.len().min(header_len + payload.len());
    first[header_len..len].copy_from_slice(&packet[payload][..len - header_len]);
    (&first[..len], Inner { total_len: split.segment_len() as u16, ..*inner })
}
