//! What comparisons conclude, and how the command ends.

use std::path::PathBuf;

use assert_cmd::Command;
use weft_bench::compare::{Basis, Comparison, Row, Verdict, compare, table};
use weft_bench::result::{Mode, Report};
use weft_bench::summary;

use crate::synthetic;

fn find<'a>(comparison: &'a Comparison, subject: &str, workload: &str, metric: &str) -> &'a Row {
    let is_it = |row: &&Row| {
        (row.subject.as_str(), row.workload.as_str(), row.metric.as_str(), row.mode)
            == (subject, workload, metric, Mode::Wire)
    };
    comparison.rows.iter().find(is_it).unwrap()
}

#[test]
fn twice_as_fast_is_better_in_every_metric_and_the_other_way_round_worse() {
    let (slow, fast) = (synthetic::report(5, 1.0, 1), synthetic::report(5, 2.0, 2));
    let there = compare(&slow, &fast);
    let back = compare(&fast, &slow);
    assert_eq!(there.warnings, Vec::<String>::new());
    for (workload, metric, change) in
        [("tcp1", "throughput", 100.0), ("rr", "latency_p50", -50.0), ("tcp4", "cpu_per_gb", -50.0)]
    {
        let row = find(&there, "weft", workload, metric);
        assert_eq!((row.verdict, row.basis), (Verdict::Better, Basis::Ratio), "{row:?}");
        assert!((row.change_percent.unwrap() - change).abs() < 15.0, "{row:?}");
        assert!((row.chance.unwrap() - 2.0 / 252.0).abs() < 1e-9, "{row:?}");
        assert_eq!(find(&back, "weft", workload, metric).verdict, Verdict::Worse);
    }
    let baseline = find(&there, "vxlan", "tcp1", "throughput");
    assert_eq!((baseline.verdict, baseline.basis), (Verdict::Noise, Basis::Value));
    assert!(table(&there).contains("chance alone"));
}

#[test]
fn a_slower_machine_is_no_slower_tunnel() {
    let a = synthetic::report(5, 1.0, 1);
    let mut b = synthetic::report(5, 1.0, 2);
    for sample in &mut b.samples {
        if let Some(throughput) = sample.metrics.get_mut("throughput") {
            *throughput /= 3.0;
        }
    }
    summary::conclude(&mut b);
    let comparison = compare(&a, &b);
    assert_eq!(find(&comparison, "weft", "tcp1", "throughput").verdict, Verdict::Noise);
    assert_eq!(find(&comparison, "vxlan", "tcp1", "throughput").verdict, Verdict::Worse);
}

#[test]
fn the_same_run_twice_is_noise_everywhere() {
    let report = synthetic::report(5, 1.0, 1);
    let comparison = compare(&report, &report);
    assert!(comparison.rows.iter().all(|row| row.verdict == Verdict::Noise && row.chance == Some(1.0)));
    assert!(comparison.rows.iter().all(|row| row.change_percent.is_none_or(|change| change == 0.0)));
}

#[test]
fn one_round_that_overlaps_makes_it_noise() {
    let a = synthetic::report(5, 1.0, 1);
    let mut b = synthetic::report(5, 2.0, 2);
    let slow = b.samples.iter_mut().find(|sample| {
        (sample.subject.as_str(), sample.workload.as_str(), sample.mode) == ("weft", "tcp1", Mode::Wire)
    });
    *slow.unwrap().metrics.get_mut("throughput").unwrap() /= 2.0;
    let comparison = compare(&a, &b);
    assert_eq!(find(&comparison, "weft", "tcp1", "throughput").verdict, Verdict::Noise);
    assert_eq!(find(&comparison, "weft", "udp1400", "pps").verdict, Verdict::Better);
}

#[test]
fn three_rounds_are_too_few_for_any_conclusion() {
    let comparison = compare(&synthetic::report(3, 1.0, 1), &synthetic::report(5, 2.0, 2));
    assert!(comparison.rows.iter().all(|row| row.verdict == Verdict::TooFewRounds));
    assert!(table(&comparison).contains("too few rounds"));
}

