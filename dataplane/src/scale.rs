//! How many workers share the flows: as few as carry them.
//!
//! Flows that share a worker share its sends and its wake-ups, and leave cores to those who make and use the traffic; but one thread
//! carries no more than one core does. So weftd begins with one worker; when one in use fills its core, the next is taken in, and when they
//! have been at leisure for a while, the last one is left out again. A flow that then goes by another worker may see packets
//! overtake each other once.
//!
//! ```text
//!   each worker, ten times a second while it has traffic:
//!     processor time of the thread, less what it spun in vain --> Scale --> lane::Workers, where the programs look that choose
//! ```

use crate::lane::Workers;
use crate::limits::{CALM_MIN, CALM_SHARE, FULL_SHARE, LOAD_WINDOW};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tracing::{debug, warn};

/// What the workers of a weftd know of each other's load, and whom that takes in or leaves out.
#[derive(Debug)]
pub struct Scale {
    workers: Arc<Workers>,
    rule: Mutex<Rule>,
}

impl Scale {
    /// Begins with as many as are in use.
    pub fn new(workers: Arc<Workers>) -> Scale {
        let rule = Mutex::new(Rule::new(workers.count(), workers.in_use()));
        Scale { workers, rule }
    }

    /// Notes which share of its core a worker filled from `since` to `now`.
    fn note(&self, worker: usize, since: Duration, now: Duration, share: f64) {
        // Who finds it locked comes again.
        let Ok(mut rule) = self.rule.try_lock() else { return };
        let Some(in_use) = rule.note(worker, since, now, share) else { return };
        if let Err(error) = self.workers.use_first(in_use) {
            return warn!(
                "{} worker(s) go on sharing the flows, {in_use} would do better: {error}",
                self.workers.in_use()
            );
        }
        debug!("{in_use} of {} workers share the flows from now on", self.workers.count());
    }
}

/// When to take a worker in, and when to leave one out. Times are those of one monotonic clock.
#[derive(Debug)]
struct Rule {
    in_use: usize,
    changed: Duration,
    /// When each was last heard of, and the share of its core that it filled.
    shares: Vec<(Duration, f64)>,
    /// Since when one fewer would do.
    calm_since: Option<Duration>,
}

impl Rule {
    fn new(count: usize, in_use: usize) -> Rule {
        Rule { in_use, changed: Duration::ZERO, shares: vec![(Duration::ZERO, 0.0); count], calm_since: None }
    }

    /// How many are in use from now on, if that changes.
    fn note(&mut self, worker: usize, since: Duration, now: Duration, share: f64) -> Option<usize> {
        self.shares[worker] = (now, share);
        // What was seen before the last change says nothing about what that brought.
        if since < self.changed {
            return None;
        }
        let heard = self.shares.iter().filter(|(at, _)| now.saturating_sub(*at) <= 2 * LOAD_WINDOW);
        let total: f64 = heard.map(|(_, share)| share).sum();
        let is_calm = self.in_use > 1 && total < CALM_SHARE * (self.in_use - 1) as f64;
        self.calm_since = is_calm.then(|| self.calm_since.unwrap_or(since));
        let is_full = share >= FULL_SHARE && worker < self.in_use && self.in_use < self.shares.len();
        if is_full {
            self.in_use += 1;
        } else if self.calm_since.is_some_and(|since| now.saturating_sub(since) >= CALM_MIN) {
            self.in_use -= 1;
        } else {
            return None;
        }
        (self.changed, self.calm_since) = (now, None);
        Some(self.in_use)
    }
}

/// One worker's measure of its own load.
#[derive(Debug)]
pub struct Load {
    scale: Arc<Scale>,
    worker: usize,
    /// Where the window began, and what the thread had used of its core by then.
    since: Duration,
    used: Duration,
    last_turn: Duration,
    /// Time of the window's turns that spun and brought nothing.
    spun: Duration,
}

impl Load {
    /// For the thread of `worker`, which calls this.
    pub fn new(scale: Arc<Scale>, worker: usize) -> Load {
        let zero = Duration::ZERO;
        Load { scale, worker, since: zero, used: zero, last_turn: zero, spun: zero }
    }

