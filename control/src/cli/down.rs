//! `weft down`: takes a tunnel down and leaves nothing behind.

use super::tunnel_args::{RunDirArgs, name_of, tunnel_error};
use super::{CliError, Exit, output};
use crate::causes;
use crate::rules::{Mode, Programs, Rules, RulesError};
use crate::state::Paths;
use crate::tunnel::{TakenDown, TunnelError, take_down};
use std::fs;
use std::path::PathBuf;

/// Take a tunnel down
///
/// Lets weftd finish what it has read and end; device, address, routes, socket, log and state go, and so do the traffic
/// rules of `weft flanneld`. Device and routes of its backends vxlan and host-gw stay, as flanneld would leave them: the next
/// flanneld goes on with them without a gap. May be repeated, and works when weftd has died.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tunnel file, or name of the tunnel
    #[arg(value_name = "FILE|NAME")]
    tunnel: PathBuf,
    #[command(flatten)]
    run_dir: RunDirArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<Exit, CliError> {
    let name = name_of(&args.tunnel, &args.run_dir.run_dir)?;
    let paths = Paths::new(&args.run_dir.run_dir, &name);
    let mode = fs::read_to_string(paths.rules()).unwrap_or_default();
    let mode = Mode::BOTH.into_iter().find(|known| known.word() == mode.trim());
    let taken = take(&paths).map_err(|error| tunnel_error(&name, &error))?;
    output::print(match (taken.was_up, taken.weftd) {
        (false, _) if mode.is_some() => {
            format!("{name}: no weftd to end (vxlan and host-gw have none; their device and routes stay for flanneld)")
        }
        (false, _) => format!("{name}: was not up"),
        (true, Some(how)) => format!("{name}: down; weftd {how}"),
        (true, None) => format!("{name}: down; weftd had died, removed what it left"),
    })?;
    if let Some(left) = taken.left {
        eprintln!("{name}: not removed: {left}");
    }
    let Some(mode) = mode else { return Ok(Exit::Ok) };
    match remove_rules(mode) {
        Ok(removed) if removed.is_empty() => {}
        Ok(removed) => {
            output::print(format!("{name}: rules: {}", removed.join("; ")))?;
        }
        Err(error) => {
            let error = anyhow::anyhow!("{name}: rules of {} are not removed: {}", mode.word(), causes::text(&error));
            return Err(CliError { exit: Exit::Failed, error });
        }
    }
    Ok(Exit::Ok)
}

fn remove_rules(mode: Mode) -> Result<Vec<String>, RulesError> {
    let (mut rules, mut notes) = Rules::start(mode, Programs::default())?;
    notes.extend(rules.remove()?);
    Ok(notes)
}

fn take(paths: &Paths) -> Result<TakenDown, TunnelError> {
    let lock = paths.take_lock()?;
    let state = paths.read_state()?;
    let taken = take_down(paths, state.as_ref())?;
    paths.remove(lock)?;
    Ok(taken)
}
