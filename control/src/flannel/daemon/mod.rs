//! `weft flanneld`: joins a flannel cluster whose registry is etcd, with one lease and one backend.
//!
//! ```text
//!  health server -> network config -> underlay -> Backend::prepare -> lease -> Backend::start -> rules -> subnet.env
//!                -> ready -> watch -> READY=1 -> Controller, until SIGTERM
//! ```
//!
//! That is stock flannel's order as seen from outside. Waiting for etcd is never a reason to end: the network config and the
//! lease are asked for until they are had. At the end everything stays as it is, the lease, the rules and the data path: the
//! next daemon takes them over.

mod config;
mod controller;
mod health;
mod peers;
mod rules;
mod signals;

use self::controller::Controller;
use self::health::Ready;
use self::rules::TrafficRules;
use self::signals::Signals;
use crate::backend::host_gw::HostGw;
use crate::backend::udp::{self, Udp, UdpOptions, tunnel_name};
use crate::backend::vxlan::{PreviousMacs, VxlanBackend};
use crate::causes;
use crate::flannel::external::{self, ExternalError, Families, InterfaceOptions};
use crate::flannel::flags::{EtcdFlags, Flags, PREFIX};
use crate::flannel::{Backend, BackendConf, BackendError, ExternalInterface, LeaseAttrs, NetConf, OwnLease, SubnetEnv};
use crate::netlink::{Netlink, NetlinkError};
use crate::rules::bridge_filter_warnings;
use crate::source::etcd::{Acquired, EtcdError, EtcdOptions, Registry};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// Between two attempts to get a lease, and how often a wait looks whether to end.
const ACQUIRE_PAUSE: Duration = Duration::from_secs(1);
const INTERRUPT_POLL: Duration = Duration::from_millis(50);