    /// Notes a turn that ended at `now`; `in_vain`: it looked for work, without sleeping, and found none.
    #[inline]
    pub fn turn(&mut self, now: Duration, in_vain: bool) {
        if in_vain {
            self.spun += now.saturating_sub(self.last_turn);
        }
        self.last_turn = now;
        if now.saturating_sub(self.since) >= LOAD_WINDOW {
            self.end_window(now);
        }
    }

    #[cold]
    fn end_window(&mut self, now: Duration) {
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let used = Duration::new(used.tv_sec as u64, used.tv_nsec as u32);
        let busy = (used - self.used).saturating_sub(self.spun);
        let share = busy.as_secs_f64() / (now - self.since).as_secs_f64();
        self.scale.note(self.worker, self.since, now, share);
        (self.since, self.used, self.spun) = (now, used, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rule, and windows of it that follow each other.
    struct Run {
        rule: Rule,
        now: Duration,
    }

    impl Run {
        fn new(count: usize, in_use: usize) -> Run {
            Run { rule: Rule::new(count, in_use), now: Duration::from_secs(100) }
        }

        /// A window in which the workers filled such shares of their cores; how many are in use after it.
        fn window<const N: usize>(&mut self, shares: [f64; N]) -> usize {
            let since = self.now;
            self.now += LOAD_WINDOW;
            for (worker, share) in shares.into_iter().enumerate() {
                self.rule.note(worker, since, self.now, share);
            }
            self.rule.in_use
        }
    }

    #[test]
    fn a_full_worker_takes_the_next_one_in_up_to_the_last() {
        let mut run = Run::new(3, 1);
        assert_eq!((0..50).map(|_| run.window([0.8])).max(), Some(1), "there is room");
        assert_eq!(run.window([0.95]), 2);
        assert_eq!(run.window([0.5, 0.5]), 2);
        assert_eq!(run.window([0.4, 0.9]), 3, "the second was full");
        assert_eq!(run.window([1.0, 1.0, 1.0]), 3, "there are no more");
    }

    #[test]
    fn what_was_measured_before_a_change_does_not_count_after_it() {
        let mut run = Run::new(3, 1);
        assert_eq!(run.window([0.95]), 2);
        let changed = run.now;
        run.rule.note(1, changed - LOAD_WINDOW / 2, changed + LOAD_WINDOW / 2, 0.99);
        assert_eq!(run.rule.in_use, 2, "half of that was before");
        run.rule.note(1, changed, changed + LOAD_WINDOW, 0.99);
        assert_eq!(run.rule.in_use, 3);
    }

    #[test]
    fn one_is_left_out_once_fewer_would_have_done_for_a_while() {
        let mut run = Run::new(2, 2);
        let calm = (CALM_MIN.as_millis() / LOAD_WINDOW.as_millis()) as usize;
        assert_eq!((0..50).map(|_| run.window([0.4, 0.4])).min(), Some(2), "one would be full");
        assert_eq!((0..calm - 1).map(|_| run.window([0.2, 0.3])).min(), Some(2), "not yet");
        assert_eq!(run.window([0.5, 0.5]), 2, "it was a pause");
        assert_eq!((0..calm - 1).map(|_| run.window([0.2, 0.3])).min(), Some(2), "from the start again");
        assert_eq!(run.window([0.2, 0.3]), 1);
        assert_eq!((0..50).map(|_| run.window([0.0])).min(), Some(1), "there is always one");
    }

    #[test]
    fn who_sleeps_is_at_leisure_and_a_long_sleep_is_a_long_while() {
        let mut run = Run::new(2, 2);
        assert_eq!(run.window([0.5, 0.5]), 2);
        // Both sleep; the first wakes after a minute.
        let since = run.now;
        run.now += Duration::from_secs(60);
        run.rule.note(0, since, run.now, 0.001);
        assert_eq!(run.rule.in_use, 1);
    }

    #[test]
    fn a_flow_that_one_worker_must_carry_alone_changes_nothing_for_ever() {
        let mut run = Run::new(2, 1);
        let in_use: Vec<usize> = (0..100).map(|_| run.window([0.97, 0.0])).collect();
        assert!(in_use.iter().all(|in_use| *in_use == 2), "taken in once, for nothing, and not in and out: {in_use:?}");
    }
}
