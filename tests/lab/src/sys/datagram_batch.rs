//! Many datagrams per system call.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// Room for `N` datagrams, received together by recvmmsg(2).
pub struct DatagramBatch<const N: usize> {
    bytes: Vec<u8>,
    slot_len: usize,
    lens: [usize; N],
    /// One for each datagram, or none at all.
    controls: Vec<Control>,
    control_lens: [usize; N],
    count: usize,
}

/// What the kernel tells beside a datagram: one message, `IP_PKTINFO` at most.
#[derive(Clone, Copy)]
#[repr(align(8))]
struct Control([u8; CONTROL_LEN]);

/// Header of a control message, then `struct in_pktinfo` and what aligns the next one (`CMSG_SPACE`, cmsg(3)).
const CONTROL_LEN: usize = size_of::<libc::cmsghdr>() + size_of::<libc::in_pktinfo>().next_multiple_of(8);
/// Where `ipi_addr` is: the destination in the header of the packet (ip(7)), behind `ipi_ifindex` and `ipi_spec_dst`.
const DESTINATION: std::ops::Range<usize> = {
    let start = size_of::<libc::cmsghdr>() + 8;
    start..start + 4
};
const _: () = assert!(DESTINATION.end <= CONTROL_LEN && std::mem::offset_of!(libc::in_pktinfo, ipi_addr) == 8);

impl<const N: usize> DatagramBatch<N> {
    /// Room for `N` datagrams of up to `slot_len` bytes, at least 1; what is longer is cut.
    pub fn new(slot_len: usize) -> Self {
        let bytes = vec![0; N * slot_len];
        Self { bytes, slot_len, lens: [0; N], controls: Vec::new(), control_lens: [0; N], count: 0 }
    }

    /// The same for a socket with `IP_PKTINFO`, and no other option that tells something beside a datagram.
    pub fn with_destinations(slot_len: usize) -> Self {
        Self { controls: vec![Control([0; CONTROL_LEN]); N], ..Self::new(slot_len) }
    }

    /// Waits for a datagram, as long as the socket's timeout says, and takes along what else is there.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.count = 0;
        let mut slots = self.bytes.chunks_exact_mut(self.slot_len);
        let mut vectors: [libc::iovec; N] = std::array::from_fn(|_| {
            let slot = slots.next().expect("there are N slots");
            libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() }
        });
        let mut vector = vectors.as_mut_ptr();
        let mut controls = self.controls.iter_mut();
        let mut messages: [libc::mmsghdr; N] = std::array::from_fn(|_| {
            // SAFETY: all-zero is a valid mmsghdr: a message without address, data or control.
            let mut message: libc::mmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            if let Some(control) = controls.next() {
                message.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
                message.msg_hdr.msg_controllen = CONTROL_LEN;
            }
            vector = vector.wrapping_add(1);
            message
        });
        // SAFETY: there are `N` messages; each points to its own vector, which points to its own slot of `bytes` with
        // its length, and to its own control with its length or to none; all of them outlive the call.
        let count = check(unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                N as libc::c_uint,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        } as isize)?;
        self.count = count as usize;
        self.lens = messages.map(|message| message.msg_len as usize);
        self.control_lens = messages.map(|message| message.msg_hdr.msg_controllen);
        Ok(())
    }

    /// What the last call received.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        let slots = self.bytes.chunks_exact(self.slot_len);
        slots.zip(self.lens).take(self.count).map(|(slot, len)| &slot[..len])
    }

    /// The IPv4 addresses that what the last call received was sent to; `None` where the kernel told none. Nothing without
    /// [`DatagramBatch::with_destinations`].
    pub fn destinations(&self) -> impl Iterator<Item = Option<Ipv4Addr>> {
        let controls = self.controls.iter().zip(self.control_lens).take(self.count);
        controls.map(|(control, len)| {
            let address = control.0.get(DESTINATION).filter(|_| len >= DESTINATION.end)?;
            Some(Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?))
        })
    }
}
