//! The network config's key: what it says, and when that is news.

use super::EtcdOptions;
use super::wire::Kv;
use crate::flannel::NetConf;

/// `PREFIX/config`.
pub fn key(options: &EtcdOptions) -> String {
    format!("{}/config", options.prefix.trim_end_matches('/'))
}

/// What a value of the key says; the error is a sentence that names the key.
pub fn read(key: &str, value: Option<&[u8]>) -> Result<NetConf, String> {
    let Some(value) = value else {
        return Err(format!(
            "etcd has no network config at {key}; write one, for example: etcdctl put {key} \
             '{{\"Network\": \"10.5.0.0/16\"}}'"
        ));
    };
    let text = std::str::from_utf8(value).map_err(|_| format!("the network config at {key} is not UTF-8"))?;
    NetConf::parse(text).map_err(|error| format!("{error} (at {key} in etcd)"))
}

/// Follows the key. Pure: values come in, and what is news comes out. Values are compared by what they mean, so that another
/// order of keys, white space or a default that is written out is no news.
#[derive(Debug)]
pub struct ConfigKey {
    key: String,
    told: Result<NetConf, String>,
    /// Revision of the latest change that was taken in, or up to which the key was read; `None`: it is to be read.
    revision: Option<i64>,
}

impl ConfigKey {
    /// For a daemon that works by `conf`.
    pub fn new(key: String, conf: NetConf) -> ConfigKey {
        ConfigKey { key, told: Ok(conf), revision: None }
    }

    /// The key.
    pub fn name(&self) -> &str {
        &self.key
    }

    /// Whether the key has to be read: changes may have been missed.
    pub fn is_due(&self) -> bool {
        self.revision.is_none()
    }

    /// Has the key read again.
    pub fn make_due(&mut self) {
        self.revision = None;
    }

    /// Does without reading the key; changes still count.
    pub fn give_up(&mut self) {
        self.revision = Some(0);
    }

    /// Takes in the key as it was read from a store at `revision`; gives what is news.
    pub fn found(&mut self, kv: Option<&Kv>, revision: i64) -> Option<Result<NetConf, String>> {
        self.revision = Some(revision);
        self.says(kv.map(|kv| &*kv.value))
    }

    /// Takes in a change; gives what is news. A change that is older than what is known, as one comes when a stream is opened
    /// from further back, is none.
    pub fn changed(&mut self, kv: &Kv, is_delete: bool) -> Option<Result<NetConf, String>> {
        if self.revision.is_some_and(|seen| kv.mod_revision <= seen) {
            return None;
        }
        self.revision = Some(kv.mod_revision);
        self.says(Some(&*kv.value).filter(|_| !is_delete))
    }

    fn says(&mut self, value: Option<&[u8]>) -> Option<Result<NetConf, String>> {
        let read = read(&self.key, value);
        if read == self.told {
            return None;
        }
        self.told = read.clone();
        Some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = r#"{"Network": "10.5.0.0/16"}"#;
    const OTHER: &str = r#"{"Network": "10.4.0.0/15"}"#;

    fn conf(text: &str) -> NetConf {
        NetConf::parse(text).unwrap()
    }

    fn kv(value: &str, mod_revision: i64) -> Kv {
        Kv { value: value.into(), mod_revision, ..Kv::default() }
    }

    fn begun() -> ConfigKey {
        let mut config = ConfigKey::new("/n/config".into(), conf(FIRST));
        assert!(config.is_due());
        assert_eq!(config.found(Some(&kv(FIRST, 3)), 10), None);
        assert!(!config.is_due());
        config
    }

    #[test]
    fn what_means_the_same_is_no_news() {
        let mut config = begun();
        for (text, revision) in [
            (r#"{ "Network" : "10.5.0.0/16" }"#, 11),
            (r#"{"SubnetLen": 24, "network": "10.5.0.0/16"}"#, 12),
            (r#"{"Backend": {"Port": 8285, "Type": "UDP"}, "EnableIPv4": true, "Network": "10.5.7.0/16"}"#, 13),
            (r#"{"Network": "10.5.0.0/16", "Remark": "unknown keys say nothing"}"#, 14),
        ] {
            assert_eq!(config.changed(&kv(text, revision), false), None, "{text}");
        }
    }

    #[test]
    fn each_state_is_told_once() {
        let mut config = begun();
        assert_eq!(config.changed(&kv(OTHER, 11), false), Some(Ok(conf(OTHER))));
        assert_eq!(config.changed(&kv(OTHER, 12), false), None);
        let why = config.changed(&kv("{", 13), false).unwrap().unwrap_err();
        assert!(why.contains("no JSON object") && why.contains("/n/config"), "{why}");
        assert_eq!(config.changed(&kv("{", 14), false), None);
        let why = config.changed(&kv("", 15), true).unwrap().unwrap_err();
        assert!(why.contains("no network config at /n/config"), "{why}");
        assert_eq!(config.changed(&kv(FIRST, 16), false), Some(Ok(conf(FIRST))));
    }

    #[test]
    fn changes_that_come_again_are_passed_over_unless_the_key_is_read_anew() {
        let mut config = begun();
        assert_eq!(config.changed(&kv(OTHER, 10), false), None);
        assert_eq!(config.changed(&kv(OTHER, 11), false), Some(Ok(conf(OTHER))));
        assert_eq!(config.changed(&kv(FIRST, 9), false), None);
        // A store that began anew.
        config.make_due();
        assert_eq!(config.found(Some(&kv(FIRST, 2)), 4), Some(Ok(conf(FIRST))));
        assert_eq!(config.changed(&kv(OTHER, 5), false), Some(Ok(conf(OTHER))));
    }
}
