//! Writes a decided reply as a whole Ethernet frame, right in every length and checksum or not at all. PURE. In: the
//! request, its binding, the answer, the server's MAC. Out: the bytes to send as they are: they need no ARP entry, no
//! route and no offload.

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
