//! The workloads: their names, and how each is run on the path of a subject.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use weft_lab::measure::{
    Blast, Blasted, Latency, Path, Run, Spread, tcp_connects, tcp_flows, tcp_latency, tcp_throughput, udp_blast,
    udp_latency, udp_spread,
};

use crate::proc::Turns;

/// One way of making traffic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Workload {
    /// Bulk TCP.
    Tcp {
        /// Connections, in each direction.
        flows: usize,
        /// In both directions at once.
        both: bool,
    },
    /// Single datagrams.
    Udp {
        /// Payload of each, bytes.
        payload_len: usize,
        /// Datagrams per second; `None`: as many as the kernel takes.
        rate: Option<f64>,
    },
    /// Datagrams from a segmenting sender, as QUIC sends.
    UdpSegmented {
        /// Payload bits per second; `None`: as many as the kernel takes.
        rate: Option<f64>,
    },
    /// TCP request and response, one at a time.
    Latency {
        /// Bulk TCP flows beside it.
        bulk_flows: usize,
    },
    /// A datagram and its response, one at a time.
    DatagramLatency {
        /// Bulk TCP beside it.
        bulk_flows: usize,
    },
    /// TCP request and response on many connections at once.
    Flows,
    /// TCP connections, one after the other.
    Connects,
    /// Datagrams to many peers, in many small flows.
    Peers,
    /// No traffic.
    Idle,
}

/// The workloads, for messages and `weft-bench list`: form and meaning.
pub const FORMS: [(&str, &str); 15] = [
    ("tcpN", "bulk TCP through N connections: tcp1, tcp4, tcp16"),
    ("tcpN-both", "in both directions at once, N connections each"),
    ("udpLEN", "datagrams of LEN bytes, 64 per system call, as many as the kernel takes: udp64, udp512, udp1400"),
    ("udpLEN@RATE", "RATE datagrams per second: udp64@200k"),
    ("udpgso", "datagrams of 1400 bytes from a segmenting sender (UDP_SEGMENT), 44 per system call"),
    ("udpgso@RATE", "RATE payload bits per second: udpgso@5g"),
    ("rr", "TCP request and response of 64 bytes, one at a time"),
    ("rr-load", "the same while tcp4 runs beside it"),
    (
        "udprr",
        "a datagram of 64 bytes to port 53 and one back, at a time, as DNS; a response that takes more than a second is lost",
    ),
    ("udprr-load", "the same while tcp4 runs beside it"),
    ("flows", "request and response on 64 connections at once"),
    ("connect", "TCP connections: connect, a byte each way, close; two clients"),
    (
        "peers",
        "1000 flows of datagrams of 200 bytes to 250 peers, each to another peer than the last; weft, vxlan, host-gw; not in `all`",
    ),
    ("idle", "no traffic: CPU time and wake-ups of the subject's own processes, if it has any"),
    (
        "all",
        "tcp1 tcp4 tcp16 tcp1-both tcp4-both udp64 udp512 udp1400 udp64@200k udpgso udpgso@5g rr rr-load udprr udprr-load flows connect idle",
    ),
];

const FLOWS_MAX: usize = 256;
/// As much as every tunnel carries over Ethernet in one packet: 1500 - 50 (VXLAN) - 28 (inner IPv4 and UDP).
const PAYLOAD_LEN_MAX: usize = 1422;
/// What the header of a checked datagram takes.
const PAYLOAD_LEN_MIN: usize = 16;
/// Clients of [`Workload::Connects`].
const CLIENT_COUNT: usize = 2;
/// Connections of [`Workload::Flows`].
const SMALL_FLOWS: usize = 64;
/// Payload of a datagram of [`Workload::Peers`], bytes.
const PEERS_PAYLOAD_LEN: usize = 200;
/// Flows to each of them: 1000 to all [`crate::subject::peers::PEER_COUNT`].
const PEER_FLOWS: usize = 4;
/// Bulk flows beside `rr-load` and `udprr-load`.
const BULK_FLOWS: usize = 4;
/// Points of a latency distribution.
const CDF: [f64; 28] = [
    0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9,
    0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 0.9999,
];

/// What a workload gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Values by the names of [`crate::metric`].
    pub metrics: BTreeMap<String, f64>,
    /// As [`crate::result::Sample::latency_cdf`].
    pub latency_cdf: Vec<(f64, f64)>,
    /// As [`crate::result::Sample::over_time`].
    pub over_time: Vec<u64>,
}

impl Outcome {
    /// Adds a value, if it is one.
    pub fn add(&mut self, name: &str, value: f64) {
        if value.is_finite() {
            self.metrics.insert(name.to_owned(), value);
        }
    }
}

