//! The devices: made, kept over restarts, mended.

use anyhow::{Context, Result, bail, ensure};
use weft_control::backend::vxlan::{PreviousMacs, VxlanBackend, VxlanConfig};
use weft_control::flannel::{BackendError, ExternalInterface};
use weft_lab::Lab;
use weft_netlink::{Address, MacAddr, Netlink, NewLink, NewLinkKind, Vxlan};

use super::{DUAL, Member, V4, VXLAN, VXLAN_V6, external, same_device, vxlan_cluster, vxlan_member};
use crate::flannel_backends::{peers_of, subnets};
use crate::support::Family;

#[test]
fn three_dual_stack_nodes_reach_each_other() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = vxlan_cluster(&lab, 3, VxlanConfig::default(), DUAL)?;
    for member in &cluster.members {
        for other in (1..=3).filter(|other| *other != member.number) {
            member.reaches(other, Family::V4)?;
            member.reaches(other, Family::V6)?;
        }
    }
    for number in 1..=3u8 {
        let peers = peers_of(&cluster.members, number);
        cluster.members[usize::from(number) - 1].settled(&peers)?;
    }
    let member = &cluster.members[0];
    let (v4, v6) = (member.node.link(VXLAN)?, member.node.link(VXLAN_V6)?);
    assert_eq!((v4.mtu, v6.mtu), (1450, 1430));
    assert_eq!(weft_control::flannel::Backend::mtu(&member.backend), 1430);
    assert_ne!(v4.mac, v6.mac);
    assert_eq!(member.node.sysctl_value("net/ipv6/conf/flannel-v6.1/accept_ra")?, "0");
    let addresses = member.netlink()?.addresses(Some(v4.index))?;
    assert!(addresses.contains(&Address::new(v4.index, "10.9.1.0/32".parse::<ipnet::IpNet>()?)), "{addresses:?}");
    let data = member.attrs.backend_data.clone().expect("vxlan publishes data");
    let mac = v4.mac.expect("a vxlan has a hardware address");
    assert_eq!(serde_json::to_string(&data)?, format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#));
    assert_eq!((mac.0[0] & 3, member.attrs.backend_type.as_str()), (2, "vxlan"));
    Ok(())
}

#[test]
fn a_restart_keeps_device_and_mac_and_touches_nothing() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let cluster = vxlan_cluster(&lab, 2, VxlanConfig::default(), V4)?;
    let before = cluster.members[0].node.link(VXLAN)?;
    let mut again = vxlan_member(&cluster.net.hosts[0], 1, VxlanConfig::default(), V4)?;
    assert_eq!(again.attrs, cluster.members[0].attrs);
    again.settled(&peers_of(&cluster.members, 1))?;
    ensure!(same_device(&before, &again.node.link(VXLAN)?), "the device is another one");
    again.reaches(2, Family::V4)
}

#[test]
fn a_mac_that_peers_know_is_taken_up_where_no_device_survived() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let cluster = vxlan_cluster(&lab, 2, VxlanConfig::default(), V4)?;
    let node = &cluster.net.hosts[0];
    let previous = PreviousMacs::from_attrs(&cluster.members[0].attrs);
    let mac = previous.v4.expect("the record has a hardware address");
    let mut netlink = node.netlink()?;
    netlink.delete_link(node.link(VXLAN)?.index)?;
    let external = external(node, V4)?;
    let backend = node.run(|| VxlanBackend::new(VxlanConfig::default(), V4, external, previous))?;
    let mut again = Member::started(node, 1, V4, backend)?;
    assert_eq!(again.attrs, cluster.members[0].attrs);
    assert_eq!(node.link(VXLAN)?.mac, Some(mac));
    again.reconcile(&peers_of(&cluster.members, 1))?;
    again.reaches(2, Family::V4)
}

