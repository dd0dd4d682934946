//! A real etcd for a test, with everything that can befall one.
//!
//! Its commands go to etcd's JSON gateway in plain HTTP at a second address, even if clients have to come with TLS.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Node, Process, TIMEOUT, eventually};

/// Where ports for servers begin and end: below those that the kernel gives to whoever wants any
/// (`net.ipv4.ip_local_port_range`), so that a server that was stopped finds its own free again.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Files for TLS between clients and the server, PEM.
#[derive(Clone, Debug)]
pub struct EtcdTls {
    /// Authorities that client certificates have to come from; `None`: clients need none.
    pub client_ca: Option<PathBuf>,
    /// The server's certificate, for its address.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A server of its own, alone in its cluster or with others. Dropping it kills it and removes its data.
#[derive(Debug)]
pub struct Etcd {
    node: Option<Node>,
    /// Where clients go to.
    address: SocketAddr,
    /// Where this structure goes to.
    control: SocketAddr,
    peer: SocketAddr,
    /// Where clients of its own do not find it.
    other: SocketAddr,
    _ports: Reservation,
    /// Its name in its cluster.
    name: String,
    /// All of the cluster, itself among them.
    members: Vec<(String, SocketAddr)>,
    tls: Option<EtcdTls>,
    token: Option<String>,
    process: Option<Process>,
    directory: TempDir,
}

/// A key as it stands in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdRecord {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// Its etcd lease, 0 for none.
    pub lease: i64,
    /// Revision of its latest write.
    pub mod_revision: i64,
}

impl Etcd {
    /// Starts a server on 127.0.0.1 of this process's own network.
    ///
    /// # Errors
    /// If etcd is not installed or does not answer in time.
    pub fn start() -> Result<Etcd> {
        Etcd::build(None, Ipv4Addr::LOCALHOST.into(), None)
    }

    /// Starts a server for TLS on 127.0.0.1.
    ///
    /// # Errors
    /// As [`Etcd::start`].
    pub fn start_tls(tls: EtcdTls) -> Result<Etcd> {
        Etcd::build(None, Ipv4Addr::LOCALHOST.into(), Some(tls))
    }

    /// Starts a server on a node, at one of its addresses.
    ///
    /// # Errors
    /// As [`Etcd::start`].
    pub fn start_on(node: &Node, address: IpAddr) -> Result<Etcd> {
        Etcd::build(Some(node.clone()), address, None)
    }

    /// Starts servers that are one cluster on a node, one at each of these addresses.
    ///
    /// # Errors
    /// As [`Etcd::start`].
    pub fn start_cluster_on(node: &Node, addresses: &[IpAddr]) -> Result<Vec<Etcd>> {
        let mut all: Vec<Etcd> =
            addresses.iter().map(|address| Etcd::prepare(Some(node.clone()), *address, None)).collect::<Result<_>>()?;
        let members: Vec<_> = (1..).zip(&all).map(|(number, etcd)| (format!("weft{number}"), etcd.peer)).collect();
        for (etcd, (name, _)) in all.iter_mut().zip(&members) {
            (etcd.name, etcd.members) = (name.clone(), members.clone());
            etcd.spawn()?;
        }
        // None of them is healthy alone.
        all.iter_mut().try_for_each(Etcd::await_health)?;
        Ok(all)
    }

    fn build(node: Option<Node>, address: IpAddr, tls: Option<EtcdTls>) -> Result<Etcd> {
        let mut etcd = Etcd::prepare(node, address, tls)?;
        etcd.start_again()?;
        Ok(etcd)
    }

    fn prepare(node: Option<Node>, address: IpAddr, tls: Option<EtcdTls>) -> Result<Etcd> {
        let directory = tempfile::Builder::new().prefix("weft-etcd-").tempdir()?;
        let ports = match &node {
            Some(node) => node.run(|| Reservation::new(address)),
            None => Reservation::new(address),
        };
        let ports = ports.context("finding ports for etcd")?;
        let [address, control, peer, other] = ports.addresses;
        let name = "weft".to_owned();
        let members = vec![(name.clone(), peer)];
        Ok(Etcd {
            node,
            address,
            control,
            peer,
            other,
            _ports: ports,
            name,
            members,
            tls,
            token: None,
            process: None,
            directory,
        })
    }