impl Workload {
    /// Reads the name of one.
    ///
    /// # Errors
    /// What was expected instead.
    pub fn parse(text: &str) -> Result<Workload> {
        let unknown = || {
            let forms: Vec<_> = FORMS.iter().map(|(form, _)| *form).collect();
            format!("`{text}` is no workload; expected one of {}", forms.join(", "))
        };
        let (word, rate) = match text.split_once('@') {
            Some((word, rate)) => (word, Some(parse_rate(rate).with_context(|| format!("workload `{text}`"))?)),
            None => (text, None),
        };
        let workload = match word {
            "udpgso" => Workload::UdpSegmented { rate },
            "rr" => Workload::Latency { bulk_flows: 0 },
            "rr-load" => Workload::Latency { bulk_flows: BULK_FLOWS },
            "udprr" => Workload::DatagramLatency { bulk_flows: 0 },
            "udprr-load" => Workload::DatagramLatency { bulk_flows: BULK_FLOWS },
            "flows" => Workload::Flows,
            "connect" => Workload::Connects,
            "peers" => Workload::Peers,
            "idle" => Workload::Idle,
            _ => {
                if let Some(flows) = word.strip_prefix("tcp") {
                    let (flows, both) = flows.strip_suffix("-both").map_or((flows, false), |flows| (flows, true));
                    let flows = flows.parse().ok().with_context(unknown)?;
                    ensure!((1..=FLOWS_MAX).contains(&flows), "`{text}`: expected 1 to {FLOWS_MAX} flows");
                    Workload::Tcp { flows, both }
                } else if let Some(payload_len) = word.strip_prefix("udp") {
                    let payload_len = payload_len.parse().ok().with_context(unknown)?;
                    ensure!(
                        (PAYLOAD_LEN_MIN..=PAYLOAD_LEN_MAX).contains(&payload_len),
                        "`{text}`: expected a payload of {PAYLOAD_LEN_MIN} to {PAYLOAD_LEN_MAX} bytes"
                    );
                    Workload::Udp { payload_len, rate }
                } else {
                    bail!(unknown())
                }
            }
        };
        let is_paced = matches!(workload, Workload::Udp { .. } | Workload::UdpSegmented { .. });
        ensure!(rate.is_none() || is_paced, "`{text}`: only udpLEN and udpgso have a rate");
        Ok(workload)
    }

    /// Reads a list separated by commas; `all` stands for the whole set.
    ///
    /// # Errors
    /// As [`Workload::parse`], or if one is there twice.
    pub fn parse_list(text: &str) -> Result<Vec<(String, Workload)>> {
        let all = FORMS.last().expect("there are forms").1;
        let texts = text.split(',').flat_map(|text| if text == "all" { all.split(' ') } else { text.split(' ') });
        let mut list: Vec<(String, Workload)> = Vec::new();
        for text in texts {
            ensure!(list.iter().all(|(name, _)| name != text), "workload `{text}` is there twice");
            list.push((text.to_owned(), Workload::parse(text)?));
        }
        Ok(list)
    }

    /// Runs it: `there` is the path from host a to host b, `back` the other direction, `peers` are addresses of many peers,
    /// `pids` are the subject's own processes.
    ///
    /// # Errors
    /// Of the measurement.
    pub fn run(
        self,
        there: Path<'_>,
        back: Path<'_>,
        peers: &[Ipv4Addr],
        pids: &[u32],
        run: &mut Run<'_>,
    ) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        match self {
            Workload::Tcp { flows, both } => {
                let paths = [there, back];
                let throughput = tcp_throughput(&paths[..if both { 2 } else { 1 }], flows, run)?;
                outcome.add("throughput", throughput.bits_per_second());
                outcome.add("cpu_per_gb", throughput.cpu_per_gigabyte());
                outcome.add("cpu_cores", throughput.cpu.as_secs_f64() / throughput.elapsed.as_secs_f64());
                outcome.over_time = throughput.over_time;
            }
            Workload::Udp { payload_len, rate } => {
                outcome.blasted(udp_blast(&there, Blast { rate, ..Blast::singly(payload_len) }, run)?);
            }
            Workload::UdpSegmented { rate } => {
                let blast = Blast::segmented();
                let rate = rate.map(|bits| bits / 8.0 / blast.payload_len as f64);
                outcome.blasted(udp_blast(&there, Blast { rate, ..blast }, run)?);
            }
            Workload::Latency { bulk_flows } => outcome.latency(&tcp_latency(&there, bulk_flows, run)?),
            Workload::DatagramLatency { bulk_flows } => {
                let latency = udp_latency(&there, bulk_flows, run)?;
                outcome.latency(&latency);
                outcome.add("loss", latency.loss());
            }
            Workload::Flows => outcome.latency(&tcp_flows(&there, SMALL_FLOWS, run)?),
            Workload::Connects => {
                let connects = tcp_connects(&there, CLIENT_COUNT, run)?;
                outcome.add("connects_per_s", connects.per_second());
                outcome.add("resets", connects.resets as f64 / connects.elapsed.as_secs_f64());
                outcome.add("cpu_cores", connects.cpu.as_secs_f64() / connects.elapsed.as_secs_f64());
            }
            Workload::Peers => {
                let spread = Spread { peers, sockets: PEER_FLOWS, payload_len: PEERS_PAYLOAD_LEN };
                let spreaded = udp_spread(there.from, there.to, spread, run)?;
                outcome.add("reordered", spreaded.late as f64 / spreaded.blasted.throughput.elapsed.as_secs_f64());
                outcome.blasted(spreaded.blasted);
            }
            Workload::Idle => outcome.idle(pids, run)?,
        }
        Ok(outcome)
    }
}

