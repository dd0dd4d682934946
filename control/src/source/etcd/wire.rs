//! The JSON of etcd's gateway (`rpc.proto` as grpc-gateway writes it): numbers of 64 bits are strings, bytes are base64, and
//! what is zero or empty is left out.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error};
use serde_json::{Value, json};

/// Bytes as the gateway wants them.
pub fn encode(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    BASE64_STANDARD.decode(text).map_err(D::Error::custom)
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => text.parse().map_err(D::Error::custom),
        Value::Number(number) => number.as_i64().ok_or_else(|| D::Error::custom("a number beyond 63 bits")),
        _ => Err(D::Error::custom("expected a number")),
    }
}

/// `ResponseHeader`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default)]
pub struct Header {
    /// The store's revision.
    #[serde(deserialize_with = "number")]
    pub revision: i64,
    /// Grows with every election, and begins anew with a new store.
    #[serde(deserialize_with = "number")]
    pub raft_term: i64,
}

/// `KeyValue`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default)]
pub struct Kv {
    #[serde(deserialize_with = "bytes")]
    pub key: Vec<u8>,
    #[serde(deserialize_with = "bytes")]
    pub value: Vec<u8>,
    /// When the key came to be.
    #[serde(deserialize_with = "number")]
    pub create_revision: i64,
    /// When it was written last.
    #[serde(deserialize_with = "number")]
    pub mod_revision: i64,
    /// The etcd lease that it dies with; 0: none.
    #[serde(deserialize_with = "number")]
    pub lease: i64,
}

/// `RangeResponse`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Range {
    pub header: Header,
    pub kvs: Vec<Kv>,
}

/// `TxnResponse`, of transactions whose failure branch reads one key.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Txn {
    pub header: Header,
    pub succeeded: bool,
    responses: Vec<TxnPart>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct TxnPart {
    response_range: Range,
}

impl Txn {
    /// What the failure branch read.
    pub fn current(self) -> Option<Kv> {
        self.responses.into_iter().next()?.response_range.kvs.into_iter().next()
    }
}

/// `LeaseGrantResponse` and `LeaseKeepAliveResponse`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Lease {
    #[serde(rename = "ID", deserialize_with = "number")]
    pub id: i64,
    /// Seconds; 0: there is no such lease.
    #[serde(rename = "TTL", deserialize_with = "number")]
    pub ttl: i64,
}

/// `AuthenticateResponse`.
#[derive(serde::Deserialize)]
pub struct Token {
    pub token: String,
}

/// `WatchResponse`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Watched {
    pub header: Header,
    /// Which of the watches of one stream.
    #[serde(deserialize_with = "number")]
    pub watch_id: i64,
    pub created: bool,
    pub canceled: bool,
    /// Not 0: the wanted revision is compacted.
    #[serde(deserialize_with = "number")]
    pub compact_revision: i64,
    pub cancel_reason: String,
    pub events: Vec<Event>,
}

/// `Event`. A deleted key comes with the revision of its deletion and without a value.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Event {
    #[serde(rename = "type")]
    kind: String,
    pub kv: Kv,
}

impl Event {
    /// An event as etcd would send it.
    #[cfg(test)]
    pub fn of(kv: Kv, is_delete: bool) -> Event {
        Event { kind: if is_delete { "DELETE".into() } else { String::new() }, kv }
    }

    /// Whether the key is gone.
    pub fn is_delete(&self) -> bool {
        self.kind == "DELETE"
    }
}

/// One message of a stream: `{"result": ...}` or `{"error": ...}`.
pub fn streamed<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    #[derive(serde::Deserialize)]
    struct Message<T> {
        result: Option<T>,
        error: Option<Value>,
    }
    let message: Message<T> = serde_json::from_slice(line).map_err(|error| format!("it makes no sense: {error}"))?;
    match (message.result, message.error) {
        (Some(result), _) => Ok(result),
        (None, Some(error)) => Err(error.get("message").and_then(Value::as_str).unwrap_or("an error").to_owned()),
        (None, None) => Err("it says neither result nor error".to_owned()),
    }
}

/// What a transaction asks about its key before it writes.
#[derive(Clone, Copy, Debug)]
pub enum Condition {
    /// The key does not exist.
    Absent,
    /// The key was written last at this revision.
    Unchanged(i64),
}

/// A `TxnRequest` on one key: under `condition` put `value` with a lease, or without a value delete; else read it.
pub fn txn(key: &[u8], condition: Condition, put: Option<(&[u8], i64)>) -> Value {
    let key = encode(key);
    let compare = match condition {
        Condition::Absent => json!({"key": key, "target": "VERSION", "result": "EQUAL", "version": "0"}),
        Condition::Unchanged(revision) => {
            json!({"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": revision.to_string()})
        }
    };
    let operation = match put {
        Some((value, lease)) => {
            json!({"request_put": {"key": key, "value": encode(value), "lease": lease.to_string()}})
        }
        None => json!({"request_delete_range": {"key": key}}),
    };
    json!({"compare": [compare], "success": [operation], "failure": [{"request_range": {"key": key}}]})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_zero_and_numbers_are_strings() {
        let range: Range = serde_json::from_str(
            r#"{"header":{"cluster_id":"324952591200643719","revision":"2","raft_term":"3"},
                "kvs":[{"key":"YQ==","create_revision":"2","mod_revision":"2","version":"1","value":"Yg=="}],"count":"1"}"#,
        )
        .unwrap();
        assert_eq!(range.header, Header { revision: 2, raft_term: 3 });
        let kv = Kv { key: b"a".to_vec(), value: b"b".to_vec(), create_revision: 2, mod_revision: 2, lease: 0 };
        assert_eq!(range.kvs, [kv]);
        let lease: Lease = streamed(br#"{"result":{"header":{},"ID":"123"}}"#).unwrap();
        assert_eq!((lease.id, lease.ttl), (123, 0));
    }

    #[test]
    fn messages_that_make_no_sense_are_errors() {
        let cases = ["", "{}", "[]", r#"{"result":{"events":7}}"#, r#"{"result":{"events":[{"kv":{"key":"*"}}]}}"#];
        for line in cases {
            assert!(streamed::<Watched>(line.as_bytes()).is_err(), "{line}");
        }
        let error = streamed::<Watched>(br#"{"error":{"grpc_code":14,"message":"no leader"}}"#).unwrap_err();
        assert_eq!(error, "no leader");
    }
}
