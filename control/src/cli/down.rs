//! `weft down`: takes a tunnel down and leaves nothing behind.

use super::tunnel_args::{RunDirArgs, name_of, tunnel_error};
use super::{CliError, Exit, output};
use crate::state::Paths;
use crate::tunnel::{TakenDown, TunnelError, take_down};
use std::path::PathBuf;

/// Take a tunnel down
///
/// Lets weftd finish what it has read and end; device, address, routes, socket, log and state go. May be repeated, and
/// works when weftd has died.
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
    let taken = take(&paths).map_err(|error| tunnel_error(&name, &error))?;
    output::print(match (taken.was_up, taken.weftd) {
        (false, _) => format!("{name}: was not up"),
        (true, Some(how)) => format!("{name}: down; weftd {how}"),
        (true, None) => format!("{name}: down; weftd had died, removed what it left"),
    })?;
    if let Some(left) = taken.left {
        eprintln!("{name}: not removed: {left}");
    }
    Ok(Exit::Ok)
}

fn take(paths: &Paths) -> Result<TakenDown, TunnelError> {
    let lock = paths.take_lock()?;
    let state = paths.read_state()?;
    let taken = take_down(paths, state.as_ref())?;
    paths.remove(lock)?;
    Ok(taken)
}
