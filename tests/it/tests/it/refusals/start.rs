//! A weftd that cannot have what it wants says so and leaves alone what others have.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use weft_lab::{Lab, Node, Ping, WeftdOptions, ping, weftd_binary};

use crate::support::{Family, TIMEOUT, TUN, Tunnel};

/// Runs a program on a node to its end: exit code and output.
fn run(node: &Node, command: Command) -> Result<(Option<i32>, String)> {
    let mut process = node.spawn(command)?;
    let status = process.wait(TIMEOUT)?;
    let log = process.log();
    process.quiet();
    Ok((status.code(), log))
}

fn weftd(arguments: &[String]) -> Result<Command> {
    let mut command = Command::new(weftd_binary()?);
    command.args(arguments);
    Ok(command)
}

/// Checks that weftd ends with this code and says all of these.
fn refused(node: &Node, command: Command, code: i32, says: &[&str]) -> Result<()> {
    let what = format!("{command:?}");
    let (found, log) = run(node, command)?;
    ensure!(found == Some(code), "{what}: exit code {found:?} instead of {code}:\n{log}");
    for text in says {
        ensure!(log.contains(text), "{what}: no `{text}` in:\n{log}");
    }
    ensure!(!log.contains("panicked"), "{what}:\n{log}");
    Ok(())
}

#[test]
fn a_second_weftd_is_told_who_holds_what_it_wants_and_the_first_goes_on() -> Result<()> {
    for workers in [1, 4] {
        let Some(tunnel) = Tunnel::builder().each(|options| options.workers = Some(workers)).build()? else {
            return Ok(());
        };
        let holder = format!("weftd (pid {})", tunnel.a.weftd.pid());
        let directory = tunnel.lab.directory();
        let own_socket = directory.join("second.sock").display().to_string();
        let first_socket = tunnel.a.weftd.socket().display().to_string();
        for (what, tun, bind, socket) in [
            ("TUN", TUN, "192.0.2.1:9999", &own_socket),
            ("UDP", "second", "192.0.2.1:8285", &own_socket),
            ("UDP", "second", "0.0.0.0:8285", &own_socket),
            ("control socket", "second", "192.0.2.1:9999", &first_socket),
        ] {
            let options = WeftdOptions { workers: Some(workers), ..WeftdOptions::new(tun, bind) };
            let mut command = weftd(&options.arguments())?;
            command.args(["--socket", socket]);
            refused(&tunnel.a.node, command, 1, &[what, &holder])?;
            ping(&tunnel.a.node, &Ping::to(tunnel.b.overlay(Family::V4)))?.reply().context("the first")?;
            ensure!(tunnel.a.node.link("second").is_err(), "a TUN was left behind");
        }
        ensure!(tunnel.a.status()?.routes == 2);
    }
    Ok(())
}

#[test]
fn what_is_missing_is_named_with_a_remedy() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let node = lab.node("a")?;
    let socket = lab.directory().join("weftd.sock").display().to_string();
    let options = WeftdOptions::new("w0", "127.0.0.1:8285");
    let wrapped = |program: &str, arguments: &[&str]| -> Result<Command> {
        let mut command = Command::new(program);
        command.args(arguments).arg(weftd_binary()?).args(options.arguments()).args(["--socket", &socket]);
        Ok(command)
    };
    let without_capability = wrapped("setpriv", &["--bounding-set", "-net_admin", "--inh-caps", "-net_admin"])?;
    refused(&node, without_capability, 1, &["TUN `w0`", "CAP_NET_ADMIN"])?;
    let script = "mount -t tmpfs tmpfs /dev/net && exec \"$@\"";
    let without_device = wrapped("unshare", &["--mount", "sh", "-c", script, "sh"])?;
    refused(&node, without_device, 1, &["/dev/net/tun", "load the `tun` module"])?;
    for (bind, says) in [
        ("203.0.113.9:8285", "no interface of this host has that address"),
        ("[2001:db8::9]:8285", "no interface of this host has that address"),
    ] {
        let mut command = weftd(&WeftdOptions::new("w0", bind).arguments())?;
        command.args(["--socket", &socket]);
        refused(&node, command, 1, &[bind, says])?;
    }
    let mut command = weftd(&options.arguments())?;
    command.args(["--socket", "/proc/weft/weftd.sock"]);
    refused(&node, command, 1, &["/proc/weft"])?;
    let options = WeftdOptions { opener: Some("simple".into()), workers: Some(2), ..options.clone() };
    let mut command = weftd(&options.arguments())?;
    command.args(["--socket", &socket]);
    refused(&node, command, 1, &["one queue", "--workers 1"])?;
    ensure!(node.link("w0").is_err(), "a TUN was left behind");
    ensure!(!std::fs::exists(&socket)?, "a control socket was left behind");
    Ok(())
}

#[test]
fn bad_flags_exit_with_2_and_name_the_flag() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let node = lab.node("a")?;
    for arguments in [
        ["--tun", "a/b"],
        ["--tun", "sixteen-letters-"],
        ["--bind", "10.0.0.1"],
        ["--bind", "host:8285"],
        ["--workers", "0"],
        ["--workers", "65"],
        ["--mtu", "67"],
        ["--mtu", "65508"],
        ["--engine", "dpdk"],
        ["--opener", "tap"],
        ["--peer-check", "perhaps"],
        ["--spin-us", "1000001"],
        ["--log", "loud"],
        ["--colour", "blue"],
    ] {
        refused(&node, weftd(&arguments.map(str::to_owned))?, 2, &[arguments[0]])?;
    }
    Ok(())
}
