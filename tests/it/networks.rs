//! Several networks on one host: each with its own bridge, subnet, DNS, limits and MTU, closed to each other.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::lab::{Daemon, Lab, TapGuest, UPLINK, WEB, assert_says};

const NETWORKS: &str = r#"
[[network]]
name = "front"
domain = "front.example"
rate_limit_mbps = 50
reserved_ranges = ["10.100.0.2-10.100.0.9"]

[[network]]
name = "store"
bridge_name = "br-store"
bridge_ip = "10.200.0.254/24"
vm_subnet = "10.200.0.0/24"
dns = "off"
dns_servers = ["8.8.4.4"]
enable_rate_limit = false
mtu = 9000
"#;

fn reaches(guest: &TapGuest, address: &str) -> bool {
    let mut ping = guest.namespace.command("busybox");
    ping.args(["ping", "-c", "1", "-W", "2", address]).output().unwrap().status.success()
}

#[test]
fn each_network_has_its_own_settings_and_is_closed_to_the_others() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, NETWORKS);
    let front = daemon.json(&["vm", "create", "front-1"]);
    let store = daemon.json(&["vm", "create", "store-1", "--network", "store"]);
    let facts = [
        "network_id",
        "ip_address",
        "prefix_len",
        "gateway",
        "domain",
        "mtu",
        "rate_limit_mbps",
        "dns_servers",
    ];
    let of = |vm: &serde_json::Value| facts.map(|fact| vm[fact].to_string()).join(" ");
    assert_eq!(of(&front), r#""front" "10.100.0.10" 16 "10.100.0.1" "front.example" 1500 50 ["10.100.0.1"]"#);
    assert_eq!(of(&store), r#""store" "10.200.0.1" 24 "10.200.0.254" "vm.internal" 9000 0 ["8.8.4.4"]"#);

    let (a, b) = (TapGuest::attach(&lab, &front), TapGuest::attach(&lab, &store));
    for (guest, own, other) in [(&a, "10.100.0.1", "10.200.0.254"), (&b, "10.200.0.254", "10.100.0.1")] {
        assert!(reaches(guest, own) && reaches(guest, WEB));
        assert!(!reaches(guest, other), "a guest reached the gateway {other} of another network");
    }
    // Both answer the host: they are there, and closed to each other.
    for address in ["10.100.0.10", "10.200.0.1"] {
        lab.on_host("busybox", &["ping", "-c", "1", "-W", "5", address]);
    }
    assert!(!reaches(&a, "10.200.0.1") && !reaches(&b, "10.100.0.10"));
    let listener = b.namespace.run(|| TcpListener::bind("10.200.0.1:80").unwrap());
    let reached = a.namespace.run(|| {
        TcpStream::connect_timeout(&"10.200.0.1:80".parse().unwrap(), std::time::Duration::from_secs(2))
            .is_ok()
    });
    assert!(!reached, "a guest reached a service of a guest of another network");
    drop(listener);

    let networks = daemon.json(&["network", "list"]);
    let counted = |at: usize| (networks[at]["vm_count"].as_u64(), networks[at]["free_addresses"].as_u64());
    assert_eq!(counted(0), (Some(1), Some(65_533 - 8 - 1)));
    assert_eq!(counted(1), (Some(1), Some(253 - 1)));
    let reserved = daemon.client(&["vm", "create", "front-2", "--ip", "10.100.0.9"]);
    assert_says(&reserved, 2, &["10.100.0.9", "reserved"]);
}

#[test]
fn jumbo_frames_pass_whole() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, NETWORKS);
    let vm = daemon.json(&["vm", "create", "store-1", "--network", "store"]);
    let guest = TapGuest::attach(&lab, &vm);
    guest.run("busybox", &["ping", "-c", "1", "-W", "5", "10.200.0.254"]);
    let sent = |daemon: &Daemon<'_>| daemon.json(&["stats", "store-1"])[0]["tx_packets"].as_u64().unwrap();
    let before = sent(&daemon);
    guest.run("busybox", &["ping", "-c", "1", "-W", "5", "-s", "8900", "10.200.0.254"]);
    assert_eq!(sent(&daemon) - before, 1, "a jumbo frame was sent in pieces");

    // TCP learns the smaller MTU on its way (RFC 1191): as much as it likes gets to the internet.
    let listener = lab.inet.run(|| TcpListener::bind((WEB, 5001)).unwrap());
    let mut own = guest.namespace.run(|| TcpStream::connect((WEB, 5001)).unwrap());
    let (mut other, from) = listener.accept().unwrap();
    assert_eq!(from.ip().to_string(), UPLINK);
    let sender = std::thread::spawn(move || own.write_all(&vec![1; 1 << 20]).unwrap());
    let mut received = Vec::new();
    other.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    other.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), 1 << 20);
    sender.join().unwrap();
}

