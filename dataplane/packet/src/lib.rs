//! Pure packet work: parse, check, split, coalesce, answer.
//!
//! Contract of the whole crate: bytes in, bytes and verdicts out. No system call, no clock, no log, no allocation,
//! no panic on packet contents, no `libc` in the manifest. Packets are borrowed slices that begin at the first byte
//! of the inner IP header; multi-byte fields on the wire are big-endian and the endianness story is told in
//! [`checksum`] alone.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod fragment;
pub mod gro;
pub mod gso;
pub mod icmp;
pub mod ip;
pub mod martian;
mod transport;
pub mod verdict;
pub mod vnet;

pub use ip::{Fragmentation, Inner, Version};
pub use verdict::DropReason;
