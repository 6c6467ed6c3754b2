//! The same attacks in frames that a library of others has made: what our own frames have in common, it has not.

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder, VlanId};

use super::scene::{Scene, TEXT, Watcher, web};
use super::spoofing::{ADDRESS_OFF, ARP_OFF, ATTACKER, GATEWAY, MAC_OFF, OWN_OFF, VICTIM, stopped};
use crate::lab::Lab;
use crate::lab::frames::{BROADCAST, Frame, Mac, icmp_message};

type Address = [u8; 4];

fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes);
    bytes
}

/// UDP, TCP with options, and an echo request.
fn packets(source: Mac, to: Mac, from: Address, destination: Address) -> Vec<Vec<u8>> {
    use etherparse::TcpOptionElement::{MaximumSegmentSize, SelectiveAcknowledgementPermitted, WindowScale};
    let ip = || PacketBuilder::ethernet2(source, to).ipv4(from, destination, 64);
    let options = [MaximumSegmentSize(1460), SelectiveAcknowledgementPermitted, WindowScale(7)];
    vec![
        written(|to| ip().udp(4000, 4000).write(to, TEXT).unwrap()),
        written(|to| ip().tcp(4000, 80, 1, 64_240).syn().options(&options).unwrap().write(to, TEXT).unwrap()),
        written(|to| ip().icmpv4_echo_request(1, 1).write(to, TEXT).unwrap()),
    ]
}

fn has_text(frame: &Frame) -> bool {
    frame.has(TEXT)
}

#[test]
fn a_foreign_address_or_mac_stays_at_the_port() {
    let web = web().octets();
    let foreign = [VICTIM.ip.octets(), GATEWAY.ip.octets(), [8, 8, 8, 8]];
    let under_address: Vec<Vec<u8>> =
        foreign.iter().flat_map(|from| packets(ATTACKER.mac, GATEWAY.mac, *from, web)).collect();
    stopped(&under_address, has_text, "spoofed_address", ADDRESS_OFF, Watcher::Bridge);
    let under_mac =
        [GATEWAY.mac, VICTIM.mac].map(|mac| packets(mac, GATEWAY.mac, ATTACKER.ip.octets(), web)).concat();
    stopped(&under_mac, has_text, "spoofed_mac", MAC_OFF, Watcher::Bridge);
}

#[test]
fn a_frame_to_a_neighbour_is_not_switched() {
    let frames = packets(ATTACKER.mac, VICTIM.mac, ATTACKER.ip.octets(), VICTIM.ip.octets());
    stopped(&frames, has_text, "not_to_gateway", OWN_OFF, Watcher::Victim);
}

#[test]
fn arp_for_the_gateway_is_dropped() {
    let claim = |operation, target: Mac| {
        let arp = ArpPacket::new(
            ArpHardwareId::ETHERNET,
            EtherType::IPV4,
            operation,
            &ATTACKER.mac,
            &GATEWAY.ip.octets(),
            &target,
            &VICTIM.ip.octets(),
        )
        .unwrap();
        written(|to| PacketBuilder::ethernet2(ATTACKER.mac, target).arp(arp).write(to).unwrap())
    };
    let frames = [
        claim(ArpOperation::REPLY, VICTIM.mac),
        claim(ArpOperation::REPLY, BROADCAST),
        claim(ArpOperation::REQUEST, BROADCAST),
    ];
    let is_it = |frame: &Frame| {
        frame.arp().is_some_and(|arp| arp.sender_ip == GATEWAY.ip && arp.sender_mac == ATTACKER.mac)
    };
    stopped(&frames, is_it, "spoofed_arp", ARP_OFF, Watcher::Victim);
}

#[test]
fn tags_carry_nothing_past_the_wall() {
    let vlan = |number| VlanId::try_new(number).unwrap();
    let frames: Vec<Vec<u8>> = [VICTIM.ip, ATTACKER.ip]
        .iter()
        .flat_map(|from| {
            let ethernet = || PacketBuilder::ethernet2(ATTACKER.mac, GATEWAY.mac);
            let (from, to) = (from.octets(), web().octets());
            [
                written(|bytes| {
                    let tagged = ethernet().single_vlan(vlan(0));
                    tagged.ipv4(from, to, 64).udp(4000, 4000).write(bytes, TEXT).unwrap();
                }),
                written(|bytes| {
                    let tagged = ethernet().double_vlan(vlan(0), vlan(0));
                    tagged.ipv4(from, to, 64).udp(4000, 4000).write(bytes, TEXT).unwrap();
                }),
            ]
        })
        .collect();
    stopped(&frames, has_text, "other_ethertype", ADDRESS_OFF, Watcher::Bridge);
}

#[test]
fn what_the_lab_writes_is_what_others_write() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    let a = &scene.attacker;
    let [udp, _, echo] = packets(a.mac, a.gateway_mac, a.ip.octets(), web().octets()).try_into().unwrap();
    // But for the id of the IPv4 header and its checksum, which theirs leaves at 0, and "don't fragment".
    let same = |ours: Vec<u8>, theirs: &[u8]| {
        let about = |frame: &[u8]| [&frame[..18], &frame[22..24], &frame[26..]].concat();
        assert_eq!(about(&ours), about(theirs));
    };
    same(a.udp(web(), (4000, 4000), TEXT), &udp);
    let mut message = icmp_message(8, 1, TEXT);
    message[4..6].copy_from_slice(&[0, 1]);
    assert_eq!(echo[echo.len() - message.len()..][4..], message[4..]);
    // And theirs, honest, is what passes.
    a.send(&udp);
    assert!(scene.inet.wait(super::scene::PATIENCE, super::scene::left_the_host).is_some());
}
