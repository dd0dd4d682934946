//! Keeps our own lease, on a thread of its own.
//!
//! A renewal is a keep-alive of the etcd lease that our record lives on. It writes no key, so no other node hears of it,
//! stock or weft; stock flannel renews by writing the record anew, which every peer takes for an arrival. A record is
//! written only when it has something else to say, or is gone.
//!
//! ```text
//!  due or told to --> read our record --> as it should be ---------------> renew the etcd lease when its time comes
//!                                     --> gone ------ nobody there since -> create it again, same subnet
//!                                     --> ours, says something else ------> write it under the revision that was read
//!                                     --> another node's -----------------> OwnLost
//! ```

use super::acquire::{OwnRecord, adopt, create, directory_of, held};
use super::gateway::Gateway;
use super::wire::Kv;
use super::{EtcdError, EtcdOptions, Shared};
use crate::flannel::allocate::{is_whole, overlaps};
use crate::flannel::record::{parse_value, write_value};
use crate::flannel::{LeaseAttrs, LeaseEvent, OwnLease, Subnets};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Pause before a failed renewal is tried again, unless a lease is very short.
const RENEW_RETRY: Duration = Duration::from_secs(60);
/// Pauses before a failed write or creation is tried again.
const WRITE_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// How often within `CONTEST_SPAN` our record may be rewritten by somebody with our public IP before we give it up.
const CONTESTS_MAX: usize = 3;
/// See `CONTESTS_MAX`.
const CONTEST_SPAN: Duration = Duration::from_secs(60);

/// What the keeper is told.
pub enum Order {
    /// Our record has to say this.
    Publish(LeaseAttrs),
    /// Our record was seen to change at this revision.
    Seen(i64),
    /// End.
    Stop,
}

/// The keeper of one record.
pub struct Keeper {
    gateway: Gateway,
    options: EtcdOptions,
    shared: Shared,
    networks: OwnLease,
    own: OwnRecord,
    /// What the record has to say; differs from `own.attrs` while a write is due.
    wanted: LeaseAttrs,
    /// An etcd lease that was granted for a write which did not come about yet.
    granted: Option<i64>,
    contests: VecDeque<Instant>,
    trouble: Option<String>,
    /// Pause after the next failure; `None` while all is well.
    retry: Option<Duration>,
    next_look: Instant,
    next_renewal: Instant,
}

/// What a look at our record found.
enum Found {
    /// All is as it should be, or was made so.
    Well,
    /// It changed while we looked.
    Again,
    /// It is not ours any more.
    Lost(String),
}

impl Keeper {
    /// Takes over `own`, which was just had.
    pub fn new(gateway: Gateway, options: EtcdOptions, shared: Shared, networks: OwnLease, own: OwnRecord) -> Keeper {
        let wanted = own.attrs.clone();
        let now = Instant::now();
        let next_look = now + options.heartbeat;
        let next_renewal = renewal_of(&options, &own);
        let (granted, contests, trouble, retry) = (None, VecDeque::new(), None, None);
        Keeper {
            gateway,
            options,
            shared,
            networks,
            own,
            wanted,
            granted,
            contests,
            trouble,
            retry,
            next_look,
            next_renewal,
        }
    }

