//! What a client is told, as a client of somebody else's reads it (busybox's udhcpc), and what went over the wire for it.

use std::collections::BTreeMap;
use std::time::Duration;

use dhcproto::v4::MessageType;

use crate::lab::lan::{self, Sniffer};
use crate::lab::{Daemon, Lab, Namespace, succeed, text};

const MAC: &str = "52:54:00:00:00:01";
const LIMIT: Duration = Duration::from_secs(60);

/// What udhcpc hands to its script when it has its lease, by name; `more` are its further arguments.
fn told(lab: &Lab, machine: &Namespace, more: &[&str]) -> BTreeMap<String, String> {
    let script = lab.directory().join("told");
    std::fs::write(&script, "#!/bin/sh\n[ $1 = bound ] && env >&2\nexit 0\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut client = machine.command("busybox");
    client
        .args(["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "10", "-T", "2", "-s"])
        .arg(&script)
        .args(more);
    let said = text(&client.output().expect("busybox"));
    let told: BTreeMap<_, _> = said
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert!(told.contains_key("ip"), "no lease: {said}");
    told
}

#[test]
fn every_option_reaches_a_client_that_asks_for_it() {
    let lab = Lab::new();
    lan::make(&lab);
    let machine = lan::machine(&lab, "p1", MAC);
    let network = r#"mtu = 1400
        lease_seconds = 600
        domain = "guests.example"
        [network.dhcp_options]
        ntp_servers = ["10.9.0.7"]
        tftp_server_name = "tftp.example"
        bootfile_name = "pxelinux.0"
        next_server = "10.9.0.8"
        captive_portal = "http://10.9.0.1/seed"
        domain_search = ["corp.example"]
        static_routes = ["10.1.0.0/16 via 10.9.0.9"]
        ipv6_only_seconds = 300
        vendor_identifying = "00000137020161"
        raw = { 252 = "68747470", 224 = "01" }"#;
    let daemon = Daemon::start_with(&lab, &lan::network(network));
    let own = "vendor_specific = \"010203\", raw = { 224 = \"0a0b\" }";
    daemon.guestnet(&["reservation", "add", MAC, "10.9.1.1", "--hostname", "front", "--dhcp-options", own]);
    let mut sniffer = Sniffer::new(&lab.host, lan::BRIDGE);

    let asked: Vec<String> =
        [1, 3, 6, 12, 15, 26, 28, 42, 43, 58, 59, 66, 67, 108, 114, 119, 121, 125, 224, 252]
            .iter()
            .flat_map(|code| ["-O".to_owned(), code.to_string()])
            .collect();
    let mut arguments: Vec<&str> = asked.iter().map(String::as_str).collect();
    // A name that it would like (81), and an identifier of its own (61).
    arguments.extend(["-F", "evil.example", "-x", "61:ff00aa"]);
    let told = told(&lab, &machine, &arguments);
    for (name, value) in [
        ("ip", "10.9.1.1"),
        ("mask", "16"),
        ("subnet", "255.255.0.0"),
        ("router", lan::SERVER),
        ("dns", lan::SERVER),
        ("hostname", "front"),
        ("domain", "guests.example"),
        ("mtu", "1400"),
        ("broadcast", "10.9.255.255"),
        ("ntpsrv", "10.9.0.7"),
        ("lease", "600"),
        ("serverid", lan::SERVER),
        ("siaddr", "10.9.0.8"),
        ("boot_file", "pxelinux.0"),
        ("sname", "tftp.example"),
        ("tftp", "tftp.example"),
        ("bootfile", "pxelinux.0"),
        ("search", "guests.example corp.example"),
        ("staticroutes", "10.1.0.0/16 10.9.0.9 0.0.0.0/0 10.9.0.1"),
    ] {
        assert_eq!(told.get(name).map(String::as_str), Some(value), "{name} in {told:#?}");
    }

    let ack = sniffer.wait("the ACK", LIMIT, |seen| seen.kind() == Some(MessageType::Ack));
    assert_eq!((ack.to_mac.as_str(), ack.to.to_string().as_str()), (MAC, "10.9.1.1"));
    let portal = b"http://10.9.0.1/seed";
    let name = b"front.guests.example";
    for (code, wanted) in [
        (43, &[1, 2, 3][..]),
        (51, &600u32.to_be_bytes()),
        (54, &[10, 9, 0, 1]),
        (58, &300u32.to_be_bytes()),
        (59, &525u32.to_be_bytes()),
        (61, &[0xff, 0, 0xaa]),
        (108, &300u32.to_be_bytes()),
        (114, portal),
        (125, &[0, 0, 1, 0x37, 2, 1, 0x61]),
        (224, &[10, 11]),
        (252, b"http"),
    ] {
        assert_eq!(ack.data(code).as_deref(), Some(wanted), "option {code}");
    }
    let fqdn = ack.data(81).expect("option 81");
    // As text, or in the form of the DNS, as the client asked.
    let plain: Vec<u8> = fqdn[3..].iter().map(|byte| if *byte < b'-' { b'.' } else { *byte }).collect();
    assert!(plain.windows(name.len()).any(|part| part == name), "{fqdn:?}");
    let lease = daemon.json(&["lease", "show", MAC]);
    assert!(lease["wished_hostname"].as_str().unwrap().contains("evil"), "{lease}");
    assert_eq!((&lease["hostname"], &lease["ip_address"]), (&"front".into(), &"10.9.1.1".into()));

    // What nobody asks for is not sent.
    sniffer.all();
    self::told(&lab, &machine, &["-o", "-O", "1"]);
    let ack = sniffer.wait("the ACK", LIMIT, |seen| seen.kind() == Some(MessageType::Ack));
    for code in [12, 15, 26, 42, 43, 66, 67, 81, 108, 114, 119, 121, 125, 224, 252] {
        assert_eq!(ack.data(code), None, "option {code}");
    }
}

#[test]
fn another_host_can_be_the_router_of_a_network_that_somebody_else_made() {
    const ROUTER: &str = "10.9.0.2";
    let lab = Lab::new();
    lan::make(&lab);
    let (machine, router) = (lan::machine(&lab, "p1", MAC), lan::machine(&lab, "p2", "52:54:00:00:00:02"));
    for (address, device) in [(format!("{ROUTER}/16"), "eth0"), ("203.0.113.1/32".to_owned(), "lo")] {
        succeed(router.command("ip").args(["addr", "add", &address, "dev", device]));
    }
    let daemon = Daemon::start_with(&lab, &lan::network(&format!("router = \"{ROUTER}\"")));
    // The next free address is not the router's, and nobody is given it.
    let added = daemon.json(&["reservation", "add", MAC]);
    assert_eq!(added[0]["ip_address"], "10.9.0.3");
    let refused = daemon.client(&["reservation", "add", "52:54:00:00:00:03", ROUTER]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));

    let told = told(&lab, &machine, &["-O", "router", "-O", "121", "-O", "dns"]);
    let of = |name: &str| told.get(name).map(String::as_str);
    assert_eq!((of("router"), of("staticroutes")), (Some(ROUTER), Some("0.0.0.0/0 10.9.0.2")), "{told:#?}");
    assert_eq!((of("dns"), of("serverid")), (Some(lan::SERVER), Some(lan::SERVER)), "{told:#?}");
    for arguments in
        [&["addr", "add", "10.9.0.3/16", "dev", "eth0"][..], &["route", "add", "default", "via", ROUTER]]
    {
        succeed(machine.command("ip").args(arguments));
    }
    succeed(machine.command("busybox").args(["ping", "-c", "1", "-W", "20", "203.0.113.1"]));
}
