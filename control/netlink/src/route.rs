//! Routes, and what the kernel would do with a destination.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::socket::Subject;
use super::{Netlink, NetlinkError, Result};

/// Who made a route (`rtm_protocol`, `include/uapi/linux/rtnetlink.h`).
pub mod protocol {
    /// The kernel: routes that come with addresses.
    pub const KERNEL: u8 = 2;
    /// Made without saying by whom, as flannel does.
    pub const BOOT: u8 = 3;
    /// An administrator.
    pub const STATIC: u8 = 4;
}

/// Routing tables (`rt_class_t`, `include/uapi/linux/rtnetlink.h`).
pub mod table {
    /// The one that ordinary routes are in.
    pub const MAIN: u32 = 254;
    /// The kernel's own addresses and broadcasts.
    pub const LOCAL: u32 = 255;
}

/// The priority that the kernel gives an IPv6 route without one (`IP6_RT_PRIO_USER`).
const IP6_METRIC_DEFAULT: u32 = 1024;

/// A route. Equality is that of all fields; what [`Netlink::routes`] returns equals what was added.
///
/// A route over several next hops is read with `link` and `gateway` empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// Destination; host bits are zero.
    pub dst: IpNet,
    /// Index of the link that packets leave by; none for unreachable and the like.
    pub link: Option<u32>,
    /// Next hop, of the destination's family; none if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Source address for packets of this host that have none yet.
    pub source: Option<IpAddr>,
    /// Priority: lower wins. 0 is IPv4's default, 1024 that of IPv6.
    pub metric: u32,
    /// Largest packet along this route, in bytes, where it is less than that of the link.
    pub mtu: Option<u32>,
    /// Routing table, see [`table`].
    pub table: u32,
    /// Who made it, see [`protocol`].
    pub protocol: u8,
    /// The gateway is on the link, whatever the addresses of the link say.
    pub onlink: bool,
    /// What becomes of the packets.
    pub kind: RouteKind,
}

/// What becomes of packets that take a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteKind {
    /// They leave by a link.
    Unicast,
    /// They are dropped and the sender is told `EHOSTUNREACH`, ICMP host unreachable.
    Unreachable,
    /// They are dropped and nobody is told.
    Blackhole,
    /// They are dropped and the sender is told `EACCES`, ICMP administratively prohibited.
    Prohibit,
    /// The kernel's own kinds (`rtm_type`): local 2, broadcast 3, anycast 4, multicast 5, ...
    Other(u8),
}

impl Route {
    /// A route in the main table, by protocol boot, with default metric, to what is on a link.
    pub fn via_link(dst: impl Into<IpNet>, link: u32) -> Self {
        Self { link: Some(link), ..Self::to(dst.into(), RouteKind::Unicast) }
    }

    /// As [`Route::via_link`], to what is behind a gateway on that link.
    pub fn via_gateway(dst: impl Into<IpNet>, link: u32, gateway: impl Into<IpAddr>) -> Self {
        Self { gateway: Some(gateway.into()), ..Self::via_link(dst, link) }
    }

    /// A route in the main table, by protocol boot, with default metric, that refuses packets.
    pub fn unreachable(dst: impl Into<IpNet>) -> Self {
        Self::to(dst.into(), RouteKind::Unreachable)
    }

    fn to(dst: IpNet, kind: RouteKind) -> Self {
        Self {
            dst: dst.trunc(),
            link: None,
            gateway: None,
            source: None,
            metric: if dst.addr().is_ipv6() { IP6_METRIC_DEFAULT } else { 0 },
            mtu: None,
            table: table::MAIN,
            protocol: protocol::BOOT,
            onlink: false,
            kind,
        }
    }
}

/// `10.9.0.0/16 via 192.0.2.2 onlink`, without the link, which needs a look-up for its name.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RouteKind::Unicast => (),
            RouteKind::Unreachable => f.write_str("unreachable ")?,
            RouteKind::Blackhole => f.write_str("blackhole ")?,
            RouteKind::Prohibit => f.write_str("prohibit ")?,
            RouteKind::Other(kind) => write!(f, "type {kind} ")?,
        }
        write!(f, "{}", self.dst)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if self.onlink {
            f.write_str(" onlink")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        if self.table != table::MAIN {
            write!(f, " table {}", self.table)?;
        }
        Ok(())
    }
}

/// Which routes to list; the default is all of the main table.
#[derive(Debug, Clone, Copy)]
pub struct RouteFilter {
    /// Only this table; `None`: all.
    pub table: Option<u32>,
    /// Only routes by this link.
    pub link: Option<u32>,
    /// Only routes by this [`protocol`].
    pub protocol: Option<u8>,
    /// Only routes to exactly this destination.
    pub dst: Option<IpNet>,
}

