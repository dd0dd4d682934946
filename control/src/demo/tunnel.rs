//! One end of the tunnel, brought up and taken down by the commands that a person types.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, WaitOptions};
use weft_lab::measure::{Stop, Stopped};
use weft_lab::{Node, Process};
use weft_proto::StatusReport;

use crate::client::Client;
use crate::state::{Paths, RUN_DIR_VARIABLE};
use crate::tunnel::{TunnelError, take_down};

/// The run directory of the demo's tunnels, within its own.
pub const RUN: &str = "run";
/// Longest wait for weftd's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a command is asked whether it has ended.
const POLL: Duration = Duration::from_millis(10);

/// A tunnel file on a host, and the tunnel that it describes. Dropping it takes the tunnel down.
#[derive(Debug)]
pub struct Tunnel {
    node: Node,
    /// Where the tunnel file is; commands run there.
    directory: PathBuf,
    /// Name of the tunnel file.
    file: String,
    run_dir: PathBuf,
    paths: Paths,
    may_be_up: bool,
}

/// A command that was run on a host.
#[derive(Debug, Clone)]
pub struct Ran {
    /// As a person would type it.
    pub command: String,
    /// What it said.
    pub said: String,
}

impl Tunnel {
    /// Writes the tunnel file `NAME.toml` into `directory`, an absolute path; the run directory is there, too.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(node: &Node, directory: &Path, name: &str, text: &str) -> Result<Self> {
        let file = format!("{name}.toml");
        let path = directory.join(&file);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        let run_dir = directory.join(RUN);
        let paths = Paths::new(&run_dir, name);
        Ok(Self { node: node.clone(), directory: directory.to_path_buf(), file, run_dir, paths, may_be_up: false })
    }

    /// The tunnel file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn file(&self) -> Result<Ran> {
        let said = fs::read_to_string(self.directory.join(&self.file))?;
        Ok(Ran { command: format!("cat {}", self.file), said })
    }

    /// `weft up FILE` on the host.
    ///
    /// # Errors
    /// If it fails, with what it said, or [`Stopped`].
    pub fn up(&mut self, stop: &Stop) -> Result<Ran> {
        self.may_be_up = true;
        self.weft("up", stop)
    }

    /// `weft down FILE` on the host.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub fn down(&mut self) -> Result<Ran> {
        // Cleaning up is not interrupted.
        let weftd = self.weftd();
        let ran = self.weft("down", &Stop::default())?;
        self.may_be_up = false;
        collect(weftd);
        Ok(ran)
    }

    /// What weftd says about itself.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn status(&self) -> Result<StatusReport> {
        let status = Client::connect(self.paths.socket(), ANSWER_TIMEOUT).and_then(|mut client| client.status());
        // The text of a client's error includes that of its source.
        status.map_err(|error| anyhow!("{error}"))
    }

    /// Runs this executable: the demo belongs to the `weft` binary.
    fn weft(&self, verb: &str, stop: &Stop) -> Result<Ran> {
        let mut command = Command::new(std::env::current_exe().context("finding the path of weft")?);
        command.arg(verb).arg(&self.file).current_dir(&self.directory).env(RUN_DIR_VARIABLE, &self.run_dir);
        let mut process = self.node.spawn(command)?;
        process.quiet();
        let command = format!("weft {verb} {}", self.file);
        let status = end_of(&mut process, stop)?;
        let said = process.log().trim_end().to_owned();
        if !status.success() {
            bail!("`{command}` on host {} failed ({status}): {said}", self.node.name());
        }
        Ok(Ran { command, said })
    }

    /// The process id of weftd, if it was started.
    fn weftd(&self) -> Option<Pid> {
        let state = self.paths.read_state().ok()??;
        Pid::from_raw(i32::try_from(state.weftd.pid).ok()?)
    }

    fn clear(&self) -> Result<(), TunnelError> {
        let lock = self.paths.take_lock()?;
        take_down(&self.paths, self.paths.read_state()?.as_ref())?;
        Ok(self.paths.remove(lock)?)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if !self.may_be_up {
            return;
        }
        let weftd = self.weftd();
        let outcome = self.node.run(|| self.clear());
        collect(weftd);
        if let Err(error) = outcome {
            tracing::error!("host {}: the tunnel could not be taken down: {error}", self.node.name());
        }
    }
}

/// Makes this process the parent of every weftd once the `weft up` that started it has ended, so that a dead one does not
/// stay in the process table where nobody else collects it (a container without an init).
///
/// # Errors
/// The kernel's.
pub fn adopt_orphans() -> Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Collects a weftd that has ended.
fn collect(weftd: Option<Pid>) {
    if let Some(pid) = weftd {
        // It is none of ours if `weft up` could not be interrupted in time; then somebody else collects it.
        let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

/// Waits for the end of a command. An interrupted one is asked to end, and given the time to undo what it did.
fn end_of(process: &mut Process, stop: &Stop) -> Result<ExitStatus> {
    loop {
        if let Some(status) = process.try_wait()? {
            return Ok(status);
        }
        if stop.is_raised() {
            process.stop()?;
            return Err(Stopped.into());
        }
        std::thread::sleep(POLL);
    }
}
