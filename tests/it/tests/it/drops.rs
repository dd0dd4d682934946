//! Every reason to drop a packet, in each direction in which it can happen: provoked once, counted exactly, and nothing
//! reaches the other side. Uses the half tunnel of [`crate::half`].

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_lab::{Capture, eventually};
use weft_netlink::Route;
use weft_packet::DropReason;
use weft_proto::Direction;

use crate::craft::{DONT_FRAGMENT, Packet, UDP};
use crate::half::{Half, here, there};
use crate::support::{Family, PORT, TIMEOUT, TUN};

/// How a drop is brought about.
enum Provocation {
    /// A packet, made from the addresses of its sender and receiver, in both directions.
    Packet(fn(IpAddr, IpAddr) -> Vec<u8>),
    /// The same with IPv6 addresses.
    Packet6(fn(IpAddr, IpAddr) -> Vec<u8>),
    /// Something about the machine, in one direction. Leaves it as it was; returns how many drops it made.
    Situation(Direction, fn(&Half) -> Result<u64>),
}

use Provocation::{Packet as Crafted, Packet6 as Crafted6, Situation};

/// Not provoked, and why that cannot be done with a real kernel.
const IMPOSSIBLE: &[(DropReason, Direction, &str)] = &[
    (DropReason::Empty, Direction::Encap, "the kernel drops an empty packet before the TUN queue (tun_net_xmit)"),
    (DropReason::BadVnetHeader, Direction::Decap, "datagrams have no virtio-net header"),
    (DropReason::NoRoute, Direction::Decap, "what comes from a peer is for this host: it is not looked up"),
    (DropReason::TooBig, Direction::Decap, "the TUN takes what its kernel can forward or refuse itself"),
    (DropReason::Recursion, Direction::Decap, "what is taken out of the tunnel is not put into it again"),
    (DropReason::UnderlayError, Direction::Decap, "decap sends nothing"),
    (DropReason::UnderlayBusy, Direction::Decap, "decap sends nothing"),
    (DropReason::Truncated, Direction::Encap, "a TUN read has room for the longest packet there is"),
    (DropReason::PeerUnknown, Direction::Encap, "the sender is the host"),
    (DropReason::PeerSpoof, Direction::Encap, "the sender is the host"),
    (DropReason::TunError, Direction::Encap, "encap does not write to the TUN"),
];

fn good(from: IpAddr, to: IpAddr) -> Packet {
    Packet::udp(from, to, (7, 9), b"nothing that should arrive")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address in a test")
}

/// An IPv6 packet whose UDP header follows an extension header.
fn extended(from: IpAddr, to: IpAddr, next_header: u8, extension: &[u8]) -> Vec<u8> {
    let udp = good(from, to).payload;
    Packet { protocol: next_header, payload: [extension, &udp].concat(), ..Packet::new(from, to) }.build()
}

