//! The route table as both processes speak of it: desired sets, deltas, and what is in force.

use crate::digest::Digest;
use crate::limits::{ALIASES_MAX, DELTA_MAX, NAME_LEN_MAX, PEERS_MAX, ROUTES_MAX};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

/// A remote weftd or stock flannel node. Its identity is `addr`: two specs with the same address are the same peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSpec {
    /// For people; at most [`NAME_LEN_MAX`] bytes, no control characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Underlay address and UDP port that datagrams go to.
    pub addr: SocketAddr,
    /// Further underlay addresses it may send from; `addr.ip()` is always allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<IpAddr>,
}

impl PeerSpec {
    /// The form that tables, digests and read-backs use: IPv4-mapped IPv6 becomes IPv4, the flow label goes, aliases are
    /// sorted, unique, and do not repeat `addr`.
    pub fn canonical(mut self) -> PeerSpec {
        self.addr = canonical_addr(self.addr);
        let own = self.addr.ip();
        for alias in &mut self.aliases {
            *alias = alias.to_canonical();
        }
        self.aliases.sort_unstable();
        self.aliases.dedup();
        self.aliases.retain(|alias| *alias != own);
        self
    }
}

/// [`SocketAddr`] without an IPv4-mapped form and without a flow label: the identity of a peer.
pub fn canonical_addr(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(_) => addr,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), v6.port()),
            None => SocketAddr::V6(SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id())),
        },
    }
}

/// One route of a [`RouteSet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    /// Inner destination prefix; host bits must be zero.
    pub prefix: IpNet,
    /// Index into [`RouteSet::peers`].
    pub peer: u32,
}

/// A whole desired table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSet {
    /// Every peer, routed to or not: datagrams are accepted from all of them.
    pub peers: Vec<PeerSpec>,
    /// Every route.
    pub routes: Vec<RouteSpec>,
}

impl RouteSet {
    /// The form that weftd reads back: peers in their canonical form sorted by address, routes sorted by prefix. Two sets
    /// describe the same table exactly if their canonical forms are equal. Indices out of range stay out of range.
    pub fn canonical(self) -> RouteSet {
        let RouteSet { peers, mut routes } = self;
        let mut order: Vec<(u32, PeerSpec)> = (0..).zip(peers).map(|(i, p)| (i, p.canonical())).collect();
        order.sort_by_key(|(_, peer)| peer.addr);
        let mut rank = vec![0u32; order.len()];
        for (new, (old, _)) in (0..).zip(&order) {
            rank[*old as usize] = new;
        }
        for route in &mut routes {
            route.peer = rank.get(route.peer as usize).copied().unwrap_or(route.peer);
        }
        routes.sort_unstable_by_key(|route| route.prefix);
        RouteSet { peers: order.into_iter().map(|(_, peer)| peer).collect(), routes }
    }

    /// Digest of the table that this set describes; equal for every order of the same peers and routes.
    pub fn digest(&self) -> Digest {
        Digest::of_set(self)
    }

    /// Checks everything that weftd checks before it installs a set, given weftd's `bind` address.
    pub fn check(&self, bind: SocketAddr) -> Result<(), TableError> {
        if self.peers.len() > PEERS_MAX {
            return Err(TableError::TooManyPeers(self.peers.len()));
        }
        if self.routes.len() > ROUTES_MAX {
            return Err(TableError::TooManyRoutes(self.routes.len()));
        }
        let mut seen = HashMap::with_capacity(self.peers.len());
        for peer in &self.peers {
            check_peer(peer, bind)?;
            if seen.insert(canonical_addr(peer.addr), ()).is_some() {
                return Err(TableError::DuplicatePeer(peer.addr));
            }
        }
        for route in &self.routes {
            check_prefix(route.prefix)?;
            if route.peer as usize >= self.peers.len() {
                return Err(TableError::UnknownPeer { prefix: route.prefix, index: route.peer });
            }
        }
        match first_duplicate(self.routes.iter().map(|route| route.prefix)) {
            Some(prefix) => Err(TableError::DuplicatePrefix(prefix)),
            None => Ok(()),
        }
    }
}

