//! Policies and port forwards as an operator sets them and a guest meets them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use super::scene::{Scene, TEXT};
use crate::lab::attacker::Attacker;
use crate::lab::frames::{self, Frame};
use crate::lab::{Lab, WEB};

const PATIENCE: Duration = Duration::from_secs(5);

fn ports_seen(frames: &[Frame]) -> Vec<u16> {
    let port = |frame: &Frame| {
        let (protocol, _, _, rest) = frame.ipv4()?;
        (protocol == 17 && frame.has(TEXT)).then(|| u16::from_be_bytes([rest[2], rest[3]]))
    };
    let mut ports: Vec<u16> = frames.iter().filter_map(port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

const POLICY: &str = r#"
vm_id = "victim"
default_ingress = "deny"
[[rules]]
name = "not-7003"
direction = "ingress"
protocol = "udp"
port = 7003
action = "deny"
priority = 1
[[rules]]
name = "some-udp"
direction = "ingress"
protocol = "udp"
port_range = "7001-7004"
source = "10.100.0.0/16"
action = "allow"
priority = 2
"#;

#[test]
fn the_kernel_decides_what_policy_test_says() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    let dry = {
        let file = lab.directory().join("policy.toml");
        std::fs::write(&file, POLICY).unwrap();
        scene.json(&["policy", "apply", "-f", file.to_str().unwrap(), "--dry-run"])
    };
    assert_eq!(dry["changes"].as_array().unwrap().len(), 3, "{dry}");
    assert_eq!(scene.json(&["policy", "list"]), serde_json::json!([]), "a dry run changes nothing");
    scene.apply(POLICY);
    let (a, v) = (&scene.attacker, &scene.victim);
    let ports = 7000..7006_u16;
    for port in ports.clone() {
        a.send(&a.udp(v.ip, (4000, port), TEXT));
    }
    a.settle();
    let seen = ports_seen(&v.settle());
    let said = |port: u16| {
        let port = port.to_string();
        scene.json(&[
            "policy",
            "test",
            "--from",
            "attacker",
            "--to",
            "victim",
            "--protocol",
            "udp",
            "--port",
            &port,
        ])
    };
    let allowed: Vec<u16> = ports.filter(|port| said(*port)["action"] == "allow").collect();
    assert_eq!((seen.as_slice(), allowed.as_slice()), (&[7001, 7002, 7004][..], &[7001, 7002, 7004][..]));
    assert_eq!(said(7003)["rule"], "not-7003");
    let shown = scene.json(&["policy", "show", "victim"]);
    let counted: Vec<u64> = (0..2).map(|n| shown["rules"][n]["packets"].as_u64().unwrap()).collect();
    assert_eq!(counted, [1, 3], "{shown}");
    // Stored: the next start has it before its API answers.
    let daemon = scene.daemon;
    assert!(daemon.unwrap().stop().success());
    let daemon = crate::lab::Daemon::start_with(&lab, "[[network]]\nenable_rate_limit = false\n");
    scene.attacker.send(&a.udp(v.ip, (4100, 7001), TEXT));
    scene.attacker.send(&a.udp(v.ip, (4100, 7003), TEXT));
    scene.attacker.settle();
    assert_eq!(ports_seen(&scene.victim.settle()), [7001]);
    daemon.guestnet(&["policy", "delete", "victim"]);
    scene.attacker.send(&a.udp(v.ip, (4200, 7001), TEXT));
    scene.attacker.settle();
    assert_eq!(ports_seen(&scene.victim.settle()), Vec::<u16>::new());
}

#[test]
fn a_tighter_policy_ends_what_it_denies_and_nothing_else() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    scene.apply(POLICY);
    let (a, v) = (&scene.attacker, &scene.victim);
    for port in [7001, 7002] {
        a.send(&a.udp(v.ip, (4000, port), TEXT));
    }
    a.settle();
    assert_eq!(ports_seen(&v.settle()), [7001, 7002]);
    let answer = scene.apply(&POLICY.replace("port = 7003", "port = 7001"));
    assert_eq!(answer["ended_connections"], 1, "{answer}");
    for port in [7001, 7002] {
        a.send(&a.udp(v.ip, (4000, port), TEXT));
    }
    a.settle();
    assert_eq!(ports_seen(&v.settle()), [7002], "the live flow to 7001 went on");
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
    let web: Ipv4Addr = WEB.parse().unwrap();
    scene.guestnet(&["policy", "apply", "-f", &policies[0]]);
    let receive = |port: u16| {
        let socket = lab.inet.run(|| std::net::UdpSocket::bind((WEB, port)).unwrap());
        socket2::SockRef::from(&socket).set_recv_buffer_size(32 << 20).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    let (allowed, denied) = (receive(7001), receive(7002));
    let done = std::sync::atomic::AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            // Every packet is a connection of its own, which meets the policy of its moment.
            let mut sent = 0_u32;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let from = 1024 + u16::try_from(sent % 60_000).unwrap();
                scene.attacker.send(&scene.attacker.udp(web, (from, 7001), TEXT));
                scene.attacker.send(&scene.attacker.udp(web, (from, 7002), TEXT));
                sent += 1;
                std::thread::sleep(Duration::from_micros(200));
            }
            sent
        });
        for n in 0..20 {
            scene.guestnet(&["policy", "apply", "-f", &policies[(n + 1) % 2]]);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        sender.join().unwrap()
    });
    // The policy lets no ping out: what answers is the gateway, behind all that was sent before.
    scene.attacker.settle();
    let count =
        |socket: &std::net::UdpSocket| std::iter::from_fn(|| socket.recv(&mut [0; 200]).ok()).count() as u32;
    assert_eq!((count(&allowed), count(&denied)), (sent, 0));
}