const CASES: &[(DropReason, &str, Provocation)] = &[
    (DropReason::Empty, "empty datagram", Situation(Direction::Decap, |half| {
        half.send_as_peer(&[])?;
        Ok(1)
    })),
    (DropReason::TooShort, "half an IPv4 header", Crafted(|from, to| good(from, to).build()[..19].to_vec())),
    (DropReason::TooShort, "half an IPv6 header", Crafted6(|from, to| good(from, to).build()[..39].to_vec())),
    (DropReason::TooShort, "one byte", Crafted(|_, _| vec![0x45])),
    (DropReason::BadVersion, "version 7", Crafted(|from, to| good(from, to).build_with(|bytes| bytes[0] = 0x75))),
    (DropReason::BadVersion, "version 15", Crafted(|_, _| vec![0xff; 64])),
    (DropReason::BadHeaderLen, "IHL 4", Crafted(|from, to| good(from, to).build_with(|bytes| bytes[0] = 0x44))),
    (DropReason::BadHeaderLen, "IHL beyond the packet", Crafted(|from, to| {
        good(from, to).build_with(|bytes| {
            bytes.truncate(28);
            bytes[0] = 0x4f;
        })
    })),
    (DropReason::BadHeaderLen, "an option of length 0", Crafted(|from, to| {
        Packet { options: vec![7, 0, 0, 0], ..good(from, to) }.build()
    })),
    (DropReason::BadHeaderLen, "an extension header beyond the packet", Crafted6(|from, to| {
        extended(from, to, 60, &[UDP, 200, 1, 4, 0, 0, 0, 0])
    })),
    (DropReason::BadTotalLen, "longer than the packet", Crafted(|from, to| {
        good(from, to).build_with(|bytes| bytes[3] += 1)
    })),
    (DropReason::BadTotalLen, "shorter than its header", Crafted(|from, to| {
        good(from, to).build_with(|bytes| bytes[3] = 19)
    })),
    (DropReason::BadTotalLen, "a payload longer than the packet", Crafted6(|from, to| {
        good(from, to).build_with(|bytes| bytes[5] += 1)
    })),
    (DropReason::BadTotalLen, "a jumbogram's payload length", Crafted6(|from, to| {
        good(from, to).build_with(|bytes| bytes[4..6].fill(0))
    })),
    (DropReason::BadChecksum, "a flipped bit", Crafted(|from, to| {
        let mut bytes = good(from, to).build();
        bytes[10] ^= 1;
        bytes
    })),
    (DropReason::TtlExceeded, "TTL 1", Crafted(|from, to| Packet { ttl: 1, ..good(from, to) }.build())),
    (DropReason::TtlExceeded, "TTL 0", Crafted(|from, to| Packet { ttl: 0, ..good(from, to) }.build())),
    (DropReason::TtlExceeded, "hop limit 1", Crafted6(|from, to| Packet { ttl: 1, ..good(from, to) }.build())),
    (DropReason::TtlExceeded, "hop limit 0", Crafted6(|from, to| Packet { ttl: 0, ..good(from, to) }.build())),
    (DropReason::MartianSource, "from loopback", Crafted(|_, to| good(ip("127.0.0.1"), to).build())),
    (DropReason::MartianSource, "from nobody", Crafted(|_, to| good(ip("0.0.0.0"), to).build())),
    (DropReason::MartianSource, "from link-local", Crafted(|_, to| good(ip("169.254.1.1"), to).build())),
    (DropReason::MartianSource, "from a group", Crafted(|_, to| good(ip("224.0.0.5"), to).build())),
    (DropReason::MartianSource, "from class E", Crafted(|_, to| good(ip("240.0.0.1"), to).build())),
    (DropReason::MartianSource, "from broadcast", Crafted(|_, to| good(ip("255.255.255.255"), to).build())),
    (DropReason::MartianSource, "from IPv6 nobody", Crafted6(|_, to| good(ip("::"), to).build())),
    (DropReason::MartianSource, "from IPv6 loopback", Crafted6(|_, to| good(ip("::1"), to).build())),
    (DropReason::MartianSource, "from IPv6 link-local", Crafted6(|_, to| good(ip("fe80::1"), to).build())),
    (DropReason::MartianSource, "from an IPv6 group", Crafted6(|_, to| good(ip("ff02::1"), to).build())),
    (DropReason::MartianSource, "from mapped IPv4", Crafted6(|_, to| good(ip("::ffff:10.9.2.1"), to).build())),
    (DropReason::MartianDestination, "to loopback", Crafted(|from, _| good(from, ip("127.0.0.1")).build())),
    (DropReason::MartianDestination, "to nobody", Crafted(|from, _| good(from, ip("0.0.0.0")).build())),
    (DropReason::MartianDestination, "to link-local", Crafted(|from, _| good(from, ip("169.254.1.1")).build())),
    (DropReason::MartianDestination, "to class E", Crafted(|from, _| good(from, ip("240.0.0.1")).build())),
    (DropReason::MartianDestination, "to IPv6 loopback", Crafted6(|from, _| good(from, ip("::1")).build())),
    (DropReason::MartianDestination, "to IPv6 link-local", Crafted6(|from, _| good(from, ip("fe80::1")).build())),
    (DropReason::Multicast, "to a group", Crafted(|from, _| good(from, ip("224.0.0.251")).build())),
    (DropReason::Multicast, "to broadcast", Crafted(|from, _| good(from, ip("255.255.255.255")).build())),
    (DropReason::Multicast, "to an IPv6 group", Crafted6(|from, _| good(from, ip("ff02::fb")).build())),
    (DropReason::SourceRoute, "loose", Crafted(|from, to| {
        Packet { options: vec![131, 7, 4, 10, 9, 9, 9, 0], ..good(from, to) }.build()
    })),
    (DropReason::SourceRoute, "strict, behind a no-op", Crafted(|from, to| {
        Packet { options: vec![1, 137, 7, 4, 10, 9, 9, 9], ..good(from, to) }.build()
    })),
    (DropReason::SourceRoute, "routing header of type 0", Crafted6(|from, to| {
        extended(from, to, 43, &[&[UDP, 2, 0, 1, 0, 0, 0, 0], &[0; 16][..]].concat())
    })),
    (DropReason::PingOfDeath, "a fragment at the very end", Crafted(|from, to| {
        Packet { fragment: 0x1fff, ..good(from, to) }.build()
    })),
    (DropReason::PingOfDeath, "an IPv6 fragment at the very end", Crafted6(|from, to| {
        extended(from, to, 44, &[UDP, 0, 0xff, 0xf8, 0, 0, 0, 1])
    })),
    (DropReason::BadVnetHeader, "a checksum that starts inside the IP header", Situation(Direction::Encap, |half| {
        let packet = Packet { options: vec![1; 4], ..good(here(Family::V4), there(Family::V4)) }.build();
        // NEEDS_CSUM, from byte 20, where the options are.
        let header = [&[1, 0][..], &[0; 4], &20u16.to_ne_bytes(), &6u16.to_ne_bytes()].concat();
        half.injector.send_with_vnet(&header.try_into().expect("ten bytes"), &packet)?;
        Ok(1)
    })),
    (DropReason::NoRoute, "an IPv4 address of nobody", Situation(Direction::Encap, |half| {
        half.injector.send(&good(here(Family::V4), ip("10.9.99.1")).build())?;
        Ok(1)
    })),
    (DropReason::NoRoute, "an IPv6 address of nobody", Situation(Direction::Encap, |half| {
        half.injector.send(&good(here(Family::V6), ip("fd09:0:0:99::1")).build())?;
        Ok(1)
    })),
    (DropReason::TooBig, "an IPv4 packet that may not be fragmented", Situation(Direction::Encap, |half| {
        let packet = Packet::udp(here(Family::V4), there(Family::V4), (7, 9), &[0x55; 1473 - 28]);
        half.injector.send(&Packet { fragment: DONT_FRAGMENT, ..packet }.build())?;
        Ok(1)
    })),
    (DropReason::TooBig, "an IPv6 packet", Situation(Direction::Encap, |half| {
        half.injector.send(&Packet::udp(here(Family::V6), there(Family::V6), (7, 9), &[0x55; 1473 - 48]).build())?;
        Ok(1)
    })),
    (DropReason::Recursion, "our own datagrams, routed into the tunnel", Situation(Direction::Encap, |half| {
        let peer = Family::V4.underlay(2);
        half.install(&[("192.0.2.0/24", peer)])?;
        half.injector.send(&Packet::udp(Family::V4.underlay(1), peer, (PORT, PORT), b"wrapped").build())?;
        Ok(1)
    })),
    (DropReason::UnderlayError, "no way to the peer", Situation(Direction::Encap, |half| {
        half.install(&[("10.9.4.0/24", ip("203.0.113.1"))])?;
        half.injector.send(&good(here(Family::V4), ip("10.9.4.1")).build())?;
        Ok(1)
    })),
    (DropReason::UnderlayError, "a prohibited way to the peer", Situation(Direction::Encap, |half| {
        half.install(&[("10.9.4.0/24", ip("203.0.113.1"))])?;
        let route = Route::unreachable("203.0.113.0/24".parse::<ipnet::IpNet>()?);
        half.host.node.netlink()?.add_route(&route)?;
        half.injector.send(&good(here(Family::V4), ip("10.9.4.1")).build())?;
        half.settle()?;
        half.host.node.netlink()?.delete_route(&route)?;
        Ok(1)
    })),
    (DropReason::UnderlayBusy, "a full send buffer", Situation(Direction::Encap, fill_send_buffer)),
    (DropReason::Truncated, "a datagram beyond the MTU by more than the room for it", Situation(Direction::Decap, |half| {
        let fits = Packet::udp(there(Family::V4), here(Family::V4), (7, 9), &[0x55; 1500 + 576 - 28]).build();
        half.send_as_peer(&fits.iter().copied().chain([0]).collect::<Vec<_>>())?;
        Ok(1)
    })),
    (DropReason::PeerUnknown, "another host of the underlay", Situation(Direction::Decap, |half| {
        half.peer.address("u0", "192.0.2.66/24")?;
        let stranger = half.peer.run(|| UdpSocket::bind(("192.0.2.66", PORT)))?;
        stranger.send_to(&good(there(Family::V4), here(Family::V4)).build(), half.host.address)?;
        Ok(1)
    })),
    (DropReason::PeerSpoof, "the host's own address", Situation(Direction::Decap, |half| {
        half.send_as_peer(&good(here(Family::V4), ip("10.9.1.77")).build())?;
        Ok(1)
    })),
    (DropReason::PeerSpoof, "an IPv6 address that is not the peer's", Situation(Direction::Decap, |half| {
        half.send_as_peer(&good(ip("2001:db8:99::1"), here(Family::V6)).build())?;
        Ok(1)
    })),
    (DropReason::TunError, "the TUN is down", Situation(Direction::Decap, |half| {
        let index = half.host.node.link(TUN)?.index;
        half.host.node.netlink()?.set_down(index)?;
        half.send_as_peer(&good(there(Family::V4), here(Family::V4)).build())?;
        half.settle()?;
        half.host.node.netlink()?.set_up(index)?;
        half.host.node.wait_running(TUN)?;
        Ok(1)
    })),
];

