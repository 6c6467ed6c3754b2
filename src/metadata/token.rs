//! Session tokens as EC2's IMDSv2 has them. In: whose and until when. Out: text that only we can have made. Nothing is
//! kept: a token carries its end and a keyed hash over it, so guests cannot fill any table, and a restart makes all invalid.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::hmac;

use crate::registry::Binding;

pub(super) struct Tokens(hmac::Key);

impl Tokens {
    pub(super) fn new() -> Result<Self, ring::error::Unspecified> {
        Ok(Self(hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new())?))
    }

    /// `end` and `now` are seconds of one clock.
    pub(super) fn issue(&self, guest: &Binding, end: u64) -> String {
        let seal = hmac::sign(&self.0, &sealed(guest, end));
        BASE64.encode([&end.to_be_bytes()[..], seal.as_ref()].concat())
    }

    pub(super) fn is_valid(&self, token: &str, guest: &Binding, now: u64) -> bool {
        let Ok(bytes) = BASE64.decode(token) else { return false };
        let Some((end, seal)) = bytes.split_first_chunk::<8>() else { return false };
        let end = u64::from_be_bytes(*end);
        // In constant time.
        now < end && hmac::verify(&self.0, &sealed(guest, end), seal).is_ok()
    }
}

/// A VM deleted and made again under the same name is another one.
fn sealed(guest: &Binding, end: u64) -> Vec<u8> {
    let vm = &guest.vm;
    format!("{} {} {} {} {} {end}", vm.network, vm.vm_id, vm.address, vm.mac, vm.created_at_us).into_bytes()
}
