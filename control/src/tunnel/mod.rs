//! A tunnel from nothing to forwarding, and back to nothing.
//!
//! ```text
//! bring up:  lock -> weftd starts -> table -> safety routes -> MTU, address, link up -> routes
//! take down: weftd drains and ends (device, address and routes go with it) -> safety routes -> files -> lock
//! ```
//!
//! Whatever a step leaves behind is written to the [`State`] before the step is taken, so that a `weft` that dies at any
//! point leaves a tunnel that `weft down` can remove. The table comes before the routes, so that the first packet finds
//! its peer.

mod error;
mod keeper;

pub use error::TunnelError;
pub(crate) use keeper::wait_device_gone;
pub use keeper::{Keeper, Start, TakenDown, clear_remains, take_down};

use crate::backend::udp_tunnel::Push;
use crate::config::Tunnel;
use crate::daemon::{self, DaemonError, ProcessHandle};
use crate::link::{LinkPlan, device_mtu};
use crate::netlink::{Netlink, NetlinkError};
use crate::rib;
use crate::source::resolve::{Names, Unresolved};
use crate::state::{Lock, Paths, State, Tun};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// A tunnel that this process looks after, true to its file.
#[derive(Debug)]
pub struct Live(Keeper);

/// What [`Live::apply`] did.
#[derive(Debug)]
pub struct Applied {
    /// The table.
    pub push: Push,
    /// Device and routes: what was changed, a phrase each.
    pub link: Vec<String>,
    /// Peers that cannot be reached for want of an address.
    pub unresolved: Vec<Unresolved>,
    /// What else a person should know.
    pub notes: Vec<String>,
}

impl Live {
    /// Starts weftd and makes the tunnel true; on any failure everything is undone.
    pub fn bring_up(
        paths: Paths,
        lock: Lock,
        tunnel: &Tunnel,
        config: &Path,
        names: &Names,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(Live, Applied), TunnelError> {
        let socket = paths.socket();
        let start = |netlink: &mut Netlink| wanted_start(netlink, tunnel, names, &socket);
        let mut live = Live(Keeper::launch(paths, lock, config, start, interrupted)?);
        let applied = match live.apply(tunnel, names) {
            Ok(_) if interrupted() => Err(DaemonError::Interrupted.into()),
            other => other,
        };
        match applied {
            Ok(applied) => Ok((live, applied)),
            Err(error) => Err(live.0.undo(error)),
        }
    }

    /// Takes over a weftd that runs already, without touching what is as it should be; the tunnel belongs to the file
    /// `config` from then on.
    ///
    /// # Errors
    /// weftd does not answer; the lock comes back so that the caller may start anew.
    pub fn adopt(paths: Paths, lock: Lock, state: State, config: &Path) -> Result<Live, (Lock, TunnelError)> {
        Keeper::adopt(paths, lock, state, config).map(Live)
    }

    /// What is known of the tunnel.
    pub fn state(&self) -> &State {
        self.0.state()
    }

    /// The TUN device.
    pub fn tun(&self) -> &Tun {
        self.0.tun()
    }

    /// A handle on weftd, if it lives.
    pub fn weftd(&self) -> Option<ProcessHandle> {
        self.0.weftd()
    }

    /// What weftd said last, as a part of a sentence.
    pub fn last_words(&self) -> String {
        self.0.last_words()
    }

    /// The settings in which weftd runs otherwise than `tunnel` asks for, a phrase each: only a restart changes those.
    pub fn needs_restart(&self, tunnel: &Tunnel) -> Vec<String> {
        self.0.differences(&daemon::arguments(tunnel, &self.0.paths().socket()))
    }

    /// Puts a weftd with the settings of `tunnel` in the place of the one that runs. Afterwards [`Live::apply`] has to make
    /// everything true again.
    ///
    /// # Errors
    /// [`TunnelError::Restored`] if such a weftd cannot be had: then the tunnel is as it was.
    pub fn replace_weftd(
        &mut self,
        tunnel: &Tunnel,
        names: &Names,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(), TunnelError> {
        let socket = self.0.paths().socket();
        self.0.replace(|netlink| wanted_start(netlink, tunnel, names, &socket), interrupted)
    }

    /// Makes table, device and routes what `tunnel` asks for, as far as names are resolved. What is so already is left
    /// alone; on an error of weftd nothing else is touched.
    pub fn apply(&mut self, tunnel: &Tunnel, names: &Names) -> Result<Applied, TunnelError> {
        let bind = self.0.bind();
        let (leases, unresolved) = names.leases(tunnel, bind);
        let merged = rib::merge(&leases);
        let push = self.0.push(&merged.table)?;
        let ifindex = self.tun().ifindex;
        let mtu = wanted_mtu(self.0.netlink(), tunnel, names, bind, Some(ifindex))?;
        let link = self.0.plan(LinkPlan::new(tunnel, mtu))?;
        Ok(Applied { push, link, unresolved, notes: merged.notes })
    }

    /// Starts another weftd in the place of a dead one. Afterwards [`Live::apply`] has to make everything true again; the
    /// safety routes are there all the while.
    pub fn restart_weftd(
        &mut self,
        tunnel: &Tunnel,
        names: &Names,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(), TunnelError> {
        let socket = self.0.paths().socket();
        self.0.restart(|netlink| wanted_start(netlink, tunnel, names, &socket), interrupted)
    }

    /// The underlay addresses that weftd sends to, by the peers' names. Serves an adopter that cannot resolve names yet.
    pub fn addresses_in_force(&mut self) -> Result<HashMap<String, IpAddr>, TunnelError> {
        self.0.addresses_in_force()
    }

    /// Collects a dead child.
    pub fn reap(&mut self) {
        self.0.reap();
    }

    /// Takes the tunnel down and leaves nothing behind.
    pub fn take_down(self) -> Result<TakenDown, TunnelError> {
        self.0.take_down()
    }
}

fn wanted_start(netlink: &mut Netlink, tunnel: &Tunnel, names: &Names, socket: &Path) -> Result<Start, NetlinkError> {
    let mtu = wanted_mtu(netlink, tunnel, names, tunnel.listen, None)?;
    Ok(Start { arguments: daemon::arguments(tunnel, socket), mtu })
}

fn wanted_mtu(
    netlink: &mut Netlink,
    tunnel: &Tunnel,
    names: &Names,
    listen: SocketAddr,
    own: Option<u32>,
) -> Result<u32, NetlinkError> {
    if let Some(mtu) = tunnel.mtu {
        return Ok(u32::from(mtu));
    }
    let (leases, _) = names.leases(tunnel, listen);
    let peers: Vec<_> = leases.iter().map(|lease| lease.next_hop.ip().to_canonical()).collect();
    device_mtu(netlink, listen, &peers, own)
}

/// Absolute form of a tunnel file's path, as states record it.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}
