//! Splitting a super-packet into complete segments.
//!
//! What is constant over the segments is summed once, in [`Split::new`]. A segment then costs a header copy, a few adds
//! and one pass over its payload, which is summed while it is copied.

use crate::ip::{Fragmentation, HEADER4_LEN, HEADER6_LEN, PROTOCOL_TCP, PROTOCOL_UDP, Version};
use crate::transport::{TCP_CHECKSUM, TCP_CWR, TCP_FIN, TCP_LEN, TCP_PSH, UDP_CHECKSUM, UDP_LEN, tcp_header_len};
use crate::vnet::{GsoKind, VnetHeader};
use crate::{DropReason, Inner, checksum};
use std::ops::Range;

/// A super-packet checked against its virtio-net header, ready to be split any number of times.
///
/// It remembers sums of the headers it was made from: whatever changes them (such as [`crate::ip::decrement_ttl`]) comes
/// before [`Split::new`].
#[derive(Clone, Copy, Debug)]
pub struct Split {
    /// IPv4 header without total length, id and checksum; unused for IPv6.
    ip_sum: u64,
    /// Pseudo-header without length, and transport header without what differs between segments.
    transport_sum: u64,
    payload_len: usize,
    gso_size: usize,
    count: usize,
    header_len: usize,
    l4_offset: usize,
    /// Of the super-packet: TCP sequence number, IPv4 id, TCP flags.
    seq: u32,
    id: u16,
    flags: u8,
    version: Version,
    is_udp: bool,
}

impl Split {
    /// Checks everything that splitting relies on and refuses the rest as [`DropReason::BadVnetHeader`]: kind agrees
    /// with version and protocol, `gso_size` > 0, NEEDS_CSUM set, csum_start/offset are the real transport header's,
    /// the transport header (TCP data offset 20..=60, UDP 8) lies inside the packet, not a fragment. `hdr_len` is
    /// ignored: headers are measured from the packet. All arithmetic in `usize`.
    pub fn new(vnet: &VnetHeader, inner: &Inner, packet: &[u8]) -> Result<Split, DropReason> {
        Split::checked(vnet, inner, packet).ok_or(DropReason::BadVnetHeader)
    }

    fn checked(vnet: &VnetHeader, inner: &Inner, packet: &[u8]) -> Option<Split> {
        let is_udp = match (vnet.gso, inner.version, inner.protocol) {
            (GsoKind::Tcp4, Version::V4, PROTOCOL_TCP) | (GsoKind::Tcp6, Version::V6, PROTOCOL_TCP) => false,
            (GsoKind::UdpL4, _, PROTOCOL_UDP) => true,
            _ => return None,
        };
        let csum_offset = if is_udp { UDP_CHECKSUM } else { TCP_CHECKSUM };
        let agrees = vnet.needs_csum
            && vnet.gso_size > 0
            && vnet.csum_start == inner.l4_offset
            && usize::from(vnet.csum_offset) == csum_offset
            && inner.fragmentation == Fragmentation::Whole;
        if !agrees {
            return None;
        }

        let packet = packet.get(..usize::from(inner.total_len))?;
        let l4_offset = usize::from(inner.l4_offset);
        let (ip_header, transport) = packet.split_at_checked(l4_offset)?;
        let pseudo_sum = checksum::pseudo(packet, inner, 0);
        let (transport_len, transport_sum, seq, flags) = if is_udp {
            let header = transport.first_chunk::<UDP_LEN>()?;
            (UDP_LEN, checksum::sum(&header[..4], pseudo_sum), 0, 0)
        } else {
            let header = transport.first_chunk::<TCP_LEN>()?;
            let transport_len = tcp_header_len(header);
            let options = transport.get(TCP_LEN..transport_len)?;
            let mut constant = *header;
            constant[4..8].fill(0);
            constant[13] = 0;
            constant[TCP_CHECKSUM..TCP_CHECKSUM + 2].fill(0);
            let seq = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            (transport_len, checksum::sum(options, checksum::sum(&constant, pseudo_sum)), seq, header[13])
        };

        let (ip_sum, id) = match inner.version {
            Version::V4 => {
                let (header, options) = ip_header.split_first_chunk::<HEADER4_LEN>()?;
                let mut constant = *header;
                constant[2..6].fill(0);
                constant[10..12].fill(0);
                (checksum::sum(options, checksum::sum(&constant, 0)), u16::from_be_bytes([header[4], header[5]]))
            }
            Version::V6 => (0, 0),
        };

        let payload_len = transport.len() - transport_len;
        let gso_size = usize::from(vnet.gso_size);
        Some(Split {
            ip_sum,
            transport_sum,
            payload_len,
            gso_size,
            count: payload_len.div_ceil(gso_size).max(1),
            header_len: l4_offset + transport_len,
            l4_offset,
            seq,
            id,
            flags,
            version: inner.version,
            is_udp,
        })
    }

