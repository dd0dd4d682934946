//! `weft flanneld` in a cluster of its own: a real etcd and three hosts on a switch.
//!
//! ```text
//!   etcd 192.0.2.250 --.                  pod 10.5.n.2 --- 10.5.n.1 h1
//!   h1   192.0.2.1 ----+-- switch br0       (n: the subnet that the daemon got)
//!   h2   192.0.2.2 ----|
//!   h3   192.0.2.3 ----'                  host n also has 2001:db8::n, and the etcd 2001:db8::fa
//! ```

mod acceptance;
mod config;
mod faults;
mod ipv6;
mod joins;
mod kernel;
mod refusals;
mod restarts;
mod stock;

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipnet::{IpNet, Ipv4Net};
use serde_json::Value;
use weft_control::flannel::record::{directory_name, key_name};
use weft_control::flannel::{SubnetEnv, Subnets};
use weft_lab::topology::{Pod, Switched};
use weft_lab::udp::Stream;
use weft_lab::{Etcd, Lab, Link, Node, Ping, Process, TIMEOUT, eventually, ping, udp};

use crate::weft::Weft;

/// Where flannel has its keys unless it is told otherwise.
const PREFIX: &str = "/coreos.com/network";
/// etcd's address on the switch.
const ETCD: &str = "192.0.2.250";
/// The same on a switch where etcd is reached over IPv6.
const ETCD_V6: &str = "2001:db8::fa";
/// How long a daemon has to join (flannel's own test suite gives it as long).
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Between datagrams of a stream that must not suffer.
const INTERVAL: Duration = Duration::from_millis(4);
/// Fewest datagrams of such a stream.
const STREAM_COUNT_MIN: u64 = 250;

/// Hosts on a switch, with an etcd that everybody reaches.
struct Cluster {
    hosts: Vec<Weft>,
    etcd: Etcd,
    /// The cables and the switch, which last as long as the hosts.
    underlay: (Vec<Link>, Node),
    lab: Lab,
}

impl Cluster {
    /// `host_count` hosts, and this network config in etcd.
    fn new(host_count: u8, config: &str) -> Result<Option<Self>> {
        let Some(lab) = Lab::start() else { return Ok(None) };
        let switched = Switched::new(&lab, host_count, 1500)?;
        Self::build(lab, switched, config, ETCD, 24).map(Some)
    }

    /// The same on an underlay that has both families, and an etcd that is reached over IPv6; or on one without IPv4.
    fn over_ipv6(host_count: u8, config: &str, has_ipv4: bool) -> Result<Option<Self>> {
        let Some(lab) = Lab::start() else { return Ok(None) };
        let switched = match has_ipv4 {
            true => Switched::new(&lab, host_count, 1500)?,
            false => Switched::ipv6_only(&lab, host_count, 1500)?,
        };
        Self::build(lab, switched, config, ETCD_V6, 64).map(Some)
    }

    fn build(lab: Lab, switched: Switched, config: &str, address: &str, prefix_len: u8) -> Result<Self> {
        let Switched { links, hosts, switch } = switched;
        switch.address("br0", &format!("{address}/{prefix_len}"))?;
        let etcd = Etcd::start_on(&switch, address.parse()?)?;
        if !config.is_empty() {
            etcd.put(&format!("{PREFIX}/config"), config)?;
        }
        let hosts = hosts.iter().map(|node| Weft::new(&lab, node)).collect::<Result<_>>()?;
        Ok(Self { hosts, etcd, underlay: (links, switch), lab })
    }

    /// The switch, on which etcd runs.
    fn switch(&self) -> Node {
        self.underlay.1.clone()
    }

    /// Starts the daemon on host `number`, counted from 1, with more flags.
    fn start(&self, number: usize, flags: &[&str]) -> Result<Daemon> {
        Daemon::start(&self.hosts[number - 1], &self.etcd.url(), "subnet.env", flags)
    }

    /// Starts the daemon on each host and waits until all have joined.
    fn join(&self) -> Result<Vec<Daemon>> {
        let mut daemons: Vec<Daemon> =
            (1..=self.hosts.len()).map(|number| self.start(number, &[])).collect::<Result<_>>()?;
        for daemon in &mut daemons {
            daemon.joined()?;
        }
        Ok(daemons)
    }

    /// A pod at each daemon's host, once each daemon knows all the others.
    fn pods(&self, daemons: &[Daemon]) -> Result<Vec<Pod>> {
        let pods: Vec<Pod> =
            (1..).zip(daemons).map(|(number, daemon)| self.pod(number, daemon)).collect::<Result<_>>()?;
        for (from, pod) in pods.iter().enumerate() {
            for (to, other) in daemons.iter().enumerate().filter(|(to, _)| *to != from) {
                for address in other.pod_addresses()? {
                    eventually(TIMEOUT, || ping(&pod.node, &Ping::quick(address))?.reply())
                        .with_context(|| format!("from pod {} to pod {} at {address}", from + 1, to + 1))?;
                }
            }
        }
        Ok(pods)
    }

    /// A pod with an address of each family that the daemon's subnet file has.
    fn pod(&self, number: usize, daemon: &Daemon) -> Result<Pod> {
        let (host, mtu) = (&self.hosts[number - 1].node, daemon.env("FLANNEL_MTU")?.parse()?);
        let families: Vec<(String, String)> =
            daemon.nets()?.into_iter().map(|net| (with_len(net, 2), with_len(net, 1))).collect();
        let ((address, gateway), others) = families.split_first().context("no subnet")?;
        let pod = Pod::behind(&self.lab, host, &format!("pod{number}"), address, gateway, mtu)?;
        others.iter().try_for_each(|(address, gateway)| pod.family(address, gateway))?;
        Ok(pod)
    }

