//! Getting a lease.

use crate::*;
use std::cell::Cell;
use std::collections::BTreeSet;
use weft_control::source::etcd::EtcdError;

#[test]
fn the_config_is_waited_for_and_read() {
    let etcd = Etcd::start().unwrap();
    let mut registry = Registry::connect(&options(&etcd)).unwrap();
    let missing = registry.fetch_config().unwrap_err();
    assert!(
        matches!(missing, EtcdError::Config(_)) && missing.to_string().contains("etcdctl put /weft/network/config")
    );
    etcd.put(&format!("{PREFIX}/config"), r#"{"network": "10.5.0.0/33"}"#).unwrap();
    assert!(registry.fetch_config().unwrap_err().to_string().contains("10.5.0.0/33"));
    assert_eq!(registry.wait_for_config(&|| true), None);
    let asked = Cell::new(0);
    let interrupted = || asked.replace(asked.get() + 1) >= 10;
    let before = etcd.range_count().unwrap();
    assert_eq!(registry.wait_for_config(&interrupted), None);
    let tries = etcd.range_count().unwrap() - before;
    assert!(tries < 5, "{tries} tries: nobody asked between them");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| registry.wait_for_config(&|| false));
        etcd.put(&format!("{PREFIX}/config"), r#"{"network": "10.5.0.0/16"}"#).unwrap();
        assert_eq!(waiting.join().unwrap(), Some(conf()));
    });
}

