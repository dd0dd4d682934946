//! Joins admitted packets into TUN writes. A packet joins only the latest chain of its flow, and chains are written in the
//! order they were begun, so order within a flow holds by construction.
//!
//! A UDP buffer ends where the sender's super-packet did not. So the chain that was begun last may be held over a turn, for
//! the next buffer to continue it: a super-packet is then written whole instead of in two parts.

use crate::io::Io;
use crate::limits::{WRITE_OPS, WRITE_PACKETS_MAX};
use crate::pool::FrameId;
use crate::stats::{WorkerStats, bucket};
use std::ops::Range;
use weft_packet::gro::{self, Candidate, FlowKey, Run};
use weft_packet::{Inner, vnet::VNET_LEN};

/// Slots of the flow table; a power of two. Collisions only cost coalescing.
const FLOWS: usize = 64;

/// One flow's latest chain.
#[derive(Clone, Copy, Debug)]
struct Latest {
    key: FlowKey,
    chain: u16,
    /// The table's stamp when this was entered; another stamp means empty.
    stamp: u64,
}

/// A chain under construction.
#[derive(Debug)]
struct Chain {
    slot: u16,
    run: Option<Run>,
    /// Its place in the flow table.
    flow: usize,
}

/// Chains of one worker's turn.
#[derive(Debug)]
pub struct Coalescer {
    flows: [Option<Latest>; FLOWS],
    /// Changing it empties the flow table.
    stamp: u64,
    chains: Vec<Chain>,
    /// Packets in the chain that is held over, when it was last held; a chain that did not grow since is not held again.
    held_count: usize,
    /// Writes carry a virtio-net header.
    pub vnet: bool,
    /// TCP may be joined.
    pub tcp: bool,
    /// UDP may be joined.
    pub udp: bool,
}

impl Coalescer {
    /// Nothing begun.
    pub fn new(vnet: bool, tcp: bool, udp: bool) -> Coalescer {
        Coalescer {
            flows: [None; FLOWS],
            stamp: 0,
            chains: Vec::with_capacity(WRITE_OPS),
            held_count: 1,
            vnet,
            tcp,
            udp,
        }
    }

    /// Takes one admitted packet: bytes `range` of `frame`, already trimmed. False when all writes are in use: flush, let
    /// the engine turn, try again.
    #[inline]
    pub fn push(&mut self, io: &mut Io, frame: FrameId, range: Range<usize>, inner: &Inner) -> bool {
        let packet = io.pool.bytes(frame, range.clone());
        let coalesces = self.tcp || self.udp;
        let candidate = if coalesces { gro::candidate(packet, inner) } else { None }
            .filter(|candidate| if candidate.is_udp() { self.udp } else { self.tcp });
        // Most packets go on where the last left off: no need to look their flow up. No chain is later than the last.
        if let (Some(candidate), Some(last)) = (&candidate, self.chains.len().checked_sub(1))
            && self.append(io, last as u16, candidate, frame, &range)
        {
            return true;
        }
        let packet = io.pool.bytes(frame, range.clone());
        let key = if coalesces { gro::flow_key(packet, inner) } else { None };
        let flow = key.map(|key| key.hash() as usize % FLOWS);
        if let (Some(candidate), Some(key), Some(flow)) = (&candidate, key, flow)
            && let Some(latest) = self.flows[flow].filter(|latest| latest.stamp == self.stamp && latest.key == key)
            && usize::from(latest.chain) + 1 != self.chains.len()
            && self.append(io, latest.chain, candidate, frame, &range)
        {
            return true;
        }
        let Some(slot) = io.writes.take() else { return false };
        let chain = self.chains.len() as u16;
        match (flow, &candidate) {
            // Later packets of the flow may join this one.
            (Some(flow), Some(_)) => self.flows[flow] = key.map(|key| Latest { key, chain, stamp: self.stamp }),
            // Nothing of this flow may overtake it.
            (Some(flow), None) => self.flows[flow] = None,
            // Of an unknown flow (a later fragment, say): nothing at all may.
            (None, _) => self.stamp += 1,
        }
        let run = candidate.map(|candidate| Run::start(&candidate));
        io.pool.hold(frame);
        let op = &mut io.writes[slot];
        if self.vnet {
            op.gather.push(&op.vnet[..]);
        }
        op.gather.push(io.pool.bytes(frame, range.clone()));
        op.bytes = range.len();
        op.packets.push((frame, range.start as u32..range.end as u32));
        self.chains.push(Chain { slot, run, flow: flow.unwrap_or(0) });
        true
    }

    #[inline]
    fn append(&mut self, io: &mut Io, chain: u16, candidate: &Candidate, frame: FrameId, range: &Range<usize>) -> bool {
        let Chain { slot, run: Some(run), .. } = &mut self.chains[usize::from(chain)] else { return false };
        let (head_frame, head) = io.writes[*slot].packets[0].clone();
        let head = io.pool.bytes(head_frame, head.start as usize..head.end as usize);
        let packet = io.pool.bytes(frame, range.clone());
        if run.count() == WRITE_PACKETS_MAX || !run.append(head, candidate, packet) {
            return false;
        }
        let op = &mut io.writes[*slot];
        let payload = &packet[candidate.header_len()..];
        op.gather.push(payload);
        op.bytes += payload.len();
        op.packets.push((frame, range.start as u32..range.end as u32));
        io.pool.hold(frame);
        true
    }

    /// Whether a chain is held over.
    #[inline]
    pub fn holds(&self) -> bool {
        !self.chains.is_empty()
    }

    /// Ends the chains and queues their writes; with `hold`, all but the one begun last if more may join it.
    #[inline]
    pub fn flush(&mut self, io: &mut Io, stats: &WorkerStats, hold: bool) {
        let Some(last) = self.chains.last() else { return };
        // The first chain may have been held before: only its growth shows that there is more to wait for.
        let enough = if self.chains.len() == 1 { self.held_count } else { 1 };
        let grows = |run: &Run| run.count() > enough && run.count() < WRITE_PACKETS_MAX && run.is_open();
        let held = hold && last.run.as_ref().is_some_and(grows);
        let flow = last.flow;
        self.held_count = last.run.filter(|_| held).map_or(1, |run| run.count());
        self.stamp += 1;
        let ended = self.chains.len() - usize::from(held);
        for Chain { slot, run, .. } in self.chains.drain(..ended) {
            let op = &mut io.writes[slot];
            match run.filter(|run| run.count() > 1) {
                Some(run) => {
                    let (frame, range) = op.packets[0].clone();
                    let head = io.pool.bytes_mut(frame, range.start as usize..range.end as usize);
                    let saved = head.len().min(op.head.len());
                    op.head[..saved].copy_from_slice(&head[..saved]);
                    op.head_len = saved;
                    *op.vnet = run.finish(head).emit();
                }
                None => *op.vnet = [0; VNET_LEN],
            }
            stats.counters.tun_write_packets.add(1);
            stats.counters.tun_write_bytes.add(op.bytes as u64);
            stats.write_segments[bucket(op.packets.len())].add(1);
            io.writes.queue(slot);
        }
        if held && let Some(latest) = &mut self.flows[flow] {
            (latest.chain, latest.stamp) = (0, self.stamp);
        }
    }
}
