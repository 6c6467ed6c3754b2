//! Makes a checked request of a frame's bytes, or says why it is not one. PURE. Everything in the frame is the guest's word:
//! lengths are proven on the raw bytes before dhcproto walks the options, and no option is half read.

use std::net::Ipv4Addr;

use dhcproto::v4::borrowed::{DhcpOptionIterator, Message};
use dhcproto::v4::{MAGIC, OptionCode};

use super::{SERVER_PORT, checksum};
use crate::model::Mac;

/// Why a frame gets no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// Not a DHCP request by its form.
    Malformed,
    BadChecksum,
    /// giaddr is set: relays are not served.
    Relayed,
    /// The frame's Ethernet source is not the chaddr it asks for.
    SourceMismatch,
    UnknownMac,
    /// Addressed to another server, by IP address or server identifier.
    NotOurs,
    /// A message that only servers send.
    ServerMessage,
    /// Releases or declines an address that is not its reservation.
    ForeignAddress,
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

/// A well-formed request, sent by the MAC that it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub mac: Mac,
    pub kind: Kind,
    pub xid: u32,
    /// The client wants its answer broadcast.
    pub broadcast: bool,
    /// The address the client says it has; zero when none.
    pub ciaddr: Ipv4Addr,
    /// Where the datagram was sent to.
    pub ip_destination: Ipv4Addr,
    /// Option 50.
    pub requested: Option<Ipv4Addr>,
    /// Option 54.
    pub server_id: Option<Ipv4Addr>,
    /// Option 55: the options wanted, in order.
    pub parameters: Option<Vec<u8>>,
    /// Option 57.
    pub max_size: Option<u16>,
    /// Option 60, made printable: shown, never trusted.
    pub vendor_class: Option<String>,
    /// Option 61, opaque: echoed, never an identity.
    pub client_id: Option<Vec<u8>>,
    /// Option 80, RFC 4039.
    pub rapid_commit: bool,
}

/// Fixed part of a BOOTP message and the magic cookie (RFC 2131 section 2, RFC 2132 section 2).
const HEADER: usize = 240;
const BOOT_REQUEST: u8 = 1;
const ETHERNET: u8 = 1;

impl Request {
    pub fn parse(frame: &[u8], l4: L4Checksum) -> Result<Self, Silence> {
        let (source, packet) = ethernet(frame)?;
        let (ip_destination, message) = udp(packet, l4)?;
        if message.len() < HEADER || message[236..HEADER] != MAGIC {
            return Err(Silence::Malformed);
        }
        let [op, htype, hlen, ..] = *message else { return Err(Silence::Malformed) };
        if op != BOOT_REQUEST {
            return Err(Silence::ServerMessage);
        }
        if htype != ETHERNET || hlen != 6 {
            return Err(Silence::Malformed);
        }
        // At least 240 bytes and hlen 6: every field that dhcproto indexes is there.
        let header = Message::new(message).map_err(|_| Silence::Malformed)?;
        if !header.giaddr().is_unspecified() {
            return Err(Silence::Relayed);
        }
        let mac = mac(header.chaddr())?;
        if source != mac {
            return Err(Silence::SourceMismatch);
        }
        let options = Options::read(message)?;
        Ok(Self {
            mac,
            kind: options.kind()?,
            xid: header.xid(),
            broadcast: header.flags().broadcast(),
            ciaddr: header.ciaddr(),
            ip_destination,
            requested: options.requested.map(Ipv4Addr::from),
            server_id: options.server_id.map(Ipv4Addr::from),
            parameters: options.parameters,
            max_size: options.max_size.map(u16::from_be_bytes),
            vendor_class: options.vendor_class.as_deref().and_then(printable),
            client_id: options.client_id.filter(|id| !id.is_empty()),
            rapid_commit: options.rapid_commit.is_some(),
        })
    }
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

/// The destination address and the payload of a whole UDP datagram to the server port. Bytes after the IP packet are
/// Ethernet padding.
fn udp(packet: &[u8], l4: L4Checksum) -> Result<(Ipv4Addr, &[u8]), Silence> {
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
    if u16::from_be_bytes([port_high, port_low]) != SERVER_PORT {
        return Err(Silence::Malformed);
    }
    // RFC 768: zero says that the sender made no checksum.
    let summed = l4 == L4Checksum::Complete && [sum_high, sum_low] != [0, 0];
    if summed && checksum::udp(source, destination, datagram) != 0 {
        return Err(Silence::BadChecksum);
    }
    Ok((destination, payload))
}

/// The options that matter here, as sent. An option given in pieces is joined (RFC 3396 section 7).
#[derive(Default)]
struct Options {
    kind: Option<[u8; 1]>,
    overload: Option<[u8; 1]>,
    requested: Option<[u8; 4]>,
    server_id: Option<[u8; 4]>,
    max_size: Option<[u8; 2]>,
    rapid_commit: Option<[u8; 0]>,
    parameters: Option<Vec<u8>>,
    vendor_class: Option<Vec<u8>>,
    client_id: Option<Vec<u8>>,
}

impl Options {
    /// `message` is at least `HEADER` long. Order of the areas: RFC 2131 section 4.1.
    fn read(message: &[u8]) -> Result<Self, Silence> {
        let mut options = Self::default();
        options.add(&message[HEADER..])?;
        let [overload] = options.overload.unwrap_or([0]);
        if overload & 1 != 0 {
            options.add(&message[108..236])?; // file
        }
        if overload & 2 != 0 {
            options.add(&message[44..108])?; // sname
        }
        Ok(options)
    }

    fn add(&mut self, area: &[u8]) -> Result<(), Silence> {
        if !is_whole(area) {
            return Err(Silence::Malformed);
        }
        for option in DhcpOptionIterator::new(area) {
            let data = option.data();
            match option.code() {
                OptionCode::MessageType => fixed(&mut self.kind, data)?,
                OptionCode::OptionOverload => fixed(&mut self.overload, data)?,
                OptionCode::RequestedIpAddress => fixed(&mut self.requested, data)?,
                OptionCode::ServerIdentifier => fixed(&mut self.server_id, data)?,
                OptionCode::MaxMessageSize => fixed(&mut self.max_size, data)?,
                OptionCode::RapidCommit => fixed(&mut self.rapid_commit, data)?,
                OptionCode::ParameterRequestList => joined(&mut self.parameters, data)?,
                OptionCode::ClassIdentifier => joined(&mut self.vendor_class, data)?,
                OptionCode::ClientIdentifier => joined(&mut self.client_id, data)?,
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

/// Whether every option up to the End option, or up to the end of the area, is as long as it says.
fn is_whole(mut area: &[u8]) -> bool {
    loop {
        area = match *area {
            [] | [255, ..] => return true,
            [0, ref rest @ ..] => rest,
            [_, length, ref rest @ ..] if usize::from(length) <= rest.len() => &rest[usize::from(length)..],
            _ => return false,
        };
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
fn joined(slot: &mut Option<Vec<u8>>, data: &[u8]) -> Result<(), Silence> {
    let value = slot.get_or_insert_default();
    value.extend_from_slice(data);
    if value.len() <= 255 { Ok(()) } else { Err(Silence::Malformed) }
}

/// A guest's text, safe in a log line, a table and a terminal: printable ASCII stays, every other byte is `?`.
fn printable(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().rposition(|byte| *byte != 0)?;
    let shown = |byte: &u8| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '?' };
    Some(bytes[..=end].iter().map(shown).collect())
}
