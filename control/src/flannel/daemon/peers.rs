//! Everybody's leases, as far as the registry has told.

use crate::flannel::{FlannelLease, LeaseEvent, Subnets};
use std::collections::BTreeMap;

/// The peers. Nothing is known before the first snapshot, which is something else than that there are none: a backend that
/// found peers in place when it took over must not lose them meanwhile.
#[derive(Debug, Default)]
pub struct Peers(Option<BTreeMap<Subnets, FlannelLease>>);

impl Peers {
    /// Takes in an event about peers; true if something changed for the backend. A renewal changes nothing.
    pub fn learn(&mut self, event: LeaseEvent) -> bool {
        match event {
            LeaseEvent::Snapshot(leases) => {
                let news: BTreeMap<Subnets, FlannelLease> =
                    leases.into_iter().map(|lease| (lease.subnets, lease)).collect();
                let differs = self.0.as_ref().is_none_or(|known| !is_same(known, &news));
                self.0 = Some(news);
                differs
            }
            LeaseEvent::Added(lease) => {
                let Some(known) = &mut self.0 else { return false };
                let attrs = lease.attrs.clone();
                known.insert(lease.subnets, lease).is_none_or(|before| before.attrs != attrs)
            }
            LeaseEvent::Removed(subnets) => self.0.as_mut().is_some_and(|known| known.remove(&subnets).is_some()),
            LeaseEvent::OwnRenewed(_) | LeaseEvent::OwnLost { .. } => false,
        }
    }

    /// All of them in the order of their prefixes; `None` before the first snapshot.
    pub fn all(&self) -> Option<Vec<FlannelLease>> {
        self.0.as_ref().map(|known| known.values().cloned().collect())
    }
}

/// Whether two sets differ in nothing but when leases end.
fn is_same(a: &BTreeMap<Subnets, FlannelLease>, b: &BTreeMap<Subnets, FlannelLease>) -> bool {
    a.len() == b.len()
        && a.iter().all(|(subnets, lease)| b.get(subnets).is_some_and(|other| other.attrs == lease.attrs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flannel::LeaseAttrs;
    use std::time::SystemTime;

    fn lease(subnet: &str, host: u8) -> FlannelLease {
        FlannelLease {
            subnets: Subnets { v4: Some(subnet.parse().unwrap()), v6: None },
            attrs: LeaseAttrs { public_ip: Some([192, 0, 2, host].into()), ..LeaseAttrs::default() },
            expires: Some(SystemTime::now()),
        }
    }

    #[test]
    fn nothing_is_known_before_the_first_snapshot() {
        let mut peers = Peers::default();
        assert!(!peers.learn(LeaseEvent::Added(lease("10.5.2.0/24", 2))));
        assert!(peers.all().is_none());
        assert!(peers.learn(LeaseEvent::Snapshot(Vec::new())));
        assert_eq!(peers.all(), Some(Vec::new()));
    }

    #[test]
    fn a_renewal_is_no_news_and_a_changed_address_is() {
        let mut peers = Peers::default();
        peers.learn(LeaseEvent::Snapshot(vec![lease("10.5.2.0/24", 2)]));
        assert!(!peers.learn(LeaseEvent::Added(lease("10.5.2.0/24", 2))));
        assert!(!peers.learn(LeaseEvent::Snapshot(vec![lease("10.5.2.0/24", 2)])));
        assert!(!peers.learn(LeaseEvent::OwnRenewed(lease("10.5.1.0/24", 1))));
        assert!(peers.learn(LeaseEvent::Snapshot(vec![lease("10.5.2.0/24", 3)])));
        assert!(peers.learn(LeaseEvent::Added(lease("10.5.2.0/24", 4))));
    }

    #[test]
    fn who_is_not_in_a_snapshot_has_left() {
        let mut peers = Peers::default();
        peers.learn(LeaseEvent::Snapshot(vec![lease("10.5.2.0/24", 2), lease("10.5.3.0/24", 3)]));
        assert!(peers.learn(LeaseEvent::Snapshot(vec![lease("10.5.3.0/24", 3)])));
        assert_eq!(peers.all().unwrap().len(), 1);
        assert!(!peers.learn(LeaseEvent::Removed(lease("10.5.2.0/24", 2).subnets)));
        assert!(peers.learn(LeaseEvent::Removed(lease("10.5.3.0/24", 3).subnets)));
    }
}
