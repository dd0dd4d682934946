//! Message calls: gather writes, batched receives and sends, socket addresses and control messages.

use super::check;
use std::io;
use std::mem::offset_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Room for a UDP_SEGMENT (u16) or UDP_GRO (int) control message: CMSG_SPACE(4) on 64-bit Linux.
pub const CONTROL_LEN: usize = 24;
/// Room for the larger of the two socket addresses.
pub const NAME_LEN: usize = size_of::<libc::sockaddr_in6>();

/// A socket address in the kernel's form.
#[derive(Clone, Copy)]
#[repr(C)]
pub union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
    bytes: [u8; NAME_LEN],
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.addr())
    }
}

impl Name {
    /// All zero.
    pub const fn empty() -> Name {
        Name { bytes: [0; NAME_LEN] }
    }

    /// The kernel's form of `addr` and its length. `mapped`: the socket is AF_INET6, so IPv4 goes as ::ffff:a.b.c.d.
    pub fn new(addr: SocketAddr, mapped: bool) -> (Name, libc::socklen_t) {
        let v6 = |ip: Ipv6Addr, port: u16, scope: u32| libc::sockaddr_in6 {
            sin6_family: libc::AF_INET6 as libc::sa_family_t,
            sin6_port: port.to_be(),
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: ip.octets() },
            sin6_scope_id: scope,
        };
        match addr {
            SocketAddr::V4(a) if mapped => (Name { v6: v6(a.ip().to_ipv6_mapped(), a.port(), 0) }, NAME_LEN as _),
            SocketAddr::V4(a) => {
                let v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: a.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*a.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                let mut name = Name::empty();
                name.v4 = v4;
                (name, size_of::<libc::sockaddr_in>() as _)
            }
            SocketAddr::V6(a) => (Name { v6: v6(*a.ip(), a.port(), a.scope_id()) }, NAME_LEN as _),
        }
    }
}

impl Name {
    /// The address in Rust's form; `None` for an empty name.
    pub fn addr(&self) -> Option<SocketAddr> {
        // SAFETY: every constructor initialises all bytes of the union.
        parse_name(unsafe { &self.bytes })
    }
}

/// Reads a socket address that the kernel wrote; IPv4-mapped IPv6 comes out as IPv4. `None` for another family.
pub fn parse_name(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*bytes.first_chunk::<2>()?);
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    match i32::from(family) {
        libc::AF_INET => {
            let at = offset_of!(libc::sockaddr_in, sin_addr);
            let ip = Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?);
            Some(SocketAddrV4::new(ip, port).into())
        }
        libc::AF_INET6 => {
            let at = offset_of!(libc::sockaddr_in6, sin6_addr);
            let ip = Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?);
            let scope = u32::from_ne_bytes(bytes.get(at + 16..at + 20)?.try_into().ok()?);
            Some(match ip.to_canonical() {
                IpAddr::V4(ip) => SocketAddrV4::new(ip, port).into(),
                IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, scope).into(),
            })
        }
        _ => None,
    }
}

/// A control message area with the alignment of `cmsghdr`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Control(pub [u8; CONTROL_LEN]);

impl Control {
    /// All zero.
    pub const fn empty() -> Control {
        Control([0; CONTROL_LEN])
    }

    /// One UDP_SEGMENT message: the datagram size, bytes.
    pub fn udp_segment(segment_len: u16) -> Control {
        let mut control = Control::empty();
        let len = size_of::<libc::cmsghdr>() + size_of::<u16>();
        control.0[0..8].copy_from_slice(&len.to_ne_bytes());
        control.0[8..12].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
        control.0[12..16].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
        control.0[16..18].copy_from_slice(&segment_len.to_ne_bytes());
        control
    }
}

/// The stride of a UDP_GRO buffer from its control messages; `None` when the kernel coalesced nothing.
pub fn parse_gro(control: &[u8]) -> Option<usize> {
    let field = |at: usize| Some(i32::from_ne_bytes(control.get(at..at + 4)?.try_into().ok()?));
    if field(8)? != libc::SOL_UDP || field(12)? != libc::UDP_GRO {
        return None;
    }
    usize::try_from(field(16)?).ok().filter(|stride| *stride > 0)
}

/// One datagram, or GRO buffer, that was received.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Bytes in the buffer.
    pub len: usize,
    /// Who sent it.
    pub source: Option<SocketAddr>,
    /// UDP_GRO stride.
    pub stride: Option<usize>,
    /// The datagram was longer than the buffer.
    pub truncated: bool,
}

