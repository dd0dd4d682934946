//! The tunnel file: one TOML file describes this end of a tunnel and its peers.
//!
//! Reading goes in three steps, each in its own file, and every problem of a file is reported at once, with line, column,
//! key, what was expected and the remedy:
//!
//! ```text
//!  text --toml--> table with spans --read/tunnel--> Draft (typed, with spans) --check--> Tunnel + warnings
//! ```
//!
//! Nothing here touches the host beyond reading the file: a [`Tunnel`] is a wish, `weft up` and `weft run` make it true.
//! Host names of peers stay names; resolving them is the business of [`crate::source::resolve`].

mod check;
mod endpoint;
mod problem;
mod read;
#[cfg(test)]
mod tests;
mod tunnel;

pub use check::{EndpointFault, endpoint_fault};
pub use endpoint::{Endpoint, Host};
pub use problem::{Problem, Report, Severity};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// flannel's udp port, and therefore weft's.
pub const DEFAULT_PORT: u16 = 8285;
/// Longest name of a network device, in bytes (linux/if.h `IFNAMSIZ` is 16 with the closing zero).
pub const DEVICE_NAME_LEN_MAX: usize = 15;
/// Smallest MTU an IPv4 link may have (RFC 791).
pub const MTU_MIN: u16 = 68;
/// Smallest MTU an IPv6 link may have (RFC 8200 section 5).
pub const MTU_MIN_IPV6: u16 = 1280;
/// Largest inner packet that one UDP datagram over IPv4 can carry: 65,535 - 20 - 8 bytes.
pub const MTU_MAX: u16 = 65_507;
/// Largest tunnel file, in bytes: 65,535 peers at 200 bytes each, with room for comments.
pub const FILE_LEN_MAX: u64 = 32 << 20;

/// This end of a tunnel and its peers, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Name of the tunnel: names the files in `/run/weft`, and the TUN device unless `tun` does.
    pub name: String,
    /// Own overlay addresses with prefix length: at most one of each family, at least one.
    pub addresses: Vec<IpNet>,
    /// Overlay networks that the kernel routes into the TUN; without host bits, without duplicates.
    pub networks: Vec<IpNet>,
    /// Underlay address and UDP port to receive on.
    pub listen: SocketAddr,
    /// TUN device name; may hold one `%d`, for which the kernel puts the first free number.
    pub tun: String,
    /// MTU of the TUN in bytes; `None`: the underlay's, less the outer headers.
    pub mtu: Option<u16>,
    /// How weftd works.
    pub dataplane: Dataplane,
    /// The other ends, in file order.
    pub peers: Vec<Peer>,
}

/// Another end of the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name, for people; unique in the file.
    pub name: String,
    /// Inner prefixes that lie behind it; without host bits, no prefix with two peers.
    pub subnets: Vec<IpNet>,
    /// Where its datagrams go.
    pub endpoint: Endpoint,
    /// Further underlay addresses it may send from (NAT, several uplinks).
    pub aliases: Vec<IpAddr>,
}

/// The `[dataplane]` table: how weftd works. Every default suits; what a kernel refuses is switched off at run time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dataplane {
    /// How packets cross the kernel boundary.
    pub engine: Engine,
    /// How the TUN device is opened.
    pub opener: Opener,
    /// Queue pairs and their threads; `None`: weftd decides.
    pub workers: Option<u16>,
    /// Microseconds that a worker polls before it sleeps; `None`: weftd decides.
    pub spin_us: Option<u32>,
    /// Which UDP ports datagrams are sent from.
    pub source_ports: SourcePorts,
    /// How strictly an outer source is held against the inner source.
    pub peer_check: PeerCheck,
    /// One UDP send, many datagrams (UDP_SEGMENT).
    pub udp_gso: bool,
    /// One UDP receive, many datagrams (UDP_GRO).
    pub udp_gro: bool,
    /// TCP super-packets to and from the TUN.
    pub tun_tso: bool,
    /// UDP super-packets to and from the TUN (Linux 6.2).
    pub tun_uso: bool,
    /// Senders on this host wait when they are faster than weftd.
    pub backpressure: bool,
    /// A worker of their own for sparse flows.
    pub sparse_lane: bool,
}

