//! `weftd` on a node.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use weft_client::Client;

use crate::{Node, Process, TIMEOUT, eventually, weftd_binary};

/// The flags of `weftd`. What is `None`, or empty, is left to its defaults.
#[derive(Debug, Clone, Default)]
pub struct WeftdOptions {
    /// The program; `None`: [`weftd_binary`]. Two builds in one test compare.
    pub binary: Option<PathBuf>,
    /// `--socket`; `None`: a path of its own in the directory of the lab. A daemon that follows another takes over its path.
    pub socket: Option<PathBuf>,
    /// `--tun`: name of the TUN device.
    pub tun: Option<String>,
    /// `--bind`: underlay address and port.
    pub bind: Option<String>,
    /// `--workers`.
    pub workers: Option<u32>,
    /// `--engine`: auto, uring or epoll.
    pub engine: Option<String>,
    /// `--opener`: native or simple.
    pub opener: Option<String>,
    /// `--mtu`: that of the TUN device, in bytes.
    pub mtu: Option<u32>,
    /// `--peer-check`: strict, log or off.
    pub peer_check: Option<String>,
    /// `--spin-us`: busy polling before sleeping, in microseconds.
    pub spin_us: Option<u32>,
    /// Any further flags, such as `--no-udp-gso`, `--no-udp-gro`, `--no-tun-tso`, `--no-tun-uso`.
    pub flags: Vec<String>,
}

impl WeftdOptions {
    /// A daemon with this TUN device and this underlay address and port.
    pub fn new(tun: &str, bind: &str) -> Self {
        Self { tun: Some(tun.into()), bind: Some(bind.into()), ..Self::default() }
    }

    /// Adds a flag.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// The command line, without the socket.
    pub fn arguments(&self) -> Vec<String> {
        let valued = [
            ("--tun", self.tun.clone()),
            ("--bind", self.bind.clone()),
            ("--workers", self.workers.map(|count| count.to_string())),
            ("--engine", self.engine.clone()),
            ("--opener", self.opener.clone()),
            ("--mtu", self.mtu.map(|mtu| mtu.to_string())),
            ("--peer-check", self.peer_check.clone()),
            ("--spin-us", self.spin_us.map(|duration| duration.to_string())),
        ];
        let valued = valued.into_iter().filter_map(|(flag, value)| Some([flag.to_owned(), value?])).flatten();
        valued.chain(self.flags.iter().cloned()).collect()
    }
}

/// A running `weftd`, ended on drop.
#[derive(Debug)]
pub struct Weftd {
    process: Process,
    socket: PathBuf,
}

impl Weftd {
    /// See [`crate::Lab::weftd`].
    pub(crate) fn start(node: &Node, directory: &Path, options: WeftdOptions) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let own = || directory.join(format!("weftd-{}-{number}.sock", node.name()));
        let socket = options.socket.clone().unwrap_or_else(own);
        let mut command = Command::new(options.binary.clone().map_or_else(weftd_binary, Ok)?);
        command.args(options.arguments()).arg("--socket").arg(&socket);
        let mut process = node.spawn(command)?;
        let outcome = eventually(TIMEOUT, || {
            if let Some(status) = process.try_wait()? {
                // No use in waiting on; the outer error tells.
                return Ok(Some(status));
            }
            // It listens before it is ready, and answers after.
            Client::connect(&socket, TIMEOUT)?;
            Ok(None)
        });
        match outcome.with_context(|| format!("its output:\n{}", process.log()))? {
            None => Ok(Self { process, socket }),
            Some(status) => bail!("weftd ended with {status}; its output:\n{}", process.log()),
        }
    }

    /// Path of its control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Connects to its control socket; each wait for an answer is bounded by [`TIMEOUT`].
    ///
    /// # Errors
    /// If it does not answer.
    pub fn client(&self) -> Result<Client> {
        Ok(Client::connect(&self.socket, TIMEOUT)?)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The process, to signal it or wait for it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_the_flags_of_weftd() {
        let options = WeftdOptions {
            workers: Some(2),
            engine: Some("epoll".into()),
            spin_us: Some(50),
            ..WeftdOptions::new("flannel0", "192.0.2.1:8285").flag("--no-udp-gso")
        };
        let expected = "--tun flannel0 --bind 192.0.2.1:8285 --workers 2 --engine epoll --spin-us 50 --no-udp-gso";
        assert_eq!(options.arguments().join(" "), expected);
    }
}
