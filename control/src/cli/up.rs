//! `weft up`: brings a tunnel up and returns.

use super::tunnel_args::{RunDirArgs, load, tunnel_error};
use super::{CliError, Exit, output};
use crate::config::Tunnel;
use crate::link;
use crate::run::RESOLVE_FIRST_TIMEOUT;
use crate::source::resolve;
use crate::state::Paths;
use crate::tunnel::{self, Applied, Live, TunnelError};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bring a tunnel up
///
/// Starts weftd, programs address, MTU and routes, installs the table, and returns; weftd goes on by itself. If anything
/// fails, everything is undone. The tunnel stays until `weft down` or the next boot. To follow changes of the file and of
/// DNS names, use `weft run` instead, or afterwards: it adopts the tunnel.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tunnel file; see examples/two-hosts-a.toml
    file: PathBuf,
    #[command(flatten)]
    run_dir: RunDirArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<Exit, CliError> {
    let tunnel = load(&args.file)?.tunnel;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let paths = Paths::new(&args.run_dir.run_dir, &tunnel.name);
    let (live, applied) = bring_up(&args, &tunnel, paths, &|| interrupted.load(Ordering::Relaxed))
        .map_err(|error| tunnel_error(&tunnel.name, &error))?;
    report(&tunnel, &live, &applied)?;
    Ok(Exit::Ok)
}

fn bring_up(
    args: &Args,
    tunnel: &Tunnel,
    paths: Paths,
    interrupted: &dyn Fn() -> bool,
) -> Result<(Live, Applied), TunnelError> {
    let lock = paths.take_lock()?;
    if tunnel::clear_remains(&paths)? {
        eprintln!("{}: removed what an earlier tunnel of this name left", tunnel.name);
    }
    let names = resolve::ask_within(resolve::names_of(tunnel), RESOLVE_FIRST_TIMEOUT);
    Live::bring_up(paths, lock, tunnel, &tunnel::absolute(&args.file), &names, interrupted)
}

fn report(tunnel: &Tunnel, live: &Live, applied: &Applied) -> Result<(), CliError> {
    let addresses: Vec<String> = tunnel.addresses.iter().map(ToString::to_string).collect();
    output::print(format!(
        "{}: up. Device {}, {}, MTU {}; listening on {} udp; weftd is process {}",
        tunnel.name,
        live.tun().name,
        addresses.join(", "),
        live.state().plan.mtu,
        tunnel.listen,
        live.state().weftd.pid,
    ))?;
    for peer in &tunnel.peers {
        match applied.unresolved.iter().find(|unresolved| unresolved.peer == peer.name) {
            None => output::print(format!("  {}: {} via {}", peer.name, link::listing(&peer.subnets), peer.endpoint))?,
            Some(unresolved) => output::print(format!("  {}: NOT REACHABLE, {}", peer.name, unresolved.why))?,
        };
    }
    for note in &applied.notes {
        eprintln!("{}: {note}", tunnel.name);
    }
    if !applied.unresolved.is_empty() {
        let again =
            "to keep trying, adopt this tunnel with `weft run --config`, or run `weft down` and `weft up` later";
        eprintln!("hint: {again}");
    }
    Ok(())
}
