//! The lane's two programs, run by the kernel over packets of every kind: which queue, which socket.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use weft_dataplane::lane::{LANE_TOS, Workers, choosing, steering};
use weft_dataplane::limits::{
    BUDGET_WINDOW, BULK_FLOW_MEMORY, CALM_MIN, LOAD_WINDOW, SPARSE_LEN_MAX, SPARSE_PACKETS_MAX,
};
use weft_dataplane::scale::{Load, Scale};
use weft_dataplane::sys::bpf::Program;
use weft_lab::Lab;

use crate::craft::{DONT_FRAGMENT, MORE_FRAGMENTS, Packet};

/// TCP flags (RFC 9293 section 3.1).
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH_ACK: u8 = 0x18;
const ACK: u8 = 0x10;
/// Bytes of a TCP header with timestamps, as Linux sends it.
const TCP_LEN: usize = 32;

const PORTS: (u16, u16) = (40_000, 80);

fn hosts(is_ipv6: bool) -> (IpAddr, IpAddr) {
    let [source, destination] =
        if is_ipv6 { ["fd09:0:0:1::2", "fd09:0:0:2::3"] } else { ["10.9.1.2", "10.9.2.3"] }.map(|text| text.parse());
    (source.expect("an address"), destination.expect("an address"))
}

/// A segment whose IP packet is `len` bytes long.
fn tcp(is_ipv6: bool, ports: (u16, u16), flags: u8, len: usize) -> Packet {
    let (source, destination) = hosts(is_ipv6);
    let ip_len = if is_ipv6 { 40 } else { 20 };
    let mut payload = vec![0; len - ip_len];
    payload[..2].copy_from_slice(&ports.0.to_be_bytes());
    payload[2..4].copy_from_slice(&ports.1.to_be_bytes());
    payload[12] = (TCP_LEN as u8 / 4) << 4;
    payload[13] = flags;
    Packet {
        protocol: 6,
        payload,
        fragment: if is_ipv6 { 0 } else { DONT_FRAGMENT },
        ..Packet::new(source, destination)
    }
}

/// The length of a segment without payload.
fn bare(is_ipv6: bool) -> usize {
    TCP_LEN + if is_ipv6 { 40 } else { 20 }
}

/// Workers that are all in use.
fn all_of(count: usize) -> Result<Workers> {
    Workers::new(count, count).context("the map of workers")
}

/// Runs a program over packets.
struct Runner(Program);

impl Runner {
    fn queue(&self, packet: &Packet) -> Result<u32> {
        self.bytes(&packet.build(), packet.source.is_ipv6())
    }

    fn bytes(&self, packet: &[u8], is_ipv6: bool) -> Result<u32> {
        self.0.run(packet, is_ipv6).with_context(|| format!("{} bytes", packet.len()))
    }
}

#[test]
fn small_packets_of_flows_without_bulk_are_steered_to_the_lane() -> Result<()> {
    let Some(_lab) = Lab::start() else { return Ok(()) };
    for workers in [1, 4] {
        let lane = workers as u32;
        let steering = Runner(steering(&all_of(workers)?)?);
        for is_ipv6 in [false, true] {
            let bare = bare(is_ipv6);
            let (source, destination) = hosts(is_ipv6);
            let sparse = [
                ("a request", tcp(is_ipv6, PORTS, PSH_ACK, bare + 1)),
                ("the longest", tcp(is_ipv6, PORTS, PSH_ACK, SPARSE_LEN_MAX)),
                ("SYN", tcp(is_ipv6, PORTS, SYN, bare)),
                ("SYN ACK", tcp(is_ipv6, PORTS, SYN | ACK, bare)),
                ("FIN", tcp(is_ipv6, PORTS, FIN | ACK, bare)),
                ("RST", tcp(is_ipv6, PORTS, RST, bare)),
                ("echo request", Packet::icmp(source, destination, 8, &[0; 56])),
                ("a question to a name server", Packet::udp(source, destination, (PORTS.0, 53), &[0; 50])),
                ("its answer", Packet::udp(source, destination, (53, PORTS.0), &[0; 200])),
            ];
            for (what, packet) in sparse {
                assert_eq!(steering.queue(&packet)?, lane, "{what}, IPv6 {is_ipv6}, {workers} workers");
            }
            let bulk = [
                ("an acknowledgement", tcp(is_ipv6, PORTS, ACK, bare)),
                ("one byte too long", tcp(is_ipv6, (1, 1), PSH_ACK, SPARSE_LEN_MAX + 1)),
                ("a long echo request", Packet::icmp(source, destination, 8, &[0; SPARSE_LEN_MAX])),
                ("UDP", Packet::udp(source, destination, PORTS, &[0; 50])),
                ("a long answer", Packet::udp(source, destination, (53, PORTS.0), &[0; SPARSE_LEN_MAX])),
                ("another port", Packet::udp(source, destination, (0x3500, 54), &[0; 50])),
                ("another protocol", Packet::new(source, destination)),
            ];
            for (what, packet) in bulk {
                assert!(steering.queue(&packet)? < lane, "{what}, IPv6 {is_ipv6}, {workers} workers");
            }
        }
        let options = Packet { options: vec![1; 8], ..tcp(false, (2, 2), PSH_ACK, 100) };
        assert_eq!(steering.queue(&options)?, lane, "IPv4 options");
        let options = Packet { options: vec![1; 8], ..tcp(false, PORTS, ACK, bare(false)) };
        assert!(steering.queue(&options)? < lane, "no payload behind IPv4 options");
        for fragment in [MORE_FRAGMENTS, 1, 0x1fff] {
            let packet = Packet { fragment, ..tcp(false, PORTS, PSH_ACK, 100) };
            assert!(steering.queue(&packet)? < lane, "fragment {fragment:#x}");
        }
    }
    Ok(())
}

