//! Everybody's leases, as far as the registry has told.
//!
//! A lease that is gone from the registry is not gone from the network: a registry that was wiped gets its records back within
//! seconds, each from its own node, and a deleted record is written again by a daemon that lives. So a peer that has left is
//! kept for a while, unless somebody else claims its prefix. Packets for one that is really gone are lost either way.

use crate::flannel::allocate::overlaps;
use crate::flannel::{FlannelLease, LeaseEvent, Subnets};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a peer is kept whose record was deleted.
const DELETED_GRACE: Duration = Duration::from_secs(2);
/// How long a peer is kept that a list of everybody does not show. A list is made when events were missed, as after the
/// registry lost its data, which other nodes find out within half a minute.
const MISSING_GRACE: Duration = Duration::from_secs(60);

/// The peers. Nothing is known before the first snapshot, which is something else than that there are none: a backend that
/// found peers in place when it took over must not lose them meanwhile.
#[derive(Debug, Default)]
pub struct Peers {
    known: Option<BTreeMap<Subnets, FlannelLease>>,
    /// Those that have left, and until when they are kept.
    leaving: BTreeMap<Subnets, (FlannelLease, Instant)>,
}

impl Peers {
    /// Takes in an event about peers; true if something changed for the backend. A renewal changes nothing.
    pub fn learn(&mut self, event: LeaseEvent, now: Instant) -> bool {
        let before = self.all();
        match event {
            LeaseEvent::Snapshot(leases) => {
                let news = leases.into_iter().map(|lease| (lease.subnets, lease)).collect();
                let missing = self.known.replace(news).unwrap_or_default();
                self.leaving.extend(missing.into_iter().map(|(of, lease)| (of, (lease, now + MISSING_GRACE))));
            }
            LeaseEvent::Added(lease) => {
                if let Some(known) = &mut self.known {
                    known.insert(lease.subnets, lease);
                }
            }
            LeaseEvent::Removed(subnets) => {
                if let Some(lease) = self.known.as_mut().and_then(|known| known.remove(&subnets)) {
                    self.leaving.insert(subnets, (lease, now + DELETED_GRACE));
                }
            }
            LeaseEvent::OwnRenewed(_) | LeaseEvent::OwnLost { .. } | LeaseEvent::Config(_) => {}
        }
        if let Some(known) = &self.known {
            self.leaving.retain(|subnets, _| !known.keys().any(|other| overlaps(other, subnets)));
        }
        !is_same(&before, &self.all())
    }

    /// Lets go of those whose time is over; true if there were any.
    pub fn forget(&mut self, now: Instant) -> bool {
        let before = self.leaving.len();
        self.leaving.retain(|_, (_, until)| *until > now);
        self.leaving.len() < before
    }

    /// When [`Peers::forget`] has something to do next.
    pub fn next(&self) -> Option<Instant> {
        self.leaving.values().map(|(_, until)| *until).min()
    }

    /// All of them in the order of their prefixes; `None` before the first snapshot.
    pub fn all(&self) -> Option<Vec<FlannelLease>> {
        let known = self.known.as_ref()?;
        let mut all: Vec<FlannelLease> =
            known.values().chain(self.leaving.values().map(|(lease, _)| lease)).cloned().collect();
        all.sort_by_key(|lease| lease.subnets);
        Some(all)
    }
}

/// Whether two lists differ in nothing but when leases end.
fn is_same(a: &Option<Vec<FlannelLease>>, b: &Option<Vec<FlannelLease>>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return a.is_none() && b.is_none() };
    let same = |(a, b): (&FlannelLease, &FlannelLease)| a.subnets == b.subnets && a.attrs == b.attrs;
    a.len() == b.len() && a.iter().zip(b).all(same)
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
        let (mut peers, now) = (Peers::default(), Instant::now());
        assert!(!peers.learn(LeaseEvent::Added(lease("10.5.2.0/24", 2)), now));
        assert!(peers.all().is_none());
        assert!(peers.learn(LeaseEvent::Snapshot(Vec::new()), now));
        assert_eq!(peers.all(), Some(Vec::new()));
    }

    #[test]
    fn a_renewal_is_no_news_and_a_changed_address_is() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        peers.learn(LeaseEvent::Snapshot(vec![lease("10.5.2.0/24", 2)]), now);
        assert!(!peers.learn(LeaseEvent::Added(lease("10.5.2.0/24", 2)), now));
        assert!(!peers.learn(LeaseEvent::Snapshot(vec![lease("10.5.2.0/24", 2)]), now));
        assert!(!peers.learn(LeaseEvent::OwnRenewed(lease("10.5.1.0/24", 1)), now));
        assert!(peers.learn(LeaseEvent::Snapshot(vec![lease("10.5.2.0/24", 3)]), now));
        assert!(peers.learn(LeaseEvent::Added(lease("10.5.2.0/24", 4)), now));
    }

    #[test]
    fn who_has_left_is_kept_for_a_while() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        let (two, three) = (lease("10.5.2.0/24", 2), lease("10.5.3.0/24", 3));
        peers.learn(LeaseEvent::Snapshot(vec![two.clone(), three.clone()]), now);
        assert!(!peers.learn(LeaseEvent::Snapshot(vec![three.clone()]), now));
        assert!(!peers.learn(LeaseEvent::Removed(three.subnets), now));
        assert_eq!(peers.next(), Some(now + DELETED_GRACE));
        assert!(!peers.forget(now) && peers.forget(now + DELETED_GRACE));
        assert_eq!(peers.all(), Some(vec![two]));
        assert!(peers.forget(now + MISSING_GRACE));
        assert_eq!((peers.all(), peers.next()), (Some(Vec::new()), None));
    }

    #[test]
    fn who_comes_back_meanwhile_was_never_away() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        peers.learn(LeaseEvent::Snapshot(vec![lease("10.5.2.0/24", 2)]), now);
        assert!(!peers.learn(LeaseEvent::Removed(lease("10.5.2.0/24", 2).subnets), now));
        assert!(!peers.learn(LeaseEvent::Added(lease("10.5.2.0/24", 2)), now));
        assert_eq!(peers.next(), None);
    }

    #[test]
    fn a_claim_on_its_prefix_ends_a_peer_that_has_left() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        peers.learn(LeaseEvent::Snapshot(vec![lease("10.5.2.0/24", 2)]), now);
        peers.learn(LeaseEvent::Removed(lease("10.5.2.0/24", 2).subnets), now);
        assert!(peers.learn(LeaseEvent::Added(lease("10.5.2.0/25", 3)), now));
        assert_eq!(peers.all().unwrap().len(), 1);
    }
}
