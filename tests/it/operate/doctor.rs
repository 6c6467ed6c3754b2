//! `guestnet doctor`: each thing that can be broken in a lab is broken, found, named and mended by the command that it says.

mod breakages;
mod firewalls;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::crash::Faults;
use crate::lab::tap_guest::open_tap;
use crate::lab::{Daemon, Lab, TapGuest, succeed, text};

/// Networks of the lab's own upstreams only, so that doctor need not wait for the dead.
fn examine(daemon: &Daemon<'_>, arguments: &[&str]) -> (Output, Vec<Value>) {
    let arguments = [&["doctor"], arguments, &["--json"]].concat();
    let output = daemon.client(&arguments);
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output)));
    let wrong = report["findings"].as_array().unwrap().iter().filter(|finding| finding["verdict"] != "ok");
    let wrong: Vec<Value> = wrong.cloned().collect();
    wrong.iter().for_each(assert_mendable);
    let sick = wrong.iter().any(|finding| finding["verdict"] == "problem");
    assert_eq!(output.status.code(), Some(i32::from(sick)), "{}", text(&output));
    assert_eq!(report["healthy"], !sick);
    (output, wrong)
}

/// By a command that a shell understands, or in words.
fn assert_mendable(finding: &Value) {
    assert!(finding["mend"].is_string() || finding["advice"].is_string(), "{finding}");
    if let Some(command) = finding["mend"].as_str() {
        succeed(std::process::Command::new("sh").args(["-n", "-c", command]));
    }
}

/// This machine's own state shows through the lab's namespaces: no /dev/kvm, a clock that nobody sets.
fn of_the_lab(mut wrong: Vec<Value>) -> Vec<Value> {
    wrong.retain(|finding| !["kvm", "clock"].contains(&finding["check"].as_str().unwrap()));
    wrong
}

/// What doctor complains of in this lab.
fn findings(daemon: &Daemon<'_>) -> Vec<Value> {
    of_the_lab(findings_of_all(daemon))
}

fn findings_of_all(daemon: &Daemon<'_>) -> Vec<Value> {
    examine(daemon, &[]).1
}

/// A finding of a host whose service does not run.
fn of_a_dead_service(lab: &Lab, check: &str) -> Value {
    let all = all_of_a_dead_service(lab);
    let found = all.iter().find(|finding| finding["check"] == check);
    found.unwrap_or_else(|| panic!("no {check}: {all:#?}")).clone()
}

