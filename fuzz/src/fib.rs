//! Targets over weft-fib.

use weft_fib::{Lpm4, Lpm6};

/// Bytes per table entry: family and value, length, address seed, address shape.
const ENTRY_LEN: usize = 6;
/// More entries than this only slow the linear oracle down.
const ENTRIES_MAX: usize = 256;

/// Reads a table from `input` and compares both match structures with a linear scan, at the edges of every prefix and
/// at addresses that the input names.
pub fn fib_lookup(input: &[u8]) {
    let (mut table4, mut table6, mut queries) = (Vec::new(), Vec::new(), Vec::new());
    for entry in input.chunks_exact(ENTRY_LEN).take(ENTRIES_MAX) {
        let &[kind, len, a, b, c, shape] = entry else { unreachable!("chunks have ENTRY_LEN bytes") };
        let address = address(u32::from_be_bytes([a, b, c, a ^ c]), shape);
        let value = u16::from(kind >> 2);
        match kind & 3 {
            0 => table4.push(((address >> 96) as u32, len % 33, value)),
            1 => table6.push((address, len % 129, value)),
            2 => table4.push((address as u32, len % 33, value)),
            _ => queries.push(address),
        }
    }
    check4(&table4, &queries);
    check6(&table6, &queries);
}

/// Spreads four bytes over 128 bits; shapes make addresses share long prefixes, and touch either end of the space.
fn address(seed: u32, shape: u8) -> u128 {
    let seed = u128::from(seed);
    match shape >> 6 {
        0 => seed << 96 | u128::from(shape),
        1 => seed << (shape & 63),
        2 => !(seed << (shape & 63)),
        _ => 0xfd00_0010_0244 << 80 | seed << ((shape & 63) + 1),
    }
}

fn check4(table: &[(u32, u8, u16)], queries: &[u128]) {
    let lpm = Lpm4::build(table);
    let covers =
        |address: u32, prefix: u32, len: u8| (address ^ prefix).checked_shr(32 - u32::from(len)).unwrap_or(0) == 0;
    let mut addresses: Vec<u32> =
        queries.iter().flat_map(|&address| [address as u32, (address >> 96) as u32]).collect();
    for &(prefix, len, _) in table {
        let host_bits = u32::MAX.checked_shr(len.into()).unwrap_or(0);
        let (first, last) = (prefix & !host_bits, prefix | host_bits);
        addresses.extend([first, last, first.wrapping_sub(1), last.wrapping_add(1)]);
    }
    let mut batch = vec![None; addresses.len()];
    lpm.lookup_batch(&addresses, &mut batch);
    for (&address, batched) in addresses.iter().zip(batch) {
        let covering = table.iter().filter(|&&(prefix, len, _)| covers(address, prefix, len));
        // `max_by_key` keeps the last of equals, as the build does.
        let expected = covering.max_by_key(|&&(_, len, _)| len).map(|&(_, _, value)| value);
        assert_eq!(lpm.lookup(address), expected, "{address:#010x}");
        assert_eq!(batched, expected, "{address:#010x}, batched");
    }
}

fn check6(table: &[(u128, u8, u16)], queries: &[u128]) {
    let lpm = Lpm6::build(table);
    let covers =
        |address: u128, prefix: u128, len: u8| (address ^ prefix).checked_shr(128 - u32::from(len)).unwrap_or(0) == 0;
    let mut addresses = queries.to_vec();
    for &(prefix, len, _) in table {
        let host_bits = u128::MAX.checked_shr(len.into()).unwrap_or(0);
        let (first, last) = (prefix & !host_bits, prefix | host_bits);
        addresses.extend([first, last, first.wrapping_sub(1), last.wrapping_add(1)]);
    }
    let mut batch = vec![None; addresses.len()];
    lpm.lookup_batch(&addresses, &mut batch);
    for (&address, batched) in addresses.iter().zip(batch) {
        let covering = table.iter().filter(|&&(prefix, len, _)| covers(address, prefix, len));
        let expected = covering.max_by_key(|&&(_, len, _)| len).map(|&(_, _, value)| value);
        assert_eq!(lpm.lookup(address), expected, "{address:#034x}");
        assert_eq!(batched, expected, "{address:#034x}, batched");
    }
}
