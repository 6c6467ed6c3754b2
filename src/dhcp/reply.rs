//! Writes a decided reply as a whole Ethernet frame, right in every length and checksum or not at all. PURE. In: the
//! request, what is reserved, what the guest can be told, the answer, the server's MAC. Out: the bytes to send as they
//! are: they need no ARP entry, no route and no offload.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::Ipv4Addr;

use dhcproto::v4::MAGIC;

use super::areas::{Areas, size};
use super::reply_options::{fqdn, options};
use super::{Answer, CLIENT_PORT, Request, SERVER_PORT, Told, checksum};
use crate::model::Mac;
use crate::registry::Reserved;

const IP: usize = 20;
const UDP: usize = 8;
/// BOOTP messages are at least that long (RFC 1542 section 2.1); some clients drop shorter ones.
const SHORTEST: usize = 300;
/// What every client takes, and what one that says less is sent all the same (RFC 2132 section 9.10).
const LEAST_MAX_SIZE: u16 = 576;

/// Replaces what is in `frame`.
pub fn write_reply(
    frame: &mut Vec<u8>,
    request: &Request<'_>,
    reserved: &Reserved,
    told: &Told,
    answer: Answer,
    server_mac: Mac,
) {
    let (link, address, port) = destination(request, reserved.guest.address, answer);
    let server = reserved.network.gateway;
    frame.clear();
    frame.extend(link);
    frame.extend(server_mac.octets());
    frame.extend([0x08, 0x00]);
    let ip = frame.len();
    frame.extend([0; IP + UDP]);
    message(frame, request, reserved, told, answer);

    let datagram = frame.len() - ip - IP;
    frame[ip..ip + IP].copy_from_slice(&ip_header(datagram, server, address));
    let udp = &mut frame[ip + IP..];
    udp[0..2].copy_from_slice(&SERVER_PORT.to_be_bytes());
    udp[2..4].copy_from_slice(&port.to_be_bytes());
    udp[4..6].copy_from_slice(&(datagram as u16).to_be_bytes());
    // RFC 768: a sum of zero is sent as all ones.
    let sum = match checksum::udp(server, address, udp) {
        0 => 0xffff,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
}

/// Where a reply goes, RFC 2131 section 4.1.
fn destination(request: &Request<'_>, address: Ipv4Addr, answer: Answer) -> ([u8; 6], Ipv4Addr, u16) {
    if let Some(relay) = &request.relay {
        return (relay.link.octets(), relay.giaddr, SERVER_PORT);
    }
    let to_all = ([0xff; 6], Ipv4Addr::BROADCAST, CLIENT_PORT);
    let to_client = |address| (request.mac.octets(), address, CLIENT_PORT);
    let has_address = !request.ciaddr.is_unspecified();
    match answer {
        Answer::Nak => to_all,
        // It uses the address that it named.
        Answer::Ack | Answer::Inform if has_address => to_client(request.ciaddr),
        _ if request.broadcast => to_all,
        // It has an address and did not say which.
        Answer::Inform => (request.mac.octets(), Ipv4Addr::BROADCAST, CLIENT_PORT),
        _ => to_client(address),
    }
}

/// The BOOTP message, after what is in `frame`: RFC 2131 section 2, fields by table 3.
fn message(frame: &mut Vec<u8>, request: &Request<'_>, reserved: &Reserved, told: &Told, answer: Answer) {
    let none = Ipv4Addr::UNSPECIFIED;
    let gives = matches!(answer, Answer::Offer | Answer::Ack | Answer::RapidAck | Answer::Bootp);
    let keeps = matches!(answer, Answer::Ack | Answer::Inform | Answer::Bootp);
    let boots = gives || answer == Answer::Inform;
    // A relay agent is to broadcast a NAK (RFC 2131 section 4.3.2).
    let broadcast = request.broadcast || (answer == Answer::Nak && request.relay.is_some());

    let begin = frame.len();
    frame.extend([2, 1, 6, 0]);
    frame.extend(request.xid.to_be_bytes());
    frame.extend([0, 0, if broadcast { 0x80 } else { 0 }, 0]);
    frame.extend(if keeps { request.ciaddr } else { none }.octets());
    frame.extend(if gives { reserved.guest.address } else { none }.octets());
    frame.extend(if boots { told.next_server } else { none }.octets());
    frame.extend(request.relay.as_ref().map_or(none, |relay| relay.giaddr).octets());
    frame.extend(request.mac.octets());
    frame.extend([0; 10]);
    // Text that fits with its closing zero.
    let field = |code: u8, length: usize| told.get(code).filter(|text| boots && text.len() < length);
    let (sname, file) = (field(66, 64), field(67, 128));
    for (text, length) in [(sname, 64), (file, 128)] {
        let from = frame.len();
        frame.extend(text.unwrap_or_default());
        frame.resize(from + length, 0);
    }
    frame.extend(MAGIC);

    let fqdn = fqdn(request, told);
    let agent = request.relay.as_ref().and_then(|relay| relay.agent.as_deref());
    let each = |put: &mut dyn FnMut(u8, &[u8])| options(answer, request, told, fqdn.as_deref(), put);
    let room = room(request, reserved, answer);
    let mut needed = 0;
    each(&mut |_, data| needed += size(data));
    let mut areas = Areas::new(frame, begin, room, agent.map_or(0, size));
    // BOOTP clients know no overload (RFC 1534 section 2).
    if answer != Answer::Bootp && areas.lacks(needed) {
        areas.overload(sname.is_none(), file.is_none());
    }
    each(&mut |code, data| areas.put(code, data));
    areas.close(agent);
    let length = (frame.len() - begin).max(SHORTEST);
    frame.resize(begin + length, 0);
}
/// How long the BOOTP message may be. Option 57 counts the whole IP datagram, which also has to pass the link.
fn room(request: &Request<'_>, reserved: &Reserved, answer: Answer) -> usize {
    if answer == Answer::Bootp {
        // RFC 1542 section 2.1: 64 bytes of vendor information, not more.
        return SHORTEST;
    }
    let asked = request.max_size.unwrap_or(LEAST_MAX_SIZE).max(LEAST_MAX_SIZE);
    let datagram = usize::from(asked.min(reserved.network.mtu)).min(1500);
    datagram.saturating_sub(IP + UDP).max(SHORTEST)
}

/// RFC 791 section 3.1. Identification zero and "don't fragment": the datagram is never in pieces (RFC 6864).
fn ip_header(payload: usize, source: Ipv4Addr, destination: Ipv4Addr) -> [u8; IP] {
    let mut header = [0; IP];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&((IP + payload) as u16).to_be_bytes());
    header[6] = 0x40;
    header[8] = 64;
    header[9] = 17;
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&destination.octets());
    let sum = checksum::internet(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use dhcproto::v4::{DhcpOption, Flags, MessageType, OptionCode};
    use proptest::prelude::*;

    use super::super::fixture::{
        ADDRESS, GATEWAY, Lab, agent, broadcast, discover, guest_mac, message, network, parameters, renewing,
        selecting, with,
    };
    use super::super::{Outcome, Silence};
    use super::*;
    use crate::model::{Network, Relays};

    #[test]
    fn a_reply_goes_to_the_guest_alone_unless_it_asks_for_broadcast() {
        let offer = Lab::new().answer(&discover(&[]));
        assert_eq!((offer.link, offer.address), (guest_mac().octets(), ADDRESS));
        assert!(!offer.message.flags().broadcast());

        let mut asks = discover(&[]);
        asks.set_flags(Flags::default().set_broadcast());
        let offer = Lab::new().answer(&asks);
        assert_eq!((offer.link, offer.address), ([0xff; 6], Ipv4Addr::BROADCAST));
        assert!(offer.message.flags().broadcast());

        // It has its address already.
        let mut renews = renewing(ADDRESS);
        renews.set_flags(Flags::default().set_broadcast());
        let ack = Lab::new().answer(&renews);
        assert_eq!((ack.link, ack.address), (guest_mac().octets(), ADDRESS));

        // It has one that it does not name.
        let ack = Lab::new().answer(&message(MessageType::Inform, &[]));
        assert_eq!((ack.link, ack.address), (guest_mac().octets(), Ipv4Addr::BROADCAST));
    }

    #[test]
    fn a_short_reply_is_padded_to_what_old_clients_expect() {
        let mut lab = Lab::new();
        assert_eq!(lab.answer(&renewing(GATEWAY)).length, 300, "NAK");
        assert!(lab.answer(&discover(&[])).length >= 300);
    }

    #[test]
    fn a_reply_is_no_longer_than_the_client_takes() {
        let long = || Network {
            domain: ["a".repeat(63), "b".repeat(63), "c".repeat(60)].join(".").parse().unwrap(),
            ..network()
        };
        let wish = |max_size: Option<u16>| {
            let mut options = vec![parameters(&[15, 119, 6]), DhcpOption::ClientIdentifier(vec![7; 40])];
            options.extend(max_size.map(DhcpOption::MaxMessageSize));
            Lab::on(long()).answer(&discover(&options))
        };
        let roomy = wish(Some(1500));
        assert_eq!(roomy.codes, [53, 54, 51, 58, 59, 61, 1, 3, 15, 119, 6]);
        assert!(roomy.length > 548);
        for max_size in [None, Some(576), Some(0)] {
            let tight = wish(max_size);
            assert!(tight.length <= 548, "{max_size:?}: {}", tight.length);
            assert_eq!(
                tight.codes,
                [53, 54, 51, 58, 59, 61, 1, 3, 15, 6],
                "what does not fit is left out whole"
            );
        }
        let narrow = Network { mtu: 576, ..long() };
        let asks = discover(&[parameters(&[15, 119, 6]), DhcpOption::MaxMessageSize(9000)]);
        assert!(Lab::on(narrow).answer(&asks).length <= 548, "the link is the limit");
    }

    #[test]
    fn a_boot_loader_finds_its_file_in_the_header_and_in_the_options() {
        let boot = r#"
            next_server = "10.100.0.7"
            tftp_server_name = "tftp.vm.internal"
            bootfile_name = "pxelinux.0"
        "#;
        let offer = with(boot, "").answer(&discover(&[parameters(&[66, 67])]));
        assert_eq!(offer.message.siaddr(), Ipv4Addr::new(10, 100, 0, 7));
        assert_eq!(offer.message.fname().unwrap(), b"pxelinux.0\0");
        assert_eq!(offer.message.sname().unwrap(), b"tftp.vm.internal\0");
        assert_eq!(
            (offer.raw(66).unwrap(), offer.raw(67).unwrap()),
            (b"tftp.vm.internal".to_vec(), b"pxelinux.0".to_vec())
        );
        let reply = with(boot, "").answer(&super::super::fixture::bare());
        assert_eq!(reply.message.fname().unwrap(), b"pxelinux.0\0", "BOOTP");
        let nak = with(boot, "").answer(&renewing(GATEWAY));
        assert_eq!((nak.message.siaddr(), nak.message.fname()), (Ipv4Addr::UNSPECIFIED, None));
    }

    #[test]
    fn a_long_option_is_sent_in_pieces_when_the_client_has_room_for_it() {
        let long = format!("raw = {{ 252 = \"{}\" }}", "ab".repeat(600));
        let ask = |size: u16| {
            with(&long, "").answer(&discover(&[parameters(&[252]), DhcpOption::MaxMessageSize(size)]))
        };
        assert_eq!(ask(1500).raw(252).unwrap(), [0xab; 600]);
        assert_eq!(ask(1500).codes.iter().filter(|code| **code == 252).count(), 3, "RFC 3396");
        assert_eq!(ask(576).raw(252), None, "left out whole");
    }

    #[test]
    fn what_does_not_fit_overflows_into_sname_and_file_unless_they_are_taken() {
        let options = format!(
            "raw = {{ 224 = \"{0}\", 225 = \"{1}\", 226 = \"{1}\", 227 = \"{2}\" }}",
            "aa".repeat(240),
            "bb".repeat(110),
            "cc".repeat(50)
        );
        let wish = discover(&[parameters(&[224, 225, 226, 227])]);
        let offer = with(&options, "").answer(&wish);
        assert!(offer.length <= 548, "{}", offer.length);
        assert_eq!(offer.option(52), Some(&DhcpOption::OptionOverload(3)));
        let lengths = [224, 225, 226, 227].map(|code| offer.raw(code).map(|data| data.len()));
        assert_eq!(lengths, [Some(240), Some(110), None, Some(50)]);

        let taken = format!("bootfile_name = \"a\"\n{options}");
        let offer = with(&taken, "").answer(&wish);
        assert_eq!(offer.message.fname().unwrap(), b"a\0");
        assert_eq!(offer.option(52), Some(&DhcpOption::OptionOverload(2)), "only what is free");
        assert_eq!(offer.raw(225), None, "and what fits nowhere is left out whole");
    }

    #[test]
    fn a_relayed_client_is_answered_through_its_relay_agent() {
        let mut relayed = discover(&[agent()]);
        relayed.set_giaddr([10, 100, 0, 9]).set_hops(1);
        let serves = |relays| Lab::on(Network { relays, ..network() });
        let offer = serves(Relays::Subnet).answer(&relayed);
        assert_eq!((offer.address, offer.message.giaddr()), ([10, 100, 0, 9].into(), [10, 100, 0, 9].into()));
        assert_eq!(offer.codes.last(), Some(&82), "RFC 3046 section 2.2: the last option");
        assert_eq!(offer.option(82), Some(&agent()));
        let mut moved = renewing([10, 100, 9, 9].into());
        moved.set_giaddr([10, 100, 0, 9]);
        let nak = serves(Relays::These(vec![[10, 100, 0, 9].into()])).answer(&moved);
        assert!(nak.message.flags().broadcast(), "the relay agent is to broadcast it");

        for refused in [Relays::These(vec![[10, 100, 0, 8].into()]), Relays::These(Vec::new())] {
            assert_eq!(serves(refused).hears(&relayed).0, Outcome::Silent(Silence::Relayed));
        }
        relayed.set_giaddr([192, 0, 2, 1]);
        assert_eq!(serves(Relays::Subnet).hears(&relayed).0, Outcome::Silent(Silence::Relayed));
        // From a client itself, option 82 means nothing.
        assert_eq!(Lab::new().answer(&discover(&[agent()])).option(82), None);
    }

    #[test]
    fn a_reply_carries_the_transaction_of_its_request() {
        let mut request = selecting(ADDRESS, GATEWAY);
        request.set_xid(0xdead_beef).set_secs(99);
        let ack = Lab::new().answer(&request);
        assert_eq!((ack.message.xid(), ack.message.secs()), (0xdead_beef, 0));
        assert_eq!(ack.message.siaddr(), Ipv4Addr::UNSPECIFIED);
    }

    proptest! {
        /// `Heard` checks every reply: lengths, checksums, End, that dhcproto decodes each option.
        #[test]
        fn every_reply_is_whole(
            kind in 0u8..9,
            list in proptest::collection::vec(any::<u8>(), 0..300),
            client_id in proptest::collection::vec(any::<u8>(), 0..255),
            max_size in any::<u16>(),
            mtu in 68u16..,
            lease_seconds in any::<u32>(),
            (flags, xid, ciaddr) in (any::<u16>(), any::<u32>(), any::<bool>()),
        ) {
            let mut lab = Lab::on(Network { mtu, lease_seconds, ..network() });
            let mut request = message(kind.into(), &[
                parameters(&list[..list.len().min(255)]),
                DhcpOption::ClientIdentifier(client_id),
                DhcpOption::MaxMessageSize(max_size),
                DhcpOption::RequestedIpAddress(ADDRESS),
            ]);
            if kind == 0 {
                request.opts_mut().remove(OptionCode::MessageType);
            }
            request.set_flags(flags.into()).set_xid(xid);
            request.set_ciaddr(if ciaddr { ADDRESS } else { Ipv4Addr::UNSPECIFIED });
            if let (_, Some(heard)) = lab.hears_frame(&broadcast(&request)) {
                prop_assert_eq!(heard.message.xid(), xid);
                let limit = usize::from(max_size.max(576).min(mtu)).min(1500) - 28;
                prop_assert!(heard.length <= limit.max(300));
            }
        }

        /// A frame that was right and has one byte changed gets a whole reply or none.
        #[test]
        fn a_flipped_byte_breaks_nothing(at in 0usize..600, value in any::<u8>()) {
            let mut payload = dhcproto::Encodable::to_vec(&discover(&[
                parameters(&[1, 3, 6, 12, 15, 119, 121]),
                DhcpOption::ClientIdentifier(vec![1, 2, 3]),
            ])).unwrap();
            let at = at % payload.len();
            payload[at] = value;
            let frame = super::super::fixture::frame(&payload, Ipv4Addr::BROADCAST);
            let _ = Lab::new().hears_frame(&frame);
        }
    }
}
