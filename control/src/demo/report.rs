//! What the demo found: the object that `--json` prints. Fields may be added, never renamed; `docs/demo.md` lists them.

use std::net::IpAddr;

use serde::Serialize;
use weft_lab::measure::median;
use weft_proto::StatusReport;

/// A way between the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The tunnel of this project.
    Weft,
    /// The kernel's VXLAN, programmed as flannel does.
    Vxlan,
    /// A route, no tunnel; flannel calls it host-gw.
    Plain,
}

impl Subject {
    /// All of them, in the order of the tables.
    pub const ALL: [Subject; 3] = [Subject::Weft, Subject::Vxlan, Subject::Plain];

    /// Name for people, at most seven characters.
    pub fn name(self) -> &'static str {
        match self {
            Subject::Weft => "weft",
            Subject::Vxlan => "VXLAN",
            Subject::Plain => "routing",
        }
    }
}

/// How packets cross the cable: [`weft_lab::Mode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CableMode {
    /// Super-packets cross whole.
    Offload,
    /// Every packet crosses at MTU size.
    Wire,
}

impl CableMode {
    /// Both.
    pub const ALL: [CableMode; 2] = [CableMode::Offload, CableMode::Wire];

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            CableMode::Offload => "offload",
            CableMode::Wire => "wire",
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// TCP, one flow: payload bits per second.
    #[serde(rename = "tcp_1_flow")]
    Tcp1,
    /// TCP, four flows: payload bits per second.
    #[serde(rename = "tcp_4_flows")]
    Tcp4,
    /// UDP, 64 bytes of payload, sent singly: datagrams per second that arrive.
    #[serde(rename = "udp_64_bytes")]
    UdpSmall,
    /// UDP, 1400 bytes of payload, sent as super-packets: payload bits per second that arrive.
    #[serde(rename = "udp_segmented")]
    UdpSegmented,
    /// TCP request and response, one at a time, nothing else under way: median round-trip time.
    LatencyP50,
    /// The same: the time that one in a hundred exceeds.
    LatencyP99,
    /// CPU seconds of the whole machine, both hosts and the measuring programs, for 10^9 bytes of payload by one TCP flow.
    CpuPerGigabyte,
}

impl Metric {
    /// All of them, in the order of the tables.
    pub const ALL: [Metric; 7] = [
        Metric::Tcp1,
        Metric::Tcp4,
        Metric::UdpSmall,
        Metric::UdpSegmented,
        Metric::LatencyP50,
        Metric::LatencyP99,
        Metric::CpuPerGigabyte,
    ];

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Tcp1 => "TCP, 1 flow",
            Metric::Tcp4 => "TCP, 4 flows",
            Metric::UdpSmall => "UDP, 64 bytes",
            Metric::UdpSegmented => "UDP, segmented",
            Metric::LatencyP50 => "latency p50",
            Metric::LatencyP99 => "latency p99",
            Metric::CpuPerGigabyte => "CPU, 1 flow",
        }
    }

    /// Unit of the values in JSON.
    pub fn unit(self) -> &'static str {
        match self {
            Metric::Tcp1 | Metric::Tcp4 | Metric::UdpSegmented => "bit/s",
            Metric::UdpSmall => "packet/s",
            Metric::LatencyP50 | Metric::LatencyP99 => "us",
            Metric::CpuPerGigabyte => "s/GB",
        }
    }

    /// Unit of the values that [`Metric::show`] gives.
    pub fn shown_unit(self) -> &'static str {
        match self {
            Metric::Tcp1 | Metric::Tcp4 | Metric::UdpSegmented => "Gbit/s",
            Metric::UdpSmall => "1000/s",
            other => other.unit(),
        }
    }

    /// A value in [`Metric::shown_unit`], with three significant digits or so.
    pub fn show(self, value: f64) -> String {
        let scaled = match self {
            Metric::Tcp1 | Metric::Tcp4 | Metric::UdpSegmented => value / 1e9,
            Metric::UdpSmall => value / 1e3,
            _ => value,
        };
        match scaled {
            small if small < 10.0 => format!("{small:.2}"),
            medium if medium < 100.0 => format!("{medium:.1}"),
            large => format!("{large:.0}"),
        }
    }

    /// True if a smaller value is a better one.
    pub fn less_is_better(self) -> bool {
        matches!(self, Metric::LatencyP50 | Metric::LatencyP99 | Metric::CpuPerGigabyte)
    }
}

