//! How `weft run` comes by its tunnel: one that is up already is adopted, without a packet lost; any other is brought up.

use super::{Options, RESOLVE_FIRST_TIMEOUT};
use crate::backend::udp_tunnel::Push;
use crate::causes;
use crate::config::{Host, Tunnel};
use crate::source::resolve::{self, Answer, Names};
use crate::state::{Paths, network_namespace};
use crate::tunnel::{self, Applied, Live, TunnelError};
use std::path::Path;
use tracing::{info, warn};

/// Adopts the tunnel if it is up, and brings it up if it is not.
pub fn obtain(
    options: &Options,
    path: &Path,
    tunnel: &Tunnel,
    interrupted: &dyn Fn() -> bool,
) -> Result<(Live, Names, Applied), TunnelError> {
    let paths = Paths::new(&options.run_dir, &tunnel.name);
    let mut lock = paths.take_lock()?;
    let state = paths.read_state()?.filter(|state| state.weftd.handle().is_some());
    if let Some(state) = state {
        let pid = state.weftd.pid;
        if state.network_namespace != network_namespace()? {
            return Err(TunnelError::OtherNamespace { name: state.name, pid });
        }
        match Live::adopt(paths.clone(), lock, state, path) {
            Ok(mut live) => {
                let names = names_for_adopted(&mut live, tunnel);
                let differences = live.needs_restart(tunnel);
                if differences.is_empty() {
                    info!("adopting weftd, process {pid}");
                } else {
                    let (file, settings) = (path.display(), differences.join(", "));
                    warn!(
                        "weftd, process {pid}, runs with other settings than {file} asks for: {settings}; restarting it"
                    );
                    live.replace_weftd(tunnel, &names, interrupted)?;
                }
                let applied = live.apply(tunnel, &names)?;
                if let Push::Unchanged(installed) = applied.push {
                    info!("its table is as it should be, digest {}", installed.digest);
                }
                return Ok((live, names, applied));
            }
            Err((given_back, error)) => {
                warn!("weftd, process {pid}, cannot be adopted: {}; replacing it", causes::text(&error));
                tunnel::take_down(&paths, paths.read_state()?.as_ref())?;
                lock = given_back;
            }
        }
    }
    if tunnel::clear_remains(&paths)? {
        info!("removed what an earlier tunnel {:?} left", tunnel.name);
    }
    let names = resolve::ask_within(resolve::names_of(tunnel), RESOLVE_FIRST_TIMEOUT);
    let (live, applied) = Live::bring_up(paths, lock, tunnel, path, &names, interrupted)?;
    info!("started weftd, process {}, with device {}", live.state().weftd.pid, live.tun().name);
    Ok((live, names, applied))
}

/// Where weftd sends already is where its peers are until the resolver says otherwise: an adopter without DNS must not
/// take routes away.
fn names_for_adopted(live: &mut Live, tunnel: &Tunnel) -> Names {
    let mut names = Names::default();
    match live.addresses_in_force() {
        Ok(in_force) => {
            for peer in &tunnel.peers {
                if let (Host::Name(name), Some(address)) = (&peer.endpoint.host, in_force.get(&peer.name)) {
                    names.learn(Answer { name: name.clone(), result: Ok(vec![*address]) });
                }
            }
        }
        Err(error) => warn!("weftd's table cannot be read: {}", causes::text(&error)),
    }
    for answer in resolve::answers_within(resolve::names_of(tunnel), RESOLVE_FIRST_TIMEOUT) {
        if let Some(said) = names.learn(answer) {
            info!("{said}");
        }
    }
    names
}
