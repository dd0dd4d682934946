//! Ready-made networks.

use anyhow::Result;
use weft_netlink::{NewLink, NewLinkKind};

use crate::{Lab, Link, Node};

/// Two hosts on one cable.
///
/// ```text
///   a u0 ------------------------- u0 b
///     192.0.2.1/24       192.0.2.2/24
///     2001:db8::1/64   2001:db8::2/64
/// ```
#[derive(Debug)]
pub struct Pair {
    /// The cable; dropped before its ends.
    pub link: Link,
    /// One host.
    pub a: Node,
    /// The other.
    pub b: Node,
}

impl Pair {
    /// Builds it. `mtu` is in bytes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(lab: &Lab, mtu: u32) -> Result<Self> {
        let (a, b) = (lab.node("a")?, lab.node("b")?);
        let link = Link::veth(&a, "u0", &b, "u0", mtu)?;
        link.addresses("192.0.2.1/24", "192.0.2.2/24")?;
        link.addresses("2001:db8::1/64", "2001:db8::2/64")?;
        Ok(Self { link, a, b })
    }
}

/// Two hosts and a router between them, for path MTU and TTL.
///
/// ```text
///   a u0 ------------------ left r right ------------------ u0 b
///     192.0.2.1/24  192.0.2.254/24  198.51.100.254/24  198.51.100.1/24
///     2001:db8:1::1/64   2001:db8:1::fe/64  2001:db8:2::fe/64  2001:db8:2::1/64
/// ```
#[derive(Debug)]
pub struct Routed {
    /// The cable from `a` to the router.
    pub left: Link,
    /// The cable from the router to `b`.
    pub right: Link,
    /// One host.
    pub a: Node,
    /// The router.
    pub r: Node,
    /// The other host.
    pub b: Node,
}

impl Routed {
    /// Builds it with the MTU of each cable, in bytes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(lab: &Lab, left_mtu: u32, right_mtu: u32) -> Result<Self> {
        let (a, r, b) = (lab.node("a")?, lab.node("r")?, lab.node("b")?);
        r.forward()?;
        let left = Link::veth(&a, "u0", &r, "left", left_mtu)?;
        let right = Link::veth(&r, "right", &b, "u0", right_mtu)?;
        left.addresses("192.0.2.1/24", "192.0.2.254/24")?;
        left.addresses("2001:db8:1::1/64", "2001:db8:1::fe/64")?;
        right.addresses("198.51.100.254/24", "198.51.100.1/24")?;
        right.addresses("2001:db8:2::fe/64", "2001:db8:2::1/64")?;
        a.route_via("0.0.0.0/0", "192.0.2.254", "u0")?;
        a.route_via("::/0", "2001:db8:1::fe", "u0")?;
        b.route_via("0.0.0.0/0", "198.51.100.254", "u0")?;
        b.route_via("::/0", "2001:db8:2::fe", "u0")?;
        Ok(Self { left, right, a, r, b })
    }
}

/// Several hosts on one switch: host `n`, counted from 1, has `192.0.2.n/24` and `2001:db8::n/64` on `u0`.
///
/// ```text
///   h1 u0 --- p1 |        | p3 --- u0 h3
///   h2 u0 --- p2 | switch | ...
/// ```
#[derive(Debug)]
pub struct Switched {
    /// The cables, in the order of the hosts; end `a` is at the host.
    pub links: Vec<Link>,
    /// The hosts.
    pub hosts: Vec<Node>,
    /// The switch, a node with the bridge `br0`.
    pub switch: Node,
}

impl Switched {
    /// Builds it with `host_count` hosts, at most 254. `mtu` is in bytes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(lab: &Lab, host_count: u8, mtu: u32) -> Result<Self> {
        let this = Self::ipv6_only(lab, host_count, mtu)?;
        for (number, host) in (1..).zip(&this.hosts) {
            host.address("u0", &format!("192.0.2.{number}/24"))?;
        }
        Ok(this)
    }

    /// The same without IPv4 addresses.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ipv6_only(lab: &Lab, host_count: u8, mtu: u32) -> Result<Self> {
        let switch = lab.node("switch")?;
        let mut netlink = switch.netlink()?;
        let bridge = netlink.add_link(&NewLink { up: true, ..NewLink::new("br0", NewLinkKind::Bridge) })?;
        let (mut hosts, mut links) = (Vec::new(), Vec::new());
        for number in 1..=host_count {
            let host = lab.node(&format!("h{number}"))?;
            let link = Link::veth(&host, "u0", &switch, &format!("p{number}"), mtu)?;
            netlink.set_master(link.b.index, Some(bridge.index))?;
            host.address("u0", &format!("2001:db8::{number:x}/64"))?;
            hosts.push(host);
            links.push(link);
        }
        Ok(Self { links, hosts, switch })
    }
}

/// A pod: a host that reaches the world through another one, which forwards for it.
///
/// ```text
///   pod eth0 ------------ NAME node
///      10.9.1.2/24   10.9.1.1/24
/// ```
#[derive(Debug)]
pub struct Pod {
    /// The cable; end `a` is at the pod.
    pub link: Link,
    /// The pod.
    pub node: Node,
}

impl Pod {
    /// Puts a pod behind `host`: `name` is the pod's and that of the link at the host (at most 15 bytes), `address` and
    /// `gateway` are with prefix length, `mtu` is in bytes.
    ///
    /// # Errors
    /// If a text is not an address with prefix length, or the kernel refuses.
    pub fn behind(lab: &Lab, host: &Node, name: &str, address: &str, gateway: &str, mtu: u32) -> Result<Self> {
        host.forward()?;
        let node = lab.node(name)?;
        let link = Link::veth(&node, "eth0", host, name, mtu)?;
        let this = Self { link, node };
        this.family(address, gateway)?;
        Ok(this)
    }

    /// Gives the pod an address and gateway of the other family too.
    ///
    /// # Errors
    /// As [`Pod::behind`].
    pub fn family(&self, address: &str, gateway: &str) -> Result<()> {
        self.link.addresses(address, gateway)?;
        let gateway = crate::node::parse_net(gateway)?.addr();
        let default = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        self.node.route_via(default, &gateway.to_string(), "eth0")
    }
}
