//! What a tunnel file may say, and what is said about one that may not.

use super::*;
use proptest::prelude::*;

const GOOD: &str = r#"
name = "office"
address = "10.99.0.1/24"
network = "10.99.0.0/16"

[[peer]]
name = "b"
subnets = ["10.99.2.0/24"]
endpoint = "192.0.2.2"
"#;

fn parse_text(text: &str) -> Result<Loaded, LoadError> {
    parse("t.toml", "stem", text, &|addr| addr == IpAddr::from([192, 0, 2, 1]))
}

fn report_of(text: &str) -> Report {
    match parse_text(text) {
        Ok(loaded) => loaded.report,
        Err(LoadError::Wrong(report)) => report,
        Err(other) => panic!("{other}"),
    }
}

/// The good file with `from` replaced.
fn with(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replacen(from, to, 1)
}

#[test]
fn a_good_file_has_defaults_for_the_rest() {
    let loaded = parse_text(GOOD).unwrap();
    assert_eq!(loaded.report.problems, []);
    let tunnel = loaded.tunnel;
    assert_eq!(tunnel.tun, "office");
    assert_eq!(tunnel.listen, "0.0.0.0:8285".parse().unwrap());
    assert_eq!(tunnel.mtu, None);
    assert_eq!(tunnel.dataplane, Dataplane::default());
    assert_eq!(tunnel.peers[0].endpoint.to_string(), "192.0.2.2:8285");
}

#[test]
fn without_a_network_the_subnets_of_the_peers_are_routed() {
    let tunnel = parse_text(&with("network = \"10.99.0.0/16\"\n", "")).unwrap().tunnel;
    assert_eq!(tunnel.networks, ["10.99.2.0/24".parse::<IpNet>().unwrap()]);
}

#[test]
fn without_a_name_the_file_names_the_tunnel() {
    assert_eq!(parse_text(&with("name = \"office\"\n", "")).unwrap().tunnel.name, "stem");
}

#[test]
fn every_key_is_read() {
    let text = r#"
name = "n"
address = ["10.0.0.1/32", "fd00::1/64"]
network = ["10.0.0.0/8", "fd00::/48"]
listen = "[::]:9000"
tun = "flannel%d"
mtu = 1400
[dataplane]
engine = "epoll"
opener = "simple"
workers = 1
spin_us = 50
source_ports = "spread"
peer_check = "log"
udp_gso = false
udp_gro = false
tun_tso = false
tun_uso = false
backpressure = false
sparse_lane = false
[[peer]]
name = "b"
subnets = "10.1.0.0/16"
endpoint = "b.example:9001"
aliases = ["2001:db8::7"]
"#;
    let tunnel = parse_text(text).unwrap().tunnel;
    let dataplane = Dataplane {
        engine: Engine::Epoll,
        opener: Opener::Simple,
        workers: Some(1),
        spin_us: Some(50),
        source_ports: SourcePorts::Spread,
        peer_check: PeerCheck::Log,
        udp_gso: false,
        udp_gro: false,
        tun_tso: false,
        tun_uso: false,
        backpressure: false,
        sparse_lane: false,
    };
    assert_eq!(tunnel.dataplane, dataplane);
    assert_eq!((tunnel.tun.as_str(), tunnel.mtu), ("flannel%d", Some(1400)));
    assert_eq!(tunnel.listen, "[::]:9000".parse().unwrap());
    assert_eq!(tunnel.peers[0].endpoint.host, Host::Name("b.example".into()));
    assert_eq!(tunnel.peers[0].aliases, ["2001:db8::7".parse::<IpAddr>().unwrap()]);
}

