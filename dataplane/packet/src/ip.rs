//! One check of an inner IP packet, after which no field access can fail.

use crate::DropReason;

/// IP version of an inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// IPv4, RFC 791.
    V4,
    /// IPv6, RFC 8200.
    V6,
}

/// Where a packet stands in an IP fragment series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragmentation {
    /// Not a fragment.
    Whole,
    /// First fragment: has the transport header.
    First,
    /// Any later fragment: has no transport header.
    Later,
}

/// Facts about one packet that passed [`check`]. Offsets are bytes from the first byte of the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// IP version.
    pub version: Version,
    /// Bytes up to the transport header: IPv4 IHL * 4; IPv6 40 plus walked extension headers.
    pub l4_offset: u16,
    /// Length by the packet's own header, 20..=65535 (IPv6: 40..=65535). Bytes beyond it must not be forwarded.
    pub total_len: u16,
    /// Transport protocol number (after IPv6 extension headers).
    pub protocol: u8,
    /// TTL or hop limit as received.
    pub ttl: u8,
    /// Fragment position.
    pub fragmentation: Fragmentation,
    /// IPv4 DF bit; always true for IPv6.
    pub dont_fragment: bool,
}

/// TCP's protocol number.
pub const PROTOCOL_TCP: u8 = 6;
/// UDP's protocol number.
pub const PROTOCOL_UDP: u8 = 17;
/// ICMP's protocol number.
pub const PROTOCOL_ICMP: u8 = 1;
/// ICMPv6's protocol number.
pub const PROTOCOL_ICMPV6: u8 = 58;

/// Checks version, lengths, IPv4 header checksum, source routing and fragment bounds (never addresses or TTL; see
/// [`crate::martian`] and [`decrement_ttl`]). `packet` may carry trailing bytes beyond its total length.
pub fn check(packet: &[u8]) -> Result<Inner, DropReason> {
    let _ = packet;
    todo!()
}

impl Inner {
    /// Source address of a checked IPv4 packet, host byte order.
    #[inline]
    pub fn src4(&self, packet: &[u8]) -> u32 {
        let _ = packet;
        todo!()
    }
    /// Destination address of a checked IPv4 packet, host byte order.
    #[inline]
    pub fn dst4(&self, packet: &[u8]) -> u32 {
        let _ = packet;
        todo!()
    }
    /// Source address of a checked IPv6 packet, host byte order.
    #[inline]
    pub fn src6(&self, packet: &[u8]) -> u128 {
        let _ = packet;
        todo!()
    }
    /// Destination address of a checked IPv6 packet, host byte order.
    #[inline]
    pub fn dst6(&self, packet: &[u8]) -> u128 {
        let _ = packet;
        todo!()
    }
}

/// Decrements TTL or hop limit by one and patches the IPv4 checksum incrementally (RFC 1624 equation 3). TTL 0 and 1
/// are refused with [`DropReason::TtlExceeded`] and the packet stays as it was: a TTL is never raised.
#[inline]
pub fn decrement_ttl(packet: &mut [u8], inner: &Inner) -> Result<(), DropReason> {
    let _ = (packet, inner);
    todo!()
}