#[test]
fn what_one_run_alone_has_is_told() {
    let a = synthetic::report(5, 1.0, 1);
    let mut b = synthetic::report(5, 1.0, 2);
    b.samples.retain(|sample| sample.workload != "rr");
    summary::conclude(&mut b);
    assert_eq!(find(&compare(&a, &b), "weft", "rr", "latency_p50").verdict, Verdict::OnlyInA);
    assert_eq!(find(&compare(&b, &a), "weft", "rr", "latency_p50").verdict, Verdict::OnlyInB);
}

#[test]
fn another_host_kernel_mtu_or_engine_is_warned_of() {
    let a = synthetic::report(5, 1.0, 1);
    let mut b = a.clone();
    b.host.kernel = "5.15.0".to_owned();
    b.host.machine = None;
    b.plan.mtus = vec![9000];
    b.subjects[0].engine = Some("epoll".to_owned());
    b.ok = false;
    let warnings = compare(&a, &b).warnings.join("\n");
    for piece in [
        "kernel differs: A 6.18.0, B 5.15.0",
        "machine",
        "MTU of the underlay",
        "engine differs: A uring, B epoll",
        "not complete",
    ] {
        assert!(warnings.contains(piece), "{piece}: {warnings}");
    }
    assert_eq!(warnings.lines().count(), 5, "{warnings}");
}

fn bench() -> Command {
    Command::new(env!("CARGO_BIN_EXE_weft-bench"))
}

fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn json(report: &Report) -> String {
    serde_json::to_string(report).unwrap()
}

#[test]
fn files_that_are_no_reports_end_with_code_2_and_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let good = file(&folder, "good.json", &json(&synthetic::report(1, 1.0, 1)));
    let mut other = synthetic::report(1, 1.0, 1);
    other.schema = 99;
    let cases = [
        (folder.path().join("missing.json"), "No such file"),
        (file(&folder, "empty.json", ""), "EOF"),
        (file(&folder, "text.json", "hello"), "expected value at line 1"),
        (file(&folder, "object.json", "{\"ok\": true}"), "missing field `schema`"),
        (file(&folder, "other.json", &json(&other)), "schema 99"),
        (file(&folder, "cut.json", "{\"schema\": 1}"), "missing field"),
    ];
    for (path, reason) in &cases {
        for arguments in [
            vec!["compare".into(), good.clone(), path.clone()],
            vec!["report".into(), path.clone(), "-o".into(), folder.path().join("x.html")],
        ] {
            let output = bench().args(&arguments).assert().code(2).get_output().clone();
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(said.contains(reason) && said.contains(path.to_str().unwrap()), "{said}");
            assert!(output.stdout.is_empty());
        }
    }
}

#[test]
fn the_commands_write_what_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let a = file(&folder, "a.json", &json(&synthetic::report(5, 1.0, 1)));
    let b = file(&folder, "b.json", &json(&synthetic::report(5, 2.0, 2)));
    let (page, picture) = (folder.path().join("page.html"), folder.path().join("picture.svg"));
    bench().arg("report").arg(&a).arg("-o").arg(&page).arg("--svg").arg(&picture).assert().success();
    assert!(std::fs::read_to_string(page).unwrap().starts_with("<!DOCTYPE html>"));
    assert!(std::fs::read_to_string(picture).unwrap().starts_with("<svg"));

    let output = bench().arg("compare").arg(&a).arg(&b).arg("--json").assert().success().get_output().clone();
    let compared: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(compared["a"]["rounds"], 5);
    assert_eq!(compared["rows"][0]["verdict"], "better");
    let output = bench().arg("compare").arg(&a).arg(&b).assert().success().get_output().clone();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("wire, MTU 1500") && shown.contains("better"), "{shown}");
}
