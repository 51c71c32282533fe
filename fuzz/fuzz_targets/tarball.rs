#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ct_read::fuzz_targets::tarball(bytes));
