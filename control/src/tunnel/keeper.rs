//! A weftd and its device, kept: started or adopted, given a table and a plan, replaced, and taken down.
//!
//! A keeper knows nothing of where its wishes come from: a tunnel file ([`super::Live`]) or a flannel registry
//! ([`crate::backend::udp`]).

use super::TunnelError;
use crate::backend::udp_tunnel::{Push, UdpTunnel};
use crate::causes;
use crate::client::{Client, ClientError};
use crate::daemon::{self, Process, ProcessHandle};
use crate::link::{self, LinkPlan, SAFETY_METRIC};
use crate::netlink::{Netlink, NetlinkError};
use crate::state::{self, Lock, Paths, State, Tun};
use rustix::thread::CapabilitySet;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};
use weft_proto::RouteSet;

/// Longest wait for weftd's answer to a question about itself.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the device to go after weftd has ended, and how often to look.
const DEVICE_GONE_TIMEOUT: Duration = Duration::from_secs(2);
const DEVICE_GONE_POLL: Duration = Duration::from_millis(5);

/// What a weftd is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Its arguments without `--mtu`; they name the control socket of the tunnel.
    pub arguments: Vec<String>,
    /// MTU of its device, in bytes.
    pub mtu: u32,
}

/// A weftd that this process looks after, with its device.
#[derive(Debug)]
pub struct Keeper {
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

impl Keeper {
    /// Starts weftd as `wanted` says; on any failure everything is undone. `config` is what the tunnel belongs to.
    pub fn launch(
        paths: Paths,
        lock: Lock,
        config: &Path,
        wanted: impl FnOnce(&mut Netlink) -> Result<Start, NetlinkError>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Keeper, TunnelError> {
        let (state, netlink, child) = match start(&paths, config, wanted) {
            Ok(started) => started,
            Err(error) => {
                paths.remove(lock)?;
                return Err(error);
            }
        };
        let backend = UdpTunnel::new(paths.socket());
        let bind = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut keeper = Keeper { paths, lock, state, netlink, backend, bind, child: Some(child) };
        match keeper.record().and_then(|()| keeper.meet_weftd(interrupted)) {
            Ok(()) => Ok(keeper),
            Err(error) => Err(keeper.undo(error)),
        }
    }

    fn record(&self) -> Result<(), TunnelError> {
        Ok(self.paths.write_state(&self.state)?)
    }

    /// Waits for the weftd that was just started, and asks it what it is.
    fn meet_weftd(&mut self, interrupted: &dyn Fn() -> bool) -> Result<(), TunnelError> {
        let child = self.child.as_mut().expect("weftd was just started as a child");
        let mut client = daemon::wait_ready(child, &self.paths, interrupted)?;
        // What was started may be a wrapper that became weftd.
        self.state.weftd = Process::of(client.hello().pid)?;
        self.note_tun(&mut client)
    }

    /// Takes over a weftd that runs already, without touching what is as it should be; the tunnel belongs to `config` from
    /// then on.
    ///
    /// # Errors
    /// weftd does not answer; the lock comes back so that the caller may start anew.
    pub fn adopt(paths: Paths, lock: Lock, mut state: State, config: &Path) -> Result<Keeper, (Lock, TunnelError)> {
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
        let mut keeper = Keeper { paths, lock, state, netlink, backend, bind, child: None };
        match keeper.note_tun(&mut client) {
            Ok(()) => Ok(keeper),
            Err(error) => Err((keeper.lock, error)),
        }
    }

    /// Starts weftd as `wanted` says in the place of a dead one that `state` tells of. Its safety routes stay all the while,
    /// so that nothing leaves by another way; on any failure everything is undone. Table and plan have to be made true
    /// afterwards, and the routes that the plan does not have go then.
    pub fn revive(
        paths: Paths,
        lock: Lock,
        mut state: State,
        config: &Path,
        wanted: impl FnOnce(&mut Netlink) -> Result<Start, NetlinkError>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Keeper, TunnelError> {
        let netlink = Netlink::open()?;
        state.config = config.to_path_buf();
        let (backend, bind) = (UdpTunnel::new(paths.socket()), SocketAddr::from(([0, 0, 0, 0], 0)));
        let mut keeper = Keeper { paths, lock, state, netlink, backend, bind, child: None };
        match keeper.wait_device_gone().and_then(|()| keeper.restart(wanted, interrupted)) {
            Ok(()) => Ok(keeper),
            Err(error) => Err(keeper.undo(error)),
        }
    }

    /// What is known of the tunnel.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The address that weftd is bound to.
    pub fn bind(&self) -> SocketAddr {
        self.bind
    }

    /// Its connection to the kernel.
    pub fn netlink(&mut self) -> &mut Netlink {
        &mut self.netlink
    }

    /// The tunnel's files.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// The TUN device.
    pub fn tun(&self) -> &Tun {
        self.state.tun.as_ref().expect("a keeper has asked weftd for its device")
    }

    /// A handle on weftd, if it lives.
    pub fn weftd(&self) -> Option<ProcessHandle> {
        self.state.weftd.handle()
    }

    /// What weftd said last, as a part of a sentence.
    pub fn last_words(&self) -> String {
        daemon::quoted(&daemon::log_tail(&self.paths.log()))
    }

    /// The settings in which weftd runs otherwise than `arguments` ask for, a phrase each: only a restart changes those.
    pub fn differences(&self, arguments: &[String]) -> Vec<String> {
        daemon::differences(&self.state.arguments, arguments)
    }

    /// Puts another weftd in the place of the one that runs. Afterwards table and plan have to be made true again.
    ///
    /// # Errors
    /// [`TunnelError::Restored`] if such a weftd cannot be had: then the tunnel is as it was.
    pub fn replace(
        &mut self,
        wanted: impl FnOnce(&mut Netlink) -> Result<Start, NetlinkError>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(), TunnelError> {
        let before = self.state.clone();
        let table = self.backend.read()?.clone();
        self.end_weftd()?;
        self.restart(wanted, interrupted).map_err(|why| match self.restore(before, &table) {
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
        self.launch_again(&weftd.program, Start { arguments, mtu: plan.mtu }, &|| false)?;
        self.push(table)?;
        let ifindex = self.tun().ifindex;
        plan.apply(&mut self.netlink, ifindex, &plan)?;
        Ok(())
    }

    /// Makes `table` the one in force.
    pub fn push(&mut self, table: &RouteSet) -> Result<Push, TunnelError> {
        Ok(self.backend.push(table)?)
    }

    /// Makes device and routes as planned; what is so already is left alone. Returns what was changed, a phrase each.
    pub fn plan(&mut self, plan: LinkPlan) -> Result<Vec<String>, TunnelError> {
        let previous = self.state.plan.clone();
        if plan != previous {
            // Until all is done, what there may be to remove is the one and the other.
            self.state.plan = plan.clone();
            self.state.plan.safety.extend(previous.safety.iter().filter(|network| !plan.safety.contains(network)));
            self.record()?;
        }
        let ifindex = self.tun().ifindex;
        let changed = plan.apply(&mut self.netlink, ifindex, &previous)?;
        if self.state.plan != plan {
            self.state.plan = plan;
            self.record()?;
        }
        Ok(changed)
    }

    /// Starts another weftd in the place of a dead one. Afterwards table and plan have to be made true again; the safety
    /// routes are there all the while.
    pub fn restart(
        &mut self,
        wanted: impl FnOnce(&mut Netlink) -> Result<Start, NetlinkError>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(), TunnelError> {
        self.reap();
        let program = daemon::find()?;
        let start = wanted(&mut self.netlink)?;
        self.launch_again(&program, start, interrupted)
    }

    fn launch_again(
        &mut self,
        program: &Path,
        Start { arguments, mtu }: Start,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(), TunnelError> {
        self.backend.forget();
        let (child, weftd) = daemon::start(program, &arguments, mtu, &self.paths)?;
        self.child = Some(child);
        self.state.weftd = weftd;
        self.state.arguments = arguments;
        self.record()?;
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
        self.wait_device_gone()
    }

    /// Waits, for a while, until the device of a weftd that has ended is gone.
    pub fn wait_device_gone(&mut self) -> Result<(), TunnelError> {
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

    /// Takes down what there is of a tunnel that failed to come up, and gives back why.
    pub fn undo(self, error: TunnelError) -> TunnelError {
        let undone = take_down(&self.paths, Some(&self.state));
        if let Some(child) = self.child {
            daemon::end_child(child);
        }
        if let Err(failure) = undone.and_then(|_| Ok(self.paths.remove(self.lock)?)) {
            let failure = causes::text(&failure);
            tracing::error!("undoing was not complete: {failure}; try `weft down {}`", self.paths.name());
        }
        error
    }

    fn note_tun(&mut self, client: &mut Client) -> Result<(), TunnelError> {
        let status = client.status()?;
        self.bind = status.bind;
        self.state.tun = Some(Tun { name: status.tun_name, ifindex: status.tun_ifindex });
        self.record()
    }
}

fn start(
    paths: &Paths,
    config: &Path,
    wanted: impl FnOnce(&mut Netlink) -> Result<Start, NetlinkError>,
) -> Result<(State, Netlink, Child), TunnelError> {
    let held = rustix::thread::capabilities(None).map(|sets| sets.effective);
    if held.is_ok_and(|held| !held.contains(CapabilitySet::NET_ADMIN)) {
        return Err(TunnelError::NotPermitted);
    }
    let mut netlink = Netlink::open()?;
    let network_namespace = state::network_namespace()?;
    let program = daemon::find()?;
    let Start { arguments, mtu } = wanted(&mut netlink)?;
    let (child, weftd) = daemon::start(&program, &arguments, mtu, paths)?;
    let (name, config) = (paths.name().to_owned(), config.to_path_buf());
    let plan = LinkPlan::default();
    Ok((State { name, config, network_namespace, weftd, arguments, tun: None, plan }, netlink, child))
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
        taken.left = Some(format!(
            "unreachable routes with metric {SAFETY_METRIC} to {} in the network namespace that the tunnel was in, if it \
             still exists",
            link::listing(&state.plan.safety)
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
