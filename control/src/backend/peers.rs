//! Which leases a kernel backend can serve in one family, and why it passes over the others.

use crate::flannel::{FlannelLease, OwnLease};
use ipnet::IpNet;
use serde_json::Value;
use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;

/// An address family of the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The overlay of one family and our part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overlay {
    pub(super) network: IpNet,
    pub(super) own: IpNet,
}

impl Overlay {
    /// That of one family, if the lease has it.
    pub(super) fn of(lease: &OwnLease, family: Family) -> Option<Self> {
        let (network, own) = match family {
            Family::V4 => (lease.network.map(IpNet::from), lease.subnets.v4.map(IpNet::from)),
            Family::V6 => (lease.network_v6.map(IpNet::from), lease.subnets.v6.map(IpNet::from)),
        };
        Some(Self { network: network?.trunc(), own: own?.trunc() })
    }
}

/// A peer that can be served.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Peer<'a> {
    /// Its subnet.
    pub(super) subnet: IpNet,
    /// Its underlay address.
    pub(super) public: IpAddr,
    /// What its backend published for this family.
    pub(super) data: Option<&'a Value>,
}

/// The peers of one family, in the order of their subnets. A lease that this host cannot serve concerns itself alone: it is
/// passed over with a note. `local` are the addresses of this host, and what peers are told of it.
pub(super) fn admit<'a>(
    leases: &'a [FlannelLease],
    family: Family,
    backend_type: &str,
    overlay: Overlay,
    local: &HashSet<IpAddr>,
    notes: &mut Vec<String>,
) -> Vec<Peer<'a>> {
    let mut sorted: Vec<&FlannelLease> = leases.iter().collect();
    sorted.sort_by_key(|lease| lease.subnets);
    let mut seen = HashSet::new();
    let mut peers = Vec::with_capacity(sorted.len());
    for lease in sorted {
        let attrs = &lease.attrs;
        let (subnet, public, data) = match family {
            Family::V4 => (lease.subnets.v4.map(IpNet::from), attrs.public_ip.map(IpAddr::from), &attrs.backend_data),
            Family::V6 => {
                (lease.subnets.v6.map(IpNet::from), attrs.public_ipv6.map(IpAddr::from), &attrs.backend_v6_data)
            }
        };
        // A lease of the other family alone.
        let Some(subnet) = subnet else { continue };
        let refusal = if attrs.backend_type != backend_type {
            Some(format!("its backend is `{}`, ours is `{backend_type}`", attrs.backend_type))
        } else if !overlay.network.contains(&subnet) {
            Some(format!("it is not inside the network {}", overlay.network))
        } else if overlay.own.contains(&subnet) || subnet.contains(&overlay.own) {
            Some(format!("it overlaps our own subnet {}", overlay.own))
        } else if !seen.insert(subnet) {
            Some("another lease has the same subnet".to_owned())
        } else {
            public_refusal(public, local)
        };
        match (refusal, public) {
            (Some(why), _) => notes.push(passed_over(subnet, &why)),
            (None, Some(public)) => peers.push(Peer { subnet, public, data: data.as_ref() }),
            (None, None) => (),
        }
    }
    peers
}

/// The sentence about a peer that is not served.
pub(super) fn passed_over(subnet: IpNet, why: &str) -> String {
    format!("peer {subnet} is passed over: {why}")
}

fn public_refusal(public: Option<IpAddr>, local: &HashSet<IpAddr>) -> Option<String> {
    let Some(public) = public else { return Some("it publishes no public IP of this family".to_owned()) };
    if public.is_unspecified() || public.is_multicast() || public.is_loopback() {
        Some(format!("its public IP {public} is not that of a host"))
    } else if local.contains(&public) {
        Some(format!("its public IP {public} is this host's own; give each node its own --public-ip"))
    } else {
        None
    }
}

