//! The network config changes while daemons run: said, not taken up, and traffic goes on; a network without us ends the
//! daemon.

use super::faults::{Joined, addresses};
use super::*;

const CONFIG: &str = r#"{"Network": "10.5.0.0/16"}"#;

fn put(cluster: &Cluster, text: &str) -> Result<()> {
    cluster.etcd.put(&format!("{PREFIX}/config"), text)
}

/// Two hosts that have joined, with their pods.
fn joined(config: &str, flags: &[&str]) -> Result<Option<Joined>> {
    let Some(cluster) = Cluster::new(2, config)? else { return Ok(None) };
    let mut daemons = vec![cluster.start(1, flags)?, cluster.start(2, flags)?];
    for daemon in &mut daemons {
        daemon.joined()?;
    }
    let pods = cluster.pods(&daemons)?;
    Ok(Some((cluster, daemons, pods)))
}

#[test]
fn what_a_config_says_by_now_is_told_and_changes_nothing() -> Result<()> {
    let Some((cluster, mut daemons, pods)) = joined(CONFIG, &["--network-grace=60"])? else { return Ok(()) };
    let files: Vec<String> =
        daemons.iter().map(|daemon| fs::read_to_string(&daemon.subnet_file)).collect::<Result<_, _>>()?;
    lossless(&pods, addresses(&daemons)?, || {
        let all_say = |text: &str| daemons.iter().try_for_each(|daemon| daemon.says(text).map(drop));
        // The same, written otherwise; what follows shows that it was seen.
        put(&cluster, r#"{  "backend": {"Port": 8285, "type": "UDP"}, "NETWORK": "10.5.0.0/16", "SubnetLen": 24 }"#)?;
        put(&cluster, r#"{"Network": "10.4.0.0/15", "Backend": {"Type": "udp", "Port": 9999}}"#)?;
        all_say("the network config has changed: Network from 10.5.0.0/16 to 10.4.0.0/15, SubnetMin from 10.5.1.0 to")?;
        all_say(
            "Backend.Port from 8285 to 9999; this daemon goes on as it is, and takes it up when it is started again",
        )?;
        all_say("until then it does not reach nodes that were started since")?;
        put(&cluster, r#"{"Network": "10.5.0.0/16", "SubnetLen": 26, "Backend": {"Type": "wireguard"}}"#)?;
        all_say("SubnetLen from 24 to 26")?;
        all_say("Backend.Type from udp to wireguard")?;
        all_say("this flanneld has no backend wireguard")?;
        put(&cluster, r#"{"Network": "10.5.0.0/16", "SubnetLen": 26}"#)?;
        all_say("(with another subnet: ours does not fit it)")?;
        put(&cluster, r#"{"Network": "10.5.0.0/16""#)?;
        all_say("it is no JSON object: EOF while parsing an object at line 1 column 25")?;
        put(&cluster, r#"{"Network": "10.5.0.0"}"#)?;
        all_say(r#"Network is "10.5.0.0"; expected a prefix such as"#)?;
        cluster.etcd.delete(&format!("{PREFIX}/config"))?;
        all_say("etcd has no network config at /coreos.com/network/config")?;
        // A slip of the pen that would cost all pods their addresses, and is put right in time.
        put(&cluster, r#"{"Network": "10.50.0.0/16"}"#)?;
        all_say("is outside of the network 10.50.0.0/16: unless it is changed back, this daemon ends in")?;
        put(&cluster, CONFIG)?;
        all_say("the network config is as it was at the start again")?;
        all_say("our subnet is inside the network again; this daemon goes on")
    })?;
    for (daemon, before) in daemons.iter_mut().zip(files) {
        let log = daemon.process.log();
        assert_eq!(log.matches("the network config has changed").count(), 4, "{log}");
        assert_eq!(fs::read_to_string(&daemon.subnet_file)?, before);
        daemon.end()?;
    }
    Ok(())
}

#[test]
fn a_changed_config_is_told_after_etcd_was_away_and_by_itself_that_is_no_news() -> Result<()> {
    let Some((mut cluster, daemons, pods)) = joined(CONFIG, &[])? else { return Ok(()) };
    let addresses = addresses(&daemons)?;
    let etcd = std::cell::RefCell::new(&mut cluster.etcd);
    lossless(&pods, addresses, || {
        let mut etcd = etcd.borrow_mut();
        etcd.stop()?;
        etcd.start_again()?;
        std::thread::sleep(Duration::from_secs(2));
        for daemon in &daemons {
            let log = daemon.process.log();
            ensure!(!log.contains("the network config is") && !log.contains("network config has"), "{log}");
        }
        etcd.stop()?;
        etcd.start_again()?;
        etcd.put(&format!("{PREFIX}/config"), r#"{"Network": "10.5.0.0/16", "EnableNFTables": true}"#)?;
        etcd.put("/elsewhere", "")?;
        etcd.compact()?;
        daemons.iter().try_for_each(|daemon| daemon.says("EnableNFTables from false to true").map(drop))
    })
}

/// With this backend, a network that all subnets are outside of: the daemons end with code 1, traffic goes on until they are
/// started again, and then there are new subnets.
fn moves_with(backend: &str) -> Result<()> {
    let config = |network: &str| format!(r#"{{"Network": "{network}", "Backend": {{"Type": "{backend}"}}}}"#);
    let Some((cluster, mut daemons, pods)) = joined(&config("10.5.0.0/16"), &[])? else { return Ok(()) };
    let addresses = addresses(&daemons)?;
    let keys = [daemons[0].key()?, daemons[1].key()?];
    lossless(&pods, addresses, || {
        put(&cluster, &config("10.77.0.0/16"))?;
        for daemon in &mut daemons {
            let status = daemon.process.wait(TIMEOUT)?;
            ensure!(status.code() == Some(1), "{status}");
            let log = daemon.process.log();
            let said = "is outside of the network 10.77.0.0/16; lease, rules and data path stay as they are";
            ensure!(log.contains(said), "{log}");
        }
        // What goes with a daemon goes at once or a little later.
        std::thread::sleep(Duration::from_secs(2));
        Ok(())
    })?;
    for key in &keys {
        ensure!(cluster.etcd.get(key)?.is_some(), "{key} went with its daemon");
    }
    drop(pods);
    for (number, daemon) in (1..).zip(&mut daemons) {
        *daemon = cluster.start(number, &[])?;
        daemon.joined()?;
        ensure!(daemon.env("FLANNEL_NETWORK")? == "10.77.0.0/16", "{}", daemon.process.log());
    }
    for key in &keys {
        ensure!(cluster.etcd.get(key)?.is_none(), "{key} is still there");
    }
    cluster.pods(&daemons)?;
    Ok(())
}

#[test]
fn a_network_without_us_ends_the_daemon_and_not_the_traffic_udp() -> Result<()> {
    moves_with("udp")
}

#[test]
fn a_network_without_us_ends_the_daemon_and_not_the_traffic_vxlan() -> Result<()> {
    moves_with("vxlan")
}

#[test]
fn a_network_without_us_ends_the_daemon_and_not_the_traffic_host_gw() -> Result<()> {
    moves_with("host-gw")
}
