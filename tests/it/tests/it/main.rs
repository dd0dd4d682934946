//! weftd on real devices, in real namespaces: one binary, one module per behaviour.
//!
//! Each module draws its topology on top. Everything here needs root; see [`weft_lab`] for what happens without. The
//! programs under test are those next to this binary: `cargo build` makes them.

mod backpressure;
mod bench;
mod cli;
mod craft;
mod demo;
mod drain;
mod drops;
mod fallback;
mod flannel;
mod flannel_backends;
mod flanneld;
mod forwarding;
mod half;
mod hook;
mod icmp;
mod idle;
mod lane;
mod lpm;
mod mtu;
mod offload;
mod peer_check;
mod refusals;
mod route_swap;
mod rules;
mod run_follow;
mod scale;
mod source_ports;
mod support;
mod tunnel_up;
mod weft;
