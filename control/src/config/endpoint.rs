//! Where a peer is: a host and a UDP port, as a person writes it.

use super::DEFAULT_PORT;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// A host, by address or by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// An address.
    Addr(IpAddr),
    /// A name that the host's resolver knows.
    Name(String),
}

/// A host and a UDP port. Written `192.0.2.1`, `192.0.2.1:8285`, `2001:db8::1`, `[2001:db8::1]:8285`, `host.example`
/// or `host.example:8285`; without a port it is [`DEFAULT_PORT`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The host.
    pub host: Host,
    /// UDP port, never 0.
    pub port: u16,
}

impl FromStr for Endpoint {
    type Err = String;

    /// The error says what is wrong, without repeating the text.
    fn from_str(text: &str) -> Result<Endpoint, String> {
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return Ok(Endpoint { host: Host::Addr(addr.ip()), port: port(addr.port())? });
        }
        if let Ok(addr) = text.parse::<IpAddr>() {
            return Ok(Endpoint { host: Host::Addr(addr), port: DEFAULT_PORT });
        }
        if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'))
            && let Ok(addr) = inner.parse::<Ipv6Addr>()
        {
            return Ok(Endpoint { host: Host::Addr(addr.into()), port: DEFAULT_PORT });
        }
        if text.contains('%') {
            return Err("has a zone (`%`); link-local underlay addresses are not supported".into());
        }
        if text.contains('/') {
            return Err("has a `/`; an endpoint is one host, without prefix length or scheme".into());
        }
        if text.starts_with('[') || text.matches(':').count() > 1 {
            return Err("is not an IPv6 address, nor one in brackets with a port".into());
        }
        let (name, port_number) = match text.split_once(':') {
            Some((name, digits)) => {
                let number = digits.parse().map_err(|_| format!("has port {digits:?}, which is not in 1..=65535"))?;
                (name, port(number)?)
            }
            None => (text, DEFAULT_PORT),
        };
        host_name(name)?;
        Ok(Endpoint { host: Host::Name(name.to_owned()), port: port_number })
    }
}

fn port(number: u16) -> Result<u16, String> {
    if number == 0 { Err("has port 0, to which nothing can be sent".into()) } else { Ok(number) }
}

/// RFC 1123 section 2.1 names, and underscores, which resolvers accept.
fn host_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("names no host".into());
    }
    if name.len() > 253 {
        return Err("is longer than the 253 bytes of a host name".into());
    }
    if name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err("looks like an IPv4 address and is none".into());
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match name.strip_suffix('.').unwrap_or(name).split('.').find(|label| !is_label(label)) {
        Some(label) => Err(format!("is neither an address nor a host name ({label:?} is no part of a name)")),
        None => Ok(()),
    }
}

impl fmt::Display for Host {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Addr(addr) => addr.fmt(out),
            Host::Name(name) => name.fmt(out),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Addr(addr) => SocketAddr::new(*addr, self.port).fmt(out),
            Host::Name(name) => write!(out, "{name}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_as_people_write_them() {
        let cases = [
            ("192.0.2.1", "192.0.2.1:8285"),
            ("192.0.2.1:9", "192.0.2.1:9"),
            ("2001:db8::1", "[2001:db8::1]:8285"),
            ("[2001:db8::1]", "[2001:db8::1]:8285"),
            ("[2001:db8::1]:9", "[2001:db8::1]:9"),
            ("b.example", "b.example:8285"),
            ("b.example.:9", "b.example.:9"),
            ("node_1", "node_1:8285"),
        ];
        for (text, shown) in cases {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn wrong_endpoints_say_why() {
        let cases = [
            ("", "names no host"),
            (":8285", "names no host"),
            ("192.0.2.1:0", "port 0"),
            ("192.0.2.300", "looks like an IPv4 address"),
            ("192.0.2.1:99999", "port \"99999\""),
            ("b.example:http", "port \"http\""),
            ("192.0.2.1/24", "`/`"),
            ("udp://b.example", "`/`"),
            ("fe80::1%eth0", "zone"),
            ("2001:db8::1::2", "not an IPv6 address"),
            ("b example", "neither an address nor a host name"),
            ("-b.example", "neither an address nor a host name"),
        ];
        for (text, expected) in cases {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
