//! How the calling thread is scheduled (linux/sched/types.h).

use super::check;
use std::io;
use std::time::Duration;

/// `struct sched_attr` in its first form (SCHED_ATTR_SIZE_VER0).
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Asks for turns of `slice` at most: a thread that takes less at a time is served sooner when it wakes, and gets no more in all
/// (Linux 6.12, 0.1 to 100 ms; older kernels ignore it). Threads of another policy than SCHED_OTHER keep theirs.
pub fn set_slice(slice: Duration) -> io::Result<()> {
    // SAFETY: sched_getscheduler(2) takes a plain integer; 0 is the calling thread.
    if check(unsafe { libc::sched_getscheduler(0) }.into())? != libc::SCHED_OTHER as usize {
        return Ok(());
    }
    // SAFETY: getpriority(2) takes plain integers; 0 is the calling thread.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: 0,
        nice,
        priority: 0,
        runtime: slice.as_nanos() as u64,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the kernel reads `size` bytes of `attributes`, which outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) }).map(drop)
}