impl Default for RouteFilter {
    fn default() -> Self {
        Self { table: Some(table::MAIN), link: None, protocol: None, dst: None }
    }
}

impl RouteFilter {
    fn admits(&self, route: &Route) -> bool {
        self.table.is_none_or(|table| table == route.table)
            && self.link.is_none_or(|link| Some(link) == route.link)
            && self.protocol.is_none_or(|protocol| protocol == route.protocol)
            && self.dst.is_none_or(|dst| dst == route.dst)
    }
}

/// How the kernel would send to one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved {
    /// Index of the link that packets leave by.
    pub link: u32,
    /// Next hop; none if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Source address that the kernel would choose.
    pub source: Option<IpAddr>,
    /// MTU of the route or learned for the destination, in bytes; none where that of the link holds.
    pub mtu: Option<u32>,
    /// The destination is an address of this host.
    pub local: bool,
}

impl Netlink {
    /// Adds a route; success if exactly this route is there.
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] if the table has another route to that destination with that metric.
    pub fn add_route(&mut self, route: &Route) -> Result<()> {
        let action = format_args!("adding route {route}");
        let message = RouteNetlinkMessage::NewRoute(route.to_message());
        let outcome = self.change(Subject::on(&action, route.link), NLM_F_CREATE | NLM_F_EXCL, message);
        let Err(error) = outcome else { return Ok(()) };
        if error.errno() != Some(Errno::EXIST) {
            return Err(error);
        }
        let filter = RouteFilter { table: Some(route.table), dst: Some(route.dst), ..RouteFilter::default() };
        let rivals: Vec<_> = self.routes(&filter)?.into_iter().filter(|found| found.metric == route.metric).collect();
        match rivals.first() {
            Some(_) if rivals.contains(route) => Ok(()),
            Some(rival) => Err(NetlinkError::Exists {
                what: format!("{action}{}", self.device(route.link)),
                difference: format!("{rival}{} proto {}", self.device(rival.link), rival.protocol),
            }),
            None => Err(error),
        }
    }

    /// Adds a route, in the place of any other to that destination with that metric in that table.
    pub fn replace_route(&mut self, route: &Route) -> Result<()> {
        let action = format_args!("replacing route {route}");
        let message = RouteNetlinkMessage::NewRoute(route.to_message());
        self.change(Subject::on(&action, route.link), NLM_F_CREATE | NLM_F_REPLACE, message)
    }

    /// Deletes a route; success if it, or its link, is gone. Compares destination, table, metric, kind, protocol, link
    /// and gateway; another route to that destination stays.
    pub fn delete_route(&mut self, route: &Route) -> Result<()> {
        let action = format_args!("deleting route {route}");
        let mut message = route.to_message();
        message.header.scope = RouteScope::NoWhere; // Any scope.
        let gone = [Errno::SRCH, Errno::NODEV];
        self.delete(Subject::on(&action, route.link), RouteNetlinkMessage::DelRoute(message), &gone)
    }

    /// The routes that `filter` admits, both families. Routes learned for single destinations are not among them.
    pub fn routes(&mut self, filter: &RouteFilter) -> Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let objects = self.dump(Subject::new(&"listing routes"), RouteNetlinkMessage::GetRoute(message))?;
            routes.extend(objects.into_iter().filter_map(Route::from_message).filter(|route| filter.admits(route)));
        }
        Ok(routes)
    }

    /// Asks the kernel which way it would send to `destination`; `None` if no route leads there.
    pub fn route_to(&mut self, destination: IpAddr) -> Result<Option<Resolved>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(destination.into()));
        let action = format_args!("resolving the route to {destination}");
        let absent = [Errno::NETUNREACH, Errno::HOSTUNREACH];
        let answer = self.get(Subject::new(&action), RouteNetlinkMessage::GetRoute(message), &absent)?;
        let Some(RouteNetlinkMessage::NewRoute(message)) = answer else { return Ok(None) };
        let local = message.header.kind == RouteType::Local;
        // IPv6 answers with the null route of the namespace, an error and no errno, where nothing else matches.
        let refused =
            matches!(message.header.kind, RouteType::Unreachable | RouteType::BlackHole | RouteType::Prohibit);
        let route = Parts::from_attributes(message.attributes);
        Ok(route.link.filter(|_| !refused).map(|link| Resolved {
            link,
            gateway: route.gateway,
            source: route.source,
            mtu: route.mtu,
            local,
        }))
    }
}

