//! Packets of a test's own making, and their oracle: built and checked by pnet_packet, which shares no code with weft.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pnet_packet::ipv4::{self, Ipv4Packet, MutableIpv4Packet};
use pnet_packet::ipv6::MutableIpv6Packet;
use pnet_packet::udp::{self, MutableUdpPacket, UdpPacket};
use pnet_packet::{FromPacket, Packet as _, icmp, icmpv6};

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP6: u8 = 58;

/// IPv4 "don't fragment", in the field of flags and fragment offset.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// IPv4 "more fragments".
pub const MORE_FRAGMENTS: u16 = 0x2000;

/// An inner IP packet before it is bytes.
#[derive(Debug, Clone)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ttl: u8,
    pub tos: u8,
    pub id: u16,
    /// IPv4 flags and fragment offset, as the field is.
    pub fragment: u16,
    /// IPv4 options, whole words.
    pub options: Vec<u8>,
    pub protocol: u8,
    pub payload: Vec<u8>,
}

impl Packet {
    /// TTL 64, TOS 0, id 0x1234, no flags, protocol 253 (RFC 3692: experiments), no payload.
    pub fn new(source: IpAddr, destination: IpAddr) -> Self {
        let (options, payload) = (Vec::new(), Vec::new());
        Self { source, destination, ttl: 64, tos: 0, id: 0x1234, fragment: 0, options, protocol: 253, payload }
    }

    /// A datagram with a valid checksum.
    pub fn udp(source: IpAddr, destination: IpAddr, ports: (u16, u16), data: &[u8]) -> Self {
        let mut bytes = vec![0; 8 + data.len()];
        let mut header = MutableUdpPacket::new(&mut bytes).expect("eight bytes and more");
        header.set_source(ports.0);
        header.set_destination(ports.1);
        header.set_length(8 + data.len() as u16);
        header.set_payload(data);
        let sum = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                udp::ipv4_checksum(&header.to_immutable(), &source, &destination)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                udp::ipv6_checksum(&header.to_immutable(), &source, &destination)
            }
            _ => panic!("{source} and {destination} are of two families"),
        };
        header.set_checksum(sum);
        Self { protocol: UDP, payload: bytes, ..Self::new(source, destination) }
    }

    /// An ICMP or ICMPv6 message of a type, with zero code and rest of header, and a valid checksum.
    pub fn icmp(source: IpAddr, destination: IpAddr, kind: u8, data: &[u8]) -> Self {
        let mut payload = [&[kind, 0, 0, 0, 0, 0, 0, 0], data].concat();
        let sum = icmp_checksum(source, destination, &payload);
        payload[2..4].copy_from_slice(&sum.to_be_bytes());
        let protocol = if source.is_ipv4() { ICMP } else { ICMP6 };
        Self { protocol, payload, ..Self::new(source, destination) }
    }

    /// The bytes, with right lengths and header checksum.
    pub fn build(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.build4(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.build6(source, destination),
            (source, destination) => panic!("{source} and {destination} are of two families"),
        }
    }

    /// The bytes after `change`, with the header checksum made right again.
    pub fn build_with(&self, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = self.build();
        change(&mut bytes);
        seal(&mut bytes);
        bytes
    }

    fn build4(&self, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let mut bytes = vec![0; header_len + self.payload.len()];
        let len = bytes.len() as u16;
        let mut ip = MutableIpv4Packet::new(&mut bytes).expect("twenty bytes and more");
        ip.set_version(4);
        ip.set_header_length((header_len / 4) as u8);
        ip.set_dscp(self.tos >> 2);
        ip.set_ecn(self.tos & 3);
        ip.set_total_length(len);
        ip.set_identification(self.id);
        ip.set_ttl(self.ttl);
        ip.set_next_level_protocol(pnet_packet::ip::IpNextHeaderProtocol(self.protocol));
        ip.set_source(source);
        ip.set_destination(destination);
        bytes[6..8].copy_from_slice(&self.fragment.to_be_bytes());
        bytes[20..header_len].copy_from_slice(&self.options);
        bytes[header_len..].copy_from_slice(&self.payload);
        seal(&mut bytes);
        bytes
    }

    fn build6(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let mut bytes = vec![0; 40 + self.payload.len()];
        let mut ip = MutableIpv6Packet::new(&mut bytes).expect("forty bytes and more");
        ip.set_version(6);
        ip.set_traffic_class(self.tos);
        ip.set_payload_length(self.payload.len() as u16);
        ip.set_next_header(pnet_packet::ip::IpNextHeaderProtocol(self.protocol));
        ip.set_hop_limit(self.ttl);
        ip.set_source(source);
        ip.set_destination(destination);
        bytes[40..].copy_from_slice(&self.payload);
        bytes
    }
}

