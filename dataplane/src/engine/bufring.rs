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

/// Lends frames to the kernel through a buffer ring: no more than it is likely to fill in a turn, and of those at hand the
/// last used first. A ring is a queue, so all frames in it would be used in turn and each would be cold by then; as few as
/// hold `WARM_LEN` bytes stay in the processor's second-level cache.
#[derive(Debug)]
pub struct Lender {
    ring: BufRing,
    /// Frames at hand, the last used at the end.
    kept: Vec<FrameId>,
    given: usize,
    frames: usize,
    /// Bytes that arrive in a frame, an average that forgets slowly, in 1/16 bytes.
    filled16: usize,
}

/// Bytes of frames that may be filled in one turn: half of a second-level cache of 1 MiB.
const WARM_LEN: usize = 1 << 19;
/// Frames that are lent however much arrives in each: enough for the kernel to go on while a turn is worked on.
const GIVEN_MIN: usize = 8;

impl Lender {
    /// For `frames` frames, none of them lent.
    pub fn new(ring: BufRing, frames: usize) -> Lender {
        Lender { ring, kept: Vec::with_capacity(frames), given: 0, frames, filled16: 0 }
    }

    /// The ring itself.
    pub fn ring(&self) -> &BufRing {
        &self.ring
    }

    /// Frames that the kernel has.
    pub fn given(&self) -> usize {
        self.given
    }

    /// Takes a frame back that nobody holds any more.
    pub fn keep(&mut self, frame: FrameId) {
        self.kept.push(frame);
    }

    /// The kernel has filled one of its frames with `len` bytes.
    #[inline]
    pub fn taken(&mut self, len: usize) {
        self.given -= 1;
        self.filled16 += len;
        self.filled16 -= self.filled16 / 16;
    }

    /// Lends frames, each as the address and length that `place` gives.
    #[inline]
    pub fn give(&mut self, place: impl Fn(FrameId) -> (*mut u8, usize)) {
        let filled = self.filled16 / 16;
        let wanted = (WARM_LEN / filled.max(1)).clamp(GIVEN_MIN, self.frames);
        let before = self.given;
        while self.given < wanted
            && let Some(frame) = self.kept.pop()
        {
            let (address, len) = place(frame);
            self.ring.push(frame, address, len);
            self.given += 1;
        }
        if self.given > before {
            self.ring.publish();
        }
    }
}
