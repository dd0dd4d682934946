//! ICMP errors that this worker owes: whether the rate limit allows one, and from which address.

use crate::limits::{ICMP_BURST, ICMP_PER_SECOND, ICMP_PER_SOURCE};
use crate::sys::dev;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use weft_packet::icmp::{self, IcmpError};
use weft_packet::{Inner, Version};

/// Sources remembered for the per-source limit; a power of two. Sources that collide share a bucket.
const SOURCES: usize = 256;
/// How long the TUN's addresses are trusted before they are read again, milliseconds.
const ADDRESSES_FRESH_MS: u64 = 1000;

/// A token bucket in thousandths of a token, so that milliseconds refill it without fractions: in one word, the time when it was
/// last taken from, milliseconds, above [`TOKEN_BITS`] bits of what was left.
#[derive(Debug)]
struct Bucket(AtomicU64);

/// Enough for a thousand tokens.
const TOKEN_BITS: u32 = 20;

impl Bucket {
    fn full(burst: u32) -> Bucket {
        Bucket(AtomicU64::new(u64::from(burst) * 1000))
    }

    fn take(&self, now_ms: u64, per_second: u32, burst: u32) -> bool {
        let full = u64::from(burst) * 1000;
        let taken = self.0.fetch_update(Relaxed, Relaxed, |state| {
            let (taken_ms, left) = (state >> TOKEN_BITS, state & ((1 << TOKEN_BITS) - 1));
            let refill = now_ms.saturating_sub(taken_ms).saturating_mul(per_second.into());
            let left = full.min(left.saturating_add(refill));
            // The clocks of two workers may differ by a turn.
            (left >= 1000).then(|| now_ms.max(taken_ms) << TOKEN_BITS | (left - 1000))
        });
        taken.is_ok()
    }
}

/// The rate limits of a weftd, which its workers share: a source's packets may reach several of them.
#[derive(Debug)]
pub struct Limits {
    all: Bucket,
    by_source: [Bucket; SOURCES],
}

impl Default for Limits {
    /// Everything is allowed its burst.
    fn default() -> Limits {
        Limits { all: Bucket::full(ICMP_BURST), by_source: std::array::from_fn(|_| Bucket::full(ICMP_PER_SOURCE)) }
    }
}

/// One worker's knowledge of the TUN's addresses, and the limits.
#[derive(Debug)]
pub struct Replies {
    tun: String,
    addresses: Vec<IpAddr>,
    read_ms: Option<u64>,
    limits: Arc<Limits>,
}

/// What became of an error that was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Built: this many bytes.
    Built(usize),
    /// None may be sent about this packet.
    NotDue,
    /// The rate limit withheld it.
    Limited,
}

impl Replies {
    /// For the TUN of this name.
    pub fn new(tun: &str, limits: Arc<Limits>) -> Replies {
        Replies { tun: tun.to_owned(), addresses: Vec::new(), read_ms: None, limits }
    }

    /// Builds the error about `packet` into `out`, if one is due and allowed.
    pub fn build(&mut self, kind: IcmpError, packet: &[u8], inner: &Inner, now_ms: u64, out: &mut [u8]) -> Reply {
        let source = self.source(inner.version, now_ms);
        let Some(len) = icmp::error(kind, source, packet, inner, out) else { return Reply::NotDue };
        let sender = match inner.version {
            Version::V4 => inner.src4(packet),
            Version::V6 => {
                let bits = inner.src6(packet);
                (bits ^ (bits >> 32) ^ (bits >> 64) ^ (bits >> 96)) as u32
            }
        };
        let bucket = &self.limits.by_source[sender.wrapping_mul(0x9E37_79B1) as usize >> 24];
        let allowed = bucket.take(now_ms, ICMP_PER_SOURCE, ICMP_PER_SOURCE)
            && self.limits.all.take(now_ms, ICMP_PER_SECOND, ICMP_BURST);
        if allowed { Reply::Built(len) } else { Reply::Limited }
    }

    /// The TUN's address of that family. Without one, IPv4 errors come from 192.0.0.8 (RFC 7600 section 4.7: the dummy
    /// address for ICMP errors) and IPv6 errors from its counterpart in 64:ff9b:1::/48.
    fn source(&mut self, version: Version, now_ms: u64) -> IpAddr {
        if self.read_ms.is_none_or(|read| now_ms.saturating_sub(read) >= ADDRESSES_FRESH_MS) {
            self.addresses = dev::addresses(&self.tun).unwrap_or_default();
            self.read_ms = Some(now_ms);
        }
        let wanted = |a: &&IpAddr| a.is_ipv4() == (version == Version::V4);
        self.addresses.iter().find(wanted).copied().unwrap_or(match version {
            Version::V4 => IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8)),
            Version::V6 => IpAddr::V6("64:ff9b:1::c000:8".parse().expect("a literal address")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_allows_the_burst_then_the_rate() {
        let bucket = Bucket::full(10);
        assert_eq!((0..100).filter(|_| bucket.take(0, 10, 10)).count(), 10);
        assert_eq!((1..=1000).filter(|ms| bucket.take(*ms, 10, 10)).count(), 10);
        assert_eq!((0..100).filter(|_| bucket.take(1_000_000, 10, 10)).count(), 10);
    }
}
