//! Makes a checked request of a frame's bytes, or says why it is not one. PURE. Everything in the frame is the guest's word:
//! lengths are proven on the raw bytes, and no option is half read. A request borrows
//! from its frame: nothing is copied but an option that came in pieces.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::borrow::Cow;
use std::net::Ipv4Addr;
use std::ops::Range;

use dhcproto::v4::{MAGIC, OptionCode};

use super::{CLIENT_PORT, SERVER_PORT, checksum};
use crate::model::Mac;

/// Why a frame gets no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// Not a DHCP request by its form.
    Malformed,
    BadChecksum,
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

/// Whether the frame's UDP checksum is complete. A guest's kernel leaves it to virtio-net's offload; such a frame never
/// crossed a wire, and the kernel marks it (TP_STATUS_CSUMNOTREADY).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum L4Checksum {
    Complete,
    LeftToOffload,
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
const HEADER: usize = 236;
const SNAME: Range<usize> = 44..108;
const FILE: Range<usize> = 108..236;
const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const ETHERNET: u8 = 1;
/// RFC 1542 section 4.1.1: a request that went through more relay agents than that goes in a circle.
const MOST_HOPS: u8 = 16;

impl<'a> Request<'a> {
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

/// The frame's source and its IPv4 packet.
fn ethernet(frame: &[u8]) -> Result<(Mac, &[u8]), Silence> {
    let (header, packet) = frame.split_first_chunk::<14>().ok_or(Silence::Malformed)?;
    if header[12..] != [0x08, 0x00] {
        return Err(Silence::Malformed);
    }
    Ok((mac(&header[6..12])?, packet))
}

fn mac(bytes: &[u8]) -> Result<Mac, Silence> {
    let octets: [u8; 6] = bytes.try_into().map_err(|_| Silence::Malformed)?;
    Mac::try_from(octets).map_err(|_| Silence::Malformed)
}

struct Datagram<'a> {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    /// Where it is sent to.
    port: u16,
    payload: &'a [u8],
}

/// A whole UDP datagram. Bytes after the IP packet are Ethernet padding.
fn udp(packet: &[u8], l4: L4Checksum) -> Result<Datagram<'_>, Silence> {
    let header = packet.first_chunk::<20>().ok_or(Silence::Malformed)?;
    let header_length = usize::from(header[0] & 0x0f) * 4;
    let total_length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    if header[0] >> 4 != 4 || header_length < 20 || fragment || header[9] != 17 {
        return Err(Silence::Malformed);
    }
    let datagram = packet.get(header_length..total_length).ok_or(Silence::Malformed)?;
    if checksum::internet(&[&packet[..header_length]]) != 0 {
        return Err(Silence::BadChecksum);
    }
    let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    let destination = Ipv4Addr::new(header[16], header[17], header[18], header[19]);

    let [_, _, port_high, port_low, length_high, length_low, sum_high, sum_low, ..] = *datagram else {
        return Err(Silence::Malformed);
    };
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    let datagram = datagram.get(..length).ok_or(Silence::Malformed)?;
    let payload = datagram.get(8..).ok_or(Silence::Malformed)?;
    // RFC 768: zero says that the sender made no checksum.
    let summed = l4 == L4Checksum::Complete && [sum_high, sum_low] != [0, 0];
    if summed && checksum::udp(source, destination, datagram) != 0 {
        return Err(Silence::BadChecksum);
    }
    Ok(Datagram { source, destination, port: u16::from_be_bytes([port_high, port_low]), payload })
}

/// The options that matter here, as sent. An option given in pieces is joined (RFC 3396 section 7).
#[derive(Default)]
struct Options<'a> {
    kind: Option<[u8; 1]>,
    overload: Option<[u8; 1]>,
    requested: Option<[u8; 4]>,
    server_id: Option<[u8; 4]>,
    max_size: Option<[u8; 2]>,
    rapid_commit: Option<[u8; 0]>,
    parameters: Option<Cow<'a, [u8]>>,
    vendor_class: Option<Cow<'a, [u8]>>,
    hostname: Option<Cow<'a, [u8]>>,
    fqdn: Option<Cow<'a, [u8]>>,
    client_id: Option<Cow<'a, [u8]>>,
    agent: Option<Cow<'a, [u8]>>,
}

impl<'a> Options<'a> {
    /// `rest` is what follows the header. Order of the areas: RFC 2131 section 4.1.
    fn read(header: &'a [u8; HEADER], rest: &'a [u8]) -> Result<Self, Silence> {
        let mut options = Self::default();
        match rest.split_first_chunk::<4>() {
            Some((&MAGIC, area)) => options.add(area)?,
            // BOOTP clients may send no vendor information (RFC 951 section 3), as klibc's ipconfig does.
            Some((&[0, 0, 0, 0], _)) | None => return Ok(options),
            Some(_) => return Err(Silence::Malformed),
        }
        let [overload] = options.overload.unwrap_or([0]);
        if overload & 1 != 0 {
            options.add(&header[FILE])?;
        }
        if overload & 2 != 0 {
            options.add(&header[SNAME])?;
        }
        Ok(options)
    }

