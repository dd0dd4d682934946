//! Joins admitted packets into TUN writes. A packet joins only the latest chain of its flow, and chains are written in the
//! order they were begun, so order within a flow holds by construction.

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
}

/// Chains of one worker's turn.
#[derive(Debug)]
pub struct Coalescer {
    flows: [Option<Latest>; FLOWS],
    /// Changing it empties the flow table.
    stamp: u64,
    chains: Vec<Chain>,
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
        Coalescer { flows: [None; FLOWS], stamp: 0, chains: Vec::with_capacity(WRITE_OPS), vnet, tcp, udp }
    }

    /// Takes one admitted packet: bytes `range` of `frame`, already trimmed. False when all writes are in use: flush, let
    /// the engine turn, try again.
    #[inline]
    pub fn push(&mut self, io: &mut Io, frame: FrameId, range: Range<usize>, inner: &Inner) -> bool {
        let packet = io.pool.bytes(frame, range.clone());
        let key = if self.tcp || self.udp { gro::flow_key(packet, inner) } else { None };
        let candidate = key
            .and_then(|_| gro::candidate(packet, inner))
            .filter(|candidate| if candidate.is_udp() { self.udp } else { self.tcp });
        let flow = key.map(|key| key.hash() as usize % FLOWS);
        if let (Some(candidate), Some(key), Some(flow)) = (&candidate, key, flow)
            && let Some(latest) = self.flows[flow].filter(|latest| latest.stamp == self.stamp && latest.key == key)
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
        io.pool.hold(frame);
        let op = &mut io.writes[slot];
        if self.vnet {
            op.gather.push(&op.vnet[..]);
        }
        op.gather.push(io.pool.bytes(frame, range.clone()));
        op.bytes = range.len();
        op.packets.push((frame, range.start as u32..range.end as u32));
        self.chains.push(Chain { slot, run: candidate.map(|candidate| Run::start(&candidate)) });
        true
    }

    #[inline]
    fn append(&mut self, io: &mut Io, chain: u16, candidate: &Candidate, frame: FrameId, range: &Range<usize>) -> bool {
        let Chain { slot, run: Some(run) } = &mut self.chains[usize::from(chain)] else { return false };
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

    /// Ends all chains and queues their writes.
    #[inline]
    pub fn flush(&mut self, io: &mut Io, stats: &WorkerStats) {
        if self.chains.is_empty() {
            return;
        }
        self.stamp += 1;
        for Chain { slot, run } in self.chains.drain(..) {
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
    }
}
