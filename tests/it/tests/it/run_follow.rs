//! `weft run`: a tunnel that follows its file, and survives what happens to its processes and to the kernel's side of it.
//!
//! ```text
//!   a  `weft run`  10.99.0.1 --.
//!   b  `weft up`   10.99.0.2 --+-- switch, underlay 192.0.2.n/24
//!   c  `weft up`   10.99.0.3 --'
//! ```
//!
//! What changes in the file of `a` concerns `c` alone. All the while, numbered datagrams run between `a` and `b`, which
//! is not concerned, and none may be lost.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use weft_lab::topology::Switched;
use weft_lab::udp::Stream;
use weft_lab::{Lab, Link, Node, Ping, Process, TIMEOUT, eventually, ping, udp};
use weft_netlink::{Address, Route, RouteFilter};

use crate::support::net;
use crate::weft::{Weft, kill};

/// The tunnel on each host.
const NAME: &str = "mesh";
/// Between datagrams of a stream that must not suffer.
const INTERVAL: Duration = Duration::from_millis(4);
/// Fewest datagrams of such a stream.
const STREAM_COUNT_MIN: u64 = 250;

/// Three hosts, `b` and `c` with their tunnels up.
struct Mesh {
    a: Weft,
    b: Weft,
    c: Weft,
    links: Vec<Link>,
    _switch: Node,
    _lab: Lab,
}

impl Mesh {
    fn new() -> Result<Option<Self>> {
        let Some(lab) = Lab::start() else { return Ok(None) };
        let Switched { links, hosts, switch } = Switched::new(&lab, 3, 1500)?;
        let [a, b, c] = [0, 1, 2].map(|index| Weft::new(&lab, &hosts[index]));
        let mesh = Self { a: a?, b: b?, c: c?, links, _switch: switch, _lab: lab };
        for (number, host) in [(2, &mesh.b), (3, &mesh.c)] {
            host.write("mesh.toml", &file(number, "10.99.0.3/32"))?;
            host.ok(&["up", "mesh.toml"])?;
        }
        Ok(Some(mesh))
    }

    /// Three hosts, and `weft run` on `a` with [`file`]`(1)` in `mesh.toml`.
    fn followed() -> Result<Option<(Self, PathBuf, Process)>> {
        let Some(mesh) = Self::new()? else { return Ok(None) };
        let path = mesh.a.write("mesh.toml", &file(1, "10.99.0.3/32"))?;
        let run = mesh.a.follow(&path, NAME)?;
        mesh.pings()?;
        Ok(Some((mesh, path, run)))
    }

    fn pings(&self) -> Result<()> {
        [overlay(2), overlay(3)].into_iter().try_for_each(|to| self.pinged(&Ping::to(to)))
    }

    fn pinged(&self, request: &Ping) -> Result<()> {
        ping(&self.a.node, request)?.reply().with_context(|| format!("ping {}", request.to)).map(drop)
    }

    /// Waits until `holds` succeeds and pings do.
    fn resumes(&self, mut holds: impl FnMut() -> Result<()>) -> Result<()> {
        eventually(TIMEOUT, || {
            holds()?;
            [overlay(2), overlay(3)].into_iter().try_for_each(|to| self.pinged(&Ping::quick(to)))
        })
    }

    /// Does `work` while datagrams run from `a` to `b` and from `b` to `a`; fails if one of them is lost.
    fn lossless<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let stream = |to| Stream { interval: INTERVAL, ..Stream::new(to, STREAM_COUNT_MIN, 200) };
        let (there, (back, value)) = udp::during(&self.a.node, &self.b.node, &stream(overlay(2)), || {
            udp::during(&self.b.node, &self.a.node, &stream(overlay(1)), work)
        })?;
        let outcome = there.perfect().context("from a to b").and(back.perfect().context("from b to a"));
        outcome.with_context(|| self.losses())?;
        Ok(value)
    }

    /// Counters of the daemons and of the devices, for a message about lost packets.
    fn losses(&self) -> String {
        let of = |host: &Weft| {
            let stats = host.run(&["stats"]).map_or_else(|error| error.to_string(), |said| said.out);
            let devices = host.node.run(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap_or_default();
            format!("{}:\n{stats}{devices}", host.node.name())
        };
        of(&self.a) + &of(&self.b)
    }

    /// Waits until weftd on `a` leads `address` to the underlay address of a host, or nowhere.
    fn leads(&self, address: &str, host: Option<u8>) -> Result<u64> {
        let expected = host.map(|number| IpAddr::from([192, 0, 2, number]));
        eventually(TIMEOUT, || {
            let answer = self.a.client(NAME)?.get(address.parse()?)?;
            let found = answer.route.map(|route| route.peer.addr.ip());
            ensure!(found == expected, "{address} leads to {found:?}");
            Ok(answer.generation)
        })
    }
}

