//! Policies that change while packets flow.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use super::policies::POLICY;
use super::scene::{PATIENCE, Scene, TEXT, Wall, ports_seen, web};
use crate::lab::{Lab, WEB};

#[test]
fn a_tighter_policy_ends_what_it_denies_and_nothing_else() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    scene.apply(POLICY);
    let sends = |scene: &Scene<'_>| {
        let (a, v) = (&scene.attacker, &scene.victim);
        for port in [7001, 7002] {
            a.send(&a.udp(v.ip, (4000, port), TEXT));
        }
        a.settle();
        ports_seen(&v.settle(), 17)
    };
    assert_eq!(sends(&scene), [7001, 7002]);
    // Answered: both flows are live in either direction.
    let v = &scene.victim;
    for port in [7001, 7002] {
        v.send(&v.udp(scene.attacker.ip, (port, 4000), TEXT));
    }
    v.settle();
    assert_eq!(ports_seen(&scene.attacker.settle(), 17), [4000]);
    let tighter = POLICY.replace("port = 7003", "port = 7001");
    let answer = scene.apply(&tighter);
    assert_eq!(answer["ended_connections"], 1, "{answer}");
    assert_eq!(sends(&scene), [7002], "the live flow to 7001 went on");
    assert_eq!((scene.counted("inet", "policy"), scene.rule_counts(&["victim"])), (1, vec![1, 0]));
    // Set anew, the same ends nothing; taken away, what it had opened ends.
    assert_eq!(scene.apply(&tighter)["ended_connections"], 0);
    scene.guestnet(&["policy", "delete", "victim"]);
    assert_eq!(sends(&scene), [0; 0]);
    assert_eq!(scene.counted("inet", "closed"), 2);
    // A live flow is what would have carried it on: that the kernel forgets it is the protection. With the rule that lets
    // live flows through and a flow that nobody ended, it comes.
    let of = ["-p", "udp", "-s", "10.100.0.2", "-d", "10.100.0.3", "--sport", "4000", "--dport", "7001"];
    let more =
        ["-r", "10.100.0.3", "-q", "10.100.0.2", "--reply-port-src", "7001", "--reply-port-dst", "4000"];
    lab.on_host("conntrack", &[&["-I"][..], &of, &more, &["-t", "60", "-u", "SEEN_REPLY"]].concat());
    assert_eq!(sends(&scene), [7001]);
}

/// Somebody's rules put guests' connections into a zone of conntrack: there they are to be ended, too.
#[test]
fn a_tighter_policy_ends_what_it_denies_in_whatever_zone_it_is_tracked() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    crate::slots::track_in_a_zone(&lab);
    scene.apply(POLICY);
    let (a, v) = (&scene.attacker, &scene.victim);
    let sends = || {
        a.send(&a.udp(v.ip, (4000, 7001), TEXT));
        a.settle();
        ports_seen(&v.settle(), 17)
    };
    assert_eq!(sends(), [7001]);
    v.send(&v.udp(a.ip, (7001, 4000), TEXT));
    v.settle();
    assert_eq!(ports_seen(&a.settle(), 17), [4000]);
    let tracked = || lab.on_host("conntrack", &["-L", "-p", "udp", "--dport", "7001"]);
    assert!(tracked().contains("zone=5"), "{}", tracked());
    let answer = scene.apply(&POLICY.replace("port = 7003", "port = 7001"));
    assert_eq!((&answer["ended_connections"], tracked().as_str()), (&1.into(), ""));
    assert_eq!(sends(), [0; 0], "the live flow to 7001 went on");
}

#[test]
fn a_start_ends_the_live_flows_that_its_configuration_denies() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let server = lab.inet.run(|| UdpSocket::bind((WEB, 7000)).unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let send = |scene: &Scene<'_>| scene.attacker.send(&scene.attacker.udp(web(), (4000, 7000), TEXT));
    let arrives = |scene: &Scene<'_>| {
        send(scene);
        let (_, from) = server.recv_from(&mut [0; 64]).unwrap();
        server.send_to(TEXT, from).unwrap();
        scene.attacker.expect("the answer", |frame| frame.has(TEXT));
    };
    arrives(&scene);
    scene.restart("");
    arrives(&scene);
    scene.restart("egress_default = \"deny\"");
    send(&scene);
    scene.attacker.settle();
    assert_eq!(scene.counted("inet", "egress_closed"), 1);
}

