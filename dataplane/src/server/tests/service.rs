//! What well-behaved clients get.

use super::*;
use std::net::IpAddr;
use weft_client::{ClientError, Events};
use weft_packet::DropReason;
use weft_proto::{Delta, Event, LogLevel, RefusalCode};

fn refused(error: &ClientError) -> RefusalCode {
    match error {
        ClientError::Refused(refusal) => refusal.code,
        other => panic!("expected a refusal: {other}"),
    }
}

fn next(events: &mut Events) -> Event {
    events.next_within(TIMEOUT).unwrap().expect("an event in time")
}

#[test]
fn large_tables_read_back_equal_and_reach_the_fib() {
    let server = Running::start(0);
    let mut client = server.client();
    for (generation, routes) in [(1, 100_000), (2, 1_000_000), (3, 0)] {
        let set = table(0, 1000.min(routes.max(1)), routes);
        let begun = Instant::now();
        let installed = client.swap(&set, None).unwrap();
        println!("{routes} routes: swap {:?}", begun.elapsed());
        assert_eq!((installed.generation, installed.routes, installed.digest), (generation, routes, set.digest()));
        assert_eq!(server.shared.fib.reader().pin().generation(), generation, "published before the reply");
        assert_eq!(server.shared.fib.reader().pin().route_count(), routes as usize);
        let begun = Instant::now();
        let read = client.routes().unwrap();
        println!("{routes} routes: list {:?}", begun.elapsed());
        assert_eq!((read.installed, read.set), (installed, set.canonical()));
    }
}

#[test]
fn the_largest_number_of_peers_is_accepted_and_one_more_is_not() {
    let server = Running::start(1);
    let mut client = server.client();
    let full = table(0, weft_proto::limits::PEERS_MAX as u32, 1);
    assert_eq!(client.swap(&full, None).unwrap().peers, 65_535);
    assert_eq!(client.peers().unwrap().len(), 65_535);
    let all_others = table(100_000, weft_proto::limits::PEERS_MAX as u32, 1);
    assert_eq!(client.swap(&all_others, None).unwrap().generation, 2);
    let over = table(0, weft_proto::limits::PEERS_MAX as u32 + 1, 1);
    assert!(matches!(client.swap(&over, None), Err(ClientError::Invalid(_))));
    assert_eq!(server.generation(), 2);
}

#[test]
fn a_stale_request_is_refused_and_changes_nothing() {
    let server = Running::start(0);
    let mut client = server.client();
    let first = client.swap(&table(0, 2, 10), Some(0)).unwrap();
    let delta = Delta { upsert: vec![("10.9.0.0/16".parse().unwrap(), peer(9))], remove: vec![] };
    for expect in [0, 2, u64::MAX] {
        let error = client.swap(&table(5, 2, 200_000), Some(expect)).unwrap_err();
        assert!(error.is_stale() && error.to_string().contains("generation 1 is in force"), "{error}");
        assert!(client.delta(&delta, Some(expect)).unwrap_err().is_stale());
        assert_eq!(client.routes().unwrap().installed, first, "the connection stays usable, the table stays");
    }
    assert_eq!(client.delta(&delta, Some(1)).unwrap().generation, 2);
}

#[test]
fn a_delta_changes_what_it_names_and_takes_deserted_peers_along() {
    let server = Running::start(0);
    let mut client = server.client();
    client.swap(&table(0, 2, 4), None).unwrap();
    let renamed = PeerSpec { name: Some("new name".into()), ..peer(0) };
    let delta = Delta {
        upsert: vec![("fd00::/64".parse().unwrap(), renamed.clone())],
        remove: ["10.0.0.1/32", "10.0.0.3/32", "10.77.0.0/16"].map(|prefix| prefix.parse().unwrap()).into(),
    };
    let installed = client.delta(&delta, None).unwrap();
    assert_eq!((installed.routes, installed.peers), (3, 1), "peer 1 lost its last route");
    let read = client.routes().unwrap();
    assert_eq!(read.set.peers, [renamed]);
    assert_eq!(read.set.digest(), installed.digest);
}

#[test]
fn bad_tables_are_refused_by_name_and_change_nothing() {
    let server = Running::start(0);
    let mut client = server.client();
    let good = table(0, 1, 1);
    let prefix = |text: &str| text.parse().unwrap();
    let mut cases = Vec::new();
    for (addr, word) in [
        ("0.0.0.0:8285", "unspecified"),
        ("224.0.0.1:8285", "multicast"),
        ("255.255.255.255:8285", "broadcast"),
        ("192.0.2.1:0", "port 0"),
        ("[ff02::1]:8285", "multicast"),
    ] {
        let mut set = good.clone();
        set.peers[0].addr = addr.parse().unwrap();
        cases.push((set, word));
    }
    let mut twice = good.clone();
    twice.routes.push(twice.routes[0]);
    cases.push((twice, "10.0.0.0/32 is listed twice"));
    let mut host_bits = good.clone();
    host_bits.routes[0].prefix = prefix("10.1.2.3/16");
    cases.push((host_bits, "write 10.1.0.0/16"));
    let mut stranger = good.clone();
    stranger.routes[0].peer = 1;
    cases.push((stranger, "peer number 1"));
    let mut same = good.clone();
    same.peers.push(same.peers[0].clone());
    cases.push((same, "192.0.0.0:8285 is listed twice"));
    for (set, word) in cases {
        let error = client.swap(&set, None).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert!(matches!(error, ClientError::Invalid(_)), "{error:?}");
    }
    assert_eq!(server.generation(), 0);
}

