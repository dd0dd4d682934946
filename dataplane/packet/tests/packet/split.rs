use crate::support::{ACK, CWR, FIN, Flow, PSH, any_flow, assert_intact, naive_fold, naive_sum, payload, split};
use proptest::prelude::*;
use weft_packet::gso::{Split, finish_checksum};
use weft_packet::vnet::{GsoKind, VnetHeader};
use weft_packet::{DropReason, ip};

/// Each segment built from nothing, by etherparse.
fn expected(flow: &Flow, bytes: &[u8], gso_size: usize) -> Vec<Vec<u8>> {
    let count = bytes.chunks(gso_size).count();
    bytes
        .chunks(gso_size)
        .enumerate()
        .map(|(index, chunk)| {
            let mut segment = flow.segment(index, gso_size);
            if index > 0 {
                segment.flags &= !CWR;
            }
            if index + 1 < count {
                segment.flags &= !(FIN | PSH);
            }
            segment.build(chunk)
        })
        .collect()
}

proptest! {
    #[test]
    fn segments_equal_packets_built_one_by_one(
        flow in any_flow(), flags: u8, ip_options in 0usize..=10, len in 1usize..5000, gso_size in 1u16..3000, hdr_len: u16,
    ) {
        let mut flow = Flow { flags, ..flow };
        if !flow.is_v6 {
            flow.ip_options = vec![1; ip_options * 4];
        }
        let bytes = payload(len);
        let (mut vnet, packet) = flow.build_super(&bytes, gso_size);
        vnet.hdr_len = hdr_len;
        let segments = split(&vnet, &packet);
        segments.iter().for_each(|segment| assert_intact(segment));
        prop_assert_eq!(segments, expected(&flow, &bytes, usize::from(gso_size)));
    }
}

#[test]
fn a_full_super_packet_splits_into_intact_segments() {
    for (is_v6, is_udp) in [(false, false), (false, true), (true, false), (true, true)] {
        let flow = Flow { flags: ACK | PSH | FIN | CWR, ..Flow::new(is_v6, is_udp) };
        let bytes = payload(65_535 - flow.header_len());
        let (vnet, packet) = flow.build_super(&bytes, 1400);
        assert_eq!(split(&vnet, &packet), expected(&flow, &bytes, 1400));
    }
}

#[test]
fn lengths_and_count_are_those_of_the_segments() {
    for (len, count, segment_len) in [(0, 1, 28), (1, 1, 29), (100, 1, 128), (101, 2, 128), (300, 3, 128)] {
        let (vnet, packet) = Flow::new(false, true).build_super(&payload(len), 100);
        let split = Split::new(&vnet, &ip::check(&packet).unwrap(), &packet).unwrap();
        assert_eq!((split.header_len(), split.count(), split.segment_len()), (28, count, segment_len), "{len}");
    }
}

#[test]
fn trailing_bytes_are_in_no_segment() {
    let (vnet, mut packet) = Flow::new(true, false).build_super(&payload(250), 100);
    let clean = split(&vnet, &packet);
    packet.extend_from_slice(b"canary");
    assert_eq!(split(&vnet, &packet), clean);
}

#[test]
fn a_udp_checksum_of_zero_becomes_ffff() {
    let flow = Flow::new(false, true);
    let mut bytes = payload(8);
    let sum = |bytes: &[u8]| {
        let (vnet, packet) = flow.build_super(bytes, 8);
        u16::from_be_bytes(split(&vnet, &packet)[0][26..28].try_into().unwrap())
    };
    bytes[..2].fill(0);
    let checksum = sum(&bytes);
    bytes[..2].copy_from_slice(&checksum.to_be_bytes());
    assert_eq!(sum(&bytes), 0xffff);
}

