//! The native opener: IFF_MULTI_QUEUE, IFF_VNET_HDR and TUNSETOFFLOAD (linux/if_tun.h), which the tun-tap crate cannot ask
//! for.

use super::{TunCaps, TunDevice, TunError, Wanted};
use crate::sys::dev;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};

/// TUN_F_*: what the kernel may hand over and accept.
const OFFLOAD_CSUM: u32 = libc::TUN_F_CSUM;
const OFFLOAD_TSO: u32 = libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
/// Linux 6.2.
const OFFLOAD_USO: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

const FLAGS: i32 = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;

/// Creates `name` (a `%d` is filled in by the kernel), or attaches to a persistent device of that name, with `count` queues.
pub fn open(name: &str, count: usize, wanted: Wanted) -> Result<TunDevice, TunError> {
    let mut queues: Vec<OwnedFd> = Vec::with_capacity(count);
    let mut device = name.to_owned();
    for _ in 0..count {
        let queue = open_clone_device()?;
        device = dev::tun_attach(queue.as_fd(), &device, FLAGS)
            .map_err(|error| TunError::Attach { name: device.clone(), error })?;
        queues.push(queue);
    }
    negotiate(device, queues, wanted)
}

fn open_clone_device() -> Result<OwnedFd, TunError> {
    OpenOptions::new().read(true).write(true).open("/dev/net/tun").map(OwnedFd::from).map_err(TunError::Device)
}

/// Agrees with the kernel on offloads for attached queues of `name`, opened here or elsewhere.
pub fn negotiate(name: String, queues: Vec<OwnedFd>, wanted: Wanted) -> Result<TunDevice, TunError> {
    let property = |what| {
        let name = name.clone();
        move |error| TunError::Property { name, what, error }
    };
    let first = queues.first().expect("at least one queue").as_fd();
    // Ask for the most, then for less: an old kernel refuses what it does not know.
    let tso = if wanted.tso { OFFLOAD_TSO } else { 0 };
    let uso = if wanted.uso { OFFLOAD_USO } else { 0 };
    let mut granted = None;
    for offload in [OFFLOAD_CSUM | tso | uso, OFFLOAD_CSUM | tso, OFFLOAD_CSUM, 0] {
        if dev::tun_set_offload(first, offload).is_ok() {
            granted = Some(offload);
            break;
        }
    }
    let granted = granted.unwrap_or(0);
    let caps =
        TunCaps { vnet: true, tso: granted & OFFLOAD_TSO == OFFLOAD_TSO, uso: granted & OFFLOAD_USO == OFFLOAD_USO };
    let index = dev::index(&name).map_err(property("read the index"))?;
    Ok(TunDevice { name, index, queues, caps })
}
