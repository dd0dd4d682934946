//! The rules that a node should have, as data: what flannel writes, rule for rule and in its order.
//!
//! ```text
//! N = the overlay network    P = this node's subnet    M = multicast
//!
//!  masquerade                                  iptables                      nftables
//!  1 marked by kube-proxy                      mark & 0x4000    return       mark = 0x4000    return
//!  2 from our pods to the overlay              P -> N           return       P -> N           return
//!  3 from the overlay to our pods              N -> P           return       N -> P           return
//!  4 from outside                              not N -> P       return       not P -> N       return
//!  5 from the overlay to outside               N -> not M       masquerade   N -> not M       masquerade
//!  6 from outside, or the host, to the overlay not N -> N       masquerade   not N -> N       masquerade
//! ```
//!
//! flannel's two lists differ in rules 1 and 4, and with the nftables list rule 6 never matches, because rule 4 has taken
//! everything that it could: a host that talks to a remote pod from an underlay address is masqueraded under iptables and
//! not under nftables. weft keeps both lists to the letter, so that whoever compares a node's rules with flannel's finds no
//! difference. A host's own traffic is not concerned as long as it leaves by the overlay device, whose address it takes.

use crate::flannel::OwnLease;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nftables::expr::{Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix};
use nftables::stmt::{Match, NAT, NATFlag, Operator, Statement};
use std::collections::HashSet;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Mark and mask by which kube-proxy asks for masquerading, which it does itself (`KUBE-MARK-MASQ`).
const KUBE_MARK: u32 = 0x4000;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, for loops.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// What nft calls it, as a family and as a header.
    pub fn nft(self) -> &'static str {
        match self {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }

    /// Destinations that are never masqueraded.
    fn multicast(self) -> IpNet {
        match self {
            Family::V4 => Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4).into(),
            Family::V6 => Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8).into(),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if *self == Family::V4 { "IPv4" } else { "IPv6" })
    }
}

/// One family's part of the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The whole network.
    pub network: IpNet,
    /// This node's part of it.
    pub subnet: IpNet,
}

/// Which rules a node should have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The IPv4 overlay; none: no rules for IPv4.
    pub v4: Option<Overlay>,
    /// The IPv6 overlay; none: no rules for IPv6.
    pub v6: Option<Overlay>,
    /// Masquerade what leaves the overlay (`--ip-masq`).
    pub masquerade: bool,
    /// Choose source ports at random when masquerading, where the node can.
    pub random_fully: bool,
    /// Accept forwarded packets from and to the overlay (`--iptables-forward-rules`).
    pub forward: bool,
}

impl Wanted {
    /// What a node with the lease `own` should have.
    pub fn of(own: &OwnLease, masquerade: bool, random_fully: bool, forward: bool) -> Wanted {
        let v4 = own.network.zip(own.subnets.v4);
        let v6 = own.network_v6.zip(own.subnets.v6);
        Wanted {
            v4: v4.map(|(network, subnet)| Overlay { network: network.into(), subnet: subnet.into() }),
            v6: v6.map(|(network, subnet)| Overlay { network: network.into(), subnet: subnet.into() }),
            masquerade,
            random_fully,
            forward,
        }
    }

    /// The overlay of one family.
    pub fn overlay(&self, family: Family) -> Option<Overlay> {
        let overlay = if family == Family::V4 { self.v4 } else { self.v6 };
        overlay.map(|Overlay { network, subnet }| Overlay { network: network.trunc(), subnet: subnet.trunc() })
    }

    /// The masquerading rules of one family for iptables; empty if there should be none.
    pub fn masquerade_iptables(&self, family: Family) -> Vec<Rule> {
        self.masquerade(family, |network, subnet| (network, subnet))
    }

    /// The masquerading rules of one family for nftables; empty if there should be none.
    pub fn masquerade_nft(&self, family: Family) -> Vec<Rule> {
        self.masquerade(family, |network, subnet| (subnet, network))
    }

    /// `outside` gives the prefixes of rule 4: packets not from the one to the other are left alone.
    fn masquerade(&self, family: Family, outside: impl Fn(IpNet, IpNet) -> (IpNet, IpNet)) -> Vec<Rule> {
        let Some(Overlay { network, subnet }) = self.overlay(family).filter(|_| self.masquerade) else {
            return Vec::new();
        };
        let masquerade = Verdict::Masquerade { random_fully: self.random_fully };
        let (not_from, to) = outside(network, subnet);
        vec![
            Rule { mark: true, source: None, destination: None, verdict: Verdict::Return },
            Rule::new(Some(Side::is(subnet)), Some(Side::is(network)), Verdict::Return),
            Rule::new(Some(Side::is(network)), Some(Side::is(subnet)), Verdict::Return),
            Rule::new(Some(Side::is_not(not_from)), Some(Side::is(to)), Verdict::Return),
            Rule::new(Some(Side::is(network)), Some(Side::is_not(family.multicast())), masquerade),
            Rule::new(Some(Side::is_not(network)), Some(Side::is(network)), masquerade),
        ]
    }

