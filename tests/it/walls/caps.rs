//! What one guest may take of what all share. Each cap is on what the guest cannot forge, so its neighbour has its own.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::scene::{PATIENCE, Scene, TEXT, Wall, left_the_host, until, web};
use crate::lab::Lab;
use crate::lab::attacker::Attacker;
use crate::lab::frames::{self, Arp, BROADCAST, Frame};

/// A question for the gateway's own address.
fn question(id: u16) -> Vec<u8> {
    let header = [&id.to_be_bytes()[..], b"\x01\x00\0\x01\0\0\0\0\0\0"].concat();
    [&header, &b"\x07gateway\x02vm\x08internal\0\0\x01\0\x01"[..]].concat()
}

fn is_answer(frame: &Frame) -> bool {
    frame.ipv4().is_some_and(|(protocol, _, _, rest)| protocol == 17 && rest[..2] == [0, 53])
}

/// Sends all of it, not more at once than the kernel's queue holds beside whatever else runs; what came meanwhile.
fn send_all(guest: &Attacker, frames: &[Vec<u8>]) -> Vec<Frame> {
    let mut seen = Vec::new();
    for some in frames.chunks(100) {
        some.iter().for_each(|frame| guest.send(frame));
        seen.extend(guest.settle());
    }
    seen
}

fn answers(frames: &[Frame]) -> u64 {
    frames.iter().filter(|frame| is_answer(frame)).count() as u64
}

#[test]
fn questions_beyond_dns_per_second_are_dropped_and_counted_and_a_neighbour_has_its_own() {
    let lab = Lab::new();
    let mut scene = Scene::with(&lab, "dns_per_second = 10");
    let (a, v) = (&scene.attacker, &scene.victim);
    let questions: Vec<Vec<u8>> =
        (0..1_000).map(|id| a.udp(a.gateway, (10_000 + id, 53), &question(id))).collect();
    let begun = Instant::now();
    let mut answered = answers(&send_all(a, &questions));
    v.send(&v.udp(v.gateway, (4000, 53), &question(1)));
    v.expect("its neighbour's flood does not take the victim's answer", is_answer);
    until("answers and drops are not what was asked", || {
        answered += answers(&a.drain());
        // But for what the kernel's queue may lose of so much.
        answered + scene.counted("inet", "dns_rate") >= 900
    });
    // Two seconds' worth at once, and what came by since.
    let most = 20 + 10 * (begun.elapsed().as_secs() + 1);
    assert!((1..=most).contains(&answered), "{answered} answered, {most} at most");
    scene.take_down(&[Wall::Chain("inet", "dns_0")]);
    // Instead of the service: whatever gets to the port.
    let server = lab.host.run(|| UdpSocket::bind((scene.attacker.gateway, 53)).unwrap());
    setsockopt(&server, sockopt::RcvBufForce, &(16 << 20)).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    send_all(&scene.attacker, &questions);
    for n in 0..900 {
        assert!(server.recv(&mut [0; 200]).is_ok(), "with the wall down {n} came");
    }
}

#[test]
fn a_question_from_a_port_of_its_own_is_a_connection_too() {
    let lab = Lab::new();
    let scene = Scene::with(&lab, "live_connections = 100");
    let a = &scene.attacker;
    let answered = |port: &dyn Fn(u16) -> u16| {
        let live = scene.counted("inet", "live_connections");
        let questions: Vec<Vec<u8>> =
            (0..300).map(|id| a.udp(a.gateway, (port(id), 53), &question(id))).collect();
        let mut answered = answers(&send_all(a, &questions));
        until("answers and drops are not what was asked", || {
            answered += answers(&a.drain());
            answered + scene.counted("inet", "live_connections") - live >= 270
        });
        (answered, scene.counted("inet", "live_connections") - live)
    };
    let (kept, dropped) = answered(&|_| 5000);
    assert!(kept >= 270 && dropped == 0, "from one port: {kept} answered, {dropped} dropped");
    let (own, dropped) = answered(&|id| 10_000 + id);
    assert!(
        (1..=100).contains(&own) && dropped > 0,
        "from ports of their own: {own} answered, {dropped} dropped"
    );
    assert_eq!(scene.counted("inet", "dns_rate"), 0);
}

