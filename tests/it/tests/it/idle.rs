//! A daemon without traffic sleeps.
//!
//! ```text
//!   a [flannel0 - weftd] u0 ------------- u0 [weftd - flannel0] b
//! ```

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use weft_lab::{Ping, ping};

use crate::support::{Family, Host, Tunnel};

/// How long the daemons are watched.
const WATCHED: Duration = Duration::from_secs(3);
/// Processor time that a daemon may use meanwhile.
const BUSY_MAX: Duration = Duration::from_millis(20);
/// The unit of times in /proc/PID/stat: `USER_HZ` is 100 on every architecture that Linux has with a 64-bit kernel.
const TICK: Duration = Duration::from_millis(10);

#[test]
fn an_idle_daemon_uses_no_processor_time_on_uring() -> Result<()> {
    sleeps("uring")
}

#[test]
fn an_idle_daemon_uses_no_processor_time_on_epoll() -> Result<()> {
    sleeps("epoll")
}

fn sleeps(engine: &str) -> Result<()> {
    let builder = Tunnel::builder().each(|options| {
        options.engine = Some(engine.into());
        options.workers = Some(2);
    });
    let Some(tunnel) = builder.build()? else { return Ok(()) };
    // Falling asleep again is what is hard.
    ping(&tunnel.a.node, &Ping::to(tunnel.b.overlay(Family::V4)))?.reply()?;
    let before = [processor_time(&tunnel.a)?, processor_time(&tunnel.b)?];
    std::thread::sleep(WATCHED);
    for (host, before) in [&tunnel.a, &tunnel.b].into_iter().zip(before) {
        let used = processor_time(host)? - before;
        assert!(used <= BUSY_MAX, "the idle daemon on {} used {used:?} in {WATCHED:?}", host.node.name());
    }
    ping(&tunnel.a.node, &Ping::to(tunnel.b.overlay(Family::V4)))?.reply()?;
    Ok(())
}

/// User and system time of all threads of a daemon.
fn processor_time(host: &Host) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", host.weftd.pid()))?;
    // proc_pid_stat(5): the name, field 2, is in parentheses; utime and stime are fields 14 and 15.
    let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = fields[11].parse::<u32>()? + fields[12].parse::<u32>()?;
    Ok(TICK * ticks)
}
