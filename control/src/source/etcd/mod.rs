//! flannel's registry in etcd: the network config, our lease, everybody's leases.
//!
//! ```text
//! Registry::connect -> wait_for_config -> acquire -> watch ---> Watch: events(), publish(), stop (or drop)
//!                                                      |
//!                        thread "etcd peers" ----------+  list, watch, list again; Snapshot, Added, Removed, Config
//!                        thread "etcd lease" ----------+  renewal, loss, changed attributes; OwnRenewed, OwnLost
//! ```
//!
//! Everything up to `watch` is called from one thread, blocks for a bounded time and gives errors back. After it, etcd being
//! away is not an error: no event comes, and what is forwarded stays as it is.
//!
//! ```no_run
//! # use weft_control::source::etcd::{EtcdOptions, Registry};
//! # use weft_control::flannel::{LeaseAttrs, SubnetEnv};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut registry = Registry::connect(&EtcdOptions::default())?;
//! let conf = registry.wait_for_config(&|| false).ok_or("interrupted")?;
//! let attrs = LeaseAttrs { public_ip: Some("192.0.2.4".parse()?), ..LeaseAttrs::default() };
//! let acquired = registry.acquire(&conf, &attrs, &SubnetEnv::default().subnets())?;
//! println!("ours: {:?}", acquired.own().subnets);
//! let watch = registry.watch(&conf, acquired, || { /* wake the event loop */ });
//! for event in watch.events() { println!("{event:?}"); }
//! # Ok(()) }
//! ```

mod acquire;
mod config;
mod error;
mod gateway;
mod keeper;
mod options;
mod peers;
mod shared;
mod tls;
mod watcher;
mod wire;

pub use error::EtcdError;
pub use options::EtcdOptions;

use crate::flannel::{FlannelLease, LeaseAttrs, LeaseEvent, NetConf, OwnLease, Subnets};
use acquire::OwnRecord;
use config::ConfigKey;
use gateway::Gateway;
use keeper::{Keeper, Order};
use peers::Peers;
use shared::Shared;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tracing::{info, warn};
use watcher::Watcher;

/// Pause before the network config is read again.
const CONFIG_RETRY: Duration = Duration::from_secs(1);
/// Pause between two questions whether to go on waiting.
const QUESTION: Duration = Duration::from_millis(50);

/// A connection to etcd.
#[derive(Debug)]
pub struct Registry {
    gateway: Gateway,
    options: EtcdOptions,
}

/// Our lease, just had.
#[derive(Debug)]
pub struct Acquired {
    own: OwnLease,
    record: OwnRecord,
    lease: FlannelLease,
}

impl Acquired {
    /// The cluster's networks and our subnets, for [`crate::flannel::Backend::start`].
    pub fn own(&self) -> &OwnLease {
        &self.own
    }

    /// The record as it stands in etcd.
    pub fn lease(&self) -> &FlannelLease {
        &self.lease
    }
}

impl Registry {
    /// Checks the options and reads the files that they name. Does not talk to etcd yet.
    pub fn connect(options: &EtcdOptions) -> Result<Registry, EtcdError> {
        if options.ca_file.is_some() && options.cert_file.is_none() && options.key_file.is_none() {
            info!("--etcd-cafile is used without a certificate of our own (stock flannel would ignore it)");
        }
        Ok(Registry { gateway: Gateway::new(options)?, options: options.clone() })
    }

    /// Reads the network config, once.
    pub fn fetch_config(&mut self) -> Result<NetConf, EtcdError> {
        let key = config::key(&self.options);
        let (_, kv) = self.gateway.get(&key)?;
        config::read(&key, kv.as_ref().map(|kv| &*kv.value)).map_err(EtcdError::Config)
    }

