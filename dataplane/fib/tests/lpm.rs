//! [`Lpm4`] and [`Lpm6`] against a linear scan.

use proptest::prelude::*;
use weft_fib::{Lpm4, Lpm6};

type Prefix<A> = (A, u8, u16);

fn mask(bits: u32, len: u8) -> u128 {
    let ones = if bits == 128 { u128::MAX } else { (1 << bits) - 1 };
    ones ^ ones.checked_shr(u32::from(len)).unwrap_or(0)
}

/// The oracle: the last of the longest prefixes that cover the address.
fn scan(prefixes: &[Prefix<u128>], bits: u32, address: u128) -> Option<u16> {
    prefixes
        .iter()
        .filter(|&&(prefix, len, _)| (prefix ^ address) & mask(bits, len) == 0)
        .max_by_key(|&&(_, len, _)| len)
        .map(|&(_, _, value)| value)
}

/// Addresses at which the answer can change: both ends of each prefix and their neighbours outside.
fn edges(prefixes: &[Prefix<u128>], bits: u32) -> Vec<u128> {
    let ones = mask(bits, bits as u8);
    let mut edges = vec![0, ones];
    for &(prefix, len, _) in prefixes {
        let first = prefix & mask(bits, len);
        let last = first | (ones ^ mask(bits, len));
        edges.extend([first, last, first.wrapping_sub(1) & ones, last.wrapping_add(1) & ones]);
    }
    edges
}

fn widen(prefixes: &[Prefix<u32>]) -> Vec<Prefix<u128>> {
    prefixes.iter().map(|&(address, len, value)| (address.into(), len, value)).collect()
}

#[track_caller]
fn check4(prefixes: &[Prefix<u32>], addresses: impl IntoIterator<Item = u32>) {
    let lpm = Lpm4::build(prefixes);
    let wide = widen(prefixes);
    let mut queries: Vec<u32> = edges(&wide, 32).into_iter().map(|address| address as u32).collect();
    queries.extend(addresses);
    let expected: Vec<Option<u16>> = queries.iter().map(|&address| scan(&wide, 32, address.into())).collect();
    let mut batch = vec![Some(0xdead); queries.len()];
    lpm.lookup_batch(&queries, &mut batch);
    for ((address, expected), batched) in queries.iter().zip(expected).zip(batch) {
        assert_eq!(lpm.lookup(*address), expected, "{address:#010x} in {prefixes:x?}");
        assert_eq!(batched, expected, "{address:#010x}, batched, in {prefixes:x?}");
    }
}

#[track_caller]
fn check6(prefixes: &[Prefix<u128>], addresses: impl IntoIterator<Item = u128>) {
    let lpm = Lpm6::build(prefixes);
    let queries: Vec<u128> = edges(prefixes, 128).into_iter().chain(addresses).collect();
    let mut batch = vec![Some(0xdead); queries.len()];
    lpm.lookup_batch(&queries, &mut batch);
    for (address, batched) in queries.into_iter().zip(batch) {
        let expected = scan(prefixes, 128, address);
        assert_eq!(lpm.lookup(address), expected, "{address:#034x} in {prefixes:x?}");
        assert_eq!(batched, expected, "{address:#034x}, batched, in {prefixes:x?}");
    }
}

/// Few distinct addresses under few distinct bits, so that prefixes nest, touch and repeat.
fn colliding4() -> impl Strategy<Value = u32> {
    prop_oneof![
        3 => (0..4u32, 0..4u32, 0..4u32).prop_map(|(a, b, c)| 0x0af4_0000 | a << 14 | b << 7 | c),
        1 => (0..32u32).prop_map(|bit| 1 << bit),
        1 => (0..32u32).prop_map(|bit| u32::MAX << bit),
        1 => any::<u32>(),
    ]
}

fn colliding6() -> impl Strategy<Value = u128> {
    prop_oneof![
        3 => (0..4u128, 0..4u128, 0..4u128).prop_map(|(a, b, c)| 0xfd00_0010_0244 << 80 | a << 78 | b << 62 | c),
        1 => (0..128u32).prop_map(|bit| 1 << bit),
        1 => (0..128u32).prop_map(|bit| u128::MAX << bit),
        1 => any::<u128>(),
    ]
}

