//! What a guest reaches: of the host, of other guests, of the operator's network.

use std::net::Ipv4Addr;

use super::scene::{Scene, TEXT, Wall, Watcher};
use crate::lab::Lab;
use crate::lab::frames::{self, Frame};

#[test]
fn the_metadata_address_and_the_operators_lan_stay_out_of_reach() {
    let lab = Lab::new();
    let mut scene = Scene::with(&lab, "blocked_egress = [\"169.254.0.0/16\", \"192.168.0.0/16\"]");
    let a = &scene.attacker;
    let to =
        [Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(169, 254, 0, 1), Ipv4Addr::new(192, 168, 7, 1)];
    let frames = to.map(|to| a.udp(to, (4000, 80), TEXT));
    let wall = Wall::Rule("inet", "from_guest", "where no guest gets to");
    let is_it = |frame: &Frame| {
        frame.has(TEXT)
            && frame.ipv4().is_some_and(|(_, source, ..)| source == Ipv4Addr::new(198, 51, 100, 1))
    };
    scene.stopped(&frames, is_it, ("inet", "blocked_egress"), &[wall], Watcher::Inet);
}

#[test]
fn nothing_of_the_host_answers_a_guest_but_what_is_meant_for_it() {
    let lab = Lab::new();
    // No cap: every port is asked.
    let mut scene = Scene::with(&lab, "new_connections_per_second = 10000000\nlive_connections = 10000000");
    let listening = ["0.0.0.0:8080", "127.0.0.1:8081"]
        .map(|at| lab.host.run(|| std::net::TcpListener::bind(at).unwrap()));
    let uplink: Ipv4Addr = crate::lab::UPLINK.parse().unwrap();
    let a = &scene.attacker;
    let syn = |to: Ipv4Addr, port: u16| {
        frames::tcp((a.mac, a.gateway_mac), (a.ip, to), (40_000, port), (frames::SYN, 1, 0), &[])
    };
    // Whatever answers: SYN and ACK of who listens, RST of a closed port that was reached.
    let answers = |a: &crate::lab::attacker::Attacker, asked: &[(Ipv4Addr, u16)]| -> Vec<(Ipv4Addr, u16)> {
        let mut seen = Vec::new();
        for chunk in asked.chunks(500) {
            for (to, port) in chunk {
                a.send(&frames::tcp(
                    (a.mac, a.gateway_mac),
                    (a.ip, *to),
                    (40_000, *port),
                    (frames::SYN, 1, 0),
                    &[],
                ));
            }
            seen.extend(a.settle());
        }
        let of = |frame: &Frame| {
            let (protocol, from, _, segment) = frame.ipv4()?;
            (protocol == 6).then(|| (from, u16::from_be_bytes([segment[0], segment[1]])))
        };
        // Not what is said again of an earlier question: a SYN that was never acknowledged.
        let mut found: Vec<_> = seen.iter().filter_map(of).filter(|at| asked.contains(at)).collect();
        found.sort();
        found.dedup();
        found
    };
    let every_port = |to: Ipv4Addr| (1..=u16::MAX).map(move |port| (to, port));
    let asked: Vec<(Ipv4Addr, u16)> = every_port(a.gateway).chain(every_port(uplink)).collect();
    assert_eq!(answers(a, &asked), [(a.gateway, 53)], "DNS over TCP is all that listens for guests");
    for on in [true, false] {
        scene.br_netfilter(on);
        a.send(&syn(Ipv4Addr::LOCALHOST, 8081));
        a.send(&a.udp(uplink, (4000, 68), TEXT));
        a.send(&a.echo(uplink, 9));
        let seen = a.settle();
        let from_host = seen.iter().filter(|frame| frame.ipv4().is_some());
        assert_eq!(from_host.count(), 0, "{seen:?}");
    }
    assert!(scene.counted("inet", "host") > 131_000 && scene.counted("bridge", "martian") == 2);
    scene.take_down(&[Wall::Chain("inet", "host_wall")]);
    let reached = answers(&scene.attacker, &[(uplink, 8080), (uplink, 22)]);
    assert_eq!(reached.len(), 2, "with the wall down the host does not answer either");
    drop(listening);
}

