//! The system calls that neither the standard library nor rustix wraps. The only unsafe code of this crate.

use std::io;
use std::mem::{MaybeUninit, size_of, size_of_val};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::Errno;
use rustix::process::Signal;
use rustix::thread::UnshareFlags;

mod datagram_batch;

pub use datagram_batch::DatagramBatch;

/// Moves the calling thread into a new network namespace.
pub fn unshare_network() -> io::Result<()> {
    // SAFETY: NEWNET gives this thread another view of the network; it does not touch its descriptor table.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(Into::into)
}

/// Has the kernel kill the command when the thread that spawns it ends, however it ends.
pub fn die_with_parent_thread(command: &mut Command) {
    let parent = rustix::process::getpid();
    let hook = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(parent) {
            return Err(Errno::SRCH.into()); // It died first.
        }
        Ok(())
    };
    // SAFETY: the hook makes two system calls; it takes no lock and allocates nothing.
    unsafe { command.pre_exec(hook) };
}

/// Sets an integer socket option.
pub fn set_option(socket: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and length are those of `value`, which outlives the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    check(outcome as isize).map(drop)
}

/// A datagram with where it came from and how many hops it had left.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Bytes in the buffer.
    pub len: usize,
    /// Its source.
    pub source: IpAddr,
    /// TTL or hop limit on arrival, if the socket was told to report it.
    pub ttl: Option<u8>,
}

/// Receives one datagram on a socket with `IP_RECVTTL` or `IPV6_RECVHOPLIMIT`.
pub fn receive_with_ttl(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    #[repr(align(8))]
    struct Control([u8; 128]);
    let mut control = Control([0; 128]);
    // SAFETY: all-zero is a valid sockaddr_storage: an address of no family.
    let mut address: libc::sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero is a valid msghdr: one without address, data or control.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_name = (&raw mut address).cast();
    header.msg_namelen = size_of_val(&address) as libc::socklen_t;
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len();
    // SAFETY: every pointer in `header` is to a local or to `buffer`, with its length, and all outlive the call.
    let len = check(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) })?;

    let mut ttl = None;
    // SAFETY: the kernel filled `header`, so its control pointer and length describe valid messages.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !message.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return aligned headers inside `control`, or null.
        let found = unsafe { message.read() };
        let wanted = [(libc::IPPROTO_IP, libc::IP_TTL), (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT)];
        if wanted.contains(&(found.cmsg_level, found.cmsg_type)) {
            // SAFETY: `message` is a header inside `control`.
            let data = unsafe { libc::CMSG_DATA(message) };
            // SAFETY: both options carry an int (ip(7), ipv6(7)), which follows the header inside `control`.
            let value = unsafe { data.cast::<i32>().read_unaligned() };
            ttl = u8::try_from(value).ok();
        }
        // SAFETY: `message` is a header inside `control`, which `header` describes.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    Ok(Received { len: len as usize, source: ip_of(&address)?, ttl })
}

fn ip_of(address: &libc::sockaddr_storage) -> io::Result<IpAddr> {
    let pointer = &raw const *address;
    match i32::from(address.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the storage, which is large and aligned enough, holds a sockaddr_in.
            let address = unsafe { pointer.cast::<libc::sockaddr_in>().read() };
            Ok(Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes()).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that the storage, which is large and aligned enough, holds a sockaddr_in6.
            let address = unsafe { pointer.cast::<libc::sockaddr_in6>().read() };
            Ok(Ipv6Addr::from(address.sin6_addr.s6_addr).into())
        }
        family => Err(io::Error::other(format!("an address of family {family}"))),
    }
}

/// Binds a packet socket to one link and one Ethernet protocol (`ETH_P_ALL`: all of them; 0: none).
pub fn bind_packet(socket: BorrowedFd<'_>, link_index: u32, protocol: u16) -> io::Result<()> {
    let mut address = link_address();
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = link_index as i32;
    // SAFETY: the pointer and length are those of `address`, which outlives the call.
    let outcome = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    };
    check(outcome as isize).map(drop)
}

/// Receives one frame from a packet socket: its full length, which may exceed the buffer, and whether it was outgoing.
pub fn receive_packet(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
    let mut address = link_address();
    let mut address_len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointers and lengths are those of `buffer` and of locals, which outlive the call.
    let len = check(unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_TRUNC,
            (&raw mut address).cast(),
            &raw mut address_len,
        )
    })?;
    Ok((len as usize, address.sll_pkttype == libc::PACKET_OUTGOING))
}

fn link_address() -> libc::sockaddr_ll {
    // SAFETY: all-zero is a valid sockaddr_ll: no family, no link.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// The requests of `SIOCETHTOOL` about features (`include/uapi/linux/ethtool.h`, Linux 6.18).
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub enum EthtoolCommand {
    /// `struct ethtool_gstrings`: the names in a string set.
    Strings = 0x1b,
    /// `struct ethtool_sset_info`: the sizes of string sets.
    SetInfo = 0x37,
    /// `struct ethtool_gfeatures`: the state of features.
    GetFeatures = 0x3a,
    /// `struct ethtool_sfeatures`: new state for features.
    SetFeatures = 0x3b,
}

/// Words of an ethtool buffer: 256 KiB, room for 8,000 names of 32 bytes. A kernel has about 60 features.
const ETHTOOL_WORD_COUNT: usize = 64 * 1024;

/// Performs `SIOCETHTOOL` on a link and returns the whole buffer: the command, `arguments`, and what the kernel wrote.
///
/// # Panics
/// If there are more arguments than fit.
pub fn ethtool(socket: BorrowedFd<'_>, link: &str, command: EthtoolCommand, arguments: &[u32]) -> io::Result<Vec<u32>> {
    let mut name = [0; libc::IFNAMSIZ];
    if link.len() >= name.len() {
        return Err(io::Error::other(format!("link name `{link}` is longer than 15 bytes")));
    }
    for (to, from) in name.iter_mut().zip(link.bytes()) {
        *to = from as libc::c_char;
    }
    let mut words = vec![0; ETHTOOL_WORD_COUNT];
    words[0] = command as u32;
    words[1..=arguments.len()].copy_from_slice(arguments);
    let data = words.as_mut_ptr().cast();
    let mut request = libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: data } };
    // SAFETY: the kernel reads and writes through `ifru_data` at most the structures that `EthtoolCommand` lists, whose
    // lengths are the kernel's own numbers of features and strings, far below `ETHTOOL_WORD_COUNT`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) } as isize)?;
    Ok(words)
}

fn check(outcome: isize) -> io::Result<isize> {
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}
