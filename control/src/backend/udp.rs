//! flannel's `udp` backend: a weftd with a device `flannel%d`, and a route in it for each lease.
//!
//! ```text
//! 10.5.7.0/32 on flannel0                     our subnet's base address
//! 10.5.0.0/16 dev flannel0                    the whole network leads to weftd
//! unreachable 10.5.0.0/16 metric 4278198000   and to nowhere else, if there is no weftd
//! ```
//!
//! weftd is bound to the underlay address, as stock flannel is, and outlives weft: the next weft adopts it with its table.
//! Datagrams of both inner families go over one outer family: IPv4 where the node has it, since stock nodes know nothing else
//! and its header is the shorter one; else IPv6 ([`underlay_families`]). Peers without an address of that family cannot be
//! reached, and are named.
//!
//! What is published is byte for byte what stock flannel publishes, unless IPv6 is enabled or the underlay. A stock node can
//! carry no IPv6 packet and would take one for a broken IPv4 packet, so a node says in `BackendData`, which stock nodes of this
//! backend do not look at, that it can; IPv6 prefixes lead only to peers that do.

use crate::backend::udp_tunnel::Push;
use crate::causes;
use crate::config::SourcePorts;
use crate::daemon::{self, DaemonError, ProcessHandle};
use crate::flannel::external::Families;
use crate::flannel::netconf::UnderlayFamily;
use crate::flannel::{Backend, BackendError, ExternalInterface, FlannelLease, LeaseAttrs, OwnLease, Reconciled};
use crate::lease::Lease;
use crate::link::LinkPlan;
use crate::netlink::Event;
use crate::rib;
use crate::state::{self, Paths, State};
use crate::tunnel::{self, Keeper, Start, TunnelError};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::{info, warn};
use weft_proto::{PeerSpec, RouteSet};

/// The device: the kernel fills in the first free number.
const TUN: &str = "flannel%d";
/// Bytes that the tunnel adds: IPv4 or IPv6 header, and UDP header.
const OVERHEAD_IPV4: u32 = 20 + 8;
const OVERHEAD_IPV6: u32 = 40 + 8;

/// What the network config and the command line say.
#[derive(Clone, Debug)]
pub struct UdpOptions {
    /// UDP port of every node of the cluster.
    pub port: u16,
    /// The overlay has IPv4.
    pub v4: bool,
    /// The overlay has IPv6.
    pub v6: bool,
    /// Directory of weftd's socket, log and state.
    pub run_dir: PathBuf,
    /// Name of the tunnel in that directory.
    pub name: String,
    /// The file that the tunnel belongs to, by which `weft down` finds it as well: the subnet file.
    pub belongs_to: PathBuf,
    /// weftd's `--peer-check`.
    pub peer_check: String,
    /// weftd's `--engine`.
    pub engine: String,
    /// weftd's `--workers`.
    pub workers: Option<u32>,
    /// weftd's `--source-ports`.
    pub source_ports: String,
    /// Without it weftd gets `--no-backpressure`.
    pub backpressure: bool,
    /// Without it weftd gets `--no-sparse-lane`.
    pub sparse_lane: bool,
}

/// Of which families the underlay's interface has to have an address, in the order of preference, for an overlay of
/// `network`'s families. A network of IPv4 alone is one that stock nodes may be in, so its nodes need IPv4 unless the config
/// says otherwise; in one of both families, one address is enough.
pub fn underlay_families(network: Families, underlay: Option<UnderlayFamily>) -> Vec<Families> {
    const V4: Families = Families { v4: true, v6: false };
    const V6: Families = Families { v4: false, v6: true };
    let has_both = network.v4 && network.v6;
    match underlay {
        Some(UnderlayFamily::Ipv6) => vec![V6],
        Some(UnderlayFamily::Ipv4) if has_both => vec![network, V4],
        Some(UnderlayFamily::Ipv4) => vec![V4],
        None if has_both => vec![network, V4, V6],
        None => vec![network],
    }
}

/// The backend.
#[derive(Debug)]
pub struct Udp {
    options: UdpOptions,
    external: ExternalInterface,
    own: Option<OwnLease>,
    keeper: Option<Keeper>,
    /// A weftd whose end nobody was asked to watch for yet.
    process: Option<ProcessHandle>,
    interrupted: Arc<AtomicBool>,
}

impl Udp {
    /// On the underlay `external`. A wait for weftd ends early once `interrupted` is set.
    pub fn new(options: UdpOptions, external: ExternalInterface, interrupted: Arc<AtomicBool>) -> Udp {
        Udp { options, external, own: None, keeper: None, process: None, interrupted }
    }

