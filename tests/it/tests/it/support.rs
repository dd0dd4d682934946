//! Networks with a weftd on every host, for all modules: two hosts on a cable, or several on a switch.
//!
//! ```text
//!   host n    TUN flannel0   10.9.n.1/32, fd09:0:0:n::1/128; 10.9.0.0/16 and fd09::/32 lead there
//!                  |
//!                weftd       UDP port 8285, bound to the underlay address; strict peer check
//!                  |
//!             underlay u0    192.0.2.n/24, 2001:db8::n/64
//! ```
//!
//! Every host starts with the full mesh in its table: `10.9.m.0/24` and `fd09:0:0:m::/64` lead to host m.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
pub use weft_lab::TIMEOUT;
use weft_lab::topology::{Pair, Switched};
use weft_lab::{Lab, Link, Mode, Node, Weftd, WeftdOptions, eventually};
use weft_proto::{Installed, PeerReport, PeerSpec, RouteSet, RouteSpec, StatsReport, StatusReport};

/// The TUN device of every host.
pub const TUN: &str = "flannel0";
/// The UDP port of every weftd.
pub const PORT: u16 = 8285;
/// Packets that may wait in the TUN for weftd. The kernel's default of 500 is 12 ms of a stream here: less than a busy
/// machine may keep a thread waiting, and the tests are about what weftd loses.
const TUN_QUEUE_LEN: u32 = 20_000;
/// IPv4 or IPv6, inside or outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, for loops.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// Bytes that the tunnel adds over an underlay of this family: IP and UDP header.
    pub fn overhead_len(self) -> u32 {
        self.ip_header_len() as u32 + 8
    }

    /// Bytes of an IP header without options or extensions.
    pub fn ip_header_len(self) -> usize {
        match self {
            Family::V4 => 20,
            Family::V6 => 40,
        }
    }

    /// Underlay address of a host, counted from 1.
    pub fn underlay(self, number: u8) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::new(192, 0, 2, number).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into(),
        }
    }

    /// Overlay address of a host, counted from 1.
    pub fn overlay(self, number: u8) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::new(10, 9, number, 1).into(),
            Family::V6 => Ipv6Addr::new(0xfd09, 0, 0, number.into(), 0, 0, 0, 1).into(),
        }
    }

    /// The overlay prefix that is a host's own.
    pub fn subnet(self, number: u8) -> IpNet {
        let len = if self == Family::V4 { 24 } else { 64 };
        IpNet::new_assert(self.overlay(number), len).trunc()
    }
}

/// What a network is built from. [`Tunnel::builder`] has the defaults.
#[derive(Debug, Clone)]
pub struct Builder {
    underlay: Family,
    mtu: u32,
    mode: Mode,
    a: WeftdOptions,
    b: WeftdOptions,
}

impl Builder {
    /// Family of the underlay; IPv4 by default.
    pub fn underlay(mut self, family: Family) -> Self {
        self.underlay = family;
        self
    }

    /// MTU of the underlay in bytes; 1500 by default. That of the TUN is as much less as the tunnel adds.
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// How packets cross the underlay; `Offload` by default.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Changes the options of every daemon.
    pub fn each(mut self, change: impl Fn(&mut WeftdOptions)) -> Self {
        change(&mut self.a);
        change(&mut self.b);
        self
    }

    /// Changes the options of the daemon on `a`, the first host.
    pub fn a(mut self, change: impl FnOnce(&mut WeftdOptions)) -> Self {
        change(&mut self.a);
        self
    }

    /// Changes the options of the daemon on `b`, and on any further host.
    pub fn b(mut self, change: impl FnOnce(&mut WeftdOptions)) -> Self {
        change(&mut self.b);
        self
    }

    /// Two hosts on a cable. `None` if this machine can have no lab and the test may be skipped.
    pub fn build(self) -> Result<Option<Tunnel>> {
        self.build_prepared(|_| Ok(()))
    }

    /// As [`Builder::build`]; `prepare` sees the two hosts before their daemons start.
    pub fn build_prepared(self, prepare: impl FnOnce(&Pair) -> Result<()>) -> Result<Option<Tunnel>> {
        let Some(lab) = Lab::start() else { return Ok(None) };
        let pair = Pair::new(&lab, self.mtu)?;
        pair.link.set_mode(self.mode)?;
        prepare(&pair)?;
        let a = self.host(&lab, &pair.a, 1)?;
        let b = self.host(&lab, &pair.b, 2)?;
        connect(&[&a, &b])?;
        Ok(Some(Tunnel { a, b, link: pair.link, lab }))
    }

