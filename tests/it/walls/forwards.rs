//! Port forwards, from the world, the host and other guests, and what stays closed beside them.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use super::scene::{PATIENCE, Scene, TEXT, Wall, ports_seen, until, uplink};
use crate::lab::attacker::Attacker;
use crate::lab::frames;
use crate::lab::{Lab, Namespace};

/// The victim as a web server of one page: it answers whatever connects to `port`.
fn serve(victim: &Attacker, port: u16) {
    while let Some(frame) =
        victim.wait(PATIENCE, |frame| frame.ipv4().is_some_and(|(protocol, ..)| protocol == 6))
    {
        let (_, from, _, segment) = frame.ipv4().unwrap();
        let peer = u16::from_be_bytes([segment[0], segment[1]]);
        let number = |at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().unwrap());
        let (sequence, flags) = (number(4), segment[13]);
        let reply = |flags, own, acknowledged, text: &[u8]| {
            let addresses = (victim.ip, from);
            let macs = (victim.mac, victim.gateway_mac);
            victim.send(&frames::tcp(macs, addresses, (port, peer), (flags, own, acknowledged), text));
        };
        if flags & frames::SYN != 0 {
            reply(frames::SYN | frames::ACK, 1000, sequence.wrapping_add(1), &[]);
        } else if segment.len() > usize::from(segment[12] >> 4) * 4 {
            let text = (segment.len() - usize::from(segment[12] >> 4) * 4) as u32;
            reply(frames::PUSH | frames::ACK | 1, 1001, sequence.wrapping_add(text), TEXT);
            return;
        }
    }
}

/// Forwards a UDP port of the host to the victim.
fn forward_udp(scene: &Scene<'_>, at: &[&str]) {
    scene.guestnet(&[&["forward", "add", "victim", "--protocol", "udp"], at].concat());
}

#[test]
fn a_forwarded_port_leads_to_its_vm_from_the_world_the_host_and_other_guests() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    scene.guestnet(&["forward", "add", "victim", "--host-port", "8085", "--vm-port", "80"]);
    let fetch = |namespace: &crate::lab::Namespace, to: &str| -> Vec<u8> {
        std::thread::scope(|scope| {
            let server = scope.spawn(|| serve(&scene.victim, 80));
            let page = namespace.run(|| {
                let mut stream = TcpStream::connect_timeout(&to.parse().unwrap(), PATIENCE).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.write_all(b"hello").unwrap();
                let mut page = vec![0; TEXT.len()];
                stream.read_exact(&mut page).unwrap();
                page
            });
            server.join().unwrap();
            page
        })
    };
    assert_eq!(fetch(&lab.inet, "198.51.100.1:8085"), TEXT);
    assert_eq!(fetch(&lab.host, "127.0.0.1:8085"), TEXT, "by the host's loopback");
    assert_eq!(fetch(&lab.host, "198.51.100.1:8085"), TEXT);
    // Hairpin: another guest, and the guest itself, by the host's address.
    scene.br_netfilter(false);
    for guest in [&scene.attacker, &scene.victim] {
        let word = guest.vm_id.as_bytes();
        guest.send(&guest.tcp(uplink(), (5000, 8085), word));
        let came = scene.victim.expect("the connection", |frame| frame.has(word));
        let (protocol, _, to, segment) = came.ipv4().unwrap();
        assert_eq!((protocol, to, &segment[2..4]), (6, scene.victim.ip, &[0, 80][..]));
    }

    let failing = |arguments: &[&str]| {
        let output = scene.daemon.as_ref().unwrap().client(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        crate::lab::text(&output)
    };
    let listener = lab.host.run(|| std::net::TcpListener::bind("0.0.0.0:8086").unwrap());
    for (arguments, expected) in [
        (vec!["--host-port", "40000"], "ephemeral"),
        (vec!["--host-port", "8086"], "in use"),
        (vec!["--host-port", "8085"], "forwarded to VM victim already"),
        (vec!["--host-port", "8087", "--host-address", "192.0.2.1"], "no address of this host"),
        (vec!["--host-port", "8087", "--uplink", "nothere0"], "no device nothere0"),
    ] {
        let said = failing(&[vec!["forward", "add", "attacker"], arguments].concat());
        assert!(said.contains(expected), "{said}");
    }
    drop(listener);
    assert_eq!(scene.json(&["forward", "list"])[0]["vm_port"], 80);
    scene.guestnet(&["forward", "delete", "--host-port", "8085"]);
    let closed = lab
        .inet
        .run(|| TcpStream::connect_timeout(&"198.51.100.1:8085".parse().unwrap(), Duration::from_secs(1)));
    assert!(closed.is_err());
}