fn all_of_a_dead_service(lab: &Lab) -> Vec<Value> {
    let mut doctor = lab.host_command(crate::lab::guestnet_binary());
    let output = doctor.args(["--socket", "/run/none", "doctor", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["findings"].as_array().unwrap().clone()
}

/// The one finding, with its check's name and words in what was seen.
fn only(wrong: Vec<Value>, check: &str, verdict: &str, seen: &str) -> Value {
    let wrong = of_the_lab(wrong);
    let [finding] = wrong.as_slice() else { panic!("not only {check}: {wrong:#?}") };
    assert_eq!(
        (finding["check"].as_str(), finding["verdict"].as_str()),
        (Some(check), Some(verdict)),
        "{finding}"
    );
    assert!(finding["seen"].as_str().unwrap().contains(seen), "{finding}");
    assert!(!finding["meaning"].as_str().unwrap().is_empty(), "{finding}");
    finding.clone()
}

/// Runs the command that a finding names, on the lab's host.
fn mend(lab: &Lab, finding: &Value) {
    let command = finding["mend"].as_str().unwrap();
    lab.on_host("sh", &["-c", command]);
}

#[test]
fn a_healthy_host_passes_and_each_breakage_is_found_and_mended_by_what_doctor_says() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let (output, wrong) = examine(&daemon, &[]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(of_the_lab(wrong), Vec::<Value>::new());

    let broken: [(&[&str], &str, &str, &str); 5] = [
        (&["sysctl", "-qw", "net.ipv4.ip_forward=0"], "ip_forward", "problem", "is 0"),
        (&["sysctl", "-qw", "net.ipv4.conf.all.send_redirects=1"], "redirects", "warning", "is 1"),
        (
            &["ip", "route", "add", "10.100.7.0/24", "via", "198.51.100.10"],
            "routes",
            "problem",
            "10.100.7.0/24",
        ),
        (&["ip", "netns", "add", "vm-forgotten"], "stale", "warning", "vm-forgotten"),
        (&["ip", "link", "set", "up0", "mtu", "1280"], "mtu", "warning", "1280"),
    ];
    for (breaking, check, verdict, seen) in broken {
        lab.on_host(breaking[0], &breaking[1..]);
        let (_, wrong) = examine(&daemon, &[]);
        let finding = only(wrong, check, verdict, seen);
        if check == "mtu" {
            lab.on_host("ip", &["link", "set", "up0", "mtu", "1500"]);
        } else {
            mend(&lab, &finding);
        }
        let (_, wrong) = examine(&daemon, &[]);
        assert_eq!(of_the_lab(wrong), Vec::<Value>::new(), "{check} is not mended");
    }
}

/// What the service puts right by itself is wrong only while it does not run.
#[test]
fn what_is_broken_while_the_service_is_down_is_named() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    assert!(daemon.stop().success());
    let broken: [(&[&str], &str, &str); 5] = [
        (&["iptables", "-I", "FORWARD", "1", "-i", "br-vms", "-j", "DROP"], "forward", "-i br-vms -j DROP"),
        (&["iptables", "-F", "FORWARD"], "forward", "no rule of guestnet"),
        (&["iptables", "-F", "INPUT"], "input", "no rule of guestnet"),
        (&["iptables", "-t", "nat", "-F", "POSTROUTING"], "nat", "10.100.0.0/16"),
        (&["ip", "link", "set", "br-vms", "down"], "bridge", "br-vms is down"),
    ];
    for (breaking, check, seen) in broken {
        lab.on_host(breaking[0], &breaking[1..]);
        let found = of_a_dead_service(&lab, check);
        assert_eq!(found["verdict"], "problem");
        assert!(found["seen"].as_str().unwrap().contains(seen), "{found}");
    }
    // The next start puts all of it right.
    let daemon = Daemon::start(&lab);
    assert_eq!(of_the_lab(examine(&daemon, &[]).1), Vec::<Value>::new());
}

#[test]
fn what_only_the_operator_can_mend_is_named_too() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    // Docker, ufw: a flushed firewall with a policy of DROP.
    lab.on_host("iptables", &["-P", "FORWARD", "DROP"]);
    assert_eq!(of_the_lab(examine(&daemon, &[]).1), Vec::<Value>::new(), "guestnet's own rules go first");
    drop(daemon);

    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, "[[network]]\ndns_servers = [\"8.8.8.8\", \"198.51.100.99\"]");
    only(examine(&daemon, &[]).1, "upstreams", "warning", "198.51.100.99");
    lab.on_host("ip", &["route", "del", "default"]);
    let (_, wrong) = examine(&daemon, &[]);
    let checks: Vec<&str> = wrong.iter().map(|finding| finding["check"].as_str().unwrap()).collect();
    assert!(checks.contains(&"uplink") && checks.contains(&"upstreams"), "{checks:?}");
    drop(daemon);

    let dead = lab
        .host_command(crate::lab::guestnet_binary())
        .args(["--socket", "/run/none", "doctor"])
        .output()
        .unwrap();
    assert_eq!(dead.status.code(), Some(1));
    assert!(text(&dead).contains("systemctl start guestnet"), "{}", text(&dead));
}

