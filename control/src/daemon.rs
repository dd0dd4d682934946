//! weftd as a process: where it is, how it is started so that it outlives weft, how it is found again and ended.

use crate::causes;
use crate::client::{Client, ClientError};
use crate::config::{SourcePorts, Tunnel};
use crate::state::Paths;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Environment variable that names the weftd to start.
pub const WEFTD_VARIABLE: &str = "WEFTD";
/// Longest wait for a new weftd to answer: it allocates its pools and probes the kernel first.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a new weftd is asked whether it is there.
const READY_POLL: Duration = Duration::from_millis(10);
/// Longest wait for one answer of a weftd that may be stuck.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for the end after a drain (weftd gives its workers 5 s), and after SIGTERM.
const END_TIMEOUT: Duration = Duration::from_secs(7);
/// Longest wait for the end after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// Length in bytes from which a log is begun anew at the next start.
const LOG_LEN_MAX: u64 = 1 << 20;
/// Line that separates one weftd's log from the next one's.
const LOG_MARK: &str = "=== weft starts weftd ===";
/// Lines of weftd's own log that an error quotes.
const LOG_LINES_QUOTED: usize = 8;

/// What went wrong with the process.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// No executable.
    #[error("weftd was not found: looked at {looked_at}")]
    NotFound {
        /// The places.
        looked_at: String,
    },
    /// It could not be executed.
    #[error("{program}: cannot be started: {source}")]
    Start {
        /// What was to be executed.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It ended before it was ready.
    #[error("weftd ended at once ({status}){}", quoted(.log))]
    Ended {
        /// Exit status.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// It is there and does not answer.
    #[error("weftd does not answer within {} s: {why}{}", READY_TIMEOUT.as_secs(), quoted(.log))]
    Silent {
        /// Why the last attempt failed.
        why: String,
        /// The end of its log.
        log: String,
    },
    /// It does not end.
    #[error("weftd, process {pid}, does not end")]
    Stuck {
        /// Its process id.
        pid: u32,
    },
    /// Something about the process could not be read or done.
    #[error("process {pid}: {source}")]
    Process {
        /// Its process id.
        pid: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The caller asked to stop waiting.
    #[error("interrupted")]
    Interrupted,
}

/// A log as a part of a sentence.
pub fn quoted(log: &str) -> String {
    let lines: String =
        log.lines().map(|line| format!("\n  weftd: {}", line.strip_prefix("weftd: ").unwrap_or(line))).collect();
    if lines.is_empty() { "; it said nothing".to_owned() } else { format!("; it said:{lines}") }
}

/// A process, told apart from a later one with the same id by its start time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot (proc_pid_stat(5), field 22).
    pub start_ticks: u64,
    /// Its executable, links resolved.
    pub program: PathBuf,
}

/// A handle on a living process that cannot come to mean another one.
#[derive(Debug)]
pub struct ProcessHandle {
    pid: u32,
    fd: OwnedFd,
}

/// Finds weftd: `$WEFTD`, beside this executable, in `$PATH`.
pub fn find() -> Result<PathBuf, DaemonError> {
    let usable = |candidate: &Path| candidate.canonicalize().ok().filter(|path| path.is_file());
    if let Some(named) = env::var_os(WEFTD_VARIABLE) {
        let looked_at = format!("{}, which {WEFTD_VARIABLE} names", named.display());
        return usable(Path::new(&named)).ok_or(DaemonError::NotFound { looked_at });
    }
    let beside = env::current_exe().ok().map(|own| own.with_file_name("weftd"));
    let path = env::var_os("PATH").unwrap_or_default();
    let found = beside.iter().cloned().chain(env::split_paths(&path).map(|dir| dir.join("weftd")));
    let mut found = found.filter_map(|candidate| usable(&candidate));
    found.next().ok_or_else(|| DaemonError::NotFound {
        looked_at: format!("{} and in PATH", beside.unwrap_or_default().display()),
    })
}

/// weftd's arguments for a tunnel, without `--mtu`.
pub fn arguments(tunnel: &Tunnel, socket: &Path) -> Vec<String> {
    let dataplane = &tunnel.dataplane;
    let mut arguments: Vec<String> = Vec::new();
    let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    option("--tun", tunnel.tun.clone());
    option("--bind", tunnel.listen.to_string());
    option("--socket", socket.display().to_string());
    option("--engine", dataplane.engine.word().to_owned());
    option("--opener", dataplane.opener.word().to_owned());
    option("--peer-check", dataplane.peer_check.word().to_owned());
    if let Some(workers) = dataplane.workers {
        option("--workers", workers.to_string());
    }
    if let Some(spin_us) = dataplane.spin_us {
        option("--spin-us", spin_us.to_string());
    }
    if dataplane.source_ports != SourcePorts::Same {
        option("--source-ports", dataplane.source_ports.word().to_owned());
    }
    let switches = [
        ("--no-udp-gso", dataplane.udp_gso),
        ("--no-udp-gro", dataplane.udp_gro),
        ("--no-tun-tso", dataplane.tun_tso),
        ("--no-tun-uso", dataplane.tun_uso),
        ("--no-backpressure", dataplane.backpressure),
        ("--no-sparse-lane", dataplane.sparse_lane),
    ];
    arguments.extend(switches.iter().filter(|(_, on)| !on).map(|(flag, _)| (*flag).to_owned()));
    arguments
}

/// The settings in which two argument lists of weftd differ, a phrase each, by their keys in the tunnel file.
pub fn differences(in_force: &[String], wanted: &[String]) -> Vec<String> {
    let (in_force, wanted) = (settings(in_force), settings(wanted));
    let keys: BTreeSet<&String> = in_force.keys().chain(wanted.keys()).collect();
    let value = |settings: &BTreeMap<String, String>, key: &str| {
        settings.get(key).cloned().unwrap_or_else(|| "the default".to_owned())
    };
    keys.into_iter()
        .filter(|key| in_force.get(*key) != wanted.get(*key))
        .map(|key| format!("{key} ({} in force, {} wanted)", value(&in_force, key), value(&wanted, key)))
        .collect()
}

/// Arguments of weftd as keys and values of the tunnel file.
fn settings(arguments: &[String]) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let mut rest = arguments.iter();
    while let Some(flag) = rest.next() {
        let name = flag.trim_start_matches('-').replace('-', "_");
        let (key, value) = match (flag.as_str(), name.strip_prefix("no_")) {
            (_, Some(switch)) => (format!("dataplane.{switch}"), "false".to_owned()),
            ("--tun" | "--socket", _) => (name, rest.next().cloned().unwrap_or_default()),
            ("--bind", _) => ("listen".to_owned(), rest.next().cloned().unwrap_or_default()),
            _ => (format!("dataplane.{name}"), rest.next().cloned().unwrap_or_default()),
        };
        settings.insert(key, value);
    }
    settings
}