    /// Whether datagrams go over IPv4: so they do if this node has an address of it to send from.
    fn is_outer_ipv4(&self) -> bool {
        self.external.addr.is_some()
    }

    fn bind(&self) -> Result<SocketAddr, BackendError> {
        let name = &self.external.name;
        let addr = match (self.external.addr, self.external.addr_v6) {
            (Some(addr), _) => IpAddr::from(addr),
            (None, Some(addr)) if addr.is_unicast_link_local() => {
                return Err(BackendError::Config(format!(
                    "{name} has only the link-local address {addr}, which says nothing to peers without their link; give it \
                     another one"
                )));
            }
            (None, Some(addr)) => IpAddr::from(addr),
            (None, None) => return Err(BackendError::Config(format!("{name} has no address to send from"))),
        };
        Ok(SocketAddr::new(addr, self.options.port))
    }

    fn attrs(&self) -> LeaseAttrs {
        LeaseAttrs {
            public_ip: self.external.public,
            public_ipv6: self.external.public_v6,
            backend_type: String::new(),
            backend_data: self.options.v6.then(capabilities),
            backend_v6_data: None,
        }
    }

    fn wanted_weftd(&self) -> Result<Start, BackendError> {
        let UdpOptions { peer_check, engine, workers, source_ports, backpressure, sparse_lane, .. } = &self.options;
        let socket = self.paths().socket().display().to_string();
        let mut arguments: Vec<String> = Vec::new();
        let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        option("--tun", TUN.to_owned());
        option("--bind", self.bind()?.to_string());
        option("--socket", socket);
        option("--engine", engine.clone());
        option("--opener", "native".to_owned());
        option("--peer-check", peer_check.clone());
        if let Some(workers) = workers {
            option("--workers", workers.to_string());
        }
        if source_ports != SourcePorts::Same.word() {
            option("--source-ports", source_ports.clone());
        }
        for (flag, on) in [("--no-backpressure", backpressure), ("--no-sparse-lane", sparse_lane)] {
            if !on {
                arguments.push(flag.to_owned());
            }
        }
        Ok(Start { arguments, mtu: self.mtu() })
    }

    fn paths(&self) -> Paths {
        Paths::new(&self.options.run_dir, &self.options.name)
    }

    /// Adopts the weftd of an earlier weft, or starts one.
    fn obtain(&self) -> Result<Keeper, BackendError> {
        let (paths, start) = (self.paths(), self.wanted_weftd()?);
        let mut lock = paths.take_lock().map_err(TunnelError::from)?;
        let state = paths.read_state().map_err(TunnelError::from)?;
        let here = state::network_namespace().map_err(TunnelError::from)?;
        let interrupted = || self.interrupted.load(Ordering::Relaxed);
        let (living, dead): (Option<State>, Option<State>) = match state {
            Some(state) if state.weftd.handle().is_some() => (Some(state), None),
            other => (None, other.filter(|state| state.network_namespace == here)),
        };
        if let Some(state) = dead {
            let keeper = Keeper::revive(paths, lock, state, &self.options.belongs_to, |_| Ok(start), &interrupted)?;
            info!("started weftd, process {}, in the place of a dead one", keeper.state().weftd.pid);
            return Ok(keeper);
        }
        if let Some(state) = living {
            let pid = state.weftd.pid;
            if state.network_namespace != here {
                return Err(TunnelError::OtherNamespace { name: state.name, pid }.into());
            }
            match Keeper::adopt(paths.clone(), lock, state, &self.options.belongs_to) {
                Ok(keeper) => return self.take_over(keeper, start),
                Err((given_back, error)) => {
                    warn!("weftd, process {pid}, cannot be adopted: {}; replacing it", causes::text(&error));
                    let state = paths.read_state().map_err(TunnelError::from)?;
                    tunnel::take_down(&paths, state.as_ref())?;
                    lock = given_back;
                }
            }
        }
        if tunnel::clear_remains(&paths)? {
            info!("removed what a dead weftd left");
        }
        let keeper = Keeper::launch(paths, lock, &self.options.belongs_to, |_| Ok(start), &interrupted)?;
        info!("started weftd, process {}, with device {}", keeper.state().weftd.pid, keeper.tun().name);
        Ok(keeper)
    }

    fn take_over(&self, mut keeper: Keeper, start: Start) -> Result<Keeper, BackendError> {
        let pid = keeper.state().weftd.pid;
        let differences = keeper.differences(&start.arguments);
        if differences.is_empty() {
            info!("adopting weftd, process {pid}, with device {}", keeper.tun().name);
            return Ok(keeper);
        }
        warn!(
            "weftd, process {pid}, runs with other settings than are wanted: {}; restarting it",
            differences.join(", ")
        );
        let interrupted = || self.interrupted.load(Ordering::Relaxed);
        keeper.replace(|_| Ok(start), &interrupted)?;
        Ok(keeper)
    }