/// What a receive fills beside its buffer. Stays where it is while the kernel has it: the header points to the rest.
pub struct Receive {
    header: libc::msghdr,
    buffer: libc::iovec,
    name: Name,
    control: Control,
}

impl Receive {
    /// Ready to be prepared.
    pub const fn empty() -> Receive {
        // SAFETY: `msghdr` is plain old data for which all zero bytes are a valid value.
        let header = unsafe { std::mem::zeroed() };
        let buffer = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Receive { header, buffer, name: Name::empty(), control: Control::empty() }
    }

    /// The header for a receive of up to `len` bytes at `address`.
    pub fn prepare(&mut self, address: *mut u8, len: usize) -> *mut libc::msghdr {
        self.buffer = libc::iovec { iov_base: address.cast(), iov_len: len };
        self.header.msg_name = (&raw mut self.name).cast();
        self.header.msg_namelen = NAME_LEN as _;
        self.header.msg_iov = &raw mut self.buffer;
        self.header.msg_iovlen = 1;
        self.header.msg_control = (&raw mut self.control).cast();
        self.header.msg_controllen = CONTROL_LEN;
        &raw mut self.header
    }

    /// What arrived, when the kernel has filled the header and says that `len` bytes did.
    pub fn received(&self, len: usize) -> Received {
        // SAFETY: `bytes` covers the whole union, which was zeroed and then written by the kernel: always initialised.
        let name = unsafe { &self.name.bytes };
        Received {
            len,
            source: parse_name(name),
            stride: parse_gro(&self.control.0[..self.header.msg_controllen.min(CONTROL_LEN)]),
            truncated: self.header.msg_flags & libc::MSG_TRUNC != 0,
        }
    }
}

/// Most datagrams (or GRO buffers) per [`recv_batch`].
pub const RECV_BATCH_MAX: usize = 8;

/// recvmsg(2), non-blocking, into `buffer`.
pub fn recv_one(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut receive = Receive::empty();
    let header = receive.prepare(buffer.as_mut_ptr(), buffer.len());
    // SAFETY: the header points to live parts of `receive` and to the exclusively borrowed `buffer`, with its true length.
    let result = unsafe { libc::recvmsg(socket.as_raw_fd(), header, libc::MSG_DONTWAIT) };
    check(result as libc::c_long).map(|len| receive.received(len))
}

/// recvmmsg(2), non-blocking, into `buffers` (at most [`RECV_BATCH_MAX`]); `received` gets one entry per filled buffer.
pub fn recv_batch(socket: BorrowedFd<'_>, buffers: &mut [&mut [u8]], received: &mut Vec<Received>) -> io::Result<()> {
    let count = buffers.len().min(RECV_BATCH_MAX);
    let mut receives = [const { Receive::empty() }; RECV_BATCH_MAX];
    // SAFETY: `mmsghdr` is plain old data for which all zero bytes are a valid value.
    let mut messages: [libc::mmsghdr; RECV_BATCH_MAX] = unsafe { std::mem::zeroed() };
    for (i, buffer) in buffers.iter_mut().take(count).enumerate() {
        receives[i].prepare(buffer.as_mut_ptr(), buffer.len());
        messages[i].msg_hdr = receives[i].header;
    }
    // SAFETY: the first `count` message headers point to distinct live entries above and to the exclusively borrowed
    // `buffers`, with their true lengths; a null timeout is allowed.
    let result = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    };
    let filled = check(result.into())?;
    for (receive, message) in receives.iter_mut().zip(&messages).take(filled) {
        receive.header = message.msg_hdr;
        received.push(receive.received(message.msg_len as usize));
    }
    Ok(())
}

/// A gather list whose entries point into memory that its owner keeps alive and unmoved; see `io::SendOp`.
#[derive(Debug)]
pub struct Gather(Vec<libc::iovec>);

