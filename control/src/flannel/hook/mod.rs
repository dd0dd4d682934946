//! flannel's `extension` backend: an unmodified flanneld runs `weft hook ...`, and weftd carries the packets.
//!
//! ```text
//! flanneld  --PreStartupCommand-->    weft hook prepare   starts or finds weftd; prints one line for the lease
//!           --PostStartupCommand-->   weft hook up        device, address, routes (NETWORK, SUBNET)
//!           --SubnetAddCommand-->     weft hook add       a peer (SUBNET, PUBLIC_IP, its line on standard input)
//!           --SubnetRemoveCommand-->  weft hook del       a peer leaves (SUBNET)
//! ```
//!
//! Each hook is a process of its own, holds the tunnel's lock while it works, and may be repeated. weftd outlives them all,
//! flanneld included. What was told is kept in a [`record::Record`]; so any hook that finds weftd dead starts another with
//! device, routes and peers as they were.

pub mod data;
pub mod record;

use crate::client::{Client, ClientError};
use crate::config::{Dataplane, Tunnel};
use crate::daemon::{self, Process};
use crate::link::{LinkPlan, device_mtu};
use crate::netlink::{Address, Netlink, NetlinkError, RouteFilter};
use crate::rib;
use crate::state::{self, Lock, Paths, State, StateError, Tun};
use crate::tunnel::{TunnelError, take_down, wait_device_gone};
use data::EndpointData;
use ipnet::{IpNet, Ipv4Net};
use record::Record;
use rustix::time::{ClockId, clock_gettime};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use weft_proto::{Delta, TableError};

/// Longest wait for other hooks, and how often to look. Starting weftd is the slowest thing that a hook does.
const LOCK_TIMEOUT: Duration = Duration::from_secs(20);
const LOCK_POLL: Duration = Duration::from_millis(2);
/// Longest wait for one answer of weftd.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// What stands for a tunnel file in the state of the tunnel.
const CONFIG: &str = "(flannel's extension hooks)";

/// How the hooks of this node are set up; the same for each of them.
#[derive(Clone, Debug)]
pub struct Options {
    /// UDP port to receive on, and at peers that tell none.
    pub port: u16,
    /// Directory of socket, log, state and record.
    pub run_dir: PathBuf,
    /// Name of the TUN device, and of the tunnel.
    pub tun: String,
    /// The underlay interface to bind to, by name or by address; none: every address of the host.
    pub iface: Option<String>,
    /// The underlay address to tell peers, where it is another than flanneld finds.
    pub public_ip: Option<Ipv4Addr>,
}

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// weftd, device, routes or files.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// `--iface` names nothing.
    #[error("--iface {0}: no interface of this name with an IPv4 address, and no interface with this address")]
    NoInterface(String),
    /// A peer that no table may hold.
    #[error("peer {subnet}: {source}")]
    Peer {
        /// Its subnet.
        subnet: Ipv4Net,
        /// What is wrong with it.
        source: TableError,
    },
    /// A peer that packets cannot be routed to.
    #[error("peer {subnet} is outside the network {network}; its packets would never reach {tun}")]
    Outside {
        /// Its subnet.
        subnet: Ipv4Net,
        /// The network.
        network: Ipv4Net,
        /// The device.
        tun: String,
    },
}

impl From<ClientError> for HookError {
    fn from(error: ClientError) -> Self {
        TunnelError::from(error).into()
    }
}

impl From<NetlinkError> for HookError {
    fn from(error: NetlinkError) -> Self {
        TunnelError::from(error).into()
    }
}

impl From<StateError> for HookError {
    fn from(error: StateError) -> Self {
        TunnelError::from(error).into()
    }
}

/// The tunnel in the hands of one hook.
#[derive(Debug)]
pub struct Hook {
    options: Options,
    paths: Paths,
    lock: Lock,
    netlink: Netlink,
    state: Option<State>,
    record: Record,
}

impl Hook {
    /// Waits for other hooks to finish, and looks at what they left.
    ///
    /// # Errors
    /// The run directory cannot be used, or another weft holds the tunnel for too long.
    pub fn begin(options: Options) -> Result<Hook, HookError> {
        let paths = Paths::new(&options.run_dir, &options.tun);
        let deadline = Instant::now() + LOCK_TIMEOUT;
        let lock = loop {
            match paths.take_lock() {
                Err(StateError::Locked { .. }) if Instant::now() < deadline => std::thread::sleep(LOCK_POLL),
                other => break other?,
            }
        };
        let (netlink, state, record) = (Netlink::open()?, paths.read_state()?, Record::read(&paths));
        Ok(Hook { options, paths, lock, netlink, state, record })
    }

    /// Sees to it that weftd runs; gives the line for the lease.
    pub fn prepare(&mut self) -> Result<EndpointData, HookError> {
        self.weftd()?;
        Ok(EndpointData { port: Some(self.options.port), ip: self.options.public_ip })
    }

