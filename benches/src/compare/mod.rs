//! What changed between two runs, and whether it is more than noise.
//!
//! A subject is compared by its ratios to the baseline, round by round, so that a machine that was slower on the day of
//! one run does not count; the baseline itself, and what has no ratio, by its values. A difference counts if both hold:
//!
//! - the two spreads do not overlap: every round of one run is on the same side of every round of the other;
//! - chance alone gives so large a difference in less than 1 of 20 cases ([`rank`]).
//!
//! With fewer than four rounds in a run the second can never hold, so nothing is concluded from them.

pub mod rank;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, LineStyle, Table, presets};
use serde::Serialize;
use weft_lab::measure::is_elsewhere;

use crate::distance;
use crate::metric::{self, METRICS, Metric, ratio_digits};
use crate::report::{Link, OnLink, Samples, median};
use crate::result::{Mode, Report};

/// Rounds that each run needs for a conclusion.
pub const ROUNDS_MIN: usize = 4;

/// A difference that chance gives more often than this is noise.
pub const CHANCE_MAX: f64 = 0.05;

/// The criterion in words.
pub const CRITERION: &str = "more than noise: the spreads of the rounds do not overlap, and chance alone gives so large a difference in \
less than 5 % of cases (exact Mann-Whitney test, two-sided); fewer than 4 rounds in a run allow no conclusion";

/// Two runs side by side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The first run.
    pub a: Run,
    /// The second run.
    pub b: Run,
    /// What makes the runs hard to compare, a sentence each.
    pub warnings: Vec<String>,
    /// [`CRITERION`].
    pub criterion: &'static str,
    /// Everything that either has measured.
    pub rows: Vec<Row>,
}

/// Which run it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// The commit it was made from.
    pub commit: Option<String>,
    /// When it began.
    pub started: String,
    /// Its rounds.
    pub rounds: u32,
}

/// One metric of one subject under one set of conditions, in both runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The subject.
    pub subject: String,
    /// How packets crossed the link.
    pub mode: Mode,
    /// MTU of the underlay, bytes.
    pub mtu: u32,
    /// Rate limit, Mbit/s.
    pub rate_mbit: Option<u64>,
    /// The workload.
    pub workload: String,
    /// Name of the metric.
    pub metric: String,
    /// What `a` and `b` are.
    pub basis: Basis,
    /// Median of the first run.
    pub a: Option<f64>,
    /// Median of the second run.
    pub b: Option<f64>,
    /// `b` against `a`, percent; `None` if one is missing or `a` is 0.
    pub change_percent: Option<f64>,
    /// Rounds of the first run.
    pub a_rounds: usize,
    /// Rounds of the second run.
    pub b_rounds: usize,
    /// Probability of so large a difference by chance alone.
    pub chance: Option<f64>,
    /// What it comes to.
    pub verdict: Verdict,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Ratios to the baseline.
    Ratio,
    /// The values themselves, in the unit of the metric.
    Value,
}

/// What a row comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The second run is better, by more than noise.
    Better,
    /// The second run is worse, by more than noise.
    Worse,
    /// No more than noise.
    Noise,
    /// Fewer than [`ROUNDS_MIN`] rounds in a run.
    TooFewRounds,
    /// The second run has not measured it.
    OnlyInA,
    /// The first run has not measured it.
    OnlyInB,
}

impl Verdict {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::Noise => "noise",
            Verdict::TooFewRounds => "too few rounds",
            Verdict::OnlyInA => "only in A",
            Verdict::OnlyInB => "only in B",
        }
    }
}

/// Reads a report from a file.
///
/// # Errors
/// If the file cannot be read, or is no report; both name the file and what is wrong.
pub fn read(path: &Path) -> Result<Report> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Report::from_json(&text).with_context(|| format!("{} is no report of `weft-bench run --json`", path.display()))
}

/// Compares two runs.
pub fn compare(a: &Report, b: &Report) -> Comparison {
    let (samples_a, samples_b) = (Samples::new(a), Samples::new(b));
    let rows = keys(a, b).into_iter().filter_map(|key| row(key, (a, &samples_a), (b, &samples_b))).collect();
    let run = |report: &Report| Run {
        commit: report.commit.clone(),
        started: report.started.clone(),
        rounds: report.plan.rounds,
    };
    Comparison { a: run(a), b: run(b), warnings: warnings(a, b), criterion: CRITERION, rows }
}

type Key<'a> = (Link, &'a str, &'static Metric, &'a str);

