//! Explores [`weft_fuzz::flannel::lease_record`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::flannel::lease_record(data));
