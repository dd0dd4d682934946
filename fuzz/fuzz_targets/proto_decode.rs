//! Explores [`weft_fuzz::proto::proto_decode`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::proto::proto_decode(data));
