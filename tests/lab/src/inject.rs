//! Putting packets of a test's own making onto a link, however wrong they are.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socket_with};

use crate::{Node, sys};

/// Bytes of the header that [`Injector::send_with_vnet`] puts before a packet: `struct virtio_net_hdr`
/// (include/uapi/linux/virtio_net.h, Linux 6.18).
pub const VNET_LEN: usize = 10;

/// A packet socket that sends on one link, below the node's IP stack: nothing checks or changes what it sends.
#[derive(Debug)]
pub struct Injector {
    plain: OwnedFd,
    vnet: OwnedFd,
}

impl Injector {
    /// Opens it for a link of a node.
    ///
    /// # Errors
    /// If there is no such link, or the kernel gives no packet socket.
    pub fn open(node: &Node, link: &str) -> Result<Self> {
        let index = node.link(link)?.index;
        let socket = || node.run(|| open(index)).with_context(|| format!("injecting into {link} of {}", node.name()));
        let (plain, vnet) = (socket()?, socket()?);
        sys::set_option(vnet.as_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1).context("PACKET_VNET_HDR")?;
        Ok(Self { plain, vnet })
    }

    /// Sends a frame: with its Ethernet header, or from the IP header on where the link has no other, as a TUN.
    ///
    /// # Errors
    /// The kernel's: `EMSGSIZE` beyond the link's MTU, `ENOBUFS` if its queue is full, `ENETDOWN`.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        Ok(send(&self.plain, frame, SendFlags::empty()).map(drop)?)
    }

    /// Sends a frame with the offload requests of a virtio-net header, which the kernel checks superficially.
    ///
    /// # Errors
    /// As [`Injector::send`], and `EINVAL` if the header contradicts the frame.
    pub fn send_with_vnet(&self, header: &[u8; VNET_LEN], frame: &[u8]) -> io::Result<()> {
        Ok(send(&self.vnet, &[header, frame].concat(), SendFlags::empty()).map(drop)?)
    }
}

fn open(link_index: u32) -> Result<OwnedFd> {
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    // Protocol 0: it receives nothing, and what it sends is of the protocol that it looks like.
    sys::bind_packet(socket.as_fd(), link_index, 0)?;
    Ok(socket)
}