/// A UDP socket in `namespace` that talks to `to` alone.
fn client(namespace: &Namespace, to: &str) -> UdpSocket {
    let to: SocketAddr = to.parse().unwrap();
    let socket = namespace.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    namespace.run(|| socket.connect(to).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Asks, and has `guest` answer at `port`: whether the answer came from whom it asked. The socket takes no other.
fn asks(socket: &UdpSocket, guest: &Attacker, port: u16) -> bool {
    socket.send(TEXT).unwrap();
    let asked = guest.expect("the datagram", |frame| frame.has(TEXT));
    let (_, from, to, rest) = asked.ipv4().unwrap();
    let ports = [0, 2].map(|at| u16::from_be_bytes([rest[at], rest[at + 1]]));
    assert_eq!((to, ports[1]), (guest.ip, port));
    guest.send(&guest.udp(from, (port, ports[0]), b"an answer"));
    socket.recv(&mut [0; 100]).is_ok_and(|length| length == 9)
}

/// Whether what is sent to the host finds nobody there: its "port unreachable" comes back, and the guests see nothing.
fn is_refused(socket: &UdpSocket, guests: [&Attacker; 2]) -> bool {
    socket.send(TEXT).unwrap();
    let refused = socket.recv(&mut [0; 100]).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
    refused && guests.iter().all(|guest| guest.settle().iter().all(|frame| !frame.has(TEXT)))
}

#[test]
fn udp_is_forwarded_from_the_world_the_host_and_other_guests_and_answers_come_from_where_was_asked() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    let (a, v) = (&scene.attacker, &scene.victim);
    let outside = client(&lab.inet, "198.51.100.1:8053");
    assert!(is_refused(&outside, [a, v]));
    forward_udp(&scene, &["--host-port", "8053", "--vm-port", "53"]);
    assert!(asks(&outside, v, 53));
    assert!(asks(&client(&lab.host, "127.0.0.1:8053"), v, 53), "by the host's loopback");
    assert!(asks(&client(&lab.host, "198.51.100.1:8053"), v, 53), "by the host's own address");
    // Another guest, by the host's address; and the guest itself. Not with br_netfilter on, which has the kernel switch what it
    // has translated, and ports are isolated.
    scene.br_netfilter(false);
    a.send(&a.udp(uplink(), (5000, 8053), TEXT));
    let asked = v.expect("the datagram", |frame| frame.has(TEXT));
    assert_eq!(asked.ipv4().unwrap().1, a.ip, "the victim sees who asks");
    v.send(&v.udp(a.ip, (53, 5000), b"an answer to it"));
    let answer = a.expect("the answer", |frame| frame.has(b"an answer to it"));
    assert_eq!(answer.ipv4().unwrap().1, uplink());
    v.send(&v.udp(uplink(), (5001, 8053), b"a word to itself"));
    v.expect("its own word", |frame| frame.has(b"a word to itself"));
    // TCP of the same number is nobody's, and the same UDP port of the guest itself is closed to its neighbour.
    let syn = lab.inet.run(|| TcpStream::connect_timeout(&"198.51.100.1:8053".parse().unwrap(), PATIENCE));
    assert_eq!(syn.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    a.send(&a.udp(v.ip, (5002, 53), TEXT));
    a.settle();
    assert!(v.settle().iter().all(|frame| !frame.has(TEXT)));
    assert_eq!(scene.counted("inet", "closed"), 1);
    // When it goes, so do its live connections.
    scene.guestnet(&["forward", "delete", "--host-port", "8053", "--protocol", "udp"]);
    assert!(is_refused(&outside, [a, v]));
}

#[test]
fn a_forward_is_where_it_was_bound_to_and_nowhere_else() {
    let lab = Lab::new();
    lab.on_host("ip", &["addr", "add", "203.0.113.5/32", "dev", "lo"]);
    lab.in_inet("ip", &["route", "add", "203.0.113.5/32", "via", "198.51.100.1"]);
    let scene = Scene::new(&lab);
    let (a, v) = (&scene.attacker, &scene.victim);
    let add = |vm: &str, at: &[&str]| {
        let first = ["forward", "add", vm, "--protocol", "udp", "--vm-port", "53"];
        scene.guestnet(&[&first, at].concat());
    };
    // The same port of two addresses leads to two guests.
    add("victim", &["--host-port", "8053", "--host-address", "203.0.113.5"]);
    add("attacker", &["--host-port", "8053", "--host-address", "198.51.100.1"]);
    assert!(asks(&client(&lab.inet, "203.0.113.5:8053"), v, 53));
    assert!(asks(&client(&lab.inet, "198.51.100.1:8053"), a, 53));
    assert!(asks(&client(&lab.host, "203.0.113.5:8053"), v, 53));
    assert!(is_refused(&client(&lab.host, "127.0.0.1:8053"), [a, v]));
    // At loopback: the host's own, and nobody else's.
    add("victim", &["--host-port", "8054", "--host-address", "127.0.0.1"]);
    assert!(asks(&client(&lab.host, "127.0.0.1:8054"), v, 53));
    assert!(is_refused(&client(&lab.inet, "198.51.100.1:8054"), [a, v]));
    // By the uplink: what enters there, to any address of the host.
    add("victim", &["--host-port", "8055", "--uplink", "up0"]);
    assert!(asks(&client(&lab.inet, "198.51.100.1:8055"), v, 53));
    assert!(asks(&client(&lab.inet, "203.0.113.5:8055"), v, 53));
    for host in ["127.0.0.1:8055", "198.51.100.1:8055"] {
        assert!(is_refused(&client(&lab.host, host), [a, v]), "{host}");
    }
    // From a guest it is a port of the host, which is closed.
    let before = scene.counted("inet", "host");
    a.send(&a.udp(uplink(), (5000, 8055), TEXT));
    a.settle();
    assert!(v.settle().iter().all(|frame| !frame.has(TEXT)));
    assert_eq!(scene.counted("inet", "host") - before, 1);
}

#[test]
fn forwards_and_their_live_connections_outlast_the_service() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    forward_udp(&scene, &["--host-port", "8053", "--vm-port", "53"]);
    forward_udp(&scene, &["--host-port", "8056", "--uplink", "up0"]);
    let before = scene.json(&["forward", "list"]);
    let live = client(&lab.inet, "198.51.100.1:8053");
    assert!(asks(&live, &scene.victim, 53));
    // Its address and port as the guest sees them; the other side must not notice anything.
    scene.daemon.take().unwrap().crash();
    assert!(asks(&live, &scene.victim, 53), "while the service is down");
    assert!(asks(&client(&lab.inet, "198.51.100.1:8056"), &scene.victim, 8056), "a new one while it is down");
    scene.daemon = Some(crate::lab::Daemon::start_with(&lab, "[[network]]\nenable_rate_limit = false\n"));
    assert_eq!(scene.json(&["forward", "list"]), before);
    assert!(asks(&live, &scene.victim, 53), "after it");
    assert!(asks(&client(&lab.inet, "198.51.100.1:8056"), &scene.victim, 8056));
    assert!(asks(&client(&lab.host, "127.0.0.1:8053"), &scene.victim, 53));
}

#[test]
fn a_policy_goes_before_a_forward() {
    let lab = Lab::new();
    let mut scene = Scene::new(&lab);
    forward_udp(&scene, &["--host-port", "8053", "--vm-port", "53"]);
    let outside = client(&lab.inet, "198.51.100.1:8053");
    assert!(asks(&outside, &scene.victim, 53));
    // It ends what it denies, though that came by a forward and is not from a guest.
    let answer = scene.apply(
        "vm_id = \"victim\"\n[[rules]]\nname = \"not-the-web-server\"\ndirection = \"ingress\"\n\
         source = \"198.51.100.10\"\naction = \"deny\"\n",
    );
    assert_eq!(answer["ended_connections"], 1, "{answer}");
    outside.send(TEXT).unwrap();
    until("the datagram never came to the wall", || scene.counted("inet", "policy") == 1);
    assert!(scene.victim.settle().iter().all(|frame| !frame.has(TEXT)));
    assert_eq!(scene.rule_counts(&["victim"]), [1]);
    // The host itself is no such source.
    assert!(asks(&client(&lab.host, "127.0.0.1:8053"), &scene.victim, 53));
    scene.take_down(&[Wall::Chain("inet", "denied_by_policy")]);
    outside.send(TEXT).unwrap();
    assert_eq!(ports_seen(&[scene.victim.expect("it", |frame| frame.has(TEXT))], 17), [53]);
}
