//! Every reason to drop a packet, in each direction in which it can happen: provoked once, counted exactly, and nothing
//! reaches the other side. Uses the half tunnel of [`crate::half`].

mod busy;
mod cases;

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use weft_lab::{Capture, eventually};
use weft_packet::DropReason;
use weft_proto::Direction;

use crate::craft::{ICMP, UDP};
use crate::half::{Half, here, there};
use crate::support::{Family, TIMEOUT};
use cases::{CASES, Crafted, Crafted6, IMPOSSIBLE, Situation};

fn changes(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let change = |(name, count): (&String, &u64)| (name.clone(), count - before.get(name).copied().unwrap_or(0));
    after.iter().map(change).filter(|(_, count)| *count > 0).collect()
}

/// Provokes one drop and checks that it alone was counted, and that nothing arrived.
fn check(
    half: &Half,
    tun: &Capture,
    reason: DropReason,
    direction: Direction,
    provoke: &dyn Fn() -> Result<u64>,
) -> Result<()> {
    let before = half.host.stats()?.drops();
    let written = half.decap_marker(tun)?.len();
    half.encap_marker()?;
    let count = provoke()?;
    let wanted = BTreeMap::from([(format!("{} {}", direction, reason.name()), count)]);
    eventually(TIMEOUT, || {
        let found = changes(&before, &half.host.stats()?.drops());
        ensure!(found == wanted, "counted {found:?} instead of {wanted:?}");
        Ok(())
    })?;
    match direction {
        Direction::Encap => {
            let arrived = half.encap_marker()?;
            ensure!(arrived.is_empty() || count > 1, "{} datagrams reached the peer", arrived.len());
        }
        Direction::Decap => {
            // The marker of before is the one packet more.
            let arrived = half.decap_marker(tun)?.len() - written - 1;
            ensure!(arrived == 0, "{arrived} packets reached the host");
        }
    }
    let found = changes(&before, &half.host.stats()?.drops());
    ensure!(found == wanted, "counted {found:?} instead of {wanted:?} in the end");
    Ok(())
}

fn provoke_every_drop(engine: &str) -> Result<()> {
    // Without UDP GRO, so that a datagram can be longer than the room for it.
    let half = Half::build(&[Family::V4], |options| {
        options.engine = Some(engine.into());
        options.workers = Some(1);
        options.flags.push("--no-udp-gro".into());
    })?;
    let Some(half) = half else { return Ok(()) };
    let tun = half.capture_tun()?;
    let mut provoked = Vec::new();
    for (reason, what, provocation) in CASES {
        let inject = |make: fn(IpAddr, IpAddr) -> Vec<u8>, family| {
            half.injector.send(&make(here(family), there(family)))?;
            Ok(1)
        };
        let send = |make: fn(IpAddr, IpAddr) -> Vec<u8>, family| {
            half.send_as_peer(&make(there(family), here(family)))?;
            Ok(1)
        };
        let mut run = |direction: Direction, provoke: &dyn Fn() -> Result<u64>| {
            provoked.push((*reason, direction));
            check(&half, &tun, *reason, direction, provoke)
                .with_context(|| format!("{} {}: {what}", direction, reason.name()))
        };
        let mut both = |make: fn(IpAddr, IpAddr) -> Vec<u8>, family| {
            run(Direction::Encap, &|| inject(make, family))?;
            run(Direction::Decap, &|| send(make, family))
        };
        match provocation {
            Crafted(make) => both(*make, Family::V4)?,
            Crafted6(make) => both(*make, Family::V6)?,
            Situation(direction, provoke) => run(*direction, &|| provoke(&half))?,
        }
    }
    for reason in DropReason::ALL {
        for direction in [Direction::Encap, Direction::Decap] {
            let provoked = provoked.contains(&(*reason, direction));
            let excused = IMPOSSIBLE.iter().any(|(impossible, there, _)| (impossible, *there) == (reason, direction));
            assert!(provoked != excused, "{} {}: needs a case, or a reason why not", direction, reason.name());
        }
    }
    Ok(())
}

#[test]
fn every_drop_reason_is_counted_once_on_uring() -> Result<()> {
    provoke_every_drop("uring")
}

#[test]
fn every_drop_reason_is_counted_once_on_epoll() -> Result<()> {
    provoke_every_drop("epoll")
}

/// Garbage of all kinds: `index` decides.
fn garbage(index: u64) -> Vec<u8> {
    let mut state = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = || {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let len = (random() % 200) as usize;
    let start: &[u8] = match index % 8 {
        0 => return Vec::new(),
        1 => return vec![random() as u8],
        2 => return vec![0xff; len],
        3 => return vec![0; len],
        4 => &[0x45],
        5 => &[0x60],
        6 => &[0x4f, 0, 0, 100],
        _ => &[],
    };
    start.iter().copied().chain((0..len).map(|_| random() as u8)).collect()
}

#[test]
fn ten_thousand_garbage_datagrams_are_counted_and_nobody_is_answered() -> Result<()> {
    const COUNT: u64 = 10_000;
    for engine in ["uring", "epoll"] {
        let half = Half::build(&[Family::V4], |options| {
            options.engine = Some(engine.into());
            options.workers = Some(1);
        })?;
        let Some(half) = half else { return Ok(()) };
        let tun = half.capture_tun()?;
        let sent_by_weftd = Capture::start(&half.host.node, "u0", |frame| {
            frame.outgoing && matches!(frame.ipv4_protocol(), Some(ICMP | UDP))
        })?;
        let stranger = half.peer.run(|| UdpSocket::bind(("192.0.2.2", 0)))?;
        for index in 0..COUNT {
            // Half of it comes from another port of the peer, which is as good.
            let socket = if index % 2 == 0 { &half.socket } else { &stranger };
            socket.send_to(&garbage(index), half.host.address)?;
            if index % 500 == 499 {
                // So that none is lost at weftd's socket.
                half.has_dropped(index + 1)?;
            }
        }
        eventually(TIMEOUT, || {
            let dropped: u64 = half.host.stats()?.drops().values().sum();
            ensure!(dropped == COUNT, "{dropped} of {COUNT} counted on {engine}: {:?}", half.host.stats()?.drops());
            Ok(())
        })?;
        let accepted = half.host.stats()?.accepted();
        assert_eq!(accepted.packets, 0, "{engine}");
        assert_eq!(half.decap_marker(&tun)?, Vec::<Vec<u8>>::new(), "{engine}");
        assert_eq!(sent_by_weftd.stop().len(), 0, "{engine}");
        assert_eq!(half.encap_marker()?, Vec::<Vec<u8>>::new(), "{engine}");
    }
    Ok(())
}
