//! `weft log`: how much weftd logs.

use super::output::{self, SocketArgs, daemon};
use super::{CliError, Exit};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use weft_proto::LogLevel;

/// Set how much weftd logs, until it ends
///
/// A weftd that `weft up` or `weft run` started logs to NAME.log beside its control socket.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Least important level to log
    #[arg(value_parser = levels())]
    level: LogLevel,
    #[command(flatten)]
    socket: SocketArgs,
}

fn levels() -> impl TypedValueParser<Value = LogLevel> {
    let level = |name: String| LogLevel::ALL.into_iter().find(|level| level.name() == name);
    PossibleValuesParser::new(LogLevel::ALL.map(LogLevel::name)).map(move |name| level(name).expect("clap checked it"))
}

/// Runs the command.
pub fn run(args: Args) -> Result<Exit, CliError> {
    let mut client = args.socket.connect()?;
    client.set_log_level(args.level).map_err(daemon)?;
    output::print(format_args!("weftd, process {}, logs at level {}", client.hello().pid, args.level))?;
    Ok(Exit::Ok)
}