    /// Works until it is told to stop or the lease is lost.
    pub fn run(mut self, orders: &Receiver<Order>) {
        loop {
            let due = self.next_look.min(self.next_renewal);
            match orders.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Order::Publish(attrs)) => self.wanted = attrs,
                Ok(Order::Seen(revision)) if revision <= self.own.mod_revision => continue,
                Ok(Order::Seen(_)) | Err(RecvTimeoutError::Timeout) => {}
            }
            match self.work() {
                Ok(None) => self.well(),
                Ok(Some(why)) => {
                    self.shared.tell(LeaseEvent::OwnLost { why });
                    return;
                }
                Err(_) if self.shared.is_stopping() => return,
                Err(error) => self.failed(&error),
            }
        }
    }

    /// Looks at our record, mends it and renews its lease if it is time. Gives why the lease is lost, if it is.
    fn work(&mut self) -> Result<Option<String>, EtcdError> {
        // Somebody who writes between our look and our write makes another look necessary; not for ever.
        for _ in 0..CONTESTS_MAX {
            match self.look()? {
                Found::Well => {
                    if Instant::now() >= self.next_renewal && !self.renew()? {
                        continue;
                    }
                    return Ok(None);
                }
                Found::Again => {}
                Found::Lost(why) => return Ok(Some(why)),
            }
        }
        Ok(None)
    }

    fn look(&mut self) -> Result<Found, EtcdError> {
        let (header, kv) = self.gateway.get(&self.own.key)?;
        if header.revision < self.own.mod_revision {
            warn!("etcd began anew: it is at revision {}, and was at {}", header.revision, self.own.mod_revision);
            // Said once.
            self.own.mod_revision = header.revision;
            self.shared.list_again();
        }
        let Some(kv) = kv else { return self.create_again() };
        let value = write_value(&self.wanted);
        if kv.value == value.as_bytes() && kv.lease == self.own.lease {
            self.own.mod_revision = kv.mod_revision;
            return Ok(Found::Well);
        }
        let is_our_last = kv.value == write_value(&self.own.attrs).as_bytes();
        if !is_our_last && let Some(why) = self.contested(&kv, kv.value == value.as_bytes()) {
            return Ok(Found::Lost(why));
        }
        let subnets = self.own.subnets;
        match adopt(&self.gateway, &self.options, subnets, &self.wanted, &kv, &mut self.granted)? {
            Some(own) => Ok(self.had(own)),
            None => Ok(Found::Again),
        }
    }

    /// Our record says what we did not write. Whether that costs us the lease, and why.
    fn contested(&mut self, kv: &Kv, is_as_wanted: bool) -> Option<String> {
        if is_as_wanted {
            return None;
        }
        let key = &self.own.key;
        let Ok(attrs) = parse_value(&kv.value) else {
            warn!("somebody wrote nonsense to our record {key}; writing it anew");
            return self.count_contest();
        };
        let ours = [self.wanted.public_ip, self.own.attrs.public_ip].contains(&attrs.public_ip);
        let ours_v6 = [self.wanted.public_ipv6, self.own.attrs.public_ipv6].contains(&attrs.public_ipv6);
        if attrs.public_ip.is_some() && ours || attrs.public_ip.is_none() && attrs.public_ipv6.is_some() && ours_v6 {
            warn!("somebody with our public IP wrote to our record {key}; writing it anew");
            return self.count_contest();
        }
        let holder = match (attrs.public_ip, attrs.public_ipv6) {
            (Some(address), _) => address.to_string(),
            (None, Some(address)) => address.to_string(),
            (None, None) => "nobody in particular".to_owned(),
        };
        Some(format!("our lease {key} was taken by {holder}"))
    }

    fn count_contest(&mut self) -> Option<String> {
        let now = Instant::now();
        self.contests.push_back(now);
        while self.contests.front().is_some_and(|at| now.duration_since(*at) > CONTEST_SPAN) {
            self.contests.pop_front();
        }
        (self.contests.len() > CONTESTS_MAX).then(|| {
            format!(
                "our lease {} is written to again and again by somebody else with our public IP; two nodes must not \
                 have one, see --public-ip and --iface",
                self.own.key
            )
        })
    }

    fn create_again(&mut self) -> Result<Found, EtcdError> {
        let (key, subnets) = (self.own.key.clone(), self.own.subnets);
        let directory = directory_of(&key);
        // The key of a claim on the same addresses need not be ours: lengths and families differ.
        for kv in self.gateway.list(directory)?.kvs {
            let OwnLease { network, network_v6, .. } = self.networks;
            let stands_here = |claim: &Subnets| overlaps(claim, &subnets) && !is_whole(network, network_v6, claim);
            let other = held(directory, &kv).filter(|held| stands_here(&held.subnets));
            if other.is_some() && kv.key != key.as_bytes() {
                let other = String::from_utf8_lossy(&kv.key);
                return Ok(Found::Lost(format!("our lease {key} is gone, and {other} has its addresses")));
            }
        }
        warn!("our lease {key} is gone; creating it again");
        match create(&self.gateway, &self.options, key, subnets, &self.wanted, &mut self.granted)? {
            Some(own) => Ok(self.had(own)),
            None => Ok(Found::Again),
        }
    }

    /// Our record was written, or found good on another etcd lease.
    fn had(&mut self, own: OwnRecord) -> Found {
        if self.granted == Some(own.lease) {
            self.granted = None;
        }
        self.next_renewal = renewal_of(&self.options, &own);
        if own.attrs.public_ip != self.own.attrs.public_ip || own.attrs.public_ipv6 != self.own.attrs.public_ipv6 {
            self.shared.own_changed(own.attrs.clone());
        }
        self.own = own;
        self.shared.tell(LeaseEvent::OwnRenewed(self.own.told()));
        Found::Well
    }

    /// Begins the etcd lease's time anew. False if there is no such lease, and so no record on it.
    fn renew(&mut self) -> Result<bool, EtcdError> {
        let begun = Instant::now();
        if self.own.lease == 0 {
            self.own.renewed = (begun, self.options.lease_ttl);
            self.next_renewal = renewal_of(&self.options, &self.own);
            return Ok(true);
        }
        let ttl = self.gateway.keep_alive(self.own.lease)?;
        if ttl.is_zero() {
            return Ok(false);
        }
        self.own.renewed = (begun, ttl);
        self.next_renewal = renewal_of(&self.options, &self.own);
        self.shared.tell(LeaseEvent::OwnRenewed(self.own.told()));
        Ok(true)
    }

    fn well(&mut self) {
        if self.trouble.take().is_some() {
            info!("our lease {} is well again", self.own.key);
        }
        self.retry = None;
        self.next_look = Instant::now() + self.options.heartbeat;
        // A stream from an endpoint that calls no longer go to may be a dead one.
        self.shared.keep_streams_of(self.gateway.preferred());
    }

    fn failed(&mut self, error: &EtcdError) {
        let text = error.to_string();
        if self.trouble.as_ref() != Some(&text) {
            warn!("looking after our lease {}: {text}; trying again", self.own.key);
            self.trouble = Some(text);
        }
        if error.is_temporary() {
            self.shared.interrupt_stream();
        }
        let now = Instant::now();
        let pause = self.retry.map_or(WRITE_RETRY.0, |pause| (pause * 2).min(WRITE_RETRY.1));
        self.retry = Some(pause);
        self.next_look = now + pause.min(self.options.heartbeat);
        if self.next_renewal <= now {
            self.next_renewal = now + RENEW_RETRY.min(self.options.lease_ttl / 10);
        }
    }
}

/// When to renew: the margin before the end, but not before a tenth of the time is over.
fn renewal_of(options: &EtcdOptions, own: &OwnRecord) -> Instant {
    let (at, ttl) = own.renewed;
    at + ttl.saturating_sub(options.renew_margin).max(ttl / 10)
}