#[test]
fn get_answers_with_the_longest_prefix() {
    let server = Running::start(0);
    let mut client = server.client();
    let routes = ["0.0.0.0/0", "10.0.0.0/8", "10.5.0.0/16", "10.5.2.0/24", "fd00::/8", "fd00:1::/32"];
    let set = RouteSet {
        peers: (0..routes.len() as u32).map(peer).collect(),
        routes: (0..).zip(routes).map(|(peer, text)| RouteSpec { prefix: text.parse().unwrap(), peer }).collect(),
    };
    client.swap(&set, None).unwrap();
    for (address, expected) in [
        ("192.0.2.1", Some("0.0.0.0/0")),
        ("10.1.1.1", Some("10.0.0.0/8")),
        ("10.5.2.255", Some("10.5.2.0/24")),
        ("10.5.3.0", Some("10.5.0.0/16")),
        ("fd00:1::1", Some("fd00:1::/32")),
        ("fd00:2::1", Some("fd00::/8")),
        ("2001:db8::1", None),
    ] {
        let answer = client.get(address.parse::<IpAddr>().unwrap()).unwrap();
        assert_eq!(answer.route.map(|route| route.prefix.to_string()).as_deref(), expected, "{address}");
    }
}

#[test]
fn reports_sum_over_workers_and_explain_drops() {
    let server = Running::start(2);
    let mut client = server.client();
    client.swap(&table(0, 1, 3), None).unwrap();
    let id = weft_fib::PeerId(client.peers().unwrap()[0].id);
    for (worker, mtu) in server.shared.workers.iter().zip([1400, 1300]) {
        worker.stats.counters.encap_packets.add(5);
        worker.stats.encap_drops[DropReason::NoRoute.index()].add(3);
        worker.stats.decap_drops[DropReason::PeerSpoof.index()].add(1);
        worker.stats.send_segments[2].add(4);
        worker.stats.peer(id).tx_packets.add(5);
        worker.stats.peer(id).path_mtu.store(mtu, Ordering::Relaxed);
        worker.offloads.udp_gso.store(true, Ordering::Relaxed);
    }
    let stats = client.stats().unwrap();
    let counter = stats.totals.counters.iter().find(|counter| counter.name == "encap_packets").unwrap();
    assert_eq!((counter.value, counter.help.is_empty()), (10, false));
    let drop = stats.totals.drops.iter().find(|drop| drop.packets == 6).unwrap();
    assert_eq!((drop.reason.as_str(), drop.help.as_str()), ("no_route", DropReason::NoRoute.help()));
    assert_eq!(stats.totals.send_segments[2], 8);
    assert_eq!(stats.workers.len(), 2);
    assert_eq!(stats.workers[1].encap_drops["no_route"], 3);
    assert!(stats.workers[0].offloads.udp_gso && !stats.workers[0].offloads.udp_gro);
    let status = client.status().unwrap();
    assert_eq!((status.encap_drops, status.decap_drops, status.workers_running), (6, 2, 2));
    let peers = client.peers().unwrap();
    assert_eq!((peers[0].tx_packets, peers[0].path_mtu, peers[0].last_rx_ago_ms), (10, Some(1300), None));
    assert_eq!(peers[0].routes, 3);
}

#[test]
fn a_peer_that_inherits_an_id_starts_from_zero() {
    let server = Running::start(1);
    let mut client = server.client();
    client.swap(&table(0, 1, 1), None).unwrap();
    let old = client.peers().unwrap()[0].id;
    server.shared.workers[0].stats.peer(weft_fib::PeerId(old)).rx_packets.add(7);
    client.swap(&RouteSet::default(), None).unwrap();
    client.swap(&table(50, 1, 1), None).unwrap();
    let heir = &client.peers().unwrap()[0];
    assert_eq!((heir.id, heir.rx_packets), (old, 0));
}

