//! The choice, on hosts that are lists of links, addresses and routes.

use super::*;
use crate::netlink::Address;

const V4: Families = Families { v4: true, v6: false };
const V6: Families = Families { v4: false, v6: true };
const DUAL: Families = Families { v4: true, v6: true };

fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.into(),
        mtu: 1500,
        up: true,
        carrier: true,
        running: true,
        kind: None,
        master: None,
        mac: None,
        txqueuelen: 0,
        parent: None,
        gso_max_size: None,
        vxlan: None,
    }
}

fn state(index: u32, text: &str) -> AddressState {
    let ip: IpAddr = text.parse().unwrap();
    let address = Address::new(index, ip);
    AddressState { address, permanent: true, temporary: false, deprecated: false, tentative: false }
}

fn default_route(index: u32, gateway: &str) -> Route {
    let gateway: IpAddr = gateway.parse().unwrap();
    let dst: ipnet::IpNet = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" }.parse().unwrap();
    Route::via_gateway(dst, index, gateway)
}

/// `eth0` with the default routes, and flannel's own test case: `dummy0` with four addresses.
fn host() -> Underlay {
    let addresses = [
        (1, "127.0.0.1"),
        (1, "::1"),
        (2, "192.0.2.1"),
        (2, "fe80::1"),
        (2, "2001:db8::1"),
        (3, "1.10.100.1"),
        (3, "192.168.200.128"),
        (3, "172.16.30.18"),
        (3, "172.16.31.200"),
    ];
    Underlay {
        links: vec![link(1, "lo"), link(2, "eth0"), link(3, "dummy0")],
        addresses: addresses.map(|(index, text)| state(index, text)).into(),
        routes: vec![default_route(2, "192.0.2.254"), default_route(2, "fe80::fe")],
        reach: None,
    }
}

fn iface(texts: &[&str]) -> InterfaceOptions {
    InterfaceOptions { iface: texts.iter().map(|text| (*text).into()).collect(), ..Default::default() }
}

fn regexes(texts: &[&str]) -> InterfaceOptions {
    InterfaceOptions { iface_regex: texts.iter().map(|text| (*text).into()).collect(), ..Default::default() }
}

fn choose(options: &InterfaceOptions, families: Families, host: &Underlay) -> Selection {
    select(options, families, host, None).unwrap()
}

fn refusal(options: &InterfaceOptions, families: Families, host: &Underlay) -> String {
    select(options, families, host, None).unwrap_err().to_string()
}

#[test]
fn flannels_own_cases_give_flannels_answers() {
    let public = |mut options: InterfaceOptions| {
        options.public_ip = Some("172.16.31.200".parse().unwrap());
        options
    };
    for (options, addr, told) in [
        (regexes(&[r"192\.168\.200\.\d+"]), "192.168.200.128", "192.168.200.128"),
        (regexes(&[r"dummy\d+"]), "1.10.100.1", "1.10.100.1"),
        (iface(&["dummy0"]), "1.10.100.1", "1.10.100.1"),
        (iface(&["172.16.30.18"]), "172.16.30.18", "172.16.30.18"),
        (public(regexes(&[r"172\.16\.30\.\d+"])), "172.16.30.18", "172.16.31.200"),
    ] {
        let selection = choose(&options, V4, &host());
        let external = selection.external;
        assert_eq!(external.name, "dummy0", "{options:?}");
        assert_eq!(external.addr.unwrap().to_string(), addr, "{options:?}");
        assert_eq!(external.public.unwrap().to_string(), told, "{options:?}");
        assert_eq!((external.addr_v6, selection.notes), (None, vec![]), "{options:?}");
    }
}

#[test]
fn without_options_the_default_route_decides_and_a_global_address_is_preferred() {
    let selection = choose(&InterfaceOptions::default(), DUAL, &host());
    let expected = ExternalInterface {
        name: "eth0".into(),
        ifindex: 2,
        mtu: 1500,
        addr: Some("192.0.2.1".parse().unwrap()),
        addr_v6: Some("2001:db8::1".parse().unwrap()),
        public: Some("192.0.2.1".parse().unwrap()),
        public_v6: Some("2001:db8::1".parse().unwrap()),
    };
    assert_eq!(selection, Selection { external: expected, notes: vec![] });
    assert_eq!(choose(&InterfaceOptions::default(), V6, &host()).external.addr, None);
}

#[test]
fn the_default_route_with_the_best_metric_decides() {
    let mut host = host();
    host.routes = vec![
        Route { metric: 200, ..default_route(2, "192.0.2.254") },
        Route { metric: 100, ..default_route(3, "1.10.100.2") },
        Route { kind: RouteKind::Unreachable, link: None, ..default_route(2, "192.0.2.254") },
    ];
    assert_eq!(choose(&InterfaceOptions::default(), V4, &host).external.name, "dummy0");
}

