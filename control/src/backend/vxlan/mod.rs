//! The vxlan backend: a kernel VXLAN device per family and, for each peer, what makes its subnet reachable.
//!
//! ```text
//! 10.9.2.0/24 via 10.9.2.0 dev flannel.1 onlink     the route, to the peer's subnet by its first address
//! 10.9.2.0    lladdr c6:d2:32:6f:8f:44 PERMANENT    the neighbour: whose hardware address that first address has
//! c6:d2:32:6f:8f:44 dst 192.0.2.2 self permanent    the FDB entry: behind which underlay address that is
//! ```
//!
//! Everything on the device that looks like one of these is ours, and pruned when no peer wants it; entries about what is
//! not inside the network, and routes without a gateway, are an administrator's and stay. With `DirectRouting`, peers on
//! the same link have a route through the underlay instead ([`super::routes`]); which ones is asked anew at each
//! reconciliation.
//!
//! Where this differs from flannel (`pkg/backend/vxlan`): `local` is the interface's own address, because the kernel cannot
//! send from a public IP that a NAT holds; the MTU of an existing device follows; the IPv6 device is 20 bytes smaller, as
//! its outer header demands; everything is checked at each reconciliation, not only announced peers.

mod apply;
mod config;
mod device;
mod plan;

pub use config::VxlanConfig;

use super::peers::{Family, Overlay, admit, field};
use super::routes::RouteTable;
use super::underlay;
use crate::flannel::external::Families;
use crate::flannel::{Backend, BackendError, ExternalInterface, FlannelLease, LeaseAttrs, OwnLease, Reconciled};
use crate::netlink::{Address, Event, Link, MacAddr, Netlink, Resolved, Route, Vxlan};
use apply::Installed;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::IpAddr;

/// `BackendType` of the leases.
const TYPE: &str = "vxlan";
/// Ethernet 14, VXLAN 8, UDP 8 and IPv4 20 bytes (RFC 7348 section 5).
const OVERHEAD_LEN_V4: u32 = 50;
/// The same with an outer IPv6 header of 40 bytes.
const OVERHEAD_LEN_V6: u32 = 70;
/// Smallest MTU of the device: what IPv4 needs (RFC 791).
const MTU_MIN: u32 = 68;

/// Hardware addresses that peers know of us from our own record in the registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PreviousMacs {
    /// Of `flannel.<VNI>`.
    pub v4: Option<MacAddr>,
    /// Of `flannel-v6.<VNI>`.
    pub v6: Option<MacAddr>,
}

impl PreviousMacs {
    /// Reads what a record of ours has published; nothing, if it is another backend's.
    pub fn from_attrs(attrs: &LeaseAttrs) -> Self {
        let mac = |data: &Option<Value>| {
            let mac: MacAddr = field(data.as_ref()?, "VtepMAC")?.as_str()?.parse().ok()?;
            Some(mac).filter(|mac| device::is_unicast(*mac))
        };
        if attrs.backend_type != TYPE {
            return Self::default();
        }
        Self { v4: mac(&attrs.backend_data), v6: mac(&attrs.backend_v6_data) }
    }
}

/// The vxlan backend of one node.
#[derive(Debug)]
pub struct VxlanBackend {
    netlink: Netlink,
    config: VxlanConfig,
    external: ExternalInterface,
    sides: Vec<Side>,
    /// The external interface as the last reconciliation saw it.
    external_link: Option<Link>,
}

/// One family.
#[derive(Debug)]
struct Side {
    family: Family,
    /// Name of its device.
    name: String,
    mac: MacAddr,
    /// Known once there is a lease.
    overlay: Option<Overlay>,
    installed: Installed,
}

impl VxlanBackend {
    /// The backend for a network of these families, in the network namespace of the calling thread, by which all calls
    /// have to be made. `previous` are the addresses that peers know already; the address of a device that survived comes
    /// before them.
    ///
    /// # Errors
    /// The kernel gives no netlink socket or no random bytes.
    pub fn new(
        config: VxlanConfig,
        families: Families,
        external: ExternalInterface,
        previous: PreviousMacs,
    ) -> Result<Self, BackendError> {
        let mut sides = Vec::new();
        for (family, is_wanted, prefix, previous) in
            [(Family::V4, families.v4, "flannel", previous.v4), (Family::V6, families.v6, "flannel-v6", previous.v6)]
        {
            if is_wanted {
                let mac = previous.map_or_else(device::random_mac, Ok)?;
                let name = format!("{prefix}.{}", config.vni);
                sides.push(Side { family, name, mac, overlay: None, installed: Installed::default() });
            }
        }
        Ok(Self { netlink: Netlink::open()?, config, external, sides, external_link: None })
    }

    /// MTU of one device, in bytes.
    fn device_mtu(&self, family: Family, external_mtu: u32) -> u32 {
        let underlay = self.config.mtu.unwrap_or(external_mtu).min(external_mtu);
        let overhead = if family == Family::V4 { OVERHEAD_LEN_V4 } else { OVERHEAD_LEN_V6 };
        underlay.saturating_sub(overhead).max(MTU_MIN)
    }

    fn attrs(&self) -> LeaseAttrs {
        let data = |family: Family| {
            let side = self.sides.iter().find(|side| side.family == family)?;
            Some(json!({"VNI": self.config.vni, "VtepMAC": side.mac.to_string()}))
        };
        LeaseAttrs {
            public_ip: self.external.public,
            public_ipv6: self.external.public_v6,
            backend_type: TYPE.to_owned(),
            backend_data: data(Family::V4),
            backend_v6_data: data(Family::V6),
        }
    }

