//! The kernel's side of a tunnel: address, MTU and routes of the TUN device, and the safety routes behind them.
//!
//! For each overlay network there are two routes. The working one leads to the TUN and goes when the TUN goes. The safety
//! route, type `unreachable`, has the worst metric and stays: without it, a dead weftd would send overlay traffic, plain,
//! by the default route to wherever that leads.
//!
//! ```text
//! 10.99.0.0/16 dev weft0                              while weftd lives
//! unreachable 10.99.0.0/16 metric 4278198000          always: senders are told EHOSTUNREACH
//! ```

use crate::config::{MTU_MAX, MTU_MIN, Tunnel};
use crate::netlink::{Address, Netlink, NetlinkError, Route, RouteFilter};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

/// Metric of the safety routes: behind every route that means to work. Told apart from other `unreachable` routes by it.
pub const SAFETY_METRIC: u32 = 4_278_198_000;
/// IPv4 header and UDP header.
const OUTER_LEN_IPV4: u32 = 20 + 8;
/// IPv6 header and UDP header.
const OUTER_LEN_IPV6: u32 = 40 + 8;
/// MTU taken for the underlay when no route leads to any peer: Ethernet's.
const UNDERLAY_MTU_DEFAULT: u32 = 1500;

/// Networks that a message names before it counts the rest.
const NAMED_MAX: usize = 8;

/// What the TUN device and the routing tables should have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkPlan {
    /// Addresses of the device with prefix length; the kernel makes a route for each prefix.
    pub addresses: Vec<IpNet>,
    /// MTU of the device, in bytes.
    pub mtu: u32,
    /// Networks routed to the device, beyond the prefixes of its addresses.
    pub routes: Vec<IpNet>,
    /// Networks with a safety route.
    pub safety: Vec<IpNet>,
}

impl LinkPlan {
    /// What `tunnel` asks for, with a device MTU of `mtu` bytes.
    pub fn new(tunnel: &Tunnel, mtu: u32) -> LinkPlan {
        // A prefix of one address brings no route: the kernel delivers it locally, device or not.
        let on_link: Vec<IpNet> =
            tunnel.addresses.iter().map(IpNet::trunc).filter(|net| net.prefix_len() < net.max_prefix_len()).collect();
        let is_on_link = |network: &&IpNet| on_link.iter().any(|net| net.contains(*network));
        let routes: Vec<IpNet> = tunnel.networks.iter().filter(|network| !is_on_link(network)).copied().collect();
        let is_routed = |net: &&IpNet| routes.iter().any(|network| network.contains(*net));
        let safety = routes.iter().chain(on_link.iter().filter(|net| !is_routed(net))).copied().collect();
        LinkPlan { addresses: tunnel.addresses.clone(), mtu, routes, safety }
    }

    /// What a device has by the looks of it, and the safety routes that stand behind its addresses and routes: for a tunnel
    /// whose own record is lost.
    ///
    /// # Errors
    /// The device is gone, or the kernel does not answer.
    pub fn found(netlink: &mut Netlink, ifindex: u32) -> Result<LinkPlan, NetlinkError> {
        let mtu = netlink.expect_link(ifindex)?.mtu;
        let addresses: Vec<IpNet> = netlink.addresses(Some(ifindex))?.iter().map(|address| address.prefix).collect();
        let present = netlink.routes(&RouteFilter { link: Some(ifindex), ..RouteFilter::default() })?;
        let routes: Vec<IpNet> = present.iter().map(|route| route.dst).collect();
        let mut kept_safe = safety_present(netlink)?;
        let networks = addresses.iter().map(IpNet::trunc).chain(routes.iter().copied());
        let safety = networks.filter(|network| kept_safe.remove(network)).collect();
        Ok(LinkPlan { addresses, mtu, routes, safety })
    }

    /// Makes device and routes as planned, removes what only `previous` has, and touches nothing else. Returns what was
    /// changed, a phrase each; nothing, if all was well.
    ///
    /// # Errors
    /// The device is gone, or the network is routed elsewhere with the same metric.
    pub fn apply(&self, netlink: &mut Netlink, ifindex: u32, previous: &LinkPlan) -> Result<Vec<String>, NetlinkError> {
        let mut done = Vec::new();
        self.apply_safety(netlink, previous, &mut done)?;
        let link = netlink.expect_link(ifindex)?;
        if link.mtu != self.mtu {
            netlink.set_mtu(ifindex, self.mtu)?;
            done.push(format!("MTU {}", self.mtu));
        }
        let present = netlink.addresses(Some(ifindex))?;
        for prefix in &self.addresses {
            let address = Address::new(ifindex, *prefix);
            if !present.contains(&address) {
                refuse_shadowed(netlink, ifindex, &link.name, *prefix)?;
                netlink.replace_address(&address)?;
                done.push(format!("address {prefix}"));
            }
        }
        for prefix in previous.addresses.iter().filter(|prefix| !self.addresses.contains(prefix)) {
            netlink.delete_address(&Address::new(ifindex, *prefix))?;
            done.push(format!("address {prefix} removed"));
        }
        if !link.up {
            netlink.set_up(ifindex)?;
            done.push("link up".to_owned());
        }
        let filter = RouteFilter { link: Some(ifindex), ..RouteFilter::default() };
        let present = as_made(netlink.routes(&filter)?, |network| Route::via_link(network, ifindex));
        let missing = without(&self.routes, &present);
        missing.iter().try_for_each(|network| netlink.add_route(&Route::via_link(*network, ifindex)))?;
        tell(&mut done, "route", &missing, "");
        let unwanted = without(&previous.routes, &self.routes.iter().copied().collect());
        unwanted.iter().try_for_each(|network| netlink.delete_route(&Route::via_link(*network, ifindex)))?;
        tell(&mut done, "route", &unwanted, " removed");
        Ok(done)
    }

