//! What a guest reaches: of the host, of other guests, of the operator's network.

use std::net::{Ipv4Addr, UdpSocket};

use super::scene::{PATIENCE, Scene, TEXT, Wall, Watcher, left_the_host, until, uplink, web};
use crate::lab::Lab;
use crate::lab::attacker::{Attacker, on_every_cpu};
use crate::lab::frames::{self, Frame};
use crate::lab::sniffer::Sniffer;

#[test]
fn the_metadata_address_and_the_operators_lan_stay_out_of_reach() {
    let lab = Lab::new();
    let mut scene = Scene::with(&lab, "blocked_egress = [\"169.254.0.0/16\", \"192.168.0.0/16\"]");
    let a = &scene.attacker;
    let to =
        [Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(169, 254, 0, 1), Ipv4Addr::new(192, 168, 7, 1)];
    let frames = to.map(|to| a.udp(to, (4000, 80), TEXT));
    let wall = Wall::Rule("inet", "from_guest", "where no guest gets to");
    scene.stopped(&frames, left_the_host, ("inet", "blocked_egress"), &[wall], Watcher::Inet);
}

#[test]
fn nothing_of_the_host_answers_a_guest_but_what_is_meant_for_it() {
    let lab = Lab::new();
    // No cap: every port is asked.
    let mut scene = Scene::with(&lab, "new_connections_per_second = 10000000\nlive_connections = 10000000");
    let listening = ["0.0.0.0:8080", "127.0.0.1:8081"]
        .map(|at| lab.host.run(|| std::net::TcpListener::bind(at).unwrap()));
    let uplink = uplink();
    let a = &scene.attacker;
    let syn = |a: &Attacker, to: Ipv4Addr, port: u16| a.tcp(to, (40_000, port), &[]);
    // Whatever answers: SYN and ACK of who listens, RST of a closed port that was reached, "port unreachable".
    let answers = |a: &Attacker, asked: &[(Ipv4Addr, u16)]| -> Vec<(Ipv4Addr, u16)> {
        let mut seen = Vec::new();
        for chunk in asked.chunks(250) {
            for (to, port) in chunk {
                a.send(&syn(a, *to, *port));
                a.send(&a.udp(*to, (40_000, *port), TEXT));
            }
            seen.extend(a.settle());
        }
        let of = |frame: &Frame| {
            let (protocol, from, _, message) = frame.ipv4()?;
            // Of an ICMP error: the port that was asked, after the header that it quotes.
            let at = if protocol == 1 { 8 + 20 + 2 } else { 0 };
            [1, 6].contains(&protocol).then(|| (from, u16::from_be_bytes([message[at], message[at + 1]])))
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
    // But for DNS and DHCP of its own gateway; a few of so many may be lost in the kernel's queue.
    let asked = 4 * 65_535 - 3;
    let counted = scene.counted("inet", "host");
    assert!((asked - 500..=asked).contains(&counted), "{counted} of {asked} were counted");
    for on in [true, false] {
        scene.br_netfilter(on);
        a.send(&syn(a, Ipv4Addr::LOCALHOST, 8081));
        a.send(&a.udp(uplink, (4000, 68), TEXT));
        a.send(&a.echo(uplink, 9));
        let seen = a.settle();
        let from_host = seen.iter().filter(|frame| frame.ipv4().is_some());
        assert_eq!(from_host.count(), 0, "{seen:?}");
    }
    assert_eq!((scene.counted("inet", "host") - counted, scene.counted("bridge", "martian")), (4, 2));
    scene.take_down(&[Wall::Chain("inet", "host_wall")]);
    let reached = answers(&scene.attacker, &[(uplink, 8080), (uplink, 22)]);
    assert_eq!(reached, [(uplink, 22), (uplink, 8080)], "with the wall down the host does not answer either");
    drop(listening);
}

#[test]
fn a_port_whose_bridge_somebody_has_removed_reaches_nothing_of_the_host() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    // Nobody repairs it.
    scene.take_down(&[]);
    lab.on_host("ip", &["link", "del", "br-vms"]);
    // As in the middle of a repair: the gateway has its address, the port no bridge yet.
    lab.on_host("ip", &["link", "add", "br-vms", "up", "type", "bridge"]);
    lab.on_host("ip", &["addr", "add", "10.100.0.1/16", "dev", "br-vms", "noprefixroute"]);
    let port = scene.attacker.port.clone();
    let device = lab.on_host("ip", &["-br", "link", "show", "dev", &port]);
    let mac = frames::mac(device.split_whitespace().nth(2).expect("a MAC"));
    let (passing, host) = (Sniffer::new(&lab.host, &port), lab.host.run(|| UdpSocket::bind("0.0.0.0:4000")));
    let host = host.expect("a socket");
    host.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    // Questions who has the gateway's address, with and without an own, and datagrams to the host under its own MAC and to all; what comes
    // back when the host has had them all.
    let attack = |a: &Attacker, text: &[u8]| {
        let asked = [a.ip, Ipv4Addr::UNSPECIFIED].map(|sender_ip| {
            let (target_mac, target_ip) = ([0; 6], a.gateway);
            let arp = frames::Arp { operation: 1, sender_mac: a.mac, sender_ip, target_mac, target_ip };
            frames::arp(a.mac, frames::BROADCAST, &arp)
        });
        let to_host = [(mac, uplink()), (frames::BROADCAST, uplink()), (mac, a.gateway)];
        let sent = to_host.map(|(to, address)| frames::udp(a.mac, to, a.ip, address, (4000, 4000), text));
        on_every_cpu(|| {
            asked.iter().chain(&sent).for_each(|frame| a.send(frame));
            // The host gets them in order.
            for _ in &sent {
                while !passing.receive(PATIENCE).expect("a frame at the port").has(text) {}
            }
            a.drain()
        })
        .concat()
    };
    let is_answer = |frame: &Frame| frame.arp().is_some_and(|arp| arp.operation == 2);
    let seen = attack(&scene.attacker, TEXT);
    assert!(!seen.iter().any(is_answer), "{seen:?}");

    scene.take_down(&[Wall::Rule("inet", "input", "from a port whose bridge somebody has removed")]);
    lab.on_host("sysctl", &["-qw", &format!("net.ipv4.conf.{port}.arp_ignore=0")]);
    let again: &[u8] = b"with the walls down";
    let seen = attack(&scene.attacker, again);
    assert!(seen.iter().any(is_answer), "{seen:?}");
    let mut bytes = [0; 100];
    let (length, _) = host.recv_from(&mut bytes).expect("a datagram of the guest");
    assert_eq!(&bytes[..length], again, "none came before");
}

#[test]
fn guests_are_closed_to_each_other() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let (a, v) = (&scene.attacker, &scene.victim);
    let frames = [
        a.udp(v.ip, (4000, 7000), TEXT),
        a.tcp(v.ip, (4000, 22), TEXT),
        a.packet(v.ip, 1, &frames::icmp_message(8, 1, TEXT)),
        a.packet(v.ip, 253, TEXT),
    ];
    // Routed by the host; what the attacker itself sent is seen on the bridge too.
    let gateway = a.gateway_mac;
    let is_it = move |frame: &Frame| frame.has(TEXT) && frame.source() == gateway;
    scene.stopped(
        &frames,
        is_it,
        ("inet", "closed"),
        &[Wall::Rule("inet", "inbound", "closed")],
        Watcher::Victim,
    );
}

