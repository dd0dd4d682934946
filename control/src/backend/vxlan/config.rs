//! The vxlan backend's part of the network config.

use crate::backend::peers::field;
use crate::flannel::BackendError;
use serde_json::Value;

/// Largest VXLAN network identifier: 24 bits (RFC 7348 section 5).
const VNI_MAX: u64 = 0xff_ffff;
/// The kernel's default port (`vxlan_port`, drivers/net/vxlan/vxlan_core.c), which is older than the one that IANA
/// assigned, 4789.
const PORT_DEFAULT: u16 = 8472;
/// Smallest MTU that IPv4 works with (RFC 791), and largest packet.
const MTU_RANGE: std::ops::RangeInclusive<u64> = 68..=65535;

/// `Backend` of the network config, for `Type` vxlan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanConfig {
    /// `VNI`: the VXLAN network identifier, 1 unless given.
    pub vni: u32,
    /// `Port`: UDP port, 8472 where 0 or nothing is given.
    pub port: u16,
    /// `MTU`: of the underlay, in bytes; that of the external interface unless given.
    pub mtu: Option<u32>,
    /// `GBP`: the group policy extension.
    pub gbp: bool,
    /// `Learning`: hardware addresses are learned from what arrives.
    pub learning: bool,
    /// `DirectRouting`: peers on the same link are routed to without encapsulation.
    pub direct_routing: bool,
}

impl Default for VxlanConfig {
    fn default() -> Self {
        Self { vni: 1, port: PORT_DEFAULT, mtu: None, gbp: false, learning: false, direct_routing: false }
    }
}

impl VxlanConfig {
    /// Reads the `Backend` object. Keys are matched whatever their case, unknown ones are ignored.
    ///
    /// # Errors
    /// [`BackendError::Config`] with the key, its value and what was expected.
    pub fn from_json(backend: &Value) -> Result<Self, BackendError> {
        let mut config = Self::default();
        if let Some(vni) = number(backend, "VNI", 0..=VNI_MAX)? {
            config.vni = vni;
        }
        match number(backend, "Port", 0..=u64::from(u16::MAX))? {
            None | Some(0) => (),
            Some(port) => config.port = port as u16,
        }
        // flannel takes 0 for "not given".
        config.mtu = match field(backend, "MTU").and_then(Value::as_u64) {
            Some(0) => None,
            _ => number(backend, "MTU", MTU_RANGE)?,
        };
        config.gbp = flag(backend, "GBP")?;
        config.learning = flag(backend, "Learning")?;
        config.direct_routing = flag(backend, "DirectRouting")?;
        Ok(config)
    }
}

fn number(backend: &Value, key: &str, range: std::ops::RangeInclusive<u64>) -> Result<Option<u32>, BackendError> {
    let Some(value) = field(backend, key) else { return Ok(None) };
    let found = value.as_u64().filter(|number| range.contains(number)).and_then(|number| u32::try_from(number).ok());
    let (min, max) = (range.start(), range.end());
    let refuse = || BackendError::Config(format!("Backend.{key} is {value}; expected a number from {min} to {max}"));
    found.map(Some).ok_or_else(refuse)
}

fn flag(backend: &Value, key: &str) -> Result<bool, BackendError> {
    let Some(value) = field(backend, key) else { return Ok(false) };
    value.as_bool().ok_or_else(|| BackendError::Config(format!("Backend.{key} is {value}; expected true or false")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<VxlanConfig, BackendError> {
        VxlanConfig::from_json(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn defaults_are_flannels() {
        for text in [r#"{"Type":"vxlan"}"#, r#"{"VNI":null,"Port":0,"MTU":0,"Other":[1]}"#] {
            assert_eq!(read(text).unwrap(), VxlanConfig::default(), "{text}");
        }
    }

    #[test]
    fn keys_are_read_whatever_their_case() {
        let text = r#"{"vni":4096,"port":4789,"mtu":9000,"gbp":true,"learning":true,"directrouting":true}"#;
        let all =
            VxlanConfig { vni: 4096, port: 4789, mtu: Some(9000), gbp: true, learning: true, direct_routing: true };
        assert_eq!(read(text).unwrap(), all);
    }

    #[test]
    fn refusals_name_key_value_and_expectation() {
        for (text, expected) in [
            (r#"{"VNI":16777216}"#, "Backend.VNI is 16777216; expected a number from 0 to 16777215"),
            (r#"{"VNI":"1"}"#, "Backend.VNI is \"1\"; expected a number from 0 to 16777215"),
            (r#"{"Port":-1}"#, "Backend.Port is -1; expected a number from 0 to 65535"),
            (r#"{"MTU":67}"#, "Backend.MTU is 67; expected a number from 68 to 65535"),
            (r#"{"GBP":1}"#, "Backend.GBP is 1; expected true or false"),
            (r#"{"DirectRouting":"yes"}"#, "Backend.DirectRouting is \"yes\"; expected true or false"),
        ] {
            assert_eq!(read(text).unwrap_err().to_string(), expected);
        }
    }
}