/// Why the daemon ends without having been asked to.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Options of etcd that cannot be used.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// The health server's address.
    #[error("--healthz-ip, --healthz-port: {address} cannot be listened on: {source}")]
    Health {
        /// As asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// No underlay.
    #[error(transparent)]
    External(#[from] ExternalError),
    /// A backend that weft does not have.
    #[error(
        "backend {0:?} of the network config is one that this flanneld does not have: it has udp, vxlan and host-gw"
    )]
    NoSuchBackend(String),
    /// The backend cannot do what the network config asks for.
    #[error("backend {name}: {source}")]
    Backend {
        /// Its type.
        name: String,
        /// Why.
        source: BackendError,
    },
    /// The lease went to somebody else.
    #[error("our lease is lost: {0}")]
    LeaseLost(String),
    /// The network has become one without us.
    #[error("{0}; lease, rules and data path stay as they are, and the next start takes another subnet")]
    OutsideNetwork(String),
    /// The previous subnet file.
    #[error("{path}: {source}")]
    SubnetFile {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel's networking.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The event loop could not be made or waited for.
    #[error("event loop: {0}")]
    Loop(#[from] io::Error),
}

/// Runs until SIGTERM or SIGINT, which is a success, whenever it comes.
///
/// # Errors
/// What makes it impossible to go on, or to begin.
pub fn run(flags: &Flags) -> Result<(), DaemonError> {
    let mut registry = Registry::connect(&etcd_options(&flags.etcd, flags.renew_margin))?;
    let signals = Signals::new()?;
    let interrupted = || signals.is_interrupted();
    let ready = Ready::default();
    if let Some(address) = flags.healthz {
        let address =
            health::serve(address, ready.clone()).map_err(|source| DaemonError::Health { address, source })?;
        info!("health server at {address}");
    }
    let Some(conf) = registry.wait_for_config(&interrupted) else { return ended() };
    info!("network config: {}", describe(&conf));
    if !conf.enable_nftables {
        for warning in bridge_filter_warnings(conf.v4.is_some(), conf.v6.is_some()) {
            warn!("{warning}");
        }
    }
    let mut netlink = Netlink::open()?;
    let interface = interface_options(flags);
    let selected = external::discover(&mut netlink, &interface, &underlay_families(&conf), None)?;
    selected.notes.iter().for_each(|note| warn!("{note}"));
    let external = selected.external;
    info!("underlay: {}", describe_external(&external));

    let failed = |source| DaemonError::Backend { name: conf.backend.name().to_owned(), source };
    let mut backend = make_backend(flags, &conf, &external, &signals)?;
    let attrs = backend.prepare().map_err(failed)?;
    let previous = SubnetEnv::read(&flags.subnet_file).unwrap_or_else(|error| {
        warn!("{} cannot be read and says nothing about the subnet before: {error}", flags.subnet_file.display());
        SubnetEnv::default()
    });
    let Some(acquired) = acquire(&mut registry, &conf, &attrs, &previous, &interrupted) else { return ended() };
    let own = acquired.own().clone();
    info!("our lease: {}", describe_own(&own));
    backend.start(&own).map_err(failed)?;

    let mut controller = Controller::new(flags, &conf, own, backend, external, interface, netlink, signals)?;
    controller.rules(TrafficRules::start(flags, &conf));
    controller.settle(ready);
    controller.watch(registry, &conf, acquired);
    // Not being started by systemd is no error, and nobody else is waiting.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    controller.serve()?;
    ended()
}

fn ended() -> Result<(), DaemonError> {
    info!("ending as asked; lease, rules and data path stay as they are");
    Ok(())
}

/// Gets our lease, however long that takes; `None`: the end was asked for first.
fn acquire(
    registry: &mut Registry,
    conf: &NetConf,
    attrs: &LeaseAttrs,
    previous: &SubnetEnv,
    interrupted: &dyn Fn() -> bool,
) -> Option<Acquired> {
    let mut said = String::new();
    loop {
        match registry.acquire(conf, attrs, &previous.subnets()) {
            Ok(acquired) => return Some(acquired),
            Err(why) => {
                let why = causes::text(&why);
                if why != said {
                    error!("no lease yet: {why}; trying again every {} s", ACQUIRE_PAUSE.as_secs());
                }
                said = why;
            }
        }
        let deadline = Instant::now() + ACQUIRE_PAUSE;
        while Instant::now() < deadline {
            if interrupted() {
                return None;
            }
            std::thread::sleep(INTERRUPT_POLL);
        }
    }
}

fn make_backend(
    flags: &Flags,
    conf: &NetConf,
    external: &ExternalInterface,
    signals: &Signals,
) -> Result<Box<dyn Backend>, DaemonError> {
    let failed = |source| DaemonError::Backend { name: conf.backend.name().to_owned(), source };
    Ok(match &conf.backend {
        BackendConf::Udp { port, .. } => {
            let options = UdpOptions {
                port: *port,
                v4: conf.v4.is_some(),
                v6: conf.v6.is_some(),
                run_dir: flags.run_dir.clone(),
                name: tunnel_name(&flags.etcd.prefix, PREFIX),
                belongs_to: crate::tunnel::absolute(&flags.subnet_file),
                peer_check: flags.peer_check.clone(),
                engine: flags.engine.clone(),
                workers: flags.workers,
                source_ports: flags.source_ports.clone(),
                backpressure: flags.backpressure,
                sparse_lane: flags.sparse_lane,
            };
            Box::new(Udp::new(options, external.clone(), signals.flag()))
        }
        BackendConf::Vxlan(vxlan) => Box::new(
            VxlanBackend::new(vxlan.into(), families(conf), external.clone(), PreviousMacs::default())
                .map_err(failed)?,
        ),
        BackendConf::HostGw => Box::new(HostGw::new(families(conf), external.clone()).map_err(failed)?),
        other @ (BackendConf::Extension(_) | BackendConf::Other(_)) => {
            return Err(DaemonError::NoSuchBackend(other.name().to_owned()));
        }
    })
}

fn etcd_options(flags: &EtcdFlags, renew_margin: Duration) -> EtcdOptions {
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    EtcdOptions {
        endpoints: flags.endpoints.clone(),
        prefix: flags.prefix.clone(),
        ca_file: flags.cafile.clone(),
        cert_file: flags.certfile.clone(),
        key_file: flags.keyfile.clone(),
        username: text(&flags.username),
        password: text(flags.password.reveal()),
        renew_margin,
        ..EtcdOptions::default()
    }
}

fn interface_options(flags: &Flags) -> InterfaceOptions {
    InterfaceOptions {
        iface: flags.iface.clone(),
        iface_regex: flags.iface_regex.clone(),
        iface_can_reach: flags.iface_can_reach,
        public_ip: flags.public_ip,
        public_ipv6: flags.public_ipv6,
    }
}

fn families(conf: &NetConf) -> Families {
    Families { v4: conf.v4.is_some(), v6: conf.v6.is_some() }
}

/// Of which families the underlay has to have addresses, in the order of preference: each of the overlay's for the kernel's
/// backends, whose two families travel apart.
fn underlay_families(conf: &NetConf) -> Vec<Families> {
    match conf.backend {
        BackendConf::Udp { underlay, .. } => udp::underlay_families(families(conf), underlay),
        _ => vec![families(conf)],
    }
}

fn describe(conf: &NetConf) -> String {
    let networks = [conf.network().map(|net| net.to_string()), conf.network_v6().map(|net| net.to_string())];
    let networks: Vec<String> = networks.into_iter().flatten().collect();
    format!("{}, backend {}", networks.join(" and "), conf.backend.name())
}

fn describe_own(own: &OwnLease) -> String {
    let subnets = [own.subnets.v4.map(|net| net.to_string()), own.subnets.v6.map(|net| net.to_string())];
    subnets.into_iter().flatten().collect::<Vec<_>>().join(" and ")
}

fn describe_external(external: &ExternalInterface) -> String {
    let ExternalInterface { name, mtu, addr, addr_v6, public, public_v6, .. } = external;
    let mut text = format!("{name}, MTU {mtu}");
    let pairs = [
        (addr.map(|addr| addr.to_string()), public.map(|addr| addr.to_string())),
        (addr_v6.map(|addr| addr.to_string()), public_v6.map(|addr| addr.to_string())),
    ];
    for (addr, public) in pairs {
        if let Some(addr) = &addr {
            text += &format!(", address {addr}");
        }
        if let Some(public) = public.filter(|public| Some(public) != addr.as_ref()) {
            text += &format!(", known to others as {public}");
        }
    }
    text
}
