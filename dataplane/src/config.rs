//! weftd's flags.

use crate::limits::WORKERS_MAX;
use crate::shared::PeerCheck;
use crate::tun::Opener;
use clap::{Parser, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Which engine to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum EngineChoice {
    /// io_uring where it works, else epoll with one line of explanation.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// epoll.
    Epoll,
}

/// Which UDP ports datagrams are sent from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum SourcePorts {
    /// The port that weftd listens on, as stock flannel does.
    #[default]
    Same,
    /// One for each worker, so that network cards, links and receiving workers share a peer's flows.
    Spread,
}

/// weftd: moves packets between a TUN device and a UDP socket. Who gets what is told over the control socket, by `weft`.
#[derive(Clone, Debug, Parser)]
#[command(name = "weftd", version)]
pub struct Config {
    /// TUN device to create, or to attach to if it is persistent; the kernel fills a `%d` in
    #[arg(long, value_name = "NAME", default_value = "flannel%d", value_parser = tun_name)]
    pub tun: String,
    /// Keep the TUN, with its addresses and routes, when weftd ends; the next weftd attaches to it
    #[arg(long)]
    pub persist: bool,
    /// Underlay address and UDP port; `[::]:PORT` serves IPv4 peers, too
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:8285", value_parser = bind)]
    pub bind: SocketAddr,
    /// Control socket
    #[arg(long, value_name = "PATH", default_value = "/run/weft/weftd.sock")]
    pub socket: PathBuf,
    /// Worker threads, each with its own TUN queue and UDP socket, beside that for sparse flows, all of them in use [default: one
    /// for each core, up to 4, of which as few are in use as carry the traffic]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=WORKERS_MAX as i64))]
    pub workers: Option<u16>,
    /// UDP ports to send from: same is the one listened on; spread is one for each worker, by which network cards, equal paths and
    /// the peer's workers share the flows. The peer's firewall must let in every source port
    #[arg(long, value_enum, default_value_t)]
    pub source_ports: SourcePorts,
    /// How workers reach the kernel
    #[arg(long, value_enum, default_value_t)]
    pub engine: EngineChoice,
    /// How the TUN is opened: native has all offloads, simple has one queue and none
    #[arg(long, value_enum, default_value_t)]
    pub opener: Opener,
    /// MTU to give the TUN, bytes [default: leave it]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(68..=65_507))]
    pub mtu: Option<u16>,
    /// How strictly outer sources are checked: strict drops strangers and inner sources that are not routed to the sender
    #[arg(long, value_enum, default_value_t)]
    pub peer_check: PeerCheck,
    /// How long a worker looks for more work before it sleeps, microseconds; 0 saves CPU and costs latency
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub spin_us: u32,
    /// Send datagrams one by one (no UDP_SEGMENT)
    #[arg(long)]
    pub no_udp_gso: bool,
    /// Receive datagrams one by one (no UDP_GRO)
    #[arg(long)]
    pub no_udp_gro: bool,
    /// No TCP super-packets to or from the TUN
    #[arg(long)]
    pub no_tun_tso: bool,
    /// No UDP super-packets to or from the TUN
    #[arg(long)]
    pub no_tun_uso: bool,
    /// Drop what senders on this host send too fast, instead of making them wait
    #[arg(long)]
    pub no_backpressure: bool,
    /// No worker of their own for sparse flows, whose packets then wait behind bulk traffic
    #[arg(long)]
    pub no_sparse_lane: bool,
    /// What to log: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "WEFT_LOG")]
    pub log: tracing::level_filters::LevelFilter,
}

impl Config {
    /// Workers to run: the flag, or one for each core, up to 4, of which as many are in use as it takes ([`crate::scale`]). Where they would all be in
    /// use, half of the cores: the other half serves applications and soft interrupts.
    pub fn worker_count(&self, as_needed: bool) -> usize {
        let by_cores = || {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            if as_needed { cores.min(4) } else { (cores / 2).clamp(1, 4) }
        };
        self.workers.map_or_else(by_cores, usize::from)
    }
}

fn bind(text: &str) -> Result<SocketAddr, String> {
    let help = "expected an IP address and a port, such as 0.0.0.0:8285, or [::]:8285 for IPv6 and IPv4";
    text.parse().map_err(|_| help.to_owned())
}

fn tun_name(name: &str) -> Result<String, String> {
    let longest = name.replace("%d", "0");
    if name.is_empty() || longest.len() > crate::sys::dev::NAME_LEN_MAX {
        return Err(format!("an interface name has 1 to {} characters", crate::sys::dev::NAME_LEN_MAX));
    }
    if name.contains(['/', ' ', ':']) || name == "." || name == ".." {
        return Err("an interface name has no `/`, `:` or space".to_owned());
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_have_the_documented_defaults() {
        let config = Config::parse_from(["weftd"]);
        assert_eq!(config.tun, "flannel%d");
        assert_eq!(config.bind, "0.0.0.0:8285".parse().unwrap());
        assert_eq!(config.peer_check, PeerCheck::Strict);
        assert_eq!(config.engine, EngineChoice::Auto);
        assert_eq!(config.source_ports, SourcePorts::Same);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for args in [
            ["weftd", "--tun", "a/b"],
            ["weftd", "--tun", "sixteen-letters-"],
            ["weftd", "--bind", "10.0.0.1"],
            ["weftd", "--bind", "a.example:8285"],
            ["weftd", "--workers", "0"],
            ["weftd", "--mtu", "67"],
            ["weftd", "--engine", "dpdk"],
        ] {
            let error = Config::try_parse_from(args).unwrap_err().to_string();
            assert!(error.contains(args[1]), "{error}");
        }
    }
}
