//! weftd as a library: queues, engines, the packet path, the control server.
#![deny(unsafe_code)] // allowed in `sys`, `engine` and `pool`, and for one borrowed descriptor in `tun::simple`

pub mod backpressure;
pub mod config;
pub mod engine;
pub mod holder;
pub mod io;
pub mod lane;
pub mod limits;
pub mod path_mtu;
pub mod pipeline;
pub mod pool;
pub mod replies;
pub mod scale;
pub mod server;
pub mod service;
pub mod shared;
pub mod stats;
pub mod sys;
pub mod tun;
pub mod underlay;
pub mod worker;
