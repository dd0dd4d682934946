use crate::support::{Flow, payload, seal};
use proptest::prelude::*;
use weft_packet::fragment::{Fragments, HEADER_LEN_MAX};
use weft_packet::{DropReason, ip};

fn fragments(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let fragments = Fragments::new(&ip::check(packet).unwrap(), packet, mtu).unwrap();
    (0..fragments.count())
        .map(|index| {
            let mut header = [0xaa; HEADER_LEN_MAX];
            let (header_len, payload) = fragments.fragment(index, packet, &mut header);
            [&header[..header_len], &packet[payload]].concat()
        })
        .collect()
}

fn field(packet: &[u8]) -> (usize, bool) {
    let field = u16::from_be_bytes([packet[6], packet[7]]);
    (usize::from(field & 0x1fff) * 8, field & 0x2000 != 0)
}

/// A receiver's reassembly in its simplest form: the first header, all payloads at their offsets, no gap.
fn reassemble(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut packet = fragments[0].clone();
    let (mut offset, header_len) = (field(&fragments[0]).0, usize::from(packet[0] & 15) * 4);
    for fragment in &fragments[1..] {
        offset += packet.len() - header_len - (offset - field(&fragments[0]).0);
        assert_eq!(field(fragment).0, offset);
        packet.extend_from_slice(&fragment[usize::from(fragment[0] & 15) * 4..]);
    }
    let total_len = packet.len() as u16;
    packet[2..4].copy_from_slice(&total_len.to_be_bytes());
    let more = field(fragments.last().unwrap()).1;
    packet[6] = packet[6] & !0x20 | u8::from(more) << 5;
    let transport = packet[header_len..].to_vec();
    seal(&mut packet);
    packet[header_len..].copy_from_slice(&transport);
    packet
}

proptest! {
    #[test]
    fn fragments_fit_and_reassemble_to_the_original(
        len in 0usize..6000, mtu in 68usize..3000, options in 0usize..=10, start in 0u16..100, is_more: bool,
    ) {
        let flow = Flow { dont_fragment: false, ip_options: vec![1; options * 4], ..Flow::new(false, true) };
        let mut packet = flow.build(&payload(len));
        packet[6..8].copy_from_slice(&(start | u16::from(is_more) << 13).to_be_bytes());
        let transport = packet[flow.ip_len()..].to_vec();
        seal(&mut packet);
        packet[flow.ip_len()..].copy_from_slice(&transport);

        let pieces = fragments(&packet, mtu);
        for (index, piece) in pieces.iter().enumerate() {
            prop_assert!(piece.len() <= mtu);
            let inner = ip::check(piece).unwrap();
            prop_assert_eq!(usize::from(inner.total_len), piece.len());
            prop_assert_eq!(&piece[4..6], &packet[4..6]);
            let is_last = index + 1 == pieces.len();
            prop_assert_eq!(field(piece).1, !is_last || is_more);
            prop_assert!(is_last || (piece.len() - usize::from(inner.l4_offset)) % 8 == 0);
        }
        prop_assert_eq!(reassemble(&pieces), packet);
    }

    #[test]
    fn fragmenting_twice_is_fragmenting_once(len in 2000usize..5000, first in 600usize..1500, second in 68usize..600) {
        let packet = Flow { dont_fragment: false, ..Flow::new(false, true) }.build(&payload(len));
        let pieces: Vec<_> = fragments(&packet, first).iter().flat_map(|piece| fragments(piece, second)).collect();
        prop_assert_eq!(reassemble(&pieces), packet);
    }
}

#[test]
fn later_fragments_carry_only_options_with_the_copy_flag() {
    // Record route (7) is not copied, router alert (148) and security (130) are.
    let options = [7, 7, 4, 0, 0, 0, 0, 1, 148, 4, 0, 0, 130, 3, 9, 0];
    let flow = Flow { dont_fragment: false, ip_options: options.to_vec(), ..Flow::new(false, true) };
    let pieces = fragments(&flow.build(&payload(500)), 200);
    assert_eq!(pieces[0][20..36], options);
    for piece in &pieces[1..] {
        assert_eq!(piece[0], 0x47);
        assert_eq!(piece[20..28], [148, 4, 0, 0, 130, 3, 9, 0]);
    }
}

#[test]
fn what_may_not_be_fragmented_is_too_big() {
    let flow = Flow { dont_fragment: false, ..Flow::new(false, true) };
    let table = [
        ("DF", Flow { dont_fragment: true, ..flow.clone() }, 1000, false),
        ("IPv6", Flow::new(true, true), 1000, false),
        ("no room", flow.clone(), 27, false),
        ("no room behind options", Flow { ip_options: vec![1; 40], ..flow.clone() }, 67, false),
        ("just room", flow.clone(), 28, true),
        ("just room behind options", Flow { ip_options: vec![1; 40], ..flow }, 68, true),
    ];
    for (name, flow, mtu, expected) in table {
        let packet = flow.build(&payload(2000));
        let result = Fragments::new(&ip::check(&packet).unwrap(), &packet, mtu);
        assert_eq!(result.is_ok(), expected, "{name}");
        assert!(result.is_ok() || result.is_err_and(|reason| reason == DropReason::TooBig), "{name}");
    }
}
