//! The command line of `weft-bench`: what it lists, and how it answers nonsense. Needs no root.

use std::process::Command;

fn weft_bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-bench"));
    command.args(arguments);
    command
}

#[test]
fn nonsense_is_answered_with_what_was_expected_and_exit_code_2() {
    for (arguments, expected) in [
        (&["--subjects", "openvpn"][..], "weft-bench list"),
        (&["--modes", "fast"], "expected offload or wire"),
        (&["--workloads", "http"], "expected one of"),
        (&["--workloads", "peers", "--subject", "external:mine=true"], "`mine` cannot be set up with many peers"),
        (&["--workloads", "peers", "--subjects", "vxlan,wireguard-go"], "expected weft, vxlan or host-gw"),
        (&["--mtu", "1280"], "expected 1500 to"),
        (&["--rate", "slow"], "such as 200k, 5g"),
        (&["--rate", "5"], "expected 1m"),
        (&["--rounds", "0"], "1..=1000"),
        (&["--seconds", "0"], "expected 0.1 to 600"),
        (&["--modes", "wire,wire"], "is there twice"),
        (&["--subjects", "vxlan", "--subject", "vxlan"], "is there twice"),
        (&["--baseline", "vxlan", "--subjects", "weft"], "--baseline"),
        (
            &["--congestion-control", "warp"],
            "--congestion-control: the kernel refuses congestion control `warp`; it offers: ",
        ),
        (&["--congestion-control", ""], "it offers: "),
        (&["--colour"], "--colour"),
    ] {
        let output = weft_bench(&["run"]).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
}

#[test]
fn the_list_names_subjects_and_workloads() {
    let output = weft_bench(&["list"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    for word in [
        "weft:engine=uring",
        "vxlan",
        "host-gw",
        "external:NAME=COMMAND",
        "udpgso@RATE",
        "rr-load",
        "udprr",
        "udprr-load",
        "connect",
        "peers",
        "idle",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
}
