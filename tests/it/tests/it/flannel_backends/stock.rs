//! A node with our vxlan backend and one that is programmed as flannel would.

use anyhow::Result;
use weft_control::backend::vxlan::VxlanConfig;
use weft_lab::topology::Switched;
use weft_lab::{FlannelVxlan, Lab, Ping, ping};
use weft_netlink::{FdbEntry, MacAddr, Neighbour, Route};

use super::{V4, VXLAN, ip, stranger, vxlan_member};
use crate::support::net;

#[test]
fn a_stock_node_and_ours_reach_each_other() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let switched = Switched::new(&lab, 2, 1500)?;
    let mut ours = vxlan_member(&switched.hosts[0], 1, VxlanConfig::default(), V4)?;
    let stock = FlannelVxlan::new(&switched.links[1].a, "192.0.2.2", "10.9.2.0/24")?;
    let stock_mac = switched.hosts[1].link(stock.name())?.mac.expect("a vxlan has a hardware address");
    ours.reconcile(&[stranger(2, &stock_mac.to_string(), "192.0.2.2")])?;

    // What flannel does with our record.
    let data = ours.attrs.backend_data.clone().expect("vxlan publishes data");
    let mac: MacAddr = data["VtepMAC"].as_str().expect("a text").parse()?;
    let mut netlink = switched.hosts[1].netlink()?;
    netlink.replace_neighbour(&Neighbour { link: stock.index(), address: ip("10.9.1.0"), mac })?;
    netlink.replace_fdb(&FdbEntry { link: stock.index(), mac, dst: ip("192.0.2.1") })?;
    let route = Route::via_gateway(net("10.9.1.0/24"), stock.index(), ip("10.9.1.0"));
    netlink.replace_route(&Route { onlink: true, ..route })?;

    ours.node.wait_running(VXLAN)?;
    ping(&ours.node, &Ping::to(ip("10.9.2.0")))?.reply()?;
    ping(&switched.hosts[1], &Ping::to(ip("10.9.1.0")))?.reply()?;
    let large = Ping { payload_len: 1422, dont_fragment: true, ..Ping::to(ip("10.9.2.0")) };
    ping(&ours.node, &large)?.reply()?;
    Ok(())
}

#[test]
fn a_device_that_flannel_left_is_taken_over_with_its_mac_and_its_stale_peers_go() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let switched = Switched::new(&lab, 2, 1500)?;
    let stock = FlannelVxlan::new(&switched.links[0].a, "192.0.2.1", "10.9.1.0/24")?;
    let gone = FlannelVxlan::new(&switched.links[1].a, "192.0.2.2", "10.9.2.0/24")?;
    stock.add_peer(&gone)?;
    let before = switched.hosts[0].link(VXLAN)?;
    let mut ours = vxlan_member(&switched.hosts[0], 1, VxlanConfig::default(), V4)?;
    let after = switched.hosts[0].link(VXLAN)?;
    assert_eq!((after.index, after.mac), (before.index, before.mac));
    let done = ours.reconcile(&[])?;
    assert_eq!((done.changes.len(), ours.routes("10.9.2.0/24")?), (3, vec![]), "{done:?}");
    Ok(())
}
