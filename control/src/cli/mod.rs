//! The command line: one module per command, each with `Args` and `run`.

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Exit codes of every command (design contract).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Failed.
    Failed = 1,
    /// Bad usage or bad configuration; nothing was touched.
    Usage = 2,
    /// The daemon is not reachable.
    Unreachable = 3,
    /// Not permitted.
    NotPermitted = 4,
    /// Degraded (`status --check`).
    Degraded = 5,
}

/// An error with the exit code it deserves. Commands return `Result<Exit, CliError>`.
#[derive(Debug)]
pub struct CliError {
    /// Exit code.
    pub exit: Exit,
    /// What, where and the remedy.
    pub error: anyhow::Error,
}

impl<E: Into<anyhow::Error>> From<E> for CliError {
    fn from(error: E) -> Self {
        CliError { exit: Exit::Failed, error: error.into() }
    }
}

#[derive(Debug, Parser)]
#[command(name = "weft", version, about = "weft: a fast userspace UDP tunnel, wire-compatible with flannel's udp backend")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {}

/// Parses arguments, runs one command, prints an error with its remedy, and gives the exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {}
}
