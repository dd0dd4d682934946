//! A table is changed under traffic: no packet is lost, and none goes where the table in force does not lead.
//!
//! ```text
//!                                | table of a: 10.9.50.0/24 leads to b and c by turns
//!   a 10.9.1.1 ---+              |             10.9.2.0/24 leads to b all the time
//!                 |              |             100,000 others change with the first
//!   b 10.9.2.1 ---+ 10.9.50.1
//!   c 10.9.3.1 ---+ 10.9.50.1
//! ```

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ipnet::{IpNet, Ipv4Net};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::process::Signal;
use serde_json::{Value, json};
use weft_client::Client;
use weft_lab::{Node, Process, eventually, udp, weft_binary};
use weft_proto::{Delta, Installed, RouteSet};

use crate::support::{Cluster, Family, Host, TIMEOUT, TUN, Tunnel, net};

/// Routes that change in each swap, besides the one that is watched.
const ROUTE_COUNT: u32 = 100_000;
/// Changes at least.
const CHANGE_COUNT: u64 = 6;
/// Datagrams that are sent on one table before the next change.
const DATAGRAMS_BETWEEN: u64 = 200;
/// The address that `b` and `c` both have, and its route.
const SHARED: Ipv4Addr = Ipv4Addr::new(10, 9, 50, 1);
const SHARED_PREFIX: &str = "10.9.50.0/24";
/// Where both listen.
const PORT: u16 = 5000;

#[test]
fn a_route_swap_loses_no_packet_on_uring() -> Result<()> {
    swaps_under_traffic("uring")
}

#[test]
fn a_route_swap_loses_no_packet_on_epoll() -> Result<()> {
    swaps_under_traffic("epoll")
}

fn swaps_under_traffic(engine: &str) -> Result<()> {
    let Some(cluster) = cluster(engine)? else { return Ok(()) };
    let [a, b, c] = &cluster.hosts[..] else { unreachable!("three hosts were asked for") };
    let tables = [large_table(b, c), large_table(c, b)];
    let mut client = a.weftd.client()?;
    let mut last = client.swap(&tables[0], None)?;
    changes_under_traffic(&cluster, |table| {
        let installed = client.swap(&tables[table], Some(last.generation))?;
        ensure!(installed.generation == last.generation + 1, "{installed:?} after {last:?}");
        ensure!(installed.digest == tables[table].digest() && installed.routes == ROUTE_COUNT + 3, "{installed:?}");
        last = installed;
        Ok(())
    })
}

#[test]
fn a_delta_loses_no_packet() -> Result<()> {
    let Some(cluster) = cluster("uring")? else { return Ok(()) };
    let [a, b, c] = &cluster.hosts[..] else { unreachable!("three hosts were asked for") };
    let mut client = a.weftd.client()?;
    client.swap(&large_table(b, c), None)?;
    changes_under_traffic(&cluster, |table| {
        let upsert = vec![(net(SHARED_PREFIX), [b, c][table].peer())];
        client.delta(&Delta { upsert, remove: Vec::new() }, None)?;
        Ok(())
    })
}

/// Three hosts, `b` and `c` with the shared address.
fn cluster(engine: &str) -> Result<Option<Cluster>> {
    let builder = Tunnel::builder().each(|options| {
        options.engine = Some(engine.into());
        options.workers = Some(2);
    });
    let Some(cluster) = builder.build_switched(3)? else { return Ok(None) };
    for host in &cluster.hosts[1..] {
        host.node.address(TUN, &format!("{SHARED}/32"))?;
    }
    Ok(Some(cluster))
}

/// The shared prefix and half of many routes lead to `first`, the other half to `second`; those of hosts 2 and 3 stay.
fn large_table(first: &Host, second: &Host) -> RouteSet {
    let other = |index: u32| {
        let prefix = Ipv4Net::new_assert(Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + index), 32);
        (IpNet::from(prefix), if index.is_multiple_of(2) { first } else { second })
    };
    let of_host = |host| (Family::V4.subnet(host), if first.number == host { first } else { second });
    let fixed = [(net(SHARED_PREFIX), first), of_host(2), of_host(3)];
    Host::table(fixed.into_iter().chain((0..ROUTE_COUNT).map(other)))
}

