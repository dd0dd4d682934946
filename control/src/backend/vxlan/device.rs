//! The device `flannel.<VNI>`: made, mended, addressed.

use crate::backend::peers::Overlay;
use crate::flannel::BackendError;
use crate::netlink::{Address, Link, MacAddr, Netlink, NewLink, NewLinkKind, Vxlan};
use ipnet::IpNet;
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// What the device should be.
pub(super) struct Spec<'a> {
    pub(super) name: &'a str,
    pub(super) mac: MacAddr,
    pub(super) mtu: u32,
    pub(super) vxlan: Vxlan,
}

/// A random MAC address, locally administered and unicast (IEEE 802, the two low bits of the first byte).
pub(super) fn random_mac() -> Result<MacAddr, BackendError> {
    let mut bytes = [0; 6];
    getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(|error| BackendError::Trouble(format!("no random bytes for a hardware address: {error}")))?;
    bytes[0] = bytes[0] & !0b01 | 0b10;
    Ok(MacAddr(bytes))
}

/// Whether this can be the address of one host.
pub(super) fn is_unicast(mac: MacAddr) -> bool {
    mac.0[0] & 1 == 0 && mac.0 != [0; 6]
}

/// The vxlan of that name, if there is one. A link of another kind is nobody's to delete but its owner's.
pub(super) fn existing(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, BackendError> {
    let link = netlink.link(name)?;
    match &link {
        Some(other) if other.vxlan.is_none() => {
            let kind = other.kind.as_deref().unwrap_or("device");
            Err(BackendError::Config(format!(
                "{name} is a {kind} and no vxlan; delete or rename it (ip link delete {name}), or choose another Backend.VNI"
            )))
        }
        _ => Ok(link),
    }
}

/// Makes the device as it should be and sets it up. One that agrees is kept; MTU and MAC are mended in place; what the
/// kernel cannot change is changed by making the device anew, with the same MAC.
pub(super) fn ensure(netlink: &mut Netlink, spec: &Spec<'_>, changes: &mut Vec<String>) -> Result<Link, BackendError> {
    let name = spec.name;
    let mut found = existing(netlink, name)?;
    if let Some(link) = &found
        && link.vxlan != Some(spec.vxlan)
    {
        netlink.delete_link(link.index)?;
        changes.push(format!("{name} deleted, because it was {:?} and should be {:?}", link.vxlan, spec.vxlan));
        found = None;
    }
    let mut link = match found {
        Some(link) => link,
        None => make(netlink, spec, changes)?,
    };
    let index = link.index;
    if link.mac != Some(spec.mac) {
        netlink.set_mac(index, spec.mac)?;
        changes.push(format!("{name}: hardware address {}", spec.mac));
    }
    if link.mtu != spec.mtu {
        netlink.set_mtu(index, spec.mtu)?;
        changes.push(format!("{name}: MTU {}", spec.mtu));
    }
    if !link.up {
        refuse_router_advertisements(name);
        netlink.set_up(index)?;
        changes.push(format!("{name}: up"));
    }
    (link.mac, link.mtu, link.up) = (Some(spec.mac), spec.mtu, true);
    Ok(link)
}

fn make(netlink: &mut Netlink, spec: &Spec<'_>, changes: &mut Vec<String>) -> Result<Link, BackendError> {
    let name = spec.name;
    // The MAC is given at creation: systemd-udevd changes one that the kernel chose, not one that was set.
    let new =
        NewLink { mtu: Some(spec.mtu), mac: Some(spec.mac), ..NewLink::new(name, NewLinkKind::Vxlan(spec.vxlan)) };
    match netlink.add_link(&new) {
        Ok(link) => {
            changes.push(format!("{name}: made"));
            Ok(link)
        }
        Err(error) if error.errno() == Some(Errno::EXIST) => {
            let is_rival = |link: &Link| {
                let vxlan = link.vxlan.filter(|vxlan| (vxlan.vni, vxlan.port) == (spec.vxlan.vni, spec.vxlan.port));
                vxlan.is_some() && link.name != name
            };
            let Some(rival) = netlink.links()?.into_iter().find(is_rival) else { return Err(error.into()) };
            let (rival, Vxlan { vni, port, .. }) = (rival.name, spec.vxlan);
            Err(BackendError::Trouble(format!(
                "{name} cannot be made: {rival} has VNI {vni} on port {port} already; delete it (ip link delete {rival}), \
                 or choose another Backend.VNI or Backend.Port"
            )))
        }
        Err(error) => Err(error.into()),
    }
}

/// The device's IPv6 addresses are ours to give. A kernel without IPv6 has no such file, which is as good.
fn refuse_router_advertisements(name: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0");
}

/// Gives the device the first address of our subnet, as one host, and takes away what else it has of the overlay. Other
/// addresses stay.
pub(super) fn ensure_address(
    netlink: &mut Netlink,
    link: &Link,
    overlay: Overlay,
    present: &[Address],
    changes: &mut Vec<String>,
) -> Result<(), BackendError> {
    let wanted = Address::new(link.index, IpNet::from(overlay.own.network()));
    let on_device = present.iter().filter(|address| address.link == link.index);
    for stale in on_device.filter(|address| **address != wanted && overlay.network.contains(&address.ip())) {
        netlink.delete_address(stale)?;
        changes.push(format!("{}: address {} removed", link.name, stale.prefix));
    }
    if !present.contains(&wanted) {
        netlink.add_address(&wanted)?;
        changes.push(format!("{}: address {}", link.name, wanted.prefix));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_addresses_are_local_unicast_and_differ() {
        let macs: Vec<MacAddr> = (0..64).map(|_| random_mac().unwrap()).collect();
        assert!(macs.iter().all(|mac| mac.0[0] & 0b11 == 0b10 && is_unicast(*mac)), "{macs:?}");
        assert!(macs.iter().any(|mac| *mac != macs[0]), "{macs:?}");
    }

    #[test]
    fn group_and_zero_addresses_are_no_hosts() {
        for (text, expected) in
            [("02:00:00:00:00:01", true), ("01:00:5e:00:00:01", false), ("00:00:00:00:00:00", false)]
        {
            assert_eq!(is_unicast(text.parse().unwrap()), expected, "{text}");
        }
    }
}
