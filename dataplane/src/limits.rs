//! A bound on everything, with its reason.

/// Peers a table may hold: ids index per-worker counter arrays.
pub const PEERS_MAX: usize = 65_535;
/// Routes a table may hold (design contract).
pub const ROUTES_MAX: usize = 1_000_000;
/// Workers: one TUN queue each (the kernel allows MAX_TAP_QUEUES = 256; more than cores is useless).
pub const WORKERS_MAX: usize = 64;
