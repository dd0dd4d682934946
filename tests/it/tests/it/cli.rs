//! The command line of `weft`: what it prints, and how it ends, whatever it is given.
//!
//! ```text
//!   a  weft-a 10.99.0.1/24                             b  nobody
//!      u0 192.0.2.1/24 ------------------------------- u0 192.0.2.2/24
//! ```
//!
//! `tests/it/fixtures/config` holds tunnel files that are wrong, one kind each, and beside each what `weft check` says.
//! `WEFT_BLESS=1` writes these texts anew; read the difference.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use serde_json::Value;
use weft_lab::topology::Pair;
use weft_lab::{Lab, Link, TIMEOUT, eventually, weft_binary};

use crate::weft::{Said, Weft};

/// The user and group that own nothing.
const NOBODY: u32 = 65_534;
/// Fewest kinds of wrong files that are to be told apart.
const FIXTURE_COUNT_MIN: usize = 30;
const FILE: &str = "name = \"weft-a\"\naddress = \"10.99.0.1/24\"\n\n[[peer]]\nname = \"b\"\n\
                    subnets = [\"10.99.0.2/32\"]\nendpoint = \"192.0.2.2\"\n";

/// A host with a neighbour.
struct Place {
    host: Weft,
    _link: Link,
    lab: Lab,
}

impl Place {
    fn new() -> Result<Option<Self>> {
        let Some(lab) = Lab::start() else { return Ok(None) };
        let pair = Pair::new(&lab, 1500)?;
        let host = Weft::new(&lab, &pair.a)?;
        host.write("t.toml", FILE)?;
        Ok(Some(Self { host, _link: pair.link, lab }))
    }

    /// With the tunnel `weft-a` up.
    fn up() -> Result<Option<Self>> {
        let Some(place) = Self::new()? else { return Ok(None) };
        place.host.ok(&["up", "t.toml"])?;
        Ok(Some(place))
    }

    /// Runs `weft` as a user who owns nothing.
    fn as_nobody(&self, arguments: &[&str]) -> Result<Said> {
        // Where the programs were built may be closed to other users.
        let program = self.lab.directory().join("weft");
        if !program.exists() {
            fs::copy(weft_binary()?, &program)?;
        }
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.host.path("")).env("WEFT_RUN_DIR", self.host.run_dir());
        command.uid(NOBODY).gid(NOBODY);
        self.host.output(command)
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/config")
}

