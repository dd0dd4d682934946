//! [`Fib`]: the two match structures, the peers, and who owns which outer address.

use crate::lpm::{Lpm4, Lpm6};
use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};
use std::error::Error;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Index of a peer in a [`Fib`] and in the per-peer counters. Stable over generations while the peer exists (the server assigns it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub u16);

impl PeerId {
    /// The largest id that a table takes; the number above marks "no route" inside the match structures.
    pub const MAX: PeerId = PeerId(u16::MAX - 1);
}

/// Peers that share an outer address share an owner: the unit of the strict peer check.
///
/// The number is the smallest [`PeerId`] of the group, so it is as stable over generations as the group is.
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

impl Peer {
    /// The outer addresses it may send from, IPv4-mapped IPv6 ones as IPv4.
    fn outer_addresses(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(self.addr.ip()).chain(self.aliases.iter().copied()).map(|address| address.to_canonical())
    }
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
    /// A peer id above [`PeerId::MAX`].
    PeerOutOfRange(PeerId),
}

impl fmt::Display for FibError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FibError::UnknownPeer(Route { prefix, peer }) => {
                write!(
                    f,
                    "route {prefix} leads to peer {}, which is not in the table: add the peer or drop the route",
                    peer.0
                )
            }
            FibError::HostBits(Route { prefix, .. }) => {
                write!(f, "route {prefix} has host bits set: write {}", prefix.trunc())
            }
            FibError::DuplicatePrefix(Route { prefix, peer }) => {
                write!(f, "route {prefix} to peer {} repeats a prefix of the same table: keep one of them", peer.0)
            }
            FibError::DuplicatePeer(id) => {
                write!(f, "peer id {} is given twice: ids must be unique within a table", id.0)
            }
            FibError::PeerOutOfRange(id) => {
                write!(f, "peer id {} is out of range: ids go from 0 to {}", id.0, PeerId::MAX.0)
            }
        }
    }
}

impl Error for FibError {}

/// Collects peers and routes, then builds.
#[derive(Debug, Default)]
pub struct FibBuilder {
    generation: u64,
    peers: Vec<Peer>,
    routes: Vec<Route>,
}

impl FibBuilder {
    /// An empty table of `generation`.
    pub fn new(generation: u64) -> FibBuilder {
        FibBuilder { generation, ..FibBuilder::default() }
    }
    /// Adds a peer.
    pub fn peer(&mut self, peer: Peer) {
        self.peers.push(peer);
    }
    /// Adds a route.
    pub fn route(&mut self, route: Route) {
        self.routes.push(route);
    }
    /// Checks and builds.
    ///
    /// # Errors
    /// Peers are checked before routes, each in the order given; the first offence is returned.
    pub fn build(self) -> Result<Fib, FibError> {
        let FibBuilder { generation, mut peers, routes } = self;
        let positions = positions(&mut peers)?;
        let owners = Owners::assign(&mut peers);
        let (routes4, routes6) = split_routes(&routes, &positions)?;
        Ok(Fib {
            generation,
            lpm4: Lpm4::build(&routes4),
            lpm6: Lpm6::build(&routes6),
            peers: peers.into_boxed_slice(),
            positions,
            owners,
            route_count: routes.len(),
        })
    }
}

/// No peer has this id.
const ABSENT: u16 = u16::MAX;

/// Sorts `peers` by id and returns where each id stands.
fn positions(peers: &mut [Peer]) -> Result<Box<[u16]>, FibError> {
    let mut seen = FxHashSet::default();
    for peer in peers.iter() {
        if peer.id > PeerId::MAX {
            return Err(FibError::PeerOutOfRange(peer.id));
        }
        if !seen.insert(peer.id) {
            return Err(FibError::DuplicatePeer(peer.id));
        }
    }
    peers.sort_unstable_by_key(|peer| peer.id);
    let mut positions = vec![ABSENT; peers.last().map_or(0, |peer| usize::from(peer.id.0) + 1)].into_boxed_slice();
    for (position, peer) in peers.iter().enumerate() {
        positions[usize::from(peer.id.0)] = position as u16;
    }
    Ok(positions)
}

type Routes<A> = Vec<(A, u8, u16)>;

fn split_routes(routes: &[Route], positions: &[u16]) -> Result<(Routes<u32>, Routes<u128>), FibError> {
    let mut seen = FxHashSet::with_capacity_and_hasher(routes.len(), Default::default());
    let (mut routes4, mut routes6) = (Vec::new(), Vec::new());
    for &route in routes {
        let Route { prefix, peer } = route;
        if positions.get(usize::from(peer.0)).is_none_or(|&position| position == ABSENT) {
            return Err(FibError::UnknownPeer(route));
        }
        if prefix.addr() != prefix.network() {
            return Err(FibError::HostBits(route));
        }
        if !seen.insert(prefix) {
            return Err(FibError::DuplicatePrefix(route));
        }
        match prefix {
            IpNet::V4(prefix) => routes4.push((prefix.addr().to_bits(), prefix.prefix_len(), peer.0)),
            IpNet::V6(prefix) => routes6.push((prefix.addr().to_bits(), prefix.prefix_len(), peer.0)),
        }
    }
    Ok((routes4, routes6))
}

