//! Thin safe wrappers over raw system calls that rustix does not have: the home of `unsafe`, with `engine::uring` and
//! `pool`. Everything here returns `io::Result` and knows nothing of IP, routes or peers.
#![allow(unsafe_code)]

pub mod bpf;
pub mod dev;
pub mod msg;
pub mod region;
pub mod sched;
pub mod sockopt;

use std::io;

/// Turns the `-1` convention of libc into a `Result`.
fn check(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
