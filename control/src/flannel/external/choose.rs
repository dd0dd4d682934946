//! From a link to its addresses: which of several, and whether that is enough.

use super::{Families, Underlay};
use crate::flannel::ExternalInterface;
use crate::netlink::{AddressState, Link};
use regex::Regex;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A link that an option matched, with the addresses that it matched, if it was by address.
pub(super) struct Matched<'a> {
    pub(super) link: &'a Link,
    pub(super) v4: Option<Ipv4Addr>,
    pub(super) v6: Option<Ipv6Addr>,
}

impl<'a> Matched<'a> {
    /// A link matched by name: its addresses are still to be chosen.
    pub(super) fn link(link: &'a Link) -> Self {
        Self { link, v4: None, v6: None }
    }
}

/// A link with an address for each family of the cluster.
pub(super) struct Chosen<'a> {
    pub(super) link: &'a Link,
    pub(super) v4: Option<Ipv4Addr>,
    pub(super) v6: Option<Ipv6Addr>,
}

/// The link that has an address.
pub(super) fn owner(underlay: &Underlay, ip: IpAddr) -> Option<Matched<'_>> {
    let state = underlay.addresses.iter().find(|state| state.address.ip() == ip)?;
    let link = underlay.link(state.address.link)?;
    Some(match ip {
        IpAddr::V4(ip) => Matched { v4: Some(ip), ..Matched::link(link) },
        IpAddr::V6(ip) => Matched { v6: Some(ip), ..Matched::link(link) },
    })
}

/// A link of which an address matches for every family of the cluster.
pub(super) fn matching<'a>(
    underlay: &Underlay,
    families: Families,
    link: &'a Link,
    expression: &Regex,
) -> Option<Matched<'a>> {
    let usable = usable(underlay, link);
    let matches: Vec<IpAddr> = usable.into_iter().filter(|ip| expression.is_match(&ip.to_string())).collect();
    let v4 = matches.iter().copied().find_map(v4);
    let v6 = matches.iter().copied().find_map(v6);
    let enough = (!families.v4 || v4.is_some()) && (!families.v6 || v6.is_some());
    enough.then_some(Matched { link, v4: v4.filter(|_| families.v4), v6: v6.filter(|_| families.v6) })
}

/// Fills in the addresses that were not matched, or says what the link lacks.
pub(super) fn complete<'a>(
    underlay: &Underlay,
    families: Families,
    matched: Matched<'a>,
    previous: Option<&ExternalInterface>,
) -> Result<Chosen<'a>, String> {
    let Matched { link, v4: matched_v4, v6: matched_v6 } = matched;
    if link.mtu == 0 {
        return Err(format!("the MTU of {} is 0", link.name));
    }
    let usable = usable(underlay, link);
    let previous = previous.filter(|previous| previous.name == link.name);
    let v4 = matched_v4.or_else(|| keep_or_first(&usable, previous.and_then(|p| p.addr).map(IpAddr::from), v4));
    let v6 = matched_v6.or_else(|| keep_or_first(&usable, previous.and_then(|p| p.addr_v6).map(IpAddr::from), v6));
    for (needed, missing, family) in [(families.v4, v4.is_none(), "IPv4"), (families.v6, v6.is_none(), "IPv6")] {
        if needed && missing {
            return Err(format!("{} has no usable {family} address", link.name));
        }
    }
    Ok(Chosen { link, v4: v4.filter(|_| families.v4), v6: v6.filter(|_| families.v6) })
}

/// The address in use, unless it is link-local and there is a better one; else the best.
fn keep_or_first<T>(usable: &[IpAddr], in_use: Option<IpAddr>, pick: fn(IpAddr) -> Option<T>) -> Option<T> {
    let best = *usable.iter().find(|ip| pick(**ip).is_some())?;
    let kept = in_use.filter(|ip| usable.contains(ip) && (!is_link_local(*ip) || is_link_local(best)));
    pick(kept.unwrap_or(best))
}

/// The addresses of a link that may be used, the best first: global before link-local, permanent before dynamic, lasting
/// before temporary, and then the kernel's order. Deprecated and tentative ones are not usable, nor is loopback.
fn usable(underlay: &Underlay, link: &Link) -> Vec<IpAddr> {
    let is_usable = |state: &&AddressState| {
        let ip = state.address.ip();
        let special = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast();
        state.address.link == link.index && !state.deprecated && !state.tentative && !special
    };
    let mut found: Vec<&AddressState> = underlay.addresses.iter().filter(is_usable).collect();
    found.sort_by_key(|state| (is_link_local(state.address.ip()), !state.permanent, state.temporary));
    found.into_iter().map(|state| state.address.ip()).collect()
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn v4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

fn v6(ip: IpAddr) -> Option<Ipv6Addr> {
    match ip {
        IpAddr::V6(ip) => Some(ip),
        IpAddr::V4(_) => None,
    }
}
