//! The command line: one module per command, each with `Args` and `run`.

pub mod monitor;
pub mod output;
pub mod peers;
pub mod route;
pub mod stats;
pub mod status;

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
#[command(
    name = "weft",
    version,
    about = "weft: a fast userspace UDP tunnel, wire-compatible with flannel's udp backend"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Route(route::Args),
    Status(status::Args),
    Peers(peers::Args),
    Stats(stats::Args),
    Monitor(monitor::Args),
}

/// Parses arguments, runs one command, prints an error with its remedy, and gives the exit code.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Route(args) => route::run(args),
        Command::Status(args) => status::run(args),
        Command::Peers(args) => peers::run(args),
        Command::Stats(args) => stats::run(args),
        Command::Monitor(args) => monitor::run(args),
    };
    let exit = result.unwrap_or_else(|CliError { exit, error }| {
        eprintln!("weft: {error:#}");
        exit
    });
    ExitCode::from(exit as u8)
}