    /// Starts weftd again if it is dead, and replaces one that the underlay has gone away from. Returns what was done.
    fn ensure_weftd(&mut self) -> Result<Option<String>, BackendError> {
        let start = self.wanted_weftd()?;
        let interrupted = Arc::clone(&self.interrupted);
        let interrupted = || interrupted.load(Ordering::Relaxed);
        let keeper = self.keeper.as_mut().ok_or_else(not_started)?;
        keeper.reap();
        if keeper.weftd().is_none() {
            // The kernel takes a dead weftd's device apart a little later, and the name would not be free yet.
            keeper.wait_device_gone()?;
            keeper.restart(|_| Ok(start), &interrupted)?;
        } else if !keeper.differences(&start.arguments).is_empty() {
            keeper.replace(|_| Ok(start), &interrupted)?;
        } else {
            return Ok(None);
        }
        self.process = keeper.weftd();
        Ok(Some(format!("weftd started again, process {}", keeper.state().weftd.pid)))
    }

    fn plan(&self, own: &OwnLease) -> LinkPlan {
        let subnets = [own.subnets.v4.map(IpNet::V4), own.subnets.v6.map(IpNet::V6)];
        // The base address of the subnet, alone: the kernel makes no route for it.
        let addresses = subnets.into_iter().flatten().map(|subnet| IpNet::from(subnet.network())).collect();
        let networks: Vec<IpNet> =
            [own.network.map(IpNet::V4), own.network_v6.map(IpNet::V6)].into_iter().flatten().collect();
        LinkPlan { addresses, mtu: self.mtu(), routes: networks.clone(), safety: networks }
    }

    /// The table for these peers, and what had to be left out of it.
    fn table(&self, peers: &[FlannelLease], bind: SocketAddr) -> rib::Merged {
        let mut notes = Vec::new();
        let mut leases = Vec::with_capacity(peers.len());
        for peer in peers {
            match self.lease(peer, bind) {
                Ok(lease) => leases.push(lease),
                Err(why) => notes.push(why),
            }
        }
        let mut merged = rib::merge(&leases);
        merged.notes.extend(notes);
        merged
    }

    /// Where a lease leads; or why it cannot be reached.
    fn lease(&self, peer: &FlannelLease, bind: SocketAddr) -> Result<Lease, String> {
        let name = name_of(peer);
        let (public, family, other): (Option<IpAddr>, _, _) = match self.is_outer_ipv4() {
            true => (peer.attrs.public_ip.map(Into::into), "PublicIP", peer.attrs.public_ipv6.map(IpAddr::from)),
            false => (peer.attrs.public_ipv6.map(Into::into), "PublicIPv6", peer.attrs.public_ip.map(IpAddr::from)),
        };
        let passed_over = |why: String| format!("the lease {name} is passed over: {why}");
        let public = public.ok_or_else(|| {
            passed_over(match other {
                Some(other) => format!(
                    "its record has no {family}, only {other}, and this node sends from {}; Backend.Underlay in the network \
                     config has all nodes use one family",
                    bind.ip()
                ),
                None => format!("its record has no {family}"),
            })
        })?;
        let own = [self.external.public.map(IpAddr::from), self.external.public_v6.map(IpAddr::from), Some(bind.ip())];
        if own.contains(&Some(public)) {
            return Err(passed_over(format!("its {family}, {public}, is this node's own")));
        }
        let next_hop = SocketAddr::new(public, self.options.port);
        let alone = RouteSet {
            peers: vec![PeerSpec { name: Some(name.clone()), addr: next_hop, aliases: Vec::new() }],
            routes: Vec::new(),
        };
        alone.check(bind).map_err(|error| passed_over(error.to_string()))?;
        let v6 = peer.subnets.v6.filter(|_| self.options.v6);
        let carried = v6.filter(|_| carries_ipv6(peer.attrs.backend_data.as_ref()));
        let subnets: Vec<IpNet> = [peer.subnets.v4.filter(|_| self.options.v4).map(IpNet::V4), carried.map(IpNet::V6)]
            .into_iter()
            .flatten()
            .collect();
        if subnets.is_empty() {
            return Err(passed_over("it has no prefix that both nodes can carry".to_owned()));
        }
        Ok(Lease { name, subnets, next_hop, aliases: Vec::new() })
    }
}

