//! An unmodified flanneld, as far as its extension backend goes, drives weftd by `weft hook`.
//!
//! ```text
//!   pod 10.5.n.2 (MTU 1500) ── host n: flannel0 10.5.n.0/32, MTU 1472 ══ weftd 192.0.2.n:8285 ── switch
//! ```

mod double;

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipnet::{IpNet, Ipv4Net};
use weft_control::flannel::hook::record::Record;
use weft_control::state::Paths;
use weft_lab::topology::{Pod, Switched};
use weft_lab::udp::Stream;
use weft_lab::{Lab, Link, Node, Ping, PingOutcome, TIMEOUT, eventually, ping, tcp, udp};
use weft_netlink::{RouteFilter, RouteKind};

use crate::support::net;
use crate::weft::Weft;
use double::{Flanneld, Way, by_hand};

const TUN: &str = "flannel0";
/// Peers in the test that measures.
const PEERS: u32 = 1000;
/// Adds that are timed there.
const ADDS: u32 = 200;

/// Hosts on a switch, each with a pod.
struct Cluster {
    hosts: Vec<Weft>,
    pods: Vec<Pod>,
    _underlay: (Vec<Link>, Node),
    _lab: Lab,
}

impl Cluster {
    fn new(count: u8) -> Result<Option<Self>> {
        let Some(lab) = Lab::start() else { return Ok(None) };
        let Switched { links, hosts: nodes, switch } = Switched::new(&lab, count, 1500)?;
        let (mut hosts, mut pods) = (Vec::new(), Vec::new());
        for (number, node) in (1..).zip(&nodes) {
            // Something else to leak to.
            node.route_via("default", "192.0.2.254", "u0")?;
            let (address, gateway) = (format!("10.5.{number}.2/24"), format!("10.5.{number}.1/24"));
            pods.push(Pod::behind(&lab, node, &format!("pod{number}"), &address, &gateway, 1500)?);
            hosts.push(Weft::new(&lab, node)?);
        }
        Ok(Some(Self { hosts, pods, _underlay: (links, switch), _lab: lab }))
    }

    /// A flanneld on every host, all started and told of each other.
    fn start(&self, way: Way) -> Result<Vec<Flanneld<'_>>> {
        let config = config()?;
        let mut all = Vec::new();
        for (number, host) in (1..).zip(&self.hosts) {
            let mut flanneld = Flanneld::new(host, way, &config, &subnet(number), &address(number))?;
            flanneld.start(&all.iter().map(Flanneld::lease).collect::<Vec<_>>())?;
            for other in &all {
                let (subnet, ip, data) = flanneld.lease();
                Flanneld::add(other, &subnet, &ip, &data)?;
            }
            all.push(flanneld);
        }
        Ok(all)
    }

    fn pings(&self, from: usize, to: usize) -> Result<()> {
        let to = format!("10.5.{to}.2");
        ping(&self.pods[from - 1].node, &Ping::to(to.parse()?))?
            .reply()
            .with_context(|| format!("pod{from} to {to}"))?;
        Ok(())
    }
}

fn config() -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/flannel-extension-net-conf.json");
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

fn subnet(number: u8) -> String {
    format!("10.5.{number}.0/24")
}

fn address(number: u8) -> String {
    format!("192.0.2.{number}")
}

/// Where packets to host `number`'s pod go.
fn next_hop(host: &Weft, number: u8) -> Result<Option<String>> {
    let answer = host.client(TUN)?.get(format!("10.5.{number}.2").parse()?)?;
    Ok(answer.route.map(|route| route.peer.addr.to_string()))
}

#[test]
fn the_pods_of_three_nodes_talk_with_both_ways_of_running_hooks() -> Result<()> {
    for way in [Way::Shell, Way::Direct] {
        let Some(cluster) = Cluster::new(3)? else { return Ok(()) };
        let before = cluster.hosts[0].traces()?;
        let flannelds = cluster.start(way)?;
        ensure!(flannelds.iter().all(|flanneld| flanneld.data == "weft/1 port=8285"), "{:?}", flannelds[0].data);
        for from in 1..=3 {
            for to in (1..=3).filter(|to| *to != from) {
                cluster.pings(from, to).with_context(|| format!("{way:?}"))?;
            }
        }
        let (host, device) = (&cluster.hosts[0], cluster.hosts[0].node.link(TUN)?);
        ensure!(device.mtu == 1472 && device.up, "{device:?}");
        let mut netlink = host.node.netlink()?;
        let addresses: Vec<IpNet> =
            netlink.addresses(Some(device.index))?.iter().map(|address| address.prefix).collect();
        ensure!(addresses.contains(&net("10.5.1.0/32")), "{addresses:?}");
        let filter = RouteFilter { dst: Some(net("10.5.0.0/16")), ..RouteFilter::default() };
        let kinds: Vec<RouteKind> = netlink.routes(&filter)?.iter().map(|route| route.kind).collect();
        ensure!(kinds.contains(&RouteKind::Unicast) && kinds.contains(&RouteKind::Unreachable), "{kinds:?}");
        by_hand(host, &["hook", "down"])?.exits(0)?.prints(&["flannel0: down"])?;
        host.is_as(&before)?;
        by_hand(host, &["hook", "down"])?.exits(0)?.prints(&["flannel0: was not up"])?;
        host.is_as(&before)?;
        by_hand(&cluster.hosts[1], &["down", TUN])?.exits(0)?.prints(&["flannel0: down; weftd drained"])?;
        ensure!(cluster.hosts[1].run_files().is_empty(), "{:?}", cluster.hosts[1].run_files());
    }
    Ok(())
}