/// Makes datagrams pile up at a neighbour that never answers ARP until the socket's send buffer is full, then sends a packet
/// that has to leave at once because it is fragmented.
fn fill_send_buffer(half: &Half) -> Result<u64> {
    const FRAGMENT_COUNT: u64 = 2;
    const BURST: u64 = 50;
    // What weftd asks for, as the kernel doubles it (socket(7)).
    const SEND_BUFFER_LEN: u64 = 2 * (8 << 20);
    let node = &half.host.node;
    half.install(&[("10.9.5.0/24", ip("192.0.2.99"))])?;
    node.sysctl("net/ipv4/neigh/u0/unres_qlen_bytes", "100000000")?;
    node.sysctl("net/ipv4/neigh/u0/retrans_time_ms", "2000")?;
    let oversized = Packet::udp(here(Family::V4), ip("10.9.5.1"), (7, 9), &[0x55; 1500 - 28]).build();
    let fits = Packet::udp(here(Family::V4), ip("10.9.5.1"), (7, 9), &[0x55; 1400]).build();
    let busy = || -> Result<u64> {
        Ok(half.host.stats()?.drops().get("encap underlay_busy").copied().unwrap_or(0))
    };
    let before = busy()?;
    // The first is refused as a batch and teaches the path MTU.
    half.injector.send(&oversized)?;
    half.settle()?;
    ensure!(busy()? == before, "dropped before the buffer was full");
    // Few at a time: once the buffer is full, the worker holds no more than these and goes on reading.
    for _ in 0..1000 {
        let read = half.host.stats()?.counter("tun_read_packets");
        for _ in 0..BURST {
            half.injector.send(&fits)?;
        }
        eventually(TIMEOUT, || {
            ensure!(half.host.stats()?.counter("tun_read_packets") >= read + BURST, "the worker does not read");
            Ok(())
        })?;
        if send_queue_len(half)? >= SEND_BUFFER_LEN {
            break;
        }
    }
    half.injector.send(&oversized)?;
    eventually(TIMEOUT, || {
        ensure!(busy()? == before + FRAGMENT_COUNT, "{} dropped", busy()? - before);
        Ok(())
    })?;
    // ARP gives up, the buffer empties, and the worker goes on.
    node.sysctl("net/ipv4/neigh/u0/retrans_time_ms", "1000")?;
    half.install(&[])?;
    Ok(FRAGMENT_COUNT)
}

