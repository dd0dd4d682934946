//! What a node tells its peers about itself: one line, carried by flannel as the lease's `BackendData`.
//!
//! ```text
//! weft/1 port=8285 ip=203.0.113.7
//! ```
//!
//! Words without quotes, because the line travels as a JSON text, inside a JSON document, inside an annotation. Whoever
//! reads it takes what it understands: words that it does not know are passed over, and a line that is empty, broken or
//! somebody else's means what it means with flannel's own udp backend, our port at the peer's public address.

use std::fmt;
use std::net::Ipv4Addr;

/// First word of the line; the number changes when the words cannot be passed over any more.
const HEAD: &str = "weft/1";
/// Longest line that is looked at, in bytes.
pub const LINE_LEN_MAX: u64 = 4096;

/// Where a node receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointData {
    /// UDP port, if the line tells.
    pub port: Option<u16>,
    /// Underlay address, if it is another than the lease's public IP.
    pub ip: Option<Ipv4Addr>,
}

impl EndpointData {
    /// Reads a peer's line. Nothing is an error: what cannot be read is not there.
    pub fn parse(line: &str) -> EndpointData {
        let mut words = line.split_whitespace();
        let mut data = EndpointData::default();
        if words.next() != Some(HEAD) {
            return data;
        }
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "port" => data.port = value.parse().ok().filter(|port| *port != 0),
                "ip" => data.ip = value.parse().ok().filter(|ip: &Ipv4Addr| !ip.is_unspecified()),
                _ => {}
            }
        }
        data
    }
}

impl fmt::Display for EndpointData {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(HEAD)?;
        self.port.map_or(Ok(()), |port| write!(out, " port={port}"))?;
        self.ip.map_or(Ok(()), |ip| write!(out, " ip={ip}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let ip = Some("203.0.113.7".parse().unwrap());
        for data in [EndpointData { port: Some(8285), ip }, EndpointData { port: Some(1), ip: None }] {
            assert_eq!(EndpointData::parse(&format!("{data}\n")), data);
        }
    }

    #[test]
    fn what_cannot_be_read_is_as_if_it_were_not_there() {
        let lines = [
            "",
            "\n",
            "{\"VNI\":1}",
            "weft/2 port=1",
            "weft/1",
            "weft/1 port=0 ip=0.0.0.0",
            "weft/1 port=70000 ip=x \u{0}",
            "port=1",
        ];
        for line in lines {
            assert_eq!(EndpointData::parse(line), EndpointData::default(), "{line:?}");
        }
        let data = EndpointData::parse("weft/1 mtu=1472 nonsense port=9000 key=a=b");
        assert_eq!(data, EndpointData { port: Some(9000), ip: None });
    }
}
