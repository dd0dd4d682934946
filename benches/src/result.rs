//! What a run found: the object that `weft-bench run --json FILE` writes and that reports and comparisons read.
//!
//! Fields may be added, never renamed. Metrics have the names and units of [`crate::metric`]. One measurement is named by
//! its *conditions*: mode, underlay MTU, rate limit, workload. A [`Sample`] is one subject under one set of conditions in
//! one round; medians and ratios sum the rounds up.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of this schema.
pub const SCHEMA: u32 = 1;

/// How packets cross the link between the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Super-packets cross whole, as between containers on one machine.
    Offload,
    /// Every packet crosses at MTU size, as on a plain NIC whose driver merges on receive (GRO).
    Wire,
}

impl Mode {
    /// Both, in the order of the tables.
    pub const ALL: [Mode; 2] = [Mode::Offload, Mode::Wire];

    /// The word on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Offload => "offload",
            Mode::Wire => "wire",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Every measurement that was planned was made, by the engine and with the offloads that were meant to run.
    pub ok: bool,
    /// Why not, a sentence each.
    pub failures: Vec<String>,
    /// Ended early by a signal; what was measured until then is here.
    pub interrupted: bool,
    /// Version of weft-bench.
    pub weft_version: String,
    /// The commit that weft-bench was run from, `-dirty` behind it if files were changed; `None` outside a repository.
    pub commit: Option<String>,
    /// The command line.
    pub command: Vec<String>,
    /// When it began: UTC, RFC 3339, such as `2026-11-24T08:30:00Z`.
    pub started: String,
    /// Seconds that all of it took.
    pub elapsed_s: f64,
    /// Where it ran.
    pub host: HostFacts,
    /// What was asked for.
    pub plan: Plan,
    /// What ran, per subject, mode, MTU and rate limit.
    pub subjects: Vec<SubjectReport>,
    /// Every single measurement, in the order in which they were made.
    pub samples: Vec<Sample>,
    /// Each metric over the rounds.
    pub medians: Vec<Summary>,
    /// Each metric against the baseline, round by round, then summed up. The baseline itself is not listed.
    pub ratios: Vec<Ratio>,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Kernel release, as `uname -r`.
    pub kernel: String,
    /// Machine architecture, as `uname -m`.
    pub architecture: String,
    /// Model of the CPU, as the kernel calls it.
    pub cpu: Option<String>,
    /// Cores that hosts, tunnels and traffic share.
    pub cores: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// The CPU says that a hypervisor is below it.
    pub virtualized: bool,
    /// The system vendor and product that the firmware names, such as `QEMU Standard PC`.
    pub machine: Option<String>,
    /// The congestion control of TCP as the sockets of the hosts had it; see [`Plan::congestion_control`].
    pub congestion_control: Option<String>,
    /// Part of the machine's CPU time that others used just before the run began, 0 to 1.
    pub load: f64,
    /// weft-bench or weftd was built without optimisation: numbers mean nothing.
    pub debug_build: bool,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// How often each measurement is repeated.
    pub rounds: u32,
    /// Length of one measurement, seconds.
    pub seconds: f64,
    /// Traffic before it counts, seconds.
    pub warm_up: f64,
    /// Subjects by name, in the order given.
    pub subjects: Vec<String>,
    /// The subject that ratios are against, if it is among them.
    pub baseline: Option<String>,
    /// Modes.
    pub modes: Vec<Mode>,
    /// MTUs of the underlay, bytes.
    pub mtus: Vec<u32>,
    /// Rate limits of the link, Mbit/s; `None`: no limit.
    pub rates_mbit: Vec<Option<u64>>,
    /// Workloads by name, in the order given.
    pub workloads: Vec<String>,
    /// The congestion control that was asked for; `None`: whatever is the system's.
    #[serde(default)]
    pub congestion_control: Option<String>,
}

