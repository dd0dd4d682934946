//! Joining: on each backend, several daemons on a host, races.

use super::*;
use crate::support::TUN;
use weft_netlink::RouteFilter;

#[test]
fn on_each_backend_hosts_join_and_their_pods_talk() -> Result<()> {
    for (backend, mtu, device, kind) in [
        ("udp", "1472", Some(TUN), ""),
        ("vxlan", "1450", Some("flannel.1"), "vxlan"),
        ("host-gw", "1500", None, "host-gw"),
    ] {
        let config = format!(r#"{{"network": "10.5.0.0/16", "Backend": {{"type": "{backend}"}}}}"#);
        let Some(cluster) = Cluster::new(3, &config)? else { return Ok(()) };
        let mut daemons = cluster.join()?;
        for (number, daemon) in (1..).zip(&daemons) {
            assert_eq!(daemon.env("FLANNEL_NETWORK")?, "10.5.0.0/16");
            assert_eq!(daemon.env("FLANNEL_MTU")?, mtu, "{backend}");
            assert_eq!(daemon.env("FLANNEL_IPMASQ")?, "false");
            let subnet = daemon.subnet()?;
            assert_eq!(subnet.prefix_len(), 24);
            let record = cluster.record(daemon)?.context("no record")?;
            match kind {
                // Byte for byte what stock flannel writes.
                "" => assert_eq!(record, format!(r#"{{"PublicIP":"192.0.2.{number}","PublicIPv6":null}}"#)),
                _ => assert_eq!(serde_json::from_str::<Value>(&record)?["BackendType"], kind),
            }
            if let Some(device) = device {
                let mut netlink = daemon.node.netlink()?;
                let link = netlink.expect_link(device)?;
                assert_eq!(link.mtu.to_string(), mtu);
                let addresses = netlink.addresses(Some(link.index))?;
                ensure!(
                    addresses.iter().any(|address| address.prefix.to_string() == format!("{}/32", subnet.network())),
                    "{addresses:?}"
                );
            }
        }
        let pods = cluster.pods(&daemons)?;
        // Between the hosts' own addresses, as flannel's own tests do it.
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            let gateway: Ipv4Addr = daemons[to].env("FLANNEL_SUBNET")?.parse::<Ipv4Net>()?.addr();
            ping(&cluster.hosts[from].node, &Ping::to(gateway.into()))?.reply()?;
            ping(
                &pods[from].node,
                &Ping { payload_len: mtu.parse::<usize>()? - 28, ..Ping::to(daemons[to].pod()?.into()) },
            )?
            .reply()?;
        }
        // What was set up outlives the daemon.
        for daemon in &mut daemons {
            daemon.end()?;
        }
        ping(&pods[0].node, &Ping::to(daemons[1].pod()?.into()))?.reply().context("after the daemons' end")?;
        for daemon in &daemons {
            ensure!(cluster.record(daemon)?.is_some() && daemon.subnet_file.exists(), "the lease went with the daemon");
        }
    }
    Ok(())
}

#[test]
fn nothing_leaves_by_the_default_route_when_weftd_is_away() -> Result<()> {
    let Some(cluster) = Cluster::new(1, r#"{"Network": "10.5.0.0/16"}"#)? else { return Ok(()) };
    let mut daemons = cluster.join()?;
    let host = &cluster.hosts[0];
    host.node.route_via("default", ETCD, "u0")?;
    daemons[0].end()?;
    host.kill_weftd("flannel")?;
    let routes =
        host.node.netlink()?.routes(&RouteFilter { dst: Some("10.5.0.0/16".parse()?), ..RouteFilter::default() })?;
    ensure!(routes.len() == 1 && routes[0].kind == weft_netlink::RouteKind::Unreachable, "{routes:?}");
    let outcome = ping(&host.node, &Ping::quick("10.5.99.1".parse()?))?;
    ensure!(outcome == weft_lab::PingOutcome::NotSent(libc::EHOSTUNREACH), "{outcome:?}");
    host.ok(&["down", "flannel"])?;
    ensure!(host.run_files().is_empty(), "{:?}", host.run_files());
    Ok(())
}

#[test]
fn several_daemons_on_a_host_have_backends_of_their_own() -> Result<()> {
    let Some(cluster) = Cluster::new(2, r#"{"Network": "10.5.0.0/16"}"#)? else { return Ok(()) };
    let networks = [
        (PREFIX, r#"{"Network": "10.5.0.0/16"}"#),
        ("/vxlan/network", r#"{"Network": "10.6.0.0/16", "Backend": {"Type": "vxlan"}}"#),
        ("/hostgw/network", r#"{"Network": "10.7.0.0/16", "Backend": {"Type": "host-gw"}}"#),
        ("/udp/network", r#"{"Network": "10.8.0.0/16", "Backend": {"Type": "udp", "Port": 8286}}"#),
    ];
    let mut daemons = Vec::new();
    for (index, (prefix, config)) in networks.iter().enumerate() {
        cluster.etcd.put(&format!("{prefix}/config"), config)?;
        for host in &cluster.hosts {
            let (prefix, file) = (format!("--etcd-prefix={prefix}"), format!("{index}.subnet.env"));
            let flags = [prefix.as_str(), "--iptables-forward-rules=false"];
            daemons.push(Daemon::start(host, &cluster.etcd.url(), &file, &flags)?);
        }
    }
    for daemon in &mut daemons {
        daemon.joined()?;
    }
    for ((prefix, _), pair) in networks.iter().zip(daemons.chunks(2)) {
        let host = &cluster.hosts[1];
        let mut netlink = host.node.netlink()?;
        let gateway: Ipv4Addr = pair[1].env("FLANNEL_SUBNET")?.parse::<Ipv4Net>()?.addr();
        host.node.address("lo", &format!("{gateway}/32"))?;
        eventually(TIMEOUT, || ping(&cluster.hosts[0].node, &Ping::quick(gateway.into()))?.reply())
            .with_context(|| prefix.to_string())?;
        let subnet = pair[0].subnet()?;
        // The answer to a ping from the underlay address needs no route back.
        let to = IpAddr::from(u32::from(subnet.network()).to_be_bytes());
        let through =
            eventually(TIMEOUT, || netlink.route_to(to)?.context("no route")).with_context(|| prefix.to_string())?;
        let expected = match *prefix {
            PREFIX => "flannel0",
            "/vxlan/network" => "flannel.1",
            "/hostgw/network" => "u0",
            _ => "flannel1",
        };
        assert_eq!(netlink.expect_link(through.link)?.name, expected, "{prefix}");
    }
    Ok(())
}

#[test]
fn two_nodes_that_race_for_one_subnet_get_two() -> Result<()> {
    let config = r#"{"Network": "10.5.0.0/16", "SubnetMin": "10.5.1.0", "SubnetMax": "10.5.2.0"}"#;
    let Some(cluster) = Cluster::new(3, config)? else { return Ok(()) };
    for host in &cluster.hosts[..2] {
        host.write("subnet.env", "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\n")?;
    }
    let mut daemons = vec![cluster.start(1, &[])?, cluster.start(2, &[])?];
    for daemon in &mut daemons {
        daemon.joined()?;
    }
    let mut subnets = [daemons[0].subnet()?.to_string(), daemons[1].subnet()?.to_string()];
    subnets.sort();
    assert_eq!(subnets, ["10.5.1.0/24", "10.5.2.0/24"]);
    cluster.pods(&daemons)?;
    // There is none left for a third, until a node leaves.
    let mut third = cluster.start(3, &["--healthz-port=8081"])?;
    third.says("no lease yet")?;
    assert_eq!(http(&third.node, 8081, "/readyz")?.1, "flanneld is not ready yet");
    daemons[1].end()?;
    cluster.etcd.delete(&daemons[1].key()?)?;
    third.joined()?;
    assert_eq!(third.subnet()?, daemons[1].subnet()?);
    Ok(())
}