/// Makes an IPv4 header checksum right, where there is a header to sum.
fn seal(bytes: &mut [u8]) {
    let header_len = bytes.first().map_or(0, |byte| usize::from(byte & 15) * 4);
    if bytes.len() >= 20 && bytes[0] >> 4 == 4 && (20..=bytes.len()).contains(&header_len) {
        let sum = ipv4::checksum(&Ipv4Packet::new(bytes).expect("twenty bytes and more"));
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

fn icmp_checksum(source: IpAddr, destination: IpAddr, message: &[u8]) -> u16 {
    match (source, destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let message = icmpv6::Icmpv6Packet::new(message).expect("eight bytes and more");
            icmpv6::checksum(&message, &source, &destination)
        }
        _ => icmp::checksum(&icmp::IcmpPacket::new(message).expect("eight bytes and more")),
    }
}

/// A packet as it should come out of one half of the tunnel: TTL one less, checksum to match.
pub fn one_hop_on(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let at = if packet[0] >> 4 == 4 { 8 } else { 7 };
    packet[at] -= 1;
    seal(&mut packet);
    packet
}

/// An ICMP or ICMPv6 error, taken apart; its checksums were right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ttl: u8,
    pub tos: u8,
    pub kind: u8,
    pub code: u8,
    /// The second word of the message: the MTU of "too big", else 0.
    pub word: u32,
    pub quoted: Vec<u8>,
    /// Of the whole packet.
    pub len: usize,
}

impl Error {
    /// Takes a packet apart. `None` if it is no ICMP error.
    ///
    /// # Panics
    /// If it is one with a wrong length or checksum.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let (source, destination, ttl, tos, header_len, is_error): (IpAddr, IpAddr, _, _, _, fn(u8) -> bool);
        match packet.first()? >> 4 {
            4 => {
                let ip = Ipv4Packet::new(packet)?.from_packet();
                if ip.next_level_protocol.0 != ICMP {
                    return None;
                }
                assert_eq!(usize::from(ip.total_length), packet.len(), "total length of an ICMP error");
                assert_eq!(ip.checksum, ipv4::checksum(&Ipv4Packet::new(packet)?), "header checksum of an ICMP error");
                (source, destination) = (ip.source.into(), ip.destination.into());
                (ttl, tos, header_len) = (ip.ttl, ip.dscp << 2 | ip.ecn, usize::from(ip.header_length) * 4);
                is_error = |kind| matches!(kind, 3 | 4 | 5 | 11 | 12);
            }
            _ => {
                let ip = pnet_packet::ipv6::Ipv6Packet::new(packet)?;
                if ip.get_next_header().0 != ICMP6 {
                    return None;
                }
                assert_eq!(usize::from(ip.get_payload_length()) + 40, packet.len(), "length of an ICMPv6 error");
                (source, destination) = (ip.get_source().into(), ip.get_destination().into());
                (ttl, tos, header_len) = (ip.get_hop_limit(), ip.get_traffic_class(), 40);
                is_error = |kind| kind < 128;
            }
        }
        let message = &packet[header_len..];
        if message.len() < 8 || !is_error(message[0]) {
            return None;
        }
        let sum = u16::from_be_bytes([message[2], message[3]]);
        assert_eq!(sum, icmp_checksum(source, destination, message), "checksum of an ICMP error");
        Some(Self {
            source,
            destination,
            ttl,
            tos,
            kind: message[0],
            code: message[1],
            word: u32::from_be_bytes([message[4], message[5], message[6], message[7]]),
            quoted: message[8..].to_vec(),
            len: packet.len(),
        })
    }
}

/// Source and destination port and data of an IPv4 or IPv6 packet that is a whole UDP datagram with a right checksum.
pub fn udp_datagram(packet: &[u8]) -> Option<(u16, u16, Vec<u8>)> {
    let ip_len = match (packet.first()? >> 4, packet.get(9)?, packet.get(6)?) {
        (4, 17, _) => usize::from(packet[0] & 15) * 4,
        (6, _, 17) => 40,
        _ => return None,
    };
    let udp = UdpPacket::new(packet.get(ip_len..)?)?;
    Some((udp.get_source(), udp.get_destination(), udp.payload().to_vec()))
}
