//! flanneld's flags and variables, with its names, meanings and defaults.
//!
//! A flag comes from the command line, or else from `FLANNELD_<FLAG>`. What concerns Kubernetes as the registry is refused in
//! one sentence rather than ignored: a node that silently takes its subnet from somewhere else is worse than one that does not
//! start.

mod parse;
mod table;
#[cfg(test)]
mod tests;

pub use parse::FlagError;
pub use table::{FLAGS, Flag, Kind, PREFIX, Scope};

use crate::flannel::annotations;
use parse::{Asked, Values, boolean, integer};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Limits of `--subnet-lease-renew-margin` in minutes: a lease lives for a day.
const RENEW_MARGIN_MIN: i64 = 1;
const RENEW_MARGIN_MAX: i64 = 24 * 60 - 1;
/// Most threads that weftd runs.
const WORKERS_MAX: i64 = 64;
/// Longest time between two looks at the rules, in seconds: beyond a day it is a mistake.
const RESYNC_MAX: i64 = 24 * 60 * 60;
/// Longest `--network-grace`, in seconds: a day.
const GRACE_MAX: i64 = 24 * 60 * 60;
/// The flag whose value is the beginning of names.
const ANNOTATION_PREFIX: &str = "kube-annotation-prefix";
/// Values of weftd's own flags.
const PEER_CHECKS: [&str; 3] = ["strict", "log", "off"];
const SOURCE_PORTS: [&str; 2] = ["same", "spread"];
const ENGINES: [&str; 3] = ["auto", "uring", "epoll"];

/// A text that no log and no message shows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, to use it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if self.0.is_empty() { "none" } else { "hidden" })
    }
}

/// What etcd is reached by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdFlags {
    /// `--etcd-endpoints`, taken apart.
    pub endpoints: Vec<String>,
    /// `--etcd-prefix`.
    pub prefix: String,
    /// `--etcd-keyfile`.
    pub keyfile: Option<PathBuf>,
    /// `--etcd-certfile`.
    pub certfile: Option<PathBuf>,
    /// `--etcd-cafile`.
    pub cafile: Option<PathBuf>,
    /// `--etcd-username`.
    pub username: String,
    /// `--etcd-password`.
    pub password: Secret,
}

/// Every flag, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags {
    /// How etcd is reached.
    pub etcd: EtcdFlags,
    /// `--iface`, in order.
    pub iface: Vec<String>,
    /// `--iface-regex`, in order.
    pub iface_regex: Vec<String>,
    /// `--iface-can-reach`.
    pub iface_can_reach: Option<IpAddr>,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// `--public-ipv6`.
    pub public_ipv6: Option<Ipv6Addr>,
    /// `--subnet-file`.
    pub subnet_file: PathBuf,
    /// `--subnet-lease-renew-margin`.
    pub renew_margin: Duration,
    /// `--ip-masq`.
    pub ip_masq: bool,
    /// Not `--ip-masq-fully-random-disable`.
    pub random_fully: bool,
    /// `--iptables-resync`.
    pub resync: Duration,
    /// `--iptables-forward-rules`.
    pub forward_rules: bool,
    /// `--ip-blackhole-route`.
    pub blackhole: bool,
    /// `--healthz-ip` and `--healthz-port`; `None`: no server.
    pub healthz: Option<SocketAddr>,
    /// `--v`.
    pub verbosity: i64,
    /// `--network-grace`.
    pub network_grace: Duration,
    /// `--run-dir`.
    pub run_dir: PathBuf,
    /// `--peer-check`.
    pub peer_check: String,
    /// `--engine`.
    pub engine: String,
    /// `--workers`.
    pub workers: Option<u32>,
    /// `--source-ports`.
    pub source_ports: String,
    /// `--backpressure`.
    pub backpressure: bool,
    /// `--sparse-lane`.
    pub sparse_lane: bool,
}

/// What a command line turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Run.
    Run(Box<Flags>),
    /// Print the usage text.
    Help,
    /// Print the version.
    Version,
}

/// A command line that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is wrong.
    #[error(transparent)]
    Usage(#[from] FlagError),
    /// It asks for what weft does not do.
    #[error("{0}")]
    Unsupported(String),
}

/// Reads a command line (without the program's name) and the environment.
pub fn read(arguments: &[String], variable: impl Fn(&str) -> Option<String>) -> Result<Command, Refused> {
    let mut values = match parse::command_line(arguments)? {
        Asked::Help => return Ok(Command::Help),
        Asked::Run(values) => values,
    };
    parse::environment(&mut values, variable);
    let given = Given(values);
    if given.boolean("version")? {
        return Ok(Command::Version);
    }
    given.refuse_kubernetes()?;
    Ok(Command::Run(Box::new(given.flags()?)))
}

struct Given(Values);

