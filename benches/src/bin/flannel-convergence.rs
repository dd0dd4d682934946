//! How long it takes from a peer's changed record in etcd to the first packet on the new path.
//!
//! ```text
//!   etcd 192.0.2.250 --.        A peer's record says now 192.0.2.2, now 192.0.2.3. h1 sends to an address of that peer all
//!   h1  `weft flanneld`+-- switch   the while; h2 and h3 are sockets at the tunnel's port that say when something arrives.
//!   h2, h3 ------------'
//! ```
//!
//! The time begins before the put is sent, so etcd's own write is in it; `put` tells how much that is. etcd holds as many
//! other leases as asked for. Needs root and etcd.
//!
//! ```text
//! cargo build --release -p weft-control -p weft-dataplane
//! cargo run --release -p weft-bench --bin flannel-convergence -- --backend udp
//! ```

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde_json::json;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};
use weft_lab::topology::Switched;
use weft_lab::{Etcd, Lab, Node, eventually, weft_binary, weftd_binary};

/// flannel's default prefix.
const PREFIX: &str = "/coreos.com/network";
const ETCD: &str = "192.0.2.250";
/// The peer that moves, and an address in its subnet.
const PEER_KEY: &str = "10.200.0.0-24";
const PEER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
/// Between two packets to it: what the measurement can tell apart.
const SEND_PERIOD: Duration = Duration::from_micros(200);
/// Longest time that a change may take.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Parser)]
#[command(name = "flannel-convergence", about = "Time from etcd put to the first packet on the new path")]
struct Args {
    /// udp or vxlan
    #[arg(long, default_value = "udp", value_parser = ["udp", "vxlan"])]
    backend: String,
    /// Changes to measure
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Other leases in etcd
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=30_000))]
    leases: u32,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let Some(lab) = Lab::start() else { return Ok(()) };
    let Switched { links: _links, hosts, switch } = Switched::new(&lab, 3, 1500)?;
    switch.address("br0", &format!("{ETCD}/24"))?;
    let etcd = Etcd::start_on(&switch, ETCD.parse()?)?;
    let config = json!({"Network": "10.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": args.backend}});
    etcd.put(&format!("{PREFIX}/config"), &config.to_string())?;
    for number in 0..args.leases {
        let (key, value) = lease(&args.backend, number);
        etcd.put(&format!("{PREFIX}/subnets/{key}"), &value)?;
    }
    let port = if args.backend == "udp" { 8285 } else { 8472 };
    let arrivals = [listen(&hosts[1], 2, port)?, listen(&hosts[2], 3, port)?];

    let subnet_file = lab.directory().join("subnet.env");
    let mut command = Command::new(weft_binary()?);
    command.args(["flanneld", "--iface=u0", "--iptables-forward-rules=false"]);
    command.arg(format!("--etcd-endpoints={}", etcd.url()));
    command.arg(format!("--run-dir={}", lab.directory().join("run").display()));
    command.arg(format!("--subnet-file={}", subnet_file.display()));
    command.env("WEFTD", weftd_binary()?);
    let mut daemon = hosts[0].spawn(command)?;
    daemon.quiet();
    eventually(TIMEOUT * 3, || {
        ensure!(subnet_file.exists(), "it has not joined:\n{}", daemon.log());
        Ok(())
    })?;

    let done = AtomicBool::new(false);
    let outcome = thread::scope(|scope| {
        scope.spawn(|| send(&hosts[0], &done));
        let outcome = measure(&args, &etcd, &arrivals);
        done.store(true, Ordering::Relaxed);
        outcome
    });
    let outcome = outcome.with_context(|| daemon.log());
    drop(daemon);
    // weft leaves its data path in place.
    let mut down = Command::new(weft_binary()?);
    down.arg("down").arg("--run-dir").arg(lab.directory().join("run")).arg("flannel");
    if args.backend == "udp" {
        hosts[0].run(|| down.output())?;
    }
    let (puts, changes) = outcome?;
    println!("{} other leases, backend {}, {} changes", args.leases, args.backend, args.samples);
    print("from the put to the first packet on the new path", changes);
    print("of which etcd's put", puts);
    Ok(())
}

/// Key and value of one of the leases that are there and do not change.
fn lease(backend: &str, number: u32) -> (String, String) {
    let (high, low) = (number / 256, number % 256);
    (format!("10.{}.{low}.0-24", 10 + high), record(backend, &format!("198.18.{high}.{low}"), number))
}

fn record(backend: &str, public: &str, number: u32) -> String {
    let record = match backend {
        "udp" => json!({"PublicIP": public, "PublicIPv6": null}),
        _ => {
            let mac = format!("02:00:00:00:{:02x}:{:02x}", number / 256, number % 256);
            let data = json!({"VNI": 1, "VtepMAC": mac});
            json!({"PublicIP": public, "PublicIPv6": null, "BackendType": "vxlan", "BackendData": data})
        }
    };
    record.to_string()
}

/// Times of the puts alone, and from the put to the first packet.
fn measure(args: &Args, etcd: &Etcd, arrivals: &[Receiver<Instant>; 2]) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut puts, mut changes) = (Vec::new(), Vec::new());
    // The first leads somewhere at all; it is not counted.
    for sample in 0..=args.samples {
        let host = (sample % 2) as usize;
        while arrivals[host].try_recv().is_ok() {}
        let value = record(&args.backend, &format!("192.0.2.{}", host + 2), 0xfff0 + host as u32);
        let begun = Instant::now();
        etcd.put(&format!("{PREFIX}/subnets/{PEER_KEY}"), &value)?;
        let put = begun.elapsed();
        let arrived = loop {
            match arrivals[host].recv_timeout(TIMEOUT) {
                Ok(at) if at > begun => break at,
                Ok(_) => {}
                Err(_) => bail!("change {sample}: nothing arrived at the new place within {TIMEOUT:?}"),
            }
        };
        if sample > 0 {
            puts.push(put);
            changes.push(arrived - begun);
        }
        // Apart from each other, and not in step with anything periodic.
        thread::sleep(Duration::from_millis(20 + u64::from(sample * 7 % 13)));
    }
    Ok((puts, changes))
}

/// Says when something arrives at the tunnel's port of host `number`, by a thread that lasts as long as the process.
fn listen(node: &Node, number: u8, port: u16) -> Result<Receiver<Instant>> {
    let socket = node.run(|| UdpSocket::bind((Ipv4Addr::new(192, 0, 2, number), port)))?;
    let (arrived, arrivals) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while socket.recv(&mut buffer).is_ok() {
            if arrived.send(Instant::now()).is_err() {
                return;
            }
        }
    });
    Ok(arrivals)
}

/// Sends to the peer that moves, all the while.
fn send(node: &Node, done: &AtomicBool) {
    node.run(|| {
        let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) else { return };
        while !done.load(Ordering::Relaxed) {
            // Refused while there is no route; what counts is what arrives.
            let _ = socket.send_to(&[0x77; 64], (PEER_ADDRESS, 9));
            thread::sleep(SEND_PERIOD);
        }
    });
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |quantile: f64| times[((times.len() - 1) as f64 * quantile).round() as usize].as_secs_f64() * 1e3;
    println!("{what}: p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, longest {:.2} ms", at(0.5), at(0.9), at(0.99), at(1.0));
}
