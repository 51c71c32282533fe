#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ct_ingest::fuzz_targets::label_table(bytes));