#[test]
fn pods_whose_mtu_is_too_large_for_the_tunnel_transfer_all_the_same() -> Result<()> {
    let Some(cluster) = Cluster::new(2)? else { return Ok(()) };
    cluster.start(Way::Direct)?;
    let [a, b] = [&cluster.pods[0].node, &cluster.pods[1].node];
    ensure!(a.link("eth0")?.mtu == 1500, "the pod has what flanneld's subnet.env says");
    tcp::transfer(a, b, "10.5.2.2".parse()?, 4 << 20)?;
    tcp::transfer(b, a, "10.5.1.2".parse()?, 4 << 20)?;
    // The node itself tells its pods what fits.
    let whole = Ping { payload_len: 1472, dont_fragment: true, ..Ping::to("10.5.2.2".parse()?) };
    let first = ping(a, &whole)?;
    let is_told = matches!(first, PingOutcome::IcmpError { kind: 3, code: 4, mtu: Some(1472), .. });
    ensure!(is_told || first == PingOutcome::NotSent(libc::EMSGSIZE), "{first:?}");
    ping(a, &Ping { payload_len: 1472, ..Ping::to("10.5.2.2".parse()?) })?.reply().context("in fragments")?;
    Ok(())
}

#[test]
fn hooks_that_are_run_again_change_nothing() -> Result<()> {
    let Some(cluster) = Cluster::new(2)? else { return Ok(()) };
    let mut flannelds = cluster.start(Way::Shell)?;
    let host = &cluster.hosts[0];
    let (subnet, ip, data) = flannelds[1].lease();
    let look = || -> Result<_> { Ok((host.traces()?, host.client(TUN)?.status()?.generation, host.state(TUN)?)) };
    let before = look()?;
    for _ in 0..2 {
        // What flanneld's own environment asks of a log must not reach the line that is published.
        flannelds[0].env = vec![("RUST_LOG", "trace".into())];
        flannelds[0].prepare()?;
        ensure!(flannelds[0].data == "weft/1 port=8285", "{:?}", flannelds[0].data);
        flannelds[0].env.clear();
        flannelds[0].up()?;
        flannelds[0].up()?;
        flannelds[0].add(&subnet, &ip, &data)?;
        flannelds[0].add(&subnet, &ip, &data)?;
        ensure!(look()? == before, "{:?}\nbefore {before:?}", look()?);
    }
    cluster.pings(1, 2)
}

#[test]
fn peers_come_go_move_and_come_back_and_ones_own_subnet_is_never_among_them() -> Result<()> {
    let Some(cluster) = Cluster::new(2)? else { return Ok(()) };
    let flannelds = cluster.start(Way::Direct)?;
    let (host, flanneld) = (&cluster.hosts[0], &flannelds[0]);
    let (two, ip, data) = flannelds[1].lease();
    flanneld.add("10.5.7.0/24", "192.0.2.7", "weft/1 port=9000 future=word")?;
    ensure!(next_hop(host, 7)?.as_deref() == Some("192.0.2.7:9000"));
    flanneld.add("10.5.7.0/24", "192.0.2.8", "")?;
    ensure!(next_hop(host, 7)?.as_deref() == Some("192.0.2.8:8285"), "it moved, and tells no port any more");
    for garbage in ["{\"VNI\":1,\"VtepMAC\":\"aa\"}", "weft/1 port=99999 ip=nowhere", "\u{1}\u{2}\u{7f}", "null"] {
        flanneld.add("10.5.7.0/24", "192.0.2.9", garbage)?;
        ensure!(next_hop(host, 7)?.as_deref() == Some("192.0.2.9:8285"), "{garbage:?}");
    }
    flanneld.add("10.5.7.0/24", "192.0.2.9", "weft/1 port=8285 ip=198.51.100.9")?;
    ensure!(next_hop(host, 7)?.as_deref() == Some("198.51.100.9:8285"), "behind a NAT");
    flanneld.del("10.5.7.0/24", "192.0.2.9", "")?;
    flanneld.del("10.5.7.0/24", "192.0.2.9", "")?;
    ensure!(next_hop(host, 7)?.is_none());
    for _ in 0..2 {
        flanneld.del(&two, &ip, &data)?;
        ensure!(cluster.pings(1, 2).is_err());
        flanneld.add(&two, &ip, &data)?;
        cluster.pings(1, 2)?;
    }
    flanneld.add("10.5.1.0/24", "192.0.2.1", "")?;
    ensure!(next_hop(host, 1)?.is_none(), "one's own subnet is routed to a peer");
    flanneld.del("10.5.1.0/24", "192.0.2.1", "")?;
    cluster.pings(1, 2)?;
    cluster.pings(2, 1)
}

