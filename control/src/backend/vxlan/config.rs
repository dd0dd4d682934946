//! The vxlan backend's part of the network config, with the kernel's defaults filled in.

use crate::flannel::netconf::VxlanConf;

/// The kernel's default port (`vxlan_port`, drivers/net/vxlan/vxlan_core.c), which is older than the one that IANA
/// assigned, 4789.
const PORT_DEFAULT: u16 = 8472;

/// `Backend` of the network config, for `Type` vxlan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanConfig {
    /// `VNI`: the VXLAN network identifier, 1 unless given.
    pub vni: u32,
    /// `Port`: UDP port, 8472 where 0 or nothing is given.
    pub port: u16,
    /// `MTU`: of the underlay, in bytes; that of the external interface unless given.
    pub mtu: Option<u32>,
    /// `GBP`: the group policy extension.
    pub gbp: bool,
    /// `Learning`: hardware addresses are learned from what arrives.
    pub learning: bool,
    /// `DirectRouting`: peers on the same link are routed to without encapsulation.
    pub direct_routing: bool,
}

impl Default for VxlanConfig {
    fn default() -> Self {
        Self { vni: 1, port: PORT_DEFAULT, mtu: None, gbp: false, learning: false, direct_routing: false }
    }
}

impl From<&VxlanConf> for VxlanConfig {
    fn from(conf: &VxlanConf) -> Self {
        let VxlanConf { vni, port, mtu, gbp, learning, direct_routing } = *conf;
        Self { vni, port: port.unwrap_or(PORT_DEFAULT), mtu, gbp, learning, direct_routing }
    }
}
