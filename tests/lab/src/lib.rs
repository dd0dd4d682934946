//! A network in a test: hosts, cables, processes and traffic, on one machine and gone without a trace.
//!
//! - [`Lab::start`] asks whether this machine can have one; [`Node`] is a host, an anonymous network namespace.
//! - [`Link`] is a cable between two nodes, in [`Mode::Offload`] or [`Mode::Wire`]; [`topology`] has ready-made networks.
//! - [`Process`] and [`Weftd`] run programs on a node; [`Capture`] sees the frames of a link, [`Injector`] adds some.
//! - [`Etcd`] is a real etcd, with everything that can befall one.
//! - [`ping`], [`tcp`] and [`udp`] make traffic whose every byte is checked on arrival.
//! - [`measure`] measures throughput, packet rates, latency and CPU time, payload checked.
//! - [`eventually`] waits for a condition; tests never wait for time. [`TIMEOUT`] is how long.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use weft_lab::{Lab, Link, Ping};
//! let Some(lab) = Lab::start() else { return Ok(()) };
//! let (a, b) = (lab.node("a")?, lab.node("b")?);
//! let link = Link::veth(&a, "u0", &b, "u0", 1500)?;
//! link.addresses("192.0.2.1/24", "192.0.2.2/24")?;
//! weft_lab::ping(&a, &Ping::to("192.0.2.2".parse()?))?.reply()?;
//! # Ok(()) }
//! ```
//!
//! Everything here needs root: namespaces, veth pairs and raw sockets. A node has no name in the file system, so even a test
//! that is killed leaves nothing but its temporary directory: a namespace dies with the last descriptor, thread or process
//! in it, and the processes die with the thread that started them.

mod binaries;
mod capture;
mod etcd;
mod ethtool;
mod inject;
mod link;
pub mod measure;
mod node;
mod ping;
mod process;
mod sys;
pub mod tcp;
pub mod topology;
pub mod udp;
mod vxlan;
mod wait;
mod weftd;

use anyhow::{Context, Result};
use tempfile::TempDir;

pub use binaries::{weft_bench_binary, weft_binary, weftd_binary};
pub use capture::{Capture, Frame};
pub use etcd::{Etcd, EtcdRecord, EtcdTls};
pub use ethtool::{features, set_features};
pub use inject::{Injector, VNET_LEN};
pub use link::{Link, LinkEnd, Mode};
pub use node::Node;
pub use ping::{Ping, PingOutcome, ping};
pub use process::Process;
pub use vxlan::FlannelVxlan;
pub use wait::{TIMEOUT, eventually};
pub use weftd::{Weftd, WeftdOptions};

/// Permission to build a network, and a directory for its sockets and files, removed on drop.
#[derive(Debug)]
pub struct Lab {
    directory: TempDir,
}

impl Lab {
    /// Starts a lab. `None` if this machine cannot have one and `WEFT_LAB_SKIP=1` says that the test may be skipped.
    ///
    /// # Panics
    /// As [`require_root`].
    pub fn start() -> Option<Self> {
        let directory = || tempfile::Builder::new().prefix("weft-lab-").tempdir().expect("a temporary directory");
        require_root().then(|| Self { directory: directory() })
    }

    /// A new host. The name is for messages and need not be unique.
    ///
    /// # Errors
    /// The kernel's, if it makes no namespace.
    pub fn node(&self, name: &str) -> Result<Node> {
        Node::new(name)
    }

    /// A directory for files and Unix sockets of this lab.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Starts `weftd` on a node and waits until it accepts control connections.
    ///
    /// # Errors
    /// If the binary is not built, or the daemon exits or does not listen in time; the error shows its log.
    pub fn weftd(&self, node: &Node, options: WeftdOptions) -> Result<Weftd> {
        Weftd::start(node, self.directory(), options).with_context(|| format!("starting weftd on {}", node.name()))
    }
}

/// True if this process can make namespaces and TUN devices.
///
/// False, with a line that says `SKIPPED`, if it cannot and `WEFT_LAB_SKIP=1` is set.
///
/// # Panics
/// If it cannot and may not skip, with one sentence that says why.
pub fn require_root() -> bool {
    let obstacle = if !rustix::process::geteuid().is_root() {
        "this test builds network namespaces and has to run as root"
    } else if !std::path::Path::new("/dev/net/tun").exists() {
        "this test needs /dev/net/tun, which this machine does not have"
    } else {
        return true;
    };
    if std::env::var_os("WEFT_LAB_SKIP").is_some_and(|value| value == "1") {
        let thread = std::thread::current();
        eprintln!("SKIPPED {}: {obstacle}", thread.name().unwrap_or("lab"));
        return false;
    }
    panic!("{obstacle}; set WEFT_LAB_SKIP=1 to skip it");
}
