//! No public function panics on any bytes.

use crate::support::{Flow, any_flow, payload};
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};
use weft_packet::fragment::{Fragments, HEADER_LEN_MAX};
use weft_packet::gro::{Run, candidate, flow_key};
use weft_packet::gso::{Split, finish_checksum};
use weft_packet::icmp::{ERROR_LEN_MAX, IcmpError, error};
use weft_packet::vnet::VnetHeader;
use weft_packet::{DropReason, checksum, ip, martian};

/// Calls everything on `packet` behind `header`, and `other` as the packet that might join it.
fn exercise(header: &[u8], packet: &[u8], other: &[u8], mtu: usize) {
    checksum::sum(packet, u64::MAX);
    let Ok(inner) = ip::check(packet) else { return };
    assert!(inner.l4_offset <= inner.total_len && usize::from(inner.total_len) <= packet.len());
    let _ = martian::check(packet, &inner);
    flow_key(packet, &inner).map(|key| key.hash());
    checksum::pseudo(packet, &inner, packet.len());

    let mut out = [0; ERROR_LEN_MAX];
    for source in [Ipv4Addr::new(10, 0, 0, 1).into(), Ipv6Addr::LOCALHOST.into()] {
        if let Some(len) = error(IcmpError::TooBig { mtu: mtu as u16 }, source, packet, &inner, &mut out) {
            assert!(ip::check(&out[..len]).is_ok());
        }
    }
    if let Ok(fragments) = Fragments::new(&inner, packet, mtu) {
        for index in 0..fragments.count() {
            fragments.fragment(index, packet, &mut [0; HEADER_LEN_MAX]);
        }
    }
    if let Ok(vnet) = VnetHeader::parse(header) {
        let _ = finish_checksum(&vnet, &inner, &mut packet.to_vec());
        if let Ok(split) = Split::new(&vnet, &inner, packet) {
            let mut segment = vec![0; split.header_len()];
            for index in 0..split.count() {
                assert!(split.header(index, packet, &mut segment).end <= packet.len());
            }
            let lens = (0..split.count()).map(|index| split.len_of(index));
            split.segments(0..split.count(), packet, &mut vec![0; lens.sum()]);
        }
    }
    if let (Some(head), Ok(other_inner)) = (candidate(packet, &inner), ip::check(other)) {
        let mut run = Run::start(&head);
        if let Some(next) = candidate(other, &other_inner) {
            run.append(packet, &next, other);
        }
        run.finish(&mut packet.to_vec());
    }
    let mut packet = packet.to_vec();
    match ip::decrement_ttl(&mut packet, &inner) {
        Ok(()) => assert_eq!(ip::check(&packet).unwrap().ttl, inner.ttl - 1),
        Err(reason) => assert_eq!(reason, DropReason::TtlExceeded),
    }
}

/// A virtio-net header that is plausible now and then.
fn any_vnet() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![any::<u8>(), Just(1), Just(4), Just(5)];
    let start = prop_oneof![any::<u16>(), Just(20), Just(40)];
    let offset = prop_oneof![any::<u16>(), Just(6), Just(16)];
    (any::<u8>(), kind, any::<u16>(), any::<u16>(), start, offset).prop_map(
        |(flags, kind, hdr_len, size, start, offset)| {
            let fields = [hdr_len, size, start, offset].map(u16::to_ne_bytes);
            [&[flags, kind], fields.as_flattened()].concat()
        },
    )
}

/// Bytes that begin like an IP packet: version, a plausible length, and a right header checksum where there is one.
fn ip_like() -> impl Strategy<Value = Vec<u8>> {
    (prop::collection::vec(any::<u8>(), 40..400), any::<bool>(), any::<bool>()).prop_map(
        |(mut bytes, is_v6, is_plain)| {
            let len = bytes.len();
            bytes[0] = if is_v6 { 0x60 } else { 0x40 | if is_plain { 5 } else { bytes[0] & 15 } };
            let at = if is_v6 { 4 } else { 2 };
            bytes[at..at + 2].copy_from_slice(&((len - if is_v6 { 40 } else { 0 }) as u16).to_be_bytes());
            let kinds = [0, 6, 17, 43, 44, 58, 60, 1];
            let at = if is_v6 { 6 } else { 9 };
            bytes[at] = kinds[usize::from(bytes[at]) % kinds.len()];
            if is_plain && !is_v6 {
                bytes[6..8].fill(0);
            }
            crate::support::seal(&mut bytes);
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn any_bytes_are_handled(
        header in prop::collection::vec(any::<u8>(), 0..16), packet in prop::collection::vec(any::<u8>(), 0..200),
        other in prop::collection::vec(any::<u8>(), 0..200), mtu in 0usize..2000,
    ) {
        exercise(&header, &packet, &other, mtu);
    }

    #[test]
    fn any_bytes_that_begin_like_a_packet_are_handled(header in any_vnet(), packet in ip_like(), other in ip_like(), mtu in 0usize..200) {
        exercise(&header, &packet, &other, mtu);
    }

    #[test]
    fn any_mutation_of_a_good_packet_is_handled(
        flow in any_flow(), header in any_vnet(), changes in prop::collection::vec((0usize..80, any::<u8>()), 0..4), len in 0usize..300,
    ) {
        let mut packet = flow.build(&payload(len));
        let next = flow.segment(1, len).build(&payload(len));
        for (at, value) in changes {
            if let Some(byte) = packet.get_mut(at) {
                *byte = value;
            }
        }
        crate::support::seal(&mut packet);
        exercise(&header, &packet, &next, 68);
        exercise(&header, &next, &packet, 68);
    }

    #[test]
    fn any_description_of_any_bytes_is_handled(packet in prop::collection::vec(any::<u8>(), 0..200), facts in any::<[u8; 8]>(), header in any_vnet()) {
        let inner = ip::Inner {
            version: if facts[0] & 1 == 0 { ip::Version::V4 } else { ip::Version::V6 },
            l4_offset: u16::from(facts[1]),
            total_len: u16::from(facts[2]),
            protocol: [6, 17, 1, 58][usize::from(facts[3] % 4)],
            ttl: 64,
            fragmentation: ip::Fragmentation::Whole,
            dont_fragment: false,
        };
        let _ = martian::check(&packet, &inner);
        let _ = (candidate(&packet, &inner), flow_key(&packet, &inner));
        let vnet = VnetHeader::parse(&header);
        if let Ok(vnet) = vnet {
            let _ = Split::new(&vnet, &inner, &packet);
            let _ = finish_checksum(&vnet, &inner, &mut packet.clone());
        }
        error(IcmpError::TimeExceeded, Ipv4Addr::new(10, 0, 0, 1).into(), &packet, &inner, &mut [0; ERROR_LEN_MAX]);
        let _ = ip::decrement_ttl(&mut packet.clone(), &inner);
        let _ = Fragments::new(&inner, &packet, usize::from(facts[4]));
    }
}

#[test]
fn every_prefix_of_a_good_packet_is_handled() {
    for (is_v6, is_udp) in [(false, false), (false, true), (true, false), (true, true)] {
        let packet = Flow::new(is_v6, is_udp).build(&payload(30));
        for len in 0..packet.len() {
            exercise(&[0; 10], &packet[..len], &packet, 68);
            assert!(ip::check(&packet[..len]).is_err());
        }
    }
}
