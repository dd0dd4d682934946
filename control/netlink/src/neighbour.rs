//! Permanent neighbours, and the forwarding entries of a vxlan.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::socket::Subject;
use super::{Event, MacAddr, Netlink, Result};

/// A permanent neighbour: which hardware address an IP address on a link has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Neighbour {
    /// Index of the link.
    pub link: u32,
    /// IP address.
    pub address: IpAddr,
    /// Hardware address.
    pub mac: MacAddr,
}

/// A permanent forwarding entry of a vxlan itself (`bridge fdb ... self permanent`): behind which underlay address a
/// hardware address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FdbEntry {
    /// Index of the vxlan.
    pub link: u32,
    /// Hardware address of the far tunnel end.
    pub mac: MacAddr,
    /// Underlay address of the far tunnel end.
    pub dst: IpAddr,
}

impl Netlink {
    /// Adds or replaces a permanent neighbour.
    pub fn replace_neighbour(&mut self, neighbour: &Neighbour) -> Result<()> {
        let action = format_args!("replacing neighbour {} at {}", neighbour.address, neighbour.mac);
        let mut message = neighbour_message(neighbour.link, neighbour.address);
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(neighbour.mac.0.to_vec()));
        let message = RouteNetlinkMessage::NewNeighbour(message);
        self.change(Subject::on(&action, neighbour.link), NLM_F_CREATE | NLM_F_REPLACE, message)
    }

    /// Deletes a neighbour, permanent or learned; success if it, or its link, is gone.
    pub fn delete_neighbour(&mut self, link: u32, address: IpAddr) -> Result<()> {
        let action = format_args!("deleting neighbour {address}");
        let message = RouteNetlinkMessage::DelNeighbour(neighbour_message(link, address));
        self.delete(Subject::on(&action, link), message, &[Errno::NOENT, Errno::NODEV])
    }

    /// The permanent neighbours of a link, both families.
    pub fn neighbours(&mut self, link: u32) -> Result<Vec<Neighbour>> {
        let message = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let objects = self.dump(Subject::on(&"listing neighbours", link), message)?;
        Ok(objects.iter().filter_map(read_permanent).filter(|found| found.link == link).collect())
    }

    /// Adds a forwarding entry, in the place of any other for that hardware address.
    pub fn replace_fdb(&mut self, entry: &FdbEntry) -> Result<()> {
        self.replace_fdb_message(entry, fdb_message(entry))
    }

    /// The same for a far tunnel end that has another UDP port than the vxlan itself.
    pub fn replace_fdb_with_port(&mut self, entry: &FdbEntry, port: u16) -> Result<()> {
        let mut message = fdb_message(entry);
        message.attributes.push(NeighbourAttribute::Port(port));
        self.replace_fdb_message(entry, message)
    }

    fn replace_fdb_message(&mut self, entry: &FdbEntry, message: NeighbourMessage) -> Result<()> {
        let action = format_args!("replacing FDB entry {} dst {}", entry.mac, entry.dst);
        let message = RouteNetlinkMessage::NewNeighbour(message);
        self.change(Subject::on(&action, entry.link), NLM_F_CREATE | NLM_F_REPLACE, message)
    }

    /// Deletes a forwarding entry; success if it, or its link, is gone.
    pub fn delete_fdb(&mut self, entry: &FdbEntry) -> Result<()> {
        let action = format_args!("deleting FDB entry {} dst {}", entry.mac, entry.dst);
        let message = RouteNetlinkMessage::DelNeighbour(fdb_message(entry));
        self.delete(Subject::on(&action, entry.link), message, &[Errno::NOENT, Errno::NODEV])
    }

    /// The permanent forwarding entries of a vxlan that lead to an underlay address.
    pub fn fdb(&mut self, link: u32) -> Result<Vec<FdbEntry>> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = link;
        let objects = self.dump(Subject::on(&"listing FDB", link), RouteNetlinkMessage::GetNeighbour(message))?;
        Ok(objects.iter().filter_map(read_permanent_fdb).filter(|found| found.link == link).collect())
    }
}

fn neighbour_message(link: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

fn fdb_message(entry: &FdbEntry) -> NeighbourMessage {
    let mut message = neighbour_message(entry.link, entry.dst);
    message.header.family = AddressFamily::Bridge;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()));
    message
}

impl Event {
    /// Reads an `RTM_NEWNEIGH` or `RTM_DELNEIGH` of a neighbour or of a vxlan's forwarding entry; other messages give `None`.
    pub(super) fn from_neighbour_message(message: RouteNetlinkMessage) -> Option<Self> {
        if let Some(neighbour) = read_permanent(&message) {
            return Some(Self::Neighbour(neighbour));
        }
        if let Some(entry) = read_permanent_fdb(&message) {
            return Some(Self::Fdb(entry));
        }
        let (RouteNetlinkMessage::NewNeighbour(neighbour) | RouteNetlinkMessage::DelNeighbour(neighbour)) = &message
        else {
            return None;
        };
        // What is deleted, or was permanent and is not: the kernel first marks a neighbour that it deletes as failed, and
        // may leave out its hardware address.
        let parts = Parts::of(neighbour);
        let link = neighbour.header.ifindex;
        match (parts.fdb_entry(link), parts.address) {
            (Some(entry), _) => Some(Self::FdbGone(entry)),
            (None, Some(address)) if neighbour.header.family != AddressFamily::Bridge => {
                Some(Self::NeighbourGone { link, address })
            }
            _ => None,
        }
    }
}

fn read_permanent(object: &RouteNetlinkMessage) -> Option<Neighbour> {
    let message = permanent(object).filter(|message| message.header.family != AddressFamily::Bridge)?;
    let parts = Parts::of(message);
    Some(Neighbour { link: message.header.ifindex, address: parts.address?, mac: parts.mac? })
}

fn read_permanent_fdb(object: &RouteNetlinkMessage) -> Option<FdbEntry> {
    let message = permanent(object)?;
    Parts::of(message).fdb_entry(message.header.ifindex)
}

fn permanent(object: &RouteNetlinkMessage) -> Option<&NeighbourMessage> {
    match object {
        RouteNetlinkMessage::NewNeighbour(message) if message.header.state == NeighbourState::Permanent => {
            Some(message)
        }
        _ => None,
    }
}

/// The attributes of a neighbour message that matter here.
struct Parts {
    is_fdb: bool,
    address: Option<IpAddr>,
    mac: Option<MacAddr>,
}

impl Parts {
    fn of(message: &NeighbourMessage) -> Self {
        let mut parts = Self { is_fdb: message.header.family == AddressFamily::Bridge, address: None, mac: None };
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(address) => parts.address = ip(address),
                NeighbourAttribute::LinkLayerAddress(bytes) => parts.mac = MacAddr::from_slice(bytes),
                _ => (),
            }
        }
        parts
    }

    /// The forwarding entry, if it leads to an underlay address: those of bridges lead to ports.
    fn fdb_entry(&self, link: u32) -> Option<FdbEntry> {
        let (mac, dst) = self.mac.zip(self.address)?;
        self.is_fdb.then_some(FdbEntry { link, mac, dst })
    }
}

/// An underlay address in a forwarding entry has no family but its length.
fn ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some((*address).into()),
        NeighbourAddress::Inet6(address) => Some((*address).into()),
        NeighbourAddress::Other(bytes) => match bytes.len() {
            4 => Some(<[u8; 4]>::try_from(bytes.as_slice()).ok()?.into()),
            16 => Some(<[u8; 16]>::try_from(bytes.as_slice()).ok()?.into()),
            _ => None,
        },
        _ => None,
    }
}
