//! Records that cannot be used, each of which concerns itself alone.

use crate::*;

const BAD: &str = "/weft/bad";
const GOOD: &str = r#"{"PublicIP":"192.0.2.40","PublicIPv6":null}"#;

fn bad_key(name: &str) -> String {
    format!("{BAD}/subnets/{name}")
}

/// Names and values; all are younger than the good records, 10.5.1.0/24 and 10.5.2.0/24, and ours is 10.5.9.0/24.
fn bad_records() -> Vec<(Vec<u8>, Vec<u8>)> {
    let bad_names = [
        "",
        "config",
        "10",
        "10.5.100.0",
        "10.5.100-24",
        "10.5.100.300-24",
        "10.5.100.0-24hi",
        "10.5.100.0-33",
        "10.5.100.0-32",
        "10.5.100.0--24",
        "10.5.100.0-+24",
        "10.5.100.0/24",
        "10.5.100.7-24",
        " 10.5.100.0-24",
        "a/10.5.100.0-24",
        "10.5.100.0-24/",
        "&fd00::-64",
        "fd00::-64",
        "10.5.100.0-24&",
        "10.5.100.0-24&:12:13:-56",
        "10.5.100.0-24&20011::-56",
        "10.5.100.0-24&2001::",
        "10.5.100.0-24&2001::-128",
        "10.5.100.0-24&FD00::-64",
        // Good keys for records that cannot be peers whatever they say.
        "10.6.100.0-24",
        "0.0.0.0-0",
        "10.0.0.0-8",
        "10.5.0.0-16",
        "10.5.1.0-25",
        "10.5.0.0-22",
        "10.5.1.0-24&fd00::-64",
        "10.5.9.0-25",
        "10.5.9.0-24&fd00::-64",
        "10.5.8.0-23",
    ];
    let bad_values = [
        "",
        " ",
        "{",
        "[]",
        "null",
        "7",
        "\"192.0.2.40\"",
        "{}",
        "{}{}",
        r#"{"PublicIP":null}"#,
        r#"{"PublicIP":""}"#,
        r#"{"PublicIP":3221225985}"#,
        r#"{"PublicIP":["192.0.2.40"]}"#,
        r#"{"PublicIP":{"IP":"192.0.2.40"}}"#,
        r#"{"PublicIP":"192.0.2"}"#,
        r#"{"PublicIP":"192.0.2.40 "}"#,
        r#"{"PublicIP":"192.0.2.40/24"}"#,
        r#"{"PublicIP":"192.0.2.040"}"#,
        r#"{"PublicIP":"2001:db8::1"}"#,
        r#"{"PublicIP":"0.0.0.0"}"#,
        r#"{"PublicIP":"127.0.0.1"}"#,
        r#"{"PublicIP":"224.0.0.1"}"#,
        r#"{"PublicIP":"255.255.255.255"}"#,
        r#"{"PublicIP":"192.0.2.40","PublicIPv6":"192.0.2.40"}"#,
        r#"{"PublicIP":"192.0.2.40","PublicIPv6":7}"#,
        r#"{"PublicIP":"192.0.2.40","PublicIPv6":"::1"}"#,
        r#"{"PublicIPv6":"ff02::1"}"#,
        r#"{"PublicIP":"192.0.2.40","BackendType":7}"#,
        r#"{"PublicIP":"192.0.2.40","BackendType":{}}"#,
        r#"{"PublicIP":"192.0.2.40","BackendData":{"VNI":1}"#,
        // Ours.
        r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#,
    ];
    let mut all: Vec<(Vec<u8>, Vec<u8>)> =
        bad_names.iter().map(|name| (name.as_bytes().to_vec(), GOOD.as_bytes().to_vec())).collect();
    let mut add = |value: &[u8]| {
        let name = format!("10.5.{}.0-24", 101 + all.len());
        all.push((name.into_bytes(), value.to_vec()));
    };
    for value in bad_values {
        add(value.as_bytes());
    }
    add(b"{\"PublicIP\":\"\xff\"}");
    add(&[0; 300]);
    add(format!("{{\"PublicIP\":\"192.0.2.40\",\"BackendData\":\"{}\"}}", "x".repeat(1 << 20)).as_bytes());
    add(format!("{{\"PublicIP\":\"192.0.2.40\",\"BackendData\":{}{}}}", "[".repeat(9000), "]".repeat(9000)).as_bytes());
    all.push((b"10.5.100.0-24\xff".to_vec(), GOOD.as_bytes().to_vec()));
    all.push((vec![b'9'; 4000], GOOD.as_bytes().to_vec()));
    all
}

fn put(etcd: &Etcd, name: &[u8], value: &[u8]) {
    etcd.put_bytes(&[bad_key("").as_bytes(), name].concat(), value, 0).unwrap();
}