impl Outcome {
    fn blasted(&mut self, blasted: Blasted) {
        let cpu = blasted.throughput.cpu.as_secs_f64();
        self.add("pps", blasted.packets_per_second());
        self.add("offered_pps", blasted.offered_per_second());
        self.add("loss", blasted.loss());
        self.add("throughput", blasted.throughput.bits_per_second());
        self.add("cpu_per_gb", blasted.throughput.cpu_per_gigabyte());
        self.add("cpu_per_mpkt", cpu / (blasted.received as f64 / 1e6));
        self.add("cpu_cores", cpu / blasted.throughput.elapsed.as_secs_f64());
        self.over_time = blasted.throughput.over_time;
    }

    fn latency(&mut self, latency: &Latency) {
        self.add("latency_p50", latency.quantile_us(0.5));
        self.add("latency_p99", latency.quantile_us(0.99));
        self.add("latency_p999", latency.quantile_us(0.999));
        self.add("responses_per_s", latency.per_second());
        self.add("cpu_cores", latency.cpu.as_secs_f64() / latency.elapsed.as_secs_f64());
        self.latency_cdf = CDF.iter().map(|part| (latency.quantile_us(*part), *part)).collect();
        self.latency_cdf.push((latency.times.max() as f64 / 1e3, 1.0));
    }

    /// Who looks on may ask the subject, which is work for it: so before the warm-up, and after the end.
    fn idle(&mut self, pids: &[u32], run: &mut Run<'_>) -> Result<()> {
        run.watch.open()?;
        run.stop.sleep(run.window.warm_up)?;
        let (started, before) = (Instant::now(), Turns::of(pids));
        run.stop.sleep(run.window.length)?;
        let (after, elapsed) = (Turns::of(pids), started.elapsed().as_secs_f64());
        run.watch.close()?;
        if let (Some(before), Some(after)) = (before, after) {
            let (cpu, turns) = after.since(&before);
            self.add("subject_cpu", cpu.as_secs_f64() / elapsed * 100.0);
            self.add("subject_wakeups", turns as f64 / elapsed);
        }
        Ok(())
    }
}

/// Reads a number with `k`, `m` or `g` behind it.
///
/// # Errors
/// If it is none, or not positive.
pub fn parse_rate(text: &str) -> Result<f64> {
    let factors = [('k', 1e3), ('m', 1e6), ('g', 1e9)];
    let found = factors.iter().find_map(|(letter, factor)| Some((text.strip_suffix(*letter)?, *factor)));
    let (number, factor) = found.unwrap_or((text, 1.0));
    let number = number.parse::<f64>().ok().filter(|number| *number >= 1.0 && number.is_finite());
    Ok(number.with_context(|| format!("rate `{text}`: expected a number of 1 or more, such as 200k, 5g"))? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_the_documented_command_are_understood() {
        let list = Workload::parse_list("tcp1,tcp4,udp64,udp1400,udpgso,rr").unwrap();
        let expected = [
            Workload::Tcp { flows: 1, both: false },
            Workload::Tcp { flows: 4, both: false },
            Workload::Udp { payload_len: 64, rate: None },
            Workload::Udp { payload_len: 1400, rate: None },
            Workload::UdpSegmented { rate: None },
            Workload::Latency { bulk_flows: 0 },
        ];
        assert_eq!(list.iter().map(|(_, workload)| *workload).collect::<Vec<_>>(), expected);
        assert_eq!(Workload::parse("udp64@200k").unwrap(), Workload::Udp { payload_len: 64, rate: Some(200e3) });
        assert_eq!(Workload::parse("udpgso@5g").unwrap(), Workload::UdpSegmented { rate: Some(5e9) });
        assert_eq!(Workload::parse("tcp4-both").unwrap(), Workload::Tcp { flows: 4, both: true });
        assert_eq!(Workload::parse("udprr").unwrap(), Workload::DatagramLatency { bulk_flows: 0 });
        assert_eq!(Workload::parse("udprr-load").unwrap(), Workload::DatagramLatency { bulk_flows: 4 });
        assert_eq!(Workload::parse("idle").unwrap(), Workload::Idle);
        assert_eq!(Workload::parse("peers").unwrap(), Workload::Peers);
        assert_eq!(Workload::parse_list("all").unwrap().len(), 18);
    }

    #[test]
    fn nonsense_is_answered_with_what_was_expected() {
        for (text, expected) in [
            ("http", "expected one of"),
            ("", "expected one of"),
            ("tcp", "expected one of"),
            ("tcp0", "1 to 256 flows"),
            ("udp9000", "16 to 1422 bytes"),
            ("udp64@fast", "such as 200k"),
            ("rr@5", "only udpLEN and udpgso"),
            ("udprr@5", "only udpLEN and udpgso"),
            ("rr,rr", "is there twice"),
        ] {
            let error = format!("{:#}", Workload::parse_list(text).unwrap_err());
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
