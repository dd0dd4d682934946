//! weftd as a library: queues, engines, the packet path, the control server.
#![deny(unsafe_code)] // allowed in `sys`, `engine::uring` and `pool` only

pub mod limits;
pub mod server;
pub mod shared;
pub mod stats;
