//! External plumbing: guestnet serves DHCP and DNS on a bridge that is not its own.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::lan::{self, Sniffer};
use crate::lab::{Daemon, Lab, Namespace, assert_same, text};

const MAC: &str = "52:54:00:00:00:01";

/// One exchange of busybox's client; the address it got.
fn lease(machine: &Namespace) -> Option<String> {
    let script = "case $1 in bound) ip addr replace $ip/$mask dev $interface; echo got $ip >&2;; esac";
    let path =
        std::env::temp_dir().join(format!("udhcpc-{}-{:?}", std::process::id(), std::thread::current().id()));
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut client = machine.command("busybox");
    client.args(["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "3", "-T", "1", "-s"]).arg(&path);
    let output = client.output().expect("busybox");
    std::fs::remove_file(&path).unwrap();
    let said = text(&output);
    said.lines().find_map(|line| line.strip_prefix("got ")).map(ToOwned::to_owned)
}

fn resolve(machine: &Namespace, name: &str) -> String {
    text(&machine.command("busybox").args(["nslookup", "-type=a", name, lan::SERVER]).output().unwrap())
}

#[test]
fn a_bridge_that_somebody_else_made_is_served_and_left_as_it_is() {
    let lab = Lab::new();
    lan::make(&lab);
    let machine = lan::machine(&lab, "p1", MAC);
    // But for tables of nf_tables that are guestnet's own, and have no port in them.
    let host = || {
        let own = |line: &&str| line.starts_with("walls: ") || line.contains(" guestnet ");
        lab.host_state().lines().filter(|line| !own(line)).map(|line| format!("{line}\n")).collect::<String>()
    };
    let before = host();
    let bridge = lab.on_host("ip", &["link", "show", lan::BRIDGE]);
    let reservation =
        format!("[[network.reservation]]\nmac = \"{MAC}\"\nip_address = \"10.9.0.10\"\nhostname = \"build\"");
    {
        let daemon = Daemon::start_with(&lab, &lan::network(&reservation));
        assert_eq!(lease(&machine).as_deref(), Some("10.9.0.10"));
        assert!(resolve(&machine, "build.vm.internal").contains("10.9.0.10"));
        let leases = daemon.json(&["lease", "list"]);
        let lease = &leases[0];
        assert_eq!((&lease["state"], &lease["hostname"]), (&"bound".into(), &"build".into()));
        assert_eq!((&lease["network_id"], &lease["last_exchange"]), (&"lan".into(), &"request: ack".into()));
        assert_same(&before, &host());
        assert_eq!(lab.on_host("ip", &["link", "show", lan::BRIDGE]), bridge);
        // Its links are not guestnet's, so a VM has no place there.
        let refused = daemon.client(&["vm", "create", "vm1"]);
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused).contains("external"), "{}", text(&refused));
    }
    assert_same(&before, &host());
}

#[test]
fn a_reservation_is_live_when_the_call_returns_and_gone_when_it_is_deleted() {
    let lab = Lab::new();
    lan::make(&lab);
    let machine = lan::machine(&lab, "p1", MAC);
    let daemon = Daemon::start_with(&lab, &lan::network(""));
    assert_eq!(lease(&machine), None, "no reservation, no answer");
    let added = daemon.json(&["reservation", "add", MAC, "10.9.0.10", "--hostname", "build"]);
    assert_eq!((&added[0]["ip_address"], &added[0]["configured"]), (&"10.9.0.10".into(), &false.into()));
    assert_eq!(lease(&machine).as_deref(), Some("10.9.0.10"));
    // The same again is the same; something else is refused, with what it differs in.
    daemon.guestnet(&["reservation", "add", MAC, "10.9.0.10"]);
    let differs = daemon.client(&["reservation", "add", MAC, "10.9.0.11"]);
    assert_eq!(differs.status.code(), Some(1));
    assert!(
        text(&differs).contains("10.9.0.10") && text(&differs).contains("10.9.0.11"),
        "{}",
        text(&differs)
    );
    let taken = daemon.client(&["reservation", "add", "52:54:00:00:00:02", "10.9.0.10"]);
    assert!(text(&taken).contains(MAC), "{}", text(&taken));
    // The next free address, when none is named.
    let next = daemon.json(&["reservation", "add", "52:54:00:00:00:02"]);
    assert_eq!(next[0]["ip_address"], "10.9.0.2");

    daemon.guestnet(&["reservation", "delete", MAC]);
    daemon.guestnet(&["reservation", "delete", MAC]);
    assert_eq!(lease(&machine), None);
    assert!(!resolve(&machine, "build.vm.internal").contains("10.9.0.10"));
    daemon.guestnet(&["reservation", "delete", "10.9.0.2"]);
    assert_eq!(daemon.json(&["reservation", "list"]), Value::Array(Vec::new()));
}

