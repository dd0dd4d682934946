//! The command line: one module per command, each with `Args` and `run`.

pub mod check;
pub mod completions;
pub mod demo;
pub mod down;
pub mod drain;
pub mod exec;
pub mod flanneld;
pub mod hook;
pub mod log;
pub mod logging;
pub mod monitor;
pub mod output;
pub mod peers;
pub mod route;
pub mod run;
pub mod stats;
pub mod status;
pub mod tunnel_args;
pub mod up;
pub mod version;

use crate::client::ClientError;
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use weft_proto::RefusalCode;

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

impl From<&ClientError> for Exit {
    /// The exit code of a command that failed with this.
    fn from(error: &ClientError) -> Exit {
        match error {
            ClientError::Unreachable { .. } | ClientError::Timeout { .. } | ClientError::Closed { .. } => {
                Exit::Unreachable
            }
            ClientError::NotPermitted { .. } => Exit::NotPermitted,
            ClientError::Refused(refusal) if refusal.code == RefusalCode::NotPermitted => Exit::NotPermitted,
            ClientError::Refused(refusal) if refusal.code == RefusalCode::Invalid => Exit::Usage,
            ClientError::Invalid(_) => Exit::Usage,
            _ => Exit::Failed,
        }
    }
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

impl CliError {
    /// The same error, with a remedy that is printed on a line of its own.
    pub fn with_hint(self, hint: impl Into<String>) -> CliError {
        let hinted = Hinted { what: format!("{:#}", self.error), hint: hint.into() };
        CliError { exit: self.exit, error: hinted.into() }
    }

    /// `weft: what: why`, and `hint: remedy` where there is one.
    fn render(&self) -> String {
        let hint = self.error.downcast_ref::<Hinted>().map(|hinted| format!("\nhint: {}", hinted.hint));
        format!("weft: {:#}{}", self.error, hint.unwrap_or_default())
    }
}

/// An error text and its remedy.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
struct Hinted {
    what: String,
    hint: String,
}

#[derive(Debug, Parser)]
#[command(
    name = "weft",
    version,
    about = "weft: a fast userspace UDP tunnel, wire-compatible with flannel's udp backend",
    after_help = EXAMPLES,
    disable_help_subcommand = true
)]
struct Cli {
    /// Say more on standard error; RUST_LOG overrides it
    #[arg(short, long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  weft demo                     see it work: two hosts on this machine
  weft check tunnel.toml        is the file right? touches nothing
  weft up tunnel.toml           bring the tunnel up and return
  weft                          what is it doing? (the same as `weft status`)
  weft peers                    who is there, and how much was sent
  weft route get 10.99.2.7      which peer does this address lead to?
  weft down tunnel.toml         take it down, leaving nothing behind
  weft run --config FILE        stay, follow the file and DNS, restart what dies
  weft flanneld --ip-masq       join a flannel cluster in place of flanneld

Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 weftd not reachable, 4 not permitted, 5 degraded.";

// The order is that of `weft --help`.
#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Args),
    Down(down::Args),
    Run(run::Args),
    Flanneld(flanneld::Args),
    Check(check::Args),
    Status(status::Args),
    Peers(peers::Args),
    Route(route::Args),
    Stats(stats::Args),
    Monitor(monitor::Args),
    Demo(demo::Args),
    Log(log::Args),
    Drain(drain::Args),
    Hook(hook::Args),
    Completions(completions::Args),
    Version(version::Args),
    #[command(name = crate::daemon::EXEC_COMMAND, hide = true)]
    Exec(exec::Args),
}

/// Parses arguments, runs one command, prints an error with its remedy, and gives the exit code.
pub fn main() -> ExitCode {
    if let Some(arguments) = flanneld::arguments() {
        return ended(flanneld::run_with(arguments));
    }
    let cli = Cli::parse();
    // Bare `weft` is `weft status`, as bare `wg` is `wg show`.
    let status = || Cli::parse_from(["weft", "status"]).command.expect("it names a command");
    let command = cli.command.unwrap_or_else(status);
    let logs_otherwise = match &command {
        Command::Flanneld(_) => true,
        Command::Hook(args) => args.is_silent(),
        _ => false,
    };
    if !logs_otherwise {
        logging::start(cli.verbose, matches!(command, Command::Run(_)));
    }
    let result = match command {
        Command::Up(args) => up::run(args),
        Command::Down(args) => down::run(args),
        Command::Run(args) => run::run(args),
        Command::Flanneld(args) => flanneld::run(args),
        Command::Check(args) => check::run(args),
        Command::Status(args) => status::run(args),
        Command::Peers(args) => peers::run(args),
        Command::Route(args) => route::run(args),
        Command::Stats(args) => stats::run(args),
        Command::Monitor(args) => monitor::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Log(args) => log::run(args),
        Command::Drain(args) => drain::run(args),
        Command::Hook(args) => hook::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Version(args) => version::run(args),
        Command::Exec(args) => exec::run(args),
    };
    ended(result)
}

/// The exit code of a command; an error is printed.
fn ended(result: Result<Exit, CliError>) -> ExitCode {
    let exit = result.unwrap_or_else(|error| {
        eprintln!("{}", error.render());
        error.exit
    });
    ExitCode::from(exit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bare_weft_is_status() {
        assert!(Cli::parse_from(["weft"]).command.is_none());
        assert!(matches!(Cli::parse_from(["weft", "status"]).command, Some(Command::Status(_))));
    }

    #[test]
    fn an_error_is_printed_with_its_remedy_below() {
        let error = CliError::from(anyhow::anyhow!("no route").context("10.0.0.0/8")).with_hint("add one");
        assert_eq!(error.render(), "weft: 10.0.0.0/8: no route\nhint: add one");
    }

    #[test]
    fn every_command_has_a_sentence_of_help() {
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
        }
    }
}
