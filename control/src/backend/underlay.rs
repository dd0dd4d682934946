//! The external interface as a kernel backend sees it.

use super::peers::Family;
use crate::flannel::{BackendError, ExternalInterface};
use crate::netlink::{Link, Netlink};
use std::net::IpAddr;

/// The external interface as it is: its index is another one after it was deleted and made anew.
///
/// # Errors
/// It is gone, or the kernel does not answer.
pub(super) fn link(netlink: &mut Netlink, external: &ExternalInterface) -> Result<Link, BackendError> {
    let gone = || format!("the external interface {} is gone; waiting until it is back", external.name);
    netlink.link(&external.name)?.ok_or_else(|| BackendError::Trouble(gone()))
}

/// Our own underlay address.
pub(super) fn own_address(external: &ExternalInterface, family: Family) -> Option<IpAddr> {
    match family {
        Family::V4 => external.addr.map(IpAddr::from),
        Family::V6 => external.addr_v6.map(IpAddr::from),
    }
}

/// What peers are told.
pub(super) fn public_address(external: &ExternalInterface, family: Family) -> Option<IpAddr> {
    match family {
        Family::V4 => external.public.map(IpAddr::from),
        Family::V6 => external.public_v6.map(IpAddr::from),
    }
}

/// Whether a link is not what it was, in what routes and tunnels depend on.
pub(super) fn differ(seen: &Link, link: &Link) -> bool {
    let facts = |link: &Link| (link.index, link.mtu, link.up, link.running, link.mac, link.vxlan);
    facts(seen) != facts(link)
}
