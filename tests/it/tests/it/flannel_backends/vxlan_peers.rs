//! Peers of the vxlan backend: come, change, leave, and are wrong; and what is not ours stays.

use anyhow::{Result, ensure};
use serde_json::json;
use weft_control::backend::vxlan::VxlanConfig;
use weft_control::flannel::FlannelLease;
use weft_lab::Lab;
use weft_netlink::{FdbEntry, MacAddr, Neighbour, NewLink, NewLinkKind, Route, RouteKind, protocol};

use super::{V4, VXLAN, ip, peers_of, stranger, vxlan_cluster, vxlan_member};
use crate::support::{Family, net};

const MAC_7: &str = "02:00:00:00:00:07";

#[test]
fn a_peer_with_a_new_mac_is_followed_and_the_old_entries_go() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = vxlan_cluster(&lab, 2, VxlanConfig::default(), V4)?;
    let old = cluster.members[1].node.link(VXLAN)?;
    cluster.members[1].netlink()?.delete_link(old.index)?;
    let peers_of_2 = peers_of(&cluster.members, 2);
    cluster.members[1] = vxlan_member(&cluster.net.hosts[1], 2, VxlanConfig::default(), V4)?;
    cluster.members[1].reconcile(&peers_of_2)?;
    let new = cluster.members[1].node.link(VXLAN)?;
    assert_ne!(new.mac, old.mac);

    let peers = peers_of(&cluster.members, 1);
    let member = &mut cluster.members[0];
    member.does_not_reach(2)?;
    member.reconcile(&peers)?;
    cluster.members[1].node.wait_running(VXLAN)?;
    let member = &mut cluster.members[0];
    member.reaches(2, Family::V4)?;
    let device = member.node.link(VXLAN)?.index;
    let macs: Vec<_> = member.netlink()?.fdb(device)?.into_iter().map(|entry| Some(entry.mac)).collect();
    assert_eq!(macs, [new.mac]);
    member.settled(&peers)
}

#[test]
fn a_peer_with_a_new_public_ip_is_followed() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = vxlan_cluster(&lab, 2, VxlanConfig::default(), V4)?;
    let mut peers = peers_of(&cluster.members, 1);
    cluster.net.hosts[1].address("u0", "192.0.2.99/24")?;
    peers[0].attrs.public_ip = Some("192.0.2.99".parse()?);
    let member = &mut cluster.members[0];
    let done = member.reconcile(&peers)?;
    assert_eq!(done.changes, ["peer 10.9.2.0/24 at 192.0.2.99: FDB entry"]);
    let device = member.node.link(VXLAN)?.index;
    let dsts: Vec<_> = member.netlink()?.fdb(device)?.into_iter().map(|entry| entry.dst).collect();
    assert_eq!(dsts, [ip("192.0.2.99")]);
    member.reaches(2, Family::V4)?;
    member.settled(&peers)
}

#[test]
fn peers_that_left_while_we_were_down_are_pruned() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = vxlan_cluster(&lab, 2, VxlanConfig::default(), V4)?;
    let mut peers = peers_of(&cluster.members, 1);
    peers.push(stranger(7, MAC_7, "192.0.2.7"));
    cluster.members[0].reconcile(&peers)?;
    assert_eq!(cluster.members[0].routes("10.9.7.0/24")?.len(), 1);

    let mut again = vxlan_member(&cluster.net.hosts[0], 1, VxlanConfig::default(), V4)?;
    let done = again.reconcile(&peers_of(&cluster.members, 1))?;
    assert_eq!(done.changes.len(), 3, "{done:?}");
    let device = again.node.link(VXLAN)?.index;
    let mut netlink = again.netlink()?;
    assert_eq!(again.routes("10.9.7.0/24")?, vec![]);
    assert_eq!((netlink.fdb(device)?.len(), netlink.neighbours(device)?.len()), (1, 1));
    again.reaches(2, Family::V4)?;
    again.settled(&peers_of(&cluster.members, 1))
}

