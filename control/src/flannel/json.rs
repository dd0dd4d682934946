//! JSON objects the way Go's `encoding/json` reads them, which is how stock flannel reads its config and its leases: keys
//! match whatever their case, unknown keys are passed over, of several the last one counts, and `null` leaves a field as it
//! was.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::fmt;

/// The members of an object, in order.
#[derive(Debug)]
pub struct Object(Vec<Member>);

#[derive(Debug)]
struct Member {
    name: String,
    /// As it was written.
    raw: Box<RawValue>,
    value: Value,
}

impl Object {
    /// Reads an object; the error is a sentence that says what is wrong and where.
    pub fn parse(text: &str) -> Result<Object, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    /// The text of the last member with this name, in any case.
    pub fn raw(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|member| member.name.eq_ignore_ascii_case(name)).map(|member| member.raw.get())
    }

    /// The last member with this name whose value is not `null`.
    pub fn value(&self, name: &str) -> Option<Value> {
        let mut named = self.0.iter().rev().filter(|member| member.name.eq_ignore_ascii_case(name));
        named.find(|member| !member.value.is_null()).map(|member| member.value.clone())
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut members = Vec::new();
                while let Some((name, raw)) = map.next_entry::<String, Box<RawValue>>()? {
                    // A raw value may nest as deep as it likes; a `Value` may not.
                    let value = serde_json::from_str(raw.get()).map_err(A::Error::custom)?;
                    members.push(Member { name, raw, value });
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_several_spellings_counts_and_null_does_not() {
        let object = Object::parse(r#"{"network": "a", "NETWORK": "b", "Network": null, "other": [1]}"#).unwrap();
        assert_eq!(object.value("Network"), Some(Value::from("b")));
        assert_eq!(object.raw("Network"), Some("null"));
        assert_eq!(object.value("absent"), None);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["", "[]", "1", "\"a\"", "null", "{", "{}x", "{\"a\":1,}", "{'a':1}"] {
            assert!(Object::parse(text).is_err(), "{text}");
        }
    }
}
