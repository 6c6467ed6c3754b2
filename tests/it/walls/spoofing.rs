//! A guest that pretends to be another: at the port, before anything else. Each frame is written on the TAP as it is, with
//! br_netfilter on and off; each scenario comes through once its wall is down.

use std::net::Ipv4Addr;

use super::scene::{PATIENCE, Scene, TEXT, Wall, Watcher, until, web};
use crate::lab::Lab;
use crate::lab::frames::{self, Arp, BROADCAST, Fragment, Frame, Mac};

pub(super) const ARP_OFF: &[Wall] = &[Wall::Switch, Wall::Chain("bridge", "foreign_address")];
pub(super) const OWN_OFF: &[Wall] = &[Wall::Switch, Wall::Chain("bridge", "own_address")];
pub(super) const MAC_OFF: &[Wall] = &[Wall::Switch, Wall::Rule("bridge", "port", "foreign MAC")];
pub(super) const ADDRESS_OFF: &[Wall] = &[Wall::Chain("bridge", "foreign_address")];

/// Who is who in a scene: the first addresses of the subnet, with MACs that go with them.
#[derive(Clone, Copy)]
pub(super) struct Host {
    pub(super) mac: Mac,
    pub(super) ip: Ipv4Addr,
}

const fn host(last: u8) -> Host {
    Host { mac: [6, 0, 10, 100, 0, last], ip: Ipv4Addr::new(10, 100, 0, last) }
}

pub(super) const GATEWAY: Host = host(1);
pub(super) const ATTACKER: Host = host(2);
pub(super) const VICTIM: Host = host(3);
const NOBODY: Mac = [2, 0, 0, 0, 0, 9];

/// All of `frames` are dropped at the attacker's port and counted under `reason`, and nobody sees what `is_it` knows; with
/// `walls` down, `by` sees it.
pub(super) fn stopped(
    frames: &[Vec<u8>],
    is_it: impl Fn(&Frame) -> bool,
    reason: &str,
    walls: &[Wall],
    by: Watcher,
) {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let (a, v) = (&scene.attacker, &scene.victim);
    assert_eq!((a.mac, a.ip, v.mac, v.ip), (ATTACKER.mac, ATTACKER.ip, VICTIM.mac, VICTIM.ip));
    assert_eq!((a.gateway_mac, a.gateway), (GATEWAY.mac, GATEWAY.ip));
    scene.stopped(frames, is_it, ("bridge", reason), walls, by);
}

fn has_text(frame: &Frame) -> bool {
    frame.has(TEXT)
}

/// UDP to the internet by the gateway, under any MAC and address.
fn udp_as(mac: Mac, ip: Ipv4Addr) -> Vec<u8> {
    frames::udp(mac, GATEWAY.mac, ip, web(), (4000, 4000), TEXT)
}

/// ARP in a frame of `source` that says `ip` is at `mac`: to `to` alone, to all, and as a question.
fn claims(source: Mac, to: Host, mac: Mac, ip: Ipv4Addr) -> Vec<Vec<u8>> {
    let says = |operation, target_mac, target_ip| Arp {
        operation,
        sender_mac: mac,
        sender_ip: ip,
        target_mac,
        target_ip,
    };
    vec![
        frames::arp(source, to.mac, &says(2, to.mac, to.ip)),
        frames::arp(source, BROADCAST, &says(2, BROADCAST, ip)),
        frames::arp(source, BROADCAST, &says(1, [0; 6], to.ip)),
    ]
}

/// Whether a frame says that one of `macs` has `ip`.
fn is_claim(frame: &Frame, macs: &[Mac], ip: Ipv4Addr) -> bool {
    frame.arp().is_some_and(|arp| arp.sender_ip == ip && macs.contains(&arp.sender_mac))
}

#[test]
fn a_guest_cannot_answer_for_the_gateway() {
    let frames = claims(ATTACKER.mac, VICTIM, ATTACKER.mac, GATEWAY.ip);
    let is_it = |frame: &Frame| is_claim(frame, &[ATTACKER.mac], GATEWAY.ip);
    stopped(&frames, is_it, "spoofed_arp", ARP_OFF, Watcher::Victim);
}