/// Outer addresses and the group of peers behind each.
#[derive(Debug, Default)]
struct Owners {
    // Two maps, because hashing one integer is cheaper than hashing an `IpAddr`.
    ipv4: FxHashMap<u32, OwnerId>,
    ipv6: FxHashMap<u128, OwnerId>,
}

impl Owners {
    /// Joins peers that share an address, directly or over others, and marks each with its group. `peers` are in id order.
    fn assign(peers: &mut [Peer]) -> Owners {
        let mut groups: Vec<usize> = (0..peers.len()).collect();
        let mut first_with = FxHashMap::<IpAddr, usize>::default();
        for (position, peer) in peers.iter().enumerate() {
            for address in peer.outer_addresses() {
                let other = *first_with.entry(address).or_insert(position);
                let (a, b) = (find(&mut groups, other), find(&mut groups, position));
                // The smaller position stays the root, so that the smallest id names the group.
                groups[a.max(b)] = a.min(b);
            }
        }
        for position in 0..peers.len() {
            peers[position].owner = OwnerId(peers[find(&mut groups, position)].id.0);
        }
        let mut owners = Owners::default();
        for (address, position) in first_with {
            let owner = peers[position].owner;
            match address {
                IpAddr::V4(address) => owners.ipv4.insert(address.to_bits(), owner),
                IpAddr::V6(address) => owners.ipv6.insert(address.to_bits(), owner),
            };
        }
        owners.ipv4.shrink_to_fit();
        owners.ipv6.shrink_to_fit();
        owners
    }

    /// Buckets are a power of two at a load of at most 7/8, plus one control byte each.
    fn memory(&self) -> usize {
        fn map<K, V>(map: &FxHashMap<K, V>) -> usize {
            map.capacity() * 8 / 7 * (size_of::<(K, V)>() + 1)
        }
        map(&self.ipv4) + map(&self.ipv6)
    }
}

/// The root of `position`'s group; halves the path on the way.
fn find(groups: &mut [usize], mut position: usize) -> usize {
    while groups[position] != position {
        groups[position] = groups[groups[position]];
        position = groups[position];
    }
    position
}

/// The immutable table. IPv4-mapped IPv6 outer addresses count as IPv4 everywhere.
#[derive(Debug)]
pub struct Fib {
    generation: u64,
    lpm4: Lpm4,
    lpm6: Lpm6,
    peers: Box<[Peer]>,
    /// Where in `peers` an id stands, or [`ABSENT`].
    positions: Box<[u16]>,
    owners: Owners,
    route_count: usize,
}

impl Fib {
    /// The table with no routes and no peers, generation 0.
    pub fn empty() -> Fib {
        FibBuilder::new(0).build().expect("a table of nothing breaks no rule")
    }
    /// Number given at build.
    pub fn generation(&self) -> u64 {
        self.generation
    }
    /// Next hop of an inner IPv4 destination (host byte order).
    #[inline]
    pub fn lookup4(&self, address: u32) -> Option<PeerId> {
        self.lpm4.lookup(address).map(PeerId)
    }
    /// Next hop of an inner IPv6 destination (host byte order).
    #[inline]
    pub fn lookup6(&self, address: u128) -> Option<PeerId> {
        self.lpm6.lookup(address).map(PeerId)
    }
    /// The peer behind an id that a lookup of this very table returned. Panics on another id.
    #[inline]
    pub fn peer(&self, id: PeerId) -> &Peer {
        &self.peers[usize::from(self.positions[usize::from(id.0)])]
    }
    /// Which owner an outer source address belongs to; `None`: no known peer.
    #[inline]
    pub fn owner_of(&self, outer: IpAddr) -> Option<OwnerId> {
        match outer.to_canonical() {
            IpAddr::V4(address) => self.owners.ipv4.get(&address.to_bits()).copied(),
            IpAddr::V6(address) => self.owners.ipv6.get(&address.to_bits()).copied(),
        }
    }
    /// Peers in id order.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter()
    }
    /// Number of routes.
    pub fn route_count(&self) -> usize {
        self.route_count
    }
    /// Heap bytes held.
    pub fn memory(&self) -> usize {
        let aliases: usize = self.peers.iter().map(|peer| peer.aliases.capacity() * size_of::<IpAddr>()).sum();
        self.lpm4.memory()
            + self.lpm6.memory()
            + size_of_val(&*self.peers)
            + aliases
            + size_of_val(&*self.positions)
            + self.owners.memory()
    }
}
