//! What flannel's own functional and end-to-end tests ask of a flanneld, where that needs no Kubernetes: `functional/` with
//! etcd as the registry, and the matrix of `e2e/`.

use super::*;
use std::process::Command;
use weft_lab::tcp;
use weft_netlink::{NewLink, NewLinkKind};

/// How often flannel's tests ping, between hosts and between pods.
const PINGS: [u32; 2] = [3, 5];

/// A device with the address that the subnet file has, a bridge without ports where flannel's tests take a dummy; gives the
/// address.
fn device_with_address(daemon: &Daemon, name: &str) -> Result<Ipv4Addr> {
    let subnet = daemon.env("FLANNEL_SUBNET")?;
    daemon.node.netlink()?.add_link(&NewLink { up: true, ..NewLink::new(name, NewLinkKind::Bridge) })?;
    let address = subnet.parse::<Ipv4Net>()?.addr();
    daemon.node.address(name, &format!("{address}/32"))?;
    Ok(address)
}

/// Pings from one address to another, several times, once the first got through.
fn pings(from: &Node, source: Option<IpAddr>, to: IpAddr, count: u32) -> Result<()> {
    eventually(TIMEOUT, || ping(from, &Ping { from: source, ..Ping::quick(to) })?.reply())?;
    for number in 1..=count {
        let outcome = ping(from, &Ping { from: source, ..Ping::to(to) })?;
        outcome.reply().with_context(|| format!("ping {number} from {} to {to}", from.name()))?;
    }
    Ok(())
}

