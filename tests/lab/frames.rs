//! Frames byte by byte, right or wrong: what a hostile guest writes, and what is seen of it.

use std::net::Ipv4Addr;

pub type Mac = [u8; 6];

pub const BROADCAST: Mac = [0xff; 6];

pub fn mac(text: &str) -> Mac {
    let octets: Vec<u8> = text.split(':').map(|pair| u8::from_str_radix(pair, 16).expect("hex")).collect();
    octets.try_into().expect("six octets")
}

pub fn ethernet(source: Mac, destination: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&destination[..], &source, &kind.to_be_bytes(), payload].concat()
}

/// The frame with a VLAN tag (IEEE 802.1Q) put into it: `kind` is 0x8100, or 0x88a8 for an outer one.
pub fn tagged(frame: &[u8], kind: u16, vlan: u16) -> Vec<u8> {
    [&frame[..12], &kind.to_be_bytes(), &vlan.to_be_bytes(), &frame[12..]].concat()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// 1 asks, 2 answers.
    pub operation: u16,
    pub sender_mac: Mac,
    pub sender_ip: Ipv4Addr,
    pub target_mac: Mac,
    pub target_ip: Ipv4Addr,
}

pub fn arp(source: Mac, destination: Mac, arp: &Arp) -> Vec<u8> {
    let payload = [
        &[0, 1, 8, 0, 6, 4][..],
        &arp.operation.to_be_bytes(),
        &arp.sender_mac,
        &arp.sender_ip.octets(),
        &arp.target_mac,
        &arp.target_ip.octets(),
    ]
    .concat();
    ethernet(source, destination, 0x0806, &payload)
}

/// `more` and `offset` in units of 8 bytes: the fields of a fragment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fragment {
    pub more: bool,
    pub offset: u16,
}

pub fn ipv4_fragment(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    fragment: Fragment,
    payload: &[u8],
) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend((20 + payload.len() as u16).to_be_bytes());
    header.extend([0x47, 0x4e]);
    header.extend((u16::from(fragment.more) << 13 | fragment.offset).to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend(source.octets());
    header.extend(destination.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [header, payload.to_vec()].concat()
}

pub fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_fragment(source, destination, protocol, Fragment::default(), payload)
}

fn with_pseudo(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, segment: &[u8]) -> u16 {
    let length = (segment.len() as u16).to_be_bytes();
    checksum(&[&source.octets(), &destination.octets(), &[0, protocol], &length, segment])
}

pub fn udp_payload(source: Ipv4Addr, destination: Ipv4Addr, ports: (u16, u16), text: &[u8]) -> Vec<u8> {
    let length = 8 + text.len() as u16;
    let header = [ports.0.to_be_bytes(), ports.1.to_be_bytes(), length.to_be_bytes(), [0; 2]].concat();
    let mut datagram = [&header[..], text].concat();
    let sum = with_pseudo(source, destination, 17, &datagram);
    datagram[6..8].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
    datagram
}

pub fn udp(
    source_mac: Mac,
    destination_mac: Mac,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    ports: (u16, u16),
    text: &[u8],
) -> Vec<u8> {
    let datagram = udp_payload(source, destination, ports, text);
    ethernet(source_mac, destination_mac, 0x0800, &ipv4(source, destination, 17, &datagram))
}

pub const SYN: u8 = 2;
pub const ACK: u8 = 16;
pub const PUSH: u8 = 8;

/// A TCP segment without options, in a frame: `about` is its flags, its sequence number and what it acknowledges.
pub fn tcp(
    macs: (Mac, Mac),
    addresses: (Ipv4Addr, Ipv4Addr),
    ports: (u16, u16),
    about: (u8, u32, u32),
    text: &[u8],
) -> Vec<u8> {
    let segment = tcp_segment(addresses, ports, about, text);
    ethernet(macs.0, macs.1, 0x0800, &ipv4(addresses.0, addresses.1, 6, &segment))
}

/// An ICMP echo request.
pub fn echo(
    source_mac: Mac,
    destination_mac: Mac,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    sequence: u16,
) -> Vec<u8> {
    icmp(source_mac, destination_mac, source, destination, 8, sequence)
}