#[test]
fn a_flow_is_bulk_from_its_first_long_packet_until_it_was_quiet() -> Result<()> {
    let Some(_lab) = Lab::start() else { return Ok(()) };
    let steering = Runner(steering(&all_of(1)?)?);
    for is_ipv6 in [false, true] {
        let small = tcp(is_ipv6, PORTS, PSH_ACK, 200);
        let fin = tcp(is_ipv6, PORTS, FIN | ACK, bare(is_ipv6));
        let other = tcp(is_ipv6, (PORTS.0 + 1, PORTS.1), PSH_ACK, 200);
        assert_eq!(steering.queue(&small)?, 1);
        assert_eq!(steering.queue(&tcp(is_ipv6, PORTS, ACK, 1400))?, 0);
        // Nothing of it may overtake what went before.
        assert_eq!([&small, &fin, &other].map(|packet| steering.queue(packet).expect("runs")), [0, 0, 1]);
        // Small packets do not keep it bulk, time does not make it sparse before it must.
        std::thread::sleep(BULK_FLOW_MEMORY + Duration::from_millis(1));
        assert_eq!([&small, &fin].map(|packet| steering.queue(packet).expect("runs")), [1, 1]);
    }
    Ok(())
}

#[test]
fn a_flood_of_small_packets_is_spread_over_the_workers() -> Result<()> {
    let Some(_lab) = Lab::start() else { return Ok(()) };
    const COUNT: u16 = 20_000;
    let steering = Runner(steering(&all_of(4)?)?);
    let started = Instant::now();
    let mut flows = [0; 5];
    for port in 0..COUNT {
        flows[steering.queue(&tcp(false, (port, 80), PSH_ACK, 100))? as usize] += 1;
    }
    // As much as the budget allows, and the rest evenly.
    let windows = started.elapsed().div_duration_f64(BUDGET_WINDOW) as u32 + 2;
    let beyond = u32::from(COUNT).saturating_sub(windows * SPARSE_PACKETS_MAX);
    assert!(
        flows[4] >= SPARSE_PACKETS_MAX && flows[4] <= windows * SPARSE_PACKETS_MAX,
        "{flows:?} in {windows} windows"
    );
    assert!(flows[..4].iter().all(|count| *count >= beyond / 8), "{flows:?} in {windows} windows");
    Ok(())
}

#[test]
fn a_flow_has_one_worker_and_flows_are_spread_over_all() -> Result<()> {
    let Some(_lab) = Lab::start() else { return Ok(()) };
    let steering = Runner(steering(&all_of(4)?)?);
    for is_ipv6 in [false, true] {
        let (source, destination) = hosts(is_ipv6);
        let mut flows = [0; 4];
        for port in 1000..1400 {
            let queue = steering.queue(&tcp(is_ipv6, (port, 80), ACK, 1400))?;
            // Also its acknowledgements.
            assert_eq!(queue, steering.queue(&tcp(is_ipv6, (port, 80), ACK, bare(is_ipv6)))?);
            let datagrams = [1000, 10].map(|len| Packet::udp(source, destination, (port, 443), &vec![0; len]));
            let queues = datagrams.map(|packet| steering.queue(&packet).expect("runs"));
            assert_eq!(queues[0], queues[1]);
            flows[queue as usize] += 1;
            flows[queues[0] as usize] += 1;
        }
        assert!(flows.iter().all(|count| (100..300).contains(count)), "of 800: {flows:?}");
    }
    Ok(())
}

/// The queues that 64 flows are spread over, and the sockets that datagrams of 64 peers are.
fn spread(steering: &Runner, choosing: &Runner) -> Result<[Vec<u32>; 2]> {
    let (_, destination) = hosts(false);
    let queues = (1000..1064).map(|port| steering.queue(&tcp(false, (port, 80), ACK, 1400)));
    let sockets = (0..64).map(|host| {
        let source = IpAddr::from([10, 0, 0, host]);
        choosing.queue(&Packet::udp(source, destination, (8285, 8285), &[0; 60]))
    });
    let mut spread = [queues.collect::<Result<Vec<_>>>()?, sockets.collect::<Result<Vec<_>>>()?];
    spread.iter_mut().for_each(|chosen| {
        chosen.sort_unstable();
        chosen.dedup();
    });
    ensure!(steering.queue(&tcp(false, (1, 80), PSH_ACK, 100))? == 3, "the lane's queue");
    Ok(spread)
}

