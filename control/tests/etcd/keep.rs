//! Keeping a lease.

use crate::*;
use weft_lab::eventually;

const OWN: &str = "10.5.9.0-24";

/// A lease of a few seconds, renewed each second.
fn short(etcd: &Etcd) -> EtcdOptions {
    let (lease_ttl, renew_margin) = (Duration::from_secs(4), Duration::from_secs(3));
    EtcdOptions { lease_ttl, renew_margin, ..options(etcd) }
}

#[test]
fn a_renewal_is_no_event_for_anybody_else() {
    let etcd = Etcd::start().unwrap();
    let (watch, _) = node(&etcd, &short(&etcd));
    let before = record(&etcd, OWN);
    let until = Instant::now() + Duration::from_secs(7);
    let mut expires = std::time::SystemTime::now();
    while Instant::now() < until {
        let lease = renewed(&watch);
        assert!(lease.expires.unwrap() > expires, "{lease:?}");
        expires = lease.expires.unwrap();
    }
    assert_eq!(record(&etcd, OWN), before);
}

#[test]
fn a_deleted_record_is_there_again_at_once() {
    let etcd = Etcd::start().unwrap();
    let (watch, _) = node(&etcd, &EtcdOptions { heartbeat: Duration::from_secs(60), ..options(&etcd) });
    for _ in 0..3 {
        etcd.delete(&key(OWN)).unwrap();
        assert_eq!(renewed(&watch).subnets, subnets("10.5.9.0/24"));
        assert_eq!(record(&etcd, OWN).value, write_value(&attrs("192.0.2.1")));
    }
    // And so with its etcd lease gone, by expiry or by hand.
    etcd.revoke(record(&etcd, OWN).lease).unwrap();
    renewed(&watch);
    assert_ne!(record(&etcd, OWN).lease, 0);
    assert_quiet(&watch);
}

#[test]
fn a_lease_taken_by_another_node_is_lost_and_left_to_it() {
    let etcd = Etcd::start().unwrap();
    let (watch, _) = node(&etcd, &options(&etcd));
    put_peer(&etcd, OWN, "192.0.2.7");
    assert!(lost(&watch).contains("was taken by 192.0.2.7"));
    std::thread::sleep(QUIET);
    assert_eq!(record(&etcd, OWN).value, write_value(&attrs("192.0.2.7")));
}

#[test]
fn a_lease_that_is_gone_and_whose_addresses_are_taken_is_lost() {
    let etcd = Etcd::start().unwrap();
    let (watch, _) = node(&etcd, &options(&etcd));
    put_peer(&etcd, "10.5.8.0-23", "192.0.2.7");
    assert_quiet(&watch);
    etcd.delete(&key(OWN)).unwrap();
    assert!(lost(&watch).contains("10.5.8.0-23 has its addresses"));
    assert_eq!(etcd.get(&key(OWN)).unwrap(), None);
}

#[test]
fn nonsense_in_our_record_is_written_over() {
    let etcd = Etcd::start().unwrap();
    let (watch, _) = node(&etcd, &options(&etcd));
    etcd.put(&key(OWN), "nonsense").unwrap();
    renewed(&watch);
    assert_eq!(record(&etcd, OWN).value, write_value(&attrs("192.0.2.1")));
}

#[test]
fn our_record_made_permanent_stays_so() {
    let etcd = Etcd::start().unwrap();
    let (watch, _) = node(&etcd, &short(&etcd));
    etcd.put(&key(OWN), &write_value(&attrs("192.0.2.1"))).unwrap();
    eventually(SOON, || {
        anyhow::ensure!(renewed(&watch).expires.is_none());
        Ok(())
    })
    .unwrap();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(record(&etcd, OWN).lease, 0);
    assert_eq!(watch.events().try_iter().collect::<Vec<_>>(), []);
}

#[test]
fn two_nodes_with_one_public_ip_do_not_fight_for_ever() {
    let etcd = Etcd::start().unwrap();
    let (watch, _) = node(&etcd, &options(&etcd));
    let other = LeaseAttrs { backend_type: "vxlan".into(), ..attrs("192.0.2.1") };
    let mut rounds = 0;
    let why = loop {
        etcd.put(&key(OWN), &write_value(&other)).unwrap();
        rounds += 1;
        assert!(rounds < 10);
        match watch.events().recv_timeout(SOON) {
            Ok(LeaseEvent::OwnRenewed(_) | LeaseEvent::Config(_)) => {}
            Ok(LeaseEvent::OwnLost { why }) => break why,
            event => panic!("{event:?}"),
        }
    };
    assert!(why.contains("--public-ip"), "{why}");
}

#[test]
fn changed_attributes_are_written_to_the_same_record() {
    let etcd = Etcd::start().unwrap();
    put_peer(&etcd, "10.5.7.0-24", "192.0.2.50");
    let (watch, peers) = node(&etcd, &options(&etcd));
    assert_eq!(nets(&peers), ["10.5.7.0/24"]);
    let mac = LeaseAttrs { backend_data: Some("mac".into()), backend_type: "vxlan".into(), ..attrs("192.0.2.1") };
    watch.publish(mac.clone());
    assert_eq!(renewed(&watch).attrs, mac);
    assert_eq!(record(&etcd, OWN).value, write_value(&mac));
    // A record with the address that is now ours is no peer's any more.
    watch.publish(attrs("192.0.2.50"));
    assert_eq!(next(&watch), LeaseEvent::Removed(subnets("10.5.7.0/24")));
    assert_eq!(record(&etcd, OWN).value, write_value(&attrs("192.0.2.50")));
    assert_eq!(etcd.list(&key("")).unwrap().len(), 2);
}
