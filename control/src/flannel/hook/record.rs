//! What the hooks have told so far, kept in `NAME.peers` beside the tunnel's state, so that a weftd that has to be started
//! anew can be given all of it.
//!
//! flanneld tells which peers there are and never which have left while it was away. So every start of flanneld opens a
//! round: peers are known but unconfirmed, until their `add` comes again. Whoever is still unconfirmed when the round is
//! old enough has left. Until then its route stays, because a restart of flanneld is no reason to lose a packet.

use crate::lease::Lease;
use crate::rib;
use crate::state::{Paths, StateError};
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;
use weft_proto::RouteSet;

/// Age of a round from which unconfirmed peers count as gone. flanneld runs one `add` for each of its peers after its start,
/// one after the other.
pub const ROUND: Duration = Duration::from_secs(120);

/// A peer as its `add` told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownPeer {
    /// Where its datagrams go.
    pub endpoint: SocketAddrV4,
    /// Its `add` came in the present round.
    pub confirmed: bool,
}

/// Everything that was told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The overlay network, since `up`.
    pub network: Option<Ipv4Net>,
    /// This node's subnet, since `up`.
    pub own: Option<Ipv4Net>,
    /// When the present round began, in seconds since boot.
    pub round_began: u64,
    /// Peers by subnet.
    pub peers: BTreeMap<Ipv4Net, KnownPeer>,
}

impl Record {
    /// Reads the record; nothing was told where there is none, or none that can be read: flanneld will tell again.
    pub fn read(paths: &Paths) -> Record {
        fs::read(paths.peers()).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Writes it, all or nothing.
    pub fn write(&self, paths: &Paths) -> Result<(), StateError> {
        let (path, temporary) = (paths.peers(), paths.peers().with_extension("peers.new"));
        let bytes = serde_json::to_vec(self).expect("a record has string keys only");
        let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|source| StateError::File { path, source })
    }

    /// Takes up this node's place, and begins a round at `now`, in seconds since boot.
    pub fn begin(&mut self, network: Ipv4Net, own: Ipv4Net, now: u64) {
        // Whoever was unconfirmed for a whole round has left before this one.
        self.prune(now);
        (self.network, self.own, self.round_began) = (Some(network), Some(own), now);
        self.peers.retain(|subnet, _| *subnet != own && network.contains(subnet));
        self.peers.values_mut().for_each(|peer| peer.confirmed = false);
    }

    /// Takes up a peer.
    pub fn add(&mut self, subnet: Ipv4Net, endpoint: SocketAddrV4) {
        self.peers.insert(subnet, KnownPeer { endpoint, confirmed: true });
    }

    /// Forgets the peers that were not confirmed in a round that is over by `now`.
    pub fn prune(&mut self, now: u64) {
        if now.saturating_sub(self.round_began) >= ROUND.as_secs() {
            self.peers.retain(|_, peer| peer.confirmed);
        }
    }

    /// The table that weftd should have.
    pub fn table(&self) -> RouteSet {
        let leases: Vec<Lease> = self.peers.iter().map(|(subnet, peer)| lease(*subnet, peer.endpoint)).collect();
        rib::merge(&leases).table
    }
}

/// A peer in the words of every other source.
pub fn lease(subnet: Ipv4Net, endpoint: SocketAddrV4) -> Lease {
    Lease {
        name: endpoint.ip().to_string(),
        subnets: vec![IpNet::V4(subnet)],
        next_hop: SocketAddr::V4(endpoint),
        aliases: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn record() -> Record {
        let mut record = Record::default();
        record.begin(net("10.5.0.0/16"), net("10.5.1.0/24"), 1000);
        record.add(net("10.5.2.0/24"), "192.0.2.2:8285".parse().unwrap());
        record.add(net("10.5.3.0/24"), "192.0.2.3:8285".parse().unwrap());
        record
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_a_broken_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), "flannel0");
        assert_eq!(Record::read(&paths), Record::default());
        record().write(&paths).unwrap();
        assert_eq!(Record::read(&paths), record());
        fs::write(paths.peers(), "{").unwrap();
        assert_eq!(Record::read(&paths), Record::default());
    }

    #[test]
    fn a_restart_keeps_every_peer_until_the_round_is_over() {
        let mut record = record();
        record.begin(net("10.5.0.0/16"), net("10.5.1.0/24"), 2000);
        record.add(net("10.5.2.0/24"), "192.0.2.2:8285".parse().unwrap());
        record.prune(2000 + ROUND.as_secs() - 1);
        assert_eq!(record.peers.len(), 2);
        record.prune(2000 + ROUND.as_secs());
        assert_eq!(record.peers.keys().copied().collect::<Vec<_>>(), [net("10.5.2.0/24")]);
    }

    #[test]
    fn restarts_in_quick_succession_prune_nobody() {
        let mut record = record();
        for now in [2000, 2010, 2020] {
            record.begin(net("10.5.0.0/16"), net("10.5.1.0/24"), now);
        }
        assert_eq!(record.peers.len(), 2);
        record.begin(net("10.5.0.0/16"), net("10.5.1.0/24"), 2020 + ROUND.as_secs());
        assert!(record.peers.is_empty(), "nobody was confirmed for a whole round");
    }

    #[test]
    fn another_network_or_an_own_subnet_that_was_a_peers_leaves_the_table() {
        let mut record = record();
        record.begin(net("10.5.0.0/16"), net("10.5.3.0/24"), 1001);
        assert_eq!(record.table().routes.len(), 1);
        record.begin(net("10.6.0.0/16"), net("10.6.3.0/24"), 1002);
        assert!(record.table().routes.is_empty());
    }

    #[test]
    fn two_subnets_at_one_address_are_one_peer() {
        let mut record = record();
        record.add(net("10.5.4.0/24"), "192.0.2.3:8285".parse().unwrap());
        let table = record.table();
        assert_eq!((table.routes.len(), table.peers.len()), (3, 2));
        assert!(table.check("0.0.0.0:8285".parse().unwrap()).is_ok());
    }
}
