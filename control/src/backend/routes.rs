//! Whose a route is, and what stands where a peer's route should be.
//!
//! Routes through the underlay (host-gw, and vxlan with DirectRouting) look like anybody's: `10.9.2.0/24 via 192.0.2.2 dev
//! eth0`. Ours are told apart by their protocol number, [`PROTOCOL`]. flannel makes its own by protocol boot, as `ip route
//! add` does, and never looks at the protocol of a route: it compares destination, gateway and link
//! (`pkg/backend/route_network.go`). So a flanneld that takes over from weft finds its routes, and weft finds flannel's:
//! a route that flannel would have made is taken over, by an atomic replacement, where its peer is known; where no peer
//! is known it is left and reported, because an administrator may have made it.

use super::peers::Overlay;
use crate::netlink::{Netlink, Route, RouteKind, protocol, table};
use ipnet::IpNet;
use std::collections::HashMap;

/// `rtm_protocol` of weft's routes through the underlay. Numbers above 4 belong to whoever uses them
/// (`include/uapi/linux/rtnetlink.h`); this one is in no list of iproute2.
pub const PROTOCOL: u8 = 87;

/// The main table, by destination.
pub(super) struct RouteTable {
    by_dst: HashMap<IpNet, Vec<Route>>,
}

/// What stands where a route is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// The wanted route.
    AsWanted,
    /// Nothing, or something of ours: the wanted route may be put there.
    Free,
    /// Somebody else's route, which is in force there.
    Taken(&'a Route),
}

/// `subnet` by way of `gateway` on the underlay, marked as ours.
pub(super) fn through_underlay(subnet: IpNet, gateway: std::net::IpAddr, link: u32) -> Route {
    Route { protocol: PROTOCOL, ..Route::via_gateway(subnet, link, gateway) }
}

/// Whether weft made this route through the underlay.
pub(super) fn is_ours(route: &Route, network: IpNet) -> bool {
    route.protocol == PROTOCOL && leads_to_peer(route, network)
}

/// Whether this is what flannel makes, or made: an administrator's `ip route add` looks the same.
pub(super) fn is_like_flannels(route: &Route, network: IpNet) -> bool {
    route.protocol == protocol::BOOT && leads_to_peer(route, network)
}

fn leads_to_peer(route: &Route, network: IpNet) -> bool {
    let plain = route.kind == RouteKind::Unicast && route.table == table::MAIN && route.link.is_some();
    plain && route.gateway.is_some() && network.contains(&route.dst) && route.dst != network
}

impl RouteTable {
    pub(super) fn new(routes: Vec<Route>) -> Self {
        let mut by_dst: HashMap<IpNet, Vec<Route>> = HashMap::with_capacity(routes.len());
        for route in routes {
            by_dst.entry(route.dst).or_default().push(route);
        }
        Self { by_dst }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Route> {
        self.by_dst.values().flatten()
    }

    pub(super) fn contains(&self, route: &Route) -> bool {
        self.by_dst.get(&route.dst).is_some_and(|routes| routes.contains(route))
    }

    /// What stands in the place of `wanted`. Routes with a worse metric are no rivals. `may_replace` says which routes
    /// are ours.
    pub(super) fn place(&self, wanted: &Route, may_replace: impl Fn(&Route) -> bool) -> Place<'_> {
        let here = self.by_dst.get(&wanted.dst).map(Vec::as_slice).unwrap_or_default();
        let mut rivals = here.iter().filter(|route| route.metric <= wanted.metric && *route != wanted);
        match rivals.find(|rival| !may_replace(rival)) {
            Some(rival) => Place::Taken(rival),
            None if here.contains(wanted) => Place::AsWanted,
            None => Place::Free,
        }
    }

    /// The routes that `is_own` admits and that are not among `wanted`. A route to a wanted destination counts only if the
    /// wanted one stands beside it: else it is replaced, not removed.
    pub(super) fn stale<'a>(
        &'a self,
        wanted: &'a HashMap<IpNet, Route>,
        is_own: impl Fn(&Route) -> bool + 'a,
    ) -> impl Iterator<Item = &'a Route> {
        self.iter().filter(move |route| {
            is_own(route) && wanted.get(&route.dst).is_none_or(|wanted| wanted != *route && self.contains(wanted))
        })
    }
}