/// The whole result.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Every ping, transfer and measurement succeeded, with the engine and offloads that were meant to run, and nothing
    /// was left behind.
    pub ok: bool,
    /// Why not, a sentence each.
    pub failures: Vec<String>,
    /// Ended early by a signal.
    pub interrupted: bool,
    /// Version of weft.
    pub weft_version: &'static str,
    /// Where it ran.
    pub machine: Machine,
    /// What was asked for.
    pub plan: Plan,
    /// Both hosts.
    pub hosts: Vec<HostReport>,
    /// Every ping.
    pub pings: Vec<PingReport>,
    /// Every file.
    pub transfers: Vec<TransferReport>,
    /// Every metric, mode and subject.
    pub measurements: Vec<Measurement>,
    /// What a line of memory took from core to core before each run of a measurement, nanoseconds; empty with one core, or if
    /// threads may not choose theirs.
    pub core_to_core_ns: Vec<f64>,
    /// Seconds that all of it took.
    pub elapsed_s: f64,
}

/// Where the demo ran.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Kernel release.
    pub kernel: String,
    /// Model of the CPU, as the kernel calls it.
    pub cpu: Option<String>,
    /// Cores that hosts, tunnels and measuring programs share.
    pub cores: usize,
    /// weft was built without optimisation (not `--release`): numbers mean nothing.
    pub debug_build: bool,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Plan {
    /// Length of one measurement, seconds.
    pub seconds: f64,
    /// How often each is repeated.
    pub rounds: u32,
    /// Bytes of each file.
    pub file_bytes: u64,
}

/// A host.
#[derive(Clone, Debug, Serialize)]
pub struct HostReport {
    /// Its name.
    pub name: String,
    /// Its underlay address.
    pub underlay: IpAddr,
    /// Its overlay addresses.
    pub overlay: Vec<IpAddr>,
    /// What weftd said about itself after the measurements: as `weft status --json`.
    pub weftd: StatusReport,
    /// Why it did less than it could, a sentence each.
    pub degraded: Vec<String>,
}

/// Several echo requests.
#[derive(Clone, Debug, Serialize)]
pub struct PingReport {
    /// Every reply came, unharmed, with the TTL that is due.
    pub ok: bool,
    /// Name of the host that asked.
    pub from: String,
    /// Name of the host that answered.
    pub to: String,
    /// The address asked, inside the tunnel.
    pub address: IpAddr,
    /// Requests.
    pub sent: u32,
    /// Replies.
    pub received: u32,
    /// Median round-trip time, microseconds.
    pub rtt_us: Option<f64>,
    /// TTL or hop limit of the last reply.
    pub ttl: Option<u8>,
    /// What went wrong.
    pub error: Option<String>,
}

/// One file sent through the tunnel.
#[derive(Clone, Debug, Serialize)]
pub struct TransferReport {
    /// Both hashes are the same.
    pub ok: bool,
    /// Name of the host that sent.
    pub from: String,
    /// Name of the host that received.
    pub to: String,
    /// The address that received, inside the tunnel.
    pub address: IpAddr,
    /// Length of the file.
    pub bytes: u64,
    /// From connecting to the last byte written.
    pub seconds: Option<f64>,
    /// SHA-256 of the file that was sent, hexadecimal.
    pub sha256_sent: Option<String>,
    /// SHA-256 of the file that arrived.
    pub sha256_received: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
}

