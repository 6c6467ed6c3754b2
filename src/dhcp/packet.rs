//! Makes a checked request of a frame's bytes, or says why it is not one. PURE. Everything in the frame is the guest's word:
//! `datagram` and `options` prove it on the raw bytes. A request borrows from its frame.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::borrow::Cow;
use std::net::Ipv4Addr;
use std::ops::Range;

use super::datagram::{ethernet, mac, udp};
use super::options::Options;
use super::{CLIENT_PORT, L4Checksum, SERVER_PORT};
use crate::model::{Mac, Network};

/// Why a frame gets no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// Not a DHCP request by its form.
    Malformed,
    BadChecksum,
    /// The first piece of a datagram. No client sends a DHCP message in pieces, and none is put together here.
    Fragment,
    /// giaddr is set, and no relay agent of that address is served here.
    Relayed,
    /// The frame's Ethernet source is not the chaddr it asks for.
    SourceMismatch,
    UnknownMac,
    /// Addressed to another server, by IP address or server identifier.
    NotOurs,
    /// A message that only servers send.
    ServerMessage,
    /// Releases, declines or informs of an address that is not its reservation.
    ForeignAddress,
    /// More than a guest's share.
    TooMany,
}
/// What a client asks, RFC 2132 section 9.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Discover,
    Request,
    Decline,
    Release,
    Inform,
    /// No message type: BOOTP (RFC 1534 section 2).
    Bootp,
}

/// A well-formed request, sent by the MAC that it asks for or by a relay agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    pub mac: Mac,
    pub kind: Kind,
    pub xid: u32,
    /// The client wants its answer broadcast.
    pub broadcast: bool,
    /// The address the client says it has; zero when none.
    pub ciaddr: Ipv4Addr,
    /// Where the datagram was sent to.
    pub ip_destination: Ipv4Addr,
    /// Of a request that came through one.
    pub relay: Option<Relay<'a>>,
    /// Option 50.
    pub requested: Option<Ipv4Addr>,
    /// Option 54.
    pub server_id: Option<Ipv4Addr>,
    /// Option 55: the options wanted, in order.
    pub parameters: Option<Cow<'a, [u8]>>,
    /// Option 57.
    pub max_size: Option<u16>,
    /// Option 60: shown, never trusted.
    pub vendor_class: Option<Cow<'a, [u8]>>,
    /// Option 12: a wish, shown and never granted.
    pub hostname: Option<Cow<'a, [u8]>>,
    /// Option 81, RFC 4702: the same, and it is answered.
    pub fqdn: Option<Cow<'a, [u8]>>,
    /// Option 61, opaque: echoed, never an identity.
    pub client_id: Option<Cow<'a, [u8]>>,
    /// Option 80, RFC 4039.
    pub rapid_commit: bool,
}

/// The relay agent that a request came through, RFC 1542 section 4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay<'a> {
    pub giaddr: Ipv4Addr,
    /// Ethernet source of the frame: where the answer goes.
    pub link: Mac,
    /// Option 82, echoed (RFC 3046 section 2.2).
    pub agent: Option<Cow<'a, [u8]>>,
    pub hops: u8,
}

/// A message that another DHCP server sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ServerSeen {
    pub(super) link: Mac,
    pub(super) address: Ipv4Addr,
}

/// Fixed part of a BOOTP message, RFC 2131 section 2.
pub(super) const HEADER: usize = 236;
pub(super) const SNAME: Range<usize> = 44..108;
pub(super) const FILE: Range<usize> = 108..236;
const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const ETHERNET: u8 = 1;
/// RFC 1542 section 4.1.1: a request that went through more relay agents than that goes in a circle.
const MOST_HOPS: u8 = 16;

impl<'a> Request<'a> {
    /// The relay agent that it came through, where `network` serves no such agent.
    pub(super) fn unserved_relay(&self, network: &Network) -> Option<&Relay<'a>> {
        self.relay.as_ref().filter(|relay| !network.serves_relay(relay.giaddr))
    }

    pub fn parse(frame: &'a [u8], l4: L4Checksum) -> Result<Self, Silence> {
        let (link, packet) = ethernet(frame)?;
        let datagram = udp(packet, l4)?;
        if datagram.port != SERVER_PORT {
            return Err(Silence::Malformed);
        }
        let (header, rest) = datagram.payload.split_first_chunk::<HEADER>().ok_or(Silence::Malformed)?;
        let [op, htype, hlen, hops, ..] = *header;
        if op == BOOT_REPLY {
            return Err(Silence::ServerMessage);
        }
        // Before anything reads chaddr by hlen: a wire hlen over 16 reaches past the field.
        if op != BOOT_REQUEST || htype != ETHERNET || hlen != 6 {
            return Err(Silence::Malformed);
        }
        let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        let giaddr = address(24);
        let mac = mac(&header[28..34])?;
        if giaddr.is_unspecified() && link != mac {
            return Err(Silence::SourceMismatch);
        }
        if hops > MOST_HOPS {
            return Err(Silence::Malformed);
        }
        let options = Options::read(header, rest)?;
        Ok(Self {
            mac,
            kind: options.kind()?,
            xid: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            broadcast: header[10] & 0x80 != 0,
            ciaddr: address(12),
            ip_destination: datagram.destination,
            relay: (!giaddr.is_unspecified()).then_some(Relay { giaddr, link, agent: options.agent, hops }),
            requested: options.requested.map(Ipv4Addr::from),
            server_id: options.server_id.map(Ipv4Addr::from),
            parameters: options.parameters,
            max_size: options.max_size.map(u16::from_be_bytes),
            vendor_class: options.vendor_class,
            hostname: options.hostname,
            fqdn: options.fqdn,
            client_id: options.client_id.filter(|id| !id.is_empty()),
            rapid_commit: options.rapid_commit.is_some(),
        })
    }

    /// The host name that the client would like: option 81's where it sends that, else option 12's.
    pub fn wished_name(&self) -> Option<&[u8]> {
        let fqdn = self.fqdn.as_deref().and_then(|fqdn| fqdn.get(3..)).filter(|name| !name.is_empty());
        fqdn.or(self.hostname.as_deref())
    }
}

