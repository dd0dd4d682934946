//! The io_uring engine: one ring a worker, one `io_uring_enter` a turn with sends, writes and fresh reads in it.
//!
//! Reads are multishot (TUN: IORING_OP_READ_MULTISHOT, Linux 6.7; UDP: RECVMSG multishot, 6.0) into two provided-buffer
//! rings. A turn:
//!  1. gives released frames back to the buffer rings and re-arms what ended for want of frames;
//!  2. puts queued sends and writes into the submission queue;
//!  3. enters the kernel, which executes them inline and runs deferred task work (the reads);
//!  4. reaps completions.
//!
//! Sends execute in submission order as long as the kernel completes them inline. One that the kernel could not finish at
//! once (socket buffer full) holds back every later send until it completes, so order is kept.
#![allow(unsafe_code)]

use super::bufring::{BufRing, Lender};
use super::{Descriptors, Engine, Wait};
use crate::io::{Io, TunRx, UdpRx};
use crate::limits::*;
use crate::pool::{FrameId, Pool, Purpose};
use crate::sys::msg::{CONTROL_LEN, NAME_LEN, parse_gro, parse_name};
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fixed, RecvMsgOut};
use io_uring::{EnterFlags, IoUring, Probe, cqueue, opcode};
use std::io;
use std::os::fd::AsRawFd;
use weft_packet::vnet::VNET_LEN;

/// Submission queue: every operation slot, the two multishots, the wake-up read and two cancels.
const SQ_LEN: u32 = ((SEND_OPS + WRITE_OPS + 8) as u32).next_power_of_two();
/// Completion queue: every frame and every operation may complete in one turn.
const CQ_LEN: u32 = 2 * SQ_LEN;
const _: () = assert!(CQ_LEN as usize >= SEND_OPS + WRITE_OPS + TUN_FRAMES + UDP_FRAMES + 8);

// Registered files.
const TUN: Fixed = Fixed(0);
const UDP: Fixed = Fixed(1);
const WAKE: Fixed = Fixed(2);

// Completion kinds: the upper half of user_data; the lower half is an operation slot.
const KIND_TUN_READ: u64 = 1 << 32;
const KIND_UDP_RECV: u64 = 2 << 32;
const KIND_WAKE: u64 = 3 << 32;
const KIND_SEND: u64 = 4 << 32;
const KIND_WRITE: u64 = 5 << 32;
const KIND_CANCEL: u64 = 6 << 32;
const KIND_MASK: u64 = !0 << 32;

/// Where a TUN read starts in its frame: the virtio-net header lies right before an aligned IP header.
const TUN_DATA: usize = HEADROOM - VNET_LEN;
/// Where a datagram starts in its frame: behind `struct io_uring_recvmsg_out`, the name and the control area.
const RECV_DATA: usize = 16 + NAME_LEN + CONTROL_LEN;

const GROUP_TUN: u16 = 0;
const GROUP_UDP: u16 = 1;

/// What the kernel reads while operations are in flight; boxed so that moving the engine moves nothing of it.
struct Pinned {
    receive: libc::msghdr,
    sends: Vec<libc::msghdr>,
    wake: u64,
}

/// One worker's ring.
pub struct Uring {
    // Dropped first: closing the ring ends every operation's claim on the memory below.
    ring: IoUring,
    tun_frames: Lender,
    udp_frames: Lender,
    pinned: Box<Pinned>,
    /// Multishots and the wake-up read that are with the kernel.
    tun_armed: bool,
    udp_armed: bool,
    wake_armed: bool,
    /// Operations that the kernel has not completed.
    sends_in_flight: usize,
    writes_in_flight: usize,
    /// Bytes of a UDP frame that the kernel may fill.
    udp_len: usize,
    receiving: bool,
    syscalls: u64,
    overflows: u64,
}

fn build_ring() -> io::Result<IoUring> {
    // Linux 6.1 has all of these flags; READ_MULTISHOT below asks for 6.7 anyway.
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
    if !supported.is_supported(opcode::ReadMulti::CODE) {
        return Err("the kernel has no multishot read (Linux 6.7)".to_owned());
    }
    let buffers = BufRing::new(TUN_FRAMES, GROUP_TUN).map_err(|e| format!("no memory for a buffer ring: {e}"))?;
    buffers.register(&ring.submitter()).map_err(|e| format!("io_uring refuses provided buffers: {e}"))
}

