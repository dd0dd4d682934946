//! Every offload can be switched off, alone and with all others: traffic stays correct, and the counters show that batches
//! are made where the offload is on and are not where it is off.
//!
//! ```text
//!   a [flannel0 - weftd] u0 ------------- u0 [weftd - flannel0] b
//!
//!      TUN read --> UDP send ===========> UDP receive --> TUN write
//!   tun-tso, tun-uso  udp-gso                udp-gro   tun-tso, tun-uso
//! ```

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_lab::{Mode, eventually, tcp, udp};
use weft_proto::OffloadReport;

use crate::support::{Family, Stats, TIMEOUT, Tunnel};

/// Payload of each TCP direction, in bytes.
const TRANSFER_LEN: u64 = 8 << 20;
/// All that a native TUN and a socket of this kernel have.
const ALL: OffloadReport = OffloadReport {
    tun_vnet: true,
    tun_tso: true,
    tun_uso: true,
    udp_gso: true,
    udp_gro: true,
    backpressure: true,
    sparse_lane: true,
};
/// What is left of it with all switches off.
const NONE: OffloadReport = OffloadReport {
    tun_vnet: true,
    tun_tso: false,
    tun_uso: false,
    udp_gso: false,
    udp_gro: false,
    backpressure: false,
    sparse_lane: false,
};
/// The flags that switch off what `ALL` has, but for the virtio-net header.
const SWITCHES: [&str; 6] =
    ["--no-udp-gso", "--no-udp-gro", "--no-tun-tso", "--no-tun-uso", "--no-backpressure", "--no-sparse-lane"];

#[test]
fn with_all_offloads_super_packets_cross_as_batches() -> Result<()> {
    moves_traffic(&[], ALL)
}

#[test]
fn without_udp_gso_every_send_is_one_datagram() -> Result<()> {
    moves_traffic(&["--no-udp-gso"], OffloadReport { udp_gso: false, ..ALL })
}

#[test]
fn without_udp_gro_every_receive_is_one_datagram() -> Result<()> {
    moves_traffic(&["--no-udp-gro"], OffloadReport { udp_gro: false, ..ALL })
}

#[test]
fn without_tun_tso_every_tcp_segment_is_one_packet() -> Result<()> {
    moves_traffic(&["--no-tun-tso"], OffloadReport { tun_tso: false, ..ALL })
}

#[test]
fn without_tun_uso_every_udp_segment_is_one_packet() -> Result<()> {
    moves_traffic(&["--no-tun-uso"], OffloadReport { tun_uso: false, ..ALL })
}

#[test]
fn without_a_lane_sparse_flows_take_the_way_of_all() -> Result<()> {
    moves_traffic(&["--no-sparse-lane"], OffloadReport { sparse_lane: false, ..ALL })
}

#[test]
fn without_backpressure_packets_enter_as_they_come() -> Result<()> {
    moves_traffic(&["--no-backpressure"], OffloadReport { backpressure: false, ..ALL })
}

#[test]
fn without_any_offload_packets_cross_one_by_one() -> Result<()> {
    moves_traffic(&SWITCHES, NONE)
}

#[test]
fn without_any_offload_the_epoll_engine_carries_packets_one_by_one() -> Result<()> {
    moves_traffic(&[&SWITCHES[..], &["--engine", "epoll"]].concat(), NONE)
}

fn moves_traffic(flags: &[&str], expected: OffloadReport) -> Result<()> {
    let flags = strings(flags);
    let Some(tunnel) = Tunnel::builder().each(|options| options.flags.clone_from(&flags)).build()? else {
        return Ok(());
    };
    for mode in [Mode::Offload, Mode::Wire] {
        tunnel.link.set_mode(mode)?;
        both_protocols(&tunnel, expected).with_context(|| format!("{mode:?} {flags:?}"))?;
    }
    Ok(())
}

fn strings(flags: &[&str]) -> Vec<String> {
    flags.iter().map(ToString::to_string).collect()
}

#[test]
fn a_daemon_with_all_offloads_and_one_without_any_understand_each_other() -> Result<()> {
    for mode in [Mode::Offload, Mode::Wire] {
        let Some(tunnel) = Tunnel::builder().mode(mode).b(|options| options.flags = strings(&SWITCHES)).build()? else {
            return Ok(());
        };
        let Tunnel { a, b, .. } = &tunnel;
        for family in Family::BOTH {
            tcp::transfer(&a.node, &b.node, b.overlay(family), TRANSFER_LEN)?;
            for (from, to) in [(a, b), (b, a)] {
                udp::stream(&from.node, &to.node, &segmented(to.overlay(family)))?.perfect()?;
            }
        }
        assert_eq!(a.status()?.offloads, ALL);
        assert_eq!(b.status()?.offloads, NONE);
    }
    Ok(())
}