#[test]
fn a_dhcp_answer_is_not_routed_to_a_neighbour_whatever_a_policy_says() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    scene.apply("vm_id = \"victim\"\ndefault_ingress = \"allow\"\n");
    let (a, v) = (&scene.attacker, &scene.victim);
    let frames = [a.udp(v.ip, (4000, 68), TEXT)];
    let gateway = a.gateway_mac;
    let is_it = move |frame: &Frame| frame.has(TEXT) && frame.source() == gateway;
    let wall = Wall::Rule("inet", "from_guest", "to a DHCP client");
    scene.stopped(&frames, is_it, ("inet", "dhcp_server"), &[wall], Watcher::Victim);
}

#[test]
fn loopback_is_out_of_reach_even_where_forwards_and_the_hosts_own_rules_lead_there() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    scene.guestnet(&["forward", "add", "victim", "--host-port", "8085"]);
    assert_eq!(lab.on_host("sysctl", &["-n", "net.ipv4.conf.br-vms.route_localnet"]).trim(), "1");
    // As an operator publishes a service of the host's loopback.
    let rule = "-t nat -A PREROUTING -p udp --dport 9000 -j DNAT --to-destination 127.0.0.1:9999";
    lab.on_host("iptables", &rule.split(' ').collect::<Vec<_>>());
    let local = lab.host.run(|| std::net::UdpSocket::bind("127.0.0.1:9999").unwrap());
    local.set_read_timeout(Some(PATIENCE)).unwrap();
    let a = &scene.attacker;
    let frames = [a.udp(Ipv4Addr::LOCALHOST, (4000, 9999), TEXT), a.udp(a.gateway, (4001, 9000), TEXT)];
    frames.iter().for_each(|frame| a.send(frame));
    a.settle();
    assert_eq!((scene.counted("bridge", "martian"), scene.counted("inet", "host")), (1, 1));
    local.set_nonblocking(true).unwrap();
    assert!(local.recv(&mut [0; 100]).is_err(), "a guest's packet reached the host's loopback");
    local.set_nonblocking(false).unwrap();
    scene.take_down(&[Wall::Rule("bridge", "own_address", "to loopback"), Wall::Chain("inet", "host_wall")]);
    for frame in &frames {
        scene.attacker.send(frame);
        assert!(local.recv(&mut [0; 100]).is_ok(), "with the walls down it does not get there either");
    }
}

