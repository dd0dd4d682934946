//! What stands on the command line for a subject.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

/// A subject as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubjectSpec {
    /// As it was written; of an external subject its NAME. Names the subject everywhere.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

/// What can be measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The tunnel of this project.
    Weft(WeftSpec),
    /// The kernel's VXLAN, programmed as flannel does.
    Vxlan,
    /// A route, no tunnel; flannel's host-gw.
    HostGw,
    /// WireGuard in userspace, if the program is installed.
    WireguardGo,
    /// Any program that makes a tunnel: a command line for the shell.
    External(String),
}

/// Settings of weft; `None`: the default that `weft up` gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeftSpec {
    /// `uring` or `epoll`.
    pub engine: Option<String>,
    /// `native` or `simple`.
    pub opener: Option<String>,
    /// Microseconds.
    pub spin_us: Option<u32>,
    /// Worker threads.
    pub workers: Option<u32>,
    /// `same` or `spread`.
    pub source_ports: Option<String>,
    /// Another weftd than the one beside weft-bench.
    pub binary: Option<PathBuf>,
    /// Offloads that are switched off: `udp-gso`, `udp-gro`, `tun-tso`, `tun-uso`, `backpressure`, `sparse-lane`.
    pub off: Vec<String>,
}

/// The subjects, for messages and `weft-bench list`: form and meaning.
pub const FORMS: [(&str, &str); 12] = [
    ("weft", "weft with the settings that `weft up` gives"),
    ("weft:engine=uring", "by io_uring; or engine=epoll"),
    ("weft:opener=simple", "one TUN queue without offloads; or opener=native"),
    ("weft:spin=US", "a worker looks for work for US microseconds before it sleeps; 0: not at all"),
    ("weft:workers=N", "N worker threads on each host"),
    ("weft:source-ports=spread", "each worker sends from a UDP port of its own; or source-ports=same"),
    ("weft:udp-gso=off", "without an offload; also udp-gro, tun-tso, tun-uso, backpressure, sparse-lane"),
    ("weft:bin=PATH", "another build of weftd; settings combine: weft:bin=PATH,engine=epoll,spin=0"),
    ("vxlan", "kernel VXLAN as flannel programs it: VNI 1, permanent neighbour and forwarding entry"),
    ("host-gw", "a plain route, no tunnel"),
    ("wireguard-go", "WireGuard in userspace, where the program is installed: it encrypts, the others do not"),
    (
        "external:NAME=COMMAND",
        "any program, started on each host; benches/examples/ has some and says what they are told",
    ),
];

/// Each subject has an overlay network of its own, 10.100.0.0/16 to 10.199.0.0/16.
const COUNT_MAX: usize = 100;
const SWITCHES: [&str; 6] = ["udp-gso", "udp-gro", "tun-tso", "tun-uso", "backpressure", "sparse-lane"];

impl SubjectSpec {
    /// Reads one subject.
    ///
    /// # Errors
    /// What was expected instead.
    pub fn parse(text: &str) -> Result<SubjectSpec> {
        let kind = match text.split_once(':').unwrap_or((text, "")) {
            ("weft", settings) => {
                ensure!(settings.is_empty() != text.contains(':'), "`{text}`: expected settings such as engine=epoll");
                Kind::Weft(WeftSpec::parse(settings).with_context(|| format!("subject `{text}`"))?)
            }
            ("vxlan", "") => Kind::Vxlan,
            ("host-gw", "") => Kind::HostGw,
            ("wireguard-go", "") => Kind::WireguardGo,
            ("external", settings) => {
                let (name, command) = settings
                    .split_once('=')
                    .filter(|(name, command)| !name.trim().is_empty() && !command.trim().is_empty())
                    .with_context(|| format!("`{text}`: expected external:NAME=COMMAND"))?;
                return Ok(SubjectSpec { name: name.to_owned(), kind: Kind::External(command.to_owned()) });
            }
            _ => bail!("`{text}` is no subject; `weft-bench list` shows them, such as weft, weft:engine=epoll, vxlan"),
        };
        Ok(SubjectSpec { name: text.to_owned(), kind })
    }

    /// Reads a list separated by commas. A piece such as `spin=0` belongs to the `weft:...` before it.
    ///
    /// # Errors
    /// As [`SubjectSpec::parse`].
    pub fn parse_list(text: &str) -> Result<Vec<SubjectSpec>> {
        let mut texts: Vec<String> = Vec::new();
        for piece in text.split(',') {
            let is_setting = piece.split_once('=').is_some_and(|(key, _)| !key.contains(':'));
            match texts.last_mut() {
                Some(last) if is_setting && last.starts_with("weft:") => {
                    last.push(',');
                    last.push_str(piece);
                }
                _ => texts.push(piece.to_owned()),
            }
        }
        texts.iter().map(|text| SubjectSpec::parse(text)).collect()
    }