fn overlay(number: u8) -> IpAddr {
    IpAddr::from([10, 99, 0, number])
}

/// The tunnel file of host `number`; `third` is what lies behind host 3.
fn file(number: u8, third: &str) -> String {
    let peers = (1..=3).filter(|other| *other != number).map(|other| {
        let own = format!("10.99.0.{other}/32");
        let subnets = if other == 3 { third } else { &own };
        let subnets: Vec<String> = subnets.split(' ').map(|subnet| format!("{subnet:?}")).collect();
        let subnets = subnets.join(", ");
        format!("\n[[peer]]\nname = \"h{other}\"\nsubnets = [{subnets}]\nendpoint = \"192.0.2.{other}\"\n")
    });
    format!(
        "name = {NAME:?}\naddress = \"10.99.0.{number}/24\"\nnetwork = [\"10.99.0.0/24\", \"10.60.0.0/16\"]\n{}",
        peers.collect::<String>()
    )
}

/// Waits until `weft run` has said `text` after the first `from` bytes of its log; returns how much it has said.
fn said(run: &Process, from: usize, text: &str) -> Result<usize> {
    eventually(TIMEOUT, || {
        let log = run.log();
        match log[from.min(log.len())..].contains(text) {
            true => Ok(log.len()),
            false => bail!("`weft run` did not say {text:?}:\n{log}"),
        }
    })
}

fn replace_by_rename(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    Ok(fs::rename(new, path)?)
}

#[test]
fn every_way_to_change_the_file_is_a_delta_that_loses_no_packet_of_others() -> Result<()> {
    let Some((mesh, path, run)) = Mesh::followed()? else { return Ok(()) };
    let start = run.log().len();
    mesh.lossless(|| {
        let first = mesh.leads("10.60.1.1", None)?;
        fs::write(&path, file(1, "10.99.0.3/32 10.60.1.0/24"))?;
        let in_place = mesh.leads("10.60.1.1", Some(3))?;
        replace_by_rename(&path, &file(1, "10.99.0.3/32 10.60.1.0/24 10.60.2.0/24"))?;
        let renamed = mesh.leads("10.60.2.1", Some(3))?;
        fs::remove_file(&path)?;
        said(&run, start, "No such file or directory (os error 2); the tunnel stays as it is")?;
        mesh.leads("10.60.2.1", Some(3))?;
        fs::write(&path, file(1, "10.99.0.3/32 10.60.2.0/24"))?;
        let back = mesh.leads("10.60.1.1", None)?;
        let generations = [first, in_place, renamed, back];
        ensure!(generations == [first, first + 1, first + 2, first + 3], "{generations:?}");
        Ok(())
    })?;
    let log = &run.log()[start..];
    ensure!(log.matches(" set, ").count() == 3 && !log.contains("replaced as a whole"), "{log}");
    Ok(())
}

#[test]
fn the_link_swap_of_a_config_map_is_followed_without_loss() -> Result<()> {
    let Some(mesh) = Mesh::new()? else { return Ok(()) };
    let directory = mesh.a.path("config");
    let revision = |number: u32, third: &str| -> Result<()> {
        let target = directory.join(format!("..rev{number}"));
        fs::create_dir_all(&target)?;
        fs::write(target.join("mesh.toml"), file(1, third))?;
        symlink(target.file_name().context("a name")?, directory.join("..tmp"))?;
        Ok(fs::rename(directory.join("..tmp"), directory.join("..data"))?)
    };
    revision(1, "10.99.0.3/32")?;
    let path = directory.join("mesh.toml");
    symlink("..data/mesh.toml", &path)?;
    let _run = mesh.a.follow(&path, NAME)?;
    mesh.pings()?;
    mesh.lossless(|| {
        for (number, third) in [(2, "10.60.2.0/24"), (3, "10.60.3.0/24"), (4, "10.60.4.0/24")] {
            revision(number, &format!("10.99.0.3/32 {third}"))?;
            mesh.leads(&format!("10.60.{number}.1"), Some(3))?;
            fs::remove_dir_all(directory.join(format!("..rev{}", number - 1)))?;
        }
        mesh.leads("10.60.3.1", None)
    })?;
    Ok(())
}

#[test]
fn sighup_reads_the_file_at_once_and_what_is_unchanged_stays() -> Result<()> {
    let Some((mesh, _, run)) = Mesh::followed()? else { return Ok(()) };
    let before = mesh.leads("10.99.0.3", Some(3))?;
    let start = run.log().len();
    mesh.lossless(|| {
        run.signal(Signal::HUP)?;
        said(&run, start, "SIGHUP: reading")
    })?;
    // A change after it is applied after it.
    fs::write(mesh.a.path("mesh.toml"), file(1, "10.99.0.3/32 10.60.1.0/24"))?;
    let after = mesh.leads("10.60.1.1", Some(3))?;
    ensure!(after == before + 1, "generation {before}, then {after}");
    Ok(())
}

