//! The virtio-net header that a TUN queue with IFF_VNET_HDR puts before each packet (linux/virtio_net.h, `struct
//! virtio_net_hdr`, 10 bytes, native endian on a legacy TUN): the one place with `VIRTIO_NET_HDR_*` values.

use crate::DropReason;

/// Bytes of the header (`sizeof(struct virtio_net_hdr)`, the TUN default of TUNSETVNETHDRSZ).
pub const VNET_LEN: usize = 10;

/// Which segmentation a super-packet asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// Not a super-packet.
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams of equal size (VIRTIO_NET_HDR_GSO_UDP_L4, Linux 6.2).
    UdpL4,
}

/// The header, parsed. Nothing in it is trusted: see [`crate::gso::Split::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VnetHeader {
    /// VIRTIO_NET_HDR_F_NEEDS_CSUM: the transport checksum field holds the pseudo-header sum only.
    pub needs_csum: bool,
    /// Segmentation kind.
    pub gso: GsoKind,
    /// VIRTIO_NET_HDR_GSO_ECN: the first segment alone carries CWR.
    pub ecn: bool,
    /// A hint about header bytes; on the forward path it may be the whole first packet. Never trusted when read.
    pub hdr_len: u16,
    /// Transport payload bytes of every segment but the last.
    pub gso_size: u16,
    /// Where checksumming starts.
    pub csum_start: u16,
    /// Where the checksum lies, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// The header of a plain packet with a complete checksum: ten zero bytes.
    pub const PLAIN: VnetHeader = VnetHeader {
        needs_csum: false,
        gso: GsoKind::None,
        ecn: false,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// Parses the first [`VNET_LEN`] bytes of `bytes`; unknown GSO kinds and short input are
    /// [`DropReason::BadVnetHeader`].
    pub fn parse(bytes: &[u8]) -> Result<VnetHeader, DropReason> {
        let _ = bytes;
        todo!()
    }

    /// The header as bytes; unused bits and fields are zero.
    pub fn emit(&self) -> [u8; VNET_LEN] {
        todo!()
    }
}
