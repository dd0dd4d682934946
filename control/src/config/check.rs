//! What the values of a tunnel file mean together: [`Draft`] -> [`Tunnel`], with errors for what cannot work and warnings
//! for what is probably a slip.

use super::tunnel::{Draft, DraftPeer};
use super::{DEFAULT_PORT, DEVICE_NAME_LEN_MAX, Host, MTU_MIN_IPV6, Opener, Peer, Report, Tunnel};
use ipnet::IpNet;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use toml::Spanned;

/// Checks `draft`. The result counts only if the report holds no error.
pub fn check(draft: Draft, is_local: &dyn Fn(IpAddr) -> bool, report: &mut Report) -> Option<Tunnel> {
    let name = tunnel_name(&draft, report);
    let tun = tun_name(&draft, &name, report);
    own_addresses(&draft, report);
    let networks = networks(&draft, report);
    let listen = listen(&draft, report);
    mtu(&draft, report);
    workers(&draft, report);
    peer_names(&draft.peers, report);
    peer_subnets(&draft, report);
    for peer in &draft.peers {
        endpoint(peer, listen, &networks, is_local, report);
        aliases(peer, report);
    }
    same_endpoint(&draft.peers, report);
    if !draft.has_peer {
        let hint = "add a [[peer]] with name, subnets and endpoint";
        report.warning(0..0, "peer", "no peer: nothing can be reached through this tunnel", hint);
    }
    if report.has_errors() {
        return None;
    }
    let peers: Option<Vec<Peer>> = draft.peers.into_iter().map(finish_peer).collect();
    Some(Tunnel {
        name,
        addresses: draft.addresses.into_iter().map(Spanned::into_inner).collect(),
        networks,
        listen,
        tun,
        mtu: draft.mtu.and_then(|mtu| u16::try_from(mtu.into_inner()).ok()),
        dataplane: draft.dataplane,
        peers: peers?,
    })
}

fn finish_peer(draft: DraftPeer) -> Option<Peer> {
    Some(Peer {
        name: draft.name?.into_inner(),
        subnets: draft.subnets.into_iter().map(Spanned::into_inner).collect(),
        endpoint: draft.endpoint?.into_inner(),
        aliases: draft.aliases.into_iter().map(Spanned::into_inner).collect(),
    })
}

fn tunnel_name(draft: &Draft, report: &mut Report) -> String {
    let (name, span) = match &draft.name {
        Some(name) => (name.get_ref(), name.span()),
        None => (&draft.stem, 0..0),
    };
    if let Err(why) = device_name(name) {
        let hint = match &draft.name {
            Some(_) => "it names the files in /run/weft and, unless `tun` is given, the TUN device",
            None => "the file gives no `name`, so its own name is taken: add name = \"office\"",
        };
        report.error(span, "name", format!("{name:?} {why}"), hint);
    }
    name.clone()
}

fn tun_name(draft: &Draft, name: &str, report: &mut Report) -> String {
    let Some(tun) = &draft.tun else { return name.to_owned() };
    // The kernel puts a number for one `%d` (net/core/dev.c `__dev_alloc_name`).
    let stem = tun.get_ref().replacen("%d", "0", 1);
    let checked = device_name(&stem);
    if let Err(why) = checked {
        let hint = "name it as in \"weft0\", or \"flannel%d\" for the first free number";
        report.error(tun.span(), "tun", format!("{:?} {why}", tun.get_ref()), hint);
    }
    tun.get_ref().clone()
}

/// What the kernel accepts as a device name (net/core/dev.c `dev_valid_name`), less what breaks file names.
fn device_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("is empty".into());
    }
    if name.len() > DEVICE_NAME_LEN_MAX {
        return Err(format!("has {} bytes; a device name has at most {DEVICE_NAME_LEN_MAX}", name.len()));
    }
    if name.starts_with(['.', '-']) {
        return Err("begins with a dot or a dash".into());
    }
    match name.chars().find(|letter| !letter.is_ascii_alphanumeric() && !matches!(letter, '-' | '_' | '.')) {
        Some(letter) => Err(format!("holds {letter:?}; letters, digits, `-`, `_` and `.` may be used")),
        None => Ok(()),
    }
}

