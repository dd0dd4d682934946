//! IPv6 inside and outside: both families over an underlay of both or of one, a network of IPv6 alone, etcd over IPv6.

use super::*;
use crate::support::PORT;
use crate::weft::kill;

/// An overlay of both families on a backend.
fn dual(backend: &str) -> String {
    format!(r#"{{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd05::/48", "Backend": {{{backend}}}}}"#)
}

/// An overlay of IPv6 alone on a backend.
fn ipv6_alone(backend: &str) -> String {
    format!(r#"{{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd05::/48", "Backend": {{{backend}}}}}"#)
}

/// Address of a host on the underlay, counted from 1.
fn underlay_v6(number: usize) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number as u16).into()
}

/// What the kernel can carry: a ping that fills the overlay's MTU, to each address of each other pod.
fn full_size_pings(pods: &[Pod], daemons: &[Daemon]) -> Result<()> {
    for (from, pod) in pods.iter().enumerate() {
        for (_, other) in daemons.iter().enumerate().filter(|(to, _)| *to != from) {
            for address in other.pod_addresses()? {
                let mtu: usize = other.env("FLANNEL_MTU")?.parse()?;
                let headers = if address.is_ipv4() { 20 + 8 } else { 40 + 8 };
                ping(&pod.node, &Ping { payload_len: mtu - headers, ..Ping::to(address) })?.reply()?;
            }
        }
    }
    Ok(())
}

/// Does `work` while streams of both families run both ways between the first two pods; none may lose a datagram.
fn lossless_in_both_families<T>(pods: &[Pod], daemons: &[Daemon], work: impl FnOnce() -> Result<T>) -> Result<T> {
    let (first, second) = (daemons[0].pod_addresses()?, daemons[1].pod_addresses()?);
    let pair = |family: usize| [first[family], second[family]];
    lossless(pods, pair(0), || lossless(pods, pair(1), work))
}

