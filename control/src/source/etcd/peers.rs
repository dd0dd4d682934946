//! Records -> peers. Pure: records come in, events and complaints come out.
//!
//! A record concerns itself alone: what cannot be used is passed over and named once, and everything else is as if it were
//! not there. Peers are worked out anew from all records after each change, so an event that was missed, a record that was
//! mended and a claim that became free again are one case.
//!
//! ```text
//!  records (by key) --parse, own?, inside the network?, overlap?--> peers --compare with what was told--> events
//! ```

use super::wire::{Event, Kv};
use crate::flannel::allocate::{is_same_node, is_whole, overlaps};
use crate::flannel::record::{parse_key, parse_value};
use crate::flannel::{FlannelLease, LeaseAttrs, LeaseEvent, NetConf, Subnets};
use ipnet::{Ipv4Net, Ipv6Net};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

/// All records below one directory, and what was told of them.
#[derive(Debug)]
pub struct Peers {
    /// `PREFIX/subnets/`, or that of a network of IPv6 alone.
    directory: String,
    network: Option<Ipv4Net>,
    network_v6: Option<Ipv6Net>,
    /// `SubnetLen`, and `IPv6SubnetLen` of a network of IPv6 alone.
    subnet_len: Option<u8>,
    own: Subnets,
    own_attrs: LeaseAttrs,
    lease_ttl: Duration,
    records: BTreeMap<Vec<u8>, Record>,
    told: BTreeMap<Subnets, FlannelLease>,
    /// What was complained of, by key.
    complaints: BTreeMap<Vec<u8>, String>,
}

#[derive(Debug)]
struct Record {
    create_revision: i64,
    lease: i64,
    read: Result<(Subnets, LeaseAttrs), String>,
}

/// What a change of records comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// For the daemon.
    pub events: Vec<LeaseEvent>,
    /// For the log: what is wrong with which record, if that is news.
    pub complaints: Vec<String>,
}

impl Peers {
    /// Knows of no record yet. A peer's lease is taken to live for `lease_ttl` from when it was read.
    pub fn new(directory: String, conf: &NetConf, own: Subnets, own_attrs: LeaseAttrs, lease_ttl: Duration) -> Peers {
        let (network, network_v6) = (conf.network(), conf.network_v6());
        let (records, told, complaints) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let subnet_len = conf.v4.map(|pool| pool.subnet_len).or(conf.v6.map(|pool| pool.subnet_len));
        Peers { directory, network, network_v6, subnet_len, own, own_attrs, lease_ttl, records, told, complaints }
    }

    /// Begins anew with all records that there are.
    pub fn replace(&mut self, kvs: Vec<Kv>) -> Change {
        self.records = kvs.into_iter().map(|kv| self.read(kv)).collect();
        let (peers, complaints) = self.work_out();
        // What is known keeps its expiry, so that a snapshot without news is equal to the last one.
        let told = std::mem::take(&mut self.told);
        self.told = peers.into_iter().map(|(subnets, lease)| (subnets, kept(told.get(&subnets), lease))).collect();
        Change { events: vec![LeaseEvent::Snapshot(self.told.values().cloned().collect())], complaints }
    }

    /// Takes in changes, in order.
    pub fn apply(&mut self, events: Vec<Event>) -> Change {
        for event in events {
            if event.is_delete() {
                self.records.remove(&event.kv.key);
            } else {
                let (key, record) = self.read(event.kv);
                self.records.insert(key, record);
            }
        }
        self.tell()
    }

    /// Takes in what our own record says from here on.
    pub fn own_changed(&mut self, attrs: LeaseAttrs) -> Change {
        self.own_attrs = attrs;
        self.tell()
    }

    fn read(&self, kv: Kv) -> (Vec<u8>, Record) {
        let name = kv.key.strip_prefix(self.directory.as_bytes()).unwrap_or(&kv.key);
        let read = std::str::from_utf8(name)
            .map_err(|_| "its key is not UTF-8".to_owned())
            .and_then(|name| parse_key(name).map_err(|why| format!("its key makes no sense: {why}")))
            .and_then(|subnets| Ok((subnets, parse_value(&kv.value)?)));
        (kv.key, Record { create_revision: kv.create_revision, lease: kv.lease, read })
    }

    /// What differs from what was told, removals first: a prefix may have gone from one lease to another.
    fn tell(&mut self) -> Change {
        let (peers, complaints) = self.work_out();
        let mut events = Vec::new();
        self.told.retain(|subnets, _| {
            let stays = peers.contains_key(subnets);
            if !stays {
                events.push(LeaseEvent::Removed(*subnets));
            }
            stays
        });
        for (subnets, lease) in peers {
            let known = self.told.get(&subnets);
            let lease = kept(known, lease);
            if known != Some(&lease) {
                events.push(LeaseEvent::Added(lease.clone()));
                self.told.insert(subnets, lease);
            }
        }
        Change { events, complaints }
    }

