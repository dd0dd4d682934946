//! Which interface leads to the underlay, by which address, and what peers are told: the rules of flannel's `--iface`,
//! `--iface-regex`, `--iface-can-reach` and `--public-ip` (`main.go`, `pkg/ipmatch/match.go`, `pkg/ip/iface.go`).
//!
//! ```text
//! --iface (each in turn) > --iface-regex (each in turn) > --iface-can-reach      the first that gives a complete answer
//! none of them: the owner of the public IP, else the interface of the default route
//! ```
//!
//! [`select`] is a function of what [`Underlay::read`] has read, so that it can be asked again while running: an address
//! or MTU that changed gives another [`ExternalInterface`].
//!
//! Where a backend can do with one family of several, [`select_first`] is told in which order to try.
//!
//! Two things differ from flannel. A public IP that is not local (behind a NAT) does not stop the daemon: the default
//! route's interface carries the tunnel and peers are told the public IP. And an option that names an interface without
//! a usable address is passed over with its reason instead of being the answer.

mod choose;

use crate::flannel::ExternalInterface;
use crate::netlink::{AddressState, Link, Netlink, NetlinkError, Resolved, Route, RouteKind};
use choose::{Chosen, Matched};
use regex::Regex;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the command line says about the underlay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceOptions {
    /// `--iface`: names or addresses, in this order.
    pub iface: Vec<String>,
    /// `--iface-regex`: regular expressions for addresses and names, in this order.
    pub iface_regex: Vec<String>,
    /// `--iface-can-reach`: an address to which the interface leads.
    pub iface_can_reach: Option<IpAddr>,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// `--public-ipv6`.
    pub public_ipv6: Option<Ipv6Addr>,
}

/// Address families: those of a cluster's network (`EnableIPv4`, `EnableIPv6`), or those that an interface has to have an
/// address of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

/// What the kernel says of this host, as far as the choice depends on it.
#[derive(Clone, Debug, Default)]
pub struct Underlay {
    /// All links, in the order of their indices.
    pub links: Vec<Link>,
    /// All addresses, in the kernel's order.
    pub addresses: Vec<AddressState>,
    /// The main table.
    pub routes: Vec<Route>,
    /// The way to `--iface-can-reach`, if that was asked for and there is one.
    pub reach: Option<Resolved>,
}

/// A choice that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The interface.
    pub external: ExternalInterface,
    /// What a person should know about how it was chosen, a sentence each.
    pub notes: Vec<String>,
}