    fn add(&mut self, mut area: &'a [u8]) -> Result<(), Silence> {
        while let Some((code, data)) = next(&mut area)? {
            match OptionCode::from(code) {
                OptionCode::MessageType => fixed(&mut self.kind, data)?,
                OptionCode::OptionOverload => fixed(&mut self.overload, data)?,
                OptionCode::RequestedIpAddress => fixed(&mut self.requested, data)?,
                OptionCode::ServerIdentifier => fixed(&mut self.server_id, data)?,
                OptionCode::MaxMessageSize => fixed(&mut self.max_size, data)?,
                OptionCode::RapidCommit => fixed(&mut self.rapid_commit, data)?,
                OptionCode::ParameterRequestList => joined(&mut self.parameters, data)?,
                OptionCode::ClassIdentifier => joined(&mut self.vendor_class, data)?,
                OptionCode::Hostname => joined(&mut self.hostname, data)?,
                OptionCode::ClientFQDN => joined(&mut self.fqdn, data)?,
                OptionCode::ClientIdentifier => joined(&mut self.client_id, data)?,
                OptionCode::RelayAgentInformation => joined(&mut self.agent, data)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn kind(&self) -> Result<Kind, Silence> {
        match self.kind {
            None => Ok(Kind::Bootp),
            Some([1]) => Ok(Kind::Discover),
            Some([3]) => Ok(Kind::Request),
            Some([4]) => Ok(Kind::Decline),
            Some([7]) => Ok(Kind::Release),
            Some([8]) => Ok(Kind::Inform),
            // OFFER, ACK, NAK and FORCERENEW (RFC 3203).
            Some([2 | 5 | 6 | 9]) => Err(Silence::ServerMessage),
            Some(_) => Err(Silence::Malformed),
        }
    }
}

/// Takes the next option off `area`; none at the End option or the end of the area. One that is shorter than it says is an
/// error.
fn next<'a>(area: &mut &'a [u8]) -> Result<Option<(u8, &'a [u8])>, Silence> {
    loop {
        match **area {
            [] | [255, ..] => return Ok(None),
            [0, ref rest @ ..] => *area = rest,
            [code, length, ref rest @ ..] => {
                let (data, rest) = rest.split_at_checked(length.into()).ok_or(Silence::Malformed)?;
                *area = rest;
                return Ok(Some((code, data)));
            }
            [_] => return Err(Silence::Malformed),
        }
    }
}

/// An option of one length, given once.
fn fixed<const N: usize>(slot: &mut Option<[u8; N]>, data: &[u8]) -> Result<(), Silence> {
    let value = data.try_into().map_err(|_| Silence::Malformed)?;
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Silence::Malformed),
    }
}

/// An option of any length, in one or more pieces, together no longer than one option can be.
fn joined<'a>(slot: &mut Option<Cow<'a, [u8]>>, data: &'a [u8]) -> Result<(), Silence> {
    match slot {
        None => *slot = Some(Cow::Borrowed(data)),
        Some(value) => value.to_mut().extend_from_slice(data),
    }
    let length = slot.as_ref().map_or(0, |value| value.len());
    if length <= 255 { Ok(()) } else { Err(Silence::Malformed) }
}

#[cfg(test)]
mod tests {
    use dhcproto::Encodable;
    use dhcproto::v4::MessageType;
    use proptest::prelude::*;

    use super::super::fixture::{
        ADDRESS, GATEWAY, agent, bare, broadcast, discover, frame, guest_mac, message, selecting,
    };
    use super::*;

    /// Where the BOOTP message begins in a frame of the fixture.
    const BOOTP: usize = 42;