/// Starts weftd in a session of its own, with its standard error in the tunnel's log, so that neither the end of weft nor
/// that of the terminal reaches it. The socket of a dead predecessor is removed first.
///
/// The session is made by a second incarnation of this executable (see [`exec_in_own_session`]), because std can start
/// no process in a new session and this crate has no unsafe code; so it works from the `weft` binary only.
pub fn start(program: &Path, arguments: &[String], mtu: u32, paths: &Paths) -> Result<(Child, Process), DaemonError> {
    let failed = |source| DaemonError::Start { program: program.to_path_buf(), source };
    let log = open_log(&paths.log()).map_err(failed)?;
    if Client::connect(paths.socket(), ANSWER_TIMEOUT).is_err() {
        let _ = fs::remove_file(paths.socket());
    }
    let child = Command::new("/proc/self/exe")
        .arg(EXEC_COMMAND)
        .arg(program)
        .args(arguments)
        .args(["--mtu", &mtu.to_string()])
        .env("NO_COLOR", "1")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(failed)?;
    let start_ticks = start_ticks(child.id()).map_err(failed)?;
    let process = Process { pid: child.id(), start_ticks, program: program.to_path_buf() };
    Ok((child, process))
}

/// The hidden command of `weft` by which [`start`] makes the session.
pub const EXEC_COMMAND: &str = "exec-in-own-session";

