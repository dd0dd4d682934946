//! Which netlink events make a backend look again.

use anyhow::{Result, ensure};
use weft_control::backend::vxlan::VxlanConfig;
use weft_control::flannel::Backend;
use weft_lab::{Lab, eventually};
use weft_netlink::{Address, Events, Group, Neighbour, Netlink, Route};

use super::{Member, V4, VXLAN, host_gw_cluster, ip, peers_of, vxlan_cluster};
use crate::support::{TIMEOUT, net};

const GROUPS: &[Group] = &[Group::Link, Group::Address, Group::Route, Group::Neighbour];

/// Waits for an event that concerns the backend.
fn notices<B: Backend + Send>(member: &Member<B>, events: &mut Events, what: &str) -> Result<()> {
    eventually(TIMEOUT, || {
        let mut found = false;
        for event in events.drain() {
            found |= member.backend.concerns(&event?);
        }
        ensure!(found, "nothing about: {what}");
        Ok(())
    })
}

/// Sees that nothing concerns the backend once everything has arrived: the address of `lo` comes last.
fn is_indifferent<B: Backend + Send>(member: &Member<B>, events: &mut Events, mark: u8) -> Result<()> {
    let address = format!("203.0.113.{mark}/32");
    member.node.address("lo", &address)?;
    let mut seen = Vec::new();
    eventually(TIMEOUT, || {
        for event in events.drain() {
            seen.push(event?);
        }
        let is_mark = |event: &weft_netlink::Event| matches!(event, weft_netlink::Event::Address(Address { prefix, .. }) if prefix.to_string() == address);
        ensure!(seen.iter().any(is_mark), "the mark is not there yet");
        Ok(())
    })?;
    let concerning: Vec<_> = seen.iter().filter(|event| member.backend.concerns(event)).collect();
    ensure!(concerning.is_empty(), "{concerning:?}");
    Ok(())
}

#[test]
fn vxlan_notices_what_it_lost_and_not_its_own_work() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = vxlan_cluster(&lab, 2, VxlanConfig::default(), V4)?;
    let peers = peers_of(&cluster.members, 1);
    let member = &mut cluster.members[0];
    member.node.wait_running(VXLAN)?;
    member.settled(&peers)?;
    let mut events = member.node.run(|| Events::open(GROUPS))?;
    type Sabotage = fn(&mut Netlink, u32) -> weft_netlink::Result<()>;
    let cases: [(&str, Sabotage); 9] = [
        ("neighbour deleted", |netlink, device| netlink.delete_neighbour(device, ip("10.9.2.0"))),
        ("neighbour changed", |netlink, device| {
            let mac = weft_netlink::MacAddr([2, 0, 0, 0, 0, 99]);
            netlink.replace_neighbour(&Neighbour { link: device, address: ip("10.9.2.0"), mac })
        }),
        ("FDB entry deleted", |netlink, device| {
            let all = netlink.fdb(device)?;
            all.iter().try_for_each(|entry| netlink.delete_fdb(entry))
        }),
        ("route deleted", |netlink, device| {
            let route = Route::via_gateway(net("10.9.2.0/24"), device, ip("10.9.2.0"));
            netlink.delete_route(&route)
        }),
        ("address deleted", |netlink, device| netlink.delete_address(&Address::new(device, net("10.9.1.0/32")))),
        ("MTU changed", |netlink, device| netlink.set_mtu(device, 1300)),
        ("device down", |netlink, device| netlink.set_down(device)),
        ("device deleted", |netlink, device| netlink.delete_link(device)),
        ("underlay down", |netlink, _| {
            let underlay = netlink.expect_link("u0")?.index;
            netlink.set_down(underlay)?;
            netlink.set_up(underlay)
        }),
    ];
    for (mark, (what, sabotage)) in (1..).zip(cases) {
        let device = member.node.link(VXLAN)?.index;
        sabotage(&mut member.netlink()?, device)?;
        notices(member, &mut events, what)?;
        member.node.wait_running("u0")?;
        member.reconcile(&peers)?;
        member.node.wait_running(VXLAN)?;
        // What is still on its way was caused before the reconciliation; the next one finds nothing to do.
        let _ = is_indifferent(member, &mut events, 100 + mark);
        member.settled(&peers)?;
        is_indifferent(member, &mut events, mark)?;
    }
    // The backend's own additions are as it wants them.
    let mut more = peers.clone();
    more.push(super::stranger(7, "02:00:00:00:00:07", "192.0.2.7"));
    member.reconcile(&more)?;
    is_indifferent(member, &mut events, 50)
}

#[test]
fn host_gw_notices_lost_routes_and_a_changed_link() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = host_gw_cluster(&lab, 2, V4)?;
    let peers = peers_of(&cluster.members, 1);
    let member = &mut cluster.members[0];
    let mut events = member.node.run(|| Events::open(GROUPS))?;
    let route = member.routes("10.9.2.0/24")?.remove(0);
    let mut netlink = member.netlink()?;
    netlink.delete_route(&route)?;
    notices(member, &mut events, "route deleted")?;
    member.reconcile(&peers)?;
    is_indifferent(member, &mut events, 1)?;
    netlink.replace_route(&Route { gateway: Some(ip("192.0.2.9")), ..route })?;
    notices(member, &mut events, "route changed")?;
    member.reconcile(&peers)?;
    cluster.net.links[0].set_down()?;
    notices(&cluster.members[0], &mut events, "underlay down")
}
