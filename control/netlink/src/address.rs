//! Addresses of links.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::socket::Subject;
use super::{Netlink, NetlinkError, Result};

/// An address of a link. IPv6 addresses are made without duplicate address detection (`nodad`), so that they may be used
/// at once; the overlay assigns each one to one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address {
    /// Index of its link.
    pub link: u32,
    /// The address, and the length of the prefix that is on the link: `10.9.1.0/32`, `10.9.1.1/24`.
    pub prefix: IpNet,
    /// The address of the other end of a point-to-point link, if it is not in `prefix`.
    pub peer: Option<IpAddr>,
}

impl Address {
    /// An address without a peer.
    pub fn new(link: u32, prefix: impl Into<IpNet>) -> Self {
        Self { link, prefix: prefix.into(), peer: None }
    }

    /// The address itself.
    pub fn ip(&self) -> IpAddr {
        self.prefix.addr()
    }
}

/// An address together with what the kernel says of its quality, for choosing among several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressState {
    /// The address.
    pub address: Address,
    /// Set for good (`IFA_F_PERMANENT`), rather than with a lifetime, as by DHCP or router advertisements.
    pub permanent: bool,
    /// A privacy address that the kernel will replace by another (`IFA_F_TEMPORARY`, IPv6). The same bit means "secondary"
    /// for IPv4 and is not taken over from there.
    pub temporary: bool,
    /// Not to be used for anything new (`IFA_F_DEPRECATED`): its preferred lifetime is over.
    pub deprecated: bool,
    /// Not usable: duplicate address detection is not over (`IFA_F_TENTATIVE`) or found a duplicate (`IFA_F_DADFAILED`).
    pub tentative: bool,
}

impl Netlink {
    /// Adds an address; success if the link has exactly this one.
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] if the link has it with another prefix length or peer.
    pub fn add_address(&mut self, address: &Address) -> Result<()> {
        let action = format_args!("adding address {}", address.prefix);
        let message = RouteNetlinkMessage::NewAddress(address.to_message());
        let outcome = self.change(Subject::on(&action, address.link), NLM_F_CREATE | NLM_F_EXCL, message);
        let Err(error) = outcome else { return Ok(()) };
        if error.errno() != Some(Errno::EXIST) {
            return Err(error);
        }
        match self.addresses(Some(address.link))?.into_iter().find(|found| found.ip() == address.ip()) {
            Some(found) if found == *address => Ok(()),
            Some(found) => Err(NetlinkError::Exists {
                what: format!("{action}{}", self.device(Some(address.link))),
                difference: match found.peer {
                    Some(peer) => format!("it is {} peer {peer}", found.prefix),
                    None => format!("it is {}", found.prefix),
                },
            }),
            None => Err(error),
        }
    }

    /// Adds an address or updates the one with the same address and prefix length.
    pub fn replace_address(&mut self, address: &Address) -> Result<()> {
        let action = format_args!("replacing address {}", address.prefix);
        let message = RouteNetlinkMessage::NewAddress(address.to_message());
        self.change(Subject::on(&action, address.link), NLM_F_CREATE | NLM_F_REPLACE, message)
    }

    /// Deletes an address; success if it, or its link, is gone.
    pub fn delete_address(&mut self, address: &Address) -> Result<()> {
        let action = format_args!("deleting address {}", address.prefix);
        let message = RouteNetlinkMessage::DelAddress(address.to_message());
        self.delete(Subject::on(&action, address.link), message, &[Errno::ADDRNOTAVAIL, Errno::NODEV])
    }

    /// The addresses of one link, or of all, both families.
    pub fn addresses(&mut self, link: Option<u32>) -> Result<Vec<Address>> {
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let objects = self.dump(Subject::on(&"listing addresses", link), message)?;
        let all = objects.into_iter().filter_map(Address::from_message);
        Ok(all.filter(|address| link.is_none_or(|index| index == address.link)).collect())
    }

    /// The addresses of all links, both families, with their quality, in the kernel's order.
    pub fn address_states(&mut self) -> Result<Vec<AddressState>> {
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let objects = self.dump(Subject::new(&"listing addresses"), message)?;
        Ok(objects.into_iter().filter_map(AddressState::from_message).collect())
    }
}

impl AddressState {
    fn from_message(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewAddress(inner) = &message else { return None };
        // IFA_FLAGS has all flags, the header the first eight.
        let full = inner.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Flags(flags) => Some(*flags),
            _ => None,
        });
        let flags = full.unwrap_or(AddressFlags::from_bits_retain(inner.header.flags.bits().into()));
        let is_ipv6 = inner.header.family == AddressFamily::Inet6;
        Some(Self {
            permanent: flags.contains(AddressFlags::Permanent),
            temporary: is_ipv6 && flags.contains(AddressFlags::Secondary),
            deprecated: flags.contains(AddressFlags::Deprecated),
            tentative: flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed)
                && !flags.contains(AddressFlags::Optimistic),
            address: Address::from_message(message)?,
        })
    }
}

impl Address {
    fn to_message(self) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = self.link;
        message.header.prefix_len = self.prefix.prefix_len();
        message.header.scope = AddressScope::Universe;
        message.attributes.push(AddressAttribute::Local(self.ip()));
        message.attributes.push(AddressAttribute::Address(self.peer.unwrap_or(self.ip())));
        match self.prefix {
            IpNet::V4(prefix) => {
                message.header.family = AddressFamily::Inet;
                if prefix.prefix_len() < 31 && self.peer.is_none() {
                    message.attributes.push(AddressAttribute::Broadcast(prefix.broadcast()));
                }
            }
            IpNet::V6(_) => {
                message.header.family = AddressFamily::Inet6;
                message.header.flags = AddressHeaderFlags::Nodad;
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
        }
        message
    }

    /// Reads an `RTM_NEWADDR` or `RTM_DELADDR`; other messages give `None`.
    pub(super) fn from_message(message: RouteNetlinkMessage) -> Option<Self> {
        let (RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message)) = message else {
            return None;
        };
        let (mut local, mut other) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(address) => local = Some(*address),
                AddressAttribute::Address(address) => other = Some(*address),
                _ => (),
            }
        }
        // IFA_ADDRESS is the peer where there is one, else the address; IPv6 omits IFA_LOCAL without a peer.
        let address = local.or(other)?;
        Some(Self {
            link: message.header.index,
            prefix: IpNet::new(address, message.header.prefix_len).ok()?,
            peer: other.filter(|other| *other != address),
        })
    }
}
