//! The epoll engine: readiness by mio, data by read, writev, recvmmsg and sendmmsg. Runs wherever io_uring is refused, and
//! on request.
//!
//! A turn executes what is queued, then reads both descriptors as far as frames and `TURN_BYTES_MAX` allow; only when there
//! was nothing to do it asks epoll, and only then it may sleep.
#![allow(unsafe_code)]

use super::{Descriptors, Engine, Wait};
use crate::io::{Io, TunRx, UdpRx};
use crate::limits::*;
use crate::pool::{FrameId, Pool, Purpose};
use crate::sys::msg::{self, RECV_BATCH_MAX, Received};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;
use weft_packet::vnet::VNET_LEN;

/// Messages per sendmmsg.
const SEND_BATCH: usize = 16;
/// Where a TUN read starts in its frame: the virtio-net header lies right before an aligned IP header.
const TUN_DATA: usize = HEADROOM - VNET_LEN;

const TUN: Token = Token(0);
const UDP: Token = Token(1);
const WAKE: Token = Token(2);

/// One worker's epoll instance and what it knows about readiness (edge-triggered: ready until a call says EAGAIN).
pub struct Epoll<'a> {
    descriptors: Descriptors<'a>,
    poll: Poll,
    events: Events,
    tun_readable: bool,
    udp_readable: bool,
    udp_writable: bool,
    tun_free: Vec<FrameId>,
    udp_free: Vec<FrameId>,
    received: Vec<Received>,
    receiving: bool,
    syscalls: u64,
    overflows: u64,
}

