//! What the drawings are made of: the report's samples, sorted by what they were measured under.

use std::collections::BTreeMap;

use crate::result::{Mode, Ratio, Report, Sample, Summary};
use crate::{metric, summary};

/// The conditions of the link between the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Link {
    /// How packets cross.
    pub mode: Mode,
    /// MTU of the underlay, bytes.
    pub mtu: u32,
    /// Rate limit, Mbit/s; `None`: no limit.
    pub rate_mbit: Option<u64>,
}

impl Link {
    /// For people: `wire, MTU 1500, 1000 Mbit/s`.
    pub fn label(&self) -> String {
        let rate = self.rate_mbit.map(|rate| format!(", {rate} Mbit/s")).unwrap_or_default();
        format!("{}, MTU {}{rate}", self.mode, self.mtu)
    }
}

/// Things that were measured under conditions of the link.
pub trait OnLink {
    /// Those conditions.
    fn link(&self) -> Link;
}

macro_rules! on_link {
    ($($name:ty),*) => {$(
        impl OnLink for $name {
            fn link(&self) -> Link {
                Link { mode: self.mode, mtu: self.mtu, rate_mbit: self.rate_mbit }
            }
        }
    )*};
}
on_link!(Sample, Summary, Ratio, crate::result::SubjectReport);

/// Samples by workload, then by subject.
type ByWorkload<'a> = BTreeMap<&'a str, BTreeMap<&'a str, Vec<&'a Sample>>>;

/// Samples by conditions of the link, workload and subject; those that failed and those of refused subjects are left out.
pub struct Samples<'a> {
    by_link: BTreeMap<Link, ByWorkload<'a>>,
}

impl<'a> Samples<'a> {
    /// Sorts the samples of a report.
    pub fn new(report: &'a Report) -> Samples<'a> {
        let refused = |sample: &Sample| {
            report.subjects.iter().any(|subject| {
                subject.refused.is_some() && subject.name == sample.subject && subject.link() == sample.link()
            })
        };
        let mut by_link: BTreeMap<Link, ByWorkload<'a>> = BTreeMap::new();
        for sample in report.samples.iter().filter(|sample| sample.error.is_none() && !refused(sample)) {
            let by_workload = by_link.entry(sample.link()).or_default();
            let by_subject = by_workload.entry(sample.workload.as_str()).or_default();
            by_subject.entry(sample.subject.as_str()).or_default().push(sample);
        }
        Samples { by_link }
    }

    /// Those of one subject and workload, in the order of the rounds.
    pub fn of(&self, link: Link, workload: &str, subject: &str) -> &[&'a Sample] {
        let found = self.by_link.get(&link).and_then(|by| by.get(workload)).and_then(|by| by.get(subject));
        found.map_or(&[], Vec::as_slice)
    }

    /// A metric in each round that has it.
    pub fn rounds(&self, link: Link, workload: &str, subject: &str, metric: &str) -> Vec<(u32, f64)> {
        self.of(link, workload, subject)
            .iter()
            .filter_map(|sample| Some((sample.round, *sample.metrics.get(metric)?)))
            .filter(|(_, value)| value.is_finite())
            .collect()
    }

    /// A metric divided by the baseline's of the same round, for the rounds that have both.
    pub fn ratios(&self, link: Link, workload: &str, subject: &str, baseline: &str, metric: &str) -> Vec<(u32, f64)> {
        let below: BTreeMap<u32, f64> = self.rounds(link, workload, baseline, metric).into_iter().collect();
        self.rounds(link, workload, subject, metric)
            .into_iter()
            .filter_map(|(round, value)| Some((round, value / below.get(&round)?)))
            .filter(|(_, ratio)| ratio.is_finite())
            .collect()
    }
}

/// The links of a report, in the order in which they were measured.
pub fn links(report: &Report) -> Vec<Link> {
    let mut links = Vec::new();
    for sample in &report.samples {
        if !links.contains(&sample.link()) {
            links.push(sample.link());
        }
    }
    links
}

/// A workload for people: `TCP, 1 flow`. A name that is not understood stands for itself.
pub fn workload_words(name: &str) -> String {
    let (word, rate) = name.split_once('@').map_or((name, String::new()), |(word, rate)| (word, format!(" at {rate}")));
    let (word, ways) = word.strip_suffix("-both").map_or((word, ""), |word| (word, " each way"));
    let count = |prefix: &str| word.strip_prefix(prefix).and_then(|count| count.parse::<u32>().ok());
    let words = match word {
        "udpgso" => "UDP, segmented".to_owned(),
        "rr" => "latency".to_owned(),
        "rr-load" => "latency under load".to_owned(),
        "udprr" => "UDP latency".to_owned(),
        "udprr-load" => "UDP latency under load".to_owned(),
        "connect" => "connections".to_owned(),
        "peers" => format!("UDP, {} peers", crate::subject::peers::PEER_COUNT),
        _ => match (count("tcp"), count("udp")) {
            (Some(1), _) => "TCP, 1 flow".to_owned(),
            (Some(flows), _) => format!("TCP, {flows} flows"),
            (_, Some(len)) => format!("UDP, {len} bytes"),
            _ => return name.to_owned(),
        },
    };
    format!("{words}{ways}{rate}")
}

/// A smaller value of the metric is a better one.
pub fn less_is_better(name: &str) -> bool {
    metric::find(name).is_some_and(|metric| metric.less_is_better)
}

/// A value of a metric for people, with its unit.
pub fn show(name: &str, value: f64) -> String {
    match metric::find(name) {
        Some(metric) => metric.show(value),
        None => metric::three_digits(value),
    }
}

/// A metric in a word or two.
pub fn metric_words(name: &str) -> &str {
    match name {
        "latency_p50" => "p50",
        "latency_p99" => "p99",
        "latency_p999" => "p99.9",
        other => other,
    }
}

/// As [`summary::median`], of whatever yields values.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    summary::median(&values.into_iter().collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_told_in_words_and_strange_ones_by_their_name() {
        let told = [
            ("tcp1", "TCP, 1 flow"),
            ("tcp4-both", "TCP, 4 flows each way"),
            ("udp64@200k", "UDP, 64 bytes at 200k"),
            ("udpgso@5g", "UDP, segmented at 5g"),
            ("rr-load", "latency under load"),
            ("udprr-load", "UDP latency under load"),
            ("peers", "UDP, 250 peers"),
            ("tcpx@1", "tcpx@1"),
        ];
        for (name, words) in told {
            assert_eq!(workload_words(name), words);
        }
    }
}
