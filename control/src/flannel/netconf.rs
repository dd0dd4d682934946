//! The network config: the JSON under `PREFIX/config`, the same for all nodes of a cluster.
//!
//! Keys, defaults and bounds are stock flannel's (`pkg/subnet/config.go`); where stock says little about what is wrong, the
//! sentences here name key, value and what is expected.

use super::json::Object;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::Value;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// UDP port of backend udp where the config names none.
pub const UDP_PORT: u16 = 8285;
/// VXLAN network identifier where the config names none.
pub const VNI: u32 = 1;
/// The greatest VXLAN network identifier: 24 bits (RFC 7348, section 5).
pub const VNI_MAX: u32 = (1 << 24) - 1;

/// A network config that was found to be in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConf {
    /// The IPv4 overlay; `None` if `EnableIPv4` is false.
    pub v4: Option<Pool<Ipv4Net>>,
    /// The IPv6 overlay; `None` unless `EnableIPv6`.
    pub v6: Option<Pool<Ipv6Net>>,
    /// Traffic rules by nftables rather than iptables.
    pub enable_nftables: bool,
    /// How packets travel.
    pub backend: BackendConf,
}

impl NetConf {
    /// The whole IPv4 overlay.
    pub fn network(&self) -> Option<Ipv4Net> {
        self.v4.as_ref().map(|pool| pool.network)
    }

    /// The whole IPv6 overlay.
    pub fn network_v6(&self) -> Option<Ipv6Net> {
        self.v6.as_ref().map(|pool| pool.network)
    }
}

/// The overlay of one family, and the part of it that subnets are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool<N> {
    /// `Network`, without host bits.
    pub network: N,
    /// `SubnetLen`: prefix length of every node's subnet.
    pub subnet_len: u8,
    /// `SubnetMin`: the first subnet that may be taken.
    pub subnet_min: N,
    /// `SubnetMax`: the last one, included.
    pub subnet_max: N,
}

/// `Backend`: how packets travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendConf {
    /// Datagrams through userspace.
    Udp {
        /// Destination port of all nodes.
        port: u16,
        /// `Underlay`, a key of weft's own, which stock flannel does not look at: the family of the datagrams. `None`: each
        /// node takes what it has.
        underlay: Option<UnderlayFamily>,
    },
    /// The kernel's VXLAN device.
    Vxlan(VxlanConf),
    /// Routes via the nodes themselves.
    HostGw,
    /// Commands of the administrator's.
    Extension(ExtensionConf),
    /// A type that weft does not have, in lower case. The rest of the config may be in order all the same.
    Other(String),
}

impl BackendConf {
    /// `Type`, in lower case.
    pub fn name(&self) -> &str {
        match self {
            BackendConf::Udp { .. } => "udp",
            BackendConf::Vxlan(_) => "vxlan",
            BackendConf::HostGw => "host-gw",
            BackendConf::Extension(_) => "extension",
            BackendConf::Other(name) => name,
        }
    }
}

/// Address family of the network between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnderlayFamily {
    /// `"ipv4"`.
    Ipv4,
    /// `"ipv6"`.
    Ipv6,
}

impl fmt::Display for UnderlayFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UnderlayFamily::Ipv4 => "ipv4",
            UnderlayFamily::Ipv6 => "ipv6",
        })
    }
}

/// Keys of backend vxlan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanConf {
    /// `VNI`: 24 bits.
    pub vni: u32,
    /// `Port`; `None` (0 in the config) leaves it to the kernel, which takes 8472.
    pub port: Option<u16>,
    /// `MTU` of the underlay in bytes; `None` (0 in the config): that of the external interface.
    pub mtu: Option<u32>,
    /// `GBP`: the group policy extension.
    pub gbp: bool,
    /// `Learning`: the device learns addresses from what it receives.
    pub learning: bool,
    /// `DirectRouting`: peers on the same link are routed to without VXLAN.
    pub direct_routing: bool,
}

/// Keys of backend extension; an empty command is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtensionConf {
    /// `PreStartupCommand`.
    pub pre_startup: String,
    /// `PostStartupCommand`.
    pub post_startup: String,
    /// `SubnetAddCommand`.
    pub subnet_add: String,
    /// `SubnetRemoveCommand`.
    pub subnet_remove: String,
}

/// What is wrong with a network config: a sentence that names the key, its value and what is expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("network config: {0}")]
pub struct NetConfError(String);

fn fault(text: impl Into<String>) -> NetConfError {
    NetConfError(text.into())
}

impl NetConf {
    /// Reads and checks a config.
    pub fn parse(text: &str) -> Result<NetConf, NetConfError> {
        let object = Object::parse(text).map_err(|why| fault(format!("it is no JSON object: {why}")))?;
        let keys = Keys { object: &object, place: "" };
        let v4 = if keys.flag("EnableIPv4", true)? { Some(pool(&keys, &V4)?) } else { None };
        let v6 = if keys.flag("EnableIPv6", false)? { Some(pool(&keys, &V6)?) } else { None };
        if v4.is_none() && v6.is_none() {
            return Err(fault("EnableIPv4 and EnableIPv6 are both false; at least one has to be true"));
        }
        let enable_nftables = keys.flag("EnableNFTables", false)?;
        Ok(NetConf { v4: v4.map(Pool::v4), v6: v6.map(Pool::v6), enable_nftables, backend: backend(&object)? })
    }
}

