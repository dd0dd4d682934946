//! The UDP side: open sockets, probe what they can do, ask the kernel for path MTUs. With `tun`, the only place that sets
//! options. Opening is one step apart from using, so that sockets can be handed over.

use crate::holder::{self, Holder};
use crate::lane::{self, LANE_TOS};
use crate::limits::SOCKET_BUFFER_LEN;
use crate::sys::msg::{self, Name};
use crate::sys::sockopt;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect, getsockname, ipproto, socket_with, sockopt as net,
};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What one socket can do; the person may have switched some off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct UdpCaps {
    /// One send, many datagrams (UDP_SEGMENT, Linux 4.18).
    pub gso: bool,
    /// One receive, many datagrams (UDP_GRO, Linux 5.0).
    pub gro: bool,
}

/// A worker's socket.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    /// Another one, to send from, which nothing is received from.
    send: Option<UdpSource>,
    /// AF_INET6 sockets name IPv4 peers as ::ffff:a.b.c.d.
    mapped: bool,
    /// What it can do.
    pub caps: UdpCaps,
    /// Where it is bound.
    pub local: SocketAddr,
}

/// A socket to send from, and its port.
#[derive(Debug)]
struct UdpSource {
    fd: OwnedFd,
    port: u16,
}

/// Why no socket could be had; the message carries the remedy.
#[derive(Debug, thiserror::Error)]
pub enum UnderlayError {
    /// Somebody else is bound there.
    #[error("UDP {addr} is in use by {holder}; stop it, or choose another port with --bind")]
    InUse {
        /// Wanted address.
        addr: SocketAddr,
        /// Who that is.
        holder: Holder,
    },
    /// bind(2).
    #[error("cannot bind UDP {addr}: {error}{}", bind_help(.error))]
    Bind {
        /// Wanted address.
        addr: SocketAddr,
        /// Kernel's answer.
        error: io::Error,
    },
    /// An option that forwarding relies on.
    #[error("cannot set {what} on the UDP socket: {error}")]
    Option {
        /// Which.
        what: &'static str,
        /// Kernel's answer.
        error: io::Error,
    },
}

fn bind_help(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) => "; no interface of this host has that address",
        Some(libc::EACCES) => "; a port below 1024 needs CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

/// Opens `count` sockets on `addr`. Several share the port by SO_REUSEPORT; whether a stranger holds it is found out first
/// by binding without, because with that option a second weftd would silently take half of the traffic.
pub fn open(addr: SocketAddr, count: usize, wanted: UdpCaps) -> Result<Vec<UdpSocket>, UnderlayError> {
    let probe = holder::once_released(
        || open_one(addr, false, wanted),
        |error| matches!(error, UnderlayError::InUse { holder: Holder::Unknown, .. }),
    )?;
    if count == 1 {
        return Ok(vec![probe]);
    }
    // With port 0 the group must share what the kernel chose for the first.
    let addr = probe.local;
    drop(probe);
    (0..count).map(|_| open_one(addr, true, wanted)).collect()
}

fn open_one(addr: SocketAddr, share: bool, wanted: UdpCaps) -> Result<UdpSocket, UnderlayError> {
    let option = |what| move |error: rustix::io::Errno| UnderlayError::Option { what, error: error.into() };
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(ipproto::UDP))
        .map_err(|error| UnderlayError::Bind { addr, error: error.into() })?;
    if addr.is_ipv6() {
        net::set_ipv6_v6only(&fd, false).map_err(option("IPV6_V6ONLY off"))?;
    }
    if share {
        net::set_socket_reuseport(&fd, true).map_err(option("SO_REUSEPORT"))?;
    }
    bind(&fd, &addr).map_err(|error| match error {
        rustix::io::Errno::ADDRINUSE => UnderlayError::InUse { addr, holder: holder::of_udp_port(addr.port()) },
        error => UnderlayError::Bind { addr, error: error.into() },
    })?;
    adopt(fd, wanted)
}

/// Gives each worker but the first, whose `sockets` these are, a port of its own to send from.
pub fn spread(sockets: &mut [UdpSocket]) -> Result<(), UnderlayError> {
    for (worker, socket) in sockets.iter_mut().enumerate().skip(1) {
        let UdpSocket { local, caps, .. } = socket;
        let open = |port| open_one(SocketAddr::new(local.ip(), port), false, UdpCaps { gro: false, ..*caps });
        let mut ports = source_ports(local.port(), worker as u16);
        let mut opened = open(ports.next().expect("there is more than one"));
        while let (Err(UnderlayError::InUse { .. }), Some(port)) = (&opened, ports.next()) {
            opened = open(port);
        }
        let source = opened?;
        // Nobody reads from it: of what a stranger sends there the kernel keeps as little as it can.
        let _ = sockopt::set(source.fd.as_fd(), sockopt::RCVBUF, 0);
        socket.send = Some(UdpSource { port: source.local.port(), fd: source.fd });
    }
    Ok(())
}

/// Ports that a worker may send from, the first that is free: of those for such purposes (RFC 6335 section 6), and always the same, as firewalls
/// and equal-cost paths like it. Modulo 840, which all numbers of workers up to 8 divide, they are those after the port that is listened
/// on, so that the workers of one peer reach as many of another (see [`lane::choosing`]).
fn source_ports(listen: u16, worker: u16) -> impl Iterator<Item = u16> {
    const FIRST: u16 = 49_152;
    const STEP: u16 = 840;
    let first = FIRST + (i32::from(listen) + i32::from(worker) - i32::from(FIRST)).rem_euclid(STEP.into()) as u16;
    (first..=u16::MAX).step_by(STEP.into())
}

