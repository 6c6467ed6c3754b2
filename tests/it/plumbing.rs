//! What guestnet makes on the host, seen with the operator's own tools.

use crate::lab::daemon::Paths;
use crate::lab::guest::Boot;
use crate::lab::{Daemon, Guest, Lab, Machine, TapGuest, assert_same};

#[test]
fn a_vm_that_came_and_went_leaves_the_host_as_it_was() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let before = lab.host_state();
    let made = daemon.json(&["vm", "create", "vm1"]);
    assert_ne!(before, lab.host_state());
    assert_eq!(made, daemon.json(&["vm", "create", "vm1"]), "repeated, it is the same network");
    assert_eq!(made, daemon.json(&["vm", "show", "vm1"]));
    daemon.guestnet(&["vm", "delete", "vm1"]);
    assert_same(&before, &lab.host_state());
    daemon.guestnet(&["vm", "delete", "vm1"]);
    assert_eq!(daemon.json(&["vm", "list"]), serde_json::json!([]));
    assert_eq!(daemon.client(&["vm", "show", "vm1"]).status.code(), Some(1));
}

#[test]
fn what_a_vm_manager_is_told_is_all_it_needs() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&[
        "vm",
        "create",
        "web_1",
        "--workspace",
        "ws-1",
        "--rate-mbps",
        "50",
        "--tap-uid",
        "1000",
    ]);
    let expected = serde_json::json!({
        "vm_id": "web_1", "network_id": "default", "workspace_id": "ws-1", "namespace": "vm-web_1",
        "tap_device": "tap0", "ip_address": "10.100.0.2", "netmask": "255.255.0.0", "prefix_len": 16,
        "gateway": "10.100.0.1", "mac_address": "06:00:0a:64:00:02", "dns_servers": ["10.100.0.1"],
        "hostname": "web-1", "domain": "vm.internal", "mtu": 1500, "host_device": "gv0", "rate_limit_mbps": 50,
        "burst_kib": 96, "tap_uid": 1000, "tap_gid": null, "tap_multi_queue": false, "tap_offload": true,
        "created_at": vm["created_at"],
    });
    assert_eq!(vm, expected);
    assert!(vm["created_at"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn the_seeds_own_checks_show_what_they_look_for() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    daemon.guestnet(&["vm", "create", "vm1"]);
    assert!(lab.on_host("ip", &["link", "show", "br-vms"]).contains("state UP"));
    let nat = lab.on_host("iptables", &["-t", "nat", "-L", "POSTROUTING", "-n", "-v"]);
    assert!(nat.contains("MASQUERADE") && nat.contains("10.100.0.0/16"), "{nat}");
    assert!(lab.on_host("ip", &["netns", "list"]).contains("vm-vm1"));
    let inside = lab.on_host("ip", &["netns", "exec", "vm-vm1", "ip", "-o", "link", "show", "tap0"]);
    assert!(inside.contains(",UP"), "{inside}");
}

#[test]
fn the_number_of_rules_does_not_grow_with_vms() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let rules = || lab.on_host("iptables-save", &[]).lines().filter(|line| line.starts_with("-A")).count();
    let before = rules();
    for n in 0..5 {
        daemon.guestnet(&["vm", "create", &format!("vm{n}")]);
    }
    assert_eq!(before, rules());
    let uncommented = lab.on_host("iptables-save", &[]);
    let uncommented = uncommented.lines().filter(|line| line.starts_with("-A") && !line.contains("guestnet"));
    assert_eq!(uncommented.collect::<Vec<_>>(), Vec::<&str>::new());
}

#[test]
fn a_foreign_drop_policy_does_not_cut_guests_off_and_the_host_stays_closed_to_them() {
    let lab = Lab::new();
    lab.on_host("iptables", &["-P", "FORWARD", "DROP"]);
    lab.on_host("iptables", &["-P", "INPUT", "DROP"]);
    // What every host with such a policy has: its own answers come in.
    lab.on_host(
        "iptables",
        &["-A", "INPUT", "-i", "up0", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT"],
    );
    let listener = lab.host.run(|| std::net::TcpListener::bind("0.0.0.0:8080").unwrap());
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "vm1"]);
    let mut guest =
        Guest::boot(&lab, &Boot { machine: Machine::default(), network: &vm, kernel_arguments: "" });
    assert_eq!(guest.event("lease").get("ip"), "10.100.0.2");
    guest.event("ready");
    guest.succeed("timeout 10 wget -q -O - http://web.example.com/");
    guest.succeed("ping -c 1 -W 2 10.100.0.1");
    for address in ["10.100.0.1", "198.51.100.1"] {
        let (reached, said) = guest.run(&format!("timeout 2 nc {address} 8080 </dev/null"));
        assert!(!reached, "the guest reached {address}:8080 of the host: {said}");
    }
    drop(listener);
    // An address of the subnet that nobody has is unreachable, not sent upstream.
    let (reached, _) = guest.run("ping -c 1 -W 2 10.100.77.77");
    assert!(!reached);
    let route = lab.on_host("ip", &["route", "show", "10.100.0.0/16"]);
    assert!(route.contains("unreachable"), "{route}");
}