#[test]
fn loopback_is_out_of_reach_even_where_a_forward_opens_it_to_the_host() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    scene.guestnet(&["forward", "add", "victim", "--host-port", "8085"]);
    assert_eq!(lab.on_host("sysctl", &["-n", "net.ipv4.conf.br-vms.route_localnet"]).trim(), "1");
    let local = lab.host.run(|| std::net::UdpSocket::bind("127.0.0.1:9999").unwrap());
    local.set_nonblocking(true).unwrap();
    scene.attacker.send(&scene.attacker.udp(Ipv4Addr::LOCALHOST, (4000, 9999), TEXT));
    scene.attacker.settle();
    assert_eq!(scene.counted("bridge", "martian"), 1);
    assert!(local.recv(&mut [0; 100]).is_err(), "a guest's packet reached the host's loopback");
}

#[test]
fn guests_are_closed_to_each_other() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let (a, v) = (&scene.attacker, &scene.victim);
    let frames = [a.udp(v.ip, (4000, 7000), TEXT), a.udp(v.ip, (4000, 68), TEXT)];
    let echo = a.echo(v.ip, 77);
    a.send(&echo);
    a.settle();
    let is_it = |frame: &Frame| frame.has(TEXT) && frame.source() == a_gateway();
    fn a_gateway() -> frames::Mac {
        [6, 0, 10, 100, 0, 1]
    }
    assert_eq!(scene.counted("inet", "closed"), 1);
    let walls = [Wall::Chain("inet", "inbound"), Wall::Chain("inet", "from_guest")];
    let first = [frames[0].clone()];
    scene.stopped(&first, is_it, ("inet", "closed"), &walls, Watcher::Victim);
}

#[test]
fn guests_of_one_workspace_reach_each_other_where_the_network_says_so() {
    let lab = Lab::new();
    let config = "[[network]]\nenable_rate_limit = false\nintra_workspace = \"allow\"\n";
    let daemon = crate::lab::Daemon::start_with(&lab, config);
    let vm = |name: &str, workspace: &str| {
        crate::lab::attacker::Attacker::new(
            &lab,
            &daemon.json(&["vm", "create", name, "--workspace", workspace]),
        )
    };
    let [a, b, c] = [vm("a", "acme"), vm("b", "acme"), vm("c", "other")];
    for to in [b.ip, c.ip] {
        a.send(&a.udp(to, (4000, 7000), TEXT));
    }
    b.expect("its neighbour of the same workspace", |frame| frame.has(TEXT));
    assert!(c.settle().iter().all(|frame| !frame.has(TEXT)), "another workspace's guest reached it");
    let test = |to: &str| daemon.json(&["policy", "test", "--from", "a", "--to", to, "--port", "7000"]);
    assert_eq!((test("b")["action"].clone(), test("c")["action"].clone()), ("allow".into(), "deny".into()));
}

#[test]
fn unused_addresses_of_the_subnet_do_not_leak_upstream() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let unused = Ipv4Addr::new(10, 100, 77, 77);
    let frame = scene.attacker.udp(unused, (4000, 7000), TEXT);
    scene.attacker.send(&frame);
    scene.attacker.settle_with(crate::lab::WEB.parse().unwrap());
    assert!(scene.inet.drain().iter().all(|frame| !frame.has(TEXT)));
    scene.take_down(&[Wall::Host("ip route del unreachable 10.100.0.0/16")]);
    scene.attacker.send(&frame);
    let seen = scene.inet.wait(std::time::Duration::from_secs(5), |frame| frame.has(TEXT));
    assert!(seen.is_some(), "without the route it does not leave either: this proves nothing");
}

