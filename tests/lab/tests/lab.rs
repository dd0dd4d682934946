//! The lab itself: cables carry, modes hold, processes end, nothing stays.

use std::fs;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::io::Errno;
use weft_lab::topology::{Pair, Pod, Routed, Switched};
use weft_lab::{
    Capture, FlannelVxlan, Frame, Lab, Mode, Ping, PingOutcome, TIMEOUT, WeftdOptions, eventually, features, ping, tcp,
    udp,
};

const ETHERNET_HEADER_LEN: usize = 14;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address in a test")
}

#[test]
fn two_nodes_ping_over_a_veth() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let pair = Pair::new(&lab, 1500)?;
    for address in ["192.0.2.2", "2001:db8::2"] {
        let (_, ttl) = ping(&pair.a, &Ping::to(ip(address)))?.reply()?;
        assert_eq!(ttl, 64);
        ping(&pair.a, &Ping { payload_len: 4000, ..Ping::to(ip(address)) })?.reply()?;
    }
    assert_eq!(ping(&pair.a, &Ping::to(ip("203.0.113.1")))?, PingOutcome::NotSent(Errno::NETUNREACH.raw_os_error()));
    Ok(())
}

#[test]
fn a_router_decrements_ttl_and_reports_its_errors() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let net = Routed::new(&lab, 1500, 1400)?;
    for (address, router) in [("198.51.100.1", "192.0.2.254"), ("2001:db8:2::1", "2001:db8:1::fe")] {
        let to = ip(address);
        assert_eq!(ping(&net.a, &Ping::to(to))?.reply()?.1, 63);
        let outcome = ping(&net.a, &Ping { ttl: 1, ..Ping::to(to) })?;
        assert!(matches!(outcome, PingOutcome::IcmpError { from, .. } if from == ip(router)), "{outcome:?}");
        let outcome = ping(&net.a, &Ping { payload_len: 1440, dont_fragment: true, ..Ping::to(to) })?;
        assert!(matches!(outcome, PingOutcome::IcmpError { mtu: Some(1400), .. }), "{outcome:?}");
    }
    Ok(())
}

#[test]
fn a_switch_connects_all_hosts() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let net = Switched::new(&lab, 3, 1500)?;
    for host in &net.hosts {
        for number in 1..=3 {
            ping(host, &Ping::to(ip(&format!("192.0.2.{number}"))))?.reply()?;
            ping(host, &Ping::to(ip(&format!("2001:db8::{number}"))))?.reply()?;
        }
    }
    Ok(())
}

#[test]
fn pods_reach_each_other_through_their_nodes() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let pair = Pair::new(&lab, 1500)?;
    let first = Pod::behind(&lab, &pair.a, "pod1", "10.9.1.2/24", "10.9.1.1/24", 1500)?;
    let second = Pod::behind(&lab, &pair.b, "pod2", "10.9.2.2/24", "10.9.2.1/24", 1500)?;
    pair.a.route_via("10.9.2.0/24", "192.0.2.2", "u0")?;
    pair.b.route_via("10.9.1.0/24", "192.0.2.1", "u0")?;
    assert_eq!(ping(&first.node, &Ping::to(ip("10.9.2.2")))?.reply()?.1, 62);
    tcp::transfer(&second.node, &first.node, ip("10.9.1.2"), 1 << 20)?;
    Ok(())
}

/// The longest frame that `u0` of `a` sends while TCP and segmented UDP go to `b`.
fn longest_frames_sent(pair: &Pair) -> Result<(usize, usize)> {
    let is_udp = |frame: &Frame| frame.bytes.get(ETHERNET_HEADER_LEN + 9) == Some(&17);
    let capture = Capture::start(&pair.a, "u0", |frame| frame.outgoing)?;
    tcp::transfer(&pair.a, &pair.b, ip("192.0.2.2"), 4 << 20)?;
    let segmented = udp::Stream { segments: 8, ..udp::Stream::new(ip("192.0.2.2"), 64, 1000) };
    udp::stream(&pair.a, &pair.b, &segmented)?.perfect()?;
    let frames = capture.stop();
    let longest = |udp: bool| frames.iter().filter(|frame| is_udp(frame) == udp).map(|frame| frame.bytes.len()).max();
    Ok((longest(false).unwrap_or(0), longest(true).unwrap_or(0)))
}

