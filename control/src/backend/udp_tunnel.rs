//! The udp backend: brings weftd's table to the desired one, by a delta where one suffices.

use crate::cli::output::count;
use crate::client::{Client, ClientError};
use crate::rib;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use weft_proto::{Installed, RouteSet, StatusReport};

/// Longest wait for weftd's answer to one request. Building a table of a million routes takes seconds on a busy host.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// One weftd's table, as far as this process knows it.
#[derive(Debug)]
pub struct UdpTunnel {
    socket: PathBuf,
    /// What was put in force last, with its generation, so that the next change can be a delta against it.
    installed: Option<(RouteSet, Installed)>,
}

/// What it took to make the table true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Push {
    /// weftd had it already.
    Unchanged(Installed),
    /// A delta.
    Delta {
        /// Routes added or changed.
        upserted: usize,
        /// Routes removed.
        removed: usize,
        /// The result.
        installed: Installed,
    },
    /// The whole table.
    Swap(Installed),
}

impl UdpTunnel {
    /// The weftd whose control socket is `socket`; nothing is known of its table.
    pub fn new(socket: PathBuf) -> UdpTunnel {
        UdpTunnel { socket, installed: None }
    }

    /// Forgets what is known of the table: weftd was started anew.
    pub fn forget(&mut self) {
        self.installed = None;
    }

    /// Reads the table in force from weftd, so that the next push can be a delta.
    pub fn read(&mut self) -> Result<&RouteSet, ClientError> {
        let table = Client::connect(&self.socket, ANSWER_TIMEOUT)?.routes()?;
        Ok(&self.installed.insert((table.set, table.installed)).0)
    }

    /// Makes `table` the one in force. What weftd has already is left alone, whoever put it there; a known table is
    /// changed by a delta; anything else is swapped. Both are atomic, so no packet is lost either way.
    ///
    /// # Errors
    /// weftd is not reachable or refuses; the old table serves on.
    pub fn push(&mut self, table: &RouteSet) -> Result<Push, ClientError> {
        let mut client = Client::connect(&self.socket, ANSWER_TIMEOUT)?;
        let status = client.status()?;
        let wanted = table.digest();
        if status.digest == wanted {
            let StatusReport { generation, digest, routes, peers, .. } = status;
            let installed = Installed { generation, digest, routes, peers };
            self.installed = Some((table.clone(), installed));
            return Ok(Push::Unchanged(installed));
        }
        let known = self.installed.take().filter(|(_, installed)| installed.generation == status.generation);
        if let Some((old, before)) = known {
            let delta = rib::delta(&old, table);
            match client.delta(&delta, Some(before.generation)) {
                Ok(installed) if installed.digest == wanted => {
                    self.installed = Some((table.clone(), installed));
                    let (upserted, removed) = (delta.upsert.len(), delta.remove.len());
                    return Ok(Push::Delta { upserted, removed, installed });
                }
                // A delta cannot express every table; see `rib::delta`.
                Ok(_) => {}
                Err(error) if error.is_stale() => {}
                Err(error) => return Err(error),
            }
        }
        let installed = client.swap(table, None)?;
        self.installed = Some((table.clone(), installed));
        Ok(Push::Swap(installed))
    }
}

impl fmt::Display for Push {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, Installed { generation, routes, peers, .. }) = match self {
            Push::Unchanged(installed) => ("unchanged".to_owned(), installed),
            Push::Delta { upserted, removed, installed } => {
                let upserted = count(*upserted as u32, "route");
                (format!("{upserted} set, {removed} removed"), installed)
            }
            Push::Swap(installed) => ("replaced as a whole".to_owned(), installed),
        };
        let (routes, peers) = (count(*routes, "route"), count(*peers, "peer"));
        write!(out, "{what}; {routes} to {peers} in force, generation {generation}")
    }
}