#[test]
fn a_guest_cannot_answer_for_its_neighbour() {
    let frames = claims(ATTACKER.mac, GATEWAY, ATTACKER.mac, VICTIM.ip);
    let is_it = |frame: &Frame| is_claim(frame, &[ATTACKER.mac], VICTIM.ip);
    stopped(&frames, is_it, "spoofed_arp", ARP_OFF, Watcher::Bridge);
}

#[test]
fn an_arp_sender_that_is_not_the_frames_is_dropped() {
    // Its own address at the victim's MAC, and at nobody's.
    let strange = [VICTIM.mac, NOBODY];
    let frames: Vec<Vec<u8>> =
        strange.iter().flat_map(|mac| claims(ATTACKER.mac, VICTIM, *mac, ATTACKER.ip)).collect();
    let is_it = |frame: &Frame| frame.source() == ATTACKER.mac && is_claim(frame, &strange, ATTACKER.ip);
    stopped(&frames, is_it, "spoofed_arp", ARP_OFF, Watcher::Victim);
}

#[test]
fn the_macs_of_the_gateway_and_of_a_neighbour_are_no_guests() {
    let stolen = [GATEWAY.mac, VICTIM.mac, NOBODY];
    let of = |mac: Mac| {
        [vec![udp_as(mac, ATTACKER.ip), udp_as(mac, VICTIM.ip)], claims(mac, VICTIM, mac, ATTACKER.ip)]
            .concat()
    };
    let frames: Vec<Vec<u8>> = stolen.into_iter().flat_map(of).collect();
    let is_it = |frame: &Frame| has_text(frame) || is_claim(frame, &stolen, ATTACKER.ip);
    stopped(&frames, is_it, "spoofed_mac", MAC_OFF, Watcher::Bridge);
}

#[test]
fn a_guest_sends_under_no_address_but_its_own() {
    let foreign = [
        VICTIM.ip,
        GATEWAY.ip,
        Ipv4Addr::new(8, 8, 8, 8),
        Ipv4Addr::new(198, 51, 100, 1),
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::BROADCAST,
        Ipv4Addr::new(10, 100, 255, 255),
        Ipv4Addr::new(224, 0, 0, 1),
    ];
    let to = [web(), VICTIM.ip, GATEWAY.ip];
    let frames: Vec<Vec<u8>> = foreign
        .iter()
        .flat_map(|source| to.map(|to| (*source, to)))
        .map(|(source, to)| frames::udp(ATTACKER.mac, GATEWAY.mac, source, to, (4000, 4000), TEXT))
        .collect();
    stopped(&frames, has_text, "spoofed_address", ADDRESS_OFF, Watcher::Bridge);
}

#[test]
fn a_tag_does_not_carry_a_spoofed_packet_past_the_wall() {
    let spoofed = udp_as(ATTACKER.mac, VICTIM.ip);
    let honest = udp_as(ATTACKER.mac, ATTACKER.ip);
    let arp = claims(ATTACKER.mac, VICTIM, ATTACKER.mac, GATEWAY.ip).remove(0);
    let mut sent = Vec::new();
    for frame in [spoofed, honest, arp] {
        // Priority-tagged, in a VLAN, and QinQ both ways round.
        sent.push(frames::tagged(&frame, 0x8100, 0));
        sent.push(frames::tagged(&frame, 0x8100, 5));
        sent.push(frames::tagged(&frame, 0x88a8, 0));
        sent.push(frames::tagged(&frames::tagged(&frame, 0x8100, 0), 0x88a8, 0));
        sent.push(frames::tagged(&frames::tagged(&frame, 0x8100, 7), 0x8100, 0));
    }
    // Tagged or not: the kernel takes tags off, and the ARP packet has no text.
    let says = [&ATTACKER.mac[..], &GATEWAY.ip.octets()].concat();
    let is_it = |frame: &Frame| has_text(frame) || frame.has(&says);
    stopped(&sent, is_it, "other_ethertype", ADDRESS_OFF, Watcher::Bridge);
}

/// A DHCP server's OFFER in a datagram of the attacker to everybody.
fn offer() -> Vec<u8> {
    [frames::dhcp_reply(2, VICTIM.mac, Ipv4Addr::new(10, 100, 66, 6), ATTACKER.ip), TEXT.to_vec()].concat()
}

