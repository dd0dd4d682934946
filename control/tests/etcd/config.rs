//! The network config's key while a daemon runs: told when it means something else, and never in the way of the leases.

use crate::*;
use weft_lab::eventually;

const SAME: &str = r#"{"Network": "10.5.0.0/16"}"#;
const WIDER: &str = r#"{"Network": "10.4.0.0/15"}"#;
const OTHER_PORT: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "Port": 9999}}"#;

fn config_key() -> String {
    format!("{PREFIX}/config")
}

fn put_config(etcd: &Etcd, text: &str) {
    etcd.put(&config_key(), text).unwrap();
}

fn config_within(watch: &Watch, limit: Duration) -> Option<Result<NetConf, String>> {
    let deadline = Instant::now() + limit;
    loop {
        match watch.events().recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(LeaseEvent::Config(seen)) => return Some(seen),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

fn config(watch: &Watch) -> Result<NetConf, String> {
    config_within(watch, SOON).expect("news of the network config")
}

fn parsed(text: &str) -> Result<NetConf, String> {
    Ok(NetConf::parse(text).unwrap())
}

/// A node, with the network config in etcd that it works by.
fn configured(etcd: &Etcd, options: &EtcdOptions) -> Watch {
    put_config(etcd, SAME);
    node(etcd, options).0
}

#[test]
fn each_change_of_meaning_is_told_once_and_soon() {
    let etcd = Etcd::start().unwrap();
    let watch = configured(&etcd, &EtcdOptions { heartbeat: Duration::from_secs(60), ..options(&etcd) });
    for same in [SAME, r#"{  "subnetlen": 24, "NETWORK": "10.5.0.0/16" }"#, r#"{"Network":"10.5.3.0/16","Remark":1}"#] {
        put_config(&etcd, same);
        assert_eq!(config_within(&watch, QUIET), None, "{same}");
    }
    let begun = Instant::now();
    put_config(&etcd, OTHER_PORT);
    assert_eq!(config(&watch), parsed(OTHER_PORT));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    for (bad, why) in [
        ("{", "is no JSON object"),
        (r#"{"Network": "10.5.0.0/33"}"#, "Network is \"10.5.0.0/33\""),
        (r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "Port": 70000}}"#, "Backend.Port is 70000"),
        (r#"{"Network": "10.5.0.0/16", "SubnetLen": 31}"#, "SubnetLen is 31"),
    ] {
        put_config(&etcd, bad);
        let said = config(&watch).unwrap_err();
        assert!(said.contains(why) && said.contains(&config_key()), "{bad}: {said}");
        put_config(&etcd, bad);
        assert_eq!(config_within(&watch, QUIET), None);
    }
    etcd.delete(&config_key()).unwrap();
    let said = config(&watch).unwrap_err();
    assert!(said.contains("etcd has no network config at /weft/network/config"), "{said}");
    etcd.put_bytes(config_key().as_bytes(), &[0xff], 0).unwrap();
    assert!(config(&watch).unwrap_err().contains("not UTF-8"));
    put_config(&etcd, SAME);
    assert_eq!(config(&watch), parsed(SAME));
    // Leases are told as before.
    put_peer(&etcd, "10.5.2.0-24", "192.0.2.12");
    assert_added(&watch, "10.5.2.0/24", "192.0.2.12");
}

#[test]
fn a_change_before_the_watch_began_is_told() {
    let etcd = Etcd::start().unwrap();
    put_config(&etcd, SAME);
    let (registry, acquired) = acquire(&options(&etcd), "192.0.2.1", "");
    put_config(&etcd, WIDER);
    let watch = registry.watch(&conf(), acquired, || ());
    assert_eq!(config(&watch), parsed(WIDER));
}

#[test]
fn etcd_away_is_no_news_and_what_changed_meanwhile_is() {
    let mut etcd = Etcd::start().unwrap();
    let watch = configured(&etcd, &options(&etcd));
    etcd.stop().unwrap();
    assert_eq!(config_within(&watch, Duration::from_secs(3)), None);
    etcd.start_again().unwrap();
    put_config(&etcd, OTHER_PORT);
    assert_eq!(config(&watch), parsed(OTHER_PORT));
    // Back again with others' changes between, all of which the stream brings once more after it breaks.
    put_config(&etcd, SAME);
    assert_eq!(config(&watch), parsed(SAME));
    etcd.stop().unwrap();
    etcd.start_again().unwrap();
    assert_eq!(config_within(&watch, Duration::from_secs(3)), None);
}

#[test]
fn a_change_that_was_compacted_is_found_by_the_next_list() {
    let mut etcd = Etcd::start().unwrap();
    let watch = configured(&etcd, &EtcdOptions { heartbeat: Duration::from_secs(60), ..options(&etcd) });
    // No stream sees this: it is made and compacted while the watcher waits to come back.
    etcd.stop().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    etcd.start_again().unwrap();
    put_config(&etcd, WIDER);
    etcd.put("/elsewhere", "").unwrap();
    etcd.compact().unwrap();
    assert_eq!(config(&watch), parsed(WIDER));
}

#[test]
fn a_wiped_etcd_has_no_config_and_a_new_one_counts() {
    let mut etcd = Etcd::start().unwrap();
    for _ in 0..10 {
        etcd.put("/elsewhere", "").unwrap();
    }
    let watch = configured(&etcd, &options(&etcd));
    etcd.wipe().unwrap();
    assert!(config(&watch).unwrap_err().contains("no network config"));
    put_config(&etcd, OTHER_PORT);
    assert_eq!(config(&watch), parsed(OTHER_PORT));
}

#[test]
fn who_may_not_read_the_config_any_more_has_the_leases_all_the_same() {
    let mut etcd = Etcd::start().unwrap();
    put_config(&etcd, SAME);
    // Rights on leases alone: as if the right to read the config had been taken away behind the start.
    etcd.add_user("lessee", "l", &key(""), true).unwrap();
    etcd.enable_auth().unwrap();
    let credentials = (Some("lessee".to_owned()), Some("l".to_owned()));
    let options = EtcdOptions { username: credentials.0, password: credentials.1, ..options(&etcd) };
    let (watch, _) = node(&etcd, &options);
    put_peer(&etcd, "10.5.2.0-24", "192.0.2.12");
    assert_added(&watch, "10.5.2.0/24", "192.0.2.12");
    put_config(&etcd, WIDER);
    assert_eq!(config_within(&watch, QUIET), None);
    eventually(SOON, || {
        etcd.delete(&key("10.5.9.0-24"))?;
        anyhow::ensure!(renewed(&watch).subnets == subnets("10.5.9.0/24"));
        Ok(())
    })
    .unwrap();
}