impl Given {
    fn flags(&self) -> Result<Flags, FlagError> {
        let endpoints = self.text("etcd-endpoints").split(',').map(str::trim).filter(|one| !one.is_empty());
        let etcd = EtcdFlags {
            endpoints: endpoints.map(str::to_owned).collect(),
            prefix: self.text("etcd-prefix").to_owned(),
            keyfile: self.path("etcd-keyfile"),
            certfile: self.path("etcd-certfile"),
            cafile: self.path("etcd-cafile"),
            username: self.text("etcd-username").to_owned(),
            password: Secret(self.text("etcd-password").to_owned()),
        };
        if etcd.endpoints.is_empty() {
            return Err(FlagError("--etcd-endpoints names no endpoint".into()));
        }
        let margin = self.integer("subnet-lease-renew-margin", RENEW_MARGIN_MIN, RENEW_MARGIN_MAX, "minutes")?;
        let healthz_port = self.integer("healthz-port", 0, i64::from(u16::MAX), "")?;
        let healthz_ip: IpAddr = self.address("healthz-ip")?.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        Ok(Flags {
            etcd,
            iface: self.list("iface"),
            iface_regex: self.list("iface-regex"),
            iface_can_reach: self.address("iface-can-reach")?,
            public_ip: self.address("public-ip")?,
            public_ipv6: self.address("public-ipv6")?,
            subnet_file: self.path("subnet-file").ok_or_else(|| FlagError("--subnet-file is empty".into()))?,
            renew_margin: Duration::from_secs(margin * 60),
            ip_masq: self.boolean("ip-masq")?,
            random_fully: !self.boolean("ip-masq-fully-random-disable")?,
            resync: Duration::from_secs(self.integer("iptables-resync", 1, RESYNC_MAX, "seconds")?),
            forward_rules: self.boolean("iptables-forward-rules")?,
            blackhole: self.boolean("ip-blackhole-route")?,
            healthz: (healthz_port > 0).then(|| SocketAddr::new(healthz_ip, healthz_port as u16)),
            verbosity: integer(self.text("v")).ok_or_else(|| wrong("v", self.text("v"), "expected a number"))?,
            network_grace: Duration::from_secs(self.integer("network-grace", 0, GRACE_MAX, "seconds")?),
            run_dir: self.path("run-dir").ok_or_else(|| FlagError("--run-dir is empty".into()))?,
            peer_check: self.word("peer-check", &PEER_CHECKS)?,
            engine: self.word("engine", &ENGINES)?,
            workers: match self.text("workers") {
                "" => None,
                _ => Some(self.integer("workers", 1, WORKERS_MAX, "")? as u32),
            },
            source_ports: self.word("source-ports", &SOURCE_PORTS)?,
            backpressure: self.boolean("backpressure")?,
            sparse_lane: self.boolean("sparse-lane")?,
        })
    }

    fn refuse_kubernetes(&self) -> Result<(), Refused> {
        // What Kubernetes' own flannel would not start with is a mistake, whichever registry is meant.
        let prefix = self.text(ANNOTATION_PREFIX);
        annotations::complete(prefix).map_err(|why| wrong(ANNOTATION_PREFIX, prefix, &why))?;
        for flag in FLAGS.iter().filter(|flag| flag.scope == Scope::Kubernetes) {
            let is_default = match flag.kind {
                Kind::Bool => boolean(flag.default) == Some(self.boolean(flag.name)?),
                _ => self.text(flag.name) == flag.default,
            };
            if !is_default {
                return Err(Refused::Unsupported(format!(
                    "--{} is for Kubernetes as the registry, and this flanneld takes leases from etcd only",
                    flag.name
                )));
            }
        }
        Ok(())
    }

    /// The last value given, or the default.
    fn text(&self, name: &str) -> &str {
        let given = self.0.get(name).and_then(|values| values.last()).map(String::as_str);
        given.unwrap_or_else(|| FLAGS.iter().find(|flag| flag.name == name).map_or("", |flag| flag.default))
    }

    fn list(&self, name: &str) -> Vec<String> {
        self.0.get(name).cloned().unwrap_or_default()
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        Some(self.text(name)).filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    fn boolean(&self, name: &str) -> Result<bool, FlagError> {
        let text = self.text(name);
        boolean(text).ok_or_else(|| wrong(name, text, "expected true or false"))
    }

    fn integer(&self, name: &str, min: i64, max: i64, unit: &str) -> Result<u64, FlagError> {
        let text = self.text(name);
        let valid = integer(text).filter(|value| (min..=max).contains(value));
        let expected = || format!("expected a number from {min} to {max} {unit}").trim_end().to_owned();
        valid.map(|value| value as u64).ok_or_else(|| wrong(name, text, &expected()))
    }

    fn address<A: FromStr>(&self, name: &str) -> Result<Option<A>, FlagError> {
        match self.text(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                let family = match name {
                    "public-ip" => "an IPv4 address",
                    "public-ipv6" => "an IPv6 address",
                    _ => "an IP address",
                };
                wrong(name, text, &format!("expected {family}"))
            }),
        }
    }

    fn word(&self, name: &str, words: &[&str]) -> Result<String, FlagError> {
        let text = self.text(name);
        match words.contains(&text) {
            true => Ok(text.to_owned()),
            false => Err(wrong(name, text, &format!("expected one of {}", words.join(", ")))),
        }
    }
}

fn wrong(name: &str, text: &str, expected: &str) -> FlagError {
    FlagError(format!("--{name}: {text:?} is not valid: {expected}"))
}

/// The usage text.
pub fn usage(program: &str) -> String {
    let mut text = format!("Usage: {program} [FLAG]...\n");
    for (scope, heading) in [
        (Scope::Flannel, "flannel's flags"),
        (Scope::Weft, "weft's own flags"),
        (Scope::Accepted, "Accepted, without an effect"),
        (Scope::Kubernetes, "For Kubernetes as the registry, which this flanneld does not use: refused"),
    ] {
        text += &format!("\n{heading}:\n");
        for flag in FLAGS.iter().filter(|flag| flag.scope == scope) {
            let value = if flag.kind == Kind::Bool { "" } else { " VALUE" };
            let default = if flag.default.is_empty() { String::new() } else { format!(" [{}]", flag.default) };
            text += &format!("  --{}{value}\n        {}{default}\n", flag.name, flag.help);
        }
    }
    text + "\nA flag that is not given is taken from FLANNELD_<FLAG>, such as FLANNELD_ETCD_ENDPOINTS.\n"
}