pub fn icmp(
    source_mac: Mac,
    destination_mac: Mac,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    kind: u8,
    sequence: u16,
) -> Vec<u8> {
    let message = icmp_message(kind, sequence, b"guestnet's lab");
    ethernet(source_mac, destination_mac, 0x0800, &ipv4(source, destination, 1, &message))
}

pub fn icmp_message(kind: u8, sequence: u16, text: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0x47, 0x4e];
    message.extend(sequence.to_be_bytes());
    message.extend(text);
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// A TCP segment without options, alone.
pub fn tcp_segment(
    addresses: (Ipv4Addr, Ipv4Addr),
    ports: (u16, u16),
    (flags, sequence, acknowledged): (u8, u32, u32),
    text: &[u8],
) -> Vec<u8> {
    let mut segment = [&ports.0.to_be_bytes()[..], &ports.1.to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledged.to_be_bytes());
    segment.extend([0x50, flags]);
    segment.extend(8192_u16.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend(text);
    let sum = with_pseudo(addresses.0, addresses.1, 6, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// A DHCP server's answer: OFFER (2) or ACK (5) that gives `client` an address and a router (RFC 2131).
pub fn dhcp_reply(kind: u8, client: Mac, address: Ipv4Addr, router: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![2, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0x80, 0, 0, 0, 0, 0];
    message.extend(address.octets());
    message.extend(router.octets());
    message.extend([0; 4]);
    message.extend(client);
    message.extend([0; 202]);
    message.extend([99, 130, 83, 99, 53, 1, kind, 54, 4]);
    message.extend(router.octets());
    message.extend([3, 4]);
    message.extend(router.octets());
    message.extend([51, 4, 0, 1, 0, 0, 255]);
    message.resize(300, 0);
    message
}

/// A DHCP client's DISCOVER.
pub fn dhcp_discover(client: Mac, transaction: u32) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0];
    message.extend(transaction.to_be_bytes());
    message.extend([0; 20]);
    message.extend(client);
    message.extend([0; 202]);
    message.extend([99, 130, 83, 99, 53, 1, 1, 255]);
    message.resize(300, 0);
    let nobody = Ipv4Addr::UNSPECIFIED;
    udp(client, BROADCAST, nobody, Ipv4Addr::BROADCAST, (68, 67), &message)
}

fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A frame as it was received.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame(pub Vec<u8>);

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hex: Vec<String> = self.0.iter().take(60).map(|byte| format!("{byte:02x}")).collect();
        write!(f, "frame of {}: {}", self.0.len(), hex.join(""))
    }
}

impl Frame {
    pub fn source(&self) -> Mac {
        self.0[6..12].try_into().expect("six octets")
    }

    pub fn kind(&self) -> u16 {
        u16::from_be_bytes([self.0[12], self.0[13]])
    }

    pub fn has(&self, text: &[u8]) -> bool {
        self.0.windows(text.len()).any(|window| window == text)
    }

    pub fn arp(&self) -> Option<Arp> {
        let arp = self.0.get(14..42).filter(|_| self.kind() == 0x0806)?;
        let mac = |at: usize| arp[at..at + 6].try_into().expect("six octets");
        let ip = |at: usize| Ipv4Addr::new(arp[at], arp[at + 1], arp[at + 2], arp[at + 3]);
        Some(Arp {
            operation: u16::from_be_bytes([arp[6], arp[7]]),
            sender_mac: mac(8),
            sender_ip: ip(14),
            target_mac: mac(18),
            target_ip: ip(24),
        })
    }

    /// Protocol, source, destination, and what follows the header.
    pub fn ipv4(&self) -> Option<(u8, Ipv4Addr, Ipv4Addr, &[u8])> {
        let packet = self.0.get(14..).filter(|packet| self.kind() == 0x0800 && packet.len() >= 20)?;
        let ip = |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
        let header = usize::from(packet[0] & 15) * 4;
        Some((packet[9], ip(12), ip(16), packet.get(header..)?))
    }

    pub fn is_echo_reply(&self, from: Ipv4Addr, sequence: u16) -> bool {
        self.ipv4().is_some_and(|(protocol, source, _, message)| {
            protocol == 1 && source == from && message[0] == 0 && message[6..8] == sequence.to_be_bytes()
        })
    }
}
