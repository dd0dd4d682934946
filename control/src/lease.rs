//! What every source of routes speaks in: who owns which inner prefixes, and where on the underlay that host is.

use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};

/// A host's claim on prefixes, with its place on the underlay known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The host's name, for people.
    pub name: String,
    /// Inner prefixes behind it, without host bits.
    pub subnets: Vec<IpNet>,
    /// Underlay address and UDP port that its datagrams go to.
    pub next_hop: SocketAddr,
    /// Further underlay addresses it may send from.
    pub aliases: Vec<IpAddr>,
}
