//! What the kernel refused, dealt with one packet at a time: offloads it does not want are switched off for good and their
//! packets sent again without; packets beyond the path MTU are answered or fragmented; the rest is counted. Rare by nature,
//! so it may copy and ask.

use super::Worker;
use crate::engine::Engine;
use crate::io::TunRx;
use crate::limits::PACKET_LEN_MAX;
use crate::pipeline::encap::Forward;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use tracing::warn;
use weft_fib::{Fib, PeerId};
use weft_packet::fragment::{self, Fragments};
use weft_packet::icmp::IcmpError;
use weft_packet::vnet::{GsoKind, VnetHeader};
use weft_packet::{DropReason, ip};

/// Switches an offload off, once, and says so once.
fn switch_off(offload: &AtomicBool, what: &str, error: &io::Error) {
    if offload.swap(false, Relaxed) {
        warn!("{what} switched off: the kernel refused a batch ({error}); its packets were sent again without");
    }
}

impl<E: Engine> Worker<'_, E> {
    pub(super) fn deal_with_refused(&mut self, fib: &Fib) {
        while let Some((slot, error)) = self.io.failed_sends.pop_front() {
            self.refused_send(fib, slot, &error);
            self.io.sent(slot);
        }
        while let Some((slot, error)) = self.io.failed_writes.pop_front() {
            self.refused_write(slot, &error);
            self.io.written(slot);
        }
    }

    fn refused_send(&mut self, fib: &Fib, slot: u16, error: &io::Error) {
        let (peer, count, segment_len, addr) = {
            let op = &self.io.sends[slot];
            (op.peer, op.count(), op.segment_len, op.name.addr())
        };
        self.uncount(slot);
        // The batch may be of an older table, in which the id meant a peer that is gone: then it has nowhere to go.
        if !fib.peers().any(|known| known.id == peer && Some(known.addr) == addr) {
            self.view.stats.encap_drops[DropReason::NoRoute.index()].add(count as u64);
            return;
        }
        let refused_size = error.raw_os_error() == Some(libc::EMSGSIZE);
        let refused_batch = count > 1 && matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO));
        if !refused_size && !refused_batch {
            self.view.stats.encap_drops[underlay_reason(error).index()].add(count as u64);
            return;
        }
        // Both may mean that segments exceed the path MTU: UDP GSO reports EINVAL for that on some kernels.
        let limit = self.path_mtus.refresh(fib, peer, self.now_ms, true, &self.view);
        if count > 1 && segment_len <= usize::from(limit) {
            switch_off(&self.view.offloads.udp_gso, "UDP GSO", error);
            self.batcher.gso = false;
        }
        self.view.stats.counters.batch_resent.add(u64::from(count > 1));
        for index in 0..count {
            let op = &self.io.sends[slot];
            let datagram = self.io.pool.bytes(op.frame, op.datagram(index)).to_vec();
            self.send_single(fib, peer, &datagram);
        }
    }

    /// Takes back what the batcher counted: the packets are counted again one by one as they go.
    fn uncount(&mut self, slot: u16) {
        let op = &self.io.sends[slot];
        let stats = &self.view.stats;
        stats.counters.encap_packets.sub(op.count() as u64);
        stats.counters.encap_bytes.sub(op.bytes as u64);
        stats.peer(op.peer).tx_packets.sub(op.count() as u64);
        stats.peer(op.peer).tx_bytes.sub(op.bytes as u64);
    }

    /// Sends one complete inner packet outside of the batches.
    fn send_single(&mut self, fib: &Fib, peer: PeerId, packet: &[u8]) {
        if packet.len() > usize::from(self.path_mtus.limit(peer)) {
            return self.send_oversized(fib, peer, packet);
        }
        match self.socket.send_now(packet, fib.peer(peer).addr) {
            Ok(()) => self.count_sent(peer, packet.len()),
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                if self.path_mtus.refresh(fib, peer, self.now_ms, true, &self.view) < packet.len() as u16 {
                    self.send_oversized(fib, peer, packet);
                } else {
                    self.view.stats.encap_drops[DropReason::UnderlayError.index()].add(1);
                }
            }
            Err(error) => self.view.stats.encap_drops[underlay_reason(&error).index()].add(1),
        }
    }

    fn count_sent(&self, peer: PeerId, len: usize) {
        let stats = &self.view.stats;
        stats.counters.encap_packets.add(1);
        stats.counters.encap_bytes.add(len as u64);
        stats.peer(peer).tx_packets.add(1);
        stats.peer(peer).tx_bytes.add(len as u64);
    }

    /// A complete inner packet beyond the path MTU: fragmented where that is allowed, else answered.
    fn send_oversized(&mut self, fib: &Fib, peer: PeerId, packet: &[u8]) {
        let limit = self.path_mtus.limit(peer);
        let Ok(inner) = ip::check(packet) else {
            self.view.stats.encap_drops[DropReason::UnderlayError.index()].add(1);
            return;
        };
        match Fragments::new(&inner, packet, usize::from(limit)) {
            Ok(fragments) => {
                let mut header = [0; fragment::HEADER_LEN_MAX];
                let mut datagram = Vec::with_capacity(usize::from(limit));
                for index in 0..fragments.count() {
                    let (header_len, payload) = fragments.fragment(index, packet, &mut header);
                    datagram.clear();
                    datagram.extend_from_slice(&header[..header_len]);
                    datagram.extend_from_slice(&packet[payload]);
                    match self.socket.send_now(&datagram, fib.peer(peer).addr) {
                        Ok(()) => {
                            self.count_sent(peer, datagram.len());
                            self.view.stats.counters.fragments_sent.add(1);
                        }
                        Err(error) => self.view.stats.encap_drops[underlay_reason(&error).index()].add(1),
                    }
                }
            }
            Err(reason) => {
                self.view.stats.encap_drops[reason.index()].add(1);
                let mut out = [0; crate::limits::SCRATCH_LEN];
                let kind = IcmpError::TooBig { mtu: limit };
                let reply = self.replies.build(kind, packet, &inner, self.now_ms, &mut out);
                self.write_reply(reply, &out);
            }
        }
    }

    /// A packet or super-packet from TUN whose datagrams exceed what is known to fit to its peer.
    pub(super) fn encap_oversized(&mut self, fib: &Fib, rx: &TunRx, packet: Range<usize>, forward: &Forward) {
        // The path may have recovered meanwhile; then this one goes out singly and the next in batches again.
        self.path_mtus.refresh(fib, forward.peer, self.now_ms, false, &self.view);
        let packet = self.io.pool.bytes(rx.frame, packet.start..packet.start + usize::from(forward.inner.total_len));
        let packet = packet.to_vec();
        let Some(split) = forward.split else { return self.send_single(fib, forward.peer, &packet) };
        let mut segment = vec![0; PACKET_LEN_MAX];
        for index in 0..split.count() {
            let len = split.len_of(index);
            split.segments(index..index + 1, &packet, &mut segment[..len]);
            self.send_single(fib, forward.peer, &segment[..len]);
        }
    }

    fn refused_write(&mut self, slot: u16, error: &io::Error) {
        let op = &self.io.writes[slot];
        let coalesced = op.packets.len() > 1;
        if !coalesced || error.raw_os_error() != Some(libc::EINVAL) {
            self.view.stats.decap_drops[DropReason::TunError.index()].add(op.packets.len().max(1) as u64);
            return;
        }
        let offloads = &self.view.offloads;
        match VnetHeader::parse(&op.vnet[..]).map(|vnet| vnet.gso) {
            Ok(GsoKind::UdpL4) => {
                switch_off(&offloads.tun_uso, "UDP coalescing towards TUN", error);
                self.coalescer.udp = false;
            }
            _ => {
                switch_off(&offloads.tun_tso, "TCP coalescing towards TUN", error);
                self.coalescer.tcp = false;
            }
        }
        self.view.stats.counters.write_resent.add(1);
        let plain = VnetHeader::PLAIN.emit();
        for (index, (frame, range)) in op.packets.iter().enumerate() {
            let packet = self.io.pool.bytes(*frame, range.start as usize..range.end as usize);
            // The head was rewritten for the chain; its header was kept.
            let (head, rest) =
                if index == 0 { (&op.head[..op.head_len], &packet[op.head_len..]) } else { (&[][..], packet) };
            let parts = [IoSlice::new(&plain[..self.vnet_len]), IoSlice::new(head), IoSlice::new(rest)];
            if rustix::io::writev(self.tun, &parts).is_err() {
                self.view.stats.decap_drops[DropReason::TunError.index()].add(1);
            }
        }
    }
}

/// How a refused send is counted.
fn underlay_reason(error: &io::Error) -> DropReason {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => DropReason::UnderlayBusy,
        _ => DropReason::UnderlayError,
    }
}
