//! Traffic rules by real nft and real iptables, in both flavours of it.
//!
//! ```text
//!   pod 10.5.1.2 ──── node ──── 198.51.100.2 outside   (knows no way back to 10.5.0.0/16)
//!                      └─────── 10.5.2.2 other         (a pod of another subnet, here on a cable of its own)
//! ```

mod tool;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use weft_control::rules::{Overlay, Wanted};
use weft_lab::topology::Pod;
use weft_lab::{Capture, Lab, Link, Node, Ping, PingOutcome, ping};

use tool::{Tool, wanted};

/// Looks at rules that are as they should be.
const LOOKS: u32 = 20;
/// Rules of somebody else, which nobody may touch.
const FOREIGN_IPTABLES: &str = "
for t in iptables ip6tables; do
  $t -t nat -N MINE; $t -t nat -A MINE -m comment --comment 'not \"flannel\" -j FLANNEL-POSTRTG' -j RETURN
  $t -t nat -A POSTROUTING -j MINE
  $t -A FORWARD -p tcp --dport 9 -j DROP
done
nft add table inet mine
nft add chain inet mine c '{ type filter hook forward priority 5 ; }'
nft add rule inet mine c tcp dport 9 drop
";

#[test]
fn rules_are_made_once_as_flannel_writes_them_and_then_left_alone() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    for tool in Tool::ALL {
        let node = lab.node("node")?;
        tool.sh(&lab, &node, FOREIGN_IPTABLES)?;
        let (mut rules, notes) = tool.start(&lab, &node)?;
        ensure!(notes.is_empty(), "{tool:?}: {notes:?}");
        let changes = node.run(|| rules.apply(&wanted()))?;
        ensure!(changes.len() == 4 && changes.iter().all(|change| change.contains("made, with")), "{changes:?}");
        let shown = tool.sh(&lab, &node, &golden_command(tool))?;
        ensure!(shown == golden(tool), "{tool:?}:\n{shown}\nand should be\n{}", golden(tool));
        // Handles tell rules that were written again from those that were there.
        let handles = "nft -a list ruleset";
        let before = tool.sh(&lab, &node, handles)?;
        let began = Instant::now();
        for _ in 0..LOOKS {
            let changes = node.run(|| rules.apply(&wanted()))?;
            ensure!(changes.is_empty(), "{tool:?}: {changes:?}");
        }
        println!("{tool:?}: a look at both families takes {:?}", began.elapsed() / LOOKS);
        // And another process that starts finds nothing to do either.
        let (mut another, notes) = tool.start(&lab, &node)?;
        ensure!(notes.is_empty(), "{tool:?}: {notes:?}");
        ensure!(node.run(|| another.apply(&wanted()))?.is_empty(), "{tool:?}");
        ensure!(tool.sh(&lab, &node, handles)? == before, "{tool:?}: rules were written again");
    }
    Ok(())
}

/// Shows our chains as flannel's own end-to-end tests look at them.
fn golden_command(tool: Tool) -> String {
    match tool {
        Tool::Nft => "nft list chain ip flannel-ipv4 postrtg; nft list chain ip flannel-ipv4 forward; \
                      nft list chain ip6 flannel-ipv6 postrtg"
            .into(),
        _ => "iptables -t nat -S POSTROUTING | grep FLANNEL; iptables -t nat -S FLANNEL-POSTRTG; \
              iptables -S FORWARD | tail -n 1; iptables -S FLANNEL-FWD; ip6tables -t nat -S FLANNEL-POSTRTG"
            .into(),
    }
}

