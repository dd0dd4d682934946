//! From leases to kernel objects: by tunnel or directly, and whose hardware address is believed.

use super::device::is_unicast;
use crate::backend::peers::{Peer, field, passed_over};
use crate::backend::routes;
use crate::netlink::NetlinkError;
use crate::netlink::{FdbEntry, MacAddr, Neighbour, Route};
use std::collections::HashMap;
use std::net::IpAddr;

/// What a peer needs in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// For notes.
    pub(super) public: IpAddr,
    /// The tunnel's two entries; none if the peer is routed to directly.
    pub(super) tunnel: Option<(FdbEntry, Neighbour)>,
    /// The route to its subnet.
    pub(super) route: Route,
}

/// Plans one family. `device` is the index of the vxlan, `own_mac` its address; `direct` gives the link of a public IP
/// that is to be routed to without a tunnel.
pub(super) fn plan(
    peers: &[Peer<'_>],
    device: u32,
    vni: u32,
    own_mac: MacAddr,
    mut direct: impl FnMut(IpAddr) -> Result<Option<u32>, NetlinkError>,
    notes: &mut Vec<String>,
) -> Result<Vec<Wanted>, NetlinkError> {
    let mut by_mac: HashMap<MacAddr, IpAddr> = HashMap::with_capacity(peers.len());
    let mut by_base: HashMap<IpAddr, MacAddr> = HashMap::with_capacity(peers.len());
    let mut plan = Vec::with_capacity(peers.len());
    for peer in peers {
        let Peer { subnet, public, .. } = *peer;
        if let Some(link) = direct(public)? {
            plan.push(Wanted { public, tunnel: None, route: routes::through_underlay(subnet, public, link) });
            continue;
        }
        let mac = match tunnel_mac(peer, vni, own_mac) {
            Ok(mac) => mac,
            Err(why) => {
                notes.push(passed_over(subnet, &why));
                continue;
            }
        };
        let base = subnet.network();
        if let Some(other) = by_mac.get(&mac).filter(|other| **other != public) {
            notes.push(passed_over(subnet, &format!("its VtepMAC {mac} is that of the peer at {other} too")));
            continue;
        }
        if let Some(other) = by_base.get(&base).filter(|other| **other != mac) {
            notes.push(passed_over(
                subnet,
                &format!("another peer, with VtepMAC {other}, has a subnet that begins with {base}"),
            ));
            continue;
        }
        by_mac.insert(mac, public);
        by_base.insert(base, mac);
        let entry = FdbEntry { link: device, mac, dst: public };
        let neighbour = Neighbour { link: device, address: base, mac };
        // As flannel makes it: by protocol boot, and onlink, because no address of the device has the gateway in its prefix.
        let route = Route { onlink: true, ..Route::via_gateway(subnet, device, base) };
        plan.push(Wanted { public, tunnel: Some((entry, neighbour)), route });
    }
    Ok(plan)
}

/// The MAC of the peer's tunnel end, or what is wrong with what it publishes.
fn tunnel_mac(peer: &Peer<'_>, vni: u32, own: MacAddr) -> Result<MacAddr, String> {
    let data = peer.data.ok_or("it publishes no backend data, so its VtepMAC is unknown")?;
    // Old flannel versions publish no VNI.
    if let Some(found) = field(data, "VNI")
        && found.as_u64() != Some(vni.into())
    {
        return Err(format!("its VNI is {found}, ours is {vni}"));
    }
    let text = field(data, "VtepMAC").ok_or("it publishes no VtepMAC")?;
    let mac: Option<MacAddr> = text.as_str().and_then(|text| text.parse().ok());
    match mac.filter(|mac| is_unicast(*mac)) {
        Some(mac) if mac == own => Err(format!("its VtepMAC {mac} is our own")),
        Some(mac) => Ok(mac),
        None => Err(format!("its VtepMAC is {text}, which is not the hardware address of a host")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::peers::tests::{lease, overlay};
    use crate::backend::peers::{Family, admit};
    use crate::flannel::FlannelLease;
    use serde_json::json;
    use std::collections::HashSet;

    const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn vtep(number: u8) -> serde_json::Value {
        json!({"VNI": 1, "VtepMAC": MacAddr([2, 0, 0, 0, 0, number]).to_string()})
    }

    fn good() -> FlannelLease {
        lease("vxlan", "10.9.2.0/24", Some("192.0.2.2"), Some(vtep(2)))
    }

    fn plan_of(leases: &[FlannelLease], direct: Option<u32>) -> (Vec<Wanted>, Vec<String>) {
        let mut notes = vec![];
        let peers = admit(leases, Family::V4, "vxlan", overlay(), &HashSet::new(), &mut notes);
        let plan = plan(&peers, 7, 1, OWN, |_| Ok(direct), &mut notes).unwrap();
        (plan, notes)
    }

    #[test]
    fn a_peer_is_an_entry_a_neighbour_and_a_route_as_flannel_makes_them() {
        let (plan, notes) = plan_of(&[good()], None);
        let mac = MacAddr([2, 0, 0, 0, 0, 2]);
        let base: IpAddr = "10.9.2.0".parse().unwrap();
        let public = "192.0.2.2".parse().unwrap();
        let tunnel = Some((FdbEntry { link: 7, mac, dst: public }, Neighbour { link: 7, address: base, mac }));
        let subnet: ipnet::IpNet = "10.9.2.0/24".parse().unwrap();
        let route = Route { onlink: true, ..Route::via_gateway(subnet, 7, base) };
        assert_eq!((plan, notes), (vec![Wanted { public, tunnel, route }], vec![]));
    }

    #[test]
    fn a_direct_peer_needs_its_route_alone_and_no_mac() {
        let (plan, notes) = plan_of(&[lease("vxlan", "10.9.2.0/24", Some("192.0.2.2"), None)], Some(3));
        let public = "192.0.2.2".parse().unwrap();
        let route = routes::through_underlay("10.9.2.0/24".parse().unwrap(), public, 3);
        assert_eq!((plan, notes), (vec![Wanted { public, tunnel: None, route }], vec![]));
    }

    #[test]
    fn one_bad_peer_is_a_note() {
        let third = |data| lease("vxlan", "10.9.3.0/24", Some("192.0.2.3"), data);
        for (bad, why) in [
            (third(None), "publishes no backend data"),
            (third(Some(json!({"VNI": 1}))), "publishes no VtepMAC"),
            (third(Some(json!("text"))), "publishes no VtepMAC"),
            (third(Some(json!({"VNI": 1, "VtepMAC": ""}))), "VtepMAC is \"\", which is not"),
            (third(Some(json!({"VNI": 1, "VtepMAC": 5}))), "VtepMAC is 5, which is not"),
            (third(Some(json!({"VNI": 1, "VtepMAC": "01:00:5e:00:00:01"}))), "not the hardware address of a host"),
            (third(Some(json!({"VNI": 1, "VtepMAC": "00:00:00:00:00:00"}))), "not the hardware address of a host"),
            (third(Some(json!({"VNI": 2, "VtepMAC": "02:00:00:00:00:03"}))), "its VNI is 2, ours is 1"),
            (third(Some(json!({"VNI": "1", "VtepMAC": "02:00:00:00:00:03"}))), "its VNI is \"1\", ours is 1"),
            (third(Some(vtep(1))), "is our own"),
            (third(Some(vtep(2))), "is that of the peer at 192.0.2.2 too"),
            (lease("vxlan", "10.9.2.0/25", Some("192.0.2.3"), Some(vtep(3))), "a subnet that begins with 10.9.2.0"),
        ] {
            let (plan, notes) = plan_of(&[good(), bad], None);
            assert_eq!(plan.len(), 1, "{why}");
            assert_eq!(plan[0].public.to_string(), "192.0.2.2", "{why}");
            assert!(notes.len() == 1 && notes[0].contains(why), "{why} in {notes:?}");
        }
    }

    #[test]
    fn a_record_without_vni_or_in_another_case_is_read_and_a_host_may_have_two_subnets() {
        let old = lease("vxlan", "10.9.3.0/24", Some("192.0.2.3"), Some(json!({"vtepmac": "02:00:00:00:00:03"})));
        let second = lease("vxlan", "10.9.4.0/24", Some("192.0.2.2"), Some(vtep(2)));
        let (plan, notes) = plan_of(&[good(), old, second], None);
        assert_eq!((plan.len(), notes), (3, vec![]));
    }
}
