//! The `weft` program on a node, as a person types it, with a directory of its own for what it keeps.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use weft_client::Client;
use weft_control::state::{self, State};
use weft_lab::{Lab, Node, Process, TIMEOUT, eventually, weft_binary, weftd_binary};
use weft_netlink::RouteFilter;

/// A host on which `weft` is run. Dropping it ends every process that is left on the node: `weft` starts weftd so that it
/// outlives its parents, a failing test among them.
#[derive(Debug)]
pub struct Weft {
    /// Where it runs. Nothing else of the test may have processes there when this is dropped.
    pub node: Node,
    /// Holds tunnel files, and `run`.
    directory: PathBuf,
    /// Does what dropping this does, should the test be killed.
    executor: Child,
}

impl Weft {
    /// `weft` on `node`, with a directory below that of the lab, which any user may look into.
    pub fn new(lab: &Lab, node: &Node) -> Result<Self> {
        let directory = lab.directory().join(node.name());
        fs::create_dir(&directory)?;
        fs::set_permissions(lab.directory(), fs::Permissions::from_mode(0o755))?;
        Ok(Self { node: node.clone(), directory, executor: executor(node.inode()?)? })
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes a file into its directory.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Where tunnels keep socket, log and state (`--run-dir`).
    pub fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// What is in the run directory; nothing, if there is none.
    pub fn run_files(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.run_dir()).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// `weft` with these arguments, in its directory, without anything of the tester's environment that it heeds.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Result<Command> {
        let mut command = Command::new(weft_binary()?);
        command.args(arguments).current_dir(&self.directory).env("WEFTD", weftd_binary()?);
        command.env("WEFT_RUN_DIR", self.run_dir());
        for heeded in ["RUST_LOG", "WEFT_SOCKET", "JOURNAL_STREAM", "COLUMNS", "NO_COLOR"] {
            command.env_remove(heeded);
        }
        Ok(command)
    }

    /// Runs a command on the node to its end.
    pub fn output(&self, mut command: Command) -> Result<Said> {
        let shown = format!("{command:?} on {}", self.node.name());
        command.stdin(Stdio::null());
        let Output { status, stdout, stderr } = self.node.run(|| command.output()).with_context(|| shown.clone())?;
        let [out, err] = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(Said { command: shown, code: status.code(), out, err })
    }

