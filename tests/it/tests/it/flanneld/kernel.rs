//! What happens to the kernel's side of a node: things deleted, the underlay changed, rules.

use super::*;
use std::process::Command;
use weft_netlink::{FdbEntry, Route, RouteFilter};

#[test]
fn on_vxlan_whatever_is_deleted_comes_back() -> Result<()> {
    let Some(cluster) = Cluster::new(2, r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#)? else {
        return Ok(());
    };
    let daemons = cluster.join()?;
    let pods = cluster.pods(&daemons)?;
    let (node, subnet) = (&cluster.hosts[0].node, daemons[1].subnet()?);
    let mut netlink = node.netlink()?;
    let back = |why: &str| {
        eventually(TIMEOUT, || ping(&pods[0].node, &Ping::quick(daemons[1].pod()?.into()))?.reply())
            .with_context(|| format!("{why}:\n{}", daemons[0].process.log()))
    };
    let link = netlink.expect_link("flannel.1")?;
    let mac = netlink.expect_link("flannel.1")?.mac;
    let filter = RouteFilter { dst: Some(subnet.into()), ..RouteFilter::default() };
    let route: Route = netlink.routes(&filter)?.pop().context("no route to the peer")?;
    netlink.delete_route(&route)?;
    back("after the route was deleted")?;
    netlink.delete_neighbour(link.index, subnet.network().into())?;
    back("after the neighbour was deleted")?;
    let entry: FdbEntry = netlink.fdb(link.index)?.pop().context("no FDB entry")?;
    netlink.delete_fdb(&entry)?;
    back("after the FDB entry was deleted")?;
    netlink.delete_link(link.index)?;
    back("after the device was deleted")?;
    assert_eq!(netlink.expect_link("flannel.1")?.mac, mac);
    Ok(())
}

#[test]
fn on_host_gw_a_deleted_route_comes_back() -> Result<()> {
    let Some(cluster) = Cluster::new(2, r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}"#)? else {
        return Ok(());
    };
    let daemons = cluster.join()?;
    let pods = cluster.pods(&daemons)?;
    let mut netlink = cluster.hosts[0].node.netlink()?;
    let filter = RouteFilter { dst: Some(daemons[1].subnet()?.into()), ..RouteFilter::default() };
    let route = netlink.routes(&filter)?.pop().context("no route to the peer")?;
    netlink.delete_route(&route)?;
    eventually(TIMEOUT, || ping(&pods[0].node, &Ping::quick(daemons[1].pod()?.into()))?.reply())?;
    Ok(())
}

