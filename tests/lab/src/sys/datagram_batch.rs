//! Many datagrams per system call.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// Room for `N` datagrams, received together by recvmmsg(2).
pub struct DatagramBatch<const N: usize> {
    bytes: Vec<u8>,
    slot_len: usize,
    lens: [usize; N],
    count: usize,
}

impl<const N: usize> DatagramBatch<N> {
    /// Room for `N` datagrams of up to `slot_len` bytes, at least 1; what is longer is cut.
    pub fn new(slot_len: usize) -> Self {
        Self { bytes: vec![0; N * slot_len], slot_len, lens: [0; N], count: 0 }
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
        let mut messages: [libc::mmsghdr; N] = std::array::from_fn(|_| {
            // SAFETY: all-zero is a valid mmsghdr: a message without address, data or control.
            let mut message: libc::mmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            vector = vector.wrapping_add(1);
            message
        });
        // SAFETY: there are `N` messages; each points to its own vector, which points to its own slot of `bytes` with
        // its length; all of them outlive the call.
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
        Ok(())
    }

    /// What the last call received.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        let slots = self.bytes.chunks_exact(self.slot_len);
        slots.zip(self.lens).take(self.count).map(|(slot, len)| &slot[..len])
    }
}