#[test]
fn a_dhcp_server_is_one_of_guests_only_where_it_hears_them() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    lab.on_host("ip", &["link", "add", "virbr0", "type", "bridge"]);
    let listens = |device: Option<&'static str>| {
        lab.host.run(move || {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
            // As dnsmasq does, beside one of another device.
            socket.set_reuse_address(true).unwrap();
            socket.bind_device(device.map(str::as_bytes)).unwrap();
            socket.bind(&SocketAddr::from(([0, 0, 0, 0], 67)).into()).unwrap();
            socket
        })
    };
    // As dnsmasq does for a network of libvirt.
    let _libvirts = listens(Some("virbr0"));
    assert_eq!(findings(&daemon), Vec::<Value>::new());
    // What hears guests is in the way of the service itself: it is there first, or while that is down.
    assert!(daemon.stop().success());
    for (device, seen) in [(Some("br-vms"), "UDP 0.0.0.0:67 of br-vms"), (None, "UDP 0.0.0.0:67")] {
        let other = listens(device);
        let found = of_a_dead_service(&lab, "dhcp");
        assert_eq!(found["verdict"], "warning", "{found}");
        assert!(found["seen"].as_str().unwrap().ends_with(seen), "{found}");
        assert!(found["meaning"].as_str().unwrap().contains("except-interface=br-vms"), "{found}");
        drop(other);
    }
}

/// What is behind the socket and does not answer is not a service that is down; nor is a configuration that does not fit.
#[test]
fn a_service_that_fails_and_a_configuration_that_does_not_fit_are_told_from_a_service_that_is_down() {
    let lab = Lab::new();
    let socket = lab.directory().join("mute.sock");
    let mute = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || mute.incoming().for_each(drop));
    let doctor = |socket: &Path, variables: &[(&str, &str)]| -> Vec<Value> {
        let mut doctor = lab.host_command(crate::lab::guestnet_binary());
        doctor.arg("--socket").arg(socket).args(["doctor", "--json"]).envs(variables.iter().copied());
        let report: Value = serde_json::from_slice(&doctor.output().unwrap().stdout).unwrap();
        report["findings"].as_array().unwrap().clone()
    };
    let of = |found: &[Value], check: &str| found.iter().find(|finding| finding["check"] == check).cloned();
    let fails = of(&doctor(&socket, &[]), "service").unwrap();
    assert_eq!((&fails["verdict"], &fails["mend"]), (&"problem".into(), &"journalctl -u guestnet -e".into()));
    let silent = doctor(Path::new("/run/none"), &[]);
    let service = of(&silent, "service").unwrap();
    assert!(service["mend"].as_str().unwrap().starts_with("systemctl start guestnet"), "{service}");
    assert_eq!(of(&silent, "configuration"), None);

    // The service is where it should be, and who asks has named another socket.
    let daemon = Daemon::start(&lab);
    let default = "mkdir -p /run/guestnet && ln -s \"$0\" /run/guestnet/guestnet.sock";
    lab.on_host("sh", &["-ec", default, daemon.socket().to_str().unwrap()]);
    let misnamed = of(&doctor(Path::new("/run/none"), &[]), "service").unwrap();
    let seen = "nobody is at that socket; the service's is /run/guestnet/guestnet.sock";
    assert!(misnamed["seen"].as_str().unwrap().contains(seen), "{misnamed}");
    assert_eq!(misnamed["mend"], "guestnet --socket /run/guestnet/guestnet.sock doctor");
    drop(daemon);

    let unfit = [("UNKEY_METALD_NETWORK_BRIDGE_IP", "ten")];
    let found = of(&doctor(Path::new("/run/none"), &unfit), "configuration").unwrap();
    assert_eq!(found["verdict"], "problem", "{found}");
    assert!(found["seen"].as_str().unwrap().contains("UNKEY_METALD_NETWORK_BRIDGE_IP"), "{found}");
}

