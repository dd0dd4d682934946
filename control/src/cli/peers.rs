//! `weft peers`: who is at the other end, and what went there and back.

use super::output::{self, SocketArgs, daemon};
use super::{CliError, Exit};
use weft_proto::PeerReport;

/// Show the peers with their traffic
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    socket: SocketArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<Exit, CliError> {
    let peers = args.socket.connect()?.peers().map_err(daemon)?;
    if args.json {
        output::print_json(&peers, false)?;
    } else if peers.is_empty() {
        output::print("no peers: the table is empty")?;
    } else {
        output::print(render(&peers))?;
    }
    Ok(Exit::Ok)
}

fn render(peers: &[PeerReport]) -> comfy_table::Table {
    let mut table = output::table(&[
        "peer",
        "address",
        "routes",
        "sent pkts",
        "sent bytes",
        "rcvd pkts",
        "rcvd bytes",
        "path mtu",
        "last received",
    ]);
    for report in peers {
        table.add_row([
            report.peer.name.clone().unwrap_or_else(|| "-".into()),
            report.peer.addr.to_string(),
            report.routes.to_string(),
            report.tx_packets.to_string(),
            report.tx_bytes.to_string(),
            report.rx_packets.to_string(),
            report.rx_bytes.to_string(),
            report.path_mtu.map_or_else(|| "-".into(), |mtu| mtu.to_string()),
            report.last_rx_ago_ms.map_or_else(|| "never".into(), |ms| format!("{} ago", output::duration(ms))),
        ]);
    }
    table
}