impl Uring {
    /// Sets the ring up on this thread, which must be the one that turns it (IORING_SETUP_SINGLE_ISSUER).
    pub fn new(descriptors: Descriptors<'_>) -> io::Result<Uring> {
        let ring = build_ring()?;
        ring.submitter().register_files(&[
            descriptors.tun.as_raw_fd(),
            descriptors.udp.as_raw_fd(),
            descriptors.wake.as_raw_fd(),
        ])?;
        let tun_frames = Lender::new(BufRing::new(TUN_FRAMES, GROUP_TUN)?, TUN_FRAMES);
        let udp_frames = Lender::new(BufRing::new(UDP_FRAMES, GROUP_UDP)?, UDP_FRAMES);
        tun_frames.ring().register(&ring.submitter())?;
        udp_frames.ring().register(&ring.submitter())?;
        // SAFETY: `msghdr` is plain old data for which all zero bytes are a valid value.
        let empty: libc::msghdr = unsafe { std::mem::zeroed() };
        let receive = libc::msghdr { msg_namelen: NAME_LEN as _, msg_controllen: CONTROL_LEN, ..empty };
        Ok(Uring {
            ring,
            tun_frames,
            udp_frames,
            pinned: Box::new(Pinned { receive, sends: vec![empty; SEND_OPS], wake: 0 }),
            tun_armed: false,
            udp_armed: false,
            wake_armed: false,
            sends_in_flight: 0,
            writes_in_flight: 0,
            udp_len: FRAME_LEN.min(RECV_DATA + descriptors.receive_len_max),
            receiving: true,
            syscalls: 0,
            overflows: 0,
        })
    }

    /// Gives frames that nobody holds any more back to the kernel, the last used first, as many as it is likely to need.
    fn give_frames(&mut self, pool: &mut Pool) {
        while let Some(frame) = pool.take_released() {
            match Pool::purpose(frame) {
                Purpose::Tun => self.tun_frames.keep(frame),
                Purpose::Udp => self.udp_frames.keep(frame),
            }
        }
        self.tun_frames.give(|frame| (pool.address(frame).wrapping_add(TUN_DATA), FRAME_LEN - TUN_DATA));
        self.udp_frames.give(|frame| (pool.address(frame), self.udp_len));
    }

    /// Arms what is not with the kernel and could deliver.
    fn arm(&mut self) {
        if !self.receiving {
            return;
        }
        if !self.tun_armed && self.tun_frames.given() > 0 {
            // ReadMulti's builder drops FIXED_FILE from the flags (io-uring 0.7.15): both are set on the built entry.
            let entry = opcode::ReadMulti::new(TUN, 0, self.tun_frames.ring().group())
                .offset(u64::MAX)
                .build()
                .flags(Flags::FIXED_FILE | Flags::BUFFER_SELECT)
                .user_data(KIND_TUN_READ);
            self.push(&entry);
            self.tun_armed = true;
        }
        if !self.udp_armed && self.udp_frames.given() > 0 {
            let entry = opcode::RecvMsgMulti::new(UDP, &raw const self.pinned.receive, self.udp_frames.ring().group())
                .build()
                .user_data(KIND_UDP_RECV);
            self.push(&entry);
            self.udp_armed = true;
        }
        if !self.wake_armed {
            let entry = opcode::Read::new(WAKE, (&raw mut self.pinned.wake).cast(), 8).build().user_data(KIND_WAKE);
            self.push(&entry);
            self.wake_armed = true;
        }
    }

