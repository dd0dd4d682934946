//! The same table and the same loop for each crate.

use crate::tables::{Family, Prefix};
use ip_network::{Ipv4Network, Ipv6Network};
use ip_network_table::IpNetworkTable;
use ip_network_table_deps_treebitmap::IpLookupTable;
use ipnet::{Ipv4Net, Ipv6Net};
use iptrie::map::{LCTrieMap, RTrieMap};
use poptrie::Poptrie;
use prefix_trie::PrefixMap;
use routemap::RouteMap;
use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};
use weft_fib::{Lpm4, Lpm6};

/// A batch as a worker hands it over.
pub const BATCH: usize = 256;

/// Looks up all keys once.
pub type Run<A> = Box<dyn Fn(&[A])>;

/// A crate: its name, and how it takes in a table.
pub type Subject<A> = (&'static str, fn(&[Prefix<A>]) -> Run<A>);

/// A family with the subjects that can look it up.
pub trait Subjects: Family {
    const SUBJECTS: &[Subject<Self>];
}

/// One loop for all: the answers are added up, so that none can be left out.
fn each<A: Copy>(lookup: impl Fn(A) -> Option<u16>) -> impl Fn(&[A]) {
    move |keys| {
        black_box(keys.iter().fold(0u64, |sum, &key| sum + lookup(key).map_or(1, u64::from)));
    }
}

macro_rules! subjects {
    ($bits:ty, $address:ty, $net:ty, $network:ty, $lpm:ty, $longest_match:ident) => {
        impl Subjects for $bits {
            const SUBJECTS: &[Subject<$bits>] = &[
                ("weft", |table| {
                    let lpm = <$lpm>::build(table);
                    Box::new(each(move |key| lpm.lookup(key)))
                }),
                ("weft-batch", |table| {
                    let lpm = <$lpm>::build(table);
                    Box::new(move |keys: &[$bits]| {
                        let mut values = [None; BATCH];
                        for batch in keys.chunks_exact(BATCH) {
                            lpm.lookup_batch(black_box(batch), &mut values);
                            black_box(&values);
                        }
                    })
                }),
                ("poptrie", |table| {
                    let pop: Poptrie<($bits, u8), u16> =
                        table.iter().map(|&(address, len, value)| ((address, len), value)).collect();
                    Box::new(each(move |key| pop.lookup(key).copied()))
                }),
                ("prefix-trie", |table| {
                    let map: PrefixMap<$net, u16> = table
                        .iter()
                        .map(|&(address, len, value)| (<$net>::new_assert(address.into(), len), value))
                        .collect();
                    Box::new(each(move |key: $bits| {
                        map.get_lpm(&<$net>::new_assert(key.into(), <$bits>::BITS as u8)).map(|(_, &value)| value)
                    }))
                }),
                ("iptrie", |table| {
                    // The answer where no prefix covers a key hangs at the root, which this crate cannot do without.
                    let mut map = RTrieMap::<$net, Option<u16>>::new();
                    map.extend(
                        table
                            .iter()
                            .map(|&(address, len, value)| (<$net>::new_assert(address.into(), len), Some(value))),
                    );
                    let map: LCTrieMap<$net, Option<u16>> = map.compress();
                    Box::new(each(move |key: $bits| *map.lookup(&<$address>::from(key)).1))
                }),
                ("ip_network_table", |table| {
                    let mut map = IpNetworkTable::<u16>::new();
                    for &(address, len, value) in table {
                        map.insert(<$network>::new(address.into(), len).unwrap(), value);
                    }
                    Box::new(each(move |key: $bits| map.$longest_match(key.into()).map(|(_, &value)| value)))
                }),
                ("treebitmap", |table| {
                    let mut map = IpLookupTable::<$address, u16>::new();
                    for &(address, len, value) in table {
                        map.insert(address.into(), len.into(), value);
                    }
                    Box::new(each(move |key: $bits| map.longest_match(key.into()).map(|(_, _, &value)| value)))
                }),
                ("routemap", |table| {
                    let mut map = RouteMap::<$address, u16>::new();
                    for &(address, len, value) in table {
                        let address = <$address>::from(address);
                        map.insert(format!("{address}/{len}").parse().unwrap(), value);
                    }
                    Box::new(each(move |key: $bits| map.longest_match(key.into()).copied()))
                }),
            ];
        }
    };
}

subjects!(u32, Ipv4Addr, Ipv4Net, Ipv4Network, Lpm4, longest_match_ipv4);
subjects!(u128, Ipv6Addr, Ipv6Net, Ipv6Network, Lpm6, longest_match_ipv6);
