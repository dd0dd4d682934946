//! Explores [`weft_fuzz::packet::icmp_error`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::packet::icmp_error(data));
