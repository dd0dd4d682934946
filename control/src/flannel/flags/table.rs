//! Every flag: name, kind, default, what it is for. One table serves the parser, the usage text, and the test that compares it
//! with docs/flannel.md.

use crate::state::RUN_DIR;

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `--x`, `--x=true`, `--x=false`; never `--x true`.
    Bool,
    /// `--x VALUE` or `--x=VALUE`.
    Value,
    /// As [`Kind::Value`], and each further one adds to those before.
    List,
}

/// Where a flag belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// flannel's, with its meaning.
    Flannel,
    /// flannel's, and without an effect on weft; accepted, so that no command line has to change.
    Accepted,
    /// flannel's, for Kubernetes as the registry, which weft is not for: any value but the default is refused.
    Kubernetes,
    /// weft's own.
    Weft,
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Without dashes.
    pub name: &'static str,
    /// How it is written.
    pub kind: Kind,
    /// Its default, as text; empty: none.
    pub default: &'static str,
    /// Where it belongs.
    pub scope: Scope,
    /// A phrase for the usage text.
    pub help: &'static str,
}

impl Flag {
    /// The variable that gives it where the command line does not: flannel's `FLANNELD_` names.
    pub fn variable(&self) -> String {
        format!("FLANNELD_{}", self.name.replace('-', "_").to_uppercase())
    }
}

const fn flag(name: &'static str, kind: Kind, default: &'static str, scope: Scope, help: &'static str) -> Flag {
    Flag { name, kind, default, scope, help }
}

/// Default of `--etcd-endpoints`.
pub const ENDPOINTS: &str = "http://127.0.0.1:4001,http://127.0.0.1:2379";
/// Default of `--etcd-prefix`.
pub const PREFIX: &str = "/coreos.com/network";
/// Default of `--subnet-file`.
pub const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// All flags, by name within their scope.
pub const FLAGS: &[Flag] = {
    use Kind::*;
    use Scope::*;
    &[
        flag("etcd-endpoints", Value, ENDPOINTS, Flannel, "etcd endpoints, with commas between them"),
        flag("etcd-prefix", Value, PREFIX, Flannel, "prefix of the keys in etcd"),
        flag("etcd-keyfile", Value, "", Flannel, "key of the client certificate for etcd"),
        flag("etcd-certfile", Value, "", Flannel, "client certificate for etcd"),
        flag("etcd-cafile", Value, "", Flannel, "certificate authority that etcd's certificates come from"),
        flag("etcd-username", Value, "", Flannel, "user name for etcd"),
        flag("etcd-password", Value, "", Flannel, "password for etcd"),
        flag("iface", List, "", Flannel, "interface (name or address) to reach other hosts by; the first that fits"),
        flag("iface-regex", List, "", Flannel, "the same as a regular expression, tried after all --iface"),
        flag("iface-can-reach", Value, "", Flannel, "take the interface that leads to this address; tried last"),
        flag("public-ip", Value, "", Flannel, "address that other hosts are told, if not the interface's own"),
        flag("public-ipv6", Value, "", Flannel, "the same for IPv6"),
        flag("subnet-file", Value, SUBNET_FILE, Flannel, "file that tells others the subnet, MTU and masquerading"),
        flag(
            "subnet-lease-renew-margin",
            Value,
            "60",
            Flannel,
            "minutes before its end that a lease is renewed, 1 to 1439",
        ),
        flag("ip-masq", Bool, "false", Flannel, "masquerade what leaves the overlay network"),
        flag("ip-masq-fully-random-disable", Bool, "false", Flannel, "masquerade without fully random source ports"),
        flag("iptables-resync", Value, "5", Flannel, "seconds between two looks at the rules"),
        flag(
            "iptables-forward-rules",
            Bool,
            "true",
            Flannel,
            "accept forwarded traffic from and to the overlay network",
        ),
        flag("ip-blackhole-route", Bool, "false", Flannel, "keep a blackhole route for this node's own subnet"),
        flag("healthz-ip", Value, "0.0.0.0", Flannel, "address of the health server"),
        flag("healthz-port", Value, "0", Flannel, "port of the health server; 0: none"),
        flag("version", Bool, "false", Flannel, "print the version and exit"),
        flag("v", Value, "0", Flannel, "how much to log: 0 what happens, 1 to 5 why, above that everything"),
        flag("vmodule", Value, "", Accepted, "per-file log levels: those are files of stock flannel"),
        flag("log_backtrace_at", Value, "", Accepted, "a stack trace at a log line: a line of stock flannel"),
        flag("kube-subnet-mgr", Bool, "false", Kubernetes, "Kubernetes as the registry"),
        flag("kube-api-url", Value, "", Kubernetes, "Kubernetes API server"),
        flag("kubeconfig-file", Value, "", Kubernetes, "kubeconfig file"),
        flag("kube-annotation-prefix", Value, "flannel.alpha.coreos.com", Kubernetes, "prefix of node annotations"),
        flag("net-config-path", Value, "/etc/kube-flannel/net-conf.json", Kubernetes, "file of the network config"),
        flag("set-node-network-unavailable", Bool, "true", Kubernetes, "set the node's condition when ready"),
        flag(
            "network-grace",
            Value,
            "60",
            Weft,
            "seconds, and at most as many again, that this daemon goes on when its subnet is outside of a changed Network",
        ),
        flag("run-dir", Value, RUN_DIR, Weft, "directory of weftd's socket, log and state"),
        flag("peer-check", Value, "strict", Weft, "what of a datagram's sender is checked (udp): strict, log or off"),
        flag("engine", Value, "auto", Weft, "how weftd reaches the kernel: auto, uring or epoll"),
        flag("workers", Value, "", Weft, "weftd's threads [one for each core, up to 4, in use as needed]"),
        flag(
            "source-ports",
            Value,
            "same",
            Weft,
            "UDP ports that weftd sends from: same (as it listens on), or spread (one for each thread)",
        ),
        flag("backpressure", Bool, "true", Weft, "senders on this host wait when they are faster than weftd"),
        flag("sparse-lane", Bool, "true", Weft, "a thread of weftd for sparse flows, whose datagrams carry DSCP AF21"),
    ]
};
