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

use crate::backend::udp_tunnel::{Push, UdpTunnel};
use crate::causes;
use crate::cli::Exit;
use crate::client::{Client, ClientError};
use crate::config::Tunnel;
use crate::daemon::{self, DaemonError, Process, ProcessHandle};
use crate::link::{LinkPlan, device_mtu};
use crate::netlink::{Netlink, NetlinkError};
use crate::rib;
use crate::source::resolve::{Names, Unresolved};
use crate::state::{self, Lock, Paths, State, StateError, Tun};
use rustix::thread::CapabilitySet;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};
use weft_proto::RouteSet;

/// Longest wait for weftd's answer to a question about itself.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the device to go after weftd has ended, and how often to look.
const DEVICE_GONE_TIMEOUT: Duration = Duration::from_secs(2);
const DEVICE_GONE_POLL: Duration = Duration::from_millis(5);

/// Why a tunnel could not be brought up, changed or taken down.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// It is up.
    #[error("tunnel {name:?} is up already (weftd is process {pid})")]
    AlreadyUp {
        /// The tunnel.
        name: String,
        /// weftd.
        pid: u32,
    },
    /// It is up, and what weft knew of it is lost.
    #[error("tunnel {name:?} is up (weftd is process {pid}), but its state file is gone")]
    Stateless {
        /// The tunnel.
        name: String,
        /// weftd.
        pid: u32,
    },
    /// It is up in a network namespace that this process is not in.
    #[error("tunnel {name:?} is up in another network namespace (weftd is process {pid})")]
    OtherNamespace {
        /// The tunnel.
        name: String,
        /// weftd.
        pid: u32,
    },
    /// A weftd with changed settings could not be had.
    #[error("{}; weftd runs again with the settings that it had, and the tunnel is as it was", causes::text(.why))]
    Restored {
        /// What went wrong.
        why: Box<TunnelError>,
    },
    /// No right to make a device.
    #[error("a TUN device and routes need CAP_NET_ADMIN, which this process does not have")]
    NotPermitted,
    /// The process.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// Its control socket.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Links and routes.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The run directory.
    #[error(transparent)]
    State(#[from] StateError),
}

impl TunnelError {
    /// The exit code of a command that failed with this.
    pub fn exit(&self) -> Exit {
        match self {
            TunnelError::NotPermitted => Exit::NotPermitted,
            TunnelError::Restored { why } => why.exit(),
            TunnelError::Client(error) => error.into(),
            TunnelError::Netlink(error) if error.is_permission_denied() => Exit::NotPermitted,
            TunnelError::State(error) if error.is_permission_denied() => Exit::NotPermitted,
            _ => Exit::Failed,
        }
    }

    /// The remedy, where there is one to name.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            TunnelError::AlreadyUp { name, .. } => {
                format!("`weft down {name}` takes it down; `weft run` adopts it and follows its file")
            }
            TunnelError::Stateless { name, .. } => format!("`weft down {name}` takes it down all the same"),
            TunnelError::OtherNamespace { name, pid } => {
                format!("enter it first: nsenter --net=/proc/{pid}/ns/net weft down {name}")
            }
            TunnelError::Daemon(DaemonError::NotFound { .. }) => {
                format!("install weftd beside weft, or name it in {}", daemon::WEFTD_VARIABLE)
            }
            TunnelError::Daemon(DaemonError::Ended { log, .. }) if log.contains("--bind") || log.contains("TUN `") => {
                "in the tunnel file, weftd's --bind is `listen`, and --tun is `tun`".into()
            }
            TunnelError::Restored { why } => return why.hint(),
            TunnelError::State(StateError::Locked { .. }) => {
                "a `weft run` holds its tunnel as long as it lives: stop it (SIGTERM takes the tunnel down)".into()
            }
            TunnelError::State(error @ StateError::File { .. }) if !error.is_permission_denied() => {
                "sockets, logs and states go to /run/weft, or to another directory with --run-dir".into()
            }
            TunnelError::State(StateError::Content { path, .. }) => format!("remove {} and try again", path.display()),
            TunnelError::Netlink(NetlinkError::Exists { .. }) => {
                "another route or address is in the way: see `ip route`, and choose another network or remove it".into()
            }
            _ if self.exit() == Exit::NotPermitted => "run it as root, or with CAP_NET_ADMIN".into(),
            _ => return None,
        })
    }
}

/// A tunnel that this process looks after.
#[derive(Debug)]
pub struct Live {
    paths: Paths,
    lock: Lock,
    state: State,
    netlink: Netlink,
    backend: UdpTunnel,
    /// The address that weftd is bound to.
    bind: SocketAddr,
    /// weftd as a child, unless it was adopted.
    child: Option<Child>,
}

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

