//! Packets built by etherparse, checked by pnet_packet, and a caller's use of split and coalesce in its simplest form.

use etherparse::{
    IpFragOffset, IpHeaders, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, PacketBuilder, TcpHeader,
    ip_number,
};
use pnet_packet::{ipv4, ipv6, tcp, udp};
use proptest::prelude::*;
use weft_packet::gro::{self, Run};
use weft_packet::gso::Split;
use weft_packet::ip;
use weft_packet::vnet::{GsoKind, VnetHeader};

/// Everything about a TCP or UDP packet but its payload.
#[derive(Clone, Debug)]
pub struct Flow {
    pub is_v6: bool,
    pub is_udp: bool,
    pub source: u128,
    pub destination: u128,
    pub traffic_class: u8,
    pub ttl: u8,
    pub id: u16,
    pub dont_fragment: bool,
    pub ip_options: Vec<u8>,
    pub ports: (u16, u16),
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    /// TCP flags byte.
    pub flags: u8,
    pub tcp_options: Vec<u8>,
}

pub const FIN: u8 = 0x01;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const CWR: u8 = 0x80;

/// Timestamps as Linux writes them: NOP, NOP, kind 8.
pub const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0];

impl Flow {
    pub fn new(is_v6: bool, is_udp: bool) -> Flow {
        Flow {
            is_v6,
            is_udp,
            source: 0x2001_0db8_0000_0000_0000_0000_0a01_0203,
            destination: 0x2001_0db8_0000_0001_0000_0000_0a01_0405,
            traffic_class: 0,
            ttl: 64,
            id: 0xfffe,
            dont_fragment: true,
            ip_options: Vec::new(),
            ports: (40_000, 5201),
            seq: 0xffff_f000,
            ack: 77,
            window: 502,
            flags: ACK,
            tcp_options: if is_udp { Vec::new() } else { TIMESTAMPS.to_vec() },
        }
    }

    /// The whole packet, with right lengths and checksums.
    pub fn build(&self, payload: &[u8]) -> Vec<u8> {
        let headers = if self.is_v6 { self.ipv6() } else { self.ipv4() };
        let mut packet = Vec::new();
        let builder = PacketBuilder::ip(headers);
        if self.is_udp {
            builder.udp(self.ports.0, self.ports.1).write(&mut packet, payload).unwrap();
        } else {
            builder.tcp_header(self.tcp()).write(&mut packet, payload).unwrap();
        }
        packet
    }

    /// The `index`th of segments that carry `step` payload bytes each.
    pub fn segment(&self, index: usize, step: usize) -> Flow {
        let seq = self.seq.wrapping_add((index * step) as u32);
        Flow { id: self.id.wrapping_add(index as u16), seq, ..self.clone() }
    }

    /// A super-packet as a TUN with offloads hands it over: lengths of the whole, the pseudo-header sum for a checksum.
    pub fn build_super(&self, payload: &[u8], gso_size: u16) -> (VnetHeader, Vec<u8>) {
        let mut packet = self.build(payload);
        let l4_offset = self.ip_len();
        let csum_offset = if self.is_udp { 6 } else { 16 };
        let at = l4_offset + csum_offset;
        let sum = naive_fold(pseudo_sum(&packet, l4_offset));
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        let vnet = VnetHeader {
            needs_csum: true,
            gso: match (self.is_udp, self.is_v6) {
                (true, _) => GsoKind::UdpL4,
                (false, false) => GsoKind::Tcp4,
                (false, true) => GsoKind::Tcp6,
            },
            ecn: false,
            hdr_len: self.header_len() as u16,
            gso_size,
            csum_start: l4_offset as u16,
            csum_offset: csum_offset as u16,
        };
        (vnet, packet)
    }

    pub fn ip_len(&self) -> usize {
        if self.is_v6 { 40 } else { 20 + self.ip_options.len() }
    }

    pub fn header_len(&self) -> usize {
        self.ip_len() + if self.is_udp { 8 } else { 20 + self.tcp_options.len() }
    }

