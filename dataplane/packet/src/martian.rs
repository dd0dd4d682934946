//! Addresses that a forwarded unicast packet may not carry (RFC 1812 section 5.3.7, RFC 6890, RFC 4291).

use crate::ip::Version;
use crate::{DropReason, Inner};

/// Checks inner source and destination. Source: 0/8, 127/8, 169.254/16, 224/3 (IPv6 `::`, `::1`, ff00::/8, fe80::/10,
/// ::ffff/96) is [`DropReason::MartianSource`]; destination: multicast and 255.255.255.255 is
/// [`DropReason::Multicast`], the rest of that list [`DropReason::MartianDestination`].
#[inline]
pub fn check(packet: &[u8], inner: &Inner) -> Result<(), DropReason> {
    let (source, destination, group) = match inner.version {
        Version::V4 => {
            let destination = inner.dst4(packet);
            (is_martian4(inner.src4(packet)), is_martian4(destination), is_group4(destination))
        }
        Version::V6 => {
            let destination = inner.dst6(packet);
            (is_martian6(inner.src6(packet)), is_martian6(destination), is_group6(destination))
        }
    };
    match (source, destination) {
        (false, false) => Ok(()),
        (true, _) => Err(DropReason::MartianSource),
        (false, true) if group => Err(DropReason::Multicast),
        (false, true) => Err(DropReason::MartianDestination),
    }
}

#[inline]
fn is_martian4(address: u32) -> bool {
    let network = address >> 24;
    network == 0 || network == 127 || network >= 224 || address >> 16 == 0xa9fe
}

/// Multicast (224/4) or the limited broadcast.
#[inline]
fn is_group4(address: u32) -> bool {
    address >> 28 == 0xe || address == u32::MAX
}

#[inline]
fn is_martian6(address: u128) -> bool {
    let prefix = (address >> 112) as u16;
    // `::`, `::1` and ::ffff/96 all begin with 80 zero bits.
    is_group6(address) || prefix & 0xffc0 == 0xfe80 || (address >> 48 == 0 && (address <= 1 || address >> 32 == 0xffff))
}

#[inline]
fn is_group6(address: u128) -> bool {
    address >> 120 == 0xff
}
