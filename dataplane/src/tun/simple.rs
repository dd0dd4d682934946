//! The simple opener: one queue without virtio-net header, by the tun-tap crate.

use super::{TunCaps, TunDevice, TunError};
use crate::sys::dev;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use tun_tap::{Iface, Mode};

/// Creates `name`, or attaches to a persistent single-queue device of that name.
pub fn open(name: &str) -> Result<TunDevice, TunError> {
    let attach = |error| TunError::Attach { name: name.to_owned(), error };
    let iface = Iface::without_packet_info(name, Mode::Tun).map_err(attach)?;
    let device = iface.name().to_owned();
    let queue = duplicate(&iface).map_err(attach)?;
    // Offload state stays with a persistent device, and without a virtio-net header nobody could explain a super-packet.
    dev::tun_set_offload(queue.as_fd(), 0).map_err(|error| TunError::Property {
        name: device.clone(),
        what: "switch off the offloads",
        error,
    })?;
    let index = dev::index(&device).map_err(|error| TunError::Property {
        name: device.clone(),
        what: "read the index",
        error,
    })?;
    Ok(TunDevice { name: device, index, queues: vec![queue], caps: TunCaps::default() })
}

/// An owned descriptor of the queue: the crate gives its own away only as a raw number.
#[allow(unsafe_code)]
fn duplicate(iface: &Iface) -> std::io::Result<std::os::fd::OwnedFd> {
    // SAFETY: `iface` owns the descriptor and lives through the borrow.
    unsafe { BorrowedFd::borrow_raw(iface.as_raw_fd()) }.try_clone_to_owned()
}