impl Gather {
    /// An empty list that never grows beyond `capacity` entries.
    pub fn with_capacity(capacity: usize) -> Gather {
        Gather(Vec::with_capacity(capacity))
    }
    /// Adds `bytes`. The caller keeps them where they are until the list is cleared.
    #[inline]
    pub fn push(&mut self, bytes: &[u8]) {
        debug_assert!(self.0.len() < self.0.capacity());
        self.0.push(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
    }
    /// Forgets all entries.
    pub fn clear(&mut self) {
        self.0.clear();
    }
    /// Entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// For the kernel.
    pub fn as_ptr(&self) -> *const libc::iovec {
        self.0.as_ptr()
    }
    /// Copies what entries `range` point to behind each other into `out`; returns the length. `out` must be large enough.
    ///
    /// # Safety
    /// The bytes given to [`Self::push`] are still where they were.
    pub unsafe fn copy_out(&self, range: std::ops::Range<usize>, out: &mut [u8]) -> usize {
        let mut at = 0;
        for entry in &self.0[range] {
            // SAFETY: the caller promises that the entry's bytes are still there; they were a live slice when pushed.
            let bytes = unsafe { std::slice::from_raw_parts(entry.iov_base.cast::<u8>(), entry.iov_len) };
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        }
        at
    }
}

/// writev(2).
///
/// # Safety
/// The bytes given to [`Gather::push`] are still where they were.
pub unsafe fn write_gather(fd: BorrowedFd<'_>, gather: &Gather) -> io::Result<usize> {
    // SAFETY: the vector holds `len` iovecs, and the caller promises that they point to live bytes; the kernel only reads.
    check(unsafe { libc::writev(fd.as_raw_fd(), gather.as_ptr(), gather.len() as i32) } as libc::c_long)
}

/// The header of a message to `name`, of `gather`, cut into datagrams as `control` says. Valid as long as they stay where they are.
pub fn send_header(name: &Name, name_len: libc::socklen_t, gather: &Gather, control: Option<&Control>) -> libc::msghdr {
    // SAFETY: `msghdr` is plain old data for which all zero bytes are a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw const *name).cast_mut().cast();
    header.msg_namelen = name_len;
    header.msg_iov = gather.as_ptr().cast_mut();
    header.msg_iovlen = gather.len();
    if let Some(control) = control {
        header.msg_control = (&raw const *control).cast_mut().cast();
        header.msg_controllen = CONTROL_LEN;
    }
    header
}

/// sendmmsg(2), or for one sendmsg(2), which costs less; non-blocking: how many of `messages` went out, or why the first did not.
///
/// # Safety
/// Every message header points to live memory of the stated lengths.
pub unsafe fn send_batch(socket: BorrowedFd<'_>, messages: &mut [libc::mmsghdr]) -> io::Result<usize> {
    if let [message] = messages {
        // SAFETY: the caller promises that what the header points to is alive.
        let result = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message.msg_hdr, libc::MSG_DONTWAIT) };
        return check(result as libc::c_long).map(|_| 1);
    }
    // SAFETY: the slice holds `len` headers, and the caller promises that what they point to is alive.
    let result = unsafe {
        libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), messages.len() as libc::c_uint, libc::MSG_DONTWAIT)
    };
    check(result.into())
}

/// sendto(2) of one datagram, non-blocking.
pub fn send_to(socket: BorrowedFd<'_>, bytes: &[u8], name: &Name, name_len: libc::socklen_t) -> io::Result<usize> {
    // SAFETY: pointer and length describe `bytes`, and `name` is a socket address of at least `name_len` bytes.
    let result = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_DONTWAIT,
            (&raw const *name).cast(),
            name_len,
        )
    };
    check(result as libc::c_long)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_message_layout_is_the_kernels() {
        // SAFETY: CMSG_SPACE and CMSG_LEN compute on integers.
        assert_eq!(unsafe { libc::CMSG_SPACE(4) } as usize, CONTROL_LEN);
        let control = Control::udp_segment(1472);
        // SAFETY: as above.
        assert_eq!(u64::from_ne_bytes(control.0[0..8].try_into().unwrap()), u64::from(unsafe { libc::CMSG_LEN(2) }));
        let mut gro = Control::empty();
        gro.0[8..12].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
        gro.0[12..16].copy_from_slice(&libc::UDP_GRO.to_ne_bytes());
        gro.0[16..20].copy_from_slice(&1472i32.to_ne_bytes());
        assert_eq!(parse_gro(&gro.0), Some(1472));
        assert_eq!(parse_gro(&gro.0[..19]), None);
        assert_eq!(parse_gro(&[]), None);
    }

    #[test]
    fn names_round_trip_and_mapped_addresses_become_ipv4() {
        for (addr, mapped) in
            [("10.1.2.3:8285", false), ("10.1.2.3:8285", true), ("[fd00::1]:8285", false), ("[fe80::1%3]:1", false)]
        {
            let addr: SocketAddr = addr.parse().unwrap();
            let (name, len) = Name::new(addr, mapped);
            // SAFETY: `Name::new` initialised all bytes of the union.
            let bytes = unsafe { &name.bytes };
            assert_eq!(parse_name(&bytes[..len as usize]), Some(addr));
        }
        assert_eq!(parse_name(&[0; NAME_LEN]), None);
        assert_eq!(parse_name(&[]), None);
    }
}
