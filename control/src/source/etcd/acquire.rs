//! Getting a lease: the one that is ours already, or a new one. Every write names what it expects to find, so no other
//! node's lease is ever written over.

use super::gateway::{Gateway, Outcome};
use super::wire::{Condition, Kv};
use super::{EtcdError, EtcdOptions};
use crate::flannel::allocate::{Held, allocate, is_whole, overlaps, reusable};
use crate::flannel::record::{claim_of, directory_name, key_name, parse_value, write_value};
use crate::flannel::{FlannelLease, LeaseAttrs, NetConf, Subnets};
use std::time::{Duration, Instant, SystemTime};
use tracing::{info, warn};

/// Races that are lost before giving up.
const TRIES_MAX: usize = 10;
/// The longest pause after a lost race, in milliseconds: a fleet that starts at once should not meet again.
const PAUSE_MS_MAX: u64 = 100;

/// Our record as it stands in etcd.
#[derive(Clone, Debug)]
pub struct OwnRecord {
    /// `PREFIX/subnets/NAME`, or that of a lease of IPv6 alone.
    pub key: String,
    /// What it is a claim on.
    pub subnets: Subnets,
    /// What it says.
    pub attrs: LeaseAttrs,
    /// Revision of its latest write that we know of.
    pub mod_revision: i64,
    /// Its etcd lease; 0: none, a reservation.
    pub lease: i64,
    /// When the etcd lease was renewed, and for how long that is.
    pub renewed: (Instant, Duration),
}

impl OwnRecord {
    /// As the daemon knows leases.
    pub fn told(&self) -> FlannelLease {
        let (at, ttl) = self.renewed;
        let left = ttl.saturating_sub(at.elapsed());
        let expires = (self.lease != 0).then(|| SystemTime::now() + left);
        FlannelLease { subnets: self.subnets, attrs: self.attrs.clone(), expires }
    }
}

/// `PREFIX/subnets/`, or that of a network of IPv6 alone: all leases are directly below.
pub fn directory(options: &EtcdOptions, conf: &NetConf) -> String {
    format!("{}/{}/", options.prefix.trim_end_matches('/'), directory_name(conf.v4.is_some()))
}

/// The directory that a lease's key is in.
pub fn directory_of(key: &str) -> &str {
    &key[..key.rfind('/').map_or(0, |slash| slash + 1)]
}

/// Gets a lease by flannel's rules.
pub fn acquire(
    gateway: &Gateway,
    options: &EtcdOptions,
    conf: &NetConf,
    attrs: &LeaseAttrs,
    previous: &Subnets,
) -> Result<OwnRecord, EtcdError> {
    let directory = directory(options, conf);
    let mut granted = None;
    let result = acquire_on(gateway, options, conf, attrs, previous, &directory, &mut granted);
    // A lease that no key lives on is of no use to anybody.
    let is_used = result.as_ref().is_ok_and(|own| Some(own.lease) == granted);
    if let Some(lease) = granted.filter(|_| !is_used)
        && let Err(error) = gateway.revoke(lease)
    {
        info!("an unused etcd lease is left to expire by itself: {error}");
    }
    result
}

fn acquire_on(
    gateway: &Gateway,
    options: &EtcdOptions,
    conf: &NetConf,
    attrs: &LeaseAttrs,
    previous: &Subnets,
    directory: &str,
    granted: &mut Option<i64>,
) -> Result<OwnRecord, EtcdError> {
    for _ in 0..TRIES_MAX {
        let kvs = gateway.list(directory)?.kvs;
        let (held, mut records): (Vec<Held>, Vec<&Kv>) =
            kvs.iter().filter_map(|kv| Some((held(directory, kv)?, kv))).unzip();
        let mut held = held;
        if let Some(index) = reusable(conf, attrs, previous, &held) {
            let (subnets, kv) = (held[index].subnets, records[index]);
            if let Some(own) = adopt(gateway, options, subnets, attrs, kv, granted)? {
                return Ok(own);
            }
            continue;
        }
        // Leases with our address that the network config has no place for any more.
        for index in (0..held.len()).rev().filter(|index| held[*index].is_of(attrs)).collect::<Vec<_>>() {
            let kv = records[index];
            let key = String::from_utf8_lossy(&kv.key);
            if kv.lease == 0 {
                warn!("the reservation {key} with our public IP does not fit the network config; it is left alone");
                continue;
            }
            if let Outcome::Done(_) = gateway.write(&key, Condition::Unchanged(kv.mod_revision), None)? {
                info!("deleted our lease {key}, which does not fit the network config");
                held.remove(index);
                records.remove(index);
            }
        }
        let Some(subnets) = allocate(conf, previous, &held, &mut |count| fastrand::usize(..count)) else {
            return Err(out_of_subnets(conf, held.len()));
        };
        let name = key_name(&subnets).expect("a network config has a family, and an allocation its subnets");
        if let Some(own) = create(gateway, options, format!("{directory}{name}"), subnets, attrs, granted)? {
            let Some(rival) = older_rival(gateway, conf, directory, &own)? else { return Ok(own) };
            gateway.write(&own.key, Condition::Unchanged(own.mod_revision), None)?;
            info!("gave {name} back: it overlaps {rival}, which another node took a moment before");
        } else {
            info!("lost the race for {name} to another node; choosing again");
        }
        std::thread::sleep(Duration::from_millis(fastrand::u64(..PAUSE_MS_MAX)));
    }
    Err(EtcdError::NoSubnet(format!(
        "lost the race for a subnet {TRIES_MAX} times in a row; many nodes take subnets at once, try again"
    )))
}

