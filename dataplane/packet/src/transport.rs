//! Where things lie in TCP (RFC 9293 section 3.1) and UDP (RFC 768) headers, for splitting and coalescing.

/// Bytes of a TCP header without options.
pub(crate) const TCP_LEN: usize = 20;
/// Bytes of a UDP header.
pub(crate) const UDP_LEN: usize = 8;

/// Offset of the checksum in a TCP header.
pub(crate) const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in a UDP header.
pub(crate) const UDP_CHECKSUM: usize = 6;

/// TCP flags as they lie in byte 13 of the header.
pub(crate) const TCP_FIN: u8 = 0x01;
pub(crate) const TCP_PSH: u8 = 0x08;
pub(crate) const TCP_ACK: u8 = 0x10;
pub(crate) const TCP_CWR: u8 = 0x80;

/// Header length in bytes by a TCP header's own data offset, 0..=60; valid ones are at least [`TCP_LEN`].
#[inline]
pub(crate) fn tcp_header_len(header: &[u8; TCP_LEN]) -> usize {
    usize::from(header[12] >> 4) * 4
}
