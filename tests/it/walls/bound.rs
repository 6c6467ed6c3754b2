//! When a guest comes and when it goes: nothing passes before its walls stand, and nothing of it is left to who comes after.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};

use super::scene::{PATIENCE, Scene, TEXT, Wall, counted, until, web};
use crate::crash::Faults;
use crate::lab::attacker::Attacker;
use crate::lab::frames::{self, Arp, BROADCAST, Frame};
use crate::lab::sniffer::Sniffer;
use crate::lab::{Lab, Namespace};

/// The numbers of the slots that wait for a VM, once there are so many: those whose port is there, which is made last.
fn waiting(lab: &Lab, count: usize) -> Vec<String> {
    let mut found = Vec::new();
    until("not as many slots wait as should", || {
        let taken = lab.on_host("find", &["/run/netns", "-type", "l", "-printf", "%l\n"]);
        let ports = lab.on_host("ip", &["-o", "link", "show", "master", "br-vms", "up"]);
        let number = |line: &str| Some(line.split(": gv").nth(1)?.split('@').next()?.to_owned());
        found = ports.lines().filter_map(number).collect();
        found.retain(|slot| !taken.lines().any(|line| line == format!("guestnet-{slot}")));
        found.len() == count
    });
    found
}

/// What the guest that will be 10.100.0.`last` says, and what it must not say as its neighbour.
fn honest_and_spoofed(guest: &Attacker, neighbour: &Attacker) -> [Vec<u8>; 4] {
    let claim = Arp {
        operation: 2,
        sender_mac: guest.mac,
        sender_ip: guest.gateway,
        target_mac: [0; 6],
        target_ip: guest.gateway,
    };
    [
        guest.udp(web(), (4000, 4000), b"an honest word"),
        frames::udp(guest.mac, guest.gateway_mac, neighbour.ip, web(), (4000, 4000), TEXT),
        frames::udp(neighbour.mac, guest.gateway_mac, neighbour.ip, web(), (4000, 4000), TEXT),
        frames::arp(guest.mac, BROADCAST, &claim),
    ]
}

fn is_spoofed(frame: &Frame, gateway: std::net::Ipv4Addr, own: frames::Mac) -> bool {
    frame.has(TEXT) || frame.arp().is_some_and(|arp| arp.sender_ip == gateway && arp.sender_mac == own)
}

#[test]
fn a_port_lets_nothing_through_before_its_guests_walls_stand_and_nothing_wrong_ever() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    // VMMs that have a TAP open before there is a VM, and guests that know what one of them will be.
    let early: Vec<Attacker> = waiting(&lab, 4)
        .iter()
        .map(|slot| Attacker::early(&lab, slot, [10, 100, 0, 4].into(), &scene.victim))
        .collect();
    let frames = honest_and_spoofed(&early[0], &scene.victim);
    let (own, gateway) = (early[0].mac, early[0].gateway);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                early.iter().for_each(|guest| frames.iter().for_each(|frame| guest.send(frame)));
                std::thread::sleep(std::time::Duration::from_micros(400));
            }
        });
        let sent = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until("what it says is not counted", || scene.counted("bridge", "spoofed_mac") > 400);
            let seen = scene.bridge.drain();
            assert!(seen.iter().all(|frame| frame.source() != own && !frame.has(TEXT)), "{seen:?}");
            let vm = scene.json(&["vm", "create", "early", "--ip", "10.100.0.4"]);
            let ours = |guest: &&Attacker| vm["host_device"] == guest.port.as_str();
            assert_eq!(early.iter().filter(ours).count(), 1, "{vm}");
            // Now that one may speak for itself, and for nobody else.
            let mut wrong = Vec::new();
            let mut honest = 0;
            until("it may not speak though its walls stand", || {
                for frame in scene.bridge.drain() {
                    honest += usize::from(frame.has(b"an honest word"));
                    if is_spoofed(&frame, gateway, own) {
                        wrong.push(frame);
                    }
                }
                honest > 100
            });
            assert!(wrong.is_empty(), "{wrong:?}");
            assert!(
                scene.counted("bridge", "spoofed_address") > 0 && scene.counted("bridge", "spoofed_arp") > 0
            );
        }));
        stop.store(true, Ordering::Relaxed);
        sent.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    scene.take_down(&[Wall::Chain("bridge", "port")]);
    early.iter().for_each(|guest| frames.iter().for_each(|frame| guest.send(frame)));
    let seen = scene.bridge.wait(PATIENCE, |frame| is_spoofed(frame, gateway, own));
    assert!(seen.is_some(), "with the wall down it does not pass either");
}

