//! The page and the chief picture.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use weft_bench::report;
use weft_bench::result::{Mode, Report, Sample};
use weft_bench::summary;

use crate::synthetic;

/// How often `piece` stands in `text`.
fn count(text: &str, piece: &str) -> usize {
    text.matches(piece).count()
}

/// Elements are closed in the order in which they were opened, attributes are quoted, and every coordinate is a number.
fn check_markup(text: &str) {
    const VOID: [&str; 2] = ["!DOCTYPE", "meta"];
    let mut open: Vec<&str> = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let end = start + rest[start..].find('>').expect("a tag has an end");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed));
        } else if !tag.ends_with('/') && !VOID.contains(&name) {
            open.push(name);
        }
        let mut attributes = tag;
        while let Some((before, after)) = attributes.split_once("=\"") {
            let name = before.rsplit(' ').next().unwrap();
            let (value, left) = after.split_once('"').expect("an attribute has an end");
            attributes = left;
            match name {
                "x" | "y" | "x1" | "x2" | "y1" | "y2" | "cx" | "cy" | "r" | "rx" | "width" | "height"
                    if tag.starts_with(char::is_lowercase) && name != "content" =>
                {
                    assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{name}={value} in <{tag}>");
                    assert!(name.len() > 1 || !value.contains(['e', 'E']), "{value}");
                }
                "d" => assert!(value.chars().all(|c| "ML -.0123456789".contains(c)), "{value}"),
                _ => {}
            }
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
}

#[test]
fn the_page_holds_every_section_and_every_sample() {
    let made_up = synthetic::report(5, 1.0, 1);
    let page = report::html(&made_up);
    check_markup(&page);
    for title in [
        "Must, aim, measured",
        "Ratios to kernel VXLAN",
        "Latency",
        "Throughput over time",
        "CPU per gigabyte",
        "What ran",
        "All figures",
        "How to read it",
    ] {
        assert_eq!(count(&page, &format!("<h2>{title}</h2>")), 1, "{title}");
    }
    assert_eq!(count(&page, "<tr class=\"sample\">"), made_up.samples.len());
    assert!(page.contains("weft-bench run --rounds 5"));
    // One curve per subject for each of rr and rr-load in both modes, and for each of five bulk workloads in both modes.
    assert_eq!(count(&page, "<path class=\"median "), 4 * (2 * 2 + 5 * 2));
    assert_eq!(count(&page, "<path class=\"round "), 5 * 4 * (2 * 2 + 5 * 2));
    // To look at by hand.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(folder.join("made-up-report.html"), &page).unwrap();
    std::fs::write(folder.join("made-up-report.svg"), report::chief(&made_up, "weft").unwrap()).unwrap();
}

#[test]
fn the_page_needs_nothing_beside_itself_and_no_script() {
    let page = report::html(&synthetic::report(2, 1.0, 1));
    for forbidden in ["<script", "<link", "<img", "url(", "@import", "src=", "href="] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert_eq!(count(&page, "http"), count(&page, "xmlns=\"http://www.w3.org/2000/svg\""));
}

#[test]
fn what_a_report_holds_is_escaped() {
    let mut made_up = synthetic::report(1, 1.0, 1);
    let evil = "<script>alert(1)</script>&\"'".to_owned();
    made_up.failures.push(evil.clone());
    made_up.ok = false;
    made_up.host.cpu = Some(evil.clone());
    made_up.command.push(evil.clone());
    made_up.plan.subjects[0] = evil.clone();
    made_up.samples[0].error = Some(evil.clone());
    for sample in &mut made_up.samples {
        if sample.subject == "weft" {
            sample.subject = evil.clone();
        }
    }
    summary::conclude(&mut made_up);
    let page = report::html(&made_up);
    check_markup(&page);
    assert!(!page.contains("<script"));
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#39;"));
}

#[test]
fn failures_and_refusals_are_told_and_not_drawn() {
    let mut made_up = synthetic::report(5, 1.0, 1);
    made_up.ok = false;
    made_up.failures.push("weft ran on epoll where io_uring was asked for".to_owned());
    for subject in made_up.subjects.iter_mut().filter(|subject| subject.name == "weft") {
        subject.refused = Some("the wrong engine ran".to_owned());
    }
    summary::conclude(&mut made_up);
    let page = report::html(&made_up);
    check_markup(&page);
    assert!(page.contains("weft ran on epoll where io_uring was asked for"));
    assert!(page.contains("Not called measured: the wrong engine ran"));
    assert_eq!(count(&page, "data-subject=\"weft\""), 0);
    assert_eq!(report::chief(&made_up, "weft"), None);
    assert_eq!(count(&page, "<h2>Must, aim, measured</h2>"), 0);
}