/// Sends all of it: what comes past the port is within `rate`, after twice as many at once, and the rest is counted under
/// `reason`; without `wall` nearly all of it comes past.
fn capped_at_the_port(
    network: &str,
    rate: u64,
    sends: impl Fn(&Attacker) -> Vec<Vec<u8>>,
    reason: &str,
    wall: Wall,
) {
    let lab = Lab::new();
    let mut scene = Scene::with(&lab, network);
    let frames = sends(&scene.attacker);
    let past = |scene: &Scene<'_>| {
        let seen = scene.bridge.drain();
        seen.iter().filter(|seen| frames.contains(&seen.0)).count() as u64
    };
    let (all, begun) = (frames.len() as u64, Instant::now());
    past(&scene);
    send_all(&scene.attacker, &frames);
    // The victim's own is none of the attacker's.
    let v = &scene.victim;
    v.send(&frames::dhcp_discover(v.mac, 7));
    let is_offer = |frame: &Frame| frame.ipv4().is_some_and(|(_, _, _, rest)| rest[..2] == [0, 67]);
    v.expect("an OFFER for the victim", is_offer);
    let (passed, dropped) = (past(&scene), scene.counted("bridge", reason));
    let most = 2 * rate + rate * (begun.elapsed().as_secs() + 1);
    assert!((1..=most).contains(&passed), "{passed} passed, {most} at most");
    assert!(dropped > 0 && passed + dropped <= all, "{passed} passed, {dropped} dropped");
    assert_eq!(scene.dropped_of("attacker").0, dropped);
    scene.take_down(&[wall]);
    past(&scene);
    send_all(&scene.attacker, &frames);
    let passed = past(&scene);
    assert!(passed > all * 9 / 10, "with the wall down {passed} of {all} pass");
}

#[test]
fn dhcp_beyond_its_cap_is_dropped_and_counted() {
    let sends = |a: &Attacker| {
        let discovers = (0..500).map(|n| frames::dhcp_discover(a.mac, n));
        // One that renews asks its server.
        let renews = (0..500_u32).map(|n| a.udp(a.gateway, (68, 67), &n.to_be_bytes()));
        discovers.chain(renews).collect()
    };
    capped_at_the_port("dhcp_per_second = 5", 5, sends, "dhcp_rate", Wall::Chain("bridge", "dhcp"));
}

#[test]
fn arp_beyond_what_any_guest_needs_is_dropped_and_counted() {
    let sends = |a: &Attacker| {
        let asks = |n: u16| Arp {
            operation: 1,
            sender_mac: a.mac,
            sender_ip: a.ip,
            target_mac: [0; 6],
            target_ip: Ipv4Addr::from(u32::from(a.gateway) + 10 + u32::from(n)),
        };
        (0..3_000).map(|n| frames::arp(a.mac, BROADCAST, &asks(n))).collect()
    };
    let wall = Wall::Rule("bridge", "own_arp", "more ARP than any guest needs");
    capped_at_the_port("", 200, sends, "arp_rate", wall);
}

#[test]
fn one_guest_cannot_fill_connection_tracking() {
    let lab = Lab::new();
    let mut scene = Scene::with(&lab, "new_connections_per_second = 500\nlive_connections = 100");
    let tracked = |of: &Attacker| {
        let listed = lab.on_host("conntrack", &["-L", "-s", &of.ip.to_string()]);
        listed.lines().count()
    };
    let flood = |scene: &Scene<'_>, first: u16| {
        let a = &scene.attacker;
        for port in first..first + 1_000 {
            a.send(&a.udp(web(), (port, 7000), TEXT));
            a.send(&a.tcp(web(), (port, 7000), TEXT));
            // What is answered must not fill the TAP's queue.
            if port % 100 == 0 {
                a.settle();
            }
        }
        a.settle();
    };
    flood(&scene, 10_000);
    let (new, live) = (scene.counted("inet", "new_connections"), scene.counted("inet", "live_connections"));
    assert!(new > 0 && live > 0, "{new} new, {live} live");
    let held = tracked(&scene.attacker);
    assert!((1..=101).contains(&held), "{held} connections of the attacker are tracked");
    assert_eq!((scene.dropped_of("attacker"), scene.dropped_of("victim")), ((0, new + live), (0, 0)));
    // The victim's connections are its own.
    let v = &scene.victim;
    for port in 0..50 {
        v.send(&v.udp(web(), (20_000 + port, 7000), TEXT));
    }
    v.settle_with(web());
    assert!(tracked(v) >= 50);
    scene.take_down(&[Wall::Chain("inet", "caps_0")]);
    flood(&scene, 20_000);
    let held = tracked(&scene.attacker);
    assert!(held > 1_000, "with the wall down no more than {held} are tracked either");
}