    /// Takes up this node's part of the overlay: address, MTU and routes, with an unreachable route behind them. `public_ip`
    /// is the underlay address that flanneld found. Peers of another network go; see [`record`] for those that have left.
    pub fn up(&mut self, network: Ipv4Net, own: Ipv4Net, public_ip: Option<Ipv4Addr>) -> Result<(), HookError> {
        let mut client = self.weftd()?;
        self.record.begin(network, own, seconds_since_boot());
        self.record.write(&self.paths)?;
        self.push(&mut client, None)?;
        let mtu = self.mtu(public_ip)?;
        let network = IpNet::V4(network);
        let address = IpNet::V4(Ipv4Net::new_assert(own.network(), 32));
        let plan = LinkPlan { addresses: vec![address], mtu, routes: vec![network], safety: vec![network] };
        self.program(plan)
    }

    /// Takes up a peer. This node's own subnet is none.
    pub fn add(&mut self, subnet: Ipv4Net, public_ip: Ipv4Addr, data: EndpointData) -> Result<(), HookError> {
        if self.record.own == Some(subnet) {
            return Ok(());
        }
        if let Some(network) = self.record.network.filter(|network| !network.contains(&subnet)) {
            return Err(HookError::Outside { subnet, network, tun: self.options.tun.clone() });
        }
        let endpoint = SocketAddrV4::new(data.ip.unwrap_or(public_ip), data.port.unwrap_or(self.options.port));
        // One bad peer must not keep the others out of the table.
        let alone = rib::merge(&[record::lease(subnet, endpoint)]).table;
        alone.check(self.listen()?).map_err(|source| HookError::Peer { subnet, source })?;
        let mut client = self.weftd()?;
        let before = self.record.clone();
        self.record.add(subnet, endpoint);
        let upsert = alone.peers.into_iter().map(|peer| (IpNet::V4(subnet), peer)).collect();
        self.change(&mut client, &before, Delta { upsert, remove: Vec::new() })
    }

    /// Forgets a peer, wherever it was. This node's own subnet, which flanneld may report by mistake, is none.
    pub fn del(&mut self, subnet: Ipv4Net) -> Result<(), HookError> {
        if self.record.own == Some(subnet) {
            return Ok(());
        }
        let mut client = self.weftd()?;
        let before = self.record.clone();
        self.record.peers.remove(&subnet);
        self.change(&mut client, &before, Delta { upsert: Vec::new(), remove: vec![IpNet::V4(subnet)] })
    }

    /// Ends weftd and removes device, routes and files; gives whether there was anything.
    pub fn down(self) -> Result<bool, HookError> {
        let taken = take_down(&self.paths, self.state.as_ref())?;
        self.paths.remove(self.lock)?;
        Ok(taken.was_up)
    }

    /// Keeps what was told, and then has weftd keep to it.
    fn change(&mut self, client: &mut Client, before: &Record, delta: Delta) -> Result<(), HookError> {
        self.record.prune(seconds_since_boot());
        if self.record != *before {
            self.record.write(&self.paths)?;
        }
        self.push(client, Some(delta))
    }

    /// Makes weftd's table that of the record: not at all if it is, by `delta` if that does it, and else as a whole.
    fn push(&self, client: &mut Client, delta: Option<Delta>) -> Result<(), HookError> {
        let table = self.record.table();
        let wanted = table.digest();
        let status = client.status()?;
        if status.digest == wanted {
            return Ok(());
        }
        if let Some(delta) = delta
            && client.delta(&delta, Some(status.generation)).is_ok_and(|installed| installed.digest == wanted)
        {
            return Ok(());
        }
        client.swap(&table, None)?;
        Ok(())
    }

