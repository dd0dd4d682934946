//! What is encoded decodes to the same, and decoding is total on everything else.

use bytes::{Bytes, BytesMut};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use weft_proto::limits::{ALIASES_MAX, FRAME_LEN_MAX, NAME_LEN_MAX, PEERS_MAX};
use weft_proto::{
    Assembler, Delta, Digest, Event, Frame, FrameError, Installed, LogLevel, PEERS_PER_REPLY, PeerReport, PeerSpec,
    Refusal, RefusalCode, Reply, Request, RouteSet, RouteSpec, TableError, Transaction, frame,
};

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from(bits))),
        any::<u32>().prop_map(|bits| IpAddr::V6(Ipv4Addr::from(bits).to_ipv6_mapped())),
    ]
}

fn prefix() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any::<u32>(), 0u8..=32).prop_map(|(bits, len)| IpNet::V4(Ipv4Net::new(bits.into(), len).unwrap().trunc())),
        (any::<u128>(), 0u8..=128).prop_map(|(bits, len)| IpNet::V6(Ipv6Net::new(bits.into(), len).unwrap().trunc())),
    ]
}

fn peer() -> impl Strategy<Value = PeerSpec> {
    (option::of("[a-zäß.-]{1,40}"), ip(), any::<u16>(), vec(ip(), 0..4))
        .prop_map(|(name, ip, port, aliases)| PeerSpec { name, addr: SocketAddr::new(ip, port), aliases })
}

/// Sets whose peers differ and whose routes do; any order.
fn set() -> impl Strategy<Value = RouteSet> {
    (vec(peer(), 1..20), vec((prefix(), any::<prop::sample::Index>()), 0..200)).prop_map(|(mut peers, mut routes)| {
        let mut seen = std::collections::HashSet::new();
        peers.retain(|peer| seen.insert(weft_proto::canonical_addr(peer.addr)));
        let mut seen = std::collections::HashSet::new();
        routes.retain(|(prefix, _)| seen.insert(*prefix));
        let routes = routes
            .iter()
            .map(|(prefix, at)| RouteSpec { prefix: *prefix, peer: at.index(peers.len()) as u32 })
            .collect();
        RouteSet { peers, routes }
    })
}

fn delta() -> impl Strategy<Value = Delta> {
    (vec((prefix(), peer()), 0..40), vec(prefix(), 0..40)).prop_map(|(upsert, remove)| Delta { upsert, remove })
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        (any::<u16>(), "[ -~]{0,60}").prop_map(|(protocol, client)| Request::Hello { protocol, client }),
        (any::<bool>(), option::of(any::<u64>())).prop_map(|(swap, expect)| Request::Begin {
            kind: if swap { Transaction::Swap } else { Transaction::Delta },
            expect,
        }),
        vec(any::<u8>(), 0..300).prop_map(|bytes| Request::Chunk(bytes.into())),
        (any::<u32>(), any::<u128>()).prop_map(|(records, bits)| Request::Commit { records, digest: Digest(bits) }),
        ip().prop_map(Request::Get),
        prop::sample::select(LogLevel::ALL.to_vec()).prop_map(Request::SetLogLevel),
        prop::sample::select(vec![
            Request::List,
            Request::Peers,
            Request::Stats,
            Request::Status,
            Request::Subscribe,
            Request::Drain,
        ]),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    let installed =
        (any::<u64>(), any::<u128>(), any::<u32>(), any::<u32>()).prop_map(|(generation, digest, routes, peers)| {
            Installed { generation, digest: Digest(digest), routes, peers }
        });
    prop_oneof![
        installed.clone().prop_map(Reply::Installed),
        installed.prop_map(Reply::TableBegin),
        vec(any::<u8>(), 0..300).prop_map(|bytes| Reply::TableChunk(bytes.into())),
        any::<u32>().prop_map(|records| Reply::TableEnd { records }),
        ("\\PC{0,80}", option::of(any::<u64>()))
            .prop_map(|(text, generation)| { Reply::Refused(Refusal { code: RefusalCode::Stale, text, generation }) }),
        vec((peer(), any::<u64>()), 0..10).prop_map(|peers| {
            let report = |(peer, count): (PeerSpec, u64)| PeerReport {
                id: count as u16,
                peer,
                routes: count as u32,
                tx_packets: count,
                tx_bytes: count,
                rx_packets: count,
                rx_bytes: count,
                path_mtu: Some(1400),
                last_rx_ago_ms: None,
            };
            Reply::Peers(peers.into_iter().map(report).collect())
        }),
        (any::<u16>(), option::of("\\PC{0,40}"))
            .prop_map(|(worker, error)| Reply::Event(Event::WorkerEnded { worker, error })),
        Just(Reply::Done),
    ]
}

fn only_frame(mut bytes: BytesMut) -> Frame {
    let frame = frame::take(&mut bytes).unwrap().unwrap();
    assert!(bytes.is_empty());
    frame
}

