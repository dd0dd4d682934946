//! The worker on an in-memory engine: what a real kernel does only when it is old or broken (refusing an offload it
//! granted), and what can be asserted only without one (no allocation in steady state, order within a flow). Packets that
//! leave outside of the engine cross a real loopback socket and a real pipe.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket as StdUdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use weft_dataplane::engine::{Engine, Wait};
use weft_dataplane::io::{Io, TunRx, UdpRx};
use weft_dataplane::limits::{FRAME_LEN, HEADROOM, PACKET_LEN_MAX};
use weft_dataplane::pool::{FrameId, Pool, Purpose};
use weft_dataplane::shared::{Command, PeerCheck, WorkerView};
use weft_dataplane::underlay::{self, UdpCaps, UdpSocket};
use weft_dataplane::worker::{Settings, Worker};
use weft_fib::{Fib, FibBuilder, FibCell, OwnerId, Peer, PeerId, Route};
use weft_packet::vnet::{GsoKind, VNET_LEN, VnetHeader};
use weft_packet::{DropReason, checksum};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is handed on to the system allocator unchanged; counting touches a const-initialised thread local only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise about `layout` is handed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise that this allocator made `pointer` with `layout` is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One thing that the in-memory kernel delivers.
#[derive(Clone)]
enum Arrival {
    Tun(Vec<u8>),
    Udp { bytes: Vec<u8>, stride: usize, source: SocketAddr },
}

/// What left through the engine.
#[derive(Clone, Debug, PartialEq)]
enum Departure {
    Udp { datagrams: Vec<Vec<u8>>, segment_len: usize },
    Tun(Vec<u8>),
}

/// An engine whose kernel is a script: each turn delivers one group of arrivals, then everything is repeated or drained.
struct Memory {
    turns: VecDeque<Vec<Arrival>>,
    /// Deliver the script again this many times.
    repeats: usize,
    script: Vec<Vec<Arrival>>,
    departures: Rc<std::cell::RefCell<Vec<Departure>>>,
    record: bool,
    refuse_batches: Option<i32>,
    refuse_chains: Option<i32>,
    command: Arc<AtomicU8>,
    tun_free: Vec<FrameId>,
    udp_free: Vec<FrameId>,
    /// Allocations of this thread when the first repetition was over, and at the end.
    allocations: Rc<Cell<(u64, u64)>>,
}

