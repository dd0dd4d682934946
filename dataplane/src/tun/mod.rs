//! TUN devices: open queues, negotiate what the kernel offers. Opening is one step apart from negotiating, and both from
//! using: [`negotiate`] does not care who attached the queues.

mod native;
mod simple;

pub use native::{negotiate, open as open_native};
pub use simple::open as open_simple;

use crate::sys::bpf::Program;
use crate::sys::dev;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// How queues are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Opener {
    /// Multi-queue, virtio-net header, super-packets.
    #[default]
    Native,
    /// One queue by the tun-tap crate, no offload: for odd kernels, and as a baseline.
    Simple,
}

impl Opener {
    /// The flag's value.
    pub fn name(self) -> &'static str {
        match self {
            Opener::Native => "native",
            Opener::Simple => "simple",
        }
    }
}

/// What the kernel granted on a device. Offloads belong to the device, not to a queue (TUNSETOFFLOAD).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TunCaps {
    /// Packets carry a virtio-net header.
    pub vnet: bool,
    /// TCP super-packets both ways.
    pub tso: bool,
    /// UDP super-packets both ways (Linux 6.2).
    pub uso: bool,
}

/// Which offloads the person wants; the kernel may grant fewer.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// TCP super-packets.
    pub tso: bool,
    /// UDP super-packets.
    pub uso: bool,
}

/// A TUN device and our queues of it.
#[derive(Debug)]
pub struct TunDevice {
    /// Name, with any `%d` filled in.
    pub name: String,
    /// Interface index.
    pub index: u32,
    /// One descriptor per worker, the lane included.
    pub queues: Vec<OwnedFd>,
    /// What the kernel granted.
    pub caps: TunCaps,
}

impl TunDevice {
    /// Lets a program choose the queue of each packet; `None`: the kernel spreads flows over the queues.
    pub fn steer_by(&self, program: Option<&Program>) -> io::Result<()> {
        let queue = self.queues.first().expect("at least one queue");
        dev::tun_set_steering(queue.as_fd(), program.map(AsFd::as_fd))
    }

    /// Whether the device outlives its last queue.
    pub fn is_persistent(&self) -> bool {
        let queue = self.queues.first().expect("at least one queue");
        dev::tun_is_persistent(queue.as_fd()).unwrap_or(true)
    }

    /// Whether the device, with its addresses and routes, outlives its last queue.
    pub fn set_persist(&self, persist: bool) -> Result<(), TunError> {
        let queue = self.queues.first().expect("at least one queue");
        dev::tun_set_persist(queue.as_fd(), persist).map_err(|error| TunError::Property {
            name: self.name.clone(),
            what: "change the persistence",
            error,
        })
    }
}

/// Why a TUN could not be had; the message carries the remedy.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// /dev/net/tun itself.
    #[error("cannot open /dev/net/tun: {0}; load the `tun` module, or give the container the device /dev/net/tun")]
    Device(io::Error),
    /// TUNSETIFF.
    #[error("cannot create or attach TUN `{name}`: {}", attach_help(.error))]
    Attach {
        /// Asked-for name.
        name: String,
        /// Kernel's answer.
        error: io::Error,
    },
    /// Somebody else has it.
    #[error("TUN `{name}` is in use by {holder}; stop it, or choose another name with --tun")]
    InUse {
        /// Device name.
        name: String,
        /// Process, by name and pid.
        holder: String,
    },
    /// A property of the new device.
    #[error("cannot {what} of TUN `{name}`: {error}")]
    Property {
        /// Device name.
        name: String,
        /// What was tried.
        what: &'static str,
        /// Kernel's answer.
        error: io::Error,
    },
    /// One queue only.
    #[error("the simple TUN opener has one queue: use --workers 1 or --opener native")]
    OneQueue,
}

fn attach_help(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => format!("{error}; run as root or with CAP_NET_ADMIN"),
        Some(libc::EBUSY) => format!("{error}; another process holds its only queue"),
        Some(libc::EINVAL) => {
            format!("{error}; a device of that name exists with other flags (not multi-queue, or a TAP)")
        }
        _ => error.to_string(),
    }
}
