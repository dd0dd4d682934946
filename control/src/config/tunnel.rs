//! The keys of a tunnel file: text -> [`Draft`], values of the right type that still know where they stand.

use super::read::Section;
use super::{DEFAULT_PORT, Dataplane, Endpoint, MTU_MAX, MTU_MIN, Report};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use toml::Spanned;
use toml::de::DeTable;

/// A tunnel file with the right types; what the values mean together is not checked yet. What was wrong by itself is
/// missing here and reported already.
#[derive(Debug)]
pub struct Draft {
    pub name: Option<Spanned<String>>,
    pub addresses: Vec<Spanned<IpNet>>,
    /// The file has an `address` key; without any, that is the problem to report.
    pub has_address: bool,
    pub networks: Vec<Spanned<IpNet>>,
    pub has_network: bool,
    pub listen: Option<Spanned<SocketAddr>>,
    pub tun: Option<Spanned<String>>,
    pub mtu: Option<Spanned<u32>>,
    pub dataplane: Dataplane,
    /// Where `workers` stands, for a complaint about it.
    pub workers: Option<Spanned<u32>>,
    pub peers: Vec<DraftPeer>,
    /// The file names a peer, rightly or wrongly.
    pub has_peer: bool,
    /// What `name` is called when the file does not say.
    pub stem: String,
}

/// A `[[peer]]` with the right types.
#[derive(Debug)]
pub struct DraftPeer {
    /// `peer[INDEX]`.
    pub path: String,
    pub name: Option<Spanned<String>>,
    pub subnets: Vec<Spanned<IpNet>>,
    /// `subnets = []`.
    pub has_empty_subnets: bool,
    pub endpoint: Option<Spanned<Endpoint>>,
    pub aliases: Vec<Spanned<IpAddr>>,
}

const TUNNEL_KEYS: &[&str] = &["name", "address", "network", "listen", "tun", "mtu", "dataplane", "peer"];
const PEER_KEYS: &[&str] = &["name", "subnets", "endpoint", "aliases"];
const DATAPLANE_KEYS: &[&str] = &[
    "engine",
    "opener",
    "workers",
    "spin_us",
    "source_ports",
    "peer_check",
    "udp_gso",
    "udp_gro",
    "tun_tso",
    "tun_uso",
    "backpressure",
    "sparse_lane",
];

/// Most queue pairs weftd runs.
const WORKERS_MAX: u32 = 64;
/// Longest spin: a worker that polls for a millisecond and finds nothing wastes its core.
const SPIN_US_MAX: u32 = 1000;
/// Syntax errors shown: what follows the first few is mostly their echo.
const SYNTAX_ERRORS_SHOWN: usize = 5;

/// Reads the text. `None` when it is not TOML at all.
pub fn read(text: &str, stem: &str, report: &mut Report) -> Option<Draft> {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors.iter().take(SYNTAX_ERRORS_SHOWN) {
        report.error(error.span().unwrap_or(0..0), "", format!("not valid TOML: {}", error.message()), "");
    }
    if !errors.is_empty() {
        return None;
    }
    let section = Section::new(&document, TUNNEL_KEYS, report);
    let mut draft = Draft {
        name: owned(section.text("name", report)),
        addresses: prefixes(&section, "address", ADDRESS_HINT, report),
        has_address: section.has("address"),
        networks: prefixes(&section, "network", PREFIX_HINT, report),
        has_network: section.has("network"),
        listen: listen(&section, report),
        tun: owned(section.text("tun", report)),
        mtu: section.integer("mtu", u32::from(MTU_MIN)..=u32::from(MTU_MAX), "bytes", report),
        dataplane: Dataplane::default(),
        workers: None,
        peers: Vec::new(),
        has_peer: section.has("peer") && !section.is_empty_array("peer"),
        stem: stem.to_owned(),
    };
    if let Some(table) = section.section("dataplane", DATAPLANE_KEYS, report) {
        (draft.dataplane, draft.workers) = dataplane(&table, report);
    }
    for (index, table) in section.sections("peer", PEER_KEYS, report).iter().enumerate() {
        draft.peers.push(peer(table, index, report));
    }
    Some(draft)
}

const ADDRESS_HINT: &str =
    "write an address and a prefix length, as in \"10.99.0.1/24\", or \"10.99.0.1/32\" for this address alone";
const PREFIX_HINT: &str = "write a prefix with its length, as in \"10.99.2.0/24\"";

fn owned(text: Option<Spanned<&str>>) -> Option<Spanned<String>> {
    text.map(|text| Spanned::new(text.span(), text.get_ref().to_string()))
}

