//! One lease in etcd: its key below `PREFIX/subnets/`, and its value, byte for byte as stock flannel writes them
//! (`pkg/subnet/subnet.go`, `pkg/lease/lease.go`).
//!
//! ```text
//! 10.5.34.0-24                      {"PublicIP":"192.0.2.4","PublicIPv6":null}                               udp
//! 10.5.34.0-24                      {"PublicIP":"192.0.2.4","PublicIPv6":null,"BackendType":"vxlan",
//!                                    "BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}                   vxlan
//! 10.5.34.0-24&fd00:5:0:22::-64     both families
//! fd00:5:0:22::-64                  IPv6 alone, below PREFIX/ipv6-subnets/
//! ```
//!
//! The last is weft's own: stock flannel has no key for it. What it would write is `0.0.0.0-0&fd00:5:0:22::-64`, of which a
//! cluster can have one, since each claims all of IPv4; and a stock node that reads it would route the world to its owner, while
//! one that cannot read a key forgets all its peers. It looks at every key that begins with `PREFIX/subnets`, so these
//! leases stand elsewhere.

use super::json::Object;
use super::{LeaseAttrs, Subnets};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::Serialize;
use serde_json::Value;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The longest IPv4 prefix in a key: stock flannel reads the length as 5 bits.
const LEN_MAX_V4: u8 = 31;
/// The longest IPv6 prefix in a key: 7 bits.
const LEN_MAX_V6: u8 = 127;
/// The longest value that is looked at, in bytes. Those of stock flannel stay below 300; extension hooks may publish more.
pub const VALUE_LEN_MAX: usize = 64 * 1024;

/// The directory of a network's leases below the prefix.
pub fn directory_name(has_ipv4: bool) -> &'static str {
    if has_ipv4 { "subnets" } else { "ipv6-subnets" }
}

/// The last part of a lease's key. `None` for a claim on nothing.
pub fn key_name(subnets: &Subnets) -> Option<String> {
    let v4 = subnets.v4.map(|net| format!("{}-{}", net.network(), net.prefix_len()));
    let v6 = subnets.v6.map(|net| format!("{}-{}", net.network(), net.prefix_len()));
    match (v4, v6) {
        (Some(v4), Some(v6)) => Some(format!("{v4}&{v6}")),
        (v4, v6) => v4.or(v6),
    }
}

/// Reads the last part of a lease's key, in either directory; the error says what it lacks.
pub fn parse_key(name: &str) -> Result<Subnets, String> {
    let subnets = read_key(name)?;
    match truncated(subnets) == subnets {
        true => Ok(subnets),
        false => Err("its address has bits behind the prefix length".to_owned()),
    }
}

/// What a key lays claim to, for whoever looks for a free subnet: more generous than [`parse_key`].
pub fn claim_of(name: &str) -> Option<Subnets> {
    read_key(name).ok().map(truncated)
}

fn truncated(subnets: Subnets) -> Subnets {
    Subnets { v4: subnets.v4.map(|net| net.trunc()), v6: subnets.v6.map(|net| net.trunc()) }
}

fn read_key(name: &str) -> Result<Subnets, String> {
    if name.contains('/') {
        return Err("leases are directly below subnets/".to_owned());
    }
    Ok(match name.split_once('&') {
        Some((v4, v6)) => Subnets { v4: Some(read_v4(v4)?), v6: Some(read_v6(v6)?) },
        None if name.contains(':') => Subnets { v4: None, v6: Some(read_v6(name)?) },
        None => Subnets { v4: Some(read_v4(name)?), v6: None },
    })
}

fn read_v4(text: &str) -> Result<Ipv4Net, String> {
    let (address, len) = halves(text, LEN_MAX_V4)?;
    let address: Ipv4Addr = address.parse().map_err(|_| format!("{address:?} is no IPv4 address"))?;
    Ipv4Net::new(address, len).map_err(|error| error.to_string())
}

fn read_v6(text: &str) -> Result<Ipv6Net, String> {
    let (address, len) = halves(text, LEN_MAX_V6)?;
    let is_plain = address.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b':'));
    let parsed = address.parse::<Ipv6Addr>().ok().filter(|_| is_plain);
    let address = parsed.ok_or_else(|| format!("{address:?} is no IPv6 address in lower case"))?;
    Ipv6Net::new(address, len).map_err(|error| error.to_string())
}