#[test]
fn a_bad_edit_keeps_the_table_and_names_file_line_and_column() -> Result<()> {
    let Some((mesh, path, run)) = Mesh::followed()? else { return Ok(()) };
    let before = mesh.leads("10.99.0.3", Some(3))?;
    let start = run.log().len();
    mesh.lossless(|| {
        fs::write(&path, file(1, "10.99.0.300/32"))?;
        let place = format!("{}:12:12: error: peer[1].subnets[0]", path.display());
        let start = said(&run, start, "cannot be used; the tunnel stays as it is")?;
        ensure!(run.log().contains("mesh.toml:12:12: error: peer[1].subnets"), "no {place}:\n{}", run.log());
        let same = mesh.leads("10.99.0.3", Some(3))?;
        ensure!(same == before, "generation {before}, then {same}");
        fs::write(&path, file(1, "10.99.0.3/32 10.60.1.0/24"))?;
        said(&run, start, "1 route set")?;
        Ok(())
    })?;
    let after = mesh.leads("10.60.1.1", Some(3))?;
    ensure!(after == before + 1, "generation {before}, then {after}");
    Ok(())
}

#[test]
fn a_setting_of_weftd_itself_waits_for_a_restart_and_the_log_says_how() -> Result<()> {
    let Some((mesh, path, run)) = Mesh::followed()? else { return Ok(()) };
    let pid = mesh.a.weftd_pid(NAME)?;
    let start = run.log().len();
    let changed = format!("{}\n[dataplane]\nengine = \"epoll\"\n", file(1, "10.99.0.3/32 10.60.1.0/24"));
    mesh.lossless(|| {
        fs::write(&path, &changed)?;
        let end = said(&run, start, "dataplane.engine (auto in force, epoll wanted)")?;
        mesh.leads("10.60.1.1", Some(3))?;
        Ok(end)
    })?;
    let log = &run.log()[start..];
    let remedy =
        format!("stop this process (kill {}) and start `weft run --config {}` again", run.pid(), path.display());
    ensure!(log.contains(&remedy), "no {remedy:?}:\n{log}");
    ensure!(mesh.a.weftd_pid(NAME)? == pid, "weftd was restarted");
    Ok(())
}

#[test]
fn a_weftd_that_dies_under_run_is_started_again_and_traffic_resumes() -> Result<()> {
    let Some((mesh, _, run)) = Mesh::followed()? else { return Ok(()) };
    for _ in 0..2 {
        let start = run.log().len();
        let killed = mesh.a.kill_weftd(NAME)?;
        said(&run, start, "started weftd again, process")?;
        mesh.resumes(|| Ok(()))?;
        ensure!(run.log()[start..].contains(&format!("weftd, process {killed}, has ended")), "{}", run.log());
        ensure!(mesh.a.weftd_pid(NAME)? != killed, "the same process");
    }
    Ok(())
}

#[test]
fn when_run_is_killed_weftd_forwards_on_and_the_next_run_adopts_it_without_loss() -> Result<()> {
    let Some((mesh, path, run)) = Mesh::followed()? else { return Ok(()) };
    let (pid, generation) = (mesh.a.weftd_pid(NAME)?, mesh.leads("10.99.0.3", Some(3))?);
    let second = mesh.lossless(|| {
        kill(run.pid())?;
        drop(run);
        // The file changes while nobody looks.
        fs::write(&path, file(1, "10.99.0.3/32 10.60.1.0/24"))?;
        let second = mesh.a.follow(&path, NAME)?;
        mesh.leads("10.60.1.1", Some(3))?;
        Ok(second)
    })?;
    ensure!(second.log().contains(&format!("adopting weftd, process {pid}")), "{}", second.log());
    ensure!(mesh.a.weftd_pid(NAME)? == pid, "weftd is another process");
    ensure!(mesh.leads("10.60.1.1", Some(3))? == generation + 1, "not one step further");
    Ok(())
}

#[test]
fn run_adopts_what_up_has_brought_up() -> Result<()> {
    let Some(mesh) = Mesh::new()? else { return Ok(()) };
    let path = mesh.a.write("mesh.toml", &file(1, "10.99.0.3/32"))?;
    mesh.a.ok(&["up", "mesh.toml"])?;
    let pid = mesh.a.weftd_pid(NAME)?;
    let run = mesh.lossless(|| mesh.a.follow(&path, NAME))?;
    ensure!(run.log().contains("its table is as it should be"), "{}", run.log());
    ensure!(mesh.a.weftd_pid(NAME)? == pid, "weftd is another process");
    let locked = mesh.a.run(&["down", NAME])?.exits(1)?;
    locked.says(&["is in the hands of another weft, process", "hint: a `weft run` holds its tunnel"])?;
    Ok(())
}