fn golden(tool: Tool) -> &'static str {
    match tool {
        Tool::Nft => {
            "table ip flannel-ipv4 {
\tchain postrtg {
\t\tcomment \"chain to manage traffic masquerading by flannel\"
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tmeta mark 0x00004000 return
\t\tip saddr 10.5.1.0/24 ip daddr 10.5.0.0/16 return
\t\tip saddr 10.5.0.0/16 ip daddr 10.5.1.0/24 return
\t\tip saddr != 10.5.1.0/24 ip daddr 10.5.0.0/16 return
\t\tip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
\t\tip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random
\t}
}
table ip flannel-ipv4 {
\tchain forward {
\t\tcomment \"chain to accept flannel traffic\"
\t\ttype filter hook forward priority filter; policy accept;
\t\tip saddr 10.5.0.0/16 accept
\t\tip daddr 10.5.0.0/16 accept
\t}
}
table ip6 flannel-ipv6 {
\tchain postrtg {
\t\tcomment \"chain to manage traffic masquerading by flannel\"
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tmeta mark 0x00004000 return
\t\tip6 saddr fd05:0:0:1::/64 ip6 daddr fd05::/48 return
\t\tip6 saddr fd05::/48 ip6 daddr fd05:0:0:1::/64 return
\t\tip6 saddr != fd05:0:0:1::/64 ip6 daddr fd05::/48 return
\t\tip6 saddr fd05::/48 ip6 daddr != ff00::/8 masquerade fully-random
\t\tip6 saddr != fd05::/48 ip6 daddr fd05::/48 masquerade fully-random
\t}
}
"
        }
        _ => {
            "-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
-N FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.1.0/24 -d 10.5.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 -d 10.5.1.0/24 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.1.0/24 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD
-N FLANNEL-FWD
-A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
-A FLANNEL-FWD -d 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
-N FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s fd05:0:0:1::/64 -d fd05::/48 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s fd05::/48 -d fd05:0:0:1::/64 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG ! -s fd05::/48 -d fd05:0:0:1::/64 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s fd05::/48 ! -d ff00::/8 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s fd05::/48 -d fd05::/48 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
"
        }
    }
}

/// What may happen to rules, and what is said about it.
fn damages(tool: Tool) -> &'static [(&'static str, &'static str)] {
    match tool {
        Tool::Nft => &[
            (
                "nft delete rule ip flannel-ipv4 postrtg handle $(nft -a list chain ip flannel-ipv4 postrtg | sed -n \
                 '/224.0.0.0/s/.*handle //p')",
                "1 of 6 rules missing",
            ),
            (
                "h=$(nft -a list chain ip flannel-ipv4 forward | sed -n '/saddr/s/.*handle //p'); nft delete rule ip \
                 flannel-ipv4 forward handle $h; nft add rule ip flannel-ipv4 forward ip saddr 10.5.0.0/16 accept",
                "rules out of order",
            ),
            ("nft add rule ip flannel-ipv4 forward ip daddr 10.5.0.0/16 accept", "there 2 times"),
            ("nft insert rule ip flannel-ipv4 postrtg ip daddr 1.2.3.4 counter accept", "foreign rule"),
            ("nft add rule ip6 flannel-ipv6 forward ip6 daddr ::1 drop comment '\"mine\"'", "foreign rule"),
            ("nft flush chain ip flannel-ipv4 postrtg", "6 of 6 rules missing"),
            ("nft flush table ip6 flannel-ipv6", "2 of 2 rules missing"),
            ("nft add chain ip flannel-ipv4 forward '{ policy drop ; }'", "another than flannel's"),
            ("nft flush chain ip flannel-ipv4 forward; nft delete chain ip flannel-ipv4 forward", "forward made"),
            ("nft delete table ip6 flannel-ipv6", "IPv6 table flannel-ipv6: chain postrtg made"),
        ],
        _ => &[
            ("iptables -t nat -D FLANNEL-POSTRTG 5", "1 of 6 rules missing"),
            (
                "iptables -t nat -D FLANNEL-POSTRTG 2; iptables -t nat -A FLANNEL-POSTRTG -s 10.5.1.0/24 -d 10.5.0.0/16 -m \
                 comment --comment 'flanneld masq' -j RETURN",
                "rules out of order",
            ),
            (
                "ip6tables -A FLANNEL-FWD -d fd05::/48 -m comment --comment 'flanneld forward' -j ACCEPT",
                "there 2 times",
            ),
            ("iptables -t nat -I FLANNEL-POSTRTG -d 1.2.3.4 -j ACCEPT", "foreign rule `-d 1.2.3.4/32 -j ACCEPT`"),
            ("iptables -t nat -F FLANNEL-POSTRTG", "6 of 6 rules missing"),
            ("iptables -F", "2 of 2 rules missing"),
            ("iptables -D FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD", "jump from FORWARD"),
            (
                "iptables -t nat -I POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG",
                "second jump to FLANNEL-POSTRTG",
            ),
            ("ip6tables -t nat -F; ip6tables -t nat -X FLANNEL-POSTRTG", "IPv6 nat: FLANNEL-POSTRTG made"),
        ],
    }
}

