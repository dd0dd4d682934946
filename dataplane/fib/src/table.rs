//! [`Fib`]: the two match structures, the peers, and who owns which outer address.

use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};

/// Index of a peer in a [`Fib`] and in the per-peer counters. Stable over generations while the peer exists (the server assigns it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub u16);

/// Peers that share an outer address share an owner: the unit of the strict peer check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OwnerId(pub u16);

/// A remote weftd (or stock flannel node).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Stable index.
    pub id: PeerId,
    /// Underlay address and UDP port that datagrams go to.
    pub addr: SocketAddr,
    /// Further underlay addresses it may send from (NAT, several addresses); `addr.ip()` is always allowed.
    pub aliases: Vec<IpAddr>,
    /// Set by [`FibBuilder::build`]; whatever is given is overwritten.
    pub owner: OwnerId,
}

/// One route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Inner destination prefix; host bits must be zero.
    pub prefix: IpNet,
    /// Which peer it leads to.
    pub peer: PeerId,
}

/// Why a table was refused; names the offending entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FibError {
    /// A route names a peer that is not in the table.
    UnknownPeer(Route),
    /// A prefix has host bits set.
    HostBits(Route),
    /// The same prefix twice.
    DuplicatePrefix(Route),
    /// The same peer id twice.
    DuplicatePeer(PeerId),
}

/// Collects peers and routes, then builds.
#[derive(Debug, Default)]
pub struct FibBuilder {
    _private: (),
}

impl FibBuilder {
    /// An empty table of `generation`.
    pub fn new(generation: u64) -> FibBuilder {
        let _ = generation;
        todo!()
    }
    /// Adds a peer.
    pub fn peer(&mut self, peer: Peer) {
        let _ = peer;
        todo!()
    }
    /// Adds a route.
    pub fn route(&mut self, route: Route) {
        let _ = route;
        todo!()
    }
    /// Checks and builds.
    pub fn build(self) -> Result<Fib, FibError> {
        todo!()
    }
}

/// The immutable table. IPv4-mapped IPv6 outer addresses count as IPv4 everywhere.
#[derive(Debug)]
pub struct Fib {
    _private: (),
}

impl Fib {
    /// The table with no routes and no peers, generation 0.
    pub fn empty() -> Fib {
        todo!()
    }
    /// Number given at build.
    pub fn generation(&self) -> u64 {
        todo!()
    }
    /// Next hop of an inner IPv4 destination (host byte order).
    #[inline]
    pub fn lookup4(&self, address: u32) -> Option<PeerId> {
        let _ = address;
        todo!()
    }
    /// Next hop of an inner IPv6 destination (host byte order).
    #[inline]
    pub fn lookup6(&self, address: u128) -> Option<PeerId> {
        let _ = address;
        todo!()
    }
    /// The peer behind an id that a lookup of this very table returned. Panics on another id.
    #[inline]
    pub fn peer(&self, id: PeerId) -> &Peer {
        let _ = id;
        todo!()
    }
    /// Which owner an outer source address belongs to; `None`: no known peer.
    #[inline]
    pub fn owner_of(&self, outer: IpAddr) -> Option<OwnerId> {
        let _ = outer;
        todo!()
    }
    /// Peers in id order.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        std::iter::empty()
    }
    /// Number of routes.
    pub fn route_count(&self) -> usize {
        todo!()
    }
    /// Heap bytes held.
    pub fn memory(&self) -> usize {
        todo!()
    }
}
