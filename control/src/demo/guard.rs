//! Who ends the weftd of a demo that was killed and could not do so itself: a process that waits for the demo's end.

use std::io;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::{env, os::unix::process::CommandExt};

use anyhow::{Context, Result};

use super::tunnel::RUN;
use crate::daemon;
use crate::state::{self, Paths};

/// The demo's end of a pipe to its guard, which is closed when the demo ends, however it ends. Dropping it ends the guard.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Guard {
    /// Starts the guard of a demo whose tunnels are in `directory`. It is not in the demo's process group, so that Ctrl-C does not
    /// reach it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(directory: &Path) -> Result<Guard> {
        let mut command = Command::new(env::current_exe().context("finding the path of weft")?);
        command.args(["demo", "--guard"]).arg(directory);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut child = command.spawn().context("starting who cleans up if the demo is killed")?;
        let pipe = child.stdin.take();
        Ok(Guard { child, pipe })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.pipe.take());
        // It has nothing to do but look.
        let _ = self.child.wait();
    }
}

/// What the guard does: waits for the end of its standard input, then ends each weftd that is still there. Network namespaces, and what
/// is in them, go with their last process.
///
/// # Errors
/// If a weftd does not end even when killed.
pub fn watch(directory: &Path) -> Result<()> {
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    let run_dir = directory.join(RUN);
    for state in state::all(&run_dir) {
        if let Some(weftd) = state.weftd.handle() {
            daemon::end(&weftd, &Paths::new(&run_dir, &state.name).socket())?;
        }
    }
    Ok(())
}
