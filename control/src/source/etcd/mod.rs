//! flannel's registry in etcd: the network config, our lease, everybody's leases.
//!
//! ```text
//! Registry::connect -> wait_for_config -> acquire -> watch ---> Watch: events(), publish(), stop (or drop)
//!                                                      |
//!                        thread "etcd peers" ----------+  list, watch, list again; Snapshot, Added, Removed
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

mod options;

pub use options::EtcdOptions;

use crate::flannel::{FlannelLease, LeaseAttrs, LeaseEvent, NetConf, OwnLease, Subnets};
use std::sync::mpsc::Receiver;

/// A connection to etcd.
#[derive(Debug)]
pub struct Registry;

/// Why etcd, or this node, could not do what was asked. The text names the endpoint and says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct EtcdError(String);

/// Our lease, just had.
#[derive(Debug)]
pub struct Acquired;

impl Acquired {
    /// The cluster's networks and our subnets, for [`crate::flannel::Backend::start`].
    pub fn own(&self) -> &OwnLease {
        unimplemented!("comes with the next commit")
    }

    /// The record as it stands in etcd.
    pub fn lease(&self) -> &FlannelLease {
        unimplemented!("comes with the next commit")
    }
}

impl Registry {
    /// Checks the options and reads the files that they name. Does not talk to etcd yet.
    pub fn connect(_options: &EtcdOptions) -> Result<Registry, EtcdError> {
        unimplemented!("comes with the next commit")
    }

    /// Reads the network config, once.
    pub fn fetch_config(&mut self) -> Result<NetConf, EtcdError> {
        unimplemented!("comes with the next commit")
    }

    /// Reads the network config, again each second until there is one in order; each new reason why not is logged. `None`
    /// once `interrupted` says true, which is asked every 50 ms between two tries.
    pub fn wait_for_config(&mut self, _interrupted: &dyn Fn() -> bool) -> Option<NetConf> {
        unimplemented!("comes with the next commit")
    }

    /// Gets our lease: the one with our public IP, else that of the `previous` subnets, else a free one. Tries again by
    /// itself after a lost race; an error is etcd's, or that no subnet is left.
    pub fn acquire(
        &mut self,
        _conf: &NetConf,
        _attrs: &LeaseAttrs,
        _previous: &Subnets,
    ) -> Result<Acquired, EtcdError> {
        unimplemented!("comes with the next commit")
    }

    /// Keeps our lease, and tells about everybody's, beginning with a `Snapshot`. `wake` is called after each event was
    /// sent, from other threads.
    pub fn watch(
        self,
        _conf: &NetConf,
        _acquired: Acquired,
        _wake: impl Fn() + Send + Sync + Clone + 'static,
    ) -> Watch {
        unimplemented!("comes with the next commit")
    }
}

/// The running registry. Dropping it ends its threads and leaves the lease in etcd, as flannel does.
#[derive(Debug)]
pub struct Watch;

impl Watch {
    /// Where events arrive.
    pub fn events(&self) -> &Receiver<LeaseEvent> {
        unimplemented!("comes with the next commit")
    }

    /// Has changed attributes written to our record, as soon as etcd can be reached. Returns at once.
    pub fn publish(&self, _attrs: LeaseAttrs) {
        unimplemented!("comes with the next commit")
    }

    /// Ends the threads, interrupting whatever they wait for.
    pub fn stop(self) {}
}
