//! `weft version`.

use super::{CliError, Exit, output};
use serde::Serialize;
use weft_proto::limits::PROTOCOL_VERSION;

/// Print the version of weft and of the control protocol it speaks
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
    /// weftd must speak the same.
    protocol: u16,
}

/// Runs the command.
pub fn run(args: Args) -> Result<Exit, CliError> {
    let version = Version { version: env!("CARGO_PKG_VERSION"), protocol: PROTOCOL_VERSION };
    if args.json {
        output::print_json(&version, false)?;
    } else {
        output::print(format!("weft {} (control protocol {})", version.version, version.protocol))?;
    }
    Ok(Exit::Ok)
}