proptest! {
    #[test]
    fn requests_decode_to_themselves(request in request()) {
        let mut bytes = BytesMut::new();
        request.encode(&mut bytes);
        prop_assert_eq!(Request::decode(only_frame(bytes)).unwrap(), request);
    }

    #[test]
    fn replies_decode_to_themselves(reply in reply()) {
        let mut bytes = BytesMut::new();
        reply.encode(&mut bytes);
        prop_assert_eq!(Reply::decode(only_frame(bytes)).unwrap(), reply);
    }

    #[test]
    fn frames_arrive_whole_however_the_stream_is_cut(requests in vec(request(), 1..8), piece in 1usize..40) {
        let mut bytes = BytesMut::new();
        requests.iter().for_each(|request| request.encode(&mut bytes));
        let (mut input, mut arrived) = (BytesMut::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            input.extend_from_slice(piece);
            while let Some(frame) = frame::take(&mut input).unwrap() {
                arrived.push(Request::decode(frame).unwrap());
            }
        }
        prop_assert_eq!(arrived, requests);
    }

    #[test]
    fn a_damaged_byte_never_makes_another_frame(request in request(), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut bytes = BytesMut::new();
        request.encode(&mut bytes);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(!matches!(frame::take(&mut bytes), Ok(Some(_))));
    }

    #[test]
    fn decoding_is_total(kind in any::<u8>(), body in vec(any::<u8>(), 0..200)) {
        let body = Bytes::from(body);
        let _ = Request::decode(Frame { kind, body: body.clone() });
        let _ = Reply::decode(Frame { kind, body: body.clone() });
        let _ = Assembler::default().add(body.clone());
        let _ = frame::take(&mut BytesMut::from(body));
    }

    #[test]
    fn sets_survive_their_chunks(set in set()) {
        let mut assembler = Assembler::default();
        let mut chunks = set.chunks();
        for chunk in &mut chunks {
            assembler.add(chunk).unwrap();
        }
        prop_assert_eq!(chunks.record_count(), assembler.records());
        drop(chunks);
        prop_assert_eq!(assembler.into_set().unwrap(), set);
    }

    #[test]
    fn deltas_survive_their_chunks(delta in delta()) {
        let mut assembler = Assembler::default();
        for chunk in delta.chunks() {
            assembler.add(chunk).unwrap();
        }
        let arrived = assembler.into_delta();
        prop_assert_eq!(arrived.digest(), delta.digest());
        prop_assert_eq!(arrived, delta);
    }

    #[test]
    fn the_digest_ignores_order_and_notices_every_change(set in set(), seed in any::<u64>()) {
        let canonical = set.clone().canonical();
        prop_assert_eq!(set.digest(), canonical.digest());
        prop_assert_eq!(&canonical.clone().canonical(), &canonical, "canonical forms are their own");
        let mut reversed = set.clone();
        reversed.peers.reverse();
        reversed.routes.reverse();
        let last = set.peers.len() as u32 - 1;
        reversed.routes.iter_mut().for_each(|route| route.peer = last - route.peer);
        prop_assert_eq!(reversed.digest(), set.digest());
        prop_assert_eq!(reversed.canonical(), canonical);
        let mut fewer = set.clone();
        if !fewer.routes.is_empty() {
            fewer.routes.swap_remove(seed as usize % set.routes.len());
            prop_assert_ne!(fewer.digest(), set.digest());
        }
        let mut renamed = set.clone();
        renamed.peers[seed as usize % set.peers.len()].name = Some("somebody else".into());
        prop_assert_ne!(renamed.digest(), set.digest());
    }

    #[test]
    fn json_forms_survive(set in set(), delta in delta()) {
        prop_assert_eq!(serde_json::from_str::<RouteSet>(&serde_json::to_string(&set).unwrap()).unwrap(), set);
        prop_assert_eq!(serde_json::from_str::<Delta>(&serde_json::to_string(&delta).unwrap()).unwrap(), delta);
    }
}

#[test]
fn the_digest_is_the_same_in_every_release() {
    let set = RouteSet {
        peers: vec![
            PeerSpec { name: Some("b".into()), addr: "192.0.2.7:8285".parse().unwrap(), aliases: vec![] },
            PeerSpec {
                name: None,
                addr: "[2001:db8::7]:8285".parse().unwrap(),
                aliases: vec!["198.51.100.1".parse().unwrap()],
            },
        ],
        routes: vec![
            RouteSpec { prefix: "10.5.2.0/24".parse().unwrap(), peer: 0 },
            RouteSpec { prefix: "fd00::/64".parse().unwrap(), peer: 1 },
        ],
    };
    assert_eq!(set.digest().to_string(), "73e8b85a5b2d7ae19c3cf9f298b87d1e");
    assert_eq!(RouteSet::default().digest().to_string(), "e5189a9599e3f86205ea23ef06e28b2d");
    assert_eq!(set.digest().to_string().parse(), Ok(set.digest()));
}

