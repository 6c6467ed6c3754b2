//! A guest that pretends to be another: at the port, before anything else. Each frame is written on the TAP as it is, with
//! br_netfilter on and off; each scenario comes through once its wall is down.

use std::net::Ipv4Addr;

use super::scene::{Scene, TEXT, Wall, Watcher};
use crate::lab::frames::{self, Arp, BROADCAST, Fragment, Frame, Mac};
use crate::lab::{Lab, WEB};

const ARP_OFF: &[Wall] = &[Wall::Switch, Wall::Chain("bridge", "foreign_address")];
const OWN_OFF: &[Wall] = &[Wall::Switch, Wall::Chain("bridge", "own_address")];
const MAC_OFF: &[Wall] = &[Wall::Switch, Wall::Rule("bridge", "port", "foreign MAC")];
const ADDRESS_OFF: &[Wall] = &[Wall::Chain("bridge", "foreign_address")];

fn has_text(frame: &Frame) -> bool {
    frame.has(TEXT)
}

/// ARP that says `ip` is at `mac`, as it is sent to all and to the victim.
fn claims(source: Mac, victim: Mac, victim_ip: Ipv4Addr, mac: Mac, ip: Ipv4Addr) -> Vec<Vec<u8>> {
    let says = |operation, target_mac, target_ip| Arp {
        operation,
        sender_mac: mac,
        sender_ip: ip,
        target_mac,
        target_ip,
    };
    vec![
        frames::arp(source, victim, &says(2, victim, victim_ip)),
        frames::arp(source, BROADCAST, &says(2, BROADCAST, ip)),
        frames::arp(source, BROADCAST, &says(1, [0; 6], victim_ip)),
    ]
}

#[test]
fn a_guest_cannot_answer_for_the_gateway() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let (a, v) = (&scene.attacker, &scene.victim);
    let (gateway, mac) = (a.gateway, a.mac);
    let frames = claims(a.mac, v.mac, v.ip, a.mac, gateway);
    let is_it =
        |frame: &Frame| frame.arp().is_some_and(|arp| arp.sender_ip == gateway && arp.sender_mac == mac);
    scene.stopped(&frames, is_it, ("bridge", "spoofed_arp"), ARP_OFF, Watcher::Victim);
}

#[test]
fn a_guest_cannot_answer_for_its_neighbour() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let (a, v) = (&scene.attacker, &scene.victim);
    let (neighbour, mac) = (v.ip, a.mac);
    let frames = claims(a.mac, a.gateway_mac, a.gateway, a.mac, neighbour);
    let is_it =
        |frame: &Frame| frame.arp().is_some_and(|arp| arp.sender_ip == neighbour && arp.sender_mac == mac);
    scene.stopped(&frames, is_it, ("bridge", "spoofed_arp"), ARP_OFF, Watcher::Bridge);
}

#[test]
fn an_arp_sender_that_is_not_the_frames_is_dropped() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let (a, v) = (&scene.attacker, &scene.victim);
    // Its own address at the victim's MAC, and at nobody's.
    let strange = [v.mac, [2, 0, 0, 0, 0, 9]];
    let frames: Vec<Vec<u8>> =
        strange.iter().flat_map(|mac| claims(a.mac, v.mac, v.ip, *mac, a.ip)).collect();
    let own = a.mac;
    let is_it = move |frame: &Frame| {
        frame.source() == own && frame.arp().is_some_and(|arp| strange.contains(&arp.sender_mac))
    };
    scene.stopped(&frames, is_it, ("bridge", "spoofed_arp"), ARP_OFF, Watcher::Victim);
}

#[test]
fn the_macs_of_the_gateway_and_of_a_neighbour_are_no_guests() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let (a, v) = (&scene.attacker, &scene.victim);
    let web: Ipv4Addr = WEB.parse().unwrap();
    let own_arp = |mac: Mac| claims(mac, v.mac, v.ip, mac, a.ip);
    let mut frames = Vec::new();
    for mac in [a.gateway_mac, v.mac, [2, 0, 0, 0, 0, 9]] {
        frames.push(frames::udp(mac, a.gateway_mac, a.ip, web, (4000, 4000), TEXT));
        frames.push(frames::udp(mac, v.mac, v.ip, web, (4000, 4000), TEXT));
        frames.extend(own_arp(mac));
    }
    let stolen = [a.gateway_mac, v.mac, [2, 0, 0, 0, 0, 9]];
    let attacker_ip = a.ip;
    let is_it = move |frame: &Frame| {
        has_text(frame)
            || frame.arp().is_some_and(|arp| arp.sender_ip == attacker_ip && stolen.contains(&arp.sender_mac))
    };
    scene.stopped(&frames, is_it, ("bridge", "spoofed_mac"), MAC_OFF, Watcher::Bridge);
}