/// A value of a JSON object by its key, or by a key that differs in case alone, as Go's encoding/json reads it. `null` is
/// no value.
pub(super) fn field<'a>(object: &'a Value, key: &str) -> Option<&'a Value> {
    let entries = object.as_object()?;
    let other_case = || entries.iter().find(|(found, _)| found.eq_ignore_ascii_case(key)).map(|(_, value)| value);
    entries.get(key).or_else(other_case).filter(|value| !value.is_null())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::flannel::{LeaseAttrs, Subnets};

    pub(in crate::backend) fn lease(
        kind: &str,
        subnet: &str,
        public: Option<&str>,
        data: Option<Value>,
    ) -> FlannelLease {
        let net: IpNet = subnet.parse().unwrap();
        let public = public.map(|text| text.parse::<IpAddr>().unwrap());
        let mut lease = FlannelLease {
            subnets: Subnets::default(),
            attrs: LeaseAttrs { backend_type: kind.into(), ..LeaseAttrs::default() },
            expires: None,
        };
        match net {
            IpNet::V4(net) => (lease.subnets.v4, lease.attrs.backend_data) = (Some(net), data),
            IpNet::V6(net) => (lease.subnets.v6, lease.attrs.backend_v6_data) = (Some(net), data),
        }
        match public {
            Some(IpAddr::V4(ip)) => lease.attrs.public_ip = Some(ip),
            Some(IpAddr::V6(ip)) => lease.attrs.public_ipv6 = Some(ip),
            None => (),
        }
        lease
    }

    pub(in crate::backend) fn overlay() -> Overlay {
        Overlay { network: "10.9.0.0/16".parse().unwrap(), own: "10.9.1.0/24".parse().unwrap() }
    }

    fn local() -> HashSet<IpAddr> {
        HashSet::from(["192.0.2.1".parse().unwrap()])
    }

    #[test]
    fn a_lease_that_cannot_be_served_concerns_itself_alone() {
        let good = || lease("host-gw", "10.9.2.0/24", Some("192.0.2.2"), None);
        for (bad, why) in [
            (lease("vxlan", "10.9.3.0/24", Some("192.0.2.3"), None), "its backend is `vxlan`, ours is `host-gw`"),
            (lease("", "10.9.3.0/24", Some("192.0.2.3"), None), "its backend is ``"),
            (lease("host-gw", "10.8.3.0/24", Some("192.0.2.3"), None), "not inside the network 10.9.0.0/16"),
            (lease("host-gw", "0.0.0.0/0", Some("192.0.2.3"), None), "not inside the network"),
            (lease("host-gw", "10.9.1.0/24", Some("192.0.2.3"), None), "overlaps our own subnet 10.9.1.0/24"),
            (lease("host-gw", "10.9.0.0/23", Some("192.0.2.3"), None), "overlaps our own subnet"),
            (lease("host-gw", "10.9.2.0/24", Some("192.0.2.3"), None), "another lease has the same subnet"),
            (lease("host-gw", "10.9.3.0/24", None, None), "publishes no public IP"),
            (lease("host-gw", "10.9.3.0/24", Some("0.0.0.0"), None), "not that of a host"),
            (lease("host-gw", "10.9.3.0/24", Some("224.0.0.1"), None), "not that of a host"),
            (lease("host-gw", "10.9.3.0/24", Some("192.0.2.1"), None), "this host's own"),
        ] {
            let mut notes = vec![];
            let leases = [good(), bad];
            let peers = admit(&leases, Family::V4, "host-gw", overlay(), &local(), &mut notes);
            assert_eq!(peers.len(), 1, "{why}");
            assert_eq!(peers[0].public.to_string(), "192.0.2.2");
            assert!(notes.len() == 1 && notes[0].contains(why), "{why} in {notes:?}");
        }
    }

    #[test]
    fn a_lease_of_the_other_family_is_no_trouble() {
        let mut notes = vec![];
        let leases = [lease("host-gw", "2001:db8:9::/64", Some("2001:db8::2"), None)];
        assert_eq!(admit(&leases, Family::V4, "host-gw", overlay(), &local(), &mut notes), vec![]);
        assert_eq!(notes, Vec::<String>::new());
    }

    #[test]
    fn keys_are_found_whatever_their_case() {
        let object: Value = serde_json::from_str(r#"{"vni":7,"VtepMAC":null}"#).unwrap();
        assert_eq!(field(&object, "VNI"), Some(&Value::from(7)));
        assert_eq!(field(&object, "VtepMAC"), None);
        assert_eq!(field(&Value::from("text"), "VNI"), None);
    }
}
