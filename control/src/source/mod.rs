//! Where routes come from. A source knows leases and nothing of what is done with them.

pub mod etcd;
pub mod file;
pub mod resolve;