#[test]
fn one_guests_way_is_followed_hop_by_hop_to_where_packets_stop() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "");
    let daemon = faults.start();
    let vm = daemon.json(&["vm", "create", "a"]);
    let port = vm["host_device"].as_str().unwrap();
    let stop = |daemon: &Daemon<'_>| {
        let output = daemon.client(&["doctor", "a", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), report["conclusion"].as_str().unwrap().to_owned())
    };
    let (code, conclusion) = stop(&daemon);
    assert_eq!(
        (code, conclusion.as_str()),
        (Some(1), "packets stop at: tap (nobody has tap0 open)"),
        "no VMM runs"
    );

    // A VMM without a guest in it that speaks: known by what has never come from it.
    let inside = lab.host.enter(Path::new("/run/netns/vm-a"));
    let vmm = inside.run(|| open_tap("tap0", libc::IFF_VNET_HDR).unwrap());
    let (code, conclusion) = stop(&daemon);
    assert_eq!(code, Some(1));
    let silent = "packets stop at: traffic (no frame has ever come from the guest;";
    assert!(conclusion.starts_with(silent), "{conclusion}");
    let guest = TapGuest::attach_to(vmm, &vm);
    guest.run("busybox", &["ping", "-c", "1", "-W", "20", vm["gateway"].as_str().unwrap()]);
    assert_eq!(stop(&daemon), (Some(0), "every hop is as it should be".into()));

    // Hops of the host are the guest's too.
    lab.on_host("sysctl", &["-qw", "net.ipv4.ip_forward=0"]);
    assert_eq!(stop(&daemon).1, "packets stop at: ip_forward (net.ipv4.ip_forward is 0)");
    lab.on_host("sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
    // What the service would put right by itself stays broken.
    faults.inject("before", "redirect", "refuse");
    for (device, seen) in [("tap0", "from tap0 to in0"), ("in0", "from in0 to tap0")] {
        let filter = succeed(inside.command("tc").args(["filter", "show", "dev", device, "parent", "ffff:"]));
        assert!(filter.contains("mirred"), "{filter}");
        succeed(inside.command("tc").args(["filter", "del", "dev", device, "parent", "ffff:"]));
        let (code, conclusion) = stop(&daemon);
        assert_eq!(code, Some(1));
        assert!(
            conclusion.starts_with("packets stop at: redirect") && conclusion.contains(seen),
            "{conclusion}"
        );
        let to = if device == "tap0" { "in0" } else { "tap0" };
        // Where the service has it: that is where it looks.
        let redirect = "protocol all pref 1 u32 match u32 0 0 action mirred egress redirect dev";
        let words = ["filter", "add", "dev", device, "parent", "ffff:"].into_iter();
        succeed(inside.command("tc").args(words.chain(redirect.split(' ')).chain([to])));
        assert_eq!(stop(&daemon), (Some(0), "every hop is as it should be".into()));
    }

    // Once there, and silent now.
    drop(guest);
    let _vmm = inside.run(|| open_tap("tap0", libc::IFF_VNET_HDR).unwrap());
    let (code, conclusion) = stop(&daemon);
    assert_eq!(code, Some(0));
    assert!(
        conclusion.contains("traffic (the guest has sent") && conclusion.contains("none in the 2 s"),
        "{conclusion}"
    );
    faults.inject("before", "port", "refuse");
    for (breaking, stops_at) in [
        (vec!["ip", "link", "set", port, "down"], "port"),
        (vec!["ip", "link", "set", port, "nomaster"], "bridge"),
    ] {
        lab.on_host(breaking[0], &breaking[1..]);
        let (code, conclusion) = stop(&daemon);
        assert_eq!(code, Some(1));
        assert!(
            conclusion.starts_with(&format!("packets stop at: {stops_at}")),
            "{breaking:?}: {conclusion}"
        );
        lab.on_host("ip", &["link", "set", port, "up"]);
    }
    let screen = daemon.client(&["doctor", "a"]);
    assert!(text(&screen).contains("mend: "), "{}", text(&screen));
    assert_eq!(daemon.client(&["doctor", "nobody"]).status.code(), Some(1));
}