#[test]
fn a_peer_that_cannot_be_used_concerns_itself_alone_and_a_mistake_is_explained() -> Result<()> {
    let Some(cluster) = Cluster::new(2)? else { return Ok(()) };
    let flannelds = cluster.start(Way::Direct)?;
    let flanneld = &flannelds[0];
    let cases: [(&str, &str, &str); 6] = [
        ("10.5.9.0/24", "0.0.0.0", "peer 10.5.9.0/24"),
        ("10.5.9.0/24", "224.0.0.1", "peer 10.5.9.0/24"),
        ("10.6.9.0/24", "192.0.2.9", "outside the network 10.5.0.0/16"),
        ("0.0.0.0/0", "192.0.2.9", "no IPv4 part"),
        ("10.5.9.0", "192.0.2.9", "SUBNET is \"10.5.9.0\", not an IPv4 prefix"),
        ("10.5.9.0/24", "", "PUBLIC_IP is not in the environment"),
    ];
    for (subnet, ip, said) in cases {
        let ran = flanneld.run("SubnetAddCommand", &[("SUBNET", subnet), ("PUBLIC_IP", ip)], "")?;
        ensure!(!ran.status.success() && ran.output.contains(said), "{subnet} {ip}: {ran:?}");
    }
    cluster.pings(1, 2)?;
    ensure!(next_hop(&cluster.hosts[0], 9)?.is_none());
    let ran = flanneld.run("PostStartupCommand", &[("NETWORK", "10.5.0.0/16")], "")?;
    ensure!(ran.status.code() == Some(2) && ran.output.contains("docs/flannel-extension.md"), "{ran:?}");

    let Some(other) = Cluster::new(1)? else { return Ok(()) };
    let mut alone = Flanneld::new(&other.hosts[0], Way::Shell, &config()?, "10.5.1.0/24", "192.0.2.1")?;
    let holder = other.hosts[0].node.run(|| UdpSocket::bind("0.0.0.0:8285"))?;
    let ran = alone.run("PreStartupCommand", &[], "")?;
    ensure!(ran.status.code() == Some(1) && ran.output.contains("in use"), "{ran:?}");
    drop(holder);
    alone.env.push(("WEFT_HOOK_IFACE", "u0".into()));
    alone.env.push(("WEFT_HOOK_PORT", "9000".into()));
    alone.env.push(("WEFT_HOOK_PUBLIC_IP", "203.0.113.1".into()));
    alone.start(&[])?;
    ensure!(alone.data == "weft/1 port=9000 ip=203.0.113.1", "{}", alone.data);
    ensure!(other.hosts[0].client(TUN)?.hello().bind == "192.0.2.1:9000".parse()?);
    alone.env = vec![("WEFT_HOOK_IFACE", "nowhere0".into())];
    let ran = alone.run("PreStartupCommand", &[], "")?;
    ensure!(ran.output.contains("--iface nowhere0: no interface of this name"), "{ran:?}");
    Ok(())
}

#[test]
fn a_restart_of_flanneld_loses_no_packet() -> Result<()> {
    let Some(cluster) = Cluster::new(2)? else { return Ok(()) };
    let mut flannelds = cluster.start(Way::Direct)?;
    let peers = [flannelds[1].lease()];
    let stream = Stream { interval: Duration::from_micros(500), ..Stream::new("10.5.2.2".parse()?, 2000, 400) };
    let (arrived, ()) = udp::during(&cluster.pods[0].node, &cluster.pods[1].node, &stream, || {
        (0..3).try_for_each(|_| flannelds[0].start(&peers))
    })?;
    arrived.perfect()?;
    ensure!(cluster.hosts[0].client(TUN)?.status()?.generation == 1, "the table was touched");
    Ok(())
}