#[test]
fn an_mtu_larger_than_the_uplinks_is_told_of_by_name_and_others_interfaces_must_carry_it() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, NETWORKS);
    let warned: Vec<String> =
        daemon.log().lines().filter(|line| line.contains("uplink_mtu")).map(Into::into).collect();
    assert_eq!(warned.len(), 1, "{warned:?}");
    for said in ["\"network\":\"store\"", "9000", "up0", "1500"] {
        assert!(warned[0].contains(said), "{said}: {}", warned[0]);
    }
    drop(daemon);

    let lab = Lab::new();
    crate::lab::lan::make(&lab);
    let refused =
        crate::lab::daemon::serve_command(&lab, &crate::lab::lan::network("mtu = 9000")).output().unwrap();
    assert_says(&refused, 2, &["mtu 9000 of network lan", "lan0 carries 1500"]);
}

#[test]
fn guests_on_different_bridges_of_one_subnet_talk_as_policy_says() {
    let lab = Lab::new();
    // A bridge for each guest.
    let start =
        || Daemon::start_with_env(&lab, "[[network]]\npool_size = 0\n", &[("GUESTNET_PORTS", "1".as_ref())]);
    let daemon = start();
    let bridges = ["br-vms", "br-vms-1", "br-vms-2"];
    let vms = ["vm0", "vm1", "vm2"].map(|vm_id| daemon.json(&["vm", "create", vm_id]));
    let address = |at: usize| vms[at]["ip_address"].as_str().unwrap();
    let macs = bridges.map(|bridge| {
        let shown = lab.on_host("ip", &["-o", "addr", "show", bridge]);
        assert!(shown.contains(" 10.100.0.1/16 "), "{shown}");
        lab.on_host("cat", &[&format!("/sys/class/net/{bridge}/address")])
    });
    assert!(macs.iter().all(|mac| *mac == macs[0]), "one gateway: {macs:?}");
    for (vm, bridge) in vms.iter().zip(bridges) {
        let port = lab.on_host("bridge", &["link", "show", "dev", vm["host_device"].as_str().unwrap()]);
        assert!(port.contains(&format!("master {bridge} ")), "{port}");
        let route = lab.on_host("ip", &["route", "show", vm["ip_address"].as_str().unwrap()]);
        assert!(route.contains(&format!("dev {bridge} ")), "{route}");
    }
    assert!(lab.on_host("ip", &["route", "show", "10.100.0.0/16"]).contains("unreachable"));

    let guests = [0, 1, 2].map(|at| TapGuest::attach(&lab, &vms[at]));
    let online = || {
        for (guest, vm) in guests.iter().zip(&vms) {
            guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
            guest.run("busybox", &["nslookup", "-type=a", "vm2.vm.internal", "10.100.0.1"]);
            let mut leased = guest.namespace.command("busybox");
            leased.args(["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-s", "/bin/true"]);
            let leased = crate::lab::text(&leased.output().unwrap());
            assert!(leased.contains(vm["ip_address"].as_str().unwrap()), "{leased}");
        }
    };
    // What gets to the last guest from each of the others: TCP to port 80, to another, and a ping.
    let listeners =
        [80, 81].map(|port| guests[2].namespace.run(|| TcpListener::bind(("0.0.0.0", port)).unwrap()));
    // As long as it takes where it is to get there; who is to get nowhere is not given so long.
    let open = |from: usize, wanted: [bool; 3]| {
        let seconds = wanted.map(|wanted| if wanted { 20 } else { 1 });
        let connects = |port: u16, seconds| {
            let to = format!("{}:{port}", address(2)).parse().unwrap();
            let limit = std::time::Duration::from_secs(seconds);
            guests[from].namespace.run(|| TcpStream::connect_timeout(&to, limit).is_ok())
        };
        let mut ping = guests[from].namespace.command("busybox");
        ping.args(["ping", "-c", "1", "-W", &seconds[2].to_string(), address(2)]);
        let found =
            [connects(80, seconds[0]), connects(81, seconds[1]), ping.output().unwrap().status.success()];
        assert_eq!(found, wanted, "port 80, port 81 and a ping, from the guest of {}", bridges[from]);
    };
    let (all, none) = ([true; 3], [false; 3]);
    let apply = |policy: &str| {
        let file = lab.directory().join("policy.toml");
        std::fs::write(&file, policy).unwrap();
        daemon.guestnet(&["policy", "apply", "-f", file.to_str().unwrap()]);
    };
    online();
    // Closed without a policy.
    open(0, none);
    open(1, none);
    let rule = "[[rules]]\nname = \"web\"\ndirection = \"ingress\"\nprotocol = \"tcp\"\nport = 80\naction = \"allow\"\n";
    apply(&format!("vm_id = \"vm2\"\n{rule}source = \"{}/32\"\n", address(0)));
    open(0, [true, false, false]);
    open(1, none);
    apply("vm_id = \"vm2\"\ndefault_ingress = \"allow\"\n");
    open(0, all);
    open(1, all);
    assert!(!reaches(&guests[2], address(0)), "a way in is none out");
    apply("vm_id = \"vm1\"\ndefault_egress = \"deny\"\n");
    open(0, all);
    open(1, none);
    daemon.guestnet(&["policy", "delete", "vm1"]);

    // Another run of the service takes all bridges over; without the policy they are closed again.
    daemon.crash();
    let daemon = start();
    online();
    open(0, all);
    open(1, all);
    daemon.guestnet(&["policy", "delete", "vm2"]);
    open(0, none);
    open(1, none);
    drop((listeners, guests));
    crate::crash::assert_consistent(&lab, &daemon);
}