#[test]
fn a_free_subnet_is_taken_for_a_day_with_the_value_of_stock_flannel() {
    let etcd = Etcd::start().unwrap();
    let (_, acquired) = acquire(&options(&etcd), "192.0.2.1", "");
    let net = acquired.own().subnets.v4.unwrap();
    assert_eq!(acquired.own().network, conf().network());
    assert!(u32::from(net.network()) >> 8 & 0xff <= 100, "{net} is not among the first hundred");
    let record = record(&etcd, &format!("{}-24", net.network()));
    assert_eq!(record.value, r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#);
    assert_ne!(record.lease, 0);
    let left = acquired.lease().expires.unwrap().duration_since(std::time::SystemTime::now()).unwrap();
    assert!(left > Duration::from_secs(86_000), "{left:?}");
}

#[test]
fn a_restarted_node_goes_on_with_its_lease_and_writes_nothing_if_nothing_is_new() {
    let etcd = Etcd::start().unwrap();
    acquire(&options(&etcd), "192.0.2.1", "10.5.9.0/24");
    let before = record(&etcd, "10.5.9.0-24");
    let (mut registry, acquired) = acquire(&options(&etcd), "192.0.2.1", "");
    assert_eq!(acquired.own().subnets, subnets("10.5.9.0/24"));
    assert_eq!(record(&etcd, "10.5.9.0-24"), before);
    let vxlan = LeaseAttrs { backend_type: "vxlan".into(), ..attrs("192.0.2.1") };
    let acquired = registry.acquire(&conf(), &vxlan, &Subnets::default()).unwrap();
    assert_eq!(acquired.own().subnets, subnets("10.5.9.0/24"));
    assert!(record(&etcd, "10.5.9.0-24").value.contains("vxlan"));
}

#[test]
fn a_short_lease_of_ours_gets_its_full_time() {
    let etcd = Etcd::start().unwrap();
    put_peer(&etcd, "10.5.7.0-24", "192.0.2.1");
    let before = record(&etcd, "10.5.7.0-24");
    acquire(&options(&etcd), "192.0.2.1", "");
    assert_ne!(record(&etcd, "10.5.7.0-24").lease, before.lease);
}

#[test]
fn the_previous_subnet_is_taken_again_unless_another_node_has_it() {
    let etcd = Etcd::start().unwrap();
    let (_, acquired) = acquire(&options(&etcd), "192.0.2.1", "10.5.200.0/24");
    assert_eq!(acquired.own().subnets, subnets("10.5.200.0/24"));
    let before = record(&etcd, "10.5.200.0-24");
    let (_, acquired) = acquire(&options(&etcd), "192.0.2.2", "10.5.200.0/24");
    assert_ne!(acquired.own().subnets, subnets("10.5.200.0/24"));
    assert_eq!(record(&etcd, "10.5.200.0-24"), before);
}

#[test]
fn our_lease_that_does_not_fit_the_config_any_more_is_deleted() {
    let etcd = Etcd::start().unwrap();
    put_peer(&etcd, "10.5.7.0-25", "192.0.2.1");
    put_peer(&etcd, "10.6.7.0-24", "192.0.2.2");
    let (_, acquired) = acquire(&options(&etcd), "192.0.2.1", "");
    assert_eq!(acquired.own().subnets.v4.unwrap().prefix_len(), 24);
    assert_eq!(etcd.get(&key("10.5.7.0-25")).unwrap(), None);
    assert!(etcd.get(&key("10.6.7.0-24")).unwrap().is_some());
}

#[test]
fn a_reservation_stays_permanent_and_is_gone_on_with() {
    let etcd = Etcd::start().unwrap();
    etcd.put(&key("10.5.44.0-24"), &write_value(&attrs("192.0.2.1"))).unwrap();
    etcd.put(&key("10.5.45.0-26"), &write_value(&attrs("192.0.2.2"))).unwrap();
    let before = record(&etcd, "10.5.44.0-24");
    let (registry, acquired) = acquire(&options(&etcd), "192.0.2.1", "10.5.9.0/24");
    assert_eq!((acquired.own().subnets, acquired.lease().expires), (subnets("10.5.44.0/24"), None));
    assert_eq!(record(&etcd, "10.5.44.0-24"), before);
    let watch = registry.watch(&conf(), acquired, || ());
    watch.publish(LeaseAttrs { backend_type: "host-gw".into(), ..attrs("192.0.2.1") });
    weft_lab::eventually(SOON, || {
        let record = record(&etcd, "10.5.44.0-24");
        anyhow::ensure!(record.value.contains("host-gw") && record.lease == 0, "{record:?}");
        Ok(())
    })
    .unwrap();
    // One that does not fit is the administrator's to clear away.
    acquire(&options(&etcd), "192.0.2.2", "");
    assert!(etcd.get(&key("10.5.45.0-26")).unwrap().is_some());
}

#[test]
fn nodes_that_race_for_few_subnets_get_one_each() {
    let etcd = Etcd::start().unwrap();
    // Seven subnets: 10.5.0.4 to 10.5.0.28 in /30, for seven nodes.
    let conf = NetConf::parse(r#"{"Network": "10.5.0.0/27", "SubnetLen": 30}"#).unwrap();
    let options = options(&etcd);
    let race = |index: usize| {
        let mut registry = Registry::connect(&options).unwrap();
        registry.acquire(&conf, &attrs(&format!("192.0.2.{index}")), &subnets("10.5.0.8/30"))
    };
    let all: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=7).map(|index| scope.spawn(move || race(index))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap().unwrap().own().subnets).collect()
    });
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 7, "{all:?}");
    let error = race(8).unwrap_err();
    assert!(matches!(error, EtcdError::NoSubnet(_)) && error.to_string().contains("out of subnets"), "{error}");
    assert_eq!(etcd.list(&key("")).unwrap().len(), 7);
}