#[test]
fn wire_mode_sends_every_packet_at_mtu_size_and_offload_mode_whole() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let pair = Pair::new(&lab, 1500)?;
    let (tcp, udp) = longest_frames_sent(&pair)?;
    assert!(tcp > 1500 + ETHERNET_HEADER_LEN && udp > 8000, "{tcp} {udp}");
    pair.link.set_mode(Mode::Wire)?;
    for end in [&pair.link.a, &pair.link.b] {
        let features = features(&end.node, &end.name)?;
        for name in ["tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-generic-segmentation", "tx-udp-segmentation"] {
            assert!(!features[name], "{name}");
        }
        assert!(!features["tx-udp_tnl-segmentation"] && !features["tx-udp_tnl-csum-segmentation"]);
        assert!(features["rx-gro"]);
    }
    assert_eq!(longest_frames_sent(&pair)?, (1500 + ETHERNET_HEADER_LEN, 1000 + 28 + ETHERNET_HEADER_LEN));
    pair.link.set_mode(Mode::Offload)?;
    let (tcp, udp) = longest_frames_sent(&pair)?;
    assert!(tcp > 1500 + ETHERNET_HEADER_LEN && udp > 8000, "{tcp} {udp}");
    Ok(())
}

#[test]
fn kernel_vxlan_as_flannel_programs_it_carries_ping_and_tcp() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let pair = Pair::new(&lab, 1500)?;
    let a = FlannelVxlan::new(&pair.link.a, "192.0.2.1", "10.9.1.0/24")?;
    let b = FlannelVxlan::new(&pair.link.b, "192.0.2.2", "10.9.2.0/24")?;
    a.add_peer(&b)?;
    b.add_peer(&a)?;
    let port = 8472u16.to_be_bytes();
    let capture = Capture::start(&pair.a, "u0", move |frame| frame.bytes.get(36..38) == Some(&port))?;
    ping(&pair.a, &Ping { payload_len: 1450 - 28, dont_fragment: true, ..Ping::to(ip("10.9.2.0")) })?.reply()?;
    tcp::transfer(&pair.a, &pair.b, ip("10.9.2.0"), 4 << 20)?;
    assert!(capture.stop().len() > 10);
    assert_eq!(a.name(), "flannel.1");
    Ok(())
}

#[test]
fn udp_streams_arrive_whole_in_order_and_once() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let pair = Pair::new(&lab, 1500)?;
    for to in [ip("192.0.2.2"), ip("2001:db8::2")] {
        udp::stream(&pair.a, &pair.b, &udp::Stream::new(to, 2000, 1400))?.perfect()?;
        udp::stream(&pair.a, &pair.b, &udp::Stream::new(to, 50, 20_000))?.perfect()?;
        let segmented = udp::Stream { segments: 40, ..udp::Stream::new(to, 2000, 1400) };
        udp::stream(&pair.a, &pair.b, &segmented)?.perfect()?;
        assert_eq!(udp::echo(&pair.a, &pair.b, to, 20, 64)?.len(), 20);
    }
    Ok(())
}

#[test]
fn a_stream_lasts_as_long_as_the_work_beside_it() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let pair = Pair::new(&lab, 1500)?;
    let stream = udp::Stream::new(ip("192.0.2.2"), 10, 100);
    let (arrived, worked) = udp::during(&pair.a, &pair.b, &stream, || {
        // Far more than the stream needs.
        std::thread::sleep(Duration::from_millis(500));
        Ok("done")
    })?;
    assert!(arrived.perfect()?.sent > 100 && worked == "done", "{arrived:?}");
    let panic = catch_unwind(AssertUnwindSafe(|| {
        udp::during(&pair.a, &pair.b, &stream, || -> Result<()> { panic!("at work") })
    }));
    assert!(panic.is_err(), "the stream ends with a panic, too");
    let small = udp::Stream { count: 6, window: 5, ..stream };
    pair.b.netlink()?.set_down(pair.link.b.index)?;
    let lost = udp::stream(&pair.a, &pair.b, &small)?;
    assert_eq!((lost.sent, lost.lost), (6, 6), "what is lost makes room");
    Ok(())
}

#[test]
fn a_pulled_cable_loses_datagrams_and_the_count_says_so() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let pair = Pair::new(&lab, 1500)?;
    pair.b.netlink()?.set_down(pair.link.b.index)?;
    // The address of a link that is down is still that of its node.
    let arrived = udp::stream(&pair.a, &pair.b, &udp::Stream::new(ip("192.0.2.2"), 10, 100))?;
    assert_eq!((arrived.received, arrived.lost), (0, 10));
    assert!(arrived.perfect().is_err());
    Ok(())
}

