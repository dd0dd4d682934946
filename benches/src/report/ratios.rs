//! Ratios to the baseline: one panel per link on the page, and the chief picture, which stands alone.

use super::bars::{self, Bar, Bars, Better, Frame, Group, Row, Side};
use super::data::{self, Link, OnLink, Samples};
use super::markup::{Markup, Value};
use super::scale::Scale;
use crate::result::{Mode, Ratio, Report};

const SHADES: &str = include_str!("figure.css");

/// Width of a panel on the page, in units of its viewBox.
const PANEL_WIDTH: f64 = 520.0;

/// Draws the panel of one link: every subject, workload and chief metric. `None` if there is nothing to draw.
pub fn panel(report: &Report, samples: &Samples<'_>, link: Link, classes: &dyn Fn(&str) -> String) -> Option<Markup> {
    let groups: Vec<Group> =
        Topic::ALL.iter().filter_map(|topic| group(report, samples, link, *topic, classes)).collect();
    if groups.is_empty() {
        return None;
    }
    let most = groups.iter().flat_map(|group| &group.rows).map(|row| row.bars.len()).max().unwrap_or(1);
    let frame = Frame {
        left: 8.0,
        top: 4.0,
        label_width: 168.0,
        plot_width: PANEL_WIDTH - 168.0 - 58.0 - 16.0,
        figure_width: 58.0,
        bar_height: if most > 1 { 11.0 } else { 15.0 },
    };
    let bars = figure(link.label(), groups);
    let (left, right) = frame.plot();
    let scale = Scale::ratio(extremes(&bars), left, right);
    let bars = Bars { ticks: ticks(&scale), ..bars };
    let height = frame.height(&bars) + 8.0;
    let mut out = Markup::new();
    let label = format!("Ratios to the baseline, {}", link.label());
    svg(&mut out, PANEL_WIDTH, height, &label, |out| bars::draw(out, &bars, &scale, frame));
    Some(out)
}

/// What a group of rows is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topic {
    Speed,
    Latency,
    Cpu,
}

impl Topic {
    const ALL: [Topic; 3] = [Topic::Speed, Topic::Latency, Topic::Cpu];

    fn better(self) -> Better {
        match self {
            Topic::Speed => Better::More,
            Topic::Latency | Topic::Cpu => Better::Less,
        }
    }

    fn heading(self) -> String {
        match self {
            Topic::Speed => "throughput: more is better",
            Topic::Latency => "latency: less is better",
            Topic::Cpu => "CPU per GB: less is better",
        }
        .to_owned()
    }

    /// The metrics of it that a workload is judged by.
    fn metrics(self, workload: &str) -> &'static [&'static str] {
        match self {
            Topic::Speed if workload == "peers" => &["pps"],
            Topic::Speed if workload.starts_with("udp") && !workload.starts_with("udpgso") => &["pps"],
            Topic::Speed => &["throughput", "connects_per_s"],
            Topic::Latency => &["latency_p50", "latency_p99", "latency_p999"],
            Topic::Cpu => &["cpu_per_gb"],
        }
    }
}

/// The rows of the chief picture: topic, workload, metric, and words.
const CHIEF: [(Topic, &str, &str, &str); 11] = [
    (Topic::Speed, "tcp1", "throughput", "TCP, 1 flow"),
    (Topic::Speed, "tcp4", "throughput", "TCP, 4 flows"),
    (Topic::Speed, "udp64", "pps", "UDP, 64 bytes"),
    (Topic::Speed, "udp1400", "pps", "UDP, 1400 bytes"),
    (Topic::Speed, "udpgso", "throughput", "UDP, segmented (as QUIC)"),
    (Topic::Latency, "rr", "latency_p50", "p50"),
    (Topic::Latency, "rr", "latency_p99", "p99"),
    (Topic::Latency, "rr-load", "latency_p99", "p99 under load"),
    (Topic::Cpu, "tcp1", "cpu_per_gb", "TCP, 1 flow"),
    (Topic::Cpu, "tcp4", "cpu_per_gb", "TCP, 4 flows"),
    (Topic::Cpu, "udpgso", "cpu_per_gb", "UDP, segmented (as QUIC)"),
];

