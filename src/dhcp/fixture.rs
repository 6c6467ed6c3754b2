//! What the tests of this module share: a network with one guest, the frames that the guest sends, and the replies as it
//! would read them. Every reply that a test sees has been taken apart and checked.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dhcproto::v4::relay::{RelayAgentInformation, RelayInfo};
use dhcproto::v4::{DhcpOption, Message, MessageType};
use dhcproto::v4::{DhcpOptions as DhcpOptions4, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};

use super::{L4Checksum, Outcome, Record, Request, Silence, Told, checksum, decide, write_reply};
use crate::model::{DhcpOptions, GuestNet, LeaseView, Mac, Network, testing};
use crate::registry::Reserved;

pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 1);
/// The guest's reservation.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 100, 1, 2);
/// An address of somebody else.
pub(super) const FOREIGN: Ipv4Addr = Ipv4Addr::new(10, 100, 9, 9);
pub(super) const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
pub(super) const LEASE: u32 = 3600;

pub(super) fn guest_mac() -> Mac {
    Mac::for_address(ADDRESS)
}

pub(super) fn server_mac() -> Mac {
    "02:00:00:00:00:01".parse().unwrap()
}

pub(super) fn network() -> Network {
    Network { lease_seconds: LEASE, ..testing::network() }
}

pub(super) fn reserved_on(network: Network, address: Ipv4Addr) -> Reserved {
    let own = DhcpOptions::default();
    let guest = GuestNet::of(&network, guest_mac(), address, "web-1".parse().unwrap(), &own);
    let vm_id = Some("web-1".parse().unwrap());
    Reserved { network: Arc::new(network), guest, options: own, vm_id, workspace: None }
}

/// A message of the guest, before its options.
pub(super) fn bare() -> Message {
    Message::new_with_id(0x2132_0001, NOBODY, NOBODY, NOBODY, NOBODY, &guest_mac().octets())
}

pub(super) fn message(kind: MessageType, options: &[DhcpOption]) -> Message {
    let mut message = bare();
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    for option in options {
        message.opts_mut().insert(option.clone());
    }
    message
}

/// Option 82 of a relay agent's port gv7.
pub(super) fn agent() -> DhcpOption {
    let mut agent = RelayAgentInformation::default();
    agent.insert(RelayInfo::AgentCircuitId(b"gv7".to_vec()));
    DhcpOption::RelayAgentInformation(agent)
}

pub(super) fn discover(options: &[DhcpOption]) -> Message {
    message(MessageType::Discover, options)
}

/// A DISCOVER whose options are these bytes.
pub(super) fn with_options(options: &[u8]) -> Vec<u8> {
    let mut payload = discover(&[]).to_vec().unwrap();
    payload.truncate(240);
    payload.extend(options);
    frame(&payload, Ipv4Addr::BROADCAST)
}

/// REQUEST after an OFFER.
pub(super) fn selecting(address: Ipv4Addr, server: Ipv4Addr) -> Message {
    let options = [DhcpOption::RequestedIpAddress(address), DhcpOption::ServerIdentifier(server)];
    message(MessageType::Request, &options)
}

/// REQUEST of a guest that boots with a lease it remembers.
pub(super) fn init_reboot(address: Ipv4Addr) -> Message {
    message(MessageType::Request, &[DhcpOption::RequestedIpAddress(address)])
}

/// REQUEST of a guest that uses `address`.
pub(super) fn renewing(address: Ipv4Addr) -> Message {
    let mut message = message(MessageType::Request, &[]);
    message.set_ciaddr(address);
    message
}