fn own_addresses(draft: &Draft, report: &mut Report) {
    const KEY: &str = "address";
    if !draft.has_address {
        let hint = "give this end an overlay address, as in address = \"10.99.0.1/24\"";
        report.error(0..0, KEY, "is missing", hint);
    }
    for (index, address) in draft.addresses.iter().enumerate() {
        let (net, span) = (address.get_ref(), address.span());
        if let Some(why) = unusable(net.addr()) {
            report.error(
                span.clone(),
                KEY,
                format!("{} is {why}", net.addr()),
                "choose an address of the overlay network",
            );
        }
        let same_family = |other: &Spanned<IpNet>| other.get_ref().addr().is_ipv4() == net.addr().is_ipv4();
        if draft.addresses[..index].iter().any(same_family) {
            let message = "this end has one address of each family at most";
            report.error(span.clone(), KEY, message, "remove one, or add it to the device after `weft up`");
        }
        if let IpNet::V4(v4) = net
            && v4.prefix_len() < 31
            && (v4.addr() == v4.network() || v4.addr() == v4.broadcast())
        {
            let kind = if v4.addr() == v4.network() { "network" } else { "broadcast" };
            let message = format!("{} is the {kind} address of {}", v4.addr(), v4.trunc());
            let hint = format!("choose another host, or write {}/32, as flannel does", v4.addr());
            report.warning(span.clone(), KEY, message, hint);
        }
        let covered = || draft.networks.iter().any(|network| network.get_ref().contains(&net.addr()));
        let same_family_network = |network: &Spanned<IpNet>| network.get_ref().addr().is_ipv4() == net.addr().is_ipv4();
        if draft.networks.iter().any(same_family_network) && !covered() {
            let message = format!("{} lies outside `network`", net.addr());
            report.error(span, KEY, message, "one of the two is mistyped, or `network` has to be wider");
        }
    }
}

/// The overlay networks that the kernel routes into the TUN: those of the file, or else the peers' subnets, as wg-quick
/// does with AllowedIPs.
fn networks(draft: &Draft, report: &mut Report) -> Vec<IpNet> {
    for (index, network) in draft.networks.iter().enumerate() {
        prefix(network, "network", report);
        if draft.networks[..index].iter().any(|other| other.get_ref().trunc() == network.get_ref().trunc()) {
            report.error(network.span(), "network", format!("{} stands here twice", network.get_ref()), "remove one");
        }
    }
    let (key, listed): (&str, Vec<&Spanned<IpNet>>) = if draft.has_network {
        ("network", draft.networks.iter().collect())
    } else {
        ("subnets", draft.peers.iter().flat_map(|peer| &peer.subnets).collect())
    };
    for network in listed.iter().filter(|network| network.get_ref().prefix_len() == 0) {
        let message =
            format!("{} would move this host's default route into the tunnel, underlay included", network.get_ref());
        let hint = match draft.has_network {
            true => "write the overlay's own prefix here, and send more to a peer by policy routing (ip rule)",
            false => "state the overlay in `network`, and send more to that peer by policy routing (ip rule)",
        };
        report.error(network.span(), key, message, hint);
    }
    let mut seen = HashSet::new();
    listed.iter().map(|network| network.get_ref().trunc()).filter(|network| seen.insert(*network)).collect()
}

fn listen(draft: &Draft, report: &mut Report) -> SocketAddr {
    let Some(listen) = &draft.listen else { return SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), DEFAULT_PORT) };
    let (addr, span) = (*listen.get_ref(), listen.span());
    if addr.port() == 0 {
        report.error(
            span.clone(),
            "listen",
            "port 0: peers would not know where to send",
            format!("use {DEFAULT_PORT}"),
        );
    }
    if addr.ip().is_multicast() || addr.ip() == IpAddr::V4(Ipv4Addr::BROADCAST) {
        report.error(span, "listen", format!("{} is no host's address", addr.ip()), "use \"0.0.0.0:8285\"");
    } else if addr.ip().is_loopback() {
        let message = format!("{} is loopback: no other host reaches it", addr.ip());
        report.warning(span, "listen", message, "use \"0.0.0.0:8285\", or this host's underlay address");
    }
    addr
}

fn mtu(draft: &Draft, report: &mut Report) {
    let Some(mtu) = &draft.mtu else { return };
    let inner = draft.addresses.iter().chain(&draft.networks).chain(draft.peers.iter().flat_map(|peer| &peer.subnets));
    let carries_ipv6 = inner.map(Spanned::get_ref).any(|net| net.addr().is_ipv6());
    if carries_ipv6 && *mtu.get_ref() < u32::from(MTU_MIN_IPV6) {
        let message = format!("{} is too small for IPv6, which needs {MTU_MIN_IPV6} bytes", mtu.get_ref());
        report.error(mtu.span(), "mtu", message, "leave `mtu` out: weft takes the underlay's less the outer headers");
    }
}

