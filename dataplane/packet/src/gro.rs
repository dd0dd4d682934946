//! Coalescing in-order segments of one flow into a super-packet, without touching payloads: the caller keeps a chain of
//! (head packet, payload, payload, ...) for a gather write; this module decides what may join and rewrites the head.
//!
//! The caller keeps order by appending only to the latest chain of a flow, and by treating every packet for which
//! [`candidate`] is `None` as closing what it might overtake ([`flow_key`] tells which flow it is of).

use crate::ip::{Fragmentation, HEADER4_LEN, HEADER6_LEN, PROTOCOL_TCP, PROTOCOL_UDP, Version};
use crate::transport::{TCP_ACK, TCP_CHECKSUM, TCP_LEN, TCP_PSH, UDP_CHECKSUM, UDP_LEN, tcp_header_len};
use crate::vnet::{GsoKind, VnetHeader};
use crate::{Inner, checksum};

/// Longest head header (IP + transport) that coalescing accepts: IPv4 20 + TCP 60, IPv6 40 + TCP 60.
pub const HEADER_LEN_MAX: usize = 100;

/// A flow's identity, hashed well enough for a small direct-mapped table; equality is exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    /// As by [`Inner::addresses`].
    addresses: [u64; 4],
    /// Source and destination port as they lie in the packet.
    ports: u32,
    protocol: u8,
    version: Version,
}

impl FlowKey {
    /// A well-mixed hash for choosing a table slot.
    #[inline]
    pub fn hash(&self) -> u32 {
        let [a, b, c, d] = self.addresses;
        let ports = u64::from(self.ports) << 8 | u64::from(self.protocol);
        let mut hash = mix(a ^ SEEDS[0], ports ^ SEEDS[1]);
        if self.version == Version::V6 {
            hash ^= mix(b ^ SEEDS[2], c ^ SEEDS[3]) ^ mix(d ^ SEEDS[1], hash ^ SEEDS[0]);
        }
        (hash >> 32) as u32 ^ hash as u32
    }
}

/// The two halves of the 128-bit product: every input bit reaches every output bit.
#[inline]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

/// First digits of pi's fraction: numbers that nobody chose.
const SEEDS: [u64; 4] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89];

/// The flow of a checked packet with a readable transport header (TCP or UDP, not a later fragment); `None` otherwise.
#[inline]
pub fn flow_key(packet: &[u8], inner: &Inner) -> Option<FlowKey> {
    if !matches!(inner.protocol, PROTOCOL_TCP | PROTOCOL_UDP) || inner.fragmentation == Fragmentation::Later {
        return None;
    }
    let transport = packet.get(usize::from(inner.l4_offset)..usize::from(inner.total_len))?;
    let ports = u32::from_ne_bytes(*transport.first_chunk()?);
    Some(FlowKey { addresses: inner.addresses(packet), ports, protocol: inner.protocol, version: inner.version })
}

/// What coalescing knows about one packet that could start or join a chain.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// TCP sequence number; zero for UDP.
    seq: u32,
    payload_len: u16,
    shape: Shape,
    is_psh: bool,
}

/// What two packets must share before their headers are worth comparing byte by byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    header_len: u8,
    version: Version,
    is_udp: bool,
}

impl Candidate {
    /// IP plus transport header bytes: where the payload starts.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.shape.header_len)
    }
    /// True for UDP, false for TCP.
    #[inline]
    pub fn is_udp(&self) -> bool {
        self.shape.is_udp
    }
    /// Length of the packet by its IP header.
    #[inline]
    fn total_len(&self) -> usize {
        self.header_len() + usize::from(self.payload_len)
    }
}

/// Whether the packet may take part in coalescing at all: IPv4 without options or IPv6 without extension headers; not a
/// fragment; TCP with flags exactly ACK or ACK|PSH and at least one payload byte; UDP with payload, a nonzero checksum,
/// a length that equals the IP payload, and a destination port that is no VXLAN/Geneve port (4789, 8472, 6081: kernels
/// before 6.8.5 drop UDP_L4 that carries VXLAN).
#[inline]
pub fn candidate(packet: &[u8], inner: &Inner) -> Option<Candidate> {
    let ip_len = ip_header_len(inner.version);
    if usize::from(inner.l4_offset) != ip_len || inner.fragmentation != Fragmentation::Whole {
        return None;
    }
    let transport = packet.get(ip_len..usize::from(inner.total_len))?;
    let (transport_len, seq, is_udp, is_psh) = match inner.protocol {
        PROTOCOL_TCP => {
            let header = transport.first_chunk::<TCP_LEN>()?;
            let transport_len = tcp_header_len(header);
            // The low half of byte 12 holds AE and reserved bits.
            let is_plain = header[13] & !TCP_PSH == TCP_ACK && header[12] & 0x0f == 0 && transport_len >= TCP_LEN;
            if !is_plain {
                return None;
            }
            let seq = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            (transport_len, seq, false, header[13] & TCP_PSH != 0)
        }
        PROTOCOL_UDP => {
            let header = transport.first_chunk::<UDP_LEN>()?;
            let port = u16::from_be_bytes([header[2], header[3]]);
            let udp_len = u16::from_be_bytes([header[4], header[5]]);
            let is_plain = usize::from(udp_len) == transport.len()
                && header[UDP_CHECKSUM..] != [0, 0]
                && !TUNNEL_PORTS.contains(&port);
            if !is_plain {
                return None;
            }
            (UDP_LEN, 0, true, false)
        }
        _ => return None,
    };
    let payload_len = transport.len().checked_sub(transport_len).filter(|&len| len > 0)?;
    Some(Candidate {
        seq,
        payload_len: payload_len as u16,
        shape: Shape { header_len: (ip_len + transport_len) as u8, version: inner.version, is_udp },
        is_psh,
    })
}