fn len4() -> impl Strategy<Value = u8> {
    prop_oneof![3 => 22..=26u8, 1 => 30..=32u8, 1 => 0..=32u8]
}

fn len6() -> impl Strategy<Value = u8> {
    prop_oneof![2 => 46..=50u8, 2 => 62..=66u8, 1 => 126..=128u8, 1 => 0..=128u8]
}

proptest! {
    #[test]
    fn ipv4_equals_a_linear_scan(
        prefixes in prop::collection::vec((colliding4(), len4(), 0..8u16), 0..60),
        addresses in prop::collection::vec(colliding4(), 40),
    ) {
        check4(&prefixes, addresses);
    }

    #[test]
    fn ipv6_equals_a_linear_scan(
        prefixes in prop::collection::vec((colliding6(), len6(), 0..8u16), 0..60),
        addresses in prop::collection::vec(colliding6(), 40),
    ) {
        check6(&prefixes, addresses);
    }

    #[test]
    fn dense_ipv4_tables_equal_a_linear_scan(
        seed in any::<u32>(),
        len in 20..=32u8,
        count in 1..600u32,
        step in 1..5u32,
    ) {
        let size = 1u32 << (32 - u32::from(len));
        let prefixes: Vec<_> =
            (0..count).map(|i| (seed.wrapping_add((i * step).wrapping_mul(size)), len, (i % 9) as u16)).collect();
        check4(&prefixes, (0..50).map(|i| seed.wrapping_add(i * 0x0123_4567)));
    }
}

/// The cases of WireGuard's kernel selftest for allowed IPs, drivers/net/wireguard/selftest/allowedips.c (Linux 6.12).
#[test]
fn wireguard_allowedips_vectors_hold() {
    const A: u16 = 0;
    const B: u16 = 1;
    const C: u16 = 2;
    const D: u16 = 3;
    const E: u16 = 4;
    const F: u16 = 5;
    const G: u16 = 6;
    const H: u16 = 7;
    let ip = |a: u8, b: u8, c: u8, d: u8| u32::from_be_bytes([a, b, c, d]);
    let ip6 = |a: u32, b: u32, c: u32, d: u32| {
        u128::from(a) << 96 | u128::from(b) << 64 | u128::from(c) << 32 | u128::from(d)
    };
    let v4 = [
        (ip(192, 168, 4, 0), 24, A),
        (ip(192, 168, 4, 4), 32, B),
        (ip(192, 168, 0, 0), 16, C),
        (ip(192, 95, 5, 64), 27, D),
        // Replaces the entry before the last; host bits are ignored.
        (ip(192, 95, 5, 65), 27, C),
        (ip(0, 0, 0, 0), 0, E),
        (ip(64, 15, 112, 0), 20, G),
        // Host bits again: 64.15.120.0/21 is meant.
        (ip(64, 15, 123, 211), 25, H),
        (ip(10, 0, 0, 0), 25, A),
        (ip(10, 0, 0, 128), 25, B),
        (ip(10, 1, 0, 0), 30, A),
        (ip(10, 1, 0, 4), 30, B),
        (ip(10, 1, 0, 8), 29, C),
        (ip(10, 1, 0, 16), 29, D),
    ];
    let lpm = Lpm4::build(&v4);
    for (address, value) in [
        (ip(192, 168, 4, 20), A),
        (ip(192, 168, 4, 0), A),
        (ip(192, 168, 4, 4), B),
        (ip(192, 168, 200, 182), C),
        (ip(192, 95, 5, 68), C),
        (ip(192, 95, 5, 96), E),
        (ip(64, 15, 116, 26), G),
        (ip(64, 15, 127, 3), G),
        (ip(64, 15, 123, 1), G),
        (ip(64, 15, 123, 128), H),
        (ip(64, 15, 123, 129), H),
        (ip(10, 0, 0, 52), A),
        (ip(10, 0, 0, 220), B),
        (ip(10, 1, 0, 2), A),
        (ip(10, 1, 0, 6), B),
        (ip(10, 1, 0, 10), C),
        (ip(10, 1, 0, 20), D),
    ] {
        assert_eq!(lpm.lookup(address), Some(value), "{address:#010x}");
    }
    let v6 = [
        (ip6(0x26075300, 0x60006b00, 0, 0xc05f0543), 128, D),
        (ip6(0x26075300, 0x60006b00, 0, 0), 64, C),
        (ip6(0, 0, 0, 0), 0, E),
        (ip6(0, 0, 0, 0), 0, F),
        (ip6(0x24046800, 0, 0, 0), 32, G),
        // Host bits beyond the length are ignored.
        (ip6(0x24046800, 0x40040800, 0xdeadbeef, 0xdeadbeef), 64, H),
        (ip6(0x24046800, 0x40040800, 0xdeadbeef, 0xdeadbeef), 128, A),
        (ip6(0x24446800, 0x40e40800, 0xdeaebeef, 0xdefbeef), 128, C),
        (ip6(0x24446800, 0xf0e40800, 0xeeaebeef, 0), 98, B),
    ];
    let lpm = Lpm6::build(&v6);
    for (address, value) in [
        (ip6(0x26075300, 0x60006b00, 0, 0xc05f0543), D),
        (ip6(0x26075300, 0x60006b00, 0, 0xc02e01ee), C),
        (ip6(0x26075300, 0x60006b01, 0, 0), F),
        (ip6(0x24046800, 0x40040806, 0, 0x1006), G),
        (ip6(0x24046800, 0x40040806, 0x1234, 0x5678), G),
        (ip6(0x240467ff, 0x40040806, 0x1234, 0x5678), F),
        (ip6(0x24046801, 0x40040806, 0x1234, 0x5678), F),
        (ip6(0x24046800, 0x40040800, 0x1234, 0x5678), H),
        (ip6(0x24046800, 0x40040800, 0, 0), H),
        (ip6(0x24046800, 0x40040800, 0x10101010, 0x10101010), H),
        (ip6(0x24046800, 0x40040800, 0xdeadbeef, 0xdeadbeef), A),
    ] {
        assert_eq!(lpm.lookup(address), Some(value), "{address:#034x}");
    }
    check4(&v4, []);
    check6(&v6, []);
}

