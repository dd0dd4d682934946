//! The kernel backends of a flannel cluster, driven as the daemon drives them: three hosts on a switch.
//!
//! ```text
//!   host n   lo 10.9.n.1, fd09:0:0:n::1     in the place of pods
//!            flannel.1 10.9.n.0/32, flannel-v6.1 fd09:0:0:n::/128     with vxlan
//!            u0 192.0.2.n/24, 2001:db8::n/64 ──── switch
//! ```

mod direct;
mod events;
mod host_gw;
mod scale;
mod stock;
mod underlay;
mod vxlan;
mod vxlan_peers;

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use serde_json::json;
use weft_control::backend::host_gw::HostGw;
use weft_control::backend::vxlan::{PreviousMacs, VxlanBackend, VxlanConfig};
use weft_control::flannel::external::{Families, InterfaceOptions, discover};
use weft_control::flannel::{Backend, ExternalInterface, FlannelLease, LeaseAttrs, OwnLease, Reconciled, Subnets};
use weft_lab::topology::Switched;
use weft_lab::{Lab, Node, Ping, PingOutcome, eventually, ping};
use weft_netlink::{Link, Netlink, Route, RouteFilter};

use crate::support::{Family, TIMEOUT};

const V4: Families = Families { v4: true, v6: false };
const DUAL: Families = Families { v4: true, v6: true };
const VXLAN: &str = "flannel.1";
const VXLAN_V6: &str = "flannel-v6.1";

/// A node of the cluster: its host, its backend, and what it published.
struct Member<B> {
    node: Node,
    number: u8,
    backend: B,
    attrs: LeaseAttrs,
}

fn subnet_v4(number: u8) -> ipnet::Ipv4Net {
    ipnet::Ipv4Net::new_assert([10, 9, number, 0].into(), 24)
}

fn subnets(number: u8, families: Families) -> Subnets {
    let v6 = format!("fd09:0:0:{number:x}::/64").parse().expect("a prefix");
    Subnets { v4: families.v4.then(|| subnet_v4(number)), v6: families.v6.then_some(v6) }
}

fn own_lease(number: u8, families: Families) -> OwnLease {
    OwnLease {
        network: families.v4.then(|| "10.9.0.0/16".parse().expect("a prefix")),
        network_v6: families.v6.then(|| "fd09::/32".parse().expect("a prefix")),
        subnets: subnets(number, families),
    }
}

/// A lease of a node that is not part of the lab, with this MAC and public IP.
fn stranger(number: u8, mac: &str, public: &str) -> FlannelLease {
    FlannelLease {
        subnets: subnets(number, V4),
        attrs: LeaseAttrs {
            public_ip: Some(public.parse().expect("an address")),
            backend_type: "vxlan".into(),
            backend_data: Some(json!({"VNI": 1, "VtepMAC": mac})),
            ..LeaseAttrs::default()
        },
        expires: None,
    }
}

/// `u0`, as `--iface u0` finds it.
fn external(node: &Node, families: Families) -> Result<ExternalInterface> {
    let options = InterfaceOptions { iface: vec!["u0".into()], ..Default::default() };
    Ok(discover(&mut node.netlink()?, &options, &[families], None)?.external)
}

impl<B: Backend + Send> Member<B> {
    /// Takes a backend through `prepare` and `start`, on its node.
    fn started(node: &Node, number: u8, families: Families, mut backend: B) -> Result<Self> {
        let attrs = node.run(|| -> Result<LeaseAttrs> {
            let attrs = backend.prepare()?;
            backend.start(&own_lease(number, families))?;
            Ok(attrs)
        })?;
        for family in Family::BOTH {
            node.address("lo", &format!("{}/{}", family.overlay(number), if family == Family::V4 { 32 } else { 128 }))?;
        }
        Ok(Self { node: node.clone(), number, backend, attrs })
    }

    fn lease(&self) -> FlannelLease {
        let families = Families { v4: self.attrs.public_ip.is_some(), v6: self.attrs.public_ipv6.is_some() };
        FlannelLease { subnets: subnets(self.number, families), attrs: self.attrs.clone(), expires: None }
    }

