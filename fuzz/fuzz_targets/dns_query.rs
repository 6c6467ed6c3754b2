//! Whatever a guest sends as a query is answered or passed over, within the size it can take.
#![no_main]

libfuzzer_sys::fuzz_target!(|message: &[u8]| guestnet::dns::fuzzing::query(message));
