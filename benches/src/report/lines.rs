//! Lines: the distribution of latencies, and throughput over the time of a measurement. A thin line is one round, the
//! thick one the median of the rounds.

use super::data::{self, Link, Samples};
use super::markup::{Markup, path};
use super::ratios::svg;
use super::scale::Scale;
use crate::result::{Report, Sample};

/// One subject's lines.
struct Line {
    subject: String,
    class: String,
    title: String,
    rounds: Vec<Vec<(f64, f64)>>,
    median: Vec<(f64, f64)>,
}

const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = WIDTH - 14.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = HEIGHT - 42.0;

/// Bytes of a measurement are counted in buckets of so many seconds.
const BUCKET_S: f64 = 0.1;

/// Parts of the responses at which the rounds of a distribution are brought together.
const PARTS: [f64; 25] = [
    0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.985,
    0.99, 0.993, 0.996, 0.998, 0.999,
];

/// Draws the distributions of the latencies of a workload. `None` if nobody has any.
pub fn latency(
    report: &Report,
    samples: &Samples<'_>,
    link: Link,
    workload: &str,
    classes: &dyn Fn(&str) -> String,
) -> Option<Markup> {
    let lines = lines(report, classes, |subject| {
        let cdfs: Vec<&[(f64, f64)]> =
            samples.of(link, workload, subject).iter().map(|sample| sample.latency_cdf.as_slice()).collect();
        let cdfs: Vec<_> = cdfs.into_iter().filter(|cdf| !cdf.is_empty()).collect();
        let median = PARTS
            .iter()
            .filter_map(|part| Some((data::median(cdfs.iter().filter_map(|cdf| latency_at(cdf, *part)))?, *part)))
            .collect();
        let figures: Vec<String> = ["latency_p50", "latency_p99", "latency_p999"]
            .iter()
            .filter_map(|metric| {
                let value = data::median(samples.rounds(link, workload, subject, metric).into_iter().map(|(_, v)| v))?;
                Some(format!("{} {}", data::metric_words(metric), data::show(metric, value)))
            })
            .collect();
        (cdfs.into_iter().map(<[_]>::to_vec).collect(), median, figures.join(", "))
    })?;
    let shown = |(_, part): &&(f64, f64)| (PARTS[0]..=PARTS[PARTS.len() - 1]).contains(part);
    let x = Scale::log(
        lines.iter().flat_map(|line| line.rounds.iter().flatten().filter(shown).map(|(us, _)| *us)),
        LEFT,
        RIGHT,
    );
    let y = Scale::odds(BOTTOM, TOP);
    let x_ticks = x.ticks().into_iter().map(|us| (us, microseconds(us))).collect::<Vec<_>>();
    let y_ticks = y.ticks().into_iter().map(|part| (part, percent(part))).collect::<Vec<_>>();
    let title = format!("{}, {}", data::workload_words(workload), link.label());
    Some(draw(&title, "took at most, microseconds (log)", &lines, (&x, &x_ticks), (&y, &y_ticks)))
}

/// Draws throughput over time for a workload. `None` if nobody has any.
pub fn over_time(
    report: &Report,
    samples: &Samples<'_>,
    link: Link,
    workload: &str,
    classes: &dyn Fn(&str) -> String,
) -> Option<Markup> {
    let lines = lines(report, classes, |subject| {
        let rounds: Vec<Vec<(f64, f64)>> = samples
            .of(link, workload, subject)
            .iter()
            .map(|sample| speeds(sample))
            .filter(|points| !points.is_empty())
            .collect();
        let longest = rounds.iter().map(Vec::len).max().unwrap_or(0);
        let median = (0..longest)
            .filter_map(|index| {
                let at = rounds.iter().filter_map(|points| points.get(index));
                Some((
                    rounds.iter().find_map(|points| points.get(index))?.0,
                    data::median(at.map(|(_, speed)| *speed))?,
                ))
            })
            .collect();
        let value = data::median(samples.rounds(link, workload, subject, "throughput").into_iter().map(|(_, v)| v));
        (rounds, median, value.map(|value| data::show("throughput", value)).unwrap_or_default())
    })?;
    let points = || lines.iter().flat_map(|line| line.rounds.iter().flatten());
    let seconds = points().map(|(at, _)| *at).fold(BUCKET_S, f64::max) + BUCKET_S / 2.0;
    let x = Scale::linear(0.0, seconds, LEFT, RIGHT);
    let y = Scale::from_zero(points().map(|(_, speed)| *speed), BOTTOM, TOP);
    let x_ticks = x.ticks().into_iter().map(|at| (at, rounded(at))).collect::<Vec<_>>();
    let y_ticks = y.ticks().into_iter().map(|speed| (speed, rounded(speed))).collect::<Vec<_>>();
    let title = format!("{}, {}", data::workload_words(workload), link.label());
    Some(draw(&title, "seconds; Gbit/s of payload that arrived", &lines, (&x, &x_ticks), (&y, &y_ticks)))
}

