//! Writes a decided reply as a whole Ethernet frame, right in every length and checksum or not at all. PURE. In: the
//! request, its binding, the answer, the server's MAC. Out: the bytes to send as they are: they need no ARP entry, no
//! route and no offload.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::Ipv4Addr;

use dhcproto::error::EncodeError;
use dhcproto::v4::{DhcpOption, Flags, Message, Opcode};
use dhcproto::{Encodable, Encoder};

use super::{Answer, CLIENT_PORT, Request, SERVER_PORT, checksum, options};
use crate::model::Mac;
use crate::registry::Binding;

const IP: usize = 20;
const UDP: usize = 8;
/// BOOTP messages are at least that long (RFC 1542 section 2.1); some clients drop shorter ones.
const SHORTEST: usize = 300;
/// What every client takes, and what one that says less is sent all the same (RFC 2132 section 9.10).
const LEAST_MAX_SIZE: u16 = 576;

/// Replaces what is in `frame`.
pub fn write_reply(
    frame: &mut Vec<u8>,
    request: &Request,
    binding: &Binding,
    answer: Answer,
    server_mac: Mac,
) -> Result<(), EncodeError> {
    let message = message(request, binding, answer)?;
    let (link, address) = destination(request, binding.guest.address, answer);
    let gateway = binding.guest.gateway;

    frame.clear();
    frame.extend(link);
    frame.extend(server_mac.octets());
    frame.extend([0x08, 0x00]);
    frame.extend(ip_header(UDP + message.len(), gateway, address));
    let udp = frame.len();
    frame.extend(SERVER_PORT.to_be_bytes());
    frame.extend(CLIENT_PORT.to_be_bytes());
    frame.extend(((UDP + message.len()) as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(&message);
    // RFC 768: a sum of zero is sent as all ones.
    let sum = match checksum::udp(gateway, address, &frame[udp..]) {
        0 => 0xffff,
        sum => sum,
    };
    frame[udp + 6..udp + 8].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

/// Where a reply goes, RFC 2131 section 4.1.
fn destination(request: &Request, address: Ipv4Addr, answer: Answer) -> ([u8; 6], Ipv4Addr) {
    let to_all = ([0xff; 6], Ipv4Addr::BROADCAST);
    let to_client = |address| (request.mac.octets(), address);
    let has_address = !request.ciaddr.is_unspecified();
    match answer {
        Answer::Nak => to_all,
        // It uses the address that it named.
        Answer::Ack | Answer::Inform if has_address => to_client(request.ciaddr),
        Answer::Inform => to_all,
        _ if request.broadcast => to_all,
        _ => to_client(address),
    }
}

/// The BOOTP message: RFC 2131 section 2, fields by table 3.
fn message(request: &Request, binding: &Binding, answer: Answer) -> Result<Vec<u8>, EncodeError> {
    let none = Ipv4Addr::UNSPECIFIED;
    let yiaddr = match answer {
        Answer::Offer | Answer::Ack | Answer::RapidAck | Answer::Bootp => binding.guest.address,
        Answer::Inform | Answer::Nak => none,
    };
    let ciaddr = match answer {
        Answer::Ack | Answer::Inform | Answer::Bootp => request.ciaddr,
        Answer::Offer | Answer::RapidAck | Answer::Nak => none,
    };
    let mut header = Message::new_with_id(request.xid, ciaddr, yiaddr, none, none, &request.mac.octets());
    let flags = if request.broadcast { Flags::default().set_broadcast() } else { Flags::default() };
    header.set_opcode(Opcode::BootReply).set_flags(flags);

    let mut bytes = Vec::with_capacity(SHORTEST);
    // Without options dhcproto writes no End, so that they can be added here as far as there is room.
    header.encode(&mut Encoder::new(&mut bytes))?;
    let room = room(request, binding, answer);
    for option in options::options(answer, request, binding) {
        let option = encoded(&option)?;
        if bytes.len() + option.len() < room {
            bytes.extend(option);
        }
    }
    bytes.extend(encoded(&DhcpOption::End)?);
    bytes.resize(bytes.len().max(SHORTEST), 0);
    Ok(bytes)
}

fn encoded(option: &DhcpOption) -> Result<Vec<u8>, EncodeError> {
    option.to_vec()
}

/// How long the BOOTP message may be. Option 57 counts the whole IP datagram, which also has to pass the link.
fn room(request: &Request, binding: &Binding, answer: Answer) -> usize {
    if answer == Answer::Bootp {
        // RFC 1542 section 2.1: 64 bytes of vendor information, not more.
        return SHORTEST;
    }
    let asked = request.max_size.unwrap_or(LEAST_MAX_SIZE).max(LEAST_MAX_SIZE);
    let datagram = usize::from(asked.min(binding.network.mtu)).min(1500);
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
    use std::net::IpAddr;

    use dhcproto::v4::{DhcpOption, Flags, MessageType, OptionCode};
    use proptest::prelude::*;

    use super::super::fixture::{
        ADDRESS, GATEWAY, LEASE, Lab, broadcast, discover, guest_mac, message, network, renewing, selecting,
    };
    use super::*;
    use crate::model::{DnsMode, Network};

    fn parameters(codes: &[u8]) -> DhcpOption {
        DhcpOption::ParameterRequestList(codes.iter().map(|code| OptionCode::from(*code)).collect())
    }

    #[test]
    fn a_guest_is_told_the_facts_of_its_binding() {
        let offer = Lab::new().answer(&discover(&[parameters(&[1, 3, 6, 12, 15, 26, 28, 119, 121])]));
        let told = |code: u8| offer.option(code).unwrap_or_else(|| panic!("option {code}")).clone();
        assert_eq!(told(1), DhcpOption::SubnetMask([255, 255, 0, 0].into()));
        assert_eq!(told(3), DhcpOption::Router(vec![GATEWAY]));
        assert_eq!(told(6), DhcpOption::DomainNameServer(vec![GATEWAY]));
        assert_eq!(told(12), DhcpOption::Hostname("web-1".into()));
        assert_eq!(told(15), DhcpOption::DomainName("vm.internal".into()));
        assert_eq!(told(26), DhcpOption::InterfaceMtu(1500));
        assert_eq!(told(28), DhcpOption::BroadcastAddr([10, 100, 255, 255].into()));
        assert_eq!(told(51), DhcpOption::AddressLeaseTime(LEASE));
        assert_eq!(told(54), DhcpOption::ServerIdentifier(GATEWAY));
        assert_eq!(told(58), DhcpOption::Renewal(LEASE / 2));
        assert_eq!(told(59), DhcpOption::Rebinding(LEASE / 8 * 7));
        let DhcpOption::DomainSearch(search) = told(119) else { panic!("option 119") };
        assert_eq!(search[0].to_string(), "vm.internal.");
        let DhcpOption::ClasslessStaticRoute(routes) = told(121) else { panic!("option 121") };
        assert_eq!((routes[0].0.to_string(), routes[0].1), ("0.0.0.0/0".to_owned(), GATEWAY));
    }

    #[test]
    fn the_parameter_list_is_honoured_in_its_order_and_the_essentials_always_come() {
        let codes = |options: &[DhcpOption]| Lab::new().answer(&discover(options)).codes;
        assert_eq!(codes(&[]), [53, 54, 51, 58, 59, 1, 3, 6, 12, 15, 26, 28], "no list, no 119 and 121");
        assert_eq!(codes(&[parameters(&[42, 28, 6])]), [53, 54, 51, 58, 59, 1, 3, 28, 6]);
        assert_eq!(codes(&[parameters(&[6; 255])]), [53, 54, 51, 58, 59, 1, 3, 6], "asked 255 times");
        assert_eq!(codes(&[parameters(&[121, 3])]), [53, 54, 51, 58, 59, 1, 3, 121]);
    }

    #[test]
    fn with_dns_off_a_guest_is_told_the_ipv4_upstreams() {
        let upstreams =
            |list: &[&str]| -> Vec<IpAddr> { list.iter().map(|ip| ip.parse().unwrap()).collect() };
        let off = |upstreams| Network { dns: DnsMode::Off, upstreams, ..network() };
        let offer = Lab::on(off(upstreams(&["2001:db8::1", "8.8.8.8", "8.8.4.4"]))).answer(&discover(&[]));
        let servers = vec![Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(8, 8, 4, 4)];
        assert_eq!(offer.option(6), Some(&DhcpOption::DomainNameServer(servers)));
        let offer = Lab::on(off(upstreams(&["2001:db8::1"]))).answer(&discover(&[]));
        assert_eq!(offer.option(6), None);
    }

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

        // It has none that it names: to all, as it cannot be reached otherwise.
        let ack = Lab::new().answer(&message(MessageType::Inform, &[]));
        assert_eq!((ack.link, ack.address), ([0xff; 6], Ipv4Addr::BROADCAST));
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