    /// The usable peers of all records, and the news about those that are not. Of two claims on one address the one of the
    /// length that the network config wants counts, and of those the older one, whoever looks and whenever. So a record
    /// that is far too wide takes nothing from the nodes inside it.
    fn work_out(&mut self) -> (BTreeMap<Subnets, FlannelLease>, Vec<String>) {
        let now = SystemTime::now();
        let mut by_age: Vec<(&Vec<u8>, &Record)> = self.records.iter().collect();
        by_age.sort_by_key(|(key, record)| (!self.has_wanted_len(record), record.create_revision, *key));
        let (mut peers, mut claims) = (BTreeMap::new(), Claims::default());
        let mut faults: BTreeMap<&Vec<u8>, String> = BTreeMap::new();
        for (key, record) in by_age {
            match self.usable(record, &mut claims) {
                Ok(None) => {}
                Ok(Some((subnets, attrs))) => {
                    let expires = (record.lease != 0).then(|| now + self.lease_ttl);
                    peers.insert(subnets, FlannelLease { subnets, attrs, expires });
                }
                Err(why) => {
                    faults.insert(key, why);
                }
            }
        }
        let mut news = Vec::new();
        for (key, why) in &faults {
            if self.complaints.get(*key) != Some(why) {
                news.push(format!("lease {} is passed over: {why}", shown(key)));
            }
        }
        self.complaints = faults.into_iter().map(|(key, why)| (key.clone(), why)).collect();
        (peers, news)
    }

    fn has_wanted_len(&self, record: &Record) -> bool {
        let Ok((subnets, _)) = &record.read else { return false };
        let len = match self.network {
            Some(_) => subnets.v4.map(|net| net.prefix_len()),
            None => subnets.v6.map(|net| net.prefix_len()),
        };
        len == self.subnet_len
    }

    /// `None`: our own.
    fn usable(&self, record: &Record, claims: &mut Claims) -> Result<Option<(Subnets, LeaseAttrs)>, String> {
        let (subnets, attrs) = record.read.as_ref().map_err(Clone::clone)?;
        if *subnets == self.own {
            return Ok(None);
        }
        match (self.network, subnets.v4) {
            (Some(_), None) => return Err("it is of IPv6 alone, and so not of this network".into()),
            (None, Some(_)) => return Err("it has an IPv4 subnet, and the network has none".into()),
            _ => {}
        }
        if is_whole(self.network, self.network_v6, subnets) {
            return Err("it claims the whole overlay network".into());
        }
        if overlaps(subnets, &self.own) {
            return Err("it overlaps our own subnet".into());
        }
        if subnets.v4.is_some_and(|net| self.network.is_some_and(|network| !network.contains(&net))) {
            return Err("it is outside the overlay network".into());
        }
        // A node without IPv6 has no use for that half; what it says is nobody's business here.
        let v6 = subnets.v6.filter(|_| self.network_v6.is_some());
        if v6.is_some_and(|net| self.network_v6.is_some_and(|network| !network.contains(&net))) {
            return Err("it is outside the IPv6 overlay network".into());
        }
        let subnets = Subnets { v4: subnets.v4, v6 };
        if let Some(why) = address_fault(attrs) {
            return Err(why);
        }
        if is_same_node(attrs, &self.own_attrs) {
            return Err("its public IP is our own; another node with that address, or a lease that we had".into());
        }
        if !claims.take(&subnets) {
            return Err("it overlaps another lease, which is older or of the length that SubnetLen wants".into());
        }
        Ok(Some((subnets, attrs.clone())))
    }
}

/// `lease`, with the expiry of what is known if nothing else is new.
fn kept(known: Option<&FlannelLease>, lease: FlannelLease) -> FlannelLease {
    match known {
        Some(known) if known.attrs == lease.attrs && known.expires.is_some() == lease.expires.is_some() => {
            known.clone()
        }
        _ => lease,
    }
}

/// Why no datagram can go to where a lease says its node is.
fn address_fault(attrs: &LeaseAttrs) -> Option<String> {
    let is_unusable = |address: Ipv4Addr| {
        address.is_loopback() || address.is_multicast() || address.octets()[0] == 0 || address.octets()[0] >= 240
    };
    match (attrs.public_ip, attrs.public_ipv6) {
        (None, None) => Some("it has neither PublicIP nor PublicIPv6".into()),
        (Some(address), _) if is_unusable(address) => Some(format!("its PublicIP {address} is no host's address")),
        (_, Some(address)) if address.is_loopback() || address.is_multicast() => {
            Some(format!("its PublicIPv6 {address} is no host's address"))
        }
        _ => None,
    }
}

/// The beginning of a key, for a log.
fn shown(key: &[u8]) -> String {
    const LEN_MAX: usize = 200;
    let text = String::from_utf8_lossy(&key[..key.len().min(LEN_MAX)]);
    format!("{:?}{}", text, if key.len() > LEN_MAX { "..." } else { "" })
}

/// Prefixes that do not overlap, first address -> last address.
#[derive(Default)]
struct Claims {
    v4: BTreeMap<u128, u128>,
    v6: BTreeMap<u128, u128>,
}

impl Claims {
    /// Adds both prefixes unless one overlaps an earlier one.
    fn take(&mut self, subnets: &Subnets) -> bool {
        let is_free = |claims: &BTreeMap<u128, u128>, (first, last): (u128, u128)| {
            claims.range(..=last).next_back().is_none_or(|(_, end)| *end < first)
        };
        let v4 = subnets.v4.map(|net| (u32::from(net.network()).into(), u32::from(net.broadcast()).into()));
        let v6 = subnets.v6.map(|net| (u128::from(net.network()), u128::from(net.broadcast())));
        let free = v4.is_none_or(|span| is_free(&self.v4, span)) && v6.is_none_or(|span| is_free(&self.v6, span));
        if free {
            self.v4.extend(v4);
            self.v6.extend(v6);
        }
        free
    }
}

#[cfg(test)]
#[path = "peers_tests.rs"]
mod tests;
