//! One system call an operation: what the epoll engine does always, and the io_uring engine where a turn has no more to do
//! than one packet each way, for which a ring costs more than it saves.
#![allow(unsafe_code)]

use super::{Descriptors, TUN_DATA, is_unusable};
use crate::io::{Io, TunRx, UdpRx};
use crate::limits::{FRAME_LEN, HEADROOM};
use crate::pool::{FrameId, Pool};
use crate::sys::msg::{self, RECV_BATCH_MAX, Received};
use std::io;

/// Messages per sendmmsg.
const SEND_BATCH: usize = 16;

/// Errors in a row of a receive that may be those of earlier sends.
const ERRORS_MAX: usize = 16;

/// The descriptors, and how many calls were made on them.
pub struct Calls<'a> {
    descriptors: Descriptors<'a>,
    received: Vec<Received>,
    /// System calls made so far.
    pub made: u64,
}

impl<'a> Calls<'a> {
    /// For descriptors of which TUN does not block; the socket may.
    pub fn new(descriptors: Descriptors<'a>) -> Calls<'a> {
        Calls { descriptors, received: Vec::with_capacity(RECV_BATCH_MAX), made: 0 }
    }

    /// Sends what is queued; whether the socket took it all. What it has no room for stays queued.
    pub fn send_queued(&mut self, io: &mut Io) -> bool {
        while !io.sends.is_idle() {
            // SAFETY: `mmsghdr` is plain old data for which all zero bytes are a valid value.
            let mut messages: [libc::mmsghdr; SEND_BATCH] = unsafe { std::mem::zeroed() };
            let mut count = 0;
            for slot in io.sends.peek(SEND_BATCH) {
                let op = &io.sends[slot];
                messages[count].msg_hdr = msg::send_header(&op.name, op.name_len, &op.gather, op.segments());
                count += 1;
            }
            self.made += 1;
            // SAFETY: the headers point into operation slots, whose gather lists point into frames that the slots hold and
            // into their own boxed arenas; slots and frames stay until `io.sent` below.
            match unsafe { msg::send_batch(self.descriptors.send, &mut messages[..count]) } {
                Ok(sent) => {
                    for _ in 0..sent {
                        let slot = io.sends.pop_queued().expect("sent no more than was queued");
                        io.sent(slot);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let slot = io.sends.pop_queued().expect("the refused message was queued");
                    io.failed_sends.push_back((slot, error));
                }
            }
        }
        true
    }

    /// Writes what is queued to TUN.
    pub fn write_queued(&mut self, io: &mut Io) {
        while let Some(slot) = io.writes.pop_queued() {
            self.made += 1;
            // SAFETY: the gather list points into frames that the slot holds and into its own boxes.
            match unsafe { msg::write_gather(self.descriptors.tun, &io.writes[slot].gather) } {
                Ok(_) => io.written(slot),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => io.writes.requeue(slot),
                Err(error) => io.failed_writes.push_back((slot, error)),
            }
        }
    }

    /// Reads from TUN into `frame`: how many bytes, or `None` if there is nothing; the frame then is released. An error means
    /// that the TUN is gone.
    pub fn read_tun(&mut self, io: &mut Io, frame: FrameId) -> io::Result<Option<usize>> {
        io.pool.acquire(frame);
        self.made += 1;
        let buffer = io.pool.bytes_mut(frame, TUN_DATA..FRAME_LEN);
        match rustix::io::retry_on_intr(|| rustix::io::read(self.descriptors.tun, &mut *buffer)) {
            Ok(len) => {
                io.tun_rx.push_back(TunRx { frame, data: TUN_DATA..TUN_DATA + len });
                Ok(Some(len))
            }
            Err(error) => {
                io.pool.release(frame);
                if error != rustix::io::Errno::AGAIN {
                    return Err(error.into());
                }
                io.tun_empty = true;
                Ok(None)
            }
        }
    }

    /// Receives into `frames`, at most [`RECV_BATCH_MAX`], from the first: how many were filled. An error means that the socket
    /// is unusable.
    pub fn receive(&mut self, io: &mut Io, frames: &[FrameId]) -> io::Result<usize> {
        let mut errors = 0;
        loop {
            self.made += 1;
            self.received.clear();
            match receive_into(self.descriptors, &mut io.pool, frames, &mut self.received) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // One that stays is not of an earlier send, but of the call: forbidden, say.
                Err(error) if is_unusable(&error) || errors == ERRORS_MAX => return Err(error),
                Err(_) => errors += 1,
            }
        }
        for (rx, frame) in self.received.iter().zip(frames) {
            io.pool.acquire(*frame);
            io.udp_rx.push_back(UdpRx::new(*frame, rx));
        }
        Ok(self.received.len())
    }
}

/// Receives into frames that are still with the kernel, as far as Rust is concerned.
fn receive_into(
    descriptors: Descriptors<'_>,
    pool: &mut Pool,
    frames: &[FrameId],
    received: &mut Vec<Received>,
) -> io::Result<()> {
    let len = descriptors.receive_len_max.min(FRAME_LEN - HEADROOM);
    let mut buffers: [&mut [u8]; RECV_BATCH_MAX] = std::array::from_fn(|_| Default::default());
    for (buffer, frame) in buffers.iter_mut().zip(frames) {
        let start = pool.address(*frame).wrapping_add(HEADROOM);
        // SAFETY: the engine's free frames are distinct and held by nobody, so these are the only references to them, and the
        // range from HEADROOM to the end lies within each frame.
        *buffer = unsafe { std::slice::from_raw_parts_mut(start, len) };
    }
    match &mut buffers[..frames.len()] {
        // A look at the socket while spinning: cheaper than the call for several.
        [buffer] => msg::recv_one(descriptors.udp, buffer).map(|one| received.push(one)),
        buffers => msg::recv_batch(descriptors.udp, buffers, received),
    }
}
