//! One check of an inner IP packet, after which no field access can fail.

use crate::{DropReason, checksum};

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
///
/// IPv4 options must parse (RFC 791 section 3.1). IPv6 extension headers are walked as far as [`EXTENSION_COUNT_MAX`]
/// headers and [`EXTENSION_LEN_MAX`] bytes; ESP, AH, no-next-header and unknown protocols end the walk. An IPv6 payload
/// length of zero (a jumbogram, RFC 2675, or nothing at all) and a packet beyond 65,535 bytes are
/// [`DropReason::BadTotalLen`].
// Always inlined: a result that is written to memory field by field and read back whole stalls the packet path.
#[inline(always)]
pub fn check(packet: &[u8]) -> Result<Inner, DropReason> {
    match packet.first() {
        None => Err(DropReason::Empty),
        Some(first) => match first >> 4 {
            4 => check4(packet),
            6 => check6(packet),
            _ => Err(DropReason::BadVersion),
        },
    }
}

impl Inner {
    /// Source and destination of a checked packet as they lie in it, for comparing; an IPv4 pair is the first word.
    #[inline]
    pub fn addresses(&self, packet: &[u8]) -> [u64; 4] {
        match self.version {
            Version::V4 => [u64::from_ne_bytes(address(packet, 12)), 0, 0, 0],
            Version::V6 => [8, 16, 24, 32].map(|at| u64::from_ne_bytes(address(packet, at))),
        }
    }
    /// Source address of a checked IPv4 packet, host byte order.
    #[inline]
    pub fn src4(&self, packet: &[u8]) -> u32 {
        u32::from_be_bytes(address(packet, 12))
    }
    /// Destination address of a checked IPv4 packet, host byte order.
    #[inline]
    pub fn dst4(&self, packet: &[u8]) -> u32 {
        u32::from_be_bytes(address(packet, 16))
    }
    /// Source address of a checked IPv6 packet, host byte order.
    #[inline]
    pub fn src6(&self, packet: &[u8]) -> u128 {
        u128::from_be_bytes(address(packet, 8))
    }
    /// Destination address of a checked IPv6 packet, host byte order.
    #[inline]
    pub fn dst6(&self, packet: &[u8]) -> u128 {
        u128::from_be_bytes(address(packet, 24))
    }
}

/// Decrements TTL or hop limit by one and patches the IPv4 checksum incrementally (RFC 1624 equation 3). TTL 0 and 1
/// are refused with [`DropReason::TtlExceeded`] and the packet stays as it was: a TTL is never raised.
#[inline]
pub fn decrement_ttl(packet: &mut [u8], inner: &Inner) -> Result<(), DropReason> {
    let header = packet.first_chunk_mut::<20>().ok_or(DropReason::TooShort)?;
    match inner.version {
        Version::V4 => {
            let old = u16::from_be_bytes([header[8], header[9]]);
            if header[8] <= 1 {
                return Err(DropReason::TtlExceeded);
            }
            let new = old - 0x0100;
            let sum = checksum::update(u16::from_be_bytes([header[10], header[11]]), old, new);
            header[8] -= 1;
            [header[10], header[11]] = sum.to_be_bytes();
        }
        Version::V6 => {
            if header[7] <= 1 {
                return Err(DropReason::TtlExceeded);
            }
            header[7] -= 1;
        }
    }
    Ok(())
}

#[inline(always)]
fn check4(packet: &[u8]) -> Result<Inner, DropReason> {
    let header = packet.first_chunk::<HEADER4_LEN>().ok_or(DropReason::TooShort)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total_len = u16::from_be_bytes([header[2], header[3]]);
    if header_len < HEADER4_LEN || header_len > packet.len() {
        return Err(DropReason::BadHeaderLen);
    }
    if usize::from(total_len) < header_len || usize::from(total_len) > packet.len() {
        return Err(DropReason::BadTotalLen);
    }
    let sum = checksum::sum_header(header);
    if header_len > HEADER4_LEN {
        check_options(&packet[HEADER4_LEN..header_len], sum)?;
    } else if checksum::fold(sum) != 0xffff {
        return Err(DropReason::BadChecksum);
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let offset = usize::from(fragment & FRAGMENT4_OFFSET) * 8;
    if offset + usize::from(total_len) > usize::from(u16::MAX) {
        return Err(DropReason::PingOfDeath);
    }
    Ok(Inner {
        version: Version::V4,
        l4_offset: header_len as u16,
        total_len,
        protocol: header[9],
        ttl: header[8],
        fragmentation: Fragmentation::new(offset, fragment & FRAGMENT4_MORE != 0),
        dont_fragment: fragment & FRAGMENT4_DONT != 0,
    })
}

/// The part of [`check4`] that only headers with options need, kept out of the way of the others: the header checksum,
/// given the `sum` of the 20 bytes before the options, and no source route nor an option that does not parse.
#[cold]
#[inline(never)]
fn check_options(options: &[u8], sum: u64) -> Result<(), DropReason> {
    if checksum::fold(checksum::sum(options, sum)) != 0xffff {
        return Err(DropReason::BadChecksum);
    }
    for option in Options4(options) {
        let option = option.ok_or(DropReason::BadHeaderLen)?;
        if matches!(option[0], OPTION_LOOSE_SOURCE_ROUTE | OPTION_STRICT_SOURCE_ROUTE) {
            return Err(DropReason::SourceRoute);
        }
    }
    Ok(())
}

/// The options of an IPv4 header, each whole (type, length, data), without padding; `None` where one does not parse.
pub(crate) struct Options4<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Options4<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let len = match *self.0 {
                [] | [OPTION_END, ..] => return None,
                [OPTION_NOP, ref rest @ ..] => {
                    self.0 = rest;
                    continue;
                }
                [_, len, ..] => usize::from(len),
                [_] => 0,
            };
            return match self.0.split_at_checked(len) {
                Some((option, rest)) if len >= 2 => {
                    self.0 = rest;
                    Some(Some(option))
                }
                _ => {
                    self.0 = &[];
                    Some(None)
                }
            };
        }
    }
}