#[test]
fn what_does_not_fit_is_refused_by_name_and_nothing_changes() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    scene.apply(POLICY);
    let before = scene.json(&["policy", "show", "victim"]);
    let file = lab.directory().join("bad");
    let refused = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let output =
            scene.daemon.as_ref().unwrap().client(&["policy", "apply", "-f", file.to_str().unwrap()]);
        (output.status.code(), crate::lab::text(&output))
    };
    let many = "[[rules]]\nname = \"r\"\ndirection = \"ingress\"\naction = \"allow\"\n".repeat(10_000);
    for (text, expected) in [
        (POLICY.replace("port = 7003", "port = 0"), "rules[0] \"not-7003\": port 0"),
        (POLICY.replace("7001-7004", "7004-7001"), "rules[1] \"some-udp\": port_range 7004-7001 is reversed"),
        (POLICY.replace("10.100.0.0/16", "fd00::/8"), "IPv6"),
        (POLICY.replacen("\"udp\"", "\"icmp\"", 1), "icmp has no ports"),
        (format!("vm_id = \"victim\"\n{many}"), "rules[1000] \"r\""),
        ("vm_id = \"victim\"\nrule = 1\n".into(), "unknown field"),
    ] {
        let (code, said) = refused(&text);
        assert!(code == Some(2) && said.contains(expected), "{code:?} {said}");
    }
    let (code, said) = refused(&POLICY.replace("\"victim\"", "\"nobody\""));
    assert!(code == Some(1) && said.contains("VM nobody"), "{said}");
    assert_eq!(scene.json(&["policy", "show", "victim"]), before);
    // Contradictions are no error: the answer says which rule decides.
    let crossing = POLICY.replace("priority = 1", "priority = 9");
    let answer = scene.apply(&crossing);
    assert!(answer["findings"].to_string().contains("contradict each other"), "{answer}");
}

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
    for guest in [&scene.attacker, &scene.victim] {
        let to = Ipv4Addr::new(198, 51, 100, 1);
        let macs = (guest.mac, guest.gateway_mac);
        guest.send(&frames::tcp(macs, (guest.ip, to), (5000, 8085), (frames::SYN, 1, 0), &[]));
        scene.victim.expect("the connection", |frame| {
            frame.ipv4().is_some_and(|(protocol, _, to, rest)| {
                protocol == 6 && to == scene.victim.ip && rest[2..4] == [0, 80]
            })
        });
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

#[test]
fn a_vm_takes_its_policy_and_its_forwards_with_it() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    scene.apply(POLICY);
    scene.guestnet(&["forward", "add", "victim", "--host-port", "8085"]);
    let Scene { daemon, victim, .. } = scene;
    let daemon = daemon.unwrap();
    drop(victim);
    daemon.guestnet(&["vm", "delete", "victim"]);
    assert_eq!(daemon.json(&["policy", "list"]), serde_json::json!([]));
    assert_eq!(daemon.json(&["forward", "list"]), serde_json::json!([]));
    daemon.guestnet(&["vm", "create", "victim"]);
    assert_eq!(daemon.client(&["policy", "show", "victim"]).status.code(), Some(1));
}

#[test]
fn the_service_keeps_only_the_capabilities_that_it_needs() {
    let lab = Lab::new();
    let daemon = crate::lab::Daemon::start(&lab);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    for task in tasks {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.map(|value| value.trim().to_owned()).unwrap_or_default()
        };
        // CHOWN, DAC_OVERRIDE, FOWNER, NET_BIND_SERVICE, NET_ADMIN, NET_RAW, SYS_ADMIN: no SYS_MODULE, SYS_PTRACE, SETUID …
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            assert_eq!(value(set), "000000000020340b", "{set} {status}");
        }
        assert_eq!(value("NoNewPrivs:"), "1");
    }
}

#[test]
fn spoofing_is_told_to_whoever_watches_once_and_with_a_count() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    let a = &scene.attacker;
    let frame = frames::udp(a.mac, a.gateway_mac, scene.victim.ip, WEB.parse().unwrap(), (1, 1), TEXT);
    for _ in 0..1000 {
        a.send(&frame);
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let events = loop {
        let events = scene.guestnet(&["events", "--kind", "spoof_denied", "--no-follow"]);
        let told: u64 = events
            .lines()
            .filter_map(|line| line.split("  ").last()?.trim().split(' ').next_back().map(|_| line))
            .filter_map(|line| line.split(" frames dropped").next()?.rsplit(' ').next()?.parse::<u64>().ok())
            .sum();
        if told >= 1000 {
            break events;
        }
        assert!(std::time::Instant::now() < deadline, "{events}");
        std::thread::yield_now();
    };
    assert!(events.lines().count() <= 3 && events.contains("attacker"), "{events}");
    let drops = scene.json(&["policy", "drops"]);
    assert!(drops["reasons"].to_string().contains("spoofed_address"), "{drops}");
}
