//! Whatever an upstream sends as an answer is refused, or is passed on whole and within the size the guest can take.
#![no_main]

libfuzzer_sys::fuzz_target!(|message: &[u8]| guestnet::dns::fuzzing::answer(message));
