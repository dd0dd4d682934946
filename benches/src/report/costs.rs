//! CPU seconds of the whole machine per gigabyte: one panel per link, bars from zero.

use super::bars::{self, Bar, Bars, Frame, Group, Row};
use super::data::{self, Link, OnLink, Samples};
use super::markup::Markup;
use super::ratios::svg;
use super::scale::Scale;
use crate::result::{Report, Summary};

const WIDTH: f64 = 520.0;
const METRIC: &str = "cpu_per_gb";

/// Draws the panel of one link. `None` if nothing was measured there.
pub fn panel(report: &Report, samples: &Samples<'_>, link: Link, classes: &dyn Fn(&str) -> String) -> Option<Markup> {
    let rows: Vec<Row> = report
        .plan
        .workloads
        .iter()
        .filter_map(|workload| {
            let bars: Vec<Bar> = report
                .medians
                .iter()
                .filter(|summary| summary.link() == link && summary.workload == *workload && summary.metric == METRIC)
                .map(|summary| bar(samples, summary, classes(&summary.subject)))
                .collect();
            (!bars.is_empty()).then(|| Row { label: data::workload_words(workload), bars })
        })
        .collect();
    if rows.is_empty() {
        return None;
    }
    let frame = Frame {
        left: 8.0,
        top: 4.0,
        label_width: 138.0,
        plot_width: WIDTH - 138.0 - 58.0 - 16.0,
        figure_width: 58.0,
        bar_height: 11.0,
    };
    let (left, right) = frame.plot();
    let groups = vec![Group { heading: String::new(), better: None, rows }];
    let bars = Bars { title: link.label(), groups, line: 0.0, ticks: Vec::new() };
    let values = bars.groups.iter().flat_map(|group| &group.rows).flat_map(|row| &row.bars).map(|bar| bar.max);
    let scale = Scale::from_zero(values, left, right);
    let ticks = scale.ticks().into_iter().map(|value| (value, super::markup::coordinate(value))).collect();
    let bars = Bars { ticks, ..bars };
    let mut out = Markup::new();
    let label = format!("CPU seconds per gigabyte, {}", link.label());
    svg(&mut out, WIDTH, frame.height(&bars) + 8.0, &label, |out| bars::draw(out, &bars, &scale, frame));
    Some(out)
}

fn bar(samples: &Samples<'_>, summary: &Summary, class: String) -> Bar {
    let rounds = samples.rounds(summary.link(), &summary.workload, &summary.subject, METRIC);
    let each: Vec<String> = rounds.iter().map(|(_, value)| crate::metric::three_digits(*value)).collect();
    let title = [
        format!("{}: {}, {}", summary.subject, summary.workload, summary.link().label()),
        format!("median {} ({} to {})", show(summary.median), show(summary.min), show(summary.max)),
        format!("rounds: {}", each.join(", ")),
    ]
    .join("\n");
    Bar {
        class,
        title,
        median: summary.median,
        min: summary.min,
        max: summary.max,
        rounds,
        figure: crate::metric::three_digits(summary.median),
        figure_class: "same",
    }
}

fn show(value: f64) -> String {
    data::show(METRIC, value)
}
