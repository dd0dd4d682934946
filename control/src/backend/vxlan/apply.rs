//! Plan against kernel: what is missing is added, what is ours and not planned is removed, the rest is not touched.

use super::plan::Wanted;
use crate::backend::peers::{Overlay, passed_over};
use crate::backend::routes::{self, Place, RouteTable};
use crate::backend::underlay::differ;
use crate::flannel::{BackendError, Reconciled};
use crate::netlink::{Event, FdbEntry, Link, MacAddr, Neighbour, Netlink, NetlinkError, Route, RouteKind};
use ipnet::IpNet;
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

/// What the last reconciliation left in the kernel, to tell changes by.
#[derive(Debug, Default)]
pub(super) struct Installed {
    link: Option<Link>,
    neighbours: HashMap<IpAddr, MacAddr>,
    fdb: HashMap<MacAddr, IpAddr>,
    routes: HashMap<IpNet, Route>,
}

/// What the device has.
struct Present {
    neighbours: HashMap<IpAddr, MacAddr>,
    fdb: HashSet<FdbEntry>,
}

/// Makes `plan` true on the device `link`. `table` is the main table as it is; with `is_direct`, routes through the underlay
/// may be flannel's.
pub(super) fn apply(
    netlink: &mut Netlink,
    link: Link,
    overlay: Overlay,
    table: &RouteTable,
    plan: Vec<Wanted>,
    is_direct: bool,
    done: &mut Reconciled,
) -> Result<Installed, BackendError> {
    let device = link.index;
    let present = Present {
        neighbours: netlink.neighbours(device)?.into_iter().map(|n| (n.address, n.mac)).collect(),
        fdb: netlink.fdb(device)?.into_iter().collect(),
    };
    let mut installed = Installed { link: Some(link), ..Installed::default() };
    for wanted in plan {
        match install(netlink, &wanted, device, overlay.network, table, &present, &mut done.changes) {
            Ok(()) => installed.note(wanted),
            Err(Failure::Peer(why)) => done.notes.push(passed_over(wanted.route.dst, &why)),
            Err(Failure::All(error)) => return Err(error.into()),
        }
    }
    prune(netlink, &installed, device, overlay.network, table, &present, &mut done.changes)?;
    if is_direct {
        done.notes.extend(routes::unknown(table, overlay, &installed.routes));
    }
    Ok(installed)
}

/// Why a peer has not what it needs.
enum Failure {
    /// It concerns this peer.
    Peer(String),
    /// The others would fare no better.
    All(NetlinkError),
}

impl From<NetlinkError> for Failure {
    fn from(error: NetlinkError) -> Self {
        match error.errno() {
            // The device is gone, or we may not: no matter of this peer.
            None | Some(Errno::NODEV | Errno::PERM | Errno::ACCESS) => Self::All(error),
            Some(_) => Self::Peer(error.to_string()),
        }
    }
}

/// Adds what a peer lacks: the tunnel's entries first and the route last, so that no packet meets half a way. What was added
/// is taken back if the rest fails.
fn install(
    netlink: &mut Netlink,
    wanted: &Wanted,
    device: u32,
    network: IpNet,
    table: &RouteTable,
    present: &Present,
    changes: &mut Vec<String>,
) -> Result<(), Failure> {
    let route = &wanted.route;
    let may_replace = |rival: &Route| is_ours(rival, device, network) || routes::is_like_flannels(rival, network);
    let place = table.place(route, may_replace);
    if let Place::Taken(rival) = place {
        return Err(Failure::Peer(routes::taken(netlink, rival)));
    }
    let mut added: Vec<&str> = Vec::new();
    let outcome = add(netlink, wanted, place == Place::Free, present, &mut added);
    if !added.is_empty() && outcome.is_ok() {
        changes.push(format!("peer {} at {}: {}", route.dst, wanted.public, added.join(", ")));
    }
    outcome.map_err(|error| {
        if let Some((entry, neighbour)) = &wanted.tunnel {
            // The first failure is the one to tell; what stays behind is not planned and is pruned the next time.
            if added.contains(&NEIGHBOUR) {
                let _ = netlink.delete_neighbour(neighbour.link, neighbour.address);
            }
            if added.contains(&FDB) {
                let _ = netlink.delete_fdb(entry);
            }
        }
        error.into()
    })
}

const FDB: &str = "FDB entry";
const NEIGHBOUR: &str = "neighbour";
const ROUTE: &str = "route";

