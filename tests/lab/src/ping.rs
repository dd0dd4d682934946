//! ICMP echo, with everything that a network may answer to it.

use std::io;
use std::mem::size_of;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, bind, ipproto, sendto, socket_with};

use crate::{Node, TIMEOUT, sys};

const ECHO_HEADER_LEN: usize = 8;
const IPV6_HEADER_LEN: usize = 40;

// RFC 792; https://www.iana.org/assignments/icmp-parameters
const ICMP_ECHO_REPLY: u8 = 0;
const ICMP_UNREACHABLE: u8 = 3;
const ICMP_FRAGMENTATION_NEEDED: u8 = 4;
const ICMP_ECHO_REQUEST: u8 = 8;
const ICMP_TIME_EXCEEDED: u8 = 11;
// RFC 4443; https://www.iana.org/assignments/icmpv6-parameters
const ICMP6_UNREACHABLE: u8 = 1;
const ICMP6_PACKET_TOO_BIG: u8 = 2;
const ICMP6_TIME_EXCEEDED: u8 = 3;
const ICMP6_ECHO_REQUEST: u8 = 128;
const ICMP6_ECHO_REPLY: u8 = 129;

/// An echo request to send.
#[derive(Debug, Clone, Copy)]
pub struct Ping {
    /// Its destination.
    pub to: IpAddr,
    /// Bytes after the ICMP header; the IPv4 packet is 28 bytes longer, the IPv6 packet 48.
    pub payload_len: usize,
    /// Its TTL or hop limit.
    pub ttl: u8,
    /// Set "don't fragment" (IPv4), and send it even if the kernel knows a smaller path MTU.
    pub dont_fragment: bool,
    /// How long to wait for an answer.
    pub timeout: Duration,
    /// The address to send from (`ping -I ADDRESS`); `None`: the kernel's choice.
    pub from: Option<IpAddr>,
    /// Index of the link to send through, whatever the routes say (`ping -I LINK`); 0: as the routes say.
    pub link: u32,
}

impl Ping {
    /// 56 bytes of payload, TTL 64, fragmentation allowed, [`TIMEOUT`], from wherever and through whatever the kernel
    /// chooses.
    pub fn to(to: IpAddr) -> Self {
        Self { to, payload_len: 56, ttl: 64, dont_fragment: false, timeout: TIMEOUT, from: None, link: 0 }
    }

    /// The same with a wait of 0.3 s: for a condition, which is looked at again, and where no answer is expected.
    pub fn quick(to: IpAddr) -> Self {
        Self { timeout: Duration::from_millis(300), ..Self::to(to) }
    }
}

/// What came of an echo request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PingOutcome {
    /// An echo reply with the payload that was sent.
    Reply {
        /// From sending to receiving.
        rtt: Duration,
        /// TTL or hop limit of the reply on arrival.
        ttl: u8,
    },
    /// An ICMP error: its sender, type, code, and MTU if it is fragmentation-needed or packet-too-big.
    IcmpError {
        /// Who sent it.
        from: IpAddr,
        /// ICMP or ICMPv6 type.
        kind: u8,
        /// ICMP or ICMPv6 code.
        code: u8,
        /// Next-hop MTU, in bytes.
        mtu: Option<u32>,
    },
    /// The kernel of the sender refused it, with this error number: `EMSGSIZE`, `ENETUNREACH`, ...
    NotSent(i32),
    /// Nothing came.
    Timeout,
}

impl PingOutcome {
    /// Round-trip time and TTL of a reply.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn reply(self) -> Result<(Duration, u8)> {
        match self {
            Self::Reply { rtt, ttl } => Ok((rtt, ttl)),
            other => bail!("expected an echo reply, got {other:?}"),
        }
    }
}

/// Sends one echo request from a node and waits for what comes of it.
///
/// # Errors
/// If the kernel gives no raw socket, or a reply has another payload than the request.
pub fn ping(node: &Node, ping: &Ping) -> Result<PingOutcome> {
    node.run(|| Echo::open(ping)?.exchange())
}

/// One request on its own raw socket, told apart from others by its identifier.
struct Echo<'a> {
    ping: &'a Ping,
    socket: OwnedFd,
    identifier: u16,
}

