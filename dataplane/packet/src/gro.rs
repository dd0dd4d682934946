//! Coalescing in-order segments of one flow into a super-packet, without touching payloads: the caller keeps a chain of
//! (head packet, payload, payload, ...) for a gather write; this module decides what may join and rewrites the head.
//!
//! The caller keeps order by appending only to the latest chain of a flow, and by treating every packet for which
//! [`candidate`] is `None` as closing what it might overtake ([`flow_key`] tells which flow it is of).

use crate::Inner;
use crate::vnet::VnetHeader;

/// Longest head header (IP + transport) that coalescing accepts: IPv4 20 + TCP 60, IPv6 40 + TCP 60.
pub const HEADER_LEN_MAX: usize = 100;

/// A flow's identity, hashed well enough for a small direct-mapped table; equality is exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    // addresses, ports, protocol, version. Yours to choose.
    _private: (),
}

impl FlowKey {
    /// A well-mixed hash for choosing a table slot.
    #[inline]
    pub fn hash(&self) -> u32 {
        todo!()
    }
}

/// The flow of a checked packet with a readable transport header (TCP or UDP, not a later fragment); `None` otherwise.
#[inline]
pub fn flow_key(packet: &[u8], inner: &Inner) -> Option<FlowKey> {
    let _ = (packet, inner);
    todo!()
}

/// What coalescing knows about one packet that could start or join a chain.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    // header length, payload length, seq, PSH, kind. Yours to choose.
    _private: (),
}

impl Candidate {
    /// IP plus transport header bytes: where the payload starts.
    #[inline]
    pub fn header_len(&self) -> usize {
        todo!()
    }
    /// True for UDP, false for TCP.
    #[inline]
    pub fn is_udp(&self) -> bool {
        todo!()
    }
}

/// Whether the packet may take part in coalescing at all: IPv4 without options or IPv6 without extension headers; not a
/// fragment; TCP with flags exactly ACK or ACK|PSH and at least one payload byte; UDP with payload, a nonzero checksum,
/// a length that equals the IP payload, and a destination port that is no VXLAN/Geneve port (4789, 8472, 6081: kernels
/// before 6.8.5 drop UDP_L4 that carries VXLAN).
#[inline]
pub fn candidate(packet: &[u8], inner: &Inner) -> Option<Candidate> {
    let _ = (packet, inner);
    todo!()
}

/// A chain under construction: its head packet and what joined it.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    // Yours to choose.
    _private: (),
}

impl Run {
    /// Starts a chain with one packet.
    #[inline]
    pub fn start(head: &Candidate) -> Run {
        let _ = head;
        todo!()
    }

    /// Packets in the chain.
    #[inline]
    pub fn count(&self) -> usize {
        todo!()
    }

    /// Tries to append `packet` (checked, its candidate given). True when it joined: equal IP header but for length,
    /// id, checksum (TOS/traffic class incl. ECN, DF, TTL, flow label equal); TCP: equal ports, ack number, window, data offset and
    /// option bytes, next sequence number, not closed by a PSH or by a short segment, payload not longer than the
    /// first's; UDP likewise with equal-size datagrams; merged length within 65,535; both transport checksums verified
    /// (the head's once, at the first append). `head` is the chain's first packet as received (not yet rewritten).
    pub fn append(&mut self, head: &[u8], next: &Candidate, packet: &[u8]) -> bool {
        let _ = (head, next, packet);
        todo!()
    }

    /// Ends the chain: rewrites the head's header (lengths, IPv4 checksum, PSH of the last, transport checksum = folded
    /// pseudo-header sum) and returns the virtio-net header to write before it. A chain of one is left untouched and
    /// yields [`VnetHeader::PLAIN`].
    pub fn finish(&self, head: &mut [u8]) -> VnetHeader {
        let _ = head;
        todo!()
    }
}
