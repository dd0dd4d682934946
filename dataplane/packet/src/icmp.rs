//! ICMP and ICMPv6 errors that a router owes a sender (RFC 792, RFC 1812 section 4.3.2, RFC 4443).

use crate::ip::{FRAGMENT4_DONT, Fragmentation, HEADER4_LEN, HEADER6_LEN, PROTOCOL_ICMP, PROTOCOL_ICMPV6, Version};
use crate::{Inner, checksum, martian};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest error that [`error`] builds: IPv4 576 (RFC 1812 section 4.3.2.3), IPv6 1280 (RFC 4443 section 2.4 c).
pub const ERROR_LEN_MAX: usize = 1280;

/// Which error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// IPv4 11/0, IPv6 3/0.
    TimeExceeded,
    /// IPv4 3/0 (network unreachable), IPv6 1/0 (no route).
    NetUnreachable,
    /// IPv4 3/4 with the next-hop MTU (RFC 1191), IPv6 2/0 with the MTU.
    TooBig {
        /// Largest inner packet that fits, bytes.
        mtu: u16,
    },
}

/// Builds the error about `offender` into `out` (at least [`ERROR_LEN_MAX`] bytes) as a whole IP packet from `source` (own TUN
/// address of the same family) to the offender's source. Returns its length, or `None` where none may be sent: about an ICMP
/// error or redirect (echo is fine), a later fragment, a multicast/broadcast/martian source or destination, or a family
/// mismatch of `source`. TTL 64, TOS 0xC0, id 0 with DF. Quotes as much of the offender (by its total length) as fits.
/// For a super-packet pass its first segment's header so that the quoted lengths are those of a real segment.
///
/// `None` too where `out` is too short, and about an ICMP packet so short that its type cannot be read.
pub fn error(kind: IcmpError, source: IpAddr, offender: &[u8], inner: &Inner, out: &mut [u8]) -> Option<usize> {
    let out = out.first_chunk_mut::<ERROR_LEN_MAX>()?;
    let offender = &offender[..offender.len().min(usize::from(inner.total_len))];
    if !may_answer(offender, inner) {
        return None;
    }
    match (inner.version, source) {
        (Version::V4, IpAddr::V4(source)) => Some(error4(kind, source, offender, inner, out)),
        (Version::V6, IpAddr::V6(source)) => Some(error6(kind, source, offender, inner, out)),
        _ => None,
    }
}

/// RFC 1812 section 4.3.2.7 and RFC 4443 section 2.4 e: what never draws an error.
fn may_answer(offender: &[u8], inner: &Inner) -> bool {
    if inner.fragmentation == Fragmentation::Later || martian::check(offender, inner).is_err() {
        return false;
    }
    let icmp_type = offender.get(usize::from(inner.l4_offset));
    match (inner.version, inner.protocol) {
        (Version::V4, PROTOCOL_ICMP) => icmp_type.is_some_and(|icmp_type| !ICMP4_ERRORS.contains(icmp_type)),
        (Version::V6, PROTOCOL_ICMPV6) => {
            icmp_type.is_some_and(|&icmp_type| icmp_type >= ICMP6_INFORMATIONAL && icmp_type != ICMP6_REDIRECT)
        }
        _ => true,
    }
}