/// What [`take_down`] did.
#[derive(Debug, PartialEq, Eq)]
pub struct TakenDown {
    /// How weftd ended; `None`: it was not there.
    pub weftd: Option<&'static str>,
    /// There was something to remove.
    pub was_up: bool,
    /// What could not be removed, and why.
    pub left: Option<String>,
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
        let launched = Live::launch(&paths, tunnel, config, names);
        let (state, netlink, child) = match launched {
            Ok(launched) => launched,
            Err(error) => {
                paths.remove(lock)?;
                return Err(error);
            }
        };
        let backend = UdpTunnel::new(paths.socket());
        let mut live = Live { paths, lock, state, netlink, backend, bind: tunnel.listen, child: Some(child) };
        match live.come_up(tunnel, names, interrupted) {
            Ok(applied) => Ok((live, applied)),
            Err(error) => Err(live.undo(error)),
        }
    }

    fn launch(
        paths: &Paths,
        tunnel: &Tunnel,
        config: &Path,
        names: &Names,
    ) -> Result<(State, Netlink, Child), TunnelError> {
        let held = rustix::thread::capabilities(None).map(|sets| sets.effective);
        if held.is_ok_and(|held| !held.contains(CapabilitySet::NET_ADMIN)) {
            return Err(TunnelError::NotPermitted);
        }
        let mut netlink = Netlink::open()?;
        let network_namespace = state::network_namespace()?;
        let program = daemon::find()?;
        let mtu = wanted_mtu(&mut netlink, tunnel, names, tunnel.listen, None)?;
        let arguments = daemon::arguments(tunnel, &paths.socket());
        let (child, weftd) = daemon::start(&program, &arguments, mtu, paths)?;
        let (name, config) = (paths.name().to_owned(), config.to_path_buf());
        let plan = LinkPlan::default();
        Ok((State { name, config, network_namespace, weftd, arguments, tun: None, plan }, netlink, child))
    }

    fn come_up(
        &mut self,
        tunnel: &Tunnel,
        names: &Names,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Applied, TunnelError> {
        self.paths.write_state(&self.state)?;
        self.meet_weftd(interrupted)?;
        let applied = self.apply(tunnel, names)?;
        if interrupted() { Err(DaemonError::Interrupted.into()) } else { Ok(applied) }
    }

    /// Waits for the weftd that was just started, and asks it what it is.
    fn meet_weftd(&mut self, interrupted: &dyn Fn() -> bool) -> Result<(), TunnelError> {
        let child = self.child.as_mut().expect("weftd was just started as a child");
        let mut client = daemon::wait_ready(child, &self.paths, interrupted)?;
        // What was started may be a wrapper that became weftd.
        self.state.weftd = Process::of(client.hello().pid)?;
        self.note_tun(&mut client)
    }

    /// Takes over a weftd that runs already, without touching what is as it should be; the tunnel belongs to the file
    /// `config` from then on.
    ///
    /// # Errors
    /// weftd does not answer; the lock comes back so that the caller may start anew.
    pub fn adopt(paths: Paths, lock: Lock, mut state: State, config: &Path) -> Result<Live, (Lock, TunnelError)> {
        let connect = || -> Result<(Client, Netlink), TunnelError> {
            let client = Client::connect(paths.socket(), ANSWER_TIMEOUT)?;
            if client.hello().pid != state.weftd.pid {
                let (theirs, ours) = (client.hello().pid, state.weftd.pid);
                let what = format!("process {theirs} answers, and {ours} was started");
                return Err(ClientError::Protocol { path: paths.socket(), what }.into());
            }
            Ok((client, Netlink::open()?))
        };
        let (mut client, netlink) = match connect() {
            Ok(connected) => connected,
            Err(error) => return Err((lock, error)),
        };
        state.config = config.to_path_buf();
        let backend = UdpTunnel::new(paths.socket());
        let bind = client.hello().bind;
        let mut live = Live { paths, lock, state, netlink, backend, bind, child: None };
        match live.note_tun(&mut client) {
            Ok(()) => Ok(live),
            Err(error) => Err((live.lock, error)),
        }
    }

    /// What is known of the tunnel.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The TUN device.
    pub fn tun(&self) -> &Tun {
        self.state.tun.as_ref().expect("a live tunnel has asked weftd for its device")
    }

    /// A handle on weftd, if it lives.
    pub fn weftd(&self) -> Option<ProcessHandle> {
        self.state.weftd.handle()
    }

    /// What weftd said last, as a part of a sentence.
    pub fn last_words(&self) -> String {
        daemon::quoted(&daemon::log_tail(&self.paths.log()))
    }

    /// The settings in which weftd runs otherwise than `tunnel` asks for, a phrase each: only a restart changes those.
    pub fn needs_restart(&self, tunnel: &Tunnel) -> Vec<String> {
        daemon::differences(&self.state.arguments, &daemon::arguments(tunnel, &self.paths.socket()))
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
        let before = self.state.clone();
        let table = self.backend.read()?.clone();
        self.end_weftd()?;
        self.restart_weftd(tunnel, names, interrupted).map_err(|why| match self.restore(before, &table) {
            Ok(()) => TunnelError::Restored { why: Box::new(why) },
            Err(failure) => {
                let failure = causes::text(&failure);
                tracing::error!(
                    "weftd cannot be started as it was either: {failure}; see `weft down {}`",
                    self.paths.name()
                );
                why
            }
        })
    }

    fn restore(&mut self, before: State, table: &RouteSet) -> Result<(), TunnelError> {
        let State { arguments, plan, weftd, .. } = before;
        self.launch_again(&weftd.program, arguments, plan.mtu, &|| false)?;
        self.backend.push(table)?;
        let ifindex = self.tun().ifindex;
        plan.apply(&mut self.netlink, ifindex, &plan)?;
        Ok(())
    }

    /// Makes table, device and routes what `tunnel` asks for, as far as names are resolved. What is so already is left
    /// alone; on an error of weftd nothing else is touched.
    pub fn apply(&mut self, tunnel: &Tunnel, names: &Names) -> Result<Applied, TunnelError> {
        let (leases, unresolved) = names.leases(tunnel, self.bind);
        let merged = rib::merge(&leases);
        let push = self.backend.push(&merged.table)?;
        let ifindex = self.tun().ifindex;
        let mtu = wanted_mtu(&mut self.netlink, tunnel, names, self.bind, Some(ifindex))?;
        let plan = LinkPlan::new(tunnel, mtu);
        let previous = self.state.plan.clone();
        if plan != previous {
            // Until all is done, what there may be to remove is the one and the other.
            self.state.plan = plan.clone();
            self.state.plan.safety.extend(previous.safety.iter().filter(|network| !plan.safety.contains(network)));
            self.paths.write_state(&self.state)?;
        }
        let link = plan.apply(&mut self.netlink, ifindex, &previous)?;
        if self.state.plan != plan {
            self.state.plan = plan;
            self.paths.write_state(&self.state)?;
        }
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
        self.reap();
        let program = daemon::find()?;
        let mtu = wanted_mtu(&mut self.netlink, tunnel, names, tunnel.listen, None)?;
        let arguments = daemon::arguments(tunnel, &self.paths.socket());
        self.launch_again(&program, arguments, mtu, interrupted)
    }

    fn launch_again(
        &mut self,
        program: &Path,
        arguments: Vec<String>,
        mtu: u32,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(), TunnelError> {
        self.backend.forget();
        let (child, weftd) = daemon::start(program, &arguments, mtu, &self.paths)?;
        self.child = Some(child);
        self.state.weftd = weftd;
        self.state.arguments = arguments;
        self.paths.write_state(&self.state)?;
        self.meet_weftd(interrupted).inspect_err(|_| {
            // A weftd that never answered must not hold the port against the next one.
            if let Err(error) = self.end_weftd() {
                tracing::warn!("{}", causes::text(&error));
            }
            if let Some(child) = self.child.take() {
                daemon::end_child(child);
            }
        })
    }

    /// Ends weftd, and with it the device. The safety routes and the state stay.
    pub fn end_weftd(&mut self) -> Result<(), TunnelError> {
        if let Some(handle) = self.weftd() {
            daemon::end(&handle, &self.paths.socket())?;
        }
        self.reap();
        match &self.state.tun {
            Some(tun) => Ok(wait_device_gone(&mut self.netlink, tun)?),
            None => Ok(()),
        }
    }

    /// The underlay addresses that weftd sends to, by the peers' names. Serves an adopter that cannot resolve names yet.
    pub fn addresses_in_force(&mut self) -> Result<HashMap<String, IpAddr>, TunnelError> {
        let peers = &self.backend.read()?.peers;
        Ok(peers.iter().filter_map(|peer| Some((peer.name.clone()?, peer.addr.ip()))).collect())
    }

    /// Collects a dead child.
    pub fn reap(&mut self) {
        if let Some(mut child) = self.child.take()
            && matches!(child.try_wait(), Ok(None))
        {
            self.child = Some(child);
        }
    }

    /// Takes the tunnel down and leaves nothing behind.
    pub fn take_down(mut self) -> Result<TakenDown, TunnelError> {
        let taken = take_down(&self.paths, Some(&self.state));
        self.reap();
        let taken = taken?;
        self.paths.remove(self.lock)?;
        Ok(taken)
    }

    fn undo(self, error: TunnelError) -> TunnelError {
        undo(&self.paths, self.lock, self.state, self.child, error)
    }

    fn note_tun(&mut self, client: &mut Client) -> Result<(), TunnelError> {
        let status = client.status()?;
        self.bind = status.bind;
        self.state.tun = Some(Tun { name: status.tun_name, ifindex: status.tun_ifindex });
        Ok(self.paths.write_state(&self.state)?)
    }
}

/// Refuses if the tunnel is up; clears away what a dead one left. Returns whether there was something.
pub fn clear_remains(paths: &Paths) -> Result<bool, TunnelError> {
    let Some(state) = paths.read_state()? else {
        return match Client::connect(paths.socket(), ANSWER_TIMEOUT) {
            Ok(client) => Err(TunnelError::Stateless { name: paths.name().to_owned(), pid: client.hello().pid }),
            Err(_) => Ok(false),
        };
    };
    if state.weftd.handle().is_some() {
        return Err(TunnelError::AlreadyUp { name: state.name, pid: state.weftd.pid });
    }
    take_down(paths, Some(&state))?;
    Ok(true)
}

/// Ends weftd, removes the safety routes and every file but the lock. Does as much as there is to do, and may be repeated.
pub fn take_down(paths: &Paths, state: Option<&State>) -> Result<TakenDown, TunnelError> {
    let mut taken = TakenDown { weftd: None, was_up: state.is_some(), left: None };
    let Some(state) = state else {
        // Without a state there is no process that is known to be ours; one that answers here is, by its place.
        if let Ok(mut client) = Client::connect(paths.socket(), ANSWER_TIMEOUT) {
            let status = client.status()?;
            let mut netlink = Netlink::open()?;
            let tun = Tun { name: status.tun_name, ifindex: status.tun_ifindex };
            // What the device carries tells what was kept safe behind it; in another namespace there is no such device.
            let is_here = netlink.link(tun.ifindex)?.is_some_and(|link| link.name == tun.name);
            let plan = if is_here { LinkPlan::found(&mut netlink, tun.ifindex)? } else { LinkPlan::default() };
            client.drain()?;
            if is_here {
                wait_device_gone(&mut netlink, &tun)?;
                plan.remove_safety(&mut netlink)?;
            }
            (taken.weftd, taken.was_up) = (Some("drained"), true);
        }
        paths.clear()?;
        return Ok(taken);
    };
    let is_here = state::network_namespace()? == state.network_namespace;
    if let Some(handle) = state.weftd.handle() {
        if !is_here {
            return Err(TunnelError::OtherNamespace { name: state.name.clone(), pid: state.weftd.pid });
        }
        taken.weftd = Some(daemon::end(&handle, &paths.socket())?);
    }
    if is_here {
        let mut netlink = Netlink::open()?;
        if let Some(tun) = &state.tun {
            wait_device_gone(&mut netlink, tun)?;
        }
        state.plan.remove_safety(&mut netlink)?;
    } else if !state.plan.safety.is_empty() {
        let networks: Vec<String> = state.plan.safety.iter().map(ToString::to_string).collect();
        taken.left = Some(format!(
            "unreachable routes to {} in the network namespace that the tunnel was in, if it still exists",
            networks.join(", ")
        ));
    }
    paths.clear()?;
    Ok(taken)
}

/// Waits, for a while, until the device of a weftd that has ended is gone. The kernel takes an io_uring apart after the end
/// of its process, and until then the ring holds device and UDP port.
pub(crate) fn wait_device_gone(netlink: &mut Netlink, tun: &Tun) -> Result<(), NetlinkError> {
    let deadline = Instant::now() + DEVICE_GONE_TIMEOUT;
    while netlink.link(tun.ifindex)?.is_some_and(|link| link.name == tun.name) {
        if Instant::now() >= deadline {
            tracing::warn!("device {} is still there; somebody else may hold it", tun.name);
            break;
        }
        std::thread::sleep(DEVICE_GONE_POLL);
    }
    Ok(())
}

/// Takes down what there is of a tunnel that failed to come up, and gives back why.
fn undo(paths: &Paths, lock: Lock, state: State, child: Option<Child>, error: TunnelError) -> TunnelError {
    let undone = take_down(paths, Some(&state));
    if let Some(child) = child {
        daemon::end_child(child);
    }
    if let Err(failure) = undone.and_then(|_| Ok(paths.remove(lock)?)) {
        let failure = causes::text(&failure);
        tracing::error!("undoing was not complete: {failure}; try `weft down {}`", paths.name());
    }
    error
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
