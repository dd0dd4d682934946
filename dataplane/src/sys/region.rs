//! An anonymous memory mapping: page-aligned, zeroed, freed on drop.

use std::io;
use std::ptr::NonNull;

/// Page-aligned zeroed memory that the kernel may be told the address of. Its address never changes.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
}

impl Region {
    /// Maps `len` bytes (rounded up to pages by the kernel).
    pub fn new(len: usize) -> io::Result<Region> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        // SAFETY: a null hint without MAP_FIXED lets the kernel choose unused addresses, so no existing mapping changes.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Region { base, len })
    }

    /// Asks for huge pages: they spare address look-ups where much memory is walked through. Kernels without them, or told
    /// to give none, go on with small ones.
    pub fn prefer_huge_pages(&self) {
        // SAFETY: base and length are those of this mapping, and the advice changes nothing of what it contains.
        let _ = unsafe { rustix::mm::madvise(self.base.as_ptr().cast(), self.len, rustix::mm::Advice::LinuxHugepage) };
    }

    /// First byte.
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a region is created with at least one byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are what `mmap_anonymous` returned, and owners of pointers into the region (the
        // engines) are dropped, with their kernel operations reaped, before the region is.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