/// What differs between the families.
struct Family {
    network: &'static str,
    subnet_len: &'static str,
    subnet_min: &'static str,
    subnet_max: &'static str,
    example: &'static str,
    bits: u8,
    /// The greatest `SubnetLen`, so that a subnet has room for hosts.
    len_max: u8,
    /// `SubnetLen` of a network that is wide enough for it.
    len_default: u8,
    /// The longest network that gets `len_default`.
    wide: u8,
    /// The longest network that can be divided without a `SubnetLen`.
    divisible: u8,
}

const V4: Family = Family {
    network: "Network",
    subnet_len: "SubnetLen",
    subnet_min: "SubnetMin",
    subnet_max: "SubnetMax",
    example: "10.5.0.0/16",
    bits: 32,
    len_max: 30,
    len_default: 24,
    wide: 22,
    divisible: 28,
};

const V6: Family = Family {
    network: "IPv6Network",
    subnet_len: "IPv6SubnetLen",
    subnet_min: "IPv6SubnetMin",
    subnet_max: "IPv6SubnetMax",
    example: "fd00:5::/48",
    bits: 128,
    len_max: 126,
    len_default: 64,
    wide: 62,
    divisible: 124,
};

fn pool(keys: &Keys, family: &Family) -> Result<Pool<IpNet>, NetConfError> {
    let text = keys.text(family.network)?.unwrap_or_default();
    let wanted = || format!("expected a prefix such as \"{}\"", family.example);
    if text.is_empty() {
        return Err(fault(format!("{} is missing; {}", family.network, wanted())));
    }
    let network: IpNet = text.parse().map_err(|_| fault(format!("{} is {text:?}; {}", family.network, wanted())))?;
    if network.max_prefix_len() != family.bits {
        return Err(fault(format!("{} is {text:?}, which is of the other family; {}", family.network, wanted())));
    }
    let network = network.trunc();
    let prefix = network.prefix_len();
    let subnet_len = match keys.number(family.subnet_len, u32::MAX)? {
        Some(len) if len > u32::from(family.len_max) || len < u32::from(prefix) + 2 => {
            let (least, most) = (prefix + 2, family.len_max);
            let expected = match least <= most {
                true => format!("{} of {network} has to be from {least} to {most}", family.subnet_len),
                false => format!("{} {network} is too small to be divided", family.network),
            };
            return Err(fault(format!("{} is {len}; {expected}", family.subnet_len)));
        }
        Some(len) => len as u8,
        None if prefix > family.divisible => {
            let divisible = family.divisible;
            return Err(fault(format!(
                "{} is {network}, too small to be divided among nodes; its prefix length has to be at most {divisible}",
                family.network
            )));
        }
        None if prefix <= family.wide => family.len_default,
        None => prefix + 2,
    };
    let size = 1u128 << (family.bits - subnet_len);
    let default_min = number_of(network.network()) + size;
    let default_max = number_of(network.broadcast()) - (size - 1);
    let subnet_min = bound(keys, family, family.subnet_min, network, subnet_len, default_min)?;
    let subnet_max = bound(keys, family, family.subnet_max, network, subnet_len, default_max)?;
    if subnet_min.network() > subnet_max.network() {
        return Err(fault(format!(
            "{} {} is above {} {}; no subnet is left to take",
            family.subnet_min,
            subnet_min.network(),
            family.subnet_max,
            subnet_max.network()
        )));
    }
    Ok(Pool { network, subnet_len, subnet_min, subnet_max })
}

fn bound(
    keys: &Keys,
    family: &Family,
    key: &'static str,
    network: IpNet,
    subnet_len: u8,
    default: u128,
) -> Result<IpNet, NetConfError> {
    let address = match keys.text(key)? {
        None => address_of(default, family.bits),
        Some(text) => {
            let address: IpAddr =
                text.parse().map_err(|_| fault(format!("{key} is {text:?}; expected an address inside {network}")))?;
            if !network.contains(&address) {
                return Err(fault(format!("{key} is {text:?}; expected an address inside {network}")));
            }
            address
        }
    };
    let subnet = IpNet::new(address, subnet_len).map_err(|_| fault(format!("{key} does not fit {network}")))?;
    if subnet.trunc() != subnet {
        return Err(fault(format!(
            "{key} is {address}, which is not where a subnet of /{subnet_len} begins; the nearest is {}",
            subnet.network()
        )));
    }
    Ok(subnet)
}

