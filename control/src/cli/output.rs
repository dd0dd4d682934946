//! What the commands that talk to weftd share: finding its socket, and printing for people and for machines.

use super::{CliError, Exit};
use crate::client::{Client, ClientError};
use anyhow::anyhow;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where weftd puts its control sockets unless told otherwise.
pub const RUN_DIR: &str = "/run/weft";

/// Which weftd to talk to.
#[derive(Clone, Debug, clap::Args)]
pub struct SocketArgs {
    /// Control socket of weftd [default: the only *.sock in /run/weft]
    #[arg(long, env = "WEFT_SOCKET", value_name = "PATH", global = true)]
    pub socket: Option<PathBuf>,
    /// How long to wait for an answer, for example 500ms or 10s
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration, global = true)]
    pub timeout: Duration,
}

impl SocketArgs {
    /// Connects to the weftd that is meant.
    pub fn connect(&self) -> Result<Client, CliError> {
        let path = match &self.socket {
            Some(path) => path.clone(),
            None => only_socket(Path::new(RUN_DIR))?,
        };
        Client::connect(path, self.timeout).map_err(daemon)
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

/// The one socket in `directory` that somebody listens on.
fn only_socket(directory: &Path) -> Result<PathBuf, CliError> {
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
    match sockets.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(CliError {
            exit: Exit::Unreachable,
            error: anyhow!(
                "no weftd is running: no socket in {shown}; start one (`weft up FILE`), or name a socket with --socket"
            ),
        }),
        several => {
            let names: Vec<_> = several.iter().map(|path| path.display().to_string()).collect();
            Err(usage(format!("several weftds are running: choose one with --socket: {}", names.join(", "))))
        }
    }
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
    fn the_only_socket_is_found_and_dead_ones_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(only_socket(&dir.path().join("missing")).unwrap_err().exit, Exit::Unreachable);
        assert_eq!(only_socket(dir.path()).unwrap_err().exit, Exit::Unreachable);
        let live = UnixListener::bind(dir.path().join("a.sock")).unwrap();
        drop(UnixListener::bind(dir.path().join("b.sock")).unwrap());
        assert_eq!(only_socket(dir.path()).unwrap(), dir.path().join("a.sock"));
        let second = UnixListener::bind(dir.path().join("c.sock")).unwrap();
        let error = only_socket(dir.path()).unwrap_err();
        assert_eq!(error.exit, Exit::Usage);
        assert!(error.error.to_string().contains("a.sock") && error.error.to_string().contains("c.sock"));
        drop((live, second));
    }
}