/// Everything that either has measured, in the order of the first: link, workload, metric, subject.
fn keys<'a>(a: &'a Report, b: &'a Report) -> Vec<Key<'a>> {
    let mut places: Vec<(Link, &str, &str)> = Vec::new();
    let mut seen = BTreeSet::new();
    for sample in a.samples.iter().chain(&b.samples) {
        let place = (sample.link(), sample.workload.as_str(), sample.subject.as_str());
        if seen.insert(place) {
            places.push(place);
        }
    }
    // Subjects take turns in a run, so the first to appear is any of them: the order of the plan is the one to read.
    let planned = |subject: &str| a.plan.subjects.iter().chain(&b.plan.subjects).position(|name| name == subject);
    let (of_a, of_b) = (&a.plan.workloads, &b.plan.workloads);
    let placed = |workload: &str| of_a.iter().chain(of_b).position(|name| name == workload);
    places.sort_by_key(|(link, workload, subject)| (*link, placed(workload), planned(subject)));
    let mut workloads: Vec<(Link, &str)> = places.iter().map(|(link, workload, _)| (*link, *workload)).collect();
    let mut seen = BTreeSet::new();
    workloads.retain(|workload| seen.insert(*workload));
    let mut keys = Vec::new();
    for (link, workload) in workloads {
        for metric in &METRICS {
            let subjects = places.iter().filter(|place| (place.0, place.1) == (link, workload));
            keys.extend(subjects.map(|(_, _, subject)| (link, workload, metric, *subject)));
        }
    }
    keys
}