#[test]
fn adopting_with_other_settings_that_fail_keeps_or_restores_the_tunnel() -> Result<()> {
    let Some(mesh) = Mesh::new()? else { return Ok(()) };
    let path = mesh.a.write("mesh.toml", &file(1, "10.99.0.3/32"))?;
    mesh.a.ok(&["up", "mesh.toml"])?;
    let holder = mesh.a.node.run(|| std::net::UdpSocket::bind("0.0.0.0:9000"))?;
    let changed = file(1, "10.99.0.3/32").replace("\nnetwork", "\nlisten = \"0.0.0.0:9000\"\nnetwork");
    fs::write(&path, &changed)?;
    let said = mesh.a.run(&["run", "--config", "mesh.toml"])?.exits(1)?;
    said.says(&["UDP 0.0.0.0:9000 is in use", "weftd runs again with the settings that it had"])?;
    mesh.resumes(|| Ok(()))?;
    drop(holder);
    mesh.a.ok(&["down", NAME])?;
    Ok(())
}

#[test]
fn the_end_of_run_takes_the_tunnel_down_unless_it_is_to_be_kept() -> Result<()> {
    let Some(mesh) = Mesh::new()? else { return Ok(()) };
    let path = mesh.a.write("mesh.toml", &file(1, "10.99.0.3/32"))?;
    let before = mesh.a.traces()?;
    for signal in [Signal::TERM, Signal::INT] {
        let mut run = mesh.a.follow(&path, NAME)?;
        run.signal(signal)?;
        let status = run.wait(TIMEOUT)?;
        ensure!(status.code() == Some(0), "{status}:\n{}", run.log());
        mesh.a.is_as(&before)?;
    }
    let mut kept = mesh.a.spawn(&["run", "--keep", "--config", "mesh.toml"])?;
    mesh.resumes(|| Ok(()))?;
    mesh.lossless(|| {
        kept.signal(Signal::TERM)?;
        ensure!(kept.wait(TIMEOUT)?.code() == Some(0), "{}", kept.log());
        Ok(())
    })?;
    ensure!(kept.log().contains("leaving tunnel \"mesh\" up"), "{}", kept.log());
    mesh.a.ok(&["down", NAME])?;
    mesh.a.is_as(&before)
}

#[test]
fn what_somebody_removes_is_restored() -> Result<()> {
    let Some((mesh, _, _run)) = Mesh::followed()? else { return Ok(()) };
    let node = &mesh.a.node;
    let device = node.link(NAME)?.index;
    let mut netlink = node.netlink()?;
    let safety = netlink
        .routes(&RouteFilter { dst: Some(net("10.60.0.0/16")), ..RouteFilter::default() })?
        .into_iter()
        .find(|route| route.link.is_none())
        .context("a safety route")?;
    let address = Address::new(device, net("10.99.0.1/24"));
    let route = Route::via_link(net("10.60.0.0/16"), device);
    type Damage<'a> = (&'a str, &'a dyn Fn(&mut weft_netlink::Netlink) -> weft_netlink::Result<()>);
    let damages: [Damage<'_>; 6] = [
        ("the overlay route", &|netlink| netlink.delete_route(&route)),
        ("the safety route", &|netlink| netlink.delete_route(&safety)),
        ("the address", &|netlink| netlink.delete_address(&address)),
        ("the link", &|netlink| netlink.set_down(device)),
        ("the MTU", &|netlink| netlink.set_mtu(device, 1000)),
        ("the link, again", &|netlink| netlink.set_down(device)),
    ];
    let mut whole = || -> Result<()> {
        let link = netlink.expect_link(device)?;
        ensure!(link.up && link.mtu == 1472, "{link:?}");
        ensure!(netlink.addresses(Some(device))?.contains(&address), "no address");
        let routes = netlink.routes(&RouteFilter::default())?;
        ensure!(routes.contains(&route) && routes.contains(&safety), "{routes:?}");
        Ok(())
    };
    whole()?;
    let mut vandal = node.netlink()?;
    for (what, damage) in damages {
        damage(&mut vandal)?;
        mesh.resumes(&mut whole).with_context(|| what.to_owned())?;
    }
    Ok(())
}

#[test]
fn a_change_of_the_underlays_mtu_is_followed() -> Result<()> {
    let Some((mesh, _, _run)) = Mesh::followed()? else { return Ok(()) };
    for (underlay, expected) in [(1400, 1372), (9000, 8972), (1500, 1472)] {
        mesh.links[0].set_mtu(underlay)?;
        eventually(TIMEOUT, || {
            let mtu = mesh.a.node.link(NAME)?.mtu;
            ensure!(mtu == expected, "underlay {underlay}: {mtu}");
            Ok(())
        })?;
    }
    mesh.pings()
}
