//! WireGuard in userspace: `wireguard-go` on each host, configured over its socket
//! (<https://www.wireguard.com/xplatform/#configuration-protocol>).

use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_lab::{LinkEnd, Process, eventually};

use super::{Facts, Site, Subject, underlay};

const PROGRAM: &str = "wireguard-go";
/// Where it has its sockets.
const SOCKET_DIRECTORY: &str = "/var/run/wireguard";
/// Bytes that it adds over IPv4: data message 32, UDP 8, IPv4 20.
const OVERHEAD_LEN: u32 = 60;
/// How long it has to make its socket.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// (private, public) of host a and host b. Everybody knows them: they are those of RFC 7748 section 6.1.
const KEYS: [(&str, &str); 2] = [
    (
        "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
        "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
    ),
    (
        "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
        "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
    ),
];

/// A WireGuard tunnel.
pub struct Wireguard {
    processes: [Process; 2],
    addresses: [IpAddr; 2],
    mtu: u32,
    version: Option<String>,
}

impl Wireguard {
    /// Starts both ends and makes them peers.
    ///
    /// # Errors
    /// If the program is not installed, or does not do what its documentation says.
    pub fn new(site: &Site<'_>) -> Result<Self> {
        let version = Command::new(PROGRAM).arg("--version").output();
        let version =
            version.with_context(|| format!("{PROGRAM} is not installed (on Debian: apt-get install {PROGRAM})"))?;
        let version = String::from_utf8_lossy(&version.stdout).split_whitespace().nth(1).map(str::to_owned);
        let mtu = site.mtu - OVERHEAD_LEN;
        let [a, b] = site.ends().map(|(host, end)| start(site, host, end, mtu));
        let addresses = [1, 2].map(|host| site.overlay(host, 1).into());
        Ok(Self { processes: [a?, b?], addresses, mtu, version })
    }
}

impl Subject for Wireguard {
    fn addresses(&self) -> [IpAddr; 2] {
        self.addresses
    }

    fn facts(&self) -> Result<Facts> {
        let notes = vec!["it encrypts, which the others do not".to_owned()];
        Ok(Facts { overlay_mtu: Some(self.mtu), version: self.version.clone(), notes, ..Facts::default() })
    }

    fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::pid).collect()
    }
}

fn start(site: &Site<'_>, host: u8, end: &LinkEnd, mtu: u32) -> Result<Process> {
    // Sockets are named by the device and shared by all namespaces, and other runs may be under way.
    let device = format!("wg{}x{}{}", std::process::id() % 100_000, site.number, if host == 1 { 'a' } else { 'b' });
    let mut command = Command::new(PROGRAM);
    command.arg("--foreground").arg(&device).env("LOG_LEVEL", "error");
    let mut process = end.node.spawn(command)?;
    process.quiet();
    let socket = PathBuf::from(SOCKET_DIRECTORY).join(format!("{device}.sock"));
    let mut stream = eventually(START_TIMEOUT, || Ok(UnixStream::connect(&socket)?))
        .with_context(|| format!("{PROGRAM} does not listen on {}: {}", socket.display(), process.log()))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let peer = 3 - host;
    let (private, _) = KEYS[usize::from(host) - 1];
    let (_, public) = KEYS[usize::from(peer) - 1];
    let port = site.port();
    write!(
        stream,
        "set=1\nprivate_key={private}\nlisten_port={port}\npublic_key={public}\nendpoint={}:{port}\nallowed_ip={}\n\n",
        underlay(peer),
        site.subnet(peer)
    )?;
    let mut answer = String::new();
    let mut buffer = [0; 256];
    while !answer.contains("\n\n") {
        let len = stream.read(&mut buffer).context("waiting for the answer of wireguard-go")?;
        ensure!(len > 0, "{PROGRAM} closed its socket: {}", process.log());
        answer.push_str(&String::from_utf8_lossy(&buffer[..len]));
    }
    ensure!(answer.contains("errno=0"), "{PROGRAM} refused its configuration: {answer}");
    let address = format!("{}/32", site.overlay(host, 1));
    end.node.set_up_tun(&device, mtu, &[&address], &[&site.network()])?;
    Ok(process)
}
