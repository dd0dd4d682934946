//! weftd on real devices, in real namespaces: one binary, one module per behaviour.
//!
//! Each module draws its topology on top. Everything here needs root; see [`weft_lab`] for what happens without. The
//! programs under test are those next to this binary: `cargo build` makes them.

mod drain;
mod fallback;
mod forwarding;
mod idle;
mod lpm;
mod offload;
mod route_swap;
mod support;
