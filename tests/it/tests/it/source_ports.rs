//! With `--source-ports spread` each worker sends from a port of its own, and as many workers of the peer share what it sends; without,
//! everything leaves from the port that is listened on.
//!
//! ```text
//!   a [flannel0 = workers] :8285, :49446, :49447, ... ------- :8285 [workers = flannel0] b
//! ```

use std::collections::BTreeSet;
use std::net::UdpSocket;

use anyhow::{Context, Result, ensure};
use weft_lab::{WeftdOptions, tcp};

use crate::craft::{self, Packet};
use crate::half::{Half, here, there};
use crate::support::{Family, Host, PORT, Tunnel};

const WORKERS: u32 = 4;
const SPREAD: &str = "--source-ports=spread";
/// Dynamic ports (RFC 6335) that follow 8285 modulo 840.
const PORTS: [u16; 4] = [PORT, 49_446, 49_447, 49_448];
/// Payload of a transfer in each direction, bytes.
const TRANSFER_LEN: u64 = 256 << 10;
/// Transfers until every worker had one of their flows, at most; of 30 flows each of four has one but once in a thousand times.
const TRANSFERS_MAX: usize = 300;

/// Inner packets that each worker, the lane not among them, has sent or accepted.
fn packets_per_worker(host: &Host, counter: &str) -> Result<Vec<u64>> {
    let workers = host.stats()?.report.workers;
    Ok(workers.iter().filter(|worker| !worker.offloads.sparse_lane).map(|worker| worker.counters[counter]).collect())
}

#[test]
fn the_workers_of_a_peer_share_what_comes_from_spread_ports_one_port_each() -> Result<()> {
    for (underlay, engine) in [(Family::V4, "uring"), (Family::V6, "uring"), (Family::V4, "epoll")] {
        let case = || format!("underlay {underlay:?}, {engine}");
        let builder = Tunnel::builder().underlay(underlay).each(|options| {
            options.engine = Some(engine.into());
            options.workers = Some(WORKERS);
            options.flags = vec![SPREAD.into()];
        });
        let Some(tunnel) = builder.build()? else { return Ok(()) };
        let Tunnel { a, b, .. } = &tunnel;
        for host in [a, b] {
            assert_eq!(host.status()?.source_ports, PORTS, "{}", case());
        }
        let mut transfers = 0;
        while packets_per_worker(a, "encap_packets")?.contains(&0) {
            ensure!(transfers < TRANSFERS_MAX, "{}: {:?}", case(), packets_per_worker(a, "encap_packets")?);
            tcp::transfer(&a.node, &b.node, b.overlay(Family::BOTH[transfers % 2]), TRANSFER_LEN).with_context(case)?;
            transfers += 1;
        }
        tunnel.balanced().with_context(case)?;
        for (from, to) in [(a, b), (b, a)] {
            let mut sent = packets_per_worker(from, "encap_packets")?;
            let mut accepted = packets_per_worker(to, "decap_packets")?;
            sent.sort_unstable();
            accepted.sort_unstable();
            assert_eq!(sent, accepted, "{}", case());
        }
    }
    Ok(())
}

#[test]
fn without_it_one_worker_of_the_peer_has_everything() -> Result<()> {
    let Some(tunnel) = Tunnel::builder().each(|options| options.workers = Some(WORKERS)).build()? else {
        return Ok(());
    };
    let Tunnel { a, b, .. } = &tunnel;
    assert_eq!(a.status()?.source_ports, [PORT]);
    for _ in 0..8 {
        tcp::transfer(&a.node, &b.node, b.overlay(Family::V4), TRANSFER_LEN)?;
    }
    tunnel.balanced()?;
    let accepted = packets_per_worker(b, "decap_packets")?;
    assert_eq!(accepted.iter().filter(|count| **count > 0).count(), 1, "{accepted:?}");
    Ok(())
}

#[test]
fn a_port_that_is_taken_is_left_to_who_has_it() -> Result<()> {
    let mut taken = Vec::new();
    let spread = |options: &mut WeftdOptions| {
        options.workers = Some(WORKERS);
        options.flags = vec![SPREAD.into()];
    };
    let built = Tunnel::builder().a(spread).build_prepared(|pair| {
        let take = |port| pair.a.run(|| UdpSocket::bind(("0.0.0.0", port)));
        taken = vec![take(PORTS[1])?, take(PORTS[3])?];
        Ok(())
    })?;
    let Some(tunnel) = built else { return Ok(()) };
    assert_eq!(tunnel.a.status()?.source_ports, [PORT, PORTS[1] + 840, PORTS[2], PORTS[3] + 840]);
    tcp::transfer(&tunnel.a.node, &tunnel.b.node, tunnel.b.overlay(Family::V4), TRANSFER_LEN)?;
    drop(taken);
    Ok(())
}

#[test]
fn a_stock_peer_gets_the_same_bytes_from_other_ports_and_nothing_comes_in_by_them() -> Result<()> {
    let spread = |options: &mut WeftdOptions| {
        options.workers = Some(WORKERS);
        options.flags = vec![SPREAD.into()];
    };
    let Some(half) = Half::build(&[Family::V4], spread)? else { return Ok(()) };
    let mut seen = BTreeSet::new();
    for port in 0..200 {
        let packet = Packet::udp(here(Family::V4), there(Family::V4), (10_000 + port, 80), &[7; 100]).build();
        half.injector.send(&packet)?;
        let (datagram, from) = half.receive_as_peer()?;
        assert_eq!(datagram, craft::one_hop_on(&packet));
        assert_eq!(from.ip(), half.host.address.ip());
        seen.insert(from.port());
    }
    assert_eq!(seen, BTreeSet::from(PORTS));
    let capture = half.capture_tun()?;
    let packet = Packet::udp(there(Family::V4), "10.9.1.77".parse()?, (80, 10_000), &[8; 100]).build();
    for port in &PORTS[1..] {
        half.socket.send_to(&packet, (half.host.address.ip(), *port))?;
    }
    assert!(half.decap_marker(&capture)?.is_empty());
    let capture = half.capture_tun()?;
    half.send_as_peer(&packet)?;
    assert_eq!(half.decap_marker(&capture)?, [craft::one_hop_on(&packet)]);
    Ok(())
}

#[test]
fn one_worker_has_nothing_to_spread_and_says_so() -> Result<()> {
    let spread = |options: &mut WeftdOptions| {
        options.workers = Some(1);
        options.flags = vec![SPREAD.into()];
    };
    let Some(tunnel) = Tunnel::builder().a(spread).build()? else { return Ok(()) };
    assert_eq!(tunnel.a.status()?.source_ports, [PORT]);
    let log = tunnel.a.weftd.log();
    let said = |line: &str| {
        line.contains("WARN") && line.contains(SPREAD.replace('=', " ").as_str()) && line.contains("--workers")
    };
    assert!(log.lines().any(said), "{log}");
    Ok(())
}
