//! What of the world a guest reaches: by its network's `egress_default` and `blocked_egress`, and by its policy.

use std::net::Ipv4Addr;

use super::scene::{Scene, TEXT, Wall, Watcher, left_the_host, ports_seen, uplink, web};
use crate::lab::frames::{Frame, icmp_message};

use crate::lab::Lab;

const RESOLVER: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);

#[test]
fn a_network_that_is_closed_to_the_world_lets_nothing_out() {
    let lab = Lab::new();
    let mut scene = Scene::with(&lab, "egress_default = \"deny\"");
    scene.far = scene.attacker.gateway;
    let a = &scene.attacker;
    let frames = [
        a.udp(web(), (4000, 7000), TEXT),
        a.tcp(web(), (4000, 80), TEXT),
        a.packet(web(), 1, &icmp_message(8, 1, TEXT)),
        a.packet(web(), 253, TEXT),
    ];
    let wall = Wall::Rule("inet", "from_guest", "networks closed to the world");
    scene.stopped(&frames, left_the_host, ("inet", "egress_closed"), &[wall], Watcher::Inet);
}

#[test]
fn a_policy_opens_a_closed_network_but_not_what_is_blocked() {
    let lab = Lab::new();
    let mut scene =
        Scene::with(&lab, "egress_default = \"deny\"\nblocked_egress = [\"8.8.8.8/32\", \"169.254.0.0/16\"]");
    scene.far = scene.attacker.gateway;
    scene.apply(
        "vm_id = \"attacker\"\n[[rules]]\nname = \"one\"\ndirection = \"egress\"\nprotocol = \"udp\"\nport = 7001\n\
         action = \"allow\"\n",
    );
    let a = &scene.attacker;
    for (to, port) in [(web(), 7001), (web(), 7002), (RESOLVER, 7001)] {
        a.send(&a.udp(to, (4000, port), TEXT));
    }
    scene.inet.wait(super::scene::PATIENCE, left_the_host).expect("what the policy allows");
    a.settle();
    assert!(!scene.inet.drain().iter().any(left_the_host));
    assert_eq!((scene.counted("inet", "egress_closed"), scene.counted("inet", "blocked_egress")), (1, 1));
    assert_eq!(scene.rule_counts(&["attacker"]), [1]);
    let said = |port| scene.said("attacker", "198.51.100.10", "udp", Some(port));
    assert_eq!((said(7001), said(7002)), ("allow".into(), "deny".into()));
    // The whole world, for a policy that says so, and still not what is blocked.
    scene.apply("vm_id = \"attacker\"\ndefault_egress = \"allow\"\n");
    let a = &scene.attacker;
    for to in [RESOLVER, Ipv4Addr::new(169, 254, 169, 254), web()] {
        a.send(&a.udp(to, (4001, 7002), TEXT));
    }
    let seen = scene.inet.wait(super::scene::PATIENCE, left_the_host).expect("what the policy allows");
    assert_eq!(seen.ipv4().unwrap().2, web());
    assert_eq!(scene.counted("inet", "blocked_egress"), 3);
    let frame = a.udp(RESOLVER, (4002, 7001), TEXT);
    let wall = Wall::Rule("inet", "from_guest", "where no guest gets to");
    scene.comes_through(&[frame], left_the_host, &[wall], Watcher::Inet);
}

const SOME: &str = r#"
vm_id = "attacker"
default_egress = "deny"
[[rules]]
name = "web"
direction = "egress"
protocol = "tcp"
port_range = "80-81"
destination = "198.51.100.0/24"
action = "allow"
[[rules]]
name = "echo"
direction = "egress"
protocol = "icmp"
destination = "8.8.8.8"
action = "allow"
[[rules]]
name = "not-tunnels"
direction = "egress"
destination = "8.8.4.4"
action = "deny"
"#;

