//! Access to the table in force, once per batch: alone, and while another thread swaps it 1,000 times per second.

use crate::subjects::BATCH;
use crate::tables::Family;
use arc_swap::{ArcSwap, Cache};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use crossbeam::epoch::{self, Atomic, Owned};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use weft_fib::{FibCell, Lpm4};

const SWAP_EVERY: Duration = Duration::from_millis(1);

/// The subjects, each with a table in force.
struct Places {
    cell: Arc<FibCell<Lpm4>>,
    arc_swap: ArcSwap<Lpm4>,
    /// crossbeam alone, as its documentation shows it: what readers defer, they free.
    epoch: Atomic<Lpm4>,
}

impl Places {
    fn swap(&self, build: impl Fn() -> Lpm4) {
        self.cell.publish(build());
        self.arc_swap.store(Arc::new(build()));
        let guard = epoch::pin();
        let old = self.epoch.swap(Owned::new(build()), Ordering::AcqRel, &guard);
        // SAFETY: `old` was made by `Owned::new`, and readers that pin later cannot reach it.
        unsafe { guard.defer_destroy(old) };
    }
}

/// `publication/access`: nothing but the access. `publication/batch/SIZE`: the access and a batch of lookups, the tables
/// being new ones of the same routes, so that a swap costs the reader the cold lines of the new table too.
pub fn publication(criterion: &mut Criterion) {
    for load in ["quiet", "1000-swaps"] {
        let mut group = criterion.benchmark_group("publication/access");
        under_load(&mut group, load, 1, |lpm, _| u64::from(lpm.lookup(0).is_some()), &[]);
        group.finish();
        for (name, size) in [("256", 256), ("10k", 10_000)] {
            let table = u32::table("flannel", size);
            let keys = u32::keys("uniform/hit", &table);
            let mut group = criterion.benchmark_group(format!("publication/batch/{name}"));
            group.throughput(Throughput::Elements(BATCH as u64));
            let look_up = |lpm: &Lpm4, batch: &[u32]| {
                let mut values = [None; BATCH];
                lpm.lookup_batch(batch, &mut values);
                black_box(&values);
                0
            };
            under_load(&mut group, load, size, look_up, &keys);
            group.finish();
        }
    }
}

fn under_load(
    group: &mut BenchmarkGroup<'_, WallTime>,
    load: &str,
    size: usize,
    work: impl Fn(&Lpm4, &[u32]) -> u64,
    keys: &[u32],
) {
    let table = u32::table("flannel", size);
    let build = || Lpm4::build(&table);
    let places =
        Places { cell: FibCell::new(build()), arc_swap: ArcSwap::from_pointee(build()), epoch: Atomic::new(build()) };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        if load != "quiet" {
            scope.spawn(|| {
                let start = Instant::now();
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    places.swap(build);
                    count += 1;
                    thread::sleep((SWAP_EVERY * count).saturating_sub(start.elapsed()));
                }
                eprintln!("swaps: {:.0} per second", f64::from(count) / start.elapsed().as_secs_f64());
            });
        }
        let mut measure = |subject: &str, access: &mut dyn FnMut(&[u32]) -> u64| {
            let mut batches = keys.chunks_exact(BATCH).cycle();
            group.bench_function(BenchmarkId::new(load, subject), |bencher| {
                bencher.iter(|| access(batches.next().unwrap_or_default()));
            });
        };
        let reader = places.cell.reader();
        measure("weft", &mut |keys| work(&reader.pin(), keys));
        measure("crossbeam", &mut |keys| {
            let guard = epoch::pin();
            // SAFETY: the pointer is never null, and what it points to is freed only after `guard` has gone.
            work(unsafe { places.epoch.load(Ordering::Acquire, &guard).deref() }, keys)
        });
        measure("arc-swap", &mut |keys| work(&places.arc_swap.load(), keys));
        measure("arc-swap-full", &mut |keys| work(&places.arc_swap.load_full(), keys));
        let mut cache = Cache::new(&places.arc_swap);
        measure("arc-swap-cache", &mut |keys| work(cache.load(), keys));
        done.store(true, Ordering::Relaxed);
    });
}
