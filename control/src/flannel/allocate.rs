//! Which subnet to take: pure choices, on what the registry holds.
//!
//! Stock flannel's order: the lease that already has our public IP; else the subnet that `subnet.env` says we had; else one
//! at random among the first 100 free ones.

use super::netconf::{NetConf, Pool};
use super::{LeaseAttrs, Subnets};
use ipnet::{Ipv4Net, Ipv6Net};

/// How many free subnets the choice is among.
const CANDIDATES_MAX: usize = 100;

/// A lease that the registry holds, as far as the choice is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What it is a claim on, or overlaps with.
    pub subnets: Subnets,
    /// What its node published; `None` if that cannot be read.
    pub attrs: Option<LeaseAttrs>,
}

impl Held {
    /// Whether it is of the node that publishes `own`.
    pub fn is_of(&self, own: &LeaseAttrs) -> bool {
        self.attrs.as_ref().is_some_and(|attrs| is_same_node(attrs, own))
    }
}

/// Whether a lease's underlay address is that of `own`: the same IPv4 address, or where one of them has none, the same IPv6
/// address.
pub fn is_same_node(attrs: &LeaseAttrs, own: &LeaseAttrs) -> bool {
    match (attrs.public_ip, own.public_ip) {
        (Some(theirs), Some(ours)) => theirs == ours,
        _ => own.public_ipv6.is_some() && attrs.public_ipv6 == own.public_ipv6,
    }
}

/// Whether `subnets` is what the network config wants a node to have.
pub fn fits(conf: &NetConf, subnets: &Subnets) -> bool {
    let v4 = match (&conf.v4, subnets.v4) {
        (None, None) => true,
        (Some(pool), Some(net)) => {
            let range = pool.subnet_min.network()..=pool.subnet_max.network();
            net.prefix_len() == pool.subnet_len && range.contains(&net.network())
        }
        _ => false,
    };
    let v6 = match (&conf.v6, subnets.v6) {
        (None, None) => true,
        (Some(pool), Some(net)) => {
            let range = pool.subnet_min.network()..=pool.subnet_max.network();
            net.prefix_len() == pool.subnet_len && range.contains(&net.network())
        }
        _ => false,
    };
    v4 && v6
}

/// Which of the leases with our public IP to go on with, by index: one that fits, and of several the one that we had.
pub fn reusable(conf: &NetConf, own: &LeaseAttrs, previous: &Subnets, held: &[Held]) -> Option<usize> {
    let ours = |held: &&(usize, &Held)| held.1.is_of(own) && fits(conf, &held.1.subnets);
    let candidates: Vec<(usize, &Held)> = held.iter().enumerate().filter(|held| ours(&held)).collect();
    let had = candidates.iter().find(|(_, held)| held.subnets == *previous);
    had.or(candidates.first()).map(|(index, _)| *index)
}

/// A subnet to create a lease for: the previous one if nobody holds it, else a free one. `choose` picks a number below its
/// argument. `None`: out of subnets.
pub fn allocate(
    conf: &NetConf,
    previous: &Subnets,
    held: &[Held],
    choose: &mut dyn FnMut(usize) -> usize,
) -> Option<Subnets> {
    let is_part = |held: &&Held| !is_whole(conf.network(), conf.network_v6(), &held.subnets);
    let held = || held.iter().filter(is_part).map(|held| &held.subnets);
    if fits(conf, previous) && !held().any(|claim| overlaps(claim, previous)) {
        return Some(*previous);
    }
    let v4 = match &conf.v4 {
        Some(pool) => {
            let taken = held().filter_map(|claim| claim.v4).map(span_v4).collect();
            let begin = one_free(&span_of_v4(pool), 32 - pool.subnet_len, taken, choose)?;
            Some(Ipv4Net::new((begin as u32).into(), pool.subnet_len).ok()?)
        }
        None => None,
    };
    let v6 = match &conf.v6 {
        Some(pool) => {
            let taken = held().filter_map(|claim| claim.v6).map(span_v6).collect();
            let begin = one_free(&span_of_v6(pool), 128 - pool.subnet_len, taken, choose)?;
            Some(Ipv6Net::new(begin.into(), pool.subnet_len).ok()?)
        }
        None => None,
    };
    Some(Subnets { v4, v6 })
}

/// Whether two claims have an address in common.
pub fn overlaps(a: &Subnets, b: &Subnets) -> bool {
    let v4 = a.v4.zip(b.v4).is_some_and(|(a, b)| a.contains(&b) || b.contains(&a));
    v4 || a.v6.zip(b.v6).is_some_and(|(a, b)| a.contains(&b) || b.contains(&a))
}

/// Whether a claim is one on a whole overlay network, which no node's can be: such a record concerns nobody's choice.
pub fn is_whole(network: Option<Ipv4Net>, network_v6: Option<Ipv6Net>, claim: &Subnets) -> bool {
    let v4 = claim.v4.zip(network).is_some_and(|(claim, network)| claim.contains(&network));
    v4 || claim.v6.zip(network_v6).is_some_and(|(claim, network)| claim.contains(&network))
}

/// Addresses from the first to the last, both included, as numbers.
type Span = (u128, u128);

fn span_v4(net: Ipv4Net) -> Span {
    (u32::from(net.network()).into(), u32::from(net.broadcast()).into())
}

fn span_v6(net: Ipv6Net) -> Span {
    (net.network().into(), net.broadcast().into())
}

fn span_of_v4(pool: &Pool<Ipv4Net>) -> Span {
    (span_v4(pool.subnet_min).0, span_v4(pool.subnet_max).1)
}

fn span_of_v6(pool: &Pool<Ipv6Net>) -> Span {
    (span_v6(pool.subnet_min).0, span_v6(pool.subnet_max).1)
}

/// The first address of a free subnet with `host_bits` in `range`, chosen among the lowest. Walks the taken spans rather
/// than the subnets: an IPv6 range may have 2^62 of them.
fn one_free(range: &Span, host_bits: u8, mut taken: Vec<Span>, choose: &mut dyn FnMut(usize) -> usize) -> Option<u128> {
    taken.sort_unstable();
    let mut taken = taken.into_iter().peekable();
    let last_of = |begin: u128| begin + ((1 << host_bits) - 1);
    let mut free = Vec::new();
    let mut begin = range.0;
    while free.len() < CANDIDATES_MAX && last_of(begin) <= range.1 {
        // Spans that end below cannot matter again. A span that holds others and goes on above them is passed later than
        // they are, so the walk goes by where each one ends.
        let mut next = None;
        while let Some(&(first, last)) = taken.peek() {
            if first > last_of(begin) {
                break;
            }
            if last >= begin {
                next = Some(last);
                break;
            }
            taken.next();
        }
        match next {
            None => {
                free.push(begin);
                begin = match last_of(begin).checked_add(1) {
                    Some(next) => next,
                    None => break,
                };
            }
            // To the next subnet that begins behind the span.
            Some(last) => {
                begin = match (last | ((1 << host_bits) - 1)).checked_add(1) {
                    Some(next) => next,
                    None => break,
                }
            }
        }
    }
    (!free.is_empty()).then(|| free[choose(free.len())])
}

#[cfg(test)]
#[path = "allocate_tests.rs"]
mod tests;