    /// Reads the network config, again each second until there is one in order; each new reason why not is logged. `None`
    /// once `interrupted` says true, which is asked every 50 ms between two tries.
    pub fn wait_for_config(&mut self, interrupted: &dyn Fn() -> bool) -> Option<NetConf> {
        let mut trouble = None;
        while !interrupted() {
            match self.fetch_config() {
                Ok(conf) => return Some(conf),
                Err(error) => {
                    let text = error.to_string();
                    if trouble.as_ref() != Some(&text) {
                        warn!("waiting for the network config: {text}");
                        trouble = Some(text);
                    }
                }
            }
            let until = Instant::now() + CONFIG_RETRY;
            while Instant::now() < until && !interrupted() {
                thread::sleep(QUESTION);
            }
        }
        None
    }

    /// Gets our lease: the one with our public IP, else that of the `previous` subnets, else a free one. Tries again by
    /// itself after a lost race; an error is etcd's, or that no subnet is left.
    pub fn acquire(&mut self, conf: &NetConf, attrs: &LeaseAttrs, previous: &Subnets) -> Result<Acquired, EtcdError> {
        let record = acquire::acquire(&self.gateway, &self.options, conf, attrs, previous)?;
        let own = OwnLease { network: conf.network(), network_v6: conf.network_v6(), subnets: record.subnets };
        let lease = record.told();
        Ok(Acquired { own, record, lease })
    }

    /// Keeps our lease, and tells about everybody's, beginning with a `Snapshot`. `wake` is called after each event was
    /// sent, from other threads.
    pub fn watch(self, conf: &NetConf, acquired: Acquired, wake: impl Fn() + Send + Sync + Clone + 'static) -> Watch {
        let Registry { gateway, options } = self;
        let record = acquired.record;
        let directory = acquire::directory(&options, conf);
        let peers = Peers::new(directory, conf, record.subnets, record.attrs.clone(), options.lease_ttl);
        let (events_in, events) = mpsc::channel();
        let (orders, orders_out) = mpsc::channel();
        let (stop, stopped) = mpsc::channel();
        let shared = Shared::new(peers, events_in, wake);
        let config = ConfigKey::new(config::key(&options), conf.clone());
        let watcher =
            Watcher::new(gateway.clone(), &options, &record.key, config, shared.clone(), orders.clone(), stopped);
        let keeper = Keeper::new(gateway.clone(), options, shared.clone(), acquired.own, record);
        let threads = vec![thread::spawn(move || watcher.run()), thread::spawn(move || keeper.run(&orders_out))];
        Watch { events, orders, stop: Some(stop), shared, gateway, threads }
    }
}

/// The running registry. Dropping it has its threads end and leaves the lease in etcd, as flannel does.
pub struct Watch {
    events: Receiver<LeaseEvent>,
    orders: Sender<Order>,
    stop: Option<Sender<()>>,
    shared: Shared,
    gateway: Gateway,
    threads: Vec<JoinHandle<()>>,
}

impl Watch {
    /// Where events arrive.
    pub fn events(&self) -> &Receiver<LeaseEvent> {
        &self.events
    }

    /// Has changed attributes written to our record, as soon as etcd can be reached. Returns at once.
    pub fn publish(&self, attrs: LeaseAttrs) {
        // There is no keeper, and nothing to publish, once the lease is lost.
        let _ = self.orders.send(Order::Publish(attrs));
    }

    /// Ends the threads, interrupting whatever they wait for, and waits until they are gone. A connection that is being
    /// made cannot be interrupted; that takes no longer than [`EtcdOptions::timeout`].
    pub fn stop(mut self) {
        self.interrupt();
        for thread in self.threads.drain(..) {
            // A panic of that thread was shown when it happened.
            let _ = thread.join();
        }
    }

    fn interrupt(&mut self) {
        self.stop = None;
        self.shared.stop();
        self.gateway.shut_down();
        let _ = self.orders.send(Order::Stop);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.interrupt();
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("gateway", &self.gateway).finish_non_exhaustive()
    }
}