/// Bytes that the socket of weftd has sent and the kernel still holds.
fn send_queue_len(half: &Half) -> Result<u64> {
    let table = half.host.node.run(|| std::fs::read_to_string("/proc/thread-self/net/udp"))?;
    let port = format!(":{PORT:04X}");
    let mut sockets = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let socket = sockets.find(|fields| fields.get(1).is_some_and(|local| local.ends_with(&port)));
    let queues = socket.context("weftd has no UDP socket")?[4];
    Ok(u64::from_str_radix(queues.split(':').next().unwrap_or_default(), 16)?)
}

fn changes(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let change = |(name, count): (&String, &u64)| (name.clone(), count - before.get(name).copied().unwrap_or(0));
    after.iter().map(change).filter(|(_, count)| *count > 0).collect()
}

/// Provokes one drop and checks that it alone was counted, and that nothing arrived.
fn check(half: &Half, tun: &Capture, reason: DropReason, direction: Direction, provoke: &dyn Fn() -> Result<u64>) -> Result<()> {
    let before = half.host.stats()?.drops();
    let written = half.decap_marker(tun)?.len();
    half.encap_marker()?;
    let count = provoke()?;
    let wanted = BTreeMap::from([(format!("{} {}", direction, reason.name()), count)]);
    eventually(TIMEOUT, || {
        let found = changes(&before, &half.host.stats()?.drops());
        ensure!(found == wanted, "counted {found:?} instead of {wanted:?}");
        Ok(())
    })?;
    match direction {
        Direction::Encap => {
            let arrived = half.encap_marker()?;
            ensure!(arrived.is_empty() || count > 1, "{} datagrams reached the peer", arrived.len());
        }
        Direction::Decap => {
            // The marker of before is the one packet more.
            let arrived = half.decap_marker(tun)?.len() - written - 1;
            ensure!(arrived == 0, "{arrived} packets reached the host");
        }
    }
    let found = changes(&before, &half.host.stats()?.drops());
    ensure!(found == wanted, "counted {found:?} instead of {wanted:?} in the end");
    Ok(())
}

