//! The io_uring engine: one ring a worker, one `io_uring_enter` a turn with sends, writes and reads in it.
//!
//! A turn:
//!  1. puts queued sends and writes into the submission queue, and behind them reads that do not wait (`reads`);
//!  2. enters the kernel, which executes all of them inline;
//!  3. reaps completions.
//!
//! Before it sleeps it arms one-shot polls, and reads when one of them has fired. While there is traffic the kernel so has nobody to
//! wake: neither for a packet that arrives, nor for one that was sent and is freed.
//!
//! While it spins on single packets, a request and its reply, or sleeps between them, it leaves the ring alone and makes a system
//! call for each (`calls`): a ring saves calls where there are many, and costs some 0.4 us an operation where there is one.
//!
//! Sends execute in submission order as long as the kernel completes them inline. One that the kernel could not finish at
//! once (socket buffer full) holds back every later send until it completes, so order is kept.
#![allow(unsafe_code)]

use super::calls::Calls;
use super::reads::Reads;
use super::{Descriptors, Engine, TUN_DATA, Wait, is_unusable};
use crate::io::{Io, TunRx, UdpRx};
use crate::limits::*;
use crate::pool::{FrameId, Pool, Purpose};
use crate::sys::msg::{self, Receive};
use io_uring::squeue::Entry;
use io_uring::types::Fixed;
use io_uring::{EnterFlags, IoUring, Probe, opcode};
use std::io;
use std::os::fd::AsRawFd;

/// Submission queue: every operation slot, every frame, the two polls, the wake-up read and their cancels.
const SQ_LEN: u32 = ((SEND_OPS + WRITE_OPS + TUN_FRAMES + UDP_FRAMES + 8) as u32).next_power_of_two();
/// Completion queue: all of them may complete in one turn.
const CQ_LEN: u32 = 2 * SQ_LEN;

// Registered files.
const TUN: Fixed = Fixed(0);
const UDP: Fixed = Fixed(1);
const WAKE: Fixed = Fixed(2);
const SEND: Fixed = Fixed(3);

// Completion kinds: the upper half of user_data; the lower half is an operation slot or a frame.
const KIND_TUN_READ: u64 = 1 << 32;
const KIND_UDP_RECV: u64 = 2 << 32;
const KIND_WAKE: u64 = 3 << 32;
const KIND_SEND: u64 = 4 << 32;
const KIND_WRITE: u64 = 5 << 32;
const KIND_CANCEL: u64 = 6 << 32;
const KIND_TUN_POLL: u64 = 7 << 32;
const KIND_UDP_POLL: u64 = 8 << 32;
const KIND_MASK: u64 = !0 << 32;

/// What the kernel reads and writes while operations are in flight; boxed so that moving the engine moves nothing of it.
struct Pinned {
    /// One per UDP frame.
    receives: Vec<Receive>,
    sends: Vec<libc::msghdr>,
    wake: u64,
}

/// The packets of a turn, one from each source at most.
#[derive(Clone, Copy)]
struct Single {
    tun: bool,
    udp: bool,
}

impl Single {
    /// Of what `io` holds, unless that is more.
    fn of(io: &Io) -> Option<Single> {
        let few = io.tun_rx.len() <= 1 && io.udp_rx.len() <= 1 && io.received().bytes <= SMALL_LEN_MAX;
        few.then_some(Single { tun: !io.tun_rx.is_empty(), udp: !io.udp_rx.is_empty() })
    }
}

/// One worker's ring.
pub struct Uring<'a> {
    // Dropped first: closing the ring ends every operation's claim on the memory below.
    ring: IoUring,
    pinned: Box<Pinned>,
    tun_reads: Reads,
    udp_reads: Reads,
    /// Polls and the wake-up read that are with the kernel.
    tun_polled: bool,
    udp_polled: bool,
    wake_armed: bool,
    calls: Calls<'a>,
    /// What the last turn brought, if that was no more than one small packet from each.
    single: Option<Single>,
    /// The last turn was one without the ring, but for sleep.
    by_calls: bool,
    /// The last packet of a turn without the ring came from TUN.
    tun_was_last: bool,
    /// Operations that the kernel has not completed.
    sends_in_flight: usize,
    writes_in_flight: usize,
    /// Longest datagram, or GRO buffer, to receive.
    udp_len: usize,
    receiving: bool,
    overflows: u64,
}

fn build_ring() -> io::Result<IoUring> {
    // Linux 6.1 has all of these flags; the probe below asks for 6.7 anyway.
    IoUring::builder()
        .setup_cqsize(CQ_LEN)
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_submit_all()
        .build(SQ_LEN)
}

