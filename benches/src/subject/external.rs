//! Any program that makes a tunnel, judged by the same workloads.
//!
//! Its command line is run by `/bin/sh` inside each host's network namespace, with these variables:
//!
//! | variable | value on host a |
//! |---|---|
//! | `WEFT_BENCH_ROLE` | `a`; the other host has `b` |
//! | `WEFT_BENCH_UNDERLAY_OWN` | `192.0.2.1`, on the link `u0` |
//! | `WEFT_BENCH_UNDERLAY_PEER` | `192.0.2.2` |
//! | `WEFT_BENCH_OVERLAY_SUBNET_OWN` | `10.102.1.0/24` |
//! | `WEFT_BENCH_OVERLAY_SUBNET_PEER` | `10.102.2.0/24` |
//! | `WEFT_BENCH_TUN` | `bench2`, a name for a device that no other subject uses |
//! | `WEFT_BENCH_TUN_ADDRESS` | `10.102.1.1`, which the program gives to its device |
//! | `WEFT_BENCH_TUN_MTU` | `1472`: the underlay's less IPv4 and UDP headers; one that adds more takes less |
//! | `WEFT_BENCH_PORT` | `8287`, a UDP port that no other subject uses |
//!
//! The program makes its device, gives it the address, routes the peer's subnet to it, and either stays until SIGTERM, which
//! whatever it started gets, too, or ends with success and leaves the tunnel to the kernel. It is ready when host b answers a ping.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use weft_lab::{LinkEnd, Node, Ping, Process, eventually, ping};

use super::{Facts, Site, Subject, underlay};

/// How long a program has until host b answers.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// IPv4 and UDP header.
const OVERHEAD_LEN: u32 = 28;

/// A tunnel made by a program.
pub struct External {
    processes: Vec<Process>,
    addresses: [IpAddr; 2],
    command: String,
}

impl External {
    /// Starts the program on both hosts and waits until they reach each other.
    ///
    /// # Errors
    /// If it fails, or the hosts do not reach each other in time; the error shows its output.
    pub fn new(site: &Site<'_>, command: &str) -> Result<Self> {
        let start = |(host, end): (u8, &LinkEnd)| {
            let mut process = end.node.spawn(shell(site, host, command))?;
            process.quiet();
            anyhow::Ok(process)
        };
        let processes = site.ends().into_iter().map(start).collect::<Result<Vec<_>>>()?;
        let addresses = [1, 2].map(|host| site.overlay(host, 1).into());
        let mut this = Self { processes, addresses, command: command.to_owned() };
        this.wait_ready(&site.link.a.node)?;
        Ok(this)
    }

    fn wait_ready(&mut self, a: &Node) -> Result<()> {
        let outcome = eventually(READY_TIMEOUT, || {
            if let Some(failed) = self.failed()? {
                return Ok(Some(failed));
            }
            ping(a, &Ping::quick(self.addresses[1]))?.reply()?;
            Ok(None)
        });
        let output = || {
            let logs = self.processes.iter().map(|process| format!("on {}: {}", process.host(), process.log()));
            format!("its output {}", logs.collect::<Vec<_>>().join(", "))
        };
        match outcome.with_context(output)? {
            None => Ok(()),
            Some(failed) => bail!("{failed}; {}", output()),
        }
    }

    /// A program that has failed. One that has ended with success left the tunnel to the kernel.
    fn failed(&mut self) -> Result<Option<String>> {
        for process in &mut self.processes {
            if let Some(status) = process.try_wait()?.filter(|status| !status.success()) {
                return Ok(Some(format!("the program ended with {status} on host {}", process.host())));
            }
        }
        Ok(None)
    }
}

impl Subject for External {
    fn addresses(&self) -> [IpAddr; 2] {
        self.addresses
    }

    fn facts(&self) -> Result<Facts> {
        Ok(Facts { command: Some(self.command.clone()), ..Facts::default() })
    }

    fn pids(&self) -> Vec<u32> {
        self.processes.iter().flat_map(Process::tree).collect()
    }
}

impl Drop for External {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // The command line is a shell's, which ends without what it started.
            if let Err(error) = process.stop_tree() {
                eprintln!("external subject on host {}: {error:#}", process.host());
            }
        }
    }
}

fn shell(site: &Site<'_>, host: u8, command: &str) -> Command {
    let peer = 3 - host;
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(command);
    shell.envs([
        ("WEFT_BENCH_ROLE", if host == 1 { "a".to_owned() } else { "b".to_owned() }),
        ("WEFT_BENCH_UNDERLAY_OWN", underlay(host).to_string()),
        ("WEFT_BENCH_UNDERLAY_PEER", underlay(peer).to_string()),
        ("WEFT_BENCH_OVERLAY_SUBNET_OWN", site.subnet(host)),
        ("WEFT_BENCH_OVERLAY_SUBNET_PEER", site.subnet(peer)),
        ("WEFT_BENCH_TUN", format!("bench{}", site.number)),
        ("WEFT_BENCH_TUN_ADDRESS", site.overlay(host, 1).to_string()),
        ("WEFT_BENCH_TUN_MTU", (site.mtu - OVERHEAD_LEN).to_string()),
        ("WEFT_BENCH_PORT", site.port().to_string()),
    ]);
    shell
}
