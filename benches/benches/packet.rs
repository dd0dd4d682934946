//! The packet path's pure work. `memcpy` in a group is the limit: one pass over the same bytes.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Duration;
use weft_packet::gro::{self, Candidate, Run};
use weft_packet::gso::Split;
use weft_packet::vnet::{GsoKind, VnetHeader};
use weft_packet::{checksum, ip, martian};

/// TCP payload bytes of one full segment on an underlay MTU of 1500: 1472 less IPv4, TCP and timestamps.
const SEGMENT_PAYLOAD_LEN: usize = 1420;
/// Full segments in a super-packet of at most 64 KiB.
const SEGMENT_COUNT: usize = 44;

fn checksums(c: &mut Criterion) {
    for len in [20, 64, 128, 1400, 9000, 65_536] {
        let bytes = vec![0x5a; len];
        let mut copy = vec![0; len];
        let mut group = c.benchmark_group("checksum");
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("sum/{len}"), |b| b.iter(|| checksum::sum(black_box(&bytes), 0)));
        group.bench_function(format!("copy/{len}"), |b| {
            b.iter(|| checksum::copy(black_box(&bytes), black_box(&mut copy[..]), 0))
        });
        group.bench_function(format!("memcpy/{len}"), |b| {
            b.iter(|| black_box(&mut copy[..]).copy_from_slice(black_box(&bytes)))
        });
        group.finish();
    }
}

fn checks(c: &mut Criterion) {
    for (name, is_v6) in [("ipv4", false), ("ipv6", true)] {
        let packet = tcp_segment(is_v6, 0);
        let inner = ip::check(&packet).unwrap();
        let mut group = c.benchmark_group("check");
        group.bench_function(name, |b| b.iter(|| ip::check(black_box(&packet))));
        group.bench_function(format!("{name}/martian"), |b| b.iter(|| martian::check(black_box(&packet), &inner)));
        group.bench_function(format!("{name}/ttl"), |b| {
            let mut packet = packet.clone();
            let restored: [u8; 4] = packet[6..10].try_into().unwrap();
            b.iter(|| {
                // A whole word, as the decrement reads one: a byte would stall its load behind the store.
                packet[6..10].copy_from_slice(&restored);
                ip::decrement_ttl(black_box(&mut packet), &inner)
            });
        });
        group.bench_function(format!("{name}/flow_hash"), |b| {
            b.iter(|| gro::flow_key(black_box(&packet), black_box(&inner)).map(|key| key.hash()))
        });
        group.bench_function(format!("{name}/candidate"), |b| {
            b.iter(|| gro::candidate(black_box(&packet), black_box(&inner)))
        });
        group.finish();
    }
}

fn offloads(c: &mut Criterion) {
    type Segment = fn(usize) -> Vec<u8>;
    let flows: [(&str, Segment); 3] = [
        ("tcp4", |index| tcp_segment(false, index)),
        ("tcp6", |index| tcp_segment(true, index)),
        ("udp4", udp_segment),
    ];
    for (name, segment) in flows {
        let packets: Vec<_> = (0..SEGMENT_COUNT).map(segment).collect();
        let (vnet, super_packet) = super_packet(&packets);
        let mut copy = vec![0; super_packet.len()];

        let mut group = c.benchmark_group("split");
        group.throughput(Throughput::Bytes(super_packet.len() as u64));
        let mut segments = vec![0; packets.iter().map(Vec::len).sum()];
        group.bench_function(format!("{name}/64k"), |b| {
            b.iter(|| split(&vnet, black_box(&super_packet), black_box(&mut segments)))
        });
        group.bench_function(format!("memcpy/{name}/64k"), |b| {
            b.iter(|| black_box(&mut copy[..]).copy_from_slice(black_box(&super_packet)))
        });
        group.finish();

        let mut group = c.benchmark_group("coalesce");
        group.throughput(Throughput::Bytes(packets.iter().map(|packet| packet.len() as u64).sum()));
        group.bench_function(format!("{name}/{SEGMENT_COUNT}"), |b| {
            b.iter_batched_ref(|| packets[0].clone(), |head| coalesce(head, black_box(&packets)), BatchSize::SmallInput)
        });
        let mut copies = packets.clone();
        group.bench_function(format!("memcpy/{name}/{SEGMENT_COUNT}"), |b| {
            b.iter(|| {
                for (copy, packet) in copies.iter_mut().zip(black_box(&packets)) {
                    black_box(&mut copy[..]).copy_from_slice(packet);
                }
            })
        });
        group.finish();
    }
}