#[test]
fn whatever_happens_to_the_rules_is_noticed_and_mended() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    for tool in Tool::ALL {
        let node = lab.node("node")?;
        let (mut rules, _) = tool.start(&lab, &node)?;
        node.run(|| rules.apply(&wanted()))?;
        let good = tool.dump(&lab, &node)?;
        for (damage, said) in damages(tool) {
            tool.sh(&lab, &node, damage)?;
            ensure!(tool.dump(&lab, &node)? != good, "{tool:?}: `{damage}` does nothing");
            let changes = node.run(|| rules.apply(&wanted())).with_context(|| format!("{tool:?}: {damage}"))?;
            ensure!(changes.iter().any(|change| change.contains(said)), "{tool:?}: `{damage}`: {changes:?}");
            // Chains that were made again stand elsewhere in the listing.
            let (mut now, mut before) = (tool.dump(&lab, &node)?, good.clone());
            for text in [&mut now, &mut before] {
                let mut lines: Vec<_> = text.lines().collect();
                lines.sort_unstable();
                *text = lines.join("\n");
            }
            ensure!(now == before, "{tool:?}: after `{damage}`:\n{now}\nand before\n{before}");
            let shown = tool.sh(&lab, &node, &golden_command(tool))?;
            ensure!(shown == golden(tool), "{tool:?}: after `{damage}`:\n{shown}");
            ensure!(node.run(|| rules.apply(&wanted()))?.is_empty(), "{tool:?}: `{damage}`");
        }
    }
    Ok(())
}

#[test]
fn another_way_of_making_rules_cleans_up_after_the_former_and_removal_leaves_only_what_is_anothers() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    for former in Tool::ALL {
        for latter in Tool::ALL.into_iter().filter(|latter| *latter != former) {
            let node = lab.node("node")?;
            former.sh(&lab, &node, FOREIGN_IPTABLES)?;
            let (mut rules, _) = former.start(&lab, &node)?;
            let [foreign, foreign_nft] = [former, Tool::Nft].map(|tool| tool.dump(&lab, &node));
            let (foreign, foreign_nft) = (foreign?, foreign_nft?);
            node.run(|| rules.apply(&wanted()))?;
            let (mut rules, notes) = latter.start(&lab, &node)?;
            ensure!(notes.iter().any(|note| note.starts_with("removed from")), "{former:?} to {latter:?}: {notes:?}");
            ensure!(former.dump(&lab, &node)? == foreign, "{former:?} to {latter:?}:\n{}", former.dump(&lab, &node)?);
            node.run(|| rules.apply(&wanted()))?;
            let removed = node.run(|| rules.remove())?;
            ensure!(!removed.is_empty() && node.run(|| rules.remove())?.is_empty(), "{removed:?}");
            ensure!(former.dump(&lab, &node)? == foreign, "{former:?} to {latter:?}");
            let dump = latter.dump(&lab, &node)?;
            ensure!(!dump.contains(":FLANNEL") && !dump.contains("flannel-ipv"), "{dump}");
            let nft = Tool::Nft.dump(&lab, &node)?;
            ensure!(nft.contains("tcp dport 9 drop") && foreign_nft.contains("tcp dport 9 drop"), "{nft}");
        }
    }
    Ok(())
}

#[test]
fn another_network_and_fewer_wishes_replace_what_was_there() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    for tool in Tool::ALL {
        let node = lab.node("node")?;
        let (mut rules, _) = tool.start(&lab, &node)?;
        node.run(|| rules.apply(&wanted()))?;
        let overlay = Overlay { network: "10.6.0.0/16".parse()?, subnet: "10.6.1.0/24".parse()? };
        // A new process, as after a restart with another network config.
        let (mut rules, _) = tool.start(&lab, &node)?;
        let less = Wanted { v4: Some(overlay), v6: None, forward: false, random_fully: false, ..wanted() };
        node.run(|| rules.apply(&less))?;
        let dump = tool.dump(&lab, &node)?;
        for gone in ["10.5.", "fd05:", "flanneld forward", "chain forward", "random"] {
            ensure!(!dump.contains(gone), "{tool:?}: {gone} is left:\n{dump}");
        }
        ensure!(dump.contains("10.6.1.0/24"), "{tool:?}:\n{dump}");
        ensure!(node.run(|| rules.apply(&less))?.is_empty(), "{tool:?}");
    }
    Ok(())
}

/// A node with a pod, the world outside, and a pod of another subnet.
struct World {
    node: Node,
    pod: Pod,
    outside: Node,
    other: Node,
    _links: [Link; 2],
    lab: Lab,
}

