//! Links: reading them and changing what they have.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rustix::io::Errno;

use super::socket::Subject;
use super::{MacAddr, Netlink, NetlinkError, Result, Vxlan};

/// A network interface as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in this network namespace, never 0.
    pub index: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Largest IP packet it carries, in bytes.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// With carrier (`IFF_LOWER_UP`): a veth whose peer is down has none.
    pub carrier: bool,
    /// Operational (`IFF_RUNNING`): up, with carrier, and the kernel has noticed both. Until then it drops what is sent.
    pub running: bool,
    /// `veth`, `vxlan`, `bridge`, `tun`; none for loopback and hardware.
    pub kind: Option<String>,
    /// The bridge (or other master) it is a port of.
    pub master: Option<u32>,
    /// Hardware address; none for links without one, such as TUN.
    pub mac: Option<MacAddr>,
    /// Transmit queue length, in packets.
    pub txqueuelen: u32,
    /// The link beneath it or at its other end (`IFLA_LINK`): the underlay of a vxlan, the peer of a veth. The index is
    /// that of another namespace when the link beneath is in one.
    pub parent: Option<u32>,
    /// Largest super-packet it takes (`IFLA_GSO_MAX_SIZE`), in bytes.
    pub gso_max_size: Option<u32>,
    /// What a vxlan is made of; none for other kinds.
    pub vxlan: Option<Vxlan>,
}

/// A link by name or by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkRef<'a> {
    /// By name.
    Name(&'a str),
    /// By index.
    Index(u32),
}

impl<'a> From<&'a str> for LinkRef<'a> {
    fn from(name: &'a str) -> Self {
        Self::Name(name)
    }
}

impl<'a> From<&'a String> for LinkRef<'a> {
    fn from(name: &'a String) -> Self {
        Self::Name(name)
    }
}

impl From<u32> for LinkRef<'_> {
    fn from(index: u32) -> Self {
        Self::Index(index)
    }
}

impl fmt::Display for LinkRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Index(index) => write!(f, "#{index}"),
        }
    }
}

impl Netlink {
    /// Looks up one link; `None` if there is none.
    pub fn link<'a>(&mut self, link: impl Into<LinkRef<'a>>) -> Result<Option<Link>> {
        let link = link.into();
        let mut message = LinkMessage::default();
        match link {
            LinkRef::Name(name) => message.attributes.push(LinkAttribute::IfName(name.to_owned())),
            LinkRef::Index(index) => message.header.index = index,
        }
        let answer = self.get(
            Subject::new(&format_args!("looking up link {link}")),
            RouteNetlinkMessage::GetLink(message),
            &[Errno::NODEV],
        )?;
        Ok(answer.and_then(Link::from_message))
    }

    /// Looks up a link that has to be there.
    ///
    /// # Errors
    /// [`NetlinkError::NoSuchLink`] if it is not.
    pub fn expect_link<'a>(&mut self, link: impl Into<LinkRef<'a>>) -> Result<Link> {
        let link = link.into();
        self.link(link)?.ok_or_else(|| NetlinkError::NoSuchLink { what: format!("looking up link {link}") })
    }

    /// All links of the network namespace.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let objects =
            self.dump(Subject::new(&"listing links"), RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(objects.into_iter().filter_map(Link::from_message).collect())
    }

    /// Sets the link administratively up.
    pub fn set_up(&mut self, index: u32) -> Result<()> {
        let mut message = link_message(index);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.change(Subject::on(&"setting up", index), 0, RouteNetlinkMessage::SetLink(message))
    }

    /// Sets the link administratively down.
    pub fn set_down(&mut self, index: u32) -> Result<()> {
        let mut message = link_message(index);
        message.header.change_mask = LinkFlags::Up;
        self.change(Subject::on(&"setting down", index), 0, RouteNetlinkMessage::SetLink(message))
    }

    /// Sets the largest IP packet of the link, in bytes.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<()> {
        self.set(&format_args!("setting MTU {mtu}"), index, LinkAttribute::Mtu(mtu))
    }

    /// Sets the hardware address.
    pub fn set_mac(&mut self, index: u32, mac: MacAddr) -> Result<()> {
        self.set(&format_args!("setting hardware address {mac}"), index, LinkAttribute::Address(mac.0.to_vec()))
    }

    /// Sets the length of the transmit queue, in packets.
    pub fn set_txqueuelen(&mut self, index: u32, len: u32) -> Result<()> {
        self.set(&format_args!("setting transmit queue length {len}"), index, LinkAttribute::TxQueueLen(len))
    }

    /// Makes the link a port of a bridge, or of nothing.
    pub fn set_master(&mut self, index: u32, master: Option<u32>) -> Result<()> {
        let master = master.unwrap_or(0);
        self.set(&format_args!("setting master #{master}"), index, LinkAttribute::Controller(master))
    }

    /// Renames the link. Before Linux 6.2 the kernel refuses with `EBUSY` while the link is up.
    pub fn rename(&mut self, index: u32, name: &str) -> Result<()> {
        self.set(&format_args!("renaming to {name}"), index, LinkAttribute::IfName(name.to_owned()))
    }

    /// Moves the link to another network namespace, where it arrives down and without addresses.
    pub fn move_to_namespace(&mut self, index: u32, namespace: BorrowedFd<'_>) -> Result<()> {
        self.set(&"moving to another network namespace", index, LinkAttribute::NetNsFd(namespace.as_raw_fd()))
    }

    /// Deletes the link; success if there is none. The peer of a veth goes with it.
    pub fn delete_link(&mut self, index: u32) -> Result<()> {
        let message = RouteNetlinkMessage::DelLink(link_message(index));
        self.delete(Subject::on(&"deleting link", index), message, &[Errno::NODEV])
    }

    fn set(&mut self, action: &dyn fmt::Display, index: u32, attribute: LinkAttribute) -> Result<()> {
        let mut message = link_message(index);
        message.attributes.push(attribute);
        self.change(Subject::on(action, index), 0, RouteNetlinkMessage::SetLink(message))
    }
}

impl Link {
    /// Reads an `RTM_NEWLINK` or `RTM_DELLINK`; other messages give `None`.
    pub(super) fn from_message(message: RouteNetlinkMessage) -> Option<Self> {
        let (RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)) = message else {
            return None;
        };
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            running: flags.contains(LinkFlags::Running),
            kind: None,
            master: None,
            mac: None,
            txqueuelen: 0,
            parent: None,
            gso_max_size: None,
            vxlan: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::Address(bytes) => link.mac = MacAddr::from_slice(&bytes),
                LinkAttribute::TxQueueLen(len) => link.txqueuelen = len,
                LinkAttribute::Link(index) => link.parent = Some(index).filter(|i| *i != 0),
                LinkAttribute::GsoMaxSize(size) => link.gso_max_size = Some(size),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                            LinkInfo::Data(InfoData::Vxlan(data)) => link.vxlan = Some(Vxlan::from_attributes(&data)),
                            _ => (),
                        }
                    }
                }
                _ => (),
            }
        }
        Some(link)
    }
}

fn link_message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}
