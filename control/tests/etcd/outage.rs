//! etcd away, standing still, or begun anew: forwarding is not concerned, and all is made good afterwards.

use crate::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use weft_control::source::etcd::EtcdError;

/// CPU time of this process, all threads.
fn cpu() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
}

#[test]
fn a_stopped_etcd_is_no_event_costs_nothing_and_is_gone_on_with() {
    let mut etcd = Etcd::start().unwrap();
    put_peer(&etcd, "10.5.1.0-24", "192.0.2.11");
    let (watch, _) = node(&etcd, &options(&etcd));
    etcd.stop().unwrap();
    let before = cpu();
    assert_eq!(next_within(&watch, Duration::from_secs(4)), None);
    let spent = cpu() - before;
    assert!(spent < Duration::from_millis(400), "{spent:?} of CPU time in 4 s");
    etcd.start_again().unwrap();
    put_peer(&etcd, "10.5.2.0-24", "192.0.2.12");
    // The watch goes on where it was: no snapshot.
    assert_added(&watch, "10.5.2.0/24", "192.0.2.12");
}

#[test]
fn a_paused_etcd_is_no_event_and_is_gone_on_with() {
    let etcd = Etcd::start().unwrap();
    put_peer(&etcd, "10.5.1.0-24", "192.0.2.11");
    let (watch, _) = node(&etcd, &options(&etcd));
    etcd.pause().unwrap();
    let before = cpu();
    assert_eq!(next_within(&watch, Duration::from_secs(6)), None);
    assert!(cpu() - before < Duration::from_millis(400));
    etcd.unpause().unwrap();
    put_peer(&etcd, "10.5.2.0-24", "192.0.2.12");
    assert_added(&watch, "10.5.2.0/24", "192.0.2.12");
}

#[test]
fn a_silent_endpoint_is_left_for_another() {
    let first = Etcd::start().unwrap();
    let second = Etcd::start().unwrap();
    put_peer(&second, "10.5.2.0-24", "192.0.2.12");
    for _ in 0..10 {
        first.put("elsewhere", "").unwrap();
    }
    let options = EtcdOptions { endpoints: vec![first.url(), second.url()], ..options(&first) };
    let (watch, peers) = node(&first, &options);
    assert_eq!(peers, []);
    // The servers are two clusters, which makes it plain who answers: to the watch, etcd began anew.
    first.pause().unwrap();
    assert_eq!(nets(&snapshot(&watch)), ["10.5.2.0/24"]);
    weft_lab::eventually(SOON, || {
        anyhow::ensure!(second.get(&key("10.5.9.0-24"))?.is_some());
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_dead_endpoint_is_passed_over() {
    let etcd = Etcd::start().unwrap();
    let dead = "http://127.0.0.1:1".to_owned();
    let options = EtcdOptions { endpoints: vec![dead.clone(), etcd.url()], ..options(&etcd) };
    node(&etcd, &options);
    let mut registry = Registry::connect(&EtcdOptions { endpoints: vec![dead], ..options }).unwrap();
    let error = registry.fetch_config().unwrap_err();
    assert!(matches!(error, EtcdError::Unreachable(_)) && error.to_string().contains("http://127.0.0.1:1"), "{error}");
}

#[test]
fn a_wiped_etcd_removes_nobody_before_nodes_could_write_themselves_again() {
    let mut etcd = Etcd::start().unwrap();
    for index in 1..6 {
        put_peer(&etcd, &format!("10.5.{index}.0-24"), &format!("192.0.2.1{index}"));
    }
    let (watch, peers) = node(&etcd, &options(&etcd));
    assert_eq!(peers.len(), 5);
    etcd.wipe().unwrap();
    let wiped = Instant::now();
    put_peer(&etcd, "10.5.3.0-24", "192.0.2.13");
    let peers = snapshot(&watch);
    assert_eq!(nets(&peers), ["10.5.3.0/24"]);
    assert!(wiped.elapsed() > Duration::from_millis(900), "{:?}", wiped.elapsed());
    // Ours was the first to be there again.
    assert_eq!(record(&etcd, "10.5.9.0-24").value, write_value(&attrs("192.0.2.1")));
    put_peer(&etcd, "10.5.4.0-24", "192.0.2.14");
    assert_added(&watch, "10.5.4.0/24", "192.0.2.14");
}

#[test]
fn a_lease_that_expired_while_etcd_was_away_is_had_again() {
    let mut etcd = Etcd::start().unwrap();
    let (lease_ttl, renew_margin) = (Duration::from_secs(2), Duration::from_secs(1));
    let (watch, _) = node(&etcd, &EtcdOptions { lease_ttl, renew_margin, ..options(&etcd) });
    etcd.stop().unwrap();
    assert_eq!(next_within(&watch, Duration::from_secs(5)), None);
    etcd.start_again().unwrap();
    weft_lab::eventually(SOON, || {
        renewed(&watch);
        let record = etcd.get(&key("10.5.9.0-24"))?;
        anyhow::ensure!(record.is_some_and(|record| record.lease != 0));
        Ok(())
    })
    .unwrap();
    assert_quiet(&watch);
}

#[test]
fn stopping_interrupts_what_is_waited_for_and_leaves_the_lease() {
    let etcd = Etcd::start().unwrap();
    let woken = Arc::new(AtomicUsize::new(0));
    let (registry, acquired) = acquire(&options(&etcd), "192.0.2.1", "10.5.9.0/24");
    let counter = Arc::clone(&woken);
    let watch = registry.watch(&conf(), acquired, move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    snapshot(&watch);
    // It is woken behind the event, not with it.
    weft_lab::eventually(SOON, || {
        anyhow::ensure!(woken.load(Ordering::SeqCst) >= 1);
        Ok(())
    })
    .unwrap();
    etcd.pause().unwrap();
    std::thread::sleep(Duration::from_millis(800));
    let started = Instant::now();
    watch.stop();
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    etcd.unpause().unwrap();
    assert!(etcd.get(&key("10.5.9.0-24")).unwrap().is_some());
}
