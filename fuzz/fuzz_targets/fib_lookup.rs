//! Explores [`weft_fuzz::fib::fib_lookup`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::fib::fib_lookup(data));
