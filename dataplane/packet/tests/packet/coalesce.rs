use crate::support::{ACK, Flow, PSH, any_flow, assert_intact, coalesce, payload, seal, split};
use proptest::prelude::*;
use weft_packet::gro::{Run, candidate, flow_key};
use weft_packet::ip;
use weft_packet::vnet::{GsoKind, VnetHeader};

const KINDS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

/// In-order segments of `step` payload bytes, the last perhaps shorter and with PSH.
fn stream(flow: &Flow, bytes: &[u8], step: usize, is_psh: bool) -> Vec<Vec<u8>> {
    let count = bytes.chunks(step).count();
    let chunks = bytes.chunks(step).enumerate();
    chunks
        .map(|(index, chunk)| {
            let mut segment = flow.segment(index, step);
            if is_psh && index + 1 == count {
                segment.flags |= PSH;
            }
            segment.build(chunk)
        })
        .collect()
}

proptest! {
    #[test]
    fn coalesce_then_split_is_identity(flow in any_flow(), is_psh: bool, len in 1usize..9000, step in 1usize..3000) {
        let packets = stream(&flow, &payload(len), step, is_psh);
        let merged = coalesce(&packets);
        prop_assert_eq!(merged.len(), 1);
        let (vnet, packet) = &merged[0];
        if packets.len() == 1 {
            prop_assert_eq!(*vnet, VnetHeader::PLAIN);
            prop_assert_eq!(packet, &packets[0]);
        } else {
            let inner = ip::check(packet).unwrap();
            prop_assert_eq!(usize::from(inner.total_len), packet.len());
            prop_assert_eq!(usize::from(vnet.hdr_len), flow.header_len());
            prop_assert_eq!(usize::from(vnet.gso_size), step);
            prop_assert_eq!(split(vnet, packet), packets);
        }
    }

    #[test]
    fn split_then_coalesce_is_identity(flow in any_flow(), is_psh: bool, segments in 2usize..40, step in 1u16..1500, cut in 0u16..1499) {
        let flow = Flow { flags: if is_psh { ACK | PSH } else { ACK }, ..flow };
        let len = segments * usize::from(step) - usize::from(cut % step);
        let (vnet, packet) = flow.build_super(&payload(len), step);
        prop_assert_eq!(coalesce(&split(&vnet, &packet)), vec![(vnet, packet)]);
    }

    #[test]
    fn mixed_packets_come_out_as_they_went_in(
        flow in any_flow(), cuts in prop::collection::vec((1usize..2000, prop::bool::weighted(0.2), prop::bool::weighted(0.1)), 1..40),
    ) {
        let mut flow = flow;
        let packets: Vec<_> = cuts
            .iter()
            .map(|&(len, is_psh, is_jump)| {
                flow.flags = if is_psh { ACK | PSH } else { ACK };
                flow.seq = flow.seq.wrapping_add(u32::from(is_jump));
                let packet = flow.build(&payload(len));
                flow.seq = flow.seq.wrapping_add(len as u32);
                flow.id = flow.id.wrapping_add(1);
                packet
            })
            .collect();
        let apart: Vec<_> = coalesce(&packets)
            .into_iter()
            .flat_map(|(vnet, packet)| if vnet.gso == GsoKind::None { vec![packet] } else { split(&vnet, &packet) })
            .collect();
        prop_assert_eq!(apart, packets);
    }

    #[test]
    fn equal_flows_have_equal_keys_and_hashes(a in any_flow(), b in any_flow()) {
        let key = |flow: &Flow| {
            let packet = flow.build(b"x");
            flow_key(&packet, &ip::check(&packet).unwrap()).unwrap()
        };
        let again = Flow { seq: 1, ack: 2, window: 3, id: 4, ttl: 5, traffic_class: 6, ..a.clone() };
        prop_assert_eq!(key(&a), key(&again));
        prop_assert_eq!(key(&a).hash(), key(&again).hash());
        let identity = |flow: &Flow| (flow.is_v6, flow.is_udp, flow.source, flow.destination, flow.ports);
        prop_assert_eq!(key(&a) == key(&b), identity(&a) == identity(&b));
    }
}

#[test]
fn ids_are_given_out_anew_and_nothing_else_changes() {
    let flow = Flow::new(false, false);
    let packets: Vec<_> = (0..4).map(|i| Flow { id: 7, ..flow.segment(i, 1000) }.build(&payload(1000))).collect();
    let merged = coalesce(&packets);
    assert_eq!(merged.len(), 1);
    for (i, (segment, mut original)) in split(&merged[0].0, &merged[0].1).into_iter().zip(packets).enumerate() {
        assert_intact(&segment);
        original[4..6].copy_from_slice(&(7 + i as u16).to_be_bytes());
        seal(&mut original);
        assert_eq!(segment, original);
    }
}

/// Which single header bits of the second packet may differ from what the first promises.
#[test]
fn every_header_bit_but_id_and_psh_keeps_packets_apart() {
    for (is_v6, is_udp) in KINDS {
        let flow = Flow::new(is_v6, is_udp);
        let head = flow.build(&payload(100));
        let next = flow.segment(1, 100).build(&payload(100));
        let head_candidate = candidate(&head, &ip::check(&head).unwrap()).unwrap();
        for bit in 0..flow.header_len() * 8 {
            let (byte, mask) = (bit / 8, 0x80 >> (bit % 8));
            let mut packet = next.clone();
            packet[byte] ^= mask;
            seal(&mut packet);
            let Ok(inner) = ip::check(&packet) else { continue };
            let Some(candidate) = candidate(&packet, &inner) else { continue };
            let is_id = !is_v6 && (4..6).contains(&byte);
            let is_psh = !is_udp && byte == flow.ip_len() + 13 && mask == PSH;
            // Sealing repairs a flipped checksum.
            let at = flow.ip_len() + if is_udp { 6 } else { 16 };
            let is_sum = (at..at + 2).contains(&byte) || !is_v6 && (10..12).contains(&byte);
            let joined = Run::start(&head_candidate).append(&head, &candidate, &packet);
            assert_eq!(joined, is_id || is_psh || is_sum, "v6 {is_v6} udp {is_udp} byte {byte} mask {mask:#x}");
        }
    }
}