/// Draws the chief picture: one subject against the baseline, both modes side by side, as an SVG document of its own.
/// `None` if the report has no such ratios.
pub fn chief(report: &Report, subject: &str) -> Option<String> {
    let samples = Samples::new(report);
    let chosen = |ratio: &&Ratio| {
        ratio.subject == subject
            && ratio.rate_mbit.is_none()
            && CHIEF.iter().any(|(_, workload, metric, _)| ratio.workload == *workload && ratio.metric == *metric)
    };
    let mtu = report.ratios.iter().filter(chosen).map(|ratio| ratio.mtu).min()?;
    let baseline = report.ratios.iter().find(chosen).map(|ratio| ratio.baseline.clone())?;
    let modes: Vec<Mode> = [Mode::Wire, Mode::Offload]
        .into_iter()
        .filter(|mode| report.ratios.iter().filter(chosen).any(|ratio| ratio.mode == *mode && ratio.mtu == mtu))
        .collect();

    const WIDTH: f64 = 960.0;
    const LABELS: f64 = 200.0;
    const FIGURES: f64 = 52.0;
    const BETWEEN: f64 = 26.0;
    let count = modes.len() as f64;
    let each = (WIDTH - 48.0 - LABELS - BETWEEN * (count - 1.0)) / count;
    let mut panels = Vec::new();
    for (index, mode) in modes.iter().enumerate() {
        let link = Link { mode: *mode, mtu, rate_mbit: None };
        let label_width = if index == 0 { LABELS } else { 0.0 };
        let left = 24.0 + index as f64 * (each + BETWEEN) + if index == 0 { 0.0 } else { LABELS };
        let frame =
            Frame { left, top: 62.0, label_width, plot_width: each - FIGURES, figure_width: FIGURES, bar_height: 15.0 };
        let groups = Topic::ALL.map(|topic| chief_group(report, &samples, subject, &modes, link, topic));
        panels.push((figure(mode_words(*mode).to_owned(), groups.into_iter().flatten().collect()), frame));
    }
    let all: Vec<f64> = panels.iter().flat_map(|(bars, _)| extremes(bars)).collect();
    let height = panels.iter().map(|(bars, frame)| frame.top + frame.height(bars)).fold(0.0, f64::max) + 34.0;

    let mut out = Markup::new();
    let title = format!("{subject}, measured against {}", subject_words(&baseline));
    svg(&mut out, WIDTH, height, &title, |out| {
        out.nest("style", &[], |out| out.raw(SHADES));
        out.empty(
            "rect",
            &[("class", "page".into()), ("width", WIDTH.into()), ("height", height.into()), ("rx", 10.0.into())],
        );
        out.leaf("text", &[("class", "chief".into()), ("x", 24.0.into()), ("y", 36.0.into())], &title);
        let aside = format!("1 = {}; log scale", subject_words(&baseline));
        out.leaf("text", &[("class", "hint end".into()), ("x", (WIDTH - 24.0).into()), ("y", 36.0.into())], &aside);
        for (bars, frame) in &panels {
            let (left, right) = frame.plot();
            let scale = Scale::ratio(all.iter().copied(), left, right);
            let bars = Bars { ticks: ticks(&scale), ..bars.clone() };
            bars::draw(out, &bars, &scale, *frame);
        }
        let foot = chief_foot(report, mtu);
        out.leaf("text", &[("class", "hint".into()), ("x", 24.0.into()), ("y", (height - 16.0).into())], &foot);
    });
    Some(out.into_text())
}

fn chief_foot(report: &Report, mtu: u32) -> String {
    let rounds = report.plan.rounds;
    let commit = report.commit.as_deref().map(|commit| format!(", commit {}", short(commit))).unwrap_or_default();
    let day = report.started.get(..10).unwrap_or(&report.started);
    format!(
        "bar: median of {rounds} rounds; line: smallest to largest; dot: one round \u{2014} MTU {mtu}, Linux {}, {} cores{commit}, {day}",
        report.host.kernel, report.host.cores
    )
}

/// A commit as people write it, with its mark of changed files.
pub fn short(commit: &str) -> String {
    let hash: String = commit.chars().take_while(|character| *character != '-').take(10).collect();
    if commit.ends_with("-dirty") { format!("{hash}-dirty") } else { hash }
}

fn mode_words(mode: Mode) -> &'static str {
    match mode {
        Mode::Wire => "wire: packets cross at MTU size",
        Mode::Offload => "offload: super-packets cross whole",
    }
}

/// A subject for people.
pub fn subject_words(name: &str) -> &str {
    match name {
        "vxlan" => "kernel VXLAN",
        other => other,
    }
}

/// Rows of the chief picture. A row that only the other mode has is empty here, so that rows stay side by side.
fn chief_group(
    report: &Report,
    samples: &Samples<'_>,
    subject: &str,
    modes: &[Mode],
    link: Link,
    topic: Topic,
) -> Option<Group> {
    let mut rows = Vec::new();
    for (_, workload, metric, words) in CHIEF.iter().filter(|row| row.0 == topic) {
        let find = |mode: Mode| {
            let link = Link { mode, ..link };
            report.ratios.iter().find(|ratio| {
                ratio.link() == link
                    && ratio.subject == subject
                    && ratio.workload == *workload
                    && ratio.metric == *metric
            })
        };
        if !modes.iter().any(|mode| find(*mode).is_some()) {
            continue;
        }
        let bar = match find(link.mode) {
            Some(ratio) => {
                let side = Side::of(ratio.min, ratio.max, 1.0, topic.better());
                bar(samples, ratio, side.class().to_owned(), side)
            }
            None => absent(),
        };
        rows.push(Row { label: (*words).to_owned(), bars: vec![bar] });
    }
    (!rows.is_empty()).then(|| Group { heading: topic.heading(), better: Some(topic.better()), rows })
}