fn split(vnet: &VnetHeader, packet: &[u8], segments: &mut [u8]) {
    let inner = ip::check(packet).unwrap();
    let split = Split::new(vnet, &inner, packet).unwrap();
    split.segments(0..split.count(), packet, segments);
}

fn candidate(packet: &[u8]) -> Candidate {
    gro::candidate(packet, &ip::check(packet).unwrap()).unwrap()
}

fn coalesce(head: &mut [u8], packets: &[Vec<u8>]) -> VnetHeader {
    let mut run = Run::start(&candidate(head));
    for packet in &packets[1..] {
        assert!(run.append(head, &candidate(packet), packet));
    }
    run.finish(head)
}

fn super_packet(packets: &[Vec<u8>]) -> (VnetHeader, Vec<u8>) {
    let mut super_packet = packets[0].clone();
    let vnet = coalesce(&mut super_packet, packets);
    assert_ne!(vnet.gso, GsoKind::None);
    packets[1..].iter().for_each(|packet| super_packet.extend_from_slice(&packet[usize::from(vnet.hdr_len)..]));
    (vnet, super_packet)
}

/// The `index`th datagram of a segmenting UDP sender.
fn udp_segment(index: usize) -> Vec<u8> {
    let udp_len = 8 + SEGMENT_PAYLOAD_LEN;
    let mut packet = ipv4_header(ip::PROTOCOL_UDP, udp_len, index);
    packet.extend([0xc3, 0x50, 0x14, 0x51]);
    packet.extend((udp_len as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.resize(20 + udp_len, 0x5a);
    finish_checksum(&mut packet, 20, 6);
    packet
}

fn ipv4_header(protocol: u8, transport_len: usize, index: usize) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 0, 0, index as u8, 0x40, 0, 64, protocol, 0, 0, 10, 1, 0, 1, 10, 2, 0, 1];
    ip[2..4].copy_from_slice(&((20 + transport_len) as u16).to_be_bytes());
    let sum = !checksum::fold(checksum::sum(&ip, 0));
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip
}

fn finish_checksum(packet: &mut [u8], ip_len: usize, offset: usize) {
    let pseudo = checksum::pseudo(packet, &ip::check(packet).unwrap(), packet.len() - ip_len);
    let sum = !checksum::fold(checksum::sum(&packet[ip_len..], pseudo));
    packet[ip_len + offset..][..2].copy_from_slice(&sum.to_be_bytes());
}

/// The `index`th segment of a bulk TCP flow with timestamps.
fn tcp_segment(is_v6: bool, index: usize) -> Vec<u8> {
    let tcp_len = 32 + SEGMENT_PAYLOAD_LEN;
    let mut packet = if is_v6 {
        let mut ip = vec![0x60, 0, 0, 0, 0, 0, ip::PROTOCOL_TCP, 64];
        ip[4..6].copy_from_slice(&(tcp_len as u16).to_be_bytes());
        for host in [1, 2] {
            ip.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
        }
        ip
    } else {
        ipv4_header(ip::PROTOCOL_TCP, tcp_len, index)
    };
    let ip_len = packet.len();
    packet.extend([0xc3, 0x50, 0x14, 0x51]);
    packet.extend(((index * SEGMENT_PAYLOAD_LEN) as u32).to_be_bytes());
    packet.extend([0, 0, 0, 1, 0x80, 0x10, 1, 0xf6, 0, 0, 0, 0, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
    packet.resize(ip_len + tcp_len, 0x5a);
    finish_checksum(&mut packet, ip_len, 16);
    packet
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = checksums, checks, offloads
}
criterion_main!(benches);
