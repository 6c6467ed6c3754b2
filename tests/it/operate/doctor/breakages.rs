//! What of a host can be broken inside a lab, broken there, found, and mended by what doctor says where that is a command.

use crate::crash::Faults;
use crate::lab::attacker::Attacker;
use crate::lab::{Daemon, Lab, frames};

use super::{examine, findings, findings_of_all, mend, of_the_lab, only};

fn mount(lab: &Lab, arguments: &[&str]) {
    lab.on_host("mount", arguments);
}

/// Of the device files, one is missing, one is not what it should be, one may not be opened.
#[test]
fn device_files_that_do_not_do_are_told_from_each_other() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    mount(&lab, &["-t", "tmpfs", "tmpfs", "/dev/net"]);
    let gone = only(examine(&daemon, &[]).1, "tun", "problem", "/dev/net/tun does not exist");
    mend(&lab, &gone);
    assert_eq!(of_the_lab(examine(&daemon, &[]).1), Vec::<serde_json::Value>::new());
    lab.on_host("umount", &["/dev/net"]);

    mount(&lab, &["-t", "tmpfs", "-o", "nodev", "tmpfs", "/dev/net"]);
    lab.on_host("mknod", &["-m", "0666", "/dev/net/tun", "c", "10", "200"]);
    only(examine(&daemon, &[]).1, "tun", "problem", "/dev/net/tun cannot be opened");
    lab.on_host("umount", &["/dev/net"]);

    mount(&lab, &["--bind", "/dev/null", "/dev/kvm"]);
    let wrong = findings_of_all(&daemon);
    let kvm = wrong.iter().find(|finding| finding["check"] == "kvm").unwrap_or_else(|| panic!("{wrong:#?}"));
    assert_eq!(kvm["verdict"], "warning");
    assert!(kvm["seen"].as_str().unwrap().contains("is not the device"), "{kvm}");
}

#[test]
fn settings_of_the_kernel_that_somebody_changes_are_found_and_mended() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "a"]);
    for name in ["all", "br-vms"] {
        lab.on_host("sysctl", &["-qw", &format!("net.ipv4.conf.{name}.rp_filter=0")]);
    }
    let found = only(findings(&daemon), "rp_filter", "warning", "net.ipv4.conf.br-vms.rp_filter is 0");
    mend(&lab, &found);
    assert_eq!(findings(&daemon), Vec::<serde_json::Value>::new());

    // For what a port forward leads to on the guest's own bridge; without one it is no matter.
    lab.on_host("sysctl", &["-qw", "net.bridge.bridge-nf-call-iptables=1"]);
    assert_eq!(findings(&daemon), Vec::<serde_json::Value>::new());
    daemon.guestnet(&["forward", "add", "a", "--host-port", "8080"]);
    let found = only(findings(&daemon), "br_netfilter", "warning", "bridge-nf-call-iptables is 1");
    mend(&lab, &found);
    assert_eq!(findings(&daemon), Vec::<serde_json::Value>::new());

    // The size of the table is the machine's: here another file is read in its place. The connections are the guest's.
    let guest = Attacker::new(&lab, &vm);
    assert!(guest.ping(crate::lab::WEB.parse().unwrap(), std::time::Duration::from_secs(5)).is_some());
    let small = lab.directory().join("max");
    std::fs::write(&small, "1\n").unwrap();
    let max = "/proc/sys/net/netfilter/nf_conntrack_max";
    mount(&lab, &["--bind", small.to_str().unwrap(), max]);
    only(findings(&daemon), "conntrack", "problem", "of 1 tracked connections");
    lab.on_host("umount", &[max]);
    assert_eq!(findings(&daemon), Vec::<serde_json::Value>::new());
}

