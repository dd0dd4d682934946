//! The authoritative table: what is in force, as the control process described it, and which peer has which id.

use crate::limits::PEERS_MAX;
use crate::stats::WorkerStats;
use ipnet::IpNet;
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use weft_fib::{Fib, FibBuilder, FibError, OwnerId, Peer, PeerId, Route};
use weft_proto::{Delta, Installed, PeerSpec, RouteSet, RouteSpec};

/// One generation; never changed once made, so that a listing may hold it while newer ones come into force.
#[derive(Debug)]
pub struct Table {
    /// Number, digest, counts.
    pub installed: Installed,
    /// Canonical.
    pub set: RouteSet,
    /// Id of each of `set.peers`.
    pub ids: Vec<PeerId>,
    /// Routes that lead to each of `set.peers`.
    pub routes_of: Vec<u32>,
}

impl Table {
    /// Generation 0: no peers, no routes.
    pub fn empty() -> Table {
        Table::new(0, RouteSet::default(), Vec::new())
    }

    /// `set` must be canonical and checked; `ids` has one entry per peer.
    pub fn new(generation: u64, set: RouteSet, ids: Vec<PeerId>) -> Table {
        let mut routes_of = vec![0; set.peers.len()];
        for route in &set.routes {
            routes_of[route.peer as usize] += 1;
        }
        let installed = Installed {
            generation,
            digest: set.digest(),
            routes: set.routes.len() as u32,
            peers: set.peers.len() as u32,
        };
        Table { installed, set, ids, routes_of }
    }

    /// The longest prefix that covers `address`, and its peer.
    pub fn lookup(&self, address: IpAddr) -> Option<(IpNet, &PeerSpec)> {
        let host = IpNet::from(address);
        (0..=host.prefix_len()).rev().find_map(|len| {
            let prefix = IpNet::new(address, len).expect("len is at most the address length").trunc();
            let index = self.set.routes.binary_search_by_key(&prefix, |route| route.prefix).ok()?;
            let route = self.set.routes[index];
            Some((prefix, &self.set.peers[route.peer as usize]))
        })
    }

    /// The set that `delta`, already checked by itself, makes of this table; canonical.
    pub fn with(&self, delta: &Delta) -> RouteSet {
        let RouteSet { mut peers, mut routes } = self.set.clone();
        let mut index: HashMap<SocketAddr, u32> = (0..).zip(&peers).map(|(i, peer)| (peer.addr, i)).collect();
        let touched: HashSet<IpNet> =
            delta.upsert.iter().map(|(prefix, _)| *prefix).chain(delta.remove.iter().copied()).collect();
        routes.retain(|route| !touched.contains(&route.prefix));
        for (prefix, peer) in &delta.upsert {
            let peer = peer.clone().canonical();
            let number = *index.entry(peer.addr).or_insert(peers.len() as u32);
            match peers.get_mut(number as usize) {
                Some(known) => *known = peer,
                None => peers.push(peer),
            }
            routes.push(RouteSpec { prefix: *prefix, peer: number });
        }
        self.drop_deserted(RouteSet { peers, routes }).canonical()
    }

    /// Takes out the peers that had routes in this table and have none in `set`, which begins with this table's peers.
    fn drop_deserted(&self, set: RouteSet) -> RouteSet {
        let mut routed = vec![false; set.peers.len()];
        for route in &set.routes {
            routed[route.peer as usize] = true;
        }
        let mut renumbered = Vec::with_capacity(set.peers.len());
        let mut peers = Vec::with_capacity(set.peers.len());
        for (number, peer) in set.peers.into_iter().enumerate() {
            renumbered.push(peers.len() as u32);
            let had_routes = self.routes_of.get(number).is_some_and(|count| *count > 0);
            if routed[number] || !had_routes {
                peers.push(peer);
            }
        }
        let routes =
            set.routes.into_iter().map(|route| RouteSpec { peer: renumbered[route.peer as usize], ..route }).collect();
        RouteSet { peers, routes }
    }

    /// Builds the forwarding table of this generation.
    pub fn build(&self) -> Result<Fib, FibError> {
        let mut builder = FibBuilder::new(self.installed.generation);
        for (peer, id) in self.set.peers.iter().zip(&self.ids) {
            builder.peer(Peer { id: *id, addr: peer.addr, aliases: peer.aliases.clone(), owner: OwnerId(0) });
        }
        for route in &self.set.routes {
            builder.route(Route { prefix: route.prefix, peer: self.ids[route.peer as usize] });
        }
        builder.build()
    }
}

