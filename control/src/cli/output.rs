//! What the commands that talk to weftd share: finding its socket, and printing for people and for machines.

use super::{CliError, Exit};
use crate::client::{Client, ClientError};
use crate::state::{RUN_DIR, RUN_DIR_VARIABLE};
use anyhow::anyhow;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Which weftd to talk to.
#[derive(Clone, Debug, clap::Args)]
pub struct SocketArgs {
    /// Control socket of weftd [default: the only *.sock in --run-dir]
    #[arg(long, env = "WEFT_SOCKET", value_name = "PATH", global = true)]
    pub socket: Option<PathBuf>,
    /// Name of the tunnel, where several are up; beats --socket
    #[arg(long, short, value_name = "NAME", global = true)]
    pub tunnel: Option<String>,
    /// Directory of control sockets
    #[arg(long, env = RUN_DIR_VARIABLE, value_name = "DIR", default_value = RUN_DIR, global = true)]
    pub run_dir: PathBuf,
    /// How long to wait for an answer, for example 500ms or 10s
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration, global = true)]
    pub timeout: Duration,
}

impl SocketArgs {
    /// Connects to the weftd that is meant.
    pub fn connect(&self) -> Result<Client, CliError> {
        match self.paths()?.as_slice() {
            [only] => self.connect_to(only),
            several => {
                let names: Vec<_> = several.iter().filter_map(|path| path.file_stem()?.to_str()).collect();
                let names = names.join(", ");
                Err(usage(format!("several weftds are running; choose one with --tunnel NAME: {names}")))
            }
        }
    }

    /// Connects to the weftd behind one of [`SocketArgs::paths`].
    pub fn connect_to(&self, path: &Path) -> Result<Client, CliError> {
        Client::connect(path, self.timeout).map_err(daemon)
    }

    /// The socket that is meant, or else every socket that somebody listens on, one at least.
    pub fn paths(&self) -> Result<Vec<PathBuf>, CliError> {
        match (&self.socket, &self.tunnel) {
            // A name beats the socket, which may stem from the environment.
            (_, Some(name)) => Ok(vec![self.run_dir.join(format!("{name}.sock"))]),
            (Some(path), None) => Ok(vec![path.clone()]),
            (None, None) => live_sockets(&self.run_dir),
        }
    }
}

/// The exit code and text that a failed request deserves.
pub fn daemon(error: ClientError) -> CliError {
    CliError { exit: Exit::from(&error), error: error.into() }
}

/// A failure that is the caller's to mend.
pub fn usage(text: impl Display) -> CliError {
    CliError { exit: Exit::Usage, error: anyhow!("{text}") }
}

/// The sockets in `directory` that somebody listens on; one alone is not tried.
fn live_sockets(directory: &Path) -> Result<Vec<PathBuf>, CliError> {
    let shown = directory.display();
    let entries = match directory.read_dir() {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            let exit = match error.kind() {
                io::ErrorKind::PermissionDenied => Exit::NotPermitted,
                _ => Exit::Unreachable,
            };
            let error =
                anyhow!("{shown}: {error}; run as root or as a member of its group, or name a socket with --socket");
            return Err(CliError { exit, error });
        }
    };
    let mut sockets: Vec<PathBuf> =
        entries.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "sock")).collect();
    sockets.sort();
    if sockets.len() > 1 {
        // A weftd that was killed leaves its file behind.
        sockets.retain(|path| {
            !UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        });
    }
    if sockets.is_empty() {
        let remedy = "start one (`weft up FILE`), or name a socket with --socket";
        let error = anyhow!("no weftd is running: no socket in {shown}; {remedy}");
        return Err(CliError { exit: Exit::Unreachable, error });
    }
    Ok(sockets)
}

/// Prints `text`. `false`: whoever read the output has left (`| head`), which is no failure.
pub fn print(text: impl Display) -> Result<bool, CliError> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Prints one JSON value: indented, or on one line for streams.
pub fn print_json(value: &impl Serialize, one_line: bool) -> Result<bool, CliError> {
    print(if one_line { serde_json::to_string(value)? } else { serde_json::to_string_pretty(value)? })
}

/// An empty table in the house style; as wide as `COLUMNS` says, else as its contents.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(header);
    if let Some(width) = std::env::var("COLUMNS").ok().and_then(|width| width.parse().ok()) {
        table.set_width(width);
    }
    table
}

/// "1 route", "2 routes".
pub fn count(number: u32, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Milliseconds as people say them, to the second above one second.
pub fn duration(ms: u64) -> String {
    let exact = Duration::from_millis(ms);
    let shown = if ms < 1000 { exact } else { Duration::from_secs(exact.as_secs()) };
    humantime::format_duration(shown).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn live_sockets_are_found_and_dead_ones_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a.sock", "b.sock", "c.sock"].map(|name| dir.path().join(name));
        assert_eq!(live_sockets(&dir.path().join("missing")).unwrap_err().exit, Exit::Unreachable);
        assert_eq!(live_sockets(dir.path()).unwrap_err().exit, Exit::Unreachable);
        let live = UnixListener::bind(&a).unwrap();
        drop(UnixListener::bind(&b).unwrap());
        assert_eq!(live_sockets(dir.path()).unwrap(), std::slice::from_ref(&a));
        let second = UnixListener::bind(&c).unwrap();
        assert_eq!(live_sockets(dir.path()).unwrap(), [a, c]);
        let run_dir = dir.path().to_path_buf();
        let args = SocketArgs { socket: None, tunnel: None, run_dir, timeout: Duration::from_secs(1) };
        let error = args.connect().unwrap_err();
        assert_eq!(error.exit, Exit::Usage);
        let text = error.error.to_string();
        assert!(text.contains("--tunnel NAME: a, c"), "{text}");
        drop((live, second));
    }
}
