//! `weft demo`: two hosts on this machine, a tunnel between them, proof that it works, and how it compares.
//!
//! 1. [`hosts`]: two network namespaces, a cable, and beside the tunnel kernel VXLAN and a plain route.
//! 2. [`tunnel`]: `weft up` on each host, as on real ones.
//! 3. [`talk`]: pings and files, both directions, both address families.
//! 4. [`compare`]: weft beside the others, taking turns.
//! 5. [`report`] draws the conclusions, [`screen`] shows them.
//!
//! It stands on `weft-lab`, the harness of the tests. Namespaces have no name and vanish with this process; weftd and its
//! files are removed whether the demo ends well, fails or is interrupted.

pub mod compare;
pub mod guard;
pub mod hosts;
pub mod progress;
pub mod report;
pub mod screen;
pub mod talk;
pub mod tunnel;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use weft_lab::Lab;
use weft_lab::measure::{Stop, Stopped};
use weft_proto::StatusReport;

use crate::config::{DEFAULT_PORT, Engine};
use guard::Guard;
use hosts::{Host, Hosts, UNDERLAY_MTU};
use progress::{Progress, Style};
use report::{HostReport, Machine, Plan, Report};
use tunnel::Ran;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Length of one measurement.
    pub length: Duration,
    /// How often each is repeated.
    pub rounds: u32,
    /// Bytes of each file.
    pub file_len: u64,
    /// The engine of both weftd.
    pub engine: Engine,
}

impl Default for Options {
    fn default() -> Self {
        Options { length: Duration::from_millis(400), rounds: 3, file_len: 64 << 20, engine: Engine::Auto }
    }
}

impl Options {
    /// The short form: one round, little files.
    pub fn quick() -> Self {
        Options { length: Duration::from_millis(250), rounds: 1, file_len: 16 << 20, ..Options::default() }
    }
}

/// Pings, files and measurements of a complete demo.
const COMPLETE: [usize; 3] = [4, 4, compare::MEASUREMENT_COUNT];

/// Runs the demo, tells about it on the way, and cleans up. What went wrong is in the report.
pub fn run(options: &Options, stop: &Stop, progress: &mut Progress) -> Report {
    let started = Instant::now();
    let plan = Plan { seconds: options.length.as_secs_f64(), rounds: options.rounds, file_bytes: options.file_len };
    let mut report = Report::new(machine(), plan);
    let outcome = perform(options, stop, progress, &mut report);
    progress.finish();
    if let Err(error) = outcome {
        if error.is::<Stopped>() || stop.is_raised() {
            report.interrupted = true;
            report.failures.push("stopped by a signal before its end".into());
        } else {
            report.failures.push(format!("{error:#}"));
        }
    }
    report.elapsed_s = started.elapsed().as_secs_f64();
    report.conclude(COMPLETE);
    if !report.measurements.is_empty() {
        progress.say(&screen::result(&report, progress));
    }
    progress.say(&screen::verdict(&report, progress));
    report
}

/// A report for a demo that cannot even begin.
pub fn refused(why: &str) -> Report {
    let mut report = Report::new(machine(), Plan { seconds: 0.0, rounds: 0, file_bytes: 0 });
    report.failures.push(why.to_owned());
    report
}

/// All that is done between nothing and nothing.
fn perform(options: &Options, stop: &Stop, progress: &mut Progress, report: &mut Report) -> Result<()> {
    let lab = Lab::start().context("WEFT_LAB_SKIP is set: unset it to see the demo")?;
    tunnel::adopt_orphans()?;
    // Before the hosts, and so ended after them.
    let _guard = Guard::start(lab.directory())?;
    let mut hosts = Hosts::new(&lab, options).context("making two hosts")?;
    introduce(&hosts, progress);
    let outcome = show(&mut hosts, &lab, options, stop, progress, report);
    progress.finish();
    progress.say("");
    if let Err(error) = hosts.down(|host, ran| tell(host, ran, progress)) {
        report.failures.push(format!("{error:#}"));
    }
    outcome
}

