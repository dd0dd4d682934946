//! Underlay MTUs that change while traffic flows: at the own link, and at a router that only ICMP tells about.
//!
//! ```text
//!   a ══ weft ══ b      u0 ── u0                1500 -> 1400 -> 1500 at both ends
//!   a ══ weft ══ b      u0 ── r ── u0           1500 -> 1400 behind the router
//! ```
//!
//! The TUNs keep the MTU for 1500, so that weft, not the sender's kernel, meets the packets that no longer fit.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::sockopt;
use weft_lab::topology::Routed;
use weft_lab::{Capture, Injector, Lab, Ping, PingOutcome, WeftdOptions, eventually, ping, tcp, udp};

use crate::craft::{Error, Packet};
use crate::support::{Family, Host, PORT, TIMEOUT, TUN, Tunnel};

const SMALL_MTU: u32 = 1400;
/// Payload of a transfer during which the MTU changes, and what of it moves before.
const BYTES: u64 = 256 << 20;
const BEFORE: u64 = 1 << 20;
/// How many transfers may be over before the MTU changes.
const ATTEMPT_COUNT_MAX: u32 = 10;

fn tunnel(engine: &str, underlay: Family) -> Result<Option<Tunnel>> {
    Tunnel::builder().underlay(underlay).each(|options| options.engine = Some(engine.into())).build()
}

/// An echo request that fills an MTU of `len` bytes exactly, and may not be fragmented.
fn full_ping(to: IpAddr, len: u32) -> Ping {
    let headers_len = if to.is_ipv4() { 28 } else { 48 };
    Ping { payload_len: len as usize - headers_len, dont_fragment: true, ..Ping::to(to) }
}

/// Waits until an echo request that no longer fits is answered with the exact MTU.
fn told(from: &Host, to: IpAddr, len: u32, mtu: u32) -> Result<()> {
    eventually(TIMEOUT, || {
        let quick = Ping { timeout: Ping::quick(to).timeout, ..full_ping(to, len) };
        let outcome = ping(&from.node, &quick)?;
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        ensure!(
            matches!(outcome, PingOutcome::IcmpError { from: sender, mtu: Some(told), .. }
                if told == mtu && sender == from.overlay(family)),
            "{outcome:?}, not \"too big\" with MTU {mtu}"
        );
        Ok(())
    })
}

fn check_drop_and_rise(engine: &str, underlay: Family) -> Result<()> {
    let Some(tunnel) = tunnel(engine, underlay)? else { return Ok(()) };
    let big = tunnel.a.tun_mtu;
    let small = SMALL_MTU - underlay.overhead_len();
    for inner in Family::BOTH {
        ping(&tunnel.a.node, &full_ping(tunnel.b.overlay(inner), big))?.reply().context("before")?;
    }
    tunnel.link.set_mtu(SMALL_MTU)?;
    // What may be fragmented arrives, in fragments of weft's making: the sender's kernel has not been told anything yet.
    let to = tunnel.b.overlay(Family::V4);
    let before = tunnel.a.stats()?.counter("fragments_sent");
    let whole = Ping { payload_len: big as usize - 28, ..Ping::to(to) };
    ping(&tunnel.a.node, &whole)?.reply().context("without DF")?;
    assert_eq!(tunnel.a.stats()?.counter("fragments_sent") - before, 2, "{engine}");
    for inner in Family::BOTH {
        let to = tunnel.b.overlay(inner);
        told(&tunnel.a, to, big, small).with_context(|| format!("{engine}, {inner:?} inside"))?;
        let outcome = ping(&tunnel.a.node, &full_ping(to, small + 1))?;
        ensure!(matches!(outcome, PingOutcome::IcmpError { mtu: Some(mtu), .. } if mtu == small), "{outcome:?}");
        ping(&tunnel.a.node, &full_ping(to, small))?.reply().context("the largest that fits")?;
    }

    tunnel.link.set_mtu(1500)?;
    for inner in Family::BOTH {
        let to = tunnel.b.overlay(inner);
        eventually(TIMEOUT, || {
            let quick = Ping { timeout: Ping::quick(to).timeout, ..full_ping(to, big) };
            ping(&tunnel.a.node, &quick)?.reply()
        })
        .with_context(|| format!("{engine}, {inner:?} inside, after the MTU rose"))?;
    }
    for host in [&tunnel.a, &tunnel.b] {
        let status = host.status()?;
        ensure!(
            status.offloads_lost.is_empty() && status.offloads.udp_gso,
            "{engine}: lost {:?}",
            status.offloads_lost
        );
    }
    Ok(())
}