#[test]
fn one_guest_cannot_take_what_all_share() {
    let lab = Lab::new();
    let mut scene =
        Scene::with(&lab, "new_connections_per_second = 500\nlive_connections = 100\ndhcp_per_second = 5");
    let web: Ipv4Addr = crate::lab::WEB.parse().unwrap();
    let tracked = |scene: &Scene<'_>| -> usize {
        scene.lab.on_host("cat", &["/proc/sys/net/netfilter/nf_conntrack_count"]).trim().parse().unwrap()
    };
    let flood = |scene: &Scene<'_>, first: u16| {
        for port in first..first + 2_000 {
            scene.attacker.send(&scene.attacker.udp(web, (port, 7000), TEXT));
        }
    };
    flood(&scene, 10_000);
    for n in 0..100 {
        scene.attacker.send(&frames::dhcp_discover(scene.attacker.mac, n));
    }
    scene.victim.settle();
    let before = tracked(&scene);
    // Its own hundred, and what the lab itself has open.
    assert!(before < 200, "{before} connections are tracked");
    for (family, reason) in
        [("inet", "live_connections"), ("inet", "new_connections"), ("bridge", "dhcp_rate")]
    {
        assert!(scene.counted(family, reason) > 0, "nothing was counted as {reason}");
    }
    scene.victim.settle_with(web);
    scene.take_down(&[Wall::Chain("inet", "caps_0")]);
    flood(&scene, 20_000);
    scene.victim.settle_with(web);
    assert!(tracked(&scene) > 1_000, "with the wall down no more are tracked either");
}

#[test]
fn a_stream_that_nobody_answers_is_one_connection() {
    let lab = Lab::new();
    let scene = Scene::with(&lab, "new_connections_per_second = 5\nlive_connections = 5");
    let web: Ipv4Addr = crate::lab::WEB.parse().unwrap();
    let stream = |scene: &Scene<'_>, first: u16, step: u16| {
        for n in 0..500 {
            scene.attacker.send(&scene.attacker.udp(web, (first + n * step, 7000), TEXT));
        }
    };
    stream(&scene, 4_000, 0);
    for n in 0..500 {
        let seen = scene.inet.wait(std::time::Duration::from_secs(5), |frame| frame.has(TEXT));
        assert!(seen.is_some(), "only {n} packets of the stream arrived");
    }
    stream(&scene, 10_000, 1);
    scene.victim.settle_with(web);
    let arrived = scene.inet.drain().iter().filter(|frame| frame.has(TEXT)).count();
    assert!(arrived < 10, "{arrived} of 500 connections were let through");
}

#[test]
fn a_flood_does_not_keep_a_neighbour_waiting() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    let web: Ipv4Addr = crate::lab::WEB.parse().unwrap();
    let median = |count: usize| {
        let patience = std::time::Duration::from_secs(5);
        let mut times: Vec<_> =
            (0..count).map(|_| scene.victim.ping(web, patience).expect("an answer")).collect();
        times.sort();
        times[count / 2]
    };
    let quiet = median(51);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let flooded = std::thread::scope(|scope| {
        scope.spawn(|| {
            let big = [0x55; 1400];
            let mut port = 0_u16;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                port = port.wrapping_add(1);
                let a = &scene.attacker;
                a.send(&a.udp(web, (port | 1024, 7000), &big));
                let macs = (a.mac, a.gateway_mac);
                a.send(&frames::tcp(macs, (a.ip, web), (port | 1024, 80), (frames::SYN, 1, 0), &[]));
            }
        });
        let flooded = median(51);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        flooded
    });
    let more = flooded.saturating_sub(quiet);
    assert!(more < std::time::Duration::from_millis(5), "quiet {quiet:?}, flooded {flooded:?}");
}

#[test]
fn the_walls_outlast_what_others_do_to_the_hosts_rules() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    let web: Ipv4Addr = crate::lab::WEB.parse().unwrap();
    let walls = || lab.on_host("nft", &["-s", "list", "table", "bridge", "guestnet"]);
    let before = walls();
    // As Docker does when it starts after us.
    lab.on_host("iptables", &["-P", "FORWARD", "DROP"]);
    lab.on_host("iptables", &["-I", "FORWARD", "1", "-i", "docker0", "-j", "ACCEPT"]);
    scene.attacker.settle_with(web);
    lab.on_host("iptables", &["-P", "FORWARD", "ACCEPT"]);
    lab.on_host("iptables", &["-F"]);
    lab.on_host("nft", &["flush", "ruleset"]);
    assert_eq!(before, walls());
    let (a, v) = (&scene.attacker, &scene.victim);
    a.send(&a.udp(v.ip, (4000, 7000), TEXT));
    a.send(&frames::udp(a.mac, a.gateway_mac, v.ip, web, (4000, 7000), TEXT));
    a.settle();
    assert!(v.settle().iter().all(|frame| !frame.has(TEXT)));
    assert_eq!((scene.counted("inet", "closed"), scene.counted("bridge", "spoofed_address")), (1, 1));
}
