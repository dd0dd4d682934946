//! Packets of every kind arrive whole, once, in order and counted, whatever engine, opener, number of workers, underlay
//! and MTU carry them.
//!
//! ```text
//!   a [flannel0 - weftd] u0 ------------- u0 [weftd - flannel0] b
//! ```

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_lab::{Ping, ping, tcp, udp};
use weft_proto::OffloadReport;

use crate::support::{Family, Host, Traffic, Tunnel};

/// Payload of each TCP direction, in bytes.
const TRANSFER_LEN: u64 = 4 << 20;
/// Datagrams of each UDP stream.
const DATAGRAM_COUNT: u64 = 600;

/// How the daemons of a case run.
#[derive(Debug, Clone, Copy)]
struct Variant {
    engine: &'static str,
    opener: &'static str,
    workers: u32,
}

#[test]
fn the_uring_engine_forwards_everything() -> Result<()> {
    forwards_everything(Variant { engine: "uring", opener: "native", workers: 1 })
}

#[test]
fn the_epoll_engine_forwards_everything() -> Result<()> {
    forwards_everything(Variant { engine: "epoll", opener: "native", workers: 1 })
}

#[test]
fn the_uring_engine_on_the_simple_opener_forwards_everything() -> Result<()> {
    forwards_everything(Variant { engine: "uring", opener: "simple", workers: 1 })
}

#[test]
fn the_epoll_engine_on_the_simple_opener_forwards_everything() -> Result<()> {
    forwards_everything(Variant { engine: "epoll", opener: "simple", workers: 1 })
}

#[test]
fn four_workers_on_uring_forward_everything() -> Result<()> {
    forwards_everything(Variant { engine: "uring", opener: "native", workers: 4 })
}

#[test]
fn four_workers_on_epoll_forward_everything() -> Result<()> {
    forwards_everything(Variant { engine: "epoll", opener: "native", workers: 4 })
}

fn forwards_everything(variant: Variant) -> Result<()> {
    for underlay in Family::BOTH {
        for mtu in [1500, 9000] {
            let case = || format!("{variant:?}, underlay {underlay:?}, MTU {mtu}");
            let builder = Tunnel::builder().underlay(underlay).mtu(mtu).each(|options| {
                options.engine = Some(variant.engine.into());
                options.opener = Some(variant.opener.into());
                options.workers = Some(variant.workers);
            });
            let Some(tunnel) = builder.build().with_context(case)? else { return Ok(()) };
            runs_as_meant(&tunnel.a, variant).with_context(case)?;
            for inner in Family::BOTH {
                carries(&tunnel, inner).with_context(|| format!("{}, inner {inner:?}", case()))?;
            }
            // Nothing was switched off on the way.
            runs_as_meant(&tunnel.a, variant).with_context(case)?;
            runs_as_meant(&tunnel.b, variant).with_context(case)?;
        }
    }
    Ok(())
}

fn runs_as_meant(host: &Host, variant: Variant) -> Result<()> {
    let status = host.status()?;
    let running = (status.engine.as_str(), status.opener.as_str(), status.workers_running);
    ensure!(running == (variant.engine, variant.opener, variant.workers as u16), "running: {running:?}");
    ensure!(
        status.workers_in_use == status.workers,
        "{} workers in use, {} asked for",
        status.workers_in_use,
        status.workers
    );
    ensure!(u32::from(status.mtu) == host.tun_mtu, "MTU {} of the TUN", status.mtu);
    let native = variant.opener == "native";
    let offloads = OffloadReport {
        tun_vnet: native,
        tun_tso: native,
        tun_uso: native,
        udp_gso: true,
        udp_gro: true,
        backpressure: native,
        sparse_lane: native,
    };
    ensure!(status.offloads == offloads && status.offloads_lost.is_empty(), "offloads: {:?}", status.offloads);
    ensure!(status.degraded().is_empty(), "degraded: {:?}", status.degraded());
    Ok(())
}

fn carries(tunnel: &Tunnel, inner: Family) -> Result<()> {
    let Tunnel { a, b, .. } = tunnel;
    let to = b.overlay(inner);
    // Each end takes one off, as a router would.
    ensure!(ping(&a.node, &Ping::to(to))?.reply()?.1 == 62, "the TTL of a reply");
    ensure!(ping(&b.node, &Ping::to(a.overlay(inner)))?.reply()?.1 == 62, "the TTL of a reply");
    tcp::transfer(&a.node, &b.node, to, TRANSFER_LEN)?;
    tunnel.balanced().context("after TCP")?;

    let full = a.tun_mtu as usize - inner.ip_header_len() - 8;
    let streams = [
        ("small datagrams", udp::Stream::new(to, DATAGRAM_COUNT, 64)),
        ("full datagrams", udp::Stream::new(to, DATAGRAM_COUNT, full)),
        ("datagrams of 30,000 bytes", large_datagrams(to)),
        ("segmented sends", segmented(to, 1200)),
        ("segmented sends with an odd length", segmented(to, 633)),
    ];
    for (name, stream) in streams {
        carries_udp(tunnel, inner, &stream).context(name)?;
    }
    Ok(())
}

fn large_datagrams(to: std::net::IpAddr) -> udp::Stream {
    udp::Stream { interval: Duration::from_millis(1), ..udp::Stream::new(to, 40, 30_000) }
}

fn segmented(to: std::net::IpAddr, payload_len: usize) -> udp::Stream {
    udp::Stream {
        segments: 40,
        interval: Duration::from_millis(1),
        ..udp::Stream::new(to, 2 * DATAGRAM_COUNT, payload_len)
    }
}

/// Every datagram arrives once, whole and in order, and the counters of both ends say to the byte what was sent.
fn carries_udp(tunnel: &Tunnel, inner: Family, stream: &udp::Stream) -> Result<()> {
    let (a, b) = (tunnel.a.stats()?, tunnel.b.stats()?);
    udp::stream(&tunnel.a.node, &tunnel.b.node, stream)?.perfect()?;
    let (a_after, b_after) = tunnel.balanced()?;
    let expected = packets_of(stream, inner, tunnel.a.tun_mtu);
    let (sent, accepted) = (a_after.sent().since(a.sent()), b_after.accepted().since(b.accepted()));
    ensure!(sent == expected, "sent {sent}, counted to be {expected}");
    ensure!(accepted == expected, "accepted {accepted}, counted to be {expected}");
    Ok(())
}

/// The IP packets that a stream is made of, as the sender's kernel fragments them (RFC 791 section 3.2, RFC 8200 section
/// 4.5: every fragment but the last carries a multiple of eight bytes).
fn packets_of(stream: &udp::Stream, family: Family, mtu: u32) -> Traffic {
    let (payload_len, mtu) = (stream.payload_len + 8, mtu as usize);
    let header_len = family.ip_header_len();
    if header_len + payload_len <= mtu {
        return Traffic::new(stream.count, stream.count * (header_len + payload_len) as u64);
    }
    let fragment_header_len = if family == Family::V6 { header_len + 8 } else { header_len };
    let fragment_count = payload_len.div_ceil((mtu - fragment_header_len) & !7);
    let bytes = payload_len + fragment_count * fragment_header_len;
    Traffic::new(stream.count * fragment_count as u64, stream.count * bytes as u64)
}