#[test]
fn the_fullest_peers_reply_fits_a_frame() {
    let peer = PeerSpec {
        name: Some("\\".repeat(NAME_LEN_MAX)),
        addr: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535".parse().unwrap(),
        aliases: (0..ALIASES_MAX as u128).map(|i| IpAddr::V6(Ipv6Addr::from(u128::MAX - i))).collect(),
    };
    let report = PeerReport {
        id: u16::MAX,
        peer,
        routes: u32::MAX,
        tx_packets: u64::MAX,
        tx_bytes: u64::MAX,
        rx_packets: u64::MAX,
        rx_bytes: u64::MAX,
        path_mtu: Some(u32::MAX),
        last_rx_ago_ms: Some(u64::MAX),
    };
    let mut bytes = BytesMut::new();
    Reply::Peers(vec![report; PEERS_PER_REPLY]).encode(&mut bytes);
    assert!(bytes.len() <= FRAME_LEN_MAX);
}

#[test]
fn an_oversized_frame_is_refused_from_its_first_bytes() {
    let mut bytes = BytesMut::from(&[0x00, 0x01, 0x00, 0x00, 0, 0, 0, 0, 9][..]);
    assert_eq!(frame::take(&mut bytes), Err(FrameError::TooLong(65536)));
    let mut short = BytesMut::from(&[0xff, 0xff][..]);
    assert_eq!(frame::take(&mut short), Ok(None));
}

#[test]
fn free_text_is_cut_to_its_bound() {
    let mut bytes = BytesMut::new();
    Request::Hello { protocol: 1, client: "ä".repeat(FRAME_LEN_MAX) }.encode(&mut bytes);
    assert!(bytes.len() < 4096);
    Request::decode(only_frame(bytes)).unwrap();
    let mut bytes = BytesMut::new();
    Reply::Refused(Refusal { code: RefusalCode::Invalid, text: "\u{1}".repeat(FRAME_LEN_MAX), generation: None })
        .encode(&mut bytes);
    Reply::decode(only_frame(bytes)).unwrap();
}

#[test]
fn next_hops_must_be_reachable_from_the_bound_socket() {
    let check = |bind: &str, addr: &str| {
        let peer = PeerSpec { name: None, addr: addr.parse().unwrap(), aliases: Vec::new() };
        RouteSet { peers: vec![peer], routes: Vec::new() }.check(bind.parse().unwrap())
    };
    for (bind, addr) in [
        ("0.0.0.0:8285", "192.0.2.1:8285"),
        ("0.0.0.0:8285", "127.0.0.2:8285"),
        ("127.0.0.1:8285", "127.0.0.2:8285"),
        ("[::]:8285", "192.0.2.1:8285"),
        ("[::]:8285", "[2001:db8::1]:8285"),
        ("0.0.0.0:8285", "[::ffff:192.0.2.1]:8285"),
    ] {
        assert_eq!(check(bind, addr), Ok(()), "{addr} from {bind}");
    }
    for (bind, addr) in [
        ("0.0.0.0:8285", "[2001:db8::1]:8285"),
        ("192.0.2.9:8285", "[2001:db8::1]:8285"),
        ("[2001:db8::9]:8285", "192.0.2.1:8285"),
    ] {
        assert!(matches!(check(bind, addr), Err(TableError::Family { .. })), "{addr} from {bind}");
    }
    assert!(matches!(check("192.0.2.9:8285", "127.0.0.1:8285"), Err(TableError::Loopback { .. })));
}

#[test]
fn contradictions_within_a_delta_are_refused() {
    let peer =
        |name: &str| PeerSpec { name: Some(name.into()), addr: "192.0.2.1:8285".parse().unwrap(), aliases: Vec::new() };
    let bind = "0.0.0.0:8285".parse().unwrap();
    let prefix = |text: &str| text.parse::<IpNet>().unwrap();
    let two_names = Delta {
        upsert: vec![(prefix("10.1.0.0/16"), peer("a")), (prefix("10.2.0.0/16"), peer("b"))],
        remove: Vec::new(),
    };
    assert!(matches!(two_names.check(bind), Err(TableError::ContradictingPeer(_))));
    let both = Delta { upsert: vec![(prefix("10.1.0.0/16"), peer("a"))], remove: vec![prefix("10.1.0.0/16")] };
    assert_eq!(both.check(bind), Err(TableError::DuplicatePrefix(prefix("10.1.0.0/16"))));
}

#[test]
fn more_peers_than_the_bound_stop_the_assembler() {
    let mut assembler = Assembler::default();
    let many = RouteSet {
        peers: (0..=PEERS_MAX as u32)
            .map(|bits| PeerSpec { name: None, addr: SocketAddr::from((bits.to_be_bytes(), 1)), aliases: Vec::new() })
            .collect(),
        routes: Vec::new(),
    };
    assert!(many.chunks().any(|chunk| assembler.add(chunk).is_err()));
}