#[test]
fn check_says_what_is_wrong_with_every_kind_of_wrong_file_and_touches_nothing() -> Result<()> {
    let Some(place) = Place::new()? else { return Ok(()) };
    let bless = std::env::var_os("WEFT_BLESS").is_some();
    let before = place.host.traces()?;
    let mut names: Vec<PathBuf> = fs::read_dir(fixtures())?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    names.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    names.sort();
    ensure!(names.len() >= FIXTURE_COUNT_MIN, "{} fixtures", names.len());
    let mut wrong = Vec::new();
    for path in &names {
        let name = path.file_name().and_then(|name| name.to_str()).context("a name")?;
        let run = |verb: &str| -> Result<Said> {
            let mut command = place.host.command(&[verb, name])?;
            command.current_dir(fixtures());
            let said = place.host.output(command)?.exits(2)?;
            ensure!(said.out.is_empty(), "on standard output: {said}");
            Ok(said)
        };
        let said = run("check")?.err;
        ensure!(run("up")?.err == said, "`weft up {name}` says something else");
        ensure!(said.starts_with(&format!("weft: {name}: ")) && said.contains(&format!("{name}:")), "{said}");
        let expected = path.with_extension("txt");
        if bless {
            fs::write(&expected, &said)?;
        } else if fs::read_to_string(&expected).unwrap_or_default() != said {
            wrong.push(format!("{} should hold:\n{said}", expected.display()));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    place.host.is_as(&before)
}

#[test]
fn check_in_json_names_line_column_key_and_remedy() -> Result<()> {
    let Some(place) = Place::new()? else { return Ok(()) };
    place.host.write("bad.toml", &FILE.replace("10.99.0.2/32", "10.99.2.7/24"))?;
    let answer = place.host.run(&["check", "--json", "bad.toml"])?.exits(2)?.json()?;
    ensure!(answer["ok"] == false && answer["error"].is_null() && answer["file"] == "bad.toml", "{answer}");
    let problem = &answer["problems"][0];
    ensure!(problem["line"] == 6 && problem["column"] == 12 && problem["severity"] == "error", "{problem}");
    ensure!(problem["key"] == "peer[0].subnets", "{problem}");
    for key in ["message", "hint"] {
        ensure!(problem[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {problem}");
    }
    let answer = place.host.json(&["check", "--json", "t.toml"])?;
    ensure!(answer["ok"] == true && answer["problems"] == Value::Array(Vec::new()), "{answer}");
    let answer = place.host.run(&["check", "--json", "missing.toml"])?.exits(2)?.json()?;
    ensure!(answer["error"].as_str().is_some_and(|text| text.contains("No such file")), "{answer}");
    Ok(())
}

#[test]
fn every_reading_command_prints_json_with_its_documented_keys() -> Result<()> {
    let Some(place) = Place::up()? else { return Ok(()) };
    let host = &place.host;
    let expected: [(&[&str], &[&str]); 6] = [
        (
            &["status", "--json"],
            &[
                "weftd_version",
                "pid",
                "uptime_ms",
                "tun_name",
                "tun_ifindex",
                "opener",
                "mtu",
                "bind",
                "engine",
                "engine_fallback",
                "peer_check",
                "spin_us",
                "source_ports",
                "workers",
                "workers_in_use",
                "workers_running",
                "draining",
                "generation",
                "digest",
                "routes",
                "peers",
                "offloads",
                "offloads_lost",
                "encap_drops",
                "decap_drops",
                "degraded",
            ],
        ),
        (
            &["stats", "--json"],
            &["engine", "uptime_ms", "counters", "drops", "send_segments", "write_segments", "workers"],
        ),
        (&["route", "list", "--json"], &["generation", "digest", "peers"]),
        (&["route", "get", "10.99.0.2", "--json"], &["address", "route", "generation"]),
        (&["version", "--json"], &["version", "protocol"]),
        (&["check", "t.toml", "--json"], &["ok", "file", "error", "problems"]),
    ];
    for (arguments, keys) in expected {
        let value = host.json(arguments)?;
        let missing: Vec<_> = keys.iter().filter(|key| value.get(key).is_none()).collect();
        ensure!(missing.is_empty(), "{arguments:?} lacks {missing:?}: {value}");
    }
    let peers = host.json(&["peers", "--json"])?;
    for key in
        ["name", "addr", "routes", "tx_packets", "tx_bytes", "rx_packets", "rx_bytes", "path_mtu", "last_rx_ago_ms"]
    {
        ensure!(peers[0].get(key).is_some(), "peers lacks {key}: {peers}");
    }
    // What is printed can be read again.
    let list = host.ok(&["route", "list", "--json"])?.out;
    host.write("table.json", &list)?;
    let replaced = host.json(&["route", "replace", "table.json", "--json"])?;
    ensure!(replaced["digest"] == host.json(&["status", "--json"])?["digest"], "{replaced}");
    Ok(())
}

#[test]
fn monitor_prints_one_json_object_per_event_and_ends_with_weftd() -> Result<()> {
    let Some(place) = Place::up()? else { return Ok(()) };
    let host = &place.host;
    let mut monitor = host.spawn(&["monitor", "--json"])?;
    eventually(TIMEOUT, || {
        host.ok(&["route", "add", "10.60.0.0/16", "via", "192.0.2.2"])?;
        ensure!(monitor.log().contains("table_installed"), "{}", monitor.log());
        Ok(())
    })?;
    host.ok(&["log", "debug"])?.prints(&["logs at level debug"])?;
    host.ok(&["drain"])?.prints(&["has drained"])?;
    let status = monitor.wait(TIMEOUT)?;
    ensure!(status.code() == Some(0), "{status}: {}", monitor.log());
    let events: Vec<Value> = monitor.log().lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(events.iter().all(|event| event["time"].is_string() && event["event"].is_string()), "{events:?}");
    for name in ["table_installed", "log_level", "draining"] {
        ensure!(events.iter().any(|event| event["event"] == name), "no {name}: {events:?}");
    }
    host.ok(&["down", "weft-a"])?.prints(&["weftd had died"])?;
    Ok(())
}

#[test]
fn each_exit_code_is_what_its_meaning_says() -> Result<()> {
    let Some(place) = Place::new()? else { return Ok(()) };
    let host = &place.host;
    // 3: nobody there.
    for command in ["status", "peers", "stats", "monitor", "drain"] {
        host.run(&[command])?.exits(3)?.says(&["no weftd is running", "weft up FILE"])?;
    }
    host.run(&["route", "list", "--socket", "/nonexistent.sock"])?
        .exits(3)?
        .says(&["/nonexistent.sock", "No such file"])?;
    // 2: usage and files.
    for arguments in
        [&["frobnicate"][..], &["up"], &["status", "--jsn"], &["route", "get", "nonsense"], &["log", "loud"]]
    {
        host.run(arguments)?.exits(2)?.says(&["error: ", "For more information, try '--help'"])?;
    }
    host.run(&["stats", "--watch", "0"])?.exits(2)?.says(&["is not a positive number of seconds"])?;
    host.run(&["check", "missing.toml"])?.exits(2)?;
    // 0 and 1.
    host.ok(&["up", "t.toml"])?;
    host.ok(&["status", "--check"])?;
    host.ok(&["route", "get", "10.99.0.2"])?.prints(&["192.0.2.2:8285 (b)"])?;
    host.run(&["route", "get", "10.98.0.1"])?.exits(1)?.prints(&["no route covers it"])?;
    host.run(&["route", "del", "10.98.0.0/16"])?.exits(1)?.says(&["there is no route for exactly 10.98.0.0/16"])?;
    host.run(&["route", "replace", "missing.toml"])?.exits(2)?.says(&["missing.toml"])?;
    host.run(&["route", "replace", "t.toml"])?.exits(2)?.says(&["t.toml", "--help` shows the format"])?;
    host.run(&["route", "add", "10.60.0.0/16", "via", "0.0.0.0"])?.exits(2)?;
    host.run(&["route", "add", "10.60.0.0/16", "192.0.2.2"])?
        .exits(2)?
        .says(&["write the word via before the next hop"])?;
    host.write("empty.toml", "")?;
    let stale = host.run(&["route", "replace", "empty.toml", "--expect", "99"])?.exits(1)?;
    stale.says(&["generation"])?;
    // 4: a user who may not.
    place.as_nobody(&["status"])?.exits(4)?.says(&["no permission to open"])?;
    let socket = host.socket("weft-a");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666))?;
    place.as_nobody(&["status"])?.exits(0)?;
    let before = host.ok(&["route", "list"])?.out;
    for arguments in [&["route", "del", "10.99.0.2/32"][..], &["drain"], &["log", "trace"]] {
        place.as_nobody(arguments)?.exits(4)?;
    }
    ensure!(host.ok(&["route", "list"])?.out == before, "the table was changed");
    // 5: less than it could.
    host.ok(&["route", "replace", "empty.toml"])?;
    host.run(&["status", "--check"])?.exits(5)?.prints(&["degraded    no route is installed"])?;
    Ok(())
}

#[test]
fn status_check_says_when_a_refused_io_uring_has_fallen_back_to_epoll() -> Result<()> {
    let Some(place) = Place::new()? else { return Ok(()) };
    let refuse: BpfProgram = SeccompFilter::new(
        [(libc::SYS_io_uring_setup, Vec::new())].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        std::env::consts::ARCH.try_into()?,
    )?
    .try_into()?;
    let mut command = place.host.command(&["up", "t.toml"])?;
    // The filter is the thread's, and its children's.
    let output = place.host.node.run(|| -> Result<_> {
        seccompiler::apply_filter(&refuse)?;
        Ok(command.output()?)
    })?;
    ensure!(output.status.success(), "{output:?}");
    let said = place.host.run(&["status", "--check"])?.exits(5)?;
    said.prints(&["degraded    engine epoll took over", "io_uring"])?;
    let status = place.host.run(&["status", "--check", "--json"])?.exits(5)?.json()?;
    ensure!(status["engine"] == "epoll" && status["engine_fallback"] == true, "{status}");
    Ok(())
}

#[test]
fn bare_weft_shows_the_status_of_every_tunnel_that_is_up() -> Result<()> {
    let Some(place) = Place::up()? else { return Ok(()) };
    let host = &place.host;
    host.ok::<&str>(&[])?.prints(&["tun         weft-a", "1 route, 1 peer"])?;
    host.write("second.toml", "address = \"10.98.0.1/24\"\nlisten = \"0.0.0.0:9000\"\n")?;
    host.ok(&["up", "second.toml"])?;
    host.ok::<&str>(&[])?.prints(&["tunnel second\n", "\n\ntunnel weft-a\n", "0.0.0.0:9000 udp"])?;
    for arguments in [&["peers"][..], &["status", "--json"], &["drain"]] {
        host.run(arguments)?.exits(2)?.says(&["choose one with --tunnel NAME: second, weft-a"])?;
    }
    host.ok(&["peers", "--tunnel", "weft-a"])?.prints(&["192.0.2.2:8285"])?;
    let mut command = host.command(&["peers", "--tunnel", "weft-a"])?;
    command.env("WEFT_SOCKET", host.socket("second"));
    host.output(command)?.exits(0)?.prints(&["192.0.2.2:8285"])?;
    host.run(&["peers", "--tunnel", "third"])?.exits(3)?.says(&["third.sock"])?;
    Ok(())
}

#[test]
fn completions_are_scripts_that_the_shells_accept() -> Result<()> {
    let Some(place) = Place::new()? else { return Ok(()) };
    for shell in ["bash", "zsh", "fish"] {
        let script = place.host.ok(&["completions", shell])?.out;
        ensure!(script.contains("completions"), "{shell}: {script}");
        // Without the shell there is nobody to ask.
        if Command::new(shell).arg("-c").arg("true").output().is_err() {
            continue;
        }
        let path = place.host.write(&format!("weft.{shell}"), &script)?;
        let output = Command::new(shell).arg("-n").arg(&path).output()?;
        ensure!(output.status.success(), "{shell} -n: {output:?}");
    }
    place.host.run(&["completions", "tcsh"])?.exits(2)?.says(&["[possible values: bash, elvish, fish"])?;
    Ok(())
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() -> Result<()> {
    let Some(place) = Place::up()? else { return Ok(()) };
    let host = &place.host;
    let routes: Vec<String> = (0..20_000).map(|n| format!("\"10.{}.{}.0/24\"", n / 250, n % 250)).collect();
    let table = format!("[[peer]]\naddr = \"192.0.2.2\"\nroutes = [{}]\n", routes.join(", "));
    host.write("large.toml", &table)?;
    host.ok(&["route", "replace", "large.toml"])?;
    for arguments in [
        &["route", "list"][..],
        &["route", "list", "--json"],
        &["completions", "bash"],
        &["stats", "--all", "--watch", "0.01"],
        &["stats", "--json", "--watch", "0.01"],
    ] {
        let mut command = host.command(arguments)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = host.node.run(|| command.spawn())?;
        let mut stdout = child.stdout.take().context("a pipe")?;
        stdout.read_exact(&mut [0; 10])?;
        drop(stdout);
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(0) && said.is_empty(), "{arguments:?}: {} {said}", output.status);
    }
    Ok(())
}

#[test]
fn output_has_no_colour_where_it_is_not_wanted() -> Result<()> {
    let Some(place) = Place::new()? else { return Ok(()) };
    let host = &place.host;
    // script(1) makes a terminal, on which clap and the log would be coloured.
    let on_terminal = |no_colour: bool| -> Result<String> {
        let mut command = host.command::<&str>(&[])?;
        let program = command.get_program().to_string_lossy().into_owned();
        command = Command::new("script");
        command.args(["-qec", &format!("{program} frobnicate"), "/dev/null"]).env("TERM", "xterm-256color");
        command.env_remove("NO_COLOR");
        if no_colour {
            command.env("NO_COLOR", "1");
        }
        Ok(host.output(command)?.exits(2)?.out)
    };
    ensure!(on_terminal(false)?.contains('\x1b'), "no colour on a terminal");
    ensure!(!on_terminal(true)?.contains('\x1b'), "colour in spite of NO_COLOR");
    let said = host.run(&["frobnicate"])?.exits(2)?;
    ensure!(!said.err.contains('\x1b'), "colour in a pipe: {said}");
    Ok(())
}

#[test]
fn interrupting_up_leaves_nothing() -> Result<()> {
    let Some(place) = Place::new()? else { return Ok(()) };
    let host = &place.host;
    // A weftd that never answers.
    let stuck = host.write("stuck", "#!/bin/sh\nexec sleep 60\n")?;
    fs::set_permissions(&stuck, fs::Permissions::from_mode(0o755))?;
    let before = host.traces()?;
    for signal in [Signal::INT, Signal::TERM] {
        let mut command = host.command(&["up", "t.toml"])?;
        command.env("WEFTD", &stuck);
        let mut up = host.node.spawn(command)?;
        eventually(TIMEOUT, || {
            ensure!(host.run_files().contains("weft-a.json"), "{:?}", host.run_files());
            Ok(())
        })?;
        up.signal(signal)?;
        let status = up.wait(TIMEOUT)?;
        ensure!(status.code() == Some(1) && up.log().contains("interrupted"), "{status}: {}", up.log());
        host.is_as(&before)?;
    }
    Ok(())
}

#[test]
fn a_table_from_standard_input_is_read() -> Result<()> {
    let Some(place) = Place::up()? else { return Ok(()) };
    let host = &place.host;
    let mut command = host.command(&["route", "replace", "-"])?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = host.node.run(|| command.spawn())?;
    let table = "[[peer]]\naddr = \"192.0.2.2\"\nroutes = [\"10.60.0.0/16\"]\n";
    child.stdin.take().context("a pipe")?.write_all(table.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{output:?}");
    host.ok(&["route", "get", "10.60.7.7"])?.prints(&["192.0.2.2:8285 by route 10.60.0.0/16"])?;
    Ok(())
}
