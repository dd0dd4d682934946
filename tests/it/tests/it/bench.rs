//! `weft-bench run` end to end: very short runs between two hosts, what they write, and what they refuse to call measured.
//!
//! ```text
//!   a u0 192.0.2.1 ------------ veth ------------ 192.0.2.2 u0 b
//!     weft0, flannel.1, ... each with a subnet of its own 10.(100+n).1.0/24, 10.(100+n).2.0/24
//! ```

use std::path::Path;
use std::process::{Command, Output};

use weft_bench::result::{Mode, Report};
use weft_lab::{Process, TIMEOUT, eventually, require_root, weft_bench_binary};

fn weft_bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(weft_bench_binary().unwrap());
    command.args(arguments);
    command
}

/// Short, on a machine that may be busy, of programs that may be debug builds, and wherever a hypervisor puts the cores: how
/// fast anything is does not matter here.
const SHORT: [&str; 8] = ["run", "--force", "--patience", "0", "--seconds", "0.2", "--warm-up", "0.05"];

fn run(arguments: &[&str], json: &Path) -> (Output, Report) {
    let mut command = weft_bench(&SHORT);
    command.arg("--json");
    let output = command.arg(json).args(arguments).output().unwrap();
    let text = std::fs::read_to_string(json).unwrap();
    let report = Report::from_json(&text).unwrap_or_else(|error| panic!("{error}: {text}: {output:?}"));
    (output, report)
}

#[test]
fn a_short_run_measures_every_subject_in_every_round_and_writes_ratios() {
    if !require_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let arguments =
        ["--subjects", "weft,vxlan", "--modes", "offload,wire", "--workloads", "tcp1,udp64,rr", "--rounds", "2"];
    let (output, report) = run(&arguments, &directory.path().join("result.json"));
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && report.ok, "{:?} {output:?}", report.failures);
    assert_eq!(report.samples.len(), 2 * 2 * 3 * 2);
    assert!(report.plan.congestion_control.is_none() && report.host.congestion_control.is_some(), "{:?}", report.host);
    for mode in Mode::ALL {
        for (workload, metric) in [
            ("tcp1", "throughput"),
            ("tcp1", "cpu_per_gb"),
            ("udp64", "pps"),
            ("rr", "latency_p50"),
            ("rr", "latency_p99"),
        ] {
            let is_it = |mode_, workload_: &str, metric_: &str| (mode_, workload_, metric_) == (mode, workload, metric);
            let found = report.ratios.iter().find(|ratio| is_it(ratio.mode, &ratio.workload, &ratio.metric));
            let ratio = found.unwrap_or_else(|| panic!("no ratio for {mode} {workload} {metric}"));
            assert_eq!((ratio.subject.as_str(), ratio.baseline.as_str(), ratio.samples), ("weft", "vxlan", 2));
            assert!(ratio.min <= ratio.median && ratio.median <= ratio.max && ratio.min > 0.0, "{ratio:?}");
            assert_eq!((ratio.mtu, ratio.rate_mbit), (1500, None));
        }
    }
    let weft = report.subjects.iter().find(|subject| subject.name == "weft").unwrap();
    assert!(weft.engine.is_some() && weft.offloads.contains_key("udp_gso") && weft.refused.is_none(), "{weft:?}");
    let rr = report.samples.iter().find(|sample| sample.workload == "rr").unwrap();
    assert!(rr.latency_cdf.len() > 10 && rr.latency_cdf.is_sorted(), "{rr:?}");
    let tcp = report.samples.iter().find(|sample| (&*sample.workload, &*sample.subject) == ("tcp1", "weft")).unwrap();
    assert!(
        tcp.over_time.len() == 2 && tcp.metrics["syscalls_per_packet"] > 0.0 && tcp.metrics["rss"] > 1e6,
        "{tcp:?}"
    );
    assert!(shown.contains("offload, underlay MTU 1500") && shown.contains("engine "), "{shown}");
}

#[test]
fn every_other_workload_and_kind_of_link_is_measured_too() {
    if !require_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // One that differs from the system's; the kernel always has it.
    let reno = ["--congestion-control", "reno"];
    let workloads = "tcp2-both,udp64@2k,udpgso,udpgso@100m,rr-load,udprr-load,flows,connect,idle";
    let arguments = ["--subjects", "weft:engine=epoll,spin=0,host-gw", "--baseline", "host-gw", "--modes", "wire"];
    let arguments =
        [&arguments[..], &["--rounds", "1", "--mtu", "9000", "--rate", "500m", "--workloads", workloads], &reno]
            .concat();
    let (output, report) = run(&arguments, &directory.path().join("result.json"));
    assert!(output.status.success() && report.ok, "{:?} {output:?}", report.failures);
    let asked_and_used = [&report.plan.congestion_control, &report.host.congestion_control];
    assert_eq!(asked_and_used.map(|name| name.as_deref()), [Some("reno"); 2]);
    // What an idle subject uses has no ratio.
    for workload in workloads.split(',').filter(|workload| *workload != "idle") {
        let found = report.ratios.iter().find(|ratio| ratio.workload == workload);
        let ratio = found.unwrap_or_else(|| panic!("no ratio for {workload}"));
        assert_eq!((ratio.mtu, ratio.rate_mbit, ratio.samples), (9000, Some(500), 1));
    }
    for sample in report.samples.iter().filter(|sample| sample.workload == "idle") {
        let has = ["subject_cpu", "subject_wakeups"].map(|metric| sample.metrics.contains_key(metric));
        assert_eq!(has, [sample.subject != "host-gw"; 2], "{sample:?}");
    }
    let weft = &report.subjects[0];
    assert_eq!((weft.engine.as_deref(), weft.spin_us, weft.overlay_mtu), (Some("epoll"), Some(0), Some(8972)));
}