#[test]
fn subscribers_hear_of_tables_levels_offloads_and_the_drain() {
    let server = Running::start(1);
    let offload = &server.shared.workers[0].offloads.udp_gso;
    offload.store(true, Ordering::Relaxed);
    let mut events = server.client().subscribe().unwrap();
    let mut client = server.client();
    let installed = client.swap(&table(0, 1, 1), None).unwrap();
    match next(&mut events) {
        Event::TableInstalled { generation, digest, .. } => {
            assert_eq!((generation, digest), (installed.generation, installed.digest));
        }
        other => panic!("{other:?}"),
    }
    client.set_log_level(LogLevel::Debug).unwrap();
    assert_eq!(next(&mut events), Event::LogLevel { level: LogLevel::Debug });
    assert_eq!(refused(&client.set_log_level(LogLevel::Trace).unwrap_err()), RefusalCode::Internal);
    offload.store(false, Ordering::Relaxed);
    assert_eq!(next(&mut events), Event::OffloadOff { worker: 0, offload: "udp_gso".into() });
    let drain = std::thread::spawn(move || client.drain());
    assert_eq!(next(&mut events), Event::Draining { by: "client".into() });
    server.workers.guard(0).ended(Ok(()));
    assert_eq!(next(&mut events), Event::WorkerEnded { worker: 0, error: None });
    drain.join().unwrap().unwrap();
    server.join().unwrap();
}

#[test]
fn a_drain_waits_for_the_workers_and_refuses_changes_meanwhile() {
    let server = Running::start(2);
    let mut draining = server.client();
    let drain = std::thread::spawn(move || draining.drain());
    eventually("the order reaches the workers", || server.shared.command.load(Ordering::Acquire) == 1);
    eventually("sleeping workers are woken", || server.woken.load(Ordering::SeqCst) == 1);
    let mut client = server.client();
    assert!(client.status().unwrap().draining);
    assert_eq!(refused(&client.swap(&table(0, 1, 1), None).unwrap_err()), RefusalCode::Draining);
    server.workers.guard(0).ended(Ok(()));
    assert!(!drain.is_finished());
    server.workers.guard(1).ended(Ok(()));
    drain.join().unwrap().unwrap();
    let path = server.path.clone();
    server.join().unwrap();
    assert!(!path.exists(), "the socket's file is gone");
}

#[test]
fn a_worker_that_fails_or_panics_ends_the_others_and_is_named() {
    let server = Running::start(2);
    server.workers.guard(0).ended(Ok(()));
    server.workers.guard(1).ended(Ok(()));
    assert!(matches!(server.join(), Err(ServeError::Worker { worker: 0, .. })), "nobody had told it to end");
    let server = Running::start(2);
    let guard = server.workers.guard(1);
    let worker = std::thread::spawn(move || {
        let _guard = guard;
        std::panic::resume_unwind(Box::new("a test's panic"));
    });
    assert!(worker.join().is_err());
    eventually("the other worker is told to drain", || server.shared.command.load(Ordering::Acquire) == 1);
    server.workers.guard(0).ended(Ok(()));
    match server.join() {
        Err(ServeError::Worker { worker: 1, reason }) => assert!(reason.contains("panicked")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn concurrent_writers_leave_some_single_writers_table() {
    const WRITERS: u32 = 8;
    const SWAPS: u64 = 40;
    let server = Running::start(0);
    let digests: Vec<_> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let mut client = server.client();
                scope.spawn(move || {
                    let set = table(writer * 1000, 10, 5000);
                    for _ in 0..SWAPS {
                        assert_eq!(client.swap(&set, None).unwrap().digest, set.digest());
                    }
                    set.digest()
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    let read = server.client().routes().unwrap();
    assert_eq!(read.installed.generation, u64::from(WRITERS) * SWAPS);
    assert!(digests.contains(&read.set.digest()), "no mixture of two writers' tables");
}

#[test]
fn of_writers_that_expect_one_generation_exactly_one_wins() {
    let server = Running::start(0);
    for generation in 0..20 {
        let wins: usize = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|writer| {
                    let mut client = server.client();
                    scope.spawn(move || match client.swap(&table(writer * 100, 3, 300), Some(generation)) {
                        Ok(_) => 1,
                        Err(error) => {
                            assert!(error.is_stale(), "{error}");
                            0
                        }
                    })
                })
                .collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).sum()
        });
        assert_eq!((wins, server.generation()), (1, generation + 1));
    }
}

#[test]
fn an_idle_server_never_wakes_up() {
    let server = Running::start(1);
    let _idle_client = server.client();
    let switches = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        tasks
            .flatten()
            .filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok())
            .filter(|status| status.starts_with("Name:\ttest-server\n"))
            .map(|status| {
                let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
                let pid = status.lines().find(|line| line.starts_with("Pid:")).unwrap();
                (pid.to_owned(), line.to_owned())
            })
            .collect::<Vec<_>>()
    };
    // It may have something to do yet. Servers of tests that run beside this one may be busy; this one is idle, so at least
    // one does not move.
    eventually("a second without waking up", || {
        let before = switches();
        std::thread::sleep(Duration::from_secs(1));
        let after = switches();
        before.iter().any(|task| after.contains(task))
    });
}