    /// Puts queued operations into the submission queue; how many.
    fn push_operations(&mut self, io: &mut Io) -> usize {
        let before = self.sends_in_flight + self.writes_in_flight;
        if self.sends_in_flight == 0 {
            while let Some(slot) = io.sends.pop_queued() {
                let op = &io.sends[slot];
                let header = &mut self.pinned.sends[usize::from(slot)];
                header.msg_name = (&raw const op.name).cast_mut().cast();
                header.msg_namelen = op.name_len;
                header.msg_iov = op.gather.as_ptr().cast_mut();
                header.msg_iovlen = op.gather.len();
                let batched = op.count() > 1;
                header.msg_control =
                    if batched { (&raw const op.control).cast_mut().cast() } else { std::ptr::null_mut() };
                header.msg_controllen = if batched { CONTROL_LEN } else { 0 };
                let entry =
                    opcode::SendMsg::new(UDP, &raw const *header).build().user_data(KIND_SEND | u64::from(slot));
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
        self.syscalls += 1;
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

    fn reap(&mut self, io: &mut Io) -> io::Result<()> {
        let mut broken = Ok(());
        for completion in self.ring.completion() {
            let result = completion.result();
            let more = cqueue::more(completion.flags());
            let slot = completion.user_data() as u16;
            let frame = cqueue::buffer_select(completion.flags()).map(FrameId);
            let error = || io::Error::from_raw_os_error(-result);
            match completion.user_data() & KIND_MASK {
                KIND_TUN_READ => {
                    self.tun_armed = more;
                    if let Some(frame) = frame {
                        self.tun_frames.taken(result.max(0) as usize);
                        io.pool.acquire(frame);
                        io.tun_rx.push_back(TunRx { frame, data: TUN_DATA..TUN_DATA + result.max(0) as usize });
                    } else if result == -libc::ENOBUFS {
                        self.overflows += 1;
                    } else if result < 0 && !matches!(-result, libc::EAGAIN | libc::EINTR | libc::ECANCELED) {
                        broken = Err(error());
                    }
                }
                KIND_UDP_RECV => {
                    self.udp_armed = more;
                    if let Some(frame) = frame {
                        self.udp_frames.taken(result.max(0) as usize);
                        io.pool.acquire(frame);
                        let received = io.pool.bytes(frame, 0..result.max(0) as usize);
                        let parsed = RecvMsgOut::parse(received, &self.pinned.receive).ok().map(|out| {
                            let len = out.payload_data().len();
                            UdpRx {
                                frame,
                                data: RECV_DATA..RECV_DATA + len,
                                stride: parse_gro(out.control_data()).unwrap_or(len),
                                source: parse_name(out.name_data()),
                                truncated: out.is_payload_truncated(),
                            }
                        });
                        match parsed {
                            Some(rx) => io.udp_rx.push_back(rx),
                            None => io.pool.release(frame),
                        }
                    } else if result == -libc::ENOBUFS {
                        self.overflows += 1;
                    } else if matches!(-result, libc::EBADF | libc::ENOTSOCK | libc::EINVAL) {
                        broken = Err(error());
                    }
                }
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

impl Drop for Uring {
    fn drop(&mut self) {
        // The kernel tears a closed ring down later, on a thread of its own; without this the TUN and the port would
        // outlive weftd by some milliseconds.
        let _ = self.ring.submitter().unregister_files();
    }
}

impl Engine for Uring {
    fn turn(&mut self, io: &mut Io, wait: Wait) -> io::Result<()> {
        self.give_frames(&mut io.pool);
        self.arm();
        let pushed = self.push_operations(io);
        // With operations that the kernel could not finish at once there is nothing to do but wait for one of them.
        let blocked = self.sends_in_flight + self.writes_in_flight > 0;
        let sleep = pushed == 0 && (wait == Wait::Sleep || blocked);
        self.enter(u32::from(sleep))?;
        self.reap(io)
    }

    fn stop_receiving(&mut self) {
        self.receiving = false;
        for (armed, target) in
            [(self.tun_armed, KIND_TUN_READ), (self.udp_armed, KIND_UDP_RECV), (self.wake_armed, KIND_WAKE)]
        {
            if armed {
                self.push(&opcode::AsyncCancel::new(target).build().user_data(KIND_CANCEL));
            }
        }
    }

    fn in_flight(&self) -> bool {
        self.tun_armed || self.udp_armed || self.wake_armed || self.sends_in_flight > 0 || self.writes_in_flight > 0
    }

    fn syscalls(&self) -> u64 {
        self.syscalls
    }

    fn take_overflows(&mut self) -> u64 {
        std::mem::take(&mut self.overflows)
    }
}
