//! What a backend owes the daemon, and what it is told.

use crate::daemon::ProcessHandle;
use crate::flannel::{FlannelLease, LeaseAttrs, Subnets};
use crate::netlink::{Event, NetlinkError};
use ipnet::{Ipv4Net, Ipv6Net};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The link to the underlay, as selected by the rules of flannel's `--iface` options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalInterface {
    /// Name.
    pub name: String,
    /// Index in this network namespace.
    pub ifindex: u32,
    /// MTU in bytes.
    pub mtu: u32,
    /// The interface's own IPv4 address, to bind to.
    pub addr: Option<Ipv4Addr>,
    /// The interface's own IPv6 address.
    pub addr_v6: Option<Ipv6Addr>,
    /// The address that peers are told: `--public-ip`, or `addr`. Not local behind a NAT.
    pub public: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub public_v6: Option<Ipv6Addr>,
}

/// The cluster's networks and our part of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnLease {
    /// The whole overlay, IPv4.
    pub network: Option<Ipv4Net>,
    /// The whole overlay, IPv6.
    pub network_v6: Option<Ipv6Net>,
    /// Ours.
    pub subnets: Subnets,
}

/// What a reconciliation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// What was changed, a phrase each; empty: everything was as it should be.
    pub changes: Vec<String>,
    /// What a person should know, a sentence each: peers passed over and why.
    pub notes: Vec<String>,
}

/// Why a backend could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// What the network config or the node asks for cannot be had; trying again does not help.
    #[error("{0}")]
    Config(String),
    /// The kernel.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Anything else that may succeed later.
    #[error("{0}")]
    Trouble(String),
}

/// A way to reach peers. Calls come from one thread, in this order: `prepare`, then (once the lease is had) `start`, then
/// `reconcile` any number of times.
pub trait Backend {
    /// Gets ready as far as that needs no lease, and tells what to publish.
    fn prepare(&mut self) -> Result<LeaseAttrs, BackendError>;

    /// MTU of the overlay, for `FLANNEL_MTU`, in bytes.
    fn mtu(&self) -> u32;

    /// Takes up our lease: device, address, network route.
    fn start(&mut self, own: &OwnLease) -> Result<(), BackendError>;

    /// Makes `peers` true, all of them and no others, device and addresses included. What is so already is not touched; one
    /// bad peer concerns that peer alone and is named in the notes.
    fn reconcile(&mut self, peers: &[FlannelLease]) -> Result<Reconciled, BackendError>;

    /// Whether a netlink event concerns anything that `reconcile` looks after.
    fn concerns(&self, event: &Event) -> bool;

    /// The underlay changed under us: another address or MTU. Takes effect with the next `reconcile`; gives the attributes
    /// to publish anew.
    fn follow(&mut self, external: &ExternalInterface) -> Result<LeaseAttrs, BackendError>;

    /// A process that the backend depends on and has not given before: when it ends, `reconcile` starts another.
    fn process(&mut self) -> Option<ProcessHandle> {
        None
    }
}
