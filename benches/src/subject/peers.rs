//! Many peers behind one link: host b stands for all of them.
//!
//! ```text
//!   host a, one tunnel end            host b
//!   u0  192.0.2.1 ------------------- 198.18.1.1 ... 198.18.1.250  u0     a peer each, found by ARP
//!                                     10.n.1.0/24 ... 10.n.250.0/24       its subnet, in the network of subject n
//! ```
//!
//! So host a has as many peers, routes, neighbours or forwarding entries as if there were as many hosts. That each packet
//! goes to the peer that it is for is checked on the wire before anything is measured.

use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use weft_lab::{Capture, Frame, Link, LinkEnd, TIMEOUT, eventually};
use weft_netlink::{Address, FdbEntry, MacAddr, Neighbour, NewLink, NewLinkKind, Route, Vxlan};

use super::{Site, Subject};

/// How many.
pub const PEER_COUNT: u8 = 250;
/// Where their underlay addresses are (RFC 2544 has it for measurements).
const UNDERLAY: &str = "198.18.1.0/24";
/// Before the number of a peer in a datagram that looks for it.
const MARK: [u8; 15] = *b"weft-bench peer";
/// How long what was sent to a peer may be under way before it is sent again.
const UNDER_WAY: Duration = Duration::from_millis(50);
/// Bytes of Ethernet header, and where the destination is in the IPv4 header behind it.
const DESTINATION: std::ops::Range<usize> = 14 + 16..14 + 20;
/// The UDP port of the first peer's VXLAN. Each has its own: a vxlan accepts no packet for another's hardware address, and a
/// host has one for each identifier and port.
const VXLAN_PORT: u16 = 9001;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// From 1.
    pub number: u8,
    /// On the link.
    pub underlay: Ipv4Addr,
    /// Its part of the overlay.
    pub subnet: Ipv4Net,
}

impl Peer {
    /// The host in its subnet that datagrams go to.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet.network().to_bits() + 1)
    }
}

impl Site<'_> {
    /// The peers of this subject, if there are to be any.
    pub fn peers(&self) -> Vec<Peer> {
        let peer = |number| Peer {
            number,
            underlay: Ipv4Addr::new(198, 18, 1, number),
            subnet: Ipv4Net::new_assert(Ipv4Addr::new(10, self.number, number, 0), 24),
        };
        (1..=PEER_COUNT).filter(|_| self.has_peers).map(peer).collect()
    }

    /// The network of all their subnets.
    pub fn peers_network(&self) -> String {
        format!("10.{}.0.0/16", self.number)
    }

    /// Makes host b answer to every address of the peers' network, and checks that packets go to the peers they are for.
    ///
    /// # Errors
    /// The kernel's; or which peer is not reached, or by way of which other.
    pub fn finish_peers(&self, subject: &dyn Subject) -> Result<()> {
        let peers = self.peers();
        if peers.is_empty() {
            return Ok(());
        }
        // All of a prefix on the loopback link is the host's own.
        self.link.b.node.address("lo", &self.peers_network())?;
        let ways: Vec<_> = peers.iter().map(|peer| (peer.address(), subject.outer_destination(peer))).collect();
        check_ways(self.link, &ways).context("many peers")
    }
}

/// Gives host b the underlay addresses of all peers.
///
/// # Errors
/// The kernel's.
pub fn set_up_underlay(link: &Link) -> Result<()> {
    let mut netlink = link.b.node.netlink()?;
    for number in 1..=PEER_COUNT {
        netlink.add_address(&Address::new(link.b.index, Ipv4Net::from(Ipv4Addr::new(198, 18, 1, number))))?;
    }
    link.a.node.route(UNDERLAY, &link.a.name)
}

/// The peers as gateways of host a.
///
/// # Errors
/// The kernel's.
pub fn route(end: &LinkEnd, peers: &[Peer]) -> Result<()> {
    let mut netlink = end.node.netlink()?;
    for peer in peers {
        netlink.replace_route(&Route::via_gateway(peer.subnet, end.index, peer.underlay))?;
    }
    Ok(())
}