    /// The forward rules of one family; empty if there should be none.
    pub fn forward(&self, family: Family) -> Vec<Rule> {
        let Some(Overlay { network, .. }) = self.overlay(family).filter(|_| self.forward) else { return Vec::new() };
        vec![
            Rule::new(Some(Side::is(network)), None, Verdict::Accept),
            Rule::new(None, Some(Side::is(network)), Verdict::Accept),
        ]
    }
}

/// One rule of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// It concerns packets that kube-proxy has marked.
    pub mark: bool,
    /// Where they come from.
    pub source: Option<Side>,
    /// Where they go.
    pub destination: Option<Side>,
    /// What becomes of them.
    pub verdict: Verdict,
}

/// A condition on an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// The address is *not* in the prefix.
    pub negated: bool,
    /// The prefix.
    pub net: IpNet,
}

/// What becomes of packets that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The rest of the chain does not concern them.
    Return,
    /// They may pass.
    Accept,
    /// They get the address of the interface that they leave by.
    Masquerade {
        /// ... and a port at random.
        random_fully: bool,
    },
}

impl Side {
    fn is(net: IpNet) -> Side {
        Side { negated: false, net }
    }

    fn is_not(net: IpNet) -> Side {
        Side { negated: true, net }
    }

    fn iptables(self, option: &str) -> String {
        format!("{}{option} {} ", if self.negated { "! " } else { "" }, self.net)
    }

    fn nft(self, header: &str, field: &str) -> String {
        let net = if self.is_one_address() { self.net.addr().to_string() } else { self.net.to_string() };
        format!("{header} {field} {}{net} ", if self.negated { "!= " } else { "" })
    }

    fn statement(self, header: &'static str, field: &'static str) -> Statement<'static> {
        let address = Expression::String(self.net.addr().to_string().into());
        let right = if self.is_one_address() {
            address
        } else {
            let prefix = Prefix { addr: Box::new(address), len: u32::from(self.net.prefix_len()) };
            Expression::Named(NamedExpression::Prefix(prefix))
        };
        let left = PayloadField { protocol: header.into(), field: field.into() };
        Statement::Match(Match {
            left: Expression::Named(NamedExpression::Payload(Payload::PayloadField(left))),
            right,
            op: if self.negated { Operator::NEQ } else { Operator::EQ },
        })
    }

    fn is_one_address(self) -> bool {
        self.net.prefix_len() == self.net.max_prefix_len()
    }
}

impl Rule {
    fn new(source: Option<Side>, destination: Option<Side>, verdict: Verdict) -> Rule {
        Rule { mark: false, source, destination, verdict }
    }

    /// As `iptables-save` shows it behind `-A CHAIN `.
    pub fn iptables(&self, comment: &str) -> String {
        let mut text = String::new();
        text.extend(self.source.map(|side| side.iptables("-s")));
        text.extend(self.destination.map(|side| side.iptables("-d")));
        if self.mark {
            text += &format!("-m mark --mark {KUBE_MARK:#x}/{KUBE_MARK:#x} ");
        }
        let target = match self.verdict {
            Verdict::Return => "RETURN",
            Verdict::Accept => "ACCEPT",
            Verdict::Masquerade { random_fully: false } => "MASQUERADE",
            Verdict::Masquerade { random_fully: true } => "MASQUERADE --random-fully",
        };
        text + &format!("-m comment --comment \"{comment}\" -j {target}")
    }

    /// As nft reads it behind `add rule FAMILY TABLE CHAIN `.
    pub fn nft(&self, family: Family) -> String {
        let mut text = String::new();
        if self.mark {
            text += &format!("meta mark {KUBE_MARK:#x} ");
        }
        text.extend(self.source.map(|side| side.nft(family.nft(), "saddr")));
        text.extend(self.destination.map(|side| side.nft(family.nft(), "daddr")));
        text + match self.verdict {
            Verdict::Return => "return",
            Verdict::Accept => "accept",
            Verdict::Masquerade { random_fully: false } => "masquerade",
            Verdict::Masquerade { random_fully: true } => "masquerade fully-random",
        }
    }