/// Leaves the caller's session and becomes `program`. Returns only if that fails.
pub fn exec_in_own_session(program: &Path, arguments: &[std::ffi::OsString]) -> io::Error {
    use std::os::unix::process::CommandExt;
    if let Err(error) = rustix::process::setsid() {
        return error.into();
    }
    Command::new(program).args(arguments).exec()
}

/// Waits until a new weftd answers on its control socket.
pub fn wait_ready(child: &mut Child, paths: &Paths, interrupted: &dyn Fn() -> bool) -> Result<Client, DaemonError> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let socket = paths.socket();
        let why = match Client::connect(&socket, ANSWER_TIMEOUT) {
            Ok(client) if client.hello().pid == child.id() => return Ok(client),
            Ok(client) => format!("at {} answers process {}", socket.display(), client.hello().pid),
            Err(ClientError::Unreachable { source, .. }) => format!("{}: {source}", socket.display()),
            Err(error) => causes::text(&error),
        };
        if let Ok(Some(status)) = child.try_wait() {
            return Err(DaemonError::Ended { status, log: log_tail(&paths.log()) });
        }
        if interrupted() {
            return Err(DaemonError::Interrupted);
        }
        if Instant::now() >= deadline {
            return Err(DaemonError::Silent { why, log: log_tail(&paths.log()) });
        }
        std::thread::sleep(READY_POLL);
    }
}

impl Process {
    /// A process that runs, as it is found.
    pub fn of(pid: u32) -> Result<Process, DaemonError> {
        let read = |source| DaemonError::Process { pid, source };
        Ok(Process { pid, start_ticks: start_ticks(pid).map_err(read)?, program: program_of(pid).map_err(read)? })
    }

    /// A handle on this very process, if it lives: same id, same start time, same executable.
    pub fn handle(&self) -> Option<ProcessHandle> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        // First the handle, then the look: what is seen afterwards is the process that the handle means.
        let fd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let is_same = start_ticks(self.pid).ok()? == self.start_ticks && program_of(self.pid).ok()? == self.program;
        let handle = ProcessHandle { pid: self.pid, fd };
        (is_same && !handle.has_ended()).then_some(handle)
    }
}

impl ProcessHandle {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The descriptor, readable once the process has ended.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    fn has_ended(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits for the end; false: it still lives.
    fn wait(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match rustix::event::poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&timeout)) {
                Ok(count) => return count > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // Fails only if the process is gone, which is what the caller waits for.
        let _ = rustix::process::pidfd_send_signal(&self.fd, signal);
    }
}

/// Ends weftd: drains it through its control socket, or failing that by SIGTERM, or failing that by SIGKILL. Returns how.
pub fn end(handle: &ProcessHandle, socket: &Path) -> Result<&'static str, DaemonError> {
    let drained = Client::connect(socket, ANSWER_TIMEOUT)
        .ok()
        .filter(|client| client.hello().pid == handle.pid)
        .is_some_and(|mut client| client.drain().is_ok());
    if drained && handle.wait(END_TIMEOUT) {
        return Ok("drained");
    }
    handle.signal(Signal::TERM);
    if handle.wait(END_TIMEOUT) {
        return Ok("ended by SIGTERM, because it did not answer");
    }
    handle.signal(Signal::KILL);
    if handle.wait(KILL_TIMEOUT) {
        return Ok("killed, because it neither answered nor ended");
    }
    Err(DaemonError::Stuck { pid: handle.pid })
}

/// Ends a child that [`end`] did not recognise, such as one that is still on its way to being weftd, and collects it.
pub fn end_child(mut child: Child) {
    if matches!(child.try_wait(), Ok(None)) {
        // Both fail only if the child is gone.
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_ticks(&stat).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable /proc/PID/stat"))
}

/// Field 22. The second field, the command in parentheses, may hold spaces and parentheses.
fn parse_start_ticks(stat: &str) -> Option<u64> {
    let (_, after_command) = stat.rsplit_once(") ")?;
    after_command.split(' ').nth(22 - 3)?.parse().ok()
}

/// The executable of a process; one that was replaced on disk since keeps its name.
fn program_of(pid: u32) -> io::Result<PathBuf> {
    let link = fs::read_link(format!("/proc/{pid}/exe"))?;
    Ok(match link.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(text) => PathBuf::from(text),
        None => link,
    })
}

