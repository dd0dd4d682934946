//! weft as a library: desired state, netlink, the client of weftd's control socket, the command line. Never opens a TUN,
//! never sees a packet.
#![forbid(unsafe_code)]

pub mod agenda;
pub mod backend;
pub mod causes;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod flannel;
pub mod lease;
pub mod link;
pub mod rib;
pub mod rules;
pub mod run;
pub mod source;
pub mod state;
pub mod tunnel;

pub use weft_client as client;
pub use weft_netlink as netlink;
