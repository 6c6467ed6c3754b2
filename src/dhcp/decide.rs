//! Decides what a request gets. PURE. In: a checked request, what is reserved for its MAC, what the guest has done so far,
//! and the time. Out: the answer, or why there is none. The identity is the MAC on its own port, never the client
//! identifier (so clones and a change of boot stage keep their address); the address is always the reservation's.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use super::{Kind, Record, Request, Silence};
use crate::registry::Reserved;

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

pub fn decide(request: &Request<'_>, reserved: &Reserved, record: &Record, now: SystemTime) -> Outcome {
    if request.unserved_relay(&reserved.network).is_some() {
        return Outcome::Silent(Silence::Relayed);
    }
    if !is_for_us(request, reserved) {
        return Outcome::Silent(Silence::NotOurs);
    }
    let address = reserved.guest.address;
    match request.kind {
        // RFC 4039 section 3.1: the only server of this network may commit at once.
        Kind::Discover if request.rapid_commit => Outcome::Reply(Answer::RapidAck),
        // RFC 2131 section 4.3.1. A wish in option 50 changes nothing.
        Kind::Discover => Outcome::Reply(Answer::Offer),
        Kind::Bootp => Outcome::Reply(Answer::Bootp),
        Kind::Request => requested(request, address),
        // RFC 2131 section 4.3.3. The reservation stands: the alarm is for whoever can remove the other host.
        Kind::Decline if request.requested == Some(address) => {
            Outcome::Declined { alarm: !record.declined_within(DECLINE_ALARM_EVERY, now) }
        }
        // RFC 2131 section 4.3.4.
        Kind::Release if request.ciaddr == address => Outcome::Released,
        Kind::Decline | Kind::Release => Outcome::Silent(Silence::ForeignAddress),
        // RFC 2131 section 4.3.5: the address is checked for consistency, not for a lease.
        Kind::Inform if has_consistent_address(request, reserved) => Outcome::Reply(Answer::Inform),
        Kind::Inform => Outcome::Silent(Silence::ForeignAddress),
    }
}

/// Sent to this server or to all, and naming this server or none (RFC 2131 sections 4.3.2 to 4.3.4).
fn is_for_us(request: &Request<'_>, reserved: &Reserved) -> bool {
    let server = reserved.network.gateway;
    let broadcast = reserved.network.subnet.broadcast();
    let to_us = [server, Ipv4Addr::BROADCAST, broadcast].contains(&request.ip_destination);
    // A DISCOVER names no server (RFC 2131 table 5); if it does, that means nothing.
    let names_us = request.kind == Kind::Discover || request.server_id.is_none_or(|id| id == server);
    to_us && names_us
}

/// REQUEST, RFC 2131 section 4.3.2. Selecting and INIT-REBOOT name the address in option 50, renewing and rebinding in
/// ciaddr: whatever is named has to be the reservation. INIT-REBOOT of a reservation that we never leased is
/// acknowledged too (a restored snapshot, a lost store): the reservation says who owns the address, not our memory.
fn requested(request: &Request<'_>, address: Ipv4Addr) -> Outcome {
    let ciaddr = Some(request.ciaddr).filter(|ciaddr| !ciaddr.is_unspecified());
    match (request.requested, ciaddr) {
        (None, None) => Outcome::Silent(Silence::Malformed),
        (wanted, held) if [wanted, held].into_iter().flatten().all(|named| named == address) => {
            Outcome::Reply(Answer::Ack)
        }
        _ => Outcome::Reply(Answer::Nak),
    }
}

fn has_consistent_address(request: &Request<'_>, reserved: &Reserved) -> bool {
    request.ciaddr.is_unspecified() || reserved.guest.subnet.has_host(request.ciaddr)
}

#[cfg(test)]
mod tests {
    use dhcproto::v4::{DhcpOption, MessageType};
    use proptest::prelude::*;

    use super::super::fixture::{
        ADDRESS, FOREIGN, GATEWAY, LEASE, Lab, bare, broadcast, discover, frame, init_reboot, message,
        network, renewing, reserved_on, selecting,
    };
    use super::*;
    use crate::model::{LeaseState, LeaseView};

    const HOUR: Duration = Duration::from_secs(LEASE as u64);