impl Engine for Memory {
    fn turn(&mut self, io: &mut Io, _wait: Wait) -> io::Result<()> {
        while let Some(frame) = io.pool.take_released() {
            match Pool::purpose(frame) {
                Purpose::Tun => self.tun_free.push(frame),
                Purpose::Udp => self.udp_free.push(frame),
            }
        }
        while let Some(slot) = io.sends.pop_queued() {
            let op = &io.sends[slot];
            if op.count() > 1
                && let Some(errno) = self.refuse_batches
            {
                io.failed_sends.push_back((slot, io::Error::from_raw_os_error(errno)));
                continue;
            }
            if self.record {
                let datagrams = (0..op.count()).map(|i| io.pool.bytes(op.frame, op.datagram(i)).to_vec()).collect();
                self.departures.borrow_mut().push(Departure::Udp { datagrams, segment_len: op.segment_len });
            }
            io.sent(slot);
        }
        while let Some(slot) = io.writes.pop_queued() {
            let op = &io.writes[slot];
            if op.packets.len() > 1
                && let Some(errno) = self.refuse_chains
            {
                io.failed_writes.push_back((slot, io::Error::from_raw_os_error(errno)));
                continue;
            }
            if self.record {
                let mut out = vec![0; PACKET_LEN_MAX + VNET_LEN];
                // SAFETY: the slot is still filled, so what its gather list points to is in place.
                let len = unsafe { op.gather.copy_out(0..op.gather.len(), &mut out) };
                self.departures.borrow_mut().push(Departure::Tun(out[..len].to_vec()));
            }
            io.written(slot);
        }
        if self.turns.is_empty() && io.failed_sends.is_empty() && io.failed_writes.is_empty() && !io.has_received() {
            let now = ALLOCATIONS.with(Cell::get);
            let (first, _) = self.allocations.get();
            self.allocations.set((if first == 0 { now } else { first }, now));
            if self.repeats == 0 {
                self.command.store(Command::Drain as u8, Relaxed);
                return Ok(());
            }
            self.repeats -= 1;
            // Reuses the queue's memory, but not the arrivals': they are not part of what is counted.
            let script = std::mem::take(&mut self.script);
            let before = ALLOCATIONS.with(Cell::get);
            self.turns.extend(script.iter().cloned());
            self.script = script;
            ALLOCATIONS.with(|count| count.set(before));
        }
        let Some(arrivals) = self.turns.pop_front() else { return Ok(()) };
        for arrival in &arrivals {
            match arrival {
                Arrival::Tun(bytes) => {
                    let frame = self.tun_free.pop().expect("a free TUN frame");
                    io.pool.acquire(frame);
                    let start = HEADROOM - VNET_LEN;
                    io.pool.bytes_mut(frame, start..start + bytes.len()).copy_from_slice(bytes);
                    io.tun_rx.push_back(TunRx { frame, data: start..start + bytes.len() });
                }
                Arrival::Udp { bytes, stride, source } => {
                    let frame = self.udp_free.pop().expect("a free UDP frame");
                    io.pool.acquire(frame);
                    assert!(bytes.len() <= FRAME_LEN);
                    io.pool.bytes_mut(frame, 0..bytes.len()).copy_from_slice(bytes);
                    io.udp_rx.push_back(UdpRx {
                        frame,
                        data: 0..bytes.len(),
                        stride: *stride,
                        source: Some(*source),
                        truncated: false,
                    });
                }
            }
        }
        Ok(())
    }
    fn stop_receiving(&mut self) {}
    fn in_flight(&self) -> bool {
        false
    }
    fn syscalls(&self) -> u64 {
        0
    }
    fn take_overflows(&mut self) -> u64 {
        0
    }
}

/// A worker on a script, its peer on loopback, and a pipe for a TUN.
struct Bench {
    socket: UdpSocket,
    peer: StdUdpSocket,
    pipe: (OwnedFd, OwnedFd),
    view: Arc<WorkerView>,
    refuse_batches: Option<i32>,
    refuse_chains: Option<i32>,
    repeats: usize,
    record: bool,
}

struct Outcome {
    departures: Vec<Departure>,
    /// Allocations after the first pass of the script.
    steady_allocations: u64,
}

impl Bench {
    fn new() -> Bench {
        let caps = UdpCaps { gso: true, gro: true };
        let socket = underlay::open("127.0.0.1:0".parse().unwrap(), 1, caps).unwrap().pop().unwrap();
        let peer = StdUdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::DIRECT | rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let view = Arc::new(WorkerView::default());
        let on = &view.offloads;
        for flag in [&on.tun_vnet, &on.tun_tso, &on.tun_uso, &on.udp_gso, &on.udp_gro] {
            flag.store(true, Relaxed);
        }
        Bench { socket, peer, pipe, view, refuse_batches: None, refuse_chains: None, repeats: 0, record: true }
    }

    /// 10.2.0.0/16 is the peer's, 10.1.0.0/16 is here.
    fn fib(&self) -> Fib {
        let mut builder = FibBuilder::new(1);
        let addr = self.peer.local_addr().unwrap();
        builder.peer(Peer { id: PeerId(0), addr, aliases: Vec::new(), owner: OwnerId(0) });
        builder.route(Route { prefix: "10.2.0.0/16".parse().unwrap(), peer: PeerId(0) });
        builder.build().unwrap()
    }