#[inline]
fn check6(packet: &[u8]) -> Result<Inner, DropReason> {
    let header = packet.first_chunk::<HEADER6_LEN>().ok_or(DropReason::TooShort)?;
    let payload_len = u16::from_be_bytes([header[4], header[5]]);
    let total_len = u16::try_from(HEADER6_LEN + usize::from(payload_len)).map_err(|_| DropReason::BadTotalLen)?;
    if payload_len == 0 || usize::from(total_len) > packet.len() {
        return Err(DropReason::BadTotalLen);
    }
    if is_transport(header[6]) {
        Ok(describe6(header, total_len))
    } else {
        walk_extensions(header, &packet[..usize::from(total_len)])
    }
}

/// An IPv6 packet as its fixed header alone describes it.
#[inline]
fn describe6(header: &[u8; HEADER6_LEN], total_len: u16) -> Inner {
    Inner {
        version: Version::V6,
        l4_offset: HEADER6_LEN as u16,
        total_len,
        protocol: header[6],
        ttl: header[7],
        fragmentation: Fragmentation::Whole,
        dont_fragment: true,
    }
}

/// The description of `packet` (its bytes up to the total length, which begin with `header`) behind its extension
/// headers, one of which may make it a fragment (RFC 8200 section 4).
#[inline(never)]
fn walk_extensions(header: &[u8; HEADER6_LEN], packet: &[u8]) -> Result<Inner, DropReason> {
    let mut inner = describe6(header, packet.len() as u16);
    let mut offset = HEADER6_LEN;
    let mut count = 0;
    while matches!(inner.protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) {
        let extension = &packet[offset..];
        let header = extension.first_chunk::<8>().ok_or(DropReason::BadHeaderLen)?;
        let extension_len = if inner.protocol == FRAGMENT { 8 } else { (usize::from(header[1]) + 1) * 8 };
        let end = offset + extension_len;
        count += 1;
        if end > packet.len() || end - HEADER6_LEN > EXTENSION_LEN_MAX || count > EXTENSION_COUNT_MAX {
            return Err(DropReason::BadHeaderLen);
        }
        if inner.protocol == ROUTING && header[2] == ROUTING_TYPE_0 {
            return Err(DropReason::SourceRoute);
        }
        let is_fragment = inner.protocol == FRAGMENT;
        inner.protocol = header[0];
        inner.l4_offset = end as u16;
        offset = end;
        if is_fragment {
            let field = u16::from_be_bytes([header[2], header[3]]);
            let fragment_offset = usize::from(field & FRAGMENT6_OFFSET);
            // Payload length of the reassembled packet, which has no fragment header (RFC 8200 section 4.5).
            if fragment_offset + packet.len() - HEADER6_LEN - 8 > usize::from(u16::MAX) {
                return Err(DropReason::PingOfDeath);
            }
            match Fragmentation::new(fragment_offset, field & FRAGMENT6_MORE != 0) {
                // RFC 6946: an atomic fragment is no fragment.
                Fragmentation::Whole => {}
                Fragmentation::First => inner.fragmentation = Fragmentation::First,
                Fragmentation::Later => {
                    inner.fragmentation = Fragmentation::Later;
                    return Ok(inner);
                }
            }
        }
    }
    Ok(inner)
}

impl Fragmentation {
    #[inline]
    fn new(offset: usize, more: bool) -> Fragmentation {
        match (offset, more) {
            (0, false) => Fragmentation::Whole,
            (0, true) => Fragmentation::First,
            _ => Fragmentation::Later,
        }
    }
}

/// The protocols that most packets carry, none of which is an extension header.
#[inline]
fn is_transport(protocol: u8) -> bool {
    matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_ICMPV6)
}

/// `N` bytes of an address. All zero in a packet shorter than its header, which [`check`] lets nobody have.
#[inline]
fn address<const N: usize>(packet: &[u8], offset: usize) -> [u8; N] {
    packet.get(offset..).and_then(|bytes| bytes.first_chunk()).copied().unwrap_or([0; N])
}

/// Bytes of an IPv4 header without options.
pub(crate) const HEADER4_LEN: usize = 20;
/// Bytes of an IPv6 header.
pub(crate) const HEADER6_LEN: usize = 40;

/// Most IPv6 extension headers that [`check`] walks; longer chains are [`DropReason::BadHeaderLen`].
pub const EXTENSION_COUNT_MAX: usize = 8;
/// Most bytes of IPv6 extension headers that [`check`] walks; longer chains are [`DropReason::BadHeaderLen`].
pub const EXTENSION_LEN_MAX: usize = 256;

// RFC 791 section 3.1, the flags and fragment offset field.
pub(crate) const FRAGMENT4_DONT: u16 = 0x4000;
pub(crate) const FRAGMENT4_MORE: u16 = 0x2000;
pub(crate) const FRAGMENT4_OFFSET: u16 = 0x1fff;

// RFC 791 section 3.1, option types (copy flag included).
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_LOOSE_SOURCE_ROUTE: u8 = 131;
const OPTION_STRICT_SOURCE_ROUTE: u8 = 137;

// RFC 8200 section 4, next header values; RFC 5095 for the routing type.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const ROUTING_TYPE_0: u8 = 0;
const FRAGMENT: u8 = 44;
const FRAGMENT6_OFFSET: u16 = 0xfff8;
const FRAGMENT6_MORE: u16 = 0x0001;
const DESTINATION_OPTIONS: u8 = 60;
