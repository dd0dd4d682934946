//! `weft_netlink` against the kernel, in namespaces of its own.

use std::net::IpAddr;
use std::os::fd::AsFd;

use anyhow::{Result, bail, ensure};
use ipnet::IpNet;
use rustix::io::Errno;
use weft_lab::topology::Pair;
use weft_lab::{Lab, TIMEOUT, eventually};
use weft_netlink::{
    Address, Event, Events, FdbEntry, Group, MacAddr, Neighbour, Netlink, NetlinkError, NewLink, NewLinkKind, Route,
    RouteFilter, RouteKind, Veth, Vxlan, protocol,
};

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix in a test")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address in a test")
}

/// Two hosts on a cable, a connection to the first one, and the index of its end `u0`, up, `192.0.2.1/24` and
/// `2001:db8::1/64`.
fn cabled(lab: &Lab) -> Result<(Pair, Netlink, u32)> {
    let pair = Pair::new(lab, 1500)?;
    let (netlink, index) = (pair.a.netlink()?, pair.link.a.index);
    Ok((pair, netlink, index))
}

fn vxlan(underlay: u32) -> Vxlan {
    Vxlan { vni: 1, local: Some(ip("192.0.2.1")), underlay: Some(underlay), port: 8472, learning: false, gbp: false }
}

#[test]
fn link_properties_read_back_as_set() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let (_pair, mut netlink, index) = cabled(&lab)?;
    let mac: MacAddr = "02:00:00:00:00:17".parse()?;
    netlink.set_mac(index, mac)?;
    netlink.set_mtu(index, 1400)?;
    netlink.set_txqueuelen(index, 77)?;
    netlink.rename(index, "cable0")?;
    let link = netlink.expect_link("cable0")?;
    assert_eq!((link.index, link.mtu, link.txqueuelen, link.mac), (index, 1400, 77, Some(mac)));
    assert_eq!((link.up, link.kind.as_deref()), (true, Some("veth")));
    netlink.set_down(index)?;
    assert!(!netlink.expect_link(index)?.up);
    assert_eq!(netlink.link("u0")?, None);
    assert_eq!(netlink.link(4711)?, None);
    assert!(netlink.links()?.iter().any(|link| link.name == "lo"));
    Ok(())
}

#[test]
fn deleting_what_is_gone_succeeds() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let (_pair, mut netlink, index) = cabled(&lab)?;
    for link in [index, 4711] {
        for address in ["198.51.100.1/32", "2001:db8:9::1/128"] {
            netlink.delete_address(&Address::new(link, net(address)))?;
            netlink.delete_route(&Route::via_link(net(address), link))?;
            netlink.delete_route(&Route::via_gateway(net(address), link, net(address).addr()))?;
            netlink.delete_neighbour(link, net(address).addr())?;
        }
    }
    netlink.delete_route(&Route::unreachable(net("198.51.100.0/24")))?;
    netlink.delete_route(&Route::unreachable(net("2001:db8:9::/48")))?;
    let tunnel = netlink.add_link(&NewLink::new("vx", NewLinkKind::Vxlan(vxlan(index))))?;
    for link in [tunnel.index, 4711] {
        netlink.delete_fdb(&FdbEntry { link, mac: MacAddr([2, 0, 0, 0, 0, 1]), dst: ip("192.0.2.9") })?;
    }
    netlink.delete_link(tunnel.index)?;
    netlink.delete_link(tunnel.index)?;
    Ok(())
}

#[test]
fn adding_the_same_link_twice_succeeds_and_a_different_one_is_refused() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let (pair, mut netlink, index) = cabled(&lab)?;
    let new = NewLink { mtu: Some(1450), ..NewLink::new("flannel.1", NewLinkKind::Vxlan(vxlan(index))) };
    let made = netlink.add_link(&new)?;
    assert_eq!((made.vxlan, made.mtu), (Some(vxlan(index)), 1450));
    assert_eq!(netlink.add_link(&new)?, made);
    assert!(netlink.add_link(&NewLink { up: true, ..new })?.up);

    let other = NewLinkKind::Vxlan(Vxlan { vni: 2, ..vxlan(index) });
    let veth = NewLinkKind::Veth(Veth {
        peer_name: "p",
        peer_namespace: Some(pair.a.as_fd()),
        peer_mtu: None,
        peer_mac: None,
    });
    for different in [
        NewLink { mtu: Some(1400), ..new },
        NewLink { kind: other, ..new },
        NewLink { kind: NewLinkKind::Bridge, ..new },
        NewLink { kind: veth, ..new },
    ] {
        let error = netlink.add_link(&different).unwrap_err();
        assert!(matches!(error, NetlinkError::Exists { .. }), "{error}");
    }
    Ok(())
}

