//! From samples to medians and ratios.
//!
//! A ratio is taken in each round, between two measurements that were made within seconds of each other under the same
//! conditions; what slows the whole machine down for a while slows both. The median of those ratios is the result, and
//! the smallest and the largest are its spread.

use std::collections::BTreeMap;

pub use weft_lab::measure::median;

use crate::metric::{METRICS, Metric};
use crate::result::{Ratio, Report, Sample, SubjectReport, Summary};

/// Fills in the medians and ratios of a report from its samples. Subjects that are refused have none.
pub fn conclude(report: &mut Report) {
    let counted: Vec<&Sample> = report
        .samples
        .iter()
        .filter(|sample| sample.error.is_none() && !is_refused(&report.subjects, sample))
        .collect();
    let mut medians = Vec::new();
    let mut ratios = Vec::new();
    for key in keys(&counted) {
        for metric in &METRICS {
            let values = values(&counted, &key, metric);
            let rounds: Vec<f64> = values.values().copied().collect();
            medians.extend(summary(&key, metric, &rounds));
            let baseline =
                report.plan.baseline.as_ref().filter(|baseline| metric.has_ratio && *baseline != key.subject);
            let Some(baseline) = baseline else { continue };
            let baseline_values = self::values(&counted, &Key { subject: baseline, ..key }, metric);
            let quotients: Vec<f64> = values
                .iter()
                .filter_map(|(round, value)| Some(value / baseline_values.get(round)?))
                .filter(|quotient| quotient.is_finite())
                .collect();
            ratios.extend(summary(&key, metric, &quotients).map(|summary| Ratio {
                subject: summary.subject,
                baseline: baseline.clone(),
                mode: summary.mode,
                mtu: summary.mtu,
                rate_mbit: summary.rate_mbit,
                workload: summary.workload,
                metric: summary.metric,
                median: summary.median,
                min: summary.min,
                max: summary.max,
                samples: summary.samples,
            }));
        }
    }
    report.medians = medians;
    report.ratios = ratios;
}

/// What names the rows: everything of a sample but its round.
#[derive(Clone, Copy, PartialEq)]
struct Key<'a> {
    subject: &'a str,
    mode: crate::result::Mode,
    mtu: u32,
    rate_mbit: Option<u64>,
    workload: &'a str,
}

impl<'a> Key<'a> {
    fn of(sample: &'a Sample) -> Self {
        let Sample { subject, mode, mtu, rate_mbit, workload, .. } = sample;
        Key { subject, mode: *mode, mtu: *mtu, rate_mbit: *rate_mbit, workload }
    }
}

/// In the order of their first appearance.
fn keys<'a>(samples: &[&'a Sample]) -> Vec<Key<'a>> {
    let mut keys = Vec::new();
    for key in samples.iter().map(|sample| Key::of(sample)) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// The values of a metric by round.
fn values(samples: &[&Sample], key: &Key<'_>, metric: &Metric) -> BTreeMap<u32, f64> {
    let samples = samples.iter().filter(|sample| Key::of(sample) == *key);
    samples.filter_map(|sample| Some((sample.round, *sample.metrics.get(metric.name)?))).collect()
}

fn summary(key: &Key<'_>, metric: &Metric, values: &[f64]) -> Option<Summary> {
    Some(Summary {
        subject: key.subject.to_owned(),
        mode: key.mode,
        mtu: key.mtu,
        rate_mbit: key.rate_mbit,
        workload: key.workload.to_owned(),
        metric: metric.name.to_owned(),
        unit: metric.unit.to_owned(),
        median: median(values)?,
        min: values.iter().copied().fold(f64::INFINITY, f64::min),
        max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        samples: values.len(),
    })
}