/// No interface was chosen.
#[derive(Debug, thiserror::Error)]
pub enum ExternalError {
    /// An expression that cannot be read.
    #[error("--iface-regex `{text}` is not a regular expression: {source}")]
    Regex {
        /// As given.
        text: String,
        /// What is wrong with it.
        source: regex::Error,
    },
    /// Nothing that was asked for is there.
    #[error("no interface to the underlay: {looked}; this host has {host}; {remedy}")]
    NoMatch {
        /// What was looked at, and why it is not the answer.
        looked: String,
        /// The links with their addresses.
        host: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The kernel did not answer.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

const REMEDY_OPTIONS: &str = "give --iface the name or an address of one of them";
const REMEDY_DEFAULT: &str = "name the interface with --iface, or an address that it leads to with --iface-can-reach";

impl Underlay {
    /// Reads the network namespace of `netlink`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(netlink: &mut Netlink, options: &InterfaceOptions) -> Result<Underlay, NetlinkError> {
        let mut links = netlink.links()?;
        links.sort_by_key(|link| link.index);
        let reach = match options.iface_can_reach {
            Some(address) => netlink.route_to(address)?,
            None => None,
        };
        Ok(Underlay {
            links,
            addresses: netlink.address_states()?,
            routes: netlink.routes(&Default::default())?,
            reach,
        })
    }

    fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// `lo (127.0.0.1), eth0 (192.0.2.1, 2001:db8::1)`.
    fn describe(&self) -> String {
        let mut text = String::new();
        for link in &self.links {
            let own = self.addresses.iter().filter(|state| state.address.link == link.index);
            let addresses: Vec<String> = own.map(|state| state.address.ip().to_string()).collect();
            let addresses = if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") };
            let comma = if text.is_empty() { "" } else { ", " };
            // Writing to a String cannot fail.
            let _ = write!(text, "{comma}{} ({addresses})", link.name);
        }
        text
    }
}

/// Reads this host and chooses; see [`select_first`].
///
/// # Errors
/// As [`select`], and the kernel's.
pub fn discover(
    netlink: &mut Netlink,
    options: &InterfaceOptions,
    wanted: &[Families],
    previous: Option<&ExternalInterface>,
) -> Result<Selection, ExternalError> {
    select_first(options, wanted, &Underlay::read(netlink, options)?, previous)
}

/// Chooses as [`select`] does, for the first of the `wanted` families that there is an answer for; one of link-local
/// addresses counts only where no other does. While a choice is in use, its family stays: an interface that loses its IPv4
/// address for a moment does not send the node to where no peer looks for it.
///
/// # Errors
/// Those of the first.
///
/// # Panics
/// If nothing is wanted.
pub fn select_first(
    options: &InterfaceOptions,
    wanted: &[Families],
    underlay: &Underlay,
    previous: Option<&ExternalInterface>,
) -> Result<Selection, ExternalError> {
    let keeps_family = |families: &Families| match previous {
        None => true,
        Some(previous) if previous.addr.is_some() => families.v4,
        Some(_) => families.v6,
    };
    let (mut link_local, mut refusal) = (None, None);
    for families in wanted.iter().filter(|families| keeps_family(families)) {
        match select(options, *families, underlay, previous) {
            Ok(selection) if is_link_local(&selection.external) => drop(link_local.get_or_insert(selection)),
            Ok(selection) => return Ok(selection),
            Err(error) => drop(refusal.get_or_insert(error)),
        }
    }
    match (link_local, refusal) {
        (Some(selection), _) => Ok(selection),
        (None, Some(error)) => Err(error),
        (None, None) => unreachable!("some families are wanted, and those in use were among them"),
    }
}

/// Whether the address that a tunnel would use is one of a single link.
fn is_link_local(external: &ExternalInterface) -> bool {
    match (external.addr, external.addr_v6) {
        (Some(addr), _) => addr.is_link_local(),
        (None, addr) => addr.is_some_and(|addr| addr.is_unicast_link_local()),
    }
}

/// Chooses the interface, its address for each family, and what peers are told. `previous` is the choice
/// that is in use: where the options leave several addresses of the interface to choose from, its address stays for as
/// long as it is usable.
///
/// # Errors
/// Nothing fits, with what was looked at and the remedy; or an expression cannot be read.
pub fn select(
    options: &InterfaceOptions,
    families: Families,
    underlay: &Underlay,
    previous: Option<&ExternalInterface>,
) -> Result<Selection, ExternalError> {
    let mut looked: Vec<String> = Vec::new();
    let mut notes = Vec::new();
    let any_option = !options.iface.is_empty() || !options.iface_regex.is_empty() || options.iface_can_reach.is_some();
    let found = if any_option {
        by_option(options, families, underlay, previous, &mut looked)?
    } else {
        by_public_ip(options, families, underlay, previous, &mut notes)
            .map_or_else(|| by_default_route(families, underlay, previous), Ok)
            .map_err(|why| looked.push(why))
            .ok()
    };
    let Some(chosen) = found else {
        let remedy = if any_option { REMEDY_OPTIONS } else { REMEDY_DEFAULT };
        return Err(ExternalError::NoMatch { looked: looked.join("; "), host: underlay.describe(), remedy });
    };
    if !looked.is_empty() {
        notes.push(format!("the underlay interface is {}; passed over: {}", chosen.link.name, looked.join("; ")));
    }
    let Chosen { link, v4, v6 } = chosen;
    let public = families.v4.then(|| options.public_ip.or(v4)).flatten();
    let public_v6 = families.v6.then(|| options.public_ipv6.or(v6)).flatten();
    let is_local = |ip: IpAddr| underlay.addresses.iter().any(|state| state.address.ip() == ip);
    for (public, own) in
        [(public.map(IpAddr::from), v4.map(IpAddr::from)), (public_v6.map(IpAddr::from), v6.map(IpAddr::from))]
    {
        if let (Some(public), Some(own)) = (public, own)
            && !is_local(public)
        {
            notes.push(format!(
                "public IP {public} is not an address of this host, so it is taken for that of a NAT before it: peers are \
                 told {public}, and {} with {own} carries the traffic",
                link.name
            ));
        }
    }
    let external = ExternalInterface {
        name: link.name.clone(),
        ifindex: link.index,
        mtu: link.mtu,
        addr: v4,
        addr_v6: v6,
        public,
        public_v6,
    };
    Ok(Selection { external, notes })
}

/// The first of `--iface`, `--iface-regex` and `--iface-can-reach` that gives a complete answer.
fn by_option<'a>(
    options: &InterfaceOptions,
    families: Families,
    underlay: &'a Underlay,
    previous: Option<&ExternalInterface>,
    looked: &mut Vec<String>,
) -> Result<Option<Chosen<'a>>, ExternalError> {
    let expressions = options
        .iface_regex
        .iter()
        .map(|text| Regex::new(text).map_err(|source| ExternalError::Regex { text: text.clone(), source }));
    let expressions: Vec<Regex> = expressions.collect::<Result<_, _>>()?;
    for text in &options.iface {
        let matched = match text.parse::<IpAddr>() {
            Ok(ip) => choose::owner(underlay, ip).ok_or_else(|| "no link has that address".to_owned()),
            Err(_) => underlay
                .links
                .iter()
                .find(|link| link.name == *text)
                .map(Matched::link)
                .ok_or_else(|| "no link has that name".to_owned()),
        };
        match matched.and_then(|matched| choose::complete(underlay, families, matched, previous)) {
            Ok(chosen) => return Ok(Some(chosen)),
            Err(why) => looked.push(format!("--iface {text}: {why}")),
        }
    }
    for expression in &expressions {
        match by_expression(expression, families, underlay, previous) {
            Ok(chosen) => return Ok(Some(chosen)),
            Err(why) => looked.push(format!("--iface-regex {expression}: {why}")),
        }
    }
    if let Some(address) = options.iface_can_reach {
        match by_reach(families, underlay, previous) {
            Ok(chosen) => return Ok(Some(chosen)),
            Err(why) => looked.push(format!("--iface-can-reach {address}: {why}")),
        }
    }
    Ok(None)
}

