//! weft beside kernel VXLAN and plain routing, measured alternately.
//!
//! ```text
//!   round 1:  offload:  TCP 1 flow:   weft VXLAN routing
//!                       TCP 4 flows:        VXLAN routing weft          the order rotates, so that none is always first
//!                       ...
//!             wire:     ...
//!   round 2:  ...
//! ```

use std::time::Duration;

use anyhow::Result;
use weft_lab::Mode;
use weft_lab::measure::{
    Blast, Histogram, Path, Run, Stop, Stopped, Throughput, Window, core_to_core, median, tcp_latency, tcp_throughput,
    udp_blast,
};

use super::Options;
use super::hosts::Hosts;
use super::progress::Progress;
use super::report::{CableMode, Measurement, Metric, Subject};

/// Traffic before each measurement counts.
const WARM_UP: Duration = Duration::from_millis(100);
/// Rest between two measurements, for what is still under way.
const REST: Duration = Duration::from_millis(20);
/// Payload of a small datagram, bytes.
const SMALL_LEN: usize = 64;

/// One way of making traffic. Some give several metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Tcp { flows: usize },
    Small,
    Segmented,
    Latency,
}

const TESTS: [Test; 5] = [Test::Tcp { flows: 1 }, Test::Tcp { flows: 4 }, Test::Small, Test::Segmented, Test::Latency];

impl Test {
    fn metrics(self) -> &'static [Metric] {
        match self {
            Test::Tcp { flows: 1 } => &[Metric::Tcp1, Metric::CpuPerGigabyte],
            Test::Tcp { .. } => &[Metric::Tcp4],
            Test::Small => &[Metric::UdpSmall],
            Test::Segmented => &[Metric::UdpSegmented],
            Test::Latency => &[Metric::LatencyP50, Metric::LatencyP99],
        }
    }
}

/// What one run of a test gave.
enum Sample {
    Throughput(Throughput),
    Datagrams { value: f64, loss: f64 },
    Latency(Histogram<u64>),
}

/// All runs of one test for one subject in one mode.
struct Series {
    test: Test,
    mode: CableMode,
    subject: Subject,
    samples: Vec<Sample>,
    error: Option<String>,
}

/// Number of measurements that [`compare`] gives.
pub const MEASUREMENT_COUNT: usize = Metric::ALL.len() * CableMode::ALL.len() * Subject::ALL.len();

/// How many single runs there will be, and how long they take together.
pub fn extent(options: &Options) -> (u64, Duration) {
    let count = TESTS.len() * CableMode::ALL.len() * Subject::ALL.len() * options.rounds as usize;
    (count as u64, (options.length + WARM_UP + REST) * count as u32)
}

/// Runs every test, for every subject, in both modes, in every round: what they gave, and how far the cores were from each other
/// before each, in nanoseconds, where that can be known. What failed is in the measurement.
///
/// # Errors
/// [`Stopped`], or if the cable cannot be switched.
pub fn compare(
    hosts: &Hosts,
    options: &Options,
    stop: &Stop,
    progress: &mut Progress,
) -> Result<(Vec<Measurement>, Vec<f64>)> {
    let mut all: Vec<Series> = Vec::new();
    let mut distances = Vec::new();
    for mode in CableMode::ALL {
        for test in TESTS {
            all.extend(Subject::ALL.map(|subject| Series { test, mode, subject, samples: Vec::new(), error: None }));
        }
    }
    for round in 0..options.rounds {
        for mode in CableMode::ALL {
            progress.part(&format!("round {} of {}, {}", round + 1, options.rounds, mode.name()));
            hosts.link.set_mode(match mode {
                CableMode::Offload => Mode::Offload,
                CableMode::Wire => Mode::Wire,
            })?;
            for (number, test) in TESTS.into_iter().enumerate() {
                for turn in 0..Subject::ALL.len() {
                    let subject = Subject::ALL[(turn + number + round as usize) % Subject::ALL.len()];
                    progress.step(&format!("{}, {}", test.metrics()[0].name(), subject.name()));
                    let series = all.iter_mut().find(|s| (s.test, s.mode, s.subject) == (test, mode, subject));
                    // A sandbox may forbid to choose a core: then the demo does not know.
                    distances.extend(core_to_core().ok().flatten());
                    series.expect("there is one of each").run(hosts, options.length, stop)?;
                    stop.sleep(REST)?;
                }
            }
        }
    }
    let measurements = |metric| all.iter().filter_map(move |series: &Series| series.measurement(metric));
    Ok((Metric::ALL.into_iter().flat_map(measurements).collect(), distances))
}

