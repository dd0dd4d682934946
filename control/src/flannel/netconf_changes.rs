//! What differs between two network configs, in the words of the config.

use super::netconf::{BackendConf, NetConf, Pool};
use std::fmt;

/// One key whose meaning is another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key, such as `Network` or `Backend.Port`.
    pub key: &'static str,
    /// What it meant; `None`: nothing, such as the port of a backend without ports.
    pub from: Option<String>,
    /// What it means.
    pub to: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "not there".into());
        write!(f, "{} from {} to {}", self.key, shown(&self.from), shown(&self.to))
    }
}

/// The keys whose meaning differs, in the order of flannel's documentation. Of a backend of another type only the type is
/// named: its keys have nothing to be compared with.
pub fn changes(from: &NetConf, to: &NetConf) -> Vec<Change> {
    let is_same_type = from.backend.name() == to.backend.name();
    let concerns = |key: &&'static str| is_same_type || !key.starts_with("Backend.") || *key == TYPE;
    let (from, to) = (fields(from), fields(to));
    let value = |fields: &[(&str, String)], key: &str| {
        fields.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone())
    };
    let mut keys: Vec<&'static str> = Vec::new();
    for (key, _) in from.iter().chain(&to) {
        if !keys.contains(key) {
            keys.push(key);
        }
    }
    let change = |key| Change { key, from: value(&from, key), to: value(&to, key) };
    keys.into_iter().filter(concerns).map(change).filter(|change| change.from != change.to).collect()
}

const TYPE: &str = "Backend.Type";

/// All keys with their meaning, defaults included.
fn fields(conf: &NetConf) -> Vec<(&'static str, String)> {
    let mut fields = vec![("EnableIPv4", conf.v4.is_some().to_string())];
    pool(&mut fields, conf.v4, ["Network", "SubnetLen", "SubnetMin", "SubnetMax"], |net| net.network().to_string());
    fields.push(("EnableIPv6", conf.v6.is_some().to_string()));
    let v6 = ["IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax"];
    pool(&mut fields, conf.v6, v6, |net| net.network().to_string());
    fields.push(("EnableNFTables", conf.enable_nftables.to_string()));
    fields.push((TYPE, conf.backend.name().to_owned()));
    match &conf.backend {
        BackendConf::Udp { port, underlay } => {
            fields.push(("Backend.Port", port.to_string()));
            fields.extend(underlay.map(|family| ("Backend.Underlay", family.to_string())));
        }
        BackendConf::Vxlan(vxlan) => fields.extend([
            ("Backend.VNI", vxlan.vni.to_string()),
            ("Backend.Port", vxlan.port.map_or("the kernel's".into(), |port| port.to_string())),
            ("Backend.MTU", vxlan.mtu.map_or("the interface's".into(), |mtu| mtu.to_string())),
            ("Backend.GBP", vxlan.gbp.to_string()),
            ("Backend.Learning", vxlan.learning.to_string()),
            ("Backend.DirectRouting", vxlan.direct_routing.to_string()),
        ]),
        BackendConf::Extension(hooks) => fields.extend([
            ("Backend.PreStartupCommand", hooks.pre_startup.clone()),
            ("Backend.PostStartupCommand", hooks.post_startup.clone()),
            ("Backend.SubnetAddCommand", hooks.subnet_add.clone()),
            ("Backend.SubnetRemoveCommand", hooks.subnet_remove.clone()),
        ]),
        BackendConf::HostGw | BackendConf::Other(_) => {}
    }
    fields
}

fn pool<N: fmt::Display>(
    fields: &mut Vec<(&'static str, String)>,
    pool: Option<Pool<N>>,
    [network, subnet_len, subnet_min, subnet_max]: [&'static str; 4],
    address: impl Fn(&N) -> String,
) {
    let Some(pool) = pool else { return };
    fields.extend([
        (network, pool.network.to_string()),
        (subnet_len, pool.subnet_len.to_string()),
        (subnet_min, address(&pool.subnet_min)),
        (subnet_max, address(&pool.subnet_max)),
    ]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(from: &str, to: &str) -> Vec<String> {
        let conf = |text| NetConf::parse(text).unwrap();
        changes(&conf(from), &conf(to)).iter().map(Change::to_string).collect()
    }

    #[test]
    fn each_key_that_means_something_else_is_named_once() {
        const UDP: &str = r#"{"Network": "10.5.0.0/16"}"#;
        const VXLAN: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;
        let cases: [(&str, &str, &[&str]); 8] = [
            (UDP, r#"{"network":"10.5.1.0/16","SubnetLen":24,"Backend":{"type":"UDP","Port":8285}}"#, &[]),
            (
                UDP,
                r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "Port": 9999}}"#,
                &["Backend.Port from 8285 to 9999"],
            ),
            (
                UDP,
                r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "Underlay": "IPv6"}}"#,
                &["Backend.Underlay from not there to ipv6"],
            ),
            (UDP, VXLAN, &["Backend.Type from udp to vxlan"]),
            (
                UDP,
                r#"{"Network": "10.5.0.0/16", "SubnetMax": "10.5.99.0", "EnableNFTables": true}"#,
                &["SubnetMax from 10.5.255.0 to 10.5.99.0", "EnableNFTables from false to true"],
            ),
            (
                UDP,
                r#"{"Network": "10.4.0.0/15", "SubnetMin": "10.5.1.0"}"#,
                &["Network from 10.5.0.0/16 to 10.4.0.0/15"],
            ),
            (
                UDP,
                r#"{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd05::/48"}"#,
                &[
                    "EnableIPv6 from false to true",
                    "IPv6Network from not there to fd05::/48",
                    "IPv6SubnetLen from not there to 64",
                    "IPv6SubnetMin from not there to fd05:0:0:1::",
                    "IPv6SubnetMax from not there to fd05:0:0:ffff::",
                ],
            ),
            (
                VXLAN,
                r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7, "Port": 4789, "MTU": 1400,
                    "GBP": true, "Learning": true, "DirectRouting": true}}"#,
                &[
                    "Backend.VNI from 1 to 7",
                    "Backend.Port from the kernel's to 4789",
                    "Backend.MTU from the interface's to 1400",
                    "Backend.GBP from false to true",
                    "Backend.Learning from false to true",
                    "Backend.DirectRouting from false to true",
                ],
            ),
        ];
        for (from, to, expected) in cases {
            assert_eq!(said(from, to), expected, "{to}");
        }
    }
}
