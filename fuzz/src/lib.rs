//! Fuzz targets: each a plain function on bytes that checks a relation or an oracle, so that stable `cargo test` replays
//! the corpus (`tests/replay.rs`) and `cargo fuzz` explores (`fuzz_targets/`).
#![forbid(unsafe_code)]

pub mod fib;
pub mod packet;
pub mod proto;

pub const TARGETS: &[(&str, fn(&[u8]))] = &[
    ("ip_check", packet::ip_check),
    ("vnet_split", packet::vnet_split),
    ("coalesce", packet::coalesce),
    ("icmp_error", packet::icmp_error),
    ("fragment", packet::fragment),
    ("fib_lookup", fib::fib_lookup),
    ("proto_decode", proto::proto_decode),
];
