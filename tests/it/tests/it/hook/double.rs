//! A double of flanneld's extension backend: runs the commands of a network config exactly as flanneld does.
//!
//! - Up to v0.28.1 by `sh -c COMMAND`; since then without a shell: split at white space, `$VAR` and `${VAR}` replaced in each
//!   word, then executed.
//! - The line for standard input is in the pipe, and the pipe closed, before the command starts.
//! - Standard output and error are one pipe, and flanneld waits for its end: whoever keeps it open hangs flanneld.

use std::io::{self, PipeReader, Read, Write, pipe};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_lab::{TIMEOUT, eventually, weft_binary};

use crate::weft::Weft;

/// Where the example expects the program.
const PROGRAM: &str = "/opt/bin/weft";
/// How long a command's output may stay open after the command itself has ended.
const HANG: Duration = Duration::from_secs(5);

/// How commands are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By a shell.
    Shell,
    /// Split, expanded, executed.
    Direct,
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub status: ExitStatus,
    /// Both outputs, trimmed.
    pub output: String,
    pub took: Duration,
}

/// flanneld on one host.
#[derive(Debug)]
pub struct Flanneld<'a> {
    pub host: &'a Weft,
    way: Way,
    backend: Value,
    network: String,
    /// This host's subnet.
    pub subnet: String,
    /// This host's public IP.
    pub public_ip: String,
    /// What it publishes, once `prepare` has told.
    pub data: String,
    /// Further variables of flanneld's environment.
    pub env: Vec<(&'static str, String)>,
}

impl<'a> Flanneld<'a> {
    /// flanneld with a network config, on `host`, which has been given `subnet`.
    pub fn new(host: &'a Weft, way: Way, config: &str, subnet: &str, public_ip: &str) -> Result<Self> {
        let config: Value = serde_json::from_str(config)?;
        let network = config["Network"].as_str().context("Network")?.to_owned();
        let backend = config["Backend"].clone();
        ensure!(backend["Type"] == "extension", "{backend}");
        let (subnet, public_ip) = (subnet.to_owned(), public_ip.to_owned());
        Ok(Self { host, way, backend, network, subnet, public_ip, data: String::new(), env: Vec::new() })
    }

    /// Starts: the two startup commands, and an add for every peer that there is.
    pub fn start(&mut self, peers: &[(String, String, String)]) -> Result<()> {
        self.prepare()?;
        self.up()?;
        peers.iter().try_for_each(|(subnet, ip, data)| self.add(subnet, ip, data).map(drop))
    }

    /// The lease as peers are told of it.
    pub fn lease(&self) -> (String, String, String) {
        (self.subnet.clone(), self.public_ip.clone(), self.data.clone())
    }

    /// Before the lease; its output is published.
    pub fn prepare(&mut self) -> Result<Ran> {
        let ran = self.succeed("PreStartupCommand", &[], "")?;
        self.data = ran.output.clone();
        Ok(ran)
    }

    /// After the lease.
    pub fn up(&self) -> Result<Ran> {
        self.succeed("PostStartupCommand", &self.up_env(), "")
    }

    fn up_env(&self) -> Vec<(&'static str, &str)> {
        vec![
            ("NETWORK", &self.network),
            ("SUBNET", &self.subnet),
            ("IPV6SUBNET", "::/0"),
            ("PUBLIC_IP", &self.public_ip),
            ("PUBLIC_IPV6", "<nil>"),
        ]
    }

    /// A peer came, or was renewed.
    pub fn add(&self, subnet: &str, public_ip: &str, data: &str) -> Result<Ran> {
        self.succeed("SubnetAddCommand", &[("SUBNET", subnet), ("PUBLIC_IP", public_ip)], data)
    }

    /// A peer left.
    pub fn del(&self, subnet: &str, public_ip: &str, data: &str) -> Result<Ran> {
        self.succeed("SubnetRemoveCommand", &[("SUBNET", subnet), ("PUBLIC_IP", public_ip)], data)
    }

    fn succeed(&self, key: &str, env: &[(&str, &str)], data: &str) -> Result<Ran> {
        let ran = self.run(key, env, data)?;
        ensure!(ran.status.success(), "{key} failed: {ran:?}");
        // What hooks say is in flanneld's log for ever.
        ensure!(key == "PreStartupCommand" || ran.output.is_empty(), "{key} says: {ran:?}");
        Ok(ran)
    }

    /// Runs one command of the config.
    pub fn run(&self, key: &str, env: &[(&str, &str)], data: &str) -> Result<Ran> {
        let text = self.backend[key].as_str().with_context(|| format!("no {key}"))?;
        let text = text.replace(PROGRAM, weft_binary()?.to_str().context("a path that is text")?);
        // flanneld has an environment of its own; hooks inherit it.
        let mut flanneld = self.host.command::<&str>(&[])?;
        flanneld.env("WEFT_RUN_DIR", self.host.run_dir()).envs(self.env.iter().cloned()).envs(env.iter().copied());
        let mut command = match self.way {
            Way::Shell => {
                let mut command = Command::new("sh");
                command.args(["-c", &text]);
                command
            }
            Way::Direct => {
                let words: Vec<String> = text.split_whitespace().map(|word| expand(word, env)).collect();
                let mut command = Command::new(&words[0]);
                command.args(&words[1..]);
                command
            }
        };
        for (name, value) in flanneld.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let (input, mut feed) = pipe()?;
        writeln!(feed, "{data}")?;
        drop(feed);
        let (output, out) = pipe()?;
        command.stdin(input).stdout(out.try_clone()?).stderr(out);
        let began = Instant::now();
        let mut child = self.host.node.run(|| command.spawn()).with_context(|| text.clone())?;
        // Its ends of the pipes go with it: the hook alone holds them.
        drop(command);
        let output = until_end(output);
        let status =
            eventually(TIMEOUT, || child.try_wait()?.context("still running")).with_context(|| text.clone())?;
        let bytes =
            output.recv_timeout(HANG).with_context(|| format!("`{text}` keeps its output open: flanneld hangs"))??;
        let output = String::from_utf8_lossy(&bytes).trim().to_owned();
        Ok(Ran { status, output, took: began.elapsed() })
    }
}

fn expand(word: &str, env: &[(&str, &str)]) -> String {
    env.iter().fold(word.to_owned(), |word, (name, value)| {
        word.replace(&format!("${{{name}}}"), value).replace(&format!("${name}"), value)
    })
}

/// Reads a pipe, on a thread, until nobody has it open any more.
fn until_end(mut pipe: PipeReader) -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let outcome = pipe.read_to_end(&mut bytes).map(|_| bytes);
        // Nobody listens any more after the time-out.
        let _ = send.send(outcome);
    });
    receive
}

/// No input, and output to be seen: for commands that a person runs.
pub fn by_hand(host: &Weft, arguments: &[&str]) -> Result<crate::weft::Said> {
    let mut command = host.command(arguments)?;
    command.env("WEFT_RUN_DIR", host.run_dir()).stdin(Stdio::null());
    host.output(command)
}