fn halves(text: &str, len_max: u8) -> Result<(&str, u8), String> {
    let (address, len) = text.split_once('-').ok_or_else(|| format!("{text:?} has no -LENGTH"))?;
    let is_number = !len.is_empty() && len.bytes().all(|byte| byte.is_ascii_digit());
    match len.parse::<u8>().ok().filter(|len| is_number && *len <= len_max) {
        Some(len) => Ok((address, len)),
        None => Err(format!("{len:?} is no prefix length from 0 to {len_max}")),
    }
}

/// A value in the order of stock flannel's structure.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Written<'a> {
    #[serde(rename = "PublicIP")]
    public_ip: Ipv4Addr,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<Ipv6Addr>,
    #[serde(skip_serializing_if = "str::is_empty")]
    backend_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend_data: &'a Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend_v6_data: &'a Option<Value>,
}

/// A lease's value.
pub fn write_value(attrs: &LeaseAttrs) -> String {
    let written = Written {
        public_ip: attrs.public_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
        public_ipv6: attrs.public_ipv6,
        backend_type: &attrs.backend_type,
        backend_data: &attrs.backend_data,
        backend_v6_data: &attrs.backend_v6_data,
    };
    let text = serde_json::to_string(&written).expect("strings, numbers and JSON values are JSON");
    // Go escapes these inside strings, the only place where they can be.
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Reads a lease's value; the error says what it lacks.
pub fn parse_value(value: &[u8]) -> Result<LeaseAttrs, String> {
    if value.len() > VALUE_LEN_MAX {
        return Err(format!("its value is {} bytes long, more than {VALUE_LEN_MAX}", value.len()));
    }
    let text = std::str::from_utf8(value).map_err(|_| "its value is not UTF-8".to_owned())?;
    let object = Object::parse(text).map_err(|why| format!("its value is no JSON object: {why}"))?;
    let text = |name: &str| match object.value(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("its {name} is no string")),
    };
    let public_ip = text("PublicIP")?
        .map(|text| text.parse::<Ipv4Addr>().map_err(|_| format!("its PublicIP {text:?} is no IPv4 address")));
    let public_ipv6 = text("PublicIPv6")?
        .map(|text| text.parse::<Ipv6Addr>().map_err(|_| format!("its PublicIPv6 {text:?} is no IPv6 address")));
    Ok(LeaseAttrs {
        public_ip: public_ip.transpose()?.filter(|address| !address.is_unspecified()),
        public_ipv6: public_ipv6.transpose()?.filter(|address| !address.is_unspecified()),
        backend_type: text("BackendType")?.unwrap_or_default().to_lowercase(),
        backend_data: object.value("BackendData"),
        backend_v6_data: object.value("BackendV6Data"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn attrs(public_ip: &str) -> LeaseAttrs {
        LeaseAttrs { public_ip: Some(public_ip.parse().unwrap()), ..LeaseAttrs::default() }
    }

    #[test]
    fn values_are_byte_for_byte_those_of_stock_flannel() {
        let mac = |mac: &str| Some(json!({"VtepMAC": mac, "VNI": 1}));
        let cases = [
            (attrs("1.2.3.4"), r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#),
            (LeaseAttrs::default(), r#"{"PublicIP":"0.0.0.0","PublicIPv6":null}"#),
            (
                LeaseAttrs {
                    backend_type: "vxlan".into(),
                    backend_data: mac("c6:d2:32:6f:8f:44"),
                    ..attrs("192.168.64.3")
                },
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
            ),
            (
                LeaseAttrs {
                    public_ipv6: Some("fd00::3".parse().unwrap()),
                    backend_type: "vxlan".into(),
                    backend_data: mac("c6:d2:32:6f:8f:44"),
                    backend_v6_data: mac("c6:d2:32:6f:8f:45"),
                    ..attrs("192.168.64.3")
                },
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":"fd00::3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:45"}}"#,
            ),
            (
                LeaseAttrs { backend_type: "host-gw".into(), ..attrs("10.0.0.9") },
                r#"{"PublicIP":"10.0.0.9","PublicIPv6":null,"BackendType":"host-gw"}"#,
            ),
            (
                LeaseAttrs {
                    backend_type: "extension".into(),
                    backend_data: Some("key=\"a\" <b> & c".into()),
                    ..attrs("10.0.0.9")
                },
                r#"{"PublicIP":"10.0.0.9","PublicIPv6":null,"BackendType":"extension","BackendData":"key=\"a\" \u003cb\u003e \u0026 c"}"#,
            ),
        ];
        for (attrs, text) in cases {
            assert_eq!(write_value(&attrs), text);
            assert_eq!(parse_value(text.as_bytes()).unwrap(), attrs, "{text}");
        }
    }

    #[test]
    fn values_are_read_as_go_reads_them() {
        let read = |text: &str| parse_value(text.as_bytes());
        assert_eq!(read(r#"{"publicip": "1.2.3.4", "Other": [{}]}"#), Ok(attrs("1.2.3.4")));
        assert_eq!(
            read(r#"{"PublicIP": "9.9.9.9", "PUBLICIP": "1.2.3.4", "BackendData": null}"#),
            Ok(attrs("1.2.3.4"))
        );
        assert_eq!(read("{}"), Ok(LeaseAttrs::default()));
        assert_eq!(read(r#"{"BackendType": "VXLAN"}"#).unwrap().backend_type, "vxlan");
    }

    #[test]
    fn keys_are_those_of_stock_flannel() {
        for name in ["10.12.13.0-24", "10.12.13.0-24&fd00:12:13::-56", "0.0.0.0-0", "10.0.0.2-31", "10.0.0.0-8&::-0"] {
            assert_eq!(key_name(&parse_key(name).unwrap()).as_deref(), Some(name));
        }
        assert_eq!(key_name(&Subnets::default()), None);
    }

    #[test]
    fn ipv6_alone_has_a_key_where_no_stock_node_looks() {
        for name in ["fd00:12:13::-56", "::-0", "2001:db8:5:7::-64"] {
            let subnets = parse_key(name).unwrap();
            assert_eq!((subnets.v4, key_name(&subnets).as_deref()), (None, Some(name)));
        }
        for name in ["fd00:12:13::", "FD00::-56", "fd00::1-56", "fd00::-128", ":12:13:-56", "fd00::-56&fd01::-56"] {
            assert!(parse_key(name).is_err(), "{name}");
        }
        // Stock flannel looks at all that begins so, with no slash behind.
        assert!(!directory_name(false).starts_with("subnets"));
        assert_eq!(directory_name(true), "subnets");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let stock = [
            "10",
            "10.12.13.0",
            "10.12.13-24",
            "10.12.13.300-24",
            "10.12.13.0-24hi",
            "&2001::-56",
            "10.12.13.0-24&:12:13:-56",
            "10.12.13.0-24&20011::-56",
            "10.12.13.0-24&2001-56",
            "10.12.13.0-24&2001::",
            "10.12.13.0-24&2001::-56hi",
        ];
        let ours = [
            "",
            "10.12.13.0-32",
            "10.12.13.0-",
            "10.12.13.0-+24",
            "10.12.13.0--24",
            "10.12.13.0/24",
            "10.12.13.1-24",
            "10.12.13.0-256",
            "a/10.12.13.0-24",
            "hi10.12.13.0-24",
            "10.12.13.0-24&",
            "10.12.13.0-24&FD00::-56",
            "10.12.13.0-24&fd00::1-56",
            "10.12.13.0-24&fd00::-128",
            "10.12.13.0-24&::ffff:1.2.3.4-96",
            "10.12.13.0-24&fd00::-56&fd01::-56",
        ];
        for name in stock.into_iter().chain(ours) {
            assert!(parse_key(name).is_err(), "{name}");
        }
        assert_eq!(claim_of("10.12.13.1-24"), parse_key("10.12.13.0-24").ok());
        assert_eq!(claim_of("config"), None);
    }

    #[test]
    fn what_is_no_value_is_refused() {
        let deep = format!("{{\"BackendData\":{}{}}}", "[".repeat(500), "]".repeat(500));
        let long = format!("{{\"BackendData\":\"{}\"}}", "x".repeat(VALUE_LEN_MAX));
        let cases = [
            "",
            "{",
            "[]",
            "null",
            "7",
            "{}{}",
            "{\"PublicIP\":1}",
            "{\"PublicIP\":\"\"}",
            "{\"PublicIP\":\"fd00::1\"}",
            "{\"PublicIP\":[\"1.2.3.4\"]}",
            "{\"PublicIPv6\":\"1.2.3.4\"}",
            "{\"BackendType\":{}}",
            &deep,
            &long,
        ];
        for text in cases {
            assert!(parse_value(text.as_bytes()).is_err(), "{}", &text[..text.len().min(60)]);
        }
        assert!(parse_value(&[b'{', 0xff, b'}']).is_err());
    }
}
