//! Bytes to bytes: whatever a guest asks, it gets a whole answer or none. `dns::exercise` says what a whole answer is.
#![no_main]

libfuzzer_sys::fuzz_target!(|message: &[u8]| guestnet::dns::exercise_query(message));
