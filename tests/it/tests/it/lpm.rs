//! A packet goes where the longest prefix that covers it leads.
//!
//! ```text
//!                       | table of a                      v6
//!   a 10.9.1.1 ---+     | 0.0.0.0/0     -> c    ::/0               -> c
//!                 |     | 10.9.0.0/16   -> b    fd09::/32          -> b
//!   b 10.9.2.1 ---+     | 10.9.7.0/24   -> c    fd09:0:0:7::/64    -> c
//!                 |     | 10.9.7.7/32   -> b    fd09:0:0:7::7/128  -> b
//!   c 10.9.3.1 ---+
//! ```

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use weft_lab::{Capture, Frame, Node, eventually};
use weft_proto::Delta;

use crate::support::{Cluster, Family, Host, TIMEOUT, TUN, Tunnel, net};

/// Where the probes go; no one listens.
const PROBE_PORT: u16 = 9;

/// (destination, host that it leads to)
type Expected = [(&'static str, usize)];

const B: usize = 1;
const C: usize = 2;

#[test]
fn packets_arrive_where_the_longest_ipv4_prefix_leads() -> Result<()> {
    longest_prefix_wins(
        ["0.0.0.0/0", "10.9.0.0/16", "10.9.7.0/24", "10.9.7.7/32"],
        &[
            ("203.0.113.9", C),
            ("10.8.255.255", C),
            ("10.10.0.1", C),
            ("10.9.0.1", B),
            ("10.9.6.255", B),
            ("10.9.7.0", C),
            ("10.9.7.6", C),
            ("10.9.7.7", B),
            ("10.9.7.8", C),
            ("10.9.7.254", C),
            ("10.9.8.0", B),
        ],
        ("10.9.7.7", C),
    )
}

#[test]
fn packets_arrive_where_the_longest_ipv6_prefix_leads() -> Result<()> {
    longest_prefix_wins(
        ["::/0", "fd09::/32", "fd09:0:0:7::/64", "fd09:0:0:7::7/128"],
        &[
            ("2001:db8:ffff::9", C),
            ("fd08:ffff::1", C),
            ("fd09:1::1", C),
            ("fd09::1", B),
            ("fd09:0:0:6:ffff:ffff:ffff:ffff", B),
            ("fd09:0:0:7::6", C),
            ("fd09:0:0:7::7", B),
            ("fd09:0:0:7::8", C),
            ("fd09:0:0:7:ffff::", C),
            ("fd09:0:0:8::", B),
        ],
        ("fd09:0:0:7::7", C),
    )
}

/// `prefixes`: the default route, the overlay, a subnet in it, a host in that; `without_host` is what becomes of the host
/// once its route is gone.
fn longest_prefix_wins(prefixes: [&str; 4], expected: &Expected, without_host: (&'static str, usize)) -> Result<()> {
    let Some(cluster) = Tunnel::builder().build_switched(3)? else { return Ok(()) };
    let Cluster { hosts, .. } = &cluster;
    let (a, b, c) = (&hosts[0], &hosts[B], &hosts[C]);
    let [default, overlay, subnet, host] = prefixes.map(net);
    a.install([(default, c), (overlay, b), (subnet, c), (host, b)])?;
    a.node.route(prefixes[0], TUN)?;
    arrives(hosts, expected)?;

    a.weftd.client()?.delta(&Delta { upsert: Vec::new(), remove: vec![host] }, None)?;
    arrives(hosts, &[without_host]).context("after the route of the host was removed")?;
    // Unlike `b` and `c`, `a` drops something: to what it has no route for, `c` answers with an ICMPv6 error from its overlay
    // address, which the table of `a` gives to `b`.
    for host in [b, c] {
        let drops = host.stats()?.drops();
        ensure!(drops.is_empty(), "{} dropped {drops:?}", host.node.name());
    }
    Ok(())
}

/// Sends a datagram from the first host to each destination, and looks at the TUN of the others for what arrives.
fn arrives(hosts: &[Host], expected: &Expected) -> Result<()> {
    let captures = [Capture::start(&hosts[B].node, TUN, is_probe)?, Capture::start(&hosts[C].node, TUN, is_probe)?];
    let mut client = hosts[0].weftd.client()?;
    for (to, host) in expected {
        let to: IpAddr = to.parse()?;
        send_probe(&hosts[0].node, to)?;
        let route = client.get(to)?.route.with_context(|| format!("no route to {to}"))?;
        ensure!(route.peer == hosts[*host].peer(), "`get {to}` says {route:?}");
    }
    eventually(TIMEOUT, || {
        for (host, capture) in [(B, &captures[0]), (C, &captures[1])] {
            let arrived: Vec<IpAddr> = capture.frames().iter().filter_map(|frame| destination(&frame.bytes)).collect();
            let meant = expected.iter().filter(|(_, at)| *at == host).map(|(to, _)| to.parse());
            let meant: BTreeSet<IpAddr> = meant.collect::<Result<_, _>>()?;
            let name = hosts[host].node.name();
            ensure!(arrived.iter().copied().collect::<BTreeSet<_>>() == meant, "at {name}: {arrived:?}, not {meant:?}");
            ensure!(arrived.len() == meant.len(), "at {name}, more than once: {arrived:?}");
        }
        Ok(())
    })
}

fn send_probe(from: &Node, to: IpAddr) -> Result<()> {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let socket = from.run(|| UdpSocket::bind((family.overlay(1), 0)))?;
    socket.send_to(b"probe", SocketAddr::new(to, PROBE_PORT)).with_context(|| format!("sending to {to}"))?;
    Ok(())
}

/// Incoming UDP to the probe port; a TUN has no Ethernet header.
fn is_probe(frame: &Frame) -> bool {
    let header_len = if frame.bytes[0] >> 4 == 4 { 20 } else { 40 };
    !frame.outgoing && frame.bytes.get(header_len + 2..header_len + 4) == Some(&PROBE_PORT.to_be_bytes())
}

fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet[0] >> 4 {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?)),
        _ => Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?)),
    }
}
