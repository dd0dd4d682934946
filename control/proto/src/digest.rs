//! A stable digest of a table, computed alike by whoever describes it and by whoever installed it.
//!
//! It is XXH3-128 (seed 0) over the packed records of the canonical table, so it depends on neither the order of the input,
//! the machine, nor the version of weft. It detects mistakes, not malice: the socket's permissions keep strangers out.

use crate::record;
use crate::table::{Delta, PeerSpec, RouteSet};
use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use xxhash_rust::xxh3::Xxh3;

/// Digest of a table; shown as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub u128);

impl Digest {
    /// Digest of the table that `set` describes. Takes the order of peers and routes out first.
    pub fn of_set(set: &RouteSet) -> Digest {
        let mut peers: Vec<(u32, PeerSpec)> = (0..).zip(set.peers.iter().cloned().map(PeerSpec::canonical)).collect();
        peers.sort_by_key(|(_, peer)| peer.addr);
        let mut rank = vec![u32::MAX; peers.len()];
        for (new, (old, _)) in (0..).zip(&peers) {
            rank[*old as usize] = new;
        }
        let mut routes: Vec<_> = set
            .routes
            .iter()
            .map(|route| (route.prefix, rank.get(route.peer as usize).copied().unwrap_or(u32::MAX)))
            .collect();
        routes.sort_unstable();
        let mut hasher = Hasher::default();
        for (_, peer) in &peers {
            hasher.feed(|bytes| record::put_peer(bytes, peer));
        }
        for (prefix, peer) in routes {
            hasher.feed(|bytes| record::put_route(bytes, prefix, peer));
        }
        hasher.finish(set.peers.len(), set.routes.len())
    }

    /// Digest of a delta, in its order.
    pub fn of_delta(delta: &Delta) -> Digest {
        let mut hasher = Hasher::default();
        for (prefix, peer) in &delta.upsert {
            hasher.feed(|bytes| {
                record::put_peer(bytes, peer);
                record::put_route(bytes, *prefix, 0);
            });
        }
        for prefix in &delta.remove {
            hasher.feed(|bytes| record::put_removal(bytes, *prefix));
        }
        hasher.finish(delta.upsert.len(), delta.remove.len())
    }
}

/// Feeds records to XXH3 in pieces large enough for its fast path.
#[derive(Default)]
struct Hasher {
    state: Box<Xxh3>,
    pending: BytesMut,
}

impl Hasher {
    fn feed(&mut self, put: impl FnOnce(&mut BytesMut)) {
        put(&mut self.pending);
        if self.pending.len() >= 8192 {
            self.state.update(&self.pending);
            self.pending.clear();
        }
    }

    /// Closes with the two counts, so that no run of records can pass for another split of the same bytes.
    fn finish(mut self, first: usize, second: usize) -> Digest {
        self.pending.put_u64(first as u64);
        self.pending.put_u64(second as u64);
        self.state.update(&self.pending);
        Digest(self.state.digest128())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// A text that is not 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 32 hexadecimal digits")]
pub struct DigestError;

impl FromStr for Digest {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, DigestError> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(DigestError);
        }
        u128::from_str_radix(text, 16).map(Digest).map_err(|_| DigestError)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
