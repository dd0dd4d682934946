//! Waiting for a condition.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long anything may take on a machine that is busy with something else. It only guards against waiting for ever: what
/// goes well does not wait for it, and nothing is judged by its speed.
pub const TIMEOUT: Duration = Duration::from_secs(20);

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