    /// The endpoint for clients.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The server's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Ends the server; its data stays.
    ///
    /// # Errors
    /// The kernel's.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.quiet();
            process.signal(Signal::KILL)?;
            process.wait(TIMEOUT)?;
        }
        Ok(())
    }

    /// Starts the stopped server again, with the data it has.
    ///
    /// # Errors
    /// As [`Etcd::start`].
    pub fn start_again(&mut self) -> Result<()> {
        self.spawn()?;
        self.await_health()
    }

    fn spawn(&mut self) -> Result<()> {
        let clients = match self.tls {
            Some(_) => format!("{},http://{}", self.url(), self.control),
            None => format!("http://{},http://{}", self.address, self.control),
        };
        let peer = format!("http://{}", self.peer);
        let mut command = Command::new("etcd");
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.arg(format!("--name={}", self.name)).arg(format!("--data-dir={}", self.data().display()));
        command.arg(format!("--listen-client-urls={clients}")).arg(format!("--advertise-client-urls={}", self.url()));
        command.arg(format!("--listen-peer-urls={peer}")).arg(format!("--initial-advertise-peer-urls={peer}"));
        let members = self.members.iter().map(|(name, peer)| format!("{name}=http://{peer}")).collect::<Vec<_>>();
        command.arg(format!("--initial-cluster={}", members.join(","))).arg("--unsafe-no-fsync");
        if let [_] = self.members[..] {
            // Alone in its cluster, it may elect itself at once.
            command.args(["--heartbeat-interval=10", "--election-timeout=100"]);
        }
        if let Some(tls) = &self.tls {
            command.arg(format!("--cert-file={}", tls.cert.display())).arg(format!("--key-file={}", tls.key.display()));
            if let Some(ca) = &tls.client_ca {
                command.arg("--client-cert-auth").arg(format!("--trusted-ca-file={}", ca.display()));
            }
        }
        let started = match &self.node {
            Some(node) => node.spawn(command),
            None => Process::here(command),
        };
        let mut process = started.context("starting etcd; install the package etcd-server")?;
        process.quiet();
        self.process = Some(process);
        Ok(())
    }

    fn await_health(&mut self) -> Result<()> {
        let mut process = self.process.take().context("etcd is stopped")?;
        let answers = eventually(TIMEOUT, || {
            if let Some(status) = process.try_wait()? {
                // Waiting longer does not help; the outer error has the log.
                return Ok(Err(status));
            }
            self.is_healthy().map(Ok)
        });
        match answers {
            Ok(Ok(())) => {
                self.process = Some(process);
                if self.token.is_some() { self.log_in() } else { Ok(()) }
            }
            Ok(Err(status)) => bail!("etcd ended with {status}; its output:\n{}", process.log()),
            Err(error) => Err(error).with_context(|| format!("etcd does not answer; its output:\n{}", process.log())),
        }
    }

    /// Runs the stopped server where its clients do not find it, and does `work` there.
    ///
    /// # Errors
    /// As [`Etcd::start`], and those of `work`.
    pub fn with_other_client_address(&mut self, work: impl FnOnce(&Etcd) -> Result<()>) -> Result<()> {
        let address = std::mem::replace(&mut self.address, self.other);
        let done = self.start_again().and_then(|()| work(self)).and_then(|()| self.stop());
        self.address = address;
        done
    }

    /// Has the server stand still, with its connections open (`SIGSTOP`).
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&self) -> Result<()> {
        self.process.as_ref().context("etcd is stopped")?.freeze()
    }

    /// Lets the paused server go on.
    ///
    /// # Errors
    /// If it does not run.
    pub fn unpause(&self) -> Result<()> {
        self.process.as_ref().context("etcd is stopped")?.signal(Signal::CONT)
    }

    /// Ends the server, throws its data away and starts it empty, at the same address.
    ///
    /// # Errors
    /// As [`Etcd::start`].
    pub fn wipe(&mut self) -> Result<()> {
        self.stop()?;
        std::fs::remove_dir_all(self.data())?;
        self.token = None;
        self.start_again()
    }

    /// Writes a key, without a lease.
    ///
    /// # Errors
    /// etcd's.
    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        self.put_bytes(key.as_bytes(), value.as_bytes(), 0)
    }

    /// Writes a key of any bytes, on an etcd lease (0: none).
    ///
    /// # Errors
    /// etcd's.
    pub fn put_bytes(&self, key: &[u8], value: &[u8], lease: i64) -> Result<()> {
        let (key, value) = (BASE64_STANDARD.encode(key), BASE64_STANDARD.encode(value));
        self.ask("kv/put", &json!({"key": key, "value": value, "lease": lease.to_string()})).map(|_| ())
    }

    /// Makes an etcd lease.
    ///
    /// # Errors
    /// etcd's.
    pub fn grant(&self, ttl: Duration) -> Result<i64> {
        number(&self.ask("lease/grant", &json!({"TTL": ttl.as_secs().to_string()}))?, "ID")
    }

    /// Ends an etcd lease and deletes its keys.
    ///
    /// # Errors
    /// etcd's.
    pub fn revoke(&self, lease: i64) -> Result<()> {
        self.ask("lease/revoke", &json!({"ID": lease.to_string()})).map(|_| ())
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// etcd's.
    pub fn delete(&self, key: &str) -> Result<()> {
        self.ask("kv/deleterange", &json!({"key": encode(key)})).map(|_| ())
    }

    /// Reads a key.
    ///
    /// # Errors
    /// etcd's.
    pub fn get(&self, key: &str) -> Result<Option<EtcdRecord>> {
        Ok(self.records(&self.ask("kv/range", &json!({"key": encode(key)}))?)?.into_iter().next())
    }

    /// Reads all keys that begin with `prefix`, which ends in an ASCII character.
    ///
    /// # Errors
    /// etcd's.
    pub fn list(&self, prefix: &str) -> Result<Vec<EtcdRecord>> {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().context("a prefix of no bytes")? += 1;
        let range = json!({"key": encode(prefix), "range_end": BASE64_STANDARD.encode(end)});
        self.records(&self.ask("kv/range", &range)?)
    }

    /// The store's revision, which grows with every write.
    ///
    /// # Errors
    /// etcd's.
    pub fn revision(&self) -> Result<i64> {
        number(&self.ask("kv/range", &json!({"key": encode("weft")}))?["header"], "revision")
    }

    /// How many times clients have read keys.
    ///
    /// # Errors
    /// If etcd does not answer, or counts no such thing.
    pub fn range_count(&self) -> Result<u64> {
        const NAME: &str = "etcd_mvcc_range_total ";
        let text = self.http(|agent| {
            let mut response = agent.get(format!("http://{}/metrics", self.control)).call()?;
            Ok(response.body_mut().read_to_string()?)
        })?;
        let count =
            text.lines().find_map(|line| line.strip_prefix(NAME)).with_context(|| format!("etcd has no {NAME}"))?;
        Ok(count.parse::<f64>()? as u64)
    }

    /// Forgets everything before the present revision.
    ///
    /// # Errors
    /// etcd's.
    pub fn compact(&self) -> Result<()> {
        self.ask("kv/compaction", &json!({"revision": self.revision()?.to_string(), "physical": true})).map(|_| ())
    }

    /// Adds a user who may read, or read and write, all keys that begin with `prefix`.
    ///
    /// # Errors
    /// etcd's.
    pub fn add_user(&self, name: &str, password: &str, prefix: &str, may_write: bool) -> Result<()> {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().context("a prefix of no bytes")? += 1;
        let kind = if may_write { "READWRITE" } else { "READ" };
        let permission = json!({"permType": kind, "key": encode(prefix), "range_end": BASE64_STANDARD.encode(end)});
        self.ask("auth/user/add", &json!({"name": name, "password": password}))?;
        self.ask("auth/role/add", &json!({"name": name}))?;
        self.ask("auth/role/grant", &json!({"name": name, "perm": permission}))?;
        self.ask("auth/user/grant", &json!({"user": name, "role": name})).map(|_| ())
    }

    /// Turns authentication on, with a user `root` of its own.
    ///
    /// # Errors
    /// etcd's.
    pub fn enable_auth(&mut self) -> Result<()> {
        let root = json!({"name": "root", "password": "root"});
        self.ask("auth/user/add", &root)?;
        self.ask("auth/role/add", &json!({"name": "root"}))?;
        self.ask("auth/user/grant", &json!({"user": "root", "role": "root"}))?;
        self.ask("auth/enable", &json!({}))?;
        self.log_in()
    }

    /// Gets a new token for the commands here.
    ///
    /// # Errors
    /// etcd's.
    pub fn log_in(&mut self) -> Result<()> {
        self.token = None;
        let answer = self.ask("auth/authenticate", &json!({"name": "root", "password": "root"}))?;
        self.token = Some(answer["token"].as_str().context("etcd gave no token")?.to_owned());
        Ok(())
    }

    fn data(&self) -> PathBuf {
        Path::new(self.directory.path()).join("data")
    }

    fn is_healthy(&self) -> Result<()> {
        self.http(|agent| {
            let response = agent.get(format!("http://{}/health", self.control)).call()?;
            ensure!(response.status() == 200, "etcd says of its health {}", response.status());
            Ok(())
        })
    }

    fn http<T: Send>(&self, work: impl FnOnce(&ureq::Agent) -> Result<T> + Send) -> Result<T> {
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT));
        let agent = config.proxy(None).build().new_agent();
        match &self.node {
            Some(node) => node.run(|| work(&agent)),
            None => work(&agent),
        }
    }

    fn ask(&self, path: &str, request: &Value) -> Result<Value> {
        self.http(|agent| {
            let mut post = agent.post(format!("http://{}/v3/{path}", self.control));
            if let Some(token) = &self.token {
                post = post.header("Authorization", token);
            }
            let mut response = post.send(request.to_string().as_str())?;
            let text = response.body_mut().with_config().limit(1 << 30).read_to_string()?;
            ensure!(response.status() == 200, "etcd answers {path} with {}: {text}", response.status());
            Ok(serde_json::from_str(&text)?)
        })
    }

    fn records(&self, answer: &Value) -> Result<Vec<EtcdRecord>> {
        let text = |value: &Value| -> Result<String> {
            let bytes = BASE64_STANDARD.decode(value.as_str().unwrap_or_default())?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let kvs = answer["kvs"].as_array().map(Vec::as_slice).unwrap_or_default();
        kvs.iter()
            .map(|kv| {
                let lease = if kv["lease"].is_null() { 0 } else { number(kv, "lease")? };
                let (key, value) = (text(&kv["key"])?, text(&kv["value"])?);
                Ok(EtcdRecord { key, value, lease, mod_revision: number(kv, "mod_revision")? })
            })
            .collect()
    }
}

/// Four addresses for a server, whose ports no other test takes. What holds them is the name of a socket, which, like the
/// ports, belongs to the network namespace, and goes with this process.
#[derive(Debug)]
struct Reservation {
    addresses: [SocketAddr; 4],
    _name: UnixListener,
}

impl Reservation {
    fn new(address: IpAddr) -> Result<Self> {
        for first in PORTS.step_by(4) {
            let name = UnixAddress::from_abstract_name(format!("weft-lab-etcd-{first}"))?;
            let Ok(name) = UnixListener::bind_addr(&name) else { continue };
            let addresses = [0, 1, 2, 3].map(|index| SocketAddr::new(address, first + index));
            if addresses.iter().all(|address| TcpListener::bind(address).is_ok()) {
                return Ok(Self { addresses, _name: name });
            }
        }
        bail!("every port from {} to {} is taken", PORTS.start, PORTS.end)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // A paused process does not hear SIGTERM; this is no server whose data matters.
        let _ = self.stop();
    }
}

fn encode(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

fn number(value: &Value, name: &str) -> Result<i64> {
    let text = value[name].as_str().with_context(|| format!("etcd's answer has no {name}"))?;
    Ok(text.parse()?)
}
