//! Model of publish, read and reclaim: every interleaving (up to a number of preemptions) of the real [`FibCell`] over
//! crossbeam's real epochs, with loom's atomics underneath both.
//!
//! ```text
//! RUSTFLAGS="--cfg crossbeam_loom" LOOM_MAX_PREEMPTIONS=2 \
//!     cargo test -p weft-fib --release --target-dir target/loom --test loom
//! ```
#![cfg(crossbeam_loom)]

use loom::cell::UnsafeCell;
use loom::thread;
use weft_fib::FibCell;

const FREED: usize = usize::MAX;

/// A table whose reads and whose end loom sees: a read that is not ordered before the end is reported as a race.
struct Table(UnsafeCell<usize>);

// SAFETY: the content is written by `drop` only, which has exclusive access; that readers do not overlap it is what the
// model proves, and loom's cell reports where they do.
unsafe impl Sync for Table {}

impl Table {
    fn new(value: usize) -> Table {
        Table(UnsafeCell::new(value))
    }

    fn value(&self) -> usize {
        self.0.with(|value| {
            // SAFETY: loom's cell has just checked that nobody writes.
            unsafe { *value }
        })
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.0.with_mut(|value| {
            // SAFETY: loom's cell has just checked that nobody else reads or writes.
            unsafe { *value = FREED }
        });
    }
}

#[test]
fn reader_never_sees_a_freed_table() {
    loom::model(|| {
        let cell = FibCell::new(Table::new(0));
        let reading = {
            let cell = cell.clone();
            thread::spawn(move || {
                let reader = cell.reader();
                let pin = reader.pin();
                let (first, again) = (pin.value(), pin.value());
                assert!(first < 2 && again == first, "read {first}, then {again}");
            })
        };
        cell.publish(Table::new(1));
        reading.join().unwrap();
        assert_eq!(cell.reclaim(), 0);
        assert_eq!(cell.reader().pin().value(), 1);
    });
}

#[test]
fn later_pins_see_later_tables() {
    loom::model(|| {
        let cell = FibCell::new(Table::new(0));
        let reading = {
            let cell = cell.clone();
            thread::spawn(move || {
                let reader = cell.reader();
                let first = reader.pin().value();
                let second = reader.pin().value();
                assert!(first <= second && second <= 2, "read {first}, then {second}");
            })
        };
        cell.publish(Table::new(1));
        cell.publish(Table::new(2));
        reading.join().unwrap();
        assert_eq!(cell.reclaim(), 0);
    });
}

#[test]
fn publishers_take_turns() {
    loom::model(|| {
        let cell = FibCell::new(Table::new(0));
        let other = {
            let cell = cell.clone();
            thread::spawn(move || cell.publish(Table::new(1)))
        };
        cell.publish(Table::new(2));
        let reader = cell.reader();
        let value = reader.pin().value();
        assert!(value == 1 || value == 2, "read {value}");
        other.join().unwrap();
        assert_eq!(cell.reclaim(), 0);
    });
}
