//! What the network config in etcd says by now, beside the one that this daemon works by.
//!
//! A running daemon takes nothing up from a changed config: half of a cluster on another port or network is a broken cluster,
//! and when each node changes over is for whoever changes the config to say, by restarting it. One change leaves no choice: a
//! network that our subnet is outside of. Then the daemon ends, so that the next one takes another subnet; but not at once,
//! and not everywhere at once, because a mistyped network must not cost all pods of a cluster their addresses.

use super::underlay_families;
use crate::flannel::allocate::fits;
use crate::flannel::netconf_changes::{Change, changes};
use crate::flannel::{BackendConf, NetConf, Subnets};
use ipnet::IpNet;
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// The config at work and what became of it.
#[derive(Debug)]
pub struct ConfigNews {
    used: NetConf,
    own: Subnets,
    grace: Duration,
    /// When to end, and why.
    end: Option<(Instant, String)>,
    /// What a person has to know, for `systemctl status`; empty: the config is the one at work.
    note: String,
}

impl ConfigNews {
    /// For a daemon that works by `used` and has these subnets; when they become impossible, it ends after `grace`, at most
    /// twice that.
    pub fn new(used: NetConf, own: Subnets, grace: Duration) -> ConfigNews {
        ConfigNews { used, own, grace, end: None, note: String::new() }
    }

    /// Takes in what the registry tells, and logs what follows from it.
    pub fn learn(&mut self, seen: Result<NetConf, String>, now: Instant) {
        let was_ending = self.end.take().is_some();
        let conf = match seen {
            Ok(conf) => conf,
            Err(why) => {
                self.note = format!("{why}; going on with the network config that was read at the start");
                warn!("{}", self.note);
                return;
            }
        };
        let changes = changes(&self.used, &conf);
        if changes.is_empty() {
            self.note.clear();
            info!("the network config is as it was at the start again");
        } else if let Some(why) = self.impossible(&conf) {
            let until = self.grace + self.grace.mul_f64(fastrand::f64());
            self.note = format!(
                "the network config has changed: {}; {why}: unless it is changed back, this daemon ends in {} s, and the \
                 next one takes another subnet",
                list(&changes),
                until.as_secs_f64().round()
            );
            error!("{}", self.note);
            self.end = Some((now + until, why));
            return;
        } else {
            self.note = format!("the network config has changed: {}; {}", list(&changes), self.consequences(&conf));
            warn!("{}", self.note);
        }
        if was_ending {
            info!("our subnet is inside the network again; this daemon goes on");
        }
    }

    /// When the daemon has to end.
    pub fn end(&self) -> Option<Instant> {
        self.end.as_ref().map(|(at, _)| *at)
    }

    /// Why it has to, once the time has come.
    pub fn ended(&self, now: Instant) -> Option<&str> {
        self.end.as_ref().filter(|(at, _)| *at <= now).map(|(_, why)| why.as_str())
    }

    /// What a person has to know; empty: nothing.
    pub fn note(&self) -> &str {
        &self.note
    }

    /// Why no node that goes by `conf` can have anything to do with our lease, if the next start can have another.
    fn impossible(&self, conf: &NetConf) -> Option<String> {
        if !is_ours(&conf.backend) {
            return None;
        }
        let v4 = self.own.v4.zip(conf.network()).filter(|(own, network)| !network.contains(own));
        let v6 = self.own.v6.zip(conf.network_v6()).filter(|(own, network)| !network.contains(own));
        let pair = v4.map(|(own, network)| (own.into(), network.into()));
        let pair: Option<(IpNet, IpNet)> = pair.or(v6.map(|(own, network)| (own.into(), network.into())));
        pair.map(|(own, network)| format!("our subnet {own} is outside of the network {network}"))
    }

    /// What a restart brings.
    fn consequences(&self, conf: &NetConf) -> String {
        let mut text = "this daemon goes on as it is, and takes it up when it is started again".to_owned();
        if !is_ours(&conf.backend) {
            text += &format!(" (and ends then: this flanneld has no backend {})", conf.backend.name());
        } else if !fits(conf, &self.own) {
            text += " (with another subnet: ours does not fit it)";
        }
        if is_other_wire(conf, &self.used) {
            text += "; until then it does not reach nodes that were started since";
        }
        text
    }
}

/// Whether it is a backend that weft has.
fn is_ours(backend: &BackendConf) -> bool {
    !matches!(backend, BackendConf::Extension(_) | BackendConf::Other(_))
}

/// Whether nodes that go by two configs cannot reach each other.
fn is_other_wire(a: &NetConf, b: &NetConf) -> bool {
    match (&a.backend, &b.backend) {
        (BackendConf::Udp { port: port_a, .. }, BackendConf::Udp { port: port_b, .. }) => {
            port_a != port_b || prefers_ipv4(a) != prefers_ipv4(b)
        }
        (BackendConf::Vxlan(a), BackendConf::Vxlan(b)) => (a.vni, a.port) != (b.vni, b.port),
        (a, b) => a != b,
    }
}