/// What ran for one subject, as the subject itself or the kernel says, under one mode, MTU and rate limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SubjectReport {
    /// The name, as given on the command line.
    pub name: String,
    /// `weft`, `vxlan`, `host-gw`, `fou`, `wireguard-go` or `external`.
    pub kind: String,
    /// How packets crossed the link.
    pub mode: Mode,
    /// MTU of the underlay, bytes.
    pub mtu: u32,
    /// Rate limit, Mbit/s.
    #[serde(default)]
    pub rate_mbit: Option<u64>,
    /// MTU inside the tunnel, bytes.
    pub overlay_mtu: Option<u32>,
    /// weft: `uring` or `epoll`, as it ran.
    pub engine: Option<String>,
    /// weft: how the TUN was opened, `native` or `simple`.
    pub opener: Option<String>,
    /// weft: worker threads on each host.
    pub workers: Option<u16>,
    /// weft: how long a worker looks for work before it sleeps, microseconds.
    pub spin_us: Option<u32>,
    /// weft: offloads by name, and whether they were in use on both hosts all the time.
    #[serde(default)]
    pub offloads: BTreeMap<String, bool>,
    /// Version, as the subject says.
    pub version: Option<String>,
    /// The command line on host a, for subjects that are programs.
    pub command: Option<String>,
    /// Packets that the subject itself dropped over all its measurements, by direction and reason, both hosts summed.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
    /// What a person should know, a sentence each: an engine that was fallen back to, a setting that was changed.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Why its figures are not called measured; then it has no medians and no ratios here.
    pub refused: Option<String>,
}

/// One subject under one set of conditions in one round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Number of the round, from 1.
    pub round: u32,
    /// How packets crossed the link.
    pub mode: Mode,
    /// MTU of the underlay, bytes.
    pub mtu: u32,
    /// Rate limit, Mbit/s.
    #[serde(default)]
    pub rate_mbit: Option<u64>,
    /// The subject.
    pub subject: String,
    /// The workload.
    pub workload: String,
    /// Values by the names of [`crate::metric`]; empty if it failed.
    pub metrics: BTreeMap<String, f64>,
    /// Latency: `[microseconds, part of the responses that took at most so long (0 to 1)]`, ascending, at most some 100
    /// points. Empty for other workloads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latency_cdf: Vec<(f64, f64)>,
    /// Throughput: payload bytes that arrived in each 100 ms of the window. Empty for other workloads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub over_time: Vec<u64>,
    /// What went wrong: a wrong byte, no answer, an offload that was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One metric of one subject under one set of conditions, over the rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The subject.
    pub subject: String,
    /// How packets crossed the link.
    pub mode: Mode,
    /// MTU of the underlay, bytes.
    pub mtu: u32,
    /// Rate limit, Mbit/s.
    #[serde(default)]
    pub rate_mbit: Option<u64>,
    /// The workload.
    pub workload: String,
    /// Name of the metric.
    pub metric: String,
    /// Its unit.
    pub unit: String,
    /// The middle value of the rounds; of an even number, the mean of the middle two.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// Number of rounds.
    pub samples: usize,
}

/// One metric of one subject divided by that of the baseline in the same round under the same conditions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The subject.
    pub subject: String,
    /// The subject that it is divided by.
    pub baseline: String,
    /// How packets crossed the link.
    pub mode: Mode,
    /// MTU of the underlay, bytes.
    pub mtu: u32,
    /// Rate limit, Mbit/s.
    #[serde(default)]
    pub rate_mbit: Option<u64>,
    /// The workload.
    pub workload: String,
    /// Name of the metric.
    pub metric: String,
    /// The middle one of the rounds' ratios.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// Number of rounds in which both were measured.
    pub samples: usize,
}

impl Report {
    /// Reads a report from its JSON.
    ///
    /// # Errors
    /// If the text is no such object, or of another schema.
    pub fn from_json(text: &str) -> anyhow::Result<Report> {
        #[derive(Deserialize)]
        struct Head {
            schema: u32,
        }
        let head: Head = serde_json::from_str(text)?;
        anyhow::ensure!(head.schema == SCHEMA, "schema {} where this weft-bench reads schema {SCHEMA}", head.schema);
        Ok(serde_json::from_str(text)?)
    }
}
