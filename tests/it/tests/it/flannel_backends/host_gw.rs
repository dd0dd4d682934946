//! The host-gw backend on one link, and where it cannot work.

use anyhow::{Result, ensure};
use weft_control::backend::host_gw::HostGw;
use weft_control::backend::routes::PROTOCOL;
use weft_control::flannel::{Backend, BackendError, ExternalInterface, FlannelLease};
use weft_lab::{Lab, Link};
use weft_netlink::{Route, protocol};

use super::{DUAL, V4, external, host_gw_cluster, host_gw_member, ip, peers_of, stranger};
use crate::support::{Family, net};

fn host_gw(number: u8, public: &str) -> FlannelLease {
    let mut lease = stranger(number, "02:00:00:00:00:07", public);
    (lease.attrs.backend_type, lease.attrs.backend_data) = ("host-gw".into(), None);
    lease
}

#[test]
fn three_dual_stack_nodes_reach_each_other_at_the_full_mtu() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = host_gw_cluster(&lab, 3, DUAL)?;
    for number in 1..=3u8 {
        let peers = peers_of(&cluster.members, number);
        let member = &mut cluster.members[usize::from(number) - 1];
        for other in (1..=3).filter(|other| *other != number) {
            member.reaches(other, Family::V4)?;
            member.reaches(other, Family::V6)?;
        }
        member.settled(&peers)?;
        assert_eq!(member.backend.mtu(), 1500);
        assert_eq!((member.attrs.backend_type.as_str(), &member.attrs.backend_data), ("host-gw", &None));
    }
    Ok(())
}

#[test]
fn lost_and_changed_routes_come_back_and_leavers_go() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = host_gw_cluster(&lab, 2, V4)?;
    let peers = peers_of(&cluster.members, 1);
    let member = &mut cluster.members[0];
    let mut netlink = member.netlink()?;
    netlink.delete_route(&member.routes("10.9.2.0/24")?[0])?;
    member.reconcile(&peers)?;
    member.reaches(2, Family::V4)?;

    // The peer has another address.
    cluster.net.hosts[1].address("u0", "192.0.2.99/24")?;
    let mut moved = peers.clone();
    moved[0].attrs.public_ip = Some([192, 0, 2, 99].into());
    moved.push(host_gw(7, "192.0.2.7"));
    member.reconcile(&moved)?;
    let routes = member.routes("10.9.2.0/24")?;
    assert_eq!((routes.len(), routes[0].gateway), (1, Some(ip("192.0.2.99"))));
    member.reaches(2, Family::V4)?;
    member.settled(&moved)?;

    // A peer left while nobody looked.
    let mut again = host_gw_member(&cluster.net.hosts[0], 1, V4)?;
    let done = again.reconcile(&moved[..1])?;
    assert_eq!(done.changes, ["route 10.9.7.0/24 via 192.0.2.7 removed"]);
    again.settled(&moved[..1])
}

#[test]
fn routes_follow_a_link_that_was_made_anew() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = host_gw_cluster(&lab, 2, V4)?;
    let peers = peers_of(&cluster.members, 1);
    let before = cluster.net.links[0].a.index;
    drop(cluster.net.links.remove(0));
    let error = cluster.members[0].reconcile(&peers).expect_err("there is no underlay");
    assert!(format!("{error:#}").contains("the external interface u0 is gone"), "{error:#}");

    let link = Link::veth(&cluster.net.hosts[0], "u0", &cluster.net.switch, "p1", 1500)?;
    let mut switch = cluster.net.switch.netlink()?;
    let bridge = switch.expect_link("br0")?.index;
    switch.set_master(link.b.index, Some(bridge))?;
    let done = cluster.members[0].reconcile(&peers)?;
    assert!(done.notes[0].contains("is not on the link of u0"), "{done:?}");
    cluster.net.hosts[0].address("u0", "192.0.2.1/24")?;
    let member = &mut cluster.members[0];
    member.reconcile(&peers)?;
    let routes = member.routes("10.9.2.0/24")?;
    assert_eq!((routes.len(), routes[0].link), (1, Some(link.a.index)));
    assert_ne!(link.a.index, before);
    member.reaches(2, Family::V4)?;
    member.settled(&peers)
}

#[test]
fn what_flannel_left_is_taken_over_and_what_others_made_is_reported() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = host_gw_cluster(&lab, 2, V4)?;
    let peers = peers_of(&cluster.members, 1);
    let member = &mut cluster.members[0];
    let mut netlink = member.netlink()?;
    let link = member.node.link("u0")?.index;
    let ours = Route { protocol: PROTOCOL, ..Route::via_gateway(net("10.9.2.0/24"), link, ip("192.0.2.2")) };
    for flannels in [ip("192.0.2.2"), ip("192.0.2.55")] {
        netlink.delete_route(&ours)?;
        netlink.add_route(&Route::via_gateway(ours.dst, link, flannels))?;
        member.reconcile(&peers)?;
        assert_eq!(member.routes("10.9.2.0/24")?, std::slice::from_ref(&ours));
    }
    netlink.delete_route(&ours)?;
    let foreign = Route { protocol: protocol::STATIC, gateway: Some(ip("192.0.2.55")), ..ours.clone() };
    netlink.add_route(&foreign)?;
    let unknown = Route::via_gateway(net("10.9.9.0/24"), link, ip("192.0.2.9"));
    netlink.add_route(&unknown)?;
    let done = member.reconcile(&peers)?;
    ensure!(done.changes.is_empty() && done.notes.len() == 2, "{done:?}");
    assert!(done.notes[0].contains("ip route del 10.9.2.0/24 via 192.0.2.55 dev u0"), "{done:?}");
    assert!(done.notes[1].contains("`10.9.9.0/24 via 192.0.2.9` leads to no peer"), "{done:?}");
    assert_eq!(member.routes("10.9.2.0/24")?, std::slice::from_ref(&foreign));
    assert_eq!(member.routes("10.9.9.0/24")?, [unknown]);
    netlink.delete_route(&foreign)?;
    member.reconcile(&peers)?;
    member.reaches(2, Family::V4)
}

#[test]
fn a_peer_beyond_a_router_is_told_of() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = host_gw_cluster(&lab, 2, V4)?;
    let mut peers = peers_of(&cluster.members, 1);
    peers.push(host_gw(7, "198.51.100.7"));
    let member = &mut cluster.members[0];
    let done = member.reconcile(&peers)?;
    ensure!(done.changes.is_empty() && done.notes.len() == 1, "{done:?}");
    assert!(done.notes[0].contains("use the vxlan backend"), "{done:?}");
    member.reaches(2, Family::V4)
}

#[test]
fn a_public_ip_of_a_nat_is_refused() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let cluster = host_gw_cluster(&lab, 1, DUAL)?;
    let node = &cluster.net.hosts[0];
    let good = external(node, DUAL)?;
    for external in [
        ExternalInterface { public: Some([203, 0, 113, 7].into()), ..good.clone() },
        ExternalInterface { public_v6: Some("2001:db8:ffff::7".parse()?), ..good.clone() },
    ] {
        let mut backend = node.run(|| HostGw::new(DUAL, external))?;
        let error = backend.prepare().expect_err("peers could not route to it");
        assert!(matches!(error, BackendError::Config(_)), "{error}");
        assert!(error.to_string().starts_with("host-gw cannot work with public IP"), "{error}");
    }
    Ok(())
}