/// Whether nodes reach each other over IPv4, where they have it.
fn prefers_ipv4(conf: &NetConf) -> bool {
    underlay_families(conf).first().is_some_and(|families| families.v4)
}

fn list(changes: &[Change]) -> String {
    changes.iter().map(Change::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const USED: &str = r#"{"Network": "10.5.0.0/16"}"#;
    const OUTSIDE: &str = r#"{"Network": "10.6.0.0/16"}"#;
    const GRACE: Duration = Duration::from_secs(60);

    fn conf(text: &str) -> NetConf {
        NetConf::parse(text).unwrap()
    }

    fn news(used: &str, grace: Duration) -> ConfigNews {
        let v6 = used.contains("IPv6").then(|| "fd05:0:0:3::/64".parse().unwrap());
        ConfigNews::new(conf(used), Subnets { v4: Some("10.5.3.0/24".parse().unwrap()), v6 }, grace)
    }

    #[test]
    fn only_a_network_that_we_are_outside_of_and_can_join_anew_is_an_end() {
        const DUAL: &str = r#"{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd05::/48"}"#;
        const DUAL_OUTSIDE: &str = r#"{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd06::/48"}"#;
        for (used, seen, expected) in [
            (USED, OUTSIDE, true),
            (USED, r#"{"Network": "10.5.64.0/18"}"#, true),
            (DUAL, DUAL_OUTSIDE, true),
            (USED, r#"{"Network": "10.4.0.0/15"}"#, false),
            (USED, r#"{"Network": "10.5.0.0/18"}"#, false),
            (USED, r#"{"Network": "10.5.0.0/16", "SubnetMin": "10.5.100.0"}"#, false),
            (USED, r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#, false),
            (USED, DUAL_OUTSIDE, false),
            (DUAL, USED, false),
            // The next start would have no lease either.
            (USED, r#"{"Network": "10.6.0.0/16", "Backend": {"Type": "ipip"}}"#, false),
            (USED, r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd05::/48"}"#, false),
        ] {
            let (mut news, now) = (news(used, GRACE), Instant::now());
            news.learn(Ok(conf(seen)), now);
            assert_eq!(news.end().is_some(), expected, "{seen}");
            assert!(news.note().starts_with("the network config has changed: "), "{}", news.note());
            assert_eq!(news.ended(now + 2 * GRACE).is_some(), expected, "{seen}");
            assert!(news.ended(now + GRACE - Duration::from_millis(1)).is_none(), "{seen}");
        }
    }

    #[test]
    fn nodes_that_were_started_since_are_out_of_reach_where_the_wire_is_another() {
        let udp = |keys: &str| format!(r#"{{"Network": "10.5.0.0/16", "Backend": {{"Type": "udp"{keys}}}}}"#);
        let vxlan = |keys: &str| udp(keys).replace("udp", "vxlan");
        let dual = |conf: String| conf.replacen('{', r#"{"EnableIPv6": true, "IPv6Network": "fd05::/48", "#, 1);
        let (ipv4, ipv6) = (r#", "Underlay": "ipv4""#, r#", "Underlay": "ipv6""#);
        for (used, seen, expected) in [
            (udp(""), udp(r#", "Port": 9"#), true),
            (udp(""), udp(ipv4), false),
            (udp(""), udp(ipv6), true),
            (udp(""), dual(udp("")), false),
            (dual(udp("")), dual(udp(ipv6)), true),
            (dual(udp(ipv6)), dual(udp(ipv4)), true),
            (udp(""), vxlan(""), true),
            (vxlan(""), vxlan(r#", "VNI": 7"#), true),
            (vxlan(""), vxlan(r#", "MTU": 1400"#), false),
        ] {
            let mut news = news(&used, GRACE);
            news.learn(Ok(conf(&seen)), Instant::now());
            assert_eq!(news.note().contains("does not reach nodes"), expected, "{used} {seen}: {}", news.note());
        }
    }

    #[test]
    fn the_end_is_called_off_by_whatever_the_key_says_instead() {
        for (seen, note) in [
            (Ok(conf(USED)), ""),
            (
                Ok(conf(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "Port": 9}}"#)),
                "Backend.Port from 8285 to 9;",
            ),
            (Err("it is gone".to_owned()), "it is gone; going on"),
        ] {
            let (mut news, now) = (news(USED, GRACE), Instant::now());
            news.learn(Ok(conf(OUTSIDE)), now);
            assert!(news.end().is_some());
            news.learn(seen, now);
            assert_eq!((news.end(), news.ended(now + 10 * GRACE)), (None, None));
            assert!(news.note().contains(note) && news.note().is_empty() == note.is_empty(), "{}", news.note());
        }
    }

    #[test]
    fn without_a_grace_the_end_is_at_once() {
        let (mut news, now) = (news(USED, Duration::ZERO), Instant::now());
        news.learn(Ok(conf(OUTSIDE)), now);
        assert_eq!(news.ended(now), Some("our subnet 10.5.3.0/24 is outside of the network 10.6.0.0/16"));
    }
}