/// The key of a lease that overlaps the one just created, and is older. etcd keeps a key unique, which with one family is the
/// subnet; with two it is the pair, of which another node may have taken one half at the same time.
fn older_rival(
    gateway: &Gateway,
    conf: &NetConf,
    directory: &str,
    own: &OwnRecord,
) -> Result<Option<String>, EtcdError> {
    if own.subnets.v4.is_none() || own.subnets.v6.is_none() {
        return Ok(None);
    }
    // The record was created by the write that its revision is of.
    let is_older = |kv: &Kv| kv.key != own.key.as_bytes() && kv.create_revision < own.mod_revision;
    let overlaps_own =
        |claim: &Subnets| overlaps(claim, &own.subnets) && !is_whole(conf.network(), conf.network_v6(), claim);
    let kvs = gateway.list(directory)?.kvs;
    let rival =
        kvs.iter().find(|kv| is_older(kv) && held(directory, kv).is_some_and(|held| overlaps_own(&held.subnets)));
    Ok(rival.map(|kv| String::from_utf8_lossy(&kv.key).into_owned()))
}

/// Creates a record where there is none. `None`: somebody else was quicker.
pub fn create(
    gateway: &Gateway,
    options: &EtcdOptions,
    key: String,
    subnets: Subnets,
    attrs: &LeaseAttrs,
    granted: &mut Option<i64>,
) -> Result<Option<OwnRecord>, EtcdError> {
    write(gateway, options, key, subnets, attrs, Condition::Absent, granted)
}

/// Goes on with a record that is ours: rewrites it if it says something else, or only begins its time anew. `None`: it
/// changed meanwhile.
pub fn adopt(
    gateway: &Gateway,
    options: &EtcdOptions,
    subnets: Subnets,
    attrs: &LeaseAttrs,
    kv: &Kv,
    granted: &mut Option<i64>,
) -> Result<Option<OwnRecord>, EtcdError> {
    let key = String::from_utf8_lossy(&kv.key).into_owned();
    let value = write_value(attrs);
    let is_same = kv.value == value.as_bytes();
    let own = |mod_revision, lease, renewed| OwnRecord {
        key: key.clone(),
        subnets,
        attrs: attrs.clone(),
        mod_revision,
        lease,
        renewed,
    };
    let begun = Instant::now();
    if kv.lease == 0 {
        // A reservation stays one.
        if is_same {
            return Ok(Some(own(kv.mod_revision, 0, (begun, options.lease_ttl))));
        }
        return Ok(match gateway.write(&key, Condition::Unchanged(kv.mod_revision), Some((&value, 0)))? {
            Outcome::Done(revision) => Some(own(revision, 0, (begun, options.lease_ttl))),
            Outcome::Lost(_) => None,
        });
    }
    if is_same {
        // No write, hence no event on any peer.
        let ttl = gateway.keep_alive(kv.lease)?;
        if ttl >= options.lease_ttl {
            return Ok(Some(own(kv.mod_revision, kv.lease, (begun, ttl))));
        }
    }
    write(gateway, options, key.clone(), subnets, attrs, Condition::Unchanged(kv.mod_revision), granted)
}

/// Writes our record on an etcd lease of our own, under a condition.
fn write(
    gateway: &Gateway,
    options: &EtcdOptions,
    key: String,
    subnets: Subnets,
    attrs: &LeaseAttrs,
    condition: Condition,
    granted: &mut Option<i64>,
) -> Result<Option<OwnRecord>, EtcdError> {
    let begun = Instant::now();
    let value = write_value(attrs);
    let lease = match *granted {
        Some(lease) => lease,
        None => *granted.insert(gateway.grant(options.lease_ttl)?.id),
    };
    let own = |mod_revision| {
        let renewed = (begun, options.lease_ttl);
        OwnRecord { key: key.clone(), subnets, attrs: attrs.clone(), mod_revision, lease, renewed }
    };
    match gateway.write(&key, condition, Some((&value, lease)))? {
        Outcome::Done(revision) => Ok(Some(own(revision))),
        // Nobody else writes on our etcd lease: the write was done, and its answer lost.
        Outcome::Lost(Some(kv)) if kv.lease == lease && kv.value == value.as_bytes() => Ok(Some(own(kv.mod_revision))),
        Outcome::Lost(_) => Ok(None),
    }
}

/// What a record is to the choice of a subnet. `None`: its key claims nothing.
pub fn held(directory: &str, kv: &Kv) -> Option<Held> {
    let name = std::str::from_utf8(kv.key.strip_prefix(directory.as_bytes())?).ok()?;
    let is_ipv6_alone = directory.ends_with(&format!("/{}/", directory_name(false)));
    let subnets = claim_of(name).filter(|subnets| subnets.v4.is_none() == is_ipv6_alone)?;
    // A key that is not spelled as flannel spells it takes up its subnet, but is nobody's to go on with.
    let is_plain = key_name(&subnets).is_some_and(|plain| plain == name);
    Some(Held { subnets, attrs: parse_value(&kv.value).ok().filter(|_| is_plain) })
}

fn out_of_subnets(conf: &NetConf, count: usize) -> EtcdError {
    let v4 = conf.v4.map(|pool| format!("{} in /{}", pool.network, pool.subnet_len));
    let v6 = conf.v6.map(|pool| format!("{} in /{}", pool.network, pool.subnet_len));
    let pools: Vec<String> = [v4, v6].into_iter().flatten().collect();
    EtcdError::NoSubnet(format!(
        "out of subnets: none of {} between SubnetMin and SubnetMax is free, with {count} leases in etcd; \
         widen Network, lengthen SubnetLen, or delete leases of nodes that are gone",
        pools.join(", or none of ")
    ))
}