#[test]
fn a_corrupt_packet_is_never_merged() {
    for (is_v6, is_udp) in KINDS {
        let flow = Flow::new(is_v6, is_udp);
        let packets = stream(&flow, &payload(300), 100, false);
        for victim in 0..packets.len() {
            for byte in flow.ip_len()..packets[0].len() {
                let mut packets = packets.clone();
                packets[victim][byte] ^= 0x10;
                for (vnet, packet) in coalesce(&packets) {
                    if vnet.gso != GsoKind::None {
                        split(&vnet, &packet).iter().for_each(|segment| assert!(packets.contains(segment)));
                        assert!(split(&vnet, &packet).iter().all(|segment| *segment != packets[victim]));
                    }
                }
            }
        }
    }
}

#[test]
fn psh_and_short_segments_close_a_chain_and_longer_ones_never_join() {
    for is_v6 in [false, true] {
        // Payload lengths, which of them carries PSH, and how many packets each chain then has.
        let table: [(&[usize], Option<usize>, &[usize]); 6] = [
            (&[100, 100, 100], None, &[3]),
            (&[100, 100, 100], Some(1), &[2, 1]),
            (&[100, 100, 100], Some(0), &[1, 2]),
            (&[100, 50, 50], None, &[2, 1]),
            (&[50, 100, 100], None, &[1, 2]),
            (&[100, 100, 1, 100], None, &[3, 1]),
        ];
        for (lens, psh, counts) in table {
            let mut flow = Flow::new(is_v6, false);
            let mut packets = Vec::new();
            for (index, &len) in lens.iter().enumerate() {
                flow.flags = if psh == Some(index) { ACK | PSH } else { ACK };
                packets.push(flow.build(&payload(len)));
                flow.seq = flow.seq.wrapping_add(len as u32);
            }
            let merged = coalesce(&packets);
            let found: Vec<_> = merged
                .iter()
                .map(|(vnet, packet)| if vnet.gso == GsoKind::None { 1 } else { split(vnet, packet).len() })
                .collect();
            assert_eq!(found, counts, "{lens:?} {psh:?}");
        }
    }
}

#[test]
fn a_chain_ends_before_65535_bytes() {
    for (is_v6, is_udp) in KINDS {
        let flow = Flow::new(is_v6, is_udp);
        let packets: Vec<_> = (0..60).map(|i| flow.segment(i, 1400).build(&payload(1400))).collect();
        let merged = coalesce(&packets);
        assert_eq!(merged.len(), 2);
        assert!(merged.iter().all(|(_, packet)| packet.len() <= 65_535));
        assert_eq!((65_535 - flow.header_len()) / 1400, split(&merged[0].0, &merged[0].1).len());
    }
}

#[test]
fn packets_that_must_not_coalesce_are_no_candidates() {
    let tcp = Flow::new(false, false);
    let udp = Flow::new(false, true);
    let is_candidate = |packet: &[u8]| candidate(packet, &ip::check(packet).unwrap()).is_some();
    assert!(is_candidate(&tcp.build(b"x")) && is_candidate(&udp.build(b"x")));
    assert!(!is_candidate(&tcp.build(b"")) && !is_candidate(&udp.build(b"")));
    for flags in 0..=255 {
        assert_eq!(is_candidate(&Flow { flags, ..tcp.clone() }.build(b"x")), flags & !PSH == ACK, "{flags:#x}");
    }
    for (port, expected) in [(4789, false), (8472, false), (6081, false), (53, true)] {
        assert_eq!(is_candidate(&Flow { ports: (1, port), ..udp.clone() }.build(b"x")), expected, "port {port}");
    }
    assert!(!is_candidate(&Flow { ip_options: vec![1; 4], ..tcp.clone() }.build(b"x")));
    // Byte and new value: MF, fragment offset, AE, data offset, UDP length, no UDP checksum.
    for (flow, byte, value) in [(&tcp, 6, 0x20), (&tcp, 7, 1), (&tcp, 32, 0x81), (&tcp, 32, 0x40), (&udp, 25, 8)] {
        let mut packet = flow.build(b"xy");
        packet[byte] = value;
        seal(&mut packet);
        assert!(!is_candidate(&packet), "byte {byte} = {value:#x}");
    }
    let mut unsummed = udp.build(b"xy");
    unsummed[26..28].fill(0);
    assert!(!is_candidate(&unsummed));
}

#[test]
fn later_fragments_and_other_protocols_have_no_flow() {
    let mut packet = Flow { dont_fragment: false, ..Flow::new(false, true) }.build(b"xy");
    let has_flow = |packet: &[u8]| flow_key(packet, &ip::check(packet).unwrap()).is_some();
    assert!(has_flow(&packet));
    for (byte, value, expected) in [(6, 0x20, true), (7, 1, false), (7, 0, true), (9, 1, false)] {
        packet[byte] = value;
        seal(&mut packet);
        assert_eq!(has_flow(&packet), expected, "byte {byte} = {value:#x}");
    }
}