/// (what to replace in the good file, with what, line, key, part of the message, part of the hint).
type Case = (&'static str, &'static str, usize, &'static str, &'static str, &'static str);

fn assert_says(cases: &[Case], severity: Severity) {
    for (from, to, line, key, message, hint) in cases {
        let report = report_of(&with(from, to));
        let found = report.problems.iter().find(|problem| {
            problem.severity == severity
                && problem.line == *line
                && problem.key == *key
                && problem.message.contains(message)
                && problem.hint.as_deref().unwrap_or_default().contains(hint)
        });
        assert!(found.is_some(), "{to:?} should say {message:?} and {hint:?} on line {line} about {key:?}:\n{report}");
    }
}

#[test]
fn errors_name_line_key_and_remedy() {
    let address = "address = \"10.99.0.1/24\"";
    let subnets = "subnets = [\"10.99.2.0/24\"]";
    let endpoint = "endpoint = \"192.0.2.2\"";
    let cases: &[Case] = &[
        (address, "address = \"10.99.0.1\"", 3, "address", "lacks its prefix length", "10.99.0.1/32"),
        (address, "address = \"10.99.0.1/33\"", 3, "address", "is not an IP address with a prefix", ""),
        (address, "address = 7", 3, "address", "is an integer; a string or an array of strings was expected", ""),
        (address, "", 1, "address", "is missing", "address = "),
        (address, "address = [\"10.99.0.1/24\", \"10.99.0.2/24\"]", 3, "address", "one address of each family", ""),
        (address, "address = \"10.98.0.1/24\"", 3, "address", "outside `network`", "mistyped"),
        (address, "address = \"127.0.0.1/8\"", 3, "address", "a loopback address", ""),
        (address, "adress = \"10.99.0.1/24\"", 3, "adress", "unknown key", "`address`"),
        (subnets, "AllowedIPs = [\"10.99.2.0/24\"]", 8, "peer[0].AllowedIPs", "unknown key", "`subnets`"),
        (subnets, "subnets = []", 7, "peer[0].subnets", "empty list", "subnets = "),
        (subnets, "", 6, "peer[0].subnets", "is missing", "subnets = "),
        (
            subnets,
            "subnets = [\"10.99.2.7/24\"]",
            8,
            "peer[0].subnets",
            "host bits",
            "10.99.2.0/24 for the network, or 10.99.2.7/32",
        ),
        (subnets, "subnets = [\"10.98.2.0/24\"]", 8, "peer[0].subnets", "outside `network`", "leave `network` out"),
        (subnets, "subnets = [\"10.99.0.1/32\"]", 8, "peer[0].subnets", "own address", "other host's file"),
        (subnets, "subnets = [\"10.99.2.0/24\", \"10.99.2.0/24\"]", 8, "peer[0].subnets", "already", ""),
        (endpoint, "endpoint = \"127.0.0.1\"", 9, "peer[0].endpoint", "loopback", ""),
        (endpoint, "endpoint = \"192.0.2.1\"", 9, "peer[0].endpoint", "is this host", ""),
        (endpoint, "endpoint = \"192.0.2.2:0\"", 9, "peer[0].endpoint", "port 0", ""),
        (endpoint, "endpoint = \"2001:db8::2\"", 9, "peer[0].endpoint", "`listen` is IPv4", "[::]:8285"),
        (endpoint, "endpoint = \"224.0.0.1\"", 9, "peer[0].endpoint", "multicast", ""),
        ("network = \"10.99.0.0/16\"", "network = \"10.99.0.1/16\"", 4, "network", "host bits", "10.99.0.0/16"),
        ("network = \"10.99.0.0/16\"", "network = \"0.0.0.0/0\"", 4, "network", "default route", "ip rule"),
        ("network =", "mtu = 10\nnetwork =", 4, "mtu", "out of range", ""),
        (
            "network =",
            "listen = \"example.org:1\"\nnetwork =",
            4,
            "listen",
            "not an address of this host",
            "0.0.0.0:8285",
        ),
        ("network =", "listen = \"0.0.0.0:0\"\nnetwork =", 4, "listen", "port 0", "8285"),
        ("network =", "tun = \"a-name-that-is-too-long\"\nnetwork =", 4, "tun", "23 bytes", ""),
        ("network =", "tun = \"weft/0\"\nnetwork =", 4, "tun", "'/'", ""),
        (
            "[[peer]]",
            "[dataplane]\nengine = \"urine\"\n[[peer]]",
            7,
            "dataplane.engine",
            "not one of auto, uring, epoll",
            "\"uring\"",
        ),
        ("[[peer]]", "[dataplane]\nudp_gso = \"no\"\n[[peer]]", 7, "dataplane.udp_gso", "true or false", "quotes"),
        (
            "[[peer]]",
            "[dataplane]\nopener = \"simple\"\nworkers = 2\n[[peer]]",
            8,
            "dataplane.workers",
            "has one",
            "native",
        ),
        ("[[peer]]", "[peer]", 6, "peer", "an array of tables was expected", "[[peer]]"),
        ("name = \"office\"", "name = \"the office\"", 2, "name", "' '", ""),
        ("name = \"office\"", "name = \"office", 2, "", "not valid TOML", ""),
    ];
    assert_says(cases, Severity::Error);
}

#[test]
fn slips_that_may_be_meant_are_warnings() {
    let cases: &[Case] = &[
        ("10.99.0.1/24", "10.99.0.0/24", 3, "address", "network address", "/32"),
        ("10.99.2.0/24", "10.99.0.0/25", 8, "peer[0].subnets", "covers this end's own address", "other host's file"),
        ("192.0.2.2", "10.99.7.7", 9, "peer[0].endpoint", "inside the overlay network", ""),
        ("network =", "listen = \"127.0.0.1\"\nnetwork =", 4, "listen", "loopback", ""),
    ];
    assert_says(cases, Severity::Warning);
}

#[test]
fn a_hub_may_hold_the_whole_network() {
    for subnet in ["10.99.0.0/16", "10.99.0.0/24", "0.0.0.0/0"] {
        assert_eq!(report_of(&with("10.99.2.0/24", subnet)).problems, [], "{subnet}");
    }
}

#[test]
fn a_small_mtu_is_refused_only_where_ipv6_is_carried() {
    let small = with("network =", "mtu = 1000\nnetwork =");
    assert!(parse_text(&small).is_ok());
    let with_ipv6 = small.replace("\"10.99.0.1/24\"", "[\"10.99.0.1/24\", \"fd00::1/64\"]");
    assert!(report_of(&with_ipv6).to_string().contains("too small for IPv6"));
}

#[test]
fn two_peers_may_share_neither_name_nor_subnet_nor_endpoint() {
    let report = report_of(&format!(
        "{GOOD}\n[[peer]]\nname = \"b\"\nsubnets = [\"10.99.2.0/24\"]\nendpoint = \"192.0.2.2:8285\"\n"
    ));
    let said: Vec<(usize, &str)> =
        report.problems.iter().map(|problem| (problem.line, problem.message.as_str())).collect();
    let expected = [
        (12, "\"b\" is the name of the peer on line 7 already"),
        (13, "10.99.2.0/24 leads to peer \"b\" already (line 8)"),
        (14, "192.0.2.2:8285 is the endpoint of the peer on line 9 already"),
    ];
    assert_eq!(said, expected);
}

#[test]
fn all_problems_of_a_file_are_told_at_once() {
    let text = with("\"10.99.0.1/24\"", "5").replace("10.99.2.0/24", "10.99.2.1/24").replace("endpoint", "endpont");
    let keys: Vec<String> = report_of(&text).problems.into_iter().map(|problem| problem.key).collect();
    assert_eq!(keys, ["address", "peer[0].endpoint", "peer[0].subnets", "peer[0].endpont"]);
}

#[test]
fn a_host_name_is_not_resolved_by_the_check() {
    assert!(parse_text(&with("192.0.2.2", "no-such-host.invalid")).is_ok());
}

#[test]
fn every_example_passes_the_check() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let mut count = 0;
    for entry in std::fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let (file, stem) = (path.display().to_string(), path.file_stem().unwrap().to_string_lossy());
            let text = std::fs::read_to_string(&path).unwrap();
            // This host may own one of the documentation addresses.
            let loaded = parse(&file, &stem, &text, &|_| false).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(loaded.report.problems, [], "{}", loaded.report);
            count += 1;
        }
    }
    assert!(count >= 5, "{count} examples");
}

#[test]
fn a_missing_file_is_named() {
    let error = load(Path::new("/nonexistent/t.toml")).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/t.toml") && error.contains("No such file"), "{error}");
}

proptest! {
    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}") {
        let _ = parse_text(&text);
    }

    #[test]
    fn any_cut_of_a_good_file_is_answered(cut in 0..GOOD.len()) {
        let _ = parse_text(&GOOD[..cut]);
    }
}
