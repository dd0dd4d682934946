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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn peer(number: u8) -> PeerSpec {
        PeerSpec { name: None, addr: ([192, 0, 2, number], 8285).into(), aliases: Vec::new() }
    }

    fn prefix() -> impl Strategy<Value = IpNet> {
        (0u8..4, 8u8..=10).prop_map(|(bits, len)| IpNet::new([10, bits << 6, 0, 0].into(), len).unwrap().trunc())
    }

    fn in_force(set: &RouteSet) -> BTreeMap<IpNet, SocketAddr> {
        set.routes.iter().map(|route| (route.prefix, set.peers[route.peer as usize].addr)).collect()
    }

    proptest! {
        #[test]
        fn deltas_do_to_a_table_what_they_do_to_a_map(deltas in vec((vec((prefix(), 0u8..5), 0..6), vec(prefix(), 0..4)), 0..12)) {
            let mut model = BTreeMap::new();
            let mut ids = PeerIds::default();
            let mut table = Table::empty();
            for (generation, (upsert, remove)) in (1..).zip(deltas) {
                let upsert: BTreeMap<_, _> = upsert.into_iter().map(|(prefix, number)| (prefix, peer(number))).collect();
                let mut remove = remove;
                remove.retain(|prefix| !upsert.contains_key(prefix));
                model.retain(|prefix, _| !remove.contains(prefix));
                model.extend(upsert.iter().map(|(prefix, peer)| (*prefix, peer.addr)));
                let set = table.with(&Delta { upsert: upsert.into_iter().collect(), remove });
                prop_assert_eq!(&set, &set.clone().canonical());
                prop_assert_eq!(in_force(&set), model.clone());
                let routed: HashSet<_> = model.values().collect();
                prop_assert_eq!(set.peers.len(), routed.len(), "peers without routes leave");
                let before: HashMap<_, _> = table.set.peers.iter().map(|peer| peer.addr).zip(table.ids.clone()).collect();
                let assigned = ids.assign(&set.peers, |_| PeerTotals::default());
                prop_assert_eq!(assigned.iter().collect::<HashSet<_>>().len(), assigned.len(), "ids differ");
                for (peer, id) in set.peers.iter().zip(&assigned) {
                    prop_assert_eq!(before.get(&peer.addr).unwrap_or(id), id, "ids stay");
                }
                table = Table::new(generation, set, assigned);
            }
        }
    }

    #[test]
    fn the_id_that_was_free_the_longest_is_given_out_first() {
        let mut ids = PeerIds::default();
        let mut assign = |numbers: &[u8]| {
            let peers: Vec<_> = numbers.iter().map(|number| peer(*number)).collect();
            ids.assign(&peers, |_| PeerTotals::default()).iter().map(|id| id.0).collect::<Vec<_>>()
        };
        assert_eq!(assign(&[1, 2, 3]), [0, 1, 2]);
        assert_eq!(assign(&[1, 3]), [0, 2]);
        assert_eq!(assign(&[3, 4]), [2, 1], "1 was freed before 0");
        assert_eq!(assign(&[5, 6]), [0, 3], "ids freed by this very change wait");
    }

    #[test]
    fn listed_peers_without_routes_stay_through_deltas() {
        let set = RouteSet { peers: vec![peer(1)], routes: Vec::new() };
        let table = Table::new(1, set, vec![PeerId(0)]);
        let with = table.with(&Delta { upsert: vec![("10.0.0.0/8".parse().unwrap(), peer(2))], remove: Vec::new() });
        assert_eq!(with.peers, [peer(1), peer(2)]);
    }
}