/// Super-packets of 40 segments.
fn segmented(to: IpAddr) -> udp::Stream {
    udp::Stream { segments: 40, interval: Duration::from_millis(1), ..udp::Stream::new(to, 4000, 1200) }
}

fn both_protocols(tunnel: &Tunnel, expected: OffloadReport) -> Result<()> {
    let Tunnel { a, b, .. } = tunnel;
    for family in Family::BOTH {
        let to = b.overlay(family);
        let batches = Batches::of(tunnel, || tcp::transfer(&a.node, &b.node, to, TRANSFER_LEN).map(drop))?;
        batches.check(expected, expected.tun_tso).with_context(|| format!("TCP over {family:?}: {batches:?}"))?;

        let batches = Batches::of(tunnel, || udp::stream(&a.node, &b.node, &segmented(to))?.perfect().map(drop))?;
        batches.check(expected, expected.tun_uso).with_context(|| format!("UDP over {family:?}: {batches:?}"))?;
    }
    for host in [a, b] {
        let status = host.status()?;
        ensure!(status.offloads == expected, "in use: {:?}", status.offloads);
        ensure!(status.offloads_lost.is_empty(), "refused: {:?}", status.offloads_lost);
        let drops = host.stats()?.drops();
        ensure!(drops.is_empty(), "{} dropped {drops:?}", host.node.name());
    }
    Ok(())
}

/// What both daemons did with the packets of some traffic: each step handles as many as it can at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Batches {
    tun_reads: u64,
    packets_sent: u64,
    sends: u64,
    receives: u64,
    packets_accepted: u64,
    tun_writes: u64,
    /// Sends and writes of more than one packet, as the histograms tell.
    sends_of_many: u64,
    writes_of_many: u64,
}

impl Batches {
    fn of(tunnel: &Tunnel, traffic: impl FnOnce() -> Result<()>) -> Result<Self> {
        let sum = || Ok::<_, anyhow::Error>([Self::count(&tunnel.a.stats()?), Self::count(&tunnel.b.stats()?)]);
        let before = sum()?;
        traffic()?;
        // What counts is what is left when nothing is under way.
        tunnel.balanced()?;
        let mut after = sum()?;
        eventually(TIMEOUT, || {
            let last = std::mem::replace(&mut after, sum()?);
            ensure!(after == last, "the counters still move");
            Ok(())
        })?;
        let total =
            |field: fn(&Self) -> u64| after.iter().map(field).sum::<u64>() - before.iter().map(field).sum::<u64>();
        Ok(Self {
            tun_reads: total(|this| this.tun_reads),
            packets_sent: total(|this| this.packets_sent),
            sends: total(|this| this.sends),
            receives: total(|this| this.receives),
            packets_accepted: total(|this| this.packets_accepted),
            tun_writes: total(|this| this.tun_writes),
            sends_of_many: total(|this| this.sends_of_many),
            writes_of_many: total(|this| this.writes_of_many),
        })
    }

    fn count(stats: &Stats) -> Self {
        let totals = &stats.report.totals;
        Self {
            tun_reads: stats.counter("tun_read_packets"),
            packets_sent: stats.counter("encap_packets"),
            sends: stats.counter("encap_batches"),
            receives: stats.counter("udp_read_batches"),
            packets_accepted: stats.counter("decap_packets"),
            tun_writes: stats.counter("tun_write_packets"),
            sends_of_many: totals.send_segments[1..].iter().sum(),
            writes_of_many: totals.write_segments[1..].iter().sum(),
        }
    }

    /// `tun`: super-packets of this traffic's protocol cross the TUN.
    fn check(&self, offloads: OffloadReport, tun: bool) -> Result<()> {
        let Self { tun_reads, packets_sent, sends, receives, packets_accepted, tun_writes, .. } = *self;
        let joined = |on: bool, batches: u64, packets: u64| if on { batches < packets } else { batches == packets };
        ensure!(joined(tun, tun_reads, packets_sent), "super-packets read");
        ensure!(joined(offloads.udp_gso, sends, packets_sent), "batches sent");
        ensure!((self.sends_of_many > 0) == offloads.udp_gso, "histogram of sends");
        // Datagrams that were sent one by one may, but need not, be merged on the way.
        ensure!(joined(offloads.udp_gro, receives, packets_accepted) || !offloads.udp_gso, "batches received");
        ensure!(offloads.udp_gro || receives == packets_accepted, "datagrams received one by one");
        ensure!(joined(tun, tun_writes, packets_accepted), "super-packets written");
        ensure!((self.writes_of_many > 0) == tun, "histogram of writes");
        Ok(())
    }
}