impl World {
    fn build() -> Result<Option<Self>> {
        let Some(lab) = Lab::start() else { return Ok(None) };
        let (node, outside, other) = (lab.node("node")?, lab.node("outside")?, lab.node("other")?);
        let pod = Pod::behind(&lab, &node, "pod", "10.5.1.2/24", "10.5.1.1/24", 1500)?;
        pod.family("fd05:0:0:1::2/64", "fd05:0:0:1::1/64")?;
        let uplink = Link::veth(&outside, "u0", &node, "u0", 1500)?;
        uplink.addresses("198.51.100.2/24", "198.51.100.1/24")?;
        uplink.addresses("2001:db8::2/64", "2001:db8::1/64")?;
        let overlay = Link::veth(&other, "u0", &node, "o0", 1500)?;
        overlay.addresses("10.5.2.2/24", "10.5.2.1/24")?;
        overlay.addresses("fd05:0:0:2::2/64", "fd05:0:0:2::1/64")?;
        other.route_via("10.5.0.0/16", "10.5.2.1", "u0")?;
        other.route_via("fd05::/48", "fd05:0:0:2::1", "u0")?;
        Ok(Some(Self { node, pod, outside, other, _links: [uplink, overlay], lab }))
    }

    /// Pings from the pod; gives the source address of the requests that arrived at `at`.
    fn arrives_as(&self, at: &Node, to: &str) -> Result<String> {
        let capture = Capture::start(at, "u0", |frame| !frame.outgoing && is_echo_request(&frame.bytes))?;
        ping(&self.pod.node, &Ping::to(to.parse()?))?.reply().with_context(|| format!("ping {to}"))?;
        let frames = capture.stop();
        let bytes = &frames.first().context("no request arrived")?.bytes;
        let address = match to.contains(':') {
            true => std::net::Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[22..38])?).to_string(),
            false => std::net::Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[26..30])?).to_string(),
        };
        Ok(address)
    }
}

fn is_echo_request(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(23) == Some(&1) && frame.get(34) == Some(&8),
        Some([0x86, 0xdd]) => frame.get(20) == Some(&58) && frame.get(54) == Some(&128),
        _ => false,
    }
}

#[test]
fn what_leaves_the_overlay_is_masqueraded_and_what_stays_is_not() -> Result<()> {
    for tool in Tool::ALL {
        let Some(world) = World::build()? else { return Ok(()) };
        let (mut rules, _) = tool.start(&world.lab, &world.node)?;
        for to in ["198.51.100.2", "2001:db8::2"] {
            let outcome = ping(&world.pod.node, &Ping::quick(to.parse()?))?;
            ensure!(!matches!(outcome, PingOutcome::Reply { .. }), "without rules {to} answers: {outcome:?}");
        }
        world.node.run(|| rules.apply(&wanted()))?;
        let cases = [
            (&world.outside, "198.51.100.2", "198.51.100.1"),
            (&world.outside, "2001:db8::2", "2001:db8::1"),
            (&world.other, "10.5.2.2", "10.5.1.2"),
            (&world.other, "fd05:0:0:2::2", "fd05:0:0:1::2"),
        ];
        for (at, to, expected) in cases {
            let source = world.arrives_as(at, to).with_context(|| format!("{tool:?}"))?;
            ensure!(source == expected, "{tool:?}: to {to} as {source}, expected {expected}");
        }
    }
    Ok(())
}

#[test]
fn a_node_that_forwards_by_permission_only_forwards_for_the_overlay() -> Result<()> {
    for tool in Tool::IPTABLES {
        let Some(world) = World::build()? else { return Ok(()) };
        tool.sh(&world.lab, &world.node, "iptables -P FORWARD DROP")?;
        let (mut rules, _) = tool.start(&world.lab, &world.node)?;
        let masquerade_only = Wanted { forward: false, ..wanted() };
        world.node.run(|| rules.apply(&masquerade_only))?;
        let outcome = ping(&world.pod.node, &Ping::quick("10.5.2.2".parse()?))?;
        ensure!(!matches!(outcome, PingOutcome::Reply { .. }), "{tool:?}: forwarded: {outcome:?}");
        world.node.run(|| rules.apply(&wanted()))?;
        ping(&world.pod.node, &Ping::to("10.5.2.2".parse()?))?.reply().with_context(|| format!("{tool:?}"))?;
        ensure!(tool.sh(&world.lab, &world.node, "iptables -S FORWARD")?.contains("-P FORWARD DROP"), "{tool:?}");
    }
    Ok(())
}
