//! A sender on the same host that is faster than weftd waits, and loses nothing.
//!
//! ```text
//!   a  socket - bucket - flannel0 [weftd, stopped] u0 ------- u0 [weftd] flannel0 - socket  b
//! ```

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::process::Signal;
use weft_lab::{Node, eventually, tcp, udp};
use weft_netlink::TokenBucket;

use crate::support::{Family, Host, TIMEOUT, TUN, Tunnel};

const PAYLOAD_LEN: usize = 100;
/// What a sender offers that nobody holds back.
const OFFERED: u64 = 20_000;
/// More than may enter a stopped weftd's queue, and wait in the buffer of one socket.
const HELD: u64 = 2_500;
/// Bytes of a TCP transfer: many grants.
const TRANSFER_LEN: u64 = 32 << 20;
/// So much does not limit anything here.
const WIDE: TokenBucket = TokenBucket { rate: 10_000_000_000, burst: 10_000_000, limit: 100_000_000 };

fn receiver(node: &Node, address: IpAddr) -> Result<UdpSocket> {
    let socket = node.run(|| UdpSocket::bind((address, 0)))?;
    set_socket_recv_buffer_size_force(&socket, 64 << 20)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    Ok(socket)
}

/// Sends until the kernel says that the sender has to wait, or [`OFFERED`] datagrams; how many.
fn offer(node: &Node, to: SocketAddr) -> Result<u64> {
    let socket = node.run(|| udp::connect(to))?;
    socket.set_nonblocking(true)?;
    for sent in 0..OFFERED {
        let mut datagram = [0; PAYLOAD_LEN];
        datagram[..8].copy_from_slice(&sent.to_be_bytes());
        match socket.send(&datagram) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(sent),
            result => result?,
        };
    }
    Ok(OFFERED)
}

/// Receives `count` datagrams that [`offer`] sent, in order and each once.
fn expect(socket: &UdpSocket, count: u64) -> Result<()> {
    for expected in 0..count {
        let mut datagram = [0; PAYLOAD_LEN];
        socket.recv(&mut datagram)?;
        let number = u64::from_be_bytes(datagram[..8].try_into()?);
        ensure!(number == expected, "datagram {number} instead of {expected} of {count}");
    }
    Ok(())
}

/// What a sender may send while the weftd of `host` is stopped.
fn offer_while_stopped(host: &mut Host, to: SocketAddr) -> Result<u64> {
    host.weftd.process().freeze()?;
    let sent = offer(&host.node, to);
    host.weftd.process().signal(Signal::CONT)?;
    sent
}

#[test]
fn what_a_stopped_daemon_does_not_read_waits_and_arrives_later_in_order() -> Result<()> {
    for (engine, workers) in [("uring", 1), ("uring", 2), ("epoll", 1)] {
        let built = Tunnel::builder()
            .each(|options| (options.engine, options.workers) = (Some(engine.into()), Some(workers)))
            .build()?;
        let Some(mut tunnel) = built else { return Ok(()) };
        let Tunnel { a, b, .. } = &mut tunnel;
        for family in Family::BOTH {
            let receiver = receiver(&b.node, b.overlay(family))?;
            // The second time from a bucket that weftd has filled.
            for round in 1..=2 {
                let sent = offer_while_stopped(a, receiver.local_addr()?)?;
                ensure!((100..HELD).contains(&sent), "{engine}, {family:?}, round {round}: {sent} were taken");
                expect(&receiver, sent)?;
            }
        }
        tcp::transfer(&a.node, &b.node, b.overlay(Family::V4), TRANSFER_LEN)?;
        tunnel.balanced()?;
    }
    Ok(())
}

#[test]
fn many_senders_wait_side_by_side() -> Result<()> {
    let Some(mut tunnel) = Tunnel::builder().build()? else { return Ok(()) };
    let Tunnel { a, b, .. } = &mut tunnel;
    let receivers: Vec<_> = (0..8).map(|_| receiver(&b.node, b.overlay(Family::V4))).collect::<Result<_>>()?;
    a.weftd.process().freeze()?;
    let sent: Result<Vec<_>> = receivers.iter().map(|receiver| offer(&a.node, receiver.local_addr()?)).collect();
    a.weftd.process().signal(Signal::CONT)?;
    for (receiver, sent) in receivers.iter().zip(sent?) {
        ensure!((100..HELD).contains(&sent), "{sent} were taken");
        expect(receiver, sent)?;
    }
    tunnel.balanced()?;
    Ok(())
}

#[test]
fn nobody_waits_where_the_person_does_not_want_it() -> Result<()> {
    let built = Tunnel::builder().a(|options| options.flags = vec!["--no-backpressure".into()]).build()?;
    let Some(mut tunnel) = built else { return Ok(()) };
    let receiver = receiver(&tunnel.b.node, tunnel.b.overlay(Family::V4))?;
    assert_eq!(offer_while_stopped(&mut tunnel.a, receiver.local_addr()?)?, OFFERED);
    Ok(())
}

