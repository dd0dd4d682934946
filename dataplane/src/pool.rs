//! Packet memory of one worker: fixed frames, allocated at start and never afterwards.
//!
//! ```text
//!  frame 0 .. TUN_FRAMES-1           : TUN reads     | headroom | virtio-net header | inner packet ...  |
//!  frame TUN_FRAMES .. +UDP_FRAMES-1 : UDP receives  | headroom | (ring header) | datagram | datagram ...|
//!  .. +SEND_OPS-1                    : UDP sends     | datagram | datagram ...                          |
//! ```
//! A frame is with the *kernel* (which may write to it at any time) or with *us*, held by one or more holders: whoever is
//! reading its packets, and each queued operation that points into it. The last holder's release puts it on the list of
//! frames that the engine gives back to the kernel. A send's frame belongs to its operation slot for good.
#![allow(unsafe_code)]

use crate::limits::{FRAME_LEN, SEND_OPS, TUN_FRAMES, UDP_FRAMES};
use crate::sys::region::Region;
use std::io;
use std::ops::Range;

/// Index of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameId(pub u16);

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Reads from TUN.
    Tun,
    /// Receives from the UDP socket.
    Udp,
}

/// The frames of one worker.
#[derive(Debug)]
pub struct Pool {
    region: Region,
    /// Holders per frame; 0: with the kernel or waiting in `released`.
    holders: Vec<u16>,
    released: Vec<FrameId>,
}

impl Pool {
    /// Allocates all frames; those for reads and receives start released, those for sends held.
    pub fn new() -> io::Result<Pool> {
        const RECEIVING: usize = TUN_FRAMES + UDP_FRAMES;
        let region = Region::new((RECEIVING + SEND_OPS) * FRAME_LEN)?;
        region.prefer_huge_pages();
        let mut holders = vec![0; RECEIVING];
        holders.resize(RECEIVING + SEND_OPS, 1);
        Ok(Pool { region, holders, released: (0..RECEIVING as u16).rev().map(FrameId).collect() })
    }

    /// The frame of send slot `slot`.
    pub fn of_send(slot: u16) -> FrameId {
        assert!(usize::from(slot) < SEND_OPS, "there is no send {slot}");
        FrameId((TUN_FRAMES + UDP_FRAMES) as u16 + slot)
    }

    /// What `frame` is for.
    #[inline]
    pub fn purpose(frame: FrameId) -> Purpose {
        if usize::from(frame.0) < TUN_FRAMES { Purpose::Tun } else { Purpose::Udp }
    }

    /// Takes a frame that nobody holds any more, the last released first: its memory is the warmest. From here until
    /// [`Self::acquire`] the kernel may write to it.
    #[inline]
    pub fn take_released(&mut self) -> Option<FrameId> {
        self.released.pop()
    }

    /// Address of the first byte of `frame`, for the kernel to write to. Valid as long as the pool.
    pub fn address(&self, frame: FrameId) -> *mut u8 {
        let offset = usize::from(frame.0) * FRAME_LEN;
        assert!(offset + FRAME_LEN <= self.region.len(), "frame {} is not of this pool", frame.0);
        // SAFETY: the assertion keeps the offset within the region's single mapping.
        unsafe { self.region.base().add(offset) }
    }

    /// Takes `frame` over from the kernel, with one holder: the kernel said it finished writing.
    #[inline]
    pub fn acquire(&mut self, frame: FrameId) {
        let holders = &mut self.holders[usize::from(frame.0)];
        assert_eq!(*holders, 0, "frame {} was delivered twice", frame.0);
        *holders = 1;
    }

    /// Adds a holder.
    #[inline]
    pub fn hold(&mut self, frame: FrameId) {
        let holders = &mut self.holders[usize::from(frame.0)];
        debug_assert!(*holders > 0);
        *holders += 1;
    }

    /// Removes a holder.
    #[inline]
    pub fn release(&mut self, frame: FrameId) {
        let holders = &mut self.holders[usize::from(frame.0)];
        assert!(*holders > 0, "frame {} released too often", frame.0);
        *holders -= 1;
        if *holders == 0 {
            self.released.push(frame);
        }
    }

    /// Bytes `range` of a held frame.
    #[inline]
    pub fn bytes(&self, frame: FrameId, range: Range<usize>) -> &[u8] {
        self.check(frame, &range);
        let start = self.address(frame).wrapping_add(range.start);
        // SAFETY: `check` keeps the range within the frame, the region is initialised (zeroed) memory, and a held frame is
        // not with the kernel, so nobody writes while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(start, range.len()) }
    }

    /// Bytes `range` of a held frame, to be changed.
    #[inline]
    pub fn bytes_mut(&mut self, frame: FrameId, range: Range<usize>) -> &mut [u8] {
        self.check(frame, &range);
        let start = self.address(frame).wrapping_add(range.start);
        // SAFETY: as in `bytes`; the mutable borrow of the pool excludes every other slice of it. Queued operations keep raw
        // pointers, not references, and each packet is queued only after it was last changed.
        unsafe { std::slice::from_raw_parts_mut(start, range.len()) }
    }

    /// Bytes of one held frame, to be read, and of another, to be written from them.
    ///
    /// # Panics
    /// If they are the same frame, or not held.
    #[inline]
    pub fn pair(&mut self, from: (FrameId, Range<usize>), to: (FrameId, Range<usize>)) -> (&[u8], &mut [u8]) {
        assert_ne!(from.0, to.0, "a frame is not copied onto itself");
        self.check(from.0, &from.1);
        self.check(to.0, &to.1);
        let source = self.address(from.0).wrapping_add(from.1.start);
        let target = self.address(to.0).wrapping_add(to.1.start);
        // SAFETY: as in `bytes`.
        let source = unsafe { std::slice::from_raw_parts(source, from.1.len()) };
        // SAFETY: as in `bytes_mut`; it lies in another frame than `source`, so the two do not overlap.
        let target = unsafe { std::slice::from_raw_parts_mut(target, to.1.len()) };
        (source, target)
    }

    #[inline]
    fn check(&self, frame: FrameId, range: &Range<usize>) {
        assert!(self.holders[usize::from(frame.0)] > 0, "frame {} is with the kernel", frame.0);
        assert!(range.start <= range.end && range.end <= FRAME_LEN, "{range:?} is outside of a frame");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_release_returns_the_frame() {
        let mut pool = Pool::new().unwrap();
        assert_eq!(std::iter::from_fn(|| pool.take_released()).count(), TUN_FRAMES + UDP_FRAMES);
        pool.acquire(FrameId(3));
        pool.hold(FrameId(3));
        pool.bytes_mut(FrameId(3), 0..4).copy_from_slice(b"weft");
        pool.release(FrameId(3));
        assert_eq!(pool.bytes(FrameId(3), 0..4), b"weft");
        assert_eq!(pool.take_released(), None);
        pool.release(FrameId(3));
        assert_eq!(pool.take_released(), Some(FrameId(3)));
    }

    #[test]
    #[should_panic(expected = "with the kernel")]
    fn a_frame_with_the_kernel_cannot_be_read() {
        let pool = Pool::new().unwrap();
        pool.bytes(FrameId(0), 0..1);
    }
}