/// Addresses first, one of each family of the cluster; then names.
fn by_expression<'a>(
    expression: &Regex,
    families: Families,
    underlay: &'a Underlay,
    previous: Option<&ExternalInterface>,
) -> Result<Chosen<'a>, String> {
    let mut whys = Vec::new();
    let by_address = underlay.links.iter().filter_map(|link| choose::matching(underlay, families, link, expression));
    let by_name = underlay.links.iter().filter(|link| expression.is_match(&link.name)).map(Matched::link);
    for matched in by_address.chain(by_name) {
        match choose::complete(underlay, families, matched, previous) {
            Ok(chosen) => return Ok(chosen),
            Err(why) => whys.push(why),
        }
    }
    if whys.is_empty() { Err("no address and no name of a link matches".to_owned()) } else { Err(whys.join(", ")) }
}

fn by_reach<'a>(
    families: Families,
    underlay: &'a Underlay,
    previous: Option<&ExternalInterface>,
) -> Result<Chosen<'a>, String> {
    let resolved = underlay.reach.as_ref().ok_or("no route leads there")?;
    if resolved.local {
        return Err("this host has that address itself".to_owned());
    }
    let link = underlay.link(resolved.link).ok_or("the link that its route names is gone")?;
    let mut matched = Matched::link(link);
    match resolved.source {
        Some(IpAddr::V4(address)) => matched.v4 = Some(address),
        Some(IpAddr::V6(address)) => matched.v6 = Some(address),
        None => (),
    }
    choose::complete(underlay, families, matched, previous)
}

/// The link that has the public IP, if one has.
fn by_public_ip<'a>(
    options: &InterfaceOptions,
    families: Families,
    underlay: &'a Underlay,
    previous: Option<&ExternalInterface>,
    notes: &mut Vec<String>,
) -> Option<Chosen<'a>> {
    let v4 = options.public_ip.filter(|_| families.v4).map(IpAddr::from);
    let public = v4.or(options.public_ipv6.filter(|_| families.v6).map(IpAddr::from))?;
    let owner = choose::owner(underlay, public)?;
    let name = owner.link.name.clone();
    choose::complete(underlay, families, owner, previous)
        .map_err(|why| {
            notes.push(format!("{name} has the public IP {public} but is not the underlay interface: {why}"))
        })
        .ok()
}

fn by_default_route<'a>(
    families: Families,
    underlay: &'a Underlay,
    previous: Option<&ExternalInterface>,
) -> Result<Chosen<'a>, String> {
    let v4 = families.v4.then(|| default_link(underlay, true)).transpose()?;
    let v6 = families.v6.then(|| default_link(underlay, false)).transpose()?;
    if let (Some(v4), Some(v6)) = (v4, v6)
        && v4.index != v6.index
    {
        return Err(format!(
            "the IPv4 default route uses {}, that of IPv6 uses {}, and both families have to use one interface",
            v4.name, v6.name
        ));
    }
    let link = v4.or(v6).ok_or("the cluster's network has neither IPv4 nor IPv6")?;
    choose::complete(underlay, families, Matched::link(link), previous)
}

/// The link of the default route with the best metric, the first of several.
fn default_link(underlay: &Underlay, is_ipv4: bool) -> Result<&Link, String> {
    let family = if is_ipv4 { "IPv4" } else { "IPv6" };
    let is_default = |route: &&Route| {
        route.dst.prefix_len() == 0 && route.dst.addr().is_ipv4() == is_ipv4 && route.kind == RouteKind::Unicast
    };
    let routes = underlay.routes.iter().filter(is_default);
    let best = routes.min_by_key(|route| route.metric).ok_or(format!("there is no {family} default route"))?;
    let index = best.link.ok_or(format!("the {family} default route has several next hops"))?;
    underlay.link(index).ok_or(format!("the link of the {family} default route is gone"))
}

#[cfg(test)]
mod tests;
