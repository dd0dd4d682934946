//! How a daemon ends: asked to, it finishes what it read and cleans up; killed, it leaves nothing in the way of the next.
//!
//! ```text
//!   a [flannel0 - weftd] u0 ------------- u0 [weftd - flannel0] b
//!           ends            <-- traffic -->
//! ```

use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use weft_client::Client;
use weft_lab::{Node, Ping, eventually, ping, tcp};

use crate::support::{Family, Host, Stats, TIMEOUT, TUN, Tunnel};

/// Where the traffic goes; no one listens.
const DISCARD_PORT: u16 = 9;
/// How often a daemon is ended: it is chance what it has in hand.
const ROUND_COUNT: usize = 4;
/// Datagrams of a burst.
const BURST_LEN: u64 = 64;
/// Datagrams that may be under way to a daemon, so that none is lost at its socket.
const WINDOW: u64 = 2000;
/// Packets that have passed each way when a daemon is told to end.
const PACKETS_BEFORE: u64 = 500;

#[test]
fn a_drained_daemon_on_uring_has_passed_on_what_it_read() -> Result<()> {
    passes_on_what_it_read("uring")
}

#[test]
fn a_drained_daemon_on_epoll_has_passed_on_what_it_read() -> Result<()> {
    passes_on_what_it_read("epoll")
}

/// The kernel counts what a daemon takes from its TUN and its socket, and what it gives to its TUN; the peer counts what
/// it gives to its socket. With offloads off, packets are counted singly; a persistent TUN keeps its counts.
fn passes_on_what_it_read(engine: &str) -> Result<()> {
    for _ in 0..ROUND_COUNT {
        passes_on_what_it_read_once(engine)?;
    }
    Ok(())
}

fn passes_on_what_it_read_once(engine: &str) -> Result<()> {
    let builder = Tunnel::builder().a(|options| {
        // Most turns have something in hand.
        options.spin_us = Some(0);
        options.engine = Some(engine.into());
        options.flags = ["--persist", "--no-udp-gro", "--no-tun-uso"].map(String::from).to_vec();
    });
    let Some(mut tunnel) = builder.build()? else { return Ok(()) };
    end_under_traffic(&mut tunnel)?;

    let taken = udp_received(&tunnel.a.node)?;
    let (written, read) = tun_counts(&tunnel.a.node)?;
    ensure!(taken == written, "{taken} datagrams taken from the socket, {written} packets written to the TUN");
    eventually(TIMEOUT, || {
        let accepted = tunnel.b.stats()?.accepted().packets;
        ensure!(read == accepted, "{read} packets read from the TUN, {accepted} arrived at the peer");
        Ok(())
    })
}

#[test]
fn a_daemon_that_ends_takes_its_tun_and_its_socket_with_it() -> Result<()> {
    for engine in ["uring", "epoll"] {
        let Some(mut tunnel) = Tunnel::builder().each(|options| options.engine = Some(engine.into())).build()? else {
            return Ok(());
        };
        end_under_traffic(&mut tunnel)?;
        assert!(tunnel.a.node.netlink()?.link(TUN)?.is_none(), "the TUN is there");
    }
    Ok(())
}

#[test]
fn a_second_sigterm_ends_the_wait_for_the_first() -> Result<()> {
    let Some(mut tunnel) = Tunnel::builder().build()? else { return Ok(()) };
    let process = tunnel.a.weftd.process();
    process.signal(Signal::TERM)?;
    // Not reaped yet, it can be signalled whether it still runs or not.
    process.signal(Signal::TERM)?;
    let status = process.wait(TIMEOUT)?;
    // 0: its workers had ended by then. 1: they had not.
    assert!(matches!(status.code(), Some(0 | 1)), "{status}");
    assert!(!tunnel.a.weftd.socket().exists(), "the control socket is there");
    tun_goes(&tunnel.a.node)
}

#[test]
fn a_killed_daemon_is_followed_at_once_by_another() -> Result<()> {
    for (engine, opener) in [("uring", "native"), ("epoll", "native"), ("uring", "simple")] {
        let builder = Tunnel::builder().each(|options| {
            options.engine = Some(engine.into());
            options.opener = Some(opener.into());
        });
        let Some(mut tunnel) = builder.build()? else { return Ok(()) };
        for _ in 0..3 {
            under_traffic(&mut tunnel, |process| {
                process.signal(Signal::KILL)?;
                process.wait(TIMEOUT)
            })?;
            // On the same TUN, port and socket, whose file is still there.
            assert!(tunnel.a.weftd.socket().exists());
            tunnel.a.options.socket = Some(tunnel.a.weftd.socket().to_owned());
            tunnel.a.weftd = tunnel
                .lab
                .weftd(&tunnel.a.node, tunnel.a.options.clone())
                .with_context(|| format!("{engine} {opener}"))?;
            tunnel.a.set_up_tun()?;
            tunnel.a.install(Family::BOTH.map(|family| (family.subnet(2), &tunnel.b)))?;
            works(&tunnel)?;
        }
        let socket = tunnel.a.weftd.socket().to_owned();
        tunnel.a.weftd.process().signal(Signal::KILL)?;
        tunnel.a.weftd.process().wait(TIMEOUT)?;
        tun_goes(&tunnel.a.node)?;
        assert!(socket.exists(), "who removed the socket of a killed daemon?");
    }
    Ok(())
}