/// Swaps as `swap` does while one packet after the other, each a connection of its own, goes to port 7001, which is always
/// allowed, and to 7002, which never is: how many were sent to each, how many came to 7001, and to 7002.
fn under_load(scene: &Scene<'_>, swap: impl Fn(usize)) -> (usize, usize, usize) {
    let receive = |port: u16| {
        let socket = scene.lab.inet.run(|| UdpSocket::bind((WEB, port)).unwrap());
        setsockopt(&socket, sockopt::RcvBufForce, &(32 << 20)).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    let (allowed, denied) = (receive(7001), receive(7002));
    let done = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0_usize;
            while !done.load(Ordering::Relaxed) {
                let from = 1024 + u16::try_from(sent % 60_000).unwrap();
                scene.attacker.send(&scene.attacker.udp(web(), (from, 7001), TEXT));
                scene.attacker.send(&scene.attacker.udp(web(), (from, 7002), TEXT));
                sent += 1;
                std::thread::sleep(Duration::from_micros(200));
            }
            sent
        });
        (0..20).for_each(&swap);
        done.store(true, Ordering::Relaxed);
        sender.join().unwrap()
    });
    // The policy lets no ping out: what answers is the gateway, behind all that was sent before.
    scene.attacker.settle();
    let count = |socket: &UdpSocket| std::iter::from_fn(|| socket.recv(&mut [0; 200]).ok()).count();
    // What is on its way from the host to the internet is there soon.
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut came = count(&allowed);
    while came < sent && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
        came += count(&allowed);
    }
    (sent, came, count(&denied))
}

#[test]
fn a_policy_is_swapped_under_load_without_a_lost_or_a_leaked_packet() {
    let lab = Lab::new();
    let scene = Scene::with(&lab, "new_connections_per_second = 10000000\nlive_connections = 10000000");
    let policies = ["a", "b"].map(|name| {
        let file = lab.directory().join(name);
        let text = format!(
            "vm_id = \"attacker\"\ndefault_egress = \"deny\"\n[[rules]]\nname = \"{name}\"\ndirection = \"egress\"\n\
             protocol = \"udp\"\nport = 7001\naction = \"allow\"\n"
        );
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    });
    let apply = |n: usize| drop(scene.guestnet(&["policy", "apply", "-f", &policies[n % 2]]));
    apply(1);
    let (sent, came, leaked) = under_load(&scene, apply);
    assert_eq!((came, leaked), (sent, 0));
    assert_eq!(scene.counted("inet", "policy"), sent as u64);
    // One taken away before the next is set, which is what a swap must not be, is seen by the same means.
    let (sent, came, leaked) = under_load(&scene, |n| {
        scene.guestnet(&["policy", "delete", "attacker"]);
        apply(n);
    });
    assert!(came == sent && leaked > 0, "of {sent} {came} came, {leaked} leaked");
}

#[test]
fn tcp_that_a_policy_ended_does_not_go_on() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let (a, v) = (&scene.attacker, &scene.victim);
    let allow = "vm_id = \"victim\"\n[[rules]]\nname = \"web\"\ndirection = \"ingress\"\nprotocol = \"tcp\"\nport = 80\n\
                 action = \"allow\"\n";
    scene.apply(allow);
    let segment = |from: &crate::lab::attacker::Attacker, to, ports, about, text: &[u8]| {
        let frame = crate::lab::frames::tcp((from.mac, from.gateway_mac), (from.ip, to), ports, about, text);
        from.send(&frame);
        from.settle();
    };
    use crate::lab::frames::{ACK, PUSH, SYN};
    segment(a, v.ip, (4000, 80), (SYN, 100, 0), &[]);
    segment(v, a.ip, (80, 4000), (SYN | ACK, 500, 101), &[]);
    segment(a, v.ip, (4000, 80), (ACK, 101, 501), &[]);
    segment(a, v.ip, (4000, 80), (PUSH | ACK, 101, 501), TEXT);
    assert_eq!(ports_seen(&v.settle(), 6), [80]);
    let answer = scene.apply(&allow.replace("\"allow\"", "\"deny\""));
    assert_eq!(answer["ended_connections"], 1, "{answer}");
    // Neither side goes on with what the kernel has forgotten: it does not begin a connection.
    let next = 101 + TEXT.len() as u32;
    segment(a, v.ip, (4000, 80), (PUSH | ACK, next, 501), TEXT);
    segment(v, a.ip, (80, 4000), (PUSH | ACK, 501, next), TEXT);
    assert_eq!((ports_seen(&v.settle(), 6), ports_seen(&a.settle(), 6)), (vec![], vec![]));
    assert_eq!(scene.counted("inet", "stray_tcp"), 2);
    scene.take_down(&[
        Wall::Rule("inet", "from_guest", "TCP that does not begin a connection"),
        Wall::Chain("inet", "denied_by_policy"),
        Wall::Rule("inet", "inbound", "closed"),
    ]);
    segment(&scene.attacker, scene.victim.ip, (4000, 80), (PUSH | ACK, next, 501), TEXT);
    assert_eq!(ports_seen(&scene.victim.settle(), 6), [80]);
}