    fn decline(address: Ipv4Addr) -> dhcproto::v4::Message {
        let options = [DhcpOption::RequestedIpAddress(address), DhcpOption::ServerIdentifier(GATEWAY)];
        message(MessageType::Decline, &options)
    }

    fn release(address: Ipv4Addr, server: Ipv4Addr) -> dhcproto::v4::Message {
        let mut message = message(MessageType::Release, &[DhcpOption::ServerIdentifier(server)]);
        message.set_ciaddr(address);
        message
    }

    #[test]
    fn a_booting_guest_is_offered_and_given_its_reservation() {
        let mut lab = Lab::new();
        assert_eq!(lab.view(), LeaseView::default());

        let offer = lab.answer(&discover(&[]));
        assert_eq!((offer.kind(), offer.message.yiaddr()), (Some(MessageType::Offer), ADDRESS));
        assert_eq!(lab.view().state, LeaseState::Offered);

        let ack = lab.answer(&selecting(ADDRESS, GATEWAY));
        assert_eq!((ack.kind(), ack.message.yiaddr()), (Some(MessageType::Ack), ADDRESS));
        let view = lab.view();
        assert_eq!((view.state, view.expires_at), (LeaseState::Bound, Some(lab.now + HOUR)));
        assert_eq!(view.last_seen, Some(lab.now));
    }

    #[test]
    fn a_wish_for_another_address_is_not_granted() {
        let mut lab = Lab::new();
        let offer = lab.answer(&discover(&[DhcpOption::RequestedIpAddress(FOREIGN)]));
        assert_eq!(offer.message.yiaddr(), ADDRESS);
    }

    #[test]
    fn an_unknown_mac_hears_nothing_and_leaves_no_record() {
        let mut lab = Lab::new();
        lab.reserved = None;
        for message in [discover(&[]), init_reboot(ADDRESS), renewing(ADDRESS), bare()] {
            assert_eq!(lab.hears(&message).0, Outcome::Silent(Silence::UnknownMac));
        }
        assert_eq!(lab.view(), LeaseView::default());
    }

    #[test]
    fn clones_and_boot_stages_keep_their_address_whatever_client_id_they_send() {
        let mut lab = Lab::new();
        for id in [vec![1, 2, 3], vec![255, 0, 0, 0, 9], vec![0; 255]] {
            let offer = lab.answer(&discover(&[DhcpOption::ClientIdentifier(id.clone())]));
            assert_eq!(offer.message.yiaddr(), ADDRESS);
            assert_eq!(offer.option(61), Some(&DhcpOption::ClientIdentifier(id)), "RFC 6842");
        }
    }

    #[test]
    fn rapid_commit_takes_one_exchange() {
        let mut lab = Lab::new();
        let ack = lab.answer(&discover(&[DhcpOption::RapidCommit]));
        assert_eq!((ack.kind(), ack.message.yiaddr()), (Some(MessageType::Ack), ADDRESS));
        assert_eq!(ack.option(80), Some(&DhcpOption::RapidCommit));
        assert_eq!(lab.view().state, LeaseState::Bound);
    }

    #[test]
    fn a_snapshot_that_was_never_leased_keeps_its_address() {
        let mut lab = Lab::new();
        assert_eq!(lab.answer(&init_reboot(ADDRESS)).kind(), Some(MessageType::Ack));
        assert_eq!(lab.view().state, LeaseState::Bound);
        // And one that wakes up and simply renews.
        assert_eq!(Lab::new().answer(&renewing(ADDRESS)).kind(), Some(MessageType::Ack));
    }

    #[test]
    fn a_foreign_address_is_refused_by_broadcast_in_every_state() {
        for request in [selecting(FOREIGN, GATEWAY), init_reboot(FOREIGN), renewing(FOREIGN)] {
            let nak = Lab::new().answer(&request);
            assert_eq!(nak.kind(), Some(MessageType::Nak));
            assert_eq!((nak.link, nak.address), ([0xff; 6], Ipv4Addr::BROADCAST));
            assert_eq!((nak.message.yiaddr(), nak.message.ciaddr()), ([0; 4].into(), [0; 4].into()));
            assert_eq!(nak.codes, [53, 54, 56]);
        }
        // One that is right in one place and wrong in another.
        let mut mixed = init_reboot(ADDRESS);
        mixed.set_ciaddr(FOREIGN);
        assert_eq!(Lab::new().answer(&mixed).kind(), Some(MessageType::Nak));
    }