    /// The record of a daemon's lease.
    fn record(&self, daemon: &Daemon) -> Result<Option<String>> {
        Ok(self.etcd.get(&daemon.key()?)?.map(|record| record.value))
    }
}

/// A running `weft flanneld`.
struct Daemon {
    process: Process,
    node: Node,
    subnet_file: PathBuf,
}

impl Daemon {
    /// Starts it on a host, with a subnet file of this name in the host's directory, and more flags.
    fn start(host: &Weft, etcd: &str, subnet_file: &str, flags: &[&str]) -> Result<Self> {
        let subnet_file = host.path(subnet_file);
        let run_dir = host.run_dir();
        let mut arguments = vec!["flanneld".to_owned(), format!("--etcd-endpoints={etcd}"), "--iface=u0".to_owned()];
        arguments.push("--network-grace=1".to_owned());
        arguments.push(format!("-subnet-file={}", subnet_file.display()));
        arguments.push(format!("--run-dir={}", run_dir.display()));
        arguments.extend(flags.iter().map(|flag| flag.to_string()));
        Ok(Self { process: host.spawn(&arguments)?, node: host.node.clone(), subnet_file })
    }

    /// Waits until it has written its subnet file, and has peers told to its backend.
    fn joined(&mut self) -> Result<()> {
        eventually(JOIN_TIMEOUT, || {
            ensure!(self.process.try_wait()?.is_none(), "it has ended");
            ensure!(self.process.log().contains("subnet.env written"), "no subnet file yet");
            Ok(())
        })
        .with_context(|| format!("{}:\n{}", self.node.name(), self.process.log()))
    }

    /// A line of the subnet file.
    fn env(&self, key: &str) -> Result<String> {
        let text = fs::read_to_string(&self.subnet_file)?;
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        Ok(value.with_context(|| format!("no {key} in:\n{text}"))?.to_owned())
    }

    /// The subnet that it got.
    fn subnet(&self) -> Result<Ipv4Net> {
        Ok(self.env("FLANNEL_SUBNET")?.parse::<Ipv4Net>()?.trunc())
    }

    /// Address of the pod at its host.
    fn pod(&self) -> Result<Ipv4Addr> {
        Ok(Ipv4Addr::from(u32::from(self.subnet()?.network()) + 2))
    }

    /// The subnets that it got, one or one of each family.
    fn subnets(&self) -> Result<Subnets> {
        Ok(SubnetEnv::read(&self.subnet_file)?.subnets())
    }

    fn nets(&self) -> Result<Vec<IpNet>> {
        let Subnets { v4, v6 } = self.subnets()?;
        Ok([v4.map(IpNet::from), v6.map(IpNet::from)].into_iter().flatten().collect())
    }

    /// Addresses of the pod at its host, one of each family.
    fn pod_addresses(&self) -> Result<Vec<IpAddr>> {
        Ok(self.nets()?.into_iter().map(|net| host_of(net, 2)).collect())
    }

    /// Key of its lease in etcd.
    fn key(&self) -> Result<String> {
        let subnets = self.subnets()?;
        let name = key_name(&subnets).context("no subnet")?;
        Ok(format!("{PREFIX}/{}/{name}", directory_name(subnets.v4.is_some())))
    }

    /// Waits until its log has a text; gives the log.
    fn says(&self, text: &str) -> Result<String> {
        eventually(JOIN_TIMEOUT, || {
            let log = self.process.log();
            ensure!(log.contains(text), "{} does not say {text:?}:\n{log}", self.node.name());
            Ok(log)
        })
    }

    /// Ends it by SIGTERM, which has to be a success.
    fn end(&mut self) -> Result<()> {
        self.process.signal(rustix::process::Signal::TERM)?;
        let status = self.process.wait(TIMEOUT)?;
        ensure!(status.success(), "{status}:\n{}", self.process.log());
        Ok(())
    }
}

/// Does `work` while numbered datagrams run both ways between the first two pods, with these addresses; fails if one is
/// lost.
fn lossless<T>(pods: &[Pod], addresses: [impl Into<IpAddr>; 2], work: impl FnOnce() -> Result<T>) -> Result<T> {
    let addresses = addresses.map(Into::into);
    let stream = |to: IpAddr| Stream { interval: INTERVAL, ..Stream::new(to, STREAM_COUNT_MIN, 200) };
    let (there, (back, value)) = udp::during(&pods[0].node, &pods[1].node, &stream(addresses[1]), || {
        udp::during(&pods[1].node, &pods[0].node, &stream(addresses[0]), work)
    })?;
    there.perfect().context("from pod 1 to pod 2")?;
    back.perfect().context("from pod 2 to pod 1")?;
    Ok(value)
}

/// An address of a subnet, counted from its first.
fn host_of(net: IpNet, number: u8) -> IpAddr {
    match net.network() {
        IpAddr::V4(first) => Ipv4Addr::from(u32::from(first) + u32::from(number)).into(),
        IpAddr::V6(first) => Ipv6Addr::from(u128::from(first) + u128::from(number)).into(),
    }
}

fn with_len(net: IpNet, number: u8) -> String {
    format!("{}/{}", host_of(net, number), net.prefix_len())
}

/// Status line and body of what an HTTP server on a node says.
fn http(node: &Node, port: u16, path: &str) -> Result<(String, String)> {
    let said = node.run(|| -> Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    })?;
    let (head, body) = said.split_once("\r\n\r\n").context("no HTTP")?;
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
}

/// A record as JSON.
fn json(record: Option<String>) -> Result<Value> {
    Ok(serde_json::from_str(&record.context("no record")?)?)
}
