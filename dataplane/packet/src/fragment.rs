//! Fragmenting an inner IPv4 packet without DF for a path MTU (RFC 791 section 3.2), in the shape of [`crate::gso`]: headers
//! written, payload ranges named.

use crate::ip::{FRAGMENT4_MORE, HEADER4_LEN, Options4, Version};
use crate::{DropReason, Inner, checksum};
use std::ops::Range;

/// Longest fragment header: a full IPv4 header.
pub const HEADER_LEN_MAX: usize = 60;

/// A packet and the MTU it must fit.
#[derive(Clone, Copy, Debug)]
pub struct Fragments {
    /// Of the packet; later fragments may have a shorter one.
    header_len: usize,
    payload_len: usize,
    /// Payload bytes of every fragment but the last.
    step: usize,
}

impl Fragments {
    /// [`DropReason::TooBig`] for IPv6, DF, or an MTU that leaves no room for 8 payload bytes. The packet may itself be a fragment.
    pub fn new(inner: &Inner, packet: &[u8], mtu: usize) -> Result<Fragments, DropReason> {
        let header_len = usize::from(inner.l4_offset);
        let total_len = usize::from(inner.total_len);
        if inner.version != Version::V4 || inner.dont_fragment || mtu < header_len + 8 {
            return Err(DropReason::TooBig);
        }
        let payload_len = packet.get(header_len..total_len).ok_or(DropReason::BadTotalLen)?.len();
        let step = if total_len <= mtu { payload_len.max(8) } else { (mtu - header_len) / 8 * 8 };
        Ok(Fragments { header_len, payload_len, step })
    }

    /// How many fragments, at least 1.
    pub fn count(&self) -> usize {
        self.payload_len.div_ceil(self.step).max(1)
    }

    /// Writes fragment `index`'s header to `header` and returns (header length, payload range). Options are copied to later
    /// fragments only where their copy flag is set.
    ///
    /// # Panics
    /// If `index` is not below [`Self::count`] or `packet` is not the one that this was made from.
    pub fn fragment(&self, index: usize, packet: &[u8], header: &mut [u8; HEADER_LEN_MAX]) -> (usize, Range<usize>) {
        assert!(index < self.count(), "fragment {index} of {}", self.count());
        let start = index * self.step;
        let end = self.payload_len.min(start + self.step);
        let original = &packet[..self.header_len];
        header[..HEADER4_LEN].copy_from_slice(&original[..HEADER4_LEN]);
        let options = &original[HEADER4_LEN..];
        let header_len = if index == 0 {
            header[HEADER4_LEN..self.header_len].copy_from_slice(options);
            self.header_len
        } else {
            copy_options(options, header)
        };

        let field = u16::from_be_bytes([header[6], header[7]]);
        let more = if end < self.payload_len { FRAGMENT4_MORE } else { field & FRAGMENT4_MORE };
        // `check` keeps a packet's end within 65,535, so the offset cannot run into the flags.
        let field = (field & !FRAGMENT4_MORE).wrapping_add((start / 8) as u16) | more;
        header[0] = 0x40 | (header_len / 4) as u8;
        header[2..4].copy_from_slice(&((header_len + end - start) as u16).to_be_bytes());
        header[6..8].copy_from_slice(&field.to_be_bytes());
        header[10..12].fill(0);
        let sum = !checksum::fold(checksum::sum(&header[..header_len], 0));
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        (header_len, self.header_len + start..self.header_len + end)
    }
}

/// Writes the options with the copy flag behind the fixed header, padded to 32 bits, and returns the header's length.
fn copy_options(options: &[u8], header: &mut [u8; HEADER_LEN_MAX]) -> usize {
    let mut len = HEADER4_LEN;
    for option in Options4(options).flatten().filter(|option| option[0] & OPTION_COPIED != 0) {
        header[len..len + option.len()].copy_from_slice(option);
        len += option.len();
    }
    let padded = len.next_multiple_of(4);
    header[len..padded].fill(0);
    padded
}

/// RFC 791 section 3.1: the copied flag in an option's type.
const OPTION_COPIED: u8 = 0x80;
