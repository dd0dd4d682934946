//! Fuzz targets: each a plain function on bytes that checks a relation or an oracle, so that stable `cargo test` replays
//! the corpus (`tests/replay.rs`) and `cargo fuzz` explores (`fuzz_targets/`).
#![forbid(unsafe_code)]

pub mod fib;
pub mod flannel;
pub mod packet;
pub mod proto;

/// A target: takes any bytes, panics if the relation it checks does not hold.
pub type Target = fn(&[u8]);

/// Every target by the name of its corpus directory.
pub const TARGETS: &[(&str, Target)] = &[
    ("ip_check", packet::ip_check),
    ("vnet_split", packet::vnet_split),
    ("coalesce", packet::coalesce),
    ("icmp_error", packet::icmp_error),
    ("fragment", packet::fragment),
    ("fib_lookup", fib::fib_lookup),
    ("proto_decode", proto::proto_decode),
    ("lease_record", flannel::lease_record),
];