#[test]
fn addresses_are_listed_as_added() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let (_pair, mut netlink, link) = cabled(&lab)?;
    let added = ["10.9.1.0/32", "10.9.2.1/24", "2001:db8:9::1/128"].map(|text| Address::new(link, net(text)));
    for address in &added {
        netlink.add_address(address)?;
        netlink.add_address(address)?;
        netlink.replace_address(address)?;
    }
    let found = netlink.addresses(Some(link))?;
    for address in &added {
        assert_eq!(found.iter().filter(|other| *other == address).count(), 1, "{address:?} in {found:?}");
        netlink.delete_address(address)?;
    }
    let found = netlink.addresses(Some(link))?;
    assert!(added.iter().all(|address| !found.contains(address)), "{found:?}");
    Ok(())
}

#[test]
fn routes_are_listed_as_added() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let (_pair, mut netlink, link) = cabled(&lab)?;
    let mut routes = vec![
        Route::via_link(net("10.9.0.0/16"), link),
        Route::via_gateway(net("10.10.0.0/16"), link, ip("192.0.2.2")),
        Route { onlink: true, ..Route::via_gateway(net("10.11.1.0/24"), link, ip("10.11.1.0")) },
        Route { mtu: Some(1400), metric: 7, ..Route::via_link(net("10.12.0.0/16"), link) },
        Route {
            source: Some(ip("192.0.2.1")),
            protocol: protocol::STATIC,
            ..Route::via_link(net("10.13.0.0/16"), link)
        },
        Route { table: 1000, ..Route::via_link(net("10.14.0.0/16"), link) },
        Route::unreachable(net("10.15.0.0/16")),
        Route { kind: RouteKind::Blackhole, ..Route::unreachable(net("10.16.0.0/16")) },
        Route::via_gateway(net("0.0.0.0/0"), link, ip("192.0.2.2")),
        Route::via_link(net("2001:db8:a::/48"), link),
        Route::via_gateway(net("2001:db8:b::/48"), link, ip("2001:db8::2")),
        Route { onlink: true, ..Route::via_gateway(net("2001:db8:c::/48"), link, ip("2001:db8:c::")) },
        Route { mtu: Some(1400), metric: 7, ..Route::via_link(net("2001:db8:d::/48"), link) },
        Route::unreachable(net("2001:db8:e::/48")),
        Route::via_gateway(net("::/0"), link, ip("2001:db8::2")),
    ];
    routes.push(Route { source: Some(ip("2001:db8::1")), ..Route::via_link(net("2001:db8:f::/48"), link) });
    for route in &routes {
        netlink.add_route(route)?;
        netlink.add_route(route)?;
        netlink.replace_route(route)?;
        let filter = RouteFilter { table: Some(route.table), dst: Some(route.dst), ..RouteFilter::default() };
        assert_eq!(netlink.routes(&filter)?, std::slice::from_ref(route));
    }
    for route in &routes {
        netlink.delete_route(route)?;
        netlink.delete_route(route)?;
    }
    let left = netlink.routes(&RouteFilter { table: None, ..RouteFilter::default() })?;
    assert!(routes.iter().all(|route| !left.contains(route)), "{left:?}");
    Ok(())
}

#[test]
fn another_route_to_the_same_destination_is_refused_by_add_and_supplanted_by_replace() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let (_pair, mut netlink, link) = cabled(&lab)?;
    for (dst, first, second) in
        [("10.9.0.0/16", "192.0.2.2", "192.0.2.3"), ("2001:db8:9::/48", "2001:db8::2", "2001:db8::3")]
    {
        let first = Route::via_gateway(net(dst), link, ip(first));
        let second = Route::via_gateway(net(dst), link, ip(second));
        netlink.add_route(&first)?;
        let error = netlink.add_route(&second).unwrap_err();
        assert!(matches!(error, NetlinkError::Exists { .. }), "{error}");
        netlink.replace_route(&second)?;
        let filter = RouteFilter { dst: Some(net(dst)), ..RouteFilter::default() };
        assert_eq!(netlink.routes(&filter)?, std::slice::from_ref(&second));
        netlink.delete_route(&first)?;
        assert_eq!(netlink.routes(&filter)?, [second]);
    }
    Ok(())
}