fn prefixes(section: &Section<'_>, key: &str, hint: &str, report: &mut Report) -> Vec<Spanned<IpNet>> {
    let mut prefixes = Vec::new();
    for text in section.texts(key, report) {
        match text.get_ref().parse::<IpNet>() {
            Ok(prefix) => prefixes.push(Spanned::new(text.span(), prefix)),
            Err(_) => {
                let why = match (text.get_ref().parse::<IpAddr>(), text.get_ref().contains('/')) {
                    (Ok(_), _) => "lacks its prefix length",
                    (Err(_), true) => "is not an IP address with a prefix length",
                    (Err(_), false) => "is not an IP prefix",
                };
                report.error(text.span(), &section.path_of(key), format!("{:?} {why}", text.get_ref()), hint);
            }
        }
    }
    prefixes
}

fn listen(section: &Section<'_>, report: &mut Report) -> Option<Spanned<SocketAddr>> {
    let text = section.text("listen", report)?;
    let addr = text.get_ref();
    let parsed = addr
        .parse::<SocketAddr>()
        .ok()
        .or_else(|| addr.trim_matches(['[', ']']).parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, DEFAULT_PORT)))
        .or_else(|| {
            let port = addr.strip_prefix(':').unwrap_or(addr).parse().ok()?;
            Some(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
        });
    if parsed.is_none() {
        let message = format!("{addr:?} is not an address of this host with a port");
        let hint = "write it as in \"0.0.0.0:8285\" (every IPv4 address), \"[::]:8285\" or \"192.0.2.1:8285\"; host names do not go here";
        report.error(text.span(), &section.path_of("listen"), message, hint);
    }
    parsed.map(|parsed| Spanned::new(text.span(), parsed))
}

fn dataplane(table: &Section<'_>, report: &mut Report) -> (Dataplane, Option<Spanned<u32>>) {
    let default = Dataplane::default();
    let workers = table.integer("workers", 1..=WORKERS_MAX, "worker threads", report);
    let dataplane = Dataplane {
        engine: table.keyword("engine", report).unwrap_or(default.engine),
        opener: table.keyword("opener", report).unwrap_or(default.opener),
        workers: workers.as_ref().map(|workers| *workers.get_ref() as u16),
        spin_us: table.integer("spin_us", 0..=SPIN_US_MAX, "microseconds", report).map(Spanned::into_inner),
        source_ports: table.keyword("source_ports", report).unwrap_or(default.source_ports),
        peer_check: table.keyword("peer_check", report).unwrap_or(default.peer_check),
        udp_gso: table.flag("udp_gso", report).unwrap_or(default.udp_gso),
        udp_gro: table.flag("udp_gro", report).unwrap_or(default.udp_gro),
        tun_tso: table.flag("tun_tso", report).unwrap_or(default.tun_tso),
        tun_uso: table.flag("tun_uso", report).unwrap_or(default.tun_uso),
        backpressure: table.flag("backpressure", report).unwrap_or(default.backpressure),
        sparse_lane: table.flag("sparse_lane", report).unwrap_or(default.sparse_lane),
    };
    (dataplane, workers)
}

fn peer(table: &Section<'_>, index: usize, report: &mut Report) -> DraftPeer {
    let missing = |key: &str, hint: &str, report: &mut Report| {
        if !table.has(key) {
            report.error(table.span.clone(), &table.path_of(key), "is missing", hint);
        }
    };
    missing("name", "name the peer, as in name = \"paris\"", report);
    missing("subnets", "say which inner prefixes lie behind the peer, as in subnets = [\"10.99.2.0/24\"]", report);
    missing("endpoint", "say where the peer is, as in endpoint = \"192.0.2.2\" or \"paris.example:8285\"", report);
    let mut endpoint = None;
    if let Some(text) = table.text("endpoint", report) {
        match text.get_ref().parse::<Endpoint>() {
            Ok(parsed) => endpoint = Some(Spanned::new(text.span(), parsed)),
            Err(why) => {
                let hint = "write a host, with a port if it is not 8285: \"192.0.2.2\", \"[2001:db8::2]:8285\", \"paris.example\"";
                report.error(text.span(), &table.path_of("endpoint"), format!("{:?} {why}", text.get_ref()), hint);
            }
        }
    }
    let mut aliases = Vec::new();
    for text in table.texts("aliases", report) {
        match text.get_ref().parse::<IpAddr>() {
            Ok(alias) => aliases.push(Spanned::new(text.span(), alias)),
            Err(_) => {
                let message = format!("{:?} is not an IP address", text.get_ref());
                let hint = "write the underlay address that the peer may also send from, without port or prefix length";
                report.error(text.span(), &table.path_of("aliases"), message, hint);
            }
        }
    }
    DraftPeer {
        path: format!("peer[{index}]"),
        name: owned(table.text("name", report)),
        subnets: prefixes(table, "subnets", PREFIX_HINT, report),
        has_empty_subnets: table.is_empty_array("subnets"),
        endpoint,
        aliases,
    }
}
