//! The hidden command by which weft starts weftd in a session of its own; see [`crate::daemon::start`].

use super::{CliError, Exit};
use crate::daemon;
use std::ffi::OsString;
use std::path::PathBuf;

/// Become PROGRAM in a new session
#[derive(Debug, clap::Args)]
pub struct Args {
    program: PathBuf,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs the command; returns only if it fails.
pub fn run(args: Args) -> Result<Exit, CliError> {
    let error = daemon::exec_in_own_session(&args.program, &args.arguments);
    Err(anyhow::Error::from(error).context(args.program.display().to_string()).into())
}
