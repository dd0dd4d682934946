//! How to reach etcd, and how patient to be.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Flags `--etcd-*` of flanneld and `--subnet-lease-renew-margin`, and what tests turn down.
#[derive(Clone)]
pub struct EtcdOptions {
    /// URLs such as `https://192.0.2.1:2379`; tried in order, and the one that answered last is asked first.
    pub endpoints: Vec<String>,
    /// Beginning of all keys, such as `/coreos.com/network`.
    pub prefix: String,
    /// Certificate authorities of the servers, PEM; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Our certificate chain, PEM; goes with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// Our private key, PEM.
    pub key_file: Option<PathBuf>,
    /// Name for etcd's own authentication; goes with `password`.
    pub username: Option<String>,
    /// Password for it. Never shown.
    pub password: Option<String>,
    /// How long our lease lives without renewal; whole seconds.
    pub lease_ttl: Duration,
    /// How long before its end the lease is renewed.
    pub renew_margin: Duration,
    /// How long etcd may take for one answer.
    pub timeout: Duration,
    /// Pause between two looks at our own record, by which a silent server is found out.
    pub heartbeat: Duration,
}

impl Default for EtcdOptions {
    fn default() -> EtcdOptions {
        EtcdOptions {
            endpoints: vec!["http://127.0.0.1:4001".into(), "http://127.0.0.1:2379".into()],
            prefix: "/coreos.com/network".into(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            username: None,
            password: None,
            lease_ttl: Duration::from_secs(24 * 60 * 60),
            renew_margin: Duration::from_secs(60 * 60),
            timeout: Duration::from_secs(5),
            heartbeat: Duration::from_secs(20),
        }
    }
}

impl fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdOptions")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .field("ca_file", &self.ca_file)
            .field("cert_file", &self.cert_file)
            .field("key_file", &self.key_file)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "(not shown)"))
            .field("lease_ttl", &self.lease_ttl)
            .field("renew_margin", &self.renew_margin)
            .field("timeout", &self.timeout)
            .field("heartbeat", &self.heartbeat)
            .finish()
    }
}
