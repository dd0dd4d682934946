//! Leases as flannel's registries tell them.

use super::NetConf;
use ipnet::{Ipv4Net, Ipv6Net};
use serde_json::Value;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::SystemTime;

/// What a lease is a claim on, and by which it is identified: one prefix, or one of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subnets {
    /// The IPv4 prefix, without host bits.
    pub v4: Option<Ipv4Net>,
    /// The IPv6 prefix, without host bits.
    pub v6: Option<Ipv6Net>,
}

/// What a node publishes with its lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseAttrs {
    /// Underlay address for peers; `None` is flannel's `"0.0.0.0"`.
    pub public_ip: Option<Ipv4Addr>,
    /// Underlay IPv6 address for peers.
    pub public_ipv6: Option<Ipv6Addr>,
    /// Lower case; empty for udp, as stock flannel writes it.
    pub backend_type: String,
    /// What the backend publishes for IPv4, such as `{"VNI":1,"VtepMAC":".."}`.
    pub backend_data: Option<Value>,
    /// The same for IPv6.
    pub backend_v6_data: Option<Value>,
}

/// One record of the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlannelLease {
    /// Identity.
    pub subnets: Subnets,
    /// What its node published.
    pub attrs: LeaseAttrs,
    /// When it ends; `None`: never (a reservation).
    pub expires: Option<SystemTime>,
}

/// What a registry tells its daemon. Own leases are never among the peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseEvent {
    /// All peers: whatever is not among them has left.
    Snapshot(Vec<FlannelLease>),
    /// A peer came, or its attributes changed.
    Added(FlannelLease),
    /// A peer left.
    Removed(Subnets),
    /// Our lease was renewed or rewritten; traffic is not concerned.
    OwnRenewed(FlannelLease),
    /// Our lease was lost to somebody else, or deleted, and could not be had again: the daemon has to give up.
    OwnLost {
        /// What happened, for the log.
        why: String,
    },
    /// The network config means something else than it did when it was told last, or when the daemon read it at its start;
    /// or it is gone or not in order, and this says why.
    Config(Result<NetConf, String>),
}
