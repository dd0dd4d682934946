//! A report that was never measured: it has the shape of a run, and numbers made up so that every drawing has
//! something to draw. It serves tests alone.

use std::collections::BTreeMap;

use weft_bench::result::{HostFacts, Mode, Plan, Report, SCHEMA, Sample, SubjectReport};
use weft_bench::summary;

/// What the machine of a made-up report is called, so that nobody takes it for a result.
pub const MACHINE: &str = "made up, not measured";

/// Subjects and how much faster than the baseline they are made out to be.
const SUBJECTS: [(&str, f64); 4] = [("weft", 1.45), ("weft:engine=epoll", 1.3), ("vxlan", 1.0), ("host-gw", 1.6)];

const WORKLOADS: [&str; 7] = ["tcp1", "tcp4", "udp64", "udp1400", "udpgso", "rr", "rr-load"];

/// Numbers that look scattered and are the same every time (the mixing of SplitMix64).
pub struct Scatter(pub u64);

impl Scatter {
    /// The next one, within `spread` around 1.
    pub fn around_one(&mut self, spread: f64) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let part = ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64;
        1.0 + spread * (2.0 * part - 1.0)
    }
}

/// A whole report of so many rounds. Everything but the baseline is `faster` than it would be.
pub fn report(rounds: u32, faster: f64, seed: u64) -> Report {
    let mut scatter = Scatter(seed);
    let mut samples = Vec::new();
    for round in 1..=rounds {
        for mode in [Mode::Offload, Mode::Wire] {
            for workload in WORKLOADS {
                for (subject, speed) in SUBJECTS {
                    let speed = if subject == "vxlan" { speed } else { speed * faster };
                    samples.push(sample(round, mode, workload, subject, speed, &mut scatter));
                }
            }
        }
    }
    let mut report = Report {
        schema: SCHEMA,
        ok: true,
        failures: Vec::new(),
        interrupted: false,
        weft_version: "0.1.0".to_owned(),
        commit: Some("0123456789abcdef0123456789abcdef01234567".to_owned()),
        command: ["weft-bench", "run", "--rounds", "5"].map(str::to_owned).to_vec(),
        started: "2026-11-24T08:30:00Z".to_owned(),
        elapsed_s: 512.0,
        host: HostFacts {
            kernel: "6.18.0".to_owned(),
            architecture: "x86_64".to_owned(),
            cpu: Some("A CPU & its \"cores\" <none>".to_owned()),
            cores: 2,
            memory: 8 << 30,
            virtualized: true,
            machine: Some(MACHINE.to_owned()),
            congestion_control: Some("cubic".to_owned()),
            load: 0.012,
            debug_build: false,
        },
        plan: Plan {
            rounds,
            seconds: 1.0,
            warm_up: 0.2,
            subjects: SUBJECTS.map(|(name, _)| name.to_owned()).to_vec(),
            baseline: Some("vxlan".to_owned()),
            modes: vec![Mode::Offload, Mode::Wire],
            mtus: vec![1500],
            rates_mbit: vec![None],
            workloads: WORKLOADS.map(str::to_owned).to_vec(),
            congestion_control: None,
        },
        subjects: subjects(),
        samples,
        medians: Vec::new(),
        ratios: Vec::new(),
    };
    summary::conclude(&mut report);
    report
}

fn subjects() -> Vec<SubjectReport> {
    let mut subjects = Vec::new();
    for (name, _) in SUBJECTS {
        for mode in Mode::ALL {
            let is_weft = name.starts_with("weft");
            let engine = if name.ends_with("epoll") { "epoll" } else { "uring" };
            let offloads =
                ["tun_tso", "tun_uso", "udp_gso", "udp_gro"].map(|name| (name.to_owned(), name != "tun_uso"));
            subjects.push(SubjectReport {
                name: name.to_owned(),
                kind: name.split(':').next().unwrap_or(name).to_owned(),
                mode,
                mtu: 1500,
                rate_mbit: None,
                overlay_mtu: Some(if is_weft { 1472 } else { 1450 }),
                engine: is_weft.then(|| engine.to_owned()),
                opener: is_weft.then(|| "native".to_owned()),
                workers: is_weft.then_some(1),
                spin_us: is_weft.then_some(50),
                offloads: if is_weft { offloads.into_iter().collect() } else { BTreeMap::new() },
                version: is_weft.then(|| "0.1.0".to_owned()),
                command: None,
                drops: BTreeMap::new(),
                notes: Vec::new(),
                refused: None,
            });
        }
    }
    subjects
}

fn sample(round: u32, mode: Mode, workload: &str, subject: &str, speed: f64, scatter: &mut Scatter) -> Sample {
    let speed = speed * scatter.around_one(0.08) * if workload == "tcp4" && subject != "vxlan" { 0.45 } else { 1.0 };
    let mut metrics = BTreeMap::new();
    let mut add = |name: &str, value: f64| {
        metrics.insert(name.to_owned(), value);
    };
    let mut latency_cdf = Vec::new();
    let mut over_time = Vec::new();
    if workload.starts_with("rr") {
        let middle = 62.0 / speed * if workload == "rr-load" { 5.0 } else { 1.0 };
        for part in [0.0f64, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999] {
            let odds = (part.clamp(0.002, 0.9999) / (1.0 - part.clamp(0.002, 0.9999))).ln();
            latency_cdf.push((middle * (odds * 0.16 * scatter.around_one(0.02)).exp(), part));
        }
        latency_cdf.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        add("latency_p50", middle);
        add("latency_p99", middle * 2.1 * scatter.around_one(0.2));
        add("latency_p999", middle * 3.3 * scatter.around_one(0.3));
        add("responses_per_s", 1e6 / middle);
    } else {
        let base = match (workload, mode) {
            ("udp64", _) => 160e3 * 64.0 * 8.0,
            ("udp1400", _) => 150e3 * 1400.0 * 8.0,
            (_, Mode::Wire) => 6.8e9,
            (_, Mode::Offload) => 13.2e9,
        };
        let throughput = base * speed;
        over_time = (0..10).map(|_| (throughput / 80.0 * scatter.around_one(0.06)) as u64).collect();
        add("throughput", throughput);
        add("cpu_per_gb", 1.4 / speed * scatter.around_one(0.1));
        if workload.starts_with("udp") {
            add("pps", throughput / 8.0 / 1400.0);
            add("loss", 0.02);
            add("cpu_per_mpkt", 6.0 / speed);
        }
    }
    Sample {
        round,
        mode,
        mtu: 1500,
        rate_mbit: None,
        subject: subject.to_owned(),
        workload: workload.to_owned(),
        metrics,
        latency_cdf,
        over_time,
        error: None,
    }
}
