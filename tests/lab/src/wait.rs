//! Waiting for a condition.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The pause between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(10);

/// Calls `condition` until it succeeds and returns what it gave.
///
/// # Errors
/// The last error of `condition`, once `timeout` has passed.
pub fn eventually<T>(timeout: Duration, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("still not so after {timeout:?}"));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}
