//! The server over a real socket, with made-up workers.

mod abuse;
mod files;
mod service;

use super::*;
use crate::shared::{Facts, PeerCheck, WorkerView};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use weft_client::Client;
use weft_fib::{Fib, FibCell};
use weft_proto::{PeerSpec, RouteSet, RouteSpec};

const TIMEOUT: Duration = Duration::from_secs(30);

/// A running server and its made-up surroundings; drained when dropped.
struct Running {
    dir: tempfile::TempDir,
    path: PathBuf,
    shared: Arc<Shared>,
    woken: Arc<AtomicUsize>,
    workers: WorkerReporter,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Running {
    /// Starts with `workers` workers. Without workers a drain ends at once.
    fn start(workers: usize) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weft/test.sock");
        let woken = Arc::new(AtomicUsize::new(0));
        let shared = Arc::new(Shared {
            fib: FibCell::new(Fib::empty()),
            workers: (0..workers).map(|_| Arc::new(WorkerView::default())).collect(),
            lane: None,
            command: Arc::new(AtomicU8::new(0)),
            facts: Facts {
                tun_name: "flannel0".into(),
                tun_ifindex: 7,
                bind: "[::]:8285".parse().unwrap(),
                engine: "epoll",
                engine_note: None,
                engine_fallback: false,
                opener: "native",
                mtu: 1472,
                peer_check: PeerCheck::Strict,
                spin_us: 0,
                source_ports: vec![8285],
            },
            wake: Box::new({
                let woken = woken.clone();
                move || {
                    woken.fetch_add(1, Ordering::SeqCst);
                }
            }),
        });
        let listener = Listener::bind(&path).unwrap();
        let (reporter, watch) = watch().unwrap();
        let thread = std::thread::Builder::new()
            .name("test-server".into())
            .spawn({
                let shared = shared.clone();
                move || {
                    run(shared, listener, watch, &mut |level| match level {
                        weft_proto::LogLevel::Trace => Err("too loud for a test".into()),
                        _ => Ok(()),
                    })
                }
            })
            .unwrap();
        Running { dir, path, shared, woken, workers: reporter, thread: Some(thread) }
    }

    fn client(&self) -> Client {
        Client::connect(&self.path, TIMEOUT).unwrap()
    }

    fn generation(&self) -> u64 {
        self.client().status().unwrap().generation
    }

    /// Waits for the server to end by itself.
    fn join(mut self) -> Result<(), ServeError> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        for worker in 0..self.shared.workers.len() {
            self.workers.guard(worker as u16).ended(Ok(()));
        }
        if let Ok(mut client) = Client::connect(&self.path, TIMEOUT) {
            let _ = client.drain();
        }
        let result = thread.join();
        if !std::thread::panicking() {
            drop(result.expect("the server does not panic"));
        }
    }
}

fn peer(number: u32) -> PeerSpec {
    let [_, a, b, c] = number.to_be_bytes();
    PeerSpec { name: Some(format!("node-{number}")), addr: ([192, a, b, c], 8285).into(), aliases: Vec::new() }
}

/// `count` /32 routes over `peers` peers, whose addresses start at `base`.
fn table(base: u32, peers: u32, count: u32) -> RouteSet {
    RouteSet {
        peers: (0..peers).map(|number| peer(base + number)).collect(),
        routes: (0..count)
            .map(|number| RouteSpec {
                prefix: format!("{}/32", std::net::Ipv4Addr::from(0x0a00_0000 + number)).parse().unwrap(),
                peer: number % peers,
            })
            .collect(),
    }
}

/// Waits for a condition, not for a time.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {TIMEOUT:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