    /// The weftd of these options: the one that runs, or else another, with device, routes and peers as they were.
    fn weftd(&mut self) -> Result<Client, HookError> {
        let tunnel = self.tunnel()?;
        let arguments = daemon::arguments(&tunnel, &self.paths.socket());
        let network_namespace = state::network_namespace()?;
        let mut plan = LinkPlan::default();
        match self.state.take() {
            Some(state) => {
                if let Some(handle) = state.weftd.handle() {
                    if state.network_namespace != network_namespace {
                        let (name, pid) = (state.name.clone(), state.weftd.pid);
                        return Err(TunnelError::OtherNamespace { name, pid }.into());
                    }
                    let client = Client::connect(self.paths.socket(), ANSWER_TIMEOUT).ok();
                    let client = client.filter(|client| client.hello().pid == state.weftd.pid);
                    if let (Some(client), true) = (client, state.arguments == arguments && state.tun.is_some()) {
                        self.state = Some(state);
                        return Ok(client);
                    }
                    daemon::end(&handle, &self.paths.socket()).map_err(TunnelError::from)?;
                }
                if state.network_namespace == network_namespace {
                    state.tun.as_ref().map_or(Ok(()), |tun| wait_device_gone(&mut self.netlink, tun))?;
                    plan = state.plan;
                }
            }
            // What answers here without a state is by its place ours, and nobody knows how it was started.
            None => drop(take_down(&self.paths, None)?),
        }
        let program = daemon::find().map_err(TunnelError::from)?;
        let mtu = if plan.mtu > 0 { plan.mtu } else { self.mtu(None)? };
        let (mut child, weftd) = daemon::start(&program, &arguments, mtu, &self.paths).map_err(TunnelError::from)?;
        let name = self.paths.name().to_owned();
        let mut state =
            State { name, config: CONFIG.into(), network_namespace, weftd, arguments, tun: None, plan: plan.clone() };
        self.paths.write_state(&state)?;
        let ready = daemon::wait_ready(&mut child, &self.paths, &|| false);
        let mut client = ready.inspect_err(|_| daemon::end_child(child)).map_err(TunnelError::from)?;
        state.weftd = Process::of(client.hello().pid).map_err(TunnelError::from)?;
        let status = client.status()?;
        state.tun = Some(Tun { name: status.tun_name, ifindex: status.tun_ifindex });
        self.paths.write_state(&state)?;
        self.state = Some(state);
        self.record.write(&self.paths)?;
        self.push(&mut client, None)?;
        if plan != LinkPlan::default() {
            self.program(plan)?;
        }
        Ok(client)
    }

    /// Makes device and routes as planned, and records first what there will be to remove.
    fn program(&mut self, plan: LinkPlan) -> Result<(), HookError> {
        let state = self.state.as_mut().expect("weftd runs, so there is a state");
        let previous = std::mem::replace(&mut state.plan, plan.clone());
        let ifindex = state.tun.as_ref().expect("weftd told its device").ifindex;
        if plan != previous {
            state.plan.safety.extend(previous.safety.iter().filter(|network| !plan.safety.contains(network)));
            self.paths.write_state(state)?;
        }
        plan.apply(&mut self.netlink, ifindex, &previous)?;
        if state.plan != plan {
            state.plan = plan;
            self.paths.write_state(state)?;
        }
        Ok(())
    }

    fn tunnel(&mut self) -> Result<Tunnel, HookError> {
        Ok(Tunnel {
            name: self.options.tun.clone(),
            addresses: Vec::new(),
            networks: Vec::new(),
            listen: self.listen()?,
            tun: self.options.tun.clone(),
            mtu: None,
            dataplane: Dataplane::default(),
            peers: Vec::new(),
        })
    }

    /// The address that weftd is bound to.
    fn listen(&mut self) -> Result<SocketAddr, HookError> {
        let ip = match self.options.iface.clone() {
            None => Ipv4Addr::UNSPECIFIED.into(),
            Some(iface) => self.interface_address(&iface)?.ok_or(HookError::NoInterface(iface))?,
        };
        Ok(SocketAddr::new(ip, self.options.port))
    }

    /// The address that `--iface` means: itself, or the first of that interface.
    fn interface_address(&mut self, iface: &str) -> Result<Option<IpAddr>, NetlinkError> {
        let addresses = self.netlink.addresses(None)?;
        let link = self.netlink.link(iface)?.map(|link| link.index);
        let is_meant = |address: &&Address| match iface.parse::<Ipv4Addr>() {
            Ok(ip) => address.ip() == IpAddr::V4(ip),
            Err(_) => Some(address.link) == link && address.ip().is_ipv4(),
        };
        Ok(addresses.iter().find(is_meant).map(Address::ip))
    }

    /// MTU of the device in bytes: that of the link which has the underlay address, or else which the default route takes,
    /// less the outer headers.
    fn mtu(&mut self, public_ip: Option<Ipv4Addr>) -> Result<u32, HookError> {
        let mut listen = self.listen()?;
        if listen.ip().is_unspecified() {
            let addresses = self.netlink.addresses(None)?;
            let is_local = |ip: &Ipv4Addr| addresses.iter().any(|address| address.ip() == IpAddr::V4(*ip));
            let default = RouteFilter { dst: Some(IpNet::V4(Ipv4Net::default())), ..RouteFilter::default() };
            let by_default = self.netlink.routes(&default)?.into_iter().min_by_key(|route| route.metric);
            let link = by_default.and_then(|route| route.link);
            let found = addresses.iter().find(|address| Some(address.link) == link && address.ip().is_ipv4());
            let ip = public_ip.filter(is_local).map(IpAddr::V4).or(found.map(Address::ip));
            listen.set_ip(ip.unwrap_or(listen.ip()));
        }
        Ok(device_mtu(&mut self.netlink, listen, &[], None)?)
    }
}

fn seconds_since_boot() -> u64 {
    u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or_default()
}