#[test]
fn a_guest_is_told_by_dhcp_what_the_api_told_the_vm_manager() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, "[[network]]\nmtu = 1400\ndomain = \"guests.example\"\n");
    let vm = daemon.json(&["vm", "create", "vm1", "--hostname", "front", "--ip", "10.100.9.9"]);
    let before = daemon.json(&["lease", "list"]);
    assert_eq!(before[0]["state"], "reserved");
    let mut guest =
        Guest::boot(&lab, &Boot { machine: Machine::default(), network: &vm, kernel_arguments: "" });
    let lease = guest.event("lease");
    guest.event("ready");
    let told =
        ["ip", "prefix", "router", "dns", "domain", "hostname", "mtu", "tries"].map(|key| lease.get(key));
    assert_eq!(
        told,
        ["10.100.9.9", "16", "10.100.0.1", "10.100.0.1", "guests.example", "front", "1400", "1"]
    );
    // By its own name, which is live without a reload, and under the network's domain.
    let resolved = guest.succeed("timeout 10 nslookup -type=a front.guests.example.");
    assert!(resolved.contains("10.100.9.9"), "{resolved}");
    let after = daemon.json(&["lease", "list"]);
    assert_eq!(after[0]["state"], "bound");
    assert!(
        after[0]["expires_at"].is_string() && after[0]["vendor_class"].as_str().unwrap().contains("udhcp"),
        "{after}"
    );
    assert!(daemon.guestnet(&["lease", "list"]).contains("bound"));
}

#[test]
fn uninstalling_gives_the_host_back() {
    let lab = Lab::new();
    let before = lab.host_state();
    let daemon = Daemon::start(&lab);
    daemon.guestnet(&["vm", "create", "vm1"]);
    let config = Paths::of(&lab).config;
    let uninstall = || {
        let mut command = lab.host_command(crate::lab::guestnet_binary());
        command.arg("uninstall").arg("--config").arg(&config).output().unwrap()
    };
    assert_eq!(uninstall().status.code(), Some(1), "not while the service runs");
    assert!(daemon.stop().success());
    let output = uninstall();
    assert!(output.status.success(), "{}", crate::lab::text(&output));
    assert_same(&before, &lab.host_state());
}

#[test]
fn uninstalling_by_another_state_directory_leaves_guests_their_walls() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "vm1"]);
    let guest = TapGuest::attach(&lab, &vm);
    assert!(daemon.stop().success());
    let before = lab.host_state();
    let (elsewhere, config) = (lab.directory().join("elsewhere"), lab.directory().join("elsewhere.toml"));
    std::fs::write(&config, format!("[state]\ndirectory = {elsewhere:?}\n")).unwrap();
    let mut command = lab.host_command(crate::lab::guestnet_binary());
    let output = command.arg("uninstall").arg("--config").arg(&config).output().unwrap();
    crate::lab::assert_says(&output, 1, &["nothing was removed", "elsewhere", "--config"]);
    assert_same(&before, &lab.host_state());
    assert!(!elsewhere.exists());
    drop(guest);

    let nobody = Lab::new();
    let mut command = nobody.host_command(crate::lab::guestnet_binary());
    let output = command.arg("uninstall").arg("--config").arg(&config).output().unwrap();
    assert!(output.status.success(), "{}", crate::lab::text(&output));
}

#[test]
fn uninstalling_needs_no_configuration_but_the_place_of_the_state() {
    let lab = Lab::new();
    let before = lab.host_state();
    let first = "[[network]]\nname = \"first\"\npool_size = 1\nmetadata = true\ndns_only_resolver = true\n\
                 [[network]]\nname = \"second\"\nbridge_name = \"br-second\"\nbridge_ip = \"10.9.0.1/16\"\n\
                 vm_subnet = \"10.9.0.0/16\"\npool_size = 1\n";
    assert!(Daemon::start_with(&lab, first).stop().success());
    // What the former configuration's guests were led to goes with their bridge.
    let of_variables = [("UNKEY_METALD_NETWORK_BRIDGE", "br-other".as_ref())];
    let daemon = Daemon::start_with_env(&lab, first, &of_variables);
    daemon.guestnet(&["vm", "create", "vm1"]);
    let rules = lab.on_host("iptables", &["-t", "nat", "-S"]);
    assert!(rules.contains("-i br-other ") && !rules.contains("-i br-vms "), "{rules}");
    assert!(daemon.stop().success());

    // Without the variable, with another network in the file, and with what does not fit; the name that it has is somebody's.
    lab.on_host("ip", &["link", "add", "br-vms", "type", "bridge"]);
    let config = Paths::of(&lab).config;
    let file = crate::lab::daemon::config(&lab, "[[network]]\nname = \"third\"\nmtu = 1\n");
    std::fs::write(&config, file).unwrap();
    let mut command = lab.host_command(crate::lab::guestnet_binary());
    let output = command.arg("uninstall").arg("--config").arg(&config).output().unwrap();
    assert!(output.status.success(), "{}", crate::lab::text(&output));
    lab.on_host("ip", &["link", "delete", "br-vms"]);
    assert_same(&before, &lab.host_state());
}