#[test]
fn whichever_hook_comes_first_brings_a_killed_weftd_back_and_nothing_leaks_until_then() -> Result<()> {
    let Some(cluster) = Cluster::new(2)? else { return Ok(()) };
    let mut flannelds = cluster.start(Way::Direct)?;
    let host = &cluster.hosts[0];
    let (subnet, ip, data) = flannelds[1].lease();
    for hook in ["prepare", "up", "add", "del"] {
        host.kill_weftd(TUN)?;
        let outcome = ping(&host.node, &Ping::to("10.5.2.2".parse()?))?;
        ensure!(outcome == PingOutcome::NotSent(libc::EHOSTUNREACH), "{hook}: {outcome:?}");
        match hook {
            "prepare" => drop(flannelds[0].prepare()?),
            "up" => drop(flannelds[0].up()?),
            "add" => drop(flannelds[0].add(&subnet, &ip, &data)?),
            _ => drop(flannelds[0].del("10.5.99.0/24", "192.0.2.99", "")?),
        }
        cluster.pings(1, 2).with_context(|| hook.to_owned())?;
        cluster.pings(2, 1).with_context(|| hook.to_owned())?;
    }
    // Another setting is a reason for another weftd, and none to forget the peers.
    let before = host.weftd_pid(TUN)?;
    flannelds[0].env.push(("WEFT_HOOK_IFACE", "192.0.2.1".into()));
    flannelds[0].prepare()?;
    ensure!(host.weftd_pid(TUN)? != before && next_hop(host, 2)?.is_some());
    cluster.pings(1, 2)?;
    // weftd's state is lost; the hooks take the place over.
    fs::remove_file(host.run_dir().join("flannel0.json"))?;
    flannelds[0].start(&[(subnet, ip, data)])?;
    cluster.pings(1, 2)
}

#[test]
fn a_hook_that_kept_its_output_open_would_be_noticed() -> Result<()> {
    let Some(cluster) = Cluster::new(1)? else { return Ok(()) };
    let config = config()?.replace("/opt/bin/weft hook prepare", "sleep 60 &");
    let flanneld = Flanneld::new(&cluster.hosts[0], Way::Shell, &config, "10.5.1.0/24", "192.0.2.1")?;
    let error = flanneld.run("PreStartupCommand", &[], "").expect_err("the output is open");
    ensure!(format!("{error:#}").contains("keeps its output open"), "{error:#}");
    Ok(())
}

#[test]
fn hooks_that_run_at_the_same_time_do_not_get_in_each_others_way() -> Result<()> {
    let Some(cluster) = Cluster::new(1)? else { return Ok(()) };
    let flannelds = cluster.start(Way::Direct)?;
    let (host, flanneld) = (&cluster.hosts[0], &flannelds[0]);
    host.kill_weftd(TUN)?;
    std::thread::scope(|scope| {
        let adds: Vec<_> =
            (10..30u8).map(|number| scope.spawn(move || flanneld.add(&subnet(number), &address(number), ""))).collect();
        adds.into_iter().try_for_each(|add| add.join().expect("an add does not panic").map(drop))
    })?;
    for number in 10..30 {
        ensure!(next_hop(host, number)? == Some(format!("192.0.2.{number}:8285")), "{number}");
    }
    eventually(TIMEOUT, || {
        let weftds = host.processes()?.len();
        ensure!(weftds == 1, "{weftds} processes on the node");
        Ok(())
    })
}

#[test]
fn adds_among_a_thousand_peers_are_all_in_force() -> Result<()> {
    let Some(cluster) = Cluster::new(1)? else { return Ok(()) };
    let flannelds = cluster.start(Way::Direct)?;
    let (host, flanneld) = (&cluster.hosts[0], &flannelds[0]);
    let paths = Paths::new(&host.run_dir(), TUN);
    let mut record = Record::read(&paths);
    let nth = |number: u32| -> (Ipv4Net, Ipv4Addr) {
        let base = u32::from(Ipv4Addr::new(10, 5, 128, 0)) + number * 16;
        (Ipv4Net::new_assert(base.into(), 28), Ipv4Addr::from(u32::from(Ipv4Addr::new(192, 0, 3, 1)) + number))
    };
    for number in 0..PEERS {
        let (subnet, ip) = nth(number);
        record.add(subnet, SocketAddrV4::new(ip, 8285));
    }
    record.write(&paths)?;
    flanneld.up()?;
    ensure!(host.client(TUN)?.status()?.routes == PEERS, "the peers are in force");
    let mut times = Vec::new();
    for number in 0..ADDS {
        let (subnet, ip) = nth(PEERS + number);
        times.push(flanneld.add(&subnet.to_string(), &ip.to_string(), "weft/1 port=8285")?.took);
    }
    ensure!(host.client(TUN)?.status()?.routes == PEERS + ADDS);
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("weft hook add with {PEERS} peers: p50 {:?}, p99 {:?}, of {ADDS}", at(50), at(99));
    Ok(())
}
