//! weft: a `weftd` on each host, with the flags that `weft up` gives it unless the subject says otherwise.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use weft_lab::{Weftd, WeftdOptions};
use weft_proto::{PeerSpec, RouteSet, RouteSpec, StatsReport, StatusReport};

use super::{Facts, Site, Subject, Work, underlay};
use crate::spec::WeftSpec;

/// IPv4 and UDP header.
const OVERHEAD_LEN: u32 = 28;

/// The tunnel of this project.
pub struct Weft {
    spec: WeftSpec,
    daemons: [Weftd; 2],
    addresses: [IpAddr; 2],
    overlay_mtu: u32,
    command: String,
}

impl Weft {
    /// Starts both daemons, installs their tables, and sets the devices up.
    ///
    /// # Errors
    /// If a daemon does not start or refuses its table.
    pub fn new(site: &Site<'_>, spec: &WeftSpec) -> Result<Self> {
        let tun = format!("weft{}", site.number);
        let port = site.port();
        let source_ports = spec.source_ports.iter().map(|ports| format!("--source-ports={ports}"));
        let options = WeftdOptions {
            binary: spec.binary.clone(),
            engine: spec.engine.clone(),
            opener: spec.opener.clone(),
            spin_us: spec.spin_us,
            workers: spec.workers,
            flags: spec.off.iter().map(|offload| format!("--no-{offload}")).chain(source_ports).collect(),
            ..WeftdOptions::new(&tun, &format!("0.0.0.0:{port}"))
        };
        let overlay_mtu = site.mtu - OVERHEAD_LEN;
        let start = |(host, end): (u8, &weft_lab::LinkEnd)| -> Result<Weftd> {
            let mut weftd = site.lab.weftd(&end.node, options.clone())?;
            weftd.process().quiet();
            let other = 3 - host;
            let addr = SocketAddr::new(underlay(other).into(), port);
            let mut ways = vec![(addr, site.subnet(other).parse()?)];
            let mut networks = vec![site.network()];
            if host == 1 && site.has_peers {
                let far = site.peers().into_iter();
                ways.extend(far.map(|peer| (SocketAddr::new(peer.underlay.into(), port), peer.subnet.into())));
                networks.push(site.peers_network());
            }
            weftd.client()?.swap(&table(&ways), None)?;
            let address = format!("{}/32", site.overlay(host, 1));
            let networks: Vec<&str> = networks.iter().map(String::as_str).collect();
            end.node.set_up_tun(&tun, overlay_mtu, &[&address], &networks)?;
            Ok(weftd)
        };
        let [a, b] = site.ends().map(start);
        Ok(Self {
            spec: spec.clone(),
            daemons: [a?, b?],
            addresses: [1, 2].map(|host| site.overlay(host, 1).into()),
            overlay_mtu,
            command: command(spec, &options),
        })
    }

    fn statuses(&self) -> Result<[StatusReport; 2]> {
        let [a, b] = self.daemons.each_ref().map(|daemon| daemon.client()?.status().context("asking weftd"));
        Ok([a?, b?])
    }

    fn stats(&self) -> Result<[StatsReport; 2]> {
        let [a, b] = self.daemons.each_ref().map(|daemon| daemon.client()?.stats().context("asking weftd"));
        Ok([a?, b?])
    }
}

impl Subject for Weft {
    fn addresses(&self) -> [IpAddr; 2] {
        self.addresses
    }

    fn facts(&self) -> Result<Facts> {
        let [a, b] = self.statuses()?;
        let mut drops = BTreeMap::new();
        for stats in self.stats()? {
            for drop in stats.totals.drops.iter().filter(|drop| drop.packets > 0) {
                *drops.entry(format!("{} {}", drop.direction, drop.reason)).or_default() += drop.packets;
            }
        }
        let offloads: BTreeMap<_, _> =
            a.offloads.each().iter().zip(b.offloads.each()).map(|(a, b)| (a.0.to_owned(), a.1 && b.1)).collect();
        let mut notes = Vec::new();
        notes.extend(a.engine_note.clone());
        let missing: Vec<_> = offloads.iter().filter(|(name, on)| !**on && !self.is_off(name)).collect();
        notes.extend(missing.iter().map(|(name, _)| format!("this kernel gives no {name}")));
        Ok(Facts {
            overlay_mtu: Some(self.overlay_mtu),
            engine: Some(a.engine.clone()),
            opener: Some(a.opener.clone()),
            workers: Some(a.workers),
            spin_us: Some(a.spin_us),
            version: Some(a.weftd_version.clone()),
            command: Some(self.command.clone()),
            notes,
            violation: self.violation(&a, &b).err().map(|error| error.to_string()),
            offloads,
            drops,
        })
    }

    fn work(&self) -> Result<Option<Work>> {
        let mut work = Work::default();
        for stats in self.stats()? {
            let counter = |name| {
                let found = stats.totals.counters.iter().find(|counter| counter.name == name);
                found.map(|counter| counter.value).with_context(|| format!("weftd has no counter {name}"))
            };
            work.syscalls += counter("syscalls")?;
            work.packets += counter("encap_packets")?;
        }
        work.workers_in_use = self.statuses()?.iter().map(|status| status.workers_in_use).max().unwrap_or_default();
        Ok(Some(work))
    }

    fn pids(&self) -> Vec<u32> {
        self.daemons.iter().map(Weftd::pid).collect()
    }
}

impl Weft {
    /// An offload that is off because the subject says so.
    fn is_off(&self, offload: &str) -> bool {
        let is_simple = self.spec.opener.as_deref() == Some("simple");
        (is_simple && (offload.starts_with("tun_") || ["backpressure", "sparse_lane"].contains(&offload)))
            || self.spec.off.iter().any(|off| off.replace('-', "_") == offload)
    }

    /// What makes figures those of something else than the subject.
    fn violation(&self, a: &StatusReport, b: &StatusReport) -> Result<()> {
        for (host, status) in [("a", a), ("b", b)] {
            if let Some(engine) = &self.spec.engine {
                ensure!(*engine == status.engine, "weftd on host {host} runs on {}, not {engine}", status.engine);
            }
            if let Some(opener) = &self.spec.opener {
                ensure!(*opener == status.opener, "weftd on host {host} opened its TUN by {}", status.opener);
            }
            for (name, on) in status.offloads.each() {
                ensure!(!on || !self.is_off(name), "weftd on host {host} uses {name}, which was to be off");
            }
            let lost = status.offloads_lost.join(", ");
            ensure!(lost.is_empty(), "the kernel refused {lost} to weftd on host {host} at run time");
            ensure!(status.workers == status.workers_running, "a worker of weftd on host {host} has ended");
        }
        ensure!(a.engine == b.engine, "weftd on host a runs on {}, on host b on {}", a.engine, b.engine);
        Ok(())
    }
}

/// A peer for each way, and a route to it.
fn table(ways: &[(SocketAddr, IpNet)]) -> RouteSet {
    let peers = ways.iter().map(|(addr, _)| PeerSpec { name: None, addr: *addr, aliases: Vec::new() });
    let routes = (0..).zip(ways).map(|(peer, (_, prefix))| RouteSpec { prefix: *prefix, peer });
    RouteSet { peers: peers.collect(), routes: routes.collect() }
}

/// The command line of host a, without the socket.
fn command(spec: &WeftSpec, options: &WeftdOptions) -> String {
    let program = spec.binary.as_ref().map_or("weftd".into(), |path| path.display().to_string());
    std::iter::once(program).chain(options.arguments()).collect::<Vec<_>>().join(" ")
}
