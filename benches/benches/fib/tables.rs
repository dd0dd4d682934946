//! Tables and keys, the same in each run.

use std::collections::HashMap;
use weft_fib::{Lpm4, Lpm6};

/// (address, length, value)
pub type Prefix<A> = (A, u8, u16);

/// Enough keys that the next round does not find the nodes of this one in the first cache levels by chance.
const KEYS_LARGE: usize = 1 << 18;
const KEYS_SMALL: usize = 1 << 14;

/// SplitMix64; fixed seeds keep runs comparable.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
    fn wide(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }
}

/// Shares of prefix lengths in the IPv4 BGP table of 2024, in permille, with a few internal routes longer than /24.
const LENGTHS4: [(u8, u32); 16] = [
    (8, 1),
    (12, 1),
    (14, 2),
    (15, 2),
    (16, 13),
    (17, 8),
    (18, 14),
    (19, 25),
    (20, 44),
    (21, 52),
    (22, 115),
    (23, 103),
    (24, 600),
    (27, 5),
    (30, 5),
    (32, 10),
];
/// The same for the IPv6 table.
const LENGTHS6: [(u8, u32); 9] =
    [(29, 40), (32, 120), (36, 50), (40, 100), (44, 110), (46, 40), (48, 480), (56, 20), (64, 40)];

fn pick_len(lengths: &[(u8, u32)], random: &mut Random) -> u8 {
    let mut point = random.below(lengths.iter().map(|&(_, share)| share as usize).sum()) as u32;
    for &(len, share) in lengths {
        if point < share {
            return len;
        }
        point -= share;
    }
    unreachable!("the point lies below the sum of all shares")
}

/// What the benches ask of an address family.
pub trait Family: Copy + Ord + 'static {
    /// `count` prefixes of the given shape.
    fn table(shape: &str, count: usize) -> Vec<Prefix<Self>>;
    /// Keys of the given kind for a table.
    fn keys(kind: &str, table: &[Prefix<Self>]) -> Vec<Self>;
}

impl Family for u32 {
    fn table(shape: &str, count: usize) -> Vec<Prefix<u32>> {
        let mut random = Random(4);
        if shape == "flannel" {
            return (0..count as u32).map(|i| (0x0a00_0000 + (i << 8), 24, (i % 0xffff) as u16)).collect();
        }
        internet(count, || {
            let len = pick_len(&LENGTHS4, &mut random);
            // 1.0.0.0 to 223.255.255.255
            let address = 0x0100_0000 + random.below(0xdf00_0000) as u32;
            (address & (u32::MAX << (32 - len)), len, random.below(1000) as u16)
        })
    }

    fn keys(kind: &str, table: &[Prefix<u32>]) -> Vec<u32> {
        let lpm = Lpm4::build(table);
        keys(
            kind,
            table,
            |random| random.next() as u32,
            |address| lpm.lookup(address).is_none(),
            |&(address, len, _), random| address | (random.next() as u32).checked_shr(len.into()).unwrap_or(0),
        )
    }
}

impl Family for u128 {
    fn table(shape: &str, count: usize) -> Vec<Prefix<u128>> {
        let mut random = Random(6);
        if shape == "flannel" {
            let network = 0xfd00_0010_0244_0000 << 64;
            return (0..count as u128).map(|i| (network + (i << 64), 64, (i % 0xffff) as u16)).collect();
        }
        internet(count, || {
            let len = pick_len(&LENGTHS6, &mut random);
            // Longer prefixes crowd below 2^15 allocations out of 2000::/3, as they do in the real table.
            let allocation = random.below(1 << 15) as u128;
            let address = 0x2000 << 112 | allocation << 99 | random.wide() >> 29;
            (address & (u128::MAX << (128 - len)), len, random.below(1000) as u16)
        })
    }

    fn keys(kind: &str, table: &[Prefix<u128>]) -> Vec<u128> {
        let lpm = Lpm6::build(table);
        keys(
            kind,
            table,
            |random| 0x2000 << 112 | random.wide() >> 3,
            |address| lpm.lookup(address).is_none(),
            |&(address, len, _), random| address | random.wide().checked_shr(len.into()).unwrap_or(0),
        )
    }
}

/// Distinct prefixes in address order, so that the hash map's random order does not reach the subjects.
fn internet<A: Family + std::hash::Hash>(count: usize, mut pick: impl FnMut() -> Prefix<A>) -> Vec<Prefix<A>> {
    let mut values = HashMap::new();
    while values.len() < count {
        let (address, len, value) = pick();
        values.insert((address, len), value);
    }
    let mut table: Vec<Prefix<A>> = values.into_iter().map(|((address, len), value)| (address, len, value)).collect();
    table.sort_unstable();
    table
}

fn keys<A: Family>(
    kind: &str,
    table: &[Prefix<A>],
    anywhere: impl Fn(&mut Random) -> A,
    is_miss: impl Fn(A) -> bool,
    within: impl Fn(&Prefix<A>, &mut Random) -> A,
) -> Vec<A> {
    let mut random = Random(44);
    let mut key = || match kind {
        "uniform/miss" => loop {
            let address = anywhere(&mut random);
            if is_miss(address) {
                return address;
            }
        },
        "uniform/hit" => {
            let index = random.below(table.len());
            within(&table[index], &mut random)
        }
        _ => {
            let index = zipf(table.len(), &mut random);
            within(&table[index], &mut random)
        }
    };
    (0..key_count(table.len())).map(|_| key()).collect()
}

/// How many keys there are for a table of `size` prefixes.
pub fn key_count(size: usize) -> usize {
    if size > 100_000 { KEYS_LARGE } else { KEYS_SMALL }
}

/// An index by Zipf's law with exponent one: the `k`th most wanted is wanted `1/k` as often as the first.
fn zipf(count: usize, random: &mut Random) -> usize {
    let uniform = random.below(1 << 52) as f64 / (1u64 << 52) as f64;
    let rank = (count as f64).powf(uniform) as usize - 1;
    // A prime spreads the ranks over the table, so that the most wanted are not neighbours.
    rank * 7919 % count
}