fn provoke_every_drop(engine: &str) -> Result<()> {
    // Without UDP GRO, so that a datagram can be longer than the room for it.
    let half = Half::build(&[Family::V4], |options| {
        options.engine = Some(engine.into());
        options.workers = Some(1);
        options.flags.push("--no-udp-gro".into());
    })?;
    let Some(half) = half else { return Ok(()) };
    let tun = half.capture_tun()?;
    let mut provoked = Vec::new();
    for (reason, what, provocation) in CASES {
        let inject = |make: fn(IpAddr, IpAddr) -> Vec<u8>, family| {
            half.injector.send(&make(here(family), there(family)))?;
            Ok(1)
        };
        let send = |make: fn(IpAddr, IpAddr) -> Vec<u8>, family| {
            half.send_as_peer(&make(there(family), here(family)))?;
            Ok(1)
        };
        let mut run = |direction: Direction, provoke: &dyn Fn() -> Result<u64>| {
            provoked.push((*reason, direction));
            check(&half, &tun, *reason, direction, provoke)
                .with_context(|| format!("{} {}: {what}", direction, reason.name()))
        };
        let mut both = |make: fn(IpAddr, IpAddr) -> Vec<u8>, family| {
            run(Direction::Encap, &|| inject(make, family))?;
            run(Direction::Decap, &|| send(make, family))
        };
        match provocation {
            Crafted(make) => both(*make, Family::V4)?,
            Crafted6(make) => both(*make, Family::V6)?,
            Situation(direction, provoke) => run(*direction, &|| provoke(&half))?,
        }
    }
    for reason in DropReason::ALL {
        for direction in [Direction::Encap, Direction::Decap] {
            let provoked = provoked.contains(&(*reason, direction));
            let excused = IMPOSSIBLE.iter().any(|(impossible, there, _)| (impossible, *there) == (reason, direction));
            assert!(provoked != excused, "{} {}: needs a case, or a reason why not", direction, reason.name());
        }
    }
    Ok(())
}

