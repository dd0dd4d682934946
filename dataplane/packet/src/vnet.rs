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
    ///
    /// So is the ECN bit on anything but TCP. Flags other than NEEDS_CSUM (DATA_VALID, RSC_INFO) are ignored.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<VnetHeader, DropReason> {
        let header = bytes.first_chunk::<VNET_LEN>().ok_or(DropReason::BadVnetHeader)?;
        let ecn = header[1] & GSO_ECN != 0;
        let gso = match header[1] & !GSO_ECN {
            GSO_NONE if !ecn => GsoKind::None,
            GSO_TCPV4 => GsoKind::Tcp4,
            GSO_TCPV6 => GsoKind::Tcp6,
            GSO_UDP_L4 if !ecn => GsoKind::UdpL4,
            _ => return Err(DropReason::BadVnetHeader),
        };
        Ok(VnetHeader {
            needs_csum: header[0] & F_NEEDS_CSUM != 0,
            gso,
            ecn,
            hdr_len: u16::from_ne_bytes([header[2], header[3]]),
            gso_size: u16::from_ne_bytes([header[4], header[5]]),
            csum_start: u16::from_ne_bytes([header[6], header[7]]),
            csum_offset: u16::from_ne_bytes([header[8], header[9]]),
        })
    }

    /// The header as bytes; unused bits and fields are zero.
    #[inline]
    pub fn emit(&self) -> [u8; VNET_LEN] {
        let kind = match self.gso {
            GsoKind::None => GSO_NONE,
            GsoKind::Tcp4 => GSO_TCPV4,
            GsoKind::Tcp6 => GSO_TCPV6,
            GsoKind::UdpL4 => GSO_UDP_L4,
        };
        let mut header = [0; VNET_LEN];
        header[0] = if self.needs_csum { F_NEEDS_CSUM } else { 0 };
        header[1] = if self.ecn { kind | GSO_ECN } else { kind };
        [header[2], header[3]] = self.hdr_len.to_ne_bytes();
        [header[4], header[5]] = self.gso_size.to_ne_bytes();
        [header[6], header[7]] = self.csum_start.to_ne_bytes();
        [header[8], header[9]] = self.csum_offset.to_ne_bytes();
        header
    }
}

// include/uapi/linux/virtio_net.h, Linux 6.18: VIRTIO_NET_HDR_F_NEEDS_CSUM and VIRTIO_NET_HDR_GSO_*.
const F_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;
