//! What a guest has made of its reservation. PURE. In: each exchange as it was decided. Out: how the lease stands.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use super::{Answer, Kind, Outcome, Request, Silence};
use crate::model::{LastExchange, LeaseState, LeaseView};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Standing {
    #[default]
    Reserved,
    Offered,
    /// Until then, or without end.
    Bound(Option<SystemTime>),
    Released,
    Declined,
}

/// The lease of one guest, and what it last said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    pub(super) standing: Standing,
    /// What `standing` is about: a reservation that has moved is a new one.
    pub(super) address: Option<Ipv4Addr>,
    pub(super) last_seen: Option<SystemTime>,
    pub(super) last_exchange: Option<LastExchange>,
    pub(super) vendor_class: Option<Box<str>>,
    pub(super) wished_name: Option<Box<str>>,
    pub(super) decline_alarm: Option<SystemTime>,
}

impl Record {
    /// How the lease of `address` stands.
    pub fn view(&self, address: Ipv4Addr, now: SystemTime) -> LeaseView {
        let standing = if self.address == Some(address) { self.standing } else { Standing::Reserved };
        let (state, expires_at) = match standing {
            Standing::Reserved => (LeaseState::Reserved, None),
            Standing::Offered => (LeaseState::Offered, None),
            Standing::Bound(Some(end)) if end <= now => (LeaseState::Expired, None),
            Standing::Bound(end) => (LeaseState::Bound, end),
            Standing::Released => (LeaseState::Released, None),
            Standing::Declined => (LeaseState::Declined, None),
        };
        LeaseView {
            state,
            last_seen: self.last_seen,
            expires_at,
            vendor_class: self.vendor_class.as_deref().map(ToOwned::to_owned),
            wished_hostname: self.wished_name.as_deref().map(ToOwned::to_owned),
            last_exchange: self.last_exchange,
        }
    }

    pub(super) fn declined_within(&self, time: Duration, now: SystemTime) -> bool {
        self.decline_alarm.is_some_and(|said| now.duration_since(said).is_ok_and(|ago| ago < time))
    }

    /// Takes down an exchange about `address`; whether the lease stands otherwise than before.
    pub fn note(
        &mut self,
        request: &Request<'_>,
        outcome: Outcome,
        address: Ipv4Addr,
        lease_seconds: u32,
        now: SystemTime,
    ) -> bool {
        let before = (self.standing, self.address);
        if self.address != Some(address) {
            (self.standing, self.address) = (Standing::Reserved, Some(address));
        }
        self.standing = match outcome {
            Outcome::Reply(Answer::Offer) => Standing::Offered,
            Outcome::Reply(Answer::Ack | Answer::RapidAck) => Standing::Bound(lease_end(lease_seconds, now)),
            // RFC 1534 section 2: a BOOTP client knows no lease time, it keeps its address.
            Outcome::Reply(Answer::Bootp) => Standing::Bound(None),
            Outcome::Released => Standing::Released,
            Outcome::Declined { .. } => Standing::Declined,
            Outcome::Reply(Answer::Nak | Answer::Inform) | Outcome::Silent(_) => self.standing,
        };
        if outcome == (Outcome::Declined { alarm: true }) {
            self.decline_alarm = Some(now);
        }
        self.last_seen = Some(now);
        self.last_exchange = Some(LastExchange { asked: request.kind.as_str(), outcome: outcome.as_str() });
        show(&mut self.vendor_class, request.vendor_class.as_deref());
        show(&mut self.wished_name, request.wished_name());
        (self.standing, self.address) != before
    }

    /// Takes down a frame of the guest's that was no request.
    pub(super) fn note_bad(&mut self, silence: Silence, now: SystemTime) {
        self.last_seen = Some(now);
        self.last_exchange = Some(LastExchange { asked: "frame", outcome: silence.as_str() });
    }
}

/// `None` for a lease without end (RFC 2131 section 3.3).
fn lease_end(seconds: u32, now: SystemTime) -> Option<SystemTime> {
    if seconds == u32::MAX { None } else { now.checked_add(Duration::from_secs(seconds.into())) }
}

/// Keeps a guest's text, safe in a log line, a table and a terminal: printable ASCII stays, every other byte is `?`. One
/// that says nothing, or the same as before, changes nothing.
fn show(kept: &mut Option<Box<str>>, bytes: Option<&[u8]>) {
    let Some(bytes) = bytes else { return };
    let Some(end) = bytes.iter().rposition(|byte| *byte != 0) else { return };
    let shown = |byte: &u8| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '?' };
    let text = bytes[..=end].iter().map(shown);
    if !kept.as_deref().is_some_and(|kept| kept.chars().eq(text.clone())) {
        *kept = Some(text.collect::<String>().into());
    }
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Discover => "discover",
            Self::Request => "request",
            Self::Decline => "decline",
            Self::Release => "release",
            Self::Inform => "inform",
            Self::Bootp => "bootp",
        }
    }
}

impl Outcome {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Reply(Answer::Offer) => "offer",
            Self::Reply(Answer::Ack | Answer::Inform) => "ack",
            Self::Reply(Answer::RapidAck) => "rapid ack",
            Self::Reply(Answer::Nak) => "nak: this address is not reserved for it",
            Self::Reply(Answer::Bootp) => "bootp reply",
            Self::Released => "released",
            Self::Declined { .. } => "declined: another host answers for its address",
            Self::Silent(silence) => silence.as_str(),
        }
    }
}

impl Silence {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "no answer: malformed",
            Self::Fragment => "no answer: a fragment",
            Self::BadChecksum => "no answer: wrong checksum",
            Self::Relayed => "no answer: came through a relay agent that is not served",
            Self::SourceMismatch => "no answer: asked for another MAC than its own",
            Self::UnknownMac => "no answer: unknown MAC",
            Self::NotOurs => "no answer: addressed to another server",
            Self::ServerMessage => "no answer: it played the server",
            Self::ForeignAddress => "no answer: about an address that is not its own",
            Self::TooMany => "no answer: more than its share of requests",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_text_reaches_no_terminal_raw() {
        let mut kept = None;
        show(&mut kept, Some(b"evil\x1b[2J\nclass\xff\xe2\x80\xae!\0\0"));
        assert_eq!(kept.as_deref(), Some("evil?[2J?class????!"));
        for silent in [None, Some(&[][..]), Some(&[0, 0][..])] {
            show(&mut kept, silent);
            assert_eq!(kept.as_deref(), Some("evil?[2J?class????!"));
        }
    }
}