#[test]
fn senders_are_told_the_exact_mtu_over_ipv4_on_uring() -> Result<()> {
    check_drop_and_rise("uring", Family::V4)
}

#[test]
fn senders_are_told_the_exact_mtu_over_ipv4_on_epoll() -> Result<()> {
    check_drop_and_rise("epoll", Family::V4)
}

#[test]
fn senders_are_told_the_exact_mtu_over_ipv6() -> Result<()> {
    check_drop_and_rise("uring", Family::V6)
}

#[test]
fn tcp_survives_a_smaller_mtu_at_its_own_link() -> Result<()> {
    for engine in ["uring", "epoll"] {
        let Some(tunnel) = tunnel(engine, Family::V4)? else { return Ok(()) };
        for inner in Family::BOTH {
            survives(&tunnel.a, &tunnel.b, inner, &|mtu| tunnel.link.set_mtu(mtu))
                .with_context(|| engine.to_owned())?;
        }
        ensure!(tunnel.a.status()?.offloads.udp_gso && tunnel.b.status()?.offloads.udp_gso, "{engine}: UDP GSO is off");
    }
    Ok(())
}

/// Runs a transfer during which the MTU goes down; it has to complete with the right hash.
fn survives(a: &Host, b: &Host, inner: Family, set_mtu: &(dyn Fn(u32) -> Result<()> + Sync)) -> Result<()> {
    // A machine may keep this thread waiting until a transfer is over; then another is made.
    for _ in 0..ATTEMPT_COUNT_MAX {
        if survives_once(a, b, inner, set_mtu)? {
            return Ok(());
        }
    }
    bail!("every transfer was over before the MTU went down")
}

/// False if the transfer was over before the MTU went down.
fn survives_once(a: &Host, b: &Host, inner: Family, set_mtu: &(dyn Fn(u32) -> Result<()> + Sync)) -> Result<bool> {
    let sent = a.stats()?.sent().bytes;
    std::thread::scope(|scope| {
        let transfer = scope.spawn(|| tcp::transfer(&a.node, &b.node, b.overlay(inner), BYTES));
        // In the middle of it.
        eventually(TIMEOUT, || {
            let moved = a.stats()?.sent().bytes - sent;
            ensure!(moved > BEFORE, "{moved} bytes moved");
            Ok(())
        })?;
        set_mtu(SMALL_MTU)?;
        let running = !transfer.is_finished();
        let outcome = transfer.join().expect("the transfer ends without a panic");
        set_mtu(1500)?;
        outcome.map(|_| running)
    })
}

/// Two hosts with a weftd each and a router between them; see [`Routed`].
struct RoutedTunnel {
    a: Host,
    b: Host,
    net: Routed,
    /// Last, because the control sockets are in its directory.
    _lab: Lab,
}

impl RoutedTunnel {
    fn build(engine: &str) -> Result<Option<Self>> {
        let Some(lab) = Lab::start() else { return Ok(None) };
        let net = Routed::new(&lab, 1500, 1500)?;
        let host = |number: u8, node: &weft_lab::Node, address: &str| -> Result<Host> {
            let address = SocketAddr::new(address.parse()?, PORT);
            let mut options = WeftdOptions::new(TUN, &address.to_string());
            options.engine = Some(engine.into());
            let weftd = lab.weftd(node, options.clone())?;
            let host = Host { number, node: node.clone(), weftd, options, address, tun_mtu: 1472 };
            host.set_up_tun()?;
            Ok(host)
        };
        let a = host(1, &net.a, "192.0.2.1")?;
        let b = host(2, &net.b, "198.51.100.1")?;
        a.install(Family::BOTH.map(|family| (family.subnet(2), &b)))?;
        b.install(Family::BOTH.map(|family| (family.subnet(1), &a)))?;
        Ok(Some(Self { a, b, net, _lab: lab }))
    }
}