fn show(
    hosts: &mut Hosts,
    lab: &Lab,
    options: &Options,
    stop: &Stop,
    progress: &mut Progress,
    report: &mut Report,
) -> Result<()> {
    tell(&hosts.a, &hosts.a.tunnel.file()?, progress);
    hosts.up(stop, |host, ran| tell(host, ran, progress))?;
    talk(hosts, lab, options, stop, progress, report)?;
    hosts.check_opponents()?;
    let (steps, time) = compare::extent(options);
    let title = format!("Measuring weft beside kernel VXLAN and plain routing, about {:.0} s", time.as_secs_f64());
    progress.say(&format!("\n{}", progress.paint(Style::Bold, &title)));
    progress.start(steps);
    (report.measurements, report.core_to_core_ns) = compare::compare(hosts, options, stop, progress)?;
    for host in [&hosts.a, &hosts.b] {
        match inspect(host) {
            Ok(inspected) => report.hosts.push(inspected),
            Err(error) => report.failures.push(format!("{error:#}; weft's numbers are not called measured")),
        }
    }
    Ok(())
}

fn introduce(hosts: &Hosts, progress: &Progress) {
    let Hosts { a, b, .. } = hosts;
    progress.say(&progress.paint(Style::Bold, "Two hosts on this machine, each in its own network namespace"));
    let addresses = |host: &Host| format!("{}, {}", host.overlay[0], host.overlay[1]);
    for (left, middle, right) in [
        ("host a".to_owned(), String::new(), "host b".to_owned()),
        (a.underlay.to_string(), format!(" cable (veth), MTU {UNDERLAY_MTU} {:->7}", ""), b.underlay.to_string()),
        (addresses(a), format!(" weft, UDP port {DEFAULT_PORT} {:=>10}", ""), addresses(b)),
    ] {
        let line = middle.chars().last().unwrap_or(' ').to_string().repeat(7);
        progress.say(format!("  {left:<18} {line}{middle:<31} {right}").trim_end());
    }
    progress.say("");
}

fn tell(host: &Host, ran: &Ran, progress: &Progress) {
    let prompt = progress.paint(Style::Dim, &format!("host {}#", host.node.name()));
    progress.say(&format!("{prompt} {}", ran.command));
    ran.said.lines().for_each(|line| progress.say(&format!("  {line}")));
}

fn talk(
    hosts: &Hosts,
    lab: &Lab,
    options: &Options,
    stop: &Stop,
    progress: &Progress,
    report: &mut Report,
) -> Result<()> {
    progress.say(&format!("\n{}", progress.paint(Style::Bold, "They talk through the tunnel, over IPv4 and IPv6")));
    let directions = [(&hosts.a, &hosts.b), (&hosts.b, &hosts.a)];
    for family in 0..2 {
        for (from, to) in directions {
            stop.check()?;
            let ping = talk::exchange_pings(from, to, to.overlay[family]);
            progress.say(&screen::ping_line(&ping, progress));
            report.pings.push(ping);
        }
    }
    for (from, to) in directions {
        let source = lab.directory().join(format!("file-of-{}", from.node.name()));
        let target = lab.directory().join(format!("copy-at-{}", to.node.name()));
        talk::write_random_file(&source, options.file_len, stop).context("making a file of random bytes")?;
        for family in 0..2 {
            let transfer = talk::transfer_file(from, to, to.overlay[family], &source, &target, stop);
            stop.check()?;
            progress.say(&screen::transfer_line(&transfer, progress));
            report.transfers.push(transfer);
        }
        // Both directions need not lie on disk at once.
        for path in [source, target] {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// What really ran on a host.
fn inspect(host: &Host) -> Result<HostReport> {
    let weftd = host.tunnel.status().with_context(|| format!("asking weftd on host {}", host.node.name()))?;
    // Without io_uring weft runs on epoll, as it would for this person anywhere on this machine: the report says so, and
    // the numbers are weft's. `--engine uring` insists.
    let degraded = StatusReport { engine_fallback: false, ..weftd.clone() }.degraded();
    Ok(HostReport {
        name: host.node.name().into(),
        underlay: host.underlay.into(),
        overlay: host.overlay.to_vec(),
        weftd,
        degraded,
    })
}

fn machine() -> Machine {
    let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    Machine {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        cpu,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        debug_build: cfg!(debug_assertions),
    }
}