/// `None` if neither run has it.
fn row(key: Key<'_>, a: (&Report, &Samples<'_>), b: (&Report, &Samples<'_>)) -> Option<Row> {
    let (link, workload, metric, subject) = key;
    let ratios = |(report, samples): (&Report, &Samples<'_>)| match &report.plan.baseline {
        Some(baseline) if baseline != subject => samples.ratios(link, workload, subject, baseline, metric.name),
        _ => Vec::new(),
    };
    let values = |(_, samples): (&Report, &Samples<'_>)| samples.rounds(link, workload, subject, metric.name);
    let same_baseline = a.0.plan.baseline == b.0.plan.baseline;
    let (basis, a, b) = match (ratios(a), ratios(b)) {
        (of_a, of_b) if same_baseline && !of_a.is_empty() && !of_b.is_empty() => (Basis::Ratio, of_a, of_b),
        _ => (Basis::Value, values(a), values(b)),
    };
    if a.is_empty() && b.is_empty() {
        return None;
    }
    let only = |rounds: Vec<(u32, f64)>| rounds.into_iter().map(|(_, value)| value).collect::<Vec<f64>>();
    let (a, b) = (only(a), only(b));
    let (median_a, median_b) = (median(a.iter().copied()), median(b.iter().copied()));
    let change = median_a.zip(median_b).map(|(a, b)| (b / a - 1.0) * 100.0).filter(|change| change.is_finite());
    let chance = rank::probability(&a, &b);
    Some(Row {
        subject: subject.to_owned(),
        mode: link.mode,
        mtu: link.mtu,
        rate_mbit: link.rate_mbit,
        workload: workload.to_owned(),
        metric: metric.name.to_owned(),
        basis,
        a: median_a,
        b: median_b,
        change_percent: change,
        a_rounds: a.len(),
        b_rounds: b.len(),
        chance,
        verdict: verdict(&a, &b, chance, metric.less_is_better),
    })
}

fn verdict(a: &[f64], b: &[f64], chance: Option<f64>, less_is_better: bool) -> Verdict {
    let (Some(chance), false) = (chance, a.is_empty() || b.is_empty()) else {
        return if b.is_empty() { Verdict::OnlyInA } else { Verdict::OnlyInB };
    };
    if a.len() < ROUNDS_MIN || b.len() < ROUNDS_MIN {
        return Verdict::TooFewRounds;
    }
    let low = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = |values: &[f64]| values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (more, less) = (low(b) > high(a), high(b) < low(a));
    if chance >= CHANCE_MAX || !(more || less) {
        Verdict::Noise
    } else if more == less_is_better {
        Verdict::Worse
    } else {
        Verdict::Better
    }
}

/// What differs between the runs beside what they measured.
fn warnings(a: &Report, b: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut differ = |what: &str, a: String, b: String| {
        if a != b {
            warnings.push(format!("{what} differs: A {a}, B {b}"));
        }
    };
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
    differ("kernel", a.host.kernel.clone(), b.host.kernel.clone());
    differ("CPU", text(&a.host.cpu), text(&b.host.cpu));
    differ("number of cores", a.host.cores.to_string(), b.host.cores.to_string());
    differ("machine", text(&a.host.machine), text(&b.host.machine));
    differ("congestion control", text(&a.host.congestion_control), text(&b.host.congestion_control));
    differ("baseline", text(&a.plan.baseline), text(&b.plan.baseline));
    differ("MTU of the underlay", format!("{:?}", a.plan.mtus), format!("{:?}", b.plan.mtus));
    differ("length of a measurement", format!("{} s", a.plan.seconds), format!("{} s", b.plan.seconds));
    for ours in &a.subjects {
        let same = |theirs: &&crate::result::SubjectReport| theirs.name == ours.name && theirs.link() == ours.link();
        let Some(theirs) = b.subjects.iter().find(same) else { continue };
        let mut differ = |what: &str, a: String, b: String| {
            differ(&format!("{} ({}): {what}", ours.name, ours.link().label()), a, b);
        };
        let number = |number: Option<u32>| number.map_or_else(|| "unknown".to_owned(), |number| number.to_string());
        differ("engine", text(&ours.engine), text(&theirs.engine));
        differ("TUN opener", text(&ours.opener), text(&theirs.opener));
        differ("number of workers", number(ours.workers.map(u32::from)), number(theirs.workers.map(u32::from)));
        differ("spin", number(ours.spin_us), number(theirs.spin_us));
        differ("MTU inside", number(ours.overlay_mtu), number(theirs.overlay_mtu));
        let on = |offloads: &std::collections::BTreeMap<String, bool>| {
            let on: Vec<&str> = offloads.iter().filter(|(_, on)| **on).map(|(name, _)| name.as_str()).collect();
            format!("[{}]", on.join(" "))
        };
        differ("offloads", on(&ours.offloads), on(&theirs.offloads));
    }
    if let (Some(a), Some(b)) = (distance::of_report(a), distance::of_report(b))
        && is_elsewhere(a.median, b.median)
    {
        warnings.push(format!("distance of the cores differs: A {:.0} ns, B {:.0} ns", a.median, b.median));
    }
    for (name, report) in [("A", a), ("B", b)] {
        if report.host.debug_build {
            warnings.push(format!("{name} was built without optimisation: its numbers mean nothing"));
        }
        if !report.ok {
            warnings.push(format!("{name} says of itself that it is not complete: {}", report.failures.join("; ")));
        }
    }
    warnings
}

/// The comparison for the terminal. Metrics that only JSON shows are left out, as in the table of a run.
pub fn table(comparison: &Comparison) -> String {
    let mut text = String::new();
    for (name, run) in [("A", &comparison.a), ("B", &comparison.b)] {
        let commit = run.commit.as_deref().unwrap_or("unknown");
        text += &format!("{name}: commit {commit}, begun {}, {} rounds\n", run.started, run.rounds);
    }
    for warning in &comparison.warnings {
        text += &format!("WARNING: {warning}\n");
    }
    let mut links: Vec<Link> = comparison.rows.iter().map(Row::link).collect();
    links.dedup();
    for link in links {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
        table.set_header(["workload", "metric", "subject", "A", "B", "change", "by chance", "verdict"]);
        for row in comparison.rows.iter().filter(|row| row.link() == link) {
            if let Some(metric) = metric::find(&row.metric).filter(|metric| metric.is_chief) {
                table.add_row(row.cells(metric));
            }
        }
        for column in 3..=6 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        text += &format!("\n{}\n{table}\n", link.label());
    }
    let count = |verdict| comparison.rows.iter().filter(|row| row.verdict == verdict).count();
    text += &format!(
        "\n{} better, {} worse, {} noise, {} with too few rounds, of all metrics (--json has every one)\n{}\n",
        count(Verdict::Better),
        count(Verdict::Worse),
        count(Verdict::Noise),
        count(Verdict::TooFewRounds),
        comparison.criterion
    );
    text
}

impl OnLink for Row {
    fn link(&self) -> Link {
        Link { mode: self.mode, mtu: self.mtu, rate_mbit: self.rate_mbit }
    }
}

impl Row {
    fn cells(&self, metric: &Metric) -> [String; 8] {
        let value = |value: Option<f64>| match (value, self.basis) {
            (None, _) => "-".to_owned(),
            (Some(value), Basis::Ratio) => format!("{}x", ratio_digits(value)),
            (Some(value), Basis::Value) => metric.show(value),
        };
        [
            self.workload.clone(),
            self.metric.clone(),
            self.subject.clone(),
            value(self.a),
            value(self.b),
            self.change_percent.map_or_else(|| "-".to_owned(), |change| format!("{change:+.1} %")),
            self.chance.map_or_else(|| "-".to_owned(), |chance| format!("{:.1} %", chance * 100.0)),
            self.verdict.words().to_owned(),
        ]
    }
}