#[test]
fn the_picture_stands_alone_and_shows_every_round() {
    let made_up = synthetic::report(5, 1.0, 1);
    let picture = report::chief(&made_up, "weft").unwrap();
    check_markup(&picture);
    assert!(picture.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 960 "));
    assert!(picture.contains("prefers-color-scheme: dark") && !picture.contains("var(--"));
    // Eleven rows in two modes; five rounds each.
    assert_eq!(count(&picture, "<g class=\"bar\">"), 22);
    assert_eq!(count(&picture, "<circle class=\"dot\""), 110);
    assert_eq!(report::chief(&made_up, "nobody"), None);
}

#[test]
fn a_report_survives_its_json() {
    let made_up = synthetic::report(3, 1.0, 1);
    let text = serde_json::to_string(&made_up).unwrap();
    assert!(Report::from_json(&text).unwrap() == made_up);
}

/// Values as a broken or malicious file may hold them; JSON has no NaN, but sums and ratios may become infinite.
fn value() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => 0.001f64..1e12,
        1 => Just(0.0),
        1 => prop::num::f64::NORMAL,
        1 => Just(f64::MAX),
        1 => Just(f64::MIN_POSITIVE),
    ]
}

fn samples() -> impl Strategy<Value = Vec<Sample>> {
    let subject = prop::sample::select(vec!["weft", "vxlan", "host-gw", "<&>"]);
    let workload = prop::sample::select(vec!["tcp1", "tcp4", "rr", "rr-load", "udp64", "udpgso@5g", "?"]);
    let metric =
        prop::sample::select(vec!["throughput", "pps", "latency_p50", "latency_p99", "cpu_per_gb", "loss", "?"]);
    let metrics = prop::collection::btree_map(metric.prop_map(str::to_owned), value(), 0..6);
    let cdf = prop::collection::vec((value(), -0.5f64..1.5), 0..8);
    let over_time = prop::collection::vec(any::<u64>(), 0..8);
    let mode = prop::sample::select(Mode::ALL.to_vec());
    let rate = prop::option::of(any::<u64>());
    let one = (1u32..4, mode, subject, workload, metrics, cdf, over_time, rate).prop_map(
        |(round, mode, subject, workload, metrics, latency_cdf, over_time, rate_mbit)| Sample {
            round,
            mode,
            mtu: 1500,
            rate_mbit,
            subject: subject.to_owned(),
            workload: workload.to_owned(),
            metrics,
            latency_cdf,
            over_time,
            error: None,
        },
    );
    prop::collection::vec(one, 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_page_of_anything_is_well_formed_and_has_numbers_alone_for_coordinates(samples in samples(), unlimited: bool) {
        let mut report = synthetic::report(0, 1.0, 1);
        report.samples = samples;
        if unlimited {
            report.samples.iter_mut().for_each(|sample| sample.rate_mbit = None);
        }
        report.plan.subjects = ["weft", "vxlan", "host-gw", "<&>"].map(str::to_owned).to_vec();
        report.plan.workloads = ["tcp1", "tcp4", "rr", "rr-load", "udp64", "udpgso@5g", "?"].map(str::to_owned).to_vec();
        summary::conclude(&mut report);
        let page = report::html(&report);
        check_markup(&page);
        prop_assert_eq!(count(&page, "<tr class=\"sample\">"), report.samples.len());
        if let Some(picture) = report::chief(&report, "weft") {
            check_markup(&picture);
        }
    }
}

#[test]
fn metrics_that_this_version_does_not_know_are_shown_by_their_name() {
    let mut made_up = synthetic::report(1, 1.0, 1);
    made_up.samples[0].metrics = BTreeMap::from([("warp".to_owned(), 9.0)]);
    let page = report::html(&made_up);
    assert!(page.contains("warp 9.00"));
}

#[test]
fn the_documents_name_every_metric() {
    let page = include_str!("../../../docs/benchmarks/README.md");
    for metric in &weft_bench::metric::METRICS {
        let row = format!("| `{}` | {} | {} |", metric.name, metric.unit, metric.help);
        assert!(page.contains(&row), "missing or out of date: {row}");
    }
}
