//! Measuring between two nodes on a cable: figures are there, and a raised flag ends it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use weft_lab::Lab;
use weft_lab::measure::{Blast, Path, Stop, Stopped, Window, tcp_latency, tcp_throughput, udp_blast};
use weft_lab::topology::Pair;

const WINDOW: Window = Window { warm_up: Duration::from_millis(50), length: Duration::from_millis(200) };

type Measurement<'a> = &'a dyn Fn(&Stop) -> Result<()>;

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
        for flows in [1, 4] {
            let throughput = tcp_throughput(&path, WINDOW, flows, &stop)?;
            assert!(throughput.elapsed >= WINDOW.length);
            assert!(throughput.bits_per_second() > 1e6 && throughput.cpu_per_gigabyte() >= 0.0, "{throughput:?}");
        }
        for blast in [Blast { payload_len: 64, segments: 1 }, Blast { payload_len: 1400, segments: 44 }] {
            let blasted = udp_blast(&path, WINDOW, blast, &stop)?;
            assert_eq!(blasted.throughput.bytes, blasted.received * blast.payload_len as u64);
            assert!(blasted.packets_per_second() > 100.0 && (0.0..=1.0).contains(&blasted.loss()), "{blasted:?}");
        }
        let times = tcp_latency(&path, WINDOW, &stop)?;
        assert!(times.len() > 10 && times.value_at_quantile(0.5) <= times.value_at_quantile(0.99), "{}", times.len());
    }
    Ok(())
}

#[test]
fn a_raised_flag_ends_every_measurement_at_once() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let pair = Pair::new(&lab, 1500)?;
    let path = Path { from: &pair.a, to: &pair.b, address: addresses()[0] };
    let window = Window { length: Duration::from_secs(600), ..WINDOW };
    let measurements: [Measurement<'_>; 3] = [
        &|stop| tcp_throughput(&path, window, 4, stop).map(drop),
        &|stop| udp_blast(&path, window, Blast { payload_len: 64, segments: 1 }, stop).map(drop),
        &|stop| tcp_latency(&path, window, stop).map(drop),
    ];
    for measurement in measurements {
        let stop = Stop::default();
        let started = Instant::now();
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(100));
                stop.raise();
            });
            measurement(&stop).unwrap_err()
        });
        assert!(error.downcast_ref::<Stopped>().is_some(), "{error:#}");
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
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
    assert!(udp_blast(&path, WINDOW, Blast { payload_len: 64, segments: 1 }, &Stop::default()).is_err());
    Ok(())
}
