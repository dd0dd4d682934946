//! The etcd source against a real etcd (Debian's `etcd-server`), one server to a test.
#![forbid(unsafe_code)]

mod acquire;
mod bad_records;
mod config;
mod keep;
mod outage;
mod peers;
mod security;

use std::sync::Mutex;
use std::time::{Duration, Instant};
use weft_control::flannel::record::write_value;
use weft_control::flannel::{FlannelLease, LeaseAttrs, LeaseEvent, NetConf, Subnets};
use weft_control::source::etcd::{Acquired, EtcdOptions, Registry, Watch};
use weft_lab::{Etcd, EtcdRecord};

const PREFIX: &str = "/weft/network";
/// For what has to happen.
const SOON: Duration = Duration::from_secs(30);
/// For what must not happen.
const QUIET: Duration = Duration::from_millis(400);

/// As a daemon would have them, but with a faster heart.
fn options(etcd: &Etcd) -> EtcdOptions {
    EtcdOptions {
        endpoints: vec![etcd.url()],
        prefix: PREFIX.into(),
        timeout: weft_lab::TIMEOUT,
        heartbeat: Duration::from_millis(500),
        ..EtcdOptions::default()
    }
}

/// The same for an etcd that is to be found silent.
fn impatient(etcd: &Etcd) -> EtcdOptions {
    EtcdOptions { timeout: Duration::from_secs(2), ..options(etcd) }
}

fn conf() -> NetConf {
    NetConf::parse(r#"{"Network": "10.5.0.0/16"}"#).unwrap()
}

fn attrs(public_ip: &str) -> LeaseAttrs {
    LeaseAttrs { public_ip: Some(public_ip.parse().unwrap()), ..LeaseAttrs::default() }
}

fn subnets(v4: &str) -> Subnets {
    Subnets { v4: Some(v4.parse().unwrap()), v6: None }
}

fn key(name: &str) -> String {
    format!("{PREFIX}/subnets/{name}")
}

fn put_peer(etcd: &Etcd, name: &str, public_ip: &str) {
    let lease = etcd.grant(Duration::from_secs(600)).unwrap();
    etcd.put_bytes(key(name).as_bytes(), write_value(&attrs(public_ip)).as_bytes(), lease).unwrap();
}

fn record(etcd: &Etcd, name: &str) -> EtcdRecord {
    etcd.get(&key(name)).unwrap().unwrap_or_else(|| panic!("no lease {name}"))
}

fn acquire(options: &EtcdOptions, public_ip: &str, previous: &str) -> (Registry, Acquired) {
    let mut registry = Registry::connect(options).unwrap();
    let previous = if previous.is_empty() { Subnets::default() } else { subnets(previous) };
    let acquired = registry.acquire(&conf(), &attrs(public_ip), &previous).unwrap();
    (registry, acquired)
}

/// A node with 192.0.2.1 and 10.5.9.0/24, its watch, and the peers of its first snapshot.
fn node(etcd: &Etcd, options: &EtcdOptions) -> (Watch, Vec<FlannelLease>) {
    let (registry, acquired) = acquire(options, "192.0.2.1", "10.5.9.0/24");
    assert_eq!(acquired.own().subnets, subnets("10.5.9.0/24"));
    assert!(etcd.get(&key("10.5.9.0-24")).unwrap().is_some());
    let watch = registry.watch(&conf(), acquired, || ());
    let peers = snapshot(&watch);
    (watch, peers)
}

/// The next event that says neither that our lease was renewed nor anything of the network config, which most of these tests
/// have none of.
fn next(watch: &Watch) -> LeaseEvent {
    next_within(watch, SOON).expect("an event")
}

fn next_within(watch: &Watch, limit: Duration) -> Option<LeaseEvent> {
    let deadline = Instant::now() + limit;
    loop {
        match watch.events().recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(LeaseEvent::OwnRenewed(_) | LeaseEvent::Config(_)) => {}
            Ok(event) => return Some(event),
            Err(_) => return None,
        }
    }
}

fn snapshot(watch: &Watch) -> Vec<FlannelLease> {
    match next(watch) {
        LeaseEvent::Snapshot(peers) => peers,
        event => panic!("expected a snapshot, got {event:?}"),
    }
}

fn renewed(watch: &Watch) -> FlannelLease {
    loop {
        match watch.events().recv_timeout(SOON) {
            Ok(LeaseEvent::OwnRenewed(lease)) => return lease,
            Ok(LeaseEvent::Config(_)) => {}
            event => panic!("expected our lease to be renewed, got {event:?}"),
        }
    }
}

fn lost(watch: &Watch) -> String {
    match next(watch) {
        LeaseEvent::OwnLost { why } => why,
        event => panic!("expected our lease to be lost, got {event:?}"),
    }
}

fn assert_added(watch: &Watch, net: &str, public_ip: &str) {
    match next(watch) {
        LeaseEvent::Added(lease) => {
            assert_eq!((lease.subnets, lease.attrs), (subnets(net), attrs(public_ip)));
        }
        event => panic!("expected {net} to be added, got {event:?}"),
    }
}

fn assert_quiet(watch: &Watch) {
    assert_eq!(next_within(watch, QUIET), None);
}

fn nets(peers: &[FlannelLease]) -> Vec<String> {
    peers.iter().map(|lease| lease.subnets.v4.unwrap().to_string()).collect()
}

/// What was logged by this process, kept from the first call on.
fn logged() -> String {
    static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());
    struct Writer;
    impl std::io::Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            LOG.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    // The second call finds the subscriber in its place.
    let subscriber = tracing_subscriber::fmt().with_writer(|| Writer).with_ansi(false);
    let _ = subscriber.with_max_level(tracing::Level::TRACE).try_init();
    String::from_utf8_lossy(&LOG.lock().unwrap()).into_owned()
}