impl Backend for Udp {
    fn prepare(&mut self) -> Result<LeaseAttrs, BackendError> {
        self.bind()?;
        daemon::find().map_err(TunnelError::from)?;
        Ok(self.attrs())
    }

    fn mtu(&self) -> u32 {
        self.external.mtu.saturating_sub(if self.is_outer_ipv4() { OVERHEAD_IPV4 } else { OVERHEAD_IPV6 })
    }

    fn start(&mut self, own: &OwnLease) -> Result<(), BackendError> {
        let mut keeper = self.obtain()?;
        for changed in keeper.plan(self.plan(own))? {
            info!("{}: {changed}", keeper.tun().name);
        }
        self.process = keeper.weftd();
        self.keeper = Some(keeper);
        self.own = Some(own.clone());
        Ok(())
    }

    fn reconcile(&mut self, peers: &[FlannelLease]) -> Result<Reconciled, BackendError> {
        let own = self.own.clone().ok_or_else(not_started)?;
        let mut changes: Vec<String> = self.ensure_weftd()?.into_iter().collect();
        let plan = self.plan(&own);
        let bind = self.keeper.as_ref().ok_or_else(not_started)?.bind();
        let merged = self.table(peers, bind);
        let keeper = self.keeper.as_mut().ok_or_else(not_started)?;
        let push = keeper.push(&merged.table)?;
        if !matches!(push, Push::Unchanged(_)) {
            changes.push(format!("table: {push}"));
        }
        changes.extend(keeper.plan(plan)?.into_iter().map(|change| format!("{}: {change}", keeper.tun().name)));
        Ok(Reconciled { changes, notes: merged.notes })
    }

    fn concerns(&self, event: &Event) -> bool {
        let Some(keeper) = &self.keeper else { return false };
        let (tun, plan) = (keeper.tun(), &keeper.state().plan);
        match event {
            Event::Link(link) | Event::LinkGone(link) => link.index == tun.ifindex || link.name == tun.name,
            Event::AddressGone(address) => address.link == tun.ifindex,
            Event::RouteGone(route) => plan.routes.contains(&route.dst) || plan.safety.contains(&route.dst),
            Event::Overrun => true,
            _ => false,
        }
    }

    fn follow(&mut self, external: &ExternalInterface) -> Result<LeaseAttrs, BackendError> {
        let before = std::mem::replace(&mut self.external, external.clone());
        if let Err(error) = self.bind() {
            self.external = before;
            return Err(error);
        }
        Ok(self.attrs())
    }

    fn process(&mut self) -> Option<ProcessHandle> {
        self.process.take()
    }
}

impl From<TunnelError> for BackendError {
    fn from(error: TunnelError) -> Self {
        match error {
            TunnelError::Netlink(error) => BackendError::Netlink(error),
            TunnelError::Daemon(error @ DaemonError::NotFound { .. }) => BackendError::Config(error.to_string()),
            TunnelError::NotPermitted => BackendError::Config(error.to_string()),
            other => BackendError::Trouble(causes::text(&other)),
        }
    }
}

fn not_started() -> BackendError {
    BackendError::Trouble("the udp backend has not been started".to_owned())
}

/// Name of a lease for people: its prefixes.
fn name_of(peer: &FlannelLease) -> String {
    let prefixes = [peer.subnets.v4.map(IpNet::V4), peer.subnets.v6.map(IpNet::V6)];
    prefixes.into_iter().flatten().map(|prefix| prefix.to_string()).collect::<Vec<_>>().join(" ")
}

/// What a node that can carry IPv6 says of itself.
fn capabilities() -> Value {
    json!({ "weft": { "inner": ["ipv4", "ipv6"] } })
}

/// Whether a record says that its node can carry IPv6 packets. One without `BackendData` is a stock node's.
fn carries_ipv6(backend_data: Option<&Value>) -> bool {
    let inner = backend_data.and_then(|data| data.pointer("/weft/inner")).and_then(Value::as_array);
    inner.is_some_and(|inner| inner.iter().any(|one| one == "ipv6"))
}

/// Name of a tunnel in the run directory: `flannel`, or with the etcd prefix in it if that is not flannel's default, so that
/// two daemons on one host do not meet.
pub fn tunnel_name(etcd_prefix: &str, default_prefix: &str) -> String {
    let (prefix, default_prefix) = (etcd_prefix.trim_matches('/'), default_prefix.trim_matches('/'));
    if prefix == default_prefix {
        return "flannel".to_owned();
    }
    let safe = |letter: char| if letter.is_ascii_alphanumeric() || letter == '_' { letter } else { '-' };
    format!("flannel-{}", prefix.chars().map(safe).collect::<String>())
}

#[cfg(test)]
mod tests;
