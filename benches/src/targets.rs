//! What weft wants to reach: ratios to kernel VXLAN in the same run, on the settings that a user gets by default.
//!
//! *must* is the least that is acceptable, *aim* the real target. A ratio below 1 is less than VXLAN's: worse for
//! throughput and packets, better for latency and CPU. What an idle weftd uses has no counterpart in the kernel and is judged
//! as it is.

use comfy_table::{CellAlignment, LineStyle, Table, presets};
use serde::Serialize;

use crate::metric::{self, Metric};
use crate::result::{Mode, Ratio, Report, Summary};

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
    /// The metric whose ratio counts; of one that has no ratio, the value.
    pub metric: &'static str,
    /// The least that is acceptable.
    pub must: f64,
    /// What is worked for.
    pub aim: f64,
}

const fn target(mode: Mode, workload: &'static str, metric: &'static str, must: f64, aim: f64) -> Target {
    Target { mode, workload, metric, must, aim }
}

impl Target {
    /// The metric, if the target is about its value and not about a ratio.
    pub fn absolute(&self) -> Option<&'static Metric> {
        metric::find(self.metric).filter(|metric| !metric.has_ratio)
    }

    /// [`Self::must`] or [`Self::aim`] for people.
    pub fn show_goal(&self, goal: f64) -> String {
        self.absolute().map_or_else(|| format!("{goal:.2}"), |metric| format!("{goal:.1} {}", metric.unit))
    }
}

/// All of them.
pub const TARGETS: [Target; 19] = [
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
    target(Mode::Wire, "idle", "subject_cpu", 0.0, 0.0),
    target(Mode::Offload, "idle", "subject_cpu", 0.0, 0.0),
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

/// A ratio or value over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The middle one.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

/// What a run says about a target.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judged {
    /// The target.
    pub target: Target,
    /// The ratio or value: at the smallest MTU that was measured, without a rate limit. `None`: not measured.
    pub measured: Option<Measured>,
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
    let values: Vec<&Summary> =
        report.medians.iter().filter(|row| row.subject == SUBJECT && row.rate_mbit.is_none()).collect();
    let Some(mtu) = ratios.iter().map(|ratio| ratio.mtu).min() else {
        return Vec::new();
    };
    TARGETS
        .iter()
        .map(|target| {
            let key = (mtu, target.mode, target.workload, target.metric);
            let measured = match target.absolute() {
                Some(_) => values
                    .iter()
                    .find(|row| (row.mtu, row.mode, &*row.workload, &*row.metric) == key)
                    .map(|row| Measured { median: row.median, min: row.min, max: row.max }),
                None => ratios
                    .iter()
                    .find(|row| (row.mtu, row.mode, &*row.workload, &*row.metric) == key)
                    .map(|row| Measured { median: row.median, min: row.min, max: row.max }),
            };
            let of = |value: f64| reached(target, value);
            Judged {
                target: *target,
                measured,
                reached: measured.map(|measured| of(measured.median)),
                unanimous: measured
                    .is_some_and(|Measured { median, min, max }| of(min) == of(median) && of(max) == of(median)),
            }
        })
        .collect()
}

fn reached(target: &Target, value: f64) -> Reached {
    let less = metric::find(target.metric).is_some_and(|metric| metric.less_is_better);
    // Values count as people read them: 0.04 % is 0.0 %.
    let value = if target.absolute().is_some() { (value * 10.0).round() / 10.0 } else { value };
    let reaches = |goal: f64| if less { value <= goal } else { value >= goal };
    match (reaches(target.aim), reaches(target.must)) {
        (true, _) => Reached::Aim,
        (_, true) => Reached::Must,
        _ => Reached::Neither,
    }
}

/// The targets that a run was asked about, and words for how many others there are; empty if there are none.
pub fn part_of_run<'a>(report: &Report, judged: &'a [Judged]) -> (Vec<&'a Judged>, String) {
    let plan = &report.plan;
    let is_part =
        |target: &Target| plan.modes.contains(&target.mode) && plan.workloads.contains(&target.workload.into());
    let shown: Vec<&Judged> = judged.iter().filter(|row| row.measured.is_some() || is_part(&row.target)).collect();
    let others = match TARGETS.len() - shown.len() {
        0 => String::new(),
        others => format!("{others} of {} targets were not part of this run", TARGETS.len()),
    };
    (shown, others)
}