    /// Several hosts on a switch. `None` as in [`Builder::build`].
    pub fn build_switched(self, host_count: u8) -> Result<Option<Cluster>> {
        let Some(lab) = Lab::start() else { return Ok(None) };
        let Switched { links, hosts: nodes, switch } = Switched::new(&lab, host_count, self.mtu)?;
        links.iter().try_for_each(|link| link.set_mode(self.mode))?;
        let hosts: Vec<Host> =
            (1..).zip(&nodes).map(|(number, node)| self.host(&lab, node, number)).collect::<Result<_>>()?;
        connect(&hosts.iter().collect::<Vec<_>>())?;
        Ok(Some(Cluster { hosts, _underlay: (links, switch), lab }))
    }

    fn host(&self, lab: &Lab, node: &Node, number: u8) -> Result<Host> {
        let mut options = if number == 1 { self.a.clone() } else { self.b.clone() };
        let tun_mtu = *options.mtu.get_or_insert(self.mtu - self.underlay.overhead_len());
        let address = SocketAddr::new(self.underlay.underlay(number), PORT);
        options.tun.get_or_insert_with(|| TUN.into());
        options.bind.get_or_insert_with(|| address.to_string());
        let weftd = lab.weftd(node, options.clone())?;
        let host = Host { number, node: node.clone(), weftd, options, address, tun_mtu };
        host.set_up_tun()?;
        Ok(host)
    }
}

/// Installs the full mesh on every host.
fn connect(hosts: &[&Host]) -> Result<()> {
    for host in hosts {
        let others = hosts.iter().filter(|other| other.number != host.number);
        host.install(others.flat_map(|other| Family::BOTH.map(|family| (family.subnet(other.number), *other))))?;
    }
    Ok(())
}

/// A host with its weftd.
#[derive(Debug)]
pub struct Host {
    /// Its daemon; dropped before its node.
    pub weftd: Weftd,
    /// Where it runs.
    pub node: Node,
    /// Its number in addresses, counted from 1.
    pub number: u8,
    /// The flags of its daemon.
    pub options: WeftdOptions,
    /// Underlay address and port of its daemon.
    pub address: SocketAddr,
    /// MTU of its TUN in bytes.
    pub tun_mtu: u32,
}

impl Host {
    /// Its overlay address.
    pub fn overlay(&self, family: Family) -> IpAddr {
        family.overlay(self.number)
    }

    /// What others list it as.
    pub fn peer(&self) -> PeerSpec {
        PeerSpec { name: Some(self.node.name().to_owned()), addr: self.address, aliases: Vec::new() }
    }

    /// A table of prefixes and the hosts they lead to.
    pub fn table<'a>(routes: impl IntoIterator<Item = (IpNet, &'a Host)>) -> RouteSet {
        let mut set = RouteSet::default();
        for (prefix, host) in routes {
            let peer = host.peer();
            let index = set.peers.iter().position(|known| *known == peer).unwrap_or_else(|| {
                set.peers.push(peer);
                set.peers.len() - 1
            });
            set.routes.push(RouteSpec { prefix, peer: index as u32 });
        }
        set
    }

    /// Replaces its table by one that holds these prefixes and the hosts they lead to.
    pub fn install<'a>(&self, routes: impl IntoIterator<Item = (IpNet, &'a Host)>) -> Result<Installed> {
        Ok(self.weftd.client()?.swap(&Self::table(routes), None)?)
    }

    /// Gives the TUN its MTU, addresses and routes, as the control process would, and a long queue.
    pub fn set_up_tun(&self) -> Result<()> {
        let addresses = Family::BOTH.map(|family| self.overlay(family).to_string());
        let tun = self.options.tun.as_deref().unwrap_or(TUN);
        let mut netlink = self.node.netlink()?;
        let index = netlink.expect_link(tun)?.index;
        netlink.set_txqueuelen(index, TUN_QUEUE_LEN)?;
        self.node.set_up_tun(
            tun,
            self.tun_mtu,
            &addresses.each_ref().map(String::as_str),
            &["10.9.0.0/16", "fd09::/32"],
        )
    }

    /// State of its daemon.
    pub fn status(&self) -> Result<StatusReport> {
        Ok(self.weftd.client()?.status()?)
    }

    /// Counters of its daemon.
    pub fn stats(&self) -> Result<Stats> {
        let mut client = self.weftd.client()?;
        Ok(Stats { report: client.stats()?, peers: client.peers()? })
    }
}