    fn ipv4(&self) -> IpHeaders {
        let mut header =
            Ipv4Header::new(0, self.ttl, ip_number::TCP, low4(self.source), low4(self.destination)).unwrap();
        header.dscp = (self.traffic_class >> 2).try_into().unwrap();
        header.ecn = (self.traffic_class & 3).try_into().unwrap();
        header.identification = self.id;
        header.dont_fragment = self.dont_fragment;
        header.fragment_offset = IpFragOffset::ZERO;
        header.options = self.ip_options.as_slice().try_into().unwrap();
        IpHeaders::Ipv4(header, Ipv4Extensions::default())
    }

    fn ipv6(&self) -> IpHeaders {
        let header = Ipv6Header {
            traffic_class: self.traffic_class,
            flow_label: 0x1_2345.try_into().unwrap(),
            hop_limit: self.ttl,
            source: self.source.to_be_bytes(),
            destination: self.destination.to_be_bytes(),
            ..Ipv6Header::default()
        };
        IpHeaders::Ipv6(header, Ipv6Extensions::default())
    }

    fn tcp(&self) -> TcpHeader {
        let mut header = TcpHeader::new(self.ports.0, self.ports.1, self.seq, self.window);
        header.acknowledgment_number = self.ack;
        let flag = |bit: u8| self.flags & bit != 0;
        header.fin = flag(FIN);
        header.syn = flag(0x02);
        header.rst = flag(0x04);
        header.psh = flag(PSH);
        header.ack = flag(ACK);
        header.urg = flag(0x20);
        header.ece = flag(0x40);
        header.cwr = flag(CWR);
        header.set_options_raw(&self.tcp_options).unwrap();
        header
    }
}

fn low4(address: u128) -> [u8; 4] {
    (address as u32).to_be_bytes()
}

/// Flows with everything random that a split copies, and unicast addresses.
pub fn any_flow() -> impl Strategy<Value = Flow> {
    let kind = (any::<bool>(), any::<bool>(), any::<bool>());
    let network = (any::<u32>(), any::<u32>(), any::<u8>(), 2u8.., any::<u16>());
    let transport = (any::<(u16, u16)>(), any::<u32>(), any::<u32>(), any::<u16>(), 0usize..=10);
    (kind, network, transport, any::<[u8; 40]>()).prop_map(|(kind, network, transport, bytes)| {
        let mut flow = Flow::new(kind.0, kind.1);
        flow.dont_fragment = kind.2;
        flow.source += u128::from(network.0) & 0x00ff_ffff;
        flow.destination += u128::from(network.1) & 0x00ff_ffff;
        (flow.traffic_class, flow.ttl, flow.id) = (network.2, network.3, network.4);
        (flow.ports, flow.seq, flow.ack, flow.window) = (transport.0, transport.1, transport.2, transport.3);
        if flow.is_udp && [4789, 8472, 6081].contains(&flow.ports.1) {
            flow.ports.1 = 53;
        }
        if !flow.is_udp {
            flow.tcp_options = bytes[..transport.4 * 4].to_vec();
        }
        flow
    })
}

/// Reproducible payload bytes that differ from one another.
pub fn payload(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect()
}

/// What the dataplane does with packets of one flow: append to the latest chain, or begin another.
pub fn coalesce(packets: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    let mut chains: Vec<(Option<Run>, Vec<u8>, Vec<u8>)> = Vec::new();
    for packet in packets {
        let inner = ip::check(packet).unwrap();
        let candidate = gro::candidate(packet, &inner);
        if let (Some((Some(run), head, tail)), Some(next)) = (chains.last_mut(), &candidate)
            && run.append(head, next, packet)
        {
            tail.extend_from_slice(&packet[next.header_len()..usize::from(inner.total_len)]);
            continue;
        }
        chains.push((candidate.as_ref().map(Run::start), packet.clone(), Vec::new()));
    }
    chains
        .into_iter()
        .map(|(run, mut head, tail)| {
            let vnet = run.map_or(VnetHeader::PLAIN, |run| run.finish(&mut head));
            head.extend(tail);
            (vnet, head)
        })
        .collect()
}

