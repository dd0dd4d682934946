//! `weft drain`: ends weftd once it has forwarded what it has read.

use super::output::{self, SocketArgs, daemon};
use super::{CliError, Exit};

/// Have weftd forward what it has read, and end
///
/// The device goes with it; the unreachable routes behind it stay, so that nothing leaks, until `weft down`. A `weft run`
/// that looks after the tunnel starts weftd again: so this is also how to restart it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    socket: SocketArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<Exit, CliError> {
    let mut client = args.socket.connect()?;
    let pid = client.hello().pid;
    client.drain().map_err(daemon)?;
    output::print(format_args!("weftd, process {pid}, has drained"))?;
    Ok(Exit::Ok)
}