    #[test]
    fn a_guest_whose_reservation_moved_is_refused_the_old_and_given_the_new() {
        let mut lab = Lab::new();
        lab.answer(&selecting(ADDRESS, GATEWAY));
        lab.reserved = Some(reserved_on(network(), FOREIGN));
        assert_eq!(lab.answer(&renewing(ADDRESS)).kind(), Some(MessageType::Nak));
        assert_eq!(lab.answer(&discover(&[])).message.yiaddr(), FOREIGN);
        assert_eq!(lab.answer(&selecting(FOREIGN, GATEWAY)).kind(), Some(MessageType::Ack));
    }

    #[test]
    fn renewing_by_unicast_and_rebinding_by_broadcast_extend_the_lease() {
        let mut lab = Lab::new();
        lab.answer(&selecting(ADDRESS, GATEWAY));
        for to in [GATEWAY, Ipv4Addr::BROADCAST] {
            lab.now += HOUR / 2;
            let payload = dhcproto::Encodable::to_vec(&renewing(ADDRESS)).unwrap();
            let ack = lab.hears_frame(&frame(&payload, to)).1.unwrap();
            assert_eq!((ack.kind(), ack.message.ciaddr()), (Some(MessageType::Ack), ADDRESS));
            assert_eq!(ack.address, ADDRESS);
            assert_eq!(lab.view().expires_at, Some(lab.now + HOUR));
        }
    }

    #[test]
    fn a_lease_that_is_not_renewed_expires_and_the_reservation_stands() {
        let mut lab = Lab::new();
        lab.answer(&selecting(ADDRESS, GATEWAY));
        lab.now += HOUR;
        assert_eq!((lab.view().state, lab.view().expires_at), (LeaseState::Expired, None));
        assert_eq!(lab.answer(&renewing(ADDRESS)).kind(), Some(MessageType::Ack));
    }

    #[test]
    fn an_infinite_lease_has_no_end_and_no_renewal() {
        let mut lab = Lab::on(crate::model::Network { lease_seconds: u32::MAX, ..network() });
        let ack = lab.answer(&selecting(ADDRESS, GATEWAY));
        assert_eq!(ack.option(51), Some(&DhcpOption::AddressLeaseTime(u32::MAX)));
        assert_eq!((ack.option(58), ack.option(59)), (None, None));
        lab.now += HOUR * 1_000_000;
        assert_eq!((lab.view().state, lab.view().expires_at), (LeaseState::Bound, None));
    }

    #[test]
    fn a_guest_that_chose_another_server_is_left_to_it() {
        let mut lab = Lab::new();
        assert_eq!(lab.hears(&selecting(ADDRESS, FOREIGN)).0, Outcome::Silent(Silence::NotOurs));
        assert_eq!(lab.hears(&release(ADDRESS, FOREIGN)).0, Outcome::Silent(Silence::NotOurs));
        let payload = dhcproto::Encodable::to_vec(&renewing(ADDRESS)).unwrap();
        let passing = frame(&payload, Ipv4Addr::new(8, 8, 8, 8));
        assert_eq!(lab.hears_frame(&passing).0, Outcome::Silent(Silence::NotOurs));
        assert_eq!(lab.view().state, LeaseState::Reserved);
    }

    #[test]
    fn a_request_without_any_address_is_malformed() {
        let request = message(MessageType::Request, &[]);
        assert_eq!(Lab::new().hears(&request).0, Outcome::Silent(Silence::Malformed));
    }

    #[test]
    fn a_decline_keeps_the_reservation_and_alarms_once_a_minute() {
        let mut lab = Lab::new();
        for (after, alarm) in [(0, true), (30, false), (29, false), (1, true), (10, false)] {
            lab.now += Duration::from_secs(after);
            assert_eq!(lab.hears(&decline(ADDRESS)).0, Outcome::Declined { alarm });
            assert_eq!(lab.view().state, LeaseState::Declined);
            assert_eq!(lab.answer(&discover(&[])).message.yiaddr(), ADDRESS);
        }
        assert_eq!(lab.hears(&decline(FOREIGN)).0, Outcome::Silent(Silence::ForeignAddress));
        assert_eq!(lab.view().state, LeaseState::Offered);
    }