/// Lets two flows pass while `change` puts table 0 (the shared prefix leads to `b`) and 1 (to `c`) in force by turns, from
/// table 0 on.
fn changes_under_traffic(cluster: &Cluster, mut change: impl FnMut(usize) -> Result<()>) -> Result<()> {
    let [a, b, c] = &cluster.hosts[..] else { unreachable!("three hosts were asked for") };
    let flow = Flow::default();
    let sockets = [flow.listen(&b.node)?, flow.listen(&c.node)?];
    let (expected, arrived) = thread::scope(|scope| {
        let flow = &flow;
        let steady = scope.spawn(|| udp::stream(&a.node, &b.node, &steady(b))?.perfect());
        let sender = scope.spawn(|| flow.send(&a.node));
        let receivers = sockets.map(|socket| scope.spawn(move || flow.receive(&socket)));
        let mut changed = || {
            let mut count = 0;
            while count < CHANGE_COUNT || !steady.is_finished() {
                count += 1;
                flow.change(|| change(count as usize % 2)).with_context(|| format!("change {count}"))?;
            }
            Ok::<_, anyhow::Error>(())
        };
        let outcome = changed();
        flow.stop.store(true, SeqCst);
        let expected = sender.join().expect("the sending thread does not panic");
        // What does not arrive is missed below.
        let _ = flow.arrived(flow.sent.load(SeqCst));
        flow.over.store(true, SeqCst);
        let arrived = receivers.map(|receiver| receiver.join().expect("a receiving thread does not panic"));
        steady.join().expect("the streaming thread does not panic").context("the flow whose route stays")?;
        outcome?;
        Ok::<_, anyhow::Error>((expected?, arrived))
    })?;
    arrives_where_it_should(&expected, &arrived)?;
    let drops = a.stats()?.drops();
    ensure!(drops.is_empty(), "a dropped {drops:?}");
    Ok(())
}

/// A flow to a host by a route that stays.
fn steady(to: &Host) -> udp::Stream {
    udp::Stream { interval: Duration::from_micros(200), ..udp::Stream::new(to.overlay(Family::V4), 10_000, 500) }
}

/// Numbered datagrams to the shared address, and what their sender knows of the table in force.
#[derive(Debug, Default)]
struct Flow {
    /// Twice the number of changes made; odd while one is under way.
    epoch: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    /// Nothing more is sent.
    stop: AtomicBool,
    /// Nothing more arrives.
    over: AtomicBool,
}

impl Flow {
    /// Changes the table once all that was sent on the old one has arrived, and lets some be sent on the new one.
    fn change(&self, change: impl FnOnce() -> Result<()>) -> Result<()> {
        self.epoch.fetch_add(1, SeqCst);
        self.arrived(self.sent.load(SeqCst))?;
        change()?;
        self.epoch.fetch_add(1, SeqCst);
        self.arrived(self.sent.load(SeqCst) + DATAGRAMS_BETWEEN)
    }

    fn arrived(&self, count: u64) -> Result<()> {
        eventually(TIMEOUT, || {
            let received = self.received.load(SeqCst);
            ensure!(received >= count, "{received} datagrams have arrived, not {count}");
            Ok(())
        })
    }

    fn listen(&self, node: &Node) -> Result<UdpSocket> {
        let socket = node.run(|| UdpSocket::bind((SHARED, PORT)))?;
        set_socket_recv_buffer_size_force(&socket, 16 << 20)?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(socket)
    }

    /// Sends until told to stop. Of each datagram, returns the table that was in force from before it was sent until it
    /// arrived; `None`: it was under way during a change.
    fn send(&self, from: &Node) -> Result<Vec<Option<usize>>> {
        let socket = from.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
        let mut expected = Vec::new();
        while !self.stop.load(SeqCst) {
            let before = self.epoch.load(SeqCst);
            socket.send_to(&(expected.len() as u64).to_be_bytes(), (SHARED, PORT))?;
            // In this order: a change that begins later waits for this datagram.
            self.sent.fetch_add(1, SeqCst);
            let settled = before.is_multiple_of(2) && before == self.epoch.load(SeqCst);
            expected.push(settled.then_some((before / 2 % 2) as usize));
            thread::sleep(Duration::from_micros(100));
        }
        Ok(expected)
    }