#[test]
fn two_hosts_ping_each_others_devices_on_each_backend() -> Result<()> {
    for backend in ["vxlan", "udp", "host-gw"] {
        // The verbosity is that of the tests there.
        let config = format!(r#"{{"Network": "10.50.0.0/16", "Backend": {{"Type": "{backend}"}}}}"#);
        let Some(cluster) = Cluster::new(2, &config)? else { return Ok(()) };
        let mut daemons = vec![cluster.start(1, &["-v", "10"])?, cluster.start(2, &["-v", "10"])?];
        for daemon in &mut daemons {
            daemon.joined()?;
        }
        let addresses = [device_with_address(&daemons[0], "cni0")?, device_with_address(&daemons[1], "cni0")?];
        for (from, to) in [(0, 1), (1, 0)] {
            pings(&daemons[from].node, Some(addresses[from].into()), addresses[to].into(), PINGS[0])
                .with_context(|| backend.to_owned())?;
        }
    }
    Ok(())
}

#[test]
fn two_daemons_on_a_host_do_not_answer_for_each_other() -> Result<()> {
    let Some(cluster) = Cluster::new(2, "")? else { return Ok(()) };
    // Hosts answer for all their addresses on every link unless they are told not to, and so past any tunnel.
    for host in &cluster.hosts {
        host.node.sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
    }
    // Backend, its network, its device, and a device that its packets must not get through.
    let networks = [("vxlan", "10.6.0.0/16", "flannel.1", "u0"), ("hostgw", "10.7.0.0/16", "u0", "flannel.1")];
    let mut daemons = Vec::new();
    for (name, network, _, _) in networks {
        let kind = if name == "hostgw" { "host-gw" } else { name };
        let config = format!(r#"{{"Network": "{network}", "Backend": {{"Type": "{kind}"}}}}"#);
        cluster.etcd.put(&format!("/{name}/network/config"), &config)?;
        for host in &cluster.hosts {
            let prefix = format!("--etcd-prefix=/{name}/network");
            let flags = [prefix.as_str(), "--iptables-forward-rules=false"];
            daemons.push(Daemon::start(host, &cluster.etcd.url(), &format!("{name}.subnet.env"), &flags)?);
        }
    }
    for daemon in &mut daemons {
        daemon.joined()?;
    }
    for (pair, (name, _, right, wrong)) in daemons.chunks(2).zip(networks) {
        let addresses = [device_with_address(&pair[0], name)?, device_with_address(&pair[1], name)?];
        for (from, to) in [(0, 1), (1, 0)] {
            let (node, to) = (&pair[from].node, IpAddr::from(addresses[to]));
            pings(node, None, to, PINGS[0]).with_context(|| name.to_owned())?;
            let through =
                |device: &str| -> Result<Ping> { Ok(Ping { link: node.link(device)?.index, ..Ping::quick(to) }) };
            ping(node, &through(right)?)?.reply().with_context(|| format!("{name} through {right}"))?;
            let outcome = ping(node, &through(wrong)?)?;
            ensure!(outcome.reply().is_err(), "{name} answers through {wrong}");
        }
    }
    Ok(())
}

/// flannel's rules on a host by iptables, as `e2e/` compares them.
fn iptables_rules(network: &str, subnet: &str) -> Vec<String> {
    let (masq, forward) = (r#"-m comment --comment "flanneld masq""#, r#"-m comment --comment "flanneld forward""#);
    vec![
        format!("-A POSTROUTING {masq} -j FLANNEL-POSTRTG"),
        format!("-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masq} -j RETURN"),
        format!("-A FLANNEL-POSTRTG -s {subnet} -d {network} {masq} -j RETURN"),
        format!("-A FLANNEL-POSTRTG -s {network} -d {subnet} {masq} -j RETURN"),
        format!("-A FLANNEL-POSTRTG ! -s {network} -d {subnet} {masq} -j RETURN"),
        format!("-A FLANNEL-POSTRTG -s {network} ! -d 224.0.0.0/4 {masq} -j MASQUERADE --random-fully"),
        format!("-A FLANNEL-POSTRTG ! -s {network} -d {network} {masq} -j MASQUERADE --random-fully"),
        format!("-A FORWARD {forward} -j FLANNEL-FWD"),
        format!("-A FLANNEL-FWD -s {network} {forward} -j ACCEPT"),
        format!("-A FLANNEL-FWD -d {network} {forward} -j ACCEPT"),
    ]
}

/// The same by nftables.
fn nftables_rules(network: &str, subnet: &str) -> Vec<String> {
    vec![
        "meta mark 0x00004000 return".to_owned(),
        format!("ip saddr {subnet} ip daddr {network} return"),
        format!("ip saddr {network} ip daddr {subnet} return"),
        format!("ip saddr != {subnet} ip daddr {network} return"),
        format!("ip saddr {network} ip daddr != 224.0.0.0/4 masquerade fully-random"),
        format!("ip saddr != {network} ip daddr {network} masquerade fully-random"),
        format!("ip saddr {network} accept"),
        format!("ip daddr {network} accept"),
    ]
}

/// What a host has of flannel's rules, by the programs that its administrator would ask.
fn found_rules(node: &Node, has_nftables: bool) -> Result<Vec<String>> {
    let script = match has_nftables {
        true => "nft list chain ip flannel-ipv4 postrtg; nft list chain ip flannel-ipv4 forward",
        false => "iptables -t nat -S; iptables -S",
    };
    let output = node.run(|| Command::new("sh").args(["-ec", script]).output())?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let is_rule = |line: &&str| match has_nftables {
        true => ["return", "accept", "fully-random"].iter().any(|verdict| line.ends_with(verdict)),
        false => line.starts_with("-A") && line.contains("flanneld"),
    };
    Ok(text.lines().map(str::trim).filter(is_rule).map(str::to_owned).collect())
}

#[test]
fn the_matrix_of_flannels_end_to_end_tests() -> Result<()> {
    const NETWORK: &str = "10.42.0.0/16";
    for (backend, has_nftables) in
        [("vxlan", false), ("vxlan", true), ("host-gw", false), ("udp", false), ("udp", true)]
    {
        let config = format!(
            r#"{{"Network": "{NETWORK}", "EnableNFTables": {has_nftables}, "Backend": {{"Type": "{backend}"}}}}"#
        );
        let Some(cluster) = Cluster::new(2, &config)? else { return Ok(()) };
        let mut daemons = vec![cluster.start(1, &["--ip-masq"])?, cluster.start(2, &["--ip-masq"])?];
        for daemon in &mut daemons {
            daemon.joined()?;
        }
        let pods = cluster.pods(&daemons)?;
        for (from, to) in [(0, 1), (1, 0)] {
            pings(&pods[from].node, None, daemons[to].pod()?.into(), PINGS[1])?;
        }
        tcp::transfer(&pods[0].node, &pods[1].node, daemons[1].pod()?.into(), 16 << 20)?;
        for daemon in &daemons {
            let subnet = daemon.subnet()?.to_string();
            let expected =
                if has_nftables { nftables_rules(NETWORK, &subnet) } else { iptables_rules(NETWORK, &subnet) };
            assert_eq!(found_rules(&daemon.node, has_nftables)?, expected, "{backend}, nftables: {has_nftables}");
        }
    }
    Ok(())
}
