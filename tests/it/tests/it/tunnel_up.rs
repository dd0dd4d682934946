//! `weft up` and `weft down`: from a tunnel file to packets, and back to nothing.
//!
//! ```text
//!   a  weft-a 10.99.0.1/24                             b  weft-b 10.99.0.2/24
//!      u0 192.0.2.1/24, 2001:db8::1/64 --------------- u0 192.0.2.2/24, 2001:db8::2/64
//! ```
//!
//! The tunnel files are the repository's examples; the underlay has the addresses that they name.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use weft_control::link::SAFETY_METRIC;
use weft_lab::topology::Pair;
use weft_lab::{Capture, Lab, Link, Ping, PingOutcome, TIMEOUT, eventually, ping, tcp, weft_binary};
use weft_netlink::{Route, RouteFilter, RouteKind};

use crate::support::net;
use crate::weft::Weft;

/// Bytes of a TCP transfer.
const TRANSFER_LEN: u64 = 1 << 20;
/// The user and group that own nothing.
const NOBODY: u32 = 65_534;

/// Two hosts on a cable, with `weft` on each.
struct Hosts {
    a: Weft,
    b: Weft,
    /// The cable, which goes when this does.
    _link: Link,
    lab: Lab,
}

impl Hosts {
    fn new(mtu: u32) -> Result<Option<Self>> {
        let Some(lab) = Lab::start() else { return Ok(None) };
        let pair = Pair::new(&lab, mtu)?;
        Ok(Some(Self { a: Weft::new(&lab, &pair.a)?, b: Weft::new(&lab, &pair.b)?, _link: pair.link, lab }))
    }

    /// Writes the example files for two hosts; returns that of `a` and that of `b`.
    fn two_hosts(&self) -> Result<[PathBuf; 2]> {
        let a = self.a.write("tunnel.toml", &example("two-hosts-a.toml")?)?;
        let b = self.b.write("tunnel.toml", &example("two-hosts-b.toml")?)?;
        Ok([a, b])
    }

    /// Brings both ends of the example tunnel up.
    fn up(&self) -> Result<[PathBuf; 2]> {
        let files = self.two_hosts()?;
        self.a.ok(&["up".as_ref(), files[0].as_os_str()])?;
        self.b.ok(&["up".as_ref(), files[1].as_os_str()])?;
        Ok(files)
    }

    fn pings(&self, to: &str) -> Result<()> {
        ping(&self.a.node, &Ping::to(to.parse()?))?.reply().with_context(|| format!("ping {to}")).map(drop)
    }
}

