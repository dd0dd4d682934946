//! Splitting a super-packet into complete segments, without touching the payload: the splitter writes one header per
//! segment and names the payload range that follows it, so that the kernel can gather header and payload pairs.

use crate::vnet::VnetHeader;
use crate::{DropReason, Inner};
use std::ops::Range;

/// A super-packet checked against its virtio-net header, ready to be split any number of times.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    // Private facts: header length, payload per segment, total, kind, precomputed sums. Yours to choose.
    _private: (),
}

impl Split {
    /// Checks everything that splitting relies on and refuses the rest as [`DropReason::BadVnetHeader`]: kind agrees
    /// with version and protocol, `gso_size` > 0, NEEDS_CSUM set, csum_start/offset are the real transport header's,
    /// the transport header (TCP data offset 20..=60, UDP 8) lies inside the packet, not a fragment. `hdr_len` is
    /// ignored: headers are measured from the packet. All arithmetic in `usize`.
    pub fn new(vnet: &VnetHeader, inner: &Inner, packet: &[u8]) -> Result<Split, DropReason> {
        let _ = (vnet, inner, packet);
        todo!()
    }

    /// IP plus transport header bytes before each payload.
    #[inline]
    pub fn header_len(&self) -> usize {
        todo!()
    }

    /// Whole length of every segment but the last (header + gso_size; the only segment's length if there is one).
    #[inline]
    pub fn segment_len(&self) -> usize {
        todo!()
    }

    /// How many segments there are, at least 1.
    #[inline]
    pub fn count(&self) -> usize {
        todo!()
    }

    /// Writes the complete header of segment `index` into `header` (exactly [`Self::header_len`] bytes) and returns
    /// the payload's range in `packet`. IPv4: id + index, total length, header checksum; IPv6 payload length; TCP: seq,
    /// FIN/PSH on the last only, CWR on the first only; UDP length (checksum 0 becomes 0xFFFF); full transport
    /// checksum. Kernel equal: `tcp_gso_segment`, `__udp_gso_segment`.
    pub fn segment(&self, index: usize, packet: &[u8], header: &mut [u8]) -> Range<usize> {
        let _ = (index, packet, header);
        todo!()
    }
}

/// Completes the transport checksum in place of a plain packet that came with NEEDS_CSUM
/// (`gso == GsoKind::None`). Without NEEDS_CSUM it does nothing. csum_start/csum_offset are bounds-checked against the
/// packet's total length and must not lie inside the IP header ([`DropReason::BadVnetHeader`]).
pub fn finish_checksum(vnet: &VnetHeader, inner: &Inner, packet: &mut [u8]) -> Result<(), DropReason> {
    let _ = (vnet, inner, packet);
    todo!()
}