/// Throughput in the middle of each bucket: seconds, Gbit/s.
fn speeds(sample: &Sample) -> Vec<(f64, f64)> {
    let points = sample.over_time.iter().enumerate();
    points.map(|(index, bytes)| ((index as f64 + 0.5) * BUCKET_S, *bytes as f64 * 8.0 / BUCKET_S / 1e9)).collect()
}

/// How long at most a part of the responses took: between two points of the distribution, along a straight line.
fn latency_at(cdf: &[(f64, f64)], part: f64) -> Option<f64> {
    let after = cdf.iter().position(|(_, reached)| *reached >= part)?;
    let (high_us, high) = cdf[after];
    let Some((low_us, low)) = after.checked_sub(1).map(|before| cdf[before]) else {
        return Some(high_us);
    };
    let between = if high > low { (part - low) / (high - low) } else { 1.0 };
    Some(low_us + between * (high_us - low_us)).filter(|us| us.is_finite())
}

type Found = (Vec<Vec<(f64, f64)>>, Vec<(f64, f64)>, String);

/// The lines of every subject that has any; `None` if no subject has.
fn lines(report: &Report, classes: &dyn Fn(&str) -> String, of: impl Fn(&str) -> Found) -> Option<Vec<Line>> {
    let lines: Vec<Line> = report
        .plan
        .subjects
        .iter()
        .filter_map(|subject| {
            let (rounds, median, figures) = of(subject);
            (!rounds.is_empty()).then(|| Line {
                subject: subject.clone(),
                class: classes(subject),
                title: format!("{subject}\n{} rounds\n{figures}", rounds.len()),
                rounds,
                median,
            })
        })
        .collect();
    (!lines.is_empty()).then_some(lines)
}

type Axis<'a> = (&'a Scale, &'a [(f64, String)]);

fn draw(title: &str, below: &str, lines: &[Line], (x, x_ticks): Axis<'_>, (y, y_ticks): Axis<'_>) -> Markup {
    let mut out = Markup::new();
    svg(&mut out, WIDTH, HEIGHT, title, |out| {
        out.leaf("text", &[("class", "title".into()), ("x", 8.0.into()), ("y", 18.0.into())], title);
        for (value, label) in x_ticks {
            let at = x.at(*value);
            out.empty(
                "line",
                &[
                    ("class", "grid".into()),
                    ("x1", at.into()),
                    ("x2", at.into()),
                    ("y1", TOP.into()),
                    ("y2", BOTTOM.into()),
                ],
            );
            out.leaf(
                "text",
                &[("class", "tick middle".into()), ("x", at.into()), ("y", (BOTTOM + 15.0).into())],
                label,
            );
        }
        for (value, label) in y_ticks {
            let at = y.at(*value);
            out.empty(
                "line",
                &[
                    ("class", "grid".into()),
                    ("x1", LEFT.into()),
                    ("x2", RIGHT.into()),
                    ("y1", at.into()),
                    ("y2", at.into()),
                ],
            );
            out.leaf(
                "text",
                &[("class", "tick end".into()), ("x", (LEFT - 7.0).into()), ("y", (at + 4.0).into())],
                label,
            );
        }
        let middle = (LEFT + RIGHT) / 2.0;
        out.leaf("text", &[("class", "hint middle".into()), ("x", middle.into()), ("y", (HEIGHT - 8.0).into())], below);
        // The first subject is drawn last, on top of the others.
        for line in lines.iter().rev() {
            out.nest("g", &[("class", "lines".into())], |out| {
                out.leaf("title", &[], &line.title);
                let placed = |points: &[(f64, f64)]| path(points.iter().map(|(a, b)| (x.at(*a), y.at(*b))));
                for points in line.rounds.iter().filter(|points| points.len() > 1) {
                    let class = format!("round {}", line.class);
                    out.empty("path", &[("class", (&class).into()), ("d", (&placed(points)).into())]);
                }
                let class = format!("median {}", line.class);
                out.empty(
                    "path",
                    &[
                        ("class", (&class).into()),
                        ("d", (&placed(&line.median)).into()),
                        ("data-subject", (&line.subject).into()),
                    ],
                );
            });
        }
    });
    out
}

fn microseconds(us: f64) -> String {
    if us >= 1000.0 { format!("{}k", rounded(us / 1000.0)) } else { rounded(us) }
}

fn percent(part: f64) -> String {
    format!("{}%", rounded(part * 100.0))
}

/// A round number as short as it is.
fn rounded(value: f64) -> String {
    if value.abs() >= 1e6 { format!("{value:.0e}") } else { super::markup::coordinate(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_between_two_points_lies_on_the_line_between_them() {
        let cdf = [(10.0, 0.5), (20.0, 1.0)];
        assert_eq!(latency_at(&cdf, 0.25), Some(10.0));
        assert_eq!(latency_at(&cdf, 0.75), Some(15.0));
        assert_eq!(latency_at(&cdf, 1.0), Some(20.0));
        assert_eq!(latency_at(&[], 0.5), None);
        assert_eq!(latency_at(&[(10.0, 0.9)], 0.95), None);
    }
}
