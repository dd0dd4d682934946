//! weft as a library: desired state, netlink, the client of weftd's control socket, the command line. Never opens a TUN,
//! never sees a packet.
#![forbid(unsafe_code)]

pub mod cli;
pub mod client;
pub mod netlink;
