//! Running nft and the programs of iptables. They act on the network namespace of the thread that starts them.

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};
use std::env;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// Longest run of one program, beyond what it waits for a lock. A ruleset of a hundred thousand rules takes seconds.
const RUN_TIMEOUT: Duration = Duration::from_secs(30);
/// Directories that are searched beside those of `PATH`, which a service may have without them.
const SYSTEM_DIRS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not installed.
    #[error("{program} was not found; install the package `{package}`. {without}")]
    Missing {
        /// What was looked for.
        program: String,
        /// The package that has it, by its name in Debian and Alpine.
        package: &'static str,
        /// What becomes of the traffic without it, a sentence.
        without: &'static str,
    },
    /// It could not be run to its end.
    #[error("{command}: {source}")]
    Run {
        /// The command.
        command: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It did not end.
    #[error("{command} did not end within {} s and was killed", RUN_TIMEOUT.as_secs())]
    Stuck {
        /// The command.
        command: String,
    },
    /// It refused.
    #[error("{command} failed ({status}){}", said(.stderr))]
    Failed {
        /// The command.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it wrote to standard error.
        stderr: String,
    },
}

impl ProgramError {
    /// The program said that what was asked for does not exist.
    pub fn is_absence(&self) -> bool {
        matches!(self, ProgramError::Failed { stderr, .. } if stderr.contains("No such file or directory"))
    }
}

fn said(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { "; it said nothing".to_owned() } else { format!(": {}", lines.join("; ")) }
}

/// Where programs are looked for.
#[derive(Clone, Debug)]
pub struct Programs {
    dirs: Vec<PathBuf>,
}

impl Default for Programs {
    /// The directories of `PATH`, then those of the system.
    fn default() -> Programs {
        let path = env::var_os("PATH").unwrap_or_default();
        Programs { dirs: env::split_paths(&path).chain(SYSTEM_DIRS.map(PathBuf::from)).collect() }
    }
}

impl Programs {
    /// These directories and no others.
    pub fn within(dirs: impl IntoIterator<Item = PathBuf>) -> Programs {
        Programs { dirs: dirs.into_iter().collect() }
    }

    /// Where `program` is.
    pub fn find(&self, program: &str) -> Option<PathBuf> {
        self.dirs.iter().map(|dir| dir.join(program)).find(|path| path.is_file())
    }

    /// Runs a program to its end, with `input` on its standard input; gives its standard output.
    ///
    /// # Errors
    /// It fails, or cannot be run, or does not end in time.
    pub fn run(&self, path: &Path, arguments: &[&str], input: &str) -> Result<String, ProgramError> {
        let shown = || format!("{} {}", path.display(), arguments.join(" "));
        let failed = |source| ProgramError::Run { command: shown(), source };
        // iptables runs helpers, and looks for them where it was found itself.
        let search: OsString = env::join_paths(&self.dirs).unwrap_or_default();
        let mut child = Command::new(path)
            .args(arguments)
            .env("PATH", search)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (mut stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let outcome = thread::scope(|scope| {
            let out = scope.spawn(move || read(stdout));
            let err = scope.spawn(move || read(stderr));
            if let Some(stdin) = &mut stdin {
                // A program that ends without reading everything tells why by its status.
                let _ = stdin.write_all(input.as_bytes());
            }
            drop(stdin);
            let ended = wait(&mut child);
            let [out, err] = [out, err].map(|reader| reader.join().unwrap_or_default());
            ended.map(|status| (status, out, err))
        });
        let (status, out, stderr) = outcome.map_err(failed)?;
        match status {
            None => Err(ProgramError::Stuck { command: shown() }),
            Some(status) if status.success() => Ok(out),
            Some(status) => Err(ProgramError::Failed { command: shown(), status, stderr }),
        }
    }
}

fn read(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    // What a broken pipe held back is missed by the reader of the text, which says so better than this could.
    let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for the end; `None`: it was killed because it did not come.
fn wait(child: &mut Child) -> io::Result<Option<std::process::ExitStatus>> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("a process id that is none"))?;
    let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let limit = Timespec { tv_sec: RUN_TIMEOUT.as_secs() as i64, tv_nsec: 0 };
    let ready = loop {
        match rustix::event::poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit)) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    if ready == 0 {
        child.kill()?;
        child.wait()?;
        return Ok(None);
    }
    child.wait().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_reads_its_input_and_its_failure_is_quoted() {
        let programs = Programs::default();
        let sh = programs.find("sh").unwrap();
        assert_eq!(programs.run(&sh, &["-c", "cat"], "text").unwrap(), "text");
        let error = programs.run(&sh, &["-c", "echo broken >&2; exit 3"], "").unwrap_err().to_string();
        assert!(error.ends_with("failed (exit status: 3): broken"), "{error}");
    }

    #[test]
    fn long_input_and_long_output_do_not_block_each_other() {
        let programs = Programs::default();
        let text = "0123456789abcdef".repeat(1 << 16);
        assert_eq!(programs.run(&programs.find("cat").unwrap(), &[], &text).unwrap().len(), text.len());
    }

    #[test]
    fn only_the_given_directories_are_searched() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Programs::within([dir.path().to_path_buf()]).find("sh"), None);
    }
}