const TWO: &str = "[[network]]\nname = \"two\"\nbridge_name = \"br-two\"\nbridge_ip = \"10.101.0.1/16\"\n\
                   vm_subnet = \"10.101.0.0/16\"\nenable_rate_limit = false\npool_size = 4\n";

#[test]
fn other_networks_gateways_and_every_address_of_the_host_are_out_of_reach() {
    let lab = Lab::new();
    // As of Docker's bridge, and of a service.
    for address in ["172.17.0.1/16", "203.0.113.5/32"] {
        lab.on_host("ip", &["addr", "add", address, "dev", "lo"]);
    }
    let mut scene = Scene::with(&lab, TWO);
    let a = &scene.attacker;
    let hosts: Vec<Ipv4Addr> = lab
        .on_host("ip", &["-o", "-4", "addr", "show"])
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok())
        .filter(|address: &Ipv4Addr| !address.is_loopback() && *address != a.gateway)
        .collect();
    let other: Ipv4Addr = "10.101.0.1".parse().unwrap();
    assert!(hosts.len() >= 4 && hosts.contains(&other), "{hosts:?}");
    let open = lab.host.run(|| std::net::UdpSocket::bind("0.0.0.0:9999").unwrap());
    open.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut frames = Vec::new();
    for to in &hosts {
        // What each gateway offers its own guests, and what somebody listens to.
        frames.extend([53, 67, 80, 9999].map(|port| a.udp(*to, (4000, port), TEXT)));
        frames.extend([22, 53, 80].map(|port| a.tcp(*to, (4000, port), TEXT)));
        frames.push(a.packet(*to, 1, &frames::icmp_message(8, 1, TEXT)));
    }
    for on in [true, false] {
        scene.br_netfilter(on);
        let before = scene.counted("inet", "host");
        frames.iter().for_each(|frame| scene.attacker.send(frame));
        let seen = scene.attacker.settle();
        assert!(seen.iter().all(|frame| frame.ipv4().is_none()), "{seen:?}");
        assert_eq!(scene.counted("inet", "host") - before, frames.len() as u64);
    }
    open.set_nonblocking(true).unwrap();
    assert!(open.recv(&mut [0; 100]).is_err());
    open.set_nonblocking(false).unwrap();
    scene.take_down(&[Wall::Chain("inet", "host_wall")]);
    for to in &hosts {
        scene.attacker.send(&scene.attacker.udp(*to, (4001, 9999), TEXT));
        assert!(open.recv(&mut [0; 100]).is_ok(), "with the wall down {to} is out of reach too");
        assert!(scene.attacker.ping(*to, PATIENCE).is_some());
    }
}

