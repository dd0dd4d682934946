//! Explores [`weft_fuzz::packet::vnet_split`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::packet::vnet_split(data));