#[test]
fn every_drop_reason_is_counted_once_on_uring() -> Result<()> {
    provoke_every_drop("uring")
}

#[test]
fn every_drop_reason_is_counted_once_on_epoll() -> Result<()> {
    provoke_every_drop("epoll")
}

/// Garbage of all kinds: `index` decides.
fn garbage(index: u64) -> Vec<u8> {
    let mut state = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = || {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let len = (random() % 200) as usize;
    let start: &[u8] = match index % 8 {
        0 => return Vec::new(),
        1 => return vec![random() as u8],
        2 => return vec![0xff; len],
        3 => return vec![0; len],
        4 => &[0x45],
        5 => &[0x60],
        6 => &[0x4f, 0, 0, 100],
        _ => &[],
    };
    start.iter().copied().chain((0..len).map(|_| random() as u8)).collect()
}

#[test]
fn ten_thousand_garbage_datagrams_are_counted_and_nobody_is_answered() -> Result<()> {
    const COUNT: u64 = 10_000;
    for engine in ["uring", "epoll"] {
        let half = Half::build(&[Family::V4], |options| {
            options.engine = Some(engine.into());
            options.workers = Some(1);
        })?;
        let Some(half) = half else { return Ok(()) };
        let tun = half.capture_tun()?;
        let sent_by_weftd = Capture::start(&half.host.node, "u0", |frame| {
            frame.outgoing && frame.bytes.get(23) == Some(&UDP) || frame.bytes.get(23) == Some(&1)
        })?;
        let stranger = half.peer.run(|| UdpSocket::bind(("192.0.2.2", 0)))?;
        for index in 0..COUNT {
            // Half of it comes from another port of the peer, which is as good.
            let socket = if index % 2 == 0 { &half.socket } else { &stranger };
            socket.send_to(&garbage(index), half.host.address)?;
            if index % 64 == 63 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        eventually(TIMEOUT, || {
            let dropped: u64 = half.host.stats()?.drops().values().sum();
            ensure!(dropped == COUNT, "{dropped} of {COUNT} counted on {engine}: {:?}", half.host.stats()?.drops());
            Ok(())
        })?;
        let accepted = half.host.stats()?.accepted();
        assert_eq!(accepted.packets, 0, "{engine}");
        assert_eq!(half.decap_marker(&tun)?, Vec::<Vec<u8>>::new(), "{engine}");
        assert_eq!(sent_by_weftd.stop().len(), 0, "{engine}");
        assert_eq!(half.encap_marker()?, Vec::<Vec<u8>>::new(), "{engine}");
    }
    Ok(())
}