/// All segments of a super-packet, whole; made in two runs, and their headers also one by one.
pub fn split(vnet: &VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let split = Split::new(vnet, &ip::check(packet).unwrap(), packet).unwrap();
    let mut segments: Vec<_> = (0..split.count()).map(|index| vec![0xaa; split.len_of(index)]).collect();
    for range in [0..split.count() / 2, split.count() / 2..split.count()] {
        let mut run = segments[range.clone()].concat();
        split.segments(range.clone(), packet, &mut run);
        let mut rest = &run[..];
        for index in range {
            let (segment, others) = rest.split_at(split.len_of(index));
            segments[index].copy_from_slice(segment);
            rest = others;
            let mut header = vec![0xaa; split.header_len()];
            let payload = split.header(index, packet, &mut header);
            assert_eq!([&header, &packet[payload]].concat(), segment, "segment {index}");
        }
    }
    segments
}

/// Lengths and checksums as pnet_packet computes them.
pub fn assert_intact(packet: &[u8]) {
    if packet[0] >> 4 == 4 {
        let ip = ipv4::Ipv4Packet::new(packet).unwrap();
        assert_eq!(usize::from(ip.get_total_length()), packet.len());
        assert_eq!(ip.get_checksum(), ipv4::checksum(&ip), "IPv4 header checksum");
        let (source, destination) = (ip.get_source(), ip.get_destination());
        let transport = &packet[usize::from(ip.get_header_length()) * 4..];
        assert_transport(
            packet[9],
            transport,
            |tcp| tcp::ipv4_checksum(tcp, &source, &destination),
            |udp| udp::ipv4_checksum(udp, &source, &destination),
        );
    } else {
        let ip = ipv6::Ipv6Packet::new(packet).unwrap();
        assert_eq!(usize::from(ip.get_payload_length()) + 40, packet.len());
        let (source, destination) = (ip.get_source(), ip.get_destination());
        assert_transport(
            packet[6],
            &packet[40..],
            |tcp| tcp::ipv6_checksum(tcp, &source, &destination),
            |udp| udp::ipv6_checksum(udp, &source, &destination),
        );
    }
}

fn assert_transport(
    protocol: u8,
    transport: &[u8],
    tcp_sum: impl Fn(&tcp::TcpPacket<'_>) -> u16,
    udp_sum: impl Fn(&udp::UdpPacket<'_>) -> u16,
) {
    if protocol == ip::PROTOCOL_TCP {
        let tcp = tcp::TcpPacket::new(transport).unwrap();
        assert_eq!(tcp.get_checksum(), tcp_sum(&tcp), "TCP checksum");
    } else {
        let udp = udp::UdpPacket::new(transport).unwrap();
        assert_eq!(usize::from(udp.get_length()), transport.len());
        let expected = match udp_sum(&udp) {
            0 => 0xffff,
            sum => sum,
        };
        assert_eq!(udp.get_checksum(), expected, "UDP checksum");
    }
}

/// RFC 1071, word by word.
pub fn naive_sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | word.get(1).map_or(0, |&low| u64::from(low))).sum()
}

pub fn naive_fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

pub fn pseudo_sum(packet: &[u8], l4_offset: usize) -> u64 {
    let (addresses, protocol) =
        if packet[0] >> 4 == 4 { (&packet[12..20], packet[9]) } else { (&packet[8..40], packet[6]) };
    naive_sum(addresses) + u64::from(protocol) + (packet.len() - l4_offset) as u64
}

/// Makes the checksums of a changed packet right again, as far as its headers can still be read.
pub fn seal(packet: &mut [u8]) {
    let is_v4 = packet[0] >> 4 == 4;
    let (l4_offset, protocol) = if is_v4 { (usize::from(packet[0] & 15) * 4, packet[9]) } else { (40, packet[6]) };
    if packet.len() < l4_offset {
        return;
    }
    if is_v4 {
        packet[10..12].fill(0);
        let sum = !naive_fold(naive_sum(&packet[..l4_offset]));
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let at = l4_offset + if protocol == ip::PROTOCOL_UDP { 6 } else { 16 };
    if packet.len() >= at + 2 {
        packet[at..at + 2].fill(0);
        let sum = !naive_fold(naive_sum(&packet[l4_offset..]) + pseudo_sum(packet, l4_offset));
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}
