//! What weft speaks inside a flannel cluster: the words that registry, backends and daemon share.
//!
//! ```text
//!  registry (etcd) --LeaseEvent--> daemon --all peers--> Backend::reconcile --> weftd or the kernel
//!                   <--LeaseAttrs--        <--what it publishes--
//! ```
//!
//! A registry knows nothing of backends, a backend nothing of registries. A backend is always given *all* peers and makes
//! them true: what is so already it leaves alone, what is ours and not wanted it removes. So a missed event, a deleted
//! device and a restart are one case.

pub mod allocate;
pub mod annotations;
mod backend;
pub mod daemon;
pub mod external;
pub mod flags;
pub mod hook;
mod json;
mod lease;
pub mod netconf;
pub mod netconf_changes;
pub mod record;
pub mod subnet_env;

pub use backend::{Backend, BackendError, ExternalInterface, OwnLease, Reconciled};
pub use lease::{FlannelLease, LeaseAttrs, LeaseEvent, Subnets};
pub use netconf::{BackendConf, NetConf};
pub use subnet_env::SubnetEnv;
