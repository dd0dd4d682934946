//! Ending a measurement early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often a sleeper looks up.
const LOOK: Duration = Duration::from_millis(20);

/// A flag that ends measurements. Clones are the same flag.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

/// The flag was raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

impl Stop {
    /// The flag itself, for a signal handler to raise.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }

    /// Raises the flag.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// True once the flag was raised.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Success as long as the flag is down.
    ///
    /// # Errors
    /// [`Stopped`] once it was raised.
    pub fn check(&self) -> Result<(), Stopped> {
        if self.is_raised() { Err(Stopped) } else { Ok(()) }
    }

    /// Sleeps.
    ///
    /// # Errors
    /// [`Stopped`] within 20 ms of the flag being raised.
    pub fn sleep(&self, length: Duration) -> Result<(), Stopped> {
        let deadline = Instant::now() + length;
        loop {
            self.check()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(LOOK));
        }
    }
}

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped")
    }
}

impl std::error::Error for Stopped {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeper_wakes_when_the_flag_is_raised() {
        let stop = Stop::default();
        assert_eq!(stop.sleep(Duration::from_millis(1)), Ok(()));
        let raiser = stop.clone();
        let started = Instant::now();
        let thread = thread::spawn(move || raiser.raise());
        assert_eq!(stop.sleep(Duration::from_secs(60)), Err(Stopped));
        assert!(started.elapsed() < Duration::from_secs(30));
        thread.join().unwrap();
    }
}
