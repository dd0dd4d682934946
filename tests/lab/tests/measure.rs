//! Measuring between two nodes on a cable: figures are there, and a raised flag ends it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::net::getsockname;
use rustix::net::sockopt::tcp_congestion;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use weft_lab::Lab;
use weft_lab::measure::{
    Blast, Path, Run, Spread, Spreaded, Stop, Stopped, Watch, Window, congestion_control, tcp_connects, tcp_flows,
    tcp_latency, tcp_throughput, udp_blast, udp_latency, udp_spread,
};
use weft_lab::topology::Pair;

const WINDOW: Window = Window { warm_up: Duration::from_millis(50), length: Duration::from_millis(200) };

/// What may leave a limited link at once, at least (`tests/lab/src/link.rs`).
const BURST_LEN: u32 = 128 * 1024;

type Measurement<'a> = Box<dyn Fn(&mut Run<'_>) -> Result<()> + 'a>;

fn addresses() -> [IpAddr; 2] {
    ["192.0.2.2", "2001:db8::2"].map(|text| text.parse().expect("an address in a test"))
}

#[test]
fn throughput_rates_and_latency_are_measured_over_both_families() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let pair = Pair::new(&lab, 1500)?;
    let stop = Stop::default();
    for address in addresses() {
        let path = Path { from: &pair.a, to: &pair.b, address };
        let back = Path { from: &pair.b, to: &pair.a, address: own(address) };
        let run = &mut Run { window: WINDOW, stop: &stop, watch: &mut (), congestion_control: None };
        for (paths, flows) in [(&[path][..], 1), (&[path], 4), (&[path, back], 1)] {
            let throughput = tcp_throughput(paths, flows, run)?;
            assert!(throughput.elapsed >= WINDOW.length);
            assert_eq!(throughput.over_time.len(), 2);
            assert!(throughput.over_time.iter().sum::<u64>() <= throughput.bytes);
            assert!(throughput.bits_per_second() > 0.0 && throughput.cpu_per_gigabyte() >= 0.0, "{throughput:?}");
        }
        for blast in [Blast::singly(64), Blast::segmented()] {
            let blasted = udp_blast(&path, blast, run)?;
            assert_eq!(blasted.throughput.bytes, blasted.received * blast.payload_len as u64);
            assert!(blasted.packets_per_second() > 0.0 && (0.0..=1.0).contains(&blasted.loss()), "{blasted:?}");
        }
        for bulk_flows in [0, 2] {
            for latency in [tcp_latency(&path, bulk_flows, run)?, udp_latency(&path, bulk_flows, run)?] {
                assert!(latency.per_second() > 0.0 && (0.0..1.0).contains(&latency.loss()), "{latency:?}");
                assert!(latency.quantile_us(0.5) <= latency.quantile_us(0.99), "{latency:?}");
            }
        }
        let latency = tcp_flows(&path, 16, run)?;
        assert!(latency.per_second() > 0.0, "{latency:?}");
        let connects = tcp_connects(&path, 2, run)?;
        assert!(connects.per_second() > 0.0, "{connects:?}");
    }
    Ok(())
}

/// The address of `a` in the family of an address of `b`.
fn own(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { [192, 0, 2, 1].into() } else { "2001:db8::1".parse().expect("an address in a test") }
}

#[test]
fn a_paced_sender_offers_the_rate_that_was_asked_for() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let pair = Pair::new(&lab, 1500)?;
    let path = Path { from: &pair.a, to: &pair.b, address: addresses()[0] };
    let run = &mut Run { window: WINDOW, stop: &Stop::default(), watch: &mut (), congestion_control: None };
    for blast in [Blast::singly(64), Blast::segmented()] {
        let blasted = udp_blast(&path, Blast { rate: Some(10_000.0), ..blast }, run)?;
        // A busy machine may keep the sender waiting, but nothing makes it send more than what it may catch up.
        let offered = blasted.offered_per_second();
        assert!(offered > 0.0 && offered < 15_000.0, "{blasted:?}");
    }
    Ok(())
}