#[test]
fn a_discipline_that_somebody_chose_stays_and_a_line_says_what_that_means() -> Result<()> {
    let built = Tunnel::builder().a(|options| options.flags = vec!["--persist".into()]).build()?;
    let Some(mut tunnel) = built else { return Ok(()) };
    let options = tunnel.a.options.clone();
    tunnel.a.weftd.process().signal(Signal::TERM)?;
    tunnel.a.weftd.process().wait(TIMEOUT)?;
    let mut netlink = tunnel.a.node.netlink()?;
    let tun = netlink.expect_link(TUN)?.index;
    netlink.replace_token_bucket(tun, &WIDE)?;
    tunnel.a.weftd = tunnel.lab.weftd(&tunnel.a.node, options)?;
    tunnel.a.install(Family::BOTH.map(|family| (family.subnet(2), &tunnel.b)))?;
    let Tunnel { a, b, .. } = &mut tunnel;
    assert!(!a.status()?.offloads.backpressure && b.status()?.offloads.backpressure);
    let log = a.weftd.log();
    let line = log.lines().find(|line| line.contains("instead of waiting")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("WARN") && line.contains("that somebody chose"), "{line}");
    let receiver = receiver(&b.node, b.overlay(Family::V4))?;
    assert_eq!(offer_while_stopped(a, receiver.local_addr()?)?, OFFERED);
    Ok(())
}

#[test]
fn a_discipline_that_replaces_it_ends_it_and_forwarding_goes_on() -> Result<()> {
    let Some(mut tunnel) = Tunnel::builder().build()? else { return Ok(()) };
    let Tunnel { a, b, .. } = &mut tunnel;
    let mut netlink = a.node.netlink()?;
    let tun = netlink.expect_link(TUN)?.index;
    netlink.replace_token_bucket(tun, &WIDE)?;
    // Weftd finds out when it grants.
    tcp::transfer(&a.node, &b.node, b.overlay(Family::V4), TRANSFER_LEN)?;
    eventually(TIMEOUT, || {
        let status = a.status()?;
        ensure!(!status.offloads.backpressure && status.offloads_lost == ["backpressure"], "{status:?}");
        Ok(())
    })?;
    let log = a.weftd.log();
    assert_eq!(log.lines().filter(|line| line.contains("hold them back again")).count(), 1, "{log}");
    tcp::transfer(&a.node, &b.node, b.overlay(Family::V6), TRANSFER_LEN)?;
    assert_eq!(offer_while_stopped(a, SocketAddr::new(b.overlay(Family::V4), 9))?, OFFERED);
    Ok(())
}

#[test]
fn a_persistent_tun_is_free_after_its_daemon_and_so_is_one_whose_daemon_was_killed_after_the_next() -> Result<()> {
    let built = Tunnel::builder().a(|options| options.flags = vec!["--persist".into()]).build()?;
    let Some(mut tunnel) = built else { return Ok(()) };
    let to = SocketAddr::new(tunnel.b.overlay(Family::V4), 9);
    let mut options = tunnel.a.options.clone();
    tunnel.a.weftd.process().signal(Signal::TERM)?;
    tunnel.a.weftd.process().wait(TIMEOUT)?;
    // Without a reader the TUN drops what it gets; nobody waits for it.
    assert_eq!(offer(&tunnel.a.node, to)?, OFFERED);

    tunnel.a.weftd = tunnel.lab.weftd(&tunnel.a.node, options.clone())?;
    assert!(tunnel.a.status()?.offloads.backpressure);
    tunnel.a.weftd.process().signal(Signal::KILL)?;
    tunnel.a.weftd.process().wait(TIMEOUT)?;
    assert!(offer(&tunnel.a.node, to)? < HELD);
    options.flags.push("--no-backpressure".into());
    tunnel.a.weftd = tunnel.lab.weftd(&tunnel.a.node, options)?;
    assert_eq!(offer(&tunnel.a.node, to)?, OFFERED);
    Ok(())
}

#[test]
fn a_daemon_that_is_never_woken_again_lets_packets_trickle() -> Result<()> {
    let Some(mut tunnel) = Tunnel::builder().build()? else { return Ok(()) };
    let Tunnel { a, b, .. } = &mut tunnel;
    let to = SocketAddr::new(b.overlay(Family::V4), 9);
    a.weftd.process().freeze()?;
    let before = offer(&a.node, to)?;
    std::thread::sleep(Duration::from_millis(200));
    let later = offer(&a.node, to)?;
    a.weftd.process().signal(Signal::CONT)?;
    ensure!(before < HELD && (1..HELD).contains(&later), "{before}, then {later}");
    Ok(())
}