fn example(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

#[test]
fn the_example_for_two_hosts_carries_ping_and_tcp_and_goes_without_a_trace() -> Result<()> {
    let Some(hosts) = Hosts::new(1500)? else { return Ok(()) };
    let [before_a, before_b] = [hosts.a.traces()?, hosts.b.traces()?];
    let [file_a, file_b] = hosts.two_hosts()?;
    let up = hosts.a.ok(&["up".as_ref(), file_a.as_os_str()])?;
    up.prints(&[
        "weft-a: up. Device weft-a, 10.99.0.1/24, MTU 1472; listening on 0.0.0.0:8285 udp",
        "b: 10.99.0.2/32 via 192.0.2.2:8285",
    ])?;
    hosts.b.ok(&["up".as_ref(), file_b.as_os_str()])?;
    hosts.pings("10.99.0.2")?;
    tcp::transfer(&hosts.a.node, &hosts.b.node, "10.99.0.2".parse()?, TRANSFER_LEN)?;
    hosts.a.ok(&["down", "weft-a"])?.prints(&["weft-a: down; weftd drained"])?;
    hosts.b.ok(&["down".as_ref(), file_b.as_os_str()])?.prints(&["weft-b: down; weftd drained"])?;
    hosts.a.is_as(&before_a)?;
    hosts.b.is_as(&before_b)?;
    for again in ["weft-a", "tunnel.toml"] {
        hosts.a.ok(&["down", again])?.prints(&["weft-a: was not up"])?;
    }
    hosts.a.is_as(&before_a)
}

#[test]
fn a_tunnel_over_ipv6_carries_both_families() -> Result<()> {
    let Some(hosts) = Hosts::new(1500)? else { return Ok(()) };
    let before = hosts.a.traces()?;
    let text = example("ipv6-underlay.toml")?;
    let file = hosts.a.write("six.toml", &text)?;
    let mirrored = text
        .replace("[\"10.99.0.1/24\", \"fd99::1/64\"]", "[\"10.99.0.2/24\", \"fd99::2/64\"]")
        .replace("[\"10.99.0.2/32\", \"fd99::2/128\"]", "[\"10.99.0.1/32\", \"fd99::1/128\"]")
        .replace("2001:db8::2\"", "2001:db8::1\"");
    hosts.b.write("six.toml", &mirrored)?;
    hosts.a.ok(&["up".as_ref(), file.as_os_str()])?.prints(&["MTU 1452", "via [2001:db8::2]:8285"])?;
    hosts.b.ok(&["up", "six.toml"])?;
    for address in ["10.99.0.2", "fd99::2"] {
        eventually(TIMEOUT, || ping(&hosts.a.node, &Ping::quick(address.parse()?))?.reply()).context(address)?;
        tcp::transfer(&hosts.a.node, &hosts.b.node, address.parse()?, TRANSFER_LEN)?;
    }
    let mut netlink = hosts.a.node.netlink()?;
    for network in ["10.99.0.0/24", "fd99::/64"] {
        let filter = RouteFilter { dst: Some(net(network)), ..RouteFilter::default() };
        let routes = netlink.routes(&filter)?;
        let is_safety = |route: &Route| {
            route.kind == RouteKind::Unreachable
                && route.metric == SAFETY_METRIC
                && route.link.is_none_or(|link| link == 1)
        };
        ensure!(routes.iter().any(is_safety), "no safety route among {routes:?}");
    }
    hosts.a.ok(&["down", "six"])?;
    hosts.a.is_as(&before)
}

#[test]
fn the_example_of_a_flannel_node_takes_flannels_device_name_and_routes_its_network() -> Result<()> {
    let Some(hosts) = Hosts::new(1500)? else { return Ok(()) };
    let before = hosts.a.traces()?;
    hosts.a.write("flannel.toml", &example("flannel-node.toml")?)?;
    hosts.a.ok(&["up", "flannel.toml"])?.prints(&["Device flannel0, 10.5.34.0/32, MTU 1472"])?;
    let device = hosts.a.node.link("flannel0")?;
    let filter = RouteFilter { dst: Some(net("10.5.0.0/16")), link: Some(device.index), ..RouteFilter::default() };
    let routes = hosts.a.node.netlink()?.routes(&filter)?;
    ensure!(routes.len() == 1, "{routes:?}");
    hosts.a.ok(&["down", "flannel"])?;
    hosts.a.is_as(&before)
}

#[test]
fn the_device_mtu_leaves_room_for_the_outer_headers_of_the_underlay() -> Result<()> {
    for (underlay, ipv6, expected) in [(1500, false, 1472), (9000, false, 8972), (1500, true, 1452), (9000, true, 8952)]
    {
        let Some(hosts) = Hosts::new(underlay)? else { return Ok(()) };
        let (listen, endpoint) = if ipv6 { ("[::]:8285", "2001:db8::2") } else { ("0.0.0.0:8285", "192.0.2.2") };
        let text = example("two-hosts-a.toml")?
            .replace("0.0.0.0:8285", listen)
            .replace("\"192.0.2.2\"", &format!("{endpoint:?}"));
        hosts.a.write("t.toml", &text)?;
        hosts.a.ok(&["up", "t.toml"])?;
        let mtu = hosts.a.node.link("weft-a")?.mtu;
        ensure!(mtu == expected, "underlay {underlay}, IPv6 {ipv6}: {mtu}");
    }
    Ok(())
}

#[test]
fn a_peer_may_be_named_by_its_host_name() -> Result<()> {
    let Some(hosts) = Hosts::new(1500)? else { return Ok(()) };
    let hosts_file = hosts.a.write("hosts", "192.0.2.2 b.weft.test\n")?;
    let text = example("two-hosts-a.toml")?.replace("\"192.0.2.2\"", "\"b.weft.test\"");
    let file = hosts.a.write("t.toml", &text)?;
    // /etc/hosts is another file in a mount namespace of the command's own.
    let mut command = hosts.a.command::<&str>(&[])?;
    let (program, envs) = (
        command.get_program().to_owned(),
        command.get_envs().map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned))).collect::<Vec<_>>(),
    );
    command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount --bind \"$1\" /etc/hosts && exec \"$2\" up \"$3\"", "sh"]);
    command.args([hosts_file.as_os_str(), &program, file.as_os_str()]);
    for (name, value) in envs {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    hosts.a.output(command)?.exits(0)?.prints(&["b: 10.99.0.2/32 via b.weft.test:8285"])?;
    hosts.b.write("tunnel.toml", &example("two-hosts-b.toml")?)?;
    hosts.b.ok(&["up", "tunnel.toml"])?;
    hosts.pings("10.99.0.2")
}

