//! `weft-bench run`.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use weft_bench::campaign::{self, Campaign};
use weft_bench::progress::Progress;
use weft_bench::result::{Mode, Plan, Report, SCHEMA};
use weft_bench::spec::{Kind, SubjectSpec};
use weft_bench::workload::{Workload, parse_rate};
use weft_bench::{host, iperf3, table, targets};
use weft_lab::measure::{self, Stop, Window};

use super::report::write_html;

/// Exit code for arguments that cannot be meant.
const USAGE: u8 = 2;
/// A machine on which others use more than this part of the CPU time is no place for measurements.
const LOAD_MAX: f64 = 0.15;
/// What ratios are against unless another subject is named.
const BASELINE: &str = "vxlan";
/// The smallest and largest MTU of the underlay.
const MTU_RANGE: std::ops::RangeInclusive<u32> = 1500..=65_000;

/// What to measure.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Subjects, separated by commas; `weft-bench list` shows them
    #[arg(long, value_name = "LIST", default_value = "weft,vxlan,host-gw")]
    subjects: String,
    /// One more subject, which may contain commas; may be given several times
    #[arg(long = "subject", value_name = "SUBJECT")]
    more: Vec<String>,
    /// How packets cross the link: offload (super-packets whole), wire (at MTU size)
    #[arg(long, value_name = "LIST", default_value = "offload,wire")]
    modes: String,
    /// Workloads, separated by commas; `weft-bench list` shows them
    #[arg(long, value_name = "LIST", default_value = "tcp1,tcp4,udp64,udp1400,udpgso,rr")]
    workloads: String,
    /// MTUs of the underlay, bytes, separated by commas
    #[arg(long, value_name = "LIST", default_value = "1500")]
    mtu: String,
    /// Rate limits of the link, bit/s, separated by commas, such as 1g; none: no limit
    #[arg(long, value_name = "LIST", default_value = "none")]
    rate: String,
    /// Rounds: how often each measurement is repeated [default: 5; with --quick: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Length of one measurement, seconds [default: 2; with --quick: 0.5]
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Traffic before a measurement counts, seconds [default: 0.3; with --quick: 0.2]
    #[arg(long, value_name = "SECONDS")]
    warm_up: Option<f64>,
    /// Two short rounds: under 90 seconds in all with the default subjects and workloads
    #[arg(long)]
    quick: bool,
    /// The subject that ratios are against [default: vxlan, if it is among the subjects]
    #[arg(long, value_name = "SUBJECT")]
    baseline: Option<String>,
    /// Congestion control of TCP, such as cubic or bbr, for every TCP workload [default: the system's]
    #[arg(long, value_name = "NAME")]
    congestion_control: Option<String>,
    /// Ask iperf3, too, after each TCP workload in one direction
    #[arg(long)]
    cross_check: bool,
    /// Time in all to wait for cores that a hypervisor moved, and to measure again, seconds; 0: take them as they are
    /// [default: 300; with --quick: 10]
    #[arg(long, value_name = "SECONDS")]
    patience: Option<f64>,
    /// Write everything to a file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write everything to a file as HTML, with drawings
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Measure even if the machine is busy or programs are debug builds
    #[arg(long)]
    force: bool,
}

