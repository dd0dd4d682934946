//! The connection: one request, its answer, its errors.

use std::fmt::Display;
use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;

use super::error::extended_ack;
use super::{NetlinkError, Result};

/// Room for one datagram. The kernel fills at most 32 KiB of a dump at once (`netlink_recvmsg`, net/netlink/af_netlink.c);
/// a single object such as a link with many virtual functions may take more.
pub(super) const DATAGRAM_LEN_MAX: usize = 128 * 1024;
/// How often a dump is begun anew because the table changed under it.
const DUMP_ATTEMPT_COUNT_MAX: u32 = 8;

/// A connection to the routing part of the kernel in one network namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Connects to the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`] if the kernel gives no socket.
    pub fn open() -> Result<Self> {
        let socket = connect().map_err(|source| NetlinkError::Socket { what: "opening netlink".into(), source })?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(DATAGRAM_LEN_MAX) })
    }

    /// Sends a request that changes something and waits for its acknowledgement. `flags` are `NLM_F_CREATE` and the like.
    pub(super) fn change(&mut self, subject: Subject<'_>, flags: u16, message: RouteNetlinkMessage) -> Result<()> {
        self.exchange(NLM_F_ACK | flags, message, &mut |_| ()).map_err(|failure| self.explain(subject, failure))
    }

    /// As [`Netlink::change`], for deletions: the errors in `gone` say that there is nothing left to delete.
    pub(super) fn delete(&mut self, subject: Subject<'_>, message: RouteNetlinkMessage, gone: &[Errno]) -> Result<()> {
        match self.exchange(NLM_F_ACK, message, &mut |_| ()) {
            Err(Failure::Refused(errno, _)) if gone.contains(&errno) => Ok(()),
            outcome => outcome.map_err(|failure| self.explain(subject, failure)),
        }
    }

    /// Sends a request for one object. `None` when the kernel answers with one of `absent`.
    pub(super) fn get(
        &mut self,
        subject: Subject<'_>,
        message: RouteNetlinkMessage,
        absent: &[Errno],
    ) -> Result<Option<RouteNetlinkMessage>> {
        let mut found = None;
        match self.exchange(NLM_F_ACK, message, &mut |answer| found = Some(answer)) {
            Ok(()) => Ok(found),
            Err(Failure::Refused(errno, _)) if absent.contains(&errno) => Ok(None),
            Err(failure) => Err(self.explain(subject, failure)),
        }
    }

    /// Sends a request for a whole table and returns its objects, of one consistent state of the table.
    pub(super) fn dump(
        &mut self,
        subject: Subject<'_>,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ATTEMPT_COUNT_MAX {
            let mut objects = Vec::new();
            match self.exchange(NLM_F_DUMP, message.clone(), &mut |object| objects.push(object)) {
                Ok(()) => return Ok(objects),
                Err(Failure::Interrupted) => (),
                Err(failure) => return Err(self.explain(subject, failure)),
            }
        }
        Err(self.explain(subject, Failure::Interrupted))
    }

    /// Sends a request and reads its answers until the acknowledgement, the error, or the end of the dump.
    fn exchange(
        &mut self,
        flags: u16,
        message: RouteNetlinkMessage,
        sink: &mut dyn FnMut(RouteNetlinkMessage),
    ) -> std::result::Result<(), Failure> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        retry(|| self.socket.send(&bytes, 0))?;

        let mut interrupted = false;
        loop {
            self.buffer.clear();
            retry(|| self.socket.recv(&mut self.buffer, 0))?;
            for packet in messages(&self.buffer) {
                let packet = packet?;
                if packet.header.sequence_number != self.sequence {
                    continue; // The rest of an earlier answer that had an unreadable message in it.
                }
                interrupted |= packet.header.flags & NLM_F_DUMP_INTR != 0;
                let (code, message) = match packet.payload {
                    NetlinkPayload::InnerMessage(object) => {
                        sink(object);
                        continue;
                    }
                    NetlinkPayload::Error(error) => (error.raw_code(), extended_ack(&error.header)),
                    NetlinkPayload::Done(done) => (done.code, None),
                    _ => continue,
                };
                return match code {
                    0 if interrupted => Err(Failure::Interrupted),
                    0 => Ok(()),
                    _ => Err(Failure::Refused(Errno::from_raw_os_error(code.abs()), message)),
                };
            }
        }
    }

    /// ` dev NAME` for messages, by number if the link is gone; nothing for no link.
    pub(super) fn device(&mut self, link: Option<u32>) -> String {
        link.map_or_else(String::new, |index| match self.link(index) {
            Ok(Some(link)) => format!(" dev {}", link.name),
            _ => format!(" dev #{index}"),
        })
    }

    /// Names the object of a failure.
    fn explain(&mut self, subject: Subject<'_>, failure: Failure) -> NetlinkError {
        let what = format!("{}{}", subject.action, self.device(subject.link));
        match failure {
            Failure::Refused(errno, message) => NetlinkError::Refused { what, errno, message },
            Failure::Socket(source) => NetlinkError::Socket { what, source },
            Failure::Decode(source) => NetlinkError::Decode { what, source },
            Failure::Interrupted => NetlinkError::Interrupted { what },
        }
    }
}

/// What a request is about, for the text of its error: `adding route 10.9.0.0/16`, and the link it is on.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    action: &'a dyn Display,
    link: Option<u32>,
}

impl<'a> Subject<'a> {
    /// An action on no particular link, or on one that the text names.
    pub(super) fn new(action: &'a dyn Display) -> Self {
        Self { action, link: None }
    }

    /// An action on a link; its name is looked up when it is needed.
    pub(super) fn on(action: &'a dyn Display, link: impl Into<Option<u32>>) -> Self {
        Self { action, link: link.into() }
    }
}

/// A failure that does not know what it is about.
enum Failure {
    Refused(Errno, Option<String>),
    Socket(io::Error),
    Decode(DecodeError),
    Interrupted,
}

impl From<io::Error> for Failure {
    fn from(source: io::Error) -> Self {
        Self::Socket(source)
    }
}

impl From<DecodeError> for Failure {
    fn from(source: DecodeError) -> Self {
        Self::Decode(source)
    }
}

/// A bound socket that speaks to the kernel and asks for explained errors.
fn connect() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    Ok(socket)
}

/// Splits one datagram into its messages (`NLMSG_NEXT`). A message whose length is impossible ends it with an error.
pub(super) fn messages(
    mut datagram: &[u8],
) -> impl Iterator<Item = std::result::Result<NetlinkMessage<RouteNetlinkMessage>, DecodeError>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let len = match NetlinkBuffer::new_checked(&datagram) {
            Ok(packet) => packet.length() as usize,
            Err(error) => {
                datagram = &[];
                return Some(Err(error));
            }
        };
        let message = NetlinkMessage::deserialize(&datagram[..len]);
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            outcome => return outcome,
        }
    }
}
