//! One weftd, and a peer that the test plays with a plain socket: everything that crosses the underlay or the TUN is in the
//! test's hand.
//!
//! ```text
//!   a: packet socket on flannel0 ──> weftd ── 192.0.2.1:8285 ─── 192.0.2.2:8285 plain UDP socket :b
//!            capture of flannel0 <──
//!      flannel0 10.9.1.1/32, fd09:0:0:1::1/128; the table leads 10.9.2.0/24 and fd09:0:0:2::/64 to b
//! ```

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use weft_lab::topology::Pair;
use weft_lab::{Capture, Frame, Injector, Lab, Link, Node, WeftdOptions, eventually};
use weft_proto::{PeerSpec, RouteSet, RouteSpec};

use crate::craft::{self, Packet};
use crate::support::{Family, Host, PORT, TIMEOUT, TUN, net};

/// Bytes that may wait for a test that plays the peer, so that it is not the test that loses datagrams.
const RECEIVE_BUFFER_LEN: usize = 16 << 20;

/// The half tunnel.
pub struct Half {
    pub host: Host,
    /// Puts packets onto the TUN as if the host sent them.
    pub injector: Injector,
    /// The peer's socket, at the port of the tunnel.
    pub socket: UdpSocket,
    pub peer: Node,
    _link: Link,
    pub lab: Lab,
    markers: std::cell::Cell<u64>,
}

/// The inner addresses that both ends expect of each other.
pub fn here(family: Family) -> IpAddr {
    family.overlay(1)
}

/// See [`here`].
pub fn there(family: Family) -> IpAddr {
    family.overlay(2)
}