/// Counters of one peer, summed over workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerTotals {
    /// Inner packets and bytes sent to it.
    pub tx: (u64, u64),
    /// Inner packets and bytes accepted from it.
    pub rx: (u64, u64),
    /// Smallest path MTU that a worker learnt; 0: none.
    pub path_mtu: u64,
    /// Latest accepted datagram, monotonic milliseconds; 0: never.
    pub last_rx_ms: u64,
}

impl PeerTotals {
    /// Sums one peer over workers.
    pub fn sum<'a>(workers: impl Iterator<Item = &'a WorkerStats>, id: PeerId) -> PeerTotals {
        workers.map(|worker| worker.peer(id)).fold(PeerTotals::default(), |sum, peer| {
            let path_mtu = peer.path_mtu.load(Relaxed);
            PeerTotals {
                tx: (sum.tx.0 + peer.tx_packets.get(), sum.tx.1 + peer.tx_bytes.get()),
                rx: (sum.rx.0 + peer.rx_packets.get(), sum.rx.1 + peer.rx_bytes.get()),
                path_mtu: if sum.path_mtu == 0 || (path_mtu != 0 && path_mtu < sum.path_mtu) {
                    path_mtu
                } else {
                    sum.path_mtu
                },
                last_rx_ms: sum.last_rx_ms.max(peer.last_rx_ms.load(Relaxed)),
            }
        })
    }

    /// What was counted since `earlier`.
    pub fn since(self, earlier: PeerTotals) -> PeerTotals {
        PeerTotals {
            tx: (self.tx.0.saturating_sub(earlier.tx.0), self.tx.1.saturating_sub(earlier.tx.1)),
            rx: (self.rx.0.saturating_sub(earlier.rx.0), self.rx.1.saturating_sub(earlier.rx.1)),
            path_mtu: self.path_mtu,
            last_rx_ms: if self.last_rx_ms > earlier.last_rx_ms { self.last_rx_ms } else { 0 },
        }
    }
}

/// Which peer has which id. A peer keeps its id while it is in the table; the id that has been free the longest is given
/// out first, and ids freed by a commit only when no other is left in that same commit.
#[derive(Clone, Debug, Default)]
pub struct PeerIds {
    of: HashMap<SocketAddr, PeerId>,
    free: VecDeque<PeerId>,
    /// Ids below were given out at least once.
    used: usize,
    /// What a reused id's counters held when its present peer got it.
    baselines: HashMap<PeerId, PeerTotals>,
}

impl PeerIds {
    /// Gives every peer its id; `totals` reads the counters of an id that changes hands. At most [`PEERS_MAX`] peers.
    pub fn assign(&mut self, peers: &[PeerSpec], totals: impl Fn(PeerId) -> PeerTotals) -> Vec<PeerId> {
        let present: HashSet<SocketAddr> = peers.iter().map(|peer| peer.addr).collect();
        let mut freed: Vec<PeerId> =
            self.of.iter().filter(|(addr, _)| !present.contains(addr)).map(|(_, id)| *id).collect();
        freed.sort_unstable();
        let mut freed = VecDeque::from(freed);
        self.of.retain(|addr, _| present.contains(addr));
        let ids = peers
            .iter()
            .map(|peer| {
                if let Some(id) = self.of.get(&peer.addr) {
                    return *id;
                }
                let id = self.take(&mut freed);
                let counted = totals(id);
                if counted == PeerTotals::default() {
                    self.baselines.remove(&id);
                } else {
                    self.baselines.insert(id, counted);
                }
                self.of.insert(peer.addr, id);
                id
            })
            .collect();
        self.free.extend(freed);
        ids
    }

    /// What the counters of `id` held when its present peer got it.
    pub fn baseline(&self, id: PeerId) -> PeerTotals {
        self.baselines.get(&id).copied().unwrap_or_default()
    }

    fn take(&mut self, freed: &mut VecDeque<PeerId>) -> PeerId {
        if let Some(id) = self.free.pop_front() {
            return id;
        }
        if self.used < PEERS_MAX {
            self.used += 1;
            return PeerId((self.used - 1) as u16);
        }
        freed.pop_front().expect("a checked table has at most PEERS_MAX peers, so one id is not in use")
    }
}