    fn run(&self, script: Vec<Vec<Arrival>>) -> Outcome {
        let command = Arc::new(AtomicU8::new(Command::Run as u8));
        let departures = Rc::default();
        let allocations = Rc::new(Cell::new((0, 0)));
        let engine = Memory {
            turns: VecDeque::from(script.clone()),
            repeats: self.repeats,
            script,
            departures: Rc::clone(&departures),
            record: self.record,
            refuse_batches: self.refuse_batches,
            refuse_chains: self.refuse_chains,
            command: command.clone(),
            tun_free: Vec::with_capacity(256),
            udp_free: Vec::with_capacity(256),
            allocations: allocations.clone(),
        };
        let settings = Settings {
            tun_name: "lo".to_owned(),
            icmp_limits: Arc::default(),
            last_bulk: Arc::default(),
            peer_check: PeerCheck::Strict,
            spin: Duration::from_secs(1),
        };
        let cell = FibCell::new(self.fib());
        Worker::new(engine, self.pipe.1.as_fd(), &self.socket, self.view.clone(), command, settings)
            .unwrap()
            .run(&cell.reader())
            .unwrap();
        let (first, last) = allocations.get();
        Outcome { departures: departures.take(), steady_allocations: last - first }
    }

    fn arriving(&self, bytes: Vec<u8>, stride: usize) -> Arrival {
        Arrival::Udp { bytes, stride, source: self.peer.local_addr().unwrap() }
    }

    fn datagrams_at_peer(&self, count: usize) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; PACKET_LEN_MAX];
        (0..count)
            .map(|_| {
                let len = self.peer.recv(&mut buffer).unwrap();
                buffer[..len].to_vec()
            })
            .collect()
    }

    fn written_to_tun(&self) -> Vec<u8> {
        let mut buffer = vec![0; PACKET_LEN_MAX];
        let len = rustix::io::read(&self.pipe.0, &mut buffer).unwrap();
        buffer.truncate(len);
        buffer
    }
}

fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, ttl: u8, transport: &[u8]) -> Vec<u8> {
    let total = (20 + transport.len()) as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, ttl, protocol, 0, 0];
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet.extend(source);
    packet.extend(destination);
    let sum = !checksum::fold(checksum::sum(&packet, 0));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(transport);
    packet
}

fn with_transport_checksum(mut packet: Vec<u8>, at: usize) -> Vec<u8> {
    let inner = weft_packet::ip::check(&packet).unwrap();
    let pseudo = checksum::pseudo(&packet, &inner, packet.len() - 20);
    let sum = !checksum::fold(checksum::sum(&packet[20..], pseudo));
    packet[20 + at..22 + at].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn udp(source: [u8; 4], destination: [u8; 4], ports: (u16, u16), ttl: u8, payload: &[u8]) -> Vec<u8> {
    let mut transport = Vec::new();
    transport.extend(ports.0.to_be_bytes());
    transport.extend(ports.1.to_be_bytes());
    transport.extend((8 + payload.len() as u16).to_be_bytes());
    transport.extend([0, 0]);
    transport.extend(payload);
    with_transport_checksum(ipv4(source, destination, 17, ttl, &transport), 6)
}

fn tcp(source: [u8; 4], destination: [u8; 4], ports: (u16, u16), seq: u32, payload: &[u8]) -> Vec<u8> {
    let mut transport = Vec::new();
    transport.extend(ports.0.to_be_bytes());
    transport.extend(ports.1.to_be_bytes());
    transport.extend(seq.to_be_bytes());
    transport.extend(7u32.to_be_bytes());
    transport.extend([0x50, 0x10, 0x10, 0, 0, 0, 0, 0]);
    transport.extend(payload);
    with_transport_checksum(ipv4(source, destination, 6, 64, &transport), 16)
}

const HERE: [u8; 4] = [10, 1, 0, 5];
const THERE: [u8; 4] = [10, 2, 0, 5];

fn plain(packet: &[u8]) -> Arrival {
    Arrival::Tun([&VnetHeader::PLAIN.emit()[..], packet].concat())
}

/// A TCP super-packet of `segments` * 1000 bytes as the kernel would hand it over.
fn super_packet(segments: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..segments * 1000).map(|i| (i / 7) as u8).collect();
    let mut packet = tcp(HERE, THERE, (4000, 80), 1, &payload);
    let inner = weft_packet::ip::check(&packet).unwrap();
    let pseudo = checksum::fold(checksum::pseudo(&packet, &inner, packet.len() - 20));
    packet[36..38].copy_from_slice(&pseudo.to_be_bytes());
    let vnet = VnetHeader {
        needs_csum: true,
        gso: GsoKind::Tcp4,
        ecn: false,
        hdr_len: 40,
        gso_size: 1000,
        csum_start: 20,
        csum_offset: 16,
    };
    [&vnet.emit()[..], &packet].concat()
}

