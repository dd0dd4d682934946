//! Targets over what weft reads of a flannel cluster's registry.

use serde_json::Value;
use weft_control::flannel::record::{VALUE_LEN_MAX, claim_of, key_name, parse_key, parse_value, write_value};

/// Reads bytes as a lease: up to the first line feed the last part of its key, then its value. A key that is taken is one
/// that is written again as another spelling of the same claim; a value that is taken says the same once it was written.
pub fn lease_record(input: &[u8]) {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (key, value) = (&input[..end], input.get(end + 1..).unwrap_or_default());
    if let Ok(name) = std::str::from_utf8(key)
        && let Ok(subnets) = parse_key(name)
    {
        assert_eq!(claim_of(name), Some(subnets), "whoever looks for a free subnet sees what peers see");
        let written = key_name(&subnets).expect("a claim on something");
        assert_eq!(parse_key(&written), Ok(subnets), "{name:?}");
    }
    let Ok(attrs) = parse_value(value) else { return };
    let written = write_value(&attrs);
    assert!(!written.contains(['<', '>', '&']), "Go escapes these: {written}");
    // What is escaped gets longer.
    if written.len() > VALUE_LEN_MAX {
        return;
    }
    let mut again = parse_value(written.as_bytes()).expect("what is written can be read");
    let data = [&attrs.backend_data, &attrs.backend_v6_data];
    if data.into_iter().flatten().any(has_fraction) {
        // No backend has one; serde_json may be off in the last digit.
        (again.backend_data, again.backend_v6_data) = (attrs.backend_data.clone(), attrs.backend_v6_data.clone());
    }
    assert_eq!(again, attrs, "{written}");
}

fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(values) => values.iter().any(has_fraction),
        Value::Object(object) => object.values().any(has_fraction),
        _ => false,
    }
}
