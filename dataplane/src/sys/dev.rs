//! Network device ioctls: TUN queues (linux/if_tun.h) and the few device properties weftd reads or sets on its own TUN.

use super::check;
use std::ffi::CStr;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Longest interface name, without the terminating zero (IFNAMSIZ - 1).
pub const NAME_LEN_MAX: usize = libc::IFNAMSIZ - 1;

/// An `ifreq` with a name in it.
fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain old data for which all zero bytes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() > NAME_LEN_MAX || name.bytes().any(|b| b == 0 || b == b'/') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("interface name `{name}`: at most {NAME_LEN_MAX} bytes, no `/`"),
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn name_of(request: &libc::ifreq) -> String {
    request.ifr_name.iter().take_while(|b| **b != 0).map(|b| *b as u8 as char).collect()
}

/// TUNSETIFF on a fresh /dev/net/tun descriptor; returns the name the kernel chose (a `%d` in `name` is filled in).
pub fn tun_attach(tun: BorrowedFd<'_>, name: &str, flags: i32) -> io::Result<String> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }.into())?;
    Ok(name_of(&request))
}

/// TUNSETOFFLOAD: which super-packets the kernel may hand over and accept. Device-wide.
pub fn tun_set_offload(tun: BorrowedFd<'_>, offload: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offload)) }.into()).map(drop)
}

/// TUNSETPERSIST: whether the device outlives its last queue.
pub fn tun_set_persist(tun: BorrowedFd<'_>, persist: bool) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(persist)) }.into()).map(drop)
}

/// TUNGETIFF: whether the device outlives its last queue.
pub fn tun_is_persistent(tun: BorrowedFd<'_>) -> io::Result<bool> {
    let mut request = request("")?;
    // SAFETY: TUNGETIFF writes one `ifreq`, which `request` is.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETIFF, &raw mut request) }.into())?;
    // SAFETY: TUNGETIFF filled `ifr_flags`; every bit pattern is a valid i16.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(i32::from(flags) & libc::IFF_PERSIST != 0)
}

/// TUNSETSTEERINGEBPF (Linux 4.16): the program's result, modulo their number, is the queue that gets a packet. `None`: the kernel
/// spreads flows over the queues. Device-wide.
pub fn tun_set_steering(tun: BorrowedFd<'_>, program: Option<BorrowedFd<'_>>) -> io::Result<()> {
    /// `_IOR('T', 224, int)`, which libc does not have.
    const TUNSETSTEERINGEBPF: libc::Ioctl = 0x8004_54e0;
    let fd: libc::c_int = program.map_or(-1, |program| program.as_raw_fd());
    // SAFETY: TUNSETSTEERINGEBPF reads one `int`, which `fd` is.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETSTEERINGEBPF, &raw const fd) }.into()).map(drop)
}

/// A socket that interface ioctls can be made on.
fn ioctl_socket() -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes plain integers.
    let fd = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }.into())?;
    // SAFETY: `fd` was just returned by socket(2) and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// MTU of an interface, bytes (SIOCGIFMTU).
pub fn mtu(name: &str) -> io::Result<u32> {
    let socket = ioctl_socket()?;
    let mut request = request(name)?;
    // SAFETY: SIOCGIFMTU reads the name and writes `ifr_mtu` of one `ifreq`.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) }.into())?;
    // SAFETY: SIOCGIFMTU filled `ifr_mtu`; every bit pattern is a valid i32.
    Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
}

/// Sets the MTU of an interface, bytes (SIOCSIFMTU, CAP_NET_ADMIN).
pub fn set_mtu(name: &str, mtu: u32) -> io::Result<()> {
    let socket = ioctl_socket()?;
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = mtu as i32;
    // SAFETY: SIOCSIFMTU only reads one `ifreq`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, &raw const request) }.into()).map(drop)
}

/// Index of an interface.
pub fn index(name: &str) -> io::Result<u32> {
    rustix::net::netdevice::name_to_index(ioctl_socket()?, name).map_err(io::Error::from)
}

/// Addresses of an interface, IPv4 first, link-local IPv6 last.
pub fn addresses(name: &str) -> io::Result<Vec<IpAddr>> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: getifaddrs writes the head of a list it allocated to `list`.
    check(unsafe { libc::getifaddrs(&raw mut list) }.into())?;
    let mut found = Vec::new();
    let mut next = list;
    while !next.is_null() {
        // SAFETY: `next` is a non-null node of the list, which lives until freeifaddrs below.
        let node = unsafe { &*next };
        next = node.ifa_next;
        // SAFETY: `ifa_name` of every node is a zero-terminated string in the same allocation.
        let node_name = unsafe { CStr::from_ptr(node.ifa_name) };
        if node_name.to_bytes() != name.as_bytes() || node.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: `ifa_addr` is non-null and points to a sockaddr of at least the family's size.
        match i32::from(unsafe { (*node.ifa_addr).sa_family }) {
            libc::AF_INET => {
                // SAFETY: the family says that this is a sockaddr_in.
                let address = unsafe { *node.ifa_addr.cast::<libc::sockaddr_in>() };
                found.push(IpAddr::from(u32::from_be(address.sin_addr.s_addr).to_be_bytes()));
            }
            libc::AF_INET6 => {
                // SAFETY: the family says that this is a sockaddr_in6.
                let address = unsafe { *node.ifa_addr.cast::<libc::sockaddr_in6>() };
                found.push(IpAddr::from(address.sin6_addr.s6_addr));
            }
            _ => {}
        }
    }
    // SAFETY: `list` came from getifaddrs, and no node is referenced any more.
    unsafe { libc::freeifaddrs(list) };
    found.sort_by_key(|a| match a {
        IpAddr::V4(_) => 0,
        IpAddr::V6(a) if a.is_unicast_link_local() => 2,
        IpAddr::V6(_) => 1,
    });
    Ok(found)
}
