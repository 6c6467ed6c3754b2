//! Bytes to bytes: whatever a guest sends, it gets a whole reply or none. `dhcp::exercise` says what a whole reply is.
#![no_main]

libfuzzer_sys::fuzz_target!(|frame: &[u8]| guestnet::dhcp::exercise(frame));