    /// Checks a whole list: as many as there are addresses for, and none twice.
    ///
    /// # Errors
    /// Which one is wrong.
    pub fn check(specs: &[SubjectSpec]) -> Result<()> {
        ensure!(specs.len() <= COUNT_MAX, "{} subjects: expected at most {COUNT_MAX}", specs.len());
        for (index, spec) in specs.iter().enumerate() {
            let is_new = specs[..index].iter().all(|other| other.name != spec.name);
            ensure!(is_new, "subject `{}` is there twice", spec.name);
        }
        Ok(())
    }
}

impl fmt::Display for SubjectSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

impl Kind {
    /// It can be set up with many peers.
    pub fn has_peers(&self) -> bool {
        matches!(self, Kind::Weft(_) | Kind::Vxlan | Kind::HostGw)
    }

    /// The word in JSON.
    pub fn word(&self) -> &'static str {
        match self {
            Kind::Weft(_) => "weft",
            Kind::Vxlan => "vxlan",
            Kind::HostGw => "host-gw",
            Kind::WireguardGo => "wireguard-go",
            Kind::External(_) => "external",
        }
    }
}

impl WeftSpec {
    fn parse(settings: &str) -> Result<WeftSpec> {
        let mut spec = WeftSpec::default();
        for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
            let (key, value) = setting.split_once('=').with_context(|| format!("`{setting}`: expected KEY=VALUE"))?;
            let one_of = |words: &[&str]| {
                ensure!(words.contains(&value), "{key}={value}: expected {}", words.join(" or "));
                Ok(Some(value.to_owned()))
            };
            let number = || value.parse().map(Some).with_context(|| format!("{key}={value}: expected a number"));
            match key {
                "engine" => spec.engine = one_of(&["uring", "epoll"])?,
                "opener" => spec.opener = one_of(&["native", "simple"])?,
                "spin" => spec.spin_us = number()?,
                "workers" => spec.workers = number()?,
                "source-ports" => spec.source_ports = one_of(&["same", "spread"])?,
                "bin" => spec.binary = Some(value.into()),
                _ if SWITCHES.contains(&key) => {
                    if one_of(&["on", "off"])?.as_deref() == Some("off") {
                        spec.off.push(key.to_owned());
                    }
                }
                _ => {
                    let switches = SWITCHES.join(", ");
                    bail!(
                        "`{key}` is no setting: expected engine, opener, spin, workers, source-ports, bin, {switches}"
                    )
                }
            }
        }
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_after_a_comma_belong_to_the_weft_before_it() {
        let specs = SubjectSpec::parse_list("weft,weft:engine=epoll,spin=0,vxlan,weft:udp-gso=off,host-gw").unwrap();
        let names: Vec<_> = specs.iter().map(|spec| spec.name.as_str()).collect();
        assert_eq!(names, ["weft", "weft:engine=epoll,spin=0", "vxlan", "weft:udp-gso=off", "host-gw"]);
        let epoll = WeftSpec { engine: Some("epoll".into()), spin_us: Some(0), ..WeftSpec::default() };
        assert_eq!(specs[1].kind, Kind::Weft(epoll));
        assert_eq!(specs[3].kind, Kind::Weft(WeftSpec { off: vec!["udp-gso".into()], ..WeftSpec::default() }));
    }

    #[test]
    fn an_external_subject_has_a_name_and_a_command() {
        let specs = SubjectSpec::parse_list("external:mine=./tunnel -p $WEFT_BENCH_PORT,vxlan").unwrap();
        assert_eq!((specs[0].name.as_str(), specs.len()), ("mine", 2));
        assert_eq!(specs[0].kind, Kind::External("./tunnel -p $WEFT_BENCH_PORT".into()));
    }

    #[test]
    fn nonsense_is_answered_with_what_was_expected() {
        for (text, expected) in [
            ("wireguard", "weft-bench list"),
            ("", "is no subject"),
            ("vxlan:vni=3", "is no subject"),
            ("weft:", "expected settings"),
            ("weft:engine=dpdk", "expected uring or epoll"),
            ("weft:engine", "expected KEY=VALUE"),
            ("weft:spin=fast", "expected a number"),
            ("weft:colour=red", "expected engine, opener"),
            ("weft,vxlan,weft", "is there twice"),
            ("external:name", "external:NAME=COMMAND"),
            ("external:=x", "external:NAME=COMMAND"),
        ] {
            let checked = SubjectSpec::parse_list(text).and_then(|specs| SubjectSpec::check(&specs));
            let error = format!("{:#}", checked.unwrap_err());
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