/// One cell of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// What.
    pub metric: Metric,
    /// Unit of every value here.
    pub unit: &'static str,
    /// How packets crossed the cable.
    pub mode: CableMode,
    /// By which way.
    pub subject: Subject,
    /// The value counts: every round succeeded, and what ran is what was meant to run.
    pub measured: bool,
    /// Median of the rounds; of latency: the quantile over all rounds.
    pub value: Option<f64>,
    /// Value divided by that of VXLAN in the same mode.
    pub ratio_to_vxlan: Option<f64>,
    /// Each round, in order.
    pub rounds: Vec<f64>,
    /// UDP: the part of the datagrams that did not arrive, 0 to 1, median of the rounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Report {
    /// An empty report.
    pub fn new(machine: Machine, plan: Plan) -> Report {
        Report {
            ok: false,
            failures: Vec::new(),
            interrupted: false,
            weft_version: env!("CARGO_PKG_VERSION"),
            machine,
            plan,
            hosts: Vec::new(),
            pings: Vec::new(),
            transfers: Vec::new(),
            measurements: Vec::new(),
            core_to_core_ns: Vec::new(),
            elapsed_s: 0.0,
        }
    }

    /// Draws the conclusions: what does not count, ratios, failures, `ok`. `expected` is the number of pings, transfers
    /// and measurements that a complete demo has.
    pub fn conclude(&mut self, expected: [usize; 3]) {
        let mut degraded = Vec::new();
        for host in &self.hosts {
            degraded.extend(host.degraded.iter().map(|why| format!("weftd on host {}: {why}", host.name)));
        }
        for measurement in self.measurements.iter_mut() {
            let is_in_doubt = measurement.subject == Subject::Weft && (!degraded.is_empty() || self.hosts.len() < 2);
            measurement.measured = measurement.value.is_some() && measurement.error.is_none() && !is_in_doubt;
        }
        self.add_ratios();
        let pings = self
            .pings
            .iter()
            .filter_map(|ping| Some(format!("ping from {} to {}: {}", ping.from, ping.address, ping.error.as_ref()?)));
        let transfers = self.transfers.iter().filter_map(|transfer| {
            Some(format!("file from {} to {}: {}", transfer.from, transfer.address, transfer.error.as_ref()?))
        });
        let measurements = self.measurements.iter().enumerate().filter_map(|(index, measurement)| {
            let Measurement { metric, mode, subject, error, .. } = measurement;
            let error = error.as_ref()?;
            // Several metrics come from one run, and fail with it.
            let is_known = self.measurements[..index]
                .iter()
                .any(|other| (other.mode, other.subject, other.error.as_ref()) == (*mode, *subject, Some(error)));
            (!is_known).then(|| format!("{}, {}, {}: {error}", subject.name(), metric.name(), mode.name()))
        });
        let found: Vec<String> = pings.chain(transfers).chain(measurements).collect();
        self.failures.extend(found);
        let refusal = degraded.into_iter().map(|why| format!("weft's numbers are not called measured: {why}"));
        self.failures.extend(refusal);
        let is_complete = [self.pings.len(), self.transfers.len(), self.measurements.len()] == expected
            && self.hosts.len() == 2
            && self.pings.iter().all(|ping| ping.ok)
            && self.transfers.iter().all(|transfer| transfer.ok)
            && self.measurements.iter().all(|measurement| measurement.measured);
        if !is_complete && self.failures.is_empty() && !self.interrupted {
            self.failures.push("the demo did not get to its end".into());
        }
        self.ok = is_complete && self.failures.is_empty() && !self.interrupted;
    }

    fn add_ratios(&mut self) {
        let vxlan: Vec<_> = self
            .measurements
            .iter()
            .filter(|measurement| measurement.subject == Subject::Vxlan)
            .map(|measurement| (measurement.metric, measurement.mode, measurement.value))
            .collect();
        for measurement in &mut self.measurements {
            let same =
                vxlan.iter().find(|(metric, mode, _)| (*metric, *mode) == (measurement.metric, measurement.mode));
            let other = same.and_then(|(_, _, value)| *value).filter(|value| *value > 0.0);
            measurement.ratio_to_vxlan = measurement.value.zip(other).map(|(value, other)| value / other);
        }
    }

    /// The cell of a metric, mode and subject.
    pub fn cell(&self, metric: Metric, mode: CableMode, subject: Subject) -> Option<&Measurement> {
        self.measurements.iter().find(|cell| (cell.metric, cell.mode, cell.subject) == (metric, mode, subject))
    }

    /// The typical spread of one cell between rounds, as a part of its median; `None` with a single round.
    pub fn spread(&self) -> Option<f64> {
        let spreads = self.measurements.iter().filter(|cell| cell.rounds.len() > 1).filter_map(|cell| {
            let largest = cell.rounds.iter().copied().fold(f64::MIN, f64::max);
            let smallest = cell.rounds.iter().copied().fold(f64::MAX, f64::min);
            Some((largest - smallest) / cell.value.filter(|value| *value > 0.0)?)
        });
        median(&spreads.collect::<Vec<_>>())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A report with one metric measured in one mode: weft 3, VXLAN 2, routing 4 Gbit/s.
    pub fn small_report() -> Report {
        let machine = Machine { kernel: "6.18".into(), cpu: None, cores: 2, debug_build: false };
        let mut report = Report::new(machine, Plan { seconds: 1.0, rounds: 3, file_bytes: 1 });
        for (subject, value) in Subject::ALL.into_iter().zip([3e9, 2e9, 4e9]) {
            report.measurements.push(Measurement {
                metric: Metric::Tcp1,
                unit: Metric::Tcp1.unit(),
                mode: CableMode::Offload,
                subject,
                measured: false,
                value: Some(value),
                ratio_to_vxlan: None,
                rounds: vec![value, value * 1.1, value * 0.9],
                loss: None,
                error: None,
            });
        }
        for name in ["a", "b"] {
            report.hosts.push(host(name));
        }
        report
    }

    fn host(name: &str) -> HostReport {
        let weftd = serde_json::from_value(serde_json::json!({
            "weftd_version": "0.1.0", "pid": 1, "uptime_ms": 1, "tun_name": "weft-a", "tun_ifindex": 3, "opener": "native",
            "mtu": 1472, "bind": "0.0.0.0:8285", "engine": "uring", "engine_note": null, "engine_fallback": false,
            "peer_check": "strict", "spin_us": 50, "workers": 1, "workers_in_use": 1, "workers_running": 1, "draining": false, "generation": 1,
            "digest": weft_proto::Digest::of_set(&weft_proto::RouteSet::default()), "routes": 2, "peers": 1,
            "offloads": {"tun_vnet": true, "tun_tso": true, "tun_uso": true, "udp_gso": true, "udp_gro": true},
            "offloads_lost": [], "encap_drops": 0, "decap_drops": 0
        }))
        .unwrap();
        HostReport {
            name: name.into(),
            underlay: [192, 0, 2, 1].into(),
            overlay: vec![[10, 99, 0, 1].into()],
            weftd,
            degraded: Vec::new(),
        }
    }

    #[test]
    fn ratios_are_to_vxlan_in_the_same_row() {
        let mut report = small_report();
        report.conclude([0, 0, 3]);
        assert!(report.ok, "{:?}", report.failures);
        let ratios: Vec<_> = report.measurements.iter().map(|cell| cell.ratio_to_vxlan.unwrap()).collect();
        assert_eq!(ratios, [1.5, 1.0, 2.0]);
        assert!((report.spread().unwrap() - 0.2).abs() < 1e-9);
    }

    #[test]
    fn what_fell_back_is_not_called_measured() {
        let mut report = small_report();
        report.hosts[1].degraded.push("engine epoll took over: refused".into());
        report.conclude([0, 0, 3]);
        assert!(!report.ok);
        assert!(report.failures[0].contains("host b: engine epoll took over"), "{:?}", report.failures);
        let measured: Vec<_> = report.measurements.iter().map(|cell| cell.measured).collect();
        assert_eq!(measured, [false, true, true]);
    }

    #[test]
    fn a_failure_of_any_part_is_one_of_the_whole_and_is_named() {
        let mut report = small_report();
        report.measurements[1].error = Some("WRONG PAYLOAD".into());
        report.conclude([0, 0, 3]);
        assert!(!report.ok && report.failures[0].contains("VXLAN, TCP, 1 flow, offload: WRONG PAYLOAD"));
        let mut report = small_report();
        report.conclude([8, 4, 42]);
        assert!(!report.ok && report.failures.len() == 1);
        let mut report = small_report();
        report.interrupted = true;
        report.conclude([0, 0, 3]);
        assert!(!report.ok);
    }

    #[test]
    fn json_has_the_names_that_are_documented() {
        let mut report = small_report();
        report.conclude([0, 0, 3]);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["ok"], true);
        assert_eq!(json["measurements"][0]["metric"], "tcp_1_flow");
        assert_eq!(json["measurements"][0]["mode"], "offload");
        assert_eq!(json["measurements"][2]["subject"], "plain");
        assert_eq!(json["hosts"][0]["weftd"]["offloads"]["udp_gso"], true);
    }

    #[test]
    fn values_are_shown_with_about_three_digits() {
        let shown = [
            (Metric::Tcp1, 12_345_678_901.0, "12.3"),
            (Metric::UdpSmall, 612_345.0, "612"),
            (Metric::LatencyP50, 9.876, "9.88"),
            (Metric::CpuPerGigabyte, 0.5, "0.50"),
        ];
        for (metric, value, text) in shown {
            assert_eq!(metric.show(value), text);
        }
    }
}