/// The median of the victim's pings of the internet, each after what `before` waits for.
fn ping(scene: &Scene<'_>, mut before: impl FnMut()) -> Duration {
    let one = |_| {
        before();
        scene.victim.ping(web(), PATIENCE).expect("an answer")
    };
    let mut times: Vec<_> = (0..101).map(one).collect();
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_stream_that_nobody_answers_is_one_connection() {
    let lab = Lab::new();
    let scene = Scene::with(&lab, "new_connections_per_second = 5\nlive_connections = 5");
    let a = &scene.attacker;
    let send = |first: u16, step: u16| {
        let frames: Vec<Vec<u8>> = (0..500).map(|n| a.udp(web(), (first + n * step, 7000), TEXT)).collect();
        send_all(a, &frames);
    };
    send(4_000, 0);
    for n in 0..500 {
        let seen = scene.inet.wait(PATIENCE, left_the_host);
        assert!(seen.is_some(), "only {n} packets of the stream arrived");
    }
    assert_eq!((scene.counted("inet", "new_connections"), scene.counted("inet", "live_connections")), (0, 0));
    // As many streams are another matter.
    send(10_000, 1);
    assert!(scene.counted("inet", "new_connections") + scene.counted("inet", "live_connections") > 100);
}

/// What a ping takes, and what it takes while the attacker sends all that it can, UDP and TCP.
fn quiet_and_flooded(scene: &Scene<'_>) -> (Duration, Duration) {
    let pause = || std::thread::sleep(Duration::from_millis(5));
    let quiet = ping(scene, pause);
    let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    let flooded = std::thread::scope(|scope| {
        scope.spawn(|| {
            let (a, big) = (&scene.attacker, [0x55; 1400]);
            let mut port = 0_u16;
            while !stop.load(Ordering::Relaxed) {
                port = port.wrapping_add(1);
                a.send(&a.udp(web(), (port | 1024, 7000), &big));
                a.send(&a.tcp(web(), (port | 1024, 80), &big));
                sent.fetch_add(2, Ordering::Relaxed);
            }
        });
        // More than any burst that passes, or queue that fills.
        let flood = |packets: usize| {
            let goal = sent.load(Ordering::Relaxed) + packets;
            until("the attacker sends too little for a flood", || sent.load(Ordering::Relaxed) > goal);
        };
        flood(5_000);
        // However the two threads share the CPU: each ping meets a flood that goes on.
        let flooded = ping(scene, || {
            pause();
            flood(100);
        });
        stop.store(true, Ordering::Relaxed);
        flooded
    });
    (quiet, flooded)
}

const STILL_GOOD: Duration = Duration::from_millis(5);

#[test]
fn a_flood_does_not_keep_a_neighbour_waiting() {
    let lab = Lab::new();
    // Without limits: what the host has to do for each packet is all that holds it back.
    let scene = Scene::new(&lab);
    let (quiet, flooded) = quiet_and_flooded(&scene);
    assert!(flooded < quiet + STILL_GOOD, "quiet {quiet:?}, flooded {flooded:?}");
    assert!(scene.counted("inet", "new_connections") > 0, "there was no flood");
}

#[test]
fn a_flood_does_not_keep_a_neighbour_waiting_at_a_narrow_uplink() {
    let lab = Lab::new();
    // An uplink that keeps a tenth of a second's worth waiting, and a guest that gets less than half of it.
    let uplink = "qdisc add dev up0 root tbf rate 10mbit burst 16kb limit 125000";
    lab.on_host("tc", &uplink.split(' ').collect::<Vec<_>>());
    let capless = "new_connections_per_second = 10000000\nlive_connections = 10000000";
    let scene = Scene::of(&lab, capless, [&["--rate-mbps", "4", "--burst-kib", "16"], &[]]);
    let (quiet, flooded) = quiet_and_flooded(&scene);
    assert!(flooded < quiet + STILL_GOOD, "quiet {quiet:?}, flooded {flooded:?}");
    scene.guestnet(&["vm", "update", "attacker", "--rate-mbps", "0"]);
    let (quiet, flooded) = quiet_and_flooded(&scene);
    assert!(flooded > quiet + STILL_GOOD, "without its limit: quiet {quiet:?}, flooded {flooded:?}");
}
