//! The forwarding table: longest-prefix match from inner addresses to peers, immutable once built, published lock-free.
//!
//! Contract: [`Fib`] never changes after [`FibBuilder::build`]. Readers take no lock and write no shared cache line
//! (beyond crossbeam-epoch's own per-thread pin), once per batch. No I/O.
#![forbid(unsafe_code)] // relaxed to deny + allow in one module only where a measurement and loom justify it

mod cell;
mod lpm;
mod table;

pub use cell::{FibCell, FibPin, FibReader};
pub use lpm::{Lpm4, Lpm6};
pub use table::{Fib, FibBuilder, FibError, OwnerId, Peer, PeerId, Route};