    #[test]
    fn a_release_keeps_the_reservation() {
        let mut lab = Lab::new();
        lab.answer(&selecting(ADDRESS, GATEWAY));
        assert_eq!(lab.hears(&release(FOREIGN, GATEWAY)).0, Outcome::Silent(Silence::ForeignAddress));
        assert_eq!(lab.view().state, LeaseState::Bound);
        assert_eq!(lab.hears(&release(ADDRESS, GATEWAY)).0, Outcome::Released);
        assert_eq!((lab.view().state, lab.view().expires_at), (LeaseState::Released, None));
        assert_eq!(lab.answer(&discover(&[])).message.yiaddr(), ADDRESS);
    }

    #[test]
    fn inform_gets_the_network_and_no_lease() {
        let mut lab = Lab::new();
        let mut inform = message(MessageType::Inform, &[]);
        inform.set_ciaddr(FOREIGN);
        let ack = lab.answer(&inform);
        assert_eq!((ack.kind(), ack.message.yiaddr()), (Some(MessageType::Ack), [0; 4].into()));
        assert_eq!((ack.address, ack.message.ciaddr()), (FOREIGN, FOREIGN));
        assert!(ack.codes.iter().all(|code| ![51, 58, 59].contains(code)), "{:?}", ack.codes);
        assert!(ack.option(6).is_some());
        assert_eq!(lab.view().state, LeaseState::Reserved);

        inform.set_ciaddr([192, 0, 2, 1]);
        assert_eq!(lab.hears(&inform).0, Outcome::Silent(Silence::ForeignAddress));
    }

    #[test]
    fn a_bootp_client_gets_its_address_for_good() {
        let mut lab = Lab::new();
        let reply = lab.answer(&bare());
        assert_eq!((reply.kind(), reply.message.yiaddr(), reply.length), (None, ADDRESS, 300));
        assert!(reply.codes.iter().all(|code| ![51, 53, 54, 58, 59, 61].contains(code)), "{:?}", reply.codes);
        assert_eq!((lab.view().state, lab.view().expires_at), (LeaseState::Bound, None));
    }

    #[test]
    fn the_vendor_class_is_shown_as_last_said() {
        let mut lab = Lab::new();
        lab.answer(&discover(&[DhcpOption::ClassIdentifier(b"udhcp 1.35.0".to_vec())]));
        lab.answer(&selecting(ADDRESS, GATEWAY));
        assert_eq!(lab.view().vendor_class.as_deref(), Some("udhcp 1.35.0"));
    }

    fn any_address() -> impl Strategy<Value = Ipv4Addr> {
        prop_oneof![
            Just(ADDRESS),
            Just(FOREIGN),
            Just(GATEWAY),
            Just(Ipv4Addr::UNSPECIFIED),
            any::<[u8; 4]>().prop_map(Ipv4Addr::from),
        ]
    }

    proptest! {
        /// Whatever a guest says, in whatever order: it is given its own address or none.
        #[test]
        fn no_conversation_yields_another_address(
            talk in proptest::collection::vec(
                (1u8..9, any_address(), proptest::option::of(any_address()), proptest::option::of(any_address()),
                 any::<bool>(), 0u64..10_000),
                1..20,
            ),
        ) {
            let mut lab = Lab::new();
            for (kind, ciaddr, requested, server, rapid, after) in talk {
                lab.now += Duration::from_secs(after);
                let options: Vec<DhcpOption> = requested.map(DhcpOption::RequestedIpAddress).into_iter()
                    .chain(server.map(DhcpOption::ServerIdentifier))
                    .chain(rapid.then_some(DhcpOption::RapidCommit))
                    .collect();
                let mut message = message(kind.into(), &options);
                message.set_ciaddr(ciaddr);
                let (outcome, heard) = lab.hears_frame(&broadcast(&message));
                prop_assert_eq!(heard.is_some(), matches!(outcome, Outcome::Reply(_)));
                if let Some(heard) = heard {
                    prop_assert!([ADDRESS, Ipv4Addr::UNSPECIFIED].contains(&heard.message.yiaddr()));
                }
            }
        }
    }
}