#[test]
fn no_bridge_has_more_ports_than_it_may_however_many_are_built_at_a_time() {
    let lab = Lab::new();
    let networks = "[[network]]\npool_size = 2\n";
    let daemon = Daemon::start_with_env(&lab, networks, &[("GUESTNET_PORTS", "2".as_ref())]);
    let ports_by_bridge = || {
        let shown: serde_json::Value =
            serde_json::from_str(&lab.on_host("bridge", &["-j", "link", "show"])).unwrap();
        let mut ports = std::collections::BTreeMap::<String, usize>::new();
        for port in shown.as_array().unwrap() {
            *ports.entry(port["master"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        ports
    };
    for round in 0..2 {
        // A slot of several queues is built by the call itself, those beside it by the stock that the others leave short.
        std::thread::scope(|scope| {
            for n in 0..10 {
                let daemon = &daemon;
                let queues = if n % 5 == 4 { &[][..] } else { &["--tap-multi-queue"] };
                scope
                    .spawn(move || daemon.guestnet(&[&["vm", "create", &format!("vm{n}")], queues].concat()));
            }
        });
        crate::consistent::assert_consistent(&lab, &daemon);
        let ports = ports_by_bridge();
        assert!(ports.values().all(|ports| *ports <= 2), "round {round}: {ports:?}");
        // What was taken for one that has gone is another's.
        assert!(ports.len() <= 7, "round {round}: {ports:?}");
        for n in 0..10 {
            daemon.guestnet(&["vm", "delete", &format!("vm{n}")]);
        }
        crate::slots::eventually("only the stock is left", || crate::slots::slots(&lab) <= 2);
    }
}

#[test]
fn a_guest_with_an_address_that_one_of_a_former_network_had_keeps_its_connections_over_restarts() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    for vm in [["vm1", "10.100.0.9"], ["vm2", "10.100.0.8"]] {
        daemon.guestnet(&["vm", "create", vm[0], "--ip", vm[1]]);
        daemon.guestnet(&["vm", "delete", vm[0]]);
    }
    assert!(daemon.stop().success());
    let renamed = "[[network]]\nname = \"blue\"\npool_size = 2\n";
    let daemon = Daemon::start_with(&lab, renamed);
    let vm = daemon.json(&["vm", "create", "vm1", "--ip", "10.100.0.9"]);
    let guest = TapGuest::attach(&lab, &vm);
    let client = guest.namespace.run(|| std::net::UdpSocket::bind("0.0.0.0:4000").unwrap());
    client.send_to(b"a question", (WEB, 7)).unwrap();
    let tracked = || lab.on_host("conntrack", &["-L", "-s", "10.100.0.9", "-p", "udp", "--dport", "7"]);
    crate::slots::eventually("it is tracked", || tracked().contains("10.100.0.9"));
    daemon.crash();
    // As an earlier guestnet has left it.
    let database =
        rusqlite::Connection::open(crate::lab::daemon::Paths::of(&lab).state.join("guestnet.db")).unwrap();
    database.execute("INSERT INTO freed VALUES ('default', '10.100.0.9', 1)", []).unwrap();
    let daemon = Daemon::start_with(&lab, renamed);
    assert!(tracked().contains("10.100.0.9"));
    assert!(daemon.stop().success());
    let freed = "SELECT count(*) FROM freed";
    let freed: i64 = database.query_row(freed, [], |row| row.get(0)).unwrap();
    assert_eq!(freed, 0);
}
