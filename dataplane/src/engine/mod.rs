//! Engines: how a worker reaches the kernel. `uring` by default, `epoll` where io_uring is disabled; both pass the same
//! tests. An engine knows nothing of IP, routes or peers: it moves frames and executes queued operations.

mod calls;
pub mod epoll;
mod reads;
pub mod uring;

use crate::io::Io;
use std::io as stdio;
use std::os::fd::BorrowedFd;
use weft_packet::vnet::VNET_LEN;

/// Where a TUN read starts in its frame: the virtio-net header lies right before an aligned IP header.
const TUN_DATA: usize = crate::limits::HEADROOM - VNET_LEN;

/// What a turn does when nothing is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Returns at once.
    No,
    /// The same; what comes is likely to be single: a request, or its reply.
    Single,
    /// The same, and whoever a packet is for may have the core first.
    Spin,
    /// Sleeps until a packet, a completion or a wake-up arrives.
    Sleep,
}

/// The descriptors a worker's engine works on; they outlive the engine.
#[derive(Clone, Copy, Debug)]
pub struct Descriptors<'a> {
    /// The TUN queue.
    pub tun: BorrowedFd<'a>,
    /// The UDP socket that datagrams arrive at.
    pub udp: BorrowedFd<'a>,
    /// The one that they are sent from; mostly the same.
    pub send: BorrowedFd<'a>,
    /// An eventfd: readable when somebody wants the worker to look at its command.
    pub wake: BorrowedFd<'a>,
    /// Longest UDP payload to receive, bytes; a longer datagram arrives truncated and marked so.
    pub receive_len_max: usize,
}

/// Whether an error of a receive means that the socket is unusable. Any other is one of an earlier send (ECONNREFUSED, EMSGSIZE),
/// and gone once it was reported.
fn is_unusable(error: &stdio::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOTSOCK | libc::EINVAL | libc::EFAULT))
}

/// One worker's access to the kernel.
pub trait Engine {
    /// Executes everything queued in `io`, delivers what is ready to `io.tun_rx` and `io.udp_rx` in the order the kernel gave
    /// it, reports refused operations as failed, and frees the slots of finished ones. Sends go out in the order they were
    /// queued, and so do writes. Sleeps only if there is nothing to do, and then only if asked to or if the kernel must take
    /// or finish an operation before anything can go on.
    ///
    /// An error means that the queue pair is unusable (the TUN was deleted, the ring broke).
    fn turn(&mut self, io: &mut Io, wait: Wait) -> stdio::Result<()>;

    /// Stops reading from TUN and receiving from the socket. What the kernel had already delivered still comes out of later
    /// turns.
    fn stop_receiving(&mut self);

    /// Whether the kernel still holds operations or deliveries of this engine.
    fn in_flight(&self) -> bool;

    /// System calls made so far.
    fn syscalls(&self) -> u64;

    /// How often nothing could be read because all frames were in use, since the last call.
    fn take_overflows(&mut self) -> u64;
}