#[test]
fn a_resolver_and_upstreams_that_do_not_answer_and_a_full_subnet_are_found() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(
        &lab,
        "[[network]]\nbridge_ip = \"10.101.0.1/29\"\nvm_subnet = \"10.101.0.0/29\"\npool_size = 2\n",
    );
    lab.on_host("iptables", &["-I", "OUTPUT", "1", "-o", "lo", "-p", "udp", "--dport", "53", "-j", "DROP"]);
    only(findings(&daemon), "resolver", "problem", "10.101.0.1:53 does not answer");
    lab.on_host("iptables", &["-D", "OUTPUT", "1"]);
    assert_eq!(findings(&daemon), Vec::<serde_json::Value>::new());

    lab.in_inet("ip", &["addr", "del", "8.8.8.8/32", "dev", "lo"]);
    only(findings(&daemon), "upstreams", "warning", "8.8.8.8");
    lab.in_inet("ip", &["addr", "del", "8.8.4.4/32", "dev", "lo"]);
    only(findings(&daemon), "upstreams", "problem", "8.8.8.8 and 8.8.4.4");
    for resolver in crate::lab::inet::RESOLVERS {
        lab.in_inet("ip", &["addr", "add", &format!("{resolver}/32"), "dev", "lo"]);
    }

    daemon.guestnet(&["vm", "create", "a", "b", "c", "d", "e"]);
    only(findings(&daemon), "addresses", "problem", "has no free address");
    daemon.guestnet(&["vm", "delete", "e"]);
    let still: Vec<_> = findings(&daemon);
    assert!(still.iter().all(|finding| finding["check"] == "addresses"), "an address rests: {still:#?}");
}

#[test]
fn a_guest_that_sends_as_another_is_told_of() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let guest = Attacker::new(&lab, &daemon.json(&["vm", "create", "a"]));
    guest.send(&frames::udp(
        guest.mac,
        guest.gateway_mac,
        [10, 100, 9, 9].into(),
        guest.gateway,
        (1, 1),
        b"x",
    ));
    crate::slots::eventually("an event", || {
        daemon.guestnet(&["events", "--no-follow"]).contains("spoof_denied")
    });
    let wrong = findings(&daemon);
    let [found] = wrong.as_slice() else { panic!("{wrong:#?}") };
    assert_eq!((&found["check"], &found["verdict"]), (&"spoofing".into(), &"warning".into()), "{found}");
    assert!(found["seen"].as_str().unwrap().contains("frames dropped at its port"), "{found}");
}

/// A kernel that lacks something refuses what asks for it: here each is refused in its place.
#[test]
fn what_the_kernel_lacks_is_named() {
    let lab = Lab::new();
    let faults = Faults::new(&lab, "");
    let daemon = faults.start();
    for (step, feature) in [
        ("bridge", "CONFIG_BRIDGE"),
        ("veth", "CONFIG_VETH"),
        ("port", "isolated and locked ports"),
        ("tap", "CONFIG_TUN"),
        ("redirect", "CONFIG_NET_CLS_U32"),
        ("rate", "CONFIG_NET_SCH_TBF"),
        ("all-walls", "CONFIG_NF_TABLES"),
        ("forget-connections", "CONFIG_NF_CT_NETLINK"),
        ("rules", "MASQUERADE"),
    ] {
        let fault = lab.directory().join("lacks");
        std::fs::write(&fault, format!("before {step} refuse")).unwrap();
        let mut doctor = daemon.client_command(&["doctor", "--json"]);
        let output = doctor.env("GUESTNET_FAULT", &fault).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let kernel =
            report["findings"].as_array().unwrap().iter().find(|finding| finding["check"] == "kernel");
        let kernel = kernel.unwrap_or_else(|| panic!("{report:#}"));
        assert_eq!(kernel["verdict"], "problem", "{step}: {kernel}");
        assert!(kernel["seen"].as_str().unwrap().contains(feature), "{step}: {kernel}");
        assert_eq!(output.status.code(), Some(1));
    }
    assert_eq!(findings(&daemon), Vec::<serde_json::Value>::new(), "this one has all of it");
}