impl Default for Dataplane {
    fn default() -> Self {
        Dataplane {
            engine: Engine::Auto,
            opener: Opener::Native,
            workers: None,
            spin_us: None,
            source_ports: SourcePorts::Same,
            peer_check: PeerCheck::Strict,
            udp_gso: true,
            udp_gro: true,
            tun_tso: true,
            tun_uso: true,
            backpressure: true,
            sparse_lane: true,
        }
    }
}

/// A value that is one of a few words: the words, and what they stand for.
pub trait Keyword: Sized + Copy + 'static {
    /// Every value with the word that the file and weftd's flags use.
    const WORDS: &'static [(&'static str, Self)];
}

macro_rules! keyword {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// The word that the file and weftd's flags use.
            pub fn word(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }
        }

        impl Keyword for $name {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, $name::$variant),)*];
        }
    };
}

keyword! {
    /// Which UDP ports datagrams are sent from.
    SourcePorts {
        /// The port that is listened on, as stock flannel does.
        Same = "same",
        /// One for each worker.
        Spread = "spread",
    }
}

keyword! {
    /// How packets cross the kernel boundary.
    Engine {
        /// io_uring where it works, epoll otherwise.
        Auto = "auto",
        /// io_uring, or fail.
        Uring = "uring",
        /// epoll.
        Epoll = "epoll",
    }
}

keyword! {
    /// How the TUN device is opened.
    Opener {
        /// Many queues, offloads.
        Native = "native",
        /// One queue, no offloads: for odd kernels.
        Simple = "simple",
    }
}

keyword! {
    /// How strictly an outer source is held against the inner source.
    PeerCheck {
        /// Unknown senders and inner sources that are not routed to their sender are dropped.
        Strict = "strict",
        /// They are counted and delivered.
        Log = "log",
        /// Not checked, as stock flannel.
        Off = "off",
    }
}

/// A tunnel file that may be used.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the file wants.
    pub tunnel: Tunnel,
    /// Warnings only.
    pub report: Report,
}

/// Why a tunnel file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("{file}: cannot be read: {source}")]
    Read {
        /// The path as given.
        file: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The file is wrong; every problem is in the report.
    #[error("{0}")]
    Wrong(Report),
}

/// Reads and checks a tunnel file.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let file = path.display().to_string();
    let unreadable = |source| LoadError::Read { file: file.clone(), source };
    if std::fs::metadata(path).map_err(unreadable)?.len() > FILE_LEN_MAX {
        let why = format!("larger than {} MiB, which no tunnel file is", FILE_LEN_MAX >> 20);
        return Err(unreadable(std::io::Error::new(std::io::ErrorKind::FileTooLarge, why)));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    parse(&file, &stem, &text, &is_local_address)
}

/// Checks the text of a tunnel file. `file` is for messages, `stem` is the tunnel's name if the file gives none,
/// `is_local` tells whether an underlay address belongs to this host.
pub fn parse(file: &str, stem: &str, text: &str, is_local: &dyn Fn(IpAddr) -> bool) -> Result<Loaded, LoadError> {
    let mut report = Report::new(file, text);
    let tunnel = tunnel::read(text, stem, &mut report).and_then(|draft| check::check(draft, is_local, &mut report));
    report.sort();
    match tunnel {
        Some(tunnel) if !report.has_errors() => Ok(Loaded { tunnel, report }),
        _ => Err(LoadError::Wrong(report)),
    }
}

/// Whether `address` is one of this host's: a socket can be bound to it.
pub fn is_local_address(address: IpAddr) -> bool {
    std::net::UdpSocket::bind((address, 0)).is_ok()
}
