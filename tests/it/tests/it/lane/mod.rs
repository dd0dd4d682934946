//! Sparse flows have a way of their own past bulk traffic, at both ends; where they cannot, they go with the rest.
//!
//! ```text
//!   a [flannel0 = weftd] u0 ------------- u0 [weftd = flannel0] b
//!              |                                 |
//!      workers and the lane              workers and the lane
//! ```

mod programs;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use weft_lab::{Node, Ping, eventually, ping, tcp};

use crate::fallback::refuse;
use crate::support::{Family, Host, TIMEOUT, TUN, Traffic, Tunnel};

/// Requests of each exchange.
const REQUESTS: u64 = 200;
/// Bytes of a request, and of its response.
const REQUEST_LEN: usize = 100;
/// Bytes of bulk traffic in each direction.
const BULK_LEN: u64 = 16 << 20;

/// What one worker, or the lane, has sent and accepted.
#[derive(Debug, Clone, Copy)]
struct Share {
    sent: Traffic,
    accepted: Traffic,
}

/// The share of the lane, and those of the workers in sum.
fn shares(host: &Host) -> Result<(Share, Share)> {
    let report = host.stats()?.report;
    let sum = |is_lane: bool, name: &str| -> u64 {
        let workers = report.workers.iter().filter(|worker| worker.offloads.sparse_lane == is_lane);
        workers.map(|worker| worker.counters[name]).sum()
    };
    let share = |is_lane| Share {
        sent: Traffic::new(sum(is_lane, "encap_packets"), sum(is_lane, "encap_bytes")),
        accepted: Traffic::new(sum(is_lane, "decap_packets"), sum(is_lane, "decap_bytes")),
    };
    Ok((share(true), share(false)))
}

/// A connection, and on it so many requests of [`REQUEST_LEN`] bytes, each after the response to the one before.
fn exchange(from: &Node, server: SocketAddr, requests: u64) -> Result<()> {
    let mut stream = from.run(|| TcpStream::connect_timeout(&server, TIMEOUT))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    for number in 0..requests {
        let request = [number as u8; REQUEST_LEN];
        stream.write_all(&request)?;
        let mut response = [0; REQUEST_LEN];
        stream.read_exact(&mut response).with_context(|| format!("response {number}"))?;
        ensure!(response == request, "response {number} is that of another");
    }
    Ok(())
}

#[test]
fn requests_take_the_lane_at_both_ends_while_bulk_traffic_takes_the_workers() -> Result<()> {
    for (underlay, engine) in [(Family::V4, "uring"), (Family::V6, "uring"), (Family::V4, "epoll")] {
        for workers in [1, 3] {
            let builder = Tunnel::builder().underlay(underlay).each(|options| {
                options.workers = Some(workers);
                options.engine = Some(engine.into());
            });
            let Some(tunnel) = builder.build()? else { return Ok(()) };
            for overlay in Family::BOTH {
                requests_beside_bulk(&tunnel, tunnel.b.overlay(overlay))
                    .with_context(|| format!("underlay {underlay:?}, {engine}, {workers} workers, {overlay:?}"))?;
            }
        }
    }
    Ok(())
}

fn requests_beside_bulk(tunnel: &Tunnel, to: IpAddr) -> Result<()> {
    let Tunnel { a, b, .. } = tunnel;
    let status = a.status()?;
    ensure!(status.offloads.sparse_lane && status.workers == status.workers_running, "{status:?}");
    let before = [shares(a)?, shares(b)?];
    let server = tcp::echo_server(&b.node, to)?;
    std::thread::scope(|scope| {
        let bulk = scope.spawn(|| tcp::transfer(&a.node, &b.node, to, BULK_LEN));
        let requests = exchange(&a.node, server, REQUESTS);
        bulk.join().expect("the transfer does not panic").and(requests)
    })?;
    tunnel.balanced()?;
    for (host, (lane_before, workers_before)) in [a, b].into_iter().zip(before) {
        let (lane, workers) = shares(host)?;
        for (what, lane, workers) in [
            ("sent", lane.sent.since(lane_before.sent), workers.sent.since(workers_before.sent)),
            ("accepted", lane.accepted.since(lane_before.accepted), workers.accepted.since(workers_before.accepted)),
        ] {
            // Every request and response, and what opens and closes the two connections.
            ensure!((REQUESTS..2 * REQUESTS).contains(&lane.packets), "{what} by the lane of {}: {lane}", host.number);
            ensure!(lane.bytes < REQUESTS * 2 * 256, "{what} by the lane of {}: {lane}", host.number);
            ensure!(workers.bytes > BULK_LEN, "{what} by the workers of {}: {workers}", host.number);
        }
    }
    Ok(())
}