fn absent() -> Bar {
    Bar {
        class: "touch".to_owned(),
        title: "not measured".to_owned(),
        median: 1.0,
        min: 1.0,
        max: 1.0,
        rounds: Vec::new(),
        figure: "\u{2013}".to_owned(),
        figure_class: "same",
    }
}

fn group(
    report: &Report,
    samples: &Samples<'_>,
    link: Link,
    topic: Topic,
    classes: &dyn Fn(&str) -> String,
) -> Option<Group> {
    let mut rows: Vec<Row> = Vec::new();
    for workload in &report.plan.workloads {
        for metric in topic.metrics(workload) {
            let of_row = |subject: &String| {
                report.ratios.iter().find(|ratio| {
                    ratio.link() == link
                        && (&ratio.subject, &ratio.workload, ratio.metric.as_str()) == (subject, workload, *metric)
                })
            };
            let ratios = report.plan.subjects.iter().filter_map(of_row);
            let bars: Vec<Bar> = ratios
                .filter(|ratio| ratio.median.is_finite() && ratio.median > 0.0)
                .map(|ratio| {
                    let side = Side::of(ratio.min, ratio.max, 1.0, topic.better());
                    bar(samples, ratio, classes(&ratio.subject), side)
                })
                .collect();
            if !bars.is_empty() {
                let label = match topic {
                    Topic::Latency => latency_words(workload, metric),
                    Topic::Speed | Topic::Cpu => data::workload_words(workload),
                };
                rows.push(Row { label, bars });
            }
        }
    }
    (!rows.is_empty()).then(|| Group { heading: topic.heading(), better: Some(topic.better()), rows })
}

fn latency_words(workload: &str, metric: &str) -> String {
    let quantile = data::metric_words(metric);
    match workload {
        "rr" => quantile.to_owned(),
        "rr-load" => format!("{quantile} under load"),
        other => format!("{quantile}, {}", data::workload_words(other)),
    }
}

fn bar(samples: &Samples<'_>, ratio: &Ratio, class: String, side: Side) -> Bar {
    let link = ratio.link();
    let rounds = samples.ratios(link, &ratio.workload, &ratio.subject, &ratio.baseline, &ratio.metric);
    let of = |subject: &str| {
        data::median(samples.rounds(link, &ratio.workload, subject, &ratio.metric).into_iter().map(|(_, value)| value))
            .map_or_else(|| "\u{2013}".to_owned(), |value| data::show(&ratio.metric, value))
    };
    let each: Vec<String> = rounds.iter().map(|(_, value)| times(*value)).collect();
    let verdict = match side {
        Side::Better => "better in every round",
        Side::Worse => "worse in every round",
        Side::Same => "1 is within the spread",
    };
    let title = format!(
        "{} / {}: {}, {}, {}\nmedian {} ({} to {}), {verdict}\nrounds: {}\n{}: {}, {}: {}",
        ratio.subject,
        ratio.baseline,
        ratio.workload,
        ratio.metric,
        link.label(),
        times(ratio.median),
        times(ratio.min),
        times(ratio.max),
        each.join(", "),
        ratio.subject,
        of(&ratio.subject),
        ratio.baseline,
        of(&ratio.baseline),
    );
    Bar {
        class,
        title,
        median: ratio.median,
        min: ratio.min,
        max: ratio.max,
        rounds,
        figure: times(ratio.median),
        figure_class: side.class(),
    }
}

/// A ratio for people: `1.04×`.
pub fn times(ratio: f64) -> String {
    format!("{}\u{d7}", crate::metric::ratio_digits(ratio))
}

fn figure(title: String, groups: Vec<Group>) -> Bars {
    Bars { title, groups, line: 1.0, ticks: Vec::new() }
}

fn extremes(bars: &Bars) -> Vec<f64> {
    let all = bars.groups.iter().flat_map(|group| &group.rows).flat_map(|row| &row.bars);
    all.flat_map(|bar| [bar.min, bar.median, bar.max]).collect()
}

fn ticks(scale: &Scale) -> Vec<(f64, String)> {
    scale.powers_of_two().into_iter().map(|value| (value, value.to_string())).collect()
}

/// An SVG element of a width and height, which may grow and shrink, and a name for those who hear it.
pub fn svg(out: &mut Markup, width: f64, height: f64, label: &str, inside: impl FnOnce(&mut Markup)) {
    let view = format!("0 0 {} {}", super::markup::coordinate(width), super::markup::coordinate(height));
    let attributes: [(&str, Value<'_>); 5] = [
        ("xmlns", "http://www.w3.org/2000/svg".into()),
        ("viewBox", (&view).into()),
        ("role", "img".into()),
        ("aria-label", label.into()),
        ("font-family", "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif".into()),
    ];
    out.nest("svg", &attributes, inside);
}
