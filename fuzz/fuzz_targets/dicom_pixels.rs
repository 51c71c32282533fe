#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ct_ingest::doors::dicom_pixels(bytes));
