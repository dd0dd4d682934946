//! `weft check`: is this tunnel file right?

use super::tunnel_args::load_error;
use super::{CliError, Exit, output};
use crate::config::{self, LoadError, Problem};
use serde::Serialize;
use std::path::PathBuf;

/// Check a tunnel file, touching nothing
///
/// Names every problem with line, column, key and remedy. Exit code 0: the file can be used (there may be warnings); 2: it
/// cannot. Host names are not resolved. Run it on the host that the file is for: one check is whether a peer's endpoint is
/// that host itself.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tunnel file
    file: PathBuf,
    /// Print JSON: {ok, file, error, problems: [{severity, line, column, key, message, hint}]}
    #[arg(long)]
    json: bool,
}

/// The JSON form.
#[derive(Serialize)]
struct Answer {
    /// The file can be used.
    ok: bool,
    file: String,
    /// Why the file could not be read.
    error: Option<String>,
    problems: Vec<Problem>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<Exit, CliError> {
    let result = config::load(&args.file);
    if args.json {
        let file = args.file.display().to_string();
        let answer = match result {
            Ok(loaded) => Answer { ok: true, file, error: None, problems: loaded.report.problems },
            Err(LoadError::Wrong(report)) => Answer { ok: false, file, error: None, problems: report.problems },
            Err(error) => Answer { ok: false, file, error: Some(error.to_string()), problems: Vec::new() },
        };
        output::print_json(&answer, false)?;
        return Ok(if answer.ok { Exit::Ok } else { Exit::Usage });
    }
    let loaded = result.map_err(load_error)?;
    if !loaded.report.problems.is_empty() {
        output::print(&loaded.report)?;
    }
    let tunnel = loaded.tunnel;
    let route_count: usize = tunnel.peers.iter().map(|peer| peer.subnets.len()).sum();
    let (file, name) = (args.file.display(), tunnel.name);
    let peers = output::count(tunnel.peers.len() as u32, "peer");
    let routes = output::count(route_count as u32, "route");
    output::print(format!("{file}: ok; tunnel {name:?}, {peers}, {routes}"))?;
    Ok(Exit::Ok)
}
