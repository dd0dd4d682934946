//! Fragmenting an inner IPv4 packet without DF for a path MTU (RFC 791 section 3.2), in the shape of [`crate::gso`]: headers
//! written, payload ranges named.

use crate::{DropReason, Inner};
use std::ops::Range;

/// Longest fragment header: a full IPv4 header.
pub const HEADER_LEN_MAX: usize = 60;

/// A packet and the MTU it must fit.
#[derive(Clone, Copy, Debug)]
pub struct Fragments {
    // Yours to choose.
    _private: (),
}

impl Fragments {
    /// [`DropReason::TooBig`] for IPv6, DF, or an MTU that leaves no room for 8 payload bytes. The packet may itself be a fragment.
    pub fn new(inner: &Inner, packet: &[u8], mtu: usize) -> Result<Fragments, DropReason> {
        let _ = (inner, packet, mtu);
        todo!()
    }
    /// How many fragments.
    pub fn count(&self) -> usize {
        todo!()
    }
    /// Writes fragment `index`'s header to `header` and returns (header length, payload range). Options are copied to later
    /// fragments only where their copy flag is set.
    pub fn fragment(&self, index: usize, packet: &[u8], header: &mut [u8; HEADER_LEN_MAX]) -> (usize, Range<usize>) {
        let _ = (index, packet, header);
        todo!()
    }
}
