//! Where the kernel, or a container's seccomp profile, refuses io_uring, the epoll engine takes over and says why.
//!
//! ```text
//!   a [flannel0 - weftd] u0 ------------- u0 [weftd - flannel0] b
//!               |                               |
//!       seccomp: no io_uring                 io_uring
//! ```

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use weft_lab::{Lab, Node, Ping, WeftdOptions, ping, tcp, udp};

use crate::support::{Family, TUN, Tunnel};

/// What a profile may refuse: a system call, with an error number, and what the explanation has to name.
const REFUSALS: [(i64, i32, &str); 4] = [
    // Docker's and containerd's default profiles since 2023, and `kernel.io_uring_disabled=2`.
    (libc::SYS_io_uring_setup, libc::EPERM, "not permitted"),
    // gVisor, and kernels without CONFIG_IO_URING.
    (libc::SYS_io_uring_setup, libc::ENOSYS, "no io_uring"),
    // Hand-made profiles that know of one call only.
    (libc::SYS_io_uring_register, libc::EPERM, "io_uring"),
    (libc::SYS_io_uring_enter, libc::EPERM, "io_uring"),
];

/// Makes every program that is started on a node from here on fail at a system call.
pub fn refuse(node: &Node, system_call: i64, errno: i32) -> Result<()> {
    let filter = SeccompFilter::new(
        BTreeMap::from([(system_call, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        std::env::consts::ARCH.try_into()?,
    )?;
    let program: BpfProgram = filter.try_into()?;
    node.on_holder(move || apply_filter(&program))?.context("installing a seccomp filter")
}

#[test]
fn the_epoll_engine_takes_over_where_io_uring_is_refused() -> Result<()> {
    for (system_call, errno, reason) in REFUSALS {
        let case = || format!("system call {system_call} fails with {errno}");
        let built = Tunnel::builder().build_prepared(|pair| refuse(&pair.a, system_call, errno));
        let Some(tunnel) = built.with_context(case)? else { return Ok(()) };
        explains_itself(&tunnel, reason).with_context(case)?;
        for family in Family::BOTH {
            let to = tunnel.b.overlay(family);
            ping(&tunnel.a.node, &Ping::to(to))?.reply().with_context(case)?;
            tcp::transfer(&tunnel.a.node, &tunnel.b.node, to, 2 << 20).with_context(case)?;
            udp::stream(&tunnel.a.node, &tunnel.b.node, &udp::Stream::new(to, 500, 1000))?
                .perfect()
                .with_context(case)?;
        }
        tunnel.balanced().with_context(case)?;
    }
    Ok(())
}

/// Linux 6.14 and later take a ring's memory from RLIMIT_MEMLOCK, unless the process has CAP_IPC_LOCK.
#[test]
fn the_epoll_engine_takes_over_where_a_ring_gets_no_memory() -> Result<()> {
    // None at all, which the first ring meets, and enough for the one that probes but not for those of all workers. (For the
    // ring of one it may be enough, too: it depends on when the kernel gives back what the first ring had.)
    for bytes in [0, 64 << 10] {
        let limit = MemlockLimit::of(bytes);
        let built = Tunnel::builder().a(|options| options.workers = Some(8)).build_prepared(|pair| {
            let outcome = pair.a.on_holder(|| remove_capability_from_bounding_set(CapabilitySet::IPC_LOCK))?;
            outcome.context("giving up CAP_IPC_LOCK")
        });
        drop(limit);
        let Some(tunnel) = built? else { return Ok(()) };
        explains_itself(&tunnel, "RLIMIT_MEMLOCK").with_context(|| format!("{bytes} bytes"))?;
        ping(&tunnel.a.node, &Ping::to(tunnel.b.overlay(Family::V4)))?.reply()?;
    }
    Ok(())
}

/// A soft limit of locked memory, which children inherit; dropping it restores the one before. Daemons of other tests
/// have CAP_IPC_LOCK and do not notice.
struct MemlockLimit(Rlimit);

impl MemlockLimit {
    fn of(bytes: u64) -> Self {
        let before = getrlimit(Resource::Memlock);
        setrlimit(Resource::Memlock, Rlimit { current: Some(bytes), ..before }).expect("a soft limit can be lowered");
        Self(before)
    }
}

impl Drop for MemlockLimit {
    fn drop(&mut self) {
        setrlimit(Resource::Memlock, self.0).expect("a soft limit can be raised up to the hard one");
    }
}

fn explains_itself(tunnel: &Tunnel, reason: &str) -> Result<()> {
    let status = tunnel.a.status()?;
    ensure!(status.engine == "epoll" && status.engine_fallback, "engine {}", status.engine);
    let note = status.engine_note.clone().context("status has no note about the engine")?;
    ensure!(note.contains(reason), "the note `{note}` does not say `{reason}`");
    ensure!(status.degraded().iter().any(|sentence| sentence.contains(&note)), "{:?}", status.degraded());
    let log = tunnel.a.weftd.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("io_uring")).collect();
    ensure!(lines.len() == 1 && lines[0].contains("WARN") && lines[0].contains("epoll"), "log: {lines:?}");

    let status = tunnel.b.status()?;
    ensure!(status.engine == "uring" && !status.engine_fallback && status.engine_note.is_none(), "{status:?}");
    Ok(())
}

#[test]
fn a_daemon_that_must_use_io_uring_fails_where_it_is_refused() -> Result<()> {
    for (system_call, errno, reason) in REFUSALS {
        let Some(lab) = Lab::start() else { return Ok(()) };
        let node = lab.node("a")?;
        refuse(&node, system_call, errno)?;
        let options = WeftdOptions { engine: Some("uring".into()), ..WeftdOptions::new(TUN, "127.0.0.1:8285") };
        let error = lab.weftd(&node, options).expect_err("io_uring is refused");
        let text = format!("{error:#}");
        for expected in ["exit status: 1", "--engine uring", reason, "use --engine auto or epoll"] {
            assert!(text.contains(expected), "`{expected}` is not in: {text}");
        }
        assert!(node.netlink()?.link(TUN)?.is_none(), "it left a TUN behind");
    }
    Ok(())
}
