//! `weft hook`: the commands that flanneld's extension backend runs.

use super::output::{self, usage};
use super::tunnel_args::tunnel_error;
use super::{CliError, Exit};
use crate::causes;
use crate::flannel::hook::data::{EndpointData, LINE_LEN_MAX};
use crate::flannel::hook::{Hook, HookError, Options};
use crate::state::{RUN_DIR, RUN_DIR_VARIABLE};
use ipnet::Ipv4Net;
use std::fmt::Display;
use std::io::{self, BufRead, BufReader, Read};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

/// Carry the packets of an unmodified flanneld, by the hooks of its `extension` backend
///
/// Name these commands in flannel's network config; see docs/flannel-extension.md. Each option can come from the
/// environment of flanneld as well, and has to be the same for all of them.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// UDP port to receive on, and at peers that tell none
    #[arg(long, env = "WEFT_HOOK_PORT", value_name = "PORT", default_value_t = 8285, global = true)]
    port: u16,
    /// Directory of socket, log, state and record
    #[arg(long, env = RUN_DIR_VARIABLE, value_name = "DIR", default_value = RUN_DIR, global = true)]
    run_dir: PathBuf,
    /// Name of the TUN device, and of the tunnel for `weft down` and the like
    #[arg(long, env = "WEFT_HOOK_TUN", value_name = "NAME", default_value = "flannel0", global = true)]
    tun: String,
    /// Underlay interface to bind to, by name or address [default: all of them]
    #[arg(long, env = "WEFT_HOOK_IFACE", value_name = "NAME|ADDRESS", global = true)]
    iface: Option<String>,
    /// Underlay address to tell peers, where it is another than flanneld finds (NAT)
    #[arg(long, env = "WEFT_HOOK_PUBLIC_IP", value_name = "ADDRESS", global = true)]
    public_ip: Option<Ipv4Addr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Subcommand)]
enum Verb {
    /// PreStartupCommand: start or find weftd, print one line for the lease
    Prepare,
    /// PostStartupCommand: address, MTU and routes, from NETWORK and SUBNET in the environment
    Up,
    /// SubnetAddCommand: a peer, from SUBNET and PUBLIC_IP in the environment and its line on standard input
    Add,
    /// SubnetRemoveCommand: the peer of SUBNET has left
    Del,
    /// End weftd and leave nothing behind; not run by flanneld
    Down,
}

impl Args {
    /// Whether the command may say nothing but one line: flanneld publishes what `prepare` writes to either output.
    pub fn is_silent(&self) -> bool {
        self.verb == Verb::Prepare
    }
}

/// Runs the command.
pub fn run(args: Args) -> Result<Exit, CliError> {
    let Args { verb, port, run_dir, tun, iface, public_ip } = args;
    if port == 0 {
        return Err(usage("--port 0: peers have to know the port; choose one from 1 to 65535"));
    }
    let name = tun.clone();
    let options = Options { port, run_dir, tun, iface, public_ip };
    let begin = || Hook::begin(options).map_err(|error| hook_error(&name, &error));
    match verb {
        Verb::Prepare => {
            let line = begin()?.prepare().map_err(|error| hook_error(&name, &error))?;
            output::print(line)?;
        }
        Verb::Up => {
            let (network, subnet) = (prefix("NETWORK")?, prefix("SUBNET")?);
            let public_ip = std::env::var("PUBLIC_IP").ok().and_then(|ip| ip.parse().ok());
            begin()?.up(network, subnet, public_ip).map_err(|error| hook_error(&name, &error))?;
        }
        Verb::Add => {
            let (subnet, public_ip) = (prefix("SUBNET")?, variable("PUBLIC_IP", "an IPv4 address")?);
            let data = EndpointData::parse(&line_of(io::stdin().lock()));
            begin()?.add(subnet, public_ip, data).map_err(|error| hook_error(&name, &error))?;
        }
        Verb::Del => {
            let subnet = prefix("SUBNET")?;
            begin()?.del(subnet).map_err(|error| hook_error(&name, &error))?;
        }
        Verb::Down => {
            let was_up = begin()?.down().map_err(|error| hook_error(&name, &error))?;
            output::print(format_args!("{name}: {}", if was_up { "down" } else { "was not up" }))?;
        }
    }
    Ok(Exit::Ok)
}

/// The first line of `input`, as far as it is text, and not more than a line may have.
fn line_of(input: impl Read) -> String {
    let mut bytes = Vec::new();
    // A peer whose line cannot be read is one that tells nothing.
    let _ = BufReader::new(input.take(LINE_LEN_MAX)).read_until(b'\n', &mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn prefix(name: &str) -> Result<Ipv4Net, CliError> {
    let net: Ipv4Net = variable(name, "an IPv4 prefix such as 10.50.3.0/24")?;
    if net.prefix_len() == 0 {
        return Err(usage(format!("{name} is {net}: the lease has no IPv4 part, and hooks carry IPv4 only")));
    }
    Ok(net.trunc())
}

/// A variable that flanneld gives its hooks.
fn variable<T: FromStr<Err: Display>>(name: &str, what: &str) -> Result<T, CliError> {
    let text = std::env::var(name).unwrap_or_default();
    if text.is_empty() {
        let hint = "this command is run by flanneld, which sets it; see docs/flannel-extension.md";
        return Err(usage(format!("{name} is not in the environment; it should be {what}")).with_hint(hint));
    }
    text.parse().map_err(|error| usage(format!("{name} is {text:?}, not {what}: {error}")))
}

fn hook_error(name: &str, error: &HookError) -> CliError {
    match error {
        HookError::Tunnel(error) => tunnel_error(name, error),
        other => CliError { exit: Exit::Failed, error: anyhow::anyhow!("{name}: {}", causes::text(other)) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_line_is_read_and_not_too_much_of_it() {
        assert_eq!(line_of(&b"weft/1 port=1\nmore"[..]), "weft/1 port=1\n");
        assert_eq!(line_of(&b""[..]), "");
        assert_eq!(line_of(&[0xff; 1 << 20][..]).chars().count() as u64, LINE_LEN_MAX);
    }
}