/// Waits until the kernel has taken apart the ring of a daemon that ended in the midst of its work, which holds the TUN.
fn tun_goes(node: &Node) -> Result<()> {
    eventually(TIMEOUT, || {
        ensure!(node.netlink()?.link(TUN)?.is_none(), "the TUN of a daemon that ended is there");
        Ok(())
    })
}

fn works(tunnel: &Tunnel) -> Result<()> {
    for family in Family::BOTH {
        ping(&tunnel.a.node, &Ping::to(tunnel.b.overlay(family)))?.reply()?;
        tcp::transfer(&tunnel.b.node, &tunnel.a.node, tunnel.a.overlay(family), 1 << 20)?;
    }
    Ok(())
}

/// Ends the daemon on `a` by SIGTERM while packets pass both ways.
fn end_under_traffic(tunnel: &mut Tunnel) -> Result<()> {
    let socket = tunnel.a.weftd.socket().to_owned();
    let status = under_traffic(tunnel, |process| {
        process.signal(Signal::TERM)?;
        eventually(TIMEOUT, || {
            ensure!(!socket.exists(), "the control socket is there; the log of the daemon:\n{}", process.log());
            Ok(())
        })?;
        process.wait(TIMEOUT)
    })?;
    ensure!(status.success(), "{status}; its output:\n{}", tunnel.a.weftd.log());
    Ok(())
}

fn under_traffic<T>(tunnel: &mut Tunnel, act: impl FnOnce(&mut weft_lab::Process) -> Result<T>) -> Result<T> {
    let stop = AtomicBool::new(false);
    let (a, b) = (tunnel.a.node.clone(), tunnel.b.node.clone());
    let (a_address, b_address) = (tunnel.a.overlay(Family::V4), tunnel.b.overlay(Family::V4));
    let (a_client, b_client) = (tunnel.a.weftd.client()?, tunnel.b.weftd.client()?);
    thread::scope(|scope| {
        let stop = &stop;
        let senders = [
            scope.spawn(move || send_until(&a, b_address, b_client, stop)),
            scope.spawn(move || send_until(&b, a_address, a_client, stop)),
        ];
        let outcome = passing(&tunnel.a).and_then(|()| act(tunnel.a.weftd.process()));
        stop.store(true, Ordering::Release);
        for sender in senders {
            sender.join().expect("a sending thread does not panic")?;
        }
        outcome
    })
}

fn passing(host: &Host) -> Result<()> {
    let start = host.stats()?;
    eventually(TIMEOUT, || {
        let now = host.stats()?;
        let sent = now.sent().since(start.sent()).packets;
        let accepted = now.accepted().since(start.accepted()).packets;
        ensure!(sent >= PACKETS_BEFORE && accepted >= PACKETS_BEFORE, "{sent} packets sent, {accepted} accepted");
        Ok(())
    })
}

/// Sends datagrams that no one waits for but the daemon that takes them out of the tunnel, as far as it keeps up.
fn send_until(from: &Node, to: IpAddr, mut taker: Client, stop: &AtomicBool) -> Result<()> {
    let socket = from.run(|| UdpSocket::bind("0.0.0.0:0"))?;
    // A daemon that has ended takes everything and loses it.
    let mut taken =
        || taker.stats().map_or(u64::MAX / 2, |report| Stats { report, peers: Vec::new() }.accepted().packets);
    let (mut sent, before) = (0, taken());
    while !stop.load(Ordering::Acquire) {
        if sent < taken().saturating_sub(before) + WINDOW {
            sent += BURST_LEN;
            for _ in 0..BURST_LEN {
                // Fails when the TUN is gone.
                let _ = socket.send_to(&[0; 200], (to, DISCARD_PORT));
            }
        }
        thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// Datagrams that sockets of a node have taken (`InDatagrams`, RFC 4113): those of the daemon, the only one that receives.
fn udp_received(node: &Node) -> Result<u64> {
    let text = node.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))?;
    // Two lines `Udp: ...`, names and values.
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs.find(|(name, _)| *name == "InDatagrams").context("no InDatagrams")?;
    Ok(value.parse()?)
}

/// Packets that the TUN of a node got from its daemon and gave to it.
fn tun_counts(node: &Node) -> Result<(u64, u64)> {
    let text = node.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?;
    let prefix = format!("{TUN}:");
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(prefix.as_str())).context("no TUN")?;
    let fields: Vec<&str> = line.split_whitespace().collect();
    // Eight fields about receiving, then eight about transmitting; packets are the second of each.
    Ok((fields[1].parse()?, fields[9].parse()?))
}