#[test]
fn a_guest_cannot_be_a_dhcp_server_in_one_piece_or_in_several() {
    let datagram = frames::udp_payload(ATTACKER.ip, Ipv4Addr::BROADCAST, (67, 68), &offer());
    let packet = |to| frames::ipv4(ATTACKER.ip, to, 17, &datagram);
    let frames = [
        frames::ethernet(ATTACKER.mac, BROADCAST, 0x0800, &packet(Ipv4Addr::BROADCAST)),
        frames::ethernet(ATTACKER.mac, VICTIM.mac, 0x0800, &packet(VICTIM.ip)),
        frames::udp(ATTACKER.mac, GATEWAY.mac, ATTACKER.ip, VICTIM.ip, (67, 68), &offer()),
    ];
    stopped(&frames, has_text, "dhcp_server", OWN_OFF, Watcher::Victim);
}

#[test]
fn fragments_of_an_offer_do_not_pass_either() {
    let datagram = frames::udp_payload(ATTACKER.ip, Ipv4Addr::BROADCAST, (67, 68), &offer());
    // The ports are in the first piece; what comes after has none.
    let piece = |more, offset: u16, bytes: &[u8]| {
        let fragment = Fragment { more, offset };
        let packet = frames::ipv4_fragment(ATTACKER.ip, Ipv4Addr::BROADCAST, 17, fragment, bytes);
        frames::ethernet(ATTACKER.mac, BROADCAST, 0x0800, &packet)
    };
    let frames = [
        piece(false, 10, &datagram[80..]),
        piece(true, 1, &datagram[8..16]),
        piece(false, 2, &datagram[16..]),
    ];
    stopped(&frames, has_text, "multicast", OWN_OFF, Watcher::Victim);
}

