//! What happens to etcd, and what that does to traffic: nothing.

use super::*;

/// Nodes choose among subnets that no record of these tests claims.
const CONFIG: &str = r#"{"Network": "10.5.0.0/16", "SubnetMin": "10.5.100.0", "SubnetMax": "10.5.199.0"}"#;

/// A cluster with its daemons and their pods.
pub(super) type Joined = (Cluster, Vec<Daemon>, Vec<Pod>);

/// Two joined hosts with pods, and a third host for whoever comes later.
fn joined() -> Result<Option<Joined>> {
    let Some(cluster) = Cluster::new(3, CONFIG)? else { return Ok(None) };
    let mut daemons = vec![cluster.start(1, &[])?, cluster.start(2, &[])?];
    for daemon in &mut daemons {
        daemon.joined()?;
    }
    let pods = cluster.pods(&daemons)?;
    Ok(Some((cluster, daemons, pods)))
}

pub(super) fn addresses(daemons: &[Daemon]) -> Result<[Ipv4Addr; 2]> {
    Ok([daemons[0].pod()?, daemons[1].pod()?])
}

/// A third host joins, and both pods reach its pod.
fn another_joins(cluster: &Cluster, pods: &[Pod]) -> Result<(Daemon, Pod)> {
    let mut third = cluster.start(3, &[])?;
    third.joined()?;
    let pod = cluster.pod(3, &third)?;
    for other in pods {
        eventually(TIMEOUT, || ping(&other.node, &Ping::quick(third.pod()?.into()))?.reply())?;
    }
    Ok((third, pod))
}

#[test]
fn etcd_stopped_paused_and_compacted_is_not_noticed_by_traffic() -> Result<()> {
    let Some((mut cluster, daemons, pods)) = joined()? else { return Ok(()) };
    let addresses = addresses(&daemons)?;
    let count = |log: &str| log.matches("table:").count();
    let tables: Vec<usize> = daemons.iter().map(|daemon| count(&daemon.process.log())).collect();
    let etcd = std::cell::RefCell::new(&mut cluster.etcd);
    let work = || -> Result<()> {
        let mut etcd = etcd.borrow_mut();
        etcd.stop()?;
        std::thread::sleep(Duration::from_secs(3));
        etcd.start_again()?;
        etcd.pause()?;
        std::thread::sleep(Duration::from_secs(3));
        etcd.unpause()?;
        for number in 0..5 {
            etcd.put("/elsewhere", &number.to_string())?;
        }
        etcd.compact()?;
        etcd.stop()?;
        etcd.start_again()
    };
    lossless(&pods, addresses, work)?;
    for (daemon, before) in daemons.iter().zip(tables) {
        assert_eq!(count(&daemon.process.log()), before, "{}", daemon.process.log());
    }
    another_joins(&cluster, &pods)?;
    Ok(())
}

#[test]
fn a_wiped_etcd_gets_its_records_back_and_nothing_is_lost() -> Result<()> {
    let Some((mut cluster, daemons, pods)) = joined()? else { return Ok(()) };
    let addresses = addresses(&daemons)?;
    let etcd = std::cell::RefCell::new(&mut cluster.etcd);
    let keys = [daemons[0].key()?, daemons[1].key()?];
    let others: Vec<&Weft> = cluster.hosts.iter().collect();
    lossless(&pods, addresses, || {
        let mut etcd = etcd.borrow_mut();
        etcd.wipe()?;
        etcd.put(&format!("{PREFIX}/config"), CONFIG)?;
        for key in &keys {
            eventually(TIMEOUT, || etcd.get(key)?.with_context(|| format!("no {key}")))?;
        }
        // Two heartbeats later everybody has written anew, and lists are made again.
        let mut third = Daemon::start(others[2], &etcd.url(), "subnet.env", &[])?;
        third.joined()?;
        for host in &others[..2] {
            eventually(Duration::from_secs(90), || {
                let answer = host.client("flannel")?.get(third.pod()?.into())?;
                answer.route.with_context(|| format!("{} has no route to the third", host.node.name()))
            })?;
        }
        Ok(())
    })
}

