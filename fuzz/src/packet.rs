//! Targets for weft-packet: every relation that its callers build on, on bytes that nobody promised anything about.
//!
//! IPv4 header checksums are made right before all targets but [`ip_check`]: a fuzzer cannot guess them, and nothing
//! behind them would be reached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use weft_packet::fragment::{Fragments, HEADER_LEN_MAX};
use weft_packet::gro::{self, Run};
use weft_packet::gso::{Split, finish_checksum};
use weft_packet::icmp::{ERROR_LEN_MAX, IcmpError, error};
use weft_packet::vnet::{GsoKind, VNET_LEN, VnetHeader};
use weft_packet::{DropReason, Fragmentation, Inner, Version, checksum, ip, martian};

/// A packet. What passes the check stays itself without its trailing bytes, and after one hop has one TTL less.
pub fn ip_check(bytes: &[u8]) {
    let Ok(inner) = ip::check(bytes) else { return };
    let packet = &bytes[..usize::from(inner.total_len)];
    assert!(inner.l4_offset <= inner.total_len);
    assert_eq!(ip::check(packet), Ok(inner));
    assert_eq!(martian::check(packet, &inner), martian::check(bytes, &inner));
    assert!(inner.version == Version::V6 || naive_fold(naive_sum(&packet[..usize::from(inner.l4_offset)])) == 0xffff);
    gro::flow_key(packet, &inner).map(|key| key.hash());
    let mut next = packet.to_vec();
    match ip::decrement_ttl(&mut next, &inner) {
        Ok(()) => assert_eq!(ip::check(&next), Ok(Inner { ttl: inner.ttl - 1, ..inner })),
        Err(reason) => assert!(reason == DropReason::TtlExceeded && inner.ttl <= 1 && next == packet),
    }
}

/// A virtio-net header and a packet. Segments are whole packets with right checksums, their payloads are the
/// super-packet's in order, and what could be coalesced again is the super-packet.
pub fn vnet_split(bytes: &[u8]) {
    let Ok(vnet) = VnetHeader::parse(bytes) else { return };
    let packet = sealed(&bytes[VNET_LEN..], false);
    let Ok(inner) = ip::check(&packet) else { return };
    let mut finished = packet.clone();
    if finish_checksum(&vnet, &inner, &mut finished).is_ok() && vnet.needs_csum {
        let at = usize::from(vnet.csum_start) + usize::from(vnet.csum_offset);
        finished[at..at + 2].copy_from_slice(&packet[at..at + 2]);
        assert_eq!(finished, packet);
    }

    let Some(segments) = split(&vnet, &packet) else { return };
    let header_len = segments[0].header_len;
    let mut payload = Vec::new();
    for segment in &segments {
        let inner = ip::check(&segment.bytes).expect("a segment passes the check");
        assert_eq!(usize::from(inner.total_len), segment.bytes.len());
        let transport = &segment.bytes[usize::from(inner.l4_offset)..];
        let pseudo = checksum::pseudo(&segment.bytes, &inner, transport.len());
        assert_eq!(naive_fold(naive_sum(transport) + pseudo), 0xffff);
        payload.extend_from_slice(&segment.bytes[header_len..]);
    }
    assert_eq!(payload, packet[header_len..usize::from(inner.total_len)]);
}

/// One byte of choice, then packets behind 16-bit big-endian lengths. What coalesces splits into the same packets but
/// for IPv4 ids; what does not stays as it was.
pub fn coalesce(bytes: &[u8]) {
    let Some((choice, mut rest)) = bytes.split_first() else { return };
    let mut packets = Vec::new();
    while let Some((len, tail)) = rest.split_first_chunk() {
        let (packet, tail) = tail.split_at(tail.len().min(usize::from(u16::from_be_bytes(*len))));
        let packet = sealed(packet, choice & 1 != 0);
        if let Ok(inner) = ip::check(&packet) {
            packets.push(packet[..usize::from(inner.total_len)].to_vec());
        }
        rest = tail;
    }
    let mut apart = Vec::new();
    for (vnet, packet) in merged(&packets) {
        match vnet.gso {
            GsoKind::None => apart.push(packet),
            _ => apart.extend(split(&vnet, &packet).expect("a chain splits").into_iter().map(|segment| segment.bytes)),
        }
    }
    assert_eq!(apart.len(), packets.len());
    for (found, original) in apart.iter().zip(&packets) {
        assert_eq!(without_id(found), without_id(original));
        assert!(ip::check(found).is_ok());
    }
}

/// One byte for the kind of error, two for the MTU, then the offender. The error is a whole packet with right
/// checksums to the offender's source, quotes its beginning, and draws no error itself.
pub fn icmp_error(bytes: &[u8]) {
    let Some(([kind, mtu @ ..], offender)) = bytes.split_first_chunk::<3>() else { return };
    let offender = sealed(offender, false);
    let Ok(inner) = ip::check(&offender) else { return };
    let kind = match kind % 3 {
        0 => IcmpError::TimeExceeded,
        1 => IcmpError::NetUnreachable,
        _ => IcmpError::TooBig { mtu: u16::from_be_bytes(*mtu) },
    };
    let (own, other) = match inner.version {
        Version::V4 => (OWN4, OWN6),
        Version::V6 => (OWN6, OWN4),
    };
    let mut out = [0; ERROR_LEN_MAX];
    assert_eq!(error(kind, other, &offender, &inner, &mut out), None);
    let Some(len) = error(kind, own, &offender, &inner, &mut out) else { return };
    let answer = &out[..len];
    let about = ip::check(answer).expect("an error passes the check");
    assert_eq!(usize::from(about.total_len), len);
    assert!(inner.fragmentation != Fragmentation::Later && martian::check(&offender, &inner).is_ok());
    let l4_offset = usize::from(about.l4_offset);
    assert!(offender.starts_with(&answer[l4_offset + 8..]));
    let (pseudo, len_max) = match inner.version {
        Version::V4 => {
            assert_eq!(about.dst4(answer), inner.src4(&offender));
            (0, 576)
        }
        Version::V6 => {
            assert_eq!(about.dst6(answer), inner.src6(&offender));
            (checksum::pseudo(answer, &about, len - l4_offset), 1280)
        }
    };
    assert!(len <= len_max);
    assert_eq!(naive_fold(naive_sum(&answer[l4_offset..]) + pseudo), 0xffff);
    assert_eq!(error(kind, own, answer, &about, &mut [0; ERROR_LEN_MAX]), None);
}

