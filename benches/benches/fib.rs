//! weft-fib beside the best crates for the same job. `cargo bench -p weft-bench --bench fib`, `-- --test` to smoke it.
//!
//! `lookup4/SIZE/SHAPE/KEYS/SUBJECT`:
//! - SIZE: 256, 10k or 1M prefixes;
//! - SHAPE: `flannel`, adjacent /24s with a next hop each; `internet`, the lengths of a BGP table at random places,
//!   which is harder than the real table, whose neighbours often share a next hop;
//! - KEYS: `uniform/hit`, `skewed/hit` (half of the keys fall into 6 % of the prefixes), `uniform/miss`;
//! - SUBJECT: `weft` (one lookup per call), `weft-batch`, and the opponents.
//!
//! Lookups within one iteration do not depend on each other: this is throughput, as in a batch of packets.
//! `lookup6` is the same for IPv6. `build4` and `build6` time construction; `publication` times the access to the table in force.

use arc_swap::ArcSwap;
use criterion::{
    BatchSize, BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
    measurement::WallTime,
};
use ip_network_table_deps_treebitmap::IpLookupTable;
use ipnet::{Ipv4Net, Ipv6Net};
use poptrie::Poptrie;
use prefix_trie::PrefixMap;
use std::collections::HashMap;
use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use weft_fib::{Fib, FibCell, Lpm4, Lpm6};

/// (address, length, value)
type Prefix<A> = (A, u8, u16);

const SIZES: [(&str, usize); 3] = [("256", 256), ("10k", 10_000), ("1M", 1_000_000)];

/// Enough keys that the next round does not find the nodes of this one in the first cache levels by chance.
const KEYS_LARGE: usize = 1 << 20;
const KEYS_SMALL: usize = 1 << 14;

/// A batch as a worker hands it over.
const BATCH: usize = 256;

/// SplitMix64; fixed seeds keep runs comparable.
struct Random(u64);

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

fn table4(shape: &str, size: usize) -> Vec<Prefix<u32>> {
    let mut random = Random(4);
    match shape {
        "flannel" => (0..size as u32).map(|i| (0x0a00_0000 + (i << 8), 24, (i % 0xffff) as u16)).collect(),
        _ => {
            let mut table = HashMap::new();
            while table.len() < size {
                let len = pick_len(&LENGTHS4, &mut random);
                // 1.0.0.0 to 223.255.255.255
                let address = 0x0100_0000 + random.below(0xdf00_0000) as u32;
                table.insert((address & (u32::MAX << (32 - len)), len), random.below(1000) as u16);
            }
            sorted(table)
        }
    }
}

fn table6(shape: &str, size: usize) -> Vec<Prefix<u128>> {
    let mut random = Random(6);
    match shape {
        "flannel" => {
            (0..size as u128).map(|i| ((0xfd00_0010_0244_0000 << 64) + (i << 64), 64, (i % 0xffff) as u16)).collect()
        }
        _ => {
            let mut table = HashMap::new();
            while table.len() < size {
                let len = pick_len(&LENGTHS6, &mut random);
                // Longer prefixes crowd below 2^15 allocations out of 2000::/3, as they do in the real table.
                let allocation = random.below(1 << 15) as u128;
                let address = 0x2000 << 112 | allocation << 99 | random.wide() >> 29;
                table.insert((address & (u128::MAX << (128 - len)), len), random.below(1000) as u16);
            }
            sorted(table)
        }
    }
}

/// In address order, so that the hash map's random order does not reach the subjects.
fn sorted<A: Ord + Copy>(table: HashMap<(A, u8), u16>) -> Vec<Prefix<A>> {
    let mut table: Vec<Prefix<A>> = table.into_iter().map(|((address, len), value)| (address, len, value)).collect();
    table.sort_unstable();
    table
}

fn key_count(size: usize) -> usize {
    if size >= 100_000 { KEYS_LARGE } else { KEYS_SMALL }
}

const KEY_SETS: [&str; 3] = ["uniform/hit", "skewed/hit", "uniform/miss"];

