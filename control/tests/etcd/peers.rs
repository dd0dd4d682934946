//! Following the leases of others.

use crate::*;

#[test]
fn peers_come_change_and_go() {
    let etcd = Etcd::start().unwrap();
    put_peer(&etcd, "10.5.1.0-24", "192.0.2.11");
    let (watch, peers) = node(&etcd, &options(&etcd));
    assert_eq!(nets(&peers), ["10.5.1.0/24"]);
    put_peer(&etcd, "10.5.2.0-24", "192.0.2.12");
    assert_added(&watch, "10.5.2.0/24", "192.0.2.12");
    put_peer(&etcd, "10.5.2.0-24", "192.0.2.13");
    assert_added(&watch, "10.5.2.0/24", "192.0.2.13");
    etcd.delete(&key("10.5.1.0-24")).unwrap();
    assert_eq!(next(&watch), LeaseEvent::Removed(subnets("10.5.1.0/24")));
    watch.stop();
}

#[test]
fn the_renewal_of_a_stock_peer_is_no_event() {
    let etcd = Etcd::start().unwrap();
    put_peer(&etcd, "10.5.1.0-24", "192.0.2.11");
    let (watch, _) = node(&etcd, &options(&etcd));
    for _ in 0..3 {
        put_peer(&etcd, "10.5.1.0-24", "192.0.2.11");
    }
    assert_quiet(&watch);
}

#[test]
fn keys_beside_the_directory_are_not_looked_at() {
    let etcd = Etcd::start().unwrap();
    let (watch, _) = node(&etcd, &options(&etcd));
    for key in ["/weft/network/subnets", "/weft/network/subnets-old/10.5.1.0-24", "/weft/network/subnets0/10.5.1.0-24"]
    {
        etcd.put(key, &write_value(&attrs("192.0.2.11"))).unwrap();
    }
    assert_quiet(&watch);
}

#[test]
fn what_changed_while_etcd_forgot_is_noticed_by_the_new_list() {
    let mut etcd = Etcd::start().unwrap();
    for (name, public_ip) in
        [("10.5.1.0-24", "192.0.2.11"), ("10.5.2.0-24", "192.0.2.12"), ("10.5.3.0-24", "192.0.2.13")]
    {
        etcd.put(&key(name), &write_value(&attrs(public_ip))).unwrap();
    }
    let options = EtcdOptions { heartbeat: Duration::from_secs(60), ..options(&etcd) };
    let (watch, peers) = node(&etcd, &options);
    assert_eq!(peers.len(), 3);
    // Another server at the same data, out of the watch's sight, changes things and compacts.
    etcd.pause().unwrap();
    etcd.stop().unwrap();
    etcd.with_other_client_address(|etcd| {
        etcd.put(&key("10.5.1.0-24"), &write_value(&attrs("192.0.2.111")))?;
        etcd.delete(&key("10.5.2.0-24"))?;
        etcd.put(&key("10.5.4.0-24"), &write_value(&attrs("192.0.2.14")))?;
        etcd.compact()
    })
    .unwrap();
    etcd.start_again().unwrap();
    let peers = snapshot(&watch);
    let found: Vec<_> =
        peers.iter().map(|lease| (lease.subnets.v4.unwrap().to_string(), lease.attrs.clone())).collect();
    let expected = [("10.5.1.0/24", "192.0.2.111"), ("10.5.3.0/24", "192.0.2.13"), ("10.5.4.0/24", "192.0.2.14")];
    assert_eq!(found, expected.map(|(net, public_ip)| (net.to_owned(), attrs(public_ip))));
    // And from there on.
    etcd.delete(&key("10.5.4.0-24")).unwrap();
    assert_eq!(next(&watch), LeaseEvent::Removed(subnets("10.5.4.0/24")));
}

#[test]
fn a_peer_whose_lease_expires_is_removed() {
    let etcd = Etcd::start().unwrap();
    let (watch, _) = node(&etcd, &options(&etcd));
    let lease = etcd.grant(Duration::from_secs(5)).unwrap();
    etcd.put_bytes(key("10.5.1.0-24").as_bytes(), write_value(&attrs("192.0.2.11")).as_bytes(), lease).unwrap();
    assert_added(&watch, "10.5.1.0/24", "192.0.2.11");
    assert_eq!(next(&watch), LeaseEvent::Removed(subnets("10.5.1.0/24")));
}

#[test]
fn two_nodes_see_each_other_and_never_themselves() {
    let etcd = Etcd::start().unwrap();
    let (registry, acquired) = acquire(&options(&etcd), "192.0.2.2", "10.5.2.0/24");
    let second = registry.watch(&conf(), acquired, || ());
    assert_eq!(snapshot(&second), []);
    let (first, peers) = node(&etcd, &options(&etcd));
    assert_eq!(nets(&peers), ["10.5.2.0/24"]);
    assert_added(&second, "10.5.9.0/24", "192.0.2.1");
    for watch in [&first, &second] {
        assert_quiet(watch);
    }
}