/// Opens the log behind what an earlier weftd said, whose end may be what somebody wants to know about.
fn open_log(path: &Path) -> io::Result<fs::File> {
    let mut log = fs::OpenOptions::new().create(true).append(true).open(path)?;
    if log.metadata()?.len() > LOG_LEN_MAX {
        log.set_len(0)?;
    }
    writeln!(log, "{LOG_MARK}")?;
    Ok(log)
}

/// The last lines that the latest weftd wrote to the log.
pub fn log_tail(path: &Path) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let text = text.rsplit_once(LOG_MARK).map_or(text.as_str(), |(_, latest)| latest);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LOG_LINES_QUOTED)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn arguments_name_what_the_file_says_and_leave_the_rest_to_weftd() {
        let text = "address = \"10.9.0.1/24\"\n[dataplane]\nworkers = 2\nsource_ports = \"spread\"\ntun_uso = false\n";
        let tunnel = config::parse("t.toml", "office", text, &|_| false).unwrap().tunnel;
        let arguments = arguments(&tunnel, Path::new("/run/weft/office.sock")).join(" ");
        let expected = "--tun office --bind 0.0.0.0:8285 --socket /run/weft/office.sock --engine auto --opener native \
                        --peer-check strict --workers 2 --source-ports spread --no-tun-uso";
        assert_eq!(arguments, expected);
    }

    #[test]
    fn settings_that_differ_are_called_as_in_the_tunnel_file() {
        let of = |text: &str| {
            let text = format!("address = \"10.9.0.1/24\"\n{text}");
            let tunnel = config::parse("t.toml", "office", &text, &|_| false).unwrap().tunnel;
            arguments(&tunnel, Path::new("/run/weft/office.sock"))
        };
        let wanted = of("listen = \"0.0.0.0:9000\"\n[dataplane]\nengine = \"epoll\"\nworkers = 2\nudp_gro = false\n");
        let expected = [
            "dataplane.engine (auto in force, epoll wanted)",
            "dataplane.udp_gro (the default in force, false wanted)",
            "dataplane.workers (the default in force, 2 wanted)",
            "listen (0.0.0.0:8285 in force, 0.0.0.0:9000 wanted)",
        ];
        assert_eq!(differences(&of(""), &wanted), expected);
        assert!(differences(&wanted, &wanted).is_empty());
    }

    #[test]
    fn start_time_is_read_past_any_command_name() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        assert_eq!(parse_start_ticks(stat), Some(4711));
        assert!(start_ticks(std::process::id()).unwrap() > 0);
    }

    #[test]
    fn a_process_is_recognised_and_a_reused_id_is_not() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let program = loop {
            // Until exec, the child still shows this test's executable.
            match program_of(child.id()) {
                Ok(program) if program.file_name() != env::current_exe().unwrap().file_name() => break program,
                _ => std::thread::yield_now(),
            }
        };
        let process = Process::of(child.id()).unwrap();
        assert_eq!(process.program, program);
        let handle = process.handle().expect("it lives");
        assert!(Process { start_ticks: process.start_ticks + 1, ..process.clone() }.handle().is_none());
        assert!(Process { program: "/bin/other".into(), ..process.clone() }.handle().is_none());
        assert!(!handle.has_ended());
        let how = end(&handle, Path::new("/nonexistent.sock")).unwrap();
        assert!(how.contains("SIGTERM"), "{how}");
        child.wait().unwrap();
        assert!(process.handle().is_none());
    }

    #[test]
    fn an_error_quotes_the_end_of_weftds_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.log");
        let mut log = open_log(&path).unwrap();
        (0..20).for_each(|line| writeln!(log, "line {line}").unwrap());
        let text = quoted(&log_tail(&path));
        assert!(text.ends_with("weftd: line 19") && !text.contains("line 11\n"), "{text}");
        writeln!(open_log(&path).unwrap(), "weftd: another").unwrap();
        assert_eq!(quoted(&log_tail(&path)), "; it said:\n  weftd: another");
    }
}