fn number_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn address_of(number: u128, bits: u8) -> IpAddr {
    match bits {
        32 => IpAddr::V4(Ipv4Addr::from(number as u32)),
        _ => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

impl Pool<IpNet> {
    fn v4(self) -> Pool<Ipv4Net> {
        let net = |net| match net {
            IpNet::V4(net) => net,
            IpNet::V6(_) => unreachable!("the family was checked with the network"),
        };
        let (subnet_min, subnet_max) = (net(self.subnet_min), net(self.subnet_max));
        Pool { network: net(self.network), subnet_len: self.subnet_len, subnet_min, subnet_max }
    }

    fn v6(self) -> Pool<Ipv6Net> {
        let net = |net| match net {
            IpNet::V6(net) => net,
            IpNet::V4(_) => unreachable!("the family was checked with the network"),
        };
        let (subnet_min, subnet_max) = (net(self.subnet_min), net(self.subnet_max));
        Pool { network: net(self.network), subnet_len: self.subnet_len, subnet_min, subnet_max }
    }
}

fn backend(object: &Object) -> Result<BackendConf, NetConfError> {
    let Some(text) = object.raw("Backend") else { return Ok(BackendConf::Udp { port: UDP_PORT, underlay: None }) };
    let object = Object::parse(text)
        .map_err(|_| fault(format!("Backend is {}; expected an object such as {{\"Type\": \"udp\"}}", short(text))))?;
    let keys = Keys { object: &object, place: "Backend." };
    let kind = keys.text("Type")?.unwrap_or_default().to_lowercase();
    let port = |default: u16| Ok(keys.number("Port", u32::from(u16::MAX))?.map_or(default, |port| port as u16));
    match kind.as_str() {
        "udp" => match port(UDP_PORT)? {
            0 => Err(fault("Backend.Port is 0; expected a UDP port from 1 to 65535")),
            port => Ok(BackendConf::Udp { port, underlay: underlay(&keys)? }),
        },
        "vxlan" => Ok(BackendConf::Vxlan(VxlanConf {
            vni: keys.number("VNI", VNI_MAX)?.unwrap_or(VNI),
            port: Some(port(0)?).filter(|port| *port != 0),
            mtu: keys.number("MTU", 65_535)?.filter(|mtu| *mtu != 0),
            gbp: keys.flag("GBP", false)?,
            learning: keys.flag("Learning", false)?,
            direct_routing: keys.flag("DirectRouting", false)?,
        })),
        "host-gw" => Ok(BackendConf::HostGw),
        "extension" => {
            let command = |name| Ok(keys.text(name)?.unwrap_or_default());
            Ok(BackendConf::Extension(ExtensionConf {
                pre_startup: command("PreStartupCommand")?,
                post_startup: command("PostStartupCommand")?,
                subnet_add: command("SubnetAddCommand")?,
                subnet_remove: command("SubnetRemoveCommand")?,
            }))
        }
        "" => Err(fault("Backend.Type is missing; expected \"udp\", \"vxlan\", \"host-gw\" or \"extension\"")),
        other => Ok(BackendConf::Other(other.to_owned())),
    }
}

fn underlay(keys: &Keys) -> Result<Option<UnderlayFamily>, NetConfError> {
    match keys.text("Underlay")?.map(|text| text.to_lowercase()).as_deref() {
        None => Ok(None),
        Some("ipv4") => Ok(Some(UnderlayFamily::Ipv4)),
        Some("ipv6") => Ok(Some(UnderlayFamily::Ipv6)),
        Some(other) => Err(fault(format!("Backend.Underlay is {other:?}; expected \"ipv4\" or \"ipv6\""))),
    }
}

/// An object's members, with the name of the place for messages.
struct Keys<'a> {
    object: &'a Object,
    place: &'static str,
}

impl Keys<'_> {
    fn wrong(&self, name: &str, value: &Value, expected: impl fmt::Display) -> NetConfError {
        fault(format!("{}{name} is {}; expected {expected}", self.place, short(&value.to_string())))
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool, NetConfError> {
        match self.object.value(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(value) => Err(self.wrong(name, &value, "true or false, without quotes")),
        }
    }

    fn text(&self, name: &str) -> Result<Option<String>, NetConfError> {
        match self.object.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(self.wrong(name, &value, "a string, in quotes")),
        }
    }

    fn number(&self, name: &str, most: u32) -> Result<Option<u32>, NetConfError> {
        let Some(value) = self.object.value(name) else { return Ok(None) };
        match value.as_u64().and_then(|number| u32::try_from(number).ok()).filter(|number| *number <= most) {
            Some(number) => Ok(Some(number)),
            None if most == u32::MAX => Err(self.wrong(name, &value, "a whole number, without quotes")),
            None => Err(self.wrong(name, &value, format_args!("a whole number from 0 to {most}, without quotes"))),
        }
    }
}

/// The beginning of a value, for a message.
fn short(text: &str) -> String {
    const LEN_MAX: usize = 60;
    match text.char_indices().nth(LEN_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
#[path = "netconf_tests.rs"]
mod tests;
