//! weftd on real devices, in real namespaces: one binary, one module per behaviour.
//!
//! Each module draws its topology on top. Everything here needs root; see [`weft_lab`] for what happens without. The daemon
//! under test is the one next to this binary (`cargo build -p weft-dataplane --bin weftd`).

mod cli;
mod drain;
mod fallback;
mod forwarding;
mod idle;
mod lpm;
mod offload;
mod route_swap;
mod run_follow;
mod scale;
mod support;
mod tunnel_up;
mod weft;
