//! A provided-buffer ring (IORING_REGISTER_PBUF_RING, Linux 5.19): frames that the kernel picks from when a multishot
//! operation has data.
//!
//! ```text
//!  entry 0          entry 1          ...   entry N-1
//! |addr|len|bid|tail|addr|len|bid|resv|        |addr|len|bid|resv|
//!                ^ written by us with release order after the entries; the kernel keeps the head
//! ```
#![allow(unsafe_code)]

use crate::pool::FrameId;
use crate::sys::region::Region;
use io_uring::types::BufRingEntry;
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

/// One ring of provided buffers.
#[derive(Debug)]
pub struct BufRing {
    region: Region,
    entries: u16,
    tail: u16,
    group: u16,
}

impl BufRing {
    /// Allocates the ring; `entries` is a power of two.
    pub fn new(entries: usize, group: u16) -> io::Result<BufRing> {
        assert!(entries.is_power_of_two() && entries <= 1 << 15);
        Ok(BufRing {
            region: Region::new(entries * size_of::<BufRingEntry>())?,
            entries: entries as u16,
            tail: 0,
            group,
        })
    }

    /// Tells the kernel about it.
    pub fn register(&self, submitter: &io_uring::Submitter<'_>) -> io::Result<()> {
        // SAFETY: the region is page-aligned, holds `entries` entries, and is unmapped only after the ring was closed: the
        // engine declares its `IoUring` before its `BufRing`s, so it is dropped first.
        unsafe { submitter.register_buf_ring_with_flags(self.region.base() as u64, self.entries, self.group, 0) }
    }

    /// The group number that operations name.
    pub fn group(&self) -> u16 {
        self.group
    }

    /// Gives `len` bytes at `address`, which belong to `frame`, to the kernel. Takes effect with [`Self::publish`].
    pub fn push(&mut self, frame: FrameId, address: *mut u8, len: usize) {
        let slot = usize::from(self.tail & (self.entries - 1));
        // SAFETY: `slot` is below `entries`, and the region holds that many entries.
        let entry = unsafe { self.region.base().cast::<BufRingEntry>().add(slot) };
        // SAFETY: the region is zeroed memory, all zero bytes are a valid entry, and the kernel only reads it.
        let entry = unsafe { &mut *entry };
        entry.set_addr(address as u64);
        entry.set_len(len as u32);
        entry.set_bid(frame.0);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Makes pushed buffers visible.
    pub fn publish(&self) {
        // SAFETY: the region begins with an initialised entry, whose `resv` field is the ring's tail.
        let tail = unsafe { BufRingEntry::tail(self.region.base().cast()) };
        // SAFETY: the tail is an aligned u16 inside the region that the kernel reads concurrently, hence the atomic.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}
