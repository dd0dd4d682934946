//! What ends and begins again: weft alone, weftd alone, both, the device.

use super::*;
use crate::weft::kill;
use weft_control::state::State;

#[test]
fn weft_ends_and_begins_again_and_no_packet_is_lost() -> Result<()> {
    let Some(cluster) = Cluster::new(2, r#"{"Network": "10.5.0.0/16"}"#)? else { return Ok(()) };
    let mut daemons = cluster.join()?;
    let pods = cluster.pods(&daemons)?;
    let (subnet, weftd) = (daemons[0].subnet()?, cluster.hosts[0].weftd_pid("flannel")?);
    let addresses = [daemons[0].pod()?, daemons[1].pod()?];
    let mut first = daemons.remove(0);
    let restarted = lossless(&pods, addresses, || {
        for kills in [false, true] {
            if kills {
                kill(first.process.pid())?;
                first.process.wait(TIMEOUT)?;
            } else {
                first.end()?;
            }
            first = cluster.start(1, &[])?;
            first.joined()?;
            first.says("adopting weftd")?;
            assert_eq!(first.subnet()?, subnet);
        }
        Ok(first)
    })?;
    assert_eq!(cluster.hosts[0].weftd_pid("flannel")?, weftd);
    drop(restarted);
    Ok(())
}

#[test]
fn a_killed_weftd_and_a_deleted_device_come_back_with_everything_on_them() -> Result<()> {
    let Some(cluster) = Cluster::new(2, r#"{"Network": "10.5.0.0/16"}"#)? else { return Ok(()) };
    let daemons = cluster.join()?;
    let pods = cluster.pods(&daemons)?;
    let host = &cluster.hosts[0];
    let there = daemons[1].pod()?;
    let back = |why: &str| {
        eventually(TIMEOUT, || ping(&pods[0].node, &Ping::quick(there.into()))?.reply())
            .with_context(|| format!("{why}:\n{}", daemons[0].process.log()))
    };
    host.kill_weftd("flannel")?;
    back("after weftd was killed")?;
    let state: State = host.state("flannel")?;
    let tun = state.tun.context("no device")?;
    assert_eq!(tun.name, "flannel0");
    host.node.netlink()?.delete_link(tun.ifindex)?;
    back("after the device was deleted")?;
    let mut netlink = host.node.netlink()?;
    let link = netlink.expect_link("flannel0")?;
    for address in netlink.addresses(Some(link.index))?.iter().filter(|address| address.ip().is_ipv4()) {
        netlink.delete_address(address)?;
    }
    eventually(TIMEOUT, || {
        ensure!(netlink.addresses(Some(link.index))?.iter().any(|address| address.ip().is_ipv4()), "no address");
        Ok(())
    })?;
    back("after the address was deleted")?;
    Ok(())
}

#[test]
fn after_both_were_killed_the_next_daemon_has_the_same_subnet() -> Result<()> {
    let Some(cluster) = Cluster::new(2, r#"{"Network": "10.5.0.0/16"}"#)? else { return Ok(()) };
    let mut daemons = cluster.join()?;
    let pods = cluster.pods(&daemons)?;
    let subnet = daemons[0].subnet()?;
    kill(daemons[0].process.pid())?;
    daemons[0].process.wait(TIMEOUT)?;
    cluster.hosts[0].kill_weftd("flannel")?;
    daemons[0] = cluster.start(1, &[])?;
    daemons[0].joined()?;
    assert_eq!(daemons[0].subnet()?, subnet);
    // The route that refuses packets was there all the while.
    let log = daemons[0].says("in the place of a dead one")?;
    ensure!(!log.contains("safety route"), "{log}");
    for (from, to) in [(0, 1), (1, 0)] {
        eventually(TIMEOUT, || ping(&pods[from].node, &Ping::quick(daemons[to].pod()?.into()))?.reply())?;
    }
    Ok(())
}

#[test]
fn another_port_in_the_config_is_taken_up_at_the_next_start() -> Result<()> {
    let Some(cluster) = Cluster::new(2, r#"{"Network": "10.5.0.0/16"}"#)? else { return Ok(()) };
    let mut daemons = cluster.join()?;
    let subnets = [daemons[0].subnet()?, daemons[1].subnet()?];
    cluster
        .etcd
        .put(&format!("{PREFIX}/config"), r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "Port": 9999}}"#)?;
    for (index, daemon) in daemons.iter_mut().enumerate() {
        daemon.end()?;
        *daemon = cluster.start(index + 1, &[])?;
        daemon.joined()?;
        assert_eq!(daemon.subnet()?, subnets[index]);
        assert_eq!(cluster.hosts[index].client("flannel")?.hello().bind.port(), 9999);
    }
    cluster.pods(&daemons)?;
    Ok(())
}