fn is_refused(subjects: &[SubjectReport], sample: &Sample) -> bool {
    subjects.iter().any(|subject| {
        subject.refused.is_some()
            && subject.name == sample.subject
            && (subject.mode, subject.mtu, subject.rate_mbit) == (sample.mode, sample.mtu, sample.rate_mbit)
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::result::{HostFacts, Mode, Plan, SCHEMA};

    /// A report of three rounds in which weft is 1, 2 and 4 times as fast as vxlan, which itself gets faster.
    pub fn report() -> Report {
        let plan = Plan {
            rounds: 3,
            seconds: 1.0,
            warm_up: 0.3,
            subjects: vec!["weft".into(), "vxlan".into()],
            baseline: Some("vxlan".into()),
            modes: vec![Mode::Wire],
            mtus: vec![1500],
            rates_mbit: vec![None],
            workloads: vec!["tcp1".into()],
            congestion_control: None,
        };
        let host = HostFacts {
            kernel: "6.18".into(),
            architecture: "x86_64".into(),
            cpu: None,
            cores: 2,
            memory: 1 << 33,
            virtualized: true,
            machine: None,
            congestion_control: None,
            load: 0.0,
            debug_build: false,
        };
        let mut report = Report {
            schema: SCHEMA,
            ok: true,
            failures: Vec::new(),
            interrupted: false,
            weft_version: "0.1.0".into(),
            commit: None,
            command: Vec::new(),
            started: "2026-11-24T08:30:00Z".into(),
            elapsed_s: 1.0,
            host,
            plan,
            subjects: vec![subject("weft"), subject("vxlan")],
            samples: Vec::new(),
            medians: Vec::new(),
            ratios: Vec::new(),
        };
        for (round, vxlan, weft) in [(1, 1e9, 1e9), (2, 2e9, 8e9), (3, 3e9, 6e9)] {
            report.samples.push(sample(round, "vxlan", vxlan));
            report.samples.push(sample(round, "weft", weft));
        }
        report
    }

    fn subject(name: &str) -> SubjectReport {
        let text = format!(r#"{{"name":"{name}","kind":"{name}","mode":"wire","mtu":1500}}"#);
        serde_json::from_str(&text).unwrap()
    }

    fn sample(round: u32, subject: &str, throughput: f64) -> Sample {
        Sample {
            round,
            mode: Mode::Wire,
            mtu: 1500,
            rate_mbit: None,
            subject: subject.into(),
            workload: "tcp1".into(),
            metrics: [("throughput".to_owned(), throughput), ("retransmits".to_owned(), 0.0)].into(),
            latency_cdf: Vec::new(),
            over_time: Vec::new(),
            error: None,
        }
    }

    #[test]
    fn ratios_are_taken_in_each_round_and_then_summed_up() {
        let mut report = report();
        conclude(&mut report);
        let [ratio] = &report.ratios[..] else { panic!("{:?}", report.ratios) };
        assert_eq!(
            (ratio.subject.as_str(), ratio.baseline.as_str(), ratio.metric.as_str()),
            ("weft", "vxlan", "throughput")
        );
        // The ratio of the medians would be 3.
        assert_eq!((ratio.min, ratio.median, ratio.max, ratio.samples), (1.0, 2.0, 4.0, 3));
        let medians: Vec<_> =
            report.medians.iter().map(|row| (row.subject.as_str(), row.metric.as_str(), row.median)).collect();
        let expected = [
            ("vxlan", "throughput", 2e9),
            ("vxlan", "retransmits", 0.0),
            ("weft", "throughput", 6e9),
            ("weft", "retransmits", 0.0),
        ];
        assert_eq!(medians, expected);
    }

    #[test]
    fn a_failed_sample_takes_its_round_out_of_the_ratio() {
        let mut report = report();
        report.samples[1].error = Some("no answer".into());
        conclude(&mut report);
        assert_eq!((report.ratios[0].median, report.ratios[0].samples), (3.0, 2));
    }

    #[test]
    fn a_refused_subject_has_no_figures() {
        let mut report = report();
        report.subjects[0].refused = Some("the wrong engine ran".into());
        conclude(&mut report);
        assert!(report.ratios.is_empty() && report.medians.iter().all(|row| row.subject == "vxlan"));
        report.subjects[0].mode = Mode::Offload;
        conclude(&mut report);
        assert_eq!(report.ratios.len(), 1);
    }

    #[test]
    fn what_is_zero_in_the_baseline_has_no_ratio() {
        let mut report = report();
        conclude(&mut report);
        assert!(report.ratios.iter().all(|ratio| ratio.metric != "retransmits"));
    }

    #[test]
    fn a_report_survives_its_json() {
        let mut report = report();
        conclude(&mut report);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(Report::from_json(&json).unwrap(), report);
        let later = json.replacen("\"schema\":1", "\"schema\":2", 1);
        assert!(Report::from_json(&later).unwrap_err().to_string().contains("schema 2"));
    }
}
