//! Decides what a request gets. PURE. In: a checked request, the binding of its MAC, what the guest has done so far, and the
//! time. Out: the answer or why there is none, and the record as it is from now on. The identity is the MAC on its own
//! port, never the client identifier (so clones and a change of boot stage keep their address); the address is always
//! the reservation's.

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use super::{Kind, Request, Silence};
use crate::model::{LeaseState, LeaseView};
use crate::registry::Binding;

/// How long a guest that keeps declining is not warned of again.
const DECLINE_ALARM_EVERY: Duration = Duration::from_secs(60);

/// Which reply a guest gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Offer,
    Ack,
    /// ACK to a DISCOVER, RFC 4039.
    RapidAck,
    /// ACK without an address or a lease, RFC 2131 section 4.3.5.
    Inform,
    Nak,
    /// BOOTREPLY without DHCP's own options, RFC 1534 section 2.
    Bootp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Reply(Answer),
    Released,
    /// `alarm`: say so now, it was not said in the last minute.
    Declined {
        alarm: bool,
    },
    Silent(Silence),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub outcome: Outcome,
    /// The record from now on; `None` leaves nothing to remember.
    pub record: Option<Record>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Standing {
    #[default]
    Reserved,
    Offered,
    /// Until then, or without end.
    Bound(Option<SystemTime>),
    Released,
    Declined,
}

/// What a guest has made of its reservation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    standing: Standing,
    last_seen: Option<SystemTime>,
    vendor_class: Option<String>,
    decline_alarm: Option<SystemTime>,
}

impl Record {
    pub fn view(&self, now: SystemTime) -> LeaseView {
        let (state, expires_at) = match self.standing {
            Standing::Reserved => (LeaseState::Reserved, None),
            Standing::Offered => (LeaseState::Offered, None),
            Standing::Bound(Some(end)) if end <= now => (LeaseState::Expired, None),
            Standing::Bound(end) => (LeaseState::Bound, end),
            Standing::Released => (LeaseState::Released, None),
            Standing::Declined => (LeaseState::Declined, None),
        };
        LeaseView { state, last_seen: self.last_seen, expires_at, vendor_class: self.vendor_class.clone() }
    }
}

/// `binding` is that of `request.mac` on the network that the request came from.
pub fn decide(request: &Request, binding: Option<&Binding>, record: &Record, now: SystemTime) -> Decision {
    // RFC 2131 section 4.2: a server may answer the clients it chooses. Silence, so that a server meant for them can.
    let Some(binding) = binding else {
        return Decision { outcome: Outcome::Silent(Silence::UnknownMac), record: None };
    };
    let outcome = outcome(request, binding, record, now);
    Decision { outcome, record: Some(next(record, request, binding, outcome, now)) }
}

fn outcome(request: &Request, binding: &Binding, record: &Record, now: SystemTime) -> Outcome {
    if !is_for_us(request, binding) {
        return Outcome::Silent(Silence::NotOurs);
    }
    let address = binding.guest.address;
    match request.kind {
        // RFC 4039 section 3.1: the only server of this network may commit at once.
        Kind::Discover if request.rapid_commit => Outcome::Reply(Answer::RapidAck),
        // RFC 2131 section 4.3.1. A wish in option 50 changes nothing.
        Kind::Discover => Outcome::Reply(Answer::Offer),
        Kind::Bootp => Outcome::Reply(Answer::Bootp),
        Kind::Request => requested(request, address),
        // RFC 2131 section 4.3.3. The reservation stands: the alarm is for whoever can remove the other host.
        Kind::Decline if request.requested == Some(address) => {
            let quiet =
                |said: SystemTime| now.duration_since(said).is_ok_and(|ago| ago < DECLINE_ALARM_EVERY);
            Outcome::Declined { alarm: !record.decline_alarm.is_some_and(quiet) }
        }
        // RFC 2131 section 4.3.4.
        Kind::Release if request.ciaddr == address => Outcome::Released,
        Kind::Decline | Kind::Release => Outcome::Silent(Silence::ForeignAddress),
        // RFC 2131 section 4.3.5: the address is checked for consistency, not for a lease.
        Kind::Inform if has_consistent_address(request, binding) => Outcome::Reply(Answer::Inform),
        Kind::Inform => Outcome::Silent(Silence::ForeignAddress),
    }
}

/// Sent to this server or to all, and naming this server or none (RFC 2131 sections 4.3.2 to 4.3.4).
fn is_for_us(request: &Request, binding: &Binding) -> bool {
    let guest = &binding.guest;
    let to_us =
        [guest.gateway, Ipv4Addr::BROADCAST, guest.subnet.broadcast()].contains(&request.ip_destination);
    // A DISCOVER names no server (RFC 2131 table 5); if it does, that means nothing.
    let names_us = request.kind == Kind::Discover || request.server_id.is_none_or(|id| id == guest.gateway);
    to_us && names_us
}

/// REQUEST, RFC 2131 section 4.3.2. Selecting and INIT-REBOOT name the address in option 50, renewing and rebinding in
/// ciaddr: whatever is named has to be the reservation. INIT-REBOOT of a reservation that we never leased is
/// acknowledged too (a restored snapshot, a lost store): the reservation says who owns the address, not our memory.
fn requested(request: &Request, address: Ipv4Addr) -> Outcome {
    let ciaddr = Some(request.ciaddr).filter(|ciaddr| !ciaddr.is_unspecified());
    match (request.requested, ciaddr) {
        (None, None) => Outcome::Silent(Silence::Malformed),
        (wanted, held) if [wanted, held].into_iter().flatten().all(|named| named == address) => {
            Outcome::Reply(Answer::Ack)
        }
        _ => Outcome::Reply(Answer::Nak),
    }
}

fn has_consistent_address(request: &Request, binding: &Binding) -> bool {
    request.ciaddr.is_unspecified() || binding.guest.subnet.has_host(request.ciaddr)
}

/// The record after `outcome`.
fn next(record: &Record, request: &Request, binding: &Binding, outcome: Outcome, now: SystemTime) -> Record {
    let standing = match outcome {
        Outcome::Reply(Answer::Offer) => Standing::Offered,
        Outcome::Reply(Answer::Ack | Answer::RapidAck) => {
            Standing::Bound(lease_end(binding.network.lease_seconds, now))
        }
        // RFC 1534 section 2: a BOOTP client knows no lease time, it keeps its address.
        Outcome::Reply(Answer::Bootp) => Standing::Bound(None),
        Outcome::Released => Standing::Released,
        Outcome::Declined { .. } => Standing::Declined,
        Outcome::Reply(Answer::Nak | Answer::Inform) | Outcome::Silent(_) => record.standing,
    };
    Record {
        standing,
        last_seen: Some(now),
        vendor_class: request.vendor_class.clone().or_else(|| record.vendor_class.clone()),
        decline_alarm: match outcome {
            Outcome::Declined { alarm: true } => Some(now),
            _ => record.decline_alarm,
        },
    }
}

/// `None` for a lease without end (RFC 2131 section 3.3).
fn lease_end(seconds: u32, now: SystemTime) -> Option<SystemTime> {
    if seconds == u32::MAX { None } else { now.checked_add(Duration::from_secs(seconds.into())) }
}