    fn reconcile(&mut self, peers: &[FlannelLease]) -> Result<Reconciled> {
        let backend = &mut self.backend;
        self.node.run(|| backend.reconcile(peers)).with_context(|| format!("on {}", self.node.name()))
    }

    /// Reconciles and demands that nothing was to be done or told.
    fn settled(&mut self, peers: &[FlannelLease]) -> Result<()> {
        let done = self.reconcile(peers)?;
        ensure!(done == Reconciled::default(), "not settled: {done:?}");
        Ok(())
    }

    fn netlink(&self) -> Result<Netlink> {
        self.node.netlink()
    }

    /// Pings until there is an answer: the kernel puts the local route of a new IPv6 address in later than the address
    /// (`addrconf_dad_work`).
    fn reaches(&self, other: u8, family: Family) -> Result<()> {
        let to = family.overlay(other);
        eventually(TIMEOUT, || {
            ping(&self.node, &Ping::quick(to))?
                .reply()
                .with_context(|| format!("from {} to {to}", self.node.name()))?;
            Ok(())
        })
    }

    fn does_not_reach(&self, other: u8) -> Result<()> {
        let outcome = ping(&self.node, &Ping::quick(Family::V4.overlay(other)))?;
        ensure!(!matches!(outcome, PingOutcome::Reply { .. }), "{outcome:?}");
        Ok(())
    }

    /// The routes to one destination in the main table.
    fn routes(&self, dst: &str) -> Result<Vec<Route>> {
        let dst: IpNet = dst.parse()?;
        Ok(self.netlink()?.routes(&RouteFilter { dst: Some(dst), ..Default::default() })?)
    }
}

fn vxlan_member(node: &Node, number: u8, config: VxlanConfig, families: Families) -> Result<Member<VxlanBackend>> {
    let external = external(node, families)?;
    let backend = node.run(|| VxlanBackend::new(config, families, external, PreviousMacs::default()))?;
    Member::started(node, number, families, backend)
}

fn host_gw_member(node: &Node, number: u8, families: Families) -> Result<Member<HostGw>> {
    let external = external(node, families)?;
    let backend = node.run(|| HostGw::new(families, external))?;
    Member::started(node, number, families, backend)
}

/// The leases of all members but one.
fn peers_of<B: Backend + Send>(members: &[Member<B>], number: u8) -> Vec<FlannelLease> {
    members.iter().filter(|member| member.number != number).map(Member::lease).collect()
}

/// Makes all members know each other.
fn mesh<B: Backend + Send>(members: &mut [Member<B>]) -> Result<()> {
    for index in 0..members.len() {
        let peers = peers_of(members, members[index].number);
        members[index].reconcile(&peers)?;
    }
    Ok(())
}

/// A cluster on a switch whose members know each other.
struct Cluster<B> {
    members: Vec<Member<B>>,
    net: Switched,
}

fn vxlan_cluster(lab: &Lab, count: u8, config: VxlanConfig, families: Families) -> Result<Cluster<VxlanBackend>> {
    let net = Switched::new(lab, count, 1500)?;
    let members = (1..).zip(&net.hosts).map(|(number, node)| vxlan_member(node, number, config, families));
    let mut members = members.collect::<Result<Vec<_>>>()?;
    mesh(&mut members)?;
    Ok(Cluster { members, net })
}

fn host_gw_cluster(lab: &Lab, count: u8, families: Families) -> Result<Cluster<HostGw>> {
    let net = Switched::new(lab, count, 1500)?;
    let members = (1..).zip(&net.hosts).map(|(number, node)| host_gw_member(node, number, families));
    let mut members = members.collect::<Result<Vec<_>>>()?;
    mesh(&mut members)?;
    Ok(Cluster { members, net })
}

/// A link without its carrier, which the kernel reports later than the rest.
fn same_device(before: &Link, after: &Link) -> bool {
    (before.index, before.mac, before.mtu, before.vxlan) == (after.index, after.mac, after.mtu, after.vxlan)
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address in a test")
}