    /// As nft lists it.
    pub fn statements(&self, family: Family) -> Vec<Statement<'static>> {
        let mark = self.mark.then(|| {
            Statement::Match(Match {
                left: Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::Mark })),
                right: Expression::Number(KUBE_MARK),
                op: Operator::EQ,
            })
        });
        let source = self.source.map(|side| side.statement(family.nft(), "saddr"));
        let destination = self.destination.map(|side| side.statement(family.nft(), "daddr"));
        let verdict = match self.verdict {
            Verdict::Return => Statement::Return(None),
            Verdict::Accept => Statement::Accept(None),
            Verdict::Masquerade { random_fully: false } => Statement::Masquerade(None),
            Verdict::Masquerade { random_fully: true } => {
                let flags = Some(HashSet::from([NATFlag::FullyRandom]));
                Statement::Masquerade(Some(NAT { addr: None, family: None, port: None, flags }))
            }
        };
        mark.into_iter().chain(source).chain(destination).chain([verdict]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        let overlay = |network: &str, subnet: &str| {
            Some(Overlay { network: network.parse().unwrap(), subnet: subnet.parse().unwrap() })
        };
        Wanted {
            v4: overlay("10.42.0.0/16", "10.42.1.0/24"),
            v6: overlay("fd00:42::/48", "fd00:42:0:1::/64"),
            masquerade: true,
            random_fully: true,
            forward: true,
        }
    }

    fn lines(rules: &[Rule], show: impl Fn(&Rule) -> String) -> String {
        rules.iter().map(|rule| show(rule) + "\n").collect()
    }

    #[test]
    fn iptables_rules_are_flannels_to_the_letter() {
        let expected = r#"
-m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-s 10.42.1.0/24 -d 10.42.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-s 10.42.0.0/16 -d 10.42.1.0/24 -m comment --comment "flanneld masq" -j RETURN
! -s 10.42.0.0/16 -d 10.42.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-s 10.42.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
! -s 10.42.0.0/16 -d 10.42.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
"#;
        let shown = lines(&wanted().masquerade_iptables(Family::V4), |rule| rule.iptables("flanneld masq"));
        assert_eq!(shown, expected.trim_start());
        let expected = r#"
-s 10.42.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-d 10.42.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
"#;
        let shown = lines(&wanted().forward(Family::V4), |rule| rule.iptables("flanneld forward"));
        assert_eq!(shown, expected.trim_start());
        let shown = lines(&wanted().masquerade_iptables(Family::V6), |rule| rule.iptables("flanneld masq"));
        let expected = r#"
-m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-s fd00:42:0:1::/64 -d fd00:42::/48 -m comment --comment "flanneld masq" -j RETURN
-s fd00:42::/48 -d fd00:42:0:1::/64 -m comment --comment "flanneld masq" -j RETURN
! -s fd00:42::/48 -d fd00:42:0:1::/64 -m comment --comment "flanneld masq" -j RETURN
-s fd00:42::/48 ! -d ff00::/8 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
! -s fd00:42::/48 -d fd00:42::/48 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
"#;
        assert_eq!(shown, expected.trim_start());
    }

    #[test]
    fn nft_rules_are_flannels_to_the_letter() {
        let expected = "
meta mark 0x4000 return
ip saddr 10.42.1.0/24 ip daddr 10.42.0.0/16 return
ip saddr 10.42.0.0/16 ip daddr 10.42.1.0/24 return
ip saddr != 10.42.1.0/24 ip daddr 10.42.0.0/16 return
ip saddr 10.42.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
ip saddr != 10.42.0.0/16 ip daddr 10.42.0.0/16 masquerade fully-random
";
        let shown = lines(&wanted().masquerade_nft(Family::V4), |rule| rule.nft(Family::V4));
        assert_eq!(shown, expected.trim_start());
        let expected = "ip6 saddr fd00:42::/48 accept\nip6 daddr fd00:42::/48 accept\n";
        assert_eq!(lines(&wanted().forward(Family::V6), |rule| rule.nft(Family::V6)), expected);
    }

    #[test]
    fn random_ports_can_be_done_without() {
        let wanted = Wanted { random_fully: false, ..wanted() };
        let rules = wanted.masquerade_iptables(Family::V4);
        let last = rules.last().unwrap();
        assert!(last.iptables("x").ends_with("-j MASQUERADE"));
        assert!(last.nft(Family::V4).ends_with(" masquerade"));
    }

    #[test]
    fn what_is_not_asked_for_has_no_rules() {
        let none = Wanted { masquerade: false, forward: false, ..wanted() };
        let other = Wanted { v6: None, ..wanted() };
        for family in Family::BOTH {
            assert!(none.masquerade_iptables(family).is_empty() && none.masquerade_nft(family).is_empty());
            assert!(none.forward(family).is_empty());
        }
        assert!(other.forward(Family::V6).is_empty() && !other.forward(Family::V4).is_empty());
    }

    #[test]
    fn host_bits_do_not_reach_a_rule() {
        let own = OwnLease {
            network: Some("10.42.0.9/16".parse().unwrap()),
            network_v6: None,
            subnets: crate::flannel::Subnets { v4: Some("10.42.1.1/24".parse().unwrap()), v6: None },
        };
        let wanted = Wanted::of(&own, true, false, false);
        assert_eq!(wanted.v6, None);
        let rule = &wanted.masquerade_nft(Family::V4)[1];
        assert_eq!(rule.nft(Family::V4), "ip saddr 10.42.1.0/24 ip daddr 10.42.0.0/16 return");
    }
}
