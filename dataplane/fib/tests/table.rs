//! [`Fib`]: what it refuses, whom it finds, and which peers count as one owner.

use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};
use weft_fib::{Fib, FibBuilder, FibError, OwnerId, Peer, PeerId, Route};

fn peer(id: u16, addr: &str, aliases: &[&str]) -> Peer {
    Peer {
        id: PeerId(id),
        addr: SocketAddr::new(addr.parse().unwrap(), 8285),
        aliases: aliases.iter().map(|alias| alias.parse().unwrap()).collect(),
        owner: OwnerId(0xdead),
    }
}

fn route(prefix: &str, peer: u16) -> Route {
    Route { prefix: prefix.parse().unwrap(), peer: PeerId(peer) }
}

fn build(peers: &[Peer], routes: &[Route]) -> Result<Fib, FibError> {
    let mut builder = FibBuilder::new(42);
    peers.iter().cloned().for_each(|peer| builder.peer(peer));
    routes.iter().for_each(|&route| builder.route(route));
    builder.build()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn empty_table_knows_nobody() {
    let fib = Fib::empty();
    assert_eq!((fib.generation(), fib.route_count(), fib.peers().count()), (0, 0, 0));
    assert_eq!(fib.lookup4(0x0af4_0101), None);
    assert_eq!(fib.lookup6(1), None);
    assert_eq!(fib.owner_of(ip("192.0.2.1")), None);
}

#[test]
fn both_families_find_their_peers() {
    let peers = [peer(700, "192.0.2.7", &[]), peer(3, "2001:db8::3", &[])];
    let routes = [route("10.244.0.0/16", 3), route("10.244.7.0/24", 700), route("fd00:7::/64", 700), route("::/0", 3)];
    let fib = build(&peers, &routes).unwrap();
    assert_eq!((fib.generation(), fib.route_count()), (42, 4));
    assert_eq!(fib.lookup4(0x0af4_0707), Some(PeerId(700)));
    assert_eq!(fib.lookup4(0x0af4_0807), Some(PeerId(3)));
    assert_eq!(fib.lookup4(0x0af5_0807), None);
    assert_eq!(fib.lookup6(0xfd00_0007 << 96 | 1), Some(PeerId(700)));
    assert_eq!(fib.lookup6(0xfd00_0008 << 96), Some(PeerId(3)));
    assert_eq!(fib.peer(PeerId(700)).addr, "192.0.2.7:8285".parse().unwrap());
    assert_eq!(fib.peers().map(|peer| peer.id.0).collect::<Vec<_>>(), [3, 700]);
    assert!(fib.memory() > 0);
}

#[test]
fn offending_entry_is_named() {
    let known = [peer(1, "192.0.2.1", &[])];
    for (peers, routes, error, text) in [
        (
            &known[..],
            vec![route("10.0.0.0/8", 1), route("10.1.0.0/16", 2)],
            FibError::UnknownPeer(route("10.1.0.0/16", 2)),
            "route 10.1.0.0/16 leads to peer 2, which is not in the table: add the peer or drop the route",
        ),
        (
            &known,
            vec![route("10.1.2.0/16", 1)],
            FibError::HostBits(route("10.1.2.0/16", 1)),
            "route 10.1.2.0/16 has host bits set: write 10.1.0.0/16",
        ),
        (
            &known,
            vec![route("fd00::/64", 1), route("fd00::/48", 1), route("fd00::/64", 1)],
            FibError::DuplicatePrefix(route("fd00::/64", 1)),
            "route fd00::/64 to peer 1 repeats a prefix of the same table: keep one of them",
        ),
        (
            &[peer(1, "192.0.2.1", &[]), peer(1, "192.0.2.2", &[])],
            vec![],
            FibError::DuplicatePeer(PeerId(1)),
            "peer id 1 is given twice: ids must be unique within a table",
        ),
        (
            &[peer(0xffff, "192.0.2.1", &[])],
            vec![],
            FibError::PeerOutOfRange(PeerId(0xffff)),
            "peer id 65535 is out of range: ids go from 0 to 65534",
        ),
    ] {
        let refused = build(peers, &routes).unwrap_err();
        assert_eq!(refused, error);
        assert_eq!(refused.to_string(), text);
    }
}

#[test]
fn default_routes_of_both_families_are_not_duplicates() {
    assert!(build(&[peer(0, "192.0.2.1", &[])], &[route("0.0.0.0/0", 0), route("::/0", 0)]).is_ok());
}

#[test]
fn peers_that_share_an_address_share_an_owner() {
    let fib = build(
        &[
            peer(9, "192.0.2.9", &["198.51.100.1"]),
            peer(4, "192.0.2.4", &["2001:db8::4"]),
            // Joins 9 and 4, over an alias of each.
            peer(6, "2001:db8::4", &["198.51.100.1"]),
            peer(2, "192.0.2.2", &[]),
        ],
        &[],
    )
    .unwrap();
    for joined in ["192.0.2.9", "198.51.100.1", "192.0.2.4", "2001:db8::4"] {
        assert_eq!(fib.owner_of(ip(joined)), Some(OwnerId(4)), "{joined}");
    }
    assert_eq!(fib.owner_of(ip("192.0.2.2")), Some(OwnerId(2)));
    assert_eq!(fib.owner_of(ip("192.0.2.3")), None);
    assert_eq!(fib.peers().map(|peer| peer.owner.0).collect::<Vec<_>>(), [2, 4, 4, 4]);
}

#[test]
fn ipv4_mapped_outer_addresses_count_as_ipv4() {
    let fib = build(
        &[peer(1, "::ffff:192.0.2.1", &[]), peer(2, "192.0.2.2", &["::ffff:192.0.2.3"]), peer(3, "192.0.2.1", &[])],
        &[],
    )
    .unwrap();
    for (address, owner) in [("192.0.2.1", 1), ("::ffff:192.0.2.1", 1), ("192.0.2.3", 2), ("::ffff:192.0.2.2", 2)] {
        assert_eq!(fib.owner_of(ip(address)), Some(OwnerId(owner)), "{address}");
    }
    assert_eq!(fib.peer(PeerId(3)).owner, OwnerId(1));
}

#[test]
#[should_panic]
fn unknown_peer_id_panics() {
    build(&[peer(5, "192.0.2.5", &[])], &[]).unwrap().peer(PeerId(4));
}

proptest! {
    /// The closure computed by repeated relabelling is the oracle of the union-find.
    #[test]
    fn owners_are_the_connected_groups(addresses in prop::collection::vec(prop::collection::vec(0..24u8, 1..4), 1..20)) {
        let text = |host: &u8| format!("192.0.2.{host}");
        let peers: Vec<Peer> = addresses
            .iter()
            .enumerate()
            .map(|(id, hosts)| {
                let aliases: Vec<String> = hosts[1..].iter().map(text).collect();
                peer(id as u16, &text(&hosts[0]), &aliases.iter().map(String::as_str).collect::<Vec<_>>())
            })
            .collect();
        let mut labels: Vec<usize> = (0..peers.len()).collect();
        for _ in 0..peers.len() {
            for a in 0..peers.len() {
                for b in 0..peers.len() {
                    if addresses[a].iter().any(|host| addresses[b].contains(host)) {
                        labels[b] = labels[a].min(labels[b]);
                    }
                }
            }
        }
        let fib = build(&peers, &[]).unwrap();
        let owners: Vec<usize> = fib.peers().map(|peer| peer.owner.0.into()).collect();
        prop_assert_eq!(&owners, &labels);
        for (hosts, label) in addresses.iter().zip(labels) {
            for host in hosts {
                prop_assert_eq!(fib.owner_of(ip(&text(host))), Some(OwnerId(label as u16)));
            }
        }
    }
}