/// Why a ring could not be made, and what would help.
pub fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "io_uring is not permitted (sysctl kernel.io_uring_disabled or a seccomp profile)".to_owned()
        }
        Some(libc::ENOSYS) => "the kernel has no io_uring, or a seccomp profile hides it".to_owned(),
        Some(libc::ENOMEM) => "io_uring does not get its memory (raise RLIMIT_MEMLOCK)".to_owned(),
        Some(libc::EINVAL) => "the kernel's io_uring is older than Linux 6.1".to_owned(),
        _ => format!("io_uring cannot be set up: {error}"),
    }
}

/// Whether this process may and can use the engine; the error says why not and what would help.
pub fn probe() -> Result<(), String> {
    let ring = build_ring().map_err(|error| explain(&error))?;
    // A seccomp profile may know of one of the three system calls only; what follows makes the other two.
    ring.submit().map_err(|e| format!("io_uring cannot be entered: {e}"))?;
    let mut supported = Probe::new();
    ring.submitter().register_probe(&mut supported).map_err(|e| format!("io_uring cannot be probed: {e}"))?;
    // Not used, but the mark of the oldest kernel that this was tried for: a TUN must know reads that do not wait.
    if !supported.is_supported(opcode::ReadMulti::CODE) {
        return Err("the kernel is older than Linux 6.7".to_owned());
    }
    Ok(())
}