#[test]
fn tcp_survives_a_smaller_mtu_behind_a_router() -> Result<()> {
    for engine in ["uring", "epoll"] {
        let Some(tunnel) = RoutedTunnel::build(engine)? else { return Ok(()) };
        // `b` sees it at its own link, `a` only learns it from the router.
        survives(&tunnel.a, &tunnel.b, Family::V4, &|mtu| tunnel.net.right.set_mtu(mtu))
            .with_context(|| engine.to_owned())?;
        ensure!(tunnel.a.status()?.offloads.udp_gso, "{engine}: UDP GSO is off");
    }
    Ok(())
}

#[test]
fn senders_are_told_what_a_router_told_weft() -> Result<()> {
    for engine in ["uring", "epoll"] {
        let Some(tunnel) = RoutedTunnel::build(engine)? else { return Ok(()) };
        let big = tunnel.a.tun_mtu;
        ping(&tunnel.a.node, &full_ping(tunnel.b.overlay(Family::V4), big))?.reply()?;
        tunnel.net.right.set_mtu(SMALL_MTU)?;
        for inner in Family::BOTH {
            // The first is lost at the router, whose error is what weft learns from.
            told(&tunnel.a, tunnel.b.overlay(inner), big, SMALL_MTU - 28)
                .with_context(|| format!("{engine}, {inner:?} inside"))?;
        }
        let whole = Ping { payload_len: big as usize - 28, ..Ping::to(tunnel.b.overlay(Family::V4)) };
        ping(&tunnel.a.node, &whole)?.reply().context("without DF")?;
    }
    Ok(())
}

/// Receives a datagram of this length and returns it.
fn receive(socket: &UdpSocket, len: usize) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 1 << 16];
    socket.set_read_timeout(Some(TIMEOUT))?;
    let received = socket.recv(&mut buffer)?;
    ensure!(received == len, "{received} bytes instead of {len}");
    buffer.truncate(received);
    Ok(buffer)
}

#[test]
fn a_payload_fragmented_by_weft_is_the_one_that_was_sent() -> Result<()> {
    for engine in ["uring", "epoll"] {
        let Some(tunnel) = tunnel(engine, Family::V4)? else { return Ok(()) };
        tunnel.link.set_mtu(SMALL_MTU)?;
        let to = SocketAddr::new(tunnel.b.overlay(Family::V4), 4000);
        let receiver = tunnel.b.node.run(|| UdpSocket::bind(to))?;
        let sender = tunnel.a.node.run(|| UdpSocket::bind((tunnel.a.overlay(Family::V4), 0)))?;
        // Whole packets that weft cuts in two, and fragments of the sender's kernel that weft cuts again.
        sockopt::set_ip_mtu_discover(&sender, sockopt::Ipv4PathMtuDiscovery::DONT)?;
        let mut count = 0;
        for len in [1345, 1400, 1444, 3000, 9000, 40_000] {
            let payload: Vec<u8> = (0..len).map(|index| ((index * 7) >> 3) as u8).collect();
            sender.send_to(&payload, to)?;
            ensure!(receive(&receiver, len)? == payload, "{engine}: {len} bytes came out differently");
            // Every packet of the kernel but the last is full: 1472 bytes, which become two.
            count += 2 * ((len + 8) / 1448).max(1);
        }
        let found = tunnel.a.stats()?.counter("fragments_sent");
        ensure!(found as usize >= count, "{engine}: {found} fragments, at least {count} expected");
        ensure!(tunnel.a.stats()?.drops().is_empty(), "{engine}: dropped {:?}", tunnel.a.stats()?.drops());
    }
    Ok(())
}