/// A frame that carries `payload` from the guest's MAC to the server port, every checksum complete.
pub(super) fn frame(payload: &[u8], destination: Ipv4Addr) -> Vec<u8> {
    let mut udp = vec![0, 68, 0, 67];
    udp.extend(((payload.len() + 8) as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let sum = checksum::udp(NOBODY, destination, &udp);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0];
    ip.extend(destination.octets());
    ip[2..4].copy_from_slice(&((udp.len() + 20) as u16).to_be_bytes());
    let sum = checksum::internet(&[&ip]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![0xff; 6];
    frame.extend(guest_mac().octets());
    frame.extend([0x08, 0x00]);
    frame.extend(ip);
    frame.extend(udp);
    frame
}

/// A frame as a server reads it that asks for a complete checksum.
pub(super) fn parse(frame: &[u8]) -> Result<Request<'_>, Silence> {
    Request::parse(frame, L4Checksum::Complete)
}

/// `message` as a broadcast frame.
pub(super) fn broadcast(message: &Message) -> Vec<u8> {
    frame(&message.to_vec().unwrap(), Ipv4Addr::BROADCAST)
}

/// A server with at most one guest, without sockets.
pub(super) struct Lab {
    pub(super) reserved: Option<Reserved>,
    pub(super) record: Record,
    pub(super) now: SystemTime,
}

impl Lab {
    pub(super) fn new() -> Self {
        Self::on(network())
    }

    pub(super) fn on(network: Network) -> Self {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        Self { reserved: Some(reserved_on(network, ADDRESS)), record: Record::default(), now }
    }

    pub(super) fn view(&self) -> LeaseView {
        let address = self.reserved.as_ref().map_or(ADDRESS, |reserved| reserved.guest.address);
        self.record.view(address, self.now)
    }

    /// What became of a message that the guest broadcast, and what it got back.
    pub(super) fn hears(&mut self, message: &Message) -> (Outcome, Option<Heard>) {
        self.hears_frame(&broadcast(message))
    }

    pub(super) fn hears_frame(&mut self, frame: &[u8]) -> (Outcome, Option<Heard>) {
        let request = match Request::parse(frame, L4Checksum::Complete) {
            Ok(request) => request,
            Err(silence) => return (Outcome::Silent(silence), None),
        };
        let Some(reserved) = &self.reserved else { return (Outcome::Silent(Silence::UnknownMac), None) };
        let outcome = decide(&request, reserved, &self.record, self.now);
        self.record.note(&request, outcome, reserved.guest.address, reserved.network.lease_seconds, self.now);
        let Outcome::Reply(answer) = outcome else { return (outcome, None) };
        let mut reply = vec![0xee; 7];
        write_reply(&mut reply, &request, reserved, &Told::new(reserved), answer, server_mac());
        (outcome, Some(Heard::read(&reply)))
    }

    /// The reply to `message`, which has to get one.
    pub(super) fn answer(&mut self, message: &Message) -> Heard {
        let (outcome, heard) = self.hears(message);
        heard.unwrap_or_else(|| panic!("no reply: {outcome:?}"))
    }
}

/// A reply as a guest reads it.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) link: [u8; 6],
    pub(super) address: Ipv4Addr,
    /// Length of the BOOTP message.
    pub(super) length: usize,
    pub(super) message: Message,
    options: Vec<(u8, Vec<u8>)>,
    /// Codes of the options in their order.
    pub(super) codes: Vec<u8>,
}