fn add(
    netlink: &mut Netlink,
    wanted: &Wanted,
    add_route: bool,
    present: &Present,
    added: &mut Vec<&str>,
) -> Result<(), NetlinkError> {
    if let Some((entry, neighbour)) = &wanted.tunnel {
        if !present.fdb.contains(entry) {
            netlink.replace_fdb(entry)?;
            added.push(FDB);
        }
        if present.neighbours.get(&neighbour.address) != Some(&neighbour.mac) {
            netlink.replace_neighbour(neighbour)?;
            added.push(NEIGHBOUR);
        }
    }
    if add_route {
        netlink.replace_route(&wanted.route)?;
        added.push(ROUTE);
    }
    Ok(())
}

/// Removes what is ours and not wanted, routes first.
fn prune(
    netlink: &mut Netlink,
    installed: &Installed,
    device: u32,
    network: IpNet,
    table: &RouteTable,
    present: &Present,
    changes: &mut Vec<String>,
) -> Result<(), NetlinkError> {
    for route in table.stale(&installed.routes, |route| is_ours(route, device, network)) {
        netlink.delete_route(route)?;
        changes.push(format!("route {route} removed"));
    }
    // The hardware addresses of neighbours that are an administrator's.
    let mut kept = HashSet::new();
    for (address, mac) in &present.neighbours {
        if !network.contains(address) {
            kept.insert(*mac);
        } else if !installed.neighbours.contains_key(address) {
            netlink.delete_neighbour(device, *address)?;
            changes.push(format!("neighbour {address} at {mac} removed"));
        }
    }
    for entry in &present.fdb {
        let wanted = installed.fdb.get(&entry.mac);
        let is_wanted = match wanted {
            Some(dst) => *dst == entry.dst || !present.fdb.contains(&FdbEntry { dst: *dst, ..*entry }),
            None => false,
        };
        // All zeros and groups are where a vxlan floods to; flannel and weft have no such entries.
        if !is_wanted && super::device::is_unicast(entry.mac) && !kept.contains(&entry.mac) {
            netlink.delete_fdb(entry)?;
            changes.push(format!("FDB entry {} dst {} removed", entry.mac, entry.dst));
        }
    }
    Ok(())
}

/// Whether a route is one of this backend's: through its device by a gateway, or through the underlay with our mark.
fn is_ours(route: &Route, device: u32, network: IpNet) -> bool {
    let by_device = route.link == Some(device) && route.gateway.is_some() && route.kind == RouteKind::Unicast;
    (by_device && network.contains(&route.dst)) || routes::is_ours(route, network)
}

impl Installed {
    fn note(&mut self, wanted: Wanted) {
        if let Some((entry, neighbour)) = wanted.tunnel {
            self.fdb.insert(entry.mac, entry.dst);
            self.neighbours.insert(neighbour.address, neighbour.mac);
        }
        self.routes.insert(wanted.route.dst, wanted.route);
    }

    /// Whether an event says that something is not as it was left. `name` is that of the device.
    pub(super) fn is_changed_by(&self, event: &Event, name: &str, overlay: Option<Overlay>) -> bool {
        let device = self.link.as_ref().map_or(0, |link| link.index);
        let inside = |ip: &IpAddr| overlay.is_some_and(|overlay| overlay.network.contains(ip));
        match event {
            Event::Link(link) if link.index == device || link.name == name => {
                // It was seen before the kernel noticed its carrier.
                let is_same = |seen: &Link| {
                    seen.name == link.name && !differ(&Link { running: link.running, ..seen.clone() }, link)
                };
                !self.link.as_ref().is_some_and(is_same)
            }
            Event::LinkGone(link) => link.index == device || link.name == name,
            // Ours gone, or a stranger inside the network.
            Event::AddressGone(address) => address.link == device && inside(&address.ip()),
            Event::Address(address) => {
                let own = overlay.map(|overlay| overlay.own.network());
                address.link == device && inside(&address.ip()) && Some(address.ip()) != own
            }
            Event::RouteGone(route) => match self.routes.get(&route.dst) {
                Some(wanted) => wanted == route,
                // Perhaps what was in the way of a peer's route.
                None => {
                    route.link != Some(device) && overlay.is_some_and(|overlay| overlay.network.contains(&route.dst))
                }
            },
            Event::Route(route) => match self.routes.get(&route.dst) {
                Some(wanted) => wanted != route && route.metric <= wanted.metric,
                None => overlay.is_some_and(|overlay| is_ours(route, device, overlay.network)),
            },
            Event::NeighbourGone { link, address } => *link == device && self.neighbours.contains_key(address),
            Event::Neighbour(Neighbour { link, address, mac }) => {
                *link == device && inside(address) && self.neighbours.get(address) != Some(mac)
            }
            Event::FdbGone(entry) => entry.link == device && self.fdb.get(&entry.mac) == Some(&entry.dst),
            Event::Fdb(entry) => entry.link == device && self.fdb.get(&entry.mac) != Some(&entry.dst),
            Event::Link(_) | Event::Overrun => false,
        }
    }
}