/// The frame's source, whatever else is in it: who to hold it against.
pub(super) fn link_source(frame: &[u8]) -> Option<Mac> {
    mac(frame.get(6..12)?).ok()
}

/// Whether a frame is a server's message to a client: with us as the only server nobody sends one here.
pub(super) fn server_message(frame: &[u8], l4: L4Checksum) -> Option<ServerSeen> {
    let (link, packet) = ethernet(frame).ok()?;
    let datagram = udp(packet, l4).ok()?;
    let is_reply = datagram.payload.len() >= HEADER && datagram.payload[0] == BOOT_REPLY;
    (datagram.port == CLIENT_PORT && is_reply).then_some(ServerSeen { link, address: datagram.source })
}

#[cfg(test)]
mod tests {
    use dhcproto::Encodable;
    use dhcproto::v4::MessageType;
    use proptest::prelude::*;

    use super::super::fixture::{
        ADDRESS, GATEWAY, agent, bare, broadcast, discover, frame, guest_mac, message, parse, selecting,
    };
    use super::*;

    /// A DISCOVER with one octet of its BOOTP message changed.
    fn with_octet(at: usize, value: u8) -> Vec<u8> {
        let mut payload = discover(&[]).to_vec().unwrap();
        payload[at] = value;
        frame(&payload, Ipv4Addr::BROADCAST)
    }

    #[test]
    fn a_request_says_what_was_sent() {
        let sent = broadcast(&selecting(ADDRESS, GATEWAY));
        let request = parse(&sent).unwrap();
        assert_eq!((request.mac, request.kind, request.xid), (guest_mac(), Kind::Request, 0x2132_0001));
        assert_eq!((request.requested, request.server_id), (Some(ADDRESS), Some(GATEWAY)));
        assert_eq!(request.ip_destination, Ipv4Addr::BROADCAST);
        assert!(!request.broadcast && !request.rapid_commit);
    }

    #[test]
    fn a_frame_that_is_cut_short_is_malformed() {
        let frame = broadcast(&selecting(ADDRESS, GATEWAY));
        for length in 0..frame.len() {
            assert_eq!(parse(&frame[..length]), Err(Silence::Malformed), "{length} bytes");
        }
    }

    #[test]
    fn a_wrong_header_is_malformed() {
        for (what, at, value) in [
            ("htype", 1, 6),
            ("no hlen", 2, 0),
            ("hlen 17", 2, 17),
            ("hlen 255", 2, 255),
            ("multicast chaddr", 28, 0x01),
            ("cookie", 239, 98),
        ] {
            assert_eq!(parse(&with_octet(at, value)), Err(Silence::Malformed), "{what}");
        }
        let mut unicast = bare();
        unicast.set_chaddr(&[0; 6]);
        assert_eq!(parse(&broadcast(&unicast)), Err(Silence::Malformed), "no chaddr");
    }

    #[test]
    fn a_guest_cannot_ask_for_another() {
        let mut frame = broadcast(&discover(&[]));
        frame[11] ^= 1;
        assert_eq!(parse(&frame), Err(Silence::SourceMismatch));
    }

    #[test]
    fn a_relay_agent_speaks_for_its_client() {
        let mut relayed = discover(&[agent()]);
        relayed.set_giaddr(GATEWAY).set_hops(1);
        let mut frame = broadcast(&relayed);
        frame[11] ^= 1;
        let request = parse(&frame).unwrap();
        let relay = request.relay.unwrap();
        assert_eq!((request.mac, relay.giaddr, relay.hops), (guest_mac(), GATEWAY, 1));
        assert_ne!(relay.link, guest_mac());
        assert_eq!(relay.agent.as_deref(), Some(&[1, 3, b'g', b'v', b'7'][..]));
        assert_eq!(parse(&with_octet(3, 17)), Err(Silence::Malformed), "hops");
    }

    #[test]
    fn a_guest_cannot_play_the_server() {
        assert_eq!(parse(&with_octet(0, 2)), Err(Silence::ServerMessage));
        for kind in [MessageType::Offer, MessageType::Ack, MessageType::Nak, MessageType::ForceRenew] {
            assert_eq!(parse(&broadcast(&message(kind, &[]))), Err(Silence::ServerMessage));
        }
        let mut offer = broadcast(&message(MessageType::Offer, &[]));
        offer[42] = 2;
        assert_eq!(server_message(&offer, L4Checksum::LeftToOffload), None, "to port 67");
        offer[37] = 68;
        let seen = ServerSeen { link: guest_mac(), address: Ipv4Addr::UNSPECIFIED };
        assert_eq!(server_message(&offer, L4Checksum::LeftToOffload), Some(seen));
        assert_eq!(parse(&offer), Err(Silence::BadChecksum));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_are_not(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Request::parse(&bytes, L4Checksum::LeftToOffload);
        }
    }
}