fn workers(draft: &Draft, report: &mut Report) {
    if let (Some(workers), Opener::Simple) = (&draft.workers, draft.dataplane.opener)
        && *workers.get_ref() > 1
    {
        let message = format!("{} workers need as many TUN queues, and opener \"simple\" has one", workers.get_ref());
        report.error(workers.span(), "dataplane.workers", message, "set workers = 1 or opener = \"native\"");
    }
}

fn peer_names(peers: &[DraftPeer], report: &mut Report) {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for peer in peers {
        let Some(name) = &peer.name else { continue };
        let key = format!("{}.name", peer.path);
        if name.get_ref().is_empty() || name.get_ref().len() > PEER_NAME_LEN_MAX {
            let message = format!("{:?} is not 1 to {PEER_NAME_LEN_MAX} bytes long", name.get_ref());
            report.error(name.span(), &key, message, "name the peer, as in name = \"paris\"");
        } else if name.get_ref().chars().any(|letter| letter.is_control() || letter.is_whitespace()) {
            let message = format!("{:?} holds white space or control characters", name.get_ref());
            report.error(name.span(), &key, message, "names appear in tables and logs: use letters, digits, `-`, `.`");
        }
        if let Some(first) = seen.get(name.get_ref().as_str()) {
            let message = format!("{:?} is the name of the peer on line {first} already", name.get_ref());
            report.error(name.span(), &key, message, "rename one, or give one peer all the subnets");
        } else {
            seen.insert(name.get_ref(), report.line_of(name.span().start));
        }
    }
}

/// Longest name of a peer in bytes: that of a host (RFC 1035 section 2.3.4).
const PEER_NAME_LEN_MAX: usize = 253;

fn peer_subnets(draft: &Draft, report: &mut Report) {
    let mut seen: HashMap<IpNet, (usize, &DraftPeer)> = HashMap::new();
    for peer in &draft.peers {
        let key = format!("{}.subnets", peer.path);
        if let (true, Some(name)) = (peer.has_empty_subnets, &peer.name) {
            let hint = "say which inner prefixes lie behind the peer, as in subnets = [\"10.99.2.0/24\"]";
            report.error(name.span(), &key, "is an empty list: nothing would be sent to this peer", hint);
        }
        for subnet in &peer.subnets {
            prefix(subnet, &key, report);
            let (net, span) = (subnet.get_ref().trunc(), subnet.span());
            if let Some((start, peer)) = seen.get(&net) {
                let other =
                    peer.name.as_ref().map_or_else(|| peer.path.clone(), |name| format!("{:?}", name.get_ref()));
                let line = report.line_of(*start);
                let message = format!("{net} leads to peer {other} already (line {line})");
                report.error(
                    span.clone(),
                    &key,
                    message,
                    "a prefix leads to one peer; a longer prefix may lead elsewhere",
                );
            } else {
                seen.insert(net, (span.start, peer));
            }
            own_address_in(draft, net, span.clone(), &key, report);
            outside_network(draft, net, span, &key, report);
        }
    }
}

/// A peer may well hold a network that covers this end (a hub), but not this end's very address.
fn own_address_in(draft: &Draft, subnet: IpNet, span: Range<usize>, key: &str, report: &mut Report) {
    for own in draft.addresses.iter().map(Spanned::get_ref).filter(|own| subnet.contains(&own.addr())) {
        if subnet.prefix_len() == subnet.max_prefix_len() {
            report.error(
                span.clone(),
                key,
                format!("{subnet} is this end's own address"),
                "is this the other host's file?",
            );
            continue;
        }
        let is_hub = (own.prefix_len() < own.max_prefix_len() && subnet.contains(&own.trunc()))
            || draft.networks.iter().any(|network| subnet.contains(&network.get_ref().trunc()));
        if !is_hub {
            let message = format!("{subnet} covers this end's own address {}", own.addr());
            let hint = "is this the other host's file? A subnet lies behind one end only";
            report.warning(span.clone(), key, message, hint);
        }
    }
}

/// `network` says what the kernel routes into the TUN. A subnet beside it could never be reached, so it is a mistake and
/// not a matter of taste. A subnet around it is fine: that peer gets what no longer prefix takes.
fn outside_network(draft: &Draft, subnet: IpNet, span: Range<usize>, key: &str, report: &mut Report) {
    let overlaps = |network: &Spanned<IpNet>| {
        let network = network.get_ref().trunc();
        network.contains(&subnet) || subnet.contains(&network)
    };
    if draft.has_network && !draft.networks.iter().any(overlaps) {
        let message = format!("{subnet} lies outside `network`, so nothing would be routed there");
        let hint = "correct it, add it to `network`, or leave `network` out: each peer's subnets are routed then";
        report.error(span, key, message, hint);
    }
}