    fn apply_safety(
        &self,
        netlink: &mut Netlink,
        previous: &LinkPlan,
        done: &mut Vec<String>,
    ) -> Result<(), NetlinkError> {
        let missing = without(&self.safety, &safety_present(netlink)?);
        missing.iter().try_for_each(|network| netlink.add_route(&safety_route(*network)))?;
        tell(done, "safety route", &missing, "");
        let unwanted = without(&previous.safety, &self.safety.iter().copied().collect());
        unwanted.iter().try_for_each(|network| netlink.delete_route(&safety_route(*network)))?;
        tell(done, "safety route", &unwanted, " removed");
        Ok(())
    }

    /// Removes what outlives the device: the safety routes.
    pub fn remove_safety(&self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        self.safety.iter().try_for_each(|network| netlink.delete_route(&safety_route(*network)))
    }
}

/// Metric of the route that the kernel makes for the prefix of an address: 0 for IPv4 (net/ipv4/fib_frontend.c
/// `fib_magic`), 256 for IPv6 (include/uapi/linux/ipv6_route.h `IP6_RT_PRIO_ADDRCONF`).
fn prefix_metric(prefix: IpNet) -> u32 {
    if prefix.addr().is_ipv4() { 0 } else { 256 }
}

/// Refuses an address whose prefix is routed elsewhere already: the kernel would add its own route behind that one without
/// a word, and what is meant for the tunnel would leave in the open.
fn refuse_shadowed(netlink: &mut Netlink, ifindex: u32, name: &str, prefix: IpNet) -> Result<(), NetlinkError> {
    let network = prefix.trunc();
    if network.prefix_len() == network.max_prefix_len() {
        return Ok(());
    }
    let filter = RouteFilter { dst: Some(network), ..RouteFilter::default() };
    let shadows = |route: &&Route| route.link != Some(ifindex) && route.metric <= prefix_metric(prefix);
    let Some(route) = netlink.routes(&filter)?.iter().find(shadows).cloned() else { return Ok(()) };
    let other = match route.link {
        Some(index) => netlink.link(index)?.map_or_else(|| format!("link {index}"), |link| link.name),
        None => "no link".to_owned(),
    };
    let difference = format!("it leads to {other} with metric {}, ahead of what {name} would get", route.metric);
    Err(NetlinkError::Exists { what: format!("adding address {prefix} to {name}: route {network}"), difference })
}

fn safety_route(network: IpNet) -> Route {
    Route { metric: SAFETY_METRIC, ..Route::unreachable(network) }
}

/// Networks that have a safety route.
fn safety_present(netlink: &mut Netlink) -> Result<HashSet<IpNet>, NetlinkError> {
    Ok(as_made(netlink.routes(&RouteFilter::default())?, safety_route))
}

/// Destinations of those routes that are what `make` makes of their destination.
fn as_made(present: Vec<Route>, make: impl Fn(IpNet) -> Route) -> HashSet<IpNet> {
    present.into_iter().filter(|route| *route == make(route.dst)).map(|route| route.dst).collect()
}

/// Those of `networks` that are not among `others`, each once.
fn without(networks: &[IpNet], others: &HashSet<IpNet>) -> Vec<IpNet> {
    let mut seen = others.clone();
    networks.iter().copied().filter(|network| seen.insert(*network)).collect()
}

/// Says what was done to `networks`, if there are any.
fn tell(done: &mut Vec<String>, what: &str, networks: &[IpNet], end: &str) {
    match networks {
        [] => {}
        [network] => done.push(format!("{what} {network}{end}")),
        _ => done.push(format!("{} {what}s{end} ({})", networks.len(), listing(networks))),
    }
}

/// Networks for a person to read: all of a few, the first of many.
pub fn listing(networks: &[IpNet]) -> String {
    let named: Vec<String> = networks.iter().take(NAMED_MAX).map(IpNet::to_string).collect();
    match networks.len() - named.len() {
        0 => named.join(", "),
        rest => format!("{} and {rest} more", named.join(", ")),
    }
}