/// A change to the table in force: all of it or nothing is applied.
///
/// A removal of a prefix that is not there is a success. A peer whose last route a delta takes away leaves the table with
/// it. An upsert whose peer is in the table with another name or other aliases updates that peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delta {
    /// Routes to add, or to point elsewhere.
    #[serde(default)]
    pub upsert: Vec<(IpNet, PeerSpec)>,
    /// Prefixes to remove.
    #[serde(default)]
    pub remove: Vec<IpNet>,
}

impl Delta {
    /// Digest of the change itself, which guards its transfer.
    pub fn digest(&self) -> Digest {
        Digest::of_delta(self)
    }

    /// Checks what can be checked without the table in force, given weftd's `bind` address.
    pub fn check(&self, bind: SocketAddr) -> Result<(), TableError> {
        let changes = self.upsert.len() + self.remove.len();
        if changes > DELTA_MAX {
            return Err(TableError::DeltaTooLarge(changes));
        }
        let mut peers: HashMap<SocketAddr, &PeerSpec> = HashMap::new();
        for (prefix, peer) in &self.upsert {
            check_prefix(*prefix)?;
            match peers.insert(canonical_addr(peer.addr), peer) {
                None => check_peer(peer, bind)?,
                Some(earlier) if earlier == peer => {}
                Some(_) => return Err(TableError::ContradictingPeer(peer.addr)),
            }
        }
        for prefix in &self.remove {
            check_prefix(*prefix)?;
        }
        match first_duplicate(self.upsert.iter().map(|(prefix, _)| *prefix).chain(self.remove.iter().copied())) {
            Some(prefix) => Err(TableError::DuplicatePrefix(prefix)),
            None => Ok(()),
        }
    }
}

/// What weftd put in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// Number of the table; weftd adds one per commit and starts at 0, the empty table.
    pub generation: u64,
    /// Digest of the whole table in force.
    pub digest: Digest,
    /// Routes in force.
    pub routes: u32,
    /// Peers in force.
    pub peers: u32,
}

/// Why a table or a delta was refused; names the offending entry and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// More than [`PEERS_MAX`].
    #[error("{0} peers: a table holds at most {PEERS_MAX}")]
    TooManyPeers(usize),
    /// More than [`ROUTES_MAX`].
    #[error("{0} routes: a table holds at most {ROUTES_MAX}; aggregate prefixes that share a next hop")]
    TooManyRoutes(usize),
    /// More than [`DELTA_MAX`] changes.
    #[error("{0} changes in one delta: at most {DELTA_MAX}; send the whole table as a swap")]
    DeltaTooLarge(usize),
    /// Two peers with one address.
    #[error("peer {0} is listed twice: list it once and let several routes name it")]
    DuplicatePeer(SocketAddr),
    /// One peer described in two ways within a delta.
    #[error("peer {0} is described in two ways (name or aliases differ): use one description")]
    ContradictingPeer(SocketAddr),
    /// A prefix twice.
    #[error("prefix {0} is listed twice: a prefix leads to one peer")]
    DuplicatePrefix(IpNet),
    /// Bits set beyond the prefix length.
    #[error("prefix {prefix} has host bits set: write {}", .prefix.trunc())]
    HostBits {
        /// As given.
        prefix: IpNet,
    },
    /// A route names no peer of the set.
    #[error("route {prefix} names peer number {index}, which the set does not have")]
    UnknownPeer {
        /// The route.
        prefix: IpNet,
        /// The index it gave.
        index: u32,
    },
    /// Port 0.
    #[error("next hop {0} has port 0: give the UDP port that the peer listens on")]
    PortZero(SocketAddr),
    /// An address that no datagram can be sent to.
    #[error("next hop {addr} is {what}: give the peer's unicast underlay address")]
    NextHop {
        /// As given.
        addr: SocketAddr,
        /// "unspecified", "multicast" and so on.
        what: &'static str,
    },
    /// A loopback next hop while weftd is bound to a real address.
    #[error("next hop {addr} is a loopback address, but weftd is bound to {bind}: packets would never leave this host")]
    Loopback {
        /// As given.
        addr: SocketAddr,
        /// weftd's local address.
        bind: SocketAddr,
    },
    /// The bound socket cannot send to this family.
    #[error(
        "next hop {addr} cannot be reached from weftd's socket, bound to {bind}: bind to [::] to reach both IPv4 and IPv6"
    )]
    Family {
        /// As given.
        addr: SocketAddr,
        /// weftd's local address.
        bind: SocketAddr,
    },
    /// More than [`ALIASES_MAX`].
    #[error("peer {addr} has {count} aliases: at most {ALIASES_MAX}")]
    TooManyAliases {
        /// The peer.
        addr: SocketAddr,
        /// How many it has.
        count: usize,
    },
    /// An alias that no datagram can come from.
    #[error("alias {alias} of peer {addr} is {what}: give a unicast address that the peer sends from")]
    Alias {
        /// The peer.
        addr: SocketAddr,
        /// The alias.
        alias: IpAddr,
        /// "unspecified", "multicast" and so on.
        what: &'static str,
    },
    /// Empty, too long, or with control characters.
    #[error("the name of peer {addr} is not usable: 1 to {NAME_LEN_MAX} bytes without control characters")]
    Name {
        /// The peer.
        addr: SocketAddr,
    },
}

