//! What rules look at, as nft(8) writes it, in expressions. Each starts at the register it is given.

use super::nft::{Ct, Expr, Header, Meta, Register, Rule, Verdict};
use crate::model::PORTS;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP: u8 = 1;

/// Of a bridge port of ours: `gv<slot>`.
const PORT_PREFIX: &[u8] = b"gv";

pub(super) type Match = Vec<Expr>;

pub(super) fn rule(comment: impl Into<String>, parts: impl IntoIterator<Item = Match>) -> Rule {
    Rule { comment: comment.into(), expressions: parts.into_iter().flatten().collect() }
}

fn load(header: Header, offset: u32, len: u32, to: Register) -> Expr {
    Expr::Payload { header, offset, len, to }
}

fn equals(header: Header, offset: u32, value: &[u8]) -> Match {
    // A header field that is compared is 8 bytes at most.
    #[allow(clippy::cast_possible_truncation)]
    let len = value.len() as u32;
    vec![load(header, offset, len, 0), Expr::Equal { register: 0, value: value.to_vec() }]
}

pub(super) fn input_name(to: Register) -> Expr {
    Expr::Meta { key: Meta::InputName, to }
}

pub(super) fn ether_source(to: Register) -> Expr {
    load(Header::Link, 6, 6, to)
}

pub(super) fn ether_destination(to: Register) -> Expr {
    load(Header::Link, 0, 6, to)
}

pub(super) fn source(to: Register) -> Expr {
    load(Header::Network, 12, 4, to)
}

pub(super) fn destination(to: Register) -> Expr {
    load(Header::Network, 16, 4, to)
}

pub(super) fn protocol_to(to: Register) -> Expr {
    Expr::Meta { key: Meta::L4Protocol, to }
}

pub(super) fn destination_port_to(to: Register) -> Expr {
    load(Header::Transport, 2, 2, to)
}

/// `arp saddr ether` and `arp saddr ip`.
pub(super) fn arp_sender_mac(to: Register) -> Expr {
    load(Header::Network, 8, 6, to)
}

pub(super) fn arp_sender(to: Register) -> Expr {
    load(Header::Network, 14, 4, to)
}

pub(super) fn from_a_port() -> Match {
    vec![input_name(0), Expr::Equal { register: 0, value: PORT_PREFIX.to_vec() }]
}

/// As the frame has it: a tagged one has its tag's, whatever is in it.
pub(super) fn ether_type(value: u16) -> Match {
    equals(Header::Link, 12, &value.to_be_bytes())
}

pub(super) fn ether_destination_is(value: [u8; 6]) -> Match {
    equals(Header::Link, 0, &value)
}

pub(super) fn arp_sender_is_nobody() -> Match {
    equals(Header::Network, 14, &[0; 4])
}

/// An ARP packet of Ethernet and IPv4 (RFC 826).
pub(super) fn not_arp_of_ipv4() -> Match {
    let of_ipv4 = vec![0, 1, 8, 0, 6, 4];
    vec![load(Header::Network, 0, 6, 0), Expr::NotEqual { register: 0, value: of_ipv4 }]
}

pub(super) fn source_is(address: [u8; 4]) -> Match {
    equals(Header::Network, 12, &address)
}

pub(super) fn destination_is(address: [u8; 4]) -> Match {
    equals(Header::Network, 16, &address)
}

/// The first octet of an address, for the ranges of RFC 6890.
pub(super) fn source_in(first_octet: u8) -> Match {
    equals(Header::Network, 12, &[first_octet])
}

pub(super) fn destination_in(first_octet: u8) -> Match {
    equals(Header::Network, 16, &[first_octet])
}

pub(super) fn destination_is_no_unicast() -> Match {
    vec![load(Header::Network, 16, 1, 0), Expr::AtLeast { register: 0, value: vec![224] }]
}

pub(super) fn not_a_fragment() -> Match {
    // All but "don't fragment".
    vec![
        load(Header::Network, 6, 2, 0),
        Expr::Mask { register: 0, mask: vec![0x3f, 0xff] },
        Expr::Equal { register: 0, value: vec![0, 0] },
    ]
}