/// Two hosts on a cable.
#[derive(Debug)]
pub struct Tunnel {
    /// Host 1.
    pub a: Host,
    /// Host 2.
    pub b: Host,
    /// The underlay cable, end `a` at host 1.
    pub link: Link,
    /// Last, because the control sockets are in its directory.
    pub lab: Lab,
}

impl Tunnel {
    /// IPv4 underlay with MTU 1500 in mode `Offload`, flags at their defaults.
    pub fn builder() -> Builder {
        Builder {
            underlay: Family::V4,
            mtu: 1500,
            mode: Mode::Offload,
            a: WeftdOptions::default(),
            b: WeftdOptions::default(),
        }
    }

    /// Waits until every inner packet that one daemon has sent was accepted by the other, in both directions, in sum and
    /// per peer, and checks that nothing was dropped on the way.
    ///
    /// Fails if that does not come true: a packet was lost, or a counter is wrong.
    pub fn balanced(&self) -> Result<(Stats, Stats)> {
        eventually(TIMEOUT, || {
            let (a, b) = (self.a.stats()?, self.b.stats()?);
            for (name, from, to, at) in [("a to b", &a, &b, self.b.address), ("b to a", &b, &a, self.a.address)] {
                let (sent, accepted) = (from.sent(), to.accepted());
                ensure!(sent == accepted, "{name}: sent {sent}, accepted {accepted}");
                let peer = from.peer(at)?;
                ensure!(Traffic::new(peer.tx_packets, peer.tx_bytes) == sent, "{name}: sent {sent}, per peer {peer:?}");
                let peer = to.peers.iter().find(|peer| peer.peer.addr != at).context("no peer")?;
                let per_peer = Traffic::new(peer.rx_packets, peer.rx_bytes);
                ensure!(per_peer == accepted, "{name}: accepted {accepted}, per peer {peer:?}");
            }
            ensure!(a.drops().is_empty() && b.drops().is_empty(), "a dropped {:?}, b {:?}", a.drops(), b.drops());
            Ok((a, b))
        })
    }
}

/// Several hosts on a switch.
#[derive(Debug)]
pub struct Cluster {
    /// Host `n` at index `n - 1`.
    pub hosts: Vec<Host>,
    /// The cables and the switch, which last as long as the hosts.
    _underlay: (Vec<Link>, Node),
    /// Last, because the control sockets are in its directory.
    pub lab: Lab,
}

/// Inner packets and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes from the inner IP header on.
    pub bytes: u64,
}

impl Traffic {
    /// So many packets and bytes.
    pub fn new(packets: u64, bytes: u64) -> Self {
        Self { packets, bytes }
    }

    /// What came after `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self::new(self.packets - earlier.packets, self.bytes - earlier.bytes)
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} packets of {} bytes", self.packets, self.bytes)
    }
}

/// The counters of one daemon at one time.
#[derive(Debug, Clone)]
pub struct Stats {
    /// All of them.
    pub report: StatsReport,
    /// Those of each peer.
    pub peers: Vec<PeerReport>,
}

impl Stats {
    /// A counter by its name.
    pub fn counter(&self, name: &str) -> u64 {
        let found = self.report.totals.counters.iter().find(|counter| counter.name == name);
        found.unwrap_or_else(|| panic!("weftd has no counter {name}")).value
    }

    /// What was sent as datagrams.
    pub fn sent(&self) -> Traffic {
        Traffic::new(self.counter("encap_packets"), self.counter("encap_bytes"))
    }

    /// What was accepted from datagrams.
    pub fn accepted(&self) -> Traffic {
        Traffic::new(self.counter("decap_packets"), self.counter("decap_bytes"))
    }

    /// Packets dropped, by `DIRECTION REASON`; empty if none were.
    pub fn drops(&self) -> BTreeMap<String, u64> {
        let dropped = self.report.totals.drops.iter().filter(|drop| drop.packets > 0);
        dropped.map(|drop| (format!("{} {}", drop.direction, drop.reason), drop.packets)).collect()
    }

    /// The counters of the peer at an underlay address.
    pub fn peer(&self, address: SocketAddr) -> Result<&PeerReport> {
        let found = self.peers.iter().find(|peer| peer.peer.addr == address);
        found.with_context(|| format!("weftd does not list the peer {address}"))
    }
}

/// Parses a prefix that a test wrote.
pub fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix in a test")
}