#[test]
fn a_peer_whose_name_does_not_resolve_concerns_itself_alone() -> Result<()> {
    let Some(hosts) = Hosts::new(1500)? else { return Ok(()) };
    let lost = "\n[[peer]]\nname = \"lost\"\nsubnets = [\"10.60.0.0/16\"]\nendpoint = \"lost.invalid\"\n";
    hosts.a.write("t.toml", &(example("two-hosts-a.toml")? + lost))?;
    let up = hosts.a.ok(&["up", "t.toml"])?;
    up.prints(&["lost: NOT REACHABLE, lost.invalid does not resolve", "b: 10.99.0.2/32 via"])?
        .says(&["hint: to keep trying"])?;
    hosts.b.write("tunnel.toml", &example("two-hosts-b.toml")?)?;
    hosts.b.ok(&["up", "tunnel.toml"])?;
    hosts.pings("10.99.0.2")
}

#[test]
fn a_second_up_of_the_same_name_is_refused_and_changes_nothing() -> Result<()> {
    let Some(hosts) = Hosts::new(1500)? else { return Ok(()) };
    let [file, _] = hosts.up()?;
    let (before, pid) = (hosts.a.traces()?, hosts.a.weftd_pid("weft-a")?);
    let refused = hosts.a.run(&["up".as_ref(), file.as_os_str()])?.exits(1)?;
    let said = format!("tunnel \"weft-a\" is up already (weftd is process {pid})");
    refused.says(&[&said, "hint: `weft down weft-a` takes it down"])?;
    hosts.a.is_as(&before)?;
    hosts.pings("10.99.0.2")
}

#[test]
fn down_after_weftd_was_killed_removes_what_it_left() -> Result<()> {
    let Some(hosts) = Hosts::new(1500)? else { return Ok(()) };
    let before = hosts.a.traces()?;
    let [file, _] = hosts.up()?;
    hosts.a.kill_weftd("weft-a")?;
    hosts
        .a
        .ok(&["down".as_ref(), file.as_os_str()])?
        .prints(&["weft-a: down; weftd had died, removed what it left"])?;
    hosts.a.is_as(&before)
}

#[test]
fn up_after_weftd_was_killed_clears_the_remains_and_comes_up() -> Result<()> {
    let Some(hosts) = Hosts::new(1500)? else { return Ok(()) };
    let before = hosts.a.traces()?;
    let [file, _] = hosts.up()?;
    hosts.a.kill_weftd("weft-a")?;
    hosts.a.ok(&["up".as_ref(), file.as_os_str()])?.says(&["removed what an earlier tunnel of this name left"])?;
    hosts.pings("10.99.0.2")?;
    hosts.a.ok(&["down", "weft-a"])?;
    hosts.a.is_as(&before)
}

#[test]
fn down_without_the_state_file_still_leaves_nothing() -> Result<()> {
    let Some(hosts) = Hosts::new(1500)? else { return Ok(()) };
    let before = hosts.a.traces()?;
    hosts.up()?;
    fs::remove_file(hosts.a.run_dir().join("weft-a.json"))?;
    for verb in [&["up"][..], &["run", "--config"]] {
        let said = hosts.a.run(&[verb, &["tunnel.toml"]].concat())?.exits(1)?;
        said.says(&["but its state file is gone", "hint: `weft down weft-a` takes it down all the same"])?;
    }
    hosts.a.ok(&["down", "weft-a"])?.prints(&["weft-a: down; weftd drained"])?;
    hosts.a.is_as(&before)
}

#[test]
fn while_weftd_is_dead_nothing_leaks_to_the_default_route() -> Result<()> {
    let Some(hosts) = Hosts::new(1500)? else { return Ok(()) };
    hosts.a.node.route_via("default", "192.0.2.2", "u0")?;
    hosts.up()?;
    hosts.pings("10.99.0.2")?;
    let capture = Capture::start(&hosts.a.node, "u0", |frame| frame.outgoing && overlay_destination(&frame.bytes))?;
    hosts.a.kill_weftd("weft-a")?;
    let to: IpAddr = "10.99.0.2".parse()?;
    let outcome = ping(&hosts.a.node, &Ping::to(to))?;
    ensure!(outcome == PingOutcome::NotSent(libc::EHOSTUNREACH), "{outcome:?}");
    let sent = hosts.a.node.run(|| UdpSocket::bind("0.0.0.0:0")?.send_to(b"secret", (to, 9)));
    ensure!(sent.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EHOSTUNREACH)), "{sent:?}");
    let leaked = capture.stop();
    ensure!(leaked.is_empty(), "{} packets left in the open", leaked.len());
    Ok(())
}

/// Whether an Ethernet frame holds an IPv4 packet to 10.99.0.0/16.
fn overlay_destination(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x08, 0x00]) && frame.get(30..32) == Some(&[10, 99])
}

