//! Large tables, through `weft route replace` into a running weftd.
//!
//! ```text
//!   a  weft-a 10.99.0.1/24
//!      u0 192.0.2.1/24 --- u0 192.0.2.2/24  b
//! ```

use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ipnet::{IpNet, Ipv4Net};
use weft_lab::Lab;
use weft_lab::topology::Pair;
use weft_proto::{Delta, PeerSpec, RouteSet, RouteSpec};

use crate::weft::Weft;

/// Peers that the routes are spread over.
const PEER_COUNT: u32 = 250;
/// Bytes of memory per route that weftd may hold after tables were swapped: two tables at once, and what the allocator keeps.
const RSS_PER_ROUTE_MAX: u64 = 512;
/// Bytes of memory of a weftd with its pools and an empty table.
const RSS_BASE_MAX: u64 = 64 << 20;

/// `count` prefixes of 24 to 32 bits from 10.0.0.0 on, each followed by the next, spread over the peers.
fn table(count: u32) -> RouteSet {
    let peers = (0..PEER_COUNT).map(|n| PeerSpec {
        name: Some(format!("h{n}")),
        addr: (Ipv4Addr::new(198, 51, 100, (n + 1) as u8), 8285).into(),
        aliases: Vec::new(),
    });
    let routes = (0..count).map(|n| {
        let address = Ipv4Addr::from(0x0a00_0000 + n * 16);
        let prefix = Ipv4Net::new_assert(address, 28 + (n % 5) as u8);
        RouteSpec { prefix: IpNet::V4(prefix), peer: n % PEER_COUNT }
    });
    RouteSet { peers: peers.collect(), routes: routes.collect() }
}

/// The table as a route file.
fn file(set: &RouteSet) -> Result<String> {
    let mut lists = vec![Vec::new(); set.peers.len()];
    for route in &set.routes {
        lists[route.peer as usize].push(format!("\"{}\"", route.prefix));
    }
    let mut text = String::from("{\"peers\": [\n");
    for (index, (peer, routes)) in set.peers.iter().zip(&lists).enumerate() {
        let name = peer.name.as_deref().context("a name")?;
        let comma = if index == 0 { "" } else { ",\n" };
        write!(text, "{comma}{{\"name\": {name:?}, \"addr\": \"{}\", \"routes\": [{}]}}", peer.addr, routes.join(","))?;
    }
    Ok(text + "]}\n")
}

/// Resident memory of a process, in bytes (proc_pid_status(5), `VmRSS`).
fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}

fn holds(count: u32) -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let pair = Pair::new(&lab, 1500)?;
    let host = Weft::new(&lab, &pair.a)?;
    host.write("t.toml", "name = \"weft-a\"\naddress = \"10.99.0.1/24\"\n")?;
    host.ok(&["up", "t.toml"])?;
    let pid = host.weftd_pid("weft-a")?;
    let base = resident(pid)?;
    ensure!(base <= RSS_BASE_MAX, "{} MiB before any table", base >> 20);

    let set = table(count);
    host.write("table.json", &file(&set)?)?;
    // Twice, for the second table is built while the first serves.
    for generation in 1..=2 {
        let installed = host.json(&["route", "replace", "table.json", "--json", "--timeout", "60s"])?;
        ensure!(installed["routes"] == count && installed["peers"] == PEER_COUNT, "{installed}");
        ensure!(installed["digest"] == set.digest().to_string(), "{installed}, and not {}", set.digest());
        ensure!(installed["generation"].as_u64() >= Some(generation), "{installed}");
    }
    let bound = RSS_BASE_MAX + u64::from(count) * RSS_PER_ROUTE_MAX;
    let held = resident(pid)?;
    ensure!(held <= bound, "{} MiB resident, at most {} were expected", held >> 20, bound >> 20);

    let mut client = host.client("weft-a")?;
    let read = client.routes()?;
    ensure!(read.set == set.clone().canonical(), "the table that is read back is another one");
    let listed = host.ok(&["route", "list"])?.out;
    ensure!(listed.lines().count() == count as usize, "{} lines", listed.lines().count());
    for route in set.routes.iter().step_by(set.routes.len() / 100) {
        let answer = client.get(route.prefix.addr())?;
        let found = answer.route.context("a route")?;
        let expected = &set.peers[route.peer as usize];
        ensure!((found.prefix, &found.peer) == (route.prefix, expected), "{found:?}, and not {expected:?}");
    }

    let other = IpNet::from(IpAddr::from([192, 168, 0, 0]));
    let delta = Delta { upsert: vec![(other, set.peers[0].clone())], remove: vec![set.routes[0].prefix] };
    let started = Instant::now();
    let installed = client.delta(&delta, Some(read.installed.generation))?;
    let took = started.elapsed();
    ensure!(installed.routes == count && installed.generation == read.installed.generation + 1, "{installed:?}");
    host.ok(&["route", "get", "192.168.0.0"])?.prints(&["(h0)"])?;
    println!(
        "{count} routes: {} MiB resident, {} MiB before; a delta of one route took {took:?}",
        held >> 20,
        base >> 20
    );
    Ok(())
}

#[test]
fn a_hundred_thousand_routes_are_held_and_read_back() -> Result<()> {
    holds(100_000)
}

#[test]
fn a_million_routes_are_held_and_read_back() -> Result<()> {
    holds(1_000_000)
}