#[test]
fn a_service_that_dies_while_it_binds_a_guest_leaves_no_port_open() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "[[network]]\nenable_rate_limit = false\npool_size = 1\n");
    let daemon = faults.start();
    let victim = Attacker::new(&lab, &daemon.json(&["vm", "create", "victim"]));
    let slot = waiting(&lab, 1).remove(0);
    let early = Attacker::early(&lab, &slot, [10, 100, 0, 3].into(), &victim);
    let frames = honest_and_spoofed(&early, &victim);
    let bridge = Sniffer::new(&lab.host, "br-vms");
    // Its entries in the walls are there, what opens its port is not.
    faults.inject("before", "forwarding", "kill");
    assert!(!daemon.client(&["vm", "create", "early", "--ip", "10.100.0.3"]).status.success());
    assert!(faults.happened());
    let before = counted(&lab, "bridge", "spoofed_address");
    until("what it says is not counted", || {
        frames.iter().for_each(|frame| early.send(frame));
        counted(&lab, "bridge", "spoofed_address") > before + 10
    });
    let seen = bridge.drain();
    assert!(seen.iter().all(|frame| frame.source() != early.mac && !frame.has(TEXT)), "{seen:?}");
    // The lock of the port is what holds the honest ones back.
    lab.on_host("bridge", &["link", "set", "dev", &early.port, "locked", "off"]);
    early.send(&frames[0]);
    assert!(bridge.wait(PATIENCE, |frame| frame.has(b"an honest word")).is_some());
    drop(daemon);
}

/// A datagram to a port of the host, from the port of the internet that a guest has talked to.
fn knocks(inet: &Namespace, socket: &UdpSocket, to: (&str, u16)) -> std::io::Result<usize> {
    inet.run(|| socket.send_to(TEXT, to))
}

#[test]
fn who_gets_an_address_gets_nothing_of_who_had_it_before() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    let server = lab.inet.run(|| UdpSocket::bind((crate::lab::WEB, 7000)).unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    scene.apply("vm_id = \"victim\"\ndefault_ingress = \"allow\"\n");
    scene.guestnet(&["forward", "add", "victim", "--host-port", "8053", "--protocol", "udp"]);
    let (a, v) = (&scene.attacker, &scene.victim);
    // Three live flows: one that it opened, one by its forward, one from a neighbour.
    v.send(&v.udp(web(), (4000, 7000), b"a question"));
    let (_, from) = server.recv_from(&mut [0; 100]).unwrap();
    assert_eq!(from.to_string(), "198.51.100.1:4000");
    knocks(&lab.inet, &server, ("198.51.100.1", 4000)).unwrap();
    v.expect("the answer", |frame| frame.has(TEXT));
    knocks(&lab.inet, &server, ("198.51.100.1", 8053)).unwrap();
    v.expect("what comes by the forward", |frame| frame.has(TEXT));
    a.send(&a.udp(v.ip, (4000, 7000), TEXT));
    v.expect("what its neighbour says", |frame| frame.has(TEXT));
    v.send(&v.udp(a.ip, (7000, 4000), TEXT));
    a.expect("what it says to its neighbour", |frame| frame.has(TEXT));

    let Scene { daemon, victim, attacker, .. } = scene;
    let (daemon, address) = (daemon.unwrap(), victim.ip.to_string());
    drop(victim);
    daemon.guestnet(&["vm", "delete", "victim"]);
    let heir = Attacker::new(&lab, &daemon.json(&["vm", "create", "heir", "--ip", &address]));
    assert_eq!(heir.ip.to_string(), address);
    let left = lab.on_host("conntrack", &["-L", "-p", "udp"]);
    assert!(!left.lines().any(|line| line.contains(&address)), "{left}");
    for port in [4000, 8053] {
        // "Port unreachable" of the one before comes with the next.
        let _ = knocks(&lab.inet, &server, ("198.51.100.1", port));
    }
    attacker.send(&attacker.udp(heir.ip, (4000, 7000), TEXT));
    attacker.settle_with(web());
    assert!(heir.settle().iter().all(|frame| !frame.has(TEXT)), "the heir sees what was its forerunner's");
    assert_eq!(counted(&lab, "inet", "closed"), 1);
    // Had the kernel been left what it knew, it would have come.
    let of = ["-p", "udp", "-t", "60", "-u", "SEEN_REPLY", "-s", "10.100.0.2", "-d", &address];
    let more = ["-r", &address, "-q", "10.100.0.2", "--reply-port-src", "7000", "--reply-port-dst", "4000"];
    lab.on_host("conntrack", &[&["-I"][..], &of, &["--sport", "4000", "--dport", "7000"], &more].concat());
    attacker.send(&attacker.udp(heir.ip, (4000, 7000), TEXT));
    heir.expect("what its forerunner's neighbour says", |frame| frame.has(TEXT));
}
