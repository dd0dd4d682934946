//! Explores [`weft_fuzz::packet::ip_check`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::packet::ip_check(data));