#[test]
fn on_an_underlay_of_both_families_both_travel_over_ipv4() -> Result<()> {
    let Some(cluster) = Cluster::over_ipv6(3, &dual(r#""Type": "udp""#), true)? else { return Ok(()) };
    ensure!(cluster.etcd.url().starts_with("http://[2001:db8::fa]:"), "{}", cluster.etcd.url());
    let daemons = cluster.join()?;
    let pods = cluster.pods(&daemons)?;
    full_size_pings(&pods, &daemons)?;
    for (number, daemon) in (1..).zip(&daemons) {
        assert_eq!(daemon.env("FLANNEL_MTU")?, "1472");
        let bind = cluster.hosts[number - 1].client("flannel")?.hello().bind;
        assert_eq!(bind.to_string(), format!("192.0.2.{number}:{PORT}"));
        // A stock node finds all that it needs, and does not look at what it does not know.
        let record = cluster.record(daemon)?.context("no record")?;
        let expected = format!(
            r#"{{"PublicIP":"192.0.2.{number}","PublicIPv6":"2001:db8::{number}","BackendData":{{"weft":{{"inner":["ipv4","ipv6"]}}}}}}"#
        );
        assert_eq!(record, expected);
    }
    Ok(())
}

#[test]
fn on_an_underlay_of_ipv6_alone_both_families_travel_and_survive_restarts() -> Result<()> {
    let Some(cluster) = Cluster::over_ipv6(3, &dual(r#""Type": "udp""#), false)? else { return Ok(()) };
    let mut daemons = cluster.join()?;
    let pods = cluster.pods(&daemons)?;
    full_size_pings(&pods, &daemons)?;
    for (number, daemon) in (1..).zip(&daemons) {
        assert_eq!(daemon.env("FLANNEL_MTU")?, "1452");
        let mut client = cluster.hosts[number - 1].client("flannel")?;
        assert_eq!(client.hello().bind.to_string(), format!("[2001:db8::{number}]:{PORT}"));
        let peers: Vec<IpAddr> = client.routes()?.set.peers.iter().map(|peer| peer.addr.ip()).collect();
        ensure!(peers.len() == 2 && peers.iter().all(IpAddr::is_ipv6), "{peers:?}");
        let record = cluster.record(daemon)?.context("no record")?;
        let expected = format!(
            r#"{{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::{number}","BackendData":{{"weft":{{"inner":["ipv4","ipv6"]}}}}}}"#
        );
        assert_eq!(record, expected);
        ensure!(daemon.key()?.contains("/subnets/10.5."), "{}", daemon.key()?);
    }
    // weft alone, killed and ended: nothing is lost in either family.
    let first = cluster.hosts[0].weftd_pid("flannel")?;
    let subnets = daemons[0].subnets()?;
    let next = lossless_in_both_families(&pods, &daemons, || {
        kill(daemons[0].process.pid())?;
        let mut next = cluster.start(1, &[])?;
        next.joined()?;
        next.says("adopting weftd")?;
        Ok(next)
    })?;
    daemons[0] = next;
    assert_eq!((daemons[0].subnets()?, cluster.hosts[0].weftd_pid("flannel")?), (subnets, first));
    // weftd alone, then both at once.
    let back = |daemons: &[Daemon], why: &str| {
        for address in daemons[1].pod_addresses()? {
            eventually(TIMEOUT, || ping(&pods[0].node, &Ping::quick(address))?.reply())
                .with_context(|| format!("{why}, to {address}:\n{}", daemons[0].process.log()))?;
        }
        anyhow::Ok(())
    };
    cluster.hosts[0].kill_weftd("flannel")?;
    back(&daemons, "after weftd was killed")?;
    kill(daemons[0].process.pid())?;
    daemons[0].process.wait(TIMEOUT)?;
    cluster.hosts[0].kill_weftd("flannel")?;
    daemons[0] = cluster.start(1, &[])?;
    daemons[0].joined()?;
    assert_eq!(daemons[0].subnets()?, subnets);
    back(&daemons, "after both were killed")
}

#[test]
fn the_config_may_have_all_nodes_use_ipv6() -> Result<()> {
    let config = dual(r#""Type": "udp", "Underlay": "ipv6""#);
    let Some(cluster) = Cluster::over_ipv6(2, &config, true)? else { return Ok(()) };
    let daemons = cluster.join()?;
    let pods = cluster.pods(&daemons)?;
    full_size_pings(&pods, &daemons)?;
    assert_eq!(daemons[0].env("FLANNEL_MTU")?, "1452");
    assert_eq!(cluster.hosts[0].client("flannel")?.hello().bind.ip(), underlay_v6(1));
    // A node that has IPv4 alone is named, and concerns nobody else.
    let stock = format!("{PREFIX}/subnets/10.5.0.0-24&fd05::-64");
    cluster.etcd.put(&stock, r#"{"PublicIP":"192.0.2.77","PublicIPv6":null}"#)?;
    daemons[0].says("no PublicIPv6, only 192.0.2.77")?;
    full_size_pings(&pods, &daemons)
}

#[test]
fn the_address_of_an_underlay_of_ipv6_is_followed() -> Result<()> {
    let Some(cluster) = Cluster::over_ipv6(2, &dual(r#""Type": "udp""#), false)? else { return Ok(()) };
    let daemons = cluster.join()?;
    let pods = cluster.pods(&daemons)?;
    let node = &cluster.hosts[0].node;
    let mut netlink = node.netlink()?;
    let underlay = netlink.expect_link("u0")?.index;
    let before = netlink.addresses(Some(underlay))?.into_iter().find(|one| one.ip() == underlay_v6(1));
    node.address("u0", "2001:db8::99/64")?;
    netlink.delete_address(&before.context("the first address")?)?;
    eventually(TIMEOUT, || {
        let record = json(cluster.record(&daemons[0])?)?;
        ensure!(record["PublicIPv6"] == "2001:db8::99", "{record}");
        for (from, to) in [(0, 1), (1, 0)] {
            for address in daemons[to].pod_addresses()? {
                ping(&pods[from].node, &Ping::quick(address))?.reply()?;
            }
        }
        Ok(())
    })
    .with_context(|| daemons[0].process.log())?;
    Ok(())
}

#[test]
fn both_families_travel_on_the_kernels_backends() -> Result<()> {
    for (backend, mtu, devices) in [("vxlan", "1430", ["flannel.1", "flannel-v6.1"]), ("host-gw", "1500", ["u0", "u0"])]
    {
        let config = dual(&format!(r#""Type": "{backend}""#));
        let Some(cluster) = Cluster::over_ipv6(2, &config, true)? else { return Ok(()) };
        let daemons = cluster.join()?;
        let pods = cluster.pods(&daemons)?;
        full_size_pings(&pods, &daemons)?;
        assert_eq!(daemons[0].env("FLANNEL_MTU")?, mtu, "{backend}");
        let mut netlink = cluster.hosts[0].node.netlink()?;
        for (address, device) in daemons[1].pod_addresses()?.into_iter().zip(devices) {
            let way = netlink.route_to(address)?.context("no route")?;
            assert_eq!(netlink.expect_link(way.link)?.name, device, "{backend} {address}");
        }
        let record = json(cluster.record(&daemons[0])?)?;
        assert_eq!(record["PublicIPv6"], "2001:db8::1");
        assert_eq!(record["BackendV6Data"]["VtepMAC"].is_string(), backend == "vxlan", "{record}");
    }
    Ok(())
}

#[test]
fn a_network_of_ipv6_alone_has_its_leases_where_no_stock_node_looks() -> Result<()> {
    for (backend, mtu, device) in
        [("udp", "1452", "flannel0"), ("vxlan", "1430", "flannel-v6.1"), ("host-gw", "1500", "u0")]
    {
        let config = ipv6_alone(&format!(r#""Type": "{backend}""#));
        let Some(cluster) = Cluster::over_ipv6(3, &config, false)? else { return Ok(()) };
        let mut daemons = cluster.join()?;
        let pods = cluster.pods(&daemons)?;
        full_size_pings(&pods, &daemons)?;
        for (number, daemon) in (1..).zip(&daemons) {
            let env = fs::read_to_string(&daemon.subnet_file)?;
            let keys: Vec<&str> = env.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
            assert_eq!(keys, ["FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET", "FLANNEL_MTU", "FLANNEL_IPMASQ"]);
            assert_eq!(daemon.env("FLANNEL_MTU")?, mtu, "{backend}");
            let record = json(cluster.record(daemon)?)?;
            assert_eq!(
                (&record["PublicIP"], &record["PublicIPv6"]),
                (&"0.0.0.0".into(), &underlay_v6(number).to_string().into())
            );
            ensure!(daemon.key()?.starts_with(&format!("{PREFIX}/ipv6-subnets/fd05:")), "{}", daemon.key()?);
        }
        // Stock flannel looks at all that begins so.
        assert_eq!(cluster.etcd.list(&format!("{PREFIX}/subnets"))?, []);
        let mut netlink = cluster.hosts[0].node.netlink()?;
        let way = netlink.route_to(daemons[1].pod_addresses()?[0])?.context("no route")?;
        assert_eq!(netlink.expect_link(way.link)?.name, device);
        // A record of the other kind is nobody's peer; our own is had again; the next daemon has the same subnet.
        cluster.etcd.put(&format!("{PREFIX}/ipv6-subnets/10.5.7.0-24"), r#"{"PublicIP":"192.0.2.77"}"#)?;
        daemons[1].says("it has an IPv4 subnet, and the network has none")?;
        let (key, subnets) = (daemons[0].key()?, daemons[0].subnets()?);
        cluster.etcd.delete(&key)?;
        eventually(TIMEOUT, || cluster.etcd.get(&key)?.context("the lease is gone"))?;
        daemons[0].end()?;
        daemons[0] = cluster.start(1, &[])?;
        daemons[0].joined()?;
        assert_eq!(daemons[0].subnets()?, subnets);
        full_size_pings(&pods, &daemons)?;
    }
    Ok(())
}
