//! weft and a peer of another make: a double of flannel's own `udp` proxy, on the same wire.
//!
//! ```text
//!   pod1 10.9.1.2 ── a: weftd, flannel0 10.9.1.1 ══ 192.0.2.1 ─── 192.0.2.2 ══ flannel0 10.9.2.0, double :b ── 10.9.2.2 pod2
//! ```

pub mod double;
mod vectors;

use std::net::{IpAddr, SocketAddr, SocketAddrV4, UdpSocket};

use anyhow::{Context, Result, ensure};
use weft_lab::topology::{Pair, Pod};
use weft_lab::{
    Capture, Frame, Injector, Lab, Link, Mode, Node, Ping, PingOutcome, WeftdOptions, eventually, ping, tcp, udp,
};

use crate::craft::{Error, Packet};
use crate::half::Half;
use crate::support::{Family, Host, PORT, TIMEOUT, TUN, net};
use double::{Config, Double};
use vectors::VECTORS;

/// MTU of both TUNs: 1500 - 28.
const MTU: u32 = 1472;
const ETHERNET_LEN: usize = 14;
const OUTER_LEN: usize = ETHERNET_LEN + 28;

struct Mixed {
    a: Host,
    _double: Double,
    b: Node,
    _link: Link,
    lab: Lab,
}

fn start_double(node: &Node) -> Result<Double> {
    // An IPv6 packet means nothing to it.
    node.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    Double::start(
        node,
        Config {
            tun_name: TUN,
            address: "10.9.2.0".parse()?,
            network: "10.9.0.0/16",
            mtu: MTU as usize,
            bind: SocketAddrV4::new("192.0.2.2".parse()?, PORT),
            routes: vec![("10.9.1.0/24".parse()?, SocketAddrV4::new("192.0.2.1".parse()?, PORT))],
        },
    )
}

impl Mixed {
    fn build(engine: &str, mode: Mode) -> Result<Option<Self>> {
        let Some(lab) = Lab::start() else { return Ok(None) };
        let Pair { link, a, b } = Pair::new(&lab, 1500)?;
        link.set_mode(mode)?;
        let address = SocketAddr::new(Family::V4.underlay(1), PORT);
        let options = WeftdOptions { engine: Some(engine.into()), ..WeftdOptions::new(TUN, &address.to_string()) };
        let weftd = lab.weftd(&a, options.clone())?;
        let a = Host { number: 1, node: a, weftd, options, address, tun_mtu: MTU };
        a.set_up_tun()?;
        let peer = weft_proto::PeerSpec {
            name: Some("stock".into()),
            addr: SocketAddr::new(Family::V4.underlay(2), PORT),
            aliases: Vec::new(),
        };
        let routes = vec![weft_proto::RouteSpec { prefix: net("10.9.2.0/24"), peer: 0 }];
        a.weftd.client()?.swap(&weft_proto::RouteSet { peers: vec![peer], routes }, None)?;
        let double = start_double(&b)?;
        Ok(Some(Self { a, _double: double, b, _link: link, lab }))
    }

    fn here(&self) -> IpAddr {
        self.a.overlay(Family::V4)
    }
}

fn there() -> IpAddr {
    "10.9.2.0".parse().expect("an address")
}

