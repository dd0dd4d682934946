//! A program on a node: its output, its end.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::{Node, TIMEOUT, eventually, sys};

/// How long a program has to end on SIGTERM before SIGKILL.
const GRACE: Duration = Duration::from_secs(3);

/// A running program. Dropping it ends it: SIGTERM, then SIGKILL after 3 s.
///
/// Its output is then written to standard error, where the test harness keeps it and shows it if the test fails, be it by
/// a panic or by an error. Programs that are not tests ask for [`Process::quiet`].
pub struct Process {
    name: String,
    child: Child,
    log: File,
    quiet: bool,
    /// Last, because the program dies with the thread that holds the node. `None`: this process's own network.
    node: Option<Node>,
}

impl Process {
    /// Sends both outputs of a command to an unnamed file, and gives it no input.
    pub(crate) fn redirect(command: &mut Command) -> Result<File> {
        let log = tempfile::tempfile().context("making a file for the output of a program")?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
        Ok(log)
    }

    pub(crate) fn new(node: Node, name: String, child: Child, log: File) -> Self {
        Self { name, child, log, quiet: false, node: Some(node) }
    }

    /// Starts a program in the network of this process. It dies with the calling thread.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn here(mut command: Command) -> Result<Self> {
        let name = format!("{command:?}");
        let log = Self::redirect(&mut command)?;
        sys::die_with_parent_thread(&mut command);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { name, child, log, quiet: false, node: None })
    }

    /// Keeps its output to itself when it is dropped, unless by a panic.
    pub fn quiet(&mut self) {
        self.quiet = true;
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The host that it runs on, for messages.
    pub fn host(&self) -> &str {
        self.node.as_ref().map_or("this machine", Node::name)
    }

    /// What it has written so far to its standard output and error.
    pub fn log(&self) -> String {
        let mut bytes = vec![0; self.log.metadata().map_or(0, |metadata| metadata.len()) as usize];
        // Reading at a position leaves alone the offset that the program shares.
        let len = self.log.read_at(&mut bytes, 0).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The kernel's, if the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id() as i32).context("a child has a process id")?;
        kill_process(pid, signal).with_context(|| format!("signalling {}", self.name))
    }

    /// Has it stand still, with what it has open, until `SIGCONT`. `SIGSTOP` alone only begins that: threads on other cores go
    /// on for a while.
    ///
    /// # Errors
    /// The kernel's, or if a thread is still running after [`TIMEOUT`].
    pub fn freeze(&self) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        self.signal(Signal::STOP)?;
        eventually(TIMEOUT, || {
            let stopped = waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED | WaitIdOptions::NOHANG)?;
            stopped.map(drop).with_context(|| format!("{} is not stopped", self.name))
        })
    }

    /// Its process id and those of whatever it started, and these started, as far as their parents are alive; parents come first.
    pub fn tree(&self) -> Vec<u32> {
        let mut pids = vec![self.pid()];
        let mut at = 0;
        while let Some(pid) = pids.get(at) {
            // One that is gone by now has none.
            for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
                pids.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
            at += 1;
        }
        pids
    }

    /// Asks all of [`Process::tree`] to end with SIGTERM, and kills those that have not after 3 s: for a program that is a script.
    ///
    /// # Errors
    /// The kernel's.
    pub fn stop_tree(&mut self) -> Result<ExitStatus> {
        // One that has ended has no descendants, and its process id may be another's by now.
        if let Some(status) = self.try_wait()? {
            return Ok(status);
        }
        let started = self.tree().split_off(1);
        let signal = |signal| {
            for pid in started.iter().filter(|pid| is_alive(**pid)).filter_map(|pid| Pid::from_raw(*pid as i32)) {
                // It may have ended just now.
                let _ = kill_process(pid, signal);
            }
        };
        self.signal(Signal::TERM)?;
        signal(Signal::TERM);
        let ended = eventually(GRACE, || match started.iter().find(|pid| is_alive(**pid)) {
            Some(pid) => bail!("process {pid} is running"),
            None => Ok(()),
        });
        if ended.is_err() {
            signal(Signal::KILL);
        }
        self.stop()
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// The kernel's.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If it has not after `timeout`; the error shows its output.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        eventually(timeout, || match self.child.try_wait()? {
            Some(status) => Ok(status),
            None => bail!("{} is running", self.name),
        })
        .with_context(|| format!("its output:\n{}", self.log()))
    }

    /// Asks it to end with SIGTERM, and kills it if it has not after 3 s.
    ///
    /// # Errors
    /// The kernel's.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::TERM)?;
        if let Ok(status) = self.wait(GRACE) {
            return Ok(status);
        }
        self.child.kill()?;
        Ok(self.child.wait()?)
    }
}

/// Neither gone nor a zombie, which has no command line.
fn is_alive(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

impl Drop for Process {
    fn drop(&mut self) {
        let outcome = self.stop();
        if !self.quiet || std::thread::panicking() {
            let status = outcome.map_or_else(|error| format!("{error:#}"), |status| status.to_string());
            eprintln!("--- {} ({status}):\n{}---", self.name, self.log());
        }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Process({} pid {})", self.name, self.child.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell that starts a shell that starts a program, and waits as a script does.
    fn script(inner: &str) -> Process {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("/bin/sh -c '{inner}; :'; :")]);
        let mut process = Process::here(command).unwrap();
        process.quiet();
        process
    }

    fn stops_whole(mut process: Process) {
        let started = eventually(TIMEOUT, || match process.tree() {
            tree if tree.len() == 3 => Ok(tree),
            tree => bail!("{tree:?}"),
        });
        process.stop_tree().unwrap();
        eventually(TIMEOUT, || match started.as_ref().unwrap().iter().find(|pid| is_alive(**pid)) {
            Some(pid) => bail!("{pid} is alive"),
            None => Ok(()),
        })
        .unwrap();
    }

    #[test]
    fn a_script_ends_with_what_it_started() {
        stops_whole(script("sleep 60"));
    }

    #[test]
    fn one_that_does_not_listen_is_killed() {
        stops_whole(script(r#"trap "" TERM; sleep 60"#));
    }
}