#[test]
fn the_underlays_mtu_and_address_are_followed() -> Result<()> {
    let Some(cluster) = Cluster::new(2, r#"{"Network": "10.5.0.0/16"}"#)? else { return Ok(()) };
    let daemons = cluster.join()?;
    let pods = cluster.pods(&daemons)?;
    let node = &cluster.hosts[0].node;
    let mut netlink = node.netlink()?;
    let underlay = netlink.expect_link("u0")?.index;
    netlink.set_mtu(underlay, 1400)?;
    eventually(TIMEOUT, || {
        assert_eq!(daemons[0].env("FLANNEL_NETWORK")?, "10.5.0.0/16");
        ensure!(daemons[0].env("FLANNEL_MTU")? == "1372", "the subnet file has the old MTU");
        ensure!(netlink.expect_link("flannel0")?.mtu == 1372, "the device has the old MTU");
        Ok(())
    })?;
    // Another address: weftd moves there, the record says so, and the peer follows.
    node.address("u0", "192.0.2.99/24")?;
    let before = netlink.addresses(Some(underlay))?.into_iter().find(|one| one.ip() == IpAddr::from([192, 0, 2, 1]));
    netlink.delete_address(&before.context("the first address")?)?;
    if !netlink.addresses(Some(underlay))?.iter().any(|one| one.ip() == IpAddr::from([192, 0, 2, 99])) {
        // The kernel takes secondary addresses away with the primary one.
        node.address("u0", "192.0.2.99/24")?;
    }
    eventually(TIMEOUT, || {
        let record = json(cluster.record(&daemons[0])?)?;
        ensure!(record["PublicIP"] == "192.0.2.99", "{record}");
        ping(&pods[1].node, &Ping::quick(daemons[0].pod()?.into()))?.reply()?;
        ping(&pods[0].node, &Ping::quick(daemons[1].pod()?.into()))?.reply()
    })
    .with_context(|| daemons[0].process.log())?;
    Ok(())
}

#[test]
fn with_ip_masq_the_rules_are_flannels_to_the_letter() -> Result<()> {
    let Some(cluster) = Cluster::new(1, r#"{"Network": "10.5.0.0/16"}"#)? else { return Ok(()) };
    let mut daemon = cluster.start(1, &["--ip-masq", "--iptables-resync=1"])?;
    daemon.joined()?;
    assert_eq!(daemon.env("FLANNEL_IPMASQ")?, "true");
    let node = &cluster.hosts[0].node;
    let rules = |table: &str| -> Result<Vec<String>> {
        let output = node.run(|| Command::new("iptables").args(["-t", table, "-S"]).output())?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().filter(|line| line.contains("flanneld")).map(str::to_owned).collect())
    };
    let (n, p) = ("10.5.0.0/16", daemon.subnet()?.to_string());
    let note = r#"-m comment --comment "flanneld masq""#;
    let masquerade = [
        format!("-A POSTROUTING {note} -j FLANNEL-POSTRTG"),
        format!("-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {note} -j RETURN"),
        format!("-A FLANNEL-POSTRTG -s {p} -d {n} {note} -j RETURN"),
        format!("-A FLANNEL-POSTRTG -s {n} -d {p} {note} -j RETURN"),
        format!("-A FLANNEL-POSTRTG ! -s {n} -d {p} {note} -j RETURN"),
        format!("-A FLANNEL-POSTRTG -s {n} ! -d 224.0.0.0/4 {note} -j MASQUERADE --random-fully"),
        format!("-A FLANNEL-POSTRTG ! -s {n} -d {n} {note} -j MASQUERADE --random-fully"),
    ];
    let note = r#"-m comment --comment "flanneld forward""#;
    let forward = [
        format!("-A FORWARD {note} -j FLANNEL-FWD"),
        format!("-A FLANNEL-FWD -s {n} {note} -j ACCEPT"),
        format!("-A FLANNEL-FWD -d {n} {note} -j ACCEPT"),
    ];
    assert_eq!((rules("nat")?, rules("filter")?), (masquerade.to_vec(), forward.to_vec()));
    node.run(|| Command::new("iptables").args(["-t", "nat", "-F", "FLANNEL-POSTRTG"]).status())?;
    eventually(TIMEOUT, || {
        ensure!(rules("nat")? == masquerade, "{:#?}", rules("nat")?);
        Ok(())
    })?;
    // They outlive the daemon, and go with the tunnel.
    daemon.end()?;
    assert_eq!(rules("nat")?, masquerade);
    cluster.hosts[0].ok(&["down", "flannel"])?.prints(&["flannel: down", "rules:"])?;
    ensure!(rules("nat")?.is_empty() && rules("filter")?.is_empty(), "{:?} {:?}", rules("nat")?, rules("filter")?);
    Ok(())
}

#[test]
fn a_blackhole_for_the_own_subnet_stands_behind_the_bridge() -> Result<()> {
    let Some(cluster) = Cluster::new(1, r#"{"Network": "10.5.0.0/16"}"#)? else { return Ok(()) };
    let mut daemon = cluster.start(1, &["--ip-blackhole-route", "--iptables-resync=1"])?;
    daemon.joined()?;
    let filter = RouteFilter { dst: Some(daemon.subnet()?.into()), ..RouteFilter::default() };
    let mut netlink = cluster.hosts[0].node.netlink()?;
    let blackhole = |netlink: &mut weft_netlink::Netlink| -> Result<Route> {
        let routes = netlink.routes(&filter)?;
        routes.into_iter().find(|route| route.kind == weft_netlink::RouteKind::Blackhole).context("no blackhole")
    };
    let route = eventually(TIMEOUT, || blackhole(&mut netlink))?;
    netlink.delete_route(&route)?;
    eventually(TIMEOUT, || blackhole(&mut netlink))?;
    let pod = cluster.pod(1, &daemon)?;
    ping(&pod.node, &Ping::to(daemon.env("FLANNEL_SUBNET")?.parse::<Ipv4Net>()?.addr().into()))?.reply()?;
    Ok(())
}
