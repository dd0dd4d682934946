use crate::support::{Flow, naive_fold, naive_sum, payload, seal};
use weft_packet::ip::{Fragmentation, Inner, Version, check};
use weft_packet::{DropReason, martian};

const V4: (bool, bool) = (false, true);
const V6: (bool, bool) = (true, true);

/// A UDP packet with a change to it, its IPv4 checksums made right afterwards.
fn changed((is_v6, is_udp): (bool, bool), change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut packet = Flow { dont_fragment: false, ..Flow::new(is_v6, is_udp) }.build(&payload(64));
    change(&mut packet);
    seal(&mut packet);
    packet
}

fn with_options(options: &[u8]) -> Vec<u8> {
    Flow { ip_options: options.to_vec(), ..Flow::new(false, true) }.build(b"data")
}

/// An IPv6 packet with these bytes between its header, whose next header is `first`, and eight bytes of UDP header.
fn with_extensions(first: u8, extensions: &[u8]) -> Vec<u8> {
    let mut packet = Flow::new(true, true).build(b"");
    packet[6] = first;
    packet.splice(40..40, extensions.iter().copied());
    let len = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    packet
}

/// A destination-options header of `len` bytes (a multiple of eight) before `next`.
fn options_header(next: u8, len: usize) -> Vec<u8> {
    let mut header = vec![0; len];
    (header[0], header[1]) = (next, (len / 8 - 1) as u8);
    header
}

fn chain(count: usize, len: usize) -> Vec<u8> {
    (1..=count).flat_map(|index| options_header(if index == count { 17 } else { 60 }, len)).collect()
}

#[test]
fn each_malformed_packet_has_its_drop_reason() {
    use DropReason::*;
    let v4 =
        |at: usize, bytes: &'static [u8]| changed(V4, |packet| packet[at..at + bytes.len()].copy_from_slice(bytes));
    let v6 =
        |at: usize, bytes: &'static [u8]| changed(V6, |packet| packet[at..at + bytes.len()].copy_from_slice(bytes));
    let table: [(&str, Vec<u8>, DropReason); 33] = [
        ("nothing", vec![], Empty),
        ("version 0", vec![0], BadVersion),
        ("version 5", v4(0, &[0x55]), BadVersion),
        ("version 15", vec![0xff; 40], BadVersion),
        ("one byte of IPv4", vec![0x45], TooShort),
        ("19 bytes of IPv4", changed(V4, |packet| packet.truncate(19)), TooShort),
        ("39 bytes of IPv6", changed(V6, |packet| packet.truncate(39)), TooShort),
        ("IHL 0", v4(0, &[0x40]), BadHeaderLen),
        ("IHL 4", v4(0, &[0x44]), BadHeaderLen),
        (
            "IHL beyond the packet",
            changed(V4, |packet| {
                packet.truncate(24);
                packet[0] = 0x47;
            }),
            BadHeaderLen,
        ),
        ("total length 0", v4(2, &[0, 0]), BadTotalLen),
        ("total length below the header", v4(2, &[0, 19]), BadTotalLen),
        ("total length beyond the packet", changed(V4, |packet| packet[3] += 1), BadTotalLen),
        ("IPv6 payload length 0", v6(4, &[0, 0]), BadTotalLen),
        ("IPv6 payload beyond the packet", changed(V6, |packet| packet[5] += 1), BadTotalLen),
        (
            "IPv6 beyond 65,535",
            changed(V6, |packet| {
                packet.resize(65_575, 0);
                packet[4..6].fill(0xff);
            }),
            BadTotalLen,
        ),
        (
            "header checksum",
            {
                let mut packet = v4(0, &[]);
                packet[10] ^= 1;
                packet
            },
            BadChecksum,
        ),
        (
            "checksum over options",
            {
                let mut packet = with_options(&[1; 8]);
                packet[24] = 0;
                packet
            },
            BadChecksum,
        ),
        ("loose source route", with_options(&[131, 7, 4, 10, 0, 0, 1, 0]), SourceRoute),
        ("strict source route after NOP", with_options(&[1, 137, 7, 4, 10, 0, 0, 1]), SourceRoute),
        ("option of length 0", with_options(&[7, 0, 0, 0]), BadHeaderLen),
        ("option of length 1", with_options(&[7, 1, 0, 0]), BadHeaderLen),
        ("option beyond the header", with_options(&[7, 5, 0, 0]), BadHeaderLen),
        ("option without length", with_options(&[1, 1, 1, 7]), BadHeaderLen),
        ("last fragment offset", v4(6, &[0x1f, 0xff]), PingOfDeath),
        ("routing type 0", with_extensions(43, &[17, 0, 0, 0, 0, 0, 0, 0]), SourceRoute),
        (
            "routing type 0 behind options",
            with_extensions(0, &[43, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0]),
            SourceRoute,
        ),
        ("extension beyond the packet", with_extensions(60, &[17, 9, 0, 0, 0, 0, 0, 0]), BadHeaderLen),
        (
            "extension cut short",
            changed(V6, |packet| {
                packet.truncate(44);
                packet[5] = 4;
                packet[6] = 60;
            }),
            BadHeaderLen,
        ),
        ("nine extensions", with_extensions(60, &chain(9, 8)), BadHeaderLen),
        ("264 bytes of extensions", with_extensions(60, &chain(1, 264)), BadHeaderLen),
        ("IPv6 last fragment offset", with_extensions(44, &[17, 0, 0xff, 0xf8, 0, 0, 0, 1]), PingOfDeath),
        ("a chain that runs into the transport header", with_extensions(60, &options_header(60, 8)), BadHeaderLen),
    ];
    for (name, packet, reason) in table {
        assert_eq!(check(&packet), Err(reason), "{name}");
    }
}

