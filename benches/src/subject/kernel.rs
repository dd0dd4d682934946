//! What the kernel does by itself: VXLAN, and a plain route.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use weft_lab::FlannelVxlan;

use super::peers::{self, Peer};
use super::{Facts, Site, Subject, underlay};

/// Kernel VXLAN as flannel programs it.
pub struct Vxlan {
    ends: [FlannelVxlan; 2],
    addresses: [IpAddr; 2],
    mtu: u32,
}

impl Vxlan {
    /// Makes a tunnel end on each host, known to the other.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(site: &Site<'_>) -> Result<Self> {
        let [a, b] = site.ends().map(|(host, end)| {
            FlannelVxlan::new(end, &underlay(host).to_string(), &site.subnet(host)).context("making a vxlan device")
        });
        let ends = [a?, b?];
        ends[0].add_peer(&ends[1])?;
        ends[1].add_peer(&ends[0])?;
        peers::vxlan(site, ends[0].index())?;
        let mtu = site.link.a.node.link(ends[0].name())?.mtu;
        Ok(Self { ends, addresses: [1, 2].map(|host| site.overlay(host, 0).into()), mtu })
    }
}

impl Subject for Vxlan {
    fn addresses(&self) -> [IpAddr; 2] {
        self.addresses
    }

    fn facts(&self) -> Result<Facts> {
        let notes = vec![format!("device {} on both hosts", self.ends[0].name())];
        Ok(Facts { overlay_mtu: Some(self.mtu), notes, ..Facts::default() })
    }
}

/// A route to the other host, no tunnel.
pub struct HostGw {
    addresses: [IpAddr; 2],
    mtu: u32,
}

impl HostGw {
    /// Gives each host an address of its subnet, and a route to the other's.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(site: &Site<'_>) -> Result<Self> {
        for (host, end) in site.ends() {
            let other = 3 - host;
            end.node.address("lo", &format!("{}/32", site.overlay(host, 1)))?;
            end.node.route_via(&site.subnet(other), &underlay(other).to_string(), &end.name)?;
        }
        peers::route(&site.link.a, &site.peers())?;
        Ok(Self { addresses: [1, 2].map(|host| site.overlay(host, 1).into()), mtu: site.mtu })
    }
}

impl Subject for HostGw {
    fn addresses(&self) -> [IpAddr; 2] {
        self.addresses
    }

    /// No tunnel: the gateway is in no packet.
    fn outer_destination(&self, peer: &Peer) -> Ipv4Addr {
        peer.address()
    }

    fn facts(&self) -> Result<Facts> {
        Ok(Facts { overlay_mtu: Some(self.mtu), ..Facts::default() })
    }
}
