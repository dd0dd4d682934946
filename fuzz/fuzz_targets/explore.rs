//! The explorer: runs the entry of [`weft_fuzz::TARGETS`] that this binary is named after. `Cargo.toml` builds this file
//! once per target; see README.md.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// The target named like the binary. Unknown names are refused by the compiler, so that a renamed target cannot go unnoticed.
const TARGET: fn(&[u8]) = target(env!("CARGO_BIN_NAME"));

const fn target(name: &str) -> fn(&[u8]) {
    let mut index = 0;
    while index < weft_fuzz::TARGETS.len() {
        if equal(weft_fuzz::TARGETS[index].0.as_bytes(), name.as_bytes()) {
            return weft_fuzz::TARGETS[index].1;
        }
        index += 1;
    }
    panic!("no entry of weft_fuzz::TARGETS has the name of this binary")
}

const fn equal(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut index = 0;
    while index < a.len() {
        if a[index] != b[index] {
            return false;
        }
        index += 1;
    }
    true
}

fuzz_target!(|input: &[u8]| TARGET(input));