#[test]
fn good_packets_are_described_by_their_own_headers() {
    let whole4 = Inner {
        version: Version::V4,
        l4_offset: 20,
        total_len: 92,
        protocol: 17,
        ttl: 64,
        fragmentation: Fragmentation::Whole,
        dont_fragment: false,
    };
    let whole6 = Inner { version: Version::V6, l4_offset: 40, total_len: 48, dont_fragment: true, ..whole4 };
    let v4 =
        |at: usize, bytes: &'static [u8]| changed(V4, |packet| packet[at..at + bytes.len()].copy_from_slice(bytes));
    let fragment6 = |field: [u8; 2]| with_extensions(44, &[17, 0, field[0], field[1], 0, 0, 0, 1]);
    let table: Vec<(&str, Vec<u8>, Inner)> = vec![
        ("plain", v4(0, &[]), whole4),
        (
            "trailing bytes",
            {
                let mut packet = v4(0, &[]);
                packet.extend(b"xyz");
                packet
            },
            whole4,
        ),
        ("DF", v4(6, &[0x40]), Inner { dont_fragment: true, ..whole4 }),
        ("first fragment", v4(6, &[0x20, 0]), Inner { fragmentation: Fragmentation::First, ..whole4 }),
        ("middle fragment", v4(6, &[0x20, 1]), Inner { fragmentation: Fragmentation::Later, ..whole4 }),
        ("last fragment", v4(6, &[0, 1]), Inner { fragmentation: Fragmentation::Later, ..whole4 }),
        (
            "a fragment that ends at 65,535",
            changed(V4, |packet| {
                packet.truncate(27);
                packet[3] = 27;
                packet[6..8].copy_from_slice(&[0x1f, 0xfc]);
            }),
            Inner { fragmentation: Fragmentation::Later, total_len: 27, ..whole4 },
        ),
        ("TTL 0", v4(8, &[0]), Inner { ttl: 0, ..whole4 }),
        ("unknown protocol", v4(9, &[200]), Inner { protocol: 200, ..whole4 }),
        (
            "router alert",
            with_options(&[148, 4, 0, 0]),
            Inner { l4_offset: 24, total_len: 36, dont_fragment: true, ..whole4 },
        ),
        (
            "junk behind the end of options",
            with_options(&[0, 131, 0, 0]),
            Inner { l4_offset: 24, total_len: 36, dont_fragment: true, ..whole4 },
        ),
        ("IPv6", with_extensions(17, &[]), whole6),
        ("hop-by-hop", with_extensions(0, &options_header(17, 16)), Inner { l4_offset: 56, total_len: 64, ..whole6 }),
        ("eight extensions", with_extensions(60, &chain(8, 8)), Inner { l4_offset: 104, total_len: 112, ..whole6 }),
        ("256 bytes", with_extensions(60, &chain(1, 256)), Inner { l4_offset: 296, total_len: 304, ..whole6 }),
        (
            "routing type 4",
            with_extensions(43, &[17, 0, 4, 0, 0, 0, 0, 0]),
            Inner { l4_offset: 48, total_len: 56, ..whole6 },
        ),
        ("ESP", with_extensions(50, &[0; 8]), Inner { protocol: 50, total_len: 56, ..whole6 }),
        ("AH", with_extensions(51, &[0; 8]), Inner { protocol: 51, total_len: 56, ..whole6 }),
        ("no next header", with_extensions(59, &[0; 8]), Inner { protocol: 59, total_len: 56, ..whole6 }),
        ("atomic fragment", fragment6([0, 0]), Inner { l4_offset: 48, total_len: 56, ..whole6 }),
        (
            "IPv6 first fragment",
            fragment6([0, 1]),
            Inner { l4_offset: 48, total_len: 56, fragmentation: Fragmentation::First, ..whole6 },
        ),
        (
            "IPv6 later fragment",
            fragment6([0, 8]),
            Inner { l4_offset: 48, total_len: 56, fragmentation: Fragmentation::Later, ..whole6 },
        ),
    ];
    for (name, packet, inner) in table {
        assert_eq!(check(&packet), Ok(inner), "{name}");
    }
}

