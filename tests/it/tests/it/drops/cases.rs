//! The table: what provokes each drop, and what cannot be provoked.

use std::net::{IpAddr, UdpSocket};

use anyhow::Result;
use weft_netlink::Route;
use weft_packet::DropReason;
use weft_proto::Direction;

use super::busy;
use crate::craft::{DONT_FRAGMENT, Packet, UDP};
use crate::half::{Half, here, there};
use crate::support::{Family, PORT, TUN};

/// How a drop is brought about.
pub enum Provocation {
    /// A packet, made from the addresses of its sender and receiver, in both directions.
    Packet(fn(IpAddr, IpAddr) -> Vec<u8>),
    /// The same with IPv6 addresses.
    Packet6(fn(IpAddr, IpAddr) -> Vec<u8>),
    /// Something about the machine, in one direction. Leaves it as it was; returns how many drops it made.
    Situation(Direction, fn(&Half) -> Result<u64>),
}

pub use Provocation::{Packet as Crafted, Packet6 as Crafted6, Situation};

/// Not provoked, and why that cannot be done with a real kernel.
pub const IMPOSSIBLE: &[(DropReason, Direction, &str)] = &[
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

/// Reason, what is special about this way to it, and how it is brought about.
pub const CASES: &[(DropReason, &str, Provocation)] = &[
    (
        DropReason::Empty,
        "empty datagram",
        Situation(Direction::Decap, |half| {
            half.send_as_peer(&[])?;
            Ok(1)
        }),
    ),
    (DropReason::TooShort, "half an IPv4 header", Crafted(|from, to| good(from, to).build()[..19].to_vec())),
    (DropReason::TooShort, "half an IPv6 header", Crafted6(|from, to| good(from, to).build()[..39].to_vec())),
    (DropReason::TooShort, "one byte", Crafted(|_, _| vec![0x45])),
    (DropReason::BadVersion, "version 7", Crafted(|from, to| good(from, to).build_with(|bytes| bytes[0] = 0x75))),
    (DropReason::BadVersion, "version 15", Crafted(|_, _| vec![0xff; 64])),
    (DropReason::BadHeaderLen, "IHL 4", Crafted(|from, to| good(from, to).build_with(|bytes| bytes[0] = 0x44))),
    (
        DropReason::BadHeaderLen,
        "IHL beyond the packet",
        Crafted(|from, to| {
            good(from, to).build_with(|bytes| {
                bytes.truncate(28);
                bytes[0] = 0x4f;
            })
        }),
    ),
    (
        DropReason::BadHeaderLen,
        "an option of length 0",
        Crafted(|from, to| Packet { options: vec![7, 0, 0, 0], ..good(from, to) }.build()),
    ),
    (
        DropReason::BadHeaderLen,
        "an extension header beyond the packet",
        Crafted6(|from, to| extended(from, to, 60, &[UDP, 200, 1, 4, 0, 0, 0, 0])),
    ),
    (
        DropReason::BadTotalLen,
        "longer than the packet",
        Crafted(|from, to| good(from, to).build_with(|bytes| bytes[3] += 1)),
    ),
    (
        DropReason::BadTotalLen,
        "shorter than its header",
        Crafted(|from, to| good(from, to).build_with(|bytes| bytes[3] = 19)),
    ),
    (
        DropReason::BadTotalLen,
        "a payload longer than the packet",
        Crafted6(|from, to| good(from, to).build_with(|bytes| bytes[5] += 1)),
    ),
    (
        DropReason::BadTotalLen,
        "a jumbogram's payload length",
        Crafted6(|from, to| good(from, to).build_with(|bytes| bytes[4..6].fill(0))),
    ),
    (
        DropReason::BadChecksum,
        "a flipped bit",
        Crafted(|from, to| {
            let mut bytes = good(from, to).build();
            bytes[10] ^= 1;
            bytes
        }),
    ),
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
    (
        DropReason::SourceRoute,
        "loose",
        Crafted(|from, to| Packet { options: vec![131, 7, 4, 10, 9, 9, 9, 0], ..good(from, to) }.build()),
    ),
    (
        DropReason::SourceRoute,
        "strict, behind a no-op",
        Crafted(|from, to| Packet { options: vec![1, 137, 7, 4, 10, 9, 9, 9], ..good(from, to) }.build()),
    ),
    (
        DropReason::SourceRoute,
        "routing header of type 0",
        Crafted6(|from, to| extended(from, to, 43, &[&[UDP, 2, 0, 1, 0, 0, 0, 0], &[0; 16][..]].concat())),
    ),
    (
        DropReason::PingOfDeath,
        "a fragment at the very end",
        Crafted(|from, to| Packet { fragment: 0x1fff, ..good(from, to) }.build()),
    ),
    (
        DropReason::PingOfDeath,
        "an IPv6 fragment at the very end",
        Crafted6(|from, to| extended(from, to, 44, &[UDP, 0, 0xff, 0xf8, 0, 0, 0, 1])),
    ),
    (
        DropReason::BadVnetHeader,
        "a checksum that starts inside the IP header",
        Situation(Direction::Encap, |half| {
            let packet = Packet { options: vec![1; 4], ..good(here(Family::V4), there(Family::V4)) }.build();
            // NEEDS_CSUM, from byte 20, where the options are.
            let header = [&[1, 0][..], &[0; 4], &20u16.to_ne_bytes(), &6u16.to_ne_bytes()].concat();
            half.injector.send_with_vnet(&header.try_into().expect("ten bytes"), &packet)?;
            Ok(1)
        }),
    ),
    (
        DropReason::NoRoute,
        "an IPv4 address of nobody",
        Situation(Direction::Encap, |half| {
            half.injector.send(&good(here(Family::V4), ip("10.9.99.1")).build())?;
            Ok(1)
        }),
    ),
    (
        DropReason::NoRoute,
        "an IPv6 address of nobody",
        Situation(Direction::Encap, |half| {
            half.injector.send(&good(here(Family::V6), ip("fd09:0:0:99::1")).build())?;
            Ok(1)
        }),
    ),
    (
        DropReason::TooBig,
        "an IPv4 packet that may not be fragmented",
        Situation(Direction::Encap, |half| {
            let packet = Packet::udp(here(Family::V4), there(Family::V4), (7, 9), &[0x55; 1473 - 28]);
            half.injector.send(&Packet { fragment: DONT_FRAGMENT, ..packet }.build())?;
            Ok(1)
        }),
    ),
    (
        DropReason::TooBig,
        "an IPv6 packet",
        Situation(Direction::Encap, |half| {
            half.injector
                .send(&Packet::udp(here(Family::V6), there(Family::V6), (7, 9), &[0x55; 1473 - 48]).build())?;
            Ok(1)
        }),
    ),
    (
        DropReason::Recursion,
        "our own datagrams, routed into the tunnel",
        Situation(Direction::Encap, |half| {
            let peer = Family::V4.underlay(2);
            half.install(&[("192.0.2.0/24", peer)])?;
            half.injector.send(&Packet::udp(Family::V4.underlay(1), peer, (PORT, PORT), b"wrapped").build())?;
            Ok(1)
        }),
    ),
    (
        DropReason::UnderlayError,
        "no way to the peer",
        Situation(Direction::Encap, |half| {
            half.install(&[("10.9.4.0/24", ip("203.0.113.1"))])?;
            half.injector.send(&good(here(Family::V4), ip("10.9.4.1")).build())?;
            Ok(1)
        }),
    ),
    (
        DropReason::UnderlayError,
        "a prohibited way to the peer",
        Situation(Direction::Encap, |half| {
            half.install(&[("10.9.4.0/24", ip("203.0.113.1"))])?;
            let route = Route::unreachable("203.0.113.0/24".parse::<ipnet::IpNet>()?);
            half.host.node.netlink()?.add_route(&route)?;
            let before = half.dropped()?;
            half.injector.send(&good(here(Family::V4), ip("10.9.4.1")).build())?;
            half.has_dropped(before + 1)?;
            half.host.node.netlink()?.delete_route(&route)?;
            Ok(1)
        }),
    ),
    (DropReason::UnderlayBusy, "a full send buffer", Situation(Direction::Encap, busy::fill_send_buffer)),
    (
        DropReason::Truncated,
        "a datagram beyond the MTU by more than the room for it",
        Situation(Direction::Decap, |half| {
            let fits = Packet::udp(there(Family::V4), here(Family::V4), (7, 9), &[0x55; 1500 + 576 - 28]).build();
            half.send_as_peer(&fits.iter().copied().chain([0]).collect::<Vec<_>>())?;
            Ok(1)
        }),
    ),
    (
        DropReason::PeerUnknown,
        "another host of the underlay",
        Situation(Direction::Decap, |half| {
            half.peer.address("u0", "192.0.2.66/24")?;
            let stranger = half.peer.run(|| UdpSocket::bind(("192.0.2.66", PORT)))?;
            stranger.send_to(&good(there(Family::V4), here(Family::V4)).build(), half.host.address)?;
            Ok(1)
        }),
    ),
    (
        DropReason::PeerSpoof,
        "the host's own address",
        Situation(Direction::Decap, |half| {
            half.send_as_peer(&good(here(Family::V4), ip("10.9.1.77")).build())?;
            Ok(1)
        }),
    ),
    (
        DropReason::PeerSpoof,
        "an IPv6 address that is not the peer's",
        Situation(Direction::Decap, |half| {
            half.send_as_peer(&good(ip("2001:db8:99::1"), here(Family::V6)).build())?;
            Ok(1)
        }),
    ),
    (
        DropReason::TunError,
        "the TUN is down",
        Situation(Direction::Decap, |half| {
            let index = half.host.node.link(TUN)?.index;
            half.host.node.netlink()?.set_down(index)?;
            let before = half.dropped()?;
            half.send_as_peer(&good(there(Family::V4), here(Family::V4)).build())?;
            half.has_dropped(before + 1)?;
            half.host.node.netlink()?.set_up(index)?;
            half.host.node.wait_running(TUN)?;
            Ok(1)
        }),
    ),
];
