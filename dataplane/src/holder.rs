//! Who holds what we want: finds the process behind a TUN device or a UDP port in our network namespace through /proc. For
//! error messages only; what it cannot see it calls "another process".

use crate::limits::{RELEASE_PAUSE, RELEASE_TIMEOUT};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

/// A process, as far as /proc shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Name and pid.
    Process {
        /// /proc/PID/comm.
        name: String,
        /// Process id.
        pid: u32,
    },
    /// Not visible to us.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Process { name, pid } => write!(f, "{name} (pid {pid})"),
            Holder::Unknown => f.write_str("another process"),
        }
    }
}

/// The process that has a queue of TUN `name` open: its fdinfo says `iff: NAME`. `None`: nobody that we can see.
pub fn of_tun(name: &str) -> Option<Holder> {
    let wanted = format!("iff:\t{name}");
    find(|process| {
        entries(&process.join("fdinfo"))
            .any(|info| fs::read_to_string(info).is_ok_and(|text| text.lines().any(|line| line == wanted)))
    })
}

/// The process that has UDP `port` bound, in either address family.
pub fn of_udp_port(port: u16) -> Holder {
    let suffix = format!(":{port:04X}");
    let sockets: Vec<String> = ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| table.lines().skip(1).map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let local = fields.nth(1)?;
            let inode = fields.nth(7)?;
            local.ends_with(&suffix).then(|| format!("socket:[{inode}]"))
        })
        .collect();
    find(|process| {
        entries(&process.join("fd"))
            .filter_map(|fd| fs::read_link(fd).ok())
            .any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
    })
    .unwrap_or(Holder::Unknown)
}

/// Tries again what failed because something is held by nobody that we can see, as `unexplained` tells of an error, for
/// [`RELEASE_TIMEOUT`]: what a killed process had in an io_uring stays open until the kernel has taken the ring apart, which
/// it does some milliseconds after the process is gone (`io_ring_exit_work`, io_uring/io_uring.c).
pub fn once_released<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    unexplained: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        match attempt() {
            Err(error) if unexplained(&error) && Instant::now() < deadline => thread::sleep(RELEASE_PAUSE),
            outcome => return outcome,
        }
    }
}

/// The first other process in our network namespace for which `holds` is true.
fn find(holds: impl Fn(&Path) -> bool) -> Option<Holder> {
    let ours = fs::read_link("/proc/thread-self/ns/net").ok();
    let own = std::process::id();
    entries(Path::new("/proc")).find_map(|process| {
        let pid: u32 = process.file_name()?.to_str()?.parse().ok()?;
        let there = fs::read_link(process.join("ns/net")).ok();
        if pid == own || there != ours || !holds(&process) {
            return None;
        }
        let name = fs::read_to_string(process.join("comm")).ok()?.trim().to_owned();
        Some(Holder::Process { name, pid })
    })
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}
