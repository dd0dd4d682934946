use super::*;
use crate::flannel::Subnets;

fn external() -> ExternalInterface {
    ExternalInterface {
        name: "u0".into(),
        ifindex: 2,
        mtu: 1500,
        addr: Some([192, 0, 2, 1].into()),
        addr_v6: Some("2001:db8::1".parse().unwrap()),
        public: Some([203, 0, 113, 1].into()),
        public_v6: Some("2001:db8::1".parse().unwrap()),
    }
}

/// On an underlay of both families if the overlay has both, else of the overlay's.
fn udp(v4: bool, v6: bool) -> Udp {
    let ExternalInterface { addr, addr_v6, public, public_v6, .. } = external();
    let external = ExternalInterface {
        addr: addr.filter(|_| v4),
        public: public.filter(|_| v4),
        addr_v6: addr_v6.filter(|_| v6),
        public_v6: public_v6.filter(|_| v6),
        ..external()
    };
    udp_on(v4, v6, external)
}

fn udp_on(v4: bool, v6: bool, external: ExternalInterface) -> Udp {
    let options = UdpOptions {
        port: 8285,
        v4,
        v6,
        run_dir: "/run/weft".into(),
        name: "flannel".into(),
        belongs_to: "/run/flannel/subnet.env".into(),
        peer_check: "strict".into(),
        engine: "auto".into(),
        workers: None,
        source_ports: "same".into(),
        backpressure: true,
        sparse_lane: true,
    };
    Udp::new(options, external, Arc::default())
}

fn peer(subnet: &str, public: [u8; 4]) -> FlannelLease {
    FlannelLease {
        subnets: Subnets { v4: Some(subnet.parse().unwrap()), v6: None },
        attrs: LeaseAttrs { public_ip: Some(public.into()), ..LeaseAttrs::default() },
        expires: None,
    }
}

const BIND: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 8285);

fn routes(merged: &rib::Merged) -> Vec<String> {
    let route =
        |route: &weft_proto::RouteSpec| format!("{} {}", route.prefix, merged.table.peers[route.peer as usize].addr);
    merged.table.routes.iter().map(route).collect()
}

#[test]
fn what_is_published_is_what_stock_flannel_publishes() {
    let attrs = LeaseAttrs { public_ip: Some([203, 0, 113, 1].into()), ..LeaseAttrs::default() };
    assert_eq!(udp(true, false).attrs(), attrs);
}

#[test]
fn a_node_with_ipv6_says_that_it_carries_it() {
    let attrs = udp(true, true).attrs();
    assert!(carries_ipv6(attrs.backend_data.as_ref()));
    assert_eq!(attrs.public_ipv6, external().public_v6);
    for other in [None, Some(Value::Null), Some(json!({"VNI": 1})), Some(json!({"weft": {"inner": "ipv6"}}))] {
        assert!(!carries_ipv6(other.as_ref()), "{other:?}");
    }
}

#[test]
fn leases_of_any_type_are_peers_at_the_clusters_port() {
    let mut vxlan = peer("10.5.3.0/24", [192, 0, 2, 3]);
    vxlan.attrs.backend_type = "vxlan".into();
    vxlan.attrs.backend_data = Some(json!({"VNI": 1, "VtepMAC": "c6:d2:32:6f:8f:44"}));
    let merged = udp(true, false).table(&[peer("10.5.2.0/24", [192, 0, 2, 2]), vxlan], BIND);
    assert_eq!(routes(&merged), ["10.5.2.0/24 192.0.2.2:8285", "10.5.3.0/24 192.0.2.3:8285"]);
    assert!(merged.notes.is_empty(), "{:?}", merged.notes);
}

#[test]
fn one_bad_lease_concerns_itself_alone() {
    let mut without = peer("10.5.9.0/24", [0; 4]);
    without.attrs.public_ip = None;
    let bad = [
        (peer("10.5.4.0/24", [224, 0, 0, 1]), "multicast"),
        (peer("10.5.5.0/24", [127, 0, 0, 1]), "loopback"),
        (peer("10.5.6.0/24", [0, 0, 0, 1]), "reserved"),
        (peer("10.5.7.0/24", [192, 0, 2, 1]), "this node's own"),
        (peer("10.5.8.0/24", [203, 0, 113, 1]), "this node's own"),
        (without, "no PublicIP"),
    ];
    let mut peers: Vec<FlannelLease> = bad.iter().map(|(peer, _)| peer.clone()).collect();
    peers.push(peer("10.5.2.0/24", [192, 0, 2, 2]));
    let merged = udp(true, false).table(&peers, BIND);
    assert_eq!(routes(&merged), ["10.5.2.0/24 192.0.2.2:8285"]);
    for ((peer, why), note) in bad.iter().zip(&merged.notes) {
        assert!(note.contains(why) && note.contains(&name_of(peer)), "{note}");
    }
}

