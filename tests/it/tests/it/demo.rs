//! `weft demo`: what it says, what it exits with, and that it leaves nothing behind however it ends.
//!
//! ```text
//!   host a u0 ---- veth ---- u0 host b        both hosts, the cable and everything on them are made by the demo itself
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use weft_lab::{eventually, require_root, weft_binary};

/// How long a demo may take to get anywhere on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A running demo with a temporary directory of its own.
struct Demo {
    child: Child,
    /// What it says on standard error.
    log: tempfile::NamedTempFile,
    directory: tempfile::TempDir,
}

impl Demo {
    /// Starts it with short measurements.
    fn start() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("weft-demo-test-").tempdir()?;
        let mut command = Command::new(weft_binary()?);
        command.args(["demo", "--json", "--quick", "--seconds", "0.1"]).env("TMPDIR", directory.path());
        let log = tempfile::NamedTempFile::new()?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.reopen()?);
        Ok(Self { child: command.spawn()?, log, directory })
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The process id of the weftd of a host, as `weft up` recorded it.
    fn weftd(&self, host: &str) -> Result<u32> {
        let lab = entries(self.directory.path())?.pop().context("the demo has no directory")?;
        let state: Value = serde_json::from_slice(&fs::read(lab.join(format!("run/weft-{host}.json")))?)?;
        Ok(state["weftd"]["pid"].as_u64().context("no process id")?.try_into()?)
    }

    fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.log.path())?)
    }

    /// Waits for its end: the object on standard output, the exit code, and what it said on standard error.
    fn end(self) -> Result<(Value, Option<i32>, String)> {
        let output = self.child.wait_with_output()?;
        let log = fs::read_to_string(self.log.path())?;
        let left = entries(self.directory.path())?;
        ensure!(left.is_empty(), "the demo left {left:?}; it said:\n{log}");
        let object = serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON; it said:\n{log}"))?;
        Ok((object, output.status.code(), log))
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Every element of an array has this field true.
fn all(object: &Value, array: &str, field: &str) -> bool {
    object[array].as_array().is_some_and(|elements| elements.iter().all(|element| element[field] == true))
}

#[test]
fn a_quick_demo_succeeds_and_its_json_and_exit_code_agree() -> Result<()> {
    if !require_root() {
        return Ok(());
    }
    let (object, code, log) = Demo::start()?.end()?;
    assert_eq!((&object["ok"], code), (&Value::Bool(true), Some(0)), "{:#}", object["failures"]);
    let count = |array: &str| object[array].as_array().map_or(0, Vec::len);
    assert_eq!((count("hosts"), count("pings"), count("transfers"), count("measurements")), (2, 4, 4, 42));
    assert!(all(&object, "pings", "ok") && all(&object, "transfers", "ok") && all(&object, "measurements", "measured"));
    for transfer in object["transfers"].as_array().context("transfers")? {
        assert!(transfer["sha256_sent"].is_string());
        assert_eq!(transfer["sha256_sent"], transfer["sha256_received"]);
    }
    for host in object["hosts"].as_array().context("hosts")? {
        let pid = host["weftd"]["pid"].as_u64().context("pid")?;
        assert!(!exists(pid.try_into()?), "weftd, process {pid}, is still there");
    }
    assert!(!log.contains('\x1b'), "escape sequences without a terminal");
    Ok(())
}

/// Interrupts a demo once `condition` holds of it.
fn interrupted_when(signal: Signal, condition: impl Fn(&Demo) -> Result<Vec<u32>>) -> Result<()> {
    let demo = Demo::start()?;
    let pids = eventually(TIMEOUT, || condition(&demo))?;
    kill_process(demo.pid(), signal)?;
    let (object, code, _) = demo.end()?;
    // It did not go on to its end before it stopped.
    ensure!(object["measurements"].as_array().is_some_and(Vec::is_empty), "{object:#}");
    ensure!(object["ok"] == false && object["interrupted"] == true, "{object:#}");
    ensure!(code == Some(1), "{code:?}");
    match pids.into_iter().find(|pid| exists(*pid)) {
        Some(pid) => bail!("weftd, process {pid}, is still there"),
        None => Ok(()),
    }
}

#[test]
fn a_demo_interrupted_between_its_hosts_leaves_nothing_behind() -> Result<()> {
    if !require_root() {
        return Ok(());
    }
    interrupted_when(Signal::TERM, |demo| Ok(vec![demo.weftd("a")?]))
}

#[test]
fn a_demo_interrupted_while_it_measures_leaves_nothing_behind() -> Result<()> {
    if !require_root() {
        return Ok(());
    }
    interrupted_when(Signal::INT, |demo| {
        ensure!(demo.log()?.contains("round 1"), "it does not measure yet");
        Ok(vec![demo.weftd("a")?, demo.weftd("b")?])
    })
}

#[test]
fn a_demo_whose_weftd_is_killed_fails_says_so_and_leaves_nothing_behind() -> Result<()> {
    if !require_root() {
        return Ok(());
    }
    let demo = Demo::start()?;
    let victim = eventually(TIMEOUT, || {
        demo.weftd("b")?;
        demo.weftd("a")
    })?;
    kill_process(Pid::from_raw(victim.try_into()?).context("a process id")?, Signal::KILL)?;
    let (object, code, _) = demo.end()?;
    assert_eq!((&object["ok"], code), (&Value::Bool(false), Some(1)));
    assert_eq!(object["interrupted"], false);
    assert!(object["failures"].as_array().is_some_and(|failures| !failures.is_empty()), "{object:#}");
    Ok(())
}

#[test]
fn a_demo_that_is_killed_leaves_no_weftd_behind() -> Result<()> {
    if !require_root() {
        return Ok(());
    }
    let mut demo = Demo::start()?;
    let pids = eventually(TIMEOUT, || Ok([demo.weftd("a")?, demo.weftd("b")?]))?;
    demo.child.kill()?;
    demo.child.wait()?;
    eventually(TIMEOUT, || match pids.into_iter().find(|pid| exists(*pid)) {
        Some(pid) => bail!("weftd, process {pid}, is still there"),
        None => Ok(()),
    })
}
