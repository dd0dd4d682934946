//! `weft monitor`: events as they happen.

use super::output::{self, SocketArgs, daemon};
use super::{CliError, Exit};
use crate::client::ClientError;
use serde::Serialize;
use std::time::SystemTime;
use weft_proto::Event;

/// Print events as they happen: tables, offloads, workers, drain
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    socket: SocketArgs,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

/// The JSON form of one event.
#[derive(Serialize)]
struct Timed<'a> {
    /// When weft heard of it, RFC 3339 in UTC.
    time: String,
    #[serde(flatten)]
    event: &'a Event,
}

/// Runs the command: until interrupted, or until weftd has drained.
pub fn run(args: Args) -> Result<Exit, CliError> {
    let mut draining = false;
    for event in args.socket.connect()?.subscribe().map_err(daemon)? {
        let event = match event {
            Ok(event) => event,
            Err(ClientError::Closed { .. }) if draining => break,
            Err(error) => return Err(daemon(error)),
        };
        draining |= matches!(event, Event::Draining { .. });
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let read_on = if args.json {
            output::print_json(&Timed { time, event: &event }, true)?
        } else {
            output::print(format_args!("{time} {}", sentence(&event)))?
        };
        if !read_on {
            break;
        }
    }
    Ok(Exit::Ok)
}

fn sentence(event: &Event) -> String {
    match event {
        Event::TableInstalled { generation, digest, routes, peers, by } => {
            let (routes, peers) = (output::count(*routes, "route"), output::count(*peers, "peer"));
            format!("table generation {generation} in force by {by}: {routes}, {peers}, digest {digest}")
        }
        Event::OffloadOff { worker, offload } => {
            format!("offload {offload} switched off on worker {worker}: the kernel refused it")
        }
        Event::WorkerEnded { worker, error: None } => format!("worker {worker} finished"),
        Event::WorkerEnded { worker, error: Some(error) } => format!("worker {worker} failed: {error}"),
        Event::LogLevel { level } => format!("log level is {level}"),
        Event::Draining { by } => format!("draining, asked by {by}"),
    }
}