    /// The numbers that arrive, until nothing does after the end.
    fn receive(&self, socket: &UdpSocket) -> Vec<u64> {
        let mut numbers = Vec::new();
        let mut buffer = [0; 8];
        loop {
            let is_over = self.over.load(SeqCst);
            match socket.recv(&mut buffer) {
                Ok(_) => {
                    numbers.push(u64::from_be_bytes(buffer));
                    self.received.fetch_add(1, SeqCst);
                }
                Err(_) if is_over => return numbers,
                Err(_) => {}
            }
        }
    }
}

fn arrives_where_it_should(expected: &[Option<usize>], arrived: &[Vec<u64>; 2]) -> Result<()> {
    let mut seen = vec![false; expected.len()];
    for (host, numbers) in arrived.iter().enumerate() {
        ensure!(numbers.is_sorted(), "out of order at host {host}");
        for &number in numbers {
            ensure!(!std::mem::replace(&mut seen[number as usize], true), "datagram {number} arrived twice");
            let right = expected[number as usize];
            ensure!(right.is_none_or(|right| right == host), "datagram {number} is for {right:?}, arrived at {host}");
        }
    }
    let lost = seen.iter().filter(|seen| !**seen).count();
    ensure!(lost == 0, "{lost} of {} datagrams were lost", expected.len());
    for table in [Some(0), Some(1)] {
        let count = expected.iter().filter(|expected| **expected == table).count() as u64;
        ensure!(count >= DATAGRAMS_BETWEEN, "only {count} datagrams were sent on table {table:?} alone");
    }
    Ok(())
}

#[test]
fn weft_and_weftd_agree_on_the_table_in_force() -> Result<()> {
    let Some(cluster) = cluster("uring")? else { return Ok(()) };
    let [a, b, c] = &cluster.hosts[..] else { unreachable!("three hosts were asked for") };
    let table = large_table(b, c);
    let mut client = a.weftd.client()?;
    let installed = client.swap(&table, None)?;
    agrees(a, &mut client, installed)?;
    assert_eq!(client.routes()?.set, table.canonical());

    let mut last = installed;
    for (verb, expected) in [
        (vec!["add", "10.9.60.0/24", "via", "192.0.2.3"], "192.0.2.3:8285"),
        (vec!["add", "10.9.60.0/24", "via", "192.0.2.2:8285"], "192.0.2.2:8285"),
        (vec!["del", "10.9.60.0/24"], ""),
    ] {
        let answer = weft(a, &[&["route", "--json"], &verb[..]].concat())?.success()?;
        let change: Installed = serde_json::from_str(&answer)?;
        ensure!(change.generation == last.generation + 1 && change.digest != last.digest, "{change:?} after {last:?}");
        agrees(a, &mut client, change)?;
        let address: IpAddr = "10.9.60.1".parse()?;
        let route = client.get(address)?.route;
        ensure!(route.as_ref().map_or(String::new(), |route| route.peer.addr.to_string()) == expected, "{route:?}");
        let shown = weft(a, &["route", "get", "10.9.60.1", "--json"])?;
        ensure!(shown.code == i32::from(expected.is_empty()), "`route get` exits with {}", shown.code);
        ensure!(serde_json::from_str::<Value>(&shown.output)?["route"] == serde_json::to_value(&route)?, "{shown:?}");
        last = change;
    }
    // What was added and deleted again leaves the table as it was.
    ensure!(last.digest == installed.digest, "{last:?}");
    Ok(())
}

/// Status, read-back and `weft` name the same generation and digest.
fn agrees(host: &Host, client: &mut Client, installed: Installed) -> Result<()> {
    let status = client.status()?;
    ensure!((status.generation, status.digest) == (installed.generation, installed.digest), "{status:?}");
    let table = client.routes()?;
    ensure!(table.installed == installed && table.set.digest() == installed.digest, "{:?}", table.installed);
    let listed = weft(host, &["route", "list", "--json"])?.success()?;
    let listed: Value = serde_json::from_str(&listed)?;
    ensure!(listed["generation"] == installed.generation, "{}", listed["generation"]);
    ensure!(listed["digest"] == serde_json::to_value(installed.digest)?, "{}", listed["digest"]);
    let count = listed["peers"].as_array().into_iter().flatten().filter_map(|peer| peer["routes"].as_array());
    ensure!(count.map(Vec::len).sum::<usize>() == installed.routes as usize, "the number of routes listed");
    Ok(())
}

