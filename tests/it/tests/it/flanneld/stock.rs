//! A stock node in a cluster of weft nodes: a double of flannel's proxy, joined by the record that stock flannel publishes.

use super::*;
use crate::flannel::double::{Config, Double};
use crate::support::{PORT, TUN};
use std::net::SocketAddrV4;

#[test]
fn a_stock_node_joins_by_its_record() -> Result<()> {
    let Some(cluster) = Cluster::new(3, r#"{"Network": "10.5.0.0/16", "SubnetMin": "10.5.100.0"}"#)? else {
        return Ok(());
    };
    let mut daemons = vec![cluster.start(1, &[])?, cluster.start(2, &[])?];
    for daemon in &mut daemons {
        daemon.joined()?;
    }
    let pods = cluster.pods(&daemons)?;
    // What stock flannel does with leases of any type: its own port, the PublicIP of the record.
    let mut routes = Vec::new();
    for record in cluster.etcd.list(&format!("{PREFIX}/subnets/"))? {
        let key = record.key;
        let subnet = key.rsplit('/').next().context("a key")?.replacen('-', "/", 1);
        let value: Value = serde_json::from_str(&record.value)?;
        let public: Ipv4Addr = value["PublicIP"].as_str().context("no PublicIP")?.parse()?;
        routes.push((subnet.parse()?, SocketAddrV4::new(public, PORT)));
    }
    assert_eq!(routes.len(), 2);
    let stock = &cluster.hosts[2].node;
    stock.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    let _double = Double::start(
        stock,
        Config {
            tun_name: TUN,
            address: "10.5.33.0".parse()?,
            network: "10.5.0.0/16",
            mtu: 1472,
            bind: SocketAddrV4::new("192.0.2.3".parse()?, PORT),
            routes,
        },
    )?;
    cluster.etcd.put(&format!("{PREFIX}/subnets/10.5.33.0-24"), r#"{"PublicIP":"192.0.2.3","PublicIPv6":null}"#)?;
    let pod = Pod::behind(&cluster.lab, stock, "pod3", "10.5.33.2/24", "10.5.33.1/24", 1472)?;
    for (daemon, other) in daemons.iter().zip(&pods) {
        eventually(TIMEOUT, || ping(&other.node, &Ping::quick("10.5.33.2".parse()?))?.reply())?;
        ping(&pod.node, &Ping::to(daemon.pod()?.into()))?.reply()?;
        ping(&pod.node, &Ping { payload_len: 4000, ..Ping::to(daemon.pod()?.into()) })?.reply()?;
    }
    // It leaves, and is forgotten.
    cluster.etcd.delete(&format!("{PREFIX}/subnets/10.5.33.0-24"))?;
    eventually(TIMEOUT, || {
        let answer = cluster.hosts[0].client("flannel")?.get("10.5.33.2".parse()?)?;
        ensure!(answer.route.is_none(), "{answer:?}");
        Ok(())
    })
}
