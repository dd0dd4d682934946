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
use super::{MacAddr, Netlink, Result};

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
        Ok(objects.into_iter().filter_map(|object| read_neighbour(&object, link)).collect())
    }

    /// Adds a forwarding entry, in the place of any other for that hardware address.
    pub fn replace_fdb(&mut self, entry: &FdbEntry) -> Result<()> {
        let action = format_args!("replacing FDB entry {} dst {}", entry.mac, entry.dst);
        let message = RouteNetlinkMessage::NewNeighbour(fdb_message(entry));
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
        Ok(objects.into_iter().filter_map(|object| read_fdb(&object, link)).collect())
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

fn read_neighbour(object: &RouteNetlinkMessage, link: u32) -> Option<Neighbour> {
    let (address, mac) = read(object, link)?;
    let address = match address {
        NeighbourAddress::Inet(address) => address.into(),
        NeighbourAddress::Inet6(address) => address.into(),
        _ => return None,
    };
    Some(Neighbour { link, address, mac })
}

fn read_fdb(object: &RouteNetlinkMessage, link: u32) -> Option<FdbEntry> {
    let (address, mac) = read(object, link)?;
    let NeighbourAddress::Other(bytes) = address else { return None };
    let dst = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes.as_slice()).ok()?.into(),
        16 => <[u8; 16]>::try_from(bytes.as_slice()).ok()?.into(),
        _ => return None,
    };
    Some(FdbEntry { link, mac, dst })
}

/// Destination and hardware address of a permanent entry of `link`.
fn read(object: &RouteNetlinkMessage, link: u32) -> Option<(NeighbourAddress, MacAddr)> {
    let RouteNetlinkMessage::NewNeighbour(message) = object else { return None };
    if message.header.ifindex != link || message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(found) => address = Some(found.clone()),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = MacAddr::from_slice(bytes),
            _ => (),
        }
    }
    address.zip(mac)
}