#[test]
fn what_is_not_ours_is_not_touched() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = vxlan_cluster(&lab, 2, VxlanConfig::default(), V4)?;
    let peers = peers_of(&cluster.members, 1);
    let member = &mut cluster.members[0];
    let mut netlink = member.netlink()?;
    let device = member.node.link(VXLAN)?.index;
    let underlay = member.node.link("u0")?.index;
    let mac: MacAddr = "02:99:00:00:00:01".parse()?;
    let routes = [
        Route { onlink: true, ..Route::via_gateway(net("198.51.100.0/24"), device, ip("10.200.0.1")) },
        Route::via_link(net("10.9.50.0/24"), device),
        Route::via_gateway(net("10.9.51.0/24"), underlay, ip("192.0.2.2")),
        Route { protocol: protocol::STATIC, ..Route::via_gateway(net("10.9.52.0/24"), underlay, ip("192.0.2.2")) },
        Route { kind: RouteKind::Blackhole, ..Route::unreachable(net("10.9.1.0/24")) },
        Route { table: 100, ..Route::via_gateway(net("10.9.53.0/24"), underlay, ip("192.0.2.2")) },
    ];
    for route in &routes {
        netlink.add_route(route)?;
    }
    let neighbour = Neighbour { link: device, address: ip("10.200.0.1"), mac };
    netlink.replace_neighbour(&neighbour)?;
    let entry = FdbEntry { link: device, mac, dst: ip("192.0.2.9") };
    netlink.replace_fdb(&entry)?;
    member.settled(&peers)?;
    let all = netlink.routes(&weft_netlink::RouteFilter { table: None, ..Default::default() })?;
    for route in &routes {
        ensure!(all.contains(route), "{route} is gone");
    }
    assert!(netlink.neighbours(device)?.contains(&neighbour));
    assert!(netlink.fdb(device)?.contains(&entry));
    Ok(())
}

#[test]
fn a_bad_peer_concerns_itself_alone() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = vxlan_cluster(&lab, 2, VxlanConfig::default(), V4)?;
    let good = peers_of(&cluster.members, 1);
    let bad = |change: fn(&mut FlannelLease)| {
        let mut lease = stranger(7, MAC_7, "192.0.2.7");
        change(&mut lease);
        lease
    };
    let member = &mut cluster.members[0];
    for (lease, why) in [
        (bad(|lease| lease.attrs.backend_data = None), "no backend data"),
        (bad(|lease| lease.attrs.backend_data = Some(json!({"VNI": 1, "VtepMAC": "nonsense"}))), "\"nonsense\""),
        (bad(|lease| lease.attrs.backend_data = Some(json!({"VNI": 5, "VtepMAC": MAC_7}))), "its VNI is 5"),
        (bad(|lease| lease.attrs.backend_type = "host-gw".into()), "its backend is `host-gw`"),
        (bad(|lease| lease.attrs.public_ip = Some([192, 0, 2, 1].into())), "this host's own"),
    ] {
        let done = member.reconcile(&[good[0].clone(), lease])?;
        ensure!(done.changes.is_empty() && done.notes.len() == 1, "{why}: {done:?}");
        ensure!(done.notes[0].contains(why), "{why}: {done:?}");
    }
    member.reaches(2, Family::V4)
}

#[test]
fn a_peer_whose_route_is_refused_leaves_nothing_behind() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = vxlan_cluster(&lab, 2, VxlanConfig::default(), V4)?;
    let good = peers_of(&cluster.members, 1);
    let member = &mut cluster.members[0];
    let device = member.node.link(VXLAN)?.index;
    // The kernel routes by no gateway that is an address of its own.
    member.node.address("lo", "10.9.7.0/32")?;
    let done = member.reconcile(&[good[0].clone(), stranger(7, MAC_7, "192.0.2.7")])?;
    ensure!(done.changes.is_empty() && done.notes.len() == 1, "{done:?}");
    assert!(done.notes[0].starts_with("peer 10.9.7.0/24 is passed over: replacing route"), "{done:?}");
    let mut netlink = member.netlink()?;
    assert_eq!((netlink.fdb(device)?.len(), netlink.neighbours(device)?.len()), (1, 1));
    member.reaches(2, Family::V4)
}

#[test]
fn a_route_of_somebody_else_is_left_and_reported() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = vxlan_cluster(&lab, 2, VxlanConfig::default(), V4)?;
    let peers = peers_of(&cluster.members, 1);
    let member = &mut cluster.members[0];
    // A bridge that holds what was our subnet, once.
    let mut netlink = member.netlink()?;
    let bridge = netlink.add_link(&NewLink { up: true, ..NewLink::new("cni0", NewLinkKind::Bridge) })?;
    netlink.delete_route(&member.routes("10.9.2.0/24")?[0])?;
    let rival = Route { protocol: protocol::STATIC, ..Route::via_link(net("10.9.2.0/24"), bridge.index) };
    netlink.add_route(&rival)?;
    let done = member.reconcile(&peers)?;
    assert_eq!(member.routes("10.9.2.0/24")?, std::slice::from_ref(&rival));
    let note = &done.notes[0];
    assert!(note.contains("is taken by `10.9.2.0/24 dev cni0` (protocol 4)"), "{note}");
    assert!(note.contains("ip route del 10.9.2.0/24 dev cni0"), "{note}");
    netlink.delete_route(&rival)?;
    member.reconcile(&peers)?;
    member.reaches(2, Family::V4)?;
    member.settled(&peers)
}