fn check_prefix(prefix: IpNet) -> Result<(), TableError> {
    if prefix.addr() == prefix.network() { Ok(()) } else { Err(TableError::HostBits { prefix }) }
}

fn check_peer(peer: &PeerSpec, bind: SocketAddr) -> Result<(), TableError> {
    let addr = peer.addr;
    if let Some(name) = &peer.name
        && (name.is_empty() || name.len() > NAME_LEN_MAX || name.chars().any(char::is_control))
    {
        return Err(TableError::Name { addr });
    }
    if addr.port() == 0 {
        return Err(TableError::PortZero(addr));
    }
    let ip = addr.ip().to_canonical();
    if let Some(what) = not_unicast(ip) {
        return Err(TableError::NextHop { addr, what });
    }
    let local = bind.ip().to_canonical();
    if ip.is_loopback() && !local.is_loopback() && !bind.ip().is_unspecified() {
        return Err(TableError::Loopback { addr, bind });
    }
    let reachable = ip.is_ipv4() == local.is_ipv4() || (bind.is_ipv6() && bind.ip().is_unspecified());
    if !reachable {
        return Err(TableError::Family { addr, bind });
    }
    if peer.aliases.len() > ALIASES_MAX {
        return Err(TableError::TooManyAliases { addr, count: peer.aliases.len() });
    }
    for &alias in &peer.aliases {
        if let Some(what) = not_unicast(alias.to_canonical()) {
            return Err(TableError::Alias { addr, alias, what });
        }
    }
    Ok(())
}

/// What disqualifies an address as a place that datagrams go to or come from.
fn not_unicast(ip: IpAddr) -> Option<&'static str> {
    if ip.is_unspecified() {
        Some("unspecified")
    } else if ip.is_multicast() {
        Some("a multicast address")
    } else if matches!(ip, IpAddr::V4(v4) if v4.is_broadcast()) {
        Some("the broadcast address")
    } else if matches!(ip, IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.octets()[0] >= 240) {
        Some("in a reserved block (RFC 6890)")
    } else {
        None
    }
}

/// The smallest prefix that occurs twice.
fn first_duplicate(prefixes: impl Iterator<Item = IpNet>) -> Option<IpNet> {
    let mut sorted: Vec<IpNet> = prefixes.collect();
    sorted.sort_unstable();
    sorted.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}