impl<'a> Echo<'a> {
    fn open(ping: &'a Ping) -> Result<Self> {
        static IDENTIFIER: AtomicU16 = AtomicU16::new(1);
        let (family, protocol) = if ping.to.is_ipv4() {
            (AddressFamily::INET, ipproto::ICMP)
        } else {
            (AddressFamily::INET6, ipproto::ICMPV6)
        };
        let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
        let discover = |never: i32, probe: i32| if ping.dont_fragment { probe } else { never };
        let (level, options) = if ping.to.is_ipv4() {
            let discover = discover(libc::IP_PMTUDISC_DONT, libc::IP_PMTUDISC_PROBE);
            (
                libc::IPPROTO_IP,
                [(libc::IP_TTL, ping.ttl.into()), (libc::IP_RECVTTL, 1), (libc::IP_MTU_DISCOVER, discover)],
            )
        } else {
            let discover = discover(libc::IPV6_PMTUDISC_DONT, libc::IPV6_PMTUDISC_PROBE);
            (
                libc::IPPROTO_IPV6,
                [
                    (libc::IPV6_UNICAST_HOPS, ping.ttl.into()),
                    (libc::IPV6_RECVHOPLIMIT, 1),
                    (libc::IPV6_MTU_DISCOVER, discover),
                ],
            )
        };
        for (option, value) in options {
            sys::set_option(socket.as_fd(), level, option, value)?;
        }
        if let Some(from) = ping.from {
            bind(&socket, &SocketAddr::new(from, 0))?;
        }
        // Linux 5.0.
        sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, i32::try_from(ping.link)?)?;
        Ok(Self { ping, socket, identifier: IDENTIFIER.fetch_add(1, Ordering::Relaxed) })
    }

    fn exchange(&self) -> Result<PingOutcome> {
        let request = self.request();
        let sent = Instant::now();
        if let Err(error) = sendto(&self.socket, &request, SendFlags::empty(), &SocketAddr::new(self.ping.to, 0)) {
            return Ok(PingOutcome::NotSent(error.raw_os_error()));
        }
        let deadline = sent + self.ping.timeout;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(PingOutcome::Timeout);
            }
            set_socket_timeout(&self.socket, Timeout::Recv, Some(left))?;
            let received = match sys::receive_with_ttl(self.socket.as_fd(), &mut buffer) {
                Ok(received) => received,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let rtt = sent.elapsed();
            // A raw IPv4 socket receives the IP header, an IPv6 one does not.
            let skip = if self.ping.to.is_ipv4() { ipv4_header_len(&buffer) } else { 0 };
            let Some(message) = buffer[..received.len].get(skip..).filter(|m| m.len() >= ECHO_HEADER_LEN) else {
                continue;
            };
            let (kind, code) = (message[0], message[1]);
            if kind == self.reply_kind() && message[4..8] == request[4..8] {
                if message[8..] != request[8..] {
                    bail!("an echo reply of {} bytes differs from the request of {}", message.len(), request.len());
                }
                let ttl = received.ttl.unwrap_or(0);
                return Ok(PingOutcome::Reply { rtt, ttl });
            }
            if self.is_error(kind) && self.quotes(&message[ECHO_HEADER_LEN..], &request) {
                return Ok(PingOutcome::IcmpError { from: received.source, kind, code, mtu: self.mtu(message) });
            }
        }
    }

    /// Type, code, checksum, identifier, sequence, and bytes that differ from each other. The kernel fills in the ICMPv6
    /// checksum (RFC 3542 section 3.1).
    fn request(&self) -> Vec<u8> {
        let mut request = vec![0; ECHO_HEADER_LEN];
        request[0] = if self.ping.to.is_ipv4() { ICMP_ECHO_REQUEST } else { ICMP6_ECHO_REQUEST };
        request[4..6].copy_from_slice(&self.identifier.to_be_bytes());
        request[6..8].copy_from_slice(&1u16.to_be_bytes());
        request.extend((0..self.ping.payload_len).map(|index| (index.wrapping_mul(31) >> 3) as u8 ^ index as u8));
        if self.ping.to.is_ipv4() {
            let sum = internet_checksum(&request);
            request[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        request
    }

    fn reply_kind(&self) -> u8 {
        if self.ping.to.is_ipv4() { ICMP_ECHO_REPLY } else { ICMP6_ECHO_REPLY }
    }

    fn is_error(&self, kind: u8) -> bool {
        if self.ping.to.is_ipv4() {
            [ICMP_UNREACHABLE, ICMP_TIME_EXCEEDED].contains(&kind)
        } else {
            [ICMP6_UNREACHABLE, ICMP6_PACKET_TOO_BIG, ICMP6_TIME_EXCEEDED].contains(&kind)
        }
    }

    /// True if an error's quotation, an IP header and what follows, is of `request`.
    fn quotes(&self, quotation: &[u8], request: &[u8]) -> bool {
        let skip = if self.ping.to.is_ipv4() { ipv4_header_len(quotation) } else { IPV6_HEADER_LEN };
        let quoted = quotation.get(skip..skip + ECHO_HEADER_LEN);
        quoted.is_some_and(|quoted| quoted[0] == request[0] && quoted[4..8] == request[4..8])
    }

    fn mtu(&self, error: &[u8]) -> Option<u32> {
        let word = u32::from_be_bytes(error[4..8].try_into().expect("four bytes"));
        match (self.ping.to.is_ipv4(), error[0], error[1]) {
            (true, ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED) => Some(word & 0xffff),
            (false, ICMP6_PACKET_TOO_BIG, _) => Some(word),
            _ => None,
        }
    }
}

fn ipv4_header_len(packet: &[u8]) -> usize {
    packet.first().map_or(0, |byte| usize::from(byte & 0xf) * size_of::<u32>())
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