    fn parse(frame: &[u8]) -> Result<Request<'_>, Silence> {
        Request::parse(frame, L4Checksum::Complete)
    }

    /// A DISCOVER whose options are these bytes.
    fn with_options(options: &[u8]) -> Vec<u8> {
        let mut payload = discover(&[]).to_vec().unwrap();
        payload.truncate(240);
        payload.extend(options);
        frame(&payload, Ipv4Addr::BROADCAST)
    }

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
    fn ethernet_padding_is_not_part_of_the_request() {
        let mut frame = broadcast(&discover(&[]));
        frame.extend([0xff; 18]);
        assert_eq!(parse(&frame).unwrap().kind, Kind::Discover);
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
    fn options_that_lie_about_their_length_are_malformed() {
        for (what, options) in [
            ("past the end", &[53, 1, 1, 12, 200, b'x'][..]),
            ("no length", &[53, 1, 1, 12][..]),
            ("long message type", &[53, 2, 1, 1][..]),
            ("empty message type", &[53, 0][..]),
            ("short address", &[53, 1, 1, 50, 3, 10, 100, 1][..]),
            ("long address", &[53, 1, 1, 54, 5, 10, 100, 0, 1, 0][..]),
            ("message type twice", &[53, 1, 1, 0, 53, 1, 3][..]),
            ("rapid commit with data", &[53, 1, 1, 80, 1, 0][..]),
            ("short maximum size", &[53, 1, 1, 57, 1, 2][..]),
            ("unknown message type", &[53, 1, 200][..]),
        ] {
            assert_eq!(parse(&with_options(options)), Err(Silence::Malformed), "{what}");
        }
    }

    #[test]
    fn a_missing_end_option_is_forgiven_and_nothing_after_it_is_read() {
        assert_eq!(parse(&with_options(&[53, 1, 1])).unwrap().kind, Kind::Discover);
        assert_eq!(parse(&with_options(&[53, 1, 1, 255, 12, 200])).unwrap().kind, Kind::Discover);
    }

    #[test]
    fn a_long_option_in_pieces_is_joined_and_has_a_limit() {
        let sent = with_options(&[61, 2, 1, 2, 53, 1, 1, 61, 1, 3, 61, 1, 4]);
        let request = parse(&sent).unwrap();
        assert_eq!(request.client_id.as_deref(), Some(&[1, 2, 3, 4][..]));

        let mut pieces = vec![53, 1, 1];
        for _ in 0..2 {
            pieces.extend([61, 200]);
            pieces.extend([7; 200]);
        }
        assert_eq!(parse(&with_options(&pieces)), Err(Silence::Malformed));
    }

    #[test]
    fn options_overflow_into_file_and_sname() {
        let mut payload = discover(&[]).to_vec().unwrap();
        payload.truncate(240);
        payload.extend([52, 1, 3, 255]);
        payload[108..112].copy_from_slice(&[53, 1, 1, 255]);
        payload[44..51].copy_from_slice(&[50, 4, 10, 100, 1, 2, 255]);
        let sent = frame(&payload, Ipv4Addr::BROADCAST);
        let request = parse(&sent).unwrap();
        assert_eq!((request.kind, request.requested), (Kind::Discover, Some(ADDRESS)));
    }

    #[test]
    fn bootp_needs_no_options_and_no_cookie() {
        let payload = bare().to_vec().unwrap();
        for length in [236, 240] {
            let sent = frame(&payload[..length], Ipv4Addr::BROADCAST);
            let request = parse(&sent).unwrap();
            assert_eq!(request.kind, Kind::Bootp, "{length} bytes");
        }
        let mut zeros = payload;
        zeros.truncate(236);
        zeros.resize(300, 0);
        assert_eq!(parse(&frame(&zeros, Ipv4Addr::BROADCAST)).unwrap().kind, Kind::Bootp);
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

    #[test]
    fn checksums_are_held_to_where_they_are_there() {
        let good = broadcast(&discover(&[]));
        let mut ip = good.clone();
        ip[22] = 63; // TTL
        assert_eq!(parse(&ip), Err(Silence::BadChecksum));
        let mut udp = good.clone();
        udp[BOOTP + 8] ^= 1; // secs
        assert_eq!(parse(&udp), Err(Silence::BadChecksum));
        // A guest that leaves it to virtio-net.
        assert!(Request::parse(&udp, L4Checksum::LeftToOffload).is_ok());
        // A guest that makes none.
        udp[40..42].copy_from_slice(&[0, 0]);
        assert!(parse(&udp).is_ok());
    }

    #[test]
    fn fragments_other_ports_and_other_protocols_are_malformed() {
        let good = broadcast(&discover(&[]));
        for (what, at, value) in [
            ("IPv6", 14, 0x65),
            ("short IP header", 14, 0x44),
            ("more fragments", 20, 0x20),
            ("fragment offset", 21, 1),
            ("TCP", 23, 6),
            ("port 68", 37, 68),
            ("ARP", 13, 6),
            ("UDP shorter than its header", 39, 7),
        ] {
            let mut frame = good.clone();
            frame[at] = value;
            if at == 39 {
                frame[38] = 0;
            }
            let sum = checksum::internet(&[&frame[14..24], &frame[26..34]]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
            assert_eq!(Request::parse(&frame, L4Checksum::LeftToOffload), Err(Silence::Malformed), "{what}");
        }
    }

    #[test]
    fn text_that_is_not_utf8_does_not_hide_what_follows() {
        let sent = with_options(&[12, 2, 0xff, 0xfe, 53, 1, 3, 50, 4, 10, 100, 1, 2]);
        let request = parse(&sent).unwrap();
        assert_eq!((request.kind, request.requested), (Kind::Request, Some(ADDRESS)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_are_not(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Request::parse(&bytes, L4Checksum::LeftToOffload);
        }

        #[test]
        fn any_options_are_read_or_refused(options in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&with_options(&options));
        }
    }
}
