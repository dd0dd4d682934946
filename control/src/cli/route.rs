//! `weft route`: look at the table in force and change it.

use super::output::{self, SocketArgs, daemon, usage};
use super::{CliError, Exit};
use crate::client::{Client, ClientError, Table};
use anyhow::anyhow;
use clap::Subcommand;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use weft_proto::{Delta, Digest, Installed, PeerSpec, RouteSet, RouteSpec, canonical_addr};

/// How often an edit is tried again after somebody else changed the table in between.
const EDIT_ATTEMPTS_MAX: usize = 5;

/// Look at the routes in force and change them
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    socket: SocketArgs,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print every route
    List,
    /// Print the route that a packet to ADDR takes; exits 1 if there is none
    Get {
        /// Inner destination address
        addr: IpAddr,
    },
    /// Add a route, or point an existing one elsewhere: PREFIX via ADDR[:PORT]
    Add {
        /// Inner destination prefix
        prefix: IpNet,
        /// The word "via"
        #[arg(value_parser = via)]
        via: Via,
        /// The peer's underlay address; the port defaults to weftd's own
        #[arg(value_name = "ADDR[:PORT]", value_parser = next_hop)]
        next_hop: NextHop,
        /// Name of the peer, for people [default: as it is]
        #[arg(long)]
        name: Option<String>,
    },
    /// Delete a route
    Del {
        /// The exact prefix
        prefix: IpNet,
    },
    /// Replace the whole table by the one in FILE, all or nothing
    #[command(after_long_help = FILE_HELP)]
    Replace {
        /// Route file: TOML, or JSON if it ends in .json; `-` reads standard input
        file: PathBuf,
        /// Refuse unless this generation is in force
        #[arg(long, value_name = "GENERATION")]
        expect: Option<u64>,
    },
}