#[test]
fn datagrams_to_many_addresses_are_measured_and_an_address_without_any_is_an_error() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let pair = Pair::new(&lab, 1500)?;
    pair.a.route_via("10.9.0.0/16", "192.0.2.2", "u0")?;
    pair.b.address("lo", "10.9.0.1/16")?;
    let peers: Vec<Ipv4Addr> = (1..=100).map(|number| Ipv4Addr::new(10, 9, number, 1)).collect();
    let spread = Spread { peers: &peers, sockets: 4, payload_len: 200 };
    let run = &mut Run { window: WINDOW, stop: &Stop::default(), watch: &mut (), congestion_control: None };
    let Spreaded { blasted, late } = udp_spread(&pair.a, &pair.b, spread, run)?;
    assert_eq!((blasted.throughput.bytes, late), (blasted.received * 200, 0));
    // This one leads back to the sender.
    pair.a.address("lo", "10.9.7.1/32")?;
    let error = format!("{:#}", udp_spread(&pair.a, &pair.b, spread, run).unwrap_err());
    assert!(error.contains("nothing arrived at 1 of 100 peers, such as 10.9.7.1"), "{error}");
    Ok(())
}

#[test]
fn a_limited_link_carries_no_more_than_its_rate() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let pair = Pair::new(&lab, 1500)?;
    let path = Path { from: &pair.a, to: &pair.b, address: addresses()[0] };
    let run = &mut Run { window: WINDOW, stop: &Stop::default(), watch: &mut (), congestion_control: None };
    const BITS_PER_SECOND: u64 = 50_000_000;
    pair.link.set_rate(Some(BITS_PER_SECOND))?;
    let started = Instant::now();
    let limited = tcp_throughput(&[path], 1, run)?;
    // All that has left the link since there is a limit, which a busy receiver may read later; the bucket was full.
    let allowed = BITS_PER_SECOND as f64 / 8.0 * started.elapsed().as_secs_f64() + f64::from(BURST_LEN);
    assert!((limited.bytes as f64) < allowed, "{limited:?}");
    pair.link.set_rate(None)?;
    let unlimited = tcp_throughput(&[path], 1, run)?.bits_per_second();
    assert!(unlimited > limited.bits_per_second(), "{unlimited}");
    Ok(())
}