    /// IP plus transport header bytes before each payload.
    #[inline]
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Whole length of every segment but the last (header + gso_size; the only segment's length if there is one).
    #[inline]
    pub fn segment_len(&self) -> usize {
        self.header_len + self.gso_size.min(self.payload_len)
    }

    /// Whole length of segment `index`, which is below [`Self::count`].
    #[inline]
    pub fn len_of(&self, index: usize) -> usize {
        self.header_len + self.gso_size.min(self.payload_len - index * self.gso_size)
    }

    /// How many segments there are, at least 1.
    #[inline]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Writes segments `range` behind each other into `out`, which is exactly as long as they are: headers as by
    /// [`Self::header`], and payloads.
    ///
    /// # Panics
    /// As [`Self::header`], and if `out` has another length.
    #[inline]
    pub fn segments(&self, range: Range<usize>, packet: &[u8], mut out: &mut [u8]) {
        for index in range {
            let (segment, rest) = out.split_at_mut(self.len_of(index));
            out = rest;
            let (header, room) = segment.split_at_mut(self.header_len);
            let payload = self.payload(index);
            let sum = checksum::copy(&packet[payload.clone()], room, self.initial_sum(&payload));
            self.write_header(index, packet, header, &payload, sum);
        }
        assert!(out.is_empty(), "{} bytes left of the segments' room", out.len());
    }

    /// Writes the complete header of segment `index` into `header` (exactly [`Self::header_len`] bytes) and returns
    /// the payload's range in `packet`. IPv4: id + index, total length, header checksum; IPv6 payload length; TCP: seq,
    /// FIN/PSH on the last only, CWR on the first only; UDP length (checksum 0 becomes 0xFFFF); full transport
    /// checksum. Kernel equal: `tcp_gso_segment`, `__udp_gso_segment`.
    ///
    /// # Panics
    /// If `index` is not below [`Self::count`], `header` is not [`Self::header_len`] bytes long, or `packet` is not
    /// the one that this was made from.
    #[inline]
    pub fn header(&self, index: usize, packet: &[u8], header: &mut [u8]) -> Range<usize> {
        let payload = self.payload(index);
        let sum = checksum::sum(&packet[payload.clone()], self.initial_sum(&payload));
        self.write_header(index, packet, header, &payload, sum);
        payload
    }

    /// Where the payload of segment `index` lies in the packet.
    #[inline]
    fn payload(&self, index: usize) -> Range<usize> {
        assert!(index < self.count, "segment {index} of {}", self.count);
        let start = index * self.gso_size;
        let end = self.payload_len.min(start + self.gso_size);
        self.header_len + start..self.header_len + end
    }

    #[inline]
    fn transport_len(&self, payload: &Range<usize>) -> usize {
        self.header_len - self.l4_offset + payload.len()
    }

    /// What is added to the sum of a payload, but for what [`Self::write_header`] adds.
    #[inline]
    fn initial_sum(&self, payload: &Range<usize>) -> u64 {
        self.transport_sum + self.transport_len(payload) as u64
    }

    /// `sum`: of the payload, from [`Self::initial_sum`] on.
    #[inline]
    fn write_header(&self, index: usize, packet: &[u8], header: &mut [u8], payload: &Range<usize>, sum: u64) {
        header.copy_from_slice(&packet[..self.header_len]);
        let transport_len = self.transport_len(payload);
        let (ip, transport) = header.split_at_mut(self.l4_offset);
        self.write_ip(ip, index, transport_len);
        if self.is_udp {
            write_udp(transport, transport_len, sum);
        } else {
            self.write_tcp(transport, index, payload.start - self.header_len, sum);
        }
    }

    #[inline]
    fn write_ip(&self, ip: &mut [u8], index: usize, transport_len: usize) {
        match self.version {
            Version::V4 => {
                let total_len = (self.l4_offset + transport_len) as u16;
                let id = self.id.wrapping_add(index as u16);
                let sum = !checksum::fold(self.ip_sum + u64::from(total_len) + u64::from(id));
                let ip = ip.first_chunk_mut::<HEADER4_LEN>().expect("an IPv4 header has 20 bytes");
                [ip[2], ip[3]] = total_len.to_be_bytes();
                [ip[4], ip[5]] = id.to_be_bytes();
                [ip[10], ip[11]] = sum.to_be_bytes();
            }
            Version::V6 => {
                let payload_len = (self.l4_offset - HEADER6_LEN + transport_len) as u16;
                let ip = ip.first_chunk_mut::<HEADER6_LEN>().expect("an IPv6 header has 40 bytes");
                [ip[4], ip[5]] = payload_len.to_be_bytes();
            }
        }
    }

    /// `sum` lacks the sequence number and the flags.
    #[inline]
    fn write_tcp(&self, tcp: &mut [u8], index: usize, start: usize, sum: u64) {
        let seq = self.seq.wrapping_add(start as u32);
        let mut flags = self.flags;
        if index > 0 {
            flags &= !TCP_CWR;
        }
        if index + 1 < self.count {
            flags &= !(TCP_FIN | TCP_PSH);
        }
        let sum = !checksum::fold(sum + u64::from(seq) + u64::from(flags));
        let tcp = tcp.first_chunk_mut::<TCP_LEN>().expect("a TCP header has 20 bytes");
        [tcp[4], tcp[5], tcp[6], tcp[7]] = seq.to_be_bytes();
        tcp[13] = flags;
        [tcp[TCP_CHECKSUM], tcp[TCP_CHECKSUM + 1]] = sum.to_be_bytes();
    }
}

/// `sum` lacks the header's length field.
#[inline]
fn write_udp(udp: &mut [u8], udp_len: usize, sum: u64) {
    let sum = nonzero(!checksum::fold(sum + udp_len as u64));
    let udp = udp.first_chunk_mut::<UDP_LEN>().expect("a UDP header has 8 bytes");
    [udp[4], udp[5]] = (udp_len as u16).to_be_bytes();
    [udp[UDP_CHECKSUM], udp[UDP_CHECKSUM + 1]] = sum.to_be_bytes();
}

/// A UDP checksum of zero would mean "none" (RFC 768).
#[inline]
fn nonzero(sum: u16) -> u16 {
    if sum == 0 { 0xffff } else { sum }
}

/// Completes the transport checksum in place of a plain packet that came with NEEDS_CSUM
/// (`gso == GsoKind::None`). Without NEEDS_CSUM it does nothing. csum_start/csum_offset are bounds-checked against the
/// packet's total length and must not lie inside the IP header ([`DropReason::BadVnetHeader`]).
///
/// They need not be those of the outermost transport header: a tunnel inside the overlay leaves the checksum of its
/// own inner packet. Like the kernel's `skb_checksum_help`, a sum of zero becomes 0xFFFF for every protocol.
#[inline]
pub fn finish_checksum(vnet: &VnetHeader, inner: &Inner, packet: &mut [u8]) -> Result<(), DropReason> {
    if !vnet.needs_csum {
        return Ok(());
    }
    if vnet.csum_start < inner.l4_offset {
        return Err(DropReason::BadVnetHeader);
    }
    let summed = packet.get_mut(usize::from(vnet.csum_start)..usize::from(inner.total_len));
    let summed = summed.ok_or(DropReason::BadVnetHeader)?;
    let sum = nonzero(!checksum::fold(checksum::sum(summed, 0)));
    let field = summed.get_mut(usize::from(vnet.csum_offset)..).and_then(|bytes| bytes.first_chunk_mut::<2>());
    *field.ok_or(DropReason::BadVnetHeader)? = sum.to_be_bytes();
    Ok(())
}