#[test]
fn flows_are_shared_by_the_workers_in_use_and_a_full_one_takes_another_in() -> Result<()> {
    let Some(_lab) = Lab::start() else { return Ok(()) };
    let workers = Arc::new(Workers::new(3, 1)?);
    let (steering, choosing) = (Runner(steering(&workers)?), Runner(choosing(&workers)?));
    let scale = Arc::new(Scale::new(workers.clone()));
    let mut loads = [0, 1, 2].map(|worker| Load::new(scale.clone(), worker));
    // A clock by which this thread fills its core, whatever else runs on it, and then none of it.
    let used = || {
        let used = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
    };
    let mut work = |worker: usize, in_vain: bool| {
        let until = used() + 3 * LOAD_WINDOW;
        while used() < until {
            loads[worker].turn(used(), in_vain);
        }
    };
    assert_eq!(spread(&steering, &choosing)?, [vec![0], vec![0]]);
    work(0, true);
    assert_eq!(workers.in_use(), 1, "it looked for work, and had none");
    work(1, false);
    assert_eq!(workers.in_use(), 1, "it is not in use");
    work(0, false);
    assert!(workers.in_use() > 1, "one was full");
    let in_use: Vec<u32> = (0..workers.in_use() as u32).collect();
    assert_eq!(spread(&steering, &choosing)?, [in_use.clone(), in_use]);
    let mut now = used();
    for _ in 0..2 * CALM_MIN.div_duration_f64(LOAD_WINDOW) as u32 + 6 {
        now += LOAD_WINDOW;
        loads[0].turn(now, false);
    }
    assert_eq!(workers.in_use(), 1, "all were at leisure");
    assert_eq!(spread(&steering, &choosing)?, [vec![0], vec![0]]);
    Ok(())
}

#[test]
fn what_is_no_whole_packet_goes_to_a_worker() -> Result<()> {
    let Some(_lab) = Lab::start() else { return Ok(()) };
    let steering = Runner(steering(&all_of(2)?)?);
    for is_ipv6 in [false, true] {
        let whole = tcp(is_ipv6, PORTS, PSH_ACK, 200).build();
        // Too little of TCP's header; the kernel runs a program over no less than an IP header.
        for len in if is_ipv6 { 40 } else { 20 }..bare(is_ipv6) - (TCP_LEN - 20) {
            assert!(steering.bytes(&whole[..len], is_ipv6)? < 2, "{len} bytes, IPv6 {is_ipv6}");
        }
        for version in [0, 5, 15] {
            let mut other = whole.clone();
            other[0] = version << 4 | 5;
            assert!(steering.bytes(&other, is_ipv6)? < 2, "version {version}");
        }
    }
    Ok(())
}

#[test]
fn marked_datagrams_come_to_the_lane_and_others_to_a_worker_by_their_source_and_its_port() -> Result<()> {
    let Some(_lab) = Lab::start() else { return Ok(()) };
    for workers in [1, 4] {
        let lane = workers as u32;
        let choosing = Runner(choosing(&all_of(workers)?)?);
        for is_ipv6 in [false, true] {
            let (source, destination) = hosts(is_ipv6);
            let from_port =
                |source, port, tos| Packet { tos, ..Packet::udp(source, destination, (port, 8285), &[0; 60]) };
            let datagram = |source, tos| from_port(source, 8285, tos);
            // Routers on the way may mark congestion.
            for ecn in 0..4 {
                assert_eq!(choosing.queue(&datagram(source, LANE_TOS | ecn))?, lane);
                assert!(choosing.queue(&datagram(source, ecn))? < lane);
            }
            // Expedited forwarding, and the other precedences of AF2.
            for tos in [46 << 2, 20 << 2, 22 << 2, 0xff] {
                assert!(choosing.queue(&datagram(source, tos))? < lane, "type of service {tos:#x}");
            }
            let mut peers = vec![0; workers];
            for host in 0..=255 {
                let source: IpAddr = match source {
                    IpAddr::V4(source) => IpAddr::V4((u32::from(source) & !255 | host).into()),
                    IpAddr::V6(source) => IpAddr::V6((u128::from(source) & !255 | u128::from(host)).into()),
                };
                peers[choosing.queue(&datagram(source, 0))? as usize] += 1;
            }
            assert!(peers.iter().all(|count| *count > 256 / workers / 2), "of 256: {peers:?}");
            // As many ports of one peer, one after the other, are each another worker's.
            let from = |port| choosing.queue(&from_port(source, port, 0));
            let mut ports = (0..workers as u16).map(|port| from(50_000 + port)).collect::<Result<Vec<_>>>()?;
            ports.sort_unstable();
            assert!(ports.into_iter().eq(0..lane), "{source}, {workers} workers");
        }
    }
    Ok(())
}
