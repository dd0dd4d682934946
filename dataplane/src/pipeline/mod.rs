//! The packet path: what happens to a packet between its read and its write. Slices in, verdicts out; operations are filled
//! but not executed, and no file descriptor is known here.
//!
//! ```text
//!  TUN read ── encap::plan ──> batch::Batcher ──> UDP send      one lookup, one TTL step a super-packet;
//!                                                               split into one GSO send
//!  UDP recv ── decap::admit ─> coalesce::Coalescer ──> TUN write  every datagram checked; in-order segments joined
//! ```

pub mod batch;
pub mod coalesce;
pub mod decap;
pub mod encap;

use weft_packet::icmp::IcmpError;
use weft_packet::{DropReason, Inner};

/// A packet that goes no further.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// Counted.
    pub reason: DropReason,
    /// What its sender is owed, with the facts needed to quote the packet.
    pub reply: Option<(IcmpError, Inner)>,
}

impl Refusal {
    fn silent(reason: DropReason) -> Refusal {
        Refusal { reason, reply: None }
    }
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Refusal {
        Refusal::silent(reason)
    }
}
