//! What fits through the underlay to each peer, as far as this worker has learnt it. The hot path compares with one number;
//! only packets that exceed it, or sends that the kernel refused, lead to a question.

use crate::limits::{PATH_MTU_FRESH_MS, PEERS_MAX};
use crate::shared::WorkerView;
use crate::underlay;
use std::sync::atomic::Ordering::Relaxed;
use weft_fib::{Fib, PeerId};

/// No limit learnt: every inner packet fits as far as is known.
pub const UNKNOWN: u16 = u16::MAX;

/// Largest inner packet per peer.
#[derive(Debug)]
pub struct PathMtus {
    limits: Box<[u16]>,
    /// Peers with a learnt limit, and when it was learnt (milliseconds).
    learnt: Vec<(PeerId, u64)>,
    generation: u64,
}

impl PathMtus {
    /// Nothing learnt.
    pub fn new() -> PathMtus {
        PathMtus { limits: vec![UNKNOWN; PEERS_MAX].into_boxed_slice(), learnt: Vec::new(), generation: 0 }
    }

    /// The largest inner packet that is known to fit to `peer`, or [`UNKNOWN`].
    #[inline]
    pub fn limit(&self, peer: PeerId) -> u16 {
        self.limits[usize::from(peer.0)]
    }

    /// Whether nothing was learnt: no packet is too long for its path, as far as is known.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.learnt.is_empty()
    }

    /// Forgets everything when the table changed: an id may mean another address. Says whether it did.
    #[inline]
    pub fn follow(&mut self, fib: &Fib) -> bool {
        let changed = self.generation != fib.generation();
        if changed {
            self.generation = fib.generation();
            for (peer, _) in self.learnt.drain(..) {
                self.limits[usize::from(peer.0)] = UNKNOWN;
            }
        }
        changed
    }

    /// The limit after asking the kernel, unless it was asked within [`PATH_MTU_FRESH_MS`] and `force` is not set.
    pub fn refresh(&mut self, fib: &Fib, peer: PeerId, now_ms: u64, force: bool, view: &WorkerView) -> u16 {
        let known = self.learnt.iter().position(|(learnt, _)| *learnt == peer);
        if let Some(position) = known {
            if !force && now_ms.saturating_sub(self.learnt[position].1) < PATH_MTU_FRESH_MS {
                return self.limit(peer);
            }
            self.learnt.swap_remove(position);
        }
        let addr = fib.peer(peer).addr;
        let limit = underlay::path_mtu(addr).map_or(UNKNOWN, |mtu| mtu.saturating_sub(underlay::overhead(addr)));
        self.limits[usize::from(peer.0)] = limit;
        self.learnt.push((peer, now_ms));
        view.stats.peer(peer).path_mtu.store(limit.into(), Relaxed);
        limit
    }
}

impl Default for PathMtus {
    fn default() -> Self {
        Self::new()
    }
}
