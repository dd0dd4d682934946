//! weft-fib beside the best crates for the same job. `cargo bench -p weft-bench --bench fib`, `-- --test` to smoke it.
//!
//! `lookup4/SIZE/SHAPE/KEYS/SUBJECT`:
//! - SIZE: 256, 10k or 1M prefixes;
//! - SHAPE: `flannel`, adjacent /24s with a next hop each; `internet`, the lengths of a BGP table at random places,
//!   which is harder than the real table, whose neighbours often share a next hop;
//! - KEYS: `uniform/hit`; `zipf/hit`, prefixes wanted by Zipf's law with exponent one; `uniform/miss`;
//! - SUBJECT: `weft` (one lookup per call), `weft-batch`, and the opponents, who have no batches.
//!
//! Lookups within one iteration do not depend on each other: this is throughput, as in a batch of packets.
//! `lookup6` is the same for IPv6. `build4` and `build6` time construction, `fib` that of a whole table with its checks.
//! `publication` times the access to the table in force. Without `--bench` (as `cargo test` runs it) the largest tables
//! have 20,000 prefixes, for such a run shows that the benches work, and nothing else.

mod publication;
mod subjects;
mod tables;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ipnet::{IpNet, Ipv4Net};
use std::cell::LazyCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use subjects::Subjects;
use weft_fib::{Fib, FibBuilder, Lpm4, Lpm6, OwnerId, Peer, PeerId, Route};

const KEY_SETS: [&str; 3] = ["uniform/hit", "zipf/hit", "uniform/miss"];
const SHAPES: [&str; 2] = ["flannel", "internet"];

fn sizes() -> [(&'static str, usize); 3] {
    let largest = if std::env::args().any(|arg| arg == "--bench") { 1_000_000 } else { 20_000 };
    [("256", 256), ("10k", 10_000), ("1M", largest)]
}

fn lookup<A: Subjects>(criterion: &mut Criterion, name: &str) {
    let mut group = criterion.benchmark_group(name);
    for (size_name, size) in sizes() {
        for shape in SHAPES {
            // Made when the first cell that passes the command line's filter asks for it.
            let table = LazyCell::new(|| A::table(shape, size));
            let key_sets = KEY_SETS.map(|kind| (kind, LazyCell::new(|| A::keys(kind, &table))));
            for (subject, build) in A::SUBJECTS {
                let run = LazyCell::new(|| build(&table));
                for (kind, keys) in &key_sets {
                    let id = BenchmarkId::new(format!("{size_name}/{shape}/{kind}"), subject);
                    group.throughput(Throughput::Elements(tables::key_count(size) as u64));
                    group.bench_function(id, |bencher| {
                        let (run, keys) = (&*run, &**keys);
                        bencher.iter(|| run(keys));
                    });
                }
            }
        }
    }
}

fn lookup4(criterion: &mut Criterion) {
    lookup::<u32>(criterion, "lookup4");
}

fn lookup6(criterion: &mut Criterion) {
    lookup::<u128>(criterion, "lookup6");
}

/// Prints what each table takes, too.
fn build(criterion: &mut Criterion) {
    build_family::<u32, _>(criterion, "build4", Lpm4::build, Lpm4::memory);
    build_family::<u128, _>(criterion, "build6", Lpm6::build, Lpm6::memory);

    let mut group = criterion.benchmark_group("fib");
    let (name, size) = sizes()[2];
    group.throughput(Throughput::Elements(size as u64));
    group.bench_function(BenchmarkId::new("build", name), |bencher| {
        bencher.iter_batched(
            || full_table(size),
            |builder: FibBuilder| -> Fib { builder.build().unwrap() },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn build_family<A: Subjects, L>(
    criterion: &mut Criterion,
    name: &str,
    build: fn(&[tables::Prefix<A>]) -> L,
    memory: fn(&L) -> usize,
) {
    let mut group = criterion.benchmark_group(name);
    for (size_name, size) in sizes() {
        for shape in SHAPES {
            let table = LazyCell::new(|| {
                let table = A::table(shape, size);
                eprintln!("{name}/{size_name}/{shape}: weft takes {} KiB", memory(&build(&table)).div_ceil(1024));
                table
            });
            group.throughput(Throughput::Elements(size as u64));
            group.bench_function(BenchmarkId::new(format!("{size_name}/{shape}"), "weft"), |bencher| {
                let table = &*table;
                bencher.iter_batched(|| (), |()| build(table), BatchSize::PerIteration);
            });
            for (subject, build) in A::SUBJECTS.iter().filter(|(subject, _)| !subject.starts_with("weft")) {
                group.bench_function(BenchmarkId::new(format!("{size_name}/{shape}"), subject), |bencher| {
                    let table = &*table;
                    bencher.iter_batched(|| (), |()| build(table), BatchSize::PerIteration);
                });
            }
        }
    }
}

/// As the control socket hands a table over: as many hosts as ids allow, a /24 for each route.
fn full_table(route_count: usize) -> FibBuilder {
    let mut builder = FibBuilder::new(1);
    let peer_count = route_count.min(usize::from(PeerId::MAX.0)) as u16;
    for id in 0..peer_count {
        let addr = SocketAddr::from((Ipv4Addr::from_bits(0xc0a8_0000 + u32::from(id)), 8285));
        builder.peer(Peer { id: PeerId(id), addr, aliases: Vec::new(), owner: OwnerId(0) });
    }
    for index in 0..route_count as u32 {
        let prefix = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from_bits(0x0a00_0000 + (index << 8)), 24));
        builder.route(Route { prefix, peer: PeerId((index % u32::from(peer_count)) as u16) });
    }
    builder
}

fn config() -> Criterion {
    // Short, because there are many cells; `--measurement-time` on the command line lengthens them.
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args()
}

criterion_group! { name = fib; config = config(); targets = lookup4, lookup6, build, publication::publication }
criterion_main!(fib);