#[test]
fn a_change_that_expects_another_generation_is_refused() -> Result<()> {
    let Some(cluster) = cluster("uring")? else { return Ok(()) };
    let [a, b, c] = &cluster.hosts[..] else { unreachable!("three hosts were asked for") };
    let mut client = a.weftd.client()?;
    let stale = client.swap(&large_table(b, c), None)?.generation;
    let installed = client.swap(&large_table(c, b), Some(stale))?;

    let error = client.swap(&large_table(b, c), Some(stale)).expect_err("a stale swap");
    assert!(error.is_stale() && error.to_string().contains(&installed.generation.to_string()), "{error}");
    let delta = Delta { upsert: vec![(net(SHARED_PREFIX), b.peer())], remove: Vec::new() };
    assert!(client.delta(&delta, Some(stale)).expect_err("a stale delta").is_stale());

    let file = write_table(&cluster, "stale.json", &large_table(b, c))?;
    let refused = weft(a, &["route", "replace", &file, "--expect", &stale.to_string()])?;
    assert!(refused.code == 1 && refused.output.contains("generation"), "{refused:?}");
    agrees(a, &mut client, installed)
}

#[test]
fn a_killed_client_leaves_the_old_table_or_the_new_one() -> Result<()> {
    let Some(cluster) = cluster("uring")? else { return Ok(()) };
    let [a, b, c] = &cluster.hosts[..] else { unreachable!("three hosts were asked for") };
    let tables = [large_table(b, c), large_table(c, b)];
    let files = [write_table(&cluster, "0.json", &tables[0])?, write_table(&cluster, "1.json", &tables[1])?];
    let digests = [tables[0].digest(), tables[1].digest()];
    let mut client = a.weftd.client()?;
    let mut last = client.swap(&tables[0], None)?;

    let (arrived, ()) = udp::during(&a.node, &b.node, &steady(b), || {
        for number in 1..=8u64 {
            let mut process = spawn_weft(a, &["route", "replace", &files[number as usize % 2]])?;
            // At any point of its life: there is nothing to wait for.
            thread::sleep(Duration::from_millis(number * 25));
            // It may have ended.
            let _ = process.signal(Signal::KILL);
            process.wait(TIMEOUT)?;
            let status = client.status()?;
            ensure!(digests.contains(&status.digest) && status.routes == ROUTE_COUNT + 3, "{status:?}");
            ensure!((last.generation..=last.generation + 1).contains(&status.generation), "{status:?} after {last:?}");
            last = Installed { generation: status.generation, digest: status.digest, ..last };
        }
        Ok(())
    })?;
    arrived.perfect().context("the flow whose route stays")?;
    let table = client.routes()?;
    ensure!(digests.contains(&table.set.digest()), "{:?}", table.installed);
    client.swap(&tables[0], Some(table.installed.generation))?;
    Ok(())
}

/// Writes a table as `weft route replace` reads it.
fn write_table(cluster: &Cluster, name: &str, table: &RouteSet) -> Result<String> {
    let peers: Vec<Value> = (0..)
        .zip(&table.peers)
        .map(|(index, peer)| {
            let routes: Vec<IpNet> =
                table.routes.iter().filter(|route| route.peer == index).map(|route| route.prefix).collect();
            json!({ "addr": peer.addr.to_string(), "name": peer.name, "routes": routes })
        })
        .collect();
    let path = cluster.lab.directory().join(name);
    std::fs::write(&path, json!({ "peers": peers }).to_string())?;
    path.into_os_string().into_string().map_err(|path| anyhow::anyhow!("{path:?} is not text"))
}

/// How a `weft` ended, and what it wrote.
#[derive(Debug)]
struct Ended {
    code: i32,
    output: String,
}

impl Ended {
    fn success(self) -> Result<String> {
        if self.code != 0 {
            bail!("weft failed: {self:?}");
        }
        Ok(self.output)
    }
}

fn weft(host: &Host, arguments: &[&str]) -> Result<Ended> {
    let mut process = spawn_weft(host, arguments)?;
    let status = process.wait(TIMEOUT)?;
    Ok(Ended { code: status.code().context("weft was killed")?, output: process.log() })
}

fn spawn_weft(host: &Host, arguments: &[&str]) -> Result<Process> {
    let mut command = Command::new(weft_binary()?);
    command.args(arguments).env("WEFT_SOCKET", host.weftd.socket());
    let mut process = host.node.spawn(command)?;
    process.quiet();
    Ok(process)
}