#[test]
fn a_guest_sends_under_no_address_but_its_own() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let (a, v) = (&scene.attacker, &scene.victim);
    let foreign = [
        v.ip,
        a.gateway,
        Ipv4Addr::new(8, 8, 8, 8),
        Ipv4Addr::new(198, 51, 100, 1),
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::BROADCAST,
        Ipv4Addr::new(10, 100, 255, 255),
        Ipv4Addr::new(224, 0, 0, 1),
    ];
    let web: Ipv4Addr = WEB.parse().unwrap();
    let frames: Vec<Vec<u8>> = foreign
        .iter()
        .flat_map(|source| [(*source, web), (*source, v.ip), (*source, a.gateway)])
        .map(|(source, to)| frames::udp(a.mac, a.gateway_mac, source, to, (4000, 4000), TEXT))
        .collect();
    scene.stopped(&frames, has_text, ("bridge", "spoofed_address"), ADDRESS_OFF, Watcher::Bridge);
}

#[test]
fn a_tag_does_not_carry_a_spoofed_packet_past_the_wall() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let (a, v) = (&scene.attacker, &scene.victim);
    let web: Ipv4Addr = WEB.parse().unwrap();
    let packet = frames::udp(a.mac, a.gateway_mac, v.ip, web, (4000, 4000), TEXT);
    let honest = a.udp(web, (4000, 4000), TEXT);
    let arp = claims(a.mac, v.mac, v.ip, a.mac, a.gateway).remove(0);
    let mut sent = Vec::new();
    for frame in [packet, honest, arp] {
        // Priority-tagged, in a VLAN, and QinQ both ways round.
        sent.push(frames::tagged(&frame, 0x8100, 0));
        sent.push(frames::tagged(&frame, 0x8100, 5));
        sent.push(frames::tagged(&frame, 0x88a8, 0));
        sent.push(frames::tagged(&frames::tagged(&frame, 0x8100, 0), 0x88a8, 0));
        sent.push(frames::tagged(&frames::tagged(&frame, 0x8100, 7), 0x8100, 0));
    }
    let gateway = a.gateway.octets();
    let is_it = move |frame: &Frame| {
        has_text(frame)
            || (frame.source() == [6, 0, 10, 100, 0, 2]
                && frame.has(&gateway)
                && !frame.has(b"guestnet's lab")
                && frame.arp().is_none_or(|arp| arp.sender_ip.octets() == gateway))
    };
    scene.stopped(&sent, is_it, ("bridge", "other_ethertype"), ADDRESS_OFF, Watcher::Bridge);
}

#[test]
fn a_guest_cannot_be_a_dhcp_server_in_one_piece_or_in_several() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let (a, v) = (&scene.attacker, &scene.victim);
    let everybody = Ipv4Addr::BROADCAST;
    let mut offer = frames::dhcp_reply(2, v.mac, Ipv4Addr::new(10, 100, 66, 6), a.ip);
    offer.extend(TEXT);
    let datagram = frames::udp_payload(a.ip, everybody, (67, 68), &offer);
    let to_all = frames::ethernet(a.mac, BROADCAST, 0x0800, &frames::ipv4(a.ip, everybody, 17, &datagram));
    let to_victim = frames::ethernet(a.mac, v.mac, 0x0800, &frames::ipv4(a.ip, v.ip, 17, &datagram));
    let routed = a.udp(v.ip, (67, 68), &offer);
    scene.stopped(
        &[to_all, to_victim, routed],
        has_text,
        ("bridge", "dhcp_server"),
        OWN_OFF,
        Watcher::Victim,
    );
}

#[test]
fn fragments_of_an_offer_do_not_pass_either() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let (a, v) = (&scene.attacker, &scene.victim);
    let everybody = Ipv4Addr::BROADCAST;
    let mut offer = frames::dhcp_reply(2, v.mac, Ipv4Addr::new(10, 100, 66, 6), a.ip);
    offer.extend(TEXT);
    let datagram = frames::udp_payload(a.ip, everybody, (67, 68), &offer);
    // The ports are in the first piece; what comes after has none.
    let piece = |more, offset: u16, bytes: &[u8]| {
        let packet = frames::ipv4_fragment(a.ip, everybody, 17, Fragment { more, offset }, bytes);
        frames::ethernet(a.mac, BROADCAST, 0x0800, &packet)
    };
    let rest = piece(false, 10, &datagram[80..]);
    let tiny = [piece(true, 1, &datagram[8..16]), piece(false, 2, &datagram[16..])];
    let frames = [vec![rest], tiny.to_vec()].concat();
    scene.stopped(&frames, has_text, ("bridge", "multicast"), OWN_OFF, Watcher::Victim);
}

