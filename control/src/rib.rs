//! All that is known, merged: leases -> the table that weftd should have, and the change that leads there.

use crate::lease::Lease;
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::SocketAddr;
use weft_proto::{Delta, PeerSpec, RouteSet, RouteSpec, canonical_addr};

/// The desired table, with what had to be left out of it or bent, a sentence each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// The table.
    pub table: RouteSet,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Merges leases. One bad lease concerns that lease alone: of two leases on one prefix the first keeps it.
/// Leases with the same next hop become one peer, because datagrams do not tell which of the two they come from.
pub fn merge(leases: &[Lease]) -> Merged {
    let mut merged = Merged::default();
    let mut peer_index: HashMap<SocketAddr, u32> = HashMap::new();
    let mut owners: HashMap<IpNet, &str> = HashMap::new();
    for lease in leases {
        let addr = canonical_addr(lease.next_hop);
        let next_index = merged.table.peers.len() as u32;
        let peer = *peer_index.entry(addr).or_insert(next_index);
        if peer == next_index {
            let aliases = lease.aliases.clone();
            merged.table.peers.push(PeerSpec { name: Some(lease.name.clone()), addr, aliases }.canonical());
        } else {
            let first = &mut merged.table.peers[peer as usize];
            first.aliases.extend(&lease.aliases);
            *first = first.clone().canonical();
            let first_name = first.name.as_deref().unwrap_or_default();
            merged.notes.push(format!(
                "peers {first_name:?} and {:?} are both at {addr}: they count as one, {first_name:?}",
                lease.name
            ));
        }
        for subnet in &lease.subnets {
            match owners.get(subnet) {
                Some(owner) => merged
                    .notes
                    .push(format!("{subnet} is claimed by {owner:?} and {:?}: it leads to {owner:?}", lease.name)),
                None => {
                    owners.insert(*subnet, &lease.name);
                    merged.table.routes.push(RouteSpec { prefix: *subnet, peer });
                }
            }
        }
    }
    merged
}

/// The smallest delta from `old` to `new`: routes that stay and lead to an unchanged peer are not in it.
///
/// weftd's rules about peers (one without a route leaves) make a delta unable to express a peer without any route, so the
/// digest of the result has to be compared with that of `new`.
pub fn delta(old: &RouteSet, new: &RouteSet) -> Delta {
    let had = by_prefix(old);
    let wanted = by_prefix(new);
    let mut upsert: Vec<(IpNet, PeerSpec)> = wanted
        .iter()
        .filter(|(prefix, peer)| had.get(*prefix) != Some(*peer))
        .map(|(prefix, peer)| (*prefix, (*peer).clone()))
        .collect();
    upsert.sort_unstable_by_key(|(prefix, _)| *prefix);
    let mut remove: Vec<IpNet> = had.keys().filter(|prefix| !wanted.contains_key(*prefix)).copied().collect();
    remove.sort_unstable();
    Delta { upsert, remove }
}

fn by_prefix(set: &RouteSet) -> HashMap<IpNet, &PeerSpec> {
    set.routes.iter().filter_map(|route| Some((route.prefix, set.peers.get(route.peer as usize)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lease(name: &str, next_hop: &str, subnets: &[&str]) -> Lease {
        Lease {
            name: name.into(),
            subnets: subnets.iter().map(|subnet| subnet.parse().unwrap()).collect(),
            next_hop: next_hop.parse().unwrap(),
            aliases: Vec::new(),
        }
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_claimed_twice_stays_with_the_first() {
        let leases =
            [lease("a", "192.0.2.1:1", &["10.0.1.0/24"]), lease("b", "192.0.2.2:1", &["10.0.1.0/24", "10.0.2.0/24"])];
        let merged = merge(&leases);
        assert_eq!(merged.table.routes.len(), 2);
        assert_eq!(merged.table.routes[0], RouteSpec { prefix: net("10.0.1.0/24"), peer: 0 });
        assert!(merged.notes[0].contains("claimed by \"a\" and \"b\""), "{:?}", merged.notes);
    }

    #[test]
    fn two_names_at_one_address_are_one_peer() {
        let mut leases =
            [lease("a", "192.0.2.1:1", &["10.0.1.0/24"]), lease("b", "[::ffff:192.0.2.1]:1", &["10.0.2.0/24"])];
        leases[1].aliases = vec!["192.0.2.9".parse().unwrap()];
        let merged = merge(&leases);
        assert_eq!(merged.table.peers.len(), 1);
        assert_eq!(merged.table.peers[0].aliases, leases[1].aliases);
        assert_eq!(merged.table.routes[1].peer, 0);
        assert!(merged.table.check("0.0.0.0:1".parse().unwrap()).is_ok());
    }

    #[test]
    fn a_delta_leaves_unaffected_peers_alone() {
        let old =
            merge(&[lease("a", "192.0.2.1:1", &["10.0.1.0/24"]), lease("b", "192.0.2.2:1", &["10.0.2.0/24"])]).table;
        let new =
            merge(&[lease("a", "192.0.2.1:1", &["10.0.1.0/24"]), lease("b", "192.0.2.3:1", &["10.0.2.0/24"])]).table;
        let delta = delta(&old, &new);
        assert_eq!(delta.upsert.len(), 1);
        assert_eq!(delta.upsert[0].0, net("10.0.2.0/24"));
        assert!(delta.remove.is_empty());
    }

    #[test]
    fn a_changed_alias_is_a_change_of_the_peer() {
        let mut leases = [lease("a", "192.0.2.1:1", &["10.0.1.0/24"])];
        let old = merge(&leases).table;
        leases[0].aliases = vec!["192.0.2.9".parse().unwrap()];
        assert_eq!(delta(&old, &merge(&leases).table).upsert.len(), 1);
    }

    /// Up to eight hosts with some of 16 prefixes each.
    fn leases() -> impl Strategy<Value = Vec<Lease>> {
        let one = (0u8..8, proptest::collection::btree_set(0u8..16, 0..5));
        proptest::collection::vec(one, 0..8).prop_map(|hosts| {
            let lease_of = |(host, subnets): (u8, std::collections::BTreeSet<u8>)| Lease {
                name: format!("h{host}"),
                subnets: subnets.into_iter().map(|subnet| net(&format!("10.0.{subnet}.0/24"))).collect(),
                next_hop: SocketAddr::from(([192, 0, 2, host], 8285)),
                aliases: Vec::new(),
            };
            hosts.into_iter().map(lease_of).collect()
        })
    }

    proptest! {
        #[test]
        fn merged_tables_pass_weftds_checks(leases in leases()) {
            prop_assert_eq!(merge(&leases).table.check("0.0.0.0:8285".parse().unwrap()), Ok(()));
        }

        #[test]
        fn a_delta_leads_from_one_table_to_the_other(from in leases(), to in leases()) {
            let (old, new) = (merge(&from).table, merge(&to).table);
            let delta = delta(&old, &new);
            let mut routes: HashMap<IpNet, PeerSpec> = by_prefix(&old).into_iter().map(|(p, peer)| (p, peer.clone())).collect();
            delta.remove.iter().for_each(|prefix| drop(routes.remove(prefix)));
            routes.extend(delta.upsert.iter().cloned());
            let wanted: HashMap<IpNet, PeerSpec> = by_prefix(&new).into_iter().map(|(p, peer)| (p, peer.clone())).collect();
            prop_assert_eq!(routes, wanted);
        }
    }
}
