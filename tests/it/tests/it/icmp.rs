//! The ICMP errors that weft owes, read off the wire, and where they arrive. Uses the half tunnel of [`crate::half`], and a
//! whole one with a pod behind each host:
//!
//! ```text
//!   pod1 10.9.1.2 ── 10.9.1.254 a ══ weft ══ b 10.9.2.254 ── 10.9.2.2 pod2
//! ```

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt};
use weft_lab::topology::Pod;
use weft_lab::{Capture, Ping, PingOutcome, eventually, ping};

use crate::craft::{self, DONT_FRAGMENT, Error, MORE_FRAGMENTS, Packet};
use crate::half::{Half, here, there};
use crate::support::{Family, TIMEOUT, Tunnel};

/// Largest inner packet over the IPv4 underlay of the half tunnel.
const PATH_MTU: u32 = 1500 - 28;

/// What an error is told apart by: type and code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    TimeExceeded,
    NoRoute,
    TooBig,
}

impl Kind {
    /// RFC 792 and RFC 1191; RFC 4443.
    fn type_and_code(self, family: Family) -> (u8, u8) {
        match (self, family) {
            (Kind::TimeExceeded, Family::V4) => (11, 0),
            (Kind::NoRoute, Family::V4) => (3, 0),
            (Kind::TooBig, Family::V4) => (3, 4),
            (Kind::TimeExceeded, Family::V6) => (3, 0),
            (Kind::NoRoute, Family::V6) => (1, 0),
            (Kind::TooBig, Family::V6) => (2, 0),
        }
    }
}

/// An address of a subnet, for a sender with a rate limit of its own.
fn sender(family: Family, number: u8, host: u8) -> IpAddr {
    match family {
        Family::V4 => format!("10.9.{number}.{host}"),
        Family::V6 => format!("fd09:0:0:{number}::{host:x}"),
    }
    .parse()
    .expect("an address")
}

fn nowhere(family: Family) -> IpAddr {
    sender(family, 99, 1)
}

/// A packet of `len` bytes in all.
fn packet_of(from: IpAddr, to: IpAddr, len: usize) -> Packet {
    let header_len = if from.is_ipv4() { 28 } else { 48 };
    let data: Vec<u8> = (0..len - header_len).map(|index| index as u8).collect();
    Packet { tos: 0x28, ..Packet::udp(from, to, (7, 9), &data) }
}

/// The one ICMP error that weftd writes to the TUN for `offender`.
fn answer_on_tun(tun: &Capture, sender: IpAddr) -> Result<Error> {
    eventually(TIMEOUT, || {
        let errors: Vec<Error> = tun.frames().iter().filter_map(|frame| Error::parse(&frame.bytes)).collect();
        let mut to_sender = errors.into_iter().filter(|error| error.destination == sender);
        let error = to_sender.next().context("no ICMP error")?;
        ensure!(to_sender.next().is_none(), "more than one ICMP error");
        Ok(error)
    })
}

/// Checks everything about an error but that it arrived.
fn check(error: &Error, kind: Kind, family: Family, sender: IpAddr, offender: &[u8]) -> Result<()> {
    // RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 c.
    let (longest, headers_len) = if family == Family::V4 { (576, 28) } else { (1280, 48) };
    let quote_len = offender.len().min(longest - headers_len);
    let (kind_number, code) = kind.type_and_code(family);
    let expected = Error {
        source: here(family),
        destination: sender,
        ttl: 64,
        tos: 0xc0,
        kind: kind_number,
        code,
        word: if kind == Kind::TooBig { PATH_MTU } else { 0 },
        quoted: offender[..quote_len].to_vec(),
        len: headers_len + quote_len,
    };
    ensure!(*error == expected, "{kind:?} {family:?}: got {error:?}\nexpected {expected:?}");
    Ok(())
}

