use super::*;
use crate::flannel::record::write_value;
use proptest::prelude::*;
use std::net::Ipv6Addr;

const DIRECTORY: &str = "/p/subnets/";

fn attrs(public_ip: &str) -> LeaseAttrs {
    LeaseAttrs { public_ip: Some(public_ip.parse().unwrap()), ..LeaseAttrs::default() }
}

fn v4(net: &str) -> Subnets {
    Subnets { v4: Some(net.parse().unwrap()), v6: None }
}

fn peers(conf: &str) -> Peers {
    let conf = NetConf::parse(conf).unwrap();
    Peers::new(DIRECTORY.into(), &conf, v4("10.5.9.0/24"), attrs("192.0.2.1"), Duration::from_secs(60))
}

fn plain() -> Peers {
    peers(r#"{"Network": "10.5.0.0/16"}"#)
}

fn kv(name: &str, public_ip: &str, create_revision: i64) -> Kv {
    let (key, value) = (format!("{DIRECTORY}{name}").into_bytes(), write_value(&attrs(public_ip)).into_bytes());
    Kv { key, value, create_revision, mod_revision: create_revision, lease: 7 }
}

fn put(kv: Kv) -> Event {
    Event::of(kv, false)
}

fn delete(name: &str) -> Event {
    Event::of(kv(name, "192.0.2.2", 0), true)
}

fn nets(change: &Change) -> Vec<String> {
    let text = |event: &LeaseEvent| match event {
        LeaseEvent::Added(lease) => format!("+{}", lease.subnets.v4.unwrap()),
        LeaseEvent::Removed(subnets) => format!("-{}", subnets.v4.unwrap()),
        LeaseEvent::Snapshot(all) => {
            all.iter().map(|lease| lease.subnets.v4.unwrap().to_string()).collect::<Vec<_>>().join(" ")
        }
        event => panic!("{event:?}"),
    };
    change.events.iter().map(text).collect()
}

#[test]
fn an_older_record_that_is_far_too_wide_takes_nothing_from_the_nodes_inside_it() {
    let mut peers = plain();
    let wide = [("10.5.0.0-16", 1), ("0.0.0.0-0", 2), ("10.5.0.0-21", 3)];
    let mut all: Vec<Kv> = wide.iter().map(|(name, revision)| kv(name, "192.0.2.66", *revision)).collect();
    all.push(kv("10.5.1.0-24", "192.0.2.11", 10));
    all.push(kv("10.5.64.0-24", "192.0.2.12", 11));
    let change = peers.replace(all);
    assert_eq!(nets(&change), ["10.5.1.0/24 10.5.64.0/24"]);
    assert_eq!(change.complaints.len(), 3, "{change:?}");
}

#[test]
fn the_older_of_two_claims_counts_whichever_came_first_to_us() {
    let both = |first: (&str, i64), second: (&str, i64)| {
        let mut peers = plain();
        peers.replace(Vec::new());
        let mut events = nets(&peers.apply(vec![put(kv(first.0, "192.0.2.11", first.1))]));
        events.extend(nets(&peers.apply(vec![put(kv(second.0, "192.0.2.12", second.1))])));
        events
    };
    assert_eq!(both(("10.5.1.0-24", 3), ("10.5.1.0-24&fd00::-64", 4)), ["+10.5.1.0/24"]);
    let mut peers = plain();
    peers.replace(vec![kv("10.5.1.0-24", "192.0.2.11", 4)]);
    let change = peers.apply(vec![put(kv("10.5.1.0-24&fd00::-64", "192.0.2.12", 3))]);
    assert_eq!(peers.told[&v4("10.5.1.0/24")].attrs, attrs("192.0.2.12"), "{change:?}");
}

#[test]
fn a_node_without_ipv6_passes_over_that_half_and_a_dual_node_keeps_it() {
    let name = "10.5.1.0-24&fd00:5:0:1::-64";
    let change = plain().replace(vec![kv(name, "192.0.2.11", 3)]);
    let LeaseEvent::Snapshot(all) = &change.events[0] else { panic!("{change:?}") };
    assert_eq!(all[0].subnets, v4("10.5.1.0/24"));
    let dual = r#"{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}"#;
    let change = peers(dual).replace(vec![kv(name, "192.0.2.11", 3), kv("10.5.2.0-24&fd00:6::-64", "192.0.2.12", 4)]);
    let LeaseEvent::Snapshot(all) = &change.events[0] else { panic!("{change:?}") };
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].subnets.v6, Some("fd00:5:0:1::/64".parse().unwrap()));
}