#[test]
fn an_up_that_fails_leaves_everything_as_it_was_and_says_why() -> Result<()> {
    let Some(hosts) = Hosts::new(1500)? else { return Ok(()) };
    let (host, good) = (&hosts.a, example("two-hosts-a.toml")?);
    host.write("good.toml", &good)?;
    host.write("first.toml", "name = \"first\"\naddress = \"10.98.0.1/24\"\n")?;
    host.ok(&["up", "first.toml"])?;
    let holder = format!("in use by weftd (pid {})", host.weftd_pid("first")?);
    let before = host.traces()?;
    let said = host.run(&["up", "good.toml"])?.exits(1)?;
    said.says(&["weft: weft-a: weftd ended at once", "UDP 0.0.0.0:8285", &holder, "--bind is `listen`"])?;
    host.is_as(&before)?;
    host.write(
        "same-tun.toml",
        "name = \"same-tun\"\naddress = \"10.97.0.1/24\"\nlisten = \"0.0.0.0:9000\"\ntun = \"first\"\n",
    )?;
    let said = host.run(&["up", "same-tun.toml"])?.exits(1)?;
    said.says(&["TUN `first`", &holder, "--tun is `tun`"])?;
    host.is_as(&before)?;
    host.ok(&["down", "first"])?;
    let before = host.traces()?;

    host.write("loopback.toml", &good.replace("\"192.0.2.2\"", "\"127.0.0.1\""))?;
    let said = host.run(&["up", "loopback.toml"])?.exits(2)?;
    said.says(&[
        "nothing was touched",
        "peer[0].endpoint: 127.0.0.1 is loopback",
        "write the other host's underlay address",
    ])?;

    host.write("self.toml", &good.replace("\"192.0.2.2\"", "\"192.0.2.1\""))?;
    host.run(&["up", "self.toml"])?.exits(2)?.says(&["192.0.2.1 is this host", "take the other host's file"])?;

    host.run(&["up", "missing.toml"])?.exits(2)?.says(&["missing.toml: cannot be read: No such file", "hint: "])?;
    host.is_as(&before)?;

    host.node.route("10.60.0.0/16", "u0")?;
    let before = host.traces()?;
    host.write("taken.toml", &good.replace("10.99.0.2/32", "10.60.0.0/16"))?;
    let said = host.run(&["up", "taken.toml"])?.exits(1)?;
    said.says(&["10.60.0.0/16", "hint: another route or address is in the way"])?;
    host.is_as(&before)?;

    // The kernel adds the route of an address behind one that is there already, without a word.
    host.node.route("10.99.0.0/24", "u0")?;
    let before = host.traces()?;
    let said = host.run(&["up", "good.toml"])?.exits(1)?;
    said.says(&[
        "route 10.99.0.0/24: it exists and differs: it leads to u0",
        "hint: another route or address is in the way",
    ])?;
    host.is_as(&before)?;
    host.node.netlink()?.delete_route(&Route::via_link(net("10.99.0.0/24"), host.node.link("u0")?.index))?;
    let before = host.traces()?;

    let mut command = host.command(&["up", "good.toml"])?;
    command.env("WEFTD", "/nonexistent/weftd");
    let said = host.output(command)?.exits(1)?;
    said.says(&[
        "weftd was not found: looked at /nonexistent/weftd, which WEFTD names",
        "hint: install weftd beside weft",
    ])?;
    host.is_as(&before)
}

#[test]
fn without_root_up_says_so_and_touches_nothing() -> Result<()> {
    let Some(hosts) = Hosts::new(1500)? else { return Ok(()) };
    let host = &hosts.a;
    host.write("t.toml", &example("two-hosts-a.toml")?)?;
    // Where the programs were built may be closed to other users.
    let program = hosts.lab.directory().join("weft");
    fs::copy(weft_binary()?, &program)?;
    let before = host.traces()?;
    let as_nobody = |run_dir: &Path| -> Result<_> {
        let mut command = Command::new(&program);
        command.args(["up", "t.toml"]).current_dir(host.path("")).env("WEFT_RUN_DIR", run_dir).uid(NOBODY).gid(NOBODY);
        host.output(command)
    };
    let said = as_nobody(&host.run_dir())?.exits(4)?;
    said.says(&["Permission denied", "hint: run it as root, or with CAP_NET_ADMIN"])?;
    let own = host.path("own");
    fs::create_dir(&own)?;
    std::os::unix::fs::chown(&own, Some(NOBODY), Some(NOBODY))?;
    as_nobody(&own)?
        .exits(4)?
        .says(&["need CAP_NET_ADMIN, which this process does not have", "hint: run it as root"])?;
    ensure!(own.read_dir().map_or(0, Iterator::count) == 0, "files were left");
    host.is_as(&before)
}
