use crate::support::{Flow, naive_fold, naive_sum, payload, pseudo_sum, seal};
use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, NetHeaders, PacketHeaders, TransportHeader, icmpv4, icmpv6,
};
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use weft_packet::icmp::{ERROR_LEN_MAX, IcmpError, error};
use weft_packet::ip;

const OWN4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 9, 0));
const OWN6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9));

fn own(is_v6: bool) -> IpAddr {
    if is_v6 { OWN6 } else { OWN4 }
}

fn answer(kind: IcmpError, offender: &[u8]) -> Option<Vec<u8>> {
    let mut out = [0xaa; ERROR_LEN_MAX];
    let len = error(kind, own(offender[0] >> 4 == 6), offender, &ip::check(offender).unwrap(), &mut out)?;
    Some(out[..len].to_vec())
}

proptest! {
    #[test]
    fn errors_decode_as_what_they_are(is_v6: bool, is_udp: bool, len in 0usize..3000, mtu: u16, trailing in 0usize..4) {
        let flow = Flow::new(is_v6, is_udp);
        let mut offender = flow.build(&payload(len));
        let whole = offender.len();
        offender.resize(whole + trailing, 0xee);
        let kinds = [
            (IcmpError::TimeExceeded,
                Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit),
                Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded)),
            (IcmpError::NetUnreachable,
                Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Network),
                Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::NoRoute)),
            (IcmpError::TooBig { mtu },
                Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu }),
                Icmpv6Type::PacketTooBig { mtu: u32::from(mtu) }),
        ];
        for (kind, type4, type6) in kinds {
            let packet = answer(kind, &offender).unwrap();
            prop_assert!(ip::check(&packet).is_ok());
            let headers = PacketHeaders::from_ip_slice(&packet).unwrap();
            let limit = if is_v6 { 1280 } else { 576 };
            prop_assert_eq!(packet.len(), limit.min(whole + flow.ip_len() + 8));
            prop_assert_eq!(headers.payload.slice(), &offender[..packet.len() - flow.ip_len() - 8]);
            let (source, destination) = match headers.net.unwrap() {
                NetHeaders::Ipv4(ip, _) => {
                    prop_assert_eq!((ip.time_to_live, ip.identification, ip.dont_fragment), (64, 0, true));
                    prop_assert_eq!((ip.dscp.value() << 2) | ip.ecn.value(), 0xc0);
                    prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                    (IpAddr::from(ip.source), u128::from(u32::from_be_bytes(ip.destination)))
                }
                NetHeaders::Ipv6(ip, _) => {
                    prop_assert_eq!((ip.hop_limit, ip.traffic_class), (64, 0xc0));
                    (IpAddr::from(ip.source), u128::from_be_bytes(ip.destination))
                }
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(source, own(is_v6));
            prop_assert_eq!(destination, if is_v6 { flow.source } else { u128::from(flow.source as u32) });
            let pseudo = if is_v6 { pseudo_sum(&packet, 40) } else { 0 };
            prop_assert_eq!(naive_fold(naive_sum(&packet[flow.ip_len()..]) + pseudo), 0xffff);
            match headers.transport.unwrap() {
                TransportHeader::Icmpv4(Icmpv4Header { icmp_type, .. }) => prop_assert_eq!(icmp_type, type4),
                TransportHeader::Icmpv6(Icmpv6Header { icmp_type, .. }) => prop_assert_eq!(icmp_type, type6),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}

/// An ICMP or ICMPv6 packet of this type.
fn icmp(is_v6: bool, icmp_type: u8) -> Vec<u8> {
    let mut packet = Flow::new(is_v6, true).build(&[0; 8]);
    let (protocol_at, protocol, l4_offset) = if is_v6 { (6, 58, 40) } else { (9, 1, 20) };
    packet[protocol_at] = protocol;
    seal(&mut packet);
    packet[l4_offset] = icmp_type;
    packet
}

#[test]
fn icmp_errors_and_redirects_draw_no_error_and_the_rest_do() {
    for icmp_type in 0..=255 {
        let is_answered = answer(IcmpError::TimeExceeded, &icmp(false, icmp_type)).is_some();
        assert_eq!(is_answered, ![3, 4, 5, 11, 12].contains(&icmp_type), "ICMP type {icmp_type}");
        let is_answered = answer(IcmpError::TimeExceeded, &icmp(true, icmp_type)).is_some();
        assert_eq!(is_answered, icmp_type >= 128 && icmp_type != 137, "ICMPv6 type {icmp_type}");
    }
}

#[test]
fn packets_that_may_not_be_answered_are_not() {
    let v4 = Flow { dont_fragment: false, ..Flow::new(false, true) };
    let v6 = Flow::new(true, true);
    let to = |destination: u128| Flow { destination, ..v4.clone() }.build(b"x");
    let from = |source: u128| Flow { source, ..v4.clone() }.build(b"x");
    let fragment = |field: u16| {
        let mut packet = v4.build(b"x");
        packet[6..8].copy_from_slice(&field.to_be_bytes());
        seal(&mut packet);
        packet
    };
    let mut no_type = icmp(false, 8);
    no_type.truncate(20);
    no_type[3] = 20;
    no_type[10..12].fill(0);
    let sum = !naive_fold(naive_sum(&no_type));
    no_type[10..12].copy_from_slice(&sum.to_be_bytes());
    let table = [
        ("ordinary", v4.build(b"x"), true),
        ("first fragment", fragment(0x2000), true),
        ("later fragment", fragment(0x0001), false),
        ("to multicast", to(0xe000_0001), false),
        ("to broadcast", to(0xffff_ffff), false),
        ("to loopback", to(0x7f00_0001), false),
        ("from 0.0.0.0", from(0), false),
        ("from loopback", from(0x7f00_0001), false),
        ("from multicast", from(0xe000_0001), false),
        ("from class E", from(0xf000_0001), false),
        ("from broadcast", from(0xffff_ffff), false),
        ("IPv6", v6.build(b"x"), true),
        ("IPv6 from ::", Flow { source: 0, ..v6.clone() }.build(b"x"), false),
        ("IPv6 to multicast", Flow { destination: 0xff02 << 112 | 1, ..v6.clone() }.build(b"x"), false),
        ("ICMP without a type", no_type, false),
    ];
    for (name, packet, expected) in table {
        for kind in [IcmpError::TimeExceeded, IcmpError::NetUnreachable, IcmpError::TooBig { mtu: 1400 }] {
            assert_eq!(answer(kind, &packet).is_some(), expected, "{name}, {kind:?}");
        }
    }
}

#[test]
fn families_must_match_and_the_buffer_must_be_long_enough() {
    for is_v6 in [false, true] {
        let offender = Flow::new(is_v6, true).build(b"x");
        let inner = ip::check(&offender).unwrap();
        let mut out = [0; ERROR_LEN_MAX];
        let mut len =
            |source, out_len: usize| error(IcmpError::TimeExceeded, source, &offender, &inner, &mut out[..out_len]);
        assert_eq!(len(own(!is_v6), ERROR_LEN_MAX), None);
        assert_eq!(len(own(is_v6), ERROR_LEN_MAX - 1), None);
        assert!(len(own(is_v6), ERROR_LEN_MAX).is_some());
    }
}

#[test]
fn the_first_header_of_a_super_packet_is_quoted_alone() {
    let flow = Flow::new(false, false);
    let (_, packet) = flow.build_super(&payload(5000), 1000);
    let mut out = [0; ERROR_LEN_MAX];
    let header = &packet[..flow.header_len()];
    let len = error(IcmpError::TooBig { mtu: 900 }, OWN4, header, &ip::check(&packet).unwrap(), &mut out);
    assert_eq!(len, Some(28 + header.len()));
    assert_eq!(out[28..28 + header.len()], *header);
}