/// A VXLAN tunnel end for each peer on host b, and on host a, whose tunnel end is the link `index`, what flannel programs for
/// a peer: neighbour, forwarding entry, onlink route.
///
/// # Errors
/// The kernel's.
pub fn vxlan(site: &Site<'_>, index: u32) -> Result<()> {
    let (a, b) = (&site.link.a.node, &site.link.b);
    let (mut netlink, mut far) = (a.netlink()?, b.node.netlink()?);
    let mtu = Some(netlink.expect_link(index)?.mtu);
    for peer in site.peers() {
        let port = VXLAN_PORT + u16::from(peer.number) - 1;
        let local = Some(peer.underlay.into());
        let kind = Vxlan { vni: 1, local, underlay: Some(b.index), port, learning: false, gbp: false };
        let far_name = format!("peer{}", peer.number);
        let link = far.add_link(&NewLink { mtu, up: true, ..NewLink::new(&far_name, NewLinkKind::Vxlan(kind)) })?;
        let mac: MacAddr = link.mac.context("a vxlan has a hardware address")?;
        let gateway = peer.subnet.network();
        netlink.replace_neighbour(&Neighbour { link: index, address: gateway.into(), mac })?;
        netlink.replace_route(&Route { onlink: true, ..Route::via_gateway(peer.subnet, index, gateway) })?;
        netlink.replace_fdb_with_port(&FdbEntry { link: index, mac, dst: peer.underlay.into() }, port)?;
    }
    Ok(())
}

/// Sends to each of the addresses, until all are seen on the link, and compares where they go there.
fn check_ways(link: &Link, ways: &[(Ipv4Addr, Ipv4Addr)]) -> Result<()> {
    let b = &link.b;
    let capture = Capture::start(&b.node, &b.name, |frame| !frame.outgoing && seen(frame).is_some())?;
    let open = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    // Somebody has to take them: host b has one tunnel end for all peers, by which it would send their ICMP errors.
    let sink = b.node.run(open)?;
    let (socket, port) = (link.a.node.run(open)?, sink.local_addr()?.port());
    eventually(TIMEOUT, || {
        let frames = capture.frames();
        let is_missing =
            |number: &usize| frames.iter().all(|frame| seen(frame).is_none_or(|(seen, _)| seen != *number));
        let missing: Vec<_> = (0..ways.len()).filter(is_missing).collect();
        for number in &missing {
            let datagram = [&MARK[..], &[*number as u8], &[0; 48]].concat();
            socket.send_to(&datagram, (ways[*number].0, port))?;
        }
        let Some(first) = missing.first() else { return Ok(()) };
        thread::sleep(UNDER_WAY);
        bail!("nothing for {} of {} peers crosses the link, such as {}", missing.len(), ways.len(), ways[*first].0)
    })?;
    sink.set_read_timeout(Some(UNDER_WAY))?;
    while sink.recv(&mut []).is_ok() {}
    let frames = capture.stop();
    let is_wrong =
        |(number, outer): &(usize, Ipv4Addr)| ways.get(*number).is_none_or(|(_, expected)| expected != outer);
    let wrong: Vec<_> = frames.iter().filter_map(seen).filter(is_wrong).collect();
    let Some((number, outer)) = wrong.first() else { return Ok(()) };
    let (address, expected) = ways[*number];
    bail!(
        "WRONG PEER: {} of {} packets, such as that to {address}, which went to {outer}, not to {expected}",
        wrong.len(),
        frames.len()
    )
}

/// The number of the peer that a frame is for, counted from 0, and its destination on the underlay.
fn seen(frame: &Frame) -> Option<(usize, Ipv4Addr)> {
    let start = frame.bytes.windows(MARK.len()).position(|bytes| bytes == MARK)?;
    let number = *frame.bytes.get(start + MARK.len())?;
    let outer: [u8; 4] = frame.bytes.get(DESTINATION)?.try_into().ok()?;
    Some((usize::from(number), outer.into()))
}

#[cfg(test)]
mod tests {
    use weft_lab::Lab;
    use weft_lab::topology::Pair;

    use super::*;

    #[test]
    fn a_packet_that_goes_to_another_peer_is_found() {
        let Some(lab) = Lab::start() else { return };
        let pair = Pair::new(&lab, 1500).unwrap();
        set_up_underlay(&pair.link).unwrap();
        // Without a tunnel a packet goes to where it is for.
        let addresses = (1..=PEER_COUNT).map(|number| Ipv4Addr::new(198, 18, 1, number));
        let mut ways: Vec<_> = addresses.map(|address| (address, address)).collect();
        check_ways(&pair.link, &ways).unwrap();
        ways[7].1 = ways[8].1;
        let error = check_ways(&pair.link, &ways).unwrap_err().to_string();
        let expected = "such as that to 198.18.1.8, which went to 198.18.1.8, not to 198.18.1.9";
        assert!(error.contains("WRONG PEER: 1 of ") && error.contains(expected), "{error}");
    }
}
