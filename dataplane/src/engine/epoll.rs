//! The epoll engine: readiness by mio, data by read, writev, recvmmsg and sendmmsg. Runs wherever io_uring is refused, and
//! on request.
//!
//! A turn executes what is queued, then reads both descriptors as far as frames and `TURN_BYTES_MAX` allow; only when there
//! was nothing to do it asks epoll, and only then it may sleep.

use super::calls::Calls;
use super::{Descriptors, Engine, Wait};
use crate::io::Io;
use crate::limits::*;
use crate::pool::{FrameId, Pool, Purpose};
use crate::sys::msg::RECV_BATCH_MAX;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

const TUN: Token = Token(0);
const UDP: Token = Token(1);
const WAKE: Token = Token(2);
const SEND: Token = Token(3);

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
    calls: Calls<'a>,
    receiving: bool,
    overflows: u64,
}

impl<'a> Epoll<'a> {
    /// Registers the descriptors and makes them non-blocking.
    pub fn new(descriptors: Descriptors<'a>) -> io::Result<Epoll<'a>> {
        let poll = Poll::new()?;
        let sends_elsewhere = descriptors.send.as_raw_fd() != descriptors.udp.as_raw_fd();
        let udp_interest = if sends_elsewhere { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        let of_send = sends_elsewhere.then_some((descriptors.send, SEND, Interest::WRITABLE));
        let others = [
            (descriptors.tun, TUN, Interest::READABLE),
            (descriptors.udp, UDP, udp_interest),
            (descriptors.wake, WAKE, Interest::READABLE),
        ];
        for (fd, token, interest) in others.into_iter().chain(of_send) {
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
            calls: Calls::new(descriptors),
            receiving: true,
            overflows: 0,
        })
    }

    fn read_tun(&mut self, io: &mut Io) -> io::Result<()> {
        let mut bytes = 0;
        while self.tun_readable && bytes < TURN_BYTES_MAX {
            let Some(frame) = self.tun_free.pop() else {
                self.overflows += 1;
                return Ok(());
            };
            match self.calls.read_tun(io, frame)? {
                Some(len) => bytes += len,
                None => self.tun_readable = false,
            }
        }
        Ok(())
    }

    fn receive_udp(&mut self, io: &mut Io) -> io::Result<()> {
        while self.udp_readable && !self.udp_free.is_empty() && io.udp_rx.len() < RECV_BATCH_MAX {
            let count = self.udp_free.len().min(RECV_BATCH_MAX);
            let mut frames = [FrameId(0); RECV_BATCH_MAX];
            // The last used first: its memory is the warmest.
            frames.iter_mut().zip(self.udp_free.iter().rev()).for_each(|(to, frame)| *to = *frame);
            let filled = self.calls.receive(io, &frames[..count])?;
            self.udp_free.truncate(self.udp_free.len() - filled);
            self.udp_readable = filled == count;
        }
        Ok(())
    }
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
        if self.udp_writable {
            self.udp_writable = self.calls.send_queued(io);
        }
        self.calls.write_queued(io);
        let starved = self.receiving && !(self.tun_readable && self.udp_readable);
        let tun_ready = self.receiving && self.tun_readable && !self.tun_free.is_empty();
        let udp_ready = self.receiving && self.udp_readable && !self.udp_free.is_empty();
        // With sends that the socket does not take there is nothing to do but wait until it does.
        let blocked = !self.udp_writable && !io.sends.is_idle();
        let asleep = (wait == Wait::Sleep || blocked) && !had_work && !tun_ready && !udp_ready;
        if asleep || starved || !self.udp_writable {
            self.calls.made += 1;
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
                    SEND => self.udp_writable |= event.is_writable(),
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
        self.calls.made
    }

    fn take_overflows(&mut self) -> u64 {
        std::mem::take(&mut self.overflows)
    }
}