impl Series {
    fn run(&mut self, hosts: &Hosts, length: Duration, stop: &Stop) -> Result<(), Stopped> {
        let path = Path { from: &hosts.a.node, to: &hosts.b.node, address: hosts.b.address(self.subject) };
        let window = Window { warm_up: WARM_UP, length };
        match self.test.run(&path, &mut Run { window, stop, watch: &mut (), congestion_control: None }) {
            Ok(sample) => self.samples.push(sample),
            Err(error) => {
                stop.check()?;
                self.error.get_or_insert(format!("{error:#}"));
            }
        }
        Ok(())
    }

    /// The cell for a metric, if this test gives it.
    fn measurement(&self, metric: Metric) -> Option<Measurement> {
        if !self.test.metrics().contains(&metric) {
            return None;
        }
        let rounds: Vec<f64> = self.samples.iter().map(|sample| sample.value(metric)).collect();
        let losses: Vec<f64> = self
            .samples
            .iter()
            .filter_map(|sample| match sample {
                Sample::Datagrams { loss, .. } => Some(*loss),
                _ => None,
            })
            .collect();
        let merged = self.samples.iter().fold(None, |merged: Option<Histogram<u64>>, sample| match (merged, sample) {
            (None, Sample::Latency(times)) => Some(times.clone()),
            (Some(mut merged), Sample::Latency(times)) => {
                merged.add(times).expect("all have the same bounds");
                Some(merged)
            }
            (merged, _) => merged,
        });
        let value = match merged {
            Some(times) => Some(quantile(&times, metric)),
            None => median(&rounds),
        };
        Some(Measurement {
            metric,
            unit: metric.unit(),
            mode: self.mode,
            subject: self.subject,
            measured: false,
            value,
            ratio_to_vxlan: None,
            rounds,
            loss: median(&losses),
            error: self.error.clone(),
        })
    }
}

impl Test {
    fn run(self, path: &Path<'_>, run: &mut Run<'_>) -> Result<Sample> {
        Ok(match self {
            Test::Tcp { flows } => Sample::Throughput(tcp_throughput(&[*path], flows, run)?),
            Test::Small => {
                let blasted = udp_blast(path, Blast::singly(SMALL_LEN), run)?;
                Sample::Datagrams { value: blasted.packets_per_second(), loss: blasted.loss() }
            }
            Test::Segmented => {
                let blasted = udp_blast(path, Blast::segmented(), run)?;
                Sample::Datagrams { value: blasted.throughput.bits_per_second(), loss: blasted.loss() }
            }
            Test::Latency => Sample::Latency(tcp_latency(path, 0, run)?.times),
        })
    }
}

impl Sample {
    fn value(&self, metric: Metric) -> f64 {
        match self {
            Sample::Throughput(throughput) if metric == Metric::CpuPerGigabyte => throughput.cpu_per_gigabyte(),
            Sample::Throughput(throughput) => throughput.bits_per_second(),
            Sample::Datagrams { value, .. } => *value,
            Sample::Latency(times) => quantile(times, metric),
        }
    }
}

/// Microseconds.
fn quantile(times: &Histogram<u64>, metric: Metric) -> f64 {
    let quantile = if metric == Metric::LatencyP99 { 0.99 } else { 0.5 };
    times.value_at_quantile(quantile) as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_comes_from_exactly_one_test() {
        for metric in Metric::ALL {
            assert_eq!(TESTS.iter().filter(|test| test.metrics().contains(&metric)).count(), 1, "{metric:?}");
        }
    }

    #[test]
    fn latency_is_a_quantile_over_all_rounds() {
        let mut series = Series {
            test: Test::Latency,
            mode: CableMode::Wire,
            subject: Subject::Weft,
            samples: Vec::new(),
            error: None,
        };
        for (time_ns, count) in [(10_000, 99), (50_000, 1)] {
            let mut times = Histogram::new_with_bounds(1, 1_000_000_000, 3).unwrap();
            times.record_n(time_ns, count).unwrap();
            series.samples.push(Sample::Latency(times));
        }
        let p50 = series.measurement(Metric::LatencyP50).unwrap();
        assert!((p50.value.unwrap() - 10.0).abs() < 0.1 && p50.rounds.len() == 2);
        assert!((series.measurement(Metric::LatencyP99).unwrap().value.unwrap() - 10.0).abs() < 0.1);
        assert!(series.measurement(Metric::Tcp1).is_none());
    }
}