#[test]
fn both_default_routes_have_to_use_one_interface() {
    let mut host = host();
    host.routes[1] = default_route(3, "fe80::fe");
    let text = refusal(&InterfaceOptions::default(), DUAL, &host);
    assert!(text.contains("IPv4 default route uses eth0, that of IPv6 uses dummy0"), "{text}");
    assert!(text.contains("--iface"), "{text}");
    assert_eq!(choose(&iface(&["eth0"]), DUAL, &host).external.name, "eth0");
}

#[test]
fn a_public_ip_that_is_local_names_its_interface() {
    let options = InterfaceOptions { public_ip: Some("172.16.31.200".parse().unwrap()), ..Default::default() };
    let selection = choose(&options, V4, &host());
    assert_eq!(selection.external.name, "dummy0");
    assert_eq!(selection.external.addr, options.public_ip);
    assert_eq!((selection.external.public, selection.notes.len()), (options.public_ip, 0));
}

#[test]
fn a_public_ip_behind_a_nat_is_told_to_peers_while_the_default_route_carries() {
    let options = InterfaceOptions { public_ip: Some("203.0.113.7".parse().unwrap()), ..Default::default() };
    let Selection { external, notes } = choose(&options, V4, &host());
    assert_eq!((external.name.as_str(), external.addr.unwrap().to_string()), ("eth0", "192.0.2.1".to_owned()));
    assert_eq!(external.public, options.public_ip);
    assert!(notes[0].contains("203.0.113.7 is not an address of this host"), "{notes:?}");
}

#[test]
fn options_are_tried_in_order_and_what_was_passed_over_is_told() {
    let options = InterfaceOptions { iface_regex: vec!["dummy".into()], ..iface(&["eth7", "198.51.100.9"]) };
    let Selection { external, notes } = choose(&options, V4, &host());
    assert_eq!(external.name, "dummy0");
    assert!(notes[0].contains("--iface eth7: no link has that name"), "{notes:?}");
    assert!(notes[0].contains("--iface 198.51.100.9: no link has that address"), "{notes:?}");
}

#[test]
fn an_interface_without_the_family_is_passed_over() {
    let selection = choose(&iface(&["dummy0", "eth0"]), V6, &host());
    assert_eq!(selection.external.name, "eth0");
    assert!(selection.notes[0].contains("dummy0 has no usable IPv6 address"), "{:?}", selection.notes);
    let text = refusal(&iface(&["dummy0"]), DUAL, &host());
    assert!(text.contains("dummy0 has no usable IPv6 address"), "{text}");
    assert!(text.contains("eth0 (192.0.2.1, fe80::1, 2001:db8::1)"), "{text}");
}

#[test]
fn an_expression_for_addresses_has_to_match_both_families_of_a_dual_cluster() {
    let mut host = host();
    host.addresses.push(state(3, "2001:db8:3::1"));
    // Matches an IPv4 address of dummy0, but no IPv6 address of it.
    assert!(refusal(&regexes(&[r"^172\.16\."]), DUAL, &host).contains("no address and no name"));
    let external = choose(&regexes(&[r"^(172\.16\.30\.|2001:db8:3:)"]), DUAL, &host).external;
    assert_eq!((external.name.as_str(), external.addr.unwrap().to_string()), ("dummy0", "172.16.30.18".to_owned()));
    assert_eq!(external.addr_v6.unwrap().to_string(), "2001:db8:3::1");
}

#[test]
fn the_way_to_an_address_names_interface_and_source() {
    let options =
        InterfaceOptions { iface_can_reach: Some("172.16.31.1".parse().unwrap()), ..InterfaceOptions::default() };
    let source = Some("172.16.31.200".parse().unwrap());
    let reach = Resolved { link: 3, gateway: None, source, mtu: None, local: false };
    let there = Underlay { reach: Some(reach), ..host() };
    assert_eq!(choose(&options, V4, &there).external.addr.unwrap().to_string(), "172.16.31.200");
    let text = refusal(&options, V4, &host());
    assert!(text.contains("--iface-can-reach 172.16.31.1: no route leads there"), "{text}");
    let own = Underlay { reach: Some(Resolved { link: 1, local: true, ..reach }), ..host() };
    assert!(refusal(&options, V4, &own).contains("this host has that address itself"));
}