impl<'a> Epoll<'a> {
    /// Registers the descriptors and makes them non-blocking.
    pub fn new(descriptors: Descriptors<'a>) -> io::Result<Epoll<'a>> {
        let poll = Poll::new()?;
        for (fd, token, interest) in [
            (descriptors.tun, TUN, Interest::READABLE),
            (descriptors.udp, UDP, Interest::READABLE | Interest::WRITABLE),
            (descriptors.wake, WAKE, Interest::READABLE),
        ] {
            rustix::io::ioctl_fionbio(fd, true)?;
            poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), token, interest)?;
        }
        Ok(Epoll {
            descriptors,
            poll,
            events: Events::with_capacity(8),
            tun_readable: true,
            udp_readable: true,
            udp_writable: true,
            tun_free: Vec::with_capacity(TUN_FRAMES),
            udp_free: Vec::with_capacity(UDP_FRAMES),
            received: Vec::with_capacity(RECV_BATCH_MAX),
            receiving: true,
            syscalls: 0,
            overflows: 0,
        })
    }

    fn send_queued(&mut self, io: &mut Io) {
        while self.udp_writable && !io.sends.is_idle() {
            // SAFETY: `mmsghdr` is plain old data for which all zero bytes are a valid value.
            let mut messages: [libc::mmsghdr; SEND_BATCH] = unsafe { std::mem::zeroed() };
            let mut count = 0;
            for slot in io.sends.peek(SEND_BATCH) {
                let op = &io.sends[slot];
                let header = &mut messages[count].msg_hdr;
                header.msg_name = (&raw const op.name).cast_mut().cast();
                header.msg_namelen = op.name_len;
                header.msg_iov = op.gather.as_ptr().cast_mut();
                header.msg_iovlen = op.gather.len();
                if op.count() > 1 {
                    header.msg_control = (&raw const op.control).cast_mut().cast();
                    header.msg_controllen = msg::CONTROL_LEN;
                }
                count += 1;
            }
            self.syscalls += 1;
            // SAFETY: the headers point into operation slots, whose gather lists point into frames that the slots hold and
            // into their own boxed arenas; slots and frames stay until `io.sent` below.
            match unsafe { msg::send_batch(self.descriptors.udp, &mut messages[..count]) } {
                Ok(sent) => {
                    for _ in 0..sent {
                        let slot = io.sends.pop_queued().expect("sent no more than was queued");
                        io.sent(slot);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.udp_writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let slot = io.sends.pop_queued().expect("the refused message was queued");
                    io.failed_sends.push_back((slot, error));
                }
            }
        }
    }

    fn write_queued(&mut self, io: &mut Io) {
        while let Some(slot) = io.writes.pop_queued() {
            self.syscalls += 1;
            // SAFETY: the gather list points into frames that the slot holds and into its own boxes.
            match unsafe { msg::write_gather(self.descriptors.tun, &io.writes[slot].gather) } {
                Ok(_) => io.written(slot),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => io.writes.requeue(slot),
                Err(error) => io.failed_writes.push_back((slot, error)),
            }
        }
    }

    fn read_tun(&mut self, io: &mut Io) -> io::Result<()> {
        let mut bytes = 0;
        while self.tun_readable && bytes < TURN_BYTES_MAX {
            let Some(frame) = self.tun_free.pop() else {
                self.overflows += 1;
                return Ok(());
            };
            io.pool.acquire(frame);
            self.syscalls += 1;
            match rustix::io::read(self.descriptors.tun, io.pool.bytes_mut(frame, TUN_DATA..FRAME_LEN)) {
                Ok(len) => {
                    bytes += len;
                    io.tun_rx.push_back(TunRx { frame, data: TUN_DATA..TUN_DATA + len });
                }
                Err(error) => {
                    io.pool.release(frame);
                    match error {
                        rustix::io::Errno::AGAIN => self.tun_readable = false,
                        rustix::io::Errno::INTR => {}
                        error => return Err(error.into()),
                    }
                }
            }
        }
        Ok(())
    }

    fn receive_udp(&mut self, io: &mut Io) -> io::Result<()> {
        while self.udp_readable && !self.udp_free.is_empty() && io.udp_rx.len() < RECV_BATCH_MAX {
            let count = self.udp_free.len().min(RECV_BATCH_MAX);
            let frames: [FrameId; RECV_BATCH_MAX] =
                std::array::from_fn(
                    |i| if i < count { self.udp_free[self.udp_free.len() - 1 - i] } else { FrameId(0) },
                );
            self.syscalls += 1;
            self.received.clear();
            match receive_into(self.descriptors, &mut io.pool, &frames[..count], &mut self.received) {
                Ok(()) => {
                    self.udp_readable = self.received.len() == count;
                    for (rx, frame) in self.received.iter().zip(frames) {
                        self.udp_free.pop();
                        io.pool.acquire(frame);
                        io.udp_rx.push_back(UdpRx::new(frame, rx));
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => self.udp_readable = false,
                    // EINTR, or a pending error of an earlier send (ECONNREFUSED): it is gone once reported.
                    Some(libc::EINTR | libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH) => {}
                    _ => return Err(error),
                },
            }
        }
        Ok(())
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
        // SAFETY: the frames are distinct entries of `udp_free`, held by nobody, so these are the only references to them,
        // and the range from HEADROOM to the end lies within each frame.
        *buffer = unsafe { std::slice::from_raw_parts_mut(start, len) };
    }
    msg::recv_batch(descriptors.udp, &mut buffers[..frames.len()], received)
}

impl Engine for Epoll<'_> {
    fn turn(&mut self, io: &mut Io, wait: Wait) -> io::Result<()> {
        while let Some(frame) = io.pool.take_released() {
            match Pool::purpose(frame) {
                Purpose::Tun => self.tun_free.push(frame),
                Purpose::Udp => self.udp_free.push(frame),
            }
        }
        let had_work = !io.writes.is_idle() || (!io.sends.is_idle() && self.udp_writable);
        self.send_queued(io);
        self.write_queued(io);
        let starved = self.receiving && !(self.tun_readable && self.udp_readable);
        let tun_ready = self.receiving && self.tun_readable && !self.tun_free.is_empty();
        let udp_ready = self.receiving && self.udp_readable && !self.udp_free.is_empty();
        // With sends that the socket does not take there is nothing to do but wait until it does.
        let blocked = !self.udp_writable && !io.sends.is_idle();
        let asleep = (wait == Wait::Sleep || blocked) && !had_work && !tun_ready && !udp_ready;
        if asleep || starved || !self.udp_writable {
            self.syscalls += 1;
            let timeout = if asleep { None } else { Some(Duration::ZERO) };
            match self.poll.poll(&mut self.events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &self.events {
                match event.token() {
                    TUN => self.tun_readable = true,
                    UDP => {
                        self.udp_readable |= event.is_readable() || event.is_error();
                        self.udp_writable |= event.is_writable();
                    }
                    _ => {
                        let mut count = [0u8; 8];
                        let _ = rustix::io::read(self.descriptors.wake, &mut count);
                    }
                }
            }
        }
        if self.receiving {
            self.read_tun(io)?;
            self.receive_udp(io)?;
        }
        Ok(())
    }

    fn stop_receiving(&mut self) {
        self.receiving = false;
    }

    fn in_flight(&self) -> bool {
        false
    }

    fn syscalls(&self) -> u64 {
        self.syscalls
    }

    fn take_overflows(&mut self) -> u64 {
        std::mem::take(&mut self.overflows)
    }
}