impl Route {
    fn to_message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = family(self.dst.addr());
        header.destination_prefix_length = self.dst.prefix_len();
        // Numbers above 255 are in RTA_TABLE alone.
        header.table = u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        header.protocol = self.protocol.into();
        header.kind = self.kind.into();
        // An IPv4 gateway has to be in a scope closer than the route (`fib_check_nh`, net/ipv4/fib_semantics.c).
        let direct = self.gateway.is_none() && self.kind == RouteKind::Unicast && self.dst.addr().is_ipv4();
        header.scope = if direct { RouteScope::Link } else { RouteScope::Universe };
        if self.onlink {
            header.flags = RouteFlags::Onlink;
        }
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Table(self.table));
        attributes.push(RouteAttribute::Destination(self.dst.network().into()));
        attributes.extend(self.link.map(RouteAttribute::Oif));
        attributes.extend(self.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
        attributes.extend(self.source.map(|source| RouteAttribute::PrefSource(source.into())));
        attributes.extend(Some(self.metric).filter(|metric| *metric != 0).map(RouteAttribute::Priority));
        attributes.extend(self.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        message
    }

    /// Reads an `RTM_NEWROUTE` or `RTM_DELROUTE`; other messages and learned routes (`RTM_F_CLONED`) give `None`.
    pub(super) fn from_message(message: RouteNetlinkMessage) -> Option<Self> {
        let (RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message)) = message else {
            return None;
        };
        let header = message.header;
        if header.flags.contains(RouteFlags::Cloned) {
            return None;
        }
        let len = header.destination_prefix_length;
        let parts = Parts::from_attributes(message.attributes);
        let dst = match header.address_family {
            AddressFamily::Inet => match parts.destination.unwrap_or(Ipv4Addr::UNSPECIFIED.into()) {
                IpAddr::V4(address) => IpNet::V4(Ipv4Net::new(address, len).ok()?),
                IpAddr::V6(_) => return None,
            },
            AddressFamily::Inet6 => match parts.destination.unwrap_or(Ipv6Addr::UNSPECIFIED.into()) {
                IpAddr::V6(address) => IpNet::V6(Ipv6Net::new(address, len).ok()?),
                IpAddr::V4(_) => return None,
            },
            _ => return None,
        };
        let kind = RouteKind::from(header.kind);
        Some(Self {
            dst,
            // IPv6 hangs its refusing routes on the loopback link.
            link: parts.link.filter(|_| !kind.refuses()),
            gateway: parts.gateway,
            source: parts.source,
            metric: parts.metric.unwrap_or(0),
            mtu: parts.mtu,
            table: parts.table.unwrap_or(header.table.into()),
            protocol: header.protocol.into(),
            onlink: header.flags.contains(RouteFlags::Onlink),
            kind,
        })
    }
}

impl RouteKind {
    fn refuses(self) -> bool {
        matches!(self, Self::Unreachable | Self::Blackhole | Self::Prohibit)
    }
}

impl From<RouteKind> for RouteType {
    fn from(kind: RouteKind) -> Self {
        match kind {
            RouteKind::Unicast => Self::Unicast,
            RouteKind::Unreachable => Self::Unreachable,
            RouteKind::Blackhole => Self::BlackHole,
            RouteKind::Prohibit => Self::Prohibit,
            RouteKind::Other(kind) => kind.into(),
        }
    }
}

impl From<RouteType> for RouteKind {
    fn from(kind: RouteType) -> Self {
        match kind {
            RouteType::Unicast => Self::Unicast,
            RouteType::Unreachable => Self::Unreachable,
            RouteType::BlackHole => Self::Blackhole,
            RouteType::Prohibit => Self::Prohibit,
            other => Self::Other(other.into()),
        }
    }
}

/// The attributes of a route message that matter here.
#[derive(Default)]
struct Parts {
    destination: Option<IpAddr>,
    link: Option<u32>,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    metric: Option<u32>,
    mtu: Option<u32>,
    table: Option<u32>,
}

impl Parts {
    fn from_attributes(attributes: Vec<RouteAttribute>) -> Self {
        let mut parts = Self::default();
        for attribute in attributes {
            match attribute {
                RouteAttribute::Destination(address) => parts.destination = ip(&address),
                RouteAttribute::Oif(index) => parts.link = Some(index),
                RouteAttribute::Gateway(address) => parts.gateway = ip(&address),
                RouteAttribute::PrefSource(address) => parts.source = ip(&address),
                RouteAttribute::Priority(metric) => parts.metric = Some(metric),
                RouteAttribute::Table(table) => parts.table = Some(table),
                RouteAttribute::Metrics(metrics) => {
                    parts.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                _ => (),
            }
        }
        parts
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
