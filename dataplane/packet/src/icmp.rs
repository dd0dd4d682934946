//! ICMP and ICMPv6 errors that a router owes a sender (RFC 792, RFC 1812 section 4.3.2, RFC 4443).

use crate::Inner;
use std::net::IpAddr;

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
pub fn error(kind: IcmpError, source: IpAddr, offender: &[u8], inner: &Inner, out: &mut [u8]) -> Option<usize> {
    let _ = (kind, source, offender, inner, out);
    todo!()
}