#[test]
fn empty_table_answers_nothing() {
    check4(&[], [0, 1, 0x0af4_0101, u32::MAX]);
    check6(&[], [0, 1, u128::MAX]);
    assert!(Lpm4::build(&[]).memory() <= 64);
}

#[test]
fn every_length_works_alone_and_nested() {
    for address in [0, 0x0af4_2a07, u32::MAX] {
        for len in 0..=32 {
            check4(&[(address, len, 1)], []);
            check4(&[(0, 0, 7), (address, len, 1)], []);
        }
        let nested: Vec<_> = (0..=32).map(|len| (address, len, u16::from(len))).collect();
        check4(&nested, []);
    }
    for address in [0, 0xfd00_0010_0244_0001_0000_0000_0000_0001, u128::MAX] {
        for len in 0..=128 {
            check6(&[(address, len, 1)], []);
            check6(&[(0, 0, 7), (address, len, 1)], []);
        }
        let nested: Vec<_> = (0..=128).map(|len| (address, len, u16::from(len))).collect();
        check6(&nested, []);
    }
}

#[test]
fn default_route_answers_what_nothing_longer_covers() {
    let lpm = Lpm4::build(&[(0, 0, 9), (0x0a00_0000, 8, 1)]);
    assert_eq!(lpm.lookup(0x0b00_0000), Some(9));
    assert_eq!(lpm.lookup(0x0a00_0001), Some(1));
}

#[test]
fn prefixes_at_both_ends_of_the_address_space_are_found() {
    check4(&[(0, 24, 1), (0xffff_ff00, 24, 2)], [0x8000_0000]);
    check4(&[(0, 32, 1), (u32::MAX, 32, 2), (0x8000_0000, 32, 3)], []);
    check4(&[(0, 1, 1), (0x8000_0000, 1, 2)], []);
    check6(&[(0, 128, 1), (u128::MAX, 128, 2), (1 << 127, 128, 3)], []);
}

#[test]
fn largest_value_is_usable_and_the_reserved_one_refused() {
    assert_eq!(Lpm4::build(&[(0, 0, 0xfffe)]).lookup(1), Some(0xfffe));
    assert!(std::panic::catch_unwind(|| Lpm4::build(&[(0, 0, 0xffff)])).is_err());
    assert!(std::panic::catch_unwind(|| Lpm4::build(&[(0, 33, 0)])).is_err());
    assert!(std::panic::catch_unwind(|| Lpm6::build(&[(0, 129, 0)])).is_err());
}

