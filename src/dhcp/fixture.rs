//! What the tests of this module share: a network with one guest, the frames that the guest sends, and the replies as it
//! would read them. Every reply that a test sees has been taken apart and checked.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dhcproto::v4::{DhcpOption, Message, MessageType};
use dhcproto::{Decodable, Encodable};

use super::{L4Checksum, Outcome, Record, Request, checksum, decide, write_reply};
use crate::model::{DnsMode, Hostname, LeaseView, Mac, Network, Slot, Vm, VmId};
use crate::registry::Binding;

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
    Network {
        name: "default".parse().unwrap(),
        bridge: "br-vms".parse().unwrap(),
        subnet: "10.100.0.0/16".parse().unwrap(),
        gateway: GATEWAY,
        upstreams: vec!["8.8.8.8".parse().unwrap()],
        dns: DnsMode::On,
        domain: "vm.internal".parse().unwrap(),
        mtu: 1500,
        rate_limit: None,
        lease_seconds: LEASE,
    }
}

pub(super) fn binding_on(network: Network, address: Ipv4Addr) -> Binding {
    let vm_id: VmId = "web-1".parse().unwrap();
    let vm = Vm {
        hostname: Hostname::for_vm(&vm_id),
        vm_id,
        network: network.name.clone(),
        workspace: None,
        slot: Slot(1),
        mac: guest_mac(),
        address,
        rate_limit: None,
        created_at_us: 0,
    };
    Binding::new(vm, Arc::new(network))
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

pub(super) fn discover(options: &[DhcpOption]) -> Message {
    message(MessageType::Discover, options)
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

/// `message` as a broadcast frame.
pub(super) fn broadcast(message: &Message) -> Vec<u8> {
    frame(&message.to_vec().unwrap(), Ipv4Addr::BROADCAST)
}

/// A server with at most one guest, without sockets.
pub(super) struct Lab {
    pub(super) binding: Option<Binding>,
    pub(super) record: Record,
    pub(super) now: SystemTime,
}

impl Lab {
    pub(super) fn new() -> Self {
        Self::on(network())
    }

    pub(super) fn on(network: Network) -> Self {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        Self { binding: Some(binding_on(network, ADDRESS)), record: Record::default(), now }
    }

    pub(super) fn view(&self) -> LeaseView {
        self.record.view(self.now)
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
        let decision = decide(&request, self.binding.as_ref(), &self.record, self.now);
        if let Some(record) = decision.record {
            self.record = record;
        }
        let Outcome::Reply(answer) = decision.outcome else { return (decision.outcome, None) };
        let mut reply = vec![0xee; 7];
        write_reply(&mut reply, &request, self.binding.as_ref().unwrap(), answer, server_mac()).unwrap();
        (decision.outcome, Some(Heard::read(&reply)))
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
        assert_eq!(udp[..4], [0, 67, 0, 68]);
        assert_eq!(usize::from(u16::from_be_bytes([udp[4], udp[5]])), udp.len());
        assert_ne!(udp[6..8], [0, 0], "UDP checksum is there");
        assert_eq!(checksum::udp(GATEWAY, address, udp), 0, "UDP checksum");
        let bootp = &udp[8..];
        assert!(bootp.len() >= 300, "{}", bootp.len());
        assert_eq!(bootp[..4], [2, 1, 6, 0], "a reply, Ethernet, six octets");
        assert_eq!(bootp[28..34], guest_mac().octets());
        assert_eq!(bootp[236..240], [99, 130, 83, 99]);
        let message = Message::from_bytes(bootp).unwrap();
        let codes = codes(&bootp[240..]);
        assert_eq!(message.opts().len(), codes.len(), "each option once, each one decodes: {codes:?}");
        Self { link: ethernet[..6].try_into().unwrap(), address, length: bootp.len(), message, codes }
    }

    pub(super) fn kind(&self) -> Option<MessageType> {
        self.message.opts().msg_type()
    }

    /// The option of that code.
    pub(super) fn option(&self, code: u8) -> Option<&DhcpOption> {
        self.message.opts().get(code.into())
    }
}

/// Panics unless the options are whole and closed by End, with nothing but padding behind it.
fn codes(mut area: &[u8]) -> Vec<u8> {
    let mut codes = Vec::new();
    loop {
        match area {
            [255, rest @ ..] => {
                assert!(rest.iter().all(|byte| *byte == 0));
                return codes;
            }
            [code, length, rest @ ..] => {
                codes.push(*code);
                area = &rest[usize::from(*length)..];
            }
            _ => panic!("no End option"),
        }
    }
}