#[test]
fn ipv6_leads_only_to_peers_that_carry_it() {
    let (mut able, mut stock) = (peer("10.5.2.0/24", [192, 0, 2, 2]), peer("10.5.3.0/24", [192, 0, 2, 3]));
    able.subnets.v6 = Some("fd05:0:0:2::/64".parse().unwrap());
    able.attrs.backend_data = Some(capabilities());
    stock.subnets.v6 = Some("fd05:0:0:3::/64".parse().unwrap());
    let merged = udp(true, true).table(&[able, stock], BIND);
    let expected = ["10.5.2.0/24 192.0.2.2:8285", "fd05:0:0:2::/64 192.0.2.2:8285", "10.5.3.0/24 192.0.2.3:8285"];
    assert_eq!(routes(&merged), expected);
}

#[test]
fn datagrams_go_over_ipv4_where_the_node_has_it_and_else_over_ipv6() {
    let none = |external: ExternalInterface| ExternalInterface { addr: None, public: None, ..external };
    let ipv6 = udp_on(true, true, none(external()));
    assert_eq!(udp(true, true).bind().unwrap(), BIND);
    let bind = ipv6.bind().unwrap();
    assert_eq!(bind.to_string(), "[2001:db8::1]:8285");
    let attrs = ipv6.attrs();
    assert_eq!((attrs.public_ip, attrs.public_ipv6), (None, external().public_v6));
    // One prefix of each family to the peer's IPv6 address; a peer of IPv4 alone cannot be reached.
    let mut able = peer("10.5.2.0/24", [192, 0, 2, 2]);
    able.subnets.v6 = Some("fd05:0:0:2::/64".parse().unwrap());
    able.attrs.public_ipv6 = Some("2001:db8::2".parse().unwrap());
    able.attrs.backend_data = Some(capabilities());
    let merged = ipv6.table(&[able, peer("10.5.3.0/24", [192, 0, 2, 3])], bind);
    assert_eq!(routes(&merged), ["10.5.2.0/24 [2001:db8::2]:8285", "fd05:0:0:2::/64 [2001:db8::2]:8285"]);
    let note = merged.notes.first().expect("a note about the other peer");
    assert!(note.contains("10.5.3.0/24") && note.contains("no PublicIPv6, only 192.0.2.3"), "{note}");
    assert!(note.contains("Backend.Underlay"), "{note}");
    // Nobody can send to an address of one link, without the link.
    let link_local = ExternalInterface { addr_v6: Some("fe80::1".parse().unwrap()), ..none(external()) };
    assert!(udp_on(true, true, link_local).bind().unwrap_err().to_string().contains("only the link-local address"));
}

#[test]
fn a_network_of_both_families_needs_one_of_the_underlay() {
    let (v4, v6) = (Families { v4: true, v6: false }, Families { v4: false, v6: true });
    let both = Families { v4: true, v6: true };
    let (ipv4, ipv6) = (Some(UnderlayFamily::Ipv4), Some(UnderlayFamily::Ipv6));
    for (network, underlay, expected) in [
        (v4, None, vec![v4]),
        (v6, None, vec![v6]),
        (both, None, vec![both, v4, v6]),
        (both, ipv4, vec![both, v4]),
        (both, ipv6, vec![v6]),
        (v4, ipv6, vec![v6]),
        (v6, ipv4, vec![v4]),
    ] {
        assert_eq!(underlay_families(network, underlay), expected, "{network:?} {underlay:?}");
    }
}

#[test]
fn the_mtu_leaves_room_for_the_headers_of_the_underlays_family() {
    assert_eq!((udp(true, false).mtu(), udp(true, true).mtu(), udp(false, true).mtu()), (1472, 1472, 1452));
}

#[test]
fn the_device_has_the_base_address_and_the_whole_network_and_nothing_leaks_beside_it() {
    let own = OwnLease {
        network: Some("10.5.0.0/16".parse().unwrap()),
        network_v6: None,
        subnets: Subnets { v4: Some("10.5.7.0/24".parse().unwrap()), v6: None },
    };
    let network: Vec<IpNet> = vec!["10.5.0.0/16".parse().unwrap()];
    let addresses = vec!["10.5.7.0/32".parse().unwrap()];
    let expected = LinkPlan { addresses, mtu: 1472, routes: network.clone(), safety: network };
    assert_eq!(udp(true, false).plan(&own), expected);
}

#[test]
fn daemons_with_other_etcd_prefixes_have_other_tunnels() {
    let name = |prefix| tunnel_name(prefix, "/coreos.com/network");
    assert_eq!(name("/coreos.com/network"), "flannel");
    assert_eq!(name("coreos.com/network/"), "flannel");
    assert_eq!(name("/vxlan/network"), "flannel-vxlan-network");
    assert_eq!(name("/a b/../c"), "flannel-a-b----c");
}