#[inline]
fn ip_header_len(version: Version) -> usize {
    match version {
        Version::V4 => HEADER4_LEN,
        Version::V6 => HEADER6_LEN,
    }
}

/// VXLAN (IANA), VXLAN (Linux default) and Geneve.
const TUNNEL_PORTS: [u16; 3] = [4789, 8472, 6081];

/// A chain under construction: its head packet and what joined it.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    head: Candidate,
    /// Header and payloads of the chain: the super-packet's length.
    total_len: usize,
    /// The sequence number that continues the chain; zero for UDP.
    seq_next: u32,
    /// Joined since the head.
    appended: u16,
    /// Nothing may follow: a PSH, a short segment, or a head that is corrupt.
    is_closed: bool,
    /// The last packet's.
    is_psh: bool,
}

impl Run {
    /// Starts a chain with one packet.
    #[inline]
    pub fn start(head: &Candidate) -> Run {
        let payload_len = if head.is_udp() { 0 } else { u32::from(head.payload_len) };
        Run {
            head: *head,
            total_len: head.total_len(),
            seq_next: head.seq.wrapping_add(payload_len),
            appended: 0,
            is_closed: head.is_psh,
            is_psh: head.is_psh,
        }
    }

    /// Packets in the chain.
    #[inline]
    pub fn count(&self) -> usize {
        usize::from(self.appended) + 1
    }

    /// Whether a further segment as long as the first could join.
    #[inline]
    pub fn is_open(&self) -> bool {
        !self.is_closed && self.total_len + usize::from(self.head.payload_len) <= usize::from(u16::MAX)
    }

    /// Tries to append `packet` (checked, its candidate given). True when it joined: equal IP header but for length,
    /// id, checksum (TOS/traffic class incl. ECN, DF, TTL, flow label equal); TCP: equal ports, ack number, window, data offset and
    /// option bytes, next sequence number, not closed by a PSH or by a short segment, payload not longer than the
    /// first's; UDP likewise with equal-size datagrams; merged length within 65,535; both transport checksums verified
    /// (the head's once, at the first append). `head` is the chain's first packet as received (not yet rewritten).
    ///
    /// Ids are not compared: a split gives them out anew, counting up from the head's. A head whose checksum is wrong
    /// closes its chain and goes on alone, for the receiver to judge.
    #[inline]
    pub fn append(&mut self, head: &[u8], next: &Candidate, packet: &[u8]) -> bool {
        let total_len = self.total_len + usize::from(next.payload_len);
        if self.is_closed
            || next.seq != self.seq_next
            || next.shape != self.head.shape
            || next.payload_len > self.head.payload_len
            || total_len > usize::from(u16::MAX)
            || !self.same_headers(head, packet)
            || !is_intact(next, packet)
        {
            return false;
        }
        if self.appended == 0 && !is_intact(&self.head, head) {
            self.is_closed = true;
            return false;
        }
        self.total_len = total_len;
        if !next.is_udp() {
            self.seq_next = next.seq.wrapping_add(u32::from(next.payload_len));
        }
        self.appended += 1;
        self.is_psh = next.is_psh;
        self.is_closed = next.is_psh || next.payload_len < self.head.payload_len;
        true
    }

