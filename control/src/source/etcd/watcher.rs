//! Follows everybody's leases, on a thread of its own: a list, a watch from the next revision on, and after any break the
//! watch again from where it was; a new list only where etcd has forgotten the way there. The network config's key goes with
//! them: it is read after each list, and a second watch in the same stream tells of its changes.

use super::config::ConfigKey;
use super::gateway::{Gateway, KEY_WATCH, Lines};
use super::keeper::Order;
use super::wire::{self, Watched};
use super::{EtcdError, EtcdOptions, Shared};
use crate::flannel::{LeaseEvent, NetConf};
use std::io::{BufRead, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Pauses after a break: the first, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A stream that lived as long as this makes the next pause the first again.
const WELL: Duration = Duration::from_secs(10);
/// The longest message, in bytes.
const LINE_LEN_MAX: u64 = 512 << 20;
/// After etcd began anew, this many heartbeats go by before its list counts: nodes need that long to write their records
/// again, and a peer that is not listed loses its routes.
const HEARTBEATS_OF_GRACE: u32 = 2;

/// The watch over all leases, and over the network config.
pub struct Watcher {
    gateway: Gateway,
    directory: String,
    own_key: Vec<u8>,
    config: ConfigKey,
    heartbeat: Duration,
    shared: Shared,
    keeper: Sender<Order>,
    /// Ends when the registry is stopped.
    stop: Receiver<()>,
    position: Option<Position>,
    trouble: Option<String>,
}

/// Up to where events were seen.
#[derive(Clone, Copy)]
struct Position {
    revision: i64,
    raft_term: i64,
    /// No stream was opened from here yet: a member that is behind is no member that began anew.
    is_fresh: bool,
}

/// Why a stream ended.
enum End {
    /// Open another, from the position.
    Broken(String),
    /// The position is compacted; list.
    Compacted,
    /// The store is another one; list, after a while.
    Anew,
}

impl Watcher {
    /// Knows of nothing yet.
    pub fn new(
        gateway: Gateway,
        options: &EtcdOptions,
        own_key: &str,
        config: ConfigKey,
        shared: Shared,
        keeper: Sender<Order>,
        stop: Receiver<()>,
    ) -> Watcher {
        let directory = super::acquire::directory_of(own_key).to_owned();
        let own_key = own_key.as_bytes().to_vec();
        let heartbeat = options.heartbeat;
        Watcher { gateway, directory, own_key, config, heartbeat, shared, keeper, stop, position: None, trouble: None }
    }

    /// Works until it is stopped.
    pub fn run(mut self) {
        let mut pause = PAUSE.0;
        loop {
            let begun = Instant::now();
            let mut wait = Duration::ZERO;
            let mut is_anew = false;
            match self.follow() {
                Ok(End::Compacted) => {
                    info!("etcd has compacted what happened since; listing all leases again");
                    self.position = None;
                }
                Ok(End::Anew) => {
                    let grace = self.heartbeat * HEARTBEATS_OF_GRACE;
                    warn!("etcd began anew; listing all leases in {grace:?}, peers stay as they are until then");
                    self.position = None;
                    // Whatever revision: our record is to be looked at.
                    let _ = self.keeper.send(Order::Seen(i64::MAX));
                    wait = grace;
                    is_anew = true;
                }
                Ok(End::Broken(why)) => self.troubled(why),
                Err(error) => self.troubled(error.to_string()),
            }
            if begun.elapsed() >= WELL {
                pause = PAUSE.0;
            }
            // Nodes that lost the same server should not come back at the same moment.
            let spread = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
            pause = (pause * 2).min(PAUSE.1);
            match self.stop.recv_timeout(wait.max(spread)) {
                Err(RecvTimeoutError::Timeout) if !self.shared.is_stopping() => {}
                _ => return,
            }
            if is_anew {
                // The keeper finds out as well, and orders what is about to be done.
                let _ = self.shared.takes_list_order();
            }
        }
    }

    fn troubled(&mut self, why: String) {
        if self.shared.is_stopping() || self.trouble.as_ref() == Some(&why) {
            return;
        }
        info!("watching the leases: {why}; peers stay as they are, trying again");
        self.trouble = Some(why);
    }

    /// Lists if that is needed, opens a stream and takes in what it brings until it ends.
    fn follow(&mut self) -> Result<End, EtcdError> {
        if self.shared.takes_list_order() {
            return Ok(End::Anew);
        }
        let mut position = match self.position {
            Some(position) => position,
            None => self.list()?,
        };
        if self.config.is_due() {
            self.read_config()?;
        }
        let opening = self.gateway.opening();
        if !self.shared.register(&opening) {
            return Ok(End::Broken("it is being stopped, or to be listed again".into()));
        }
        let opened = self.gateway.watch(&opening, &self.directory, self.config.name(), position.revision + 1);
        let end = opened.map(|mut lines| self.take_in(&mut lines, &mut position));
        self.shared.unregister();
        let end = end?;
        if self.position.is_some() {
            self.position = Some(position);
        }
        Ok(end)
    }

    fn list(&mut self) -> Result<Position, EtcdError> {
        let range = self.gateway.list(&self.directory)?;
        let own_revision = range.kvs.iter().find(|kv| kv.key == self.own_key).map_or(i64::MAX, |kv| kv.mod_revision);
        self.shared.change(|peers| peers.replace(range.kvs));
        // The keeper ends before the watcher only if our lease is lost.
        let _ = self.keeper.send(Order::Seen(own_revision));
        let position = Position { revision: range.header.revision, raft_term: range.header.raft_term, is_fresh: true };
        self.position = Some(position);
        self.config.make_due();
        Ok(position)
    }

    /// Reads the network config. That etcd refuses it is no reason to be without the leases.
    fn read_config(&mut self) -> Result<(), EtcdError> {
        let news = match self.gateway.get(self.config.name()) {
            Ok((header, kv)) => self.config.found(kv.as_ref(), header.revision),
            Err(error) if error.is_temporary() => return Err(error),
            Err(error) => {
                info!("following the network config: {error}; a change of it will be seen at the next start");
                self.config.give_up();
                None
            }
        };
        self.tell_config(news);
        Ok(())
    }

    fn take_in_config(&mut self, message: Watched) {
        if message.canceled {
            // As where the user may not read that key any more. It is no reason to be without the leases.
            info!("following the network config: etcd ended the watch: {}", message.cancel_reason);
        }
        for event in message.events {
            let news = self.config.changed(&event.kv, event.is_delete());
            self.tell_config(news);
        }
    }

    fn tell_config(&self, news: Option<Result<NetConf, String>>) {
        if let Some(news) = news {
            self.shared.tell(LeaseEvent::Config(news));
        }
    }

    fn take_in(&mut self, lines: &mut Lines, position: &mut Position) -> End {
        let mut line = Vec::new();
        let mut is_open = false;
        loop {
            line.clear();
            match lines.by_ref().take(LINE_LEN_MAX).read_until(b'\n', &mut line) {
                Ok(0) => return End::Broken("etcd ended the stream".into()),
                Ok(_) if line.last() != Some(&b'\n') => return End::Broken("etcd ended the stream".into()),
                Ok(_) => {}
                Err(error) => return End::Broken(format!("the stream broke: {error}")),
            }
            let message: Watched = match wire::streamed(&line) {
                Ok(message) => message,
                Err(why) => return End::Broken(format!("etcd's message: {why}")),
            };
            if message.compact_revision != 0 {
                return End::Compacted;
            }
            // What etcd does not begin to watch has no number in etcd 3.5 and later; it answers in the order of the requests.
            if message.watch_id == KEY_WATCH || message.watch_id < 0 && is_open {
                self.take_in_config(message);
                continue;
            }
            if message.canceled {
                // Perhaps for want of a token that is still good.
                self.gateway.forget_token();
                return End::Broken(format!("etcd ended the watch: {}", message.cancel_reason));
            }
            if message.created {
                let is_behind = message.header.revision < position.revision && !position.is_fresh;
                if is_behind || message.header.raft_term < position.raft_term {
                    return End::Anew;
                }
                position.is_fresh = false;
                is_open = true;
                if self.trouble.take().is_some() {
                    info!("watching the leases again");
                }
            }
            position.raft_term = position.raft_term.max(message.header.raft_term);
            // The header's revision may be ahead of the events that were sent; theirs is not.
            let Some(last) = message.events.iter().map(|event| event.kv.mod_revision).max() else { continue };
            let own = message.events.iter().rev().find(|event| event.kv.key == self.own_key);
            if let Some(own) = own {
                let _ = self.keeper.send(Order::Seen(own.kv.mod_revision));
            }
            self.shared.change(|peers| peers.apply(message.events));
            position.revision = position.revision.max(last);
        }
    }
}
