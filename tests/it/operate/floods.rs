//! What a guest can make the service write down: a bounded number of lines, whatever it sends and however much.

use std::net::Ipv4Addr;

use crate::lab::attacker::Attacker;
use crate::lab::frames::{self, Arp, BROADCAST};
use crate::lab::{Daemon, Lab};
use crate::slots::eventually;

/// Frames of each kind: at a line each, thousands of lines.
const FRAMES: usize = 5_000;

/// A DHCPDISCOVER or so (RFC 2131 section 2) of `mac`, with options that are whole or cut off.
fn dhcp(mac: frames::Mac, options: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 236];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[28..34].copy_from_slice(&mac);
    [message.as_slice(), &[99, 130, 83, 99], options].concat()
}

#[test]
fn a_guests_flood_writes_a_handful_of_lines() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let guest = Attacker::new(&lab, &daemon.json(&["vm", "create", "a"]));
    let (nobody, stranger) = (Ipv4Addr::UNSPECIFIED, [2, 0, 0, 0, 0, 9]);
    let to_dhcp =
        |mac, message: &[u8]| frames::udp(mac, BROADCAST, nobody, Ipv4Addr::BROADCAST, (68, 67), message);
    let claim = Arp {
        operation: 2,
        sender_mac: guest.mac,
        sender_ip: guest.gateway,
        target_mac: guest.mac,
        target_ip: guest.gateway,
    };
    let kinds = [
        // Leases asked for, declined, asked for in a way that nobody understands, and for another's MAC.
        to_dhcp(guest.mac, &dhcp(guest.mac, &[53, 1, 1, 255])),
        to_dhcp(guest.mac, &dhcp(guest.mac, &[53, 1, 4, 50, 4, 10, 100, 0, 2, 54, 4, 10, 100, 0, 1, 255])),
        to_dhcp(guest.mac, &dhcp(guest.mac, &[53, 200, 1])),
        to_dhcp(guest.mac, &dhcp(stranger, &[53, 1, 1, 255])),
        to_dhcp(stranger, &dhcp(stranger, &[53, 1, 1, 255])),
        // Of another address, of the gateway's, and what is no question.
        frames::udp(guest.mac, guest.gateway_mac, [10, 100, 9, 9].into(), guest.gateway, (1, 1), b"x"),
        frames::arp(guest.mac, BROADCAST, &claim),
        guest.udp(guest.gateway, (4_053, 53), b"no question at all"),
        guest.udp(
            guest.gateway,
            (4_053, 53),
            b"\x67\x6e\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02no\x03way\x00\x00\x01\x00\x01",
        ),
    ];
    // What a terminal or the journal gets as it comes; debug is for who asks for it.
    let lines = || {
        let log = daemon.log();
        log.lines().filter(|line| !line.contains("\"DEBUG\"") && !line.contains("\"TRACE\"")).count()
    };
    let before = lines();
    for frame in &kinds {
        (0..FRAMES).for_each(|_| guest.send(frame));
    }
    eventually("the walls have told of it", || {
        daemon.guestnet(&["events", "--no-follow"]).contains("spoof_denied")
    });
    // What it sent is through, and its limits let it be heard again.
    eventually("the gateway answers it", || {
        guest.ping(guest.gateway, std::time::Duration::from_secs(1)).is_some()
    });
    let (after, events) = (lines(), daemon.guestnet(&["events", "--no-follow"]).lines().count());
    assert!(
        after - before <= 40,
        "{} lines for {} frames:\n{}",
        after - before,
        kinds.len() * FRAMES,
        daemon.log()
    );
    assert!(events <= 60, "{events} events");
}