#[test]
fn errors_about_packets_from_the_host_are_exact() -> Result<()> {
    for engine in ["uring", "epoll"] {
        let half = Half::build(&Family::BOTH, |options| options.engine = Some(engine.into()))?;
        let Some(half) = half else { return Ok(()) };
        let tun = half.capture_tun()?;
        let mut host = 10;
        for family in Family::BOTH {
            for (kind, ttl, len) in [
                (Kind::TimeExceeded, 1, 60),
                (Kind::TimeExceeded, 0, 60),
                (Kind::TimeExceeded, 1, 1400),
                (Kind::NoRoute, 64, 49),
                (Kind::NoRoute, 64, 577),
                (Kind::NoRoute, 64, 1500),
                (Kind::TooBig, 64, 1473),
                (Kind::TooBig, 64, 1500),
            ] {
                host += 1;
                let from = sender(family, 1, host);
                let to = if kind == Kind::NoRoute { nowhere(family) } else { there(family) };
                let offender = Packet { ttl, fragment: DONT_FRAGMENT, ..packet_of(from, to, len) }.build();
                half.injector.send(&offender)?;
                let error = answer_on_tun(&tun, from).with_context(|| format!("{kind:?} {family:?} {len}"))?;
                // A router need not undo what forwarding did before the error was found (RFC 1812 section 4.3.2.3).
                let quoted = if kind == Kind::TooBig { craft::one_hop_on(&offender) } else { offender };
                check(&error, kind, family, from, &quoted)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_packet_that_expires_on_arrival_is_answered_through_the_tunnel() -> Result<()> {
    let Some(half) = Half::build(&Family::BOTH, |_| ())? else { return Ok(()) };
    let tun = half.capture_tun()?;
    for family in Family::BOTH {
        for (host, ttl) in [(11, 1), (12, 0)] {
            let from = sender(family, 2, host);
            let offender = Packet { ttl, ..packet_of(from, here(family), 60) }.build();
            half.send_as_peer(&offender)?;
            let (datagram, _) = loop {
                let received = half.receive_as_peer()?;
                if Error::parse(&received.0).is_some() {
                    break received;
                }
            };
            check(&Error::parse(&datagram).context("no error")?, Kind::TimeExceeded, family, from, &offender)?;
        }
    }
    assert_eq!(half.decap_marker(&tun)?, Vec::<Vec<u8>>::new(), "something was written to the TUN");
    Ok(())
}

#[test]
fn every_ttl_comes_out_one_less_and_none_is_raised() -> Result<()> {
    let Some(half) = Half::build(&[Family::V4], |_| ())? else { return Ok(()) };
    let tun = half.capture_tun()?;
    for family in Family::BOTH {
        let written = half.decap_marker(&tun)?.len() + 1;
        let (mut sent, mut given) = (Vec::new(), Vec::new());
        for ttl in 0..=255 {
            let packet = |from, to| Packet { ttl, id: ttl.into(), ..Packet::udp(from, to, (7, 9), b"hops") }.build();
            let (out, back) = (packet(here(family), there(family)), packet(there(family), sender(family, 1, 77)));
            half.injector.send(&out)?;
            half.send_as_peer(&back)?;
            if ttl > 1 {
                sent.push(craft::one_hop_on(&out));
                given.push(craft::one_hop_on(&back));
            }
        }
        let is_error = |packet: &Vec<u8>| Error::parse(packet).is_some();
        let mut arrived = half.encap_marker()?;
        arrived.retain(|packet| !is_error(packet));
        ensure!(arrived == sent, "{family:?} encap: {} of {} packets, or others", arrived.len(), sent.len());
        let mut arrived = half.decap_marker(&tun)?.split_off(written);
        arrived.retain(|packet| !is_error(packet));
        ensure!(arrived == given, "{family:?} decap: {} of {} packets, or others", arrived.len(), given.len());
    }
    Ok(())
}

#[test]
fn nobody_is_told_about_what_must_not_be_answered() -> Result<()> {
    let Some(half) = Half::build(&[Family::V4], |_| ())? else { return Ok(()) };
    let tun = half.capture_tun()?;
    let [v4, v6] = Family::BOTH.map(|family| (sender(family, 1, 50), nowhere(family)));
    let mut silent: Vec<(String, Vec<u8>)> = Vec::new();
    let quoted = packet_of(v4.1, v4.0, 60).build();
    for kind in [3, 4, 5, 11, 12] {
        silent.push((format!("ICMP {kind}"), Packet::icmp(v4.0, v4.1, kind, &quoted).build()));
    }
    let quoted = packet_of(v6.1, v6.0, 60).build();
    for kind in [1, 2, 3, 4, 100, 127, 137] {
        silent.push((format!("ICMPv6 {kind}"), Packet::icmp(v6.0, v6.1, kind, &quoted).build()));
    }
    let later = Packet { fragment: 3, ..packet_of(v4.0, v4.1, 60) };
    silent.push(("a later fragment".into(), later.build()));
    silent.push(("a middle fragment".into(), Packet { fragment: MORE_FRAGMENTS | 3, ..later }.build()));
    let fragment6 =
        Packet { protocol: 44, payload: vec![17, 0, 0, 8, 0, 0, 0, 1, 1, 2, 3, 4], ..Packet::new(v6.0, v6.1) };
    silent.push(("a later IPv6 fragment".into(), fragment6.build()));
    for source in ["0.0.0.0", "127.0.0.1", "169.254.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"] {
        silent.push((format!("from {source}"), packet_of(source.parse()?, v4.1, 60).build()));
    }
    for source in ["::", "::1", "fe80::1", "ff02::1", "::ffff:10.9.1.1"] {
        silent.push((format!("from {source}"), packet_of(source.parse()?, v6.1, 60).build()));
    }
    for destination in ["224.0.0.1", "255.255.255.255", "127.0.0.1", "0.0.0.0"] {
        silent.push((format!("to {destination}"), packet_of(v4.0, destination.parse()?, 60).build()));
    }
    silent.push(("to a group".into(), packet_of(v6.0, "ff02::1".parse()?, 60).build()));
    for (what, packet) in &silent {
        // Once as it is, with no route to where it goes, and once expired.
        half.injector.send(packet)?;
        let mut expired = packet.clone();
        expired[if packet[0] >> 4 == 4 { 8 } else { 7 }] = 2;
        half.injector.send(&craft::one_hop_on(&expired)).with_context(|| what.clone())?;
    }
    half.has_dropped(2 * silent.len() as u64)?;
    let answers: Vec<Error> = half.decap_marker(&tun)?.iter().filter_map(|packet| Error::parse(packet)).collect();
    ensure!(answers.is_empty(), "answered: {answers:?}");
    let stats = half.host.stats()?;
    assert_eq!(stats.drops().values().sum::<u64>(), 2 * silent.len() as u64);
    assert_eq!((stats.counter("icmp_sent"), stats.counter("icmp_limited")), (0, 0));

    // And these are answered: echo requests are no errors, first fragments have what an error quotes.
    let from = sender(Family::V4, 1, 51);
    half.injector.send(&Packet::icmp(from, v4.1, 8, b"echo").build())?;
    answer_on_tun(&tun, from).context("about an echo request")?;
    let from = sender(Family::V6, 1, 51);
    half.injector.send(&Packet::icmp(from, v6.1, 128, b"echo").build())?;
    answer_on_tun(&tun, from).context("about an IPv6 echo request")?;
    let from = sender(Family::V4, 1, 52);
    half.injector.send(&Packet { fragment: MORE_FRAGMENTS, ..packet_of(from, v4.1, 60) }.build())?;
    answer_on_tun(&tun, from).context("about a first fragment")?;
    Ok(())
}

#[test]
fn a_flood_draws_no_more_errors_than_the_rate_limit_allows() -> Result<()> {
    const COUNT: u64 = 2000;
    // RFC 4443 section 2.4 f for one source; Linux icmp_msgs_per_sec and icmp_msgs_burst for all.
    for (what, source_count, burst, per_second) in [("one source", 1, 10, 10), ("many sources", 2000, 50, 1000)] {
        let Some(half) = Half::build(&[Family::V4], |options| options.workers = Some(1))? else { return Ok(()) };
        let tun = half.capture_tun()?;
        let started = Instant::now();
        half.flood((0..COUNT).map(|index| {
            let source = u32::from_be_bytes([10, 9, 1, 2]) + (index % source_count) as u32;
            packet_of(std::net::Ipv4Addr::from(source).into(), nowhere(Family::V4), 60).build()
        }))?;
        eventually(TIMEOUT, || {
            let stats = half.host.stats()?;
            let (sent, limited) = (stats.counter("icmp_sent"), stats.counter("icmp_limited"));
            ensure!(sent + limited == COUNT, "{what}: {sent} sent, {limited} withheld");
            Ok(())
        })?;
        let allowed = burst + (started.elapsed().as_secs_f64() * f64::from(per_second)).ceil() as u64;
        let sent = half.host.stats()?.counter("icmp_sent");
        ensure!(sent <= allowed, "{what}: {sent} errors where {allowed} are allowed");
        ensure!(sent >= burst, "{what}: only {sent} errors, the burst is {burst}");
        assert_eq!(half.host.stats()?.drops()["encap no_route"], COUNT);
        let written = half.decap_marker(&tun)?.iter().filter(|packet| Error::parse(packet).is_some()).count();
        assert_eq!(written as u64, sent, "{what}");
    }
    Ok(())
}

/// What a TCP connection attempt from inside the node ends with.
fn connect_error(half: &Half, to: IpAddr, ttl: u32) -> Result<Errno> {
    half.host.node.run(|| {
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket(family, SocketType::STREAM, None)?;
        if to.is_ipv4() {
            sockopt::set_ip_ttl(&socket, ttl)?;
        } else {
            sockopt::set_ipv6_unicast_hops(&socket, Some(ttl as u8))?;
        }
        // A bound for connect(2).
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(TIMEOUT))?;
        match connect(&socket, &SocketAddr::new(to, 9)) {
            Ok(()) => bail!("connected to {to}"),
            Err(error) => Ok(error),
        }
    })
}

#[test]
fn local_senders_see_errors_as_error_numbers() -> Result<()> {
    let Some(half) = Half::build(&Family::BOTH, |_| ())? else { return Ok(()) };
    for family in Family::BOTH {
        let outcome = connect_error(&half, nowhere(family), 64)?;
        assert_eq!(outcome, Errno::NETUNREACH, "no route, {family:?}");
        let outcome = connect_error(&half, there(family), 1)?;
        assert_eq!(outcome, Errno::HOSTUNREACH, "expired, {family:?}");
        let socket = half.host.node.run(|| -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind((here(family), 0))?;
            if family == Family::V4 {
                sockopt::set_ip_mtu_discover(&socket, sockopt::Ipv4PathMtuDiscovery::DO)?;
            } else {
                sockopt::set_ipv6_mtu_discover(&socket, sockopt::Ipv6PathMtuDiscovery::DO)?;
            }
            socket.connect((there(family), 9))?;
            Ok(socket)
        })?;
        // The TUN takes 1500 bytes, the path 28 less.
        let datagram = vec![0; 1500 - family.ip_header_len() - 8];
        socket.send(&datagram)?;
        let error = eventually(TIMEOUT, || match socket.send(&datagram) {
            Ok(_) => bail!("{family:?}: sent"),
            Err(error) => Ok(error),
        })?;
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{family:?}");
        // The ICMP error itself waits to be reported, too, beside what the kernel learnt from it.
        socket.take_error()?;
        let fitting = vec![0; datagram.len() - 28];
        socket.send(&fitting).with_context(|| format!("{family:?}: {} bytes fit", fitting.len()))?;
    }
    Ok(())
}

#[test]
fn errors_reach_a_pod_behind_the_node() -> Result<()> {
    let Some(half) = Half::build(&Family::BOTH, |_| ())? else { return Ok(()) };
    let pod = Pod::behind(&half.lab, &half.host.node, "pod1", "10.9.1.2/24", "10.9.1.254/24", 1500)?;
    pod.family("fd09:0:0:1::2/64", "fd09:0:0:1::fe/64")?;
    for family in Family::BOTH {
        let expect = |what: Ping, kind: Kind, mtu: Option<u32>| -> Result<()> {
            let outcome = ping(&pod.node, &what)?;
            let (kind_number, code) = kind.type_and_code(family);
            let expected = PingOutcome::IcmpError { from: here(family), kind: kind_number, code, mtu };
            ensure!(outcome == expected, "{kind:?} {family:?}: {outcome:?}");
            Ok(())
        };
        expect(Ping::to(nowhere(family)), Kind::NoRoute, None)?;
        // The node takes one hop, weft the next.
        expect(Ping { ttl: 2, ..Ping::to(there(family)) }, Kind::TimeExceeded, None)?;
        let payload_len = 1500 - family.ip_header_len() - 8;
        let too_big = Ping { payload_len, dont_fragment: true, ..Ping::to(there(family)) };
        expect(too_big, Kind::TooBig, Some(PATH_MTU))?;
    }
    Ok(())
}

#[test]
fn a_traceroute_between_pods_shows_every_hop() -> Result<()> {
    let Some(tunnel) = Tunnel::builder().build()? else { return Ok(()) };
    let pods = [&tunnel.a, &tunnel.b].map(|host| -> Result<Pod> {
        let number = host.number;
        let (name, address) = (format!("pod{number}"), format!("10.9.{number}.2/24"));
        let pod = Pod::behind(&tunnel.lab, &host.node, &name, &address, &format!("10.9.{number}.254/24"), 1472)?;
        pod.family(&format!("fd09:0:0:{number}::2/64"), &format!("fd09:0:0:{number}::fe/64"))?;
        Ok(pod)
    });
    let [first, _second] = [&pods[0], &pods[1]].map(|pod| pod.as_ref().expect("a pod"));
    for family in Family::BOTH {
        let gateway: IpAddr = if family == Family::V4 { "10.9.1.254" } else { "fd09:0:0:1::fe" }.parse()?;
        let target = sender(family, 2, 2);
        // The node, its weft, the other weft, and the other node, which speaks from the address it answers over.
        let hops = [gateway, family.overlay(1), family.overlay(2), family.overlay(2)];
        for (ttl, hop) in (1..).zip(hops) {
            let outcome = ping(&first.node, &Ping { ttl, ..Ping::to(target) })?;
            let (kind, code) = Kind::TimeExceeded.type_and_code(family);
            let expected = PingOutcome::IcmpError { from: hop, kind, code, mtu: None };
            ensure!(outcome == expected, "{family:?} TTL {ttl}: {outcome:?}, expected {expected:?}");
        }
        let (_, ttl) = ping(&first.node, &Ping { ttl: 5, ..Ping::to(target) })?.reply()?;
        assert_eq!(ttl, 60, "{family:?}");
    }
    Ok(())
}
