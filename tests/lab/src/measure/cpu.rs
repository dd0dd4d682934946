//! CPU time of the whole machine.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

const PATH: &str = "/proc/stat";
/// `USER_HZ` is 100 wherever `/proc/stat` is read (include/asm-generic/param.h, Linux 6.18; only alpha differs).
const TICK_MS: u64 = 10;

/// CPU time of this process, all threads. On a busy machine it takes longer to get, but not more of it.
pub fn process_cpu_time() -> Duration {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
}

/// CPU time that the machine has spent on work since it started, summed over cores, in clock ticks of 10 ms.
///
/// Work is user, nice, system, irq and softirq time (proc_stat(5)). Idle, waiting for disks, and time that a hypervisor
/// gave to others are none; guest time is part of user time already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTime {
    ticks: u64,
}

impl CpuTime {
    /// Reads the clock.
    ///
    /// # Errors
    /// If `/proc/stat` is not there or not readable.
    pub fn now() -> Result<Self> {
        let text = fs::read_to_string(PATH).with_context(|| format!("reading {PATH}"))?;
        Self::parse(&text).with_context(|| format!("{PATH} does not begin with the times of all CPUs"))
    }

    /// What was spent since `earlier`.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.ticks.saturating_sub(earlier.ticks) * TICK_MS)
    }

    fn parse(text: &str) -> Option<Self> {
        let times = text.lines().next()?.strip_prefix("cpu ")?;
        let times: Vec<u64> = times.split_whitespace().map_while(|time| time.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal guest guest_nice
        let [user, nice, system, _idle, _iowait, irq, softirq, ..] = times[..] else { return None };
        Some(Self { ticks: user + nice + system + irq + softirq })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_and_stolen_time_is_no_work() {
        let text = "cpu  1 2 4 1000 2000 8 16 4000 1 2\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        assert_eq!(CpuTime::parse(text), Some(CpuTime { ticks: 31 }));
        assert_eq!(CpuTime::parse("cpu0 1 2 3\n"), None);
    }

    #[test]
    fn the_clock_of_this_machine_can_be_read_and_does_not_run_backwards() {
        let earlier = CpuTime::now().unwrap();
        assert!(CpuTime::now().unwrap().since(earlier) < Duration::from_secs(3600));
    }
}