#[test]
fn no_bad_record_touches_a_good_one() {
    logged();
    let mut etcd = Etcd::start().unwrap();
    let options = EtcdOptions { prefix: BAD.into(), ..options(&etcd) };
    put(&etcd, b"10.5.1.0-24", br#"{"PublicIP":"192.0.2.11","PublicIPv6":null}"#);
    put(&etcd, b"10.5.2.0-24", br#"{"PublicIP":"192.0.2.12","PublicIPv6":null}"#);
    let (registry, acquired) = acquire(&options, "192.0.2.1", "10.5.9.0/24");
    let watch = registry.watch(&conf(), acquired, || ());
    assert_eq!(nets(&snapshot(&watch)), ["10.5.1.0/24", "10.5.2.0/24"]);

    // As events: written, written again, and none of them says anything.
    let bad = bad_records();
    assert!(bad.len() >= 40, "{}", bad.len());
    for _ in 0..2 {
        for (name, value) in &bad {
            put(&etcd, name, value);
        }
    }
    put(&etcd, b"10.5.3.0-24", br#"{"PublicIP":"192.0.2.13","PublicIPv6":null}"#);
    assert_added(&watch, "10.5.3.0/24", "192.0.2.13");
    // Each is named in the log, once.
    let log = logged();
    let complaints: Vec<&str> = log.lines().filter(|line| line.contains("is passed over")).collect();
    let complaints: Vec<&&str> = complaints.iter().filter(|line| line.contains(BAD)).collect();
    assert_eq!(complaints.len(), bad.len(), "{complaints:#?}");

    // In a list: of a node that starts, and of one that has to list again.
    let mut second = Registry::connect(&options).unwrap();
    let second_own = second.acquire(&conf(), &attrs("192.0.2.99"), &subnets("10.5.99.0/24")).unwrap();
    assert_eq!(second_own.own().subnets, subnets("10.5.99.0/24"));
    let second = second.watch(&conf(), second_own, || ());
    let all = ["10.5.1.0/24", "10.5.2.0/24", "10.5.3.0/24", "10.5.9.0/24"];
    let found = nets(&snapshot(&second));
    assert!(all.iter().all(|net| found.contains(&(*net).to_owned())), "{found:?}");
    assert_added(&watch, "10.5.99.0/24", "192.0.2.99");
    etcd.stop().unwrap();
    etcd.with_other_client_address(|etcd| {
        etcd.put(&bad_key("10.5.4.0-24"), r#"{"PublicIP":"192.0.2.14"}"#)?;
        etcd.put("/elsewhere", "")?;
        etcd.compact()
    })
    .unwrap();
    etcd.start_again().unwrap();
    let found = nets(&snapshot(&watch));
    assert_eq!(found, ["10.5.1.0/24", "10.5.2.0/24", "10.5.3.0/24", "10.5.4.0/24", "10.5.99.0/24"]);

    // Their going says nothing either, and a claim that they stood in the way of counts then.
    for record in etcd.list(&bad_key("")).unwrap() {
        let name = record.key.strip_prefix(&bad_key("")).unwrap().to_owned();
        let is_good = ["10.5.1.0-24", "10.5.2.0-24", "10.5.3.0-24", "10.5.4.0-24", "10.5.9.0-24", "10.5.99.0-24"];
        if !is_good.contains(&name.as_str()) {
            etcd.delete(&record.key).unwrap();
        }
    }
    assert_quiet(&watch);
}

#[test]
fn a_younger_claim_counts_once_the_older_one_is_gone() {
    let etcd = Etcd::start().unwrap();
    let (watch, _) = node(&etcd, &options(&etcd));
    put_peer(&etcd, "10.5.4.0-24", "192.0.2.14");
    assert_added(&watch, "10.5.4.0/24", "192.0.2.14");
    put_peer(&etcd, "10.5.4.0-25", "192.0.2.15");
    assert_quiet(&watch);
    etcd.delete(&key("10.5.4.0-24")).unwrap();
    assert_eq!(next(&watch), LeaseEvent::Removed(subnets("10.5.4.0/24")));
    assert_added(&watch, "10.5.4.0/25", "192.0.2.15");
}

#[test]
fn a_mended_record_is_a_peer_and_a_broken_one_is_none() {
    let etcd = Etcd::start().unwrap();
    let (watch, _) = node(&etcd, &options(&etcd));
    etcd.put(&key("10.5.4.0-24"), "{").unwrap();
    assert_quiet(&watch);
    put_peer(&etcd, "10.5.4.0-24", "192.0.2.14");
    assert_added(&watch, "10.5.4.0/24", "192.0.2.14");
    etcd.put(&key("10.5.4.0-24"), "{").unwrap();
    assert_eq!(next(&watch), LeaseEvent::Removed(subnets("10.5.4.0/24")));
}