#[test]
fn churned_table_equals_a_linear_scan_at_every_step() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: u32| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as u32) % below
    };
    let mut prefixes: Vec<Prefix<u32>> = Vec::new();
    for _ in 0..if cfg!(miri) { 10 } else { 400 } {
        if prefixes.len() > 40 && random(2) == 0 {
            let gone = random(prefixes.len() as u32) as usize;
            prefixes.swap_remove(gone);
        } else {
            prefixes.push((0x0af4_0000 | random(1 << 16), 14 + random(19) as u8, random(50) as u16));
        }
        check4(&prefixes, (0..8).map(|_| 0x0af4_0000 | random(1 << 16)).collect::<Vec<_>>());
    }
}

/// A table of subnets takes the direct root; one host route sends it to blocks and nodes. Both answer alike.
#[test]
fn host_routes_among_subnets_are_found() {
    let mut prefixes: Vec<_> = (0..300).map(|i| (0x0af4_0000 + (i << 8), 24, i as u16)).collect();
    check4(&prefixes, (0..100).map(|i| 0x0af4_0000 + i * 0x333));
    prefixes.extend([(0x0af4_0a07, 32, 1000), (0x0af4_2aff, 32, 1001), (0x0b00_0000, 32, 1002)]);
    check4(&prefixes, (0..100).map(|i| 0x0af4_0000 + i * 0x333));
}

/// Whatever a node's origin is, addresses half the address space away find the right end of it.
#[test]
fn nodes_answer_for_addresses_far_from_their_origin() {
    check4(&[(0, 1, 1), (0x7fff_ffff, 32, 2), (0, 32, 3)], [1, 0x4000_0000, 0x7fff_fffe, 0x8000_0000]);
    check6(&[(0, 1, 1), (u128::MAX >> 1, 128, 2), (0, 128, 3)], [1, 1 << 126, (u128::MAX >> 1) - 1, 1 << 127]);
}

#[test]
fn small_tables_are_tiny() {
    let flannel: Vec<_> = (0..256).map(|i| (0x0af4_0000 | i << 8, 24, i as u16)).collect();
    let lpm = Lpm4::build(&flannel);
    assert!(lpm.memory() <= 4096, "256 /24s of one /16 take {} bytes", lpm.memory());
    let ten: Vec<_> = (0..10).map(|i| (i * 0x1234_5600, 24, i as u16)).collect();
    let lpm = Lpm4::build(&ten);
    assert!(lpm.memory() <= 8192, "ten scattered routes take {} bytes", lpm.memory());
}

#[test]
#[cfg(not(miri))]
fn a_million_prefixes_take_at_most_64_mib() {
    let mut state = 1_u128;
    let mut random = move || {
        state = state.wrapping_mul(0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645).wrapping_add(0x5851_f42d_4c95_7f2d);
        state ^ state.rotate_right(64)
    };
    // Host routes at random places are the worst case: none shares a node's slots with another.
    let hosts6: Vec<_> = (0..1_000_000).map(|i| (random(), 128, (i % 0xffff) as u16)).collect();
    let hosts4: Vec<_> = hosts6.iter().map(|&(address, _, value)| (address as u32, 32, value)).collect();
    let subnets4: Vec<_> = (0..1_000_000).map(|i| (0x0a00_0000 + (i << 8), 24, (i % 0xffff) as u16)).collect();
    let dense = Lpm4::build(&subnets4).memory();
    assert!(dense <= 2 << 20, "adjacent /24s take {} KiB: two bytes each are enough", dense >> 10);
    for (shape, memory) in [
        (
            "IPv4 /24s",
            Lpm4::build(&hosts4.iter().map(|&(address, _, value)| (address, 24, value)).collect::<Vec<_>>()).memory(),
        ),
        ("IPv4 hosts", Lpm4::build(&hosts4).memory()),
        ("IPv6 hosts", Lpm6::build(&hosts6).memory()),
    ] {
        assert!(memory <= 64 << 20, "{shape} take {} MiB", memory >> 20);
    }
}