#[test]
fn ping_shows_the_ttl_of_stock_flannel_between_nodes_and_pods() -> Result<()> {
    for engine in ["uring", "epoll"] {
        let Some(mixed) = Mixed::build(engine, Mode::Offload)? else { return Ok(()) };
        assert_eq!(ping(&mixed.a.node, &Ping::to(there()))?.reply()?.1, 62);
        assert_eq!(ping(&mixed.b, &Ping::to(mixed.here()))?.reply()?.1, 62);
        let first = Pod::behind(&mixed.lab, &mixed.a.node, "pod1", "10.9.1.2/24", "10.9.1.254/24", MTU)?;
        let second = Pod::behind(&mixed.lab, &mixed.b, "pod2", "10.9.2.2/24", "10.9.2.254/24", MTU)?;
        assert_eq!(ping(&first.node, &Ping::to("10.9.2.2".parse()?))?.reply()?.1, 60);
        assert_eq!(ping(&second.node, &Ping::to("10.9.1.2".parse()?))?.reply()?.1, 60);
        // The largest that fits, and what only fits in pieces.
        for payload_len in [MTU as usize - 28, 4000] {
            for (from, to) in [(&first.node, "10.9.2.2"), (&second.node, "10.9.1.2")] {
                ping(from, &Ping { payload_len, ..Ping::to(to.parse()?) })?.reply()?;
            }
        }
        // Where stock says nothing, weft tells: hop 2 is weft, hop 3 the silent double.
        let outcome = ping(&first.node, &Ping { ttl: 2, ..Ping::to("10.9.2.2".parse()?) })?;
        ensure!(
            matches!(outcome, PingOutcome::IcmpError { kind: 11, from, .. } if from == mixed.here()),
            "{outcome:?}"
        );
        let silent = Ping { ttl: 3, ..Ping::quick("10.9.2.2".parse()?) };
        assert_eq!(ping(&first.node, &silent)?, PingOutcome::Timeout);
    }
    Ok(())
}

#[test]
fn tcp_and_udp_arrive_whole_both_ways_in_datagrams_of_one_packet_each() -> Result<()> {
    for engine in ["uring", "epoll"] {
        let Some(mixed) = Mixed::build(engine, Mode::Wire)? else { return Ok(()) };
        let (a, b) = (&mixed.a.node, &mixed.b);
        let sent = Capture::start(a, "u0", |frame| frame.outgoing && frame.ipv4_protocol() == Some(17))?;
        tcp::transfer(a, b, there(), 2 << 20)?;
        tcp::transfer(b, a, mixed.here(), 2 << 20)?;
        // One after the other: the double has the original's small socket buffer, and loses what outruns it.
        for (from, to, address) in [(a, b, there()), (b, a, mixed.here())] {
            for (count, payload_len) in [(300, 18), (300, 1400), (20, 9000)] {
                udp::echo(from, to, address, count, payload_len)?;
            }
        }
        let segmented = udp::Stream { segments: 8, window: 32, ..udp::Stream::new(there(), 160, 1444) };
        udp::stream(a, b, &segmented)?.perfect()?;

        let frames = sent.stop();
        ensure!(frames.len() > 1000, "{engine}: only {} frames", frames.len());
        for Frame { bytes, .. } in &frames {
            ensure!(bytes.len() <= OUTER_LEN + MTU as usize, "{engine}: a frame of {} bytes", bytes.len());
            // Not even an outer fragment: DF is set, offset 0.
            assert_eq!(bytes[ETHERNET_LEN + 6..ETHERNET_LEN + 8], [0x40, 0], "{engine}");
            let port = PORT.to_be_bytes();
            assert_eq!(bytes[34..38], [port, port].concat(), "{engine}: source and destination port");
            let inner = &bytes[OUTER_LEN..];
            assert_eq!(inner[0] >> 4, 4, "{engine}");
            let total_len = usize::from(u16::from_be_bytes([inner[2], inner[3]]));
            assert_eq!(total_len, inner.len(), "{engine}: one whole packet and nothing else");
        }
        ensure!(mixed.a.stats()?.drops().is_empty(), "{engine}: dropped {:?}", mixed.a.stats()?.drops());
    }
    Ok(())
}

fn bytes_of(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal")).collect()
}