#[test]
fn a_guest_cannot_be_an_ipv6_router() {
    // A router advertisement (RFC 4861 section 4.2) to all nodes.
    let mut packet = vec![0x60, 0, 0, 0, 0, 16 + TEXT.len() as u8, 58, 255];
    packet.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend([134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    packet.extend(TEXT);
    let frames =
        [[0x33, 0x33, 0, 0, 0, 1], GATEWAY.mac].map(|to| frames::ethernet(ATTACKER.mac, to, 0x86dd, &packet));
    stopped(&frames, has_text, "other_ethertype", ARP_OFF, Watcher::Bridge);
}

#[test]
fn what_is_neither_ipv4_nor_arp_stays_at_the_port() {
    // LLC, EAPOL, PPPoE, MPLS, wake-on-LAN, and a type that nobody has.
    let kinds = [0x0040, 0x888e, 0x8863, 0x8847, 0x0842, 0xfffe];
    let payload = [TEXT, &[0; 40]].concat();
    let frames = kinds.map(|kind| frames::ethernet(ATTACKER.mac, VICTIM.mac, kind, &payload));
    stopped(&frames, has_text, "other_ethertype", ARP_OFF, Watcher::Victim);
}

#[test]
fn a_frame_to_a_neighbours_mac_is_not_switched() {
    let frame = frames::udp(ATTACKER.mac, VICTIM.mac, ATTACKER.ip, VICTIM.ip, (4000, 4000), TEXT);
    stopped(&[frame], has_text, "not_to_gateway", OWN_OFF, Watcher::Victim);
}

#[test]
fn floods_to_everybody_reach_nobody() {
    let groups: [(Mac, Ipv4Addr); 4] = [
        (BROADCAST, Ipv4Addr::BROADCAST),
        (BROADCAST, Ipv4Addr::new(10, 100, 255, 255)),
        ([1, 0, 0x5e, 0, 0, 0xfb], Ipv4Addr::new(224, 0, 0, 251)),
        ([1, 0, 0x5e, 0x7f, 0xff, 0xfa], Ipv4Addr::new(239, 255, 255, 250)),
    ];
    let frames: Vec<Vec<u8>> = (0..1000)
        .map(|n| groups[n % groups.len()])
        .map(|(mac, to)| frames::udp(ATTACKER.mac, mac, ATTACKER.ip, to, (4000, 4000), TEXT))
        .collect();
    stopped(&frames, has_text, "multicast", OWN_OFF, Watcher::Victim);
}

#[test]
fn frames_that_bypass_the_bridges_prerouting_do_not_reach_the_host() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let a = &scene.attacker;
    // LLDP, 802.1X and the like: the bridge hands them to the host as frames of the port (IEEE 802.1Q, 8.6.3).
    let frames: Vec<Vec<u8>> = [0x0e, 0x03, 0x02]
        .iter()
        .map(|last| frames::ethernet(a.mac, [1, 0x80, 0xc2, 0, 0, *last], 0x88cc, &[TEXT, &[0; 40]].concat()))
        .collect();
    let counted = || scene.counted("bridge", "link_local") + scene.counted("bridge", "other_ethertype");
    for frame in &frames {
        a.send(frame);
    }
    a.settle();
    assert_eq!(counted(), 3);
    scene.take_down(&[Wall::Host("ip link set dev br-vms type bridge group_fwd_mask 0")]);
    let lldp = scene.lab.host.run(|| {
        socket2::Socket::new(
            socket2::Domain::PACKET,
            socket2::Type::RAW,
            Some(socket2::Protocol::from(i32::from(0x88cc_u16.to_be()))),
        )
        .unwrap()
    });
    lldp.set_read_timeout(Some(PATIENCE)).unwrap();
    scene.attacker.send(&frames[0]);
    let mut buffer = [std::mem::MaybeUninit::uninit(); 2000];
    assert!(lldp.recv(&mut buffer).is_ok(), "with the wall down an LLDP daemon does not see it either");
}

#[test]
fn a_port_whose_guest_is_not_known_lets_nothing_through() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    scene.take_down(&[
        Wall::Host("nft flush set bridge guestnet bindings"),
        Wall::Host("nft flush map bridge guestnet macs"),
    ]);
    scene.bridge.drain();
    let own_arp = claims(ATTACKER.mac, GATEWAY, ATTACKER.mac, ATTACKER.ip).remove(2);
    let frames = [
        udp_as(ATTACKER.mac, ATTACKER.ip),
        scene.attacker.echo(GATEWAY.ip, 1),
        own_arp,
        frames::dhcp_discover(ATTACKER.mac, 7),
    ];
    frames.iter().for_each(|frame| scene.attacker.send(frame));
    // The victim's entries are gone too; it is the other side of the wall that shows when all has been through.
    until("not all of it was counted", || scene.counted("bridge", "spoofed_mac") == 4);
    let seen = scene.bridge.drain();
    assert!(seen.iter().all(|frame| frame.source() != ATTACKER.mac), "{seen:?}");
    scene.comes_through(&frames, has_text, &[Wall::Rule("bridge", "port", "foreign MAC")], Watcher::Bridge);
}

#[test]
fn a_guest_that_means_well_meets_no_wall() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    let a = &scene.attacker;
    for on in [true, false] {
        scene.br_netfilter(on);
        a.settle();
        // DHCP of a guest that has no address yet, and one that has.
        a.send(&frames::dhcp_discover(a.mac, 7));
        a.expect("an OFFER", |frame| {
            frame.ipv4().is_some_and(|(_, from, _, rest)| from == a.gateway && rest[..2] == [0, 67])
        });
        // ARP for the gateway, and for its own address before it takes it.
        let asks = |sender_ip, target_ip| Arp {
            operation: 1,
            sender_mac: a.mac,
            sender_ip,
            target_mac: [0; 6],
            target_ip,
        };
        a.send(&frames::arp(a.mac, BROADCAST, &asks(Ipv4Addr::UNSPECIFIED, a.ip)));
        a.send(&frames::arp(a.mac, BROADCAST, &asks(a.ip, a.gateway)));
        let answer = a.expect("the gateway's ARP", |frame| frame.arp().is_some_and(|arp| arp.operation == 2));
        assert_eq!(answer.arp().unwrap().sender_mac, a.gateway_mac);
        assert!(a.ping(web(), PATIENCE).is_some());
        a.send(&a.udp(web(), (4001, 4001), TEXT));
        assert!(scene.inet.wait(PATIENCE, has_text).is_some());
    }
    let drops = lab.on_host("nft", &["list", "counters"]);
    let dropped: Vec<&str> =
        drops.lines().filter(|line| line.contains("packets") && !line.contains("packets 0 ")).collect();
    assert_eq!(dropped, Vec::<&str>::new(), "{drops}");
}
