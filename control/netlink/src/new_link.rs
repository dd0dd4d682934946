//! Making links.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rustix::io::Errno;

use super::socket::Subject;
use super::{Link, MacAddr, Netlink, NetlinkError, Result};

/// A link to make. What is `None` is left to the kernel.
#[derive(Debug, Clone, Copy)]
pub struct NewLink<'a> {
    /// Its name, at most 15 bytes.
    pub name: &'a str,
    /// Largest IP packet, in bytes.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub mac: Option<MacAddr>,
    /// Set administratively up at once.
    pub up: bool,
    /// What it is.
    pub kind: NewLinkKind<'a>,
}

impl<'a> NewLink<'a> {
    /// A link that is down and has the kernel's MTU and hardware address.
    pub fn new(name: &'a str, kind: NewLinkKind<'a>) -> Self {
        Self { name, mtu: None, mac: None, up: false, kind }
    }
}

/// The kinds of links that [`Netlink::add_link`] makes.
#[derive(Debug, Clone, Copy)]
pub enum NewLinkKind<'a> {
    /// One end of a virtual cable.
    Veth(Veth<'a>),
    /// A VXLAN tunnel end.
    Vxlan(Vxlan),
    /// An Ethernet bridge. Without ports it serves where other kernels would have a `dummy` link.
    Bridge,
}

/// The far end of a veth.
#[derive(Debug, Clone, Copy)]
pub struct Veth<'a> {
    /// Name of the peer, in its own namespace.
    pub peer_name: &'a str,
    /// Where the peer goes; `None`: this namespace.
    pub peer_namespace: Option<BorrowedFd<'a>>,
    /// MTU of the peer, in bytes.
    pub peer_mtu: Option<u32>,
    /// Hardware address of the peer.
    pub peer_mac: Option<MacAddr>,
}

/// A VXLAN tunnel end, as flannel makes and compares them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vxlan {
    /// The VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// Source address of outer packets.
    pub local: Option<IpAddr>,
    /// Index of the underlay link.
    pub underlay: Option<u32>,
    /// UDP port, source of none and destination of all. The kernel's default is 8472 (`vxlan_udp_port`).
    pub port: u16,
    /// Learn hardware addresses from what arrives; flannel sets it off and programs [`super::FdbEntry`].
    pub learning: bool,
    /// The group policy extension.
    pub gbp: bool,
}

impl Netlink {
    /// Makes a link and returns it as the kernel describes it.
    ///
    /// Success without a change if a vxlan or bridge of that name agrees in everything that is given, except that it is
    /// set up if that was asked for.
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] if a link of that name is different, or is a veth.
    pub fn add_link(&mut self, new: &NewLink<'_>) -> Result<Link> {
        let action = format_args!("adding {} {}", new.kind.name(), new.name);
        let message = RouteNetlinkMessage::NewLink(new.to_message());
        match self.change(Subject::new(&action), NLM_F_CREATE | NLM_F_EXCL, message) {
            Ok(()) => (),
            Err(error) if error.errno() == Some(Errno::EXIST) => {
                // A vxlan is also refused with EEXIST when another one has its VNI and port.
                let Some(existing) = self.link(new.name)? else { return Err(error) };
                if let Some(difference) = new.difference(&existing) {
                    return Err(NetlinkError::Exists { what: action.to_string(), difference });
                }
                if new.up && !existing.up {
                    self.set_up(existing.index)?;
                }
            }
            Err(error) => return Err(error),
        }
        self.expect_link(new.name)
    }
}

impl NewLink<'_> {
    fn to_message(self) -> LinkMessage {
        let mut message = LinkMessage::default();
        if self.up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        message.attributes.extend(common_attributes(self.name, self.mtu, self.mac));
        message.attributes.push(LinkAttribute::LinkInfo(self.kind.to_infos()));
        message
    }

    /// In what `existing` is not what was asked for.
    fn difference(&self, existing: &Link) -> Option<String> {
        if existing.kind.as_deref() != Some(self.kind.name()) {
            return Some(format!("it is a {}", existing.kind.as_deref().unwrap_or("link of another kind")));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu != existing.mtu) {
            return Some(format!("its MTU is {}, wanted {mtu}", existing.mtu));
        }
        if let Some(mac) = self.mac.filter(|mac| Some(*mac) != existing.mac) {
            return Some(format!("its hardware address is {:?}, wanted {mac}", existing.mac));
        }
        match self.kind {
            NewLinkKind::Veth(_) => Some("the peer of an existing veth is unknown".into()),
            NewLinkKind::Vxlan(wanted) => existing
                .vxlan
                .filter(|found| *found != wanted)
                .map(|found| format!("it is {found:?}, wanted {wanted:?}")),
            NewLinkKind::Bridge => None,
        }
    }
}

impl NewLinkKind<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Veth(_) => "veth",
            Self::Vxlan(_) => "vxlan",
            Self::Bridge => "bridge",
        }
    }

    fn to_infos(self) -> Vec<LinkInfo> {
        match self {
            Self::Veth(veth) => {
                let mut peer = LinkMessage::default();
                peer.attributes.extend(common_attributes(veth.peer_name, veth.peer_mtu, veth.peer_mac));
                peer.attributes.extend(veth.peer_namespace.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd())));
                vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)))]
            }
            Self::Vxlan(vxlan) => {
                vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(vxlan.to_attributes()))]
            }
            Self::Bridge => vec![LinkInfo::Kind(InfoKind::Bridge)],
        }
    }
}

impl Vxlan {
    fn to_attributes(self) -> Vec<InfoVxlan> {
        let mut attributes =
            vec![InfoVxlan::Id(self.vni), InfoVxlan::Port(self.port), InfoVxlan::Learning(self.learning)];
        attributes.extend(self.local.map(|address| match address {
            IpAddr::V4(address) => InfoVxlan::Local(address),
            IpAddr::V6(address) => InfoVxlan::Local6(address),
        }));
        attributes.extend(self.underlay.map(InfoVxlan::Link));
        attributes.extend(self.gbp.then_some(InfoVxlan::Gbp));
        attributes
    }

    pub(super) fn from_attributes(attributes: &[InfoVxlan]) -> Self {
        let mut vxlan = Self { vni: 0, local: None, underlay: None, port: 0, learning: false, gbp: false };
        for attribute in attributes {
            match *attribute {
                InfoVxlan::Id(vni) => vxlan.vni = vni,
                InfoVxlan::Local(address) => vxlan.local = Some(address.into()),
                InfoVxlan::Local6(address) => vxlan.local = Some(address.into()),
                InfoVxlan::Link(index) => vxlan.underlay = Some(index).filter(|i| *i != 0),
                InfoVxlan::Port(port) => vxlan.port = port,
                InfoVxlan::Learning(learning) => vxlan.learning = learning,
                InfoVxlan::Gbp => vxlan.gbp = true,
                _ => (),
            }
        }
        vxlan
    }
}

fn common_attributes(name: &str, mtu: Option<u32>, mac: Option<MacAddr>) -> impl Iterator<Item = LinkAttribute> {
    let name = LinkAttribute::IfName(name.to_owned());
    let mtu = mtu.map(LinkAttribute::Mtu);
    let mac = mac.map(|mac| LinkAttribute::Address(mac.0.to_vec()));
    std::iter::once(name).chain(mtu).chain(mac)
}