#[test]
fn reservations_and_leases_survive_a_crash() {
    let lab = Lab::new();
    lan::make(&lab);
    let machine = lan::machine(&lab, "p1", MAC);
    let daemon = Daemon::start_with(&lab, &lan::network(""));
    let option = "ntp_servers = [\"10.9.0.7\"], raw = { 224 = \"0102\" }";
    daemon.guestnet(&["reservation", "add", MAC, "10.9.0.10", "--dhcp-options", option]);
    assert!(lease(&machine).is_some());
    // The lease log is written in groups, a moment after the answer.
    let log = lab.directory().join("state/leases.log");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !std::fs::read_to_string(&log).unwrap_or_default().contains("bound") {
        assert!(Instant::now() < deadline, "the lease is not in the log");
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.crash();
    let daemon = Daemon::start_with(&lab, &lan::network(""));
    let lease = daemon.json(&["lease", "show", MAC]);
    assert_eq!((&lease["state"], &lease["ip_address"]), (&"bound".into(), &"10.9.0.10".into()));
    assert!(lease["vendor_class"].as_str().unwrap().starts_with("udhcp"), "{lease}");
    let reservation = &daemon.json(&["reservation", "list"])[0];
    assert_eq!(reservation["dhcp_options"]["ntp_servers"][0], "10.9.0.7");
    assert_eq!(reservation["dhcp_options"]["raw"]["224"], "0102");
}

#[test]
fn ten_thousand_reservations_are_imported_by_one_command() {
    let lab = Lab::new();
    lan::make(&lab);
    let machine = lan::machine(&lab, "p1", "52:54:00:00:27:0f");
    let daemon = Daemon::start_with(&lab, &lan::network(""));
    let lines: String = (0..10_000)
        .map(|n: u32| {
            format!("52:54:00:00:{:02x}:{:02x} 10.9.{}.{}\n", n >> 8, n & 255, 1 + n / 250, n % 250 + 1)
        })
        .collect();
    let file = lab.directory().join("hosts");
    std::fs::write(&file, &lines).unwrap();
    let imported = daemon.json(&["reservation", "import", &file.display().to_string()]);
    assert_eq!(imported["imported"], 10_000);
    assert_eq!(daemon.json(&["reservation", "list"]).as_array().unwrap().len(), 10_000);
    assert_eq!(lease(&machine).as_deref(), Some("10.9.40.250"));
    // What `list` prints can be imported, and says nothing new.
    let listed = daemon.guestnet(&["reservation", "list", "--json"]);
    std::fs::write(&file, listed).unwrap();
    daemon.guestnet(&["reservation", "import", &file.display().to_string()]);

    std::fs::write(&file, "52:54:00:00:00:01 10.9.0.1\n52:54:00:00:00 10.9.0.2").unwrap();
    let refused = daemon.client(&["reservation", "import", &file.display().to_string()]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("line 2"), "{}", text(&refused));
}

#[test]
fn leases_are_watched_as_they_change() {
    let lab = Lab::new();
    lan::make(&lab);
    let machine = lan::machine(&lab, "p1", MAC);
    let daemon = Daemon::start_with(&lab, &lan::network(""));
    daemon.guestnet(&["reservation", "add", MAC, "10.9.0.10", "--hostname", "build"]);
    let watch = |more: &[&str]| {
        let mut watch = daemon.client_command(&[&["lease", "watch"], more].concat());
        let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(watch.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        (watch, lines)
    };
    let (mut json, lines) = watch(&["--json", "--network", "lan"]);
    let (mut table, rows) = watch(&[]);
    // It is being watched from some moment on: the guest boots until that is seen.
    let deadline = Instant::now() + Duration::from_secs(60);
    let seen = |lines: &Receiver<String>, wanted: &dyn Fn(&str) -> bool| {
        loop {
            assert_eq!(lease(&machine).as_deref(), Some("10.9.0.10"));
            while let Ok(line) = lines.recv_timeout(Duration::from_secs(1)) {
                if wanted(&line) {
                    return line;
                }
            }
            assert!(Instant::now() < deadline, "no such line");
        }
    };
    let bound = seen(&lines, &|line| line.contains("\"bound\""));
    let bound: Value = serde_json::from_str(&bound).expect("one object a line");
    assert_eq!((&bound["mac_address"], &bound["ip_address"]), (&MAC.into(), &"10.9.0.10".into()));
    assert_eq!((&bound["network_id"], &bound["last_exchange"]), (&"lan".into(), &"request: ack".into()));
    assert!(bound["vendor_class"].as_str().unwrap().starts_with("udhcp") && bound["expires_at"].is_string());
    let row = seen(&rows, &|row| row.contains("bound"));
    assert!(row.contains(MAC) && row.contains("10.9.0.10"), "{row}");

    daemon.guestnet(&["reservation", "delete", MAC]);
    let deleted = |lines: &Receiver<String>| {
        let mut lines = std::iter::from_fn(|| lines.recv_timeout(Duration::from_secs(60)).ok());
        lines.find(|line| line.contains("deleted")).expect("the end of a reservation")
    };
    assert!(deleted(&lines).contains(MAC) && deleted(&rows).contains(MAC));

    // Nobody waits for what cannot come.
    for watch in [["lease", "watch"].as_slice(), &["events"]] {
        let unknown = daemon.client(&[watch, &["--network", "nowhere"]].concat());
        assert_eq!(unknown.status.code(), Some(1), "{}", text(&unknown));
        assert!(text(&unknown).contains("nowhere"), "{}", text(&unknown));
    }
    // A watch ends with the service.
    daemon.stop();
    for watch in [&mut json, &mut table] {
        watch.wait().unwrap();
    }
}

#[test]
fn a_lease_that_ends_is_told_of_when_it_does() {
    let lab = Lab::new();
    lan::make(&lab);
    let machine = lan::machine(&lab, "p1", MAC);
    let daemon = Daemon::start_with(&lab, &lan::network("lease_seconds = 10"));
    daemon.guestnet(&["reservation", "add", MAC, "10.9.0.10"]);
    let mut watch =
        daemon.client_command(&["lease", "watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let output = BufReader::new(watch.stdout.take().unwrap());
    assert!(lease(&machine).is_some());
    let expired = output.lines().map_while(Result::ok).find(|line| line.contains("\"expired\""));
    assert!(expired.expect("the end of the lease").contains(MAC));
    assert_eq!(daemon.json(&["lease", "show", MAC])["state"], "expired");
    let _ = watch.kill();
    let _ = watch.wait();
}

#[test]
fn an_interface_that_is_made_anew_is_served_again() {
    let lab = Lab::new();
    lan::make(&lab);
    let machine = lan::machine(&lab, "p1", MAC);
    let daemon = Daemon::start_with(&lab, &lan::network(""));
    daemon.guestnet(&["reservation", "add", MAC, "10.9.0.10", "--hostname", "build"]);
    assert_eq!(lease(&machine).as_deref(), Some("10.9.0.10"));
    let events = || daemon.json(&["status"])["recent_events"].to_string();
    let told = |words: &str| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !events().contains(words) {
            assert!(Instant::now() < deadline, "no {words:?} in {}", events());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    lab.on_host("ip", &["link", "del", lan::BRIDGE]);
    told("no such device");
    // As libvirt does when its network is started again.
    lan::make(&lab);
    lab.on_host("ip", &["link", "set", "p1", "master", lan::BRIDGE]);
    told("is another interface than before");
    assert_eq!(lease(&machine).as_deref(), Some("10.9.0.10"));
    assert!(resolve(&machine, "build.vm.internal").contains("10.9.0.10"));
    // In one go.
    lab.on_host("ip", &["link", "del", lan::BRIDGE]);
    lan::make(&lab);
    lab.on_host("ip", &["link", "set", "p1", "master", lan::BRIDGE]);
    let deadline = Instant::now() + Duration::from_secs(60);
    while lease(&machine).is_none() {
        assert!(Instant::now() < deadline, "not served again");
    }
}

#[test]
fn an_interface_that_is_not_there_or_lacks_the_address_is_named() {
    let lab = Lab::new();
    let refused = |named: &str| {
        let before = lab.host_state();
        let output =
            crate::lab::daemon::serve_command(&lab, &lan::network("dns = \"off\"")).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains(named), "no {named} in {}", text(&output));
        assert_same(&before, &lab.host_state());
    };
    refused(lan::BRIDGE);
    lab.on_host("ip", &["link", "add", lan::BRIDGE, "type", "bridge"]);
    lab.on_host("ip", &["link", "set", lan::BRIDGE, "up"]);
    refused(lan::SERVER);
}

#[test]
fn an_unknown_client_and_another_server_raise_an_event_and_get_no_answer() {
    let lab = Lab::new();
    lan::make(&lab);
    let (client, rogue) = (lan::machine(&lab, "p1", MAC), lan::machine(&lab, "p2", "52:54:00:00:00:66"));
    let daemon = Daemon::start_with(&lab, &lan::network(""));
    let mut sniffer = Sniffer::new(&lab.host, lan::BRIDGE);
    assert_eq!(lease(&client), None);
    let answers: Vec<_> = sniffer.all().into_iter().filter(|seen| seen.mac != MAC).collect();
    assert!(answers.is_empty(), "{answers:?}");

    crate::lab::succeed(rogue.command("ip").args(["addr", "add", "10.9.0.66/16", "dev", "eth0"]));
    let mut dnsmasq = rogue.command("dnsmasq");
    dnsmasq.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--port=0",
        "--user=root",
        "--log-facility=-",
    ]);
    dnsmasq.args(["--interface=eth0", "--bind-interfaces", "--dhcp-range=10.9.7.1,10.9.7.9,255.255.0.0"]);
    dnsmasq.args(["--dhcp-leasefile=/run/leases", "--pid-file=/run/pid"]);
    let mut dnsmasq =
        dnsmasq.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let got = loop {
        if let Some(got) = lease(&client) {
            break got;
        }
        assert!(Instant::now() < deadline, "dnsmasq gave nothing either");
    };
    let _ = dnsmasq.kill();
    let _ = dnsmasq.wait();
    assert!(got.starts_with("10.9.7."), "{got}");
    let status = daemon.json(&["status"]);
    let events = status["recent_events"].to_string();
    assert!(events.contains("unknown_mac") && events.contains(MAC), "{events}");
    assert!(events.contains("rogue_dhcp_server") && events.contains("10.9.0.66"), "{events}");
    let doctor = daemon.client(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let dhcp =
        report["findings"].as_array().unwrap().iter().find(|finding| finding["check"] == "dhcp").unwrap();
    assert_eq!(dhcp["verdict"], "problem", "{dhcp}");
    let seen = dhcp["seen"].as_str().unwrap();
    assert!(seen.contains("another DHCP server answers guests") && seen.contains("10.9.0.66"), "{dhcp}");
}