#[test]
fn a_guest_cannot_be_an_ipv6_router() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let a = &scene.attacker;
    // A router advertisement (RFC 4861 section 4.2) to all nodes.
    let mut packet = vec![0x60, 0, 0, 0, 0, 16 + TEXT.len() as u8, 58, 255];
    packet.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend([134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    packet.extend(TEXT);
    let all_nodes = [0x33, 0x33, 0, 0, 0, 1];
    let frames = [
        frames::ethernet(a.mac, all_nodes, 0x86dd, &packet),
        frames::ethernet(a.mac, a.gateway_mac, 0x86dd, &packet),
    ];
    scene.stopped(&frames, has_text, ("bridge", "other_ethertype"), ARP_OFF, Watcher::Bridge);
}

#[test]
fn what_is_neither_ipv4_nor_arp_stays_at_the_port() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let (a, v) = (&scene.attacker, &scene.victim);
    // LLC, EAPOL, PPPoE, MPLS, wake-on-LAN, and a type that nobody has.
    let kinds = [0x0040, 0x888e, 0x8863, 0x8847, 0x0842, 0xfffe];
    let frames: Vec<Vec<u8>> =
        kinds.iter().map(|kind| frames::ethernet(a.mac, v.mac, *kind, &[TEXT, &[0; 40]].concat())).collect();
    scene.stopped(&frames, has_text, ("bridge", "other_ethertype"), ARP_OFF, Watcher::Victim);
}

#[test]
fn a_frame_to_a_neighbours_mac_is_not_switched() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let (a, v) = (&scene.attacker, &scene.victim);
    let frames = [frames::udp(a.mac, v.mac, a.ip, v.ip, (4000, 4000), TEXT)];
    scene.stopped(&frames, has_text, ("bridge", "not_to_gateway"), OWN_OFF, Watcher::Victim);
}

#[test]
fn floods_to_everybody_reach_nobody() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let a = &scene.attacker;
    let groups: [(Mac, Ipv4Addr); 4] = [
        (BROADCAST, Ipv4Addr::BROADCAST),
        (BROADCAST, Ipv4Addr::new(10, 100, 255, 255)),
        ([1, 0, 0x5e, 0, 0, 0xfb], Ipv4Addr::new(224, 0, 0, 251)),
        ([1, 0, 0x5e, 0x7f, 0xff, 0xfa], Ipv4Addr::new(239, 255, 255, 250)),
    ];
    let frames: Vec<Vec<u8>> = (0..1000)
        .map(|n| groups[n % groups.len()])
        .map(|(mac, to)| frames::udp(a.mac, mac, a.ip, to, (4000, 4000), TEXT))
        .collect();
    scene.stopped(&frames, has_text, ("bridge", "multicast"), OWN_OFF, Watcher::Victim);
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
    lldp.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
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
    let (a, web) = (&scene.attacker, WEB.parse().unwrap());
    scene.bridge.drain();
    let own_arp = claims(a.mac, a.gateway_mac, a.gateway, a.mac, a.ip).remove(2);
    for frame in
        [a.udp(web, (4000, 4000), TEXT), a.echo(a.gateway, 1), own_arp, frames::dhcp_discover(a.mac, 7)]
    {
        a.send(&frame);
    }
    // The victim's entries are gone too; it is the other side of the wall that shows when all has been through.
    let counted = || scene.counted("bridge", "spoofed_mac");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while counted() < 4 && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(counted(), 4);
    let seen = scene.bridge.drain();
    assert!(seen.iter().all(|frame| frame.source() != a.mac), "{seen:?}");
}

#[test]
fn a_guest_that_means_well_meets_no_wall() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    let a = &scene.attacker;
    let web: Ipv4Addr = WEB.parse().unwrap();
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
        assert!(a.ping(web, std::time::Duration::from_secs(5)).is_some());
        a.send(&a.udp(web, (4001, 4001), TEXT));
        assert!(scene.inet.wait(std::time::Duration::from_secs(5), has_text).is_some());
    }
    let drops = lab.on_host("nft", &["list", "counters"]);
    let dropped: Vec<&str> =
        drops.lines().filter(|line| line.contains("packets") && !line.contains("packets 0 ")).collect();
    assert_eq!(dropped, Vec::<&str>::new(), "{drops}");
}
