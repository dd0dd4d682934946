//! Counters below `/proc`: context switches, TCP segments of a network namespace, CPU time and resident memory of processes.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use weft_lab::Node;

/// Counters of TCP and UDP in one network namespace (proc(5), `/proc/net/snmp` and `/proc/net/netstat`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCounters {
    /// `Tcp: RetransSegs`: segments sent again.
    pub retransmits: u64,
    /// `TcpExt: TCPOFOQueue`: segments that came before one that was due.
    pub reordered: u64,
    /// `Udp: RcvbufErrors`: datagrams that arrived and found the receiver's buffer full.
    pub receiver_drops: u64,
}

impl NetCounters {
    /// Reads those of a node.
    ///
    /// # Errors
    /// If the kernel does not show them.
    pub fn of(node: &Node) -> Result<NetCounters> {
        // `/proc/net` would be that of the process's first thread.
        let read = |name: &str| {
            let path = format!("/proc/thread-self/net/{name}");
            fs::read_to_string(&path).with_context(|| format!("reading {path}"))
        };
        let (snmp, netstat) = node.run(|| (read("snmp"), read("netstat")));
        let value = |text: &str, table, name| {
            counter(text, table, name).with_context(|| format!("the kernel shows no {table} {name}"))
        };
        let snmp = snmp?;
        Ok(NetCounters {
            retransmits: value(&snmp, "Tcp:", "RetransSegs")?,
            receiver_drops: value(&snmp, "Udp:", "RcvbufErrors")?,
            reordered: value(&netstat?, "TcpExt:", "TCPOFOQueue")?,
        })
    }
}

/// One counter of a table in which a line of names stands above a line of values, both behind the table's name.
fn counter(text: &str, table: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.split_whitespace().next() == Some(table));
    let (names, values) = (lines.next()?, lines.next()?);
    let found = names.split_whitespace().zip(values.split_whitespace()).find(|(found, _)| *found == name);
    found?.1.parse().ok()
}

/// Context switches of the whole machine since it started: `ctxt` of `/proc/stat`.
///
/// # Errors
/// If the kernel does not show them.
pub fn context_switches() -> Result<u64> {
    let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    field(&text, "ctxt").context("/proc/stat has no line ctxt")
}

/// What the scheduler counted for the threads of some processes, by thread (sched-stats.rst, `/proc/PID/schedstat`): CPU
/// time in nanoseconds, where clock ticks would show nothing of a process that is almost idle, and turns on a CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turns(BTreeMap<u32, (u64, u64)>);

impl Turns {
    /// Reads those of processes; `None` if none of them is there or the kernel does not count, which it shows as zeros.
    pub fn of(pids: &[u32]) -> Option<Turns> {
        let folders = pids.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok());
        let threads = folders.flatten().filter_map(|thread| {
            let thread = thread.ok()?;
            let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            Some((thread.file_name().to_str()?.parse().ok()?, turns(&text)?))
        });
        let turns: BTreeMap<_, _> = threads.collect();
        turns.values().any(|(time, _)| *time > 0).then_some(Turns(turns))
    }

    /// CPU time and number of turns since `earlier`. What a thread did that has ended meanwhile is not known.
    pub fn since(&self, earlier: &Turns) -> (Duration, u64) {
        let mut sum = (Duration::ZERO, 0);
        for (thread, (time, count)) in &self.0 {
            let (time_before, count_before) = earlier.0.get(thread).unwrap_or(&(0, 0));
            sum.0 += Duration::from_nanos(time.saturating_sub(*time_before));
            sum.1 += count.saturating_sub(*count_before);
        }
        sum
    }
}

/// CPU time and turns of a `schedstat`: its first and its third number.
fn turns(text: &str) -> Option<(u64, u64)> {
    let mut numbers = text.split_whitespace();
    Some((numbers.next()?.parse().ok()?, numbers.nth(1)?.parse().ok()?))
}

/// Bytes of resident memory of a process: `VmRSS` of `/proc/PID/status`; `None` if it is gone.
pub fn resident(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(field(&text, "VmRSS:")? * 1024)
}

/// Bytes of memory of the machine: `MemTotal` of `/proc/meminfo`.
pub fn memory() -> Option<u64> {
    Some(field(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")? * 1024)
}

/// The number behind a word at the beginning of a line.
fn field(text: &str, word: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(word))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_by_the_name_above_it() {
        let text =
            "Ip: Forwarding InReceives\nIp: 1 2\nTcp: RtoMin RetransSegs InErrs\nTcp: 200 17 3\nTcpX: A\nTcpX: 1\n";
        assert_eq!(counter(text, "Tcp:", "RetransSegs"), Some(17));
        assert_eq!(counter(text, "Ip:", "InReceives"), Some(2));
        assert_eq!(counter(text, "Tcp:", "A"), None);
        assert_eq!(counter(text, "Udp:", "A"), None);
    }

    #[test]
    fn a_field_is_the_number_behind_its_word() {
        let text = "cpu  1 2\nctxt 12345\nVmRSS:\t  2048 kB\n";
        assert_eq!((field(text, "ctxt"), field(text, "VmRSS:"), field(text, "btime")), (Some(12345), Some(2048), None));
    }

    #[test]
    fn turns_are_summed_over_threads_those_that_are_new_included() {
        assert_eq!((turns("1500 20 3\n"), turns("1500 20")), (Some((1500, 3)), None));
        let earlier = Turns([(1, (1000, 10)), (2, (500, 5))].into());
        let later = Turns([(1, (1700, 11)), (3, (40, 2))].into());
        assert_eq!(later.since(&earlier), (Duration::from_nanos(740), 3));
    }

    #[test]
    fn a_thread_that_works_is_seen_and_a_process_that_is_gone_is_not() {
        let own = [std::process::id()];
        let earlier = Turns::of(&own).unwrap();
        let began = weft_lab::measure::process_cpu_time();
        while weft_lab::measure::process_cpu_time() - began < Duration::from_millis(50) {}
        // Of a thread that runs, the scheduler counts at its ticks.
        assert!(Turns::of(&own).unwrap().since(&earlier).0 > Duration::from_millis(20));
        assert_eq!(Turns::of(&[u32::MAX]), None);
        assert_eq!(Turns::of(&[]), None);
    }

    #[test]
    fn this_machine_shows_what_is_read() {
        assert!(context_switches().unwrap() > 0);
        assert!(resident(std::process::id()).unwrap() > 100_000);
        assert!(memory().unwrap() > 1 << 20);
        assert_eq!(resident(u32::MAX), None);
    }
}
