//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624). The endianness story: the one's-complement sum
//! is byte-order independent up to a swap (RFC 1071 section 2 B), so bulk sums read native words and swap once at the end.

/// Unfolded one's-complement sum of `bytes` (an odd last byte is padded with zero), added to `initial`. Values add; fold at the end.
/// Runs at the widest SIMD the CPU has (pulp).
pub fn sum(bytes: &[u8], initial: u64) -> u64 {
    let _ = (bytes, initial);
    todo!()
}

/// Folds to 16 bits, big-endian meaning, not complemented.
#[inline]
pub fn fold(sum: u64) -> u16 {
    let _ = sum;
    todo!()
}

/// RFC 1624 equation 3: the checksum after a 16-bit field changed from `old` to `new`.
#[inline]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    let _ = (checksum, old, new);
    todo!()
}

/// Sum of the IPv4 or IPv6 pseudo-header of a checked packet for a transport length (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub fn pseudo(packet: &[u8], inner: &crate::Inner, transport_len: usize) -> u64 {
    let _ = (packet, inner, transport_len);
    todo!()
}