/// Which prefix the next key falls into.
fn pick_prefix(keys: &str, count: usize, random: &mut Random) -> usize {
    let uniform = random.below(count);
    if !keys.starts_with("skewed") {
        return uniform;
    }
    // The fourth power of a uniform fraction; multiplied by an odd number, so that hot prefixes are not neighbours.
    let fraction = uniform as f64 / count as f64;
    ((fraction.powi(4) * count as f64) as usize * 7919) % count
}

fn keys4(keys: &str, table: &[Prefix<u32>]) -> Vec<u32> {
    let lpm = Lpm4::build(table);
    let mut random = Random(44);
    let mut key = || match keys {
        "uniform/miss" => loop {
            let address = random.next() as u32;
            if lpm.lookup(address).is_none() {
                return address;
            }
        },
        _ => {
            let (address, len, _) = table[pick_prefix(keys, table.len(), &mut random)];
            address | (random.next() as u32).checked_shr(len.into()).unwrap_or(0)
        }
    };
    (0..key_count(table.len())).map(|_| key()).collect()
}

fn keys6(keys: &str, table: &[Prefix<u128>]) -> Vec<u128> {
    let lpm = Lpm6::build(table);
    let mut random = Random(66);
    let mut key = || match keys {
        "uniform/miss" => loop {
            let address = 0x2000 << 112 | random.wide() >> 3;
            if lpm.lookup(address).is_none() {
                return address;
            }
        },
        _ => {
            let (address, len, _) = table[pick_prefix(keys, table.len(), &mut random)];
            address | random.wide().checked_shr(len.into()).unwrap_or(0)
        }
    };
    (0..key_count(table.len())).map(|_| key()).collect()
}

/// One iteration looks up all keys and adds up the answers.
fn measure<A: Copy>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    subject: &str,
    place: &str,
    keys: &[A],
    lookup: impl Fn(A) -> Option<u16>,
) {
    group.bench_function(BenchmarkId::new(place, subject), |bencher| {
        bencher.iter(|| keys.iter().fold(0u64, |sum, &key| sum + lookup(key).map_or(1, u64::from)));
    });
}

fn measure_batch(group: &mut BenchmarkGroup<'_, WallTime>, place: &str, keys: &[u32], lpm: &Lpm4) {
    let mut values = [None; BATCH];
    group.bench_function(BenchmarkId::new(place, "weft-batch"), |bencher| {
        bencher.iter(|| {
            for batch in keys.chunks_exact(BATCH) {
                lpm.lookup_batch(black_box(batch), &mut values);
                black_box(&values);
            }
        });
    });
}

fn lookup4(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup4");
    for (size_name, size) in SIZES {
        for shape in ["flannel", "internet"] {
            let table = table4(shape, size);
            let lpm = Lpm4::build(&table);
            eprintln!("lookup4/{size_name}/{shape}: {} KiB", lpm.memory() >> 10);
            let pop: Poptrie<(u32, u8), u16> =
                table.iter().map(|&(address, len, value)| ((address, len), value)).collect();
            let prefix_map: PrefixMap<Ipv4Net, u16> =
                table.iter().map(|&(address, len, value)| (Ipv4Net::new_assert(address.into(), len), value)).collect();
            let mut tree_bitmap = IpLookupTable::<Ipv4Addr, u16>::new();
            for &(address, len, value) in &table {
                tree_bitmap.insert(address.into(), len.into(), value);
            }
            for key_set in KEY_SETS {
                let keys = keys4(key_set, &table);
                let place = format!("{size_name}/{shape}/{key_set}");
                group.throughput(Throughput::Elements(keys.len() as u64));
                measure(&mut group, "weft", &place, &keys, |key| lpm.lookup(key));
                measure_batch(&mut group, &place, &keys, &lpm);
                measure(&mut group, "poptrie", &place, &keys, |key| pop.lookup(key).copied());
                measure(&mut group, "prefix-trie", &place, &keys, |key| {
                    prefix_map.get_lpm(&Ipv4Net::new_assert(key.into(), 32)).map(|(_, &value)| value)
                });
                measure(&mut group, "treebitmap", &place, &keys, |key| {
                    tree_bitmap.longest_match(key.into()).map(|(_, _, &value)| value)
                });
            }
        }
    }
}

