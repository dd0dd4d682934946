//! ICMP errors that this worker owes: whether the rate limit allows one, and from which address.

use crate::limits::{ICMP_BURST, ICMP_PER_SECOND, ICMP_PER_SOURCE};
use crate::sys::dev;
use std::net::{IpAddr, Ipv4Addr};
use weft_packet::icmp::{self, IcmpError};
use weft_packet::{Inner, Version};

/// Sources remembered for the per-source limit; a power of two. Sources that collide share a bucket.
const SOURCES: usize = 256;
/// How long the TUN's addresses are trusted before they are read again, milliseconds.
const ADDRESSES_FRESH_MS: u64 = 1000;

/// A token bucket in thousandths of a token, so that milliseconds refill it without fractions.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    millitokens: u64,
    refilled_ms: u64,
}

impl Bucket {
    fn take(&mut self, now_ms: u64, per_second: u32, burst: u32) -> bool {
        let full = u64::from(burst) * 1000;
        let refill = now_ms.saturating_sub(self.refilled_ms).saturating_mul(per_second.into());
        self.millitokens = full.min(self.millitokens.saturating_add(refill));
        self.refilled_ms = now_ms;
        let allowed = self.millitokens >= 1000;
        self.millitokens -= if allowed { 1000 } else { 0 };
        allowed
    }
}

/// One worker's rate limits and knowledge of the TUN's addresses.
#[derive(Debug)]
pub struct Replies {
    tun: String,
    addresses: Vec<IpAddr>,
    read_ms: Option<u64>,
    all: Bucket,
    per_second: u32,
    by_source: Box<[Bucket; SOURCES]>,
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
    /// For the TUN of this name; the global limit is shared among `workers`.
    pub fn new(tun: &str, workers: usize) -> Replies {
        Replies {
            tun: tun.to_owned(),
            addresses: Vec::new(),
            read_ms: None,
            all: Bucket { millitokens: u64::from(ICMP_BURST) * 1000, refilled_ms: 0 },
            per_second: (ICMP_PER_SECOND / workers as u32).max(1),
            by_source: Box::new([Bucket { millitokens: u64::from(ICMP_PER_SOURCE) * 1000, refilled_ms: 0 }; SOURCES]),
        }
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
        let bucket = &mut self.by_source[sender.wrapping_mul(0x9E37_79B1) as usize >> 24];
        let allowed =
            bucket.take(now_ms, ICMP_PER_SOURCE, ICMP_PER_SOURCE) && self.all.take(now_ms, self.per_second, ICMP_BURST);
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
        let mut bucket = Bucket { millitokens: 10_000, refilled_ms: 0 };
        assert_eq!((0..100).filter(|_| bucket.take(0, 10, 10)).count(), 10);
        assert_eq!((1..=1000).filter(|ms| bucket.take(*ms, 10, 10)).count(), 10);
        assert_eq!((0..100).filter(|_| bucket.take(1_000_000, 10, 10)).count(), 10);
    }
}
