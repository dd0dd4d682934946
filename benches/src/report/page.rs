//! The page: what ran, then what came out, from the chief picture down to every sample.

use super::data::{self, Samples};
use super::markup::Markup;
use super::{costs, lines, ratios, tables};
use crate::result::Report;
use crate::targets;

const PAGE_CSS: &str = include_str!("page.css");
const FIGURE_CSS: &str = include_str!("figure.css");

/// Subjects beyond these share the last colour.
const COLOURS: usize = 8;

/// The report as one HTML file.
pub fn html(report: &Report) -> String {
    let samples = Samples::new(report);
    let links = data::links(report);
    let classes = |subject: &str| class(report, subject);
    let mut out = Markup::new();
    out.raw("<!DOCTYPE html>\n");
    out.nest("html", &[("lang", "en".into())], |out| {
        out.nest("head", &[], |out| {
            out.raw("<meta charset=\"utf-8\">\n");
            out.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
            out.raw("<meta name=\"color-scheme\" content=\"light dark\">\n");
            out.leaf("title", &[], &format!("weft-bench, {}", report.started));
            out.nest("style", &[], |out| {
                out.raw(PAGE_CSS);
                out.raw(FIGURE_CSS);
            });
        });
        out.nest("body", &[], |out| {
            out.nest("main", &[], |out| {
                tables::headline(out, report);
                chief(out, report);
                targets_section(out, report);
                ratio_section(out, report, &samples, &links, &classes);
                let workloads = &report.plan.workloads;
                let figures: Vec<Markup> = each(&links, workloads, |link, workload| {
                    lines::latency(report, &samples, link, workload, &classes)
                });
                section(out, report, "Latency", LATENCY, figures, "three");
                let figures: Vec<Markup> = each(&links, workloads, |link, workload| {
                    lines::over_time(report, &samples, link, workload, &classes)
                });
                section(out, report, "Throughput over time", OVER_TIME, figures, "three");
                let figures = links.iter().filter_map(|link| costs::panel(report, &samples, *link, &classes)).collect();
                section(out, report, "CPU per gigabyte", COSTS, figures, "two");
                tables::subjects(out, report);
                tables::medians(out, report);
                tables::samples(out, report);
                tables::reading(out, report);
            });
        });
    });
    out.into_text()
}

const LATENCY: &str = "The part of the responses (up) that took at most so long (across). Across is logarithmic; up is \
stretched towards both ends, so that the slow one in a hundred is as easy to see as the middle. Further left is better. \
Thin: one round; thick: the median of the rounds.";

const OVER_TIME: &str =
    "Payload that arrived intact, in steps of 0.1 s. Thin: one round; thick: the median of the rounds.";

const COSTS: &str = "CPU seconds of the whole machine per 10^9 payload bytes: both hosts, kernel and softirq, the tunnel and \
the measuring programs. Less is better.";

fn chief(out: &mut Markup, report: &Report) {
    if let Some(picture) = ratios::chief(report, targets::SUBJECT) {
        out.nest("figure", &[("class", "chief-picture".into())], |out| out.raw(&picture));
    }
}

fn targets_section(out: &mut Markup, report: &Report) {
    let judged = targets::judge(report);
    if !judged.is_empty() {
        tables::targets(out, report, &judged);
    }
}

fn ratio_section(
    out: &mut Markup,
    report: &Report,
    samples: &Samples<'_>,
    links: &[data::Link],
    classes: &dyn Fn(&str) -> String,
) {
    let figures: Vec<Markup> = links.iter().filter_map(|link| ratios::panel(report, samples, *link, classes)).collect();
    let Some(baseline) = &report.plan.baseline else {
        return;
    };
    let words = format!(
        "Each subject divided by {} in the same round under the same conditions; the scale is logarithmic, so half and double \
         are equally far from 1. A bar ends at the median of the rounds, the line across it goes from the smallest to the \
         largest, each dot is a round. The shaded side is the better one. A figure is blue if every round was better, orange if \
         every round was worse, grey if 1 is within the spread: then it is no difference.",
        ratios::subject_words(baseline)
    );
    section(out, report, &format!("Ratios to {}", ratios::subject_words(baseline)), &words, figures, "two");
}

fn each(links: &[data::Link], workloads: &[String], draw: impl Fn(data::Link, &str) -> Option<Markup>) -> Vec<Markup> {
    let pairs = workloads.iter().flat_map(|workload| links.iter().map(move |link| (*link, workload)));
    pairs.filter_map(|(link, workload)| draw(link, workload)).collect()
}

fn section(out: &mut Markup, report: &Report, title: &str, words: &str, figures: Vec<Markup>, columns: &str) {
    if figures.is_empty() {
        return;
    }
    out.nest("section", &[], |out| {
        out.leaf("h2", &[], title);
        out.leaf("p", &[], words);
        legend(out, report);
        let class = format!("figures {columns}");
        out.nest("div", &[("class", (&class).into())], |out| {
            for figure in figures {
                out.nest("figure", &[], |out| out.raw(&figure.into_text()));
            }
        });
    });
}

fn legend(out: &mut Markup, report: &Report) {
    out.nest("ul", &[("class", "legend".into())], |out| {
        for subject in &report.plan.subjects {
            out.nest("li", &[], |out| {
                let class = format!("swatch {}", class(report, subject));
                out.leaf("span", &[("class", (&class).into())], "");
                out.text(subject);
            });
        }
    });
}

/// The class of a subject's colour: grey for the baseline, the others in the order of the plan.
fn class(report: &Report, subject: &str) -> String {
    if report.plan.baseline.as_deref() == Some(subject) {
        return "s0".to_owned();
    }
    let others = report.plan.subjects.iter().filter(|name| report.plan.baseline.as_ref() != Some(*name));
    let index = others.take_while(|name| name.as_str() != subject).count();
    format!("s{}", (index + 1).min(COLOURS))
}