    /// Runs `weft` to its end.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Result<Said> {
        self.output(self.command(arguments)?)
    }

    /// Runs `weft` to its end, which is a success.
    pub fn ok<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Result<Said> {
        self.run(arguments)?.exits(0)
    }

    /// Runs `weft` to its end and reads the JSON that it prints.
    pub fn json<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Result<Value> {
        self.ok(arguments)?.json()
    }

    /// Starts `weft` and lets it run.
    pub fn spawn<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Result<Process> {
        self.node.spawn(self.command(arguments)?)
    }

    /// Starts `weft run --config FILE` and waits until the tunnel `name` is up.
    pub fn follow(&self, file: &Path, name: &str) -> Result<Process> {
        let mut process = self.spawn(&["run".as_ref(), "--config".as_ref(), file.as_os_str()])?;
        eventually(TIMEOUT, || {
            ensure!(process.try_wait()?.is_none(), "`weft run` has ended:\n{}", process.log());
            let log = process.log();
            ensure!(log.contains("started weftd") || log.contains("adopting weftd"), "not up yet:\n{log}");
            self.client(name).map(drop)
        })?;
        Ok(process)
    }

    /// Connects to the weftd of a tunnel.
    pub fn client(&self, name: &str) -> Result<Client> {
        Ok(Client::connect(self.socket(name), TIMEOUT)?)
    }

    /// The control socket of a tunnel's weftd.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.run_dir().join(format!("{name}.sock"))
    }

    /// The state of a tunnel that is up.
    pub fn state(&self, name: &str) -> Result<State> {
        let found = state::all(&self.run_dir()).into_iter().find(|state| state.name == name);
        found.with_context(|| format!("no state of a tunnel {name} in {}", self.run_dir().display()))
    }

    /// Process id of a tunnel's weftd.
    pub fn weftd_pid(&self, name: &str) -> Result<u32> {
        Ok(self.state(name)?.weftd.pid)
    }

    /// Kills a tunnel's weftd outright and waits until it is gone, and its device too unless a successor has it.
    pub fn kill_weftd(&self, name: &str) -> Result<u32> {
        let state = self.state(name)?;
        kill(state.weftd.pid)?;
        let tun = state.tun.context("weftd told its device")?;
        let mut netlink = self.node.netlink()?;
        eventually(TIMEOUT, || {
            ensure!(state.weftd.handle().is_none(), "weftd is alive");
            // A successor may have made a device of the same name by now, under another index, or have attached to this one
            // while the kernel was still taking it apart.
            let succeeded = self.weftd_pid(name).is_ok_and(|pid| pid != state.weftd.pid);
            let gone = netlink.link(tun.ifindex)?.is_none_or(|link| link.name != tun.name);
            ensure!(gone || succeeded, "the device is there");
            Ok(())
        })?;
        Ok(state.weftd.pid)
    }

    /// Process ids of everything that runs on the node.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let namespace = self.node.inode()?;
        let pids = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        // A process that is gone by now, or a dead one that nobody collected yet, has no namespace.
        let is_here = |pid: &u32| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|file| file.ino() == namespace);
        Ok(pids.filter(is_here).collect())
    }

    /// What of the node a tunnel could change: links, addresses, routes, processes, and files of the run directory.
    pub fn traces(&self) -> Result<BTreeSet<String>> {
        let mut netlink = self.node.netlink()?;
        let mut traces: BTreeSet<String> = netlink
            .links()?
            .iter()
            .map(|link| format!("link {} {} mtu {} up {}", link.index, link.name, link.mtu, link.up))
            .collect();
        traces.extend(netlink.addresses(None)?.iter().map(|address| format!("{address:?}")));
        traces.extend(
            netlink
                .routes(&RouteFilter { table: None, ..RouteFilter::default() })?
                .iter()
                .map(|route| format!("{route:?}")),
        );
        traces.extend(self.processes()?.iter().map(|pid| format!("process {pid}")));
        traces.extend(self.run_files().into_iter().map(|name| format!("file {name}")));
        if self.run_dir().exists() {
            traces.insert("run directory".into());
        }
        Ok(traces)
    }

    /// Waits until the node is as it was when `before` was taken.
    pub fn is_as(&self, before: &BTreeSet<String>) -> Result<()> {
        eventually(TIMEOUT, || {
            let now = self.traces()?;
            let left: Vec<_> = now.difference(before).collect();
            let lost: Vec<_> = before.difference(&now).collect();
            ensure!(
                left.is_empty() && lost.is_empty(),
                "{}: left behind: {left:#?}; lost: {lost:#?}",
                self.node.name()
            );
            Ok(())
        })
    }
}

/// Starts a shell, out of reach of what ends this test, that waits for the end of this process and then kills whatever is
/// in a network namespace.
fn executor(namespace: u64) -> Result<Child> {
    let script = format!(
        "read _; for pid in /proc/[0-9]*; do [ \"$(readlink $pid/ns/net)\" = 'net:[{namespace}]' ] && \
         kill -9 ${{pid#/proc/}}; done"
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    shell.spawn().context("starting a shell")
}

impl Drop for Weft {
    fn drop(&mut self) {
        // Fails only if somebody else ended it.
        let _ = self.executor.kill().and_then(|()| self.executor.wait());
        for pid in self.processes().unwrap_or_default() {
            // Fails only if it is gone.
            let _ = kill(pid);
        }
    }
}

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Said {
    command: String,
    /// Exit code; none after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// Success if the exit code is this one and nothing panicked.
    pub fn exits(self, code: i32) -> Result<Self> {
        ensure!(!self.err.contains("panicked"), "a panic: {self}");
        ensure!(self.code == Some(code), "expected exit code {code}: {self}");
        Ok(self)
    }

    /// Success if standard error holds each of these texts.
    pub fn says(self, texts: &[&str]) -> Result<Self> {
        for text in texts {
            ensure!(self.err.contains(text), "expected {text:?} on standard error: {self}");
        }
        Ok(self)
    }

    /// Success if standard output holds each of these texts.
    pub fn prints(self, texts: &[&str]) -> Result<Self> {
        for text in texts {
            ensure!(self.out.contains(text), "expected {text:?} on standard output: {self}");
        }
        Ok(self)
    }

    /// Standard output as one JSON value.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("no JSON: {self}"))
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { command, code, out, err } = self;
        write!(f, "{command} exited with {code:?}\n--- stdout\n{out}--- stderr\n{err}---")
    }
}

/// Kills a process outright.
pub fn kill(pid: u32) -> Result<()> {
    let pid = Pid::from_raw(pid.try_into()?).context("a process id")?;
    kill_process(pid, Signal::KILL).with_context(|| format!("killing process {pid:?}"))
}