#[test]
fn the_better_address_wins_whatever_its_place() {
    let dynamic = |text| AddressState { permanent: false, ..state(2, text) };
    let temporary = |text| AddressState { temporary: true, ..dynamic(text) };
    let deprecated = |text| AddressState { deprecated: true, ..state(2, text) };
    let tentative = |text| AddressState { tentative: true, ..state(2, text) };
    for (addresses, expected) in [
        (vec![state(2, "169.254.1.1"), state(2, "10.1.0.1")], "10.1.0.1"),
        (vec![state(2, "169.254.1.1")], "169.254.1.1"),
        (vec![dynamic("10.1.0.1"), state(2, "10.1.0.2")], "10.1.0.2"),
        (vec![deprecated("10.1.0.1"), dynamic("10.1.0.2")], "10.1.0.2"),
        (vec![state(2, "10.1.0.1"), state(2, "10.1.0.2")], "10.1.0.1"),
        (vec![temporary("2001:db8::9"), dynamic("2001:db8::2")], "2001:db8::2"),
        (vec![tentative("2001:db8::1"), temporary("2001:db8::9")], "2001:db8::9"),
        (vec![state(2, "fe80::2"), dynamic("2001:db8::2")], "2001:db8::2"),
    ] {
        let families = if expected.contains(':') { V6 } else { V4 };
        let external = choose(&iface(&["eth0"]), families, &Underlay { addresses, ..host() }).external;
        let found = external.addr.map(IpAddr::from).or(external.addr_v6.map(IpAddr::from));
        assert_eq!(found.unwrap().to_string(), expected);
    }
}

#[test]
fn the_address_in_use_stays_while_it_is_usable_and_changes_are_seen() {
    let mut host = host();
    let before = choose(&iface(&["eth0"]), V4, &host).external;
    host.addresses.insert(0, state(2, "192.0.2.77"));
    let again = |host: &Underlay| select(&iface(&["eth0"]), V4, host, Some(&before)).unwrap().external;
    assert_eq!(again(&host), before);
    host.links[1].mtu = 9000;
    assert_eq!(again(&host), ExternalInterface { mtu: 9000, ..before.clone() });
    host.addresses.retain(|state| Some(state.address.ip()) != before.addr.map(IpAddr::from));
    assert_eq!(again(&host).addr.unwrap().to_string(), "192.0.2.77");
}

#[test]
fn refusals_name_what_was_looked_at_and_the_remedy() {
    let none = Underlay { routes: vec![], ..host() };
    let text = refusal(&InterfaceOptions::default(), V4, &none);
    assert!(
        text.starts_with("no interface to the underlay: there is no IPv4 default route; this host has lo "),
        "{text}"
    );
    let several =
        Underlay { routes: vec![Route { link: None, gateway: None, ..default_route(2, "192.0.2.254") }], ..host() };
    assert!(refusal(&InterfaceOptions::default(), V4, &several).contains("several next hops"));
    let text = refusal(&regexes(&["("]), V4, &host());
    assert!(text.starts_with("--iface-regex `(` is not a regular expression"), "{text}");
    let mut broken = host();
    broken.links[1].mtu = 0;
    assert!(refusal(&iface(&["eth0"]), V4, &broken).contains("the MTU of eth0 is 0"));
}

#[test]
fn the_first_wanted_families_that_a_link_has_are_taken_and_the_one_in_use_stays() {
    let wanted = [DUAL, V4, V6];
    let mut host = host();
    let first = |host: &Underlay, previous: Option<&ExternalInterface>| {
        select_first(&iface(&["eth0"]), &wanted, host, previous).map(|selection| selection.external)
    };
    let both = first(&host, None).unwrap();
    assert!(both.addr.is_some() && both.public_v6.is_some(), "{both:?}");
    let all = host.addresses.clone();
    // Without IPv6 it is IPv4, without IPv4 it is IPv6, and neither is IPv4 of one link.
    host.addresses.retain(|state| state.address.ip().is_ipv4());
    let v4 = first(&host, None).unwrap();
    assert_eq!((v4.addr, v4.addr_v6, v4.public_v6), (both.addr, None, None));
    host.addresses = all.clone();
    host.addresses.retain(|state| state.address.ip().is_ipv6());
    let v6 = first(&host, None).unwrap();
    assert_eq!((v6.addr, v6.public, v6.addr_v6), (None, None, both.addr_v6));
    host.addresses.push(state(2, "169.254.7.7"));
    assert_eq!(first(&host, None).unwrap(), v6);
    // A node that sends from IPv4 waits for it to come back; one that sends from IPv6 takes IPv4 once there is some.
    host.addresses.pop();
    assert!(first(&host, Some(&both)).unwrap_err().to_string().contains("no usable IPv4 address"));
    assert_eq!(first(&host, Some(&v6)).unwrap(), v6);
    host.addresses = all;
    assert_eq!(first(&host, Some(&v6)).unwrap(), both);
    // With nothing but an address of one link, that is better than nothing.
    host.addresses = vec![state(2, "169.254.7.7")];
    assert_eq!(first(&host, None).unwrap().addr.unwrap().to_string(), "169.254.7.7");
    host.addresses.clear();
    assert!(first(&host, None).is_err());
}