#[test]
fn weft_and_the_double_put_the_committed_bytes_on_the_wire() -> Result<()> {
    for engine in ["uring", "epoll"] {
        let half = Half::build(&[Family::V4], |options| options.engine = Some(engine.into()))?;
        let Some(half) = half else { return Ok(()) };
        let lab = Lab::start().context("a lab, as a moment ago")?;
        let Pair { link: _link, a: node, b: peer } = Pair::new(&lab, 1500)?;
        // The double as 192.0.2.2 sends to the subnet of a weft at 192.0.2.1: the other way round.
        let _double = Double::start(
            &node,
            Config {
                tun_name: TUN,
                address: "10.9.1.0".parse()?,
                network: "10.9.0.0/16",
                mtu: MTU as usize,
                bind: SocketAddrV4::new("192.0.2.1".parse()?, PORT),
                routes: vec![("10.9.2.0/24".parse()?, SocketAddrV4::new("192.0.2.2".parse()?, PORT))],
            },
        )?;
        let stock = peer.run(|| UdpSocket::bind(("192.0.2.2", PORT)))?;
        stock.set_read_timeout(Some(TIMEOUT))?;
        let injector = Injector::open(&node, TUN)?;
        for (name, packet, wire) in VECTORS {
            let (packet, wire) = (bytes_of(packet), bytes_of(wire));
            half.injector.send(&packet)?;
            let (datagram, from) = half.receive_as_peer()?;
            ensure!(datagram == wire, "{engine}: weft, {name}: {datagram:02x?}");
            assert_eq!(from.port(), PORT, "{engine}");
            injector.send(&packet)?;
            let mut buffer = [0; 2048];
            let len = loop {
                // Whatever the node's kernel sends into the double's TUN of its own accord is IPv6.
                let len = stock.recv(&mut buffer).with_context(|| format!("the double, {name}"))?;
                if buffer[0] >> 4 == 4 {
                    break len;
                }
            };
            ensure!(buffer[..len] == wire, "the double, {name}: {:02x?}", &buffer[..len]);
        }
    }
    Ok(())
}

#[test]
fn weft_takes_what_the_double_sends_byte_for_byte() -> Result<()> {
    // One by one: joined to a super-packet, datagrams of one flow are still the same, but not to a capture.
    let Some(half) = Half::build(&[Family::V4], |options| options.flags.push("--no-tun-uso".into()))? else {
        return Ok(());
    };
    let tun = half.capture_tun()?;
    let mut expected = Vec::new();
    for (_, _, wire) in VECTORS {
        // The way back: addresses swapped, which no checksum notices.
        let mut wire = bytes_of(wire);
        let addresses = [&wire[16..20], &wire[12..16]].concat();
        wire[12..20].copy_from_slice(&addresses);
        half.send_as_peer(&wire)?;
        if wire[8] > 1 {
            expected.push(crate::craft::one_hop_on(&wire));
        }
    }
    assert_eq!(half.decap_marker(&tun)?, expected);
    Ok(())
}

#[test]
fn the_double_behaves_as_described() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let Pair { link: _link, a, b } = Pair::new(&lab, 1500)?;
    let _double = start_double(&b)?;
    let peer = a.run(|| UdpSocket::bind(("192.0.2.1", 0)))?;
    let tun = Capture::start(&b, TUN, |frame| !frame.outgoing)?;
    let injector = Injector::open(&b, TUN)?;
    let (from, to): (IpAddr, IpAddr) = ("10.9.1.1".parse()?, "10.9.2.77".parse()?);
    // Any sender, any port; what is too long is cut off in silence.
    let long = Packet::udp(from, to, (7, 9), &[0x55; 1480]).build();
    peer.send_to(&long, ("192.0.2.2", PORT))?;
    // TTL 0 comes out as 255: the double has the faults of the original.
    peer.send_to(&Packet { ttl: 0, ..Packet::udp(from, to, (7, 9), b"zero") }.build(), ("192.0.2.2", PORT))?;
    peer.send_to(&Packet { ttl: 1, ..Packet::udp(from, to, (7, 9), b"one") }.build(), ("192.0.2.2", PORT))?;
    // No route: a short ICMP error with TTL 8.
    injector.send(&Packet::udp(to, "10.9.99.1".parse()?, (7, 9), b"nowhere").build())?;
    let frames = eventually(TIMEOUT, || {
        let frames = tun.frames();
        ensure!(frames.len() >= 3, "{} frames", frames.len());
        Ok(frames)
    })?;
    assert_eq!(frames.len(), 3);
    let by_length = |len: usize| frames.iter().find(|frame| frame.bytes.len() == len);
    assert!(by_length(MTU as usize).is_some());
    assert_eq!(by_length(32).context("the packet that had TTL 0")?.bytes[8], 255);
    let error = frames.iter().find_map(|frame| Error::parse(&frame.bytes)).context("no ICMP error")?;
    assert_eq!((error.kind, error.code, error.ttl, error.source, error.quoted.len()), (3, 0, 8, there(), 28));
    Ok(())
}
