//! What other programs of the host do to its rules: whatever they flush or put in, nothing is opened by it.

use super::scene::{Scene, TEXT, Wall, counters, left_the_host, web};
use crate::lab::Lab;
use crate::lab::frames;
use crate::lab::frames::Frame;

/// What others run: each alone, and one after the other.
const THEIRS: [&str; 12] = [
    // Docker, when it starts after us.
    "iptables -P FORWARD DROP",
    "iptables -I FORWARD 1 -i docker0 -j ACCEPT",
    "iptables -t nat -I POSTROUTING 1 -s 172.17.0.0/16 -j MASQUERADE",
    // Someone who wants to be rid of a firewall.
    "iptables -P FORWARD ACCEPT",
    "iptables -I FORWARD 1 -j ACCEPT",
    "iptables -I INPUT 1 -j ACCEPT",
    "iptables -F",
    "iptables -X",
    "iptables -t nat -F",
    "conntrack -F",
    "nft flush ruleset",
    "nft delete table ip nat",
];

/// Frames that the attacker must not get through, each with the counter that knows them.
fn attacks(scene: &Scene<'_>) -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let (a, v) = (&scene.attacker, &scene.victim);
    let spoofed = |from| frames::udp(a.mac, a.gateway_mac, from, web(), (4000, 7000), TEXT);
    vec![
        ("inet", "closed", a.udp(v.ip, (4000, 7000), TEXT)),
        ("inet", "stray_tcp", {
            let about = (frames::ACK, 1, 1);
            frames::tcp((a.mac, a.gateway_mac), (a.ip, v.ip), (4000, 7000), about, TEXT)
        }),
        ("inet", "host", a.udp(super::scene::uplink(), (4000, 9999), TEXT)),
        ("inet", "blocked_egress", a.udp([169, 254, 169, 254].into(), (4000, 80), TEXT)),
        ("bridge", "spoofed_address", spoofed(v.ip)),
        ("bridge", "spoofed_mac", frames::udp(v.mac, a.gateway_mac, v.ip, web(), (4000, 7000), TEXT)),
        ("bridge", "not_to_gateway", frames::udp(a.mac, v.mac, a.ip, v.ip, (4000, 7000), TEXT)),
    ]
}

#[test]
fn whatever_others_flush_or_put_in_opens_nothing() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let open = lab.host.run(|| std::net::UdpSocket::bind("0.0.0.0:9999").unwrap());
    open.set_nonblocking(true).unwrap();
    let walls = || {
        ["bridge", "inet"].map(|family| {
            // Without what is in sets: some of it comes and goes with what guests send.
            lab.on_host("nft", &["-s", "-t", "list", "table", family, "guestnet"])
        })
    };
    let before = walls();
    for on in [true, false] {
        scene.br_netfilter(on);
        for theirs in std::iter::once("true").chain(THEIRS) {
            // The last two may find nothing to do.
            let words: Vec<&str> = theirs.split(' ').collect();
            let _ = lab.host_command(words[0]).args(&words[1..]).output().unwrap();
            assert_eq!(walls(), before, "{theirs}");
            let counted = || [counters(&lab, "bridge"), counters(&lab, "inet")];
            let (mut expected, attacks) = (counted(), attacks(&scene));
            for (family, reason, frame) in &attacks {
                scene.attacker.send(frame);
                *expected[usize::from(*family == "inet")].get_mut(*reason).unwrap() += 1;
            }
            scene.attacker.settle();
            assert_eq!(counted(), expected, "{theirs}, br_netfilter {on}");
            assert!(scene.victim.settle().iter().all(|frame| !frame.has(TEXT)), "{theirs}");
            assert!(!scene.inet.drain().iter().any(left_the_host), "{theirs}");
            assert!(open.recv(&mut [0; 100]).is_err(), "{theirs}");
        }
    }
    // Nor can they change one of ours alone.
    for theirs in ["nft delete table bridge guestnet", "nft flush chain inet guestnet inbound"] {
        let words: Vec<&str> = theirs.split(' ').collect();
        let refused = lab.host_command(words[0]).args(&words[1..]).output().unwrap();
        assert!(!refused.status.success(), "{theirs}");
    }
    assert_eq!(walls(), before);
    // The service is what keeps them off: with it away they flush ours too.
    let frames: Vec<Vec<u8>> = attacks(&scene).into_iter().map(|(_, _, frame)| frame).collect();
    let spoofed = scene.victim.ip;
    let is_it =
        move |frame: &Frame| frame.has(TEXT) && frame.ipv4().is_some_and(|(_, from, ..)| from == spoofed);
    scene.comes_through(&frames, is_it, &[Wall::Host("nft flush ruleset")], super::scene::Watcher::Bridge);
    scene.victim.expect("what was closed to it", |frame| frame.has(TEXT));
}

#[test]
fn a_forward_policy_of_drop_does_not_cut_guests_off() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    // Docker's, ufw's and firewalld's way: a policy, and a chain of their own before what was there.
    lab.on_host("iptables", &["-P", "FORWARD", "DROP"]);
    lab.on_host("iptables", &["-P", "INPUT", "DROP"]);
    scene.attacker.settle_with(web());
    scene.victim.settle_with(web());
    // It is our rule that lets it through: without it nothing leaves.
    scene.take_down(&[Wall::Host("iptables -F FORWARD")]);
    let a = &scene.attacker;
    a.send(&a.udp(web(), (4000, 7000), TEXT));
    a.settle();
    assert!(!scene.inet.drain().iter().any(left_the_host));
}