/// The table for the terminal: what was part of the run, and how many targets were not.
pub fn table(report: &Report, judged: &[Judged]) -> String {
    let count = TARGETS.len();
    if judged.is_empty() {
        return format!(
            "Targets: this run says nothing about the {count} targets, which are {SUBJECT} / {BASELINE} without a rate limit"
        );
    }
    let (shown, others) = part_of_run(report, judged);
    if shown.is_empty() {
        return format!("Targets: {others}");
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table.set_header(["mode", "workload", "metric", "must", "aim", "measured", "spread", "verdict"]);
    for row in shown {
        let target = &row.target;
        let show = |value: f64| target.absolute().map_or_else(|| format!("{value:.2}x"), |metric| metric.show(value));
        let (measured, spread) = match &row.measured {
            Some(Measured { median, min, max }) => (show(*median), format!("{min:.2} - {max:.2}")),
            None => ("-".to_owned(), String::new()),
        };
        let bound = if metric::find(target.metric).is_some_and(|metric| metric.less_is_better) { "<=" } else { ">=" };
        table.add_row([
            target.mode.name().to_owned(),
            target.workload.to_owned(),
            target.metric.to_owned(),
            format!("{bound} {}", target.show_goal(target.must)),
            format!("{bound} {}", target.show_goal(target.aim)),
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
    let mtu = report.plan.mtus.iter().min().map_or_else(String::new, |mtu| format!(" at MTU {mtu}"));
    let head = format!("Targets: {SUBJECT} / {BASELINE}{mtu}, idle {SUBJECT} alone, medians and spread of the rounds");
    format!("{head}\n{table}\n{others}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary;

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
    fn an_idle_weftd_is_judged_by_its_own_cpu_time_to_a_tenth_of_a_percent() {
        for (percent, verdict) in [([0.01, 0.04, 0.049], "aim met"), ([0.01, 0.02, 0.3], "aim met, not in every round")]
        {
            let mut report = summary::tests::report();
            for (round, value) in (1..).zip(percent) {
                let mut sample = report.samples.iter().find(|sample| sample.subject == SUBJECT).unwrap().clone();
                (sample.round, sample.workload) = (round, "idle".into());
                sample.metrics = [("subject_cpu".to_owned(), value)].into();
                report.samples.push(sample);
            }
            summary::conclude(&mut report);
            let judged = judge(&report);
            let row = judged.iter().find(|row| (row.target.mode, row.target.workload) == (Mode::Wire, "idle")).unwrap();
            assert_eq!((row.measured.unwrap().median, row.words()), (percent[1], verdict));
            let shown = table(&report, &judged);
            let row = shown.lines().find(|line| line.contains("subject_cpu")).unwrap();
            assert!(row.contains("<= 0.0 %") && row.contains(&format!("{:.2} %", percent[1])), "{row}");
        }
    }

    #[test]
    fn targets_that_were_not_part_of_the_run_are_counted_and_not_listed() {
        let mut report = summary::tests::report();
        summary::conclude(&mut report);
        let shown = table(&report, &judge(&report));
        assert!(shown.contains("at MTU 1500") && shown.contains("2.00x") && !shown.contains("not measured"), "{shown}");
        assert!(shown.ends_with("18 of 19 targets were not part of this run"), "{shown}");
        // What was asked for and could not be had is told, not left out.
        report.plan.workloads.push("tcp4".into());
        let shown = table(&report, &judge(&report));
        assert_eq!(shown.matches("not measured").count(), 2, "{shown}");
        assert!(shown.ends_with("16 of 19 targets were not part of this run"), "{shown}");
        report.ratios.iter_mut().for_each(|ratio| ratio.rate_mbit = Some(100));
        let shown = table(&report, &judge(&report));
        assert!(shown.contains("nothing about the 19 targets") && !shown.contains('\n'), "{shown}");
    }

    #[test]
    fn every_aim_is_beyond_its_must_and_every_metric_is_known() {
        for target in TARGETS {
            assert!(metric::find(target.metric).is_some(), "{target:?}");
            assert_eq!(reached(&target, target.aim), Reached::Aim, "{target:?}");
            let expected = if target.must == target.aim { Reached::Aim } else { Reached::Must };
            assert_eq!(reached(&target, target.must), expected, "{target:?}");
        }
    }
}
