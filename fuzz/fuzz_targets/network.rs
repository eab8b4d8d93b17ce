#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| spnn_fuzz::check("network", input));
