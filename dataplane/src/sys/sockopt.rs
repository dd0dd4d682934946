//! Socket options of UDP and IP that rustix does not wrap (linux/udp.h, linux/in.h, linux/in6.h).

use super::check;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// An integer socket option: level and name.
pub type Option = (i32, i32);

/// UDP_SEGMENT (Linux 4.18): one send, many datagrams of this size.
pub const UDP_SEGMENT: Option = (libc::SOL_UDP, libc::UDP_SEGMENT);
/// UDP_GRO (Linux 5.0): one receive, many datagrams.
pub const UDP_GRO: Option = (libc::SOL_UDP, libc::UDP_GRO);
/// Receive buffer beyond rmem_max (CAP_NET_ADMIN).
pub const RCVBUFFORCE: Option = (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE);
/// Send buffer beyond wmem_max (CAP_NET_ADMIN).
pub const SNDBUFFORCE: Option = (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE);
/// Receive buffer within rmem_max.
pub const RCVBUF: Option = (libc::SOL_SOCKET, libc::SO_RCVBUF);
/// Send buffer within wmem_max.
pub const SNDBUF: Option = (libc::SOL_SOCKET, libc::SO_SNDBUF);
/// IP_MTU_DISCOVER; value IP_PMTUDISC_DO sets DF and refuses larger datagrams with EMSGSIZE.
pub const IP_MTU_DISCOVER: Option = (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER);
/// IPV6_MTU_DISCOVER, as above.
pub const IPV6_MTU_DISCOVER: Option = (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER);
/// Type of service of IPv4 datagrams: DSCP in the upper six bits.
pub const IP_TOS: Option = (libc::IPPROTO_IP, libc::IP_TOS);
/// Traffic class of IPv6 datagrams, as above.
pub const IPV6_TCLASS: Option = (libc::IPPROTO_IPV6, libc::IPV6_TCLASS);
/// Path MTU of a connected IPv4 socket (read only).
pub const IP_MTU: Option = (libc::IPPROTO_IP, libc::IP_MTU);
/// Path MTU of a connected IPv6 socket (read only).
pub const IPV6_MTU: Option = (libc::IPPROTO_IPV6, libc::IPV6_MTU);
/// The program that chooses among the sockets of a SO_REUSEPORT group (Linux 4.5): its result is a position in the order of bind(2).
pub const ATTACH_REUSEPORT_EBPF: Option = (libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_EBPF);

/// Sets an integer option.
pub fn set(socket: BorrowedFd<'_>, (level, name): Option, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and length describe `value`, an i32 that lives through the call; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    check(result.into()).map(drop)
}

/// Reads an integer option.
pub fn get(socket: BorrowedFd<'_>, (level, name): Option) -> io::Result<i32> {
    let mut value = 0i32;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` = 4 bytes to `value` and the new length to `len`; both outlive the call.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    check(result.into()).map(|_| value)
}
