//! [`FibCell`]: whole tables only, and old ones freed, by the publisher, soon.
#![cfg(not(crossbeam_loom))]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ThreadId};
use weft_fib::{Fib, FibBuilder, FibCell, OwnerId, Peer, PeerId, Route};

/// A table of `generation` in which every route leads to one peer, whose id is the generation.
fn uniform(generation: u16) -> Fib {
    let mut builder = FibBuilder::new(generation.into());
    let addr = SocketAddr::from(([192, 0, 2, generation as u8], 8285));
    builder.peer(Peer { id: PeerId(generation), addr, aliases: Vec::new(), owner: OwnerId(0) });
    // Its shape changes with the generation, so that a mixed table would not go unnoticed.
    for third in 0..=generation % 50 {
        let prefix = format!("10.244.{third}.{}/{}", third % 2 * 128, 24 + third % 2).parse().unwrap();
        builder.route(Route { prefix, peer: PeerId(generation) });
    }
    builder.build().unwrap()
}

#[test]
fn readers_see_one_whole_generation_per_pin() {
    let generations = if cfg!(miri) { 20 } else { 5_000 };
    let cell = FibCell::new(uniform(1));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let reader = cell.reader();
                let mut latest = 0;
                while !done.load(Ordering::Acquire) {
                    let fib = reader.pin();
                    let generation = fib.generation();
                    assert!(generation >= latest, "generation {generation} after {latest}");
                    latest = generation;
                    let id = PeerId(generation as u16);
                    for third in 0..50 {
                        let expected = (third <= id.0 % 50).then_some(id);
                        let address = 0x0af4_0000 | u32::from(third) << 8 | u32::from(third % 2) << 7;
                        assert_eq!(fib.lookup4(address), expected);
                    }
                    assert_eq!(fib.peer(id).addr.port(), 8285);
                }
            });
        }
        for generation in 2..generations {
            cell.publish(uniform(generation));
        }
        done.store(true, Ordering::Release);
    });
    assert_eq!(cell.reader().pin().generation(), u64::from(generations) - 1);
    assert_eq!(cell.reclaim(), 0);
}

/// Counts itself while it lives, and notes the threads that free it.
struct Counted {
    value: usize,
    census: Arc<Census>,
}

#[derive(Default)]
struct Census {
    alive: AtomicUsize,
    most_alive: AtomicUsize,
    freed_by: std::sync::Mutex<Vec<ThreadId>>,
}

impl Counted {
    fn new(value: usize, census: &Arc<Census>) -> Counted {
        let alive = census.alive.fetch_add(1, Ordering::Relaxed) + 1;
        census.most_alive.fetch_max(alive, Ordering::Relaxed);
        Counted { value, census: Arc::clone(census) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.census.alive.fetch_sub(1, Ordering::Relaxed);
        let mut freed_by = self.census.freed_by.lock().unwrap();
        let current = thread::current().id();
        if !freed_by.contains(&current) {
            freed_by.push(current);
        }
    }
}

const PUBLISHES: usize = if cfg!(miri) { 50 } else { 10_000 };

#[test]
fn publisher_alone_frees_each_old_table_at_once() {
    let census = Arc::new(Census::default());
    let cell = FibCell::new(Counted::new(0, &census));
    for value in 1..=PUBLISHES {
        cell.publish(Counted::new(value, &census));
        assert_eq!(census.alive.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn idle_reader_holds_back_nothing() {
    let census = Arc::new(Census::default());
    let cell = FibCell::new(Counted::new(0, &census));
    let reader = cell.reader();
    drop(reader.pin());
    for value in 1..=PUBLISHES {
        cell.publish(Counted::new(value, &census));
        assert_eq!(census.alive.load(Ordering::Relaxed), 1);
    }
    assert_eq!(reader.pin().value, PUBLISHES);
}

#[test]
fn pinned_table_outlives_its_replacement_and_is_then_reclaimed() {
    let census = Arc::new(Census::default());
    let cell = FibCell::new(Counted::new(0, &census));
    let reader = cell.reader();
    let pin = reader.pin();
    for value in 1..=100 {
        cell.publish(Counted::new(value, &census));
    }
    assert_eq!(pin.value, 0);
    assert!(cell.reclaim() > 0);
    drop(pin);
    assert_eq!(cell.reclaim(), 0);
    assert_eq!(census.alive.load(Ordering::Relaxed), 1);
    assert_eq!(reader.pin().value, 100);
}

#[test]
fn busy_readers_neither_pile_up_tables_nor_free_them() {
    let census = Arc::new(Census::default());
    let cell = FibCell::new(Counted::new(0, &census));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let reader = cell.reader();
                let mut latest = 0;
                while !done.load(Ordering::Acquire) {
                    let table = reader.pin();
                    assert!(table.value >= latest);
                    latest = table.value;
                }
            });
        }
        for value in 1..=PUBLISHES {
            cell.publish(Counted::new(value, &census));
        }
        done.store(true, Ordering::Release);
    });
    assert_eq!(cell.reclaim(), 0);
    assert_eq!(census.alive.load(Ordering::Relaxed), 1);
    assert_eq!(*census.freed_by.lock().unwrap(), [thread::current().id()]);
    // A reader that loses its CPU while pinned may hold back what is published meanwhile, at a slowed-down rate.
    let most_alive = census.most_alive.load(Ordering::Relaxed);
    assert!(most_alive < 200, "{most_alive} tables were alive at once");
}

#[test]
fn everything_is_freed_with_the_cell() {
    let census = Arc::new(Census::default());
    let cell = FibCell::new(Counted::new(0, &census));
    let reader = cell.reader();
    let pin = reader.pin();
    cell.publish(Counted::new(1, &census));
    drop(cell);
    assert_eq!(pin.value, 0);
    drop(pin);
    drop(reader);
    assert_eq!(census.alive.load(Ordering::Relaxed), 0);
}
