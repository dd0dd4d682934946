//! `weft run`: the long-running control process.

use super::tunnel_args::{RunDirArgs, load_error, tunnel_error};
use super::{CliError, Exit};
use crate::run::{self, Options, RunError};
use std::path::PathBuf;

/// Keep a tunnel true to its file
///
/// Stays in the foreground. Starts weftd, or adopts a tunnel that is up already without losing a packet; follows changes of
/// the file (a wrong one is reported and changes nothing) and of DNS names; puts back routes and addresses that somebody
/// removed; starts weftd again if it dies.
///
/// SIGHUP reads the file and resolves names at once. SIGTERM and SIGINT take the tunnel down, or leave it up with --keep.
/// If weft is killed outright, weftd forwards on, and the next `weft run` adopts it.
///
/// Under systemd: ExecStart=weft run --config /etc/weft/NAME.toml, ExecReload=kill -HUP $MAINPID; with --keep also
/// KillMode=process, or systemd ends weftd together with weft.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tunnel file; see examples/two-hosts-a.toml
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// Leave the tunnel up at the end
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    run_dir: RunDirArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<Exit, CliError> {
    let file = args.config.display().to_string();
    let options = Options { config: args.config, run_dir: args.run_dir.run_dir, keep: args.keep };
    match run::run(&options) {
        Ok(()) => Ok(Exit::Ok),
        Err(RunError::Load(error)) => Err(load_error(error)),
        Err(RunError::Tunnel(error)) => Err(tunnel_error(&file, &error)),
        Err(error @ RunError::Loop(_)) => Err(error.into()),
    }
}