impl Half {
    /// Builds it with these families on the TUN, whose MTU is 1500; `change` sees the flags of weftd. Without IPv6 the
    /// node sends nothing of its own accord into the TUN, so that counters can be compared exactly.
    pub fn build(families: &[Family], change: impl FnOnce(&mut WeftdOptions)) -> Result<Option<Self>> {
        let Some(lab) = Lab::start() else { return Ok(None) };
        let Pair { link, a: node, b: peer } = Pair::new(&lab, 1500)?;
        if !families.contains(&Family::V6) {
            node.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        }
        let address = SocketAddr::new(Family::V4.underlay(1), PORT);
        let mut options = WeftdOptions { mtu: Some(1500), ..WeftdOptions::new(TUN, &address.to_string()) };
        change(&mut options);
        let weftd = lab.weftd(&node, options.clone())?;
        let addresses: Vec<String> = families.iter().map(|family| here(*family).to_string()).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let routes = [(Family::V4, "10.9.0.0/16"), (Family::V6, "fd09::/32")];
        let routes: Vec<&str> =
            routes.iter().filter(|route| families.contains(&route.0)).map(|route| route.1).collect();
        node.set_up_tun(TUN, 1500, &addresses, &routes)?;
        let bind = SocketAddr::new(Family::V4.underlay(2), PORT);
        let socket = peer.run(|| UdpSocket::bind(bind))?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_LEN)?;
        let injector = Injector::open(&node, TUN)?;
        let host = Host { number: 1, node, weftd, options, address, tun_mtu: 1500 };
        let this = Self { host, injector, socket, peer, _link: link, lab, markers: 0.into() };
        this.install(&[])?;
        Ok(Some(this))
    }

    /// Installs the peer's own prefixes, and these others with the underlay addresses that they lead to.
    pub fn install(&self, others: &[(&str, IpAddr)]) -> Result<()> {
        let own = Family::BOTH.map(|family| (family.subnet(2), Family::V4.underlay(2)));
        let others = others.iter().map(|(prefix, address)| (net(prefix), *address));
        let mut set = RouteSet::default();
        for (prefix, address) in own.into_iter().chain(others) {
            let addr = SocketAddr::new(address, PORT);
            let index = set.peers.iter().position(|peer| peer.addr == addr).unwrap_or_else(|| {
                set.peers.push(PeerSpec { name: None, addr, aliases: Vec::new() });
                set.peers.len() - 1
            });
            set.routes.push(RouteSpec { prefix, peer: index as u32 });
        }
        self.host.weftd.client()?.swap(&set, None)?;
        Ok(())
    }

    /// Sends a datagram from the peer to weftd.
    pub fn send_as_peer(&self, datagram: &[u8]) -> Result<()> {
        self.socket.send_to(datagram, self.host.address).context("sending as the peer")?;
        Ok(())
    }

    /// What the peer receives within the time of a test's patience, and from where.
    pub fn receive_as_peer(&self) -> Result<(Vec<u8>, SocketAddr)> {
        let mut buffer = vec![0; 1 << 16];
        let (len, from) = self.socket.recv_from(&mut buffer).context("receiving as the peer")?;
        buffer.truncate(len);
        Ok((buffer, from))
    }

    /// What weftd writes to the TUN.
    pub fn capture_tun(&self) -> Result<Capture> {
        Capture::start(&self.host.node, TUN, |frame| !frame.outgoing)
    }

    /// Sends a good packet from the host to the peer, and returns what arrived before it.
    pub fn encap_marker(&self) -> Result<Vec<Vec<u8>>> {
        let marker = self.marker(here(Family::V4), there(Family::V4));
        self.injector.send(&marker)?;
        let marker = craft::one_hop_on(&marker);
        let mut before = Vec::new();
        loop {
            let (datagram, _) = self.receive_as_peer().with_context(|| format!("{} came before", before.len()))?;
            if datagram == marker {
                return Ok(before);
            }
            before.push(datagram);
        }
    }

    /// Sends a good packet from the peer to the host, and returns what weftd wrote to the TUN before it.
    pub fn decap_marker(&self, capture: &Capture) -> Result<Vec<Vec<u8>>> {
        // To an address of the host's subnet that the host itself does not have: it answers nothing.
        let marker = self.marker(there(Family::V4), "10.9.1.77".parse()?);
        self.send_as_peer(&marker)?;
        let marker = craft::one_hop_on(&marker);
        eventually(TIMEOUT, || {
            let mut frames: Vec<Vec<u8>> = capture.frames().into_iter().map(|frame: Frame| frame.bytes).collect();
            let position = frames.iter().position(|frame| *frame == marker);
            ensure!(position.is_some(), "the marker did not come; {} frames did", frames.len());
            frames.truncate(position.unwrap_or(0));
            Ok(frames)
        })
    }

    fn marker(&self, from: IpAddr, to: IpAddr) -> Vec<u8> {
        let number = self.markers.replace(self.markers.get() + 1);
        Packet::udp(from, to, (7, 9), &number.to_be_bytes()).build()
    }

    /// Sends packets from the host, few at a time: weftd has read them before the next come. The TUN has room for 500, and a
    /// busy machine may keep weftd from reading.
    pub fn flood(&self, packets: impl IntoIterator<Item = Vec<u8>>) -> Result<()> {
        const BURST_LEN: usize = 200;
        let read = || -> Result<u64> { Ok(self.host.stats()?.counter("tun_read_packets")) };
        let mut packets = packets.into_iter().peekable();
        let mut expected = read()?;
        while packets.peek().is_some() {
            for packet in packets.by_ref().take(BURST_LEN) {
                self.injector.send(&packet)?;
                expected += 1;
            }
            eventually(TIMEOUT, || {
                let read = read()?;
                ensure!(read >= expected, "{read} packets read from the TUN, {expected} were sent");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Packets that weftd has dropped.
    pub fn dropped(&self) -> Result<u64> {
        Ok(self.host.stats()?.drops().values().sum())
    }

    /// Waits until weftd has dropped so many packets.
    pub fn has_dropped(&self, count: u64) -> Result<()> {
        eventually(TIMEOUT, || {
            let drops = self.host.stats()?.drops();
            let dropped: u64 = drops.values().sum();
            ensure!(dropped >= count, "{dropped} packets dropped and not {count}: {drops:?}");
            Ok(())
        })
    }
}