const FILE_HELP: &str = "\
A route file lists peers and the prefixes that each one serves:

    [[peer]]
    addr = \"192.0.2.7:8285\"            # the port defaults to weftd's own
    name = \"node-b\"                    # optional
    aliases = [\"198.51.100.7\"]         # optional: further addresses it sends from
    routes = [\"10.5.2.0/24\"]

JSON has the same shape: {\"peers\": [{\"addr\": ..., \"routes\": [...]}]}; `weft route list --json` prints it.";

/// Runs the command.
pub fn run(args: Args) -> Result<Exit, CliError> {
    match args.verb {
        Verb::List => list(&args.socket, args.json),
        Verb::Get { addr } => get(&args.socket, args.json, addr),
        Verb::Add { prefix, via: _, next_hop, ref name } => edit(&args, |client, table| {
            let addr = next_hop.addr(client.hello().bind.port());
            let known = table.set.peers.iter().find(|peer| peer.addr == canonical_addr(addr)).cloned();
            let mut peer = known.unwrap_or(PeerSpec { name: None, addr, aliases: Vec::new() });
            if name.is_some() {
                peer.name.clone_from(name);
            }
            Ok(Delta { upsert: vec![(prefix, peer)], remove: Vec::new() })
        }),
        Verb::Del { prefix } => edit(&args, |_, table| {
            if !table.set.routes.iter().any(|route| route.prefix == prefix) {
                let hint = format!("`weft route get {}` shows what covers it", prefix.addr());
                return Err(anyhow!("there is no route for exactly {prefix}; {hint}").into());
            }
            Ok(Delta { upsert: Vec::new(), remove: vec![prefix] })
        }),
        Verb::Replace { ref file, expect } => {
            let parsed = RouteFile::read(file)?;
            let mut client = args.socket.connect()?;
            let set = parsed.into_set(client.hello().bind.port());
            let installed = client.swap(&set, expect).map_err(daemon)?;
            report(installed, args.json)
        }
    }
}

fn list(socket: &SocketArgs, json: bool) -> Result<Exit, CliError> {
    let table = socket.connect()?.routes().map_err(daemon)?;
    if json {
        output::print_json(&RouteFile::from_table(table), false)?;
        return Ok(Exit::Ok);
    }
    for route in &table.set.routes {
        if !output::print(format_args!("{} via {}", route.prefix, people(&table.set.peers[route.peer as usize])))? {
            break;
        }
    }
    Ok(Exit::Ok)
}

fn get(socket: &SocketArgs, json: bool, address: IpAddr) -> Result<Exit, CliError> {
    let answer = socket.connect()?.get(address).map_err(daemon)?;
    let found = answer.route.is_some();
    if json {
        output::print_json(&answer, false)?;
    } else {
        output::print(match &answer.route {
            Some(route) => format!("{address} via {} by route {}", people(&route.peer), route.prefix),
            None => format!("{address}: no route covers it (generation {})", answer.generation),
        })?;
    }
    Ok(if found { Exit::Ok } else { Exit::Failed })
}

/// Reads the table, makes a change of it, and applies that to the very table that was read.
fn edit(args: &Args, change: impl Fn(&Client, &Table) -> Result<Delta, CliError>) -> Result<Exit, CliError> {
    let mut client = args.socket.connect()?;
    let mut attempts = 1;
    loop {
        let table = client.routes().map_err(daemon)?;
        let delta = change(&client, &table)?;
        match client.delta(&delta, Some(table.installed.generation)) {
            Ok(installed) => return report(installed, args.json),
            Err(error @ ClientError::Refused(_)) if error.is_stale() && attempts < EDIT_ATTEMPTS_MAX => attempts += 1,
            Err(error) => return Err(daemon(error)),
        }
    }
}

fn report(installed: Installed, json: bool) -> Result<Exit, CliError> {
    if json {
        output::print_json(&installed, false)?;
    } else {
        let Installed { generation, digest, routes, peers } = installed;
        let (routes, peers) = (output::count(routes, "route"), output::count(peers, "peer"));
        output::print(format_args!("generation {generation} in force: {routes}, {peers}, digest {digest}"))?;
    }
    Ok(Exit::Ok)
}

fn people(peer: &PeerSpec) -> String {
    match &peer.name {
        Some(name) => format!("{} ({name})", peer.addr),
        None => peer.addr.to_string(),
    }
}

/// The word before the next hop.
#[derive(Clone, Copy, Debug)]
struct Via;

fn via(text: &str) -> Result<Via, String> {
    match text {
        "via" => Ok(Via),
        _ => Err("write the word via before the next hop, as in: weft route add 10.5.2.0/24 via 192.0.2.7".to_owned()),
    }
}

/// An address with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NextHop {
    ip: IpAddr,
    port: Option<u16>,
}

impl NextHop {
    fn addr(self, default_port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.unwrap_or(default_port))
    }
}

/// Reads `192.0.2.7`, `192.0.2.7:8285`, `2001:db8::7`, `[2001:db8::7]` or `[2001:db8::7]:8285`.
fn next_hop(text: &str) -> Result<NextHop, String> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(NextHop { ip: addr.ip(), port: Some(addr.port()) });
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    match bare.parse() {
        Ok(ip) => Ok(NextHop { ip, port: None }),
        Err(_) => Err(format!("\"{text}\" is no ADDR[:PORT]; write 192.0.2.7:8285 or [2001:db8::7]:8285")),
    }
}

/// A route file, which is also what `route list --json` prints.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteFile {
    /// Printed, not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    /// Printed, not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    #[serde(default, alias = "peer")]
    peers: Vec<FilePeer>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePeer {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    addr: FileAddr,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<IpAddr>,
    #[serde(default)]
    routes: Vec<IpNet>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct FileAddr(NextHop);

impl Clone for FileAddr {
    fn clone(&self) -> Self {
        FileAddr(self.0)
    }
}

impl TryFrom<String> for FileAddr {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        next_hop(&text).map(FileAddr)
    }
}

impl From<FileAddr> for String {
    fn from(addr: FileAddr) -> String {
        match addr.0.port {
            Some(port) => SocketAddr::new(addr.0.ip, port).to_string(),
            None => addr.0.ip.to_string(),
        }
    }
}