#[test]
fn equal_packets_of_a_burst_share_one_send_and_a_shorter_one_closes_it() {
    let bench = Bench::new();
    let burst = (0..10u16).map(|i| plain(&udp(HERE, THERE, (1000 + i, 53), 64, &[i as u8; 100])));
    let burst = burst
        .chain([plain(&udp(HERE, THERE, (1, 53), 64, &[9; 10])), plain(&udp(HERE, THERE, (2, 53), 64, &[8; 100]))]);
    let outcome = bench.run(vec![burst.collect()]);
    let counts: Vec<_> = outcome
        .departures
        .iter()
        .map(|departure| match departure {
            Departure::Udp { datagrams, segment_len } => (datagrams.len(), *segment_len),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(counts, [(11, 128), (1, 128)]);
}

#[test]
fn refused_gso_batch_is_sent_again_singly_in_order_and_gso_stays_off() {
    for errno in [libc::EIO, libc::EINVAL] {
        let bench = Bench { refuse_batches: Some(errno), ..Bench::new() };
        let packets: Vec<_> = (0..5u8).map(|i| udp(HERE, THERE, (1000, 53), 64, &[i; 100])).collect();
        let burst: Vec<_> = packets.iter().map(|packet| plain(packet)).collect();
        // A turn without arrivals between them: the first burst is not held for the second.
        let outcome = bench.run(vec![burst.clone(), vec![], burst]);
        let payloads: Vec<u8> = bench.datagrams_at_peer(5).iter().map(|datagram| datagram[28]).collect();
        assert_eq!(payloads, [0, 1, 2, 3, 4]);
        assert!(!bench.view.offloads.udp_gso.load(Relaxed));
        // The second burst goes through the engine, one datagram a send.
        assert_eq!(outcome.departures.len(), 5);
        let counters = &bench.view.stats.counters;
        assert_eq!((counters.batch_resent.get(), counters.encap_packets.get()), (1, 10));
    }
}

#[test]
fn refused_super_packet_batch_arrives_as_complete_segments() {
    let bench = Bench { refuse_batches: Some(libc::EIO), ..Bench::new() };
    bench.run(vec![vec![Arrival::Tun(super_packet(20))]]);
    for (i, segment) in bench.datagrams_at_peer(20).iter().enumerate() {
        let inner = weft_packet::ip::check(segment).unwrap();
        assert_eq!((inner.ttl, segment.len()), (63, 1040));
        assert_eq!(u32::from_be_bytes(segment[24..28].try_into().unwrap()), 1 + 1000 * i as u32);
        let pseudo = checksum::pseudo(segment, &inner, segment.len() - 20);
        assert_eq!(checksum::fold(checksum::sum(&segment[20..], pseudo)), 0xffff, "segment {i}");
    }
}

#[test]
fn refused_coalesced_write_is_written_again_singly_as_received() {
    let bench = Bench { refuse_chains: Some(libc::EINVAL), ..Bench::new() };
    let packets: Vec<_> = (0..4u32).map(|i| tcp(THERE, HERE, (80, 4000), 1 + i * 500, &[i as u8; 500])).collect();
    let buffer = bench.arriving(packets.concat(), packets[0].len());
    let outcome = bench.run(vec![vec![buffer.clone()], vec![], vec![buffer]]);
    for packet in &packets {
        let written = bench.written_to_tun();
        let (vnet, written) = written.split_at(VNET_LEN);
        assert_eq!(vnet, VnetHeader::PLAIN.emit());
        let mut expected = packet.clone();
        let inner = weft_packet::ip::check(&expected).unwrap();
        weft_packet::ip::decrement_ttl(&mut expected, &inner).unwrap();
        assert_eq!(written, expected);
    }
    assert!(!bench.view.offloads.tun_tso.load(Relaxed));
    assert!(bench.view.offloads.tun_uso.load(Relaxed), "only what was refused is switched off");
    assert_eq!(outcome.departures.len(), 4, "the second buffer is written packet by packet");
}

#[test]
fn order_within_a_flow_holds_whatever_is_coalesced() {
    let bench = Bench::new();
    // Three flows interleaved; one of them sends packets that cannot be coalesced (pure ACKs) between those that can.
    let mut seqs = [1u32; 3];
    let mut packets = Vec::new();
    for step in 0..60usize {
        let flow = (step * 7) % 3;
        let payload = if flow == 2 && step % 4 == 0 { vec![] } else { vec![step as u8; 300] };
        packets.push(tcp(THERE, HERE, (80, 5000 + flow as u16), seqs[flow], &payload));
        seqs[flow] += payload.len() as u32;
    }
    let arrivals: Vec<_> = packets.iter().map(|packet| bench.arriving(packet.clone(), packet.len())).collect();
    let outcome = bench.run(arrivals.chunks(10).map(<[Arrival]>::to_vec).collect());
    let mut next = [1u32; 3];
    let mut writes = 0;
    for departure in &outcome.departures {
        let Departure::Tun(written) = departure else { panic!("{departure:?}") };
        let packet = &written[VNET_LEN..];
        let flow = usize::from(u16::from_be_bytes(packet[22..24].try_into().unwrap()) - 5000);
        let seq = u32::from_be_bytes(packet[24..28].try_into().unwrap());
        assert_eq!(seq, next[flow], "flow {flow}");
        next[flow] += (packet.len() - 40) as u32;
        writes += 1;
    }
    assert_eq!(next, seqs);
    assert!(writes < packets.len() / 2, "{writes} writes for {} packets: nothing was coalesced", packets.len());
}

#[test]
fn a_burst_over_several_turns_shares_one_send_and_ends_with_the_first_turn_that_adds_nothing() {
    let bench = Bench::new();
    let packets = |count: u8| (0..count).map(|i| plain(&udp(HERE, THERE, (1000, 53), 64, &[i; 100]))).collect();
    let elsewhere = vec![plain(&udp(HERE, [10, 3, 0, 1], (1, 1), 64, &[0; 20]))];
    // The third turn reads something, but nothing for this peer: nobody waits for it.
    let outcome = bench.run(vec![packets(5), packets(5), elsewhere, packets(3), vec![], packets(1)]);
    let sizes = outcome.departures.iter().filter_map(|departure| match departure {
        Departure::Udp { datagrams, .. } => Some(datagrams.len()),
        Departure::Tun(_) => None,
    });
    assert_eq!(sizes.collect::<Vec<_>>(), [10, 3, 1]);
}

#[test]
fn a_super_packet_that_comes_in_two_buffers_is_written_whole() {
    let bench = Bench::new();
    let packets: Vec<_> = (0..6u32).map(|i| tcp(THERE, HERE, (80, 4000), 1 + i * 500, &[i as u8; 500])).collect();
    let buffer = |range: std::ops::Range<usize>| bench.arriving(packets[range].concat(), packets[0].len());
    let outcome = bench.run(vec![vec![buffer(0..4)], vec![buffer(4..6)], vec![], vec![]]);
    let [Departure::Tun(written)] = &outcome.departures[..] else { panic!("{:?}", outcome.departures) };
    assert_eq!(written.len(), VNET_LEN + 40 + 6 * 500);
}

#[test]
fn each_datagram_of_a_buffer_is_judged_by_its_own_addresses() {
    let bench = Bench::new();
    let from = |source| udp(source, HERE, (53, 1000), 64, &[7; 100]);
    let packets =
        [from(THERE), from([10, 9, 0, 1]), from(THERE), from([127, 0, 0, 1]), from([10, 9, 0, 1]), from(THERE)];
    let outcome = bench.run(vec![vec![bench.arriving(packets.concat(), packets[0].len())]]);
    assert_eq!(bench.view.stats.decap_drops[DropReason::PeerSpoof.index()].get(), 2);
    assert_eq!(bench.view.stats.decap_drops[DropReason::MartianSource.index()].get(), 1);
    assert_eq!(bench.view.stats.peer(PeerId(0)).rx_packets.get(), 3);
    let [Departure::Tun(written)] = &outcome.departures[..] else { panic!("{:?}", outcome.departures) };
    assert_eq!(written.len(), VNET_LEN + 28 + 3 * 100);
}

#[test]
fn segments_fill_the_sends_and_join_what_is_already_there() {
    let bench = Bench::new();
    let before = tcp(HERE, THERE, (4001, 80), 1, &[1; 1000]);
    let outcome = bench.run(vec![vec![plain(&before), Arrival::Tun(super_packet(60)), Arrival::Tun(super_packet(60))]]);
    let sends: Vec<_> = outcome
        .departures
        .iter()
        .map(|departure| match departure {
            Departure::Udp { datagrams, segment_len: 1040 } => datagrams,
            other => panic!("{other:?}"),
        })
        .collect();
    // 62 datagrams of 1040 bytes fill a UDP payload.
    assert_eq!(sends.iter().map(|datagrams| datagrams.len()).collect::<Vec<_>>(), [62, 59]);
    let seq = |packet: &Vec<u8>| u32::from_be_bytes(packet[24..28].try_into().unwrap());
    let seqs: Vec<_> = sends.iter().copied().flatten().skip(1).map(seq).collect();
    assert_eq!(seqs, (0..60).chain(0..60).map(|index| 1 + index * 1000).collect::<Vec<_>>());
}

#[test]
fn more_segments_than_sends_are_all_sent() {
    let bench = Bench::new();
    bench.view.offloads.udp_gso.store(false, Relaxed);
    // 20 super-packets of 60 segments, one send each: ten times the send slots.
    let outcome = bench.run(vec![(0..20).map(|_| Arrival::Tun(super_packet(60))).collect()]);
    assert_eq!(outcome.departures.len(), 1200);
}

#[test]
fn steady_state_allocates_nothing() {
    let bench = Bench { repeats: 50, record: false, ..Bench::new() };
    let mut turn: Vec<_> = (0..30u16).map(|i| plain(&udp(HERE, THERE, (1000 + i, 53), 64, &[1; 100]))).collect();
    turn.extend((0..5).map(|_| Arrival::Tun(super_packet(44))));
    let packets: Vec<_> = (0..40u32).map(|i| tcp(THERE, HERE, (80, 4000), 1 + i * 500, &[2; 500])).collect();
    turn.push(bench.arriving(packets.concat(), packets[0].len()));
    // Replies and drops are part of the steady state, too, as long as the rate limit withholds them.
    turn.push(plain(&udp(HERE, [10, 3, 0, 1], (1, 1), 64, &[0; 20])));
    turn.push(Arrival::Udp { bytes: packets[0].clone(), stride: 540, source: "127.0.0.2:9".parse().unwrap() });
    let outcome = bench.run(vec![turn; 3]);
    assert_eq!(outcome.steady_allocations, 0);
    assert!(bench.view.stats.counters.encap_packets.get() > 30_000);
}