#[test]
fn what_is_lost_comes_back_with_everything_on_it() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = vxlan_cluster(&lab, 2, VxlanConfig::default(), DUAL)?;
    let peers = peers_of(&cluster.members, 1);
    let member = &mut cluster.members[0];
    type Sabotage = fn(&mut Netlink, u32) -> weft_netlink::Result<()>;
    let cases: [(&str, Sabotage); 8] = [
        ("device deleted", |netlink, device| netlink.delete_link(device)),
        ("device down", |netlink, device| netlink.set_down(device)),
        ("addresses deleted", |netlink, device| {
            let all = netlink.addresses(Some(device))?;
            all.iter().try_for_each(|address| netlink.delete_address(address))
        }),
        ("routes deleted", |netlink, device| {
            let all = netlink.routes(&Default::default())?;
            let on_device = all.iter().filter(|route| route.link == Some(device) && route.gateway.is_some());
            on_device.for_each(|route| netlink.delete_route(route).expect("a route can be deleted"));
            Ok(())
        }),
        ("neighbours deleted", |netlink, device| {
            let all = netlink.neighbours(device)?;
            all.iter().try_for_each(|neighbour| netlink.delete_neighbour(device, neighbour.address))
        }),
        ("FDB deleted", |netlink, device| {
            let all = netlink.fdb(device)?;
            all.iter().try_for_each(|entry| netlink.delete_fdb(entry))
        }),
        ("MTU changed", |netlink, device| netlink.set_mtu(device, 1300)),
        ("MAC changed", |netlink, device| netlink.set_mac(device, MacAddr([2, 1, 1, 1, 1, 1]))),
    ];
    for (what, sabotage) in cases {
        for (name, family) in [(VXLAN, Family::V4), (VXLAN_V6, Family::V6)] {
            let before = member.node.link(name)?;
            sabotage(&mut member.netlink()?, before.index)?;
            let done = member.reconcile(&peers)?;
            ensure!(!done.changes.is_empty() && done.notes.is_empty(), "{what}: {done:?}");
            let after = member.node.link(name)?;
            assert_eq!((after.mac, after.mtu, after.vxlan), (before.mac, before.mtu, before.vxlan), "{what}");
            member.node.wait_running(name)?;
            member.reaches(2, family).context(what)?;
            member.settled(&peers).context(what)?;
        }
    }
    Ok(())
}

#[test]
fn an_mtu_change_reaches_the_existing_device() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = vxlan_cluster(&lab, 2, VxlanConfig::default(), V4)?;
    let peers = peers_of(&cluster.members, 1);
    let before = cluster.members[0].node.link(VXLAN)?;
    cluster.net.links[0].set_mtu(1400)?;
    let member = &mut cluster.members[0];
    let followed = external(&member.node, V4)?;
    weft_control::flannel::Backend::follow(&mut member.backend, &followed)?;
    member.reconcile(&peers)?;
    let after = member.node.link(VXLAN)?;
    assert_eq!((after.index, after.mac, after.mtu), (before.index, before.mac, 1350));

    let small = VxlanConfig { mtu: Some(1200), ..VxlanConfig::default() };
    let again = vxlan_member(&cluster.net.hosts[0], 1, small, V4)?;
    assert_eq!((again.node.link(VXLAN)?.index, again.node.link(VXLAN)?.mtu), (before.index, 1150));

    let large = VxlanConfig { mtu: Some(9000), ..VxlanConfig::default() };
    let mut again = vxlan_member(&cluster.net.hosts[0], 1, large, V4)?;
    assert_eq!(again.node.link(VXLAN)?.mtu, 1350);
    let done = again.reconcile(&peers)?;
    assert!(done.notes[0].contains("Backend.MTU is 9000"), "{done:?}");
    Ok(())
}

#[test]
fn wrong_attributes_are_mended_by_a_new_device_with_the_same_mac() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let config = VxlanConfig::default();
    let mut cluster = vxlan_cluster(&lab, 2, config, V4)?;
    let before = cluster.members[0].node.link(VXLAN)?;
    let node = cluster.net.hosts[0].clone();
    for changed in [
        VxlanConfig { port: 4789, ..config },
        VxlanConfig { gbp: true, ..config },
        VxlanConfig { learning: true, ..config },
        config,
    ] {
        let member = vxlan_member(&node, 1, changed, V4)?;
        let after = member.node.link(VXLAN)?;
        let vxlan = after.vxlan.expect("a vxlan");
        assert_eq!((vxlan.port, vxlan.gbp, vxlan.learning), (changed.port, changed.gbp, changed.learning));
        assert_eq!((vxlan.local, after.mac), (Some(Family::V4.underlay(1)), before.mac));
        assert_ne!(after.index, before.index);
        assert_eq!(member.attrs, cluster.members[0].attrs);
    }
    // The address of the underlay changes under a running backend.
    let peers = peers_of(&cluster.members, 1);
    node.address("u0", "192.0.2.77/24")?;
    let member = &mut cluster.members[0];
    let followed = ExternalInterface {
        addr: Some("192.0.2.77".parse()?),
        public: Some("192.0.2.77".parse()?),
        ..external(&node, V4)?
    };
    let attrs = weft_control::flannel::Backend::follow(&mut member.backend, &followed)?;
    assert_eq!(attrs.public_ip, followed.public);
    assert_eq!(attrs.backend_data, member.attrs.backend_data);
    member.reconcile(&peers)?;
    let after = member.node.link(VXLAN)?;
    assert_eq!((after.vxlan.and_then(|vxlan| vxlan.local), after.mac), (followed.addr.map(Into::into), before.mac));
    Ok(())
}