#[test]
fn guests_of_other_networks_are_as_closed_as_those_of_its_own() {
    let lab = Lab::new();
    let mut scene = Scene::with(&lab, TWO);
    let other = scene.guest("other", &["--network", "two"]);
    let a = &scene.attacker;
    let frames = [
        a.udp(other.ip, (4000, 7000), TEXT),
        a.tcp(other.ip, (4000, 7000), TEXT),
        a.packet(other.ip, 1, &frames::icmp_message(8, 1, TEXT)),
    ];
    frames.iter().for_each(|frame| a.send(frame));
    a.settle();
    assert!(other.settle().iter().all(|frame| !frame.has(TEXT)));
    assert_eq!(scene.counted("inet", "closed"), 3);
    scene.take_down(&[Wall::Rule("inet", "inbound", "closed")]);
    for frame in &frames {
        scene.attacker.send(frame);
        other.expect("it, with the wall down", |frame| frame.has(TEXT));
    }
}

#[test]
fn the_world_reaches_no_guest_by_its_own_address() {
    let lab = Lab::new();
    // A host beside ours, which knows the way.
    lab.in_inet("ip", &["route", "add", "10.100.0.0/16", "via", "198.51.100.1"]);
    let mut scene = Scene::new(&lab);
    let outside = lab.inet.run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
    outside.send_to(TEXT, (scene.victim.ip, 7000)).unwrap();
    until("the datagram never came to the wall", || scene.counted("inet", "closed") == 1);
    assert!(scene.victim.settle().iter().all(|frame| !frame.has(TEXT)));
    scene.take_down(&[Wall::Rule("inet", "inbound", "closed")]);
    outside.send_to(TEXT, (scene.victim.ip, 7000)).unwrap();
    scene.victim.expect("it, with the wall down", |frame| frame.has(TEXT));
}

#[test]
fn unused_addresses_of_the_subnet_do_not_leak_upstream() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    let unreachable = || -> u64 {
        let counted = lab.on_host("cat", &["/proc/net/snmp"]);
        let of: Vec<&str> = counted.lines().filter(|line| line.starts_with("Icmp:")).collect();
        let at = of[0].split(' ').position(|name| name == "OutDestUnreachs").unwrap();
        of[1].split(' ').nth(at).unwrap().parse().unwrap()
    };
    let unused = [Ipv4Addr::new(10, 100, 77, 77), Ipv4Addr::new(10, 100, 255, 254)];
    let frames = unused.map(|to| scene.attacker.udp(to, (4000, 7000), TEXT));
    let before = unreachable();
    frames.iter().for_each(|frame| scene.attacker.send(frame));
    // "Host unreachable" comes back, with what was sent.
    for to in unused {
        let quotes = move |frame: &Frame| frame.has(TEXT) && frame.has(&to.octets());
        let told = scene.attacker.expect("that nobody is there", quotes);
        assert_eq!((told.ipv4().unwrap().0, told.ipv4().unwrap().3[..2].to_vec()), (1, vec![3, 1]));
    }
    scene.attacker.settle_with(web());
    assert!(scene.inet.drain().iter().all(|frame| !frame.has(TEXT)));
    assert_eq!(unreachable() - before, 2);
    let wall = Wall::Host("ip route del unreachable 10.100.0.0/16");
    scene.comes_through(&frames, |frame| frame.has(TEXT), &[wall], Watcher::Inet);
}
