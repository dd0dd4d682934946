//! Kernel VXLAN between two nodes, programmed as flannel's vxlan backend does.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use ipnet::IpNet;
use weft_netlink::{Address, FdbEntry, MacAddr, Neighbour, NewLink, NewLinkKind, Route, Vxlan};

use crate::node::parse_net;
use crate::{LinkEnd, Node};

/// Bytes that VXLAN adds to an inner packet over IPv4: Ethernet 14, VXLAN 8, UDP 8, IP 20 (RFC 7348 section 5).
const OVERHEAD_LEN: u32 = 50;
const VNI: u32 = 1;
/// The kernel's default port, which flannel leaves as it is.
const PORT: u16 = 8472;
const NAME: &str = "flannel.1";

/// One node's tunnel end `flannel.1`, VNI 1, UDP port 8472. Dropping it removes the link and all that hangs on it.
#[derive(Debug)]
pub struct FlannelVxlan {
    node: Node,
    index: u32,
    mac: MacAddr,
    local: Ipv4Addr,
    subnet: IpNet,
}

impl FlannelVxlan {
    /// Makes a tunnel end over the underlay link `end`, which has the IPv4 address `local`. `subnet` such as
    /// `10.9.1.0/24` is the node's; its first address becomes that of the tunnel end, with prefix length 32.
    ///
    /// # Errors
    /// If a text is not an address or prefix, or the kernel refuses.
    pub fn new(end: &LinkEnd, local: &str, subnet: &str) -> Result<Self> {
        let local: Ipv4Addr = local.parse().with_context(|| format!("underlay address `{local}`"))?;
        let subnet = parse_net(subnet)?.trunc();
        let mut netlink = end.node.netlink()?;
        let underlay = netlink.expect_link(end.index)?;
        let vxlan = Vxlan {
            vni: VNI,
            local: Some(local.into()),
            underlay: Some(underlay.index),
            port: PORT,
            learning: false,
            gbp: false,
        };
        let mtu = Some(underlay.mtu - OVERHEAD_LEN);
        let link = netlink.add_link(&NewLink { mtu, up: true, ..NewLink::new(NAME, NewLinkKind::Vxlan(vxlan)) })?;
        let mac = link.mac.context("a vxlan has a hardware address")?;
        let this = Self { node: end.node.clone(), index: link.index, mac, local, subnet };
        netlink.add_address(&Address::new(link.index, IpNet::from(subnet.network())))?;
        this.node.wait_running(NAME)?;
        Ok(this)
    }

    /// Makes `peer`'s subnet reachable: a permanent neighbour, a forwarding entry and an onlink route.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_peer(&self, peer: &Self) -> Result<()> {
        let mut netlink = self.node.netlink()?;
        let gateway = peer.subnet.network();
        netlink.replace_neighbour(&Neighbour { link: self.index, address: gateway, mac: peer.mac })?;
        netlink.replace_fdb(&FdbEntry { link: self.index, mac: peer.mac, dst: peer.local.into() })?;
        let route = Route { onlink: true, ..Route::via_gateway(peer.subnet, self.index, gateway) };
        netlink.replace_route(&route)?;
        Ok(())
    }

    /// The link's name.
    pub fn name(&self) -> &str {
        NAME
    }

    /// The link's index.
    pub fn index(&self) -> u32 {
        self.index
    }
}

impl Drop for FlannelVxlan {
    fn drop(&mut self) {
        // What is left if this fails goes with its namespace.
        let _ = self.node.netlink().map(|mut netlink| netlink.delete_link(self.index));
    }
}