fn lookup6(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup6");
    for (size_name, size) in SIZES {
        for shape in ["flannel", "internet"] {
            let table = table6(shape, size);
            let lpm = Lpm6::build(&table);
            eprintln!("lookup6/{size_name}/{shape}: {} KiB", lpm.memory() >> 10);
            let pop: Poptrie<(u128, u8), u16> =
                table.iter().map(|&(address, len, value)| ((address, len), value)).collect();
            let prefix_map: PrefixMap<Ipv6Net, u16> =
                table.iter().map(|&(address, len, value)| (Ipv6Net::new_assert(address.into(), len), value)).collect();
            let mut tree_bitmap = IpLookupTable::<Ipv6Addr, u16>::new();
            for &(address, len, value) in &table {
                tree_bitmap.insert(address.into(), len.into(), value);
            }
            for key_set in KEY_SETS {
                let keys = keys6(key_set, &table);
                let place = format!("{size_name}/{shape}/{key_set}");
                group.throughput(Throughput::Elements(keys.len() as u64));
                measure(&mut group, "weft", &place, &keys, |key| lpm.lookup(key));
                measure(&mut group, "poptrie", &place, &keys, |key| pop.lookup(key).copied());
                measure(&mut group, "prefix-trie", &place, &keys, |key| {
                    prefix_map.get_lpm(&Ipv6Net::new_assert(key.into(), 128)).map(|(_, &value)| value)
                });
                measure(&mut group, "treebitmap", &place, &keys, |key| {
                    tree_bitmap.longest_match(key.into()).map(|(_, _, &value)| value)
                });
            }
        }
    }
}

fn build(criterion: &mut Criterion) {
    for shape in ["flannel", "internet"] {
        for (size_name, size) in SIZES {
            let mut group = criterion.benchmark_group("build4");
            let table = table4(shape, size);
            group.throughput(Throughput::Elements(size as u64));
            group.bench_function(BenchmarkId::new(format!("{size_name}/{shape}"), "weft"), |bencher| {
                bencher.iter_batched(|| (), |()| Lpm4::build(&table), BatchSize::PerIteration);
            });
            group.bench_function(BenchmarkId::new(format!("{size_name}/{shape}"), "poptrie"), |bencher| {
                let build = || table.iter().map(|&(address, len, value)| ((address, len), value)).collect();
                bencher.iter_batched(|| (), |()| -> Poptrie<(u32, u8), u16> { build() }, BatchSize::PerIteration);
            });
            group.finish();
            let mut group = criterion.benchmark_group("build6");
            let table = table6(shape, size);
            group.throughput(Throughput::Elements(size as u64));
            group.bench_function(BenchmarkId::new(format!("{size_name}/{shape}"), "weft"), |bencher| {
                bencher.iter_batched(|| (), |()| Lpm6::build(&table), BatchSize::PerIteration);
            });
            group.finish();
        }
    }
}

/// Access to the table in force, once per batch: alone, and while another thread swaps it 1,000 times per second.
fn publication(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("publication");
    let cell = FibCell::new(Fib::empty());
    let swap = ArcSwap::from_pointee(Fib::empty());
    for load in ["quiet", "1000_swaps_per_second"] {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            if load != "quiet" {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        cell.publish(Fib::empty());
                        swap.store(Arc::new(Fib::empty()));
                        thread::sleep(Duration::from_millis(1));
                    }
                });
            }
            group.bench_function(BenchmarkId::new(load, "weft-pin"), |bencher| {
                let reader = cell.reader();
                bencher.iter(|| reader.pin().generation());
            });
            group.bench_function(BenchmarkId::new(load, "arc-swap-load"), |bencher| {
                bencher.iter(|| swap.load().generation());
            });
            group.bench_function(BenchmarkId::new(load, "arc-swap-load-full"), |bencher| {
                bencher.iter(|| swap.load_full().generation());
            });
            group.bench_function(BenchmarkId::new(load, "arc-swap-cache"), |bencher| {
                let mut cache = arc_swap::Cache::new(&swap);
                bencher.iter(|| cache.load().generation());
            });
            done.store(true, Ordering::Relaxed);
        });
    }
}

fn config() -> Criterion {
    // Short, because there are many cells; `--measurement-time` on the command line lengthens them.
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args()
}

criterion_group! { name = fib; config = config(); targets = lookup4, lookup6, build, publication }
criterion_main!(fib);