#[test]
fn sysctls_belong_to_the_node() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    a.sysctl("net/ipv4/ip_forward", "1")?;
    b.sysctl("net/ipv4/ip_forward", "0")?;
    assert_eq!(
        (a.sysctl_value("net/ipv4/ip_forward")?, b.sysctl_value("net/ipv4/ip_forward")?),
        ("1".into(), "0".into())
    );
    Ok(())
}

#[test]
fn a_process_runs_inside_the_node_and_ends_with_its_guard() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let node = lab.node("a")?;
    let mut command = Command::new("sh");
    command.args(["-c", "echo started; readlink /proc/self/ns/net; exec sleep 60"]);
    let process = node.spawn(command)?;
    let namespace = format!("net:[{}]", node.inode()?);
    eventually(TIMEOUT, || {
        let log = process.log();
        ensure!(log.contains("started") && log.contains(&namespace), "{log}");
        Ok(())
    })?;
    let pid = process.pid();
    drop(process);
    assert!(!fs::exists(format!("/proc/{pid}"))?);
    Ok(())
}

#[test]
fn a_process_that_ignores_sigterm_is_killed() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let node = lab.node("a")?;
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"]);
    let mut process = node.spawn(command)?;
    eventually(TIMEOUT, || {
        ensure!(process.log().contains("ready"), "not ready");
        Ok(())
    })?;
    let started = Instant::now();
    assert!(!process.stop()?.success());
    assert!(started.elapsed() >= Duration::from_secs(3));
    Ok(())
}

#[test]
fn a_daemon_that_ends_at_once_is_reported_with_its_output() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let node = lab.node("a")?;
    // A program that refuses the flags of weftd.
    let binary = PathBuf::from("/bin/ls");
    let options = WeftdOptions { binary: Some(binary), ..WeftdOptions::new("flannel0", "127.0.0.1:8285") };
    let text = format!("{:#}", lab.weftd(&node, options).unwrap_err());
    assert!(text.contains("exit status: 2") && text.contains("--tun"), "{text}");
    Ok(())
}

/// True if any thread, process or open descriptor of this machine is in, or holds, this network namespace.
fn is_held(inode: u64) -> bool {
    let name = format!("net:[{inode}]");
    let links = |directory: &str| fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    links("/proc").filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit())).any(
        |process| {
            let threads = links(&process.join("task").to_string_lossy()).map(|thread| thread.join("ns/net"));
            let descriptors = links(&process.join("fd").to_string_lossy());
            threads.chain(descriptors).any(|link| fs::read_link(link).is_ok_and(|to| to.as_os_str() == name.as_str()))
        },
    )
}

#[test]
fn nothing_is_left_after_drop_nor_after_a_panic() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let mut inodes = Vec::new();
    let mut build = |fail: bool| -> Result<()> {
        let pair = Pair::new(&lab, 1500)?;
        let mut command = Command::new("sleep");
        command.arg("60");
        let _process = pair.a.spawn(command)?;
        let _capture = Capture::start(&pair.b, "u0", |_| true)?;
        for node in [&pair.a, &pair.b] {
            inodes.push(node.inode()?);
            assert!(is_held(node.inode()?));
        }
        assert!(!fail, "a test that fails");
        Ok(())
    };
    build(false)?;
    assert!(catch_unwind(AssertUnwindSafe(|| build(true))).is_err());
    assert_eq!(inodes.len(), 4);
    // Other tests of this program start processes too, which hold everything between fork and exec.
    eventually(TIMEOUT, || {
        ensure!(!inodes.iter().any(|inode| is_held(*inode)), "a namespace is still held");
        Ok(())
    })
}

#[test]
fn a_panic_inside_a_node_is_that_of_the_test() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let node = lab.node("a")?;
    let panic = catch_unwind(AssertUnwindSafe(|| node.run(|| panic!("inside")))).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"inside"));
    Ok(())
}

#[test]
fn eventually_gives_up_with_the_last_error() {
    let mut count = 0;
    let outcome = eventually(Duration::from_millis(300), || -> Result<()> {
        count += 1;
        anyhow::bail!("attempt {count}")
    });
    let text = format!("{:#}", outcome.unwrap_err());
    assert!(count > 1 && text.contains(&format!("attempt {count}")), "{text}");
}
