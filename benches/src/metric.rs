//! The metrics: their names in JSON, their units, and which way is better.

/// What is known of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Name in JSON.
    pub name: &'static str,
    /// Unit of the values in JSON.
    pub unit: &'static str,
    /// What it is, for people.
    pub help: &'static str,
    /// A smaller value is a better one.
    pub less_is_better: bool,
    /// It has a row of its own in the table on the terminal; the others are in JSON only.
    pub is_chief: bool,
    /// A ratio of two values says something. Of parts that are next to nothing it does not.
    pub has_ratio: bool,
}

const fn more(name: &'static str, unit: &'static str, help: &'static str) -> Metric {
    Metric { name, unit, help, less_is_better: false, is_chief: true, has_ratio: true }
}

const fn less(name: &'static str, unit: &'static str, help: &'static str) -> Metric {
    Metric { name, unit, help, less_is_better: true, is_chief: true, has_ratio: true }
}

const fn side(metric: Metric) -> Metric {
    Metric { is_chief: false, ..metric }
}

const fn without_ratio(metric: Metric) -> Metric {
    Metric { has_ratio: false, ..metric }
}

/// All of them, in the order of the tables.
pub const METRICS: [Metric; 24] = [
    more("throughput", "bit/s", "payload that arrived intact"),
    more("pps", "1/s", "datagrams that arrived intact"),
    more("connects_per_s", "1/s", "TCP connections made, used for one byte each way, and closed"),
    more("responses_per_s", "1/s", "responses that fit their requests"),
    less("latency_p50", "us", "half of the responses took at most so long"),
    less("latency_p99", "us", "99 of 100 responses took at most so long"),
    less("latency_p999", "us", "999 of 1000 responses took at most so long"),
    without_ratio(less("loss", "", "part of the datagrams that did not arrive, 0 to 1")),
    less("cpu_per_gb", "s/GB", "CPU seconds of the whole machine, softirq included, per 10^9 payload bytes"),
    less(
        "cpu_per_mpkt",
        "s/Mpkt",
        "CPU seconds of the whole machine, softirq included, per 10^6 datagrams that arrived",
    ),
    without_ratio(less("subject_cpu", "%", "CPU time of the subject's own processes on both hosts, of one core")),
    without_ratio(less("subject_wakeups", "1/s", "how often a thread of the subject's own processes was given a core")),
    side(more("offered_pps", "1/s", "datagrams that the sender's kernel took")),
    side(less("cpu_cores", "cores", "CPU seconds of the whole machine per second")),
    side(without_ratio(less(
        "resets",
        "1/s",
        "TCP connections that the other host's kernel reset before the answer arrived",
    ))),
    side(without_ratio(less("retransmits", "1/s", "TCP segments sent again on both hosts"))),
    side(without_ratio(less(
        "reordered",
        "1/s",
        "TCP segments on both hosts, and datagrams of `peers`, that came out of order",
    ))),
    side(without_ratio(less(
        "receiver_drops",
        "1/s",
        "datagrams that arrived and found the receiver's buffer full: not the tunnel's loss",
    ))),
    side(less("context_switches", "1/s", "context switches of the whole machine")),
    side(less("syscalls_per_packet", "", "weft: system calls of both weftd per inner packet")),
    side(without_ratio(less(
        "workers_in_use",
        "",
        "weft: workers that shared the flows when the measurement ended, on the host that had more",
    ))),
    side(without_ratio(less(
        crate::distance::METRIC,
        "ns",
        "what a line of memory takes from one core to another: mean of just before and just after",
    ))),
    side(less("rss", "bytes", "resident memory of the subject's processes on both hosts")),
    more("iperf3_throughput", "bit/s", "what iperf3 found on the same path just after"),
];

/// The metric of a name.
pub fn find(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}

impl Metric {
    /// A value for people, with about three significant digits, and its unit.
    pub fn show(&self, value: f64) -> String {
        let (scaled, unit) = match self.unit {
            "bit/s" if value < 1e9 => (value / 1e6, "Mbit/s"),
            "bit/s" => (value / 1e9, "Gbit/s"),
            "1/s" if value >= 1e6 => (value / 1e6, "M/s"),
            "1/s" if value >= 1e3 => (value / 1e3, "k/s"),
            "1/s" => (value, "/s"),
            "bytes" => (value / (1 << 20) as f64, "MiB"),
            "" if self.name == "loss" => (value * 100.0, "%"),
            unit => (value, unit),
        };
        format!("{} {unit}", three_digits(scaled)).trim_end().to_owned()
    }
}

/// A number with about three significant digits.
pub fn three_digits(value: f64) -> String {
    match value.abs() {
        small if small < 10.0 => format!("{value:.2}"),
        medium if medium < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A ratio. Two decimals would leave of a small one next to nothing.
pub fn ratio_digits(ratio: f64) -> String {
    if ratio > 0.0 && ratio < 0.1 { format!("{ratio:.3}") } else { three_digits(ratio) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        for (index, metric) in METRICS.iter().enumerate() {
            assert_eq!(find(metric.name), Some(&METRICS[index]));
        }
        assert_eq!(find("speed"), None);
    }

    #[test]
    fn values_are_shown_with_about_three_digits_and_their_unit() {
        let shown = [
            ("throughput", 12_345_678_901.0, "12.3 Gbit/s"),
            ("throughput", 27_500_000.0, "27.5 Mbit/s"),
            ("pps", 612_345.0, "612 k/s"),
            ("pps", 1_612_345.0, "1.61 M/s"),
            ("latency_p50", 9.876, "9.88 us"),
            ("loss", 0.0234, "2.34 %"),
            ("cpu_per_gb", 0.5, "0.50 s/GB"),
            ("syscalls_per_packet", 0.123, "0.12"),
            ("subject_cpu", 0.0123, "0.01 %"),
        ];
        for (name, value, text) in shown {
            assert_eq!(find(name).unwrap().show(value), text);
        }
    }

    #[test]
    fn a_small_ratio_keeps_two_digits_that_say_something() {
        let shown = [(0.0466, "0.047"), (0.0, "0.00"), (0.1, "0.10"), (1.0, "1.00"), (41.2, "41.2")];
        for (ratio, text) in shown {
            assert_eq!(ratio_digits(ratio), text);
        }
    }
}