impl<'a> Uring<'a> {
    /// Sets the ring up on this thread, which must be the one that turns it (IORING_SETUP_SINGLE_ISSUER).
    pub fn new(descriptors: Descriptors<'a>) -> io::Result<Uring<'a>> {
        let ring = build_ring()?;
        rustix::io::ioctl_fionbio(descriptors.tun, true)?;
        ring.submitter().register_files(&[
            descriptors.tun.as_raw_fd(),
            descriptors.udp.as_raw_fd(),
            descriptors.wake.as_raw_fd(),
            descriptors.send.as_raw_fd(),
        ])?;
        // SAFETY: `msghdr` is plain old data for which all zero bytes are a valid value.
        let empty: libc::msghdr = unsafe { std::mem::zeroed() };
        let receives = std::iter::repeat_with(Receive::empty).take(UDP_FRAMES).collect();
        Ok(Uring {
            ring,
            pinned: Box::new(Pinned { receives, sends: vec![empty; SEND_OPS], wake: 0 }),
            tun_reads: Reads::new(TUN_FRAMES),
            udp_reads: Reads::new(UDP_FRAMES),
            tun_polled: false,
            udp_polled: false,
            wake_armed: false,
            calls: Calls::new(descriptors),
            single: None,
            by_calls: false,
            tun_was_last: false,
            sends_in_flight: 0,
            writes_in_flight: 0,
            udp_len: descriptors.receive_len_max.min(FRAME_LEN - HEADROOM),
            receiving: true,
            overflows: 0,
        })
    }

    /// Asks to be told of the next packet, as far as there are frames for it.
    fn arm(&mut self) {
        if !self.wake_armed {
            let entry = opcode::Read::new(WAKE, (&raw mut self.pinned.wake).cast(), 8).build().user_data(KIND_WAKE);
            self.push(&entry);
            self.wake_armed = true;
        }
        if !self.tun_polled && self.tun_reads.has_frames() {
            self.push(&opcode::PollAdd::new(TUN, libc::POLLIN as u32).build().user_data(KIND_TUN_POLL));
            self.tun_polled = true;
        }
        if !self.udp_polled && self.udp_reads.has_frames() {
            self.push(&opcode::PollAdd::new(UDP, libc::POLLIN as u32).build().user_data(KIND_UDP_POLL));
            self.udp_polled = true;
        }
    }

    /// Puts reads that do not wait into the submission queue, but none from where a poll is still to tell of data.
    fn push_reads(&mut self, pool: &Pool) {
        self.overflows += u64::from(!self.tun_reads.has_frames() || !self.udp_reads.has_frames());
        let tun_count = if self.tun_polled { 0 } else { self.tun_reads.begin() };
        let udp_count = if self.udp_polled { 0 } else { self.udp_reads.begin() };
        for _ in 0..tun_count {
            let frame = self.tun_reads.ask();
            let address = pool.address(frame).wrapping_add(TUN_DATA);
            let entry = opcode::Read::new(TUN, address, (FRAME_LEN - TUN_DATA) as u32)
                .offset(u64::MAX)
                .rw_flags(libc::RWF_NOWAIT)
                .build()
                .user_data(KIND_TUN_READ | u64::from(frame.0));
            self.push(&entry);
        }
        for _ in 0..udp_count {
            let frame = self.udp_reads.ask();
            let address = pool.address(frame).wrapping_add(HEADROOM);
            let header = self.pinned.receives[usize::from(frame.0) - TUN_FRAMES].prepare(address, self.udp_len);
            let entry = opcode::RecvMsg::new(UDP, header)
                .flags(libc::MSG_DONTWAIT as u32)
                .build()
                .user_data(KIND_UDP_RECV | u64::from(frame.0));
            self.push(&entry);
        }
    }

    /// Puts queued operations into the submission queue; how many.
    fn push_operations(&mut self, io: &mut Io) -> usize {
        let before = self.sends_in_flight + self.writes_in_flight;
        if self.sends_in_flight == 0 {
            while let Some(slot) = io.sends.pop_queued() {
                let op = &io.sends[slot];
                let header = &mut self.pinned.sends[usize::from(slot)];
                *header = msg::send_header(&op.name, op.name_len, &op.gather, op.segments());
                let entry =
                    opcode::SendMsg::new(SEND, &raw const *header).build().user_data(KIND_SEND | u64::from(slot));
                self.push(&entry);
                self.sends_in_flight += 1;
            }
        }
        if self.writes_in_flight == 0 {
            while let Some(slot) = io.writes.pop_queued() {
                let gather = &io.writes[slot].gather;
                let entry = opcode::Writev::new(TUN, gather.as_ptr(), gather.len() as u32)
                    .offset(u64::MAX)
                    .build()
                    .user_data(KIND_WRITE | u64::from(slot));
                self.push(&entry);
                self.writes_in_flight += 1;
            }
        }
        self.sends_in_flight + self.writes_in_flight - before
    }

    fn push(&mut self, entry: &Entry) {
        // SAFETY: every entry built in this file points into `pinned`, an operation slot, or the pool, none of which moves.
        // The worker keeps `Io` and this engine until `in_flight` is false, or for ever if the ring broke.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("the submission queue holds every operation that can exist");
    }

    fn enter(&mut self, want: u32) -> io::Result<()> {
        let count = self.ring.submission().len() as u32;
        self.calls.made += 1;
        // SAFETY: no argument structure is passed; the flag only asks the kernel to run deferred work and post completions.
        let entered =
            unsafe { self.ring.submitter().enter::<libc::sigset_t>(count, want, EnterFlags::GETEVENTS.bits(), None) };
        match entered {
            Ok(_) => Ok(()),
            // A signal, or completions that must be reaped before the kernel takes more.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A turn without the ring: what is queued, and then a read from one source or the other.
    fn call(&mut self, io: &mut Io, wait: Wait) -> io::Result<()> {
        let sends = !io.sends.is_idle();
        self.calls.send_queued(io);
        self.calls.write_queued(io);
        if sends && wait == Wait::Spin {
            // Whoever the packet is for may share this core. (Who waits for a packet from TUN has preempted us by now.)
            rustix::thread::sched_yield();
        }
        // An answer comes from the other side than what it answers. Where there is something, the other one's turn is next.
        if self.tun_was_last {
            self.tun_was_last = !self.call_udp(io)?;
            if self.tun_was_last {
                self.call_tun(io)?;
            }
        } else {
            self.tun_was_last = self.call_tun(io)?;
            if !self.tun_was_last {
                self.call_udp(io)?;
            }
        }
        Ok(())
    }

    /// After a sleep between single packets: a read from where the poll has told of something.
    fn call_woken(&mut self, io: &mut Io) -> io::Result<()> {
        if !self.udp_polled && self.call_udp(io)? {
            self.tun_was_last = false;
        }
        if !self.tun_polled && self.call_tun(io)? {
            self.tun_was_last = true;
        }
        self.single = Single::of(io);
        self.by_calls = self.single.is_some();
        Ok(())
    }

    /// Reads one packet from TUN, if there is one.
    fn call_tun(&mut self, io: &mut Io) -> io::Result<bool> {
        let Some(frame) = self.tun_reads.take() else { return Ok(false) };
        Ok(self.calls.read_tun(io, frame)?.is_some())
    }

    /// Receives from the socket once, if there is something.
    fn call_udp(&mut self, io: &mut Io) -> io::Result<bool> {
        let Some(frame) = self.udp_reads.take() else { return Ok(false) };
        let is_there = self.calls.receive(io, &[frame])? > 0;
        if !is_there {
            self.udp_reads.keep(frame);
        }
        Ok(is_there)
    }

    fn reap(&mut self, io: &mut Io) -> io::Result<()> {
        let mut broken = Ok(());
        for completion in self.ring.completion() {
            let result = completion.result();
            let slot = completion.user_data() as u16;
            let frame = FrameId(slot);
            let error = || io::Error::from_raw_os_error(-result);
            match completion.user_data() & KIND_MASK {
                KIND_TUN_READ if result >= 0 => {
                    let len = result as usize;
                    self.tun_reads.filled(len);
                    io.pool.acquire(frame);
                    io.tun_rx.push_back(TunRx { frame, data: TUN_DATA..TUN_DATA + len });
                }
                KIND_TUN_READ => {
                    self.tun_reads.empty(frame);
                    match -result {
                        libc::EAGAIN => io.tun_empty = true,
                        libc::EINTR | libc::ECANCELED => {}
                        _ => broken = Err(error()),
                    }
                }
                KIND_UDP_RECV if result >= 0 => {
                    let len = result as usize;
                    self.udp_reads.filled(len);
                    io.pool.acquire(frame);
                    let received = self.pinned.receives[usize::from(slot) - TUN_FRAMES].received(len);
                    io.udp_rx.push_back(UdpRx::new(frame, &received));
                }
                KIND_UDP_RECV => {
                    self.udp_reads.empty(frame);
                    if is_unusable(&error()) {
                        broken = Err(error());
                    }
                }
                KIND_TUN_POLL => self.tun_polled = false,
                KIND_UDP_POLL => self.udp_polled = false,
                KIND_WAKE => self.wake_armed = false,
                KIND_SEND => {
                    self.sends_in_flight -= 1;
                    if result >= 0 { io.sent(slot) } else { io.failed_sends.push_back((slot, error())) }
                }
                KIND_WRITE => {
                    self.writes_in_flight -= 1;
                    if result >= 0 { io.written(slot) } else { io.failed_writes.push_back((slot, error())) }
                }
                _ => {}
            }
        }
        broken
    }
}

impl Drop for Uring<'_> {
    fn drop(&mut self) {
        // The kernel tears a closed ring down later, on a thread of its own; without this the TUN and the port would
        // outlive weftd by some milliseconds.
        let _ = self.ring.submitter().unregister_files();
    }
}

impl Engine for Uring<'_> {
    fn turn(&mut self, io: &mut Io, wait: Wait) -> io::Result<()> {
        while let Some(frame) = io.pool.take_released() {
            match Pool::purpose(frame) {
                Purpose::Tun => self.tun_reads.keep(frame),
                Purpose::Udp => self.udp_reads.keep(frame),
            }
        }
        let blocked = self.sends_in_flight + self.writes_in_flight > 0;
        if let Some(before) = self.single
            && matches!(wait, Wait::Single | Wait::Spin)
            && !blocked
            && self.receiving
        {
            self.call(io, wait)?;
            // Two in a row from one source: there may be many.
            self.single =
                Single::of(io).filter(|now| !(before.tun && now.tun || before.udp && now.udp) && io.sends.is_idle());
            self.by_calls = self.single.is_some();
            return Ok(());
        }
        let by_calls = std::mem::take(&mut self.by_calls);
        let pushed = self.push_operations(io);
        // With operations that the kernel could not finish at once there is nothing to do but wait for one of them.
        let sleep = pushed == 0 && (wait == Wait::Sleep || blocked);
        if sleep {
            if self.receiving {
                self.arm();
            }
            self.enter(1)?;
            self.reap(io)?;
            if self.tun_polled && self.udp_polled {
                self.by_calls = by_calls;
                return Ok(());
            }
            if self.receiving && by_calls {
                return self.call_woken(io);
            }
        }
        if self.receiving {
            self.push_reads(&io.pool);
        }
        self.enter(0)?;
        self.reap(io)?;
        self.single = Single::of(io);
        Ok(())
    }

    fn stop_receiving(&mut self) {
        self.receiving = false;
        for (armed, target) in
            [(self.tun_polled, KIND_TUN_POLL), (self.udp_polled, KIND_UDP_POLL), (self.wake_armed, KIND_WAKE)]
        {
            if armed {
                self.push(&opcode::AsyncCancel::new(target).build().user_data(KIND_CANCEL));
            }
        }
    }

    fn in_flight(&self) -> bool {
        self.tun_polled
            || self.udp_polled
            || self.wake_armed
            || self.tun_reads.in_flight()
            || self.udp_reads.in_flight()
            || self.sends_in_flight > 0
            || self.writes_in_flight > 0
    }

    fn syscalls(&self) -> u64 {
        self.calls.made
    }

    fn take_overflows(&mut self) -> u64 {
        std::mem::take(&mut self.overflows)
    }
}
