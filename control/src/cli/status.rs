//! `weft status`: one screen of state.

use super::output::{self, SocketArgs, daemon};
use super::{CliError, Exit};
use serde::Serialize;
use weft_proto::StatusReport;

/// Show what weftd is doing; where several are running, each of them
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    socket: SocketArgs,
    /// Exit 5 if weftd does less than it could: an offload refused at run time, a fallback engine, no route, a lost worker
    #[arg(long)]
    check: bool,
    /// Print JSON, of one weftd
    #[arg(long)]
    json: bool,
}

/// The JSON form: the report, and why it is degraded.
#[derive(Serialize)]
struct Checked<'a> {
    #[serde(flatten)]
    status: &'a StatusReport,
    degraded: &'a [String],
}

/// Runs the command.
pub fn run(args: Args) -> Result<Exit, CliError> {
    if args.json {
        let status = args.socket.connect()?.status().map_err(daemon)?;
        let degraded = status.degraded();
        output::print_json(&Checked { status: &status, degraded: &degraded }, false)?;
        return Ok(args.exit(&degraded));
    }
    let paths = args.socket.paths()?;
    let mut exit = Exit::Ok;
    for (index, path) in paths.iter().enumerate() {
        let status = args.socket.connect_to(path)?.status().map_err(daemon)?;
        let degraded = status.degraded();
        if paths.len() > 1 {
            let (gap, name) =
                (if index > 0 { "\n" } else { "" }, path.file_stem().unwrap_or_default().to_string_lossy());
            output::print(format_args!("{gap}tunnel {name}"))?;
        }
        output::print(render(&status, &degraded))?;
        if exit == Exit::Ok {
            exit = args.exit(&degraded);
        }
    }
    Ok(exit)
}

impl Args {
    fn exit(&self, degraded: &[String]) -> Exit {
        if self.check && !degraded.is_empty() { Exit::Degraded } else { Exit::Ok }
    }
}

fn render(status: &StatusReport, degraded: &[String]) -> String {
    let offloads: Vec<_> = status.offloads.each().into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect();
    // Only if they are others than that of the address.
    let ports: Vec<String> = status.source_ports.iter().map(u16::to_string).collect();
    let bind = match &ports[..] {
        [] | [_] => format!("{} udp", status.bind),
        ports => format!("{} udp, sends from ports {}", status.bind, ports.join(" ")),
    };
    let mut workers = format!("{} of {} running", status.workers_running, status.workers);
    if (1..status.workers).contains(&status.workers_in_use) {
        workers.push_str(&format!(", {} in use", status.workers_in_use));
    }
    let rows = [
        ("weftd", format!("{}, pid {}, up {}", status.weftd_version, status.pid, output::duration(status.uptime_ms))),
        (
            "tun",
            format!("{} (index {}), mtu {}, opener {}", status.tun_name, status.tun_ifindex, status.mtu, status.opener),
        ),
        ("bind", bind),
        (
            "engine",
            match &status.engine_note {
                Some(note) => format!("{} ({note}), spin {} us", status.engine, status.spin_us),
                None => format!("{}, spin {} us", status.engine, status.spin_us),
            },
        ),
        ("workers", workers),
        ("offloads", if offloads.is_empty() { "none".into() } else { offloads.join(" ") }),
        ("peer check", status.peer_check.clone()),
        (
            "table",
            format!(
                "generation {}: {}, {}",
                status.generation,
                output::count(status.routes, "route"),
                output::count(status.peers, "peer")
            ),
        ),
        ("digest", status.digest.to_string()),
        ("drops", format!("{} encap, {} decap (`weft stats` says why)", status.encap_drops, status.decap_drops)),
    ];
    let mut text: String = rows.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect();
    for reason in degraded {
        text.push_str(&format!("{:<12}{reason}\n", "degraded"));
    }
    text.truncate(text.trim_end().len());
    text
}
