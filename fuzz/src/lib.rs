//! Fuzz targets: each a plain function on bytes that checks a relation or an oracle, so that stable `cargo test` replays
//! the corpus (`tests/replay.rs`) and `cargo fuzz` explores (`fuzz_targets/`).
#![forbid(unsafe_code)]

pub mod fib;
pub mod packet;
pub mod proto;

/// A target and the name of its corpus directory.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[("fib_lookup", fib::fib_lookup)];