/// Runs, shows, writes.
pub fn run(args: &RunArgs) -> ExitCode {
    let campaign = match args.campaign() {
        Ok(campaign) => campaign,
        Err(error) => {
            eprintln!("weft-bench: {error:#}");
            return ExitCode::from(USAGE);
        }
    };
    match args.perform(&campaign) {
        Ok(report) if report.ok => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("weft-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl RunArgs {
    /// What the arguments ask for.
    fn campaign(&self) -> Result<Campaign> {
        let default = |full: f64, quick: f64| if self.quick { quick } else { full };
        let length = seconds("--seconds", self.seconds.unwrap_or(default(2.0, 0.5)), 0.1)?;
        let warm_up = seconds("--warm-up", self.warm_up.unwrap_or(default(0.3, 0.2)), 0.0)?;
        let patience = seconds("--patience", self.patience.unwrap_or(default(300.0, 10.0)), 0.0)?;
        let mut subjects = SubjectSpec::parse_list(&self.subjects).context("--subjects")?;
        for text in &self.more {
            subjects.push(SubjectSpec::parse(text).context("--subject")?);
        }
        SubjectSpec::check(&subjects)?;
        if let Some(baseline) = &self.baseline {
            let is_there = subjects.iter().any(|spec| spec.name == *baseline);
            ensure!(is_there, "--baseline {baseline}: expected one of the subjects");
        }
        let workloads = Workload::parse_list(&self.workloads).context("--workloads")?;
        if workloads.iter().any(|(_, workload)| *workload == Workload::Peers) {
            let without = subjects.iter().find(|spec| !spec.kind.has_peers());
            ensure!(
                without.is_none(),
                "workload `peers`: subject `{}` cannot be set up with many peers; expected weft, vxlan or host-gw",
                without.map_or("", |spec| &spec.name)
            );
        }
        let congestion_control = self.congestion_control.as_deref();
        measure::congestion_control(congestion_control).context("--congestion-control")?;
        Ok(Campaign {
            rounds: self.rounds.unwrap_or(if self.quick { 2 } else { 5 }),
            window: Window { warm_up, length },
            subjects,
            modes: list("--modes", &self.modes, mode)?,
            mtus: list("--mtu", &self.mtu, mtu)?,
            rates_mbit: list("--rate", &self.rate, rate)?,
            workloads,
            cross_check: self.cross_check,
            congestion_control: self.congestion_control.clone(),
            patience,
        })
    }

    fn perform(&self, campaign: &Campaign) -> Result<Report> {
        ensure!(rustix::process::geteuid().is_root(), "it builds network namespaces, which needs root");
        let has_weft = campaign.subjects.iter().any(|spec| matches!(spec.kind, Kind::Weft(_)));
        if has_weft {
            weft_lab::weftd_binary()?;
        }
        if self.cross_check {
            iperf3::check_installed().context("--cross-check")?;
        }
        let debug_build = cfg!(debug_assertions) || campaign.subjects.iter().any(is_debug_build);
        if debug_build && !self.force {
            bail!(
                "weft-bench or weftd is a debug build, which measures nothing: use `cargo build --release -p \
                 weft-dataplane -p weft-bench` and target/release/weft-bench, or --force"
            );
        }
        let load = host::load()?;
        if load > LOAD_MAX && !self.force {
            bail!(
                "the machine is busy: others use {:.0} % of its CPU time; wait until it is idle, or use --force",
                load * 100.0
            );
        }
        for path in [&self.json, &self.html].into_iter().flatten() {
            // Better now than after minutes of measuring. What is there stays until there is something in its place.
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("writing {}", path.display()))?;
        }
        let stop = Stop::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, stop.flag()).context("registering a signal")?;
        }
        let mut report = self.empty_report(campaign, load, debug_build);
        let seconds = |time: Duration| humantime::format_duration(Duration::from_secs(time.as_secs()));
        let waiting = match campaign.patience {
            Duration::ZERO => String::new(),
            patience => format!(", up to {} longer if a hypervisor moves the cores", seconds(patience)),
        };
        eprintln!("{} measurements, about {}{waiting}", campaign.extent(), seconds(campaign.time()));
        let mut progress = Progress::new(campaign.extent());
        campaign::perform(campaign, &stop, &mut progress, &mut report);
        drop(progress);
        println!("{}", table::show(&report));
        println!("{}", targets::table(&report, &targets::judge(&report)));
        for failure in &report.failures {
            println!("FAILED: {failure}");
        }
        if let Some(path) = &self.json {
            let text = serde_json::to_string(&report)? + "\n";
            fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        if let Some(path) = &self.html {
            write_html(&report, path)?;
        }
        Ok(report)
    }

    fn empty_report(&self, campaign: &Campaign, load: f64, debug_build: bool) -> Report {
        let names: Vec<String> = campaign.subjects.iter().map(|spec| spec.name.clone()).collect();
        Report {
            schema: SCHEMA,
            ok: false,
            failures: Vec::new(),
            interrupted: false,
            weft_version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: host::commit(),
            command: std::env::args().collect(),
            started: campaign::rfc3339_now(),
            elapsed_s: 0.0,
            host: host::facts(load, debug_build, None),
            plan: Plan {
                rounds: campaign.rounds,
                seconds: campaign.window.length.as_secs_f64(),
                warm_up: campaign.window.warm_up.as_secs_f64(),
                baseline: self.baseline.clone().or_else(|| names.iter().find(|name| *name == BASELINE).cloned()),
                subjects: names,
                modes: campaign.modes.clone(),
                mtus: campaign.mtus.clone(),
                rates_mbit: campaign.rates_mbit.clone(),
                workloads: campaign.workloads.iter().map(|(name, _)| name.clone()).collect(),
                congestion_control: campaign.congestion_control.clone(),
            },
            subjects: Vec::new(),
            samples: Vec::new(),
            medians: Vec::new(),
            ratios: Vec::new(),
        }
    }
}

/// A weftd from a directory that cargo fills with debug builds.
fn is_debug_build(spec: &SubjectSpec) -> bool {
    let Kind::Weft(weft) = &spec.kind else { return false };
    weft.binary.as_ref().is_some_and(|path| path.components().any(|part| part.as_os_str() == "debug"))
}

/// Reads a list separated by commas, in which nothing may be there twice.
fn list<T: PartialEq>(flag: &str, text: &str, parse: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
    let mut list = Vec::new();
    for piece in text.split(',') {
        let value = parse(piece).context(flag.to_owned())?;
        ensure!(!list.contains(&value), "{flag}: `{piece}` is there twice");
        list.push(value);
    }
    Ok(list)
}

fn mode(text: &str) -> Result<Mode> {
    let found = Mode::ALL.into_iter().find(|mode| mode.name() == text);
    found.with_context(|| format!("`{text}` is no mode: expected offload or wire"))
}

fn mtu(text: &str) -> Result<u32> {
    let expected = || format!("`{text}`: expected {} to {} bytes", MTU_RANGE.start(), MTU_RANGE.end());
    text.parse().ok().filter(|mtu| MTU_RANGE.contains(mtu)).with_context(expected)
}

/// Mbit/s; `None`: no limit.
fn rate(text: &str) -> Result<Option<u64>> {
    if text == "none" {
        return Ok(None);
    }
    let bits = parse_rate(text)?;
    ensure!(bits >= 1e6, "`{text}`: expected 1m (1 Mbit/s) or more, or none");
    Ok(Some((bits / 1e6).round() as u64))
}

fn seconds(flag: &str, value: f64, min: f64) -> Result<Duration> {
    ensure!((min..=600.0).contains(&value), "{flag} {value}: expected {min} to 600 seconds");
    Ok(Duration::from_secs_f64(value))
}