fn endpoint(
    peer: &DraftPeer,
    listen: SocketAddr,
    networks: &[IpNet],
    is_local: &dyn Fn(IpAddr) -> bool,
    report: &mut Report,
) {
    let Some(endpoint) = &peer.endpoint else { return };
    let (key, span) = (format!("{}.endpoint", peer.path), endpoint.span());
    let Host::Addr(addr) = endpoint.get_ref().host else { return };
    match endpoint_fault(addr, listen, is_local) {
        Some(EndpointFault { message, hint }) => report.error(span, &key, message, hint),
        None => {
            if let Some(network) = networks.iter().find(|network| network.contains(&addr)) {
                let message = format!("{addr} lies inside the overlay network {network}");
                let hint = "its datagrams enter the tunnel again unless a longer route leads them out; is this the peer's underlay address?";
                report.warning(span, &key, message, hint);
            }
        }
    }
}

/// Why an underlay address cannot be a peer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointFault {
    /// What is wrong, beginning with the address.
    pub message: String,
    /// The remedy.
    pub hint: String,
}

/// Looks for a reason why `addr` cannot be the underlay address of a peer of an end that listens on `listen`: for
/// addresses in the file, and for those that a host name resolved to.
pub fn endpoint_fault(addr: IpAddr, listen: SocketAddr, is_local: &dyn Fn(IpAddr) -> bool) -> Option<EndpointFault> {
    let fault = |message: String, hint: &str| Some(EndpointFault { message, hint: hint.to_owned() });
    if addr.is_loopback() {
        return fault(format!("{addr} is loopback, which is this host"), "write the other host's underlay address");
    }
    if let Some(why) = unusable(addr) {
        return fault(format!("{addr} is {why}"), "write the other host's underlay address");
    }
    if addr.is_ipv6() && listen.is_ipv4() {
        let hint = format!("set listen = \"[::]:{}\"", listen.port());
        return fault(format!("{addr} is IPv6, and `listen` is IPv4"), &hint);
    }
    if addr.is_ipv4() && listen.is_ipv6() && !listen.ip().is_unspecified() {
        let hint = format!("set listen = \"[::]:{}\"", listen.port());
        return fault(format!("{addr} is IPv4, and `listen` is one IPv6 address"), &hint);
    }
    if is_local(addr) {
        return fault(
            format!("{addr} is this host"),
            "leave this host out of its own peers, or take the other host's file",
        );
    }
    None
}

fn aliases(peer: &DraftPeer, report: &mut Report) {
    let key = format!("{}.aliases", peer.path);
    for (index, alias) in peer.aliases.iter().enumerate() {
        if let Some(why) = unusable(*alias.get_ref()) {
            report.error(alias.span(), &key, format!("{} is {why}", alias.get_ref()), "");
        }
        if peer.aliases[..index].iter().any(|other| other.get_ref() == alias.get_ref()) {
            report.error(alias.span(), &key, format!("{} stands here twice", alias.get_ref()), "remove one");
        }
    }
}

fn same_endpoint(peers: &[DraftPeer], report: &mut Report) {
    let mut seen = HashMap::new();
    for peer in peers {
        let Some(endpoint) = &peer.endpoint else { continue };
        let line = report.line_of(endpoint.span().start);
        if let Some(first) = seen.insert(endpoint.get_ref(), line) {
            let message = format!("{} is the endpoint of the peer on line {first} already", endpoint.get_ref());
            let hint = "one host is one peer: give it the subnets of both";
            report.error(endpoint.span(), &format!("{}.endpoint", peer.path), message, hint);
        }
    }
}

/// Reports host bits, with the prefix that was probably meant.
fn prefix(prefix: &Spanned<IpNet>, key: &str, report: &mut Report) {
    let net = prefix.get_ref();
    if *net != net.trunc() {
        let host = IpNet::new(net.addr(), net.max_prefix_len()).expect("the longest length is valid");
        let message = format!("{net} has host bits set");
        report.error(
            prefix.span(),
            key,
            message,
            format!("write {} for the network, or {host} for that host", net.trunc()),
        );
    } else if let Some(why) = unusable(net.addr()).filter(|_| net.prefix_len() > 0) {
        report.error(prefix.span(), key, format!("{net} is {why}"), "weft carries unicast between hosts only");
    }
}

/// Why no host can be reached at `addr`.
fn unusable(addr: IpAddr) -> Option<&'static str> {
    let link_local = match addr {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if addr.is_unspecified() {
        Some("the unspecified address")
    } else if addr.is_loopback() {
        Some("a loopback address")
    } else if addr.is_multicast() || addr == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("a multicast or broadcast address")
    } else if link_local {
        Some("a link-local address")
    } else {
        None
    }
}
