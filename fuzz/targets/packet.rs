//! Any bytes are a request or are not; none panics. Checksums are left to offload, so that they are no wall.
#![no_main]

use guestnet::dhcp::{L4Checksum, Request};

libfuzzer_sys::fuzz_target!(|frame: &[u8]| {
    let _ = Request::parse(frame, L4Checksum::LeftToOffload);
    let _ = Request::parse(frame, L4Checksum::Complete);
});
