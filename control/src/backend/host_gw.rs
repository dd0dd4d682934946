//! The host-gw backend: each peer's subnet is routed to the peer itself, on the link that both share.
//!
//! ```text
//! 10.9.2.0/24 via 192.0.2.2 dev eth0 proto 87
//! ```
//!
//! No device, no encapsulation, no loss of MTU. What flannel makes (`pkg/backend/hostgw`, `pkg/backend/route_network.go`)
//! differs in the protocol number alone, see [`super::routes`].

use super::peers::{Family, Overlay, admit, passed_over};
use super::routes::{self, Place, RouteTable};
use super::underlay;
use crate::flannel::external::Families;
use crate::flannel::{Backend, BackendError, ExternalInterface, FlannelLease, LeaseAttrs, OwnLease, Reconciled};
use crate::netlink::{Address, Event, Link, Netlink, NetlinkError, Route};
use ipnet::IpNet;
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

/// `BackendType` of the leases.
const TYPE: &str = "host-gw";

/// The host-gw backend of one node.
#[derive(Debug)]
pub struct HostGw {
    netlink: Netlink,
    families: Vec<Family>,
    external: ExternalInterface,
    overlays: Vec<(Family, Overlay)>,
    /// The external interface as the last reconciliation saw it.
    external_link: Option<Link>,
    /// The routes that the last reconciliation left.
    installed: HashMap<IpNet, Route>,
}

impl HostGw {
    /// The backend for a network of these families, in the network namespace of the calling thread, by which all calls
    /// have to be made.
    ///
    /// # Errors
    /// The kernel gives no netlink socket.
    pub fn new(families: Families, external: ExternalInterface) -> Result<Self, BackendError> {
        let families = [(families.v4, Family::V4), (families.v6, Family::V6)];
        Ok(Self {
            netlink: Netlink::open()?,
            families: families.into_iter().filter(|(is_wanted, _)| *is_wanted).map(|(_, family)| family).collect(),
            external,
            overlays: Vec::new(),
            external_link: None,
            installed: HashMap::new(),
        })
    }

    /// Peers route to the public IP, so it has to be this host's on that link.
    fn check_public(&self) -> Result<(), BackendError> {
        let external = &self.external;
        for family in &self.families {
            let Some(own) = underlay::own_address(external, *family) else {
                let text = format!("{} has no {family} address; choose another interface with --iface", external.name);
                return Err(BackendError::Config(text));
            };
            if let Some(public) = underlay::public_address(external, *family).filter(|public| *public != own) {
                return Err(BackendError::Config(format!(
                    "host-gw cannot work with public IP {public}: peers send to it directly, and {} has {own}; leave out \
                     --public-ip, choose the interface that has it with --iface, or use the vxlan or udp backend",
                    external.name
                )));
            }
        }
        Ok(())
    }

    fn attrs(&self) -> LeaseAttrs {
        LeaseAttrs {
            public_ip: self.external.public,
            public_ipv6: self.external.public_v6,
            backend_type: TYPE.to_owned(),
            ..LeaseAttrs::default()
        }
    }

    /// Makes one peer's route true, or says why that cannot be.
    fn install(
        &mut self,
        route: &Route,
        network: IpNet,
        table: &RouteTable,
        changes: &mut Vec<String>,
    ) -> Result<Result<(), String>, NetlinkError> {
        let may_replace = |rival: &Route| routes::is_ours(rival, network) || routes::is_like_flannels(rival, network);
        match table.place(route, may_replace) {
            Place::AsWanted => return Ok(Ok(())),
            Place::Taken(rival) => return Ok(Err(routes::taken(&mut self.netlink, rival))),
            Place::Free => (),
        }
        match self.netlink.replace_route(route) {
            Ok(()) => {
                changes.push(format!("route {route} dev {}", self.external.name));
                Ok(Ok(()))
            }
            Err(error) => match error.errno() {
                // IPv4 says the first, IPv6 one of the others (`fib_check_nh`, `ip6_route_check_nh`).
                Some(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::INVAL) => Ok(Err(format!(
                    "its public IP is not on the link of {}, as host-gw needs it, or the link is down ({error}); put the \
                     nodes on one link, or use the vxlan backend",
                    self.external.name
                ))),
                None | Some(Errno::NODEV | Errno::PERM | Errno::ACCESS) => Err(error),
                Some(_) => Ok(Err(error.to_string())),
            },
        }
    }
}

impl Backend for HostGw {
    fn prepare(&mut self) -> Result<LeaseAttrs, BackendError> {
        self.check_public()?;
        Ok(self.attrs())
    }

    fn mtu(&self) -> u32 {
        self.external.mtu
    }

    fn start(&mut self, own: &OwnLease) -> Result<(), BackendError> {
        self.overlays.clear();
        for family in &self.families {
            let found = Overlay::of(own, *family);
            let missing = || BackendError::Config(format!("the lease has no {family} subnet"));
            self.overlays.push((*family, found.ok_or_else(missing)?));
        }
        Ok(())
    }

    fn reconcile(&mut self, peers: &[FlannelLease]) -> Result<Reconciled, BackendError> {
        let mut done = Reconciled::default();
        let link = underlay::link(&mut self.netlink, &self.external)?;
        let local: HashSet<IpAddr> = self.netlink.addresses(None)?.iter().map(Address::ip).collect();
        let table = RouteTable::new(self.netlink.routes(&Default::default())?);
        self.installed.clear();
        for (family, overlay) in self.overlays.clone() {
            let mut wanted: HashMap<IpNet, Route> = HashMap::new();
            for peer in admit(peers, family, TYPE, overlay, &local, &mut done.notes) {
                let route = routes::through_underlay(peer.subnet, peer.public, link.index);
                match self.install(&route, overlay.network, &table, &mut done.changes)? {
                    Ok(()) => drop(wanted.insert(route.dst, route)),
                    Err(why) => done.notes.push(passed_over(peer.subnet, &why)),
                }
            }
            for stale in table.stale(&wanted, |route| routes::is_ours(route, overlay.network)) {
                self.netlink.delete_route(stale)?;
                done.changes.push(format!("route {stale} removed"));
            }
            done.notes.extend(routes::unknown(&table, overlay, &wanted));
            self.installed.extend(wanted);
        }
        self.external_link = Some(link);
        Ok(done)
    }

    fn concerns(&self, event: &Event) -> bool {
        match event {
            Event::Overrun => true,
            Event::Link(link) if link.name == self.external.name => {
                self.external_link.as_ref().is_none_or(|seen| underlay::differ(seen, link))
            }
            Event::LinkGone(link) => link.name == self.external.name,
            Event::RouteGone(route) => match self.installed.get(&route.dst) {
                Some(wanted) => wanted == route,
                // What was in the way of a peer's route.
                None => self.is_inside(route),
            },
            Event::Route(route) => match self.installed.get(&route.dst) {
                Some(wanted) => wanted != route && route.metric <= wanted.metric,
                None => self.overlays.iter().any(|(_, overlay)| routes::is_ours(route, overlay.network)),
            },
            // A peer may be on the link by a new address.
            Event::Address(address) => self.external_link.as_ref().is_some_and(|link| link.index == address.link),
            _ => false,
        }
    }

    fn follow(&mut self, external: &ExternalInterface) -> Result<LeaseAttrs, BackendError> {
        self.external = external.clone();
        self.check_public()?;
        Ok(self.attrs())
    }
}

impl HostGw {
    fn is_inside(&self, route: &Route) -> bool {
        self.overlays.iter().any(|(_, overlay)| overlay.network.contains(&route.dst))
    }
}
