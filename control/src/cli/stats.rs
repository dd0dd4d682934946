//! `weft stats`: every counter, with what it means.

use super::output::{self, SocketArgs, daemon};
use super::{CliError, Exit};
use std::io::IsTerminal;
use std::time::Duration;
use weft_proto::StatsReport;

/// Show what weftd counted: packets, drops by reason, batch sizes, workers
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    socket: SocketArgs,
    /// Repeat every SECS seconds until interrupted
    #[arg(long, value_name = "SECS", num_args = 0..=1, default_missing_value = "1", value_parser = seconds)]
    watch: Option<Duration>,
    /// Show zero counters and drop reasons too
    #[arg(long)]
    all: bool,
    /// Print JSON: one object, or one per line with --watch
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<Exit, CliError> {
    let mut client = args.socket.connect()?;
    loop {
        let stats = client.stats().map_err(daemon)?;
        let read_on = if args.json {
            output::print_json(&stats, args.watch.is_some())?
        } else if args.watch.is_some() && std::io::stdout().is_terminal() {
            // Clear the screen and go to its top: ECMA-48 ED and CUP.
            output::print(format_args!("\x1b[2J\x1b[H{}", render(&stats, args.all)))?
        } else {
            output::print(render(&stats, args.all))?
        };
        match args.watch {
            Some(interval) if read_on => std::thread::sleep(interval),
            _ => return Ok(Exit::Ok),
        }
    }
}

/// Reads a positive number of seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>().ok().and_then(|secs| Duration::try_from_secs_f64(secs).ok()) {
        Some(interval) if !interval.is_zero() => Ok(interval),
        _ => Err(format!("\"{text}\" is not a positive number of seconds")),
    }
}

fn render(stats: &StatsReport, all: bool) -> String {
    let totals = &stats.totals;
    let mut parts = vec![format!("engine {}, up {}", totals.engine, output::duration(totals.uptime_ms))];

    let mut counters = output::table(&["counter", "value", "what it counts"]);
    for counter in totals.counters.iter().filter(|counter| all || counter.value != 0) {
        counters.add_row([counter.name.clone(), counter.value.to_string(), counter.help.clone()]);
    }
    parts.push(counters.to_string());

    let mut drops = output::table(&["dropped", "reason", "packets", "what happened"]);
    for drop in totals.drops.iter().filter(|drop| all || drop.packets != 0) {
        drops.add_row([drop.direction.to_string(), drop.reason.clone(), drop.packets.to_string(), drop.help.clone()]);
    }
    parts.push(if drops.is_empty() { "nothing was dropped".into() } else { drops.to_string() });

    let mut sizes = output::table(&["batch size", "UDP sends", "TUN writes"]);
    for (i, (sends, writes)) in totals.send_segments.iter().zip(&totals.write_segments).enumerate() {
        let low = 1u64 << i;
        let range = match (i, i + 1 == totals.send_segments.len()) {
            (0, _) => "1".into(),
            (_, true) => format!("{low}+"),
            _ => format!("{low}-{}", 2 * low - 1),
        };
        sizes.add_row([range, sends.to_string(), writes.to_string()]);
    }
    parts.push(sizes.to_string());

    let mut workers = output::table(&["worker", "state", "encap pkts", "decap pkts", "syscalls", "drops", "offloads"]);
    for worker in &stats.workers {
        let counter = |name: &str| worker.counters.get(name).copied().unwrap_or_default().to_string();
        let dropped: u64 = worker.encap_drops.values().chain(worker.decap_drops.values()).sum();
        let offloads: Vec<_> = worker.offloads.each().into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect();
        workers.add_row([
            if worker.offloads.sparse_lane { "lane".into() } else { worker.index.to_string() },
            if worker.running { "running" } else { "ended" }.into(),
            counter("encap_packets"),
            counter("decap_packets"),
            counter("syscalls"),
            dropped.to_string(),
            if offloads.is_empty() { "none".into() } else { offloads.join(" ") },
        ]);
    }
    parts.push(workers.to_string());
    parts.join("\n\n")
}
