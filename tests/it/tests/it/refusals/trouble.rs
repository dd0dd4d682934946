//! A weftd whose devices and peers go away, and come back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_lab::{Capture, Ping, eventually, ping, udp};

use crate::support::{Family, TIMEOUT, TUN, Tunnel};

/// User and system time of a process so far, in clock ticks (`/proc/PID/stat`, proc(5)).
fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit(") ").next().context("a process has a name")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

/// Fails if a process uses more than a fifth of a core over a moment.
fn is_at_rest(pid: u32) -> Result<()> {
    const MOMENT: Duration = Duration::from_millis(500);
    const TICKS_MAX: u64 = 10; // Of 10 ms each.
    let before = cpu_ticks(pid)?;
    std::thread::sleep(MOMENT);
    let used = cpu_ticks(pid)? - before;
    ensure!(used <= TICKS_MAX, "weftd used {used} ticks in {MOMENT:?}");
    Ok(())
}

#[test]
fn a_deleted_tun_ends_weftd_with_1_and_it_says_so() -> Result<()> {
    for engine in ["uring", "epoll"] {
        for workers in [1, 2] {
            let tunnel = Tunnel::builder()
                .each(|options| {
                    options.engine = Some(engine.into());
                    options.workers = Some(workers);
                })
                .build()?;
            let Some(mut tunnel) = tunnel else { return Ok(()) };
            ping(&tunnel.a.node, &Ping::to(tunnel.b.overlay(Family::V4)))?.reply()?;
            let index = tunnel.a.node.link(TUN)?.index;
            tunnel.a.node.netlink()?.delete_link(index)?;
            let status = tunnel.a.weftd.process().wait(TIMEOUT).with_context(|| format!("{engine}, {workers}"))?;
            let log = tunnel.a.weftd.log();
            ensure!(status.code() == Some(1), "{engine}, {workers} workers: {status}:\n{log}");
            ensure!(log.contains(&format!("TUN {TUN} was deleted")), "{engine}, {workers} workers:\n{log}");
            ensure!(!log.contains("panicked"), "{log}");
            ensure!(!std::fs::exists(tunnel.a.weftd.socket())?, "{engine}: the control socket was left behind");
        }
    }
    Ok(())
}

#[test]
fn forwarding_resumes_when_a_tun_or_a_cable_is_back() -> Result<()> {
    for engine in ["uring", "epoll"] {
        let Some(tunnel) = Tunnel::builder().each(|options| options.engine = Some(engine.into())).build()? else {
            return Ok(());
        };
        let to = tunnel.b.overlay(Family::V4);
        let there = || ping(&tunnel.a.node, &Ping::quick(to));
        let drops = |what: &str| {
            eventually(TIMEOUT, || {
                let drops = tunnel.a.stats()?.drops();
                ensure!(drops.contains_key(what), "{engine}: no {what} among {drops:?}");
                Ok(())
            })
        };
        let back = |what: &str| {
            eventually(TIMEOUT, || there()?.reply()).with_context(|| format!("{engine}: {what}")).map(drop)
        };
        back("at the start")?;

        let index = tunnel.a.node.link(TUN)?.index;
        tunnel.a.node.netlink()?.set_down(index)?;
        ensure!(there()?.reply().is_err(), "{engine}: a TUN that is down forwards");
        // What the other end sends meanwhile is refused by the TUN.
        let _ = ping(&tunnel.b.node, &Ping::quick(tunnel.a.overlay(Family::V4)))?;
        drops("decap tun_error")?;
        is_at_rest(tunnel.a.weftd.pid()).with_context(|| format!("{engine}, the TUN down"))?;
        tunnel.a.node.netlink()?.set_up(index)?;
        tunnel.a.node.route("10.9.0.0/16", TUN)?;
        back("after the TUN was down")?;

        tunnel.link.set_down()?;
        ensure!(there()?.reply().is_err(), "{engine}: a pulled cable carries");
        drops("encap underlay_error")?;
        is_at_rest(tunnel.a.weftd.pid()).with_context(|| format!("{engine}, the cable pulled"))?;
        tunnel.link.set_up()?;
        back("after the cable was pulled")?;
        ensure!(tunnel.a.status()?.degraded().is_empty(), "{engine}: {:?}", tunnel.a.status()?.degraded());
    }
    Ok(())
}

#[test]
fn a_dead_peer_whose_kernel_says_port_unreachable_disturbs_nobody() -> Result<()> {
    for engine in ["uring", "epoll"] {
        let cluster = Tunnel::builder().each(|options| options.engine = Some(engine.into())).build_switched(3)?;
        let Some(mut cluster) = cluster else { return Ok(()) };
        cluster.hosts[2].weftd.process().stop()?;
        let is_icmp = |frame: &weft_lab::Frame| !frame.outgoing && frame.ipv4_protocol() == Some(1);
        let told = Capture::start(&cluster.hosts[0].node, "u0", is_icmp)?;
        let [a, b, dead] = &cluster.hosts[..] else { unreachable!("three hosts were built") };
        let (alive, gone) = (b.overlay(Family::V4), dead.overlay(Family::V4));
        std::thread::scope(|scope| -> Result<()> {
            let to_the_living = scope.spawn(|| udp::stream(&a.node, &b.node, &udp::Stream::new(alive, 3000, 500)));
            // To the dead one, as fast as the other stream goes; every datagram may draw an ICMP error.
            let socket = a.node.run(|| std::net::UdpSocket::bind((a.overlay(Family::V4), 0)))?;
            for _ in 0..3000 {
                socket.send_to(&[0; 500], (gone, 9))?;
                std::thread::sleep(Duration::from_micros(50));
            }
            to_the_living.join().expect("the stream ends without a panic")?.perfect()?;
            Ok(())
        })
        .with_context(|| engine.to_owned())?;
        ensure!(a.stats()?.drops().is_empty(), "{engine}: {:?}", a.stats()?.drops());
        ensure!(!told.stop().is_empty(), "{engine}: the dead host's kernel said nothing");
    }
    Ok(())
}
