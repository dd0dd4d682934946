//! What weft wants to reach: ratios to kernel VXLAN in the same run, on the settings that a user gets by default.
//!
//! *must* is the least that is acceptable, *aim* the real target. A ratio below 1 is less than VXLAN's: worse for
//! throughput and packets, better for latency and CPU.

use comfy_table::{CellAlignment, LineStyle, Table, presets};
use serde::Serialize;

use crate::metric;
use crate::result::{Mode, Ratio, Report};

/// The subject that targets are about.
pub const SUBJECT: &str = "weft";

/// The subject that targets are against.
pub const BASELINE: &str = "vxlan";

/// One row of the table of targets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Target {
    /// How packets cross the link.
    pub mode: Mode,
    /// The workload.
    pub workload: &'static str,
    /// The metric whose ratio counts.
    pub metric: &'static str,
    /// The least that is acceptable.
    pub must: f64,
    /// What is worked for.
    pub aim: f64,
}

const fn target(mode: Mode, workload: &'static str, metric: &'static str, must: f64, aim: f64) -> Target {
    Target { mode, workload, metric, must, aim }
}

/// All of them.
pub const TARGETS: [Target; 17] = [
    target(Mode::Wire, "tcp1", "throughput", 1.2, 1.6),
    target(Mode::Wire, "tcp4", "throughput", 0.85, 1.25),
    target(Mode::Offload, "tcp1", "throughput", 0.85, 1.2),
    target(Mode::Offload, "tcp4", "throughput", 0.36, 0.55),
    target(Mode::Wire, "udp64", "pps", 2.1, 3.0),
    target(Mode::Offload, "udp64", "pps", 2.1, 3.0),
    target(Mode::Wire, "udp1400", "pps", 2.1, 3.0),
    target(Mode::Offload, "udp1400", "pps", 2.1, 3.0),
    target(Mode::Wire, "udpgso", "throughput", 0.9, 1.2),
    target(Mode::Offload, "udpgso", "throughput", 0.25, 0.5),
    target(Mode::Wire, "rr", "latency_p50", 0.6, 0.4),
    target(Mode::Offload, "rr", "latency_p50", 0.6, 0.4),
    target(Mode::Wire, "rr", "latency_p99", 0.9, 0.6),
    target(Mode::Offload, "rr", "latency_p99", 0.9, 0.6),
    target(Mode::Wire, "rr-load", "latency_p99", 1.0, 0.5),
    target(Mode::Offload, "rr-load", "latency_p99", 1.0, 0.5),
    target(Mode::Wire, "tcp4", "cpu_per_gb", 2.0, 1.2),
];

/// Which of its two numbers a target's median reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reached {
    /// Neither.
    Neither,
    /// *must*.
    Must,
    /// *aim*.
    Aim,
}

/// What a run says about a target.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judged {
    /// The target.
    pub target: Target,
    /// The ratio: at the smallest MTU that was measured, without a rate limit. `None`: not measured.
    pub ratio: Option<Ratio>,
    /// What its median reaches; `None`: not measured.
    pub reached: Option<Reached>,
    /// No round says otherwise than the median.
    pub unanimous: bool,
}

impl Judged {
    /// The verdict for people.
    pub fn words(&self) -> &'static str {
        match (self.reached, self.unanimous) {
            (None, _) => "not measured",
            (Some(Reached::Aim), true) => "aim met",
            (Some(Reached::Aim), false) => "aim met, not in every round",
            (Some(Reached::Must), true) => "must met",
            (Some(Reached::Must), false) => "must met, not in every round",
            (Some(Reached::Neither), true) => "missed",
            (Some(Reached::Neither), false) => "missed, not in every round",
        }
    }
}

/// Judges every target by a report. Empty if the report does not measure [`SUBJECT`] against [`BASELINE`].
pub fn judge(report: &Report) -> Vec<Judged> {
    let ratios: Vec<&Ratio> = report
        .ratios
        .iter()
        .filter(|ratio| ratio.subject == SUBJECT && ratio.baseline == BASELINE && ratio.rate_mbit.is_none())
        .collect();
    let Some(mtu) = ratios.iter().map(|ratio| ratio.mtu).min() else {
        return Vec::new();
    };
    TARGETS
        .iter()
        .map(|target| {
            let ratio = ratios.iter().find(|ratio| {
                ratio.mtu == mtu
                    && (ratio.mode, ratio.workload.as_str(), ratio.metric.as_str())
                        == (target.mode, target.workload, target.metric)
            });
            let of = |value: f64| reached(target, value);
            Judged {
                target: *target,
                ratio: ratio.map(|ratio| (*ratio).clone()),
                reached: ratio.map(|ratio| of(ratio.median)),
                unanimous: ratio
                    .is_some_and(|ratio| of(ratio.min) == of(ratio.median) && of(ratio.max) == of(ratio.median)),
            }
        })
        .collect()
}

fn reached(target: &Target, value: f64) -> Reached {
    let less = metric::find(target.metric).is_some_and(|metric| metric.less_is_better);
    let reaches = |goal: f64| if less { value <= goal } else { value >= goal };
    match (reaches(target.aim), reaches(target.must)) {
        (true, _) => Reached::Aim,
        (_, true) => Reached::Must,
        _ => Reached::Neither,
    }
}

/// The table for the terminal; empty without targets.
pub fn table(judged: &[Judged]) -> String {
    if judged.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table.set_header(["mode", "workload", "metric", "must", "aim", "measured", "spread", "verdict"]);
    for row in judged {
        let (measured, spread) = match &row.ratio {
            Some(ratio) => (format!("{:.2}x", ratio.median), format!("{:.2} - {:.2}", ratio.min, ratio.max)),
            None => ("-".to_owned(), String::new()),
        };
        let target = &row.target;
        let bound = if metric::find(target.metric).is_some_and(|metric| metric.less_is_better) { "<=" } else { ">=" };
        table.add_row([
            target.mode.name().to_owned(),
            target.workload.to_owned(),
            target.metric.to_owned(),
            format!("{bound} {:.2}", target.must),
            format!("{bound} {:.2}", target.aim),
            measured,
            spread,
            row.words().to_owned(),
        ]);
    }
    for column in 3..=5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("Targets: {SUBJECT} / {BASELINE}, medians and spread of the rounds\n{table}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_is_better_for_latency_and_more_for_throughput() {
        let find = |mode, workload, metric| {
            *TARGETS.iter().find(|t| (t.mode, t.workload, t.metric) == (mode, workload, metric)).unwrap()
        };
        let tcp = find(Mode::Wire, "tcp1", "throughput");
        assert_eq!([1.1, 1.2, 1.7].map(|value| reached(&tcp, value)), [Reached::Neither, Reached::Must, Reached::Aim]);
        let latency = find(Mode::Wire, "rr", "latency_p50");
        assert_eq!(
            [0.7, 0.6, 0.3].map(|value| reached(&latency, value)),
            [Reached::Neither, Reached::Must, Reached::Aim]
        );
    }

    #[test]
    fn every_aim_is_beyond_its_must_and_every_metric_is_known() {
        for target in TARGETS {
            assert!(metric::find(target.metric).is_some(), "{target:?}");
            assert_eq!(reached(&target, target.aim), Reached::Aim, "{target:?}");
            assert_eq!(reached(&target, target.must), Reached::Must, "{target:?}");
        }
    }
}