#[test]
fn many_peers_are_reached_by_way_of_every_subject_that_can_have_them() {
    if !require_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--subjects", "weft,vxlan,host-gw", "--modes", "wire", "--rounds", "1", "--workloads", "peers,rr"];
    let (output, report) = run(&arguments, &directory.path().join("result.json"));
    assert!(output.status.success() && report.ok, "{:?} {output:?}", report.failures);
    assert_eq!(report.samples.len(), 2 * 3);
    for sample in report.samples.iter().filter(|sample| sample.workload == "peers") {
        for metric in ["pps", "throughput", "loss", "cpu_per_mpkt", "reordered", "receiver_drops"] {
            assert!(sample.metrics.contains_key(metric), "{metric}: {sample:?}");
        }
        let bits = sample.metrics["pps"] * 200.0 * 8.0;
        assert!((sample.metrics["throughput"] / bits - 1.0).abs() < 1e-9, "{sample:?}");
    }
    let weft = report.subjects.iter().find(|subject| subject.name == "weft").unwrap();
    assert!(weft.drops.keys().all(|reason| !reason.contains("spoof")), "{:?}", weft.drops);
}

#[test]
fn a_subject_that_does_not_come_up_is_refused_and_the_others_are_measured() {
    if !require_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--subjects", "vxlan,host-gw,external:broken=echo no tunnel here; exit 3", "--modes", "wire"];
    let arguments = [&arguments[..], &["--rounds", "1", "--workloads", "rr"]].concat();
    let (output, report) = run(&arguments, &directory.path().join("result.json"));
    assert_eq!(output.status.code(), Some(1));
    let refused = report.subjects[2].refused.as_deref().unwrap();
    assert!(refused.contains("exit status: 3") && refused.contains("no tunnel here"), "{refused}");
    assert_eq!(report.samples.len(), 2);
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(shown.contains("broken: NOT MEASURED"), "{shown}");
}

#[test]
fn an_external_program_is_told_everything_and_may_leave_the_tunnel_to_the_kernel() {
    if !require_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let told = directory.path().join("told");
    // A program that makes no tunnel: it writes down what it is told, and fails as soon as both have.
    let program = format!(
        "external:told=env | grep ^WEFT_BENCH_ >> {0}; until [ $(grep -c ROLE {0}) = 2 ]; do sleep 0.05; done; exit 1",
        told.display()
    );
    let arguments =
        ["--subjects", "host-gw", "--subject", &program, "--modes", "wire", "--rounds", "1", "--workloads", "rr"];
    run(&arguments, &directory.path().join("result.json"));
    let told = std::fs::read_to_string(told).unwrap();
    for line in [
        "WEFT_BENCH_ROLE=a",
        "WEFT_BENCH_ROLE=b",
        "WEFT_BENCH_UNDERLAY_OWN=192.0.2.1",
        "WEFT_BENCH_UNDERLAY_PEER=192.0.2.2",
        "WEFT_BENCH_OVERLAY_SUBNET_OWN=10.101.1.0/24",
        "WEFT_BENCH_OVERLAY_SUBNET_PEER=10.101.2.0/24",
        "WEFT_BENCH_TUN=bench1",
        "WEFT_BENCH_TUN_ADDRESS=10.101.2.1",
        "WEFT_BENCH_TUN_MTU=1472",
        "WEFT_BENCH_PORT=8286",
    ] {
        assert!(told.lines().any(|told| told == line), "{line} is not in {told}");
    }
}

#[test]
fn a_signal_ends_a_run_and_what_was_measured_takes_the_place_of_what_was_there() {
    if !require_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("result.json");
    std::fs::write(&json, "an older report").unwrap();
    let mut command =
        weft_bench(&["run", "--force", "--subjects", "weft,host-gw", "--workloads", "tcp1", "--seconds", "60"]);
    command.arg("--json").arg(&json);
    let mut bench = Process::here(command).unwrap();
    eventually(TIMEOUT, || match bench.log().contains("round 1 of ") {
        true => Ok(()),
        false => anyhow::bail!("it does not measure yet"),
    })
    .unwrap();
    assert_eq!(std::fs::read_to_string(&json).unwrap(), "an older report");
    bench.signal(rustix::process::Signal::INT).unwrap();
    assert_eq!(bench.wait(TIMEOUT).unwrap().code(), Some(1));
    let report = Report::from_json(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert!(report.interrupted && !report.ok, "{:?}", report.failures);
    assert!(report.samples.is_empty(), "it went on to the end of a measurement");
}
