//! How far the cores are from each other: what a line of memory takes from one to another.
//!
//! A hypervisor may move the cores of a virtual machine. On EPYC 4 of `docs/performance.md` two cores are 26 ns from each other when
//! they share a last-level cache and 150 when they do not, for seconds at a time. Whatever hands packets from core to core
//! is slower then, and one tunnel more so than another. For moments they may even be the two threads of one core, at 14.

use std::fmt;
use std::panic::resume_unwind;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::median;

/// Cores that are looked at beside the first.
const OTHERS_MAX: usize = 7;
/// Batches of a measurement; the fastest counts, for an interrupt may come in between.
const BATCHES: u32 = 20;
/// Ways there and back in a batch.
const TURNS: u32 = 100;

/// Cores that are more than so many times as far from each other as at another time, or as near, are elsewhere.
const ELSEWHERE: f64 = 2.0;

/// Whether two distances are those of different places.
pub fn is_elsewhere(a: f64, b: f64) -> bool {
    a.max(b) > a.min(b) * ELSEWHERE
}

/// As near as the cores were in a quarter of the measurements, given in ascending order; `None` if there are none. A shortest
/// distance of one moment says nothing: it may be that of the two threads of one core.
pub fn usual(distances: &[f64]) -> Option<f64> {
    distances.get(distances.len() / 4).copied()
}

/// The distances of a run, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distances {
    /// The middle one of its measurements.
    pub median: f64,
    /// The shortest.
    pub nearest: f64,
    /// The longest.
    pub farthest: f64,
    /// Measurements at which the cores were not at their [`usual`] distance, ...
    pub moved: usize,
    /// ... of so many.
    pub count: usize,
}

impl Distances {
    /// Those of one run; `None` if there are none.
    pub fn of(mut all: Vec<f64>) -> Option<Distances> {
        all.sort_by(f64::total_cmp);
        let (nearest, farthest) = (*all.first()?, *all.last()?);
        let usual = usual(&all)?;
        let moved = all.iter().filter(|distance| is_elsewhere(usual, **distance)).count();
        Some(Distances { median: median(&all)?, nearest, farthest, moved, count: all.len() })
    }
}

impl fmt::Display for Distances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Distances { median, nearest, farthest, moved, count } = self;
        write!(f, "{median:.0} ns from each other ({nearest:.0} to {farthest:.0}), ")?;
        match moved {
            0 => write!(f, "never moved in {count} measurements"),
            _ => write!(f, "moved in {moved} of {count} measurements"),
        }
    }
}

/// A line of memory that no other variable shares (two lines: they are fetched in pairs).
#[repr(align(128))]
struct Line(AtomicU32);

/// Nanoseconds that a line takes one way, from the first core that this process may use to the farthest of the next
/// seven; `None` with one core. Takes a fraction of a millisecond for each on an idle machine.
///
/// # Errors
/// If the kernel does not tell or set the cores of a thread.
pub fn core_to_core() -> Result<Option<f64>> {
    let usable = sched_getaffinity(None).context("asking which cores may be used")?;
    let mut usable = (0..CpuSet::MAX_CPU).filter(|core| usable.is_set(*core));
    let Some(first) = usable.next() else { return Ok(None) };
    let mut farthest: Option<f64> = None;
    for other in usable.take(OTHERS_MAX) {
        let distance = between(first, other)?;
        farthest = Some(farthest.map_or(distance, |farthest| farthest.max(distance)));
    }
    Ok(farthest)
}

/// One way between two cores, nanoseconds.
fn between(here: usize, there: usize) -> Result<f64> {
    let line = Line(AtomicU32::new(0));
    // Nobody waits for one who could not be bound: both meet here first.
    let bound = Barrier::new(2);
    let (echo, clock) = thread::scope(|scope| {
        let echo = scope.spawn(|| {
            let is_bound = bind(there);
            bound.wait();
            for turn in 0..BATCHES * TURNS {
                pass(&line, 2 * turn + 1);
            }
            is_bound
        });
        let clock = scope.spawn(|| {
            let is_bound = bind(here);
            bound.wait();
            let batch = |number| {
                let started = Instant::now();
                for turn in 0..TURNS {
                    pass(&line, 2 * (number * TURNS + turn));
                }
                started.elapsed()
            };
            let fastest = (0..BATCHES).map(batch).min().unwrap_or_default();
            is_bound.map(|()| fastest.as_secs_f64() * 1e9 / f64::from(2 * TURNS))
        });
        (joined(echo), joined(clock))
    });
    echo.and(clock)
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Waits for a number and writes the next.
fn pass(line: &Line, number: u32) {
    while line.0.load(Ordering::Acquire) != number {
        std::hint::spin_loop();
    }
    line.0.store(number + 1, Ordering::Release);
}

fn bind(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).with_context(|| format!("binding a thread to core {core}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_takes_nanoseconds_and_the_cores_of_this_thread_stay_as_they_were() {
        let before = sched_getaffinity(None).unwrap();
        match core_to_core().unwrap() {
            Some(distance) => assert!((0.5..1e6).contains(&distance), "{distance} ns"),
            None => assert_eq!(before.count(), 1),
        }
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }

    #[test]
    fn distances_of_a_run_tell_how_often_its_cores_were_elsewhere() {
        assert_eq!(Distances::of(Vec::new()), None);
        let text = |distances: &[f64]| Distances::of(distances.to_vec()).unwrap().to_string();
        let found = text(&[26.0, 27.0, 151.0, 28.0]);
        assert_eq!(found, "28 ns from each other (26 to 151), moved in 1 of 4 measurements");
        let found = text(&[31.0, 12.0, 33.0, 31.0, 32.0, 89.0]);
        assert_eq!(found, "32 ns from each other (12 to 89), moved in 2 of 6 measurements");
        assert_eq!(text(&[31.0, 32.0]), "32 ns from each other (31 to 32), never moved in 2 measurements");
    }
}
