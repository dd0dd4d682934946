//! Addresses that a forwarded unicast packet may not carry (RFC 1812 section 5.3.7, RFC 6890, RFC 4291).

use crate::{DropReason, Inner};

/// Checks inner source and destination. Source: 0/8, 127/8, 169.254/16, 224/3 (IPv6 `::`, `::1`, ff00::/8, fe80::/10,
/// ::ffff/96) is [`DropReason::MartianSource`]; destination: multicast and 255.255.255.255 is
/// [`DropReason::Multicast`], the rest of that list [`DropReason::MartianDestination`].
#[inline]
pub fn check(packet: &[u8], inner: &Inner) -> Result<(), DropReason> {
    let _ = (packet, inner);
    todo!()
}
