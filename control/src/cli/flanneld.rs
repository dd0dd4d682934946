//! `weft flanneld`, also as `flanneld`: the daemon that joins a flannel cluster, with flanneld's command line.

use super::{CliError, Exit, logging};
use crate::causes;
use crate::flannel::daemon::{self, DaemonError};
use crate::flannel::flags::{self, Command, Refused};
use std::env;
use std::ffi::OsString;
use std::path::Path;
use tracing::warn;

/// The name under which weft is flanneld.
const NAME: &str = "flanneld";

/// Join a flannel cluster in place of flanneld (etcd; udp, vxlan or host-gw)
///
/// Takes flanneld's flags and FLANNELD_ variables; `weft flanneld --help` lists them. See docs/flannel.md.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// flanneld's flags
    #[arg(value_name = "FLAG", trailing_var_arg = true, allow_hyphen_values = true)]
    flags: Vec<OsString>,
}

/// flanneld's arguments, if this process is flanneld: by its name, or by its first argument. They are not for clap, which
/// has other ideas of what `-v 10` and `-iface` mean.
pub fn arguments() -> Option<Vec<OsString>> {
    let mut arguments = env::args_os();
    let called = arguments.next().unwrap_or_default();
    let rest: Vec<OsString> = arguments.collect();
    if Path::new(&called).file_name().is_some_and(|name| name == NAME) {
        return Some(rest);
    }
    match rest.split_first() {
        Some((first, flags)) if first == NAME => Some(flags.to_vec()),
        _ => None,
    }
}

/// Runs the command as clap found it, which is when something stands before its name.
pub fn run(args: Args) -> Result<Exit, CliError> {
    run_with(args.flags)
}

/// Runs the command.
pub fn run_with(arguments: Vec<OsString>) -> Result<Exit, CliError> {
    let arguments: Vec<String> =
        arguments.into_iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let flags = match flags::read(&arguments, |name| env::var(name).ok()) {
        Ok(Command::Run(flags)) => flags,
        Ok(Command::Help) => {
            eprint!("{}", flags::usage(NAME));
            return Ok(Exit::Ok);
        }
        Ok(Command::Version) => {
            eprintln!("weft {}", env!("CARGO_PKG_VERSION"));
            return Ok(Exit::Ok);
        }
        Err(Refused::Usage(error)) => {
            eprint!("{NAME}: {error}\n\n{}", flags::usage(NAME));
            return Ok(Exit::Usage);
        }
        Err(error @ Refused::Unsupported(_)) => return Err(error.into()),
    };
    logging::start_at(logging::level_of(flags.verbosity));
    tracing::info!("weft {} as {NAME}: {flags:?}", env!("CARGO_PKG_VERSION"));
    if flags.etcd.cafile.is_some() && (flags.etcd.certfile.is_none() || flags.etcd.keyfile.is_none()) {
        warn!(
            "--etcd-cafile counts for https endpoints, also without a client certificate (stock flannel ignores it then)"
        );
    }
    daemon::run(&flags).map(|()| Exit::Ok).map_err(|error| {
        let exit = match &error {
            DaemonError::Netlink(error) if error.is_permission_denied() => Exit::NotPermitted,
            _ => Exit::Failed,
        };
        CliError { exit, error: anyhow::Error::msg(causes::text(&error)) }
    })
}
