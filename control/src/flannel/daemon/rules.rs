//! The node's traffic rules, and its blackhole route, looked at every `--iptables-resync` seconds.

use crate::backend::udp::tunnel_name;
use crate::causes;
use crate::flannel::flags::{Flags, PREFIX};
use crate::flannel::{NetConf, OwnLease};
use crate::netlink::{Netlink, NetlinkError, Route, RouteFilter, RouteKind};
use crate::rules::{Mode, Programs, Rules, RulesError, Wanted};
use crate::state::Paths;
use ipnet::IpNet;
use std::fs;
use tracing::{error, info, warn};

/// Metric of the blackhole routes: behind every route that means to work, such as that of a bridge which carries the subnet,
/// and before [`crate::link::SAFETY_METRIC`].
const BLACKHOLE_METRIC: u32 = 4_278_197_000;

/// What this node was asked to keep.
#[derive(Debug)]
pub struct TrafficRules {
    masquerade: bool,
    random_fully: bool,
    forward: bool,
    blackhole: bool,
    mode: Mode,
    /// Where `weft down` finds out that there are rules.
    paths: Paths,
    /// Until the programs are found.
    rules: Option<Rules>,
    /// What was wrong last, so that it is said once.
    failure: Option<String>,
}

impl TrafficRules {
    /// Nothing is done yet but to find out by what the rules are made.
    pub fn start(flags: &Flags, conf: &NetConf) -> TrafficRules {
        let mode = if conf.enable_nftables { Mode::Nftables } else { Mode::Iptables };
        TrafficRules {
            masquerade: flags.ip_masq,
            random_fully: flags.random_fully,
            forward: flags.forward_rules,
            blackhole: flags.blackhole,
            mode,
            paths: Paths::new(&flags.run_dir, &tunnel_name(&flags.etcd.prefix, PREFIX)),
            rules: None,
            failure: None,
        }
    }

    /// Makes the rules what they should be. What goes wrong is said once and tried again at the next call: a node whose rules
    /// cannot be had forwards all the same.
    pub fn keep(&mut self, own: &OwnLease, netlink: &mut Netlink) {
        let outcome = self.keep_rules(own).map_err(|error| causes::text(&error));
        let outcome = outcome.and(self.keep_blackhole(own, netlink).map_err(|error| causes::text(&error)));
        match outcome {
            Ok(()) => {
                if self.failure.take().is_some() {
                    info!("rules: they are as they should be");
                }
            }
            Err(why) => {
                if self.failure.as_ref() != Some(&why) {
                    error!("rules: {why}");
                }
                self.failure = Some(why);
            }
        }
    }

    fn keep_rules(&mut self, own: &OwnLease) -> Result<(), RulesError> {
        if !self.masquerade && !self.forward {
            return Ok(());
        }
        if self.rules.is_none() {
            let (rules, notes) = Rules::start(self.mode, Programs::default())?;
            notes.iter().for_each(|note| info!("rules: {note}"));
            self.rules = Some(rules);
            self.record();
        }
        let Some(rules) = &mut self.rules else { return Ok(()) };
        let wanted = Wanted::of(own, self.masquerade, self.random_fully, self.forward);
        let changes = rules.apply(&wanted)?;
        changes.iter().for_each(|change| info!("rules: {change}"));
        Ok(())
    }

    fn record(&self) {
        let path = self.paths.rules();
        let made = self.paths.make_dir().map_err(|error| causes::text(&error));
        let written = made.and_then(|()| fs::write(&path, self.mode.word()).map_err(|error| error.to_string()));
        if let Err(why) = written {
            warn!("{}: {why}; `weft down` will not remove the rules", path.display());
        }
    }

    fn keep_blackhole(&self, own: &OwnLease, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        if !self.blackhole {
            return Ok(());
        }
        let subnets = [own.subnets.v4.map(IpNet::V4), own.subnets.v6.map(IpNet::V6)];
        for subnet in subnets.into_iter().flatten() {
            let route = Route { kind: RouteKind::Blackhole, metric: BLACKHOLE_METRIC, ..Route::unreachable(subnet) };
            let filter = RouteFilter { dst: Some(subnet), ..RouteFilter::default() };
            if !netlink.routes(&filter)?.contains(&route) {
                netlink.add_route(&route)?;
                info!("rules: blackhole route {subnet}");
            }
        }
        Ok(())
    }
}
