//! What changes in the network namespace, as it changes.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token, event::Source};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};

use super::socket::{DATAGRAM_LEN_MAX, messages};
use super::{Address, FdbEntry, Link, Neighbour, NetlinkError, Result, Route};
use std::net::IpAddr;

/// Bytes of events, with the kernel's bookkeeping, that may wait to be read.
const RECEIVE_BUFFER_LEN: usize = 4 << 20;

/// What to be told about (`enum rtnetlink_groups`, `include/uapi/linux/rtnetlink.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Links.
    Link,
    /// Addresses, both families.
    Address,
    /// Routes, both families.
    Route,
    /// Neighbours, both families, and forwarding entries of vxlans.
    Neighbour,
}

impl Group {
    fn numbers(self) -> &'static [u32] {
        match self {
            Self::Link => &[1],
            Self::Address => &[5, 9],
            Self::Route => &[7, 11],
            Self::Neighbour => &[3],
        }
    }
}

/// Something changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link appeared or changed.
    Link(Link),
    /// A link is gone.
    LinkGone(Link),
    /// An address appeared or changed.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
    /// A route appeared or changed.
    Route(Route),
    /// A route is gone. The kernel says nothing about IPv4 routes that go because their link went down or away.
    RouteGone(Route),
    /// A permanent neighbour appeared or changed.
    Neighbour(Neighbour),
    /// There is no permanent neighbour of that address on that link: it was deleted, or is an ordinary, learned one.
    NeighbourGone {
        /// Index of the link.
        link: u32,
        /// IP address.
        address: IpAddr,
    },
    /// A permanent forwarding entry of a vxlan appeared or changed.
    Fdb(FdbEntry),
    /// There is no permanent forwarding entry of that kind: it was deleted, or is a learned one.
    FdbGone(FdbEntry),
    /// The kernel had more to tell than it could keep; what happened meanwhile is unknown, so list everything anew.
    Overrun,
}

/// A subscription. Non-blocking: register it with mio, and when it is readable, take events until there is none.
///
/// Subscribe first and list afterwards: then nothing is missed, and events that the list already shows do no harm.
#[derive(Debug)]
pub struct Events {
    socket: Socket,
    buffer: Vec<u8>,
    pending: VecDeque<Event>,
}

impl Events {
    /// Subscribes in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`] if the kernel gives no socket.
    pub fn open(groups: &[Group]) -> Result<Self> {
        let socket = subscribe(groups)
            .map_err(|source| NetlinkError::Socket { what: "subscribing to netlink events".into(), source })?;
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM_LEN_MAX), pending: VecDeque::new() })
    }

    /// The next event, or `None` if there is none yet.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`] or [`NetlinkError::Decode`]; the subscription stays usable, but an event may be lost.
    pub fn try_next(&mut self) -> Result<Option<Event>> {
        const WHAT: &str = "reading netlink events";
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(Some(event));
            }
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => (),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {
                    return Ok(Some(Event::Overrun));
                }
                Err(source) => return Err(NetlinkError::Socket { what: WHAT.into(), source }),
            }
            for message in messages(&self.buffer) {
                let message = message.map_err(|source| NetlinkError::Decode { what: WHAT.into(), source })?;
                if let NetlinkPayload::InnerMessage(message) = message.payload {
                    self.pending.extend(Event::from_message(message));
                }
            }
        }
    }

    /// The events that have arrived; ends when there is none left.
    pub fn drain(&mut self) -> impl Iterator<Item = Result<Event>> + '_ {
        std::iter::from_fn(|| self.try_next().transpose())
    }
}

impl Event {
    fn from_message(message: RouteNetlinkMessage) -> Option<Self> {
        match message {
            RouteNetlinkMessage::NewLink(_) => Link::from_message(message).map(Self::Link),
            RouteNetlinkMessage::DelLink(_) => Link::from_message(message).map(Self::LinkGone),
            RouteNetlinkMessage::NewAddress(_) => Address::from_message(message).map(Self::Address),
            RouteNetlinkMessage::DelAddress(_) => Address::from_message(message).map(Self::AddressGone),
            RouteNetlinkMessage::NewRoute(_) => Route::from_message(message).map(Self::Route),
            RouteNetlinkMessage::DelRoute(_) => Route::from_message(message).map(Self::RouteGone),
            RouteNetlinkMessage::NewNeighbour(_) | RouteNetlinkMessage::DelNeighbour(_) => {
                Self::from_neighbour_message(message)
            }
            _ => None,
        }
    }
}

fn subscribe(groups: &[Group]) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    // More than `net.core.rmem_max` needs CAP_NET_ADMIN; a listener without has `rmem_max` and may see `Overrun`.
    if set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_LEN).is_err() {
        set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_LEN)?;
    }
    for number in groups.iter().flat_map(|group| group.numbers()) {
        socket.add_membership(*number)?;
    }
    Ok(socket)
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Source for Events {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.as_raw_fd()).register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.as_raw_fd()).reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.as_raw_fd()).deregister(registry)
    }
}