#[test]
fn a_watch_sees_both_ends_of_the_window_of_every_measurement() -> Result<()> {
    #[derive(Default)]
    struct Ends(Vec<(&'static str, Instant)>);
    impl Watch for Ends {
        fn open(&mut self) -> Result<()> {
            self.0.push(("open", Instant::now()));
            Ok(())
        }
        fn close(&mut self) -> Result<()> {
            self.0.push(("close", Instant::now()));
            Ok(())
        }
    }
    let Some(lab) = Lab::start() else { return Ok(()) };
    let pair = Pair::new(&lab, 1500)?;
    let path = Path { from: &pair.a, to: &pair.b, address: addresses()[0] };
    for measurement in measurements(&path) {
        let mut ends = Ends::default();
        measurement(&mut Run { window: WINDOW, stop: &Stop::default(), watch: &mut ends, congestion_control: None })?;
        let [("open", opened), ("close", closed)] = ends.0[..] else { panic!("{:?}", ends.0) };
        assert!(closed - opened >= WINDOW.length);
    }
    Ok(())
}

/// One of each kind.
fn measurements<'a>(path: &'a Path<'a>) -> [Measurement<'a>; 7] {
    [
        Box::new(|run| tcp_throughput(&[*path], 4, run).map(drop)),
        Box::new(|run| udp_blast(path, Blast::singly(64), run).map(drop)),
        Box::new(|run| tcp_latency(path, 0, run).map(drop)),
        Box::new(|run| tcp_latency(path, 2, run).map(drop)),
        Box::new(|run| udp_latency(path, 2, run).map(drop)),
        Box::new(|run| tcp_flows(path, 16, run).map(drop)),
        Box::new(|run| tcp_connects(path, 2, run).map(drop)),
    ]
}

#[test]
fn every_tcp_socket_of_every_measurement_uses_the_congestion_control_that_was_asked_for() -> Result<()> {
    /// Reads what the sockets of this process use while traffic flows.
    #[derive(Default)]
    struct Sockets(Vec<String>);
    impl Watch for Sockets {
        fn open(&mut self) -> Result<()> {
            self.0 = tcp_sockets_at(CONGESTION_NETWORK)?;
            Ok(())
        }
        fn close(&mut self) -> Result<()> {
            Ok(())
        }
    }
    let Some(lab) = Lab::start() else { return Ok(()) };
    let pair = Pair::new(&lab, 1500)?;
    pair.link.addresses("203.0.113.1/24", "203.0.113.2/24")?;
    let path = Path { from: &pair.a, to: &pair.b, address: "203.0.113.2".parse()? };
    let usual = pair.a.run(|| congestion_control(None))?;
    let offered = pair.a.sysctl_value("net/ipv4/tcp_available_congestion_control")?;
    let other = offered.split(' ').find(|name| *name != usual).expect("reno is always there, and one more");
    for (asked, expected) in [(Some(other), other), (None, usual.as_str())] {
        for measurement in measurements(&path) {
            let mut sockets = Sockets::default();
            let stop = Stop::default();
            measurement(&mut Run { window: WINDOW, stop: &stop, watch: &mut sockets, congestion_control: asked })?;
            assert!(sockets.0.iter().all(|used| used == expected), "{expected}: {:?}", sockets.0);
            // One that makes no TCP has nothing to refuse.
            let outcome =
                measurement(&mut Run { window: WINDOW, stop: &stop, watch: &mut (), congestion_control: Some("warp") });
            assert_eq!(outcome.is_err(), !sockets.0.is_empty(), "{outcome:?}");
        }
    }
    Ok(())
}

/// Where no other test has sockets: tests may be threads of one process.
const CONGESTION_NETWORK: [u8; 3] = [203, 0, 113];

/// What the TCP sockets of this process use that have an address in a network.
fn tcp_sockets_at(network: [u8; 3]) -> Result<Vec<String>> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that was closed meanwhile is none of interest, nor is one that is no TCP socket.
        let Ok(socket) = pidfd_getfd(&own, number, PidfdGetfdFlags::empty()) else { continue };
        // The address first: a client that is being made has none until it has its congestion control, and connects.
        let Some(address) = getsockname(&socket).ok().and_then(|address| SocketAddr::try_from(address).ok()) else {
            continue;
        };
        let Ok(used) = tcp_congestion(&socket) else { continue };
        if let IpAddr::V4(address) = address.ip()
            && address.octets().starts_with(&network)
        {
            found.push(used);
        }
    }
    Ok(found)
}

#[test]
fn a_raised_flag_ends_every_measurement_at_once() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let pair = Pair::new(&lab, 1500)?;
    let path = Path { from: &pair.a, to: &pair.b, address: addresses()[0] };
    let window = Window { length: Duration::from_secs(600), ..WINDOW };
    for measurement in measurements(&path) {
        let stop = Stop::default();
        let started = Instant::now();
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(100));
                stop.raise();
            });
            measurement(&mut Run { window, stop: &stop, watch: &mut (), congestion_control: None }).unwrap_err()
        });
        assert!(error.downcast_ref::<Stopped>().is_some(), "{error:#}");
        assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    }
    Ok(())
}

#[test]
fn a_path_that_carries_nothing_is_an_error() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let pair = Pair::new(&lab, 1500)?;
    let path = Path { from: &pair.a, to: &pair.b, address: addresses()[0] };
    // The address of a link that is down is still that of its node, so the sockets can be bound.
    pair.b.netlink()?.set_down(pair.link.b.index)?;
    assert!(
        udp_blast(
            &path,
            Blast::singly(64),
            &mut Run { window: WINDOW, stop: &Stop::default(), watch: &mut (), congestion_control: None }
        )
        .is_err()
    );
    Ok(())
}