#[test]
fn a_complaint_is_news_once_and_again_only_if_it_is_another() {
    let mut peers = plain();
    peers.replace(Vec::new());
    let broken = || put(Kv { value: b"{".to_vec(), ..kv("10.5.1.0-24", "192.0.2.11", 3) });
    assert_eq!(peers.apply(vec![broken()]).complaints.len(), 1);
    assert_eq!(peers.apply(vec![broken()]), Change::default());
    let loopback = put(kv("10.5.1.0-24", "127.0.0.1", 3));
    assert_eq!(peers.apply(vec![loopback]).complaints.len(), 1);
    assert_eq!(nets(&peers.apply(vec![put(kv("10.5.1.0-24", "192.0.2.11", 3))])), ["+10.5.1.0/24"]);
    assert_eq!(peers.apply(vec![broken()]).complaints.len(), 1);
}

#[test]
fn the_same_list_again_is_the_same_snapshot() {
    let mut peers = plain();
    let all = || vec![kv("10.5.1.0-24", "192.0.2.11", 3), kv("10.5.2.0-24", "192.0.2.12", 4)];
    let first = peers.replace(all());
    assert_eq!(peers.replace(all()), first);
    let change = peers.replace(vec![kv("10.5.1.0-24", "192.0.2.99", 3)]);
    let LeaseEvent::Snapshot(all) = &change.events[0] else { panic!("{change:?}") };
    assert_eq!(all[0].attrs, attrs("192.0.2.99"));
}

proptest! {
    #[test]
    fn events_lead_to_what_a_list_would_say(
        steps in prop::collection::vec((0usize..6, 0u8..4, any::<bool>()), 0..40),
    ) {
        let names = ["10.5.1.0-24", "10.5.1.0-25", "10.5.2.0-24", "10.5.0.0-22", "10.5.9.0-24", "10.5.9.0-25"];
        let mut followed = plain();
        followed.replace(Vec::new());
        let mut told: BTreeMap<Subnets, LeaseAttrs> = BTreeMap::new();
        let mut stored: BTreeMap<&str, Kv> = BTreeMap::new();
        for (revision, (index, host, is_put)) in steps.into_iter().enumerate() {
            let name = names[index];
            let event = if is_put {
                let created = stored.get(name).map_or(revision as i64 + 1, |kv| kv.create_revision);
                // 192.0.2.1 is our own.
                let record = kv(name, &format!("192.0.2.{}", 1 + host), created);
                stored.insert(name, record.clone());
                put(record)
            } else {
                stored.remove(name);
                delete(name)
            };
            for event in followed.apply(vec![event]).events {
                match event {
                    LeaseEvent::Added(lease) => { told.insert(lease.subnets, lease.attrs); }
                    LeaseEvent::Removed(subnets) => { prop_assert!(told.remove(&subnets).is_some()); }
                    event => panic!("{event:?}"),
                }
            }
            let change = plain().replace(stored.values().cloned().collect());
            let LeaseEvent::Snapshot(listed) = &change.events[0] else { panic!("{change:?}") };
            let listed: BTreeMap<Subnets, LeaseAttrs> =
                listed.iter().map(|lease| (lease.subnets, lease.attrs.clone())).collect();
            prop_assert_eq!(&told, &listed);
        }
    }
}

#[test]
fn a_network_of_ipv6_alone_has_peers_of_ipv6_alone() {
    let conf = NetConf::parse(r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd05::/48"}"#).unwrap();
    let own = Subnets { v4: None, v6: Some("fd05:0:0:9::/64".parse().unwrap()) };
    let attrs_v6 = |last: u16| LeaseAttrs {
        public_ipv6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last)),
        ..LeaseAttrs::default()
    };
    let mut peers = Peers::new(DIRECTORY.into(), &conf, own, attrs_v6(9), Duration::from_secs(60));
    let kv_v6 = |name: &str, last: u16, revision: i64| Kv {
        value: write_value(&attrs_v6(last)).into_bytes(),
        ..kv(name, "192.0.2.2", revision)
    };
    let change = peers.replace(vec![
        kv_v6("fd05::-48", 1, 1),
        kv_v6("fd05:0:0:1::-63", 1, 2),
        kv_v6("fd05:0:0:1::-64", 2, 3),
        kv_v6("fd05:0:0:2::-64", 9, 4),
        kv_v6("fd06:0:0:2::-64", 3, 5),
        kv_v6("10.5.1.0-24&fd05:0:0:3::-64", 4, 6),
        kv_v6("fd05:0:0:9::-64", 9, 7),
        kv("10.5.1.0-24", "192.0.2.5", 8),
    ]);
    let [LeaseEvent::Snapshot(found)] = change.events.as_slice() else { panic!("{change:?}") };
    let found: Vec<String> = found.iter().map(|lease| lease.subnets.v6.unwrap().to_string()).collect();
    assert_eq!(found, ["fd05:0:0:1::/64"]);
    // All but the good one and our own, one sentence each.
    assert_eq!(change.complaints.len(), 6, "{change:?}");
    let mut plain = plain();
    let change = plain.replace(vec![kv("fd05:0:0:1::-64", "192.0.2.7", 1)]);
    assert!(change.complaints[0].contains("IPv6 alone"), "{change:?}");
}