#[test]
fn deleted_and_expired_leases_are_had_again_and_nothing_is_lost() -> Result<()> {
    let Some((cluster, daemons, pods)) = joined()? else { return Ok(()) };
    let etcd = &cluster.etcd;
    let back = |key: &str| eventually(TIMEOUT, || etcd.get(key)?.with_context(|| format!("no {key}")));
    lossless(&pods, addresses(&daemons)?, || {
        for daemon in &daemons {
            let key = daemon.key()?;
            etcd.delete(&key)?;
            let record = back(&key)?;
            ensure!(record.lease != 0, "a record without a lease");
            // What etcd does when the lease's time is over.
            etcd.revoke(record.lease)?;
            back(&key)?;
        }
        // All at once, as `etcdctl del --prefix` does it.
        for daemon in &daemons {
            etcd.delete(&daemon.key()?)?;
        }
        for daemon in &daemons {
            back(&daemon.key()?)?;
        }
        Ok(())
    })?;
    another_joins(&cluster, &pods)?;
    Ok(())
}

#[test]
fn bad_records_concern_themselves_alone() -> Result<()> {
    let Some((cluster, daemons, pods)) = joined()? else { return Ok(()) };
    let good = r#"{"PublicIP":"192.0.2.77","PublicIPv6":null}"#;
    let keys = [
        "10.5.300.0-24",
        "10.5.40.0-33",
        "10.5.40.0-32",
        "10.5.40.0",
        "10.5.40.0-",
        "-24",
        "x",
        "10.5.40.0/24",
        "10.5.40.1-24",
        "10.5.40.0-24-24",
        "10.5.40.0-0",
        "010.5.40.0-24",
        "10.5.40.0-24&",
        "10.5.40.0-24&fd05::-200",
        "10.6.40.0-24",
        "10.5.40.0-024",
        " 10.5.40.0-24",
        "10.5.40.0-24 ",
        "fd05::-64",
        "10.5.40-24",
        "0.0.0.0-0",
    ];
    let values = [
        "",
        "null",
        "[]",
        "{}",
        "{",
        "7",
        "\"x\"",
        r#"{"PublicIP":7}"#,
        r#"{"PublicIP":"x"}"#,
        r#"{"PublicIP":""}"#,
        r#"{"PublicIP":"0.0.0.0"}"#,
        r#"{"PublicIP":"255.255.255.255"}"#,
        r#"{"PublicIP":"224.0.0.1"}"#,
        r#"{"PublicIP":"127.0.0.1"}"#,
        r#"{"PublicIP":"240.0.0.1"}"#,
        r#"{"PublicIP":"192.0.2.1"}"#,
        r#"{"PublicIP":"192.0.2.300"}"#,
        r#"{"PublicIP":["192.0.2.7"]}"#,
        r#"{"PublicIP":null}"#,
        r#"{"PublicIPv6":"fd::1"}"#,
        r#"{"PublicIP":"192.0.2.77","BackendType":7}"#,
        "\u{0}\u{1}",
        r#"{"PublicIP":"192.0.2.77"}}"#,
    ];
    ensure!(keys.len() + values.len() >= 40);
    let etcd = &cluster.etcd;
    lossless(&pods, addresses(&daemons)?, || {
        for key in keys {
            etcd.put(&format!("{PREFIX}/subnets/{key}"), good)?;
        }
        etcd.put(&format!("{PREFIX}/subnets-old/10.5.41.0-24"), good)?;
        for (number, value) in (50..).zip(values) {
            etcd.put(&format!("{PREFIX}/subnets/10.5.{number}.0-24"), value)?;
        }
        etcd.put_bytes(format!("{PREFIX}/subnets/10.5.90.0-24").as_bytes(), &[0xff, 0xfe, 0x80], 0)?;
        for key in keys {
            etcd.delete(&format!("{PREFIX}/subnets/{key}"))?;
        }
        Ok(())
    })?;
    let peers: Vec<String> =
        cluster.hosts[0].client("flannel")?.routes()?.set.routes.iter().map(|route| route.prefix.to_string()).collect();
    ensure!(peers.contains(&daemons[1].subnet()?.to_string()), "{peers:?}");
    // And a good one among them is heard, as well as a bad one that was mended.
    etcd.put(&format!("{PREFIX}/subnets/10.5.50.0-24"), r#"{"PublicIP":"192.0.2.78","PublicIPv6":null}"#)?;
    eventually(TIMEOUT, || {
        let answer = cluster.hosts[0].client("flannel")?.get("10.5.50.7".parse()?)?;
        ensure!(answer.route.is_some_and(|route| route.peer.addr.ip() == IpAddr::from([192, 0, 2, 78])), "not there");
        Ok(())
    })?;
    another_joins(&cluster, &pods)?;
    Ok(())
}

#[test]
fn a_user_who_may_only_read_gets_no_lease_and_harms_nobody() -> Result<()> {
    let Some(mut cluster) = Cluster::new(3, CONFIG)? else { return Ok(()) };
    cluster.etcd.add_user("writer", "w", PREFIX, true)?;
    cluster.etcd.add_user("reader", "r", PREFIX, false)?;
    cluster.etcd.enable_auth()?;
    let writer = ["--etcd-username=writer", "--etcd-password=w"];
    let mut daemons = vec![cluster.start(1, &writer)?, cluster.start(2, &writer)?];
    for daemon in &mut daemons {
        daemon.joined()?;
    }
    let pods = cluster.pods(&daemons)?;
    let mut reader = lossless(&pods, addresses(&daemons)?, || {
        let reader = cluster.start(3, &["--etcd-username=reader", "--etcd-password=r"])?;
        reader.says("no lease yet: etcd refuses")?;
        Ok(reader)
    })?;
    reader.end()?;
    cluster.start(3, &["--etcd-username=reader", "--etcd-password=wrong"])?.says("waiting for the network config")?;
    Ok(())
}

#[test]
fn a_lease_that_somebody_else_took_ends_the_daemon_and_not_the_traffic() -> Result<()> {
    let Some((cluster, mut daemons, pods)) = joined()? else { return Ok(()) };
    let (first, second) = (daemons[0].key()?, addresses(&daemons)?);
    cluster.etcd.put(&first, r#"{"PublicIP":"192.0.2.200","PublicIPv6":null}"#)?;
    let status = daemons[0].process.wait(TIMEOUT)?;
    ensure!(status.code() == Some(1), "{status}");
    daemons[0].says("was taken by 192.0.2.200")?;
    // Its weftd forwards on; where the prefix leads is for the others to say.
    ensure!(cluster.hosts[0].client("flannel")?.get(second[1].into())?.route.is_some(), "the table is gone");
    // The next one gets another subnet, since the old one has another owner.
    let before = daemons[0].subnet()?;
    daemons[0] = cluster.start(1, &[])?;
    daemons[0].joined()?;
    ensure!(daemons[0].subnet()? != before, "two owners of {before}");
    drop(pods);
    Ok(())
}

#[test]
fn a_peer_that_moves_is_followed_and_a_renewal_changes_nothing() -> Result<()> {
    let Some((cluster, daemons, _pods)) = joined()? else { return Ok(()) };
    let key = format!("{PREFIX}/subnets/10.5.200.0-24");
    let leads_to = |host: u8| {
        eventually(TIMEOUT, || {
            let answer = cluster.hosts[0].client("flannel")?.get("10.5.200.1".parse()?)?;
            let found = answer.route.map(|route| route.peer.addr.ip());
            ensure!(found == Some(IpAddr::from([192, 0, 2, host])), "it leads to {found:?}");
            Ok(answer.generation)
        })
    };
    let record = |host: u8| format!(r#"{{"PublicIP":"192.0.2.{host}","PublicIPv6":null}}"#);
    cluster.etcd.put(&key, &record(60))?;
    leads_to(60)?;
    cluster.etcd.put(&key, &record(61))?;
    let generation = leads_to(61)?;
    // What stock flannel does every 23 hours.
    cluster.etcd.put(&key, &record(61))?;
    cluster.etcd.put(&format!("{PREFIX}/subnets/10.5.201.0-24"), &record(62))?;
    eventually(TIMEOUT, || {
        let answer = cluster.hosts[0].client("flannel")?.get("10.5.201.1".parse()?)?;
        ensure!(answer.route.is_some(), "not yet");
        assert_eq!(answer.generation, generation + 1, "{}", daemons[0].process.log());
        Ok(())
    })
}

#[test]
fn the_death_of_one_of_three_etcd_members_is_not_noticed_by_traffic() -> Result<()> {
    let Some(mut cluster) = Cluster::new(2, "")? else { return Ok(()) };
    let switch = cluster.switch();
    let places = [251, 252, 253].map(|number| IpAddr::from([192, 0, 2, number]));
    for place in places {
        switch.address("br0", &format!("{place}/24"))?;
    }
    let mut members = Etcd::start_cluster_on(&switch, &places)?;
    // The cluster's own etcd is not needed.
    cluster.etcd.stop()?;
    members[0].put(&format!("{PREFIX}/config"), CONFIG)?;
    let endpoints: Vec<String> = members.iter().map(Etcd::url).collect();
    let mut daemons: Vec<Daemon> = cluster
        .hosts
        .iter()
        .map(|host| Daemon::start(host, &endpoints.join(","), "subnet.env", &[]))
        .collect::<Result<_>>()?;
    for daemon in &mut daemons {
        daemon.joined()?;
    }
    let pods = cluster.pods(&daemons)?;
    let leads_to = |third: u8, host: u8| {
        for host_of_daemon in &cluster.hosts {
            // Electing another leader takes a second or two.
            eventually(TIMEOUT * 2, || {
                let answer = host_of_daemon.client("flannel")?.get(IpAddr::from([10, 5, third, 1]))?;
                let found = answer.route.map(|route| route.peer.addr.ip());
                ensure!(found == Some(IpAddr::from([192, 0, 2, host])), "it leads to {found:?}");
                Ok(())
            })?;
        }
        anyhow::Ok(())
    };
    let put = |member: &Etcd, third: u8, host: u8| {
        let (key, value) = (
            format!("{PREFIX}/subnets/10.5.{third}.0-24"),
            format!(r#"{{"PublicIP":"192.0.2.{host}","PublicIPv6":null}}"#),
        );
        eventually(TIMEOUT * 2, || member.put(&key, &value))
    };
    put(&members[1], 201, 61)?;
    leads_to(201, 61)?;
    lossless(&pods, addresses(&daemons)?, || {
        // The first endpoint is the one that is asked.
        members[0].stop()?;
        for daemon in &daemons {
            daemon.says(&endpoints[0])?;
        }
        put(&members[1], 202, 62)?;
        leads_to(202, 62)?;
        // Its lease is looked after all the same.
        let key = daemons[0].key()?;
        eventually(TIMEOUT * 2, || members[1].delete(&key))?;
        eventually(TIMEOUT * 2, || members[2].get(&key)?.with_context(|| format!("no {key}")))?;
        // The first one comes back, and another goes: there is a majority again.
        members[0].start_again()?;
        members[1].stop()?;
        put(&members[2], 203, 63)?;
        leads_to(203, 63)
    })?;
    // One that starts while a member is away joins as ever.
    members[2].put("/other/config", r#"{"Network": "10.9.0.0/16", "Backend": {"Type": "host-gw"}}"#)?;
    let flags = ["--etcd-prefix=/other", "--iptables-forward-rules=false"];
    Daemon::start(&cluster.hosts[0], &endpoints.join(","), "other.subnet.env", &flags)?.joined()
}
