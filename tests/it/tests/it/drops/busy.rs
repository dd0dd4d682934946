//! A socket whose send buffer is full, without traffic control: by a neighbour that never answers ARP.

use anyhow::{Result, ensure};
use weft_lab::eventually;

use crate::craft::Packet;
use crate::half::{Half, here};
use crate::support::{Family, PORT, TIMEOUT};

/// Makes datagrams pile up at a neighbour that never answers ARP until the socket's send buffer is full, then sends a packet
/// that has to leave at once because it is fragmented.
pub fn fill_send_buffer(half: &Half) -> Result<u64> {
    const FRAGMENT_COUNT: u64 = 2;
    const BURST_LEN: usize = 50;
    // What weftd asks for, as the kernel doubles it (socket(7)).
    const SEND_BUFFER_LEN: u64 = 2 * (8 << 20);
    let node = &half.host.node;
    half.install(&[("10.9.5.0/24", "192.0.2.99".parse()?)])?;
    node.sysctl("net/ipv4/neigh/u0/unres_qlen_bytes", "100000000")?;
    node.sysctl("net/ipv4/neigh/u0/retrans_time_ms", "2000")?;
    let out_of_reach = "10.9.5.1".parse()?;
    let oversized = Packet::udp(here(Family::V4), out_of_reach, (7, 9), &[0x55; 1500 - 28]).build();
    let fits = Packet::udp(here(Family::V4), out_of_reach, (7, 9), &[0x55; 1400]).build();
    let busy = || -> Result<u64> { Ok(half.host.stats()?.drops().get("encap underlay_busy").copied().unwrap_or(0)) };
    let before = busy()?;
    // The first is refused as a batch and teaches the path MTU.
    half.flood([oversized.clone()])?;
    ensure!(busy()? == before, "dropped before the buffer was full");
    // Few at a time: once the buffer is full, the worker holds no more than these and goes on reading.
    for _ in 0..1000 {
        half.flood(std::iter::repeat_n(fits.clone(), BURST_LEN))?;
        if send_queue_len(half)? >= SEND_BUFFER_LEN {
            break;
        }
    }
    half.injector.send(&oversized)?;
    eventually(TIMEOUT, || {
        ensure!(busy()? == before + FRAGMENT_COUNT, "{} dropped", busy()? - before);
        Ok(())
    })?;
    // ARP gives up, the buffer empties, and the worker goes on.
    node.sysctl("net/ipv4/neigh/u0/retrans_time_ms", "1000")?;
    half.install(&[])?;
    Ok(FRAGMENT_COUNT)
}

/// Bytes that the sockets of weftd have sent and the kernel still holds: all of them the worker's, the lane has nothing to send.
fn send_queue_len(half: &Half) -> Result<u64> {
    let table = half.host.node.run(|| std::fs::read_to_string("/proc/thread-self/net/udp"))?;
    let port = format!(":{PORT:04X}");
    let sockets = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let own = sockets.filter(|fields| fields.get(1).is_some_and(|local| local.ends_with(&port)));
    let sent = own.map(|fields| u64::from_str_radix(fields[4].split(':').next().unwrap_or_default(), 16));
    let sent: Vec<u64> = sent.collect::<Result<_, _>>()?;
    ensure!(!sent.is_empty(), "weftd has no UDP socket");
    Ok(sent.iter().sum())
}