impl RouteFile {
    fn read(path: &Path) -> Result<RouteFile, CliError> {
        let shown = path.display();
        let text = if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        } else {
            std::fs::read_to_string(path)
        };
        let text = text.map_err(|error| usage(format!("{shown}: {error}")))?;
        let is_json =
            path.extension().is_some_and(|extension| extension == "json") || text.trim_start().starts_with('{');
        let parsed = if is_json {
            serde_json::from_str(&text).map_err(|error| error.to_string())
        } else {
            toml::from_str(&text).map_err(|error| error.to_string())
        };
        parsed.map_err(|error| usage(format!("{shown}: {error}; `weft route replace --help` shows the format")))
    }

    fn into_set(self, default_port: u16) -> RouteSet {
        let mut set = RouteSet::default();
        for (index, peer) in (0..).zip(self.peers) {
            set.routes.extend(peer.routes.into_iter().map(|prefix| RouteSpec { prefix, peer: index }));
            set.peers.push(PeerSpec { name: peer.name, addr: peer.addr.0.addr(default_port), aliases: peer.aliases });
        }
        set
    }

    fn from_table(table: Table) -> RouteFile {
        let mut peers: Vec<FilePeer> = table
            .set
            .peers
            .into_iter()
            .map(|PeerSpec { name, addr, aliases }| {
                let addr = FileAddr(NextHop { ip: addr.ip(), port: Some(addr.port()) });
                FilePeer { name, addr, aliases, routes: Vec::new() }
            })
            .collect();
        for route in table.set.routes {
            peers[route.peer as usize].routes.push(route.prefix);
        }
        let Installed { generation, digest, .. } = table.installed;
        RouteFile { generation: Some(generation), digest: Some(digest), peers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_hop_is_an_address_with_or_without_a_port() {
        for (text, expected) in [
            ("192.0.2.7", "192.0.2.7:8285"),
            ("192.0.2.7:99", "192.0.2.7:99"),
            ("2001:db8::7", "[2001:db8::7]:8285"),
            ("[2001:db8::7]", "[2001:db8::7]:8285"),
            ("[2001:db8::7]:99", "[2001:db8::7]:99"),
        ] {
            assert_eq!(next_hop(text).unwrap().addr(8285).to_string(), expected, "{text}");
        }
        for text in ["", "host", "192.0.2.7:", "192.0.2.7:99999", "[192.0.2.7", "10.0.0.0/8"] {
            assert!(next_hop(text).is_err(), "{text}");
        }
    }

    #[test]
    fn toml_and_json_route_files_mean_the_same_table() {
        let dir = tempfile::tempdir().unwrap();
        let (toml, json) = (dir.path().join("r.toml"), dir.path().join("r.json"));
        std::fs::write(
            &toml,
            "[[peer]]\naddr = \"192.0.2.7\"\nname = \"b\"\nroutes = [\"10.5.2.0/24\", \"fd00::/64\"]\n",
        )
        .unwrap();
        std::fs::write(
            &json,
            r#"{"peers": [{"addr": "192.0.2.7:8285", "name": "b", "routes": ["10.5.2.0/24", "fd00::/64"]}]}"#,
        )
        .unwrap();
        let [toml, json] = [toml, json].map(|path| RouteFile::read(&path).unwrap().into_set(8285));
        assert_eq!(toml, json);
        assert_eq!(toml.routes.len(), 2);
    }

    #[test]
    fn a_bad_route_file_is_a_usage_error_that_names_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.toml");
        std::fs::write(&path, "[[peer]]\naddr = \"192.0.2.7\"\nrouts = []\n").unwrap();
        let error = RouteFile::read(&path).unwrap_err();
        assert_eq!(error.exit, Exit::Usage);
        let text = error.error.to_string();
        assert!(text.contains("r.toml") && text.contains("line 3") && text.contains("routs"), "{text}");
    }
}