/// A 16-bit big-endian MTU and a packet. Fragments fit, pass the check, and lie without gap or overlap.
pub fn fragment(bytes: &[u8]) {
    let Some((mtu, packet)) = bytes.split_first_chunk() else { return };
    let mtu = usize::from(u16::from_be_bytes(*mtu));
    let packet = sealed(packet, false);
    let Ok(inner) = ip::check(&packet) else { return };
    let Ok(fragments) = Fragments::new(&inner, &packet, mtu) else { return };
    let (mut offset, _) = fragment_field(&packet);
    let mut payload = Vec::new();
    for index in 0..fragments.count() {
        let mut header = [0; HEADER_LEN_MAX];
        let (header_len, range) = fragments.fragment(index, &packet, &mut header);
        let piece = [&header[..header_len], &packet[range]].concat();
        let piece_inner = ip::check(&piece).expect("a fragment passes the check");
        assert!(piece.len() <= mtu && usize::from(piece_inner.total_len) == piece.len());
        let is_last = index + 1 == fragments.count();
        assert_eq!(fragment_field(&piece), (offset, !is_last || fragment_field(&packet).1));
        offset += piece.len() - header_len;
        payload.extend_from_slice(&piece[header_len..]);
    }
    assert_eq!(payload, packet[usize::from(inner.l4_offset)..usize::from(inner.total_len)]);
}

const OWN4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 9, 0));
const OWN6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9));

struct Segment {
    header_len: usize,
    bytes: Vec<u8>,
}

fn split(vnet: &VnetHeader, packet: &[u8]) -> Option<Vec<Segment>> {
    let split = Split::new(vnet, &ip::check(packet).ok()?, packet).ok()?;
    let header_len = split.header_len();
    let segment = |index| {
        let mut bytes = vec![0; split.len_of(index)];
        split.segments(index..index + 1, packet, &mut bytes);
        assert!(bytes.len() <= split.segment_len());
        Segment { header_len, bytes }
    };
    Some((0..split.count()).map(segment).collect())
}

/// Appends each packet to the chain before it, or begins another.
fn merged(packets: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    let mut chains: Vec<(Option<Run>, Vec<u8>, Vec<u8>)> = Vec::new();
    for packet in packets {
        let inner = ip::check(packet).expect("only checked packets come here");
        let candidate = gro::candidate(packet, &inner);
        if let (Some((Some(run), head, tail)), Some(next)) = (chains.last_mut(), &candidate)
            && run.append(head, next, packet)
        {
            tail.extend_from_slice(&packet[next.header_len()..]);
            continue;
        }
        chains.push((candidate.as_ref().map(Run::start), packet.clone(), Vec::new()));
    }
    let finish = |(run, mut head, tail): (Option<Run>, Vec<u8>, Vec<u8>)| {
        let vnet = run.map_or(VnetHeader::PLAIN, |run| run.finish(&mut head));
        head.extend(tail);
        (vnet, head)
    };
    chains.into_iter().map(finish).collect()
}

/// The packet without IPv4 id and checksum, and with the canonical one of the two one's-complement zeros in the
/// transport checksum of TCP and UDP.
fn without_id(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let Ok(inner) = ip::check(&packet) else { return packet };
    if inner.version == Version::V4 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    let at = usize::from(inner.l4_offset) + if inner.protocol == ip::PROTOCOL_UDP { 6 } else { 16 };
    if inner.protocol == ip::PROTOCOL_TCP && packet.get(at..at + 2) == Some(&[0xff, 0xff]) {
        packet[at..at + 2].fill(0);
    }
    packet
}

/// The packet with its IPv4 header checksum, and on request its transport checksum, made right.
fn sealed(bytes: &[u8], with_transport: bool) -> Vec<u8> {
    let mut packet = bytes.to_vec();
    if packet.first().is_some_and(|first| first >> 4 == 4) {
        let header_len = usize::from(packet[0] & 15) * 4;
        if (20..=packet.len()).contains(&header_len) {
            packet[10..12].fill(0);
            let sum = !naive_fold(naive_sum(&packet[..header_len]));
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
    }
    let Ok(inner) = ip::check(&packet) else { return packet };
    let (start, end) = (usize::from(inner.l4_offset), usize::from(inner.total_len));
    let at = start + if inner.protocol == ip::PROTOCOL_UDP { 6 } else { 16 };
    if with_transport && at + 2 <= end {
        packet[at..at + 2].fill(0);
        let pseudo = checksum::pseudo(&packet, &inner, end - start);
        let sum = !naive_fold(naive_sum(&packet[start..end]) + pseudo);
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// Offset in bytes and more-fragments flag.
fn fragment_field(packet: &[u8]) -> (usize, bool) {
    let field = u16::from_be_bytes([packet[6], packet[7]]);
    (usize::from(field & 0x1fff) * 8, field & 0x2000 != 0)
}

/// RFC 1071, word by word.
fn naive_sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | word.get(1).map_or(0, |&low| u64::from(low))).sum()
}

fn naive_fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}