#[test]
fn a_contradicting_virtio_net_header_is_refused() {
    let flow = Flow::new(false, false);
    let (good, packet) = flow.build_super(&payload(3000), 1000);
    let inner = ip::check(&packet).unwrap();
    assert!(Split::new(&good, &inner, &packet).is_ok());
    let bad = [
        ("no super-packet", VnetHeader { gso: GsoKind::None, ..good }),
        ("wrong version", VnetHeader { gso: GsoKind::Tcp6, ..good }),
        ("wrong protocol", VnetHeader { gso: GsoKind::UdpL4, ..good }),
        ("no segment size", VnetHeader { gso_size: 0, ..good }),
        ("complete checksum", VnetHeader { needs_csum: false, ..good }),
        ("csum_start in the IP header", VnetHeader { csum_start: 16, ..good }),
        ("csum_start beyond", VnetHeader { csum_start: u16::MAX, ..good }),
        ("csum_offset of UDP", VnetHeader { csum_offset: 6, ..good }),
    ];
    for (name, vnet) in bad {
        assert_eq!(Split::new(&vnet, &inner, &packet).err(), Some(DropReason::BadVnetHeader), "{name}");
    }
    for data_offset in [0x00, 0x40, 0xf0] {
        let mut packet = flow.build(&[]);
        packet[32] = data_offset;
        let inner = ip::check(&packet).unwrap();
        assert!(Split::new(&good, &inner, &packet).is_err(), "data offset {data_offset:#x}");
    }
    let fragment = ip::Inner { fragmentation: ip::Fragmentation::First, ..inner };
    assert!(Split::new(&good, &fragment, &packet).is_err());
}

#[test]
fn virtio_net_headers_round_trip_and_unknown_kinds_are_refused() {
    for kind in 0..=255u8 {
        let bytes: Vec<u8> = [1, kind].into_iter().chain(1..=8).collect();
        match VnetHeader::parse(&bytes) {
            Ok(header) => assert_eq!(header.emit(), *bytes),
            Err(reason) => {
                assert_eq!(reason, DropReason::BadVnetHeader);
                assert!(![0, 1, 4, 5, 0x81, 0x84].contains(&kind), "kind {kind:#x}");
            }
        }
        assert!(VnetHeader::parse(&bytes[..9]).is_err());
    }
    assert_eq!(VnetHeader::PLAIN.emit(), [0; 10]);
}

#[test]
fn a_partial_checksum_is_finished_in_place() {
    for (is_v6, is_udp) in [(false, false), (false, true), (true, false), (true, true)] {
        let flow = Flow::new(is_v6, is_udp);
        for len in [0, 1, 1399, 1400] {
            let (vnet, mut packet) = flow.build_super(&payload(len), 0);
            let vnet = VnetHeader { gso: GsoKind::None, ..vnet };
            packet.extend_from_slice(b"trailing");
            let inner = ip::check(&packet).unwrap();
            finish_checksum(&vnet, &inner, &mut packet).unwrap();
            assert_eq!(packet[..usize::from(inner.total_len)], flow.build(&payload(len)));
        }
    }
}

#[test]
fn a_checksum_field_outside_the_transport_is_refused_and_changes_nothing() {
    let (vnet, mut packet) = Flow::new(false, true).build_super(&payload(10), 0);
    let inner = ip::check(&packet).unwrap();
    let original = packet.clone();
    for (csum_start, csum_offset, is_ok) in
        [(19, 6, false), (20, 17, false), (38, 0, false), (37, 0, false), (u16::MAX, u16::MAX, false), (36, 0, true)]
    {
        let vnet = VnetHeader { gso: GsoKind::None, csum_start, csum_offset, ..vnet };
        assert_eq!(finish_checksum(&vnet, &inner, &mut packet).is_ok(), is_ok, "{csum_start}+{csum_offset}");
        assert_eq!(packet == original, !is_ok);
    }
    let expected = !naive_fold(naive_sum(&original[36..38]));
    assert_eq!(packet[36..38], expected.to_be_bytes());
    assert!(finish_checksum(&VnetHeader::PLAIN, &inner, &mut packet).is_ok());
}