#[test]
fn segments_of_super_packets_that_no_longer_fit_are_fragmented_and_offloads_stay_on() -> Result<()> {
    for engine in ["uring", "epoll"] {
        let Some(tunnel) = tunnel(engine, Family::V4)? else { return Ok(()) };
        let (a, b) = (&tunnel.a.node, &tunnel.b.node);
        let big = udp::Stream { segments: 20, ..udp::Stream::new(tunnel.b.overlay(Family::V4), 400, 1444) };
        udp::stream(a, b, &big)?.perfect().context("before")?;
        tunnel.link.set_mtu(SMALL_MTU)?;
        // Without DF, so that weft may fragment what it is split into.
        let to = SocketAddr::new(tunnel.b.overlay(Family::V4), 4000);
        let receiver = b.run(|| UdpSocket::bind(to))?;
        let capture = Capture::start(a, "u0", |frame| frame.outgoing)?;
        let segments = segmented(&tunnel, to, 20, 1444)?;
        for segment in &segments {
            ensure!(receive(&receiver, segment.len())? == *segment, "{engine}: a segment came out differently");
        }
        let longest = capture.stop().iter().map(|frame| frame.bytes.len()).max();
        ensure!(longest.is_some_and(|len| len <= 14 + SMALL_MTU as usize), "{engine}: a frame of {longest:?} bytes");
        assert_eq!(tunnel.a.stats()?.counter("fragments_sent"), 40, "{engine}");
        let status = tunnel.a.status()?;
        ensure!(
            status.offloads_lost.is_empty() && status.offloads.udp_gso,
            "{engine}: lost {:?}",
            status.offloads_lost
        );

        tunnel.link.set_mtu(1500)?;
        let batches = tunnel.a.stats()?.counter("encap_batches");
        eventually(TIMEOUT, || udp::stream(a, b, &big)?.perfect()).context("after")?;
        let fewer = tunnel.a.stats()?.counter("encap_batches") - batches;
        ensure!(fewer < 400, "{engine}: {fewer} sends for 400 datagrams: no longer in batches");
    }
    Ok(())
}

/// Puts a UDP super-packet without DF onto the TUN of `a`, as a kernel sender with `UDP_SEGMENT` would; returns its segments.
fn segmented(tunnel: &Tunnel, to: SocketAddr, count: usize, segment_len: usize) -> Result<Vec<Vec<u8>>> {
    let payload: Vec<u8> = (0..count * segment_len).map(|index| (index / 3) as u8).collect();
    let packet = Packet::udp(tunnel.a.overlay(Family::V4), to.ip(), (4000, to.port()), &payload).build_with(|bytes| {
        // The checksum field holds the sum of the pseudo-header, not complemented: the rest is the device's.
        let len = (bytes.len() - 20) as u32;
        let words = bytes[12..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let sum = words.sum::<u32>() + 17 + len;
        let sum = (sum & 0xffff) + (sum >> 16);
        bytes[26..28].copy_from_slice(&(sum as u16).to_be_bytes());
    });
    // struct virtio_net_hdr: NEEDS_CSUM, UDP_L4 (5), header length, segment length, checksum at 20 + 6.
    let mut header = [1, 5, 0, 0, 0, 0, 0, 0, 0, 0];
    for (at, value) in [(2, 28), (4, segment_len as u16), (6, 20), (8, 6)] {
        header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }
    Injector::open(&tunnel.a.node, TUN)?.send_with_vnet(&header, &packet)?;
    Ok(payload.chunks(segment_len).map(<[u8]>::to_vec).collect())
}

#[test]
fn tcp_super_packets_that_no_longer_fit_are_answered_and_not_sent() -> Result<()> {
    let Some(tunnel) = tunnel("uring", Family::V4)? else { return Ok(()) };
    tunnel.link.set_mtu(SMALL_MTU)?;
    let tun = Capture::start(&tunnel.a.node, TUN, |frame| !frame.outgoing)?;
    tcp::transfer(&tunnel.a.node, &tunnel.b.node, tunnel.b.overlay(Family::V4), 4 << 20)?;
    let errors: Vec<Error> = tun.stop().iter().filter_map(|frame| Error::parse(&frame.bytes)).collect();
    ensure!(!errors.is_empty(), "nobody was told");
    for error in &errors {
        assert_eq!((error.kind, error.code, error.word), (3, 4, SMALL_MTU - 28), "{error:?}");
        // What is quoted is a segment as it would have gone out, not the super-packet that it was cut from.
        let quoted_len = u16::from_be_bytes([error.quoted[2], error.quoted[3]]);
        assert_eq!(u32::from(quoted_len), tunnel.a.tun_mtu, "{error:?}");
    }
    Ok(())
}