#[test]
fn nodes_that_race_for_few_subnets_of_two_families_share_no_half() {
    let etcd = Etcd::start().unwrap();
    // Fifteen IPv4 subnets for seven nodes, and so many of IPv6 that the keys, which name the pair, hardly ever meet.
    let conf = NetConf::parse(
        r#"{"Network": "10.5.0.0/26", "SubnetLen": 30, "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}"#,
    )
    .unwrap();
    let options = options(&etcd);
    let race = |index: usize| {
        let mut registry = Registry::connect(&options).unwrap();
        let attrs =
            LeaseAttrs { public_ipv6: format!("2001:db8::{index}").parse().ok(), ..attrs(&format!("192.0.2.{index}")) };
        registry.acquire(&conf, &attrs, &Subnets::default())
    };
    let all: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=7).map(|index| scope.spawn(move || race(index))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap().unwrap().own().subnets).collect()
    });
    assert_eq!(all.iter().map(|subnets| subnets.v4).collect::<BTreeSet<_>>().len(), 7, "{all:?}");
    assert_eq!(all.iter().map(|subnets| subnets.v6).collect::<BTreeSet<_>>().len(), 7, "{all:?}");
    assert_eq!(etcd.list(&key("")).unwrap().len(), 7, "what was given back is gone");
}

#[test]
fn both_families_are_one_lease() {
    let etcd = Etcd::start().unwrap();
    let conf = NetConf::parse(
        r#"{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "SubnetMin": "10.5.255.0"}"#,
    )
    .unwrap();
    let both = LeaseAttrs { public_ipv6: Some("2001:db8::1".parse().unwrap()), ..attrs("192.0.2.1") };
    let acquired = Registry::connect(&options(&etcd)).unwrap().acquire(&conf, &both, &Subnets::default()).unwrap();
    let v6 = acquired.own().subnets.v6.unwrap();
    let record = record(&etcd, &format!("10.5.255.0-24&{}-64", v6.network()));
    assert_eq!(record.value, r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1"}"#);
}

#[test]
fn a_lease_of_ipv6_alone_stands_where_stock_flannel_does_not_look() {
    let etcd = Etcd::start().unwrap();
    let conf = NetConf::parse(
        r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "IPv6SubnetMax": "fd00:5:0:2::"}"#,
    )
    .unwrap();
    let attrs = |last: u16| LeaseAttrs {
        public_ipv6: Some(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last)),
        ..LeaseAttrs::default()
    };
    let acquire = |last: u16| {
        let mut registry = Registry::connect(&options(&etcd)).unwrap();
        registry.acquire(&conf, &attrs(last), &Subnets::default()).map(|acquired| acquired.own().subnets)
    };
    let first = acquire(1).unwrap();
    let second = acquire(2).unwrap();
    assert_ne!(first, second);
    assert_eq!(acquire(1).unwrap(), first);
    let directory = format!("{PREFIX}/ipv6-subnets/");
    let names: Vec<String> =
        etcd.list(&directory).unwrap().into_iter().map(|kv| kv.key[directory.len()..].to_owned()).collect();
    assert_eq!(names, ["fd00:5:0:1::-64", "fd00:5:0:2::-64"]);
    assert_eq!(etcd.list(&format!("{PREFIX}/subnets")).unwrap(), []);
    let value = etcd.list(&format!("{directory}{}", first.v6.unwrap().network())).unwrap().remove(0).value;
    assert_eq!(value, r#"{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1"}"#);
    let error = acquire(3).unwrap_err().to_string();
    assert!(error.contains("none of fd00:5::/48 in /64"), "{error}");
}

#[test]
fn a_thousand_leases_are_one_range_read() {
    let etcd = Etcd::start().unwrap();
    for index in 0..1000u32 {
        let name = format!("10.{}.{}.0-24", 6 + (index >> 8), index & 255);
        etcd.put(&key(&name), &write_value(&attrs("192.0.2.9"))).unwrap();
    }
    let wide = NetConf::parse(r#"{"Network": "10.0.0.0/8"}"#).unwrap();
    let mut registry = Registry::connect(&options(&etcd)).unwrap();
    let acquired = registry.acquire(&wide, &attrs("192.0.2.1"), &subnets("10.5.9.0/24")).unwrap();
    let before = etcd.range_count().unwrap();
    let watch = registry.watch(&wide, acquired, || ());
    assert_eq!(snapshot(&watch).len(), 1000);
    let ranges = etcd.range_count().unwrap() - before;
    assert!((1..10).contains(&ranges), "{ranges} range reads");
}
