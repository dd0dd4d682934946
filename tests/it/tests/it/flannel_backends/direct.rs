//! DirectRouting of the vxlan backend: without a tunnel where two hosts share a link, by tunnel where a router is between.

use anyhow::Result;
use weft_control::backend::routes::PROTOCOL;
use weft_control::backend::vxlan::VxlanConfig;
use weft_lab::Lab;
use weft_lab::topology::Routed;
use weft_netlink::{Route, protocol};

use super::{DUAL, V4, VXLAN, ip, mesh, peers_of, stranger, vxlan_cluster, vxlan_member};
use crate::support::{Family, net};

const DIRECT: VxlanConfig =
    VxlanConfig { vni: 1, port: 8472, mtu: None, gbp: false, learning: false, direct_routing: true };

#[test]
fn hosts_on_one_link_need_no_tunnel() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = vxlan_cluster(&lab, 2, DIRECT, DUAL)?;
    let peers = peers_of(&cluster.members, 1);
    let member = &mut cluster.members[0];
    let underlay = member.node.link("u0")?.index;
    let device = member.node.link(VXLAN)?.index;
    let direct = |subnet: &str, public: &str| Route {
        protocol: PROTOCOL,
        ..Route::via_gateway(net(subnet), underlay, ip(public))
    };
    assert_eq!(member.routes("10.9.2.0/24")?, [direct("10.9.2.0/24", "192.0.2.2")]);
    assert_eq!(member.routes("fd09:0:0:2::/64")?, [direct("fd09:0:0:2::/64", "2001:db8::2")]);
    assert_eq!(member.netlink()?.fdb(device)?, vec![]);
    member.reaches(2, Family::V4)?;
    member.reaches(2, Family::V6)?;
    member.settled(&peers)?;

    // A link flap takes the routes along; flannel would not put them back.
    cluster.net.links[0].set_down()?;
    cluster.net.links[0].set_up()?;
    cluster.net.hosts[0].address("u0", "2001:db8::1/64")?;
    let member = &mut cluster.members[0];
    let done = member.reconcile(&peers)?;
    assert!(!done.changes.is_empty() && done.notes.is_empty(), "{done:?}");
    member.reaches(2, Family::V4)?;
    member.reaches(2, Family::V6)?;

    // A peer that left is pruned, by a successor too; a route of an administrator is told of and stays.
    let mut netlink = member.netlink()?;
    let manual = Route { protocol: protocol::BOOT, ..direct("10.9.8.0/24", "192.0.2.2") };
    netlink.add_route(&manual)?;
    let mut with_7 = peers.clone();
    with_7.push(stranger(7, "02:00:00:00:00:07", "192.0.2.7"));
    member.reconcile(&with_7)?;
    assert_eq!(member.routes("10.9.7.0/24")?.len(), 1);
    let mut again = vxlan_member(&cluster.net.hosts[0], 1, DIRECT, DUAL)?;
    let done = again.reconcile(&peers)?;
    assert_eq!(done.changes, ["route 10.9.7.0/24 via 192.0.2.7 removed"]);
    assert!(done.notes[0].contains("`10.9.8.0/24 via 192.0.2.2` leads to no peer"), "{done:?}");
    assert_eq!(again.routes("10.9.8.0/24")?, [manual]);
    Ok(())
}

#[test]
fn the_way_is_asked_for_anew_at_each_reconciliation() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let net = Routed::new(&lab, 1500, 1500)?;
    let mut members = [vxlan_member(&net.a, 1, DIRECT, V4)?, vxlan_member(&net.b, 2, DIRECT, V4)?];
    mesh(&mut members)?;
    let peers = peers_of(&members, 1);
    let member = &mut members[0];
    let device = member.node.link(VXLAN)?.index;
    assert_eq!(member.routes("10.9.2.0/24")?[0].link, Some(device));
    member.reaches(2, Family::V4)?;
    member.settled(&peers)?;

    // The peer moves onto the link, by what the routes say.
    let underlay = member.node.link("u0")?.index;
    let mut netlink = member.netlink()?;
    let on_link = Route::via_link(crate::support::net("198.51.100.1/32"), underlay);
    netlink.add_route(&on_link)?;
    let done = member.reconcile(&peers)?;
    assert!(done.notes.is_empty(), "{done:?}");
    let routes = member.routes("10.9.2.0/24")?;
    assert_eq!((routes.len(), routes[0].link, routes[0].gateway), (1, Some(underlay), Some(ip("198.51.100.1"))));
    assert_eq!((netlink.fdb(device)?, netlink.neighbours(device)?), (vec![], vec![]));
    member.settled(&peers)?;

    netlink.delete_route(&on_link)?;
    member.reconcile(&peers)?;
    assert_eq!(member.routes("10.9.2.0/24")?[0].link, Some(device));
    member.reaches(2, Family::V4)?;
    member.settled(&peers)
}
