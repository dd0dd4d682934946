//! Who may send what: outer sources, inner sources, aliases, in each mode of `--peer-check`. Uses the half tunnel of
//! [`crate::half`], with two more addresses at the peer's end:
//!
//! ```text
//!   192.0.2.2  peer of 10.9.2.0/24        192.0.2.66  a stranger, or an alias of 192.0.2.2
//!   192.0.2.3  peer of 10.9.3.0/24
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use weft_lab::eventually;
use weft_proto::{PeerSpec, RouteSet, RouteSpec};

use crate::craft::{self, Packet};
use crate::half::Half;
use crate::support::{PORT, TIMEOUT, net};

const STRANGER: &str = "192.0.2.66";

/// A datagram that weftd gets: outer source, inner source, and what becomes of it in each mode.
struct Case {
    what: &'static str,
    outer: &'static str,
    inner: &'static str,
    /// The stranger is an alias of the first peer.
    alias: bool,
    /// Drop reason of the strict check; `None`: all is well.
    strict: Option<&'static str>,
}

const CASES: &[Case] = &[
    Case { what: "a peer with its own source", outer: "192.0.2.2", inner: "10.9.2.7", alias: false, strict: None },
    Case { what: "the other peer", outer: "192.0.2.3", inner: "10.9.3.7", alias: false, strict: None },
    Case {
        what: "a peer with the source of another",
        outer: "192.0.2.2",
        inner: "10.9.3.7",
        alias: false,
        strict: Some("peer_spoof"),
    },
    Case {
        what: "a peer with a source that is routed nowhere",
        outer: "192.0.2.2",
        inner: "203.0.113.7",
        alias: false,
        strict: Some("peer_spoof"),
    },
    Case {
        what: "a stranger with the source of a peer",
        outer: STRANGER,
        inner: "10.9.2.7",
        alias: false,
        strict: Some("peer_unknown"),
    },
    Case { what: "an alias of a peer", outer: STRANGER, inner: "10.9.2.7", alias: true, strict: None },
    Case {
        what: "an alias with the source of another peer",
        outer: STRANGER,
        inner: "10.9.3.7",
        alias: true,
        strict: Some("peer_spoof"),
    },
];

fn table(alias: bool) -> Result<RouteSet> {
    let peer = |address: &str, aliases: Vec<IpAddr>| -> Result<PeerSpec> {
        Ok(PeerSpec { name: None, addr: SocketAddr::new(address.parse()?, PORT), aliases })
    };
    let aliases = if alias { vec![STRANGER.parse()?] } else { Vec::new() };
    Ok(RouteSet {
        peers: vec![peer("192.0.2.2", aliases)?, peer("192.0.2.3", Vec::new())?],
        routes: vec![
            RouteSpec { prefix: net("10.9.2.0/24"), peer: 0 },
            RouteSpec { prefix: net("10.9.3.0/24"), peer: 1 },
        ],
    })
}

/// What weftd counted about peers: accepted, logged, and drops by reason.
fn counted(half: &Half) -> Result<BTreeMap<String, u64>> {
    let stats = half.host.stats()?;
    let counters = ["decap_packets", "peer_check_logged"].map(|name| (name.to_owned(), stats.counter(name)));
    Ok(stats.drops().into_iter().chain(counters).filter(|(_, count)| *count > 0).collect())
}

fn check_mode(mode: &str) -> Result<()> {
    let half = Half::build(&[crate::support::Family::V4], |options| options.peer_check = Some(mode.into()))?;
    let Some(half) = half else { return Ok(()) };
    let tun = half.capture_tun()?;
    half.peer.address("u0", "192.0.2.3/24")?;
    half.peer.address("u0", &format!("{STRANGER}/24"))?;
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for (number, case) in (0u16..).zip(CASES) {
        half.host.weftd.client()?.swap(&table(case.alias)?, None)?;
        let packet = Packet { id: number, ..Packet::udp(case.inner.parse()?, "10.9.1.77".parse()?, (7, 9), b"inner") };
        let packet = packet.build();
        // From any port: stock flannel ignores the source port, and so does weft.
        let socket = half.peer.run(|| UdpSocket::bind((case.outer, 0)))?;
        socket.send_to(&packet, half.host.address)?;
        let mut count = |name: &str| *expected.entry(name.to_owned()).or_default() += 1;
        let delivered = match (mode, case.strict) {
            ("strict", Some(reason)) => {
                count(&format!("decap {reason}"));
                false
            }
            ("log", Some(_)) => {
                count("decap_packets");
                count("peer_check_logged");
                true
            }
            _ => {
                count("decap_packets");
                true
            }
        };
        eventually(TIMEOUT, || {
            let found = counted(&half)?;
            ensure!(found == expected, "counted {found:?} instead of {expected:?}");
            Ok(())
        })
        .with_context(|| format!("{mode}: {}", case.what))?;
        let before = half.decap_marker(&tun)?;
        *expected.entry("decap_packets".to_owned()).or_default() += 1;
        let arrived = before.contains(&craft::one_hop_on(&packet));
        ensure!(arrived == delivered, "{mode}: {}: delivered: {arrived}", case.what);
    }
    Ok(())
}

#[test]
fn strict_drops_strangers_and_foreign_inner_sources() -> Result<()> {
    check_mode("strict")
}

#[test]
fn log_delivers_everything_and_counts_what_strict_would_drop() -> Result<()> {
    check_mode("log")
}

#[test]
fn off_delivers_everything_and_counts_nothing() -> Result<()> {
    check_mode("off")
}