    /// Makes and mends the devices, on the external interface as it is at this moment.
    fn ensure_devices(&mut self, changes: &mut Vec<String>) -> Result<Vec<Link>, BackendError> {
        let external = underlay::link(&mut self.netlink, &self.external)?;
        let mut links = Vec::new();
        for index in 0..self.sides.len() {
            let side = &self.sides[index];
            let vxlan = Vxlan {
                vni: self.config.vni,
                local: underlay::own_address(&self.external, side.family),
                underlay: Some(external.index),
                port: self.config.port,
                learning: self.config.learning,
                gbp: self.config.gbp,
            };
            let mtu = self.device_mtu(side.family, external.mtu);
            let spec = device::Spec { name: &side.name, mac: side.mac, mtu, vxlan };
            links.push(device::ensure(&mut self.netlink, &spec, changes)?);
        }
        self.external_link = Some(external);
        Ok(links)
    }

    /// Gives the devices their addresses.
    fn ensure_addresses(
        &mut self,
        links: &[Link],
        present: &[Address],
        changes: &mut Vec<String>,
    ) -> Result<(), BackendError> {
        for (side, link) in self.sides.iter().zip(links) {
            if let Some(overlay) = side.overlay {
                device::ensure_address(&mut self.netlink, link, overlay, present, changes)?;
            }
        }
        Ok(())
    }
}

impl Backend for VxlanBackend {
    fn prepare(&mut self) -> Result<LeaseAttrs, BackendError> {
        for side in &mut self.sides {
            if underlay::own_address(&self.external, side.family).is_none() {
                return Err(BackendError::Config(format!(
                    "{} has no {} address, which {} needs; give it one, or choose another interface with --iface",
                    self.external.name, side.family, side.name
                )));
            }
            let survivor = device::existing(&mut self.netlink, &side.name)?.and_then(|link| link.mac);
            side.mac = survivor.filter(|mac| device::is_unicast(*mac)).unwrap_or(side.mac);
        }
        Ok(self.attrs())
    }

    fn mtu(&self) -> u32 {
        let mtus = self.sides.iter().map(|side| self.device_mtu(side.family, self.external.mtu));
        mtus.min().unwrap_or(self.external.mtu)
    }

    fn start(&mut self, own: &OwnLease) -> Result<(), BackendError> {
        for side in &mut self.sides {
            side.overlay = Overlay::of(own, side.family);
            if side.overlay.is_none() {
                return Err(BackendError::Config(format!("the lease has no {} subnet for {}", side.family, side.name)));
            }
        }
        let links = self.ensure_devices(&mut Vec::new())?;
        let present = self.netlink.addresses(None)?;
        self.ensure_addresses(&links, &present, &mut Vec::new())
    }

    fn reconcile(&mut self, peers: &[FlannelLease]) -> Result<Reconciled, BackendError> {
        let mut done = Reconciled::default();
        let links = self.ensure_devices(&mut done.changes)?;
        let addresses = self.netlink.addresses(None)?;
        self.ensure_addresses(&links, &addresses, &mut done.changes)?;
        if let Some(mtu) = self.config.mtu.filter(|mtu| *mtu > self.external.mtu) {
            let (name, own) = (&self.external.name, self.external.mtu);
            done.notes
                .push(format!("Backend.MTU is {mtu}, but {name} carries no more than {own} bytes, so {own} is taken"));
        }
        let table = RouteTable::new(self.netlink.routes(&Default::default())?);
        let mut local: HashSet<IpAddr> = addresses.iter().map(Address::ip).collect();
        local.extend(self.external.public.map(IpAddr::from));
        local.extend(self.external.public_v6.map(IpAddr::from));
        for (side, link) in self.sides.iter_mut().zip(links) {
            let Some(overlay) = side.overlay else { continue };
            let admitted = admit(peers, side.family, TYPE, overlay, &local, &mut done.notes);
            let netlink = &mut self.netlink;
            let (is_direct, device) = (self.config.direct_routing, link.index);
            let direct = |public| {
                let way = if is_direct { netlink.route_to(public)? } else { None };
                let is_on_link = |way: &Resolved| way.gateway.is_none() && !way.local && way.link != device;
                Ok(way.filter(is_on_link).map(|way| way.link))
            };
            let plan = plan::plan(&admitted, device, self.config.vni, side.mac, direct, &mut done.notes)?;
            side.installed = apply::apply(&mut self.netlink, link, overlay, &table, plan, is_direct, &mut done)?;
        }
        Ok(done)
    }

    fn concerns(&self, event: &Event) -> bool {
        let is_underlay = |route: &Route| {
            let inside = |side: &Side| side.overlay.is_some_and(|overlay| overlay.network.contains(&route.dst));
            self.config.direct_routing && !self.sides.iter().any(inside)
        };
        match event {
            Event::Overrun => true,
            Event::Link(link) | Event::LinkGone(link) if link.name == self.external.name => {
                matches!(event, Event::LinkGone(_))
                    || self.external_link.as_ref().is_none_or(|seen| underlay::differ(seen, link))
            }
            Event::Route(route) | Event::RouteGone(route) if is_underlay(route) => true,
            _ => self.sides.iter().any(|side| side.installed.is_changed_by(event, &side.name, side.overlay)),
        }
    }

    fn follow(&mut self, external: &ExternalInterface) -> Result<LeaseAttrs, BackendError> {
        self.external = external.clone();
        Ok(self.attrs())
    }
}
