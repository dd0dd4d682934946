//! `weft demo`: two hosts in network namespaces talk through weft, and are measured.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use weft_lab::measure::Stop;

use super::{CliError, Exit, output};
use crate::config::{Engine, Keyword};
use crate::demo::progress::Progress;
use crate::demo::report::Report;
use crate::demo::{self, Options, guard};

/// Shortest measurement, seconds: below, a window is shorter than the scheduler's whims.
const SECONDS_MIN: f64 = 0.05;
/// Longest measurement, seconds.
const SECONDS_MAX: f64 = 600.0;
/// Most rounds.
const ROUNDS_MAX: u32 = 1000;
/// The device that weftd needs.
const TUN: &str = "/dev/net/tun";

/// Show two hosts talking through weft, on this machine
///
/// Makes two hosts in network namespaces, brings a tunnel up between them with `weft up`, pings, sends files in both
/// directions and compares their hashes, and measures throughput, packet rate and latency beside kernel VXLAN and plain
/// routing. Takes about a minute, needs root and /dev/net/tun, and leaves nothing behind, also after Ctrl-C.
///
/// Exit codes: 0 everything succeeded, 1 something did not or the demo was interrupted, 4 not permitted.
#[derive(Debug, clap::Args)]
#[command(after_long_help = JSON_HELP)]
pub struct Args {
    /// Be done in about 15 seconds: one round, short measurements, small files
    #[arg(long)]
    quick: bool,
    /// Length of each of the 30 measurements of a round [default: 0.4, with --quick 0.25]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    seconds: Option<Duration>,
    /// Repeat every measurement so often [default: 3, with --quick 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(ROUNDS_MAX)))]
    rounds: Option<u32>,
    /// Engine of weftd: auto, uring or epoll
    #[arg(long, value_name = "ENGINE", default_value = "auto", value_parser = engine)]
    engine: Engine,
    /// Print one JSON object on standard output; progress goes to standard error
    #[arg(long)]
    json: bool,
    /// Wait for the end of standard input, then end every weftd of the demo in this directory: what the demo starts for itself
    #[arg(long, value_name = "DIRECTORY", hide = true, exclusive = true)]
    guard: Option<PathBuf>,
}

const JSON_HELP: &str = "\
The object of --json:
  ok            true only if every ping, hash and measurement succeeded, with the engine
                and offloads that were meant to run
  failures      why not, a sentence each
  interrupted   ended early by a signal
  machine       kernel, cpu, cores, debug_build
  plan          seconds, rounds, file_bytes
  hosts[]       name, underlay, overlay[], weftd (as `weft status --json`), degraded[]
  pings[]       ok, from, to, address, sent, received, rtt_us, ttl, error
  transfers[]   ok, from, to, address, bytes, seconds, sha256_sent, sha256_received, error
  measurements[]
                metric: tcp_1_flow, tcp_4_flows, udp_64_bytes, udp_segmented, latency_p50,
                        latency_p99, cpu_per_gigabyte
                unit, mode: offload or wire, subject: weft, vxlan or plain
                measured, value, ratio_to_vxlan, rounds[], loss (UDP), error
  elapsed_s, weft_version
The exit code is 0 exactly if ok is true.";

/// Runs the command.
pub fn run(args: Args) -> Result<Exit, CliError> {
    if let Some(directory) = &args.guard {
        guard::watch(directory).map_err(|error| CliError { exit: Exit::Failed, error })?;
        return Ok(Exit::Ok);
    }
    if let Some(why) = obstacle() {
        return refuse(&why, args.json);
    }
    let stop = Stop::default();
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, stop.flag())?;
    }
    let report = demo::run(&args.options(), &stop, &mut Progress::new(args.json));
    finish(&report, args.json)
}

impl Args {
    fn options(&self) -> Options {
        let base = if self.quick { Options::quick() } else { Options::default() };
        Options {
            length: self.seconds.unwrap_or(base.length),
            rounds: self.rounds.unwrap_or(base.rounds),
            engine: self.engine,
            ..base
        }
    }
}

fn finish(report: &Report, json: bool) -> Result<Exit, CliError> {
    if json {
        output::print_json(report, false)?;
    }
    Ok(if report.ok { Exit::Ok } else { Exit::Failed })
}

/// What keeps the demo from beginning, in one sentence.
fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("the demo makes network namespaces and TUN devices: run it as root".into());
    }
    if !Path::new(TUN).exists() {
        return Some(format!("there is no {TUN}: load the module (`modprobe tun`), or give the container that device"));
    }
    match weft_lab::Node::new("probe") {
        Ok(_) => None,
        Err(error) => Some(format!(
            "{error:#}: the demo needs CAP_NET_ADMIN and CAP_SYS_ADMIN, which a container has only if it is told to"
        )),
    }
}

fn refuse(why: &str, json: bool) -> Result<Exit, CliError> {
    if json {
        output::print_json(&demo::refused(why), false)?;
    }
    Err(CliError { exit: Exit::NotPermitted, error: anyhow!("{why}") })
}

fn seconds(text: &str) -> Result<Duration, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    if (SECONDS_MIN..=SECONDS_MAX).contains(&value) {
        Ok(Duration::from_secs_f64(value))
    } else {
        Err(format!("from {SECONDS_MIN} to {SECONDS_MAX} seconds"))
    }
}

fn engine(text: &str) -> Result<Engine, String> {
    let found = Engine::WORDS.iter().find(|(word, _)| *word == text).map(|(_, engine)| *engine);
    found.ok_or_else(|| "an engine is auto, uring or epoll".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn options(line: &[&str]) -> Options {
        Line::parse_from([&["demo"], line].concat()).args.options()
    }

    #[test]
    fn flags_override_what_quick_chooses() {
        assert_eq!(options(&[]), Options::default());
        assert_eq!(options(&["--quick"]), Options::quick());
        let both = options(&["--quick", "--rounds", "2", "--seconds", "1.5"]);
        assert_eq!((both.rounds, both.length), (2, Duration::from_millis(1500)));
        assert_eq!(both.file_len, Options::quick().file_len);
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for text in ["0", "-1", "nan", "inf", "1e9", "x"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_whole_demo_takes_a_minute_at_most_and_a_quick_one_a_quarter() {
        let seconds = |options: &Options| demo::compare::extent(options).1.as_secs();
        assert!(seconds(&Options::default()) <= 50, "{}", seconds(&Options::default()));
        assert!(seconds(&Options::quick()) <= 12, "{}", seconds(&Options::quick()));
    }
}