#[test]
fn route_lookup_tells_link_gateway_source_and_mtu() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let (_pair, mut netlink, link) = cabled(&lab)?;
    netlink.add_route(&Route { mtu: Some(1300), ..Route::via_gateway(net("10.9.0.0/16"), link, ip("192.0.2.2")) })?;
    netlink.add_route(&Route::unreachable(net("10.10.0.0/16")))?;
    netlink.add_route(&Route::unreachable(net("2001:db8:10::/48")))?;

    let found = netlink.route_to(ip("10.9.1.1"))?.expect("a route");
    assert_eq!((found.link, found.gateway, found.source), (link, Some(ip("192.0.2.2")), Some(ip("192.0.2.1"))));
    assert_eq!((found.mtu, found.local), (Some(1300), false));
    let found = netlink.route_to(ip("2001:db8::7"))?.expect("a route");
    assert_eq!((found.link, found.gateway, found.source), (link, None, Some(ip("2001:db8::1"))));
    for own in ["192.0.2.1", "2001:db8::1"] {
        assert!(netlink.route_to(ip(own))?.expect("a route").local);
    }
    for nowhere in ["198.51.100.1", "10.10.0.1", "2001:db8:7::1", "2001:db8:10::1"] {
        assert_eq!(netlink.route_to(ip(nowhere))?, None, "{nowhere}");
    }
    Ok(())
}

#[test]
fn neighbours_and_fdb_entries_are_replaced_and_listed() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let (_pair, mut netlink, bridge) = cabled(&lab)?;
    let new = NewLink { up: true, ..NewLink::new("flannel.1", NewLinkKind::Vxlan(vxlan(bridge))) };
    let link = netlink.add_link(&new)?.index;
    let (first, second) = (MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));
    for address in ["10.9.1.0", "2001:db8:9::"].map(ip) {
        for mac in [first, second, second] {
            netlink.replace_neighbour(&Neighbour { link, address, mac })?;
        }
        assert!(netlink.neighbours(link)?.contains(&Neighbour { link, address, mac: second }));
        netlink.delete_neighbour(link, address)?;
    }
    assert_eq!(netlink.neighbours(link)?, []);
    for dst in ["192.0.2.8", "192.0.2.9", "192.0.2.9"].map(ip) {
        netlink.replace_fdb(&FdbEntry { link, mac: first, dst })?;
    }
    let entry = FdbEntry { link, mac: first, dst: ip("192.0.2.9") };
    assert_eq!(netlink.fdb(link)?, [entry]);
    netlink.delete_fdb(&entry)?;
    assert_eq!(netlink.fdb(link)?, []);
    Ok(())
}

#[test]
fn refusals_name_object_and_link_and_explain() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let (_pair, mut netlink, link) = cabled(&lab)?;
    let error = netlink.add_route(&Route::via_gateway(net("10.9.0.0/16"), link, ip("203.0.113.1"))).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::NETUNREACH));
    let text = error.to_string();
    assert!(text.starts_with("adding route 10.9.0.0/16 via 203.0.113.1 dev u0: "), "{text}");
    assert!(text.ends_with("(Nexthop has invalid gateway)"), "{text}");
    let text = netlink.set_up(4711).unwrap_err().to_string();
    assert!(text.starts_with("setting up dev #4711: No such device"), "{text}");
    Ok(())
}

#[test]
fn a_link_moves_to_another_namespace() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let (_pair, mut netlink, _) = cabled(&lab)?;
    let other = lab.node("other")?;
    let veth = Veth { peer_name: "v1", peer_namespace: None, peer_mtu: Some(1300), peer_mac: None };
    let link = netlink.add_link(&NewLink::new("v0", NewLinkKind::Veth(veth)))?;
    let peer = netlink.expect_link("v1")?;
    assert_eq!((peer.mtu, link.parent), (1300, Some(peer.index)));
    netlink.move_to_namespace(peer.index, other.as_fd())?;
    assert_eq!(netlink.link("v1")?, None);
    assert_eq!(other.netlink()?.expect_link("v1")?.mtu, 1300);
    Ok(())
}

#[test]
fn changes_are_reported_to_subscribers() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let (pair, mut netlink, link) = cabled(&lab)?;
    let mut events = pair.a.run(|| Events::open(&[Group::Link, Group::Address, Group::Route]))?;
    let address = Address::new(link, net("198.51.100.1/24"));
    let route = Route::via_link(net("10.9.0.0/16"), link);
    netlink.add_address(&address)?;
    netlink.add_route(&route)?;
    netlink.delete_route(&route)?;
    netlink.delete_address(&address)?;
    netlink.delete_link(link)?;
    let mut seen = Vec::new();
    eventually(TIMEOUT, || {
        for event in events.drain() {
            seen.push(event?);
        }
        let is_gone = |event: &Event| matches!(event, Event::LinkGone(gone) if gone.index == link);
        ensure!(seen.iter().any(is_gone), "no event about the link in {seen:?}");
        Ok(())
    })?;
    let wanted =
        [Event::Address(address), Event::Route(route.clone()), Event::RouteGone(route), Event::AddressGone(address)];
    let mut rest = seen.iter();
    for event in &wanted {
        if !rest.any(|other| other == event) {
            bail!("no {event:?}, or not in order, in {seen:?}");
        }
    }
    Ok(())
}