/// Sentences about routes inside the network that look like flannel's and lead to no peer.
pub(super) fn unknown(table: &RouteTable, overlay: Overlay, wanted: &HashMap<IpNet, Route>) -> Vec<String> {
    let is_unknown =
        |route: &&Route| is_like_flannels(route, overlay.network) && !route.onlink && !wanted.contains_key(&route.dst);
    let mut found: Vec<&Route> = table.iter().filter(is_unknown).collect();
    found.sort_by_key(|route| route.dst);
    let sentence = |route: &Route| {
        let family = if route.dst.addr().is_ipv6() { "-6 " } else { "" };
        format!(
            "`{route}` leads to no peer and was not made by weft, so it stays; if flanneld left it, delete it: ip {family}route \
             del {route}"
        )
    };
    found.into_iter().map(sentence).collect()
}

/// Why a peer cannot have its route, and what to do.
pub(super) fn taken(netlink: &mut Netlink, rival: &Route) -> String {
    let link = match rival.link {
        Some(index) => match netlink.link(index) {
            Ok(Some(link)) => format!(" dev {}", link.name),
            _ => format!(" dev #{index}"),
        },
        None => String::new(),
    };
    let remedy = if rival.protocol == protocol::KERNEL {
        "delete the address or link that brings it".to_owned()
    } else {
        let family = if rival.dst.addr().is_ipv6() { "-6 " } else { "" };
        format!("if it is a leftover, delete it: ip {family}route del {rival}{link}")
    };
    format!("its route is taken by `{rival}{link}` (protocol {}), which is not weft's; {remedy}", rival.protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn network() -> IpNet {
        net("10.9.0.0/16")
    }

    fn wanted() -> Route {
        through_underlay(net("10.9.2.0/24"), "192.0.2.2".parse().unwrap(), 2)
    }

    fn may_replace(route: &Route) -> bool {
        is_ours(route, network()) || is_like_flannels(route, network())
    }

    #[test]
    fn what_may_be_replaced_is_ours_or_looks_like_flannels() {
        let other = "192.0.2.9".parse().unwrap();
        for (there, expected) in [
            (vec![], Place::Free),
            (vec![wanted()], Place::AsWanted),
            (vec![Route { gateway: Some(other), ..wanted() }], Place::Free),
            (vec![Route { protocol: protocol::BOOT, ..wanted() }], Place::Free),
            (vec![Route { metric: 50, protocol: protocol::STATIC, ..wanted() }], Place::Free),
            (vec![Route { gateway: Some(other), ..wanted() }, wanted()], Place::AsWanted),
        ] {
            assert_eq!(RouteTable::new(there.clone()).place(&wanted(), may_replace), expected, "{there:?}");
        }
        for foreign in [
            Route { protocol: protocol::STATIC, ..wanted() },
            Route { protocol: protocol::KERNEL, gateway: None, ..wanted() },
            Route { protocol: protocol::BOOT, gateway: None, ..wanted() },
            Route { protocol: protocol::BOOT, link: None, gateway: None, ..wanted() },
            Route::unreachable(net("10.9.2.0/24")),
        ] {
            let table = RouteTable::new(vec![foreign.clone()]);
            assert_eq!(table.place(&wanted(), may_replace), Place::Taken(&foreign));
        }
    }

    #[test]
    fn a_better_metric_of_ipv6_is_a_rival() {
        let wanted = through_underlay(net("2001:db8:9:2::/64"), "2001:db8::2".parse().unwrap(), 2);
        let kernel = Route { metric: 256, protocol: protocol::KERNEL, ..Route::via_link(wanted.dst, 3) };
        let table = RouteTable::new(vec![kernel.clone(), wanted.clone()]);
        assert_eq!(table.place(&wanted, |route| is_ours(route, net("2001:db8:9::/48"))), Place::Taken(&kernel));
    }

    #[test]
    fn only_routes_of_ours_inside_the_network_are_stale() {
        let stale = through_underlay(net("10.9.7.0/24"), "192.0.2.7".parse().unwrap(), 2);
        let beside = Route { gateway: Some("192.0.2.9".parse().unwrap()), ..wanted() };
        let routes = vec![
            wanted(),
            beside.clone(),
            stale.clone(),
            Route { dst: net("10.8.0.0/24"), ..stale.clone() },
            Route { dst: network(), ..stale.clone() },
            Route { dst: net("10.9.8.0/24"), protocol: protocol::BOOT, ..stale.clone() },
            Route { dst: net("10.9.9.0/24"), table: 100, ..stale.clone() },
        ];
        let table = RouteTable::new(routes);
        let wanted = HashMap::from([(wanted().dst, wanted())]);
        let mut found: Vec<_> = table.stale(&wanted, |route| is_ours(route, network())).cloned().collect();
        found.sort_by_key(|route| route.dst);
        assert_eq!(found, [beside, stale]);
    }
}