    /// Ends the chain: rewrites the head's header (lengths, IPv4 checksum, PSH of the last, transport checksum = folded
    /// pseudo-header sum) and returns the virtio-net header to write before it. A chain of one is left untouched and
    /// yields [`VnetHeader::PLAIN`].
    ///
    /// # Panics
    /// If `head` is not the packet that the chain began with.
    #[inline]
    pub fn finish(&self, head: &mut [u8]) -> VnetHeader {
        if self.appended == 0 {
            return VnetHeader::PLAIN;
        }
        let Shape { version, is_udp, .. } = self.head.shape;
        let ip_len = ip_header_len(version);
        let transport_len = self.total_len - ip_len;
        let header = &mut head[..self.head.header_len()];
        let (ip, transport) = header.split_at_mut(ip_len);
        let addresses = match version {
            Version::V4 => {
                let ip = ip.first_chunk_mut::<HEADER4_LEN>().expect("an IPv4 header has 20 bytes");
                [ip[2], ip[3]] = (self.total_len as u16).to_be_bytes();
                [ip[10], ip[11]] = [0, 0];
                [ip[10], ip[11]] = (!checksum::fold(checksum::sum_header(ip))).to_be_bytes();
                &ip[12..]
            }
            Version::V6 => {
                let ip = ip.first_chunk_mut::<HEADER6_LEN>().expect("an IPv6 header has 40 bytes");
                [ip[4], ip[5]] = (transport_len as u16).to_be_bytes();
                &ip[8..]
            }
        };
        let (gso, protocol, csum_offset) = match (is_udp, version) {
            (true, _) => (GsoKind::UdpL4, PROTOCOL_UDP, UDP_CHECKSUM),
            (false, Version::V4) => (GsoKind::Tcp4, PROTOCOL_TCP, TCP_CHECKSUM),
            (false, Version::V6) => (GsoKind::Tcp6, PROTOCOL_TCP, TCP_CHECKSUM),
        };
        if is_udp {
            [transport[4], transport[5]] = (transport_len as u16).to_be_bytes();
        } else if self.is_psh {
            transport[13] |= TCP_PSH;
        }
        let pseudo = checksum::sum(addresses, u64::from(protocol) + transport_len as u64);
        [transport[csum_offset], transport[csum_offset + 1]] = checksum::fold(pseudo).to_be_bytes();
        VnetHeader {
            needs_csum: true,
            gso,
            ecn: false,
            hdr_len: u16::from(self.head.shape.header_len),
            gso_size: self.head.payload_len,
            csum_start: ip_len as u16,
            csum_offset: csum_offset as u16,
        }
    }

    /// Whether two packets of the chain's shape agree in every header field that all segments share.
    #[inline]
    fn same_headers(&self, head: &[u8], packet: &[u8]) -> bool {
        let header_len = self.head.header_len();
        let (Some(head), Some(packet)) = (head.get(..header_len), packet.get(..header_len)) else { return false };
        match self.head.shape.version {
            Version::V4 => same_under(head, packet, &IPV4_SHARED) && self.same_transport(head, packet, HEADER4_LEN),
            Version::V6 => same_under(head, packet, &IPV6_SHARED) && self.same_transport(head, packet, HEADER6_LEN),
        }
    }

    #[inline]
    fn same_transport(&self, head: &[u8], packet: &[u8], ip_len: usize) -> bool {
        let (head, packet) = (&head[ip_len..], &packet[ip_len..]);
        if self.head.shape.is_udp {
            return head.first_chunk::<4>() == packet.first_chunk::<4>();
        }
        same_under(head, packet, &TCP_SHARED) && same_words(&head[TCP_LEN..], &packet[TCP_LEN..])
    }
}

/// Whether the first `N` bytes agree in the bits of `mask`.
#[inline]
fn same_under<const N: usize>(a: &[u8], b: &[u8], mask: &[u8; N]) -> bool {
    let (Some(a), Some(b)) = (a.first_chunk::<N>(), b.first_chunk::<N>()) else { return false };
    let words =
        |bytes: &[u8; N], at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    (0..N).step_by(4).fold(0, |differing, at| differing | ((words(a, at) ^ words(b, at)) & words(mask, at))) == 0
}

/// Equality of TCP options, which are whole 32-bit words: too short for a call of `memcmp` to pay.
#[inline]
fn same_words(a: &[u8], b: &[u8]) -> bool {
    a.as_chunks::<4>().0.iter().zip(b.as_chunks::<4>().0).all(|(a, b)| u32::from_ne_bytes(*a) == u32::from_ne_bytes(*b))
}

/// Whether the transport checksum of a candidate is right.
#[inline]
fn is_intact(candidate: &Candidate, packet: &[u8]) -> bool {
    let Shape { version, is_udp, .. } = candidate.shape;
    let addresses = match version {
        Version::V4 => 12..HEADER4_LEN,
        Version::V6 => 8..HEADER6_LEN,
    };
    let protocol = if is_udp { PROTOCOL_UDP } else { PROTOCOL_TCP };
    // The addresses end where the transport header begins, so that one pass sums both.
    let Some(summed) = packet.get(addresses.start..candidate.total_len()) else { return false };
    let transport_len = candidate.total_len() - addresses.end;
    checksum::fold(checksum::sum(summed, u64::from(protocol) + transport_len as u64)) == 0xffff
}

/// IPv4 header bytes that all segments share: all but total length, id and checksum.
const IPV4_SHARED: [u8; HEADER4_LEN] = {
    let mut mask = [0xff; HEADER4_LEN];
    [mask[2], mask[3], mask[4], mask[5], mask[10], mask[11]] = [0; 6];
    mask
};

/// IPv6 header bytes that all segments share: all but payload length.
const IPV6_SHARED: [u8; HEADER6_LEN] = {
    let mut mask = [0xff; HEADER6_LEN];
    [mask[4], mask[5]] = [0; 2];
    mask
};

/// TCP header bits that all segments share: all but sequence number, PSH and checksum.
const TCP_SHARED: [u8; TCP_LEN] = {
    let mut mask = [0xff; TCP_LEN];
    [mask[4], mask[5], mask[6], mask[7]] = [0; 4];
    mask[13] = !TCP_PSH;
    [mask[16], mask[17]] = [0; 2];
    mask
};