/// Each hop is broken while the service cannot put it right, which it would; what doctor says mends it.
#[test]
fn each_hop_that_is_broken_is_named_and_mended_by_what_doctor_says() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "");
    let mut daemon = faults.start();
    let vm = daemon.json(&["vm", "create", "a"]);
    let guest = TapGuest::attach(&lab, &vm);
    guest.run("busybox", &["ping", "-c", "1", "-W", "20", vm["gateway"].as_str().unwrap()]);
    let examined = |daemon: &Daemon<'_>| -> Value {
        let output = daemon.client(&["doctor", "a", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)))
    };
    let well = "every hop is as it should be";
    assert_eq!(examined(&daemon)["conclusion"], well);
    let (port, address) = (vm["host_device"].as_str().unwrap(), vm["ip_address"].as_str().unwrap());
    // With the step that would put it right by itself.
    let hops = [
        ("ip -n vm-a link set tap0 down".to_owned(), None, "tap", "tap0 is down"),
        ("ip -n vm-a link set in0 down".to_owned(), None, "veth", "in0 is down"),
        (format!("ip link set {port} down"), Some("port"), "port", "is down"),
        (format!("bridge link set dev {port} isolated off"), Some("port"), "bridge", "not isolated"),
        (format!("ip link set {port} nomaster"), Some("port"), "bridge", "port of no bridge"),
        (format!("ip route del {address}/32"), Some("route"), "route", "no route to"),
        (format!("ip neigh del {address} dev br-vms"), Some("neighbour"), "neighbour", "is at no MAC"),
        ("rm /run/netns/vm-a".to_owned(), Some("name"), "namespace", "is gone"),
        (format!("ip link del {port}"), Some("veth"), "veth", "in0 is gone"),
    ];
    for (breaking, step, check, seen) in hops {
        if let Some(step) = step {
            faults.inject("before", step, "refuse");
        }
        lab.on_host("sh", &["-c", &breaking]);
        let report = examined(&daemon);
        let mut findings = report["findings"].as_array().unwrap().iter();
        let Some(found) =
            findings.find(|finding| finding["check"] == check && finding["verdict"] == "problem")
        else {
            panic!("{breaking}: {report:#}")
        };
        assert!(found["seen"].as_str().unwrap().contains(seen), "{breaking}: {found}");
        let stops = report["conclusion"].as_str().unwrap();
        assert!(stops.starts_with(&format!("packets stop at: {check}")), "{breaking}: {stops}");
        if found["mend"] == "systemctl restart guestnet" {
            faults.disarm();
            assert!(daemon.stop().success());
            daemon = faults.start();
        } else {
            mend(&lab, found);
        }
        guest.run("busybox", &["ping", "-c", "1", "-W", "20", vm["gateway"].as_str().unwrap()]);
        assert_eq!(examined(&daemon)["conclusion"], well, "{breaking}: {found}");
        faults.disarm();
    }
}

/// A guest whose VMM was given another MAC asks for a lease again and again, and no request gets to the server.
#[test]
fn why_a_guest_has_no_lease_is_read_off_the_walls() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "a"]);
    let wrong_mac: Value = {
        let mut vm = vm.clone();
        vm["mac_address"] = "52:54:00:00:00:01".into();
        vm
    };
    let guest = TapGuest::attach(&lab, &wrong_mac);
    let asked = guest
        .namespace
        .command("busybox")
        .args(["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "2", "-T", "1"])
        .output();
    assert!(!asked.unwrap().status.success(), "it got a lease");
    let report: Value = serde_json::from_slice(&daemon.client(&["doctor", "a", "--json"]).stdout).unwrap();
    let of = |check: &str| {
        let found = report["findings"].as_array().unwrap().iter().find(|finding| finding["check"] == check);
        found.unwrap_or_else(|| panic!("no {check}: {report:#}")).clone()
    };
    let (walls, lease) = (of("walls"), of("lease"));
    assert_eq!((&walls["verdict"], &lease["verdict"]), (&"warning".into(), &"warning".into()), "{report:#}");
    assert!(walls["seen"].as_str().unwrap().contains("spoofed_mac"), "{walls}");
    assert!(walls["meaning"].as_str().unwrap().contains("06:00:0a:64:00:02"), "{walls}");
    assert!(lease["seen"].as_str().unwrap().contains("it has never asked by DHCP"), "{lease}");
    assert!(lease["meaning"].as_str().unwrap().contains("another MAC than 06:00:0a:64:00:02"), "{lease}");
}