/// Makes the last of `sockets` that of the lane: its datagrams are marked, and marked datagrams from peers come to it.
pub fn give_lane(sockets: &[UdpSocket], workers: &lane::Workers) -> Result<(), UnderlayError> {
    let option = |what| move |error: io::Error| UnderlayError::Option { what, error };
    let lane = sockets.last().expect("at least one socket");
    let choosing = lane::choosing(workers).map_err(option("the program that finds the lane's datagrams"))?;
    sockopt::set(lane.as_fd(), sockopt::ATTACH_REUSEPORT_EBPF, choosing.as_fd().as_raw_fd())
        .map_err(option("SO_ATTACH_REUSEPORT_EBPF"))?;
    // An IPv6 socket that serves IPv4 peers, too, has both.
    sockopt::set(lane.as_fd(), sockopt::IP_TOS, LANE_TOS.into()).map_err(option("IP_TOS"))?;
    if lane.local.is_ipv6() {
        sockopt::set(lane.as_fd(), sockopt::IPV6_TCLASS, LANE_TOS.into()).map_err(option("IPV6_TCLASS"))?;
    }
    Ok(())
}

/// Prepares a bound UDP socket, opened here or handed over by another process.
pub fn adopt(fd: OwnedFd, wanted: UdpCaps) -> Result<UdpSocket, UnderlayError> {
    let option = |what| move |error: io::Error| UnderlayError::Option { what, error };
    let local = getsockname(&fd)
        .and_then(SocketAddr::try_from)
        .map_err(|error| UnderlayError::Option { what: "nothing (its address cannot be read)", error: error.into() })?;
    let socket = fd.as_fd();
    // Beyond the system's limit where permitted, up to it otherwise.
    for (force, plain) in [(sockopt::RCVBUFFORCE, sockopt::RCVBUF), (sockopt::SNDBUFFORCE, sockopt::SNDBUF)] {
        if sockopt::set(socket, force, SOCKET_BUFFER_LEN).is_err() {
            let _ = sockopt::set(socket, plain, SOCKET_BUFFER_LEN);
        }
    }
    // DF on every datagram: an outer fragment would cost the peer reassembly and hide the path MTU (RFC 4459).
    if local.is_ipv4() || local.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        sockopt::set(socket, sockopt::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO).map_err(option("IP_MTU_DISCOVER"))?;
    }
    if local.is_ipv6() {
        sockopt::set(socket, sockopt::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
            .map_err(option("IPV6_MTU_DISCOVER"))?;
    }
    let caps = UdpCaps {
        gso: wanted.gso && sockopt::get(socket, sockopt::UDP_SEGMENT).is_ok(),
        gro: wanted.gro && sockopt::set(socket, sockopt::UDP_GRO, 1).is_ok(),
    };
    Ok(UdpSocket { mapped: local.is_ipv6(), caps, local, fd, send: None })
}

impl UdpSocket {
    /// A destination in the form that this socket sends to.
    pub fn name(&self, addr: SocketAddr) -> (Name, libc::socklen_t) {
        Name::new(addr, self.mapped)
    }

    /// Sends one datagram at once, outside of the engine: for the rare packets that a batch cannot carry.
    pub fn send_now(&self, bytes: &[u8], addr: SocketAddr) -> io::Result<()> {
        let (name, len) = self.name(addr);
        msg::send_to(self.sender(), bytes, &name, len).map(drop)
    }

    /// What to send from.
    pub fn sender(&self) -> BorrowedFd<'_> {
        self.send.as_ref().map_or(&self.fd, |source| &source.fd).as_fd()
    }

    /// The port that it sends from.
    pub fn source_port(&self) -> u16 {
        self.send.as_ref().map_or(self.local.port(), |source| source.port)
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Bytes of outer headers before an inner packet: IP and UDP.
pub fn overhead(peer: SocketAddr) -> u16 {
    if peer.ip().to_canonical().is_ipv4() { 28 } else { 48 }
}

/// The path MTU to `peer` as the kernel knows it from interface, route and received ICMP errors (IP_MTU of a connected
/// socket), bytes of outer IP packet.
pub fn path_mtu(peer: SocketAddr) -> io::Result<u16> {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let (family, any, option) = match peer {
        SocketAddr::V4(_) => (AddressFamily::INET, IpAddr::V4(Ipv4Addr::UNSPECIFIED), sockopt::IP_MTU),
        SocketAddr::V6(_) => (AddressFamily::INET6, IpAddr::V6(Ipv6Addr::UNSPECIFIED), sockopt::IPV6_MTU),
    };
    let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(ipproto::UDP))?;
    bind(&socket, &SocketAddr::new(any, 0))?;
    connect(&socket, &peer)?;
    Ok(sockopt::get(socket.as_fd(), option)?.clamp(68, 65_535) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_ports_are_dynamic_ones_and_go_on_from_the_port_that_is_listened_on() {
        assert_eq!(source_ports(8285, 3).take(2).collect::<Vec<_>>(), [49_448, 50_288]);
        for listen in [1, 8285, 49_152, 60_000, u16::MAX] {
            for worker in [1, 7, 63] {
                let ports: Vec<u16> = source_ports(listen, worker).collect();
                assert!(ports.len() >= 19 && ports.is_sorted() && ports[0] >= 49_152, "{listen}, {worker}: {ports:?}");
                for workers in 1..=8 {
                    let follows = |port: &u16| (u32::from(*port) - u32::from(listen) % workers) % workers;
                    assert!(
                        ports.iter().all(|port| follows(port) == u32::from(worker) % workers),
                        "{listen}, {worker}"
                    );
                }
            }
        }
    }
}