/// Destination, protocol and port of what left the host; the port of ICMP is 0.
fn left(frames: &[Frame]) -> Vec<(Ipv4Addr, u8, u16)> {
    let one = |frame: &Frame| {
        let (protocol, _, to, rest) = frame.ipv4().filter(|_| left_the_host(frame))?;
        let port = if protocol == 1 { 0 } else { u16::from_be_bytes([rest[2], rest[3]]) };
        Some((to, protocol, port))
    };
    let mut found: Vec<_> = frames.iter().filter_map(one).collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[test]
fn rules_of_tcp_icmp_and_udp_decide_each_for_its_own() {
    let lab = Lab::new();
    let mut scene = Scene::with(&lab, "");
    scene.apply(SOME);
    // Pings are one connection, of which the first counts.
    scene.far = RESOLVER;
    scene.attacker.settle_with(RESOLVER);
    let sends = |scene: &Scene<'_>, from: u16| {
        let a = &scene.attacker;
        for to in [web(), RESOLVER, Ipv4Addr::new(8, 8, 4, 4)] {
            for port in [80, 81, 82] {
                a.send(&a.tcp(to, (from, port), TEXT));
            }
            a.send(&a.udp(to, (from, 80), TEXT));
            a.send(&a.packet(to, 1, &icmp_message(8, from, TEXT)));
        }
        // What answers an allowed connection comes in though nothing opens the guest.
        let answer =
            |frame: &Frame| frame.ipv4().is_some_and(|(protocol, from, ..)| (protocol, from) == (6, web()));
        a.expect("the web server's answer", answer);
        a.settle_with(RESOLVER);
    };
    scene.inet.drain();
    sends(&scene, 4000);
    let allowed = [(RESOLVER, 1, 0), (web(), 6, 80), (web(), 6, 81)];
    assert_eq!(left(&scene.inet.drain()), allowed);
    // Three more to 8.8.4.4 by TCP, one by UDP, one by ICMP are the third rule's; the default has no count of its own.
    assert_eq!(scene.rule_counts(&["attacker"]), [2, 1, 5]);
    assert_eq!(scene.counted("inet", "policy"), 12);
    assert_eq!(scene.dropped_of("attacker"), (0, 12));
    let said = |to: Ipv4Addr, protocol, port| scene.said("attacker", &to.to_string(), protocol, port);
    assert_eq!(
        [said(web(), "tcp", Some(82)), said(RESOLVER, "icmp", None), said(web(), "icmp", None)],
        ["deny", "allow", "deny"]
    );
    scene.take_down(&[Wall::Chain("inet", "denied_by_policy")]);
    sends(&scene, 4100);
    assert_eq!(left(&scene.inet.drain()).len(), 15, "with the wall down all of it leaves");
}

#[test]
fn rules_of_tcp_and_icmp_decide_what_comes_in() {
    let lab = Lab::new();
    let mut scene = Scene::with(&lab, "");
    scene.apply(
        r#"
        vm_id = "victim"
        [[rules]]
        name = "ssh"
        direction = "ingress"
        protocol = "tcp"
        port = 22
        source = "10.100.0.0/16"
        action = "allow"
        [[rules]]
        name = "echo"
        direction = "ingress"
        protocol = "icmp"
        action = "allow"
    "#,
    );
    let sends = |scene: &Scene<'_>, from: u16| {
        let (a, v) = (&scene.attacker, &scene.victim);
        for port in [22, 23] {
            a.send(&a.tcp(v.ip, (from, port), TEXT));
            a.send(&a.udp(v.ip, (from, port), TEXT));
        }
        a.send(&a.packet(v.ip, 1, &icmp_message(8, from, TEXT)));
        a.settle();
        let seen = v.settle();
        let echoes =
            seen.iter().filter(|f| f.has(TEXT) && f.ipv4().is_some_and(|(protocol, ..)| protocol == 1));
        (ports_seen(&seen, 6), ports_seen(&seen, 17), echoes.count())
    };
    assert_eq!(sends(&scene, 4000), (vec![22], vec![], 1));
    assert_eq!(scene.rule_counts(&["victim"]), [1, 1]);
    // No default: what no rule is about is the network's to decide, and guests are closed.
    assert_eq!(scene.counted("inet", "closed"), 3);
    scene.take_down(&[Wall::Rule("inet", "inbound", "closed")]);
    assert_eq!(sends(&scene, 4100), (vec![22, 23], vec![22, 23], 1));
}

#[test]
fn nothing_leaves_under_a_guests_own_address() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    let a = &scene.attacker;
    a.send(&a.udp(web(), (4000, 7000), TEXT));
    a.send(&a.tcp(web(), (4000, 7000), TEXT));
    a.settle_with(web());
    let seen = scene.inet.drain();
    let sources: Vec<Ipv4Addr> = seen
        .iter()
        .filter(|f| f.has(TEXT))
        .filter_map(|f| Some(f.ipv4()?.1))
        .filter(|s| *s != web())
        .collect();
    assert_eq!(sources, [uplink(); 2]);
}
