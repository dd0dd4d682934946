use crate::support::{Flow, naive_fold, naive_sum, payload, pseudo_sum};
use proptest::prelude::*;
use weft_packet::{checksum, ip};

#[test]
fn sum_equals_the_naive_one_for_every_length_and_alignment() {
    let bytes = payload(1024);
    for start in [0, 1, 3, 8, 31] {
        for end in start..=bytes.len() {
            let slice = &bytes[start..end];
            assert_eq!(checksum::fold(checksum::sum(slice, 0)), naive_fold(naive_sum(slice)), "{start}..{end}");
        }
    }
}

#[test]
fn sum_holds_at_the_extremes() {
    let mut ones = vec![0xff; 65_536];
    assert_eq!(checksum::fold(checksum::sum(&ones, 0)), 0xffff);
    assert_eq!(checksum::fold(checksum::sum(&ones, u64::MAX)), 0xffff);
    ones.fill(0);
    assert_eq!(checksum::fold(checksum::sum(&ones, 0)), 0);
    assert_eq!(checksum::fold(checksum::sum(&[], 0x1_0000)), 1);
    assert_eq!(checksum::fold(u64::MAX), 0xffff);
}

#[test]
fn incremental_update_yields_the_vector_of_rfc_1624() {
    assert_eq!(checksum::update(0xdd2f, 0x5555, 0x3285), 0x0000);
}

#[test]
fn ttl_decrement_equals_full_recomputation_for_every_ttl_and_checksum() {
    let mut packet = *b"\x45\0\0\x14\0\0\0\0\0\x11\0\0\x0a\x01\x02\x03\x0a\x01\x02\x04";
    let base = naive_sum(&packet);
    let inner = ip::Inner {
        version: ip::Version::V4,
        l4_offset: 20,
        total_len: 20,
        protocol: 17,
        ttl: 0,
        fragmentation: ip::Fragmentation::Whole,
        dont_fragment: false,
    };
    for ttl in 0..=255u8 {
        for id in 0..=u16::MAX {
            // The id steers the checksum through all its values.
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            packet[8] = ttl;
            let before = base + u64::from(id) + (u64::from(ttl) << 8);
            packet[10..12].copy_from_slice(&(!naive_fold(before)).to_be_bytes());
            let original = packet;
            if ip::decrement_ttl(&mut packet, &inner).is_err() {
                assert!(ttl <= 1 && packet == original);
                continue;
            }
            assert_eq!(packet[8], ttl - 1);
            assert_eq!(u16::from_be_bytes([packet[10], packet[11]]), !naive_fold(before - 0x100), "{ttl} {id}");
        }
    }
}

#[test]
fn hop_limit_is_decremented_and_never_raised() {
    let mut packet = Flow::new(true, true).build(b"x");
    let inner = ip::check(&packet).unwrap();
    for (before, after) in [(0, None), (1, None), (2, Some(1)), (255, Some(254))] {
        packet[7] = before;
        let result = ip::decrement_ttl(&mut packet, &inner);
        assert_eq!(result.is_ok(), after.is_some());
        assert_eq!(packet[7], after.unwrap_or(before));
    }
}

proptest! {
    #[test]
    fn sums_of_pieces_add_up(bytes in prop::collection::vec(any::<u8>(), 0..3000), cut in any::<prop::sample::Index>(), initial: u64) {
        let cut = cut.index(bytes.len() / 2 + 1) * 2;
        let pieces = checksum::sum(&bytes[cut.min(bytes.len())..], checksum::sum(&bytes[..cut.min(bytes.len())], initial));
        prop_assert_eq!(checksum::fold(pieces), checksum::fold(checksum::sum(&bytes, initial)));
        prop_assert_eq!(checksum::fold(checksum::sum(&bytes, 0)), naive_fold(naive_sum(&bytes)));
        prop_assert_eq!(checksum::fold(initial), naive_fold(initial));
    }

    #[test]
    fn update_equals_full_recomputation(words in prop::collection::vec(any::<u16>(), 1..20), at in any::<prop::sample::Index>(), new: u16) {
        // An anchor keeps the sum from being zero, which only an all-zero packet has.
        let sum = |words: &[u16]| !naive_fold(1 + words.iter().map(|&word| u64::from(word)).sum::<u64>());
        let mut changed = words.clone();
        let at = at.index(words.len());
        changed[at] = new;
        prop_assert_eq!(checksum::update(sum(&words), words[at], new), sum(&changed));
    }

    #[test]
    fn pseudo_header_sum_equals_the_naive_one(is_v6: bool, is_udp: bool, len in 0usize..2000) {
        let flow = Flow::new(is_v6, is_udp);
        let packet = flow.build(&payload(len));
        let inner = ip::check(&packet).unwrap();
        let sum = checksum::pseudo(&packet, &inner, packet.len() - flow.ip_len());
        prop_assert_eq!(checksum::fold(sum), naive_fold(pseudo_sum(&packet, flow.ip_len())));
    }
}