fn error4(kind: IcmpError, source: Ipv4Addr, offender: &[u8], inner: &Inner, out: &mut [u8; ERROR_LEN_MAX]) -> usize {
    let quote_len = offender.len().min(ERROR4_LEN_MAX - HEADER4_LEN - ICMP_LEN);
    let total_len = HEADER4_LEN + ICMP_LEN + quote_len;
    let (icmp_type, code, mtu) = match kind {
        IcmpError::TimeExceeded => (11, 0, 0),
        IcmpError::NetUnreachable => (3, 0, 0),
        IcmpError::TooBig { mtu } => (3, 4, mtu),
    };

    let mut ip = [0; HEADER4_LEN];
    ip[0] = 0x45;
    ip[1] = TOS;
    ip[2..4].copy_from_slice(&(total_len as u16).to_be_bytes());
    ip[6..8].copy_from_slice(&FRAGMENT4_DONT.to_be_bytes());
    ip[8] = TTL;
    ip[9] = PROTOCOL_ICMP;
    ip[12..16].copy_from_slice(&source.octets());
    ip[16..20].copy_from_slice(&inner.src4(offender).to_be_bytes());
    let sum = !checksum::fold(checksum::sum_header(&ip));
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    let (header, icmp) = out[..total_len].split_at_mut(HEADER4_LEN);
    header.copy_from_slice(&ip);
    write_icmp(icmp, icmp_type, code, mtu, &offender[..quote_len], 0);
    total_len
}

fn error6(kind: IcmpError, source: Ipv6Addr, offender: &[u8], inner: &Inner, out: &mut [u8; ERROR_LEN_MAX]) -> usize {
    let quote_len = offender.len().min(ERROR_LEN_MAX - HEADER6_LEN - ICMP_LEN);
    let icmp_len = ICMP_LEN + quote_len;
    let (icmp_type, code, mtu) = match kind {
        IcmpError::TimeExceeded => (3, 0, 0),
        IcmpError::NetUnreachable => (1, 0, 0),
        IcmpError::TooBig { mtu } => (2, 0, mtu),
    };

    let (ip, icmp) = out[..HEADER6_LEN + icmp_len].split_at_mut(HEADER6_LEN);
    ip[..4].copy_from_slice(&(0x6000_0000 | u32::from(TOS) << 20).to_be_bytes());
    ip[4..6].copy_from_slice(&(icmp_len as u16).to_be_bytes());
    ip[6] = PROTOCOL_ICMPV6;
    ip[7] = TTL;
    ip[8..24].copy_from_slice(&source.octets());
    ip[24..40].copy_from_slice(&inner.src6(offender).to_be_bytes());
    // Unlike ICMP, ICMPv6 is summed with a pseudo-header (RFC 4443 section 2.3).
    let pseudo = checksum::sum(&ip[8..], u64::from(PROTOCOL_ICMPV6) + icmp_len as u64);
    write_icmp(icmp, icmp_type, code, mtu, &offender[..quote_len], pseudo);
    HEADER6_LEN + icmp_len
}

/// Writes type, code, MTU and quote, and a checksum that starts from `pseudo`. Both families have the MTU's low 16 bits
/// in bytes 6 and 7.
fn write_icmp(icmp: &mut [u8], icmp_type: u8, code: u8, mtu: u16, quote: &[u8], pseudo: u64) {
    let [mtu_high, mtu_low] = mtu.to_be_bytes();
    icmp[..ICMP_LEN].copy_from_slice(&[icmp_type, code, 0, 0, 0, 0, mtu_high, mtu_low]);
    icmp[ICMP_LEN..].copy_from_slice(quote);
    let sum = !checksum::fold(checksum::sum(icmp, pseudo));
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
}

/// Longest IPv4 error.
const ERROR4_LEN_MAX: usize = 576;
const _: () = assert!(ERROR4_LEN_MAX <= ERROR_LEN_MAX);

/// Bytes of an ICMP or ICMPv6 error before its quote.
const ICMP_LEN: usize = 8;

/// Internetwork control precedence (RFC 1812 section 4.3.2.5); the traffic class of ICMPv6 errors as well.
const TOS: u8 = 0xc0;
const TTL: u8 = 64;

/// RFC 1122 section 3.2.2: unreachable, source quench, redirect, time exceeded, parameter problem.
const ICMP4_ERRORS: [u8; 5] = [3, 4, 5, 11, 12];

/// RFC 4443 section 2.1: types below this are errors.
const ICMP6_INFORMATIONAL: u8 = 128;
/// RFC 4861 section 4.5.
const ICMP6_REDIRECT: u8 = 137;