#[test]
fn a_peer_without_a_lane_and_one_with_understand_each_other() -> Result<()> {
    let Some(tunnel) = Tunnel::builder().b(|options| options.flags = vec!["--no-sparse-lane".into()]).build()? else {
        return Ok(());
    };
    let Tunnel { a, b, .. } = &tunnel;
    for family in Family::BOTH {
        for (from, to) in [(a, b), (b, a)] {
            ping(&from.node, &Ping::to(to.overlay(family)))?.reply()?;
            exchange(&from.node, tcp::echo_server(&to.node, to.overlay(family))?, REQUESTS)?;
            tcp::transfer(&from.node, &to.node, to.overlay(family), BULK_LEN)?;
        }
    }
    let (lane, _) = shares(a)?;
    assert!(lane.sent.packets > 0 && lane.accepted.packets == 0, "{lane:?}");
    assert_eq!(b.stats()?.report.workers.iter().filter(|worker| worker.offloads.sparse_lane).count(), 0);
    tunnel.balanced()?;
    Ok(())
}

#[test]
fn without_permission_for_its_programs_there_is_no_lane_and_a_line_says_why() -> Result<()> {
    let built = Tunnel::builder().build_prepared(|pair| refuse(&pair.a, libc::SYS_bpf, libc::EPERM))?;
    let Some(tunnel) = built else { return Ok(()) };
    let Tunnel { a, b, .. } = &tunnel;
    assert!(!a.status()?.offloads.sparse_lane && b.status()?.offloads.sparse_lane);
    let log = a.weftd.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("no lane")).collect();
    let [line] = lines[..] else { panic!("{log}") };
    for expected in ["WARN", "sparse flows", "CAP_BPF", "--no-sparse-lane"] {
        assert!(line.contains(expected), "`{expected}` is not in: {line}");
    }
    for family in Family::BOTH {
        exchange(&a.node, tcp::echo_server(&b.node, b.overlay(family))?, REQUESTS)?;
        tcp::transfer(&a.node, &b.node, b.overlay(family), BULK_LEN)?;
    }
    tunnel.balanced()?;
    Ok(())
}

#[test]
fn a_persistent_tun_forgets_the_lane_of_the_daemon_before() -> Result<()> {
    let Some(mut tunnel) = Tunnel::builder().a(|options| options.flags = vec!["--persist".into()]).build()? else {
        return Ok(());
    };
    let to = tunnel.b.overlay(Family::V4);
    let server = tcp::echo_server(&tunnel.b.node, to)?;
    exchange(&tunnel.a.node, server, REQUESTS)?;
    tunnel.a.weftd.process().signal(Signal::KILL)?;
    tunnel.a.weftd.process().wait(TIMEOUT)?;
    // As many workers as there were queues: the program of before would send all requests to one of them.
    let mut options = tunnel.a.options.clone();
    options.flags.push("--no-sparse-lane".into());
    options.workers = Some(2);
    tunnel.a.weftd = tunnel.lab.weftd(&tunnel.a.node, options)?;
    tunnel.a.install(Family::BOTH.map(|family| (family.subnet(2), &tunnel.b)))?;
    eventually(TIMEOUT, || {
        exchange(&tunnel.a.node, server, 10)?;
        let busy = |worker: &weft_proto::WorkerReport| worker.counters["tun_read_packets"] > 0;
        let report = tunnel.a.stats()?.report;
        ensure!(report.workers.len() == 2 && report.workers.iter().all(busy), "one worker has it all");
        Ok(())
    })?;
    assert!(tunnel.a.node.netlink()?.link(TUN)?.is_some());
    Ok(())
}