impl Heard {
    /// Takes a frame apart and checks everything that is true of every reply.
    pub(super) fn read(frame: &[u8]) -> Self {
        let (ethernet, ip) = frame.split_at(14);
        assert_eq!(ethernet[6..12], server_mac().octets());
        assert_eq!(ethernet[12..], [0x08, 0x00]);
        assert_eq!(ip[0], 0x45);
        assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip.len());
        assert_eq!(checksum::internet(&[&ip[..20]]), 0, "IP checksum");
        assert_eq!(ip[12..16], GATEWAY.octets());
        let address = Ipv4Addr::new(ip[16], ip[17], ip[18], ip[19]);
        let udp = &ip[20..];
        assert_eq!(udp[..2], [0, 67]);
        let port = u16::from_be_bytes([udp[2], udp[3]]);
        let relayed = bootp_of(udp)[24..28] != [0; 4];
        assert_eq!(port, if relayed { 67 } else { 68 });
        assert_eq!(usize::from(u16::from_be_bytes([udp[4], udp[5]])), udp.len());
        assert_ne!(udp[6..8], [0, 0], "UDP checksum is there");
        assert_eq!(checksum::udp(GATEWAY, address, udp), 0, "UDP checksum");
        let bootp = &udp[8..];
        assert!(bootp.len() >= 300, "{}", bootp.len());
        assert_eq!(bootp[..4], [2, 1, 6, 0], "a reply, Ethernet, six octets");
        assert_eq!(bootp[28..34], guest_mac().octets());
        assert_eq!(bootp[236..240], [99, 130, 83, 99]);
        let mut message = Message::from_bytes(bootp).unwrap();
        let mut options = options(&bootp[240..]);
        // dhcproto leaves an overloaded reply's other areas to its reader.
        let overload = message.opts().get(OptionCode::OptionOverload).cloned();
        if let Some(DhcpOption::OptionOverload(areas)) = overload {
            for (bit, area) in [(1, &bootp[108..236]), (2, &bootp[44..108])] {
                if areas & bit != 0 {
                    options.extend(self::options(area));
                    let further = DhcpOptions4::decode(&mut Decoder::new(area)).unwrap();
                    for (_, option) in further.iter() {
                        message.opts_mut().insert(option.clone());
                    }
                }
            }
        }
        let codes: Vec<u8> = options.iter().map(|(code, _)| *code).collect();
        // dhcproto reads no option 81 in ASCII, which RFC 4702 still allows.
        let mut distinct: Vec<u8> = codes.iter().copied().filter(|code| *code != 81).collect();
        distinct.dedup();
        message.opts_mut().remove(OptionCode::ClientFQDN);
        assert_eq!(message.opts().len(), distinct.len(), "each option once, each one decodes: {codes:?}");
        Self {
            link: ethernet[..6].try_into().unwrap(),
            address,
            length: bootp.len(),
            message,
            options,
            codes,
        }
    }

    /// The bytes of an option, its pieces joined.
    pub(super) fn raw(&self, code: u8) -> Option<Vec<u8>> {
        let mut pieces = self.options.iter().filter(|(other, _)| *other == code).peekable();
        pieces.peek()?;
        Some(pieces.flat_map(|(_, data)| data.clone()).collect())
    }

    pub(super) fn kind(&self) -> Option<MessageType> {
        self.message.opts().msg_type()
    }

    /// The option of that code.
    pub(super) fn option(&self, code: u8) -> Option<&DhcpOption> {
        self.message.opts().get(code.into())
    }
}

fn bootp_of(udp: &[u8]) -> &[u8] {
    &udp[8..]
}

/// Panics unless the options are whole and closed by End, with nothing but padding behind it.
fn options(mut area: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut options = Vec::new();
    loop {
        match area {
            [255, rest @ ..] => {
                assert!(rest.iter().all(|byte| *byte == 0));
                return options;
            }
            [code, length, rest @ ..] => {
                options.push((*code, rest[..usize::from(*length)].to_vec()));
                area = &rest[usize::from(*length)..];
            }
            _ => panic!("no End option"),
        }
    }
}

/// Option 55.
pub(super) fn parameters(codes: &[u8]) -> DhcpOption {
    DhcpOption::ParameterRequestList(codes.iter().map(|code| OptionCode::from(*code)).collect())
}

/// A lab whose network and guest have these options.
pub(super) fn with(network_options: &str, guest_options: &str) -> Lab {
    let mut lab = Lab::on(Network { dhcp_options: toml::from_str(network_options).unwrap(), ..network() });
    if let Some(reserved) = &mut lab.reserved {
        let own: DhcpOptions = toml::from_str(guest_options).unwrap();
        reserved.guest.options = own.over(&reserved.network.dhcp_options);
    }
    lab
}