#[test]
fn other_addresses_of_the_overlay_go_and_the_rest_stay() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = vxlan_cluster(&lab, 2, VxlanConfig::default(), V4)?;
    let peers = peers_of(&cluster.members, 1);
    let member = &mut cluster.members[0];
    let device = member.node.link(VXLAN)?.index;
    for address in ["10.9.77.0/32", "10.9.1.0/24", "198.51.100.1/32"] {
        member.node.address(VXLAN, address).or_else(|error| {
            let text = format!("{error:#}");
            if text.contains("it is 10.9.1.0/32") { Ok(()) } else { Err(error) }
        })?;
    }
    member.reconcile(&peers)?;
    let mut found: Vec<String> =
        member.netlink()?.addresses(Some(device))?.iter().map(|address| address.prefix.to_string()).collect();
    found.retain(|text| !text.starts_with("fe80"));
    found.sort();
    assert_eq!(found, ["10.9.1.0/32", "198.51.100.1/32"]);
    member.settled(&peers)
}

#[test]
fn what_stands_in_the_devices_way_is_named_with_the_remedy() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let net = weft_lab::topology::Switched::new(&lab, 1, 1500)?;
    let node = &net.hosts[0];
    let mut netlink = node.netlink()?;
    let bridge = netlink.add_link(&NewLink::new(VXLAN, NewLinkKind::Bridge))?;
    let outcome = vxlan_member(node, 1, VxlanConfig::default(), V4);
    let Err(error) = outcome else { bail!("a bridge was taken for a vxlan") };
    assert!(matches!(error.downcast_ref(), Some(BackendError::Config(_))), "{error}");
    assert!(error.to_string().starts_with("flannel.1 is a bridge and no vxlan; delete or rename it"), "{error}");
    netlink.delete_link(bridge.index)?;

    let underlay = netlink.expect_link("u0")?.index;
    let vxlan = Vxlan { vni: 1, local: None, underlay: Some(underlay), port: 8472, learning: false, gbp: false };
    netlink.add_link(&NewLink::new("vx9", NewLinkKind::Vxlan(vxlan)))?;
    let Err(error) = vxlan_member(node, 1, VxlanConfig::default(), V4) else { bail!("two devices with one VNI") };
    assert!(
        error.to_string().contains("vx9 has VNI 1 on port 8472 already; delete it (ip link delete vx9)"),
        "{error}"
    );
    Ok(())
}

#[test]
fn the_external_interface_may_go_and_come_back() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut cluster = vxlan_cluster(&lab, 2, VxlanConfig::default(), V4)?;
    let peers = peers_of(&cluster.members, 1);
    let before = cluster.members[0].node.link(VXLAN)?;
    let node = cluster.net.hosts[0].clone();
    drop(cluster.net.links.remove(0));
    let member = &mut cluster.members[0];
    let error = member.reconcile(&peers).expect_err("there is no underlay");
    assert!(format!("{error:#}").contains("the external interface u0 is gone"), "{error:#}");

    let link = weft_lab::Link::veth(&node, "u0", &cluster.net.switch, "p1", 1500)?;
    let mut switch = cluster.net.switch.netlink()?;
    let bridge = switch.expect_link("br0")?.index;
    switch.set_master(link.b.index, Some(bridge))?;
    node.address("u0", "192.0.2.1/24")?;
    let done = member.reconcile(&peers)?;
    assert!(done.notes.is_empty(), "{done:?}");
    assert_eq!(member.node.link(VXLAN)?.mac, before.mac);
    member.node.wait_running(VXLAN)?;
    member.reaches(2, Family::V4)?;
    assert_eq!(member.lease().subnets, subnets(1, V4));
    Ok(())
}
