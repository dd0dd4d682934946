//! The forwarding table: longest-prefix match from inner addresses to peers, immutable once built, published lock-free.
//!
//! Contract: [`Fib`] never changes after [`FibBuilder::build`]. Readers take no lock and write no shared cache line
//! (beyond crossbeam-epoch's own per-thread pin), once per batch. No I/O.
#![deny(unsafe_code)]

// One dereference of an epoch-protected pointer; modelled by tests/loom.rs.
#[allow(unsafe_code)]
mod cell;
mod lpm;
mod table;

pub use cell::{FibCell, FibPin, FibReader};
pub use lpm::{Lpm4, Lpm6};
pub use table::{Fib, FibBuilder, FibError, OwnerId, Peer, PeerId, Route};