/// The MTU of the TUN in bytes, so that no packet to any peer needs outer fragments: the smallest underlay MTU among the
/// routes to `peers`, or else that of the link that `listen` is an address of, less the outer headers. `own` is the TUN
/// itself, whose routes do not count.
pub fn device_mtu(
    netlink: &mut Netlink,
    listen: SocketAddr,
    peers: &[IpAddr],
    own: Option<u32>,
) -> Result<u32, NetlinkError> {
    let mut smallest: Option<u32> = None;
    for peer in peers {
        let Some(resolved) = netlink.route_to(*peer)?.filter(|resolved| Some(resolved.link) != own) else { continue };
        let Some(link) = netlink.link(resolved.link)? else { continue };
        let route_mtu = match resolved.mtu {
            Some(mtu) if is_configured(netlink, resolved.link, mtu)? => mtu,
            _ => link.mtu,
        };
        let inner = inner_mtu(route_mtu.min(link.mtu), peer.is_ipv6());
        smallest = Some(smallest.map_or(inner, |other| other.min(inner)));
    }
    if let Some(mtu) = smallest {
        return Ok(mtu);
    }
    let bound = netlink.addresses(None)?.into_iter().find(|address| address.ip() == listen.ip());
    let underlay = match bound {
        Some(address) => netlink.link(address.link)?.map(|link| link.mtu),
        None => None,
    };
    Ok(inner_mtu(underlay.unwrap_or(UNDERLAY_MTU_DEFAULT), listen.is_ipv6()))
}

/// Whether a route by this link was given `mtu` by an administrator. The kernel also answers with what path MTU discovery
/// learned, which concerns one destination for ten minutes and is weftd's business, not the device's.
fn is_configured(netlink: &mut Netlink, link: u32, mtu: u32) -> Result<bool, NetlinkError> {
    let routes = netlink.routes(&RouteFilter { table: None, link: Some(link), ..RouteFilter::default() })?;
    Ok(routes.iter().any(|route| route.mtu == Some(mtu)))
}

fn inner_mtu(underlay: u32, outer_is_ipv6: bool) -> u32 {
    let outer_len = if outer_is_ipv6 { OUTER_LEN_IPV6 } else { OUTER_LEN_IPV4 };
    underlay.saturating_sub(outer_len).clamp(u32::from(MTU_MIN), u32::from(MTU_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn plan(head: &str) -> LinkPlan {
        let text = format!("{head}\n[[peer]]\nname = \"b\"\nsubnets = [\"10.99.2.0/24\"]\nendpoint = \"192.0.2.77\"\n");
        LinkPlan::new(&config::parse("t.toml", "t", &text, &|_| false).unwrap().tunnel, 1472)
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_flannel_address_routes_the_network_beside_it() {
        let plan = plan("address = \"10.99.1.0/32\"\nnetwork = \"10.99.0.0/16\"");
        assert_eq!((plan.routes, plan.safety), (nets(&["10.99.0.0/16"]), nets(&["10.99.0.0/16"])));
    }

    #[test]
    fn the_prefix_of_the_own_address_is_routed_by_the_kernel_and_kept_safe_by_weft() {
        let plan = plan("address = \"10.99.0.1/24\"");
        assert_eq!((plan.routes, plan.safety), (nets(&["10.99.2.0/24"]), nets(&["10.99.2.0/24", "10.99.0.0/24"])));
    }

    #[test]
    fn a_network_within_the_own_prefix_is_not_routed_twice() {
        for network in ["[\"10.99.0.0/16\"]", "[\"10.99.0.0/24\", \"10.99.2.0/23\"]"] {
            let plan = plan(&format!("address = \"10.99.0.1/16\"\nnetwork = {network}"));
            assert_eq!((plan.routes, plan.safety), (nets(&[]), nets(&["10.99.0.0/16"])), "{network}");
        }
    }

    #[test]
    fn the_own_prefix_within_a_network_is_safe_with_it() {
        let plan = plan("address = \"10.99.0.1/24\"\nnetwork = \"10.99.0.0/16\"");
        assert_eq!((plan.routes, plan.safety), (nets(&["10.99.0.0/16"]), nets(&["10.99.0.0/16"])));
    }

    #[test]
    fn many_networks_are_counted_and_few_are_named() {
        let mut done = Vec::new();
        tell(&mut done, "route", &[], "");
        tell(&mut done, "route", &nets(&["10.1.0.0/16"]), " removed");
        tell(&mut done, "safety route", &nets(&["10.1.0.0/16", "10.2.0.0/16"]), "");
        let many: Vec<IpNet> = (0..200).map(|third| format!("10.9.{third}.0/24").parse().unwrap()).collect();
        tell(&mut done, "route", &many, " removed");
        let first: Vec<String> = many[..8].iter().map(IpNet::to_string).collect();
        assert_eq!(
            done,
            [
                "route 10.1.0.0/16 removed",
                "2 safety routes (10.1.0.0/16, 10.2.0.0/16)",
                &format!("200 routes removed ({} and 192 more)", first.join(", ")),
            ]
        );
    }

    #[test]
    fn the_device_mtu_leaves_room_for_the_outer_headers() {
        for (underlay, ipv6, expected) in
            [(1500, false, 1472), (1500, true, 1452), (9000, false, 8972), (65536, false, 65507), (50, true, 68)]
        {
            assert_eq!(inner_mtu(underlay, ipv6), expected, "{underlay}");
        }
    }
}