#[test]
fn a_header_checksum_of_ffff_is_as_good_as_zero() {
    let mut packet = changed(V4, |_| ());
    packet[4..6].fill(0);
    packet[10..12].fill(0);
    let id = !naive_fold(naive_sum(&packet[..20]));
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    for sum in [0x0000u16, 0xffff] {
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        assert!(check(&packet).is_ok(), "{sum:#x}");
    }
}

#[test]
fn addresses_read_as_numbers() {
    for is_v6 in [false, true] {
        let flow = Flow::new(is_v6, true);
        let packet = flow.build(b"");
        let inner = check(&packet).unwrap();
        if is_v6 {
            assert_eq!((inner.src6(&packet), inner.dst6(&packet)), (flow.source, flow.destination));
        } else {
            assert_eq!((inner.src4(&packet), inner.dst4(&packet)), (flow.source as u32, flow.destination as u32));
        }
    }
}

#[test]
fn martian_addresses_are_told_apart() {
    let table: [(&str, bool, Option<DropReason>); 34] = [
        // Address, whether one may send from it, what becomes of a packet to it.
        ("10.0.0.1", true, None),
        ("1.0.0.0", true, None),
        ("126.255.255.255", true, None),
        ("128.0.0.0", true, None),
        ("169.253.255.255", true, None),
        ("169.255.0.0", true, None),
        ("223.255.255.255", true, None),
        ("192.168.1.1", true, None),
        ("0.0.0.0", false, Some(DropReason::MartianDestination)),
        ("0.255.255.255", false, Some(DropReason::MartianDestination)),
        ("127.0.0.1", false, Some(DropReason::MartianDestination)),
        ("127.255.255.255", false, Some(DropReason::MartianDestination)),
        ("169.254.0.0", false, Some(DropReason::MartianDestination)),
        ("169.254.169.254", false, Some(DropReason::MartianDestination)),
        ("224.0.0.0", false, Some(DropReason::Multicast)),
        ("239.255.255.255", false, Some(DropReason::Multicast)),
        ("240.0.0.0", false, Some(DropReason::MartianDestination)),
        ("255.255.255.254", false, Some(DropReason::MartianDestination)),
        ("255.255.255.255", false, Some(DropReason::Multicast)),
        ("fd00::1", true, None),
        ("2001:db8::1", true, None),
        ("::2", true, None),
        ("::1:0:0", true, None),
        ("::fffe:a00:1", true, None),
        ("0:0:0:1::", true, None),
        ("fe7f::1", true, None),
        ("fec0::1", true, None),
        ("::", false, Some(DropReason::MartianDestination)),
        ("::1", false, Some(DropReason::MartianDestination)),
        ("::ffff:10.0.0.1", false, Some(DropReason::MartianDestination)),
        ("fe80::1", false, Some(DropReason::MartianDestination)),
        ("febf:ffff::", false, Some(DropReason::MartianDestination)),
        ("ff00::", false, Some(DropReason::Multicast)),
        ("ff02::1", false, Some(DropReason::Multicast)),
    ];
    for (text, is_source, to) in table {
        let address: std::net::IpAddr = text.parse().unwrap();
        let number = match address {
            std::net::IpAddr::V4(address) => u128::from(u32::from(address)),
            std::net::IpAddr::V6(address) => u128::from(address),
        };
        let good = Flow::new(address.is_ipv6(), true);
        let verdict = |flow: Flow| {
            let packet = flow.build(b"");
            martian::check(&packet, &check(&packet).unwrap())
        };
        let from = verdict(Flow { source: number, ..good.clone() });
        assert_eq!(from, if is_source { Ok(()) } else { Err(DropReason::MartianSource) }, "from {text}");
        assert_eq!(verdict(Flow { destination: number, ..good }).err(), to, "to {text}");
    }
}