pub(super) fn protocol(number: u8) -> Match {
    vec![protocol_to(0), Expr::Equal { register: 0, value: vec![number] }]
}

pub(super) fn source_port(port: u16) -> Match {
    equals(Header::Transport, 0, &port.to_be_bytes())
}

pub(super) fn destination_port(port: u16) -> Match {
    equals(Header::Transport, 2, &port.to_be_bytes())
}

pub(super) fn echo_request() -> Match {
    [protocol(ICMP), equals(Header::Transport, 0, &[8])].concat()
}

/// TCP, and its flags are not those of the first packet of a connection: of FIN, SYN, RST, ACK only SYN.
pub(super) fn tcp_without_a_beginning() -> Match {
    let flags = vec![
        load(Header::Transport, 13, 1, 0),
        Expr::Mask { register: 0, mask: vec![0x17] },
        Expr::NotEqual { register: 0, value: vec![0x02] },
    ];
    [protocol(TCP), flags].concat()
}

const IPV4_FAMILY: u8 = libc::NFPROTO_IPV4 as u8;

pub(super) fn not_ipv4() -> Match {
    let family = vec![IPV4_FAMILY];
    vec![Expr::Meta { key: Meta::NetworkFamily, to: 0 }, Expr::NotEqual { register: 0, value: family }]
}

/// Before addresses are looked at in a table that sees IPv6 too.
pub(super) fn ipv4() -> Match {
    let family = vec![IPV4_FAMILY];
    vec![Expr::Meta { key: Meta::NetworkFamily, to: 0 }, Expr::Equal { register: 0, value: family }]
}

fn ct(key: Ct, bits: u32) -> Match {
    vec![
        Expr::Ct { key, to: 0 },
        Expr::Mask { register: 0, mask: bits.to_ne_bytes().to_vec() },
        Expr::NotEqual { register: 0, value: vec![0; 4] },
    ]
}

/// `ct state established,related`.
pub(super) fn of_a_live_connection() -> Match {
    ct(Ct::State, 2 | 4)
}

pub(super) fn of_no_connection() -> Match {
    ct(Ct::State, 1)
}

/// `ct status confirmed`: IPS_CONFIRMED, from the second packet on, whether or not the first was answered.
pub(super) fn of_a_known_connection() -> Match {
    ct(Ct::Status, 1 << 3)
}

/// `ct status dnat`: IPS_DST_NAT.
pub(super) fn forwarded_to_a_port() -> Match {
    ct(Ct::Status, 1 << 5)
}

/// `fib daddr type local`: RTN_LOCAL.
pub(super) fn to_this_host() -> Match {
    vec![Expr::DestinationType { to: 0 }, Expr::Equal { register: 0, value: 2_u32.to_ne_bytes().to_vec() }]
}

/// `iifname @set` and `oifname @set`.
pub(super) fn enters_by(set: &'static str) -> Match {
    vec![input_name(0), Expr::In { set, key: 0 }]
}

/// `iifgroup`: a port of ours, of which a bridge takes every frame.
pub(super) fn enters_by_a_bare_port() -> Match {
    let value = PORTS.to_ne_bytes().to_vec();
    vec![Expr::Meta { key: Meta::InputGroup, to: 0 }, Expr::Equal { register: 0, value }]
}

pub(super) fn leaves_by(set: &'static str) -> Match {
    vec![Expr::Meta { key: Meta::OutputName, to: 0 }, Expr::In { set, key: 0 }]
}

pub(super) fn count(counter: &'static str) -> Match {
    vec![Expr::Count(counter)]
}

pub(super) fn accept() -> Match {
    vec![Expr::Verdict(Verdict::Accept)]
}

pub(super) fn goto(chain: impl Into<String>) -> Match {
    vec![Expr::Verdict(Verdict::Goto(chain.into()))]
}

/// Counted under `reason` and for the guest, and dropped.
pub(super) fn deny(reason: &'static str) -> Match {
    [count(reason), goto("denied")].concat()
}
