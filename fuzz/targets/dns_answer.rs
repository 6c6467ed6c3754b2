//! Bytes to bytes: whatever an upstream sends, a guest gets a whole answer or none. `dns::exercise` says what a whole answer is.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| guestnet::dns::exercise_answer(bytes));
