//! Ethernet hardware addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet hardware address; its text form is `c6:d2:32:6f:8f:44`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Reads the six bytes of an Ethernet address; other lengths (loopback has six zeros, TUN has none) give `None`.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a hardware address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a hardware address; expected six bytes in hex such as c6:d2:32:6f:8f:44")]
pub struct MacParseError(String);

impl FromStr for MacAddr {
    type Err = MacParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || MacParseError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part =
                parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit())).ok_or_else(refuse)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        if parts.next().is_some() {
            return Err(refuse());
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MacAddr {
    type Error = MacParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_read_and_written() {
        let text = "c6:d2:32:6f:8f:44";
        let mac: MacAddr = text.parse().unwrap();
        assert_eq!(mac, MacAddr([0xc6, 0xd2, 0x32, 0x6f, 0x8f, 0x44]));
        assert_eq!(mac.to_string(), text);
        assert_eq!(serde_json::to_string(&mac).unwrap(), format!("\"{text}\""));
    }

    #[test]
    fn anything_but_six_hex_bytes_is_refused() {
        for text in
            ["", "c6:d2:32:6f:8f", "c6:d2:32:6f:8f:44:00", "c6:d2:32:6f:8f:+4", "c6-d2-32-6f-8f-44", "c6:d2:32:6f:8f:4"]
        {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }
}
